//! What an image is, told without opening it as a file system: also of images that are unclean,
//! in use, or have features that are not served.

mod display;
mod time;

use std::path::Path;

use pagefence_block_io::{Device, FileDevice};
use pagefence_ext4_format::features::{Compat, Features, Incompat, RoCompat};
use pagefence_ext4_format::group_desc::GroupDesc;
use pagefence_ext4_format::superblock::{State, Superblock};
use pagefence_ext4_format::{BlockNo, Corruption, GroupNo};

use crate::journal_location::locate;
use crate::mkfs::Kind;
use crate::mount::{MountError, MountOptions, open_file, read_superblock};
use crate::support;

/// What an image is. Its [`Display`](std::fmt::Display) is what `pagefence info` prints: a line
/// for each fact.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Which of the three it is, told by its features.
    pub kind: Kind,
    /// Label; bytes that are no UTF-8 are replaced.
    pub label: String,
    /// UUID.
    pub uuid: [u8; 16],
    /// Bytes of the file system.
    pub size_bytes: u64,
    /// Bytes of the image, from the file system's start on.
    pub image_bytes: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks.
    pub blocks: u64,
    /// Free blocks, as the groups count them.
    pub blocks_free: u64,
    /// Blocks kept for the privileged user.
    pub blocks_reserved: u64,
    /// Block groups.
    pub groups: u32,
    /// Bytes of an inode.
    pub inode_size: u64,
    /// Inodes.
    pub inodes: u32,
    /// Free inodes, as the groups count them.
    pub inodes_free: u64,
    /// Features, by the names that mke2fs gives them.
    pub features: Vec<String>,
    /// Those that keep it from being opened.
    pub unsupported: Vec<String>,
    /// Why it can only be read, if so; the end of a sentence that starts with "because".
    pub read_only_because: Option<String>,
    /// It was unmounted or closed cleanly (which says nothing about the journal).
    pub is_clean: bool,
    /// Errors were found in it.
    pub has_errors: bool,
    /// Files that were deleted while they were open are still to be removed.
    pub has_orphans: bool,
    /// The journal.
    pub journal: Journal,
    /// Errors on record: how many, the first, the last.
    pub errors: Option<Errors>,
    /// When it was made, in seconds since the epoch; 0 if that is not known, as below.
    pub created: u64,
    /// When it was last mounted.
    pub mounted: u64,
    /// When its superblock was last written.
    pub written: u64,
    /// When it was last checked.
    pub checked: u64,
    /// Where it was last mounted, if that is known.
    pub last_mounted_on: Option<String>,
    /// Mounts since the last check.
    pub mounts: u16,
    /// KiB written in its lifetime.
    pub lifetime_writes_kib: u64,
}

/// The journal of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Journal {
    /// There is none.
    None,
    /// It is on another device.
    External,
    /// It is in the image.
    Internal {
        /// Bytes, with the fast-commit area.
        size_bytes: u64,
        /// Bytes of the fast-commit area.
        fast_commit_bytes: u64,
        /// What is in it.
        state: JournalState,
        /// The error with which it was aborted, as Linux numbers errors; 0 if it was not.
        errno: i32,
    },
    /// It can't be read.
    Unreadable {
        /// Why.
        reason: String,
    },
}

/// What a journal holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JournalState {
    /// Nothing.
    Clean,
    /// What must be replayed before the file system is sound.
    NeedsRecovery {
        /// Sequence number of the first transaction.
        sequence: u32,
        /// Transactions.
        transactions: u32,
        /// Blocks that they change.
        blocks: usize,
        /// There are fast commits behind them.
        has_fast_commits: bool,
        /// The transaction that is damaged, at which the replay ends.
        damaged: Option<u32>,
    },
}

/// The errors that are on record in the superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Errors {
    /// How many since the last check.
    pub count: u32,
    /// The first.
    pub first: ErrorAt,
    /// The last.
    pub last: ErrorAt,
}

/// One error on record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ErrorAt {
    /// When, in seconds since the epoch.
    pub time: u64,
    /// The function of Linux that found it, and its line.
    pub function: String,
    /// The line.
    pub line: u32,
    /// Inode concerned, or 0.
    pub inode: u32,
    /// Block concerned, or 0.
    pub block: u64,
}

impl Info {
    /// Looks at the image file or block device at `path`, whoever else uses it: if somebody
    /// writes to it meanwhile, what is told may be out of date.
    ///
    /// # Errors
    /// It can't be read, or holds no file system of these types: see [`MountError`].
    pub fn of_image(path: &Path, offset: u64) -> Result<Self, MountError> {
        Self::of_opened(&Self::open(path, offset)?, offset)
    }

    /// Opens what [`Info::of_image`] looks at, and reads nothing of it.
    ///
    /// # Errors
    /// [`MountError::Image`].
    pub fn open(path: &Path, offset: u64) -> Result<FileDevice, MountError> {
        open_file(path, &at(offset))
    }

    /// Looks at what [`Info::open`] has opened, with the same `offset`.
    ///
    /// # Errors
    /// As [`Info::of_image`].
    pub fn of_opened(device: &FileDevice, offset: u64) -> Result<Self, MountError> {
        Self::examine(device, &at(offset))
    }

    /// Looks at the file system that starts at byte 0 of `device`.
    ///
    /// # Errors
    /// As [`Info::of_image`].
    pub fn of_device(device: &dyn Device) -> Result<Self, MountError> {
        Self::examine(device, &at(0))
    }

    fn examine(device: &dyn Device, options: &MountOptions) -> Result<Self, MountError> {
        let superblock = read_superblock(device, options)?;
        let sb = &superblock;
        let raw = sb.raw();
        let state = sb.state();
        // Where the descriptors are damaged the superblock's counts, hints, are all there is.
        let (blocks_free, inodes_free) = count_free(device, sb)
            .unwrap_or((sb.free_blocks_count(), u64::from(sb.free_inodes_count())));
        let last_mounted = sb.last_mounted();
        Ok(Self {
            kind: kind(sb.features()),
            label: String::from_utf8_lossy(sb.volume_name()).into_owned(),
            uuid: sb.uuid(),
            size_bytes: sb.blocks_count().saturating_mul(sb.block_size().into()),
            image_bytes: device.size(),
            block_size: sb.block_size(),
            blocks: sb.blocks_count(),
            blocks_free,
            blocks_reserved: sb.reserved_blocks_count(),
            groups: sb.group_count(),
            inode_size: sb.inode_size() as u64,
            inodes: sb.inodes_count(),
            inodes_free,
            features: sb.features().names(),
            unsupported: support::unreadable(sb),
            read_only_because: support::read_only_because(sb),
            is_clean: state.contains(State::VALID),
            has_errors: state.contains(State::ERROR),
            has_orphans: sb.last_orphan().is_some() || sb.has_ro_compat(RoCompat::ORPHAN_PRESENT),
            journal: journal(device, sb),
            errors: errors(sb),
            created: sb.mkfs_time(),
            mounted: sb.mount_time(),
            written: sb.write_time(),
            checked: sb.check_time(),
            last_mounted_on: (!last_mounted.is_empty())
                .then(|| String::from_utf8_lossy(last_mounted).into_owned()),
            mounts: raw.s_mnt_count.get(),
            lifetime_writes_kib: raw.s_kbytes_written.get(),
        })
    }
}

fn at(offset: u64) -> MountOptions {
    MountOptions {
        offset,
        ..MountOptions::default()
    }
}

/// The kind that the features make it: the oldest whose Linux could have written it.
fn kind(features: Features) -> Kind {
    let before_ext4 = Features {
        compat: Compat::all(),
        incompat: Incompat::FILETYPE | Incompat::RECOVER | Incompat::META_BG,
        ro_compat: RoCompat::SPARSE_SUPER | RoCompat::LARGE_FILE | RoCompat::BTREE_DIR,
    };
    if !features.difference(before_ext4).is_empty() {
        Kind::Ext4
    } else if features.compat.contains(Compat::HAS_JOURNAL) {
        Kind::Ext3
    } else {
        Kind::Ext2
    }
}

/// Free blocks and inodes, from all descriptors; nothing if one can't be read or is damaged.
fn count_free(device: &dyn Device, sb: &Superblock) -> Option<(u64, u64)> {
    let (mut blocks, mut inodes) = (0, 0);
    let mut bytes = vec![0; sb.block_size() as usize];
    for index in 0..sb.descriptor_blocks() {
        let BlockNo(block) = sb.descriptor_block(index).ok()?;
        device
            .read(block.checked_mul(sb.block_size().into())?, &mut bytes)
            .ok()?;
        let first = index.checked_mul(sb.descriptors_per_block())?;
        let groups = (first..sb.group_count()).map(GroupNo);
        for (group, bytes) in groups.zip(bytes.chunks_exact(sb.desc_size())) {
            let group = check(GroupDesc::parse(bytes, group, sb), sb).ok()?;
            let clusters = u64::from(group.free_clusters());
            blocks += clusters * u64::from(sb.blocks_per_cluster());
            inodes += u64::from(group.free_inodes());
        }
    }
    Some((blocks, inodes))
}

fn check(group: Result<GroupDesc, Corruption>, sb: &Superblock) -> Result<GroupDesc, Corruption> {
    let group = group?;
    group.check_counts(sb)?;
    Ok(group)
}

fn journal(device: &dyn Device, sb: &Superblock) -> Journal {
    if !sb.has_compat(Compat::HAS_JOURNAL) {
        return Journal::None;
    }
    let Some(ino) = sb.journal_inode() else {
        return Journal::External;
    };
    let location = match locate(device, sb, ino) {
        Ok(location) => location,
        Err(error) => {
            let reason = error.to_string();
            return Journal::Unreadable { reason };
        }
    };
    match pagefence_jbd2::recover(device, &location) {
        Ok(recovery) => {
            let superblock = recovery.superblock();
            let block_size = u64::from(location.block_size());
            let fast_commit = superblock.fast_commit.len() as u64;
            let is_empty = recovery.is_clean() && recovery.fast_commits().is_empty();
            let state = if is_empty && !sb.has_incompat(Incompat::RECOVER) {
                JournalState::Clean
            } else {
                JournalState::NeedsRecovery {
                    sequence: superblock.sequence.0,
                    transactions: recovery.transactions(),
                    blocks: recovery.replacements().len(),
                    has_fast_commits: !recovery.fast_commits().is_empty(),
                    damaged: recovery.damaged().map(|sequence| sequence.0),
                }
            };
            Journal::Internal {
                size_bytes: u64::from(location.length()) * block_size,
                fast_commit_bytes: fast_commit * block_size,
                state,
                errno: recovery.errno().saturating_neg(),
            }
        }
        Err(error) => Journal::Unreadable {
            reason: error.to_string(),
        },
    }
}

fn errors(sb: &Superblock) -> Option<Errors> {
    let (first, last) = sb.error_records()?;
    let [first, last] = [first, last].map(|record| ErrorAt {
        time: record.time_seconds,
        function: record.function,
        line: record.line,
        inode: record.ino,
        block: record.block,
    });
    Some(Errors {
        count: sb.raw().s_error_count.get(),
        first,
        last,
    })
}

#[cfg(test)]
mod tests;
