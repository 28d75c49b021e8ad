//! Long ranges are taken in steps, between which others fill pages; and what one transaction does not
//! take of a step the next one does.

use pagefence_block_io::device::Operation;
use pagefence_ext4_format::FileBlock;
use pagefence_ext4_format::extent::{ExtentNode, Place};
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, thread};
use pagefence_page_cache::probe::Stop;
use pagefence_vfs::{Error, FallocateMode, FileSystem as _, InodeId};

use super::STEP_BYTES;
use crate::failures::{
    BLOCK, Comer, create, drop_cache, extents, find, formatted, formatted_as, inode, open, place,
    punch, read, unreserved, wait_for, write,
};
use crate::filesystem::FileSystem;
use crate::map_blocks::Target;
use crate::mkfs::Kind;

const STEPS: u64 = 8;

/// A reader of what lies behind a range that is punched, or made zero, waits for the step that
/// runs when it comes, and for no other.
#[test]
fn a_fill_elsewhere_waits_for_one_step() {
    for zeroes in [false, true] {
        let device = formatted();
        let fs = open(&device);
        let id = create(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        let step = vec![7; STEP_BYTES as usize];
        for number in 0..=STEPS {
            write(&fs, &file, number * STEP_BYTES, &step);
        }
        fs.sync_file(&file, false).expect("it is written");
        drop_cache(&fs);
        let end = STEPS * STEP_BYTES;
        // Without the inode lock, which whoever clears holds: all extents fit into the inode.
        let left = || {
            let disk = inode(&fs, id).disk();
            let (mut at, mut left) = (FileBlock(0), 0);
            while u64::from(at.0) < (STEPS + 1) * STEP_BYTES / BLOCK {
                let run = fs.instance.map_blocks(&disk, at).expect("sound");
                if matches!(run.target, Target::Written(_)) {
                    left += u64::from(run.len) * BLOCK;
                }
                at = FileBlock(at.0 + run.len);
            }
            left
        };
        let behind = place(&fs, id, end);
        let comer = Comer::default();
        device.hold(Operation::Write, place(&fs, id, 0));
        thread::scope(|scope| {
            let cleared = scope.spawn(|| {
                if zeroes {
                    fs.allocate(&file, 100, end - 100, FallocateMode::ZERO_RANGE)
                } else {
                    punch(&fs, &file, 100..end)
                }
            });
            // In the first step's fence, its edge is being written.
            device.wait_held();
            let reader = scope.spawn(|| {
                comer.comes();
                read(&fs, &file, end..end + BLOCK)
            });
            comer.wait_asleep();
            assert_eq!(left(), (STEPS + 1) * STEP_BYTES);
            device.hold(Operation::Read, behind.clone());
            device.release(Operation::Write);
            wait_for("the end of a step", || left() < (STEPS + 1) * STEP_BYTES);
            // Then the reader has the fence's lock, and the next step waits for it.
            device.wait_held();
            let cut = left();
            device.heal();
            assert!(cut > STEP_BYTES + BLOCK, "all is done: {cut} bytes left");
            let bytes = reader.join().expect("no panic").expect("it is read");
            assert_eq!(bytes, [7; BLOCK as usize]);
            cleared.join().expect("no panic").expect("it is cleared");
        });
        let bytes = read(&fs, &file, 0..end + 1).expect("it is read");
        assert!(bytes[..100] == [7; 100] && bytes[end as usize] == 7);
        assert!(bytes[100..end as usize].iter().all(|byte| *byte == 0));
        assert_eq!(left(), STEP_BYTES + BLOCK);
        drop(file);
        fs.shut_down().expect("all is written");
    }
}

/// What was never there is passed over, however long it is.
#[test]
fn holes_cost_no_steps() {
    let device = formatted();
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    let end = 1 << 43;
    write(&fs, &file, end, &[7; BLOCK as usize]);
    write(&fs, &file, end / 2, &[7; BLOCK as usize]);
    let fences = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&fences);
    fs.cache.stop_at(Stop::BeforeLock, move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    punch(&fs, &file, 0..end).expect("it is punched");
    fs.cache.stop_nowhere();
    // There are eight million steps.
    assert_eq!(fences.load(Ordering::Relaxed), 1, "where something is");
    fs.sync_file(&file, false).expect("it is written");
    let left = extents(&fs, id);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].logical, end);
    drop(file);
    fs.shut_down().expect("all is written");
}

/// Steps end at multiples of their greatest length, wherever the range begins, and the last one with
/// the range: at each transaction all before its step is gone, and nothing behind.
#[test]
fn a_step_takes_its_range_and_no_more() {
    for zeroes in [false, true] {
        let device = formatted();
        let fs = open(&device);
        let id = create(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        for step in 0..5 {
            let data = vec![7; STEP_BYTES as usize];
            write(&fs, &file, step * STEP_BYTES, &data);
        }
        fs.sync_file(&file, false).expect("it is written");
        let end = 3 * STEP_BYTES + BLOCK + 100;
        let (seen, core) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::clone(&inode(&fs, id).core),
        );
        let (own, instance) = (Arc::clone(&seen), Arc::clone(&fs.instance));
        fs.instance.probe.before_transaction(move || {
            let disk = core.disk();
            let is_written = |byte: u64| {
                let at = FileBlock((byte / BLOCK) as u32);
                let run = instance.map_blocks(&disk, at).expect("sound");
                matches!(run.target, Target::Written(_))
            };
            let all = (0..5 * STEP_BYTES).step_by(BLOCK as usize);
            let cleared: Vec<_> = all.filter(|byte| !is_written(*byte)).collect();
            own.lock().push(cleared);
        });
        let mode = if zeroes {
            FallocateMode::ZERO_RANGE
        } else {
            FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE
        };
        fs.allocate(&file, 100, end - 100, mode)
            .expect("it is cleared");
        fs.instance.probe.before_transaction(|| {});
        // An edge is written before its step's own transaction, by one that takes nothing away.
        seen.lock().dedup();
        let clear_until = |end: u64| (BLOCK..end).step_by(BLOCK as usize).collect::<Vec<_>>();
        let expected = [0, STEP_BYTES, 2 * STEP_BYTES, 3 * STEP_BYTES].map(clear_until);
        assert!(
            *seen.lock() == expected,
            "zeroes: {zeroes}; so many blocks at each transaction: {:?}",
            seen.lock().iter().map(Vec::len).collect::<Vec<_>>()
        );
        let bytes = read(&fs, &file, 0..5 * STEP_BYTES).expect("it is read");
        let is_zero = |at: u64| (100..end).contains(&at);
        for (at, byte) in (0..).zip(bytes) {
            assert_eq!(byte, if is_zero(at) { 0 } else { 7 }, "at {at}");
        }
        drop(file);
        fs.shut_down().expect("all is written");
    }
}

/// Blocks of 1 KiB in a step.
const SMALL_BLOCKS: u64 = STEP_BYTES / 1024;
/// One in so many has data, so that each is an extent.
const EVERY: usize = 4;

/// Which blocks of a file of one step have a place.
fn with_a_place(fs: &FileSystem, id: InodeId) -> Vec<bool> {
    let disk = inode(fs, id).disk();
    (0..SMALL_BLOCKS as u32)
        .map(|at| {
            let run = fs.instance.map_blocks(&disk, FileBlock(at));
            run.expect("sound").target != Target::Hole
        })
        .collect()
}

/// A node in the middle of a step's map can't be read: what the first transaction came to is gone,
/// the rest is the next one's, which fails before it changes anything, and says so.
#[test]
fn what_a_transaction_leaves_of_a_step_is_the_next_ones() {
    // In an extent tree from the first block on, in a block map from the last.
    for kind in [Kind::Ext4, Kind::Ext3] {
        let device = formatted_as(kind, 1024, "");
        let (before, node);
        {
            let fs = open(&device);
            before = unreserved(&fs);
            let id = create(&fs, "file");
            let file = fs.open(id, true).expect("it opens");
            for block in (0..SMALL_BLOCKS).step_by(EVERY) {
                write(&fs, &file, block * 1024, &[7; 1024]);
            }
            fs.sync_file(&file, false).expect("it is written");
            let disk = inode(&fs, id).disk();
            node = if kind == Kind::Ext4 {
                let root = ExtentNode::parse(disk.i_block(), &Place::Root, &fs.instance.limits);
                let root = root.expect("a sound root");
                assert!(root.depth() == 1 && root.len() > 2, "{root:?}");
                root.child(1).expect("a leaf").block.0
            } else {
                // The second one that the double indirect block points to, of three.
                let area = disk.i_block();
                let at = u32::from_le_bytes(area[13 * 4..14 * 4].try_into().expect("four"));
                let pointers = fs
                    .instance
                    .read_block(pagefence_ext4_format::BlockNo(at.into()));
                let pointers = pointers.expect("it is read");
                u64::from(u32::from_le_bytes(pointers[4..8].try_into().expect("four")))
            };
            drop(file);
            fs.shut_down().expect("all is written");
        }
        let fs = open(&device);
        let id = find(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        let had = with_a_place(&fs, id);
        fs.instance.buffers.invalidate(node);
        device.fail(Operation::Read, node * 1024..(node + 1) * 1024);
        let failed = punch(&fs, &file, 0..STEP_BYTES);
        assert!(matches!(failed, Err(Error::Io(_))), "{failed:?}");
        device.heal();
        fs.instance.live().expect("no journal is aborted");
        let has = with_a_place(&fs, id);
        let gone: Vec<_> = (0..had.len()).filter(|&at| had[at] && !has[at]).collect();
        let (first, last) = (gone[0], gone[gone.len() - 1]);
        let is_whole = (first..=last).all(|at| !has[at]);
        let is_part = gone.len() < SMALL_BLOCKS as usize / EVERY;
        assert!(is_whole && is_part, "{kind:?}: {first} to {last}");
        match kind {
            Kind::Ext4 => assert_eq!(first, 0),
            _ => assert_eq!(last, SMALL_BLOCKS as usize - EVERY),
        }
        let bytes = read(&fs, &file, 0..STEP_BYTES).expect("it is read");
        for (at, block) in bytes.chunks(1024).enumerate() {
            let byte = if has[at] { 7 } else { 0 };
            assert!(block.iter().all(|found| *found == byte), "{kind:?}, {at}");
        }
        punch(&fs, &file, 0..STEP_BYTES).expect("it is punched");
        assert!(with_a_place(&fs, id).iter().all(|there| !there));
        fs.sync().expect("all is written");
        assert_eq!(unreserved(&fs), before, "{kind:?}: no space is lost");
        drop(file);
        fs.shut_down().expect("all is written");
    }
}
