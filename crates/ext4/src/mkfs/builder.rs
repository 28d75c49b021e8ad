//! The state of a file system while it is made: which blocks and inodes are taken, and the inodes
//! to be written.

use std::collections::BTreeMap;
use std::ops::Range;

use pagefence_block_io::Device;
use pagefence_ext4_format::dir_entry::DirFormat;
use pagefence_ext4_format::features::{Compat, Incompat};
use pagefence_ext4_format::inode::{FileKind, Inode, Timestamp};
use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::{GroupNo, InodeNo};

use super::error::MkfsError;
use super::layout::{self, Group, all_blocks, group_range};
use super::space::UsedBlocks;
use super::write::Writer;
use super::{Parameters, Tree, geometry::Geometry};
use super::{directory, finish, special, superblock};

/// Where the marks of RAID and partitions are that lie at the end of a device.
const MARKS_AT_END_BYTES: u64 = 128 << 10;

/// A file system in the making.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    pub(super) sb: Superblock,
    pub(super) writer: Writer<'a>,
    pub(super) used: UsedBlocks,
    pub(super) groups: Vec<Group>,
    /// By number; those never taken are missing.
    pub(super) inodes: BTreeMap<u32, Inode>,
    pub(super) now: Timestamp,
    /// Where data is looked for next.
    goal: u64,
    next_inode: u32,
}

impl<'a> Builder<'a> {
    /// Lays the file system out; writes nothing.
    pub(super) fn new(
        device: &'a dyn Device,
        parameters: &Parameters,
        geometry: &Geometry,
    ) -> Result<Self, MkfsError> {
        let sb = superblock::create(parameters, geometry, device.size())?;
        let mut used = UsedBlocks::default();
        let groups = layout::place(&sb, &mut used)?;
        let goal = sb.first_data_block().0;
        let mut builder = Self {
            writer: Writer::new(device, sb.block_size(), parameters.contents),
            sb,
            used,
            groups,
            inodes: BTreeMap::new(),
            now: Timestamp {
                seconds: parameters.time_seconds,
                nanoseconds: 0,
            },
            goal,
            next_inode: 1,
        };
        builder.take_reserved_inodes()?;
        Ok(builder)
    }

    /// Fills the file system and writes it; the superblock comes last, so that what is cut short
    /// is no file system.
    pub(super) fn run(
        mut self,
        journal_blocks: Option<u64>,
        tree: &Tree,
    ) -> Result<Self, MkfsError> {
        self.wipe()?;
        self.set_overhead(journal_blocks);
        if self.sb.has_compat(Compat::RESIZE_INODE) {
            special::resize_inode(&mut self)?;
        }
        if let Some(blocks) = journal_blocks {
            special::journal(&mut self, blocks)?;
        }
        let lost_and_found = self.take_inode(FileKind::Directory)?;
        if self.sb.has_compat(Compat::ORPHAN_FILE) {
            special::orphan_file(&mut self)?;
        }
        directory::populate(&mut self, tree, lost_and_found)?;
        finish::write(&mut self)?;
        Ok(self)
    }

    /// Says how many blocks no file can have, as Linux counts them: what lies before the first
    /// group, metadata of groups, the journal without the blocks of its map. 0, which lets Linux
    /// count, where the number does not fit.
    fn set_overhead(&mut self, journal_blocks: Option<u64>) {
        let before = self.sb.first_data_block().0;
        let overhead = before + self.used.count() + journal_blocks.unwrap_or(0);
        self.sb.raw_mut().s_overhead_clusters = u32::try_from(overhead).unwrap_or(0).into();
    }

    /// Takes away what would let a device that held something else be taken for that.
    fn wipe(&mut self) -> Result<(), MkfsError> {
        if self.writer.reads_as_zeros() {
            return Ok(());
        }
        let block_size = u64::from(self.sb.block_size());
        let start = (self.sb.superblock_block().0 + 1) * block_size;
        self.writer.wipe(0..start)?;
        let end = self.sb.blocks_count() * block_size;
        let last = end.saturating_sub(MARKS_AT_END_BYTES).max(start);
        self.writer.wipe(last..end)?;
        Ok(self.writer.flush()?)
    }

    pub(super) fn block_size(&self) -> usize {
        self.sb.block_size() as usize
    }

    pub(super) fn has_extents(&self) -> bool {
        self.sb.has_incompat(Incompat::EXTENTS)
    }

    pub(super) fn dir_format(&self) -> DirFormat {
        DirFormat {
            filetype: self.sb.has_incompat(Incompat::FILETYPE),
            checksums: self.sb.has_metadata_csum(),
            last_inode: InodeNo(self.sb.inodes_count()),
        }
    }

    /// Blocks not in use.
    pub(super) fn free_blocks(&self) -> u64 {
        let all = all_blocks(&self.sb);
        (all.end - all.start) - self.used.count()
    }

    /// Blocks not in use in a group.
    pub(super) fn free_in_group(&self, group: GroupNo) -> u64 {
        let range = group_range(&self.sb, group);
        range.end - range.start - self.used.count_in(&range)
    }

    /// Takes `count` blocks for data: in one run if there is one, else the first free ones behind
    /// those taken last.
    pub(super) fn allocate(&mut self, count: u64) -> Result<Vec<Range<u64>>, MkfsError> {
        let runs = self.allocate_near(count, self.goal)?;
        if let Some(last) = runs.last() {
            self.goal = last.end;
        }
        Ok(runs)
    }

    /// Takes one block, for a tree of blocks or a link.
    pub(super) fn allocate_one(&mut self) -> Result<u64, MkfsError> {
        let goal = self.goal;
        let runs = self.allocate_near(1, goal)?;
        let block = runs.first().map_or(goal, |run| run.start);
        self.goal = block + 1;
        Ok(block)
    }

    /// Takes `count` blocks at `goal` or behind it, and before it if there are not enough.
    pub(super) fn allocate_near(
        &mut self,
        count: u64,
        goal: u64,
    ) -> Result<Vec<Range<u64>>, MkfsError> {
        let free = self.free_blocks();
        if count > free {
            return Err(MkfsError::NoSpace {
                needed: count,
                free,
            });
        }
        let all = all_blocks(&self.sb);
        let (behind, before) = (goal..all.end, all.start..goal);
        let whole = self
            .used
            .find(&behind, count)
            .or_else(|| self.used.find(&all, count));
        if let Some(start) = whole.filter(|_| count > 0) {
            self.used.mark(start..start + count);
            return Ok(std::iter::once(start..start + count).collect());
        }
        let mut runs = Vec::new();
        let mut left = count;
        for mut rest in [behind, before] {
            while left > 0 {
                let Some(free) = self.used.next_free(&rest) else {
                    break;
                };
                let run = free.start..free.end.min(free.start + left);
                left -= run.end - run.start;
                rest.start = run.end;
                self.used.mark(run.clone());
                runs.push(run);
            }
        }
        debug_assert_eq!(left, 0, "as many blocks as asked for were free");
        Ok(runs)
    }

    /// Takes the next inode.
    pub(super) fn take_inode(&mut self, kind: FileKind) -> Result<InodeNo, MkfsError> {
        let ino = InodeNo(self.next_inode);
        let inodes = self.sb.inodes_count();
        if ino.0 > inodes {
            return Err(MkfsError::NoInodes { inodes });
        }
        let location = self.sb.locate_inode(ino)?;
        let group = &mut self.groups[location.group.0 as usize];
        group.used_inodes = location.index + 1;
        group.directories += u32::from(kind == FileKind::Directory);
        self.next_inode += 1;
        Ok(ino)
    }

    /// The inodes before the first for files are taken whether they are used or not. Their
    /// records are zero, but their checksums must be right.
    fn take_reserved_inodes(&mut self) -> Result<(), MkfsError> {
        let zeros = vec![0; self.sb.inode_size()];
        for number in 1..self.sb.first_inode().0 {
            let is_root = InodeNo(number) == InodeNo::ROOT;
            let kind = if is_root {
                FileKind::Directory
            } else {
                FileKind::Regular
            };
            let ino = self.take_inode(kind)?;
            self.inodes
                .insert(ino.0, Inode::read(&zeros, ino, &self.sb)?);
        }
        Ok(())
    }

    /// A new inode with the times of the file system.
    pub(super) fn new_inode(&self, ino: InodeNo, kind: FileKind, permissions: u16) -> Inode {
        let mut inode = Inode::create(ino, &self.sb, kind, permissions, 0);
        inode.set_links(1);
        inode.set_atime(self.now);
        inode.set_ctime(self.now);
        inode.set_mtime(self.now);
        inode.set_crtime(self.now);
        inode
    }

    /// Keeps an inode to be written.
    pub(super) fn put_inode(&mut self, inode: Inode) {
        self.inodes.insert(inode.ino().0, inode);
    }
}
