//! Power cuts while nodes of maps and blocks of names split, without a journal: e2fsck mends each
//! state, and everything that was synced before is there, under its own name.
//!
//! Blocks are written here as a whole or not at all: it is their order that is tried. What a torn
//! block costs is no matter of order.

use std::ops::Range;
use std::process::Command;

use pagefence_block_io::fault_device::{FaultDevice, Trace};
use pagefence_block_io::memory_device::MemoryDevice;
use pagefence_ext4::{FileSystem, MountOptions};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{FallocateMode, FileSystem as _, InodeId, New, NewKind};

use crate::support::{Image, create, find, is_thorough, read_all, root, set_size, write_all};

const BLOCK: u64 = 1024;
/// Outcomes that are tried at each moment, at most.
const STATES: usize = 16;
const FEW_STATES: usize = 5;

const EXT4: &[&str] = &["-t", "ext4", "-b", "1024", "-O", "^has_journal"];
const EXT4_PLAIN: &[&str] = &[
    "-t",
    "ext4",
    "-b",
    "1024",
    "-O",
    "^has_journal,^metadata_csum,^64bit",
];
const EXT2: &[&str] = &["-t", "ext2", "-b", "1024"];

/// A file system whose device is cut off from power at every flush of some operations.
struct Ground {
    fs: FileSystem,
    device: Arc<FaultDevice>,
}

impl Ground {
    fn new(options: &[&str], size: &str) -> Self {
        let image = Image::new(options, size);
        let bytes = std::fs::read(&image.path).unwrap();
        let device = Arc::new(FaultDevice::new(&MemoryDevice::from_bytes(&bytes), 1));
        for block in 0..bytes.len() as u64 / BLOCK {
            device.set_atomic(block * BLOCK..(block + 1) * BLOCK);
        }
        let options = MountOptions {
            write: true,
            cache: Some(16 << 20),
            ..MountOptions::default()
        };
        let fs = FileSystem::open(device.clone(), &options).unwrap();
        Self { fs, device }
    }

    /// Cuts the power at every flush of `work`, and calls `check` with what e2fsck made of that.
    /// How many states were tried.
    fn cut(
        &self,
        what: &str,
        work: impl FnOnce(&FileSystem),
        check: impl Fn(&FileSystem) -> Result<(), String>,
    ) -> usize {
        self.fs.sync().unwrap();
        self.device.start_trace();
        work(&self.fs);
        self.fs.sync().unwrap();
        explore(&self.device.take_trace().unwrap(), what, check)
    }
}

/// Has e2fsck mend what a power cut at any flush of the trace leaves, and `check` look at it. How
/// many states there were.
fn explore(trace: &Trace, what: &str, check: impl Fn(&FileSystem) -> Result<(), String>) -> usize {
    let mut tried = 0;
    let mut failures = Vec::new();
    trace.walk(|point| {
        if !point.is_before_flush() {
            return;
        }
        let states = point.crash_states();
        let most = if is_thorough() { STATES } else { FEW_STATES };
        let outcomes = states.explore(point.position() as u64, most);
        let step = outcomes.len().div_ceil(most).max(1);
        for outcome in outcomes.into_iter().step_by(step) {
            tried += 1;
            let left = Image::of(&states.image(&outcome).to_vec());
            let said = mend(&left, what);
            left.assert_clean(what);
            let is_renamed = said.contains("lost+found") || said.contains("non-unique");
            assert!(!is_renamed, "{what}: {said}");
            if let Err(error) = check(&left.open()) {
                failures.push(format!("at {}: {error}\n{said}", point.position()));
            }
        }
    });
    assert!(
        failures.is_empty(),
        "{what}: {} of {tried} states: {}",
        failures.len(),
        failures[0]
    );
    tried
}

/// Has e2fsck mend an image; what it said.
fn mend(image: &Image, what: &str) -> String {
    let output = Command::new("e2fsck")
        .args(["-f", "-y"])
        .arg(&image.path)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        matches!(output.status.code(), Some(0 | 1)),
        "{what}: {said}"
    );
    said
}

/// Writes a byte of its own to each of these blocks of a file, and makes them durable.
fn write_blocks(fs: &FileSystem, id: InodeId, blocks: impl Iterator<Item = u64>) {
    let file = fs.open(id, true).unwrap();
    for block in blocks {
        let (_, error) = write_all(fs, &file, block * BLOCK, &bytes_of(block));
        assert!(error.is_none(), "{error:?}");
    }
    fs.sync_file(&file, false).unwrap();
}

fn bytes_of(block: u64) -> Vec<u8> {
    vec![1 + (block % 251) as u8; BLOCK as usize]
}

/// Whether the file still has what was written to these blocks.
fn has_blocks(fs: &FileSystem, blocks: impl Iterator<Item = u64>) -> Result<(), String> {
    let found = fs.lookup(fs.root(), b"file");
    let id = found.map_err(|error| format!("{error:?}"))?.attr.id;
    let bytes = read_all(fs, id);
    for block in blocks {
        let at = (block * BLOCK) as usize;
        if bytes.get(at..at + BLOCK as usize) != Some(&bytes_of(block)) {
            return Err(format!("block {block} is lost"));
        }
    }
    Ok(())
}

/// Entries of a node of the tree of extents.
const NODE: u64 = 84;

/// Every fourth block, each of which is an extent: the allocator leaves room for those between.
fn apart(numbers: Range<u64>) -> impl Iterator<Item = u64> {
    numbers.map(|number| number * 4)
}

#[test]
fn a_leaf_of_extents_that_splits_loses_nothing_synced() {
    for options in [EXT4, EXT4_PLAIN] {
        let ground = Ground::new(options, "4M");
        let file = create(&ground.fs, "file");
        let old = || apart(0..NODE + 2);
        write_blocks(&ground.fs, file, old());
        // The first leaf has room for one more.
        let more = [42, 46, 62];
        let before = nodes(&ground.fs, file, old().count());
        let tried = ground.cut(
            "in the middle",
            |fs| write_blocks(fs, file, more.into_iter()),
            |fs| has_blocks(fs, old()),
        );
        assert!(tried > 10, "{tried}");
        let after = nodes(&ground.fs, file, old().count() + more.len());
        assert_eq!(after, before + 1, "it split");
        let tried = ground.cut(
            "several times",
            |fs| write_blocks(fs, file, apart(20..80).map(|block| block + 2)),
            |fs| has_blocks(fs, old().chain(more)),
        );
        assert!(tried > 10, "{tried}");
        let tried = ground.cut(
            "at the end",
            |fs| write_blocks(fs, file, apart(NODE + 2..3 * NODE)),
            |fs| has_blocks(fs, old().chain(more)),
        );
        assert!(tried > 10, "{tried}");
    }
}

/// How many blocks the file has beside those of its data.
fn nodes(fs: &FileSystem, file: InodeId, data: usize) -> u64 {
    fs.attr(file).unwrap().blocks_512 / (BLOCK / 512) - data as u64
}

#[test]
fn a_root_of_extents_that_grows_loses_nothing_synced() {
    let ground = Ground::new(EXT4, "4M");
    let file = create(&ground.fs, "file");
    let old = || apart(0..4);
    write_blocks(&ground.fs, file, old());
    let grow = |fs: &FileSystem| write_blocks(fs, file, apart(4..6));
    ground.cut("depth 1", grow, |fs| has_blocks(fs, old()));
    let old = || apart(0..4 * NODE - 8);
    write_blocks(&ground.fs, file, old());
    let grow = |fs: &FileSystem| write_blocks(fs, file, apart(4 * NODE - 8..5 * NODE));
    ground.cut("depth 2", grow, |fs| has_blocks(fs, old()));
}

/// A hole in an extent of a full leaf.
#[test]
fn a_hole_that_splits_a_leaf_of_extents_loses_nothing_synced() {
    for hole in [1, 41, 42, 43, NODE - 2, NODE - 1] {
        let ground = Ground::new(EXT4, "4M");
        let file = create(&ground.fs, "file");
        write_blocks(&ground.fs, file, (0..NODE * 4).filter(of_three));
        let punch = |fs: &FileSystem| {
            let open = fs.open(file, true).unwrap();
            let mode = FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE;
            fs.allocate(&open, (hole * 4 + 1) * BLOCK, BLOCK, mode)
                .unwrap();
        };
        let kept = |block: &u64| of_three(block) && *block != hole * 4 + 1;
        ground.cut(&format!("hole {hole}"), punch, |fs| {
            has_blocks(fs, (0..NODE * 4).filter(kept))
        });
    }
}

/// Extents of three blocks, of which the tree has two leaves.
fn of_three(block: &u64) -> bool {
    block % 4 != 3
}

/// Whole extents are cut out where a leaf begins, and where it ends.
#[test]
fn a_hole_at_the_border_of_leaves_loses_nothing_else() {
    for (first, count) in [
        (0, 1),
        (NODE - 2, 1),
        (NODE - 1, 1),
        (NODE - 2, 3),
        (10, 20),
    ] {
        let ground = Ground::new(EXT4, "4M");
        let file = create(&ground.fs, "file");
        write_blocks(&ground.fs, file, (0..NODE * 8).filter(of_three));
        let punch = |fs: &FileSystem| {
            let open = fs.open(file, true).unwrap();
            let mode = FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE;
            let (start, length) = (first * 4 * BLOCK, count * 4 * BLOCK);
            fs.allocate(&open, start, length, mode).unwrap();
        };
        let hole = first * 4..(first + count) * 4;
        let kept = |block: &u64| of_three(block) && !hole.contains(block);
        ground.cut(&format!("{count} from {first}"), punch, |fs| {
            has_blocks(fs, (0..NODE * 8).filter(kept))
        });
    }
}

/// The end of a file falls into an extent.
#[test]
fn a_file_that_is_cut_keeps_what_is_before_the_end() {
    for end in [6, 10 * 4 + 1, NODE * 4 - 2, NODE * 4 + 2, NODE * 8 - 3] {
        let ground = Ground::new(EXT4, "4M");
        let file = create(&ground.fs, "file");
        write_blocks(&ground.fs, file, (0..NODE * 8).filter(of_three));
        let cut = |fs: &FileSystem| set_size(fs, file, end * BLOCK).unwrap();
        ground.cut(&format!("{end}"), cut, |fs| {
            has_blocks(fs, (0..end).filter(of_three))
        });
    }
}

/// The last extent of a file gets longer, again and again.
#[test]
fn a_file_that_grows_keeps_what_it_had() {
    let ground = Ground::new(EXT4, "4M");
    let file = create(&ground.fs, "file");
    write_blocks(&ground.fs, file, (0..NODE * 2).filter(of_three));
    for more in 0..4 {
        let end = NODE * 2 + more * 5;
        ground.cut(
            &format!("{end}"),
            |fs| write_blocks(fs, file, end..end + 5),
            |fs| has_blocks(fs, (0..NODE * 2).filter(of_three).chain(NODE * 2..end)),
        );
    }
}

/// Leaves split, and so does the node above them.
#[test]
fn a_node_of_extents_that_splits_loses_nothing_synced() {
    // Where blocks lie depends on when what was written gets a place: now and then new ones come to
    // lie behind old ones, and make no extents of their own.
    let split = (0..5).any(|_| a_node_splits());
    assert!(split, "the node above the leaves never split");
}

fn a_node_splits() -> bool {
    let ground = Ground::new(EXT4, "64M");
    let file = create(&ground.fs, "file");
    // Leaves that were filled in order are one short of full.
    let count = (NODE - 1) * (NODE - 1);
    let old = || apart(0..count);
    write_blocks(&ground.fs, file, old());
    let before = nodes(&ground.fs, file, old().count());
    let more = || (0..4).flat_map(|leaf| [4006, 4010].map(|block| block + leaf * 4 * NODE));
    let tried = ground.cut(
        "a node",
        |fs| write_blocks(fs, file, more()),
        |fs| has_blocks(fs, old()),
    );
    assert!(tried > 10, "{tried}");
    let extents = old().count() + more().count();
    // Four leaves, and the node above.
    nodes(&ground.fs, file, extents) == before + 5
}

/// Names are put into a directory until it has split in every way; each of those that were there
/// before leads to its inode.
fn names_survive(options: &[&str], count: usize, length: usize) -> usize {
    let ground = Ground::new(options, "8M");
    let new = New {
        kind: NewKind::Directory,
        permissions: 0o755,
        umask: 0,
    };
    let fs = &ground.fs;
    let made = fs.create(fs.root(), b"dir", &new, &root()).unwrap();
    let dir = made.attr.id;
    let new = New {
        kind: NewKind::Regular,
        permissions: 0o644,
        umask: 0,
    };
    let name = |number: usize| format!("{number:04}{}", "x".repeat(length));
    let mut there: Vec<(String, InodeId)> = Vec::new();
    let mut tried = 0;
    for number in 0..count {
        let before = fs.attr(dir).unwrap().size;
        fs.sync().unwrap();
        ground.device.start_trace();
        let name = name(number);
        let file = fs.create(dir, name.as_bytes(), &new, &root()).unwrap();
        fs.sync().unwrap();
        let trace = ground.device.take_trace().unwrap();
        if fs.attr(dir).unwrap().size > before {
            tried += explore(&trace, &format!("name {number}"), |fs| {
                let dir = find(fs, "dir");
                for (name, id) in &there {
                    match fs.lookup(dir, name.as_bytes()) {
                        Ok(found) if found.attr.id == *id => {}
                        other => return Err(format!("{}: {other:?}", &name[..4])),
                    }
                }
                Ok(())
            });
        }
        there.push((name, file.attr.id));
    }
    tried
}

#[test]
fn a_block_of_names_that_splits_loses_none() {
    for options in [EXT2, EXT4, EXT4_PLAIN] {
        let tried = names_survive(options, 30, 100);
        assert!(tried > 40, "{tried}");
    }
}
