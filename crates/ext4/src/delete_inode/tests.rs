//! What is left of an inode that was deleted, and what one that comes back into core knows.

use pagefence_block_io::MemoryDevice;
use pagefence_ext4_format::InodeNo;
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Credentials, FileSystem as _, InodeId, New, NewKind};

use crate::filesystem::FileSystem;
use crate::live::Need;
use crate::mkfs::{Contents, Kind, Parameters, Tree, format};
use crate::mount::MountOptions;

fn open(features: &str, cache: u64) -> FileSystem {
    let device = MemoryDevice::new(64 << 20);
    let mut parameters = Parameters::new(Kind::Ext4);
    parameters.features.edit(features).expect("known features");
    parameters.contents = Contents::Zeros;
    format(&device, &parameters, &Tree::new()).expect("a new file system");
    let options = MountOptions {
        write: true,
        cache: Some(cache),
        ..MountOptions::default()
    };
    FileSystem::open(Arc::new(device), &options).expect("it opens")
}

fn make(fs: &FileSystem, name: &str) -> InodeId {
    let new = New {
        kind: NewKind::Regular,
        permissions: 0o644,
        umask: 0,
    };
    let root = Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    };
    let made = fs.create(fs.root(), name.as_bytes(), &new, &root);
    made.expect("it is made").attr.id
}

/// An orphan that leaves the list changes whom the one before it points to, and writes that inode
/// with the list unlocked. The one before may have been deleted by then.
#[test]
fn what_a_neighbour_writes_late_is_the_deleted_inode() {
    let fs = open("^orphan_file", 16 << 20);
    let ids = ["a", "b"].map(|name| make(&fs, name));
    for name in [b"a", b"b"] {
        fs.unlink(fs.root(), name).expect("it is removed");
    }
    let number = InodeNo(u32::try_from(ids[1].0).expect("a number"));
    // What the neighbour has of it at that moment.
    let core = Arc::clone(&fs.inodes.get(number).expect("it is in core").core);
    fs.forget(ids[1]);
    let deleted = fs.instance.read_inode(number).expect("it can be read");
    assert_eq!(deleted.links(), 0);
    let mut held = Held::at_entry();
    let need = Need {
        credits: 1,
        blocks: 0,
        privileged: true,
    };
    {
        let (mut transaction, _held) = fs.instance.begin(&mut held, need).expect("it begins");
        core.write(&mut transaction, false).expect("it is written");
        transaction.end();
    }
    let after = fs.instance.read_inode(number).expect("it can be read");
    assert_eq!(after, deleted);
}

/// What changed an inode may not be durable when it leaves core, nor when it comes back.
#[test]
fn an_inode_that_comes_back_knows_what_fsync_has_to_wait_for() {
    let fs = open("", 1);
    let id = make(&fs, "file");
    let live = fs.instance.live().expect("it is written to");
    let made_by = live.journal.running().0;
    let number = InodeNo(u32::try_from(id.0).expect("a number"));
    for other in 0..2000 {
        make(&fs, &format!("other {other}"));
    }
    assert!(fs.inodes.get(number).is_none(), "others took its place");
    let inode = fs.inode(id).expect("it is there");
    assert!(inode.core.sync_tid(false) >= made_by);
    assert!(inode.core.sync_tid(true) >= made_by);
}

/// What somebody has for a moment when its last name goes is deleted by the next sync at the latest.
#[test]
fn an_inode_that_somebody_had_for_a_moment_is_deleted() {
    let fs = open("", 16 << 20);
    let id = make(&fs, "file");
    let number = InodeNo(u32::try_from(id.0).expect("a number"));
    let had = fs.inodes.get(number).expect("it is in core");
    fs.unlink(fs.root(), b"file").expect("it is removed");
    fs.forget(id);
    let live = fs.instance.live().expect("it is written to");
    assert!(live.orphans.has_due(), "somebody has it");
    drop(had);
    fs.sync().expect("nothing fails");
    assert!(!live.orphans.has_due());
    let deleted = fs.instance.is_inode_in_use(number);
    assert!(!deleted.expect("it can be read"));
}
