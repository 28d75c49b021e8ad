//! What is refused, what small files become, full disks, and what happens beside others.

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread::scope;
use pagefence_vfs::{Error, ExtentState, FallocateMode, FileSystem as _, WriteMode};

use super::{COLLAPSE, INSERT};
use crate::support::{Image, KINDS, create, find, read_all, root, write_all};

/// Whether an error is of this kind.
fn is(error: &Error, due: &Error) -> bool {
    std::mem::discriminant(error) == std::mem::discriminant(due)
}

#[test]
fn shifts_are_refused_where_linux_refuses_them() {
    let (invalid, large) = (Error::InvalidArgument, Error::FileTooLarge);
    let (unsupported, forbidden) = (Error::Unsupported(""), Error::NotPermitted);
    for kind in &KINDS {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let block = u64::from(fs.stat_fs().unwrap().block_size);
        let bytes = vec![7; 10 * block as usize + 5];
        write_all(&fs, &file, 0, &bytes);
        let before = fs.attr(id).unwrap();
        let refuse = |mode, offset, length, due: &Error| {
            let outcome = fs.allocate(&file, offset, length, mode).unwrap_err();
            let what = format!("{} {mode:?} {offset} {length}", kind.name);
            assert!(is(&outcome, due), "{what}: {outcome:?}");
        };
        refuse(COLLAPSE, 1, block, &invalid);
        refuse(COLLAPSE, 0, block + 512, &invalid);
        refuse(COLLAPSE, 9 * block, 2 * block, &invalid);
        refuse(COLLAPSE, 0, 0, &invalid);
        refuse(INSERT, 512, block, &invalid);
        refuse(INSERT, 0, 512, &invalid);
        refuse(INSERT, 11 * block, block, &invalid);
        refuse(INSERT, 0, 1 << 45, &large);
        if kind.has_extents {
            // It ends within the largest file, but what is behind it would not.
            refuse(INSERT, 0, (u64::from(u32::MAX) - 10) * block, &large);
        }
        refuse(INSERT | COLLAPSE, 0, block, &unsupported);
        refuse(INSERT | FallocateMode::KEEP_SIZE, 0, block, &unsupported);
        refuse(COLLAPSE | FallocateMode::ZERO_RANGE, 0, block, &unsupported);
        let flags = before.flags;
        for flag in [InodeFlags::IMMUTABLE, InodeFlags::APPEND] {
            fs.set_flags(id, flags | flag.bits(), &root()).unwrap();
            refuse(INSERT, 0, block, &forbidden);
            refuse(COLLAPSE, 0, block, &forbidden);
            fs.set_flags(id, flags, &root()).unwrap();
        }
        assert_eq!(fs.attr(id).unwrap().modified, before.modified);
        assert!(read_all(&fs, id) == bytes, "{}", kind.name);
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

/// Blocks behind the end of a file move as well, but not past the last that there can be.
#[test]
fn what_lies_behind_the_end_moves_as_far_as_it_can() {
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let block = u64::from(fs.stat_fs().unwrap().block_size);
        write_all(&fs, &file, 0, &vec![7; 3 * block as usize]);
        let last = (u64::from(u32::MAX) - 4) * block;
        let keep = FallocateMode::KEEP_SIZE;
        fs.allocate(&file, last, 2 * block, keep).unwrap();
        let places = || {
            let extents = fs.extents(id, 0, u64::MAX, 10).unwrap();
            let starts = extents.iter().map(|extent| extent.logical / block);
            starts.collect::<Vec<_>>()
        };
        let end = last / block;
        fs.allocate(&file, block, 2 * block, INSERT).unwrap();
        assert_eq!(places(), [0, 3, end + 2], "{}", kind.name);
        let late = fs.allocate(&file, block, block, INSERT).unwrap_err();
        assert!(
            is(&late, &Error::InvalidArgument),
            "{}: {late:?}",
            kind.name
        );
        assert_eq!(fs.attr(id).unwrap().size, 5 * block);
        fs.allocate(&file, 0, 2 * block, COLLAPSE).unwrap();
        assert_eq!(places(), [1, end], "{}", kind.name);
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

/// A file in its inode gets a block first.
#[test]
fn a_hole_comes_into_a_file_that_was_in_its_inode() {
    let options = ["-t", "ext4", "-b", "1024", "-O", "inline_data", "-I", "256"];
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), [7; 40]).unwrap();
    let options = [&options[..], &["-d", dir.path().to_str().unwrap()]].concat();
    let image = Image::new(&options, "8M");
    let fs = image.open();
    let id = find(&fs, "file");
    let state = |fs: &pagefence_ext4::FileSystem| fs.extents(id, 0, u64::MAX, 1).unwrap()[0].state;
    assert_eq!(state(&fs), ExtentState::Inline);
    let file = fs.open(id, true).unwrap();
    let refused = fs.allocate(&file, 0, 1024, COLLAPSE).unwrap_err();
    assert!(is(&refused, &Error::InvalidArgument), "{refused:?}");
    fs.allocate(&file, 0, 2048, INSERT).unwrap();
    assert_eq!(state(&fs), ExtentState::Written);
    let expected = [vec![0; 2048], vec![7; 40]].concat();
    assert_eq!(read_all(&fs, id), expected);
    drop(file);
    fs.shut_down().unwrap();
    drop(fs);
    image.assert_clean("inline data");
    assert_eq!(read_all(&image.open(), id), expected);
}

/// On a disk without a free block the map may get none: then nothing has happened.
#[test]
fn on_a_full_disk_a_shift_is_done_or_refused_as_a_whole() {
    for kind in &KINDS {
        let options = [kind.options, &["-m", "0"]].concat();
        let image = Image::new(&options, "12M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let block = fs.stat_fs().unwrap().block_size as usize;
        // Pieces with holes between, so that a leaf maps what two will.
        let mut bytes = vec![0; 3000 * block];
        for at in (0..3000).step_by(3) {
            let piece = at * block..(at + 1) * block;
            bytes[piece.clone()].fill(1 + (at % 251) as u8);
            write_all(&fs, &file, piece.start as u64, &bytes[piece]);
        }
        bytes.truncate(2998 * block);
        fs.sync().unwrap();
        let filler = fs.open(create(&fs, "filler"), true).unwrap();
        let mut offset = 0;
        for size in [64 << 10, 1024] {
            while let Ok(done) = fs.write(&filler, offset, &vec![9; size], WriteMode::USE_RESERVE) {
                offset += done as u64;
            }
        }
        fs.sync().unwrap();
        for (first, len) in [(1, 5), (7, 700), (100, 1)] {
            let gap = first * block..(first + len) * block;
            let (start, length) = (gap.start as u64, gap.len() as u64);
            match fs.allocate(&file, start, length, INSERT) {
                Ok(()) => {
                    let zeros = std::iter::repeat_n(0, gap.len());
                    bytes.splice(gap.start..gap.start, zeros);
                }
                Err(Error::NoSpace) => {}
                Err(error) => panic!("{}: {error:?}", kind.name),
            }
            assert!(
                read_all(&fs, id) == bytes,
                "{} insert {first} {len}",
                kind.name
            );
            match fs.allocate(&file, start, length, COLLAPSE) {
                Ok(()) => drop(bytes.drain(gap)),
                Err(Error::NoSpace) => {}
                Err(error) => panic!("{}: {error:?}", kind.name),
            }
            assert!(
                read_all(&fs, id) == bytes,
                "{} collapse {first} {len}",
                kind.name
            );
        }
        drop((file, filler));
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
        assert!(read_all(&image.open(), id) == bytes, "{}", kind.name);
    }
}

/// RACES T16, without maps: nothing that is appended beside shifts is lost, and whoever reads a
/// block sees it where it was or where it is.
#[test]
fn readers_and_writers_beside_shifts_lose_nothing() {
    const BLOCKS: usize = 60;
    const ROUNDS: usize = 60;
    for kind in [KINDS[0], KINDS[2], KINDS[3], KINDS[5]] {
        let image = Image::new(kind.options, "12M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let block = fs.stat_fs().unwrap().block_size as usize;
        for at in 0..BLOCKS {
            write_all(&fs, &file, (at * block) as u64, &vec![1 + at as u8; block]);
        }
        let is_over = AtomicBool::new(false);
        let appended = scope(|scope| {
            let appender = scope.spawn(|| {
                let mut appended = Vec::new();
                while !is_over.load(Ordering::Acquire) && appended.len() < 150 {
                    let byte = 100 + (appended.len() % 150) as u8;
                    let data = vec![byte; block];
                    let done = fs.write(&file, 0, &data, WriteMode::APPEND).unwrap();
                    assert_eq!(done, block);
                    appended.push(byte);
                }
                appended
            });
            scope.spawn(|| {
                let mut at = 0;
                while !is_over.load(Ordering::Acquire) {
                    at = (at + 7) % (BLOCKS - 4);
                    let mut bytes = vec![0; block];
                    let read = fs.read(&file, (at * block) as u64, &mut bytes).unwrap();
                    assert_eq!(read, block);
                    let byte = bytes[0];
                    assert!(
                        bytes.iter().all(|other| *other == byte),
                        "{} {at}",
                        kind.name
                    );
                    // Where it was, three blocks lower or higher; or in the hole.
                    let own = 1 + at as u8;
                    let is_known = [own, own + 3, own.saturating_sub(3), 0].contains(&byte);
                    assert!(is_known, "{}: {byte} at {at}", kind.name);
                }
            });
            for _ in 0..ROUNDS {
                let length = 3 * block as u64;
                fs.allocate(&file, block as u64, length, INSERT).unwrap();
                fs.allocate(&file, block as u64, length, COLLAPSE).unwrap();
            }
            is_over.store(true, Ordering::Release);
            appender.join().unwrap()
        });
        let due: Vec<u8> = (1..=BLOCKS as u8).chain(appended).collect();
        let found = read_all(&fs, id);
        assert_eq!(found.len(), due.len() * block, "{}", kind.name);
        let firsts: Vec<u8> = found.chunks(block).map(|piece| piece[0]).collect();
        assert_eq!(firsts, due, "{}", kind.name);
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}
