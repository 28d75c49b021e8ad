//! A file system for the tests of allocation: made by mkfs, with a commit that puts what was
//! sealed onto the device.

mod damage;
mod gathered;
mod inodes;
mod memory;
mod model;
mod search;
mod threads;
mod trim;

use std::collections::{BTreeMap, BTreeSet};

use pagefence_block_io::{Device, MemoryDevice};
use pagefence_ext4_format::group_desc::{GroupDesc, GroupFlags};
use pagefence_ext4_format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock};
use pagefence_ext4_format::{BlockNo, GroupNo, InodeNo, bitmap};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Error, Result};

use super::{Allocator, BlockOwner, BusyRun, Claim, NewInode, NewNumber, Reservation, Seal, Sink};
use crate::instance::Instance;
use crate::mkfs::{Contents, Kind, Parameters, Tree, format};

/// The inode whose blocks are freed: nothing is read of it.
const OWNER: BlockOwner = BlockOwner::Contents(InodeNo(12));

/// Memory for metadata that is more than enough.
const AMPLE: u64 = 64 << 20;

/// A fresh file system of `mib` MiB without a journal, with changed features.
fn image(mib: u64, block_size: u32, kind: Kind, features: &str) -> MemoryDevice {
    let device = MemoryDevice::new(mib << 20);
    let mut parameters = Parameters::new(kind);
    parameters
        .features
        .edit(&format!("^has_journal,{features}"))
        .expect("features that are made");
    parameters.block_size = Some(block_size);
    parameters.contents = Contents::Zeros;
    format(&device, &parameters, &Tree::new()).expect("a new file system");
    device
}

fn ext4(mib: u64, block_size: u32) -> MemoryDevice {
    image(mib, block_size, Kind::Ext4, "extent")
}

fn open(device: Arc<dyn Device>, metadata_bytes: u64) -> Instance {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    device
        .read(SUPERBLOCK_OFFSET, &mut bytes)
        .expect("in memory");
    let superblock = Superblock::parse(&bytes, Some(device.size())).expect("sound");
    Instance::new(superblock, device, metadata_bytes).expect("a size of blocks that is served")
}

/// A file system that is written to, by one transaction after the other.
struct World {
    device: Arc<MemoryDevice>,
    instance: Instance,
    allocator: Arc<Allocator>,
}

/// A transaction: its number, and the blocks that are to be sealed.
#[derive(Debug, Default)]
struct Tx {
    tid: u64,
    deferred: BTreeSet<BlockNo>,
}

/// What a commit wrote, and what it let go.
#[derive(Debug, Default)]
struct Committed {
    blocks: BTreeMap<BlockNo, Vec<u8>>,
    freed: Vec<(u64, u64)>,
}

struct Sealing<'a> {
    world: &'a World,
    tx: &'a Tx,
    blocks: BTreeMap<BlockNo, Vec<u8>>,
}

impl Sink for Tx {
    fn tid(&self) -> u64 {
        self.tid
    }

    fn defer(&mut self, block: BlockNo) {
        self.deferred.insert(block);
    }
}

impl Seal for Sealing<'_> {
    fn set(&mut self, block: BlockNo, bytes: &[u8]) {
        let offset = block.0 * u64::from(self.world.instance.superblock.block_size());
        self.world.device.write(offset, bytes).expect("in memory");
        self.world.instance.buffers.replace(block.0, bytes);
        let before = self.blocks.insert(block, bytes.to_vec());
        assert_eq!(before, None, "block {block} is sealed once");
    }

    fn contains(&self, block: BlockNo) -> bool {
        self.tx.deferred.contains(&block)
    }
}

impl World {
    fn new(device: MemoryDevice) -> Self {
        Self::with_memory(device, AMPLE)
    }

    fn with_memory(device: MemoryDevice, metadata_bytes: u64) -> Self {
        let device = Arc::new(device);
        let instance = open(device.clone(), metadata_bytes);
        let allocator = Allocator::new(&instance, []).expect("a sound file system");
        Self {
            device,
            instance,
            allocator,
        }
    }

    /// Has bitmaps leave memory as soon as they may, but for so many groups.
    fn keep_few_bitmaps(&mut self, groups: usize) {
        Arc::get_mut(&mut self.allocator)
            .expect("nobody else has it")
            .resident_max = groups;
    }

    fn superblock(&self) -> &Superblock {
        &self.instance.superblock
    }

    fn reserve(&self, blocks: u64) -> Reservation {
        self.allocator
            .reserve(blocks, Claim::Map)
            .expect("enough space")
    }

    fn allocate(&self, goal: u64, want: u32) -> BusyRun {
        let mut reservation = self.reserve(want.into());
        self.allocator
            .allocate(&self.instance, BlockNo(goal), want, &mut reservation)
            .expect("promised")
    }

    /// Allocates and uses a run of exactly this length.
    fn take(&self, tx: &mut Tx, goal: u64, want: u32) -> u64 {
        let run = self.allocate(goal, want);
        assert_eq!(run.len(), want);
        let (start, len) = self.allocator.use_run(tx, OWNER, run);
        assert_eq!(len, want);
        start.0
    }

    fn free(&self, tx: &mut Tx, start: u64, count: u32) -> Result<()> {
        self.allocator
            .free(&self.instance, tx, OWNER, BlockNo(start), count)
    }

    fn new_inode(&self, tx: &mut Tx, parent: InodeNo, request: Request) -> Result<NewNumber> {
        let request = NewInode {
            parent,
            is_directory: request != Request::File,
            is_top_level: request == Request::TopDirectory,
            name: &tx.deferred.len().to_le_bytes(),
        };
        self.allocator.new_inode(&self.instance, tx, request)
    }

    /// Seals, puts it onto the device, lets go what was freed. The next transaction has the next
    /// number.
    fn commit(&self, tx: &mut Tx) -> Committed {
        let mut sealing = Sealing {
            world: self,
            tx,
            blocks: BTreeMap::new(),
        };
        self.allocator
            .seal(&mut sealing, |_, _| self.superblock().clone())
            .expect("in memory");
        let blocks = sealing.blocks;
        assert!(
            blocks.keys().eq(&tx.deferred),
            "sealed is what was deferred: {:?}, {:?}",
            blocks.keys(),
            tx.deferred
        );
        let mut freed = Vec::new();
        self.allocator.committed(tx.tid, |start, count| {
            // Who is out of space now waits for this commit.
            assert_eq!(self.allocator.pending_tid(), Some(tx.tid));
            freed.push((start.0, count));
        });
        *tx = Tx {
            tid: tx.tid + 1,
            ..Tx::default()
        };
        Committed { blocks, freed }
    }

    /// Opens what is on the device anew.
    fn reopened(&self) -> Self {
        Self::new(self.device.fork())
    }

    fn desc(&self, group: u32) -> GroupDesc {
        self.instance.group_desc(GroupNo(group)).expect("sound")
    }

    fn flags(&self, group: u32) -> GroupFlags {
        self.desc(group).flags(self.superblock())
    }

    /// Which blocks are in use by the bitmaps on the device; the checks are those of reading.
    fn in_use(&self) -> Vec<bool> {
        let world = self.reopened();
        let superblock = world.superblock();
        let mut in_use = vec![true; superblock.first_data_block().0 as usize];
        for group in superblock.groups() {
            let guard = world
                .allocator
                .lock_with_blocks(&world.instance, group)
                .expect("in memory");
            let super::group_state::Bits::Loaded(blocks) = &guard.blocks else {
                panic!("the bitmap of group {group} is damaged");
            };
            let count = superblock.blocks_in_group(group);
            in_use.extend((0..count).map(|bit| bitmap::test(&blocks.bits, bit)));
        }
        in_use
    }
}

/// What an inode is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    File,
    Directory,
    TopDirectory,
}

fn is_no_space<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::NoSpace))
}

fn is_corrupt<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Corrupt { .. }))
}
