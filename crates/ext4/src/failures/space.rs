//! Space that was promised to what could not be mapped: it is neither lost nor given twice.

use pagefence_block_io::device::Operation;
use pagefence_ext4_format::BlockNo;
use pagefence_lock_order::Held;
use pagefence_page_cache::WaitFor;
use pagefence_vfs::{Error, FallocateMode, FileSystem as _, InodeId, WriteMode};

use super::{
    BLOCK, create, drop_cache, extents, find, formatted, formatted_as, inode, number, open, place,
    punch, read, set_size, unreserved, write,
};
use crate::alloc::{BlockOwner, Claim, Reservation};
use crate::change::free_blocks::free_blocks;
use crate::filesystem::{File, FileSystem};
use crate::live::Need;
use crate::mkfs::Kind;

/// More sectors than these an inode can't count: with them it has blocks of 4 KiB, 2^48 - 1.
const SECTORS_MAX: u64 = ((1 << 48) - 1) * 8;

const PUNCH: FallocateMode = FallocateMode::PUNCH_HOLE.union(FallocateMode::KEEP_SIZE);

/// Blocks with a gap behind each, so that the map needs a node below its root.
const PIECES: u64 = 12;

fn set_sectors(fs: &FileSystem, name: &str, sectors: u64) {
    let inode = inode(fs, find(fs, name));
    let mut held = Held::at_entry();
    let (_map, _held) = inode.core.block_map.write(&mut held);
    let set = inode.core.update(|record| record.set_sectors(sectors));
    set.expect("as many as there can be");
}

/// Writes until nothing more is accepted.
fn fill(fs: &FileSystem) {
    let id = create(fs, "filler");
    let file = fs.open(id, true).expect("it opens");
    let data = vec![0xF1; 256 << 10];
    let mut offset = 0;
    loop {
        match fs.write(&file, offset, &data, WriteMode::empty()) {
            Ok(written) => offset += written as u64,
            Err(Error::NoSpace) => break,
            Err(error) => panic!("{error:?}"),
        }
    }
    fs.sync_file(&file, false).expect("it was accepted");
}

/// Writes a file back, as the flusher does: nobody is told, and so nothing is given back.
fn fails(file: &File) -> bool {
    let all = 0..u64::MAX;
    let mut entry = Held::at_entry();
    let told = file.mapping.write_back(&mut entry, all, WaitFor::All);
    matches!(told, Err(error) if matches!(Error::from(error.clone()), Error::Corrupt { .. }))
}

#[test]
fn what_could_not_be_counted_keeps_its_space() {
    let device = formatted();
    {
        let fs = open(&device);
        create(&fs, "file");
        set_sectors(&fs, "file", SECTORS_MAX);
        fs.sync().expect("nothing fails");
        fs.shut_down().expect("nothing fails");
    }
    let fs = open(&device);
    let before = unreserved(&fs);
    let id = find(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    for _ in 0..2 {
        for piece in 0..PIECES {
            write(&fs, &file, 2 * piece * BLOCK, &[7; BLOCK as usize]);
        }
        assert!(fails(&file), "they can't be counted");
    }
    fs.instance.live().expect("no journal is aborted");
    // Cut to half, then to nothing.
    set_size(&fs, id, PIECES * BLOCK).expect("it is cut");
    set_size(&fs, id, 0).expect("it is cut");
    assert_eq!(unreserved(&fs), before);
    fs.sync().expect_err("writes failed");
    fs.sync().expect("that was told");
}

/// What is promised stays promised after a failure: a disk that fills up meanwhile has no say.
#[test]
fn what_could_not_be_counted_is_written_on_a_full_disk() {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    set_sectors(&fs, "file", SECTORS_MAX);
    for piece in 0..PIECES {
        write(&fs, &file, 2 * piece * BLOCK, &[7; BLOCK as usize]);
    }
    assert!(fails(&file), "they can't be counted");
    fill(&fs);
    set_sectors(&fs, "file", 0);
    for piece in 0..PIECES {
        write(&fs, &file, 2 * piece * BLOCK, &[8; BLOCK as usize]);
    }
    fs.sync_file(&file, false).expect_err("a write failed");
    fs.sync_file(&file, false).expect("it was accepted");
    drop_cache(&fs);
    for piece in 0..PIECES {
        let at = 2 * piece * BLOCK;
        assert_eq!(
            read(&fs, &file, at..at + BLOCK).expect("it is there"),
            [8; BLOCK as usize]
        );
    }
    drop(file);
    fs.sync().expect_err("a write failed");
    fs.shut_down().expect("all is written");
}

/// A transaction that fails before it changed anything gives back what it was lent for the blocks
/// that are still to be mapped.
#[test]
fn times_that_can_not_be_written_cost_no_space() {
    let device = formatted();
    {
        let fs = open(&device);
        let id = create(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        write(&fs, &file, 0, &[1; BLOCK as usize]);
        drop(file);
        fs.shut_down().expect("nothing fails");
    }
    let fs = open(&device);
    let id = find(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    for piece in 0..PIECES {
        write(&fs, &file, 2 * piece * BLOCK, &[2; BLOCK as usize]);
    }
    let (block, _) = fs.instance.inode_block(number(id)).expect("it has a place");
    fs.instance.buffers.invalidate(block.0);
    device.fail(Operation::Read, block.0 * BLOCK..(block.0 + 1) * BLOCK);
    let written = file
        .mapping
        .write_back(&mut Held::at_entry(), 0..BLOCK, WaitFor::All);
    assert!(written.is_err(), "its times can't be written");
    device.heal();
    fs.instance.live().expect("no journal is aborted");
    fill(&fs);
    let _told = fs.sync_file(&file, false);
    fs.sync_file(&file, false).expect("it was accepted");
    drop(file);
    fs.sync().expect_err("a write failed");
    fs.shut_down().expect("all is written");
}

/// A range operation that fails gives back what it had reserved for delayed blocks that stay, at
/// whichever step it fails.
#[test]
fn ranges_that_fail_cost_no_space() {
    for mode in [PUNCH, FallocateMode::ZERO_RANGE, FallocateMode::KEEP_SIZE] {
        let device = formatted();
        let fs = open(&device);
        let id = create(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        for piece in 0..PIECES {
            write(&fs, &file, 2 * piece * BLOCK, &[1; BLOCK as usize]);
        }
        fs.sync_file(&file, false).expect("nothing fails");
        let delayed = 2 * PIECES + 100;
        write(&fs, &file, delayed * BLOCK, &[2; BLOCK as usize]);
        let before = unreserved(&fs);
        if mode == FallocateMode::KEEP_SIZE {
            // Blocks are found and can't be counted.
            set_sectors(&fs, "file", SECTORS_MAX);
            let told = fs.allocate(&file, BLOCK, BLOCK, mode);
            assert!(matches!(told, Err(Error::Corrupt { .. })), "{told:?}");
        } else {
            // The edge can't be written; the blocks behind it can't be freed.
            device.fail(Operation::Write, place(&fs, id, 0));
            fs.allocate(&file, 100, 3 * BLOCK, mode)
                .expect_err("an edge was not written");
        }
        assert_eq!(unreserved(&fs), before, "{mode:?}");
        fs.instance.live().expect("no journal is aborted");
    }
}

/// The map can't be changed at the second of two extents that a punch takes: the first is gone, and
/// no space with it.
#[test]
fn a_punch_that_ends_half_way_costs_no_space() {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    for piece in 0..4 {
        write(&fs, &file, 2 * piece * BLOCK, &[1; BLOCK as usize]);
    }
    fs.sync_file(&file, false).expect("nothing fails");
    let before = unreserved(&fs);
    write(&fs, &file, 200 * BLOCK, &[2; BLOCK as usize]);
    let third = BlockNo(place(&fs, id, 4 * BLOCK).start / BLOCK);
    {
        // One of them is free already, the bitmap says.
        let inode = inode(&fs, id);
        let mut held = Held::at_entry();
        let (mut transaction, mut held) = fs
            .instance
            .begin(&mut held, Need::RECORD)
            .expect("it begins");
        let (_map, _held) = inode.core.block_map.write(&mut held);
        free_blocks(&mut transaction, BlockOwner::Contents(number(id)), third, 1)
            .expect("it was in use");
        transaction.end();
    }
    let told = punch(&fs, &file, 0..10 * BLOCK);
    assert!(matches!(told, Err(Error::Corrupt { .. })), "{told:?}");
    fs.instance.live().expect("no journal is aborted");
    let left = extents(&fs, id);
    assert_eq!(left.len(), 2, "two of four: {left:?}");
    fs.sync().expect("nothing fails");
    // One block found its place, and two became free, and that which was said to be.
    assert_eq!(unreserved(&fs), before + 2);
}

/// Commits what gave blocks back, and has all that are left promised, one by one.
fn take_all(fs: &FileSystem) -> Vec<Reservation> {
    let live = fs.instance.live().expect("it is written to");
    live.commit(live.journal.running().0)
        .expect("nothing fails");
    let allocator = &live.allocator;
    std::iter::from_fn(|| allocator.reserve(1, Claim::Map).ok()).collect()
}

/// Writes blocks of a file, maps one run of them only, and has `cut` take that away again, while the
/// disk is full: the others are to be given all of the map's blocks anew.
fn the_map_is_cut_short(
    (kind, block_size): (Kind, u64),
    mapped: &[u64],
    delayed: &[u64],
    cut: impl FnOnce(&FileSystem, InodeId, &File),
) {
    let device = formatted_as(kind, u32::try_from(block_size).expect("small"), "");
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    let data = vec![7; usize::try_from(block_size).expect("small")];
    for block in mapped.iter().chain(delayed) {
        write(&fs, &file, block * block_size, &data);
    }
    {
        let mut entry = Held::at_entry();
        let ends = mapped.first().zip(mapped.last()).expect("some");
        let only = ends.0 * block_size..(ends.1 + 1) * block_size;
        let told = file.mapping.write_back(&mut entry, only, WaitFor::All);
        told.expect("nothing fails");
    }
    let mut all = take_all(&fs);
    cut(&fs, id, &file);
    all.extend(take_all(&fs));
    fs.sync_file(&file, false).expect("it was promised");
    drop(all);
    drop_cache(&fs);
    for block in delayed {
        let at = block * block_size;
        let found = read(&fs, &file, at..at + block_size);
        assert_eq!(found.expect("it is there"), data);
    }
    drop(file);
    fs.shut_down().expect("nothing fails");
}

#[test]
fn indirect_blocks_that_a_punch_takes_can_be_had_again() {
    the_map_is_cut_short((Kind::Ext3, 1024), &[300], &[400], |fs, _, file| {
        punch(fs, file, 300 << 10..301 << 10).expect("it is punched");
    });
}

#[test]
fn indirect_blocks_that_a_truncation_takes_can_be_had_again() {
    the_map_is_cut_short((Kind::Ext3, 1024), &[450], &[400], |fs, id, _| {
        set_size(fs, id, 401 << 10).expect("it is cut");
    });
}

/// The tree grows below what is mapped first, and is a root again.
#[test]
fn nodes_that_a_truncation_takes_can_be_had_again() {
    let mapped = [200, 202, 204, 206, 208];
    let delayed = [10, 12, 14, 16, 18];
    the_map_is_cut_short((Kind::Ext4, BLOCK), &mapped, &delayed, |fs, id, _| {
        set_size(fs, id, 20 * BLOCK).expect("it is cut");
    });
}

/// What has its place and its data is in the file, and the caller is told how much that is.
#[test]
fn a_direct_write_that_fails_half_way_inside_a_file_is_short() {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    write(&fs, &file, BLOCK, &[1; BLOCK as usize]);
    set_size(&fs, id, 4 * BLOCK).expect("it grows");
    fs.sync_file(&file, false).expect("nothing fails");
    // One block more can be counted, and no other.
    set_sectors(&fs, "file", SECTORS_MAX - 8);
    let before = unreserved(&fs);
    let data = vec![9; 3 * BLOCK as usize];
    let written = fs.write(&file, 0, &data, WriteMode::DIRECT);
    assert_eq!(written.expect("some of it"), 2 * BLOCK as usize);
    assert_eq!(unreserved(&fs), before - 1);
    drop_cache(&fs);
    let found = read(&fs, &file, 0..4 * BLOCK).expect("it is there");
    let (done, left) = found.split_at(2 * BLOCK as usize);
    assert!(done.iter().all(|byte| *byte == 9) && left.iter().all(|byte| *byte == 0));
    fs.write(&file, 2 * BLOCK, &data[..BLOCK as usize], WriteMode::DIRECT)
        .expect_err("nothing of it");
}
