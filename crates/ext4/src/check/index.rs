//! The index of a hashed directory: every block of entries is in it once, in the order of hashes.

use std::collections::{BTreeMap, BTreeSet};

use pagefence_ext4_format::dir_entry::RawDirEntry;
use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::htree::{self, DirHasher, DxNode, DxRoot, HtreeCorruption, HtreeFormat};
use pagefence_ext4_format::inode::{Inode, InodeFlags};
use pagefence_ext4_format::{Corruption, FileBlock};
use zerocopy::FromBytes;

use super::map::{MappedRun, find};
use super::{CheckError, Checker, Step, Stop};

/// Blocks of entries of one directory, at most: 16 GiB of 4 KiB blocks.
const LEAVES_MAX: usize = 1 << 22;

/// What an index says of the blocks of its directory.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Its own blocks, the root included.
    pub(super) nodes: BTreeSet<u32>,
    /// The blocks of entries, each with the least hash of its names, and that of the next block.
    leaves: BTreeMap<u32, (u32, u32)>,
    /// How names are hashed; nothing where that is not for us to know.
    hasher: Option<DirHasher>,
    /// A part of it could not be read.
    is_partial: bool,
}

impl Index {
    /// Whether a block is in the index, or may be.
    pub(super) fn has(&self, block: u32) -> bool {
        self.is_partial || self.nodes.contains(&block) || self.leaves.contains_key(&block)
    }

    /// Whether a name may stand in a block of entries.
    pub(super) fn fits(&self, block: u32, name: &[u8]) -> bool {
        let (Some(hasher), Some((least, next))) = (&self.hasher, self.leaves.get(&block)) else {
            return true;
        };
        let hash = hasher.hash(name).major;
        // Names of one hash may go on in the next block, which bit 0 says.
        let before_next = if next & 1 == 1 {
            hash <= next & !1
        } else {
            hash < *next
        };
        hash >= least & !1 && before_next
    }
}

/// An index block on the way down.
struct Level<'n> {
    node: DxNode<'n>,
    /// Levels of nodes below.
    below: u8,
    /// The hash that comes after all of it.
    next: u32,
}

impl Checker<'_> {
    /// Reads the whole index of a directory of `blocks` blocks; nothing if it can't be looked at.
    pub(super) fn read_index(
        &mut self,
        record: &Inode,
        runs: &[MappedRun],
        blocks: u32,
    ) -> Step<Option<Index>> {
        let number = record.ino();
        let format = HtreeFormat {
            checksums: self.instance.checksums,
            large_dir: self.instance.superblock.has_incompat(Incompat::LARGE_DIR),
            blocks,
        };
        // That the first block is missing is told elsewhere.
        let Some(block) = find(runs, FileBlock(0)) else {
            return Ok(None);
        };
        let buffer = self.instance.buffers.read(block.0)?;
        if self.instance.checksums
            && let Err(what) = htree::verify_checksum(&buffer, record.checksum_seed())
        {
            self.report
                .inode(number, format_args!("block {block}: {what}"))?;
        }
        let root = match DxRoot::parse(&buffer, &format) {
            Ok(root) => root,
            Err(Corruption::Htree(HtreeCorruption::SipHash)) => return Ok(None),
            Err(what) => {
                self.report.inode(number, what)?;
                return Ok(None);
            }
        };
        let is_folded = record.flags().contains(InodeFlags::CASEFOLD);
        let mut index = Index {
            hasher: self
                .instance
                .dir_hasher(Some(root.hash_version))
                .ok()
                .filter(|_| !is_folded),
            ..Index::default()
        };
        index.nodes.insert(0);
        let level = Level {
            node: root.node,
            below: root.indirect_levels,
            next: u32::MAX,
        };
        self.read_level(record, runs, &format, &level, &mut index)?;
        Ok(Some(index))
    }

    fn read_level(
        &mut self,
        record: &Inode,
        runs: &[MappedRun],
        format: &HtreeFormat,
        level: &Level<'_>,
        index: &mut Index,
    ) -> Step {
        let number = record.ino();
        for at in 0..level.node.len() {
            let Some((least, child)) = level.node.get(at) else {
                break;
            };
            let next = level.node.get(at + 1).map_or(level.next, |(next, _)| next);
            // Each block but once: a circle ends here.
            if index.nodes.contains(&child.0) || index.leaves.contains_key(&child.0) {
                self.report.inode(
                    number,
                    format_args!("its index leads to file block {child} twice"),
                )?;
                continue;
            }
            if index.leaves.len() >= LEAVES_MAX {
                return Err(Stop::Failed(CheckError::Memory));
            }
            if level.below == 0 {
                index.leaves.insert(child.0, (least, next));
                continue;
            }
            index.nodes.insert(child.0);
            self.read_node(
                record,
                runs,
                format,
                (child, least, next, level.below),
                index,
            )?;
        }
        Ok(())
    }

    /// The node in file block `place.0`, whose hashes go from `place.1` to `place.2`, with
    /// `place.3` levels from there on.
    fn read_node(
        &mut self,
        record: &Inode,
        runs: &[MappedRun],
        format: &HtreeFormat,
        place: (FileBlock, u32, u32, u8),
        index: &mut Index,
    ) -> Step {
        let number = record.ino();
        let (child, least, next, below) = place;
        let Some(block) = find(runs, child) else {
            index.is_partial = true;
            return self.report.inode(
                number,
                format_args!("its index leads to file block {child}, which is a hole"),
            );
        };
        let buffer = self.instance.buffers.read(block.0)?;
        if self.instance.checksums
            && let Err(what) = htree::verify_checksum(&buffer, record.checksum_seed())
        {
            self.report
                .inode(number, format_args!("block {block}: {what}"))?;
        }
        // To who knows no index it is an entry without a name.
        let checksums = self.instance.checksums;
        let is_nameless = RawDirEntry::ref_from_prefix(&buffer)
            .is_ok_and(|(entry, _)| entry.name_len == 0 && !(checksums && entry.file_type != 0));
        if !is_nameless {
            self.report.inode(
                number,
                format_args!("block {block}: an index node that begins with a name"),
            )?;
        }
        let node = match DxNode::parse(&buffer, format, least) {
            Ok(node) => node,
            Err(what) => {
                index.is_partial = true;
                return self
                    .report
                    .inode(number, format_args!("block {block}: {what}"));
            }
        };
        if let Some((last, _)) = node.get(node.len().saturating_sub(1))
            && last > next
        {
            self.report.inode(
                number,
                format_args!("block {block}: its hashes go on past those of the next block"),
            )?;
        }
        let level = Level {
            node,
            below: below - 1,
            next,
        };
        self.read_level(record, runs, format, &level, index)
    }
}
