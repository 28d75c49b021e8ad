//! Replaying the journal: in memory, on disk, and with a journal that can't be replayed.

use pagefence_block_io::{Device, MemoryDevice};
use pagefence_ext4::{FileSystem, MountError, MountOptions};
use pagefence_lock_order::primitives::Arc;

use crate::images::{Image, read_only, recover, recovered};
use crate::orphans::{KINDS, fill};

/// An image and the same one dirty: what happened to the second lies in the journal of the first.
pub(crate) struct Dirty {
    /// Before, with the changes in its journal.
    pub(crate) image: Image,
    /// After.
    pub(crate) after: Image,
}

/// An image whose journal holds one transaction: what `change` does to a copy.
pub(crate) fn dirty(image: Image, change: &[String]) -> Dirty {
    let after = image.fork();
    after.debugfs(change);
    let block_size = 1024_usize << image.bytes()[1024 + 24];
    let (old, new) = (image.bytes(), after.bytes());
    let superblock = 1024 / block_size;
    let changed: Vec<usize> = (0..new.len() / block_size)
        .filter(|block| *block != superblock)
        .filter(|block| {
            let bytes = block * block_size..(block + 1) * block_size;
            old[bytes.clone()] != new[bytes]
        })
        .collect();
    assert!(!changed.is_empty(), "something changed");
    let contents: Vec<u8> = changed
        .iter()
        .flat_map(|block| &new[block * block_size..(block + 1) * block_size])
        .copied()
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), contents).unwrap();
    let list: Vec<String> = changed.iter().map(usize::to_string).collect();
    let write = format!("jw -b {} {}", list.join(","), file.path().display());
    image.debugfs(&["jo".to_owned(), write, "jc".to_owned()]);
    assert!(needs_recovery(&image.bytes()), "the journal was written");
    Dirty { image, after }
}

pub(crate) fn needs_recovery(image: &[u8]) -> bool {
    image[1024 + 96] & 4 != 0
}

fn changes() -> Vec<String> {
    [
        "rm /kept",
        "mkdir /made",
        "ln /small /made/linked",
        // debugfs does not count.
        "set_inode_field /small links_count 2",
        "symlink /made/link target",
        "punch /scattered 7 300",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn names(fs: &FileSystem) -> Vec<String> {
    crate::walk::walk(fs)
        .into_iter()
        .map(|file| file.path)
        .collect()
}

fn with_journal() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    KINDS.into_iter().filter(|(kind, _)| *kind != "ext2 1k")
}

#[test]
fn a_journal_is_replayed_on_disk() {
    for (kind, arguments) in with_journal() {
        let dirty = dirty(Image::make(12 << 10, arguments, fill), &changes());
        let (ours, notes) = recovered(&dirty.image);
        assert_eq!(notes, [""; 0], "{kind}");
        assert!(!needs_recovery(&ours.bytes()), "{kind}");
        let findings = ours.check();
        assert!(findings.is_clean(), "{kind}: {findings:?}");
        assert_eq!(findings.usage, dirty.after.check().usage, "{kind}");
        let (left, right) = (
            read_only(Arc::new(ours.device())).unwrap(),
            read_only(Arc::new(dirty.after.device())).unwrap(),
        );
        assert_eq!(
            crate::walk::walk(&left),
            crate::walk::walk(&right),
            "{kind}"
        );
    }
}

#[test]
fn a_journal_is_replayed_in_memory_without_a_byte_changed() {
    for (kind, arguments) in with_journal() {
        let dirty = dirty(Image::make(12 << 10, arguments, fill), &changes());
        let device = Arc::new(dirty.image.device());
        let ours = read_only(Arc::clone(&device) as _).unwrap();
        let right = read_only(Arc::new(dirty.after.device())).unwrap();
        assert_eq!(
            crate::walk::walk(&ours),
            crate::walk::walk(&right),
            "{kind}"
        );
        assert!(
            device.to_vec() == dirty.image.bytes(),
            "{kind}: not a byte changed"
        );
    }
}

#[test]
fn a_backup_superblock_is_never_written() {
    let arguments = ["-t", "ext4", "-b", "1024", "-J", "size=1"];
    let dirty = dirty(Image::make(12 << 10, &arguments, fill), &changes());
    let expected = names(&read_only(Arc::new(dirty.after.device())).unwrap());
    // Asked for by its place, which is that of group 1; its flag does not say that the journal
    // holds something.
    let device = Arc::new(dirty.image.device());
    let options = MountOptions {
        write: true,
        superblock: Some(8193),
        ..MountOptions::default()
    };
    let fs = FileSystem::open(Arc::clone(&device) as _, &options).unwrap();
    assert_eq!(names(&fs), expected);
    assert!(device.to_vec() == dirty.image.bytes(), "not a byte changed");
    // Copied over the first one.
    let mut bytes = dirty.image.bytes();
    bytes.copy_within(8193 * 1024..8194 * 1024, 1024);
    let device = Arc::new(MemoryDevice::from_bytes(&bytes));
    let fs = recover(Arc::clone(&device) as _).unwrap();
    assert!(
        fs.notes().iter().any(|note| note.contains("backup")),
        "{:?}",
        fs.notes()
    );
    assert_eq!(names(&fs), expected);
    assert!(device.to_vec() == bytes, "not a byte changed");
}

/// The error with which an image does not open.
fn refusal(image: &[u8], write: bool) -> MountError {
    let device = Arc::new(MemoryDevice::from_bytes(image));
    let opened = if write {
        recover(Arc::clone(&device) as _)
    } else {
        read_only(Arc::clone(&device) as _)
    };
    let error = opened.map(|_| ()).unwrap_err();
    assert!(device.to_vec() == image, "not a byte changed");
    error
}

#[test]
fn a_journal_that_makes_no_sense_is_named() {
    let arguments = ["-t", "ext3", "-b", "1024", "-J", "size=1"];
    let dirty = dirty(Image::make(12 << 10, &arguments, fill), &changes());
    let at = dirty.image.blocks(8)[0] as usize * 1024;
    let mut bytes = dirty.image.bytes();
    bytes[at] ^= 1;
    for write in [false, true] {
        let error = refusal(&bytes, write);
        let said = error.to_string();
        assert!(matches!(error, MountError::Journal { .. }), "{said}");
        assert!(said.contains("e2fsck"), "{said}");
    }
    // A journal that is on another device, and needed.
    let mut bytes = dirty.image.bytes();
    bytes[1024 + 0xE0..1024 + 0xE4].fill(0);
    bytes[1024 + 0xD0..1024 + 0xE0].copy_from_slice(&[0xAB; 16]);
    let said = refusal(&bytes, false).to_string();
    assert!(
        said.contains("abababab-abab-abab-abab-abababababab"),
        "{said}"
    );
}

#[test]
fn the_copy_of_the_journals_map_serves_where_its_inode_is_lost() {
    for (kind, arguments) in with_journal().take(4) {
        let dirty = dirty(Image::make(12 << 10, arguments, fill), &changes());
        dirty
            .image
            .debugfs(&["set_inode_field <8> links_count 0".to_owned()]);
        let expected = names(&read_only(Arc::new(dirty.after.device())).unwrap());
        let fs = read_only(Arc::new(dirty.image.device())).unwrap();
        assert_eq!(names(&fs), expected, "{kind}");
    }
}

#[test]
fn an_error_that_the_journal_records_marks_the_file_system() {
    let arguments = ["-t", "ext3", "-b", "1024", "-J", "size=1"];
    let dirty = dirty(Image::make(12 << 10, &arguments, fill), &changes());
    let at = dirty.image.blocks(8)[0] * 1024 + 32;
    let device = Arc::new(dirty.image.device());
    device.write(at, &(-5_i32).to_be_bytes()).unwrap();
    let fs = read_only(Arc::clone(&device) as _).unwrap();
    assert!(
        fs.notes().iter().any(|note| note.contains("error 5")),
        "{:?}",
        fs.notes()
    );
    let fs = recover(Arc::clone(&device) as _).unwrap();
    assert!(
        fs.notes().iter().any(|note| note.contains("error 5")),
        "{:?}",
        fs.notes()
    );
    let bytes = device.to_vec();
    assert_eq!(bytes[1024 + 58] & 2, 2, "marked as having errors");
    assert_eq!(
        bytes[at as usize..at as usize + 4],
        [0; 4],
        "the journal forgot"
    );
}

#[test]
fn a_journal_that_nobody_asked_to_replay_is_left() {
    let arguments = ["-t", "ext3", "-b", "1024", "-J", "size=1"];
    let dirty = dirty(Image::make(12 << 10, &arguments, fill), &changes());
    let cut = dirty.image.inode("/cut");
    dirty.image.list_orphans(&[cut]);
    let mut bytes = dirty.image.bytes();
    bytes[1024 + 96] &= !4;
    let device = Arc::new(MemoryDevice::from_bytes(&bytes));
    let fs = recover(Arc::clone(&device) as _).unwrap();
    assert!(
        fs.notes().iter().any(|note| note.contains("journal")),
        "{:?}",
        fs.notes()
    );
    assert!(device.to_vec() == bytes, "not a byte changed");
}
