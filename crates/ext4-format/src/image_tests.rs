//! Superblocks, descriptors, bitmaps and inodes of images that `mke2fs` made, and what
//! `dumpe2fs` says of them.

use std::ops::Range;

use crate::bitmap;
use crate::error::Corruption;
use crate::features::Features;
use crate::group_desc::{GroupDesc, GroupFlags};
use crate::ids::{BlockNo, GroupNo};
use crate::inode::Inode;
use crate::superblock::{Superblock, backup_superblocks};
use crate::test_image::{TestImage, tool};

/// Label, MiB and arguments of `mke2fs` of every kind of file system.
const KINDS: &[(&str, u64, &[&str])] = &[
    ("ext2-1k", 24, &["-t", "ext2", "-b", "1024", "-I", "128"]),
    ("ext2-rev0", 24, &["-t", "ext2", "-b", "1024", "-r", "0"]),
    ("ext3-2k", 64, &["-t", "ext3", "-b", "2048", "-I", "256"]),
    ("ext4-1k", 40, &["-t", "ext4", "-b", "1024"]),
    ("ext4-4k", 64, &["-t", "ext4", "-b", "4096", "-g", "1024"]),
    (
        "ext4-4k-ragged",
        61,
        &["-t", "ext4", "-b", "4096", "-g", "1000", "-N", "1000"],
    ),
    ("inode-128", 40, &["-t", "ext4", "-b", "1024", "-I", "128"]),
    (
        "inode-512",
        40,
        &["-t", "ext4", "-b", "2048", "-g", "2048", "-I", "512"],
    ),
    (
        "inode-1024",
        40,
        &["-t", "ext4", "-b", "1024", "-I", "1024"],
    ),
    ("desc-32", 40, &["-t", "ext4", "-b", "1024", "-O", "^64bit"]),
    (
        "crc16-32",
        40,
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "^64bit,^metadata_csum,uninit_bg",
        ],
    ),
    (
        "crc16-64",
        40,
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "64bit,^metadata_csum,uninit_bg",
        ],
    ),
    (
        "no-csum-64",
        40,
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "64bit,^metadata_csum,^uninit_bg",
        ],
    ),
    (
        "csum-seed",
        40,
        &["-t", "ext4", "-b", "1024", "-O", "metadata_csum_seed"],
    ),
    (
        "no-flex",
        40,
        &["-t", "ext4", "-b", "1024", "-O", "^flex_bg"],
    ),
    (
        "meta-bg",
        48,
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-g",
            "256",
            "-O",
            "meta_bg,^resize_inode",
        ],
    ),
    (
        "meta-bg-32",
        48,
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-g",
            "256",
            "-O",
            "meta_bg,^resize_inode,^64bit,^flex_bg",
        ],
    ),
    (
        "sparse-super2",
        64,
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-g",
            "1024",
            "-O",
            "sparse_super2",
        ],
    ),
    (
        "sparse-super2-none",
        64,
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-g",
            "1024",
            "-O",
            "sparse_super2",
            "-E",
            "num_backup_sb=0",
        ],
    ),
    (
        "dense-super",
        40,
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "^sparse_super,^resize_inode",
        ],
    ),
    (
        "bigalloc-4k",
        256,
        &["-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "16384"],
    ),
    (
        "bigalloc-1k",
        256,
        &["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "8192"],
    ),
    (
        "orphan-file",
        40,
        &["-t", "ext4", "-b", "1024", "-O", "orphan_file,fast_commit"],
    ),
    (
        "quota",
        40,
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "quota,project,ea_inode,inline_data,large_dir",
        ],
    ),
    ("block-64k", 96, &["-t", "ext4", "-b", "65536"]),
];

fn each_kind(mut check: impl FnMut(&str, &TestImage, &Superblock)) {
    let test = std::thread::current()
        .name()
        .unwrap_or_default()
        .replace("::", "-");
    for (label, mib, arguments) in KINDS {
        let image = TestImage::make(&format!("{test}-{label}"), *mib, arguments);
        let sb = image.superblock();
        check(label, &image, &sb);
    }
}

#[test]
fn the_kinds_are_what_they_are_called() {
    let mut seen = std::collections::BTreeMap::new();
    each_kind(|label, _, sb| {
        let sizes = (sb.block_size(), sb.inode_size(), sb.desc_size());
        seen.insert(label.to_owned(), (sizes, sb.cluster_size(), sb.features()));
    });
    let has = |label: &str, list: &str| {
        let mut features = Features::default();
        features.edit(list).unwrap();
        features.difference(seen[label].2).is_empty()
    };
    assert_eq!(seen["ext2-1k"].0, (1024, 128, 32));
    assert_eq!(seen["ext3-2k"].0, (2048, 256, 32));
    assert_eq!(seen["ext4-4k"].0, (4096, 256, 64));
    assert_eq!(seen["inode-1024"].0, (1024, 1024, 64));
    assert_eq!(seen["block-64k"].0.0, 65536);
    assert_eq!(
        (seen["bigalloc-4k"].1, seen["bigalloc-1k"].1),
        (16384, 8192)
    );
    assert!(has("crc16-32", "uninit_bg") && seen["crc16-32"].0.2 == 32);
    assert!(has("crc16-64", "uninit_bg,64bit") && !has("crc16-64", "metadata_csum"));
    assert!(
        has("ext4-1k", "metadata_csum,64bit,flex_bg") && has("csum-seed", "metadata_csum_seed")
    );
    assert!(has("meta-bg", "meta_bg,64bit") && has("sparse-super2", "sparse_super2"));
    assert!(has("quota", "quota,project,ea_inode,inline_data,large_dir"));
}

#[test]
fn superblocks_and_their_backups_are_valid() {
    each_kind(|label, image, sb| {
        assert_eq!(sb.group_count() as usize, sb.groups().count(), "{label}");
        let mut again = sb.clone();
        again.update_checksum();
        assert_eq!(again, *sb, "{label}: the checksum is the same again");
        for (group, offset) in sb.backup_superblock_offsets() {
            let backup = Superblock::parse(&image.read(offset, 1024), Some(image.len))
                .unwrap_or_else(|error| panic!("{label}: backup in group {group}: {error}"));
            assert_eq!(backup.uuid(), sb.uuid(), "{label}");
            assert_eq!(
                u32::from(backup.raw().s_block_group_nr.get()),
                group.0,
                "{label}"
            );
        }
    });
}

#[test]
fn backups_lie_where_they_are_looked_for() {
    let image = TestImage::make("backups", 300, &["-t", "ext4", "-b", "4096"]);
    let sb = image.superblock();
    let (_, first) = sb
        .backup_superblock_offsets()
        .next()
        .expect("a second group");
    assert_eq!(backup_superblocks(4096)[0], first);
    let image = TestImage::make("backups-1k", 30, &["-t", "ext4", "-b", "1024"]);
    let sb = image.superblock();
    let offsets = sb.backup_superblock_offsets().map(|(_, offset)| offset);
    assert_eq!(offsets.collect::<Vec<_>>(), backup_superblocks(1024)[..2]);
}

#[test]
fn descriptors_are_valid_and_survive_a_round_trip() {
    each_kind(|label, image, sb| {
        for group in sb.groups() {
            let bytes = image.descriptor(sb, group);
            let mut desc = GroupDesc::parse(&bytes, group, sb)
                .unwrap_or_else(|error| panic!("{label}: group {group}: {error}"));
            desc.check_counts(sb)
                .unwrap_or_else(|error| panic!("{label}: {error}"));
            // Set everything to what it is, and nothing changes.
            desc.set_free_clusters(desc.free_clusters());
            desc.set_free_inodes(desc.free_inodes());
            desc.set_used_dirs(desc.used_dirs());
            desc.set_itable_unused(desc.itable_unused());
            desc.set_locations(desc.block_bitmap(), desc.inode_bitmap(), desc.inode_table());
            desc.set_block_bitmap_checksum(desc.block_bitmap_checksum().value);
            desc.set_inode_bitmap_checksum(desc.inode_bitmap_checksum().value);
            desc.update_checksum(sb);
            let mut written = vec![0; sb.desc_size()];
            desc.write_to(&mut written).unwrap();
            assert_eq!(written, bytes, "{label}: group {group}");
        }
        let free: u64 = sb
            .groups()
            .map(|group| u64::from(image.group(sb, group).free_clusters()))
            .sum();
        assert_eq!(
            free * u64::from(sb.blocks_per_cluster()),
            sb.free_blocks_count(),
            "{label}"
        );
    });
}

#[test]
fn copies_of_descriptor_blocks_equal_the_first() {
    each_kind(|label, image, sb| {
        for index in 0..sb.descriptor_blocks() {
            let first = image.block(sb, sb.descriptor_block(index).unwrap());
            for copy in sb.backup_descriptor_blocks(index).unwrap() {
                assert_eq!(
                    image.block(sb, copy),
                    first,
                    "{label}: descriptor block {index} at {copy}"
                );
            }
        }
    });
}

#[test]
fn bitmaps_pass_their_checks() {
    each_kind(|label, image, sb| {
        for group in sb.groups() {
            let desc = image.group(sb, group);
            let bits = block_bitmap(image, sb, &desc);
            let free = bitmap::count_zeros(&bits, 0..sb.clusters_in_group(group));
            assert_eq!(free, desc.free_clusters(), "{label}: group {group}");
            let bits = inode_bitmap(image, sb, &desc);
            let free = bitmap::count_zeros(&bits, 0..sb.inodes_per_group());
            assert_eq!(free, desc.free_inodes(), "{label}: group {group}");
        }
    });
}

#[test]
fn some_groups_are_uninitialised() {
    // Else the test before shows nothing of them.
    let image = TestImage::make("uninit", 40, &["-t", "ext4", "-b", "1024"]);
    let sb = image.superblock();
    let uninit = |flag| {
        sb.groups()
            .any(|group| image.group(&sb, group).flags(&sb).contains(flag))
    };
    assert!(uninit(GroupFlags::BLOCK_UNINIT) && uninit(GroupFlags::INODE_UNINIT));
}

#[test]
fn damaged_bitmaps_are_found() {
    let image = TestImage::make(
        "damaged",
        10,
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "^metadata_csum,^uninit_bg",
        ],
    );
    let sb = image.superblock();
    let desc = image.group(&sb, GroupNo(1));
    let good = block_bitmap(&image, &sb, &desc);
    let end = sb.clusters_in_group(GroupNo(1));
    let mut bits = good.clone();
    bitmap::clear_range(&mut bits, end + 5..end + 6);
    assert_eq!(
        bitmap::verify_block_bitmap(&bits, &desc, &sb),
        Err(Corruption::BitmapPadding {
            what: "block bitmap",
            group: GroupNo(1),
            bit: end + 5
        })
    );
    let mut bits = good.clone();
    bitmap::clear_range(&mut bits, 0..1);
    assert_eq!(
        bitmap::verify_block_bitmap(&bits, &desc, &sb),
        Err(Corruption::MetadataMarkedFree {
            group: GroupNo(1),
            cluster: 0
        })
    );
    let short = bitmap::verify_block_bitmap(&good[..1000], &desc, &sb);
    assert_eq!(
        short,
        Err(Corruption::Truncated {
            what: "block bitmap",
            needed: 1024,
            have: 1000
        })
    );
}

#[test]
fn used_inodes_are_valid_and_survive_a_round_trip() {
    each_kind(|label, image, sb| {
        let mut seen = 0;
        for group in sb.groups() {
            let bits = inode_bitmap(image, sb, &image.group(sb, group));
            for index in (0..sb.inodes_per_group()).filter(|index| bitmap::test(&bits, *index)) {
                let ino = sb.inode_of_group(group, index).unwrap();
                let place = sb.locate_inode(ino).unwrap();
                assert_eq!((place.group, place.index), (group, index), "{label}");
                let bytes = image.inode(sb, ino);
                let mut inode = Inode::parse(&bytes, ino, sb)
                    .unwrap_or_else(|error| panic!("{label}: inode {ino}: {error}"));
                if !inode.raw().is_unused() {
                    inode.update_checksum();
                }
                let mut written = vec![0; sb.inode_size()];
                inode.write_to(&mut written).unwrap();
                assert_eq!(written, bytes, "{label}: inode {ino}");
                seen += u32::from(inode.kind().is_some());
            }
        }
        assert!(seen >= 2, "{label}: the root and lost+found at least");
    });
}

/// What `dumpe2fs` says, which is the word of the people who made the format.
#[test]
fn dumpe2fs_agrees_on_features_layout_and_free_space() {
    each_kind(|label, image, sb| {
        let output = tool("dumpe2fs")
            .arg(image.path())
            .output()
            .expect("dumpe2fs runs");
        assert!(output.status.success(), "{label}");
        let text = String::from_utf8_lossy(&output.stdout);
        let features = text
            .lines()
            .find_map(|line| line.strip_prefix("Filesystem features:"));
        let mut theirs: Vec<_> = features
            .unwrap()
            .split_whitespace()
            .filter(|name| *name != "(none)")
            .collect();
        let names = sb.features().names();
        let mut ours: Vec<_> = names.iter().map(String::as_str).collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        assert_eq!(ours, theirs, "{label}");
        let (_, groups) = text.split_once("\nGroup 0:").unwrap();
        let groups: Vec<_> = groups.split("\nGroup ").collect();
        assert_eq!(groups.len(), sb.group_count() as usize, "{label}");
        for (group, text) in sb.groups().zip(groups) {
            check_group(label, image, sb, group, text);
        }
    });
}

fn check_group(label: &str, image: &TestImage, sb: &Superblock, group: GroupNo, text: &str) {
    let desc = image.group(sb, group);
    let context = format!("{label}: group {group}: {text}");
    let has_super = text.contains("superblock at");
    assert_eq!(has_super, sb.has_super(group), "{context}");
    assert_eq!(
        numbers_after(text, "Block bitmap at "),
        vec![one(desc.block_bitmap())],
        "{context}"
    );
    assert_eq!(
        numbers_after(text, "Inode bitmap at "),
        vec![one(desc.inode_bitmap())],
        "{context}"
    );
    let table = desc.inode_table_range(sb);
    assert_eq!(
        numbers_after(text, "Inode table at "),
        vec![table.start.0..table.end.0],
        "{context}"
    );

    let base = sb.base_metadata(group);
    let reserved = sb.reserved_descriptor_blocks(group);
    let theirs = numbers_after(text, "Group descriptors at ");
    let theirs = if theirs.is_empty() {
        numbers_after(text, "Group descriptor at ")
    } else {
        theirs
    };
    match theirs.first() {
        Some(descriptors) => assert_eq!(reserved.start.0, descriptors.end, "{context}"),
        None => assert!(base.end.0 - base.start.0 <= 1, "{context}"),
    }
    let theirs = numbers_after(text, "Reserved GDT blocks at ");
    let ours = Some(reserved.start.0..reserved.end.0).filter(|range| !range.is_empty());
    assert_eq!(theirs.first(), ours.as_ref(), "{context}");

    if sb.blocks_per_cluster() == 1 {
        let bits = block_bitmap(image, sb, &desc);
        let block = |bit: u32| sb.first_block_of_group(group).0 + u64::from(bit);
        let free = bitmap::zero_runs(&bits, 0..sb.clusters_in_group(group));
        let free: Vec<_> = free.map(|run| block(run.start)..block(run.end)).collect();
        assert_eq!(free, numbers_after(text, "Free blocks: "), "{context}");
    }
    let bits = inode_bitmap(image, sb, &desc);
    let number = |index: u32| u64::from(group.0 * sb.inodes_per_group() + index + 1);
    let free = bitmap::zero_runs(&bits, 0..sb.inodes_per_group());
    let free: Vec<_> = free.map(|run| number(run.start)..number(run.end)).collect();
    assert_eq!(free, numbers_after(text, "Free inodes: "), "{context}");
}

fn one(block: BlockNo) -> Range<u64> {
    block.0..block.0 + 1
}

/// The runs of numbers, such as `3-9, 12`, that follow `prefix`.
fn numbers_after(text: &str, prefix: &str) -> Vec<Range<u64>> {
    let Some((_, rest)) = text.split_once(prefix) else {
        return Vec::new();
    };
    let line = rest.lines().next().unwrap_or_default();
    let words = line.split(' ').map(|word| word.trim_end_matches(','));
    let runs = words.map_while(|word| {
        let (start, end) = word.split_once('-').unwrap_or((word, word));
        Some(start.parse().ok()?..end.parse::<u64>().ok()? + 1)
    });
    runs.collect()
}

fn block_bitmap(image: &TestImage, sb: &Superblock, desc: &GroupDesc) -> Vec<u8> {
    if desc.flags(sb).contains(GroupFlags::BLOCK_UNINIT) {
        let descs: Vec<_> = sb.groups().map(|group| image.group(sb, group)).collect();
        return bitmap::uninit_block_bitmap(desc.group(), &descs, sb);
    }
    let bits = image.block(sb, desc.block_bitmap());
    bitmap::verify_block_bitmap(&bits, desc, sb)
        .unwrap_or_else(|error| panic!("group {}: {error}", desc.group()));
    bits
}

fn inode_bitmap(image: &TestImage, sb: &Superblock, desc: &GroupDesc) -> Vec<u8> {
    if desc.flags(sb).contains(GroupFlags::INODE_UNINIT) {
        return bitmap::uninit_inode_bitmap(sb);
    }
    let bits = image.block(sb, desc.inode_bitmap());
    bitmap::verify_inode_bitmap(&bits, desc, sb)
        .unwrap_or_else(|error| panic!("group {}: {error}", desc.group()));
    bits
}
