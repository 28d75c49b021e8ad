//! What is refused, deep maps, maps of two kinds, and data that moves to a donor's blocks.

use pagefence_ext4::{File, FileSystem};
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_vfs::{Error, ExtentState, FallocateMode, FileSystem as _, InodeId, WriteMode};

use crate::shift::runs_of;
use crate::support::{Image, KINDS, create, find, read_all, root, set_size, write_all};

fn is(error: &Error, due: &Error) -> bool {
    std::mem::discriminant(error) == std::mem::discriminant(due)
}

fn made(fs: &FileSystem, name: &str, bytes: &[u8]) -> (InodeId, File) {
    let id = create(fs, name);
    let file = fs.open(id, true).unwrap();
    write_all(fs, &file, 0, bytes);
    (id, file)
}

#[test]
fn exchanges_that_make_no_sense_are_refused() {
    for kind in [&KINDS[0], &KINDS[2], &KINDS[5]] {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let block = u64::from(fs.stat_fs().unwrap().block_size);
        let (id, file) = made(&fs, "file", &vec![7; 10 * block as usize + 5]);
        let (other_id, other) = made(&fs, "other", &vec![8; 10 * block as usize + 5]);
        let invalid = Error::InvalidArgument;
        let refuse = |first, at, second, other_at, length, due: &Error| {
            let outcome = fs.exchange_range(first, at, second, other_at, length);
            let outcome = outcome.unwrap_err();
            let what = format!("{} {at} {other_at} {length}", kind.name);
            assert!(is(&outcome, due), "{what}: {outcome:?}");
        };
        refuse(&file, 0, &other, 0, 0, &invalid);
        refuse(&file, 512, &other, 0, block, &invalid);
        refuse(&file, 0, &other, 100, block, &invalid);
        refuse(&file, 0, &other, 0, block + 1, &invalid);
        refuse(&file, 0, &other, 0, 12 * block, &invalid);
        refuse(&file, 10 * block, &other, 0, 2 * block, &invalid);
        refuse(&file, u64::MAX - block + 1, &other, 0, block, &invalid);
        refuse(&file, 0, &file, 0, block, &invalid);
        refuse(&file, block, &file, 3 * block, 3 * block, &invalid);
        // The rest of the other's block would be lost.
        refuse(&file, 10 * block, &other, 2 * block, block, &invalid);
        let read_only = fs.open(other_id, false).unwrap();
        refuse(&file, 0, &read_only, 0, block, &Error::NotPermitted);
        let flags = fs.attr(other_id).unwrap().flags;
        for flag in [InodeFlags::IMMUTABLE, InodeFlags::APPEND] {
            fs.set_flags(other_id, flags | flag.bits(), &root())
                .unwrap();
            refuse(&file, 0, &other, 0, block, &Error::NotPermitted);
            refuse(&other, 0, &file, 0, block, &Error::NotPermitted);
            fs.set_flags(other_id, flags, &root()).unwrap();
        }
        assert!(read_all(&fs, id).iter().all(|byte| *byte == 7));
        assert!(read_all(&fs, other_id).iter().all(|byte| *byte == 8));
        // Up to the end of both, whole, by a length that ends there.
        let length = 10 * block + 5;
        fs.exchange_range(&file, 0, &other, 0, length).unwrap();
        assert!(read_all(&fs, id).iter().all(|byte| *byte == 8));
        assert!(read_all(&fs, other_id).iter().all(|byte| *byte == 7));
        drop((file, other, read_only));
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

/// A file of `blocks` blocks with a hole behind every other one, and what it holds; and as many bytes of
/// another kind.
fn in_pieces(fs: &FileSystem, blocks: usize, block: usize) -> (InodeId, File, [Vec<u8>; 2]) {
    let (id, file) = made(fs, "pieces", &[]);
    let mut pieces = vec![0; blocks * block];
    for at in (0..blocks).step_by(2) {
        let piece = at * block..(at + 1) * block;
        pieces[piece.clone()].fill(1 + (at % 251) as u8);
        write_all(fs, &file, piece.start as u64, &pieces[piece]);
    }
    set_size(fs, id, pieces.len() as u64).unwrap();
    let whole = (0..blocks * block).map(|at| 1 + (at / 7 % 255) as u8);
    (id, file, [pieces, whole.collect()])
}

/// Pieces of one file against one long piece of another, so that a tree of many leaves becomes one
/// of few, and the other way round.
#[test]
fn trees_of_many_leaves_change_places_with_short_ones() {
    for kind in &KINDS {
        let image = Image::new(kind.options, "24M");
        let fs = image.open();
        let block = fs.stat_fs().unwrap().block_size as usize;
        let blocks = 1500;
        let (id, file, [pieces, whole]) = in_pieces(&fs, blocks, block);
        let (other_id, other) = made(&fs, "whole", &whole);
        let runs = runs_of(&fs, &file);
        let length = (blocks * block) as u64;
        for round in 0..3 {
            fs.exchange_range(&file, 0, &other, 0, length).unwrap();
            let (first, second) = match round % 2 {
                0 => (&whole, &pieces),
                _ => (&pieces, &whole),
            };
            assert!(read_all(&fs, id) == *first, "{} {round}", kind.name);
            assert!(read_all(&fs, other_id) == *second, "{} {round}", kind.name);
        }
        assert_eq!(runs_of(&fs, &other), runs, "{}: holes move, too", kind.name);
        assert_eq!(runs_of(&fs, &file), [(0, length)], "{}", kind.name);
        drop((file, other));
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
        let fs = image.open();
        assert!(read_all(&fs, find(&fs, "pieces")) == whole, "{}", kind.name);
        assert!(read_all(&fs, find(&fs, "whole")) == pieces, "{}", kind.name);
    }
}

/// Blocks of a file with a block map and of one with extents, which old file systems have side by
/// side.
#[test]
fn a_block_map_and_extents_change_places_where_both_can_hold_it() {
    let image = Image::new(&["-t", "ext3", "-b", "1024"], "16M");
    let old = vec![3; 700 * 1024];
    let fs = image.open();
    drop(made(&fs, "old", &old));
    fs.shut_down().unwrap();
    drop(fs);
    let tuned = std::process::Command::new("tune2fs")
        .args(["-O", "extents"])
        .arg(&image.path)
        .output()
        .unwrap();
    assert!(tuned.status.success(), "{tuned:?}");
    let fs = image.open();
    let id = find(&fs, "old");
    let file = fs.open(id, true).unwrap();
    let new: Vec<u8> = (0..700 * 1024).map(|at| (at >> 10) as u8 | 1).collect();
    let (new_id, other) = made(&fs, "new", &new);
    let flags = |id| fs.attr(id).unwrap().flags & InodeFlags::EXTENTS.bits();
    assert!(flags(id) == 0 && flags(new_id) != 0, "two kinds of maps");
    let length = 700 << 10;
    fs.exchange_range(&file, 0, &other, 0, length).unwrap();
    assert!(read_all(&fs, id) == new && read_all(&fs, new_id) == old);
    let unwritten = FallocateMode::KEEP_SIZE | FallocateMode::ZERO_RANGE;
    fs.allocate(&other, 300 << 10, 5 << 10, unwritten).unwrap();
    let refused = fs.exchange_range(&file, 0, &other, 0, length).unwrap_err();
    assert!(is(&refused, &Error::Unsupported("")), "{refused:?}");
    assert!(read_all(&fs, id) == new, "nothing changed");
    let refused = fs.move_blocks(&file, 0, &other, 0, length).unwrap_err();
    assert!(is(&refused, &Error::Unsupported("")), "{refused:?}");
    fs.exchange_range(&other, 0, &file, 400 << 10, 300 << 10)
        .unwrap();
    drop((file, other));
    fs.shut_down().unwrap();
    drop(fs);
    image.assert_clean("two kinds of maps");
    let fs = image.open();
    let due = [&new[..400 << 10], &old[..300 << 10]].concat();
    assert!(read_all(&fs, find(&fs, "old")) == due);
}

/// As e4defrag does it: a donor with unwritten blocks, a file with pages that are dirty.
#[test]
fn data_moves_to_the_blocks_of_a_donor() {
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        let image = Image::new(kind.options, "24M");
        let fs = image.open();
        let block = u64::from(fs.stat_fs().unwrap().block_size);
        let (id, file) = made(&fs, "file", &[]);
        let mut bytes = vec![0; 600 * block as usize + 77];
        for at in (0..=600).rev().filter(|at| at % 5 != 3) {
            let from = at * block as usize;
            let to = (from + block as usize).min(bytes.len());
            bytes[from..to].fill(1 + (at % 251) as u8);
            write_all(&fs, &file, from as u64, &bytes[from..to]);
            if at % 50 == 0 {
                fs.sync_file(&file, false).unwrap();
            }
        }
        let donor_id = create(&fs, "donor");
        let donor = fs.open(donor_id, true).unwrap();
        let all = 601 * block;
        fs.allocate(&donor, 0, all, FallocateMode::empty()).unwrap();
        let before = fs.extents(id, 0, u64::MAX, 10_000).unwrap();
        let target = fs.extents(donor_id, 0, u64::MAX, 100).unwrap();
        let times = fs.attr(id).unwrap().modified;
        let moved = fs.move_blocks(&file, 0, &donor, 0, 900 * block).unwrap();
        assert_eq!(moved, all, "{}", kind.name);
        assert!(read_all(&fs, id) == bytes, "{}", kind.name);
        assert!(read_all(&fs, donor_id).iter().all(|byte| *byte == 0));
        assert_eq!(fs.attr(id).unwrap().modified, times, "{}", kind.name);
        let after = fs.extents(id, 0, u64::MAX, 10_000).unwrap();
        for extent in &after {
            let is_donors = target.iter().any(|old| {
                let within = old.physical..old.physical + old.length;
                within.contains(&extent.physical)
            });
            assert!(is_donors && extent.state == ExtentState::Written);
        }
        assert_ne!(before, after);
        let nothing = fs.move_blocks(&file, all, &donor, 0, block).unwrap_err();
        assert!(is(&nothing, &Error::InvalidArgument), "{nothing:?}");
        let itself = fs.move_blocks(&file, 0, &file, 0, block).unwrap_err();
        assert!(is(&itself, &Error::InvalidArgument), "{itself:?}");
        drop((file, donor));
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
        let fs = image.open();
        assert!(read_all(&fs, find(&fs, "file")) == bytes, "{}", kind.name);
    }
}

/// Files of less than a block, in their inodes or not, change places whole; what is behind their ends
/// stays zeros.
#[test]
fn small_files_change_places_whole() {
    let inline = ["-t", "ext4", "-b", "4096", "-O", "inline_data", "-I", "256"];
    for options in [&inline[..], KINDS[2].options, KINDS[3].options] {
        let image = Image::new(options, "8M");
        let fs = image.open();
        let (id, file) = made(&fs, "file", b"before");
        let (other_id, other) = made(&fs, "other", b"behind");
        fs.exchange_range(&file, 0, &other, 0, 6).unwrap();
        set_size(&fs, id, 5000).unwrap();
        let due = [&b"behind"[..], &[0; 4994]].concat();
        assert!(read_all(&fs, id) == due, "{options:?}");
        assert_eq!(read_all(&fs, other_id), b"before", "{options:?}");
        drop((file, other));
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean("small files");
        let fs = image.open();
        assert!(read_all(&fs, find(&fs, "file")) == due, "{options:?}");
        assert_eq!(read_all(&fs, find(&fs, "other")), b"before");
    }
}

/// Where no block is free, an exchange or a move that needs one for a map is refused, and nothing has
/// happened; or it needs none, and goes well.
#[test]
fn on_a_full_disk_an_exchange_is_done_or_refused_as_a_whole() {
    let mut outcomes = [0; 2];
    for kind in &KINDS {
        let options = [kind.options, &["-m", "0"]].concat();
        let image = Image::new(&options, "12M");
        let fs = image.open();
        let block = fs.stat_fs().unwrap().block_size as usize;
        let blocks = 900;
        let (id, file, [mut pieces, mut whole]) = in_pieces(&fs, blocks, block);
        let (other_id, other) = made(&fs, "whole", &whole);
        fs.sync().unwrap();
        let (_, filler) = made(&fs, "filler", &[]);
        let mut offset = 0;
        for size in [64 << 10, 1024] {
            let data = vec![9; size];
            while let Ok(done) = fs.write(&filler, offset, &data, WriteMode::USE_RESERVE) {
                offset += done as u64;
            }
        }
        fs.sync().unwrap();
        // Ranges of many pieces that go to where there is one, at both ends and between.
        for (at, other_at, len) in [(0, 0, blocks), (1, 500, 3), (301, 7, 590), (2, 2, 1)] {
            let ([at, other_at], len) = ([at, other_at].map(|at| at * block), len * block);
            let offsets = [at, other_at].map(|at| at as u64);
            let done = fs.exchange_range(&file, offsets[0], &other, offsets[1], len as u64);
            match done {
                Ok(()) => {
                    outcomes[0] += 1;
                    pieces[at..at + len].swap_with_slice(&mut whole[other_at..other_at + len]);
                }
                Err(Error::NoSpace) => outcomes[1] += 1,
                Err(error) => panic!("{}: {error:?}", kind.name),
            }
            assert!(read_all(&fs, id) == pieces, "{} {at} {len}", kind.name);
            assert!(read_all(&fs, other_id) == whole, "{} {at} {len}", kind.name);
        }
        if kind.has_extents {
            // What the donor held is overwritten, and no more.
            match fs.move_blocks(&file, 0, &other, 0, (blocks * block) as u64) {
                Ok(_) => outcomes[0] += 1,
                Err(Error::NoSpace) => outcomes[1] += 1,
                Err(error) => panic!("{}: {error:?}", kind.name),
            }
            assert!(read_all(&fs, id) == pieces, "{}, moved", kind.name);
        }
        drop((file, other, filler));
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
        let fs = image.open();
        assert!(
            read_all(&fs, find(&fs, "pieces")) == pieces,
            "{}",
            kind.name
        );
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}
