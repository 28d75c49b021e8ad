//! Making file systems: ext2, ext3 and ext4, empty or with files in them.
//!
//! One pass over a [`Device`]: the geometry is worked out by the rules of mke2fs (so both make
//! the same number of blocks and inodes), metadata is placed, files are put behind it, and only
//! blocks that are in use are written, whatever the size. Uninitialised groups and lazily
//! initialised inode tables are marked as such. The superblock is written last, after a flush:
//! what is cut short is no file system.
//!
//! Differences from what mke2fs lays out, all within the format: the bitmaps of a flexible group
//! follow one another without gaps; directories lie behind the metadata of the first group;
//! inodes are given out in order.

mod builder;
mod directory;
mod error;
mod features;
mod finish;
mod geometry;
mod journal;
mod layout;
mod mapping;
mod signature;
mod space;
mod special;
mod superblock;
mod target;
mod tree;
mod write;
mod xattr;

use pagefence_block_io::Device;
use pagefence_ext4_format::features::{Compat, Features};
pub use pagefence_ext4_format::inode::Timestamp;
use pagefence_ext4_format::superblock::Superblock;

pub use self::error::{EntryError, MkfsError};
pub use self::features::{FeatureChoice, Kind};
pub use self::target::{Target, format_path};
pub use self::tree::{NodeMeta, Tree};
use builder::Builder;
use geometry::Geometry;

/// What a device holds before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing but zeros, such as a file just made: what is zero is not written, and inode
    /// tables are marked as zeroed.
    Zeros,
    /// Anything: what must be zero is written, and inode tables are left to be initialised by
    /// the kernel when it has time, where the features allow it.
    Unknown,
}

/// What to make. [`Parameters::new`] gives the defaults of mke2fs.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Features; the kind's defaults unless edited.
    pub features: FeatureChoice,
    /// Bytes of a block: 1024, 2048 or 4096. By default 1024 below 512 MiB, else 4096.
    pub block_size: Option<u32>,
    /// Bytes of an inode: a power of two from 128 to the block size. By default 256.
    pub inode_size: Option<u16>,
    /// Inodes, rounded up to whole blocks of them. By default by the size: one for every 4 KiB
    /// below 512 MiB, 16 KiB below 4 TiB, 32 KiB below 16 TiB, else 64 KiB.
    pub inodes: Option<u32>,
    /// Share of the blocks that only the privileged user gets, at most 50.
    pub reserved_percent: u8,
    /// Label, up to 16 bytes, none of them NUL.
    pub label: Vec<u8>,
    /// UUID.
    pub uuid: [u8; 16],
    /// Seed of the hash of directories.
    pub hash_seed: [u8; 16],
    /// Time of creation, in seconds since the epoch; also the times of files without their own.
    pub time_seconds: i64,
    /// What the device holds before.
    pub contents: Contents,
}

impl Parameters {
    /// The defaults, with a random UUID and hash seed and the time of now. [`Contents`] are
    /// `Unknown`.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            features: FeatureChoice::new(kind),
            block_size: None,
            inode_size: None,
            inodes: None,
            reserved_percent: 5,
            label: Vec::new(),
            uuid: uuid::Uuid::new_v4().into_bytes(),
            hash_seed: uuid::Uuid::new_v4().into_bytes(),
            time_seconds: crate::clock::seconds().into(),
            contents: Contents::Unknown,
        }
    }
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The superblock as written.
    pub superblock: Superblock,
    /// Default features that were left out because the file system is too small for a journal.
    pub left_out: Features,
}

/// Makes a file system on all of `device` and puts `tree` into it. Everything is durable when it
/// returns.
///
/// # Errors
/// See [`MkfsError`]. Of errors other than the device's, those about sizes and features come
/// before the first write; a full file system is found out while writing, and leaves a device
/// without a valid superblock.
pub fn format(
    device: &dyn Device,
    parameters: &Parameters,
    tree: &Tree,
) -> Result<Made, MkfsError> {
    let plan = Plan::make(parameters, device.size())?;
    let builder = Builder::new(device, parameters, &plan.geometry)?;
    let builder = builder
        .run(plan.journal_blocks, tree)
        .map_err(|error| match error {
            // Nothing but what every file system has was to be put in: it is the device.
            MkfsError::NoSpace { needed, free } if tree.is_empty() => MkfsError::TooSmall {
                size_bytes: device.size(),
                needed_bytes: device.size()
                    + needed.saturating_sub(free).max(1) * u64::from(plan.geometry.block_size),
            },
            other => other,
        })?;
    Ok(Made {
        superblock: builder.sb,
        left_out: plan.left_out,
    })
}

/// What is decided before anything is written.
struct Plan {
    geometry: Geometry,
    journal_blocks: Option<u64>,
    left_out: Features,
}

impl Plan {
    fn make(parameters: &Parameters, size_bytes: u64) -> Result<Self, MkfsError> {
        let features = parameters.features.resolve()?;
        let mut geometry = Geometry::plan(parameters, features, size_bytes)?;
        let (journal_blocks, left_out) = plan_journal(parameters, &mut geometry, size_bytes)?;
        Ok(Self {
            geometry,
            journal_blocks,
            left_out,
        })
    }
}

/// Finds out what can't be made in `size_bytes`, short of what the files need.
fn check(parameters: &Parameters, size_bytes: u64) -> Result<(), MkfsError> {
    let plan = Plan::make(parameters, size_bytes)?;
    superblock::create(parameters, &plan.geometry, size_bytes).map(drop)
}

/// Blocks of the journal, and the features that go without one.
fn plan_journal(
    parameters: &Parameters,
    geometry: &mut Geometry,
    size_bytes: u64,
) -> Result<(Option<u64>, Features), MkfsError> {
    let compat = geometry.features.compat;
    if !compat.contains(Compat::HAS_JOURNAL) {
        return Ok((None, Features::default()));
    }
    if let Some(blocks) = journal::default_blocks(geometry.blocks_count) {
        let has_fast_commit = compat.contains(Compat::FAST_COMMIT);
        let all = if has_fast_commit {
            journal::with_fast_commit(blocks)
        } else {
            blocks
        };
        return Ok((Some(all), Features::default()));
    }
    let left_out = Features {
        compat: compat & (Compat::HAS_JOURNAL | Compat::ORPHAN_FILE | Compat::FAST_COMMIT),
        ..Features::default()
    };
    if parameters.features.is_explicit(left_out) {
        return Err(MkfsError::TooSmall {
            size_bytes,
            needed_bytes: journal::FEWEST_BLOCKS * u64::from(geometry.block_size),
        });
    }
    geometry.features = geometry.features.difference(left_out);
    Ok((None, left_out))
}
