//! What maps the blocks of files: trees that split all over, trees on full disks, and trees that are
//! damaged.

use std::path::Path;
use std::process::Command;

use pagefence_block_io::device::Operation;
use pagefence_block_io::fault_device::{Fault, FaultDevice, Times};
use pagefence_block_io::memory_device::MemoryDevice;
use pagefence_ext4::{File, FileSystem, MountOptions};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Error, ExtentState, FallocateMode, FileSystem as _, InodeId, WriteMode};

use crate::support::{Image, KINDS, create, find, read_all, set_size, write_all};

const PUNCH: FallocateMode = FallocateMode::PUNCH_HOLE.union(FallocateMode::KEEP_SIZE);
const ZERO: FallocateMode = FallocateMode::ZERO_RANGE.union(FallocateMode::KEEP_SIZE);

/// Has debugfs, which writes checksums as they have to be, change an image.
pub(crate) fn change(path: &Path, command: &str) {
    let output = Command::new("debugfs")
        .args(["-w", "-R", command])
        .arg(path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // It says its version first, whatever happens.
    assert_eq!(said.lines().count(), 1, "{command}: {said}");
}

/// Changes a field of an inode.
pub(crate) fn set_field(path: &Path, id: InodeId, field: &str, value: u64) {
    let command = format!("set_inode_field <{}> {field} {value}", id.0);
    change(path, &command);
}

/// Where the pieces of a file lie, in bytes.
fn places(fs: &FileSystem, id: InodeId) -> Vec<u64> {
    let extents = fs.extents(id, 0, u64::MAX, 10_000).unwrap();
    extents.iter().map(|extent| extent.physical).collect()
}

/// Writes until nothing more fits, in ever smaller pieces.
pub(crate) fn fill(fs: &FileSystem, name: &str, mode: WriteMode) -> File {
    let file = fs.open(create(fs, name), true).unwrap();
    let mut offset = 0;
    for piece in [64 << 10, 4096, 1024] {
        loop {
            match fs.write(&file, offset, &vec![9; piece], mode) {
                Ok(done) => offset += done as u64,
                Err(Error::NoSpace) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    fs.sync().unwrap();
    file
}

/// The header of a node of an extent tree.
fn node(entries: u16, max: u16, depth: u16) -> Vec<u8> {
    let fields = [0xf30a, entries, max, depth, 0, 0];
    fields.into_iter().flat_map(u16::to_le_bytes).collect()
}

/// An entry of an index node.
fn index(first: u32, block: u64) -> Vec<u8> {
    let words = [first, block as u32, (block >> 32) as u32];
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// A written extent of the greatest length becomes two when it is unwritten: each leaf of a tree
/// of them has to be split, more than one transaction has blocks for.
#[test]
fn zeroing_a_range_of_full_extents_splits_every_leaf() {
    const PER_LEAF: u32 = 84;
    const LEAVES: u32 = 12;
    const LONGEST: u32 = 32768;
    let options = [
        "-t",
        "ext4",
        "-b",
        "1024",
        "-O",
        "^metadata_csum,^64bit,^resize_inode,sparse_super2",
        "-E",
        "num_backup_sb=0",
        "-G",
        "256",
        "-N",
        "256",
    ];
    let image = Image::new(&options, "160M");
    let fs = image.open();
    let nodes = create(&fs, "nodes");
    let file = fs.open(nodes, true).unwrap();
    let bytes = u64::from(LEAVES + 1) * 1024;
    fs.allocate(&file, 0, bytes, FallocateMode::empty())
        .unwrap();
    let first_node = places(&fs, nodes)[0] / 1024;
    let id = create(&fs, "file");
    drop(file);
    fs.shut_down().unwrap();
    drop(fs);

    // All of them lie in the same blocks, which nobody frees here.
    let data = 20_000_u32;
    let mut index_node = node(LEAVES as u16, PER_LEAF as u16, 1);
    let mut blocks = Vec::new();
    for leaf in 0..LEAVES {
        let first = leaf * PER_LEAF * LONGEST;
        index_node.extend(index(first, first_node + 1 + u64::from(leaf)));
        let mut bytes = node(PER_LEAF as u16, PER_LEAF as u16, 0);
        for extent in 0..PER_LEAF {
            bytes.extend((first + extent * LONGEST).to_le_bytes());
            bytes.extend((LONGEST as u16).to_le_bytes());
            bytes.extend([0, 0]);
            bytes.extend(data.to_le_bytes());
        }
        bytes.resize(1024, 0);
        blocks.extend(bytes);
    }
    index_node.resize(1024, 0);
    let mut contents = std::fs::read(&image.path).unwrap();
    let at = first_node as usize * 1024;
    contents[at..at + 1024].copy_from_slice(&index_node);
    contents[at + 1024..at + 1024 + blocks.len()].copy_from_slice(&blocks);
    std::fs::write(&image.path, contents).unwrap();
    let root = [node(1, 4, 2), index(0, first_node)].concat();
    for (word, value) in root.chunks(4).enumerate() {
        let value = u32::from_le_bytes(value.try_into().unwrap());
        set_field(&image.path, id, &format!("block[{word}]"), value.into());
    }
    let length = u64::from(LEAVES * PER_LEAF) * u64::from(LONGEST) * 1024;
    set_field(&image.path, id, "size", length);

    let fs = image.open();
    let file = fs.open(id, true).unwrap();
    fs.allocate(&file, 0, length, ZERO).unwrap();
    let extents = fs.extents(id, 0, u64::MAX, 10_000).unwrap();
    assert_eq!(extents.len(), 2 * (LEAVES * PER_LEAF) as usize);
    assert!(
        extents
            .iter()
            .all(|extent| extent.state == ExtentState::Unwritten)
    );
    create(&fs, "another");
    drop(file);
    fs.shut_down().unwrap();
}

/// What is kept back is there for the maps of files, and some of it for nothing else: on a disk
/// that is full, be it by root, what was preallocated can be written to, and holes can be punched,
/// though either takes a block for the map.
#[test]
fn full_disks_have_blocks_for_maps() {
    let writers = [WriteMode::empty(), WriteMode::USE_RESERVE];
    for (kept, mode) in ["5", "0"]
        .into_iter()
        .flat_map(|kept| writers.map(|mode| (kept, mode)))
    {
        for kind in KINDS.iter().filter(|kind| kind.has_extents) {
            let options = [kind.options, &["-m", kept]].concat();
            let image = Image::new(&options, "8M");
            let fs = image.open();
            let block = fs.stat_fs().unwrap().block_size as usize;
            let what = format!("{}, {kept} %, {mode:?}", kind.name);
            let space = create(&fs, "preallocated");
            let file = fs.open(space, true).unwrap();
            let spread = 64 << 10;
            for range in 0..4 {
                let length = 8 * block as u64;
                fs.allocate(&file, range * spread, length, FallocateMode::empty())
                    .unwrap();
            }
            let [punched, zeroed] = ["punched", "zeroed"].map(|name| {
                let file = fs.open(create(&fs, name), true).unwrap();
                for range in 0..4 {
                    write_all(&fs, &file, range * spread, &vec![7; 8 * block]);
                }
                file
            });
            fs.sync().unwrap();
            let filler = fill(&fs, "filler", mode);
            let inside = 4 * block as u64;
            for range in 0..4 {
                let at = range * spread + inside;
                let (done, error) = write_all(&fs, &file, at, &vec![8; block]);
                assert_eq!(done, block, "{what}: {error:?}");
                for (file, mode) in [(&punched, PUNCH), (&zeroed, ZERO)] {
                    fs.allocate(file, at, block as u64, mode)
                        .unwrap_or_else(|error| panic!("{what}: {mode:?}: {error:?}"));
                }
            }
            fs.sync().unwrap();
            drop((file, punched, zeroed, filler));
            fs.shut_down().unwrap();
            drop(fs);
            image.assert_clean(&what);
            let fs = image.open();
            for (name, before, after) in
                [("preallocated", 0, 8), ("punched", 7, 0), ("zeroed", 7, 0)]
            {
                let bytes = read_all(&fs, find(&fs, name));
                for range in 0..4 {
                    let range = range * spread as usize;
                    let mut expected = vec![before; 8 * block];
                    expected[4 * block..5 * block].fill(after);
                    assert!(
                        bytes[range..range + 8 * block] == expected,
                        "{what}: {name}"
                    );
                }
            }
        }
    }
}

/// A preallocation that gets nothing leaves the size as it is.
#[test]
fn preallocation_of_nothing_keeps_the_size() {
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let id = create(&fs, "file");
        let filler = fill(&fs, "filler", WriteMode::empty());
        let file = fs.open(id, true).unwrap();
        let done = fs.allocate(&file, 4 << 20, 1 << 20, FallocateMode::empty());
        assert!(
            matches!(done, Err(Error::NoSpace)),
            "{}: {done:?}",
            kind.name
        );
        assert_eq!(fs.attr(id).unwrap().size, 0, "{}", kind.name);
        // Root finds what is kept for root.
        fs.allocate(&file, 4 << 20, 64 << 10, FallocateMode::USE_RESERVE)
            .unwrap_or_else(|error| panic!("{}: {error:?}", kind.name));
        assert_eq!(fs.attr(id).unwrap().size, (4 << 20) + (64 << 10));
        drop((file, filler));
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

/// A block that two files own belongs to the one that wrote to it first: the other one can neither
/// write there nor free it, and gets an error. What both own else is not concerned.
#[test]
fn a_block_of_two_files_is_written_by_one_of_them() {
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let block = fs.stat_fs().unwrap().block_size as usize;
        let [one, other] = ["one", "other"].map(|name| {
            let id = create(&fs, name);
            write_all(&fs, &fs.open(id, true).unwrap(), 0, &vec![7; 2 * block]);
            id
        });
        fs.sync().unwrap();
        let shared = places(&fs, one)[0] / block as u64;
        fs.shut_down().unwrap();
        drop(fs);
        set_field(&image.path, other, "block[5]", shared);

        let fs = image.open();
        let files = [one, other].map(|id| fs.open(id, true).unwrap());
        let is_refused = |outcome: Result<(), Error>, what: &str| {
            let is_corrupt = matches!(outcome, Err(Error::Corrupt { .. }));
            assert!(is_corrupt, "{}, {what}: {outcome:?}", kind.name);
        };
        // The first to write has it.
        write_all(&fs, &files[0], 0, &vec![1; block]);
        fs.sync_file(&files[0], false).unwrap();
        write_all(&fs, &files[1], 0, &vec![2; block]);
        is_refused(fs.sync_file(&files[1], false), "a write");
        is_refused(fs.allocate(&files[1], 0, block as u64, PUNCH), "a hole");
        // It is free again, and goes to somebody else.
        set_size(&fs, one, 0).unwrap();
        fs.sync_file(&files[0], false).unwrap();
        let space = fs.stat_fs().unwrap().blocks_available as usize;
        let third = fs.open(create(&fs, "third"), true).unwrap();
        let _ = fs.allocate(&third, 0, (space * block) as u64, FallocateMode::empty());
        write_all(&fs, &files[1], 0, &vec![3; block]);
        is_refused(
            fs.sync_file(&files[1], false),
            "a write to what a third has",
        );
        is_refused(set_size(&fs, other, 0), "a truncation");
        drop((files, third));
        let _ = fs.shut_down();
        drop(fs);
        // What the first wrote is still there, though it is nobody's now.
        let bytes = std::fs::read(&image.path).unwrap();
        let at = shared as usize * block;
        assert_eq!(bytes[at..at + block], vec![1; block], "{}", kind.name);
    }
}

/// Damage that is met before anything is changed costs the operation, not the mount: here a block
/// that two files own.
#[test]
fn a_block_owned_twice_costs_an_error_only() {
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        for pieces in [1, 3] {
            let image = Image::new(kind.options, "8M");
            let fs = image.open();
            let block = fs.stat_fs().unwrap().block_size as usize;
            let ids = ["cut", "other", "deleted"].map(|name| {
                let id = create(&fs, name);
                let file = fs.open(id, true).unwrap();
                for piece in 0..pieces {
                    let at = piece * (64 << 10);
                    write_all(&fs, &file, at, &vec![7; block]);
                }
                id
            });
            let [cut, other, deleted] = ids;
            fs.sync().unwrap();
            let shared = places(&fs, other)[0] / block as u64;
            fs.shut_down().unwrap();
            drop(fs);
            for id in [cut, deleted] {
                set_field(&image.path, id, "block[5]", shared);
            }
            let fs = image.open();
            fs.unlink(fs.root(), b"other").unwrap();
            fs.forget(other);
            fs.sync().unwrap();
            let outcome = fs
                .open(cut, true)
                .and_then(|file| fs.allocate(&file, 0, 1 << 20, PUNCH));
            assert!(
                matches!(outcome, Err(Error::Corrupt { .. })),
                "{}: {outcome:?}",
                kind.name
            );
            let outcome = set_size(&fs, cut, 0);
            assert!(
                matches!(outcome, Err(Error::Corrupt { .. })),
                "{}: {outcome:?}",
                kind.name
            );
            fs.unlink(fs.root(), b"deleted").unwrap();
            fs.forget(deleted);
            create(&fs, "new");
            fs.sync().unwrap();
            fs.shut_down().unwrap();
        }
    }
}

/// A root or a leaf that says it has less room than there is can be read; it is not changed.
#[test]
fn nodes_with_less_room_than_there_is_are_read_only() {
    let options = ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"];
    for (is_leaf, ranges) in [(false, 2), (true, 6)] {
        let image = Image::new(&options, "8M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let spread = 16 << 10;
        for range in 0..ranges {
            write_all(&fs, &file, range * spread, &[7; 3072]);
        }
        fs.sync().unwrap();
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        let before = {
            let fs = image.open();
            read_all(&fs, id)
        };
        if is_leaf {
            let mut bytes = std::fs::read(&image.path).unwrap();
            let header = node(6, 84, 0);
            let leaves: Vec<_> = (0..bytes.len())
                .step_by(1024)
                .filter(|at| bytes[*at..*at + 12] == header)
                .collect();
            for at in leaves {
                bytes[at + 4] = 7;
            }
            std::fs::write(&image.path, bytes).unwrap();
        } else {
            set_field(&image.path, id, "block[1]", 3);
        }
        let fs = image.open();
        assert!(read_all(&fs, id) == before, "leaf: {is_leaf}");
        let file = fs.open(id, true).unwrap();
        let (_, error) = write_all(&fs, &file, 8 << 10, &[8; 1024]);
        assert!(matches!(error, Some(Error::Corrupt { .. })), "{error:?}");
        for (offset, mode) in [
            (8 << 10, FallocateMode::empty()),
            (1024, PUNCH),
            (1024, ZERO),
        ] {
            let done = fs.allocate(&file, offset, 1024, mode);
            assert!(
                matches!(done, Err(Error::Corrupt { .. })),
                "leaf: {is_leaf}, {mode:?}: {done:?}"
            );
        }
        assert!(read_all(&fs, id) == before, "leaf: {is_leaf}");
        create(&fs, "another");
        fs.sync().unwrap();
        // It can be got rid of.
        drop(file);
        fs.unlink(fs.root(), b"file").unwrap();
        fs.forget(id);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean("less room");
    }
}

/// Blocks that stayed delayed because they could not be written are delayed no more when they get
/// a place by other means.
#[test]
fn preallocation_ends_the_delay_of_blocks_that_failed() {
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        let image = Image::new(kind.options, "10M");
        let bytes = std::fs::read(&image.path).unwrap();
        let device = Arc::new(FaultDevice::new(&MemoryDevice::from_bytes(&bytes), 1));
        let options = MountOptions {
            write: true,
            cache: Some(16 << 20),
            ..MountOptions::default()
        };
        let fs = FileSystem::open(device.clone(), &options).unwrap();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        fs.sync().unwrap();
        let free = fs.stat_fs().unwrap().blocks_free;
        let length = 64 << 10;
        write_all(&fs, &file, 0, &vec![7; length as usize]);
        device.fail(Fault {
            operation: Operation::Write,
            call: device.calls(Operation::Write),
            times: Times::Once,
            errno: 5,
        });
        assert!(fs.sync().is_err(), "{}", kind.name);
        fs.allocate(&file, 0, length, FallocateMode::empty())
            .unwrap();
        let told = fs.sync_file(&file, false);
        assert!(told.is_err(), "{}: it is told of it, too", kind.name);
        fs.sync().unwrap();
        let attr = fs.attr(id).unwrap();
        assert_eq!(attr.blocks_512, length / 512, "{}", kind.name);
        let stat = fs.stat_fs().unwrap();
        let taken = free - stat.blocks_free;
        let block_size = u64::from(stat.block_size);
        assert_eq!(taken, length / block_size, "{}", kind.name);
        write_all(&fs, &file, 0, &vec![8; length as usize]);
        fs.sync_file(&file, false).unwrap();
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        let image = Image::of(&device.live().to_vec());
        image.assert_clean(kind.name);
        let fs = image.open();
        let bytes = read_all(&fs, find(&fs, "file"));
        assert!(bytes == vec![8; length as usize], "{}", kind.name);
    }
}

/// Words of a block, as they are on disk.
fn words(block: &[u8]) -> Vec<u32> {
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    block.chunks_exact(4).map(word).collect()
}

/// Blocks that the inode has no sectors left to count: nothing of the map has changed by then, nor
/// what was mapped before.
#[test]
fn blocks_that_can_not_be_counted_cost_an_error_only() {
    for kind in &KINDS {
        for room in [0, 1] {
            let options = [kind.options, &["-O", "^huge_file"]].concat();
            let image = Image::new(&options, "8M");
            let fs = image.open();
            let block = u64::from(fs.stat_fs().unwrap().block_size);
            let id = create(&fs, "file");
            let file = fs.open(id, true).unwrap();
            let data = vec![7; block as usize];
            for piece in 0..8 {
                write_all(&fs, &file, (12 + 2 * piece) * block, &data);
            }
            drop(file);
            fs.shut_down().unwrap();
            drop(fs);
            let sectors = u64::from(u32::MAX) / (block / 512) * (block / 512);
            set_field(&image.path, id, "blocks", sectors - room * block / 512);
            let fs = image.open();
            let file = fs.open(id, true).unwrap();
            let what = format!("{}, room for {room}", kind.name);
            for piece in 0..2 {
                write_all(&fs, &file, (40 + 2 * piece) * block, &data);
            }
            let told = fs.sync_file(&file, false);
            assert!(
                matches!(told, Err(Error::Corrupt { .. })),
                "{what}: {told:?}"
            );
            let pieces = places(&fs, id).len() as u64;
            assert_eq!(pieces, 8 + room, "{what}");
            if kind.has_extents {
                let more = fs.allocate(&file, 100 * block, 2 * block, FallocateMode::KEEP_SIZE);
                assert!(
                    matches!(more, Err(Error::Corrupt { .. })),
                    "{what}: {more:?}"
                );
            }
            create(&fs, "another");
            drop(file);
            let _told = fs.sync();
            fs.shut_down().unwrap();
        }
    }
}

/// What is wrong in the middle of a block map costs the operation, not the mount: what lies behind
/// it is gone, what lies before it is not.
#[test]
fn damage_in_a_block_map_costs_an_error_only() {
    for kind in KINDS.iter().filter(|kind| !kind.has_extents) {
        for (outside, cuts) in [(false, false), (false, true), (true, false), (true, true)] {
            let image = Image::new(kind.options, "8M");
            let fs = image.open();
            let block = u64::from(fs.stat_fs().unwrap().block_size);
            let id = create(&fs, "file");
            let file = fs.open(id, true).unwrap();
            for piece in 0..8 {
                write_all(
                    &fs,
                    &file,
                    (12 + 2 * piece) * block,
                    &vec![7; block as usize],
                );
            }
            let gone = create(&fs, "gone");
            write_all(&fs, &fs.open(gone, true).unwrap(), 0, &[7; 10]);
            fs.sync().unwrap();
            let free = places(&fs, gone)[0] / block;
            fs.unlink(fs.root(), b"gone").unwrap();
            fs.forget(gone);
            let places = places(&fs, id);
            drop(file);
            fs.shut_down().unwrap();
            drop(fs);
            let mut bytes = std::fs::read(&image.path).unwrap();
            let pointed = |at: &usize| {
                let pointers = words(&bytes[*at..*at + block as usize]);
                (0..8).all(|piece| u64::from(pointers[2 * piece]) * block == places[piece])
            };
            // The indirect block, and its copies in the log.
            let found: Vec<_> = (0..bytes.len())
                .step_by(block as usize)
                .filter(pointed)
                .collect();
            assert!(!found.is_empty());
            let bad = if outside { u32::MAX } else { free as u32 };
            for at in found {
                bytes[at + 6 * 4..at + 7 * 4].copy_from_slice(&bad.to_le_bytes());
            }
            std::fs::write(&image.path, &bytes).unwrap();
            let fs = image.open();
            let file = fs.open(id, true).unwrap();
            let outcome = if cuts {
                set_size(&fs, id, 0)
            } else {
                fs.allocate(&file, 0, 1 << 20, PUNCH)
            };
            let what = format!("{}, outside: {outside}, cuts: {cuts}", kind.name);
            assert!(
                matches!(outcome, Err(Error::Corrupt { .. })),
                "{what}: {outcome:?}"
            );
            create(&fs, "another");
            drop(file);
            fs.sync().unwrap();
            let left = fs.attr(id).unwrap().blocks_512 * 512 / block;
            assert_eq!(
                left,
                3 + 1 + 1,
                "{what}: those before, the bad one, the map"
            );
            fs.shut_down().unwrap();
        }
    }
}
