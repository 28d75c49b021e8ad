//! Checking a whole file system without changing a byte of it: what `pagefence check` does.
//!
//! ```text
//! in_use         a file system that is mounted: a snapshot of it is what is checked
//! opening        the superblock, the journal; an unclean image is replayed in memory
//! superblock     its counts, and what it names
//! descriptors    the groups, and the blocks that they own
//! orphans        inodes that wait to be deleted or cut
//! inodes         every record in use: its map of blocks, its attributes; fields   what else it says
//! directories    every name: what it leads to; index   the order of hashes
//! links          what can be reached, and how often it was counted
//! bitmaps        what is marked in use against what is, and every count
//! quotas         what users, groups and projects have
//! duplicates     who owns the blocks that are owned twice
//! ```
//!
//! What was found so far is in memory: a bit for each block in use, two bytes for each inode in
//! use, a few words for each directory and attribute block, all within [`MEMORY_MAX`].
//!
//! Invariant: whatever the image says, each block of metadata is walked a bounded number of times.
//! A tree that two files share is walked for the first alone, a directory that shares blocks only
//! while [`SHARED_MAX`] lasts, and past [`FINDINGS_MAX`] the check ends.

mod bitmaps;
mod descriptors;
mod directories;
mod duplicates;
mod fields;
mod in_use;
mod index;
mod inode_states;
mod inodes;
mod links;
mod map;
mod opening;
mod orphans;
mod quotas;
mod report;
mod resize_inode;
mod superblock;
mod usage;
mod xattrs;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

use pagefence_block_io::{Buffer, Device, DeviceError, FileDevice};
use pagefence_ext4_format::group_desc::GroupDesc;
use pagefence_ext4_format::{BlockNo, Corruption, GroupNo, InodeNo};
use pagefence_jbd2::SnapshotLost;
use pagefence_lock_order::primitives::Arc;

use crate::instance::Instance;
use crate::mount::{MountError, MountOptions, open_device};

pub use report::{Event, Finding, Progress, Stage, Subject};

use directories::Directory;
use inode_states::InodeStates;
use opening::State;
use quotas::Quotas;
use report::Report;
use usage::BlockUsage;
use xattrs::{EaInode, XattrBlock};

/// Findings after which the check ends: the image is beyond telling.
const FINDINGS_MAX: u64 = 100_000;

/// Bytes that are kept of what was found, at most; and once more while the owners of what is owned
/// twice are looked for. Enough for 16 TiB of 4 KiB blocks, all in use.
const MEMORY_MAX: u64 = 1 << 30;

/// Bytes of metadata blocks kept in memory.
const CACHE_BYTES: u64 = 32 << 20;

/// Blocks of directories that are read although another file owns them too.
const SHARED_MAX: u64 = 1 << 16;

/// What a check came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Findings; none if the file system is sound.
    pub findings: u64,
    /// The check came to its end. Otherwise there is more to be found.
    pub is_complete: bool,
    /// The journal was replayed in memory: what was checked is what a mount would see.
    pub was_replayed: bool,
    /// Inodes in use.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Inodes that wait to be deleted or cut short, which is no damage.
    pub orphans: u64,
    /// Blocks in use, metadata included; a multiple of the cluster.
    pub blocks: u64,
}

impl From<Summary> for pagefence_vfs::CheckSummary {
    fn from(summary: Summary) -> Self {
        Self {
            findings: summary.findings,
            is_complete: summary.is_complete,
            was_replayed: summary.was_replayed,
            inodes: summary.inodes,
            directories: summary.directories,
            orphans: summary.orphans,
            blocks: summary.blocks,
        }
    }
}

/// Why an image can't be checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// It can't be opened, or is no file system that is served.
    #[error(transparent)]
    Open(#[from] MountError),
    /// A part of it can't be read.
    #[error("the image can't be read: {0}")]
    Device(#[from] DeviceError),
    /// Another check of this file system goes on.
    #[error("it is being checked already")]
    InUse,
    /// An error ended all writing: what is on disk is the last commit, and waits for recovery.
    #[error("an error has made it read-only: unmount it, and check the image")]
    Aborted,
    /// What it is at this moment can't be committed.
    #[error("it can't be committed: {0}")]
    Commit(#[source] pagefence_vfs::Error),
    /// It changed too much, or too little of it could be read, while the check went on.
    #[error("the check can't go on: {0}")]
    Snapshot(#[source] SnapshotLost),
    /// There is more in it than can be kept in mind.
    #[error("the image has more in use than can be checked in {} MiB of memory", MEMORY_MAX >> 20)]
    Memory,
    /// The file system can't be looked at.
    #[error("blocks of an impossible size")]
    BlockSize,
}

/// Checks the image file or block device at `path`, whose file system starts at byte `offset`.
/// Nobody may write to it meanwhile. `event` is told each finding as it is made, and progress;
/// if it breaks, the check ends there and is not complete.
///
/// # Errors
/// See [`CheckError`]. Damage is a finding and no error.
pub fn check_image(
    path: &Path,
    offset: u64,
    event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Summary, CheckError> {
    let options = MountOptions {
        offset,
        ..MountOptions::default()
    };
    let device = open_device(path, &options)?;
    check_opened(device, offset, event)
}

/// Checks the file system on `device`, an image that is open, as [`check_image`] does: `offset` is where
/// in the image it starts, and is told, not added. Opens nothing.
///
/// # Errors
/// As [`check_image`], but that it is open already.
pub fn check_opened(
    device: FileDevice,
    offset: u64,
    event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Summary, CheckError> {
    let options = MountOptions {
        offset,
        ..MountOptions::default()
    };
    opening::check(Arc::new(device), State::OnDisk, &options, event)
}

/// Checks the file system that starts at byte 0 of `device`, as [`check_image`] does.
///
/// # Errors
/// As [`check_image`].
pub fn check_device(
    device: Arc<dyn Device>,
    event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Summary, CheckError> {
    opening::check(device, State::OnDisk, &MountOptions::default(), event)
}

/// Why a check ends before its end.
#[derive(Debug)]
enum Stop {
    /// See [`CheckError`].
    Failed(CheckError),
    /// There are too many findings, or nobody wants more.
    Enough,
}

impl From<DeviceError> for Stop {
    fn from(error: DeviceError) -> Self {
        Self::Failed(error.into())
    }
}

/// A part of the check, which may end it.
type Step<T = ()> = Result<T, Stop>;

/// Memory that what was found may still take.
#[derive(Debug)]
struct Memory(u64);

impl Memory {
    fn take(&mut self, bytes: u64) -> Step {
        self.0 = self
            .0
            .checked_sub(bytes)
            .ok_or(Stop::Failed(CheckError::Memory))?;
        Ok(())
    }
}

/// A check as it goes: the file system, and what was found so far.
struct Checker<'a> {
    instance: Instance,
    report: Report<'a>,
    memory: Memory,
    usage: BlockUsage,
    inodes: InodeStates,
    /// Groups whose descriptor is damaged: nothing is known of what they hold.
    lost_groups: BTreeSet<GroupNo>,
    orphans: BTreeSet<InodeNo>,
    directories: BTreeMap<InodeNo, Directory>,
    xattr_blocks: BTreeMap<BlockNo, XattrBlock>,
    ea_inodes: BTreeMap<InodeNo, EaInode>,
    quotas: Quotas,
    /// What is left of [`SHARED_MAX`].
    shared_left: u64,
    /// Blocks of values in inodes that may still be read.
    value_blocks_left: u64,
    summary: Summary,
    /// Nobody has it mounted, and nothing waits in its journal.
    is_closed: bool,
}

impl<'a> Checker<'a> {
    fn new(instance: Instance, report: Report<'a>) -> Self {
        let value_blocks_left = instance.superblock.blocks_count();
        Self {
            usage: BlockUsage::new(&instance.superblock),
            inodes: InodeStates::new(&instance.superblock),
            instance,
            report,
            memory: Memory(MEMORY_MAX),
            lost_groups: BTreeSet::new(),
            orphans: BTreeSet::new(),
            directories: BTreeMap::new(),
            xattr_blocks: BTreeMap::new(),
            ea_inodes: BTreeMap::new(),
            quotas: Quotas::default(),
            shared_left: SHARED_MAX,
            value_blocks_left,
            summary: Summary::default(),
            is_closed: false,
        }
    }

    /// All of it, in the order of the module's description.
    fn run(&mut self) -> Step {
        self.check_superblock()?;
        self.check_descriptors()?;
        self.check_orphans()?;
        self.check_inodes()?;
        self.check_resize_inode()?;
        self.check_directories()?;
        self.check_links()?;
        self.check_bitmaps()?;
        self.check_quotas()?;
        self.check_duplicates()
    }

    /// Bytes of a file that a block map reaches.
    fn block_map_reach(&self) -> u64 {
        let block_size = u64::from(self.instance.superblock.block_size());
        u64::from(self.instance.map_shape.end().0).saturating_mul(block_size)
    }

    /// A block of metadata; nothing if there is no such block.
    fn block(&self, block: BlockNo) -> Step<Option<Arc<Buffer>>> {
        if !self.instance.superblock.contains_block(block) {
            return Ok(None);
        }
        Ok(Some(self.instance.buffers.read(block.0)?))
    }

    /// A group's descriptor, or what is wrong with it.
    fn descriptor(&self, group: GroupNo) -> Step<Result<GroupDesc, Corruption>> {
        let superblock = &self.instance.superblock;
        let place = superblock
            .locate_descriptor(group)
            .and_then(|(index, offset)| Ok((superblock.descriptor_block(index)?, offset)));
        let (block, offset) = match place {
            Ok(place) => place,
            Err(what) => return Ok(Err(what)),
        };
        let buffer = self.instance.buffers.read(block.0)?;
        let bytes = buffer.get(offset..).unwrap_or(&[]);
        Ok(GroupDesc::parse(bytes, group, superblock))
    }

    /// The group of an inode; past the last for one that does not exist.
    fn group_of(&self, number: InodeNo) -> GroupNo {
        let per_group = self.instance.superblock.inodes_per_group().max(1);
        GroupNo(number.0.saturating_sub(1) / per_group)
    }

    /// Whether nothing can be said of an inode, since its group is lost.
    fn is_lost(&self, number: InodeNo) -> bool {
        self.lost_groups.contains(&self.group_of(number))
    }

    /// Hands the record of an inode to `read`; nothing if its group is lost.
    fn with_record<T>(&self, number: InodeNo, read: impl FnOnce(&[u8]) -> T) -> Step<Option<T>> {
        if self.is_lost(number) {
            return Ok(None);
        }
        // Cannot fail but for a lost group, or a number that does not exist.
        let Ok((block, offset)) = self.instance.inode_block(number) else {
            return Ok(None);
        };
        let Some(buffer) = self.block(block)? else {
            return Ok(None);
        };
        let end = offset.saturating_add(self.instance.superblock.inode_size());
        Ok(buffer.get(offset..end).map(read))
    }
}
