//! Disks that are full, or about to be.

use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::primitives::thread::{scope, yield_now};

use pagefence_vfs::{Error, FallocateMode, FileSystem as _, WriteMode};

use crate::support::{Image, KINDS, create, find, read_all, set_size, write_all};

/// What is written at `offset` of file `number`.
fn stamp(number: usize, offset: u64) -> Vec<u8> {
    let words = (offset / 8..).map(|word| word * 31 + number as u64);
    words
        .take(1024 / 8 * 4)
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// Eight writers fill the disk, some densely, some with gaps; none hears of a full disk but when it
/// writes, and what was accepted is there.
#[test]
fn parallel_writers_fill_the_disk() {
    for kind in &KINDS {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let ids: Vec<_> = (0..8)
            .map(|number| create(&fs, &format!("file{number}")))
            .collect();
        let accepted: Vec<_> = (0..8).map(|_| AtomicU64::new(0)).collect();
        let ready = AtomicU64::new(0);
        scope(|scope| {
            for (number, id) in ids.iter().enumerate() {
                let (fs, accepted, ready) = (&fs, &accepted[number], &ready);
                scope.spawn(move || {
                    let file = fs.open(*id, true).unwrap();
                    let stride = if number % 2 == 0 { 4096 } else { 3 * 4096 };
                    ready.fetch_add(1, Ordering::SeqCst);
                    while ready.load(Ordering::SeqCst) < 8 {
                        yield_now();
                    }
                    for piece in 0.. {
                        let data = stamp(number, piece * stride);
                        match write_all(fs, &file, piece * stride, &data) {
                            (_, None) => accepted.store(piece + 1, Ordering::Relaxed),
                            (_, Some(Error::NoSpace)) => break,
                            (_, Some(error)) => panic!("{}: {error:?}", kind.name),
                        }
                    }
                    fs.sync_file(&file, false)
                        .unwrap_or_else(|error| panic!("{}: {error:?}", kind.name));
                });
            }
        });
        fs.sync().unwrap();
        let stat = fs.stat_fs().unwrap();
        let left = stat.blocks_available * u64::from(stat.block_size);
        assert!(left < 128 << 10, "{}: {left} bytes left", kind.name);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
        let fs = image.open();
        let mut total = 0;
        for (number, accepted) in accepted.iter().enumerate() {
            let bytes = read_all(&fs, find(&fs, &format!("file{number}")));
            let stride = if number % 2 == 0 { 4096 } else { 3 * 4096 };
            let pieces = accepted.load(Ordering::Relaxed);
            total += pieces;
            for piece in 0..pieces {
                let at = (piece * stride) as usize;
                let expected = stamp(number, piece * stride);
                assert!(
                    bytes[at..at + expected.len()] == expected,
                    "{}: file {number}, piece {piece}",
                    kind.name
                );
            }
        }
        assert!(total * 4096 > 2 << 20, "{}: {total} pieces", kind.name);
    }
}

/// What is given up can be had again: right away where it was only promised, after the commit that
/// the write asks for where it was freed.
#[test]
fn space_that_was_freed_can_be_written_to() {
    for kind in &KINDS {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let mut sizes = Vec::new();
        for round in 0..4 {
            let mut written = 0;
            loop {
                let data = vec![round + 1; 64 << 10];
                let (done, error) = write_all(&fs, &file, written, &data);
                written += done as u64;
                match error {
                    None => {}
                    Some(Error::NoSpace) => break,
                    Some(error) => panic!("{}: {error:?}", kind.name),
                }
            }
            sizes.push(written);
            if round % 2 == 0 {
                fs.sync_file(&file, true).unwrap();
            }
            set_size(&fs, id, 0).unwrap();
        }
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(most - least < 64 << 10, "{}: {sizes:?}", kind.name);
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

/// A preallocation that does not fit says so; what is left is sound.
#[test]
fn preallocation_of_too_much_is_refused() {
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let done = fs.allocate(&file, 0, 64 << 20, FallocateMode::KEEP_SIZE);
        assert!(
            matches!(done, Err(Error::NoSpace)),
            "{}: {done:?}",
            kind.name
        );
        assert_eq!(fs.attr(id).unwrap().size, 0);
        set_size(&fs, id, 0).unwrap();
        assert_eq!(fs.attr(id).unwrap().blocks_512, 0);
        let (written, error) = write_all(&fs, &file, 0, &vec![7; 1 << 20]);
        assert_eq!((written, error.is_none()), (1 << 20, true), "{}", kind.name);
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

/// What is kept back is left to those who may take it, and to nobody else.
#[test]
fn what_is_kept_back_is_for_root() {
    for kind in &KINDS {
        let image = Image::new(kind.options, "32M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let fill = |from: u64, mode: WriteMode| {
            let mut written = from;
            loop {
                match fs.write(&file, written, &[7; 64 << 10], mode) {
                    Ok(some) => written += some as u64,
                    Err(Error::NoSpace) => break written - from,
                    Err(error) => panic!("{}: {error:?}", kind.name),
                }
            }
        };
        let everybody = fill(0, WriteMode::empty());
        fs.sync_file(&file, true).unwrap();
        let left = fs.stat_fs().unwrap();
        assert!(left.blocks_available * u64::from(left.block_size) < 128 << 10);
        let root = fill(everybody, WriteMode::USE_RESERVE);
        assert!(root > 1 << 20, "{}: {root} bytes of 5 %", kind.name);
        assert_eq!(
            fill(everybody + root, WriteMode::empty()),
            0,
            "{}",
            kind.name
        );
        fs.sync_file(&file, true).unwrap();
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}
