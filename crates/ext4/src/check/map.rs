//! The blocks of one file, by its extent tree or its block map: a walk in the order of the file
//! that goes on behind what is damaged.

use std::ops::Range;

use pagefence_ext4_format::extent::{self, Child, Extent, ExtentNode, Place, entries_that_fit};
use pagefence_ext4_format::indirect::{DIRECT_SLOTS, Pointers, ROOT_SLOTS, Run};
use pagefence_ext4_format::inode::{FileKind, Inode, InodeFlags};
use pagefence_ext4_format::{BlockNo, Corruption, FileBlock, InodeNo};

use super::duplicates::Owners;
use super::{BlockUsage, CheckError, Checker, Memory, Report, Step, Stop};
use crate::instance::Instance;

/// Runs of one file that are kept, at most: 96 MiB of them.
const RUNS_MAX: usize = 1 << 22;

/// Who hears of a file's blocks.
pub(super) trait Visitor {
    /// A block of the map itself. Says whether what is below is to be visited.
    fn node(&mut self, block: BlockNo) -> Step<bool>;

    /// A run of data.
    fn run(&mut self, run: &MappedRun) -> Step;

    /// Something is wrong; what depends on it is left out.
    fn damaged(&mut self, block: Option<BlockNo>, what: Corruption) -> Step;

    /// A node of an extent tree says that `max` entries fit.
    fn capacity(&mut self, _block: Option<BlockNo>, _max: u16, _fits: u16) -> Step {
        Ok(())
    }
}

/// A run of file blocks that lie in a run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MappedRun {
    /// First file block.
    pub(super) first: u32,
    /// Where it lies.
    pub(super) start: BlockNo,
    /// Blocks, at least one.
    pub(super) len: u32,
    /// Allocated but never written.
    pub(super) unwritten: bool,
}

/// Whether `i_block` of this inode maps blocks.
pub(super) fn has_map(record: &Inode) -> bool {
    match record.kind() {
        Some(FileKind::Regular | FileKind::Directory) => {
            !record.flags().contains(InodeFlags::INLINE_DATA)
        }
        Some(FileKind::Symlink) => {
            !record.flags().contains(InodeFlags::INLINE_DATA) && !record.is_fast_symlink()
        }
        None => record.mode() == 0 && record.ino() == InodeNo::BAD_BLOCKS,
        Some(_) => false,
    }
}

/// Visits the blocks that a file's map leads to.
pub(super) fn walk(instance: &Instance, record: &Inode, visitor: &mut dyn Visitor) -> Step {
    if record.flags().contains(InodeFlags::EXTENTS) {
        let root = ExtentNode::parse(record.block_area(), &Place::Root, &instance.limits);
        match root {
            Ok(root) => {
                let fits = entries_that_fit(record.block_area().len());
                visitor.capacity(None, root.max(), fits)?;
                walk_node(instance, record, &root, visitor)
            }
            Err(what) => visitor.damaged(None, what),
        }
    } else {
        walk_pointers(instance, record, visitor)
    }
}

fn walk_node(
    instance: &Instance,
    record: &Inode,
    node: &ExtentNode<'_>,
    visitor: &mut dyn Visitor,
) -> Step {
    for extent in node.extents() {
        let Extent {
            first,
            len,
            start,
            unwritten,
        } = extent;
        visitor.run(&MappedRun {
            first: first.0,
            start,
            len: u32::from(len),
            unwritten,
        })?;
    }
    // Each child is one level less deep: the tree's depth bounds the recursion.
    for child in node.children() {
        walk_child(instance, record, &child, visitor)?;
    }
    Ok(())
}

fn walk_child(
    instance: &Instance,
    record: &Inode,
    child: &Child,
    visitor: &mut dyn Visitor,
) -> Step {
    if !visitor.node(child.block)? {
        return Ok(());
    }
    let buffer = instance.buffers.read(child.block.0)?;
    if instance.checksums
        && let Err(what) = extent::verify_checksum(&buffer, record.checksum_seed())
    {
        visitor.damaged(Some(child.block), what)?;
    }
    match ExtentNode::parse(&buffer, &Place::Block(*child), &instance.limits) {
        Ok(node) => {
            let fits = entries_that_fit(buffer.len());
            visitor.capacity(Some(child.block), node.max(), fits)?;
            walk_node(instance, record, &node, visitor)
        }
        Err(what) => visitor.damaged(Some(child.block), what),
    }
}

fn walk_pointers(instance: &Instance, record: &Inode, visitor: &mut dyn Visitor) -> Step {
    let root = match Pointers::root(record.block_area(), &instance.limits) {
        Ok(root) => root,
        Err(what) => return visitor.damaged(None, what),
    };
    let per_block = u64::from(instance.map_shape.per_block());
    let mut first = 0_u64;
    for slot in 0..ROOT_SLOTS {
        let height = slot.saturating_sub(DIRECT_SLOTS - 1);
        match root.get(slot) {
            Ok(Some(block)) => walk_pointer(instance, block, height, first, visitor)?,
            Ok(None) => {}
            Err(what) => visitor.damaged(None, what)?,
        }
        first = first.saturating_add(per_block.saturating_pow(height));
    }
    Ok(())
}

/// What a pointer `height` levels above the data leads to, whose first file block is `first`.
fn walk_pointer(
    instance: &Instance,
    block: BlockNo,
    height: u32,
    first: u64,
    visitor: &mut dyn Visitor,
) -> Step {
    let run = |first: u64, start, len| {
        u32::try_from(first).ok().map(|first| MappedRun {
            first,
            start,
            len,
            unwritten: false,
        })
    };
    if height == 0 {
        return run(first, block, 1).map_or(Ok(()), |run| visitor.run(&run));
    }
    if !visitor.node(block)? {
        return Ok(());
    }
    let buffer = instance.buffers.read(block.0)?;
    let pointers = Pointers::block(&buffer, &instance.limits);
    let count = instance.map_shape.per_block();
    let span = u64::from(count).saturating_pow(height - 1);
    let mut slot = 0;
    while slot < count {
        let at = first.saturating_add(span.saturating_mul(u64::from(slot)));
        let most = if height == 1 { count - slot } else { 1 };
        slot += match pointers.run(slot, most) {
            Ok(Some(Run::Hole { len })) => len,
            Ok(Some(Run::Mapped { start, len })) if height == 1 => {
                run(at, start, len).map_or(Ok(()), |run| visitor.run(&run))?;
                len
            }
            Ok(Some(Run::Mapped { start, .. })) => {
                walk_pointer(instance, start, height - 1, at, visitor)?;
                1
            }
            Ok(None) => count,
            Err(what) => {
                visitor.damaged(Some(block), what)?;
                1
            }
        }
        .max(1);
    }
    Ok(())
}

/// What the map of a file came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mapped {
    /// Clusters that it owns, those of the map's own blocks included.
    pub(super) clusters: u64,
    /// Blocks of data.
    pub(super) data_blocks: u64,
    /// One past the last file block that is mapped, 0 if none is.
    pub(super) end: u64,
    /// The last file block that is mapped and written.
    pub(super) last_written: Option<u64>,
    /// That of the last block of the map.
    pub(super) last_written_of_node: Option<u64>,
    /// Some blocks were never written.
    pub(super) has_unwritten: bool,
    /// The map has blocks of its own.
    pub(super) has_nodes: bool,
    /// A part was left out, since it is damaged or another's.
    pub(super) is_partial: bool,
    /// Others own some of the blocks.
    pub(super) is_shared: bool,
}

/// Claims a file's blocks, counts them, and tells what is wrong.
struct Claims<'c, 'a> {
    usage: &'c mut BlockUsage,
    memory: &'c mut Memory,
    report: &'c mut Report<'a>,
    owners: &'c mut Owners,
    number: InodeNo,
    blocks_per_cluster: u64,
    /// The last cluster claimed for data, and the cluster of the file that it holds.
    last: Option<(u64, u64)>,
    mapped: Mapped,
}

impl Claims<'_, '_> {
    fn claim(&mut self, clusters: Range<u64>) -> Step<bool> {
        self.mapped.clusters += clusters.end - clusters.start;
        self.owners.note(self.number, clusters.clone());
        let is_shared = self.usage.claim(clusters, true, self.memory)?;
        self.mapped.is_shared |= is_shared;
        Ok(is_shared)
    }
}

impl Visitor for Claims<'_, '_> {
    fn node(&mut self, block: BlockNo) -> Step<bool> {
        self.mapped.has_nodes = true;
        self.mapped.last_written_of_node = None;
        let cluster = self.usage.cluster_of(block);
        let is_shared = self.claim(cluster..cluster + 1)?;
        self.mapped.is_partial |= is_shared;
        Ok(!is_shared)
    }

    fn run(&mut self, run: &MappedRun) -> Step {
        let end = BlockNo(run.start.0.saturating_add(u64::from(run.len)));
        let mut clusters = self.usage.clusters_of(&(run.start..end));
        let of_file = |block: u64| block / self.blocks_per_cluster;
        // Blocks of one cluster may be mapped by several runs, as long as they are neighbours in
        // the file, too.
        let first_cluster = of_file(u64::from(run.first));
        let goes_on = self.last == Some((clusters.start, first_cluster));
        let is_torn = !goes_on && self.last.is_some_and(|(_, last)| last == first_cluster);
        let per_cluster = self.blocks_per_cluster;
        let is_off = u64::from(run.first) % per_cluster != run.start.0 % per_cluster;
        // Bad blocks lie where they are.
        if (is_torn || is_off) && self.number != InodeNo::BAD_BLOCKS {
            self.report.inode(
                self.number,
                format_args!(
                    "file block {} is in block {}, not where its cluster has it",
                    run.first, run.start
                ),
            )?;
        }
        if goes_on {
            clusters.start += 1;
        }
        let file_end = u64::from(run.first).saturating_add(u64::from(run.len));
        let last_cluster = self.usage.cluster_of(BlockNo(end.0.saturating_sub(1)));
        self.last = Some((last_cluster, of_file(file_end.saturating_sub(1))));
        if !clusters.is_empty() {
            self.claim(clusters)?;
        }
        self.mapped.data_blocks += u64::from(run.len);
        self.mapped.end = self.mapped.end.max(file_end);
        if run.unwritten {
            self.mapped.has_unwritten = true;
        } else {
            let last = Some(file_end.saturating_sub(1));
            self.mapped.last_written = last;
            self.mapped.last_written_of_node = last;
        }
        Ok(())
    }

    fn damaged(&mut self, block: Option<BlockNo>, what: Corruption) -> Step {
        self.mapped.is_partial = true;
        match block {
            Some(block) => self
                .report
                .inode(self.number, format_args!("block {block}: {what}")),
            None => self.report.inode(self.number, what),
        }
    }

    /// Linux writes as many as fit, and keeps a checksum where up to two would.
    fn capacity(&mut self, block: Option<BlockNo>, max: u16, fits: u16) -> Step {
        if max >= fits.saturating_sub(2) {
            return Ok(());
        }
        let block = block.map_or_else(String::new, |block| format!("block {block}: "));
        self.report.inode(
            self.number,
            format_args!("{block}an extent node with room for {max} entries, where {fits} fit"),
        )
    }
}

impl Checker<'_> {
    /// Claims the blocks of a file. `owners` hears of each.
    pub(super) fn claim_map(&mut self, record: &Inode, owners: &mut Owners) -> Step<Mapped> {
        if !has_map(record) {
            return Ok(Mapped::default());
        }
        let blocks_per_cluster = u64::from(self.instance.superblock.blocks_per_cluster());
        let mut claims = Claims {
            usage: &mut self.usage,
            memory: &mut self.memory,
            report: &mut self.report,
            owners,
            number: record.ino(),
            blocks_per_cluster: blocks_per_cluster.max(1),
            last: None,
            mapped: Mapped::default(),
        };
        walk(&self.instance, record, &mut claims)?;
        Ok(claims.mapped)
    }
}

/// The runs of a file that was checked before.
#[derive(Debug)]
pub(super) struct Runs<'l> {
    runs: Vec<MappedRun>,
    /// Blocks of the map that may still be read.
    nodes_left: &'l mut u64,
}

impl<'l> Runs<'l> {
    /// All runs of data of a file, as far as they are sound, in the order of the file. For each
    /// block of its map that is read, `nodes_left` goes down; at 0 the rest is left out.
    pub(super) fn of(
        instance: &Instance,
        record: &Inode,
        nodes_left: &'l mut u64,
    ) -> Step<Vec<MappedRun>> {
        let mut runs = Self {
            runs: Vec::new(),
            nodes_left,
        };
        walk(instance, record, &mut runs)?;
        Ok(runs.runs)
    }
}

impl Visitor for Runs<'_> {
    fn node(&mut self, _: BlockNo) -> Step<bool> {
        let is_left = *self.nodes_left > 0;
        *self.nodes_left = self.nodes_left.saturating_sub(1);
        Ok(is_left)
    }

    fn run(&mut self, run: &MappedRun) -> Step {
        if self.runs.len() >= RUNS_MAX {
            return Err(Stop::Failed(CheckError::Memory));
        }
        self.runs.push(*run);
        Ok(())
    }

    fn damaged(&mut self, _: Option<BlockNo>, _: Corruption) -> Step {
        Ok(())
    }
}

/// The block that holds a file block, by runs in the order of the file.
pub(super) fn find(runs: &[MappedRun], block: FileBlock) -> Option<BlockNo> {
    let after = runs.partition_point(|run| run.first <= block.0);
    let run = runs.get(after.checked_sub(1)?)?;
    let into = block.0.checked_sub(run.first)?;
    (into < run.len && !run.unwritten)
        .then(|| run.start.checked_add(u64::from(into)))
        .flatten()
}
