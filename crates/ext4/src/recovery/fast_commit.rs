//! Replaying fast commits: what changed since the last transaction, tag by tag, as Linux does.
//!
//! Everything happens in one transaction, so that it is replayed as a whole or not at all: inodes
//! are replaced, ranges of files mapped and unmapped, names put in and taken out. Bitmaps are put
//! right at the end, from what the inodes that were touched own then: until then a block may have
//! been named as gone from one place, and not yet as come to another.

mod inode;

use std::ops::Range;

use hashbrown::HashSet;
use pagefence_ext4_format::dir_entry::EntryName;
use pagefence_ext4_format::extent::{Extent, RawExtent};
use pagefence_ext4_format::features::RoCompat;
use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord, InodeFlags, Timestamp};
use pagefence_ext4_format::journal::FastCommitTag;
use pagefence_ext4_format::journal::fast_commit::FastCommitEntry;
use pagefence_ext4_format::xattr::{Value, XattrLimits, Xattrs};
use pagefence_ext4_format::{FileBlock, InodeNo};
use pagefence_vfs::Result;
use zerocopy::FromBytes;

use crate::change::change_dir::{Directory, entry_kind, make_directory};
use crate::change::cut::Cut;
use crate::change::extent_tree::ExtentTree;
use crate::change::free_inode::free_inode;
use crate::change::release_xattrs::release_xattrs;
use crate::change::remove_blocks::remove_blocks;
use crate::change::space::Space;
use crate::change::transaction::Transaction;
use crate::clock;
use crate::error::At;
use crate::instance::Instance;

/// Links of a directory that has more subdirectories than are counted.
const LINKS_MAX: u16 = 65000;

/// The blocks that an ADD_RANGE tag names: not to be handed out while fast commits are replayed.
pub(super) fn named_blocks(tag: &FastCommitTag<'_>) -> Option<Range<u64>> {
    let FastCommitTag::AddRange { extent, .. } = tag else {
        return None;
    };
    let extent = decode(extent);
    Some(extent.start.0..extent.start.0.saturating_add(u64::from(extent.len)))
}

fn decode(bytes: &[u8; 12]) -> Extent {
    // An extent has no alignment and no invalid bytes.
    RawExtent::ref_from_bytes(bytes).map_or(
        Extent {
            first: FileBlock(0),
            len: 0,
            start: Default::default(),
            unwritten: false,
        },
        Extent::from,
    )
}

/// A replay in progress.
pub(super) struct Replay<'a, 'b> {
    transaction: &'a mut Transaction<'b>,
    space: &'a Space,
    /// Inodes whose blocks have to be marked as in use.
    touched: HashSet<InodeNo>,
    /// The time that directories get which change: fast commits do not say when they did.
    now: Option<Timestamp>,
}

impl<'a, 'b> Replay<'a, 'b> {
    /// A replay into `transaction`, whose size is not limited. Directories that change get `now`
    /// as their time, if it is given.
    pub(super) fn new(
        transaction: &'a mut Transaction<'b>,
        space: &'a Space,
        now: Option<Timestamp>,
    ) -> Self {
        Self {
            transaction,
            space,
            touched: HashSet::new(),
            now,
        }
    }

    /// Replays one tag. A tag for a file that is gone says nothing, as in Linux: a later one took
    /// it away.
    ///
    /// # Errors
    /// `Corrupt` if the tag can't be true, or what it changes is damaged; `Io`.
    pub(super) fn tag(&mut self, tag: &FastCommitTag<'_>) -> Result<()> {
        match tag {
            FastCommitTag::AddRange { ino, extent } => self.add_range(*ino, &decode(extent)),
            FastCommitTag::DelRange { ino, first, count } => self.del_range(*ino, *first, *count),
            FastCommitTag::Creat(entry) => self.creat(entry),
            FastCommitTag::Link(entry) => self.link(entry),
            FastCommitTag::Unlink(entry) => self.unlink(entry),
            FastCommitTag::Inode { ino, raw } => self.inode(*ino, raw),
            FastCommitTag::Pad | FastCommitTag::Tail { .. } | FastCommitTag::Head { .. } => Ok(()),
        }
    }

    /// The end: bitmaps and block counts of what was touched.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(super) fn finish(mut self) -> Result<()> {
        let mut touched: Vec<InodeNo> = self.touched.iter().copied().collect();
        touched.sort_unstable();
        for inode in touched {
            if let Some(mut record) = self.live(inode)? {
                self.mark_owned(&mut record)?;
                self.transaction.write_inode(&mut record)?;
            }
        }
        Ok(())
    }

    fn instance(&self) -> &'b Instance {
        self.transaction.instance
    }

    /// A directory changed.
    fn stamp(&self, directory: &mut InodeRecord) {
        if let Some(now) = self.now {
            directory.set_mtime(now);
            directory.set_ctime(now);
        }
    }

    /// The record of an inode that is in use.
    fn live(&self, inode: InodeNo) -> Result<Option<InodeRecord>> {
        let instance = self.instance();
        if !is_for_users(instance, inode) {
            let what = "a fast commit changes it, and it is not for users";
            return Err(instance.damaged(inode, None, what));
        }
        if !instance.is_inode_in_use(inode)? {
            return Ok(None);
        }
        let record = instance.read_inode(inode)?;
        Ok((record.kind().is_some() && record.links() > 0).then_some(record))
    }

    fn add_range(&mut self, inode: InodeNo, extent: &Extent) -> Result<()> {
        let Some(mut record) = self.live(inode)? else {
            return Ok(());
        };
        if !record.flags().contains(InodeFlags::EXTENTS) || extent.to_raw().is_none() {
            let what = "a fast commit adds a range that it can't have";
            return Err(self.instance().damaged(inode, Some(extent.start), what));
        }
        self.space
            .check(self.instance(), inode, extent.start, extent.len.into())?;
        self.touched.insert(inode);
        let mut tree = ExtentTree {
            transaction: self.transaction,
            record: &mut record,
        };
        let removed = tree.punch(extent.first, extent.end())?;
        tree.insert(*extent)?;
        let range = extent.start.0..extent.start.0 + u64::from(extent.len);
        for (start, count) in removed {
            // Blocks that stay, or that went elsewhere, are marked again in the end.
            if !range.contains(&start.0) {
                self.space
                    .mark(self.transaction, inode, start, count, false)?;
            }
        }
        self.transaction.write_inode(&mut record)
    }

    fn del_range(&mut self, inode: InodeNo, first: FileBlock, count: u32) -> Result<()> {
        let Some(mut record) = self.live(inode)? else {
            return Ok(());
        };
        if !record.flags().contains(InodeFlags::EXTENTS) {
            let what = "a fast commit takes away a range that it can't have";
            return Err(self.instance().damaged(inode, None, what));
        }
        self.touched.insert(inode);
        let end = FileBlock(first.0.saturating_add(count));
        let mut tree = ExtentTree {
            transaction: self.transaction,
            record: &mut record,
        };
        for (start, count) in tree.punch(first, end)? {
            self.space
                .mark(self.transaction, inode, start, count, false)?;
        }
        self.transaction.write_inode(&mut record)
    }

    fn creat(&mut self, entry: &FastCommitEntry<'_>) -> Result<()> {
        let Some(mut record) = self.live(entry.ino)? else {
            return Ok(());
        };
        let is_directory = record.kind() == Some(FileKind::Directory);
        if is_directory {
            let has_block = record.size() > 0 && {
                let disk = Directory {
                    transaction: self.transaction,
                    record: &mut record,
                }
                .disk()?;
                !disk.has_inline_data()
                    && !matches!(
                        self.instance().map_blocks(&disk, FileBlock(0))?.target,
                        crate::map_blocks::Target::Hole
                    )
            };
            if !has_block {
                make_directory(self.transaction, &mut record, entry.parent)?;
            }
            record.set_links(2);
            self.touched.insert(entry.ino);
        } else {
            record.set_links(1);
        }
        self.transaction.write_inode(&mut record)?;
        let added = self.add_name(entry, &record)?;
        if added && is_directory {
            self.count_subdirectory(entry.parent, true)?;
        }
        Ok(())
    }

    fn link(&mut self, entry: &FastCommitEntry<'_>) -> Result<()> {
        let Some(mut record) = self.live(entry.ino)? else {
            return Ok(());
        };
        if self.add_name(entry, &record)? {
            record.set_links(record.links().saturating_add(1));
            self.transaction.write_inode(&mut record)?;
        }
        Ok(())
    }

    fn unlink(&mut self, entry: &FastCommitEntry<'_>) -> Result<()> {
        let (Some(mut parent), Some(name)) = (self.live(entry.parent)?, EntryName::new(entry.name))
        else {
            return Ok(());
        };
        if parent.kind() != Some(FileKind::Directory) {
            return Ok(());
        }
        let mut directory = Directory {
            transaction: self.transaction,
            record: &mut parent,
        };
        // The name may belong to another file by now.
        let Some(named) = directory
            .find(&name)?
            .filter(|named| named.inode == entry.ino)
        else {
            return Ok(());
        };
        directory.remove(&named)?;
        self.stamp(&mut parent);
        self.transaction.write_inode(&mut parent)?;
        let Some(mut record) = self.live(entry.ino)? else {
            return Ok(());
        };
        if record.kind() == Some(FileKind::Directory) {
            self.count_subdirectory(entry.parent, false)?;
            record.set_links(0);
        } else {
            record.set_links(record.links().saturating_sub(1));
        }
        if record.links() == 0 {
            self.delete(record)
        } else {
            self.transaction.write_inode(&mut record)
        }
    }

    /// Puts a name into its directory, unless it is there. Returns whether it was not.
    fn add_name(&mut self, entry: &FastCommitEntry<'_>, record: &InodeRecord) -> Result<bool> {
        let instance = self.instance();
        let parent = self
            .live(entry.parent)?
            .filter(|parent| parent.kind() == Some(FileKind::Directory));
        let (Some(mut parent), Some(name)) = (parent, EntryName::new(entry.name)) else {
            let what = "a fast commit adds a name to it, and it is no directory";
            return Err(instance.damaged(entry.parent, None, what));
        };
        let mut directory = Directory {
            transaction: self.transaction,
            record: &mut parent,
        };
        if directory.find(&name)?.is_some() {
            return Ok(false);
        }
        directory.insert(&name, entry.ino, entry_kind(record))?;
        self.touched.insert(entry.parent);
        self.stamp(&mut parent);
        self.transaction.write_inode(&mut parent)?;
        Ok(true)
    }

    /// Counts a subdirectory that came or went.
    fn count_subdirectory(&mut self, parent: InodeNo, came: bool) -> Result<()> {
        let Some(mut record) = self.live(parent)? else {
            return Ok(());
        };
        let uncounted = record.links() == 1;
        let links = match (uncounted, came) {
            (true, _) => 1,
            (false, true) if record.links() >= LINKS_MAX => {
                let dir_nlink = self
                    .instance()
                    .superblock
                    .has_ro_compat(RoCompat::DIR_NLINK);
                if dir_nlink { 1 } else { record.links() }
            }
            (false, true) => record.links() + 1,
            (false, false) => record.links().saturating_sub(1).max(2),
        };
        record.set_links(links);
        self.transaction.write_inode(&mut record)
    }

    /// Deletes a file whose last name went.
    fn delete(&mut self, mut record: InodeRecord) -> Result<()> {
        self.mark_owned(&mut record)?;
        self.touched.remove(&record.ino());
        // The transaction's size is not limited, so these come to their end.
        if let Some(proof) = self.transaction.recovering() {
            let mut cut = Cut::while_recovering(proof, record);
            remove_blocks(self.transaction, &mut cut, FileBlock(0))?;
            record = cut.into_record();
        }
        let now = clock::seconds();
        release_xattrs(self.transaction, &mut record, now)?;
        free_inode(self.transaction, &mut record, now)
    }

    /// Marks every block of an inode as in use, and counts them.
    fn mark_owned(&mut self, record: &mut InodeRecord) -> Result<()> {
        let has_map = matches!(
            record.kind(),
            Some(FileKind::Regular | FileKind::Directory | FileKind::Symlink)
        );
        // Blocks of other maps are not named by fast commits.
        if !has_map || !record.flags().contains(InodeFlags::EXTENTS) {
            return Ok(());
        }
        let instance = self.instance();
        let inode = record.ino();
        let (extents, nodes) = ExtentTree {
            transaction: self.transaction,
            record,
        }
        .read()?;
        let mut blocks = u64::from(record.file_acl().is_some());
        for (start, count) in extents
            .iter()
            .map(|extent| (extent.start, u32::from(extent.len)))
            .chain(nodes.iter().map(|node| (*node, 1)))
        {
            self.space
                .mark(self.transaction, inode, start, count, true)?;
            blocks += u64::from(count);
        }
        blocks += value_blocks(instance, record)?;
        record
            .set_sectors(blocks * u64::from(instance.superblock.block_size() / 512))
            .at(&instance.damage, Some(inode), None)
    }
}

/// Blocks of the inodes that hold values of the inode's attributes: they are counted with it.
fn value_blocks(instance: &Instance, record: &InodeRecord) -> Result<u64> {
    let limits = XattrLimits::from(&instance.superblock);
    let block_size = instance.superblock.block_size();
    let sum = |xattrs: &Xattrs<'_>| -> u64 {
        xattrs
            .entries()
            .map(|entry| match entry.value {
                Value::Inode { len, .. } => u64::from(len.div_ceil(block_size)),
                Value::Bytes(_) => 0,
            })
            .sum()
    };
    let mut blocks = 0;
    if let Some(region) = record.xattr_region() {
        let xattrs =
            Xattrs::in_inode(region, &limits).at(&instance.damage, Some(record.ino()), None)?;
        blocks += xattrs.as_ref().map_or(0, sum);
    }
    if let Some(block) = record.file_acl() {
        let buffer = instance.read_block(block)?;
        blocks += Xattrs::in_block(&buffer, &limits)
            .map(|xattrs| sum(&xattrs))
            .at(&instance.damage, Some(record.ino()), Some(block))?;
    }
    Ok(blocks)
}

/// Whether users may reach an inode: the root, or one for files.
fn is_for_users(instance: &Instance, inode: InodeNo) -> bool {
    let superblock = &instance.superblock;
    inode == InodeNo::ROOT
        || (inode >= superblock.first_inode() && inode.0 <= superblock.inodes_count())
}
