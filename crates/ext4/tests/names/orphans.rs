//! Inodes without names: kept while somebody has them, deleted then, and after a crash.

use std::sync::Arc;

use pagefence_block_io::MemoryDevice;
use pagefence_ext4::mkfs::Kind;
use pagefence_ext4::{FileSystem, MountOptions};
use pagefence_vfs::{FileSystem as _, InodeId, NewKind, RenameMode};

use crate::kit::{self, FLAVOURS, Paths, close, fails, judge, open};

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
        fails(fs.link(id, fs.root(), b"again"), "NotFound");
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
