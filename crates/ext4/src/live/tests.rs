//! What the superblock says, and when.

use std::time::{Duration, Instant};

use pagefence_block_io::{Device as _, MemoryDevice};
use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, State, Superblock};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Credentials, FileSystem as _, InodeId, New, NewKind};

use crate::filesystem::FileSystem;
use crate::journal_location::locate;
use crate::mkfs::{Contents, Kind, Parameters, Tree, format};
use crate::mount::{MountError, MountOptions};
use crate::recovery::write_superblock;

fn formatted(kind: Kind, features: &str) -> MemoryDevice {
    let device = MemoryDevice::new(32 << 20);
    let mut parameters = Parameters::new(kind);
    parameters.features.edit(features).expect("known features");
    parameters.contents = Contents::Zeros;
    format(&device, &parameters, &Tree::new()).expect("a new file system");
    device
}

fn open(device: &Arc<MemoryDevice>, write: bool) -> Result<FileSystem, MountError> {
    let options = MountOptions {
        write,
        cache: Some(16 << 20),
        commit_interval: Some(Duration::from_secs(3600)),
        ..MountOptions::default()
    };
    let device: Arc<dyn pagefence_block_io::Device> = Arc::<MemoryDevice>::clone(device);
    FileSystem::open(device, &options)
}

fn superblock(device: &MemoryDevice) -> Superblock {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    device
        .read(SUPERBLOCK_OFFSET, &mut bytes)
        .expect("memory is read");
    Superblock::parse(&bytes, Some(device.size())).expect("it is sound")
}

fn create(fs: &FileSystem, name: &str) -> InodeId {
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

/// Where the journal begins.
fn journal(device: &MemoryDevice) -> u64 {
    let superblock = superblock(device);
    let ino = superblock.journal_inode().expect("it has a journal");
    let location = locate(device, &superblock, ino).expect("it is sound");
    let (first, _) = location.physical(0).expect("it has blocks");
    first.0 * u64::from(superblock.block_size())
}

/// A journal that can't be used keeps the image from being written, and the image as it is: who
/// asked for a recovery would ask for what nobody can do.
#[test]
fn an_image_that_can_not_be_opened_stays_as_it_is() {
    // No magic number; a superblock of version 1, whose log can't revoke.
    for (at, byte) in [(0, 0), (7, 3)] {
        let device = Arc::new(formatted(Kind::Ext4, ""));
        let place = journal(&device) + at;
        device.write(place, &[byte]).expect("memory is written");
        let before = device.to_vec();
        let failed = open(&device, true);
        assert!(failed.is_err(), "byte {at} of the journal");
        assert!(device.to_vec() == before, "byte {at} of the journal");
        open(&device, false).expect("it can be read");
    }
}

/// What a journal holds that nobody asks for is older than what it would replace.
#[test]
fn a_journal_that_nobody_asked_for_is_not_replayed() {
    let device = Arc::new(formatted(Kind::Ext4, "^orphan_file"));
    let fs = open(&device, true).expect("it opens");
    create(&fs, "file");
    fs.sync().expect("nothing fails");
    let crashed = Arc::new(device.fork());
    drop(fs);
    let mut superblock = superblock(&crashed);
    let mut features = superblock.features();
    assert!(features.incompat.contains(Incompat::RECOVER));
    features.incompat.remove(Incompat::RECOVER);
    superblock.set_features(features);
    write_superblock(&*crashed, &mut superblock).expect("memory is written");
    let before = crashed.to_vec();
    for _ in 0..2 {
        let fs = open(&crashed, true).expect("it can be read");
        assert!(fs.instance.live.is_none(), "{:?}", fs.notes());
        let note = fs.notes().join(" ");
        assert!(note.contains("does not ask for recovery"), "{note}");
    }
    assert!(crashed.to_vec() == before);
}

/// After an abort the superblock names the orphans of the last transaction that is whole.
#[test]
fn an_abort_does_not_tell_what_was_not_committed() {
    for (kind, features) in [(Kind::Ext4, "^orphan_file"), (Kind::Ext2, "")] {
        let device = Arc::new(formatted(kind, features));
        let fs = open(&device, true).expect("it opens");
        let ids = ["a", "b"].map(|name| create(&fs, name));
        fs.unlink(fs.root(), b"a").expect("it is removed");
        fs.sync().expect("nothing fails");
        fs.unlink(fs.root(), b"b").expect("it is removed");
        fs.instance.live().expect("it is sound").abort_half_done();
        let start = Instant::now();
        while !superblock(&device).state().contains(State::ERROR) {
            assert!(start.elapsed() < Duration::from_secs(30), "no word of it");
            std::thread::sleep(Duration::from_millis(2));
        }
        let first = superblock(&device).last_orphan();
        assert_eq!(first.map(|number| u64::from(number.0)), Some(ids[0].0));
    }
}

#[test]
fn who_writes_what_was_not_closed_is_told() {
    let device = Arc::new(formatted(Kind::Ext2, ""));
    let fs = open(&device, true).expect("it opens");
    assert_eq!(fs.notes(), [""; 0]);
    create(&fs, "file");
    fs.sync().expect("nothing fails");
    let crashed = Arc::new(device.fork());
    fs.shut_down().expect("nothing fails");
    drop(fs);
    let fs = open(&crashed, true).expect("it opens");
    let note = fs.notes().join(" ");
    assert!(note.contains("was not closed properly"), "{note}");
    fs.shut_down().expect("nothing fails");
    drop(fs);
    // Only e2fsck makes it clean again.
    assert!(!superblock(&crashed).state().contains(State::VALID));
    assert_eq!(open(&device, true).expect("it opens").notes(), [""; 0]);
}
