//! Tests of inodes: fields by hand, what `debugfs` says of real ones, and any bytes.

use proptest::prelude::*;

use super::*;
use crate::test_image::TestImage;
use crate::test_superblock::{edit_features, sample};

const INO: InodeNo = InodeNo(12);

fn file(sb: &Superblock, kind: FileKind) -> Inode {
    Inode::create(INO, sb, kind, 0o644, 99)
}

fn bytes_of(inode: &Inode, sb: &Superblock) -> Vec<u8> {
    let mut bytes = vec![0; sb.inode_size()];
    inode.write_to(&mut bytes).unwrap();
    bytes
}

fn reparse(inode: &Inode, sb: &Superblock) -> Result<Inode, Corruption> {
    let mut inode = inode.clone();
    inode.update_checksum();
    Inode::parse(&bytes_of(&inode, sb), INO, sb)
}

/// Who reads a file renews its access time with no lock that keeps out a change of the inode: either
/// time stays then, whole.
#[test]
fn times_are_adopted_whole_or_not_at_all() {
    let sb = sample(|_| {});
    let time = |seconds, nanoseconds| Timestamp {
        seconds,
        nanoseconds,
    };
    let times = [
        time(0, 0),
        time(0x0102_0304, 5),
        time(0x0102_0305, 5),
        time(0x0102_0304, 0x0102_0304),
        time(0x0202_0304, 0x0102_0305),
        time(0x1_0102_0304, 5),
        time(0x2_0FFF_0304, 999_999_999),
        time(-7, 1),
    ];
    let set: [fn(&mut Inode, Timestamp); 3] =
        [Inode::set_atime, Inode::set_ctime, Inode::set_mtime];
    let get: [fn(&Inode) -> Timestamp; 3] = [Inode::atime, Inode::ctime, Inode::mtime];
    for (set, get) in set.iter().zip(get) {
        for [old, new, other] in triples(&times) {
            let mut before = file(&sb, FileKind::Regular);
            set(&mut before, old);
            let mut after = before.clone();
            set(&mut after, new);
            after.set_links(7);
            let mut here = before.clone();
            set(&mut here, other);
            here.set_uid(8);
            here.adopt(&before, &after);
            let expected = if old == new { other } else { new };
            assert_eq!(get(&here), expected, "{old:?} {new:?} {other:?}");
            assert_eq!((here.links(), here.uid()), (7, 8));
        }
    }
}

/// Three of `all`, in each order, the same more than once as well.
fn triples<T: Copy>(all: &[T]) -> impl Iterator<Item = [T; 3]> {
    let pairs = all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b)));
    pairs.flat_map(|(a, b)| all.iter().map(move |c| [a, b, *c]))
}

#[test]
fn fields_go_in_and_come_out() {
    let sb = sample(|raw| edit_features(raw, "large_dir"));
    let mut inode = file(&sb, FileKind::Directory);
    inode.set_permissions(0o1777);
    inode.set_uid(0x1234_5678);
    inode.set_gid(0x9ABC_DEF0);
    assert!(inode.set_project(77));
    inode.set_size(1 << 40);
    inode.set_links(3);
    inode.set_sectors(1 << 40).unwrap();
    inode.set_flags(InodeFlags::EXTENTS | InodeFlags::NOATIME);
    inode.set_version(0x1122_3344_5566_7788);
    inode.set_file_acl(Some(BlockNo(65535)));
    inode.set_orphan_next(Some(InodeNo(13)));
    let read = reparse(&inode, &sb).unwrap();
    assert_eq!(
        (read.kind(), read.mode()),
        (Some(FileKind::Directory), 0o41777)
    );
    assert_eq!(
        (read.uid(), read.gid(), read.project()),
        (0x1234_5678, 0x9ABC_DEF0, Some(77))
    );
    assert_eq!(
        (read.size(), read.links(), read.sectors()),
        (1 << 40, 3, 1 << 40)
    );
    assert_eq!(
        read.flags().names().collect::<Vec<_>>(),
        ["NOATIME", "EXTENTS"]
    );
    assert_eq!(read.version(), 0x1122_3344_5566_7788);
    assert_eq!(read.file_acl(), Some(BlockNo(65535)));
    assert_eq!(
        (read.orphan_next(), read.generation()),
        (Some(InodeNo(13)), 99)
    );
    assert_eq!(read.xattr_range(), Some(160..256));
    assert_eq!(read.raw_extra().i_projid, 77);
}

#[test]
fn a_changed_bit_fails_the_checksum() {
    for size in [128, 256] {
        let sb = sample(|raw| raw.s_inode_size = size.into());
        let mut inode = file(&sb, FileKind::Regular);
        inode.update_checksum();
        let bytes = bytes_of(&inode, &sb);
        assert_eq!(Inode::parse(&bytes, INO, &sb), Ok(inode));
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Inode::parse(&bytes, INO, &sb).is_err(), "{size}: bit {bit}");
        }
        assert!(
            Inode::parse(&bytes, InodeNo(13), &sb).is_err(),
            "it belongs to its number"
        );
    }
}

#[test]
fn a_record_without_extra_fields_sums_its_rest_as_it_is() {
    let sb = sample(|_| ());
    let mut bytes = bytes_of(&file(&sb, FileKind::Regular), &sb);
    bytes[128..].fill(0);
    bytes[130..132].copy_from_slice(&[7, 7]);
    let mut inode = Inode::read(&bytes, INO, &sb).unwrap();
    assert_eq!(
        (inode.extra_isize(), inode.xattr_range(), inode.project()),
        (0, None, None)
    );
    inode.update_checksum();
    let mut bytes = bytes_of(&inode, &sb);
    assert_eq!(bytes[130..132], [7, 7], "no checksum is stored there");
    assert!(Inode::parse(&bytes, INO, &sb).is_ok());
    bytes[130] = 8;
    assert!(Inode::parse(&bytes, INO, &sb).is_err(), "but it is summed");
    inode.ensure_extra();
    assert_eq!((inode.extra_isize(), inode.project()), (32, Some(0)));
    assert!(reparse(&inode, &sb).is_ok());
}

#[test]
fn extra_fields_must_fit() {
    let sb = sample(|_| ());
    for (extra, good) in [
        (0_u16, true),
        (4, true),
        (32, true),
        (128, true),
        (2, false),
        (33, false),
        (132, false),
    ] {
        let mut bytes = vec![0; 256];
        bytes[128..130].copy_from_slice(&extra.to_le_bytes());
        let result = Inode::read(&bytes, INO, &sb);
        assert_eq!(result.is_ok(), good, "{extra}");
        if let Err(error) = result {
            assert_eq!(
                error,
                Corruption::InodeExtraSize {
                    extra_isize: extra,
                    room: 128
                }
            );
        }
    }
    let mut bytes = vec![0; 256];
    bytes[128] = 124;
    let inode = Inode::read(&bytes, INO, &sb).unwrap();
    assert_eq!(
        inode.xattr_range(),
        Some(252..256),
        "just room for a header"
    );
}

#[test]
fn hostile_records_are_refused() {
    let sb = sample(|_| ());
    let mut inode = file(&sb, FileKind::Regular);
    inode.set_size(1 << 63);
    assert_eq!(
        reparse(&inode, &sb),
        Err(Corruption::FileSize { size: 1 << 63 })
    );
    let mut inode = file(&sb, FileKind::Regular);
    inode.set_file_acl(Some(BlockNo(65536)));
    let wrong = Corruption::NumberRange {
        what: "attribute block",
        number: 65536,
        count: 65536,
    };
    assert_eq!(reparse(&inode, &sb), Err(wrong));
    let mut inode = file(&sb, FileKind::Regular);
    inode.base.i_mode = 0x3000.into();
    assert_eq!(
        reparse(&inode, &sb),
        Err(Corruption::InodeMode { mode: 0x3000 })
    );
    let short = Corruption::Truncated {
        what: "inode",
        needed: 256,
        have: 255,
    };
    assert_eq!(Inode::parse(&[0; 255], INO, &sb), Err(short));
    let unused = Inode::parse(&[0; 256], INO, &sb).unwrap();
    assert_eq!(unused.kind(), None);
}

#[test]
fn the_high_half_of_the_size_is_for_files() {
    let sb = sample(|_| ());
    for (kind, size) in [
        (FileKind::Regular, (7 << 32) + 1),
        (FileKind::Directory, 1),
        (FileKind::Symlink, 1),
    ] {
        let mut inode = file(&sb, kind);
        inode.set_size((7 << 32) + 1);
        assert_eq!(inode.size(), size, "{kind:?}");
    }
}

#[test]
fn sectors_change_their_unit_when_they_must() {
    let sb = sample(|_| ());
    let mut inode = file(&sb, FileKind::Regular);
    for (sectors, huge) in [
        (0, false),
        (u64::from(u32::MAX), false),
        ((1 << 48) - 1, false),
        (1 << 48, true),
    ] {
        inode.set_sectors(sectors).unwrap();
        assert_eq!(inode.sectors(), sectors);
        assert_eq!(
            inode.flags().contains(InodeFlags::HUGE_FILE),
            huge,
            "{sectors}"
        );
    }
    assert!(
        inode.set_sectors(1 << 49).is_err(),
        "2^48 blocks of two sectors"
    );
    assert_eq!(inode.sectors(), 1 << 48, "unchanged");
    let sb = sample(|raw| edit_features(raw, "^huge_file"));
    let mut inode = file(&sb, FileKind::Regular);
    assert_eq!(
        inode.set_sectors(1 << 32),
        Err(Corruption::SectorCount { sectors: 1 << 32 })
    );
    inode.set_sectors(u64::from(u32::MAX)).unwrap();
    assert_eq!(inode.sectors(), u64::from(u32::MAX));
}

#[test]
fn times_reach_from_1901_to_2446() {
    let at = |seconds, nanoseconds| Timestamp {
        seconds,
        nanoseconds,
    };
    // The boundaries of the documented table: the epoch bits and the sign of the low half.
    let table = [
        (0x8000_0000, 0, -0x8000_0000_i64),
        (0xFFFF_FFFF, 0, -1),
        (0, 0, 0),
        (0x7FFF_FFFF, 0, 0x7FFF_FFFF),
        (0x8000_0000, 1, 0x8000_0000),
        (0xFFFF_FFFF, 1, 0xFFFF_FFFF),
        (0, 1, 0x1_0000_0000),
        (0x8000_0000, 2, 0x1_8000_0000),
        (0x7FFF_FFFF, 2, 0x2_7FFF_FFFF),
        (0x8000_0000, 3, 0x2_8000_0000),
        (0xFFFF_FFFF, 3, 0x2_FFFF_FFFF),
        (0, 3, 0x3_0000_0000),
        (0x7FFF_FFFF, 3, 0x3_7FFF_FFFF),
    ];
    for (low, epoch, seconds) in table {
        assert_eq!(Timestamp::decode(low, Some(epoch | 5 << 2)), at(seconds, 5));
        assert_eq!(at(seconds, 5).encode(), (low, epoch | 5 << 2));
    }
    assert_eq!(Timestamp::decode(0xFFFF_FFFF, None), at(-1, 0));
    assert_eq!(
        Timestamp::decode(0, Some(u32::MAX)).nanoseconds,
        999_999_999,
        "a damaged field"
    );
    assert_eq!(at(i64::MAX, 0).encode(), at(MAX_SECONDS, 0).encode());
    assert_eq!(at(i64::MIN, 0).encode(), at(MIN_SECONDS, 0).encode());
    assert_eq!(at(MAX_SECONDS_SHORT + 1, 0).encode_short(), 0x7FFF_FFFF);
    assert_eq!(at(-1, 0).encode_short(), u32::MAX);
}

#[test]
fn times_are_as_exact_as_the_record() {
    let late = Timestamp {
        seconds: 1 << 33,
        nanoseconds: 123_456_789,
    };
    let early = Timestamp {
        seconds: -5,
        nanoseconds: 7,
    };
    for (size, expected) in [
        (256_u16, [late, early]),
        (
            128,
            [
                Timestamp {
                    seconds: MAX_SECONDS_SHORT,
                    nanoseconds: 0,
                },
                Timestamp {
                    nanoseconds: 0,
                    ..early
                },
            ],
        ),
    ] {
        let sb = sample(|raw| raw.s_inode_size = size.into());
        let mut inode = file(&sb, FileKind::Regular);
        for (time, expected) in [late, early].into_iter().zip(expected) {
            inode.set_atime(time);
            inode.set_mtime(time);
            inode.set_ctime(time);
            inode.set_crtime(time);
            assert_eq!([inode.atime(), inode.mtime(), inode.ctime()], [expected; 3]);
            assert_eq!(inode.crtime(), (size > 128).then_some(expected));
        }
    }
}

#[test]
fn devices_have_an_old_and_a_new_encoding() {
    let device = |major, minor| DeviceNo { major, minor };
    assert_eq!(device(8, 1).encode(), Some((0x801, 0)));
    assert_eq!(device(259, 70000).encode(), Some((0, 0x1111_0370)));
    assert_eq!(device(4095, 0xF_FFFF).encode(), Some((0, u32::MAX)));
    assert_eq!(
        (device(4096, 0).encode(), device(0, 1 << 20).encode()),
        (None, None)
    );
    for number in [
        device(0, 0),
        device(255, 255),
        device(256, 0),
        device(0, 256),
        device(4095, 0xF_FFFF),
    ] {
        let (old, new) = number.encode().unwrap();
        assert_eq!(DeviceNo::decode(old, new), number);
    }
    let sb = sample(|_| ());
    let mut inode = file(&sb, FileKind::BlockDevice);
    assert!(inode.set_device(device(259, 3)) && !inode.set_device(device(4096, 3)));
    assert_eq!(inode.device(), Some(device(259, 3)));
    assert_eq!(file(&sb, FileKind::Regular).device(), None);
}

#[test]
fn short_targets_lie_in_the_inode() {
    let sb = sample(|_| ());
    let mut inode = file(&sb, FileKind::Symlink);
    for wrong in [&b""[..], &[b'x'; 60], b"a\0b"] {
        assert!(!inode.set_fast_symlink_target(wrong));
    }
    assert!(inode.set_fast_symlink_target(&[b'x'; 59]));
    assert!(inode.is_fast_symlink());
    assert_eq!(inode.fast_symlink_target(), Ok(&[b'x'; 59][..]));
    // The block of attributes does not make it slow; any other does.
    inode.set_file_acl(Some(BlockNo(500)));
    inode.set_sectors(2).unwrap();
    assert!(inode.is_fast_symlink());
    inode.set_sectors(4).unwrap();
    assert!(!inode.is_fast_symlink());
    inode.set_size(60);
    assert_eq!(
        inode.fast_symlink_target(),
        Err(Corruption::SymlinkTarget { size: 60 })
    );
    inode.set_size(0);
    assert!(inode.fast_symlink_target().is_err());

    let sb = sample(|raw| edit_features(raw, "ea_inode"));
    let mut inode = file(&sb, FileKind::Symlink);
    assert!(inode.set_fast_symlink_target(b"target"));
    inode.set_sectors(4096).unwrap();
    assert!(
        inode.is_fast_symlink(),
        "the sectors are those of attribute inodes"
    );
    inode.set_size(60);
    assert!(!inode.is_fast_symlink());
    assert!(!file(&sb, FileKind::Regular).is_fast_symlink());
}

#[test]
fn attribute_inodes_count_their_users() {
    let sb = sample(|_| ());
    let mut inode = file(&sb, FileKind::Regular);
    inode.set_ea_hash(0xDEAD_BEEF);
    for count in [0, 1, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        inode.set_ea_refcount(count);
        assert_eq!((inode.ea_refcount(), inode.ea_hash()), (count, 0xDEAD_BEEF));
    }
    inode.set_ea_refcount((5 << 32) + 6);
    assert_eq!(
        (inode.raw().i_ctime.get(), inode.raw().l_i_version.get()),
        (5, 6)
    );
}

#[test]
fn flags_pass_to_those_who_can_have_them() {
    let flags = InodeFlags::DIRSYNC | InodeFlags::NODUMP | InodeFlags::SYNC | InodeFlags::INDEX;
    assert_eq!(
        flags.inherited_by(FileKind::Directory),
        flags - InodeFlags::INDEX
    );
    assert_eq!(
        flags.inherited_by(FileKind::Regular),
        InodeFlags::NODUMP | InodeFlags::SYNC
    );
    assert_eq!(flags.inherited_by(FileKind::Symlink), InodeFlags::NODUMP);
}

/// The words after `key` in what `debugfs stat` prints.
fn stat_field<'a>(text: &'a str, key: &str) -> &'a str {
    let (_, rest) = text
        .split_once(key)
        .unwrap_or_else(|| panic!("{key} in {text}"));
    rest.split_whitespace().next().unwrap()
}

#[test]
fn debugfs_agrees() {
    for (label, inode_size) in [("debugfs-128", "128"), ("debugfs-256", "256")] {
        let image = TestImage::make(label, 16, &["-t", "ext4", "-b", "1024", "-I", inode_size]);
        image.debugfs(&[
            "symlink link target",
            "mknod device b 259 60000",
            "mknod pipe p",
            "mkdir dir",
            "set_inode_field dir uid 100000",
            "set_inode_field dir gid 200000",
            "set_inode_field dir mtime @-3",
            "set_inode_field dir flags 0x80080",
        ]);
        let sb = image.superblock();
        for name in ["link", "device", "pipe", "dir"] {
            let text = image.debugfs(&[&format!("stat {name}")]);
            let ino = InodeNo(stat_field(&text, "Inode:").parse().unwrap());
            let inode = Inode::parse(&image.inode(&sb, ino), ino, &sb).unwrap();
            assert_eq!(
                stat_field(&text, "User:"),
                inode.uid().to_string(),
                "{text}"
            );
            assert_eq!(
                stat_field(&text, "Group:"),
                inode.gid().to_string(),
                "{text}"
            );
            assert_eq!(
                stat_field(&text, "Links:"),
                inode.links().to_string(),
                "{text}"
            );
            assert_eq!(
                stat_field(&text, "Blockcount:"),
                inode.sectors().to_string(),
                "{text}"
            );
            assert_eq!(
                stat_field(&text, "Flags:"),
                format!("{:#x}", inode.flags()),
                "{text}"
            );
            match name {
                "link" => {
                    assert!(inode.is_fast_symlink());
                    assert_eq!(inode.fast_symlink_target(), Ok(&b"target"[..]));
                }
                "device" => {
                    assert_eq!(
                        inode.device(),
                        Some(DeviceNo {
                            major: 259,
                            minor: 60000
                        })
                    );
                }
                "pipe" => assert_eq!(inode.kind(), Some(FileKind::Fifo)),
                _ => {
                    assert_eq!((inode.uid(), inode.gid()), (100_000, 200_000));
                    assert_eq!(
                        inode.mtime(),
                        Timestamp {
                            seconds: -3,
                            nanoseconds: 0
                        }
                    );
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        extra in proptest::option::of(0..140_u16),
        list in prop_oneof!["metadata_csum", "\\^metadata_csum", "\\^huge_file,large_dir", "ea_inode"],
        short in any::<bool>(),
    ) {
        let sb = sample(|raw| {
            edit_features(raw, &list);
            raw.s_inode_size = if short { 128 } else { 256 }.into();
        });
        if let (Some(extra), Some(field)) = (extra, bytes.get_mut(128..130)) {
            field.copy_from_slice(&extra.to_le_bytes());
        }
        let _ = Inode::parse(&bytes, INO, &sb);
        if let Ok(mut inode) = Inode::read(&bytes, INO, &sb) {
            prop_assert_eq!(&bytes_of(&inode, &sb)[..], &bytes[..sb.inode_size()], "nothing is lost");
            let _ = (inode.kind(), inode.size(), inode.sectors(), inode.version(), inode.project());
            let _ = (inode.is_fast_symlink(), inode.fast_symlink_target().is_ok(), inode.device());
            let _ = (inode.crtime(), inode.atime(), inode.raw_extra(), inode.ea_refcount());
            if let Some(range) = inode.xattr_range() {
                prop_assert_eq!(inode.xattr_region().unwrap(), &bytes[range]);
            }
            inode.update_checksum();
            prop_assert!(inode.check_checksum().is_ok());
            inode.ensure_extra();
            inode.update_checksum();
            prop_assert!(inode.check_checksum().is_ok());
        }
    }

    #[test]
    fn times_survive(seconds in MIN_SECONDS..=MAX_SECONDS, nanoseconds in 0..1_000_000_000_u32) {
        let time = Timestamp { seconds, nanoseconds };
        let (low, extra) = time.encode();
        prop_assert_eq!(Timestamp::decode(low, Some(extra)), time);
    }

    #[test]
    fn devices_survive(major in 0..4096_u32, minor in 0..(1_u32 << 20)) {
        let device = DeviceNo { major, minor };
        let (old, new) = device.encode().unwrap();
        prop_assert_eq!(DeviceNo::decode(old, new), device);
    }
}
