//! Which blocks hold a file: extents, or the block map of ext2 and ext3.

use std::ops::Range;

use pagefence_ext4_format::extent::{
    self, Child, Extent, ExtentNodeMut, FILE_BLOCKS_END, MAX_EXTENT_LEN, entries_that_fit,
};
use pagefence_ext4_format::indirect::{DIRECT_SLOTS, MapShape};
use pagefence_ext4_format::inode::{Inode, InodeFlags};
use pagefence_ext4_format::{BlockNo, Corruption, FileBlock};

use super::builder::Builder;
use super::error::{EntryError, MkfsError};

/// File blocks that lie one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) blocks: Range<u64>,
}

impl Run {
    fn len(&self) -> u32 {
        (self.blocks.end - self.blocks.start) as u32
    }
}

/// Puts the blocks of `pieces` into the file blocks from 0 on.
pub(super) fn consecutive(pieces: Vec<Range<u64>>) -> Vec<Run> {
    let mut first = 0;
    let run = |blocks: Range<u64>| {
        let run = Run { first, blocks };
        first += run.len();
        run
    };
    pieces.into_iter().map(run).collect()
}

/// The block of a file block, and whether any of a range is mapped, in runs that are in order.
struct Lookup<'a>(&'a [Run]);

impl Lookup<'_> {
    fn block(&self, file_block: u64) -> Option<u64> {
        let behind = self
            .0
            .partition_point(|run| u64::from(run.first) <= file_block);
        let run = self.0.get(behind.checked_sub(1)?)?;
        let block = run.blocks.start + (file_block - u64::from(run.first));
        run.blocks.contains(&block).then_some(block)
    }

    fn any(&self, range: &Range<u64>) -> bool {
        let next = self
            .0
            .partition_point(|run| u64::from(run.first) < range.start);
        self.block(range.start).is_some()
            || self
                .0
                .get(next)
                .is_some_and(|run| u64::from(run.first) < range.end)
    }
}

/// Most blocks that a file can have.
pub(super) fn most_file_blocks(builder: &Builder<'_>) -> u64 {
    if builder.has_extents() {
        return FILE_BLOCKS_END.0.into();
    }
    MapShape::new(builder.sb.block_size()).map_or(0, |shape| shape.end().0.into())
}

/// Maps `runs` (in order of file blocks) into an inode, and counts their blocks and those of the
/// tree as its own.
pub(super) fn map(
    builder: &mut Builder<'_>,
    inode: &mut Inode,
    runs: &[Run],
) -> Result<(), MkfsError> {
    let data: u64 = runs.iter().map(|run| u64::from(run.len())).sum();
    let tree = if builder.has_extents() {
        inode.set_flags(inode.flags() | InodeFlags::EXTENTS);
        map_extents(builder, inode, runs)?
    } else {
        map_indirect(builder, inode, runs)?
    };
    let sectors_per_block = u64::from(builder.sb.block_size() / 512);
    inode.set_sectors((data + tree) * sectors_per_block)?;
    Ok(())
}

/// A node of the tree could not be made; that its sizes are right was checked before.
fn unfit(inode: &Inode) -> MkfsError {
    let (what, needed, have) = ("extent node", inode.block_area().len(), 0);
    MkfsError::Invalid(Corruption::Truncated { what, needed, have })
}

fn map_extents(
    builder: &mut Builder<'_>,
    inode: &mut Inode,
    runs: &[Run],
) -> Result<u64, MkfsError> {
    let mut extents = Vec::new();
    for run in runs {
        let mut first = run.first;
        let mut start = run.blocks.start;
        while start < run.blocks.end {
            let len = (run.blocks.end - start).min(MAX_EXTENT_LEN.into());
            extents.push(Extent {
                first: FileBlock(first),
                len: len as u16,
                start: BlockNo(start),
                unwritten: false,
            });
            first += len as u32;
            start += len;
        }
    }
    let mut tree_blocks = 0;
    let in_root = usize::from(entries_that_fit(inode.block_area().len()));
    if extents.len() <= in_root {
        let mut root =
            ExtentNodeMut::init(inode.block_area_mut(), 0).ok_or(Corruption::Truncated {
                what: "extent root",
                needed: 1,
                have: 0,
            })?;
        let fits = (extents.iter().enumerate()).all(|(at, extent)| root.insert_extent(at, extent));
        return if fits { Ok(0) } else { Err(unfit(inode)) };
    }
    let in_block = usize::from(entries_that_fit(builder.block_size()));
    let mut children = Vec::new();
    for leaf in extents.chunks(in_block) {
        let first = leaf.first().map_or(FileBlock(0), |extent| extent.first);
        let fill = |node: &mut ExtentNodeMut<'_>| {
            (leaf.iter().enumerate()).all(|(at, extent)| node.insert_extent(at, extent))
        };
        children.push(write_node(builder, inode, 0, first, fill)?);
        tree_blocks += 1;
    }
    let mut depth = 1;
    while children.len() > in_root {
        let mut above = Vec::new();
        for index in children.chunks(in_block) {
            let first = index.first().map_or(FileBlock(0), |child| child.first);
            let fill = |node: &mut ExtentNodeMut<'_>| {
                (index.iter().enumerate()).all(|(at, child)| node.insert_child(at, child))
            };
            above.push(write_node(builder, inode, depth, first, fill)?);
            tree_blocks += 1;
        }
        children = above;
        depth += 1;
    }
    let root = ExtentNodeMut::init(inode.block_area_mut(), depth);
    let fits = root.is_some_and(|mut root| {
        (children.iter().enumerate()).all(|(at, child)| root.insert_child(at, child))
    });
    if fits {
        Ok(tree_blocks)
    } else {
        Err(unfit(inode))
    }
}

/// Writes one block of an extent tree, and returns the entry that points to it.
fn write_node(
    builder: &mut Builder<'_>,
    inode: &Inode,
    depth: u16,
    first: FileBlock,
    fill: impl FnOnce(&mut ExtentNodeMut<'_>) -> bool,
) -> Result<Child, MkfsError> {
    let mut bytes = vec![0; builder.block_size()];
    if !ExtentNodeMut::init(&mut bytes, depth).is_some_and(|mut node| fill(&mut node)) {
        return Err(unfit(inode));
    }
    if builder.sb.has_metadata_csum() {
        extent::update_checksum(&mut bytes, inode.checksum_seed())?;
    }
    let block = builder.allocate_one()?;
    builder.writer.write(block, &bytes)?;
    Ok(Child {
        first,
        end: FILE_BLOCKS_END,
        block: BlockNo(block),
        depth,
    })
}

fn map_indirect(
    builder: &mut Builder<'_>,
    inode: &mut Inode,
    runs: &[Run],
) -> Result<u64, MkfsError> {
    let per_block = u64::from(builder.sb.block_size() / 4);
    let lookup = Lookup(runs);
    let mut tree_blocks = 0;
    let mut words = [0_u32; 15];
    for (slot, word) in (0..u64::from(DIRECT_SLOTS)).zip(&mut words) {
        *word = lookup.block(slot).map_or(Ok(0), narrow)?;
    }
    let mut first = u64::from(DIRECT_SLOTS);
    for height in 1..=3_u32 {
        let range = first..first + per_block.pow(height);
        first = range.end;
        if lookup.any(&range) {
            let block = write_indirect(builder, &lookup, height, range.start, &mut tree_blocks)?;
            words[DIRECT_SLOTS as usize + height as usize - 1] = block;
        }
    }
    put_words(inode, &words);
    Ok(tree_blocks)
}

/// Writes an indirect block `height` levels above the data, and those below it.
fn write_indirect(
    builder: &mut Builder<'_>,
    lookup: &Lookup<'_>,
    height: u32,
    first: u64,
    tree_blocks: &mut u64,
) -> Result<u32, MkfsError> {
    let block = builder.allocate_one()?;
    *tree_blocks += 1;
    let per_block = u64::from(builder.sb.block_size() / 4);
    let span = per_block.pow(height - 1);
    let mut bytes = vec![0; builder.block_size()];
    for (slot, word) in (0_u64..).zip(bytes.chunks_exact_mut(4)) {
        let range = first + slot * span..first + (slot + 1) * span;
        let pointer = if height == 1 {
            lookup.block(range.start).map_or(Ok(0), narrow)?
        } else if lookup.any(&range) {
            write_indirect(builder, lookup, height - 1, range.start, tree_blocks)?
        } else {
            0
        };
        word.copy_from_slice(&pointer.to_le_bytes());
    }
    builder.writer.write(block, &bytes)?;
    narrow(block)
}

/// Block maps have 32 bits: file systems without extents have no more blocks.
pub(super) fn narrow(block: u64) -> Result<u32, MkfsError> {
    u32::try_from(block).map_err(|_| {
        MkfsError::Invalid(Corruption::NumberRange {
            what: "block of a block map",
            number: block,
            count: 1 << 32,
        })
    })
}

/// Sets the fifteen pointers of a block map.
pub(super) fn put_words(inode: &mut Inode, words: &[u32; 15]) {
    for (to, word) in inode.block_area_mut().chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
}

/// Whether a file of so many bytes can be mapped.
pub(super) fn check_size(builder: &Builder<'_>, path: &[u8], bytes: u64) -> Result<(), MkfsError> {
    let blocks = bytes.div_ceil(builder.sb.block_size().into());
    if blocks > most_file_blocks(builder) {
        return Err(EntryError::FileTooLarge { bytes }.at(path));
    }
    Ok(())
}
