//! Inodes without names: kept while somebody has them, deleted then, and after a crash.

use std::sync::Arc;

use pagefence_block_io::{Device as _, MemoryDevice};
use pagefence_ext4::mkfs::Kind;
use pagefence_ext4::{FileSystem, MountOptions};
use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::features::RoCompat;
use pagefence_ext4_format::inode::Inode;
use pagefence_ext4_format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock};
use pagefence_vfs::{FileSystem as _, InodeId, NewKind, RenameMode};

use crate::kit::{self, FLAVOURS, Paths, close, fails, judge, open, root};

/// As if the machine stopped: what was committed is there, nothing else; then a mount again.
fn crash(fs: FileSystem, device: &MemoryDevice) -> Arc<MemoryDevice> {
    fs.sync().unwrap();
    let image = Arc::new(device.fork());
    close(fs, device);
    image
}

#[test]
fn open_files_outlive_their_names() {
    for (kind, block_size, features) in FLAVOURS {
        let device = kit::device(kind, block_size, features, 16 << 20);
        let fs = open(&device);
        let free = fs.stat_fs().unwrap();
        let id = fs.touch("f").unwrap().id;
        let file = fs.open(id, false).unwrap();
        fs.rm("f").unwrap();
        assert_eq!(fs.attr(id).unwrap().links, 0);
        fails(fs.link(id, fs.root(), b"again", &root()), "NotFound");
        drop(file);
        fs.forget(id);
        fails(fs.attr(id), "Stale");
        fs.sync().unwrap();
        assert_eq!(fs.stat_fs().unwrap().inodes_free, free.inodes_free);
        close(fs, &device);
    }
}

/// Many orphans, some of which go in the middle of the list.
#[test]
fn a_crash_leaves_no_orphan() {
    for (kind, block_size, features) in FLAVOURS {
        let device = kit::device(kind, block_size, features, 16 << 20);
        let fs = open(&device);
        let free = fs.stat_fs().unwrap();
        let mut kept: Vec<InodeId> = Vec::new();
        let long = vec![b't'; 700];
        for at in 0..60 {
            let name = format!("{at}");
            let attr = match at % 3 {
                0 => fs.touch(&name).unwrap(),
                1 => fs.make(&name, NewKind::Symlink(&long)).unwrap(),
                _ => fs.mkdir(&name).unwrap(),
            };
            kept.push(attr.id);
        }
        fs.sync().unwrap();
        for at in 0..58 {
            let name = format!("{at}");
            if at % 3 == 2 {
                fs.rmdir(fs.root(), name.as_bytes()).unwrap();
            } else if at % 3 == 1 {
                fs.unlink(fs.root(), name.as_bytes()).unwrap();
            } else {
                fs.touch("over").unwrap();
                fs.rename(
                    fs.root(),
                    b"over",
                    fs.root(),
                    name.as_bytes(),
                    RenameMode::empty(),
                )
                .unwrap();
            }
        }
        // From both ends, and from the middle.
        for at in [57, 0, 30, 31, 29, 56, 1, 12] {
            fs.forget(kept[at]);
            fails(fs.attr(kept[at]), "Stale");
        }
        let image = crash(fs, &device);
        let options = MountOptions {
            write: true,
            cache: Some(16 << 20),
            ..MountOptions::default()
        };
        let fs = FileSystem::open(Arc::clone(&image) as Arc<_>, &options).unwrap();
        assert!(
            !fs.notes().iter().any(|note| note.contains("orphan")),
            "{:?}",
            fs.notes()
        );
        for at in 0..58 {
            if at % 3 == 0 {
                fs.rm(&format!("{at}")).unwrap();
            } else {
                fails(fs.look(&format!("{at}")), "NotFound");
            }
        }
        fs.rm("58").unwrap();
        fs.rmd("59").unwrap();
        fs.sync().unwrap();
        let now = fs.stat_fs().unwrap();
        assert_eq!(now.inodes_free, free.inodes_free);
        assert_eq!(now.blocks_free, free.blocks_free);
        close(fs, &image);
    }
}

/// A file system that is closed with inodes that nobody forgot.
#[test]
fn the_end_deletes_what_is_left() {
    let device = kit::device(Kind::Ext4, 1024, "", 16 << 20);
    let fs = open(&device);
    let free = fs.stat_fs().unwrap();
    for at in 0..100 {
        fs.touch(&format!("{at}")).unwrap();
        fs.unlink(fs.root(), format!("{at}").as_bytes()).unwrap();
    }
    close(fs, &device);
    let fs = open(&device);
    assert_eq!(fs.stat_fs().unwrap().inodes_free, free.inodes_free);
    close(fs, &device);
    judge(&device);
}

/// A file that can't be deleted, as its map is damaged, is still listed after the end, and the
/// superblock says so.
#[test]
fn what_can_not_be_deleted_stays_listed() {
    for features in ["", "^orphan_file"] {
        let device = kit::device(Kind::Ext4, 4096, features, 16 << 20);
        let fs = open(&device);
        let free = fs.stat_fs().unwrap().inodes_free;
        let long = vec![b't'; 700];
        let id = fs.make("link", NewKind::Symlink(&long)).unwrap().id;
        close(fs, &device);
        let number = InodeNo(u32::try_from(id.0).unwrap());
        damage_extents(&device, number);
        let fs = open(&device);
        fs.unlink(fs.root(), b"link").unwrap();
        fs.forget(id);
        fs.shut_down().unwrap();
        drop(fs);
        let superblock = superblock(&device);
        let listed = superblock.has_ro_compat(RoCompat::ORPHAN_PRESENT)
            || superblock.last_orphan() == Some(number);
        assert!(listed, "{features:?}");
        assert_eq!(u64::from(superblock.free_inodes_count()), free - 1);
    }
}

fn superblock(device: &MemoryDevice) -> Superblock {
    let bytes = device.to_vec();
    let at = usize::try_from(SUPERBLOCK_OFFSET).unwrap();
    Superblock::parse(&bytes[at..at + SUPERBLOCK_BYTES], None).unwrap()
}

/// Lets the inode's only extent lie past the end of the device.
fn damage_extents(device: &MemoryDevice, number: InodeNo) {
    let superblock = superblock(device);
    let place = superblock.locate_inode(number).unwrap();
    let bytes = device.to_vec();
    let descriptors = 4096;
    let size = superblock.inode_size();
    // The first group's table: the block's number stands 8 bytes into its descriptor.
    assert_eq!(place.group.0, 0);
    let table = u32::from_le_bytes(bytes[descriptors + 8..descriptors + 12].try_into().unwrap());
    let at = table as usize * 4096 + place.index as usize * size;
    let mut record = Inode::read(&bytes[at..at + size], number, &superblock).unwrap();
    // Header, then the extent: file block, length, and the block's number.
    record.block_area_mut()[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    record.update_checksum();
    let mut changed = vec![0; size];
    record.write_to(&mut changed).unwrap();
    device.write(at as u64, &changed).unwrap();
}
