//! Every directory: the order of its blocks, its entries, and what their names lead to.

use std::collections::HashSet;

use pagefence_block_io::Buffer;
use pagefence_ext4_format::dir_entry::{
    self, DirBlock, DirCorruption, DirEntry, InlineDir, RawDirEntry, Role,
};
use pagefence_ext4_format::inode::{FileKind, Inode, InodeFlags};
use pagefence_ext4_format::xattr::name::{INLINE_DATA, SYSTEM};
use pagefence_ext4_format::xattr::{Value, XattrLimits, Xattrs};
use pagefence_ext4_format::{BlockNo, Corruption, InodeNo};
use zerocopy::FromBytes;

use super::index::Index;
use super::map::{MappedRun, Runs};
use super::report::shown;
use super::{Checker, Stage, Step};

/// Names that are compared with each other; past it, those of one block are.
const NAMES_MAX: usize = 1 << 16;

/// The kind of an entry that does not say one.
const UNKNOWN: u8 = 0;

/// A directory, and where it hangs in the tree.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Directory {
    /// What `..` leads to.
    pub(super) dot_dot: Option<InodeNo>,
    /// The directory that has a name for it.
    pub(super) parent: Option<InodeNo>,
    pub(super) reach: Reach,
}

/// Whether the way from a directory up to the root was gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reach {
    /// Not yet.
    #[default]
    Unknown,
    /// It is being gone.
    OnWay,
    /// It was, and if it does not end at the root that was told.
    Settled,
}

/// What is looked at while a directory is gone through.
struct Visit<'v> {
    record: &'v Inode,
    index: Option<&'v Index>,
    names: HashSet<Vec<u8>>,
}

impl Visit<'_> {
    fn number(&self) -> InodeNo {
        self.record.ino()
    }

    /// Names are ciphertext: any bytes.
    fn is_opaque(&self) -> bool {
        self.record.flags().contains(InodeFlags::ENCRYPT)
    }
}

impl Checker<'_> {
    pub(super) fn check_directories(&mut self) -> Step {
        for group in self.inodes.groups() {
            for (number, state) in self.inodes.of_group(group) {
                if state.kind() == Some(FileKind::Directory) {
                    self.memory.take(64)?;
                    self.directories.insert(number, Directory::default());
                }
            }
        }
        let total = self.directories.len() as u64;
        let mut done = 0;
        for group in self.inodes.groups() {
            for (number, state) in self.inodes.of_group(group) {
                if state.kind() != Some(FileKind::Directory) {
                    continue;
                }
                self.report.progress(Stage::Directories, done, total)?;
                done += 1;
                // What is deleted has no names any more.
                if !self.orphans.contains(&number) {
                    self.check_directory(number, state.shares_blocks())?;
                }
            }
        }
        Ok(())
    }

    fn check_directory(&mut self, number: InodeNo, shares_blocks: bool) -> Step {
        let superblock = &self.instance.superblock;
        let record = self.with_record(number, |bytes| Inode::read(bytes, number, superblock))?;
        let Some(Ok(record)) = record else {
            return Ok(());
        };
        if record.flags().contains(InodeFlags::INLINE_DATA) {
            return self.check_inline_directory(&record);
        }
        let runs = if shares_blocks {
            let mut runs = Runs::of(&self.instance, &record, &mut self.shared_left)?;
            runs.retain(|run| {
                let left = self.shared_left.checked_sub(u64::from(run.len));
                self.shared_left = left.unwrap_or(self.shared_left);
                left.is_some()
            });
            runs
        } else {
            Runs::of(&self.instance, &record, &mut { u64::MAX })?
        };
        let block_size = u64::from(self.instance.superblock.block_size());
        let blocks = u32::try_from(record.size() / block_size).unwrap_or(u32::MAX);
        self.check_holes(number, &runs)?;
        let is_indexed = record.flags().contains(InodeFlags::INDEX);
        let index = if is_indexed {
            self.read_index(&record, &runs, blocks)?
        } else {
            None
        };
        let mut visit = Visit {
            record: &record,
            index: index.as_ref(),
            names: HashSet::new(),
        };
        for run in runs.iter().filter(|run| !run.unwritten) {
            for into in 0..run.len {
                let (file_block, block) = (
                    run.first.saturating_add(into),
                    BlockNo(run.start.0.saturating_add(u64::from(into))),
                );
                if file_block < blocks {
                    self.check_dir_block(&mut visit, file_block, block)?;
                }
            }
        }
        Ok(())
    }

    fn check_holes(&mut self, number: InodeNo, runs: &[MappedRun]) -> Step {
        let mut due = 0;
        for run in runs {
            if run.first != due {
                self.report.inode(
                    number,
                    format_args!("a directory with a hole at file block {due}"),
                )?;
            }
            due = run.first.saturating_add(run.len);
        }
        Ok(())
    }

    /// A block of a directory, which may belong to its index.
    fn check_dir_block(&mut self, visit: &mut Visit<'_>, file_block: u32, block: BlockNo) -> Step {
        let number = visit.number();
        let buffer = self.instance.buffers.read(block.0)?;
        let is_first = file_block == 0;
        let is_node = visit
            .index
            .is_some_and(|index| index.nodes.contains(&file_block));
        if let Some(index) = visit.index
            && !index.has(file_block)
        {
            self.report.inode(
                number,
                format_args!("its index does not lead to file block {file_block}"),
            )?;
        }
        // Where the index is told wrong, or can't be known, its blocks have checksums of their own.
        let is_told = visit.index.is_some() || !visit.record.flags().contains(InodeFlags::INDEX);
        if self.instance.checksums
            && !is_node
            && is_told
            && let Err(what) = dir_entry::verify_checksum(&buffer, visit.record.checksum_seed())
        {
            self.report
                .inode(number, format_args!("block {block}: {what}"))?;
        }
        let view = DirBlock::new(&buffer, &self.instance.dir_format, is_first);
        if is_first {
            match view.dots() {
                Ok((dot, dot_dot)) => {
                    if dot != number {
                        self.report
                            .inode(number, format_args!("its . leads to inode {dot}"))?;
                    }
                    self.set_dot_dot(number, dot_dot);
                }
                Err(what) => self.report.inode(number, what)?,
            }
        }
        if is_node && !is_first {
            return Ok(());
        }
        if visit.names.len() > NAMES_MAX {
            visit.names.clear();
        }
        for entry in view.entries() {
            match entry {
                Ok(entry) => self.check_name(visit, Some(file_block), &entry)?,
                Err(what) => self.check_odd_entry(visit, block, &buffer, &what)?,
            }
        }
        Ok(())
    }

    fn set_dot_dot(&mut self, number: InodeNo, dot_dot: InodeNo) {
        if let Some(directory) = self.directories.get_mut(&number) {
            directory.dot_dot = Some(dot_dot);
        }
    }

    /// An entry that is not handed out as a name. If only its name is odd, what it leads to still
    /// counts.
    fn check_odd_entry(
        &mut self,
        visit: &Visit<'_>,
        block: BlockNo,
        buffer: &Buffer,
        what: &Corruption,
    ) -> Step {
        let number = visit.number();
        let (offset, is_name) = match what {
            Corruption::DirEntry(DirCorruption::Name { offset }) => (Some(*offset), true),
            Corruption::DirEntry(DirCorruption::MisplacedDots { offset }) => (Some(*offset), false),
            _ => (None, false),
        };
        let is_ciphertext = is_name && visit.is_opaque();
        if !is_ciphertext {
            self.report
                .inode(number, format_args!("block {block}: {what}"))?;
        }
        let raw = offset
            .and_then(|offset| buffer.get(offset..))
            .and_then(|bytes| RawDirEntry::ref_from_prefix(bytes).ok());
        let Some((raw, rest)) = raw else {
            return Ok(());
        };
        let name = rest
            .get(..usize::from(raw.name_len))
            .unwrap_or(&[])
            .to_vec();
        let (inode, file_type) = (InodeNo(raw.inode.get()), raw.file_type);
        self.check_target(number, &name, inode, file_type, Role::Name)
    }

    /// An entry that can be used.
    fn check_name(
        &mut self,
        visit: &mut Visit<'_>,
        file_block: Option<u32>,
        entry: &DirEntry<'_>,
    ) -> Step {
        let number = visit.number();
        if entry.role == Role::Name {
            if !visit.names.insert(entry.name.to_vec()) {
                self.report
                    .inode(number, format_args!("name {} twice", shown(entry.name)))?;
            }
            if let (Some(index), Some(file_block)) = (visit.index, file_block)
                && !index.fits(file_block, entry.name)
            {
                self.report.inode(
                    number,
                    format_args!(
                        "name {} does not belong into file block {file_block} by its hash",
                        shown(entry.name)
                    ),
                )?;
            }
        }
        self.check_target(number, entry.name, entry.inode, entry.file_type, entry.role)
    }

    /// What an entry leads to.
    fn check_target(
        &mut self,
        number: InodeNo,
        name: &[u8],
        target: InodeNo,
        file_type: u8,
        role: Role,
    ) -> Step {
        if self.is_lost(target) {
            return Ok(());
        }
        let is_name = role == Role::Name;
        if is_name && target < self.instance.superblock.first_inode() {
            return self.report.inode(
                number,
                format_args!("name {} leads to the reserved inode {target}", shown(name)),
            );
        }
        let state = self.inodes.get(target);
        if !state.is_in_use() {
            return self.report.inode(
                number,
                format_args!(
                    "name {} leads to inode {target}, which is not in use",
                    shown(name)
                ),
            );
        }
        // An entry need not say it.
        let says = self.instance.dir_format.filetype && file_type != UNKNOWN;
        if says && state.kind().is_some() && FileKind::from_byte(file_type) != state.kind() {
            self.report.inode(
                number,
                format_args!(
                    "name {} has another kind than inode {target}, to which it leads",
                    shown(name)
                ),
            )?;
        }
        if state.is_ea_inode() {
            self.report.inode(
                number,
                format_args!("name {} leads to the attribute inode {target}", shown(name)),
            )?;
        }
        self.inodes.count_link(target, &mut self.memory)?;
        if is_name
            && state.kind() == Some(FileKind::Directory)
            && let Some(directory) = self.directories.get_mut(&target)
        {
            match directory.parent {
                None => directory.parent = Some(number),
                Some(parent) => self.report.inode(
                    number,
                    format_args!(
                        "name {} leads to directory {target}, which has a name in directory \
                         {parent}",
                        shown(name)
                    ),
                )?,
            }
        }
        Ok(())
    }

    fn check_inline_directory(&mut self, record: &Inode) -> Step {
        let number = record.ino();
        let limits = XattrLimits::from(&self.instance.superblock);
        let rest = record
            .xattr_region()
            .and_then(|region| Xattrs::in_inode(region, &limits).ok().flatten())
            .and_then(|xattrs| xattrs.find(SYSTEM, INLINE_DATA))
            .and_then(|entry| match entry.value {
                Value::Bytes(bytes) => Some(bytes),
                Value::Inode { .. } => None,
            })
            .unwrap_or(&[]);
        let format = self.instance.dir_format;
        let directory = match InlineDir::parse(record.block_area(), rest, &format) {
            Ok(directory) => directory,
            Err(what) => return self.report.inode(number, what),
        };
        let parent = directory.parent();
        self.set_dot_dot(number, parent);
        let file_type = FileKind::Directory.to_byte();
        // There are no entries for these.
        self.check_target(number, b".", number, file_type, Role::Dot)?;
        self.check_target(number, b"..", parent, file_type, Role::DotDot)?;
        let mut visit = Visit {
            record,
            index: None,
            names: HashSet::new(),
        };
        for entry in directory.entries() {
            match entry {
                Ok(entry) => self.check_name(&mut visit, None, &entry)?,
                Err(what) => self.report.inode(number, what)?,
            }
        }
        Ok(())
    }
}
