//! Files that become immutable while they are mapped: what was stored is written, and from then on
//! nothing is stored.

use pagefence_block_io::device::Operation;
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, thread};
use pagefence_page_cache::{FaultError, FaultKind};
use pagefence_vfs::{FileSystem as _, InodeId, Result};

use super::maps::{Source, Space, with_either};
use super::{BLOCK, create, drop_cache, extents, formatted, inode, open, read, root, set_size};
use crate::filesystem::FileSystem;

const PAGES: u64 = 4;

fn flags(fs: &FileSystem, id: InodeId) -> InodeFlags {
    inode(fs, id).disk().record.flags()
}

/// `chattr +i`, or `-i`.
fn set_immutable(fs: &FileSystem, id: InodeId, on: bool) -> Result<()> {
    let mut flags = flags(fs, id) & InodeFlags::USER_VISIBLE;
    flags.set(InodeFlags::IMMUTABLE, on);
    fs.set_flags(id, flags.bits(), &root())
}

#[test]
fn an_immutable_file_takes_no_stores() {
    with_either(refuse_stores);
}

fn refuse_stores(source: Source) {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    set_size(&fs, id, PAGES * BLOCK).expect("it grows");
    let file = fs.open(id, true).expect("it opens");
    let space = Space::of(source, &file, 0..PAGES);
    space.store(10, &[7; 20]);
    set_immutable(&fs, id, true).expect("it is set");
    assert_eq!(extents(&fs, id).len(), 1, "what was stored is written");
    // One that could be stored to a moment ago, and one that never could.
    for page in 0..2 {
        let refused = space.try_store(page * BLOCK + 10, &[8; 20]);
        let Err(FaultError::NoSpace(why)) = refused else {
            panic!("page {page}: {refused:?}");
        };
        let why = format!("{why:?}");
        assert!(why.contains("NotPermitted"), "page {page}: {why}");
    }
    space.check();
    assert_eq!(file.mapping.dirty_pages(), 0);
    space.fault(1, FaultKind::Read).expect("loads go on");
    let mut bytes = [0; 20];
    space.load(10, &mut bytes);
    assert_eq!(bytes, [7; 20]);
    set_immutable(&fs, id, false).expect("it is taken back");
    space.store(BLOCK + 10, &[9; 20]);
    space.check();
    drop(space);
    fs.sync_file(&file, false).expect("it is written");
    drop_cache(&fs);
    for (page, byte) in [(0, 7), (1, 9)] {
        let at = page * BLOCK + 10;
        assert_eq!(read(&fs, &file, at..at + 20).expect("read"), [byte; 20]);
    }
    drop(file);
    fs.shut_down().expect("nothing fails");
}

/// What can't be written is told, and the file stays as it was.
#[test]
fn a_file_that_can_not_be_written_does_not_become_immutable() {
    with_either(|source| {
        let device = formatted();
        let fs = open(&device);
        let id = create(&fs, "file");
        set_size(&fs, id, PAGES * BLOCK).expect("it grows");
        let file = fs.open(id, true).expect("it opens");
        let space = Space::of(source, &file, 0..PAGES);
        space.store(10, &[7; 20]);
        device.fail(Operation::Write, 0..u64::MAX);
        set_immutable(&fs, id, true).expect_err("the device fails");
        device.heal();
        assert!(!flags(&fs, id).contains(InodeFlags::IMMUTABLE));
        space.store(10, &[8; 20]);
        space.check();
        drop((space, file));
    });
}

/// Nothing is stored after the flag is set, by whoever was about to.
#[test]
fn stores_end_when_a_file_becomes_immutable() {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    set_size(&fs, id, PAGES * BLOCK).expect("it grows");
    let file = fs.open(id, true).expect("it opens");
    let space = Arc::new(Space::of(Source::Simulated, &file, 0..PAGES));
    for round in 0..40_u64 {
        let stored = Arc::new(AtomicU64::new(0));
        let storers: Vec<_> = (0..2)
            .map(|page| {
                let (space, stored) = (Arc::clone(&space), Arc::clone(&stored));
                let store = move || {
                    for value in 0_u64.. {
                        let bytes = [round.to_le_bytes(), value.to_le_bytes()].concat();
                        match space.try_store(page * BLOCK, &bytes) {
                            Ok(()) => stored.fetch_add(1, Ordering::Relaxed),
                            Err(FaultError::NoSpace(_)) => return,
                            failed => panic!("{failed:?}"),
                        };
                    }
                };
                thread::spawn("storer", store).expect("a thread")
            })
            .collect();
        while stored.load(Ordering::Relaxed) < 20 {
            thread::yield_now();
        }
        set_immutable(&fs, id, true).expect("it is set");
        let frozen = read(&fs, &file, 0..2 * BLOCK).expect("read");
        for storer in storers {
            storer.join().expect("no panic");
        }
        assert_eq!(file.mapping.dirty_pages(), 0, "what is there is written");
        assert!(read(&fs, &file, 0..2 * BLOCK).expect("read") == frozen);
        drop_cache(&fs);
        assert!(read(&fs, &file, 0..2 * BLOCK).expect("read") == frozen);
        set_immutable(&fs, id, false).expect("it is taken back");
    }
    drop((space, file));
    fs.shut_down().expect("nothing fails");
}
