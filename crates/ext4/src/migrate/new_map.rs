//! Building a whole map from its runs, in the order of the file: from the bottom up, so that each
//! of its blocks is complete when it is written, and never looked at again.

use pagefence_ext4_format::checksum::ChecksumSeed;
use pagefence_ext4_format::extent::{
    self, Child, Extent, ExtentNodeMut, FILE_BLOCKS_END, MAX_EXTENT_LEN, ROOT_BYTES,
    entries_that_fit,
};
use pagefence_ext4_format::indirect::{DIRECT_SLOTS, MapShape, set_pointer};
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::{Error, MapFormat, Result};

use super::old_map::Mapped;
use crate::instance::Instance;

/// The 60 bytes of an inode that a map begins with.
pub(super) type Root = [u8; ROOT_BYTES];

/// Extents that fit into a root.
const ROOT_EXTENTS: usize = 4;

/// Where the blocks of a new map go.
pub(super) trait NodeSink {
    /// Takes the contents of a block, one block long; says which block that is.
    ///
    /// # Errors
    /// `Io`.
    fn put(&mut self, node: &[u8]) -> Result<BlockNo>;
}

/// Counts the blocks of a map.
#[derive(Debug, Default)]
pub(super) struct Count(pub(super) u64);

impl NodeSink for Count {
    fn put(&mut self, _: &[u8]) -> Result<BlockNo> {
        self.0 += 1;
        Ok(BlockNo(1))
    }
}

/// A map that is being built.
#[derive(Debug)]
pub(super) enum NewMap {
    Extents(ExtentTree),
    Pointers(PointerMap),
}

impl NewMap {
    /// An empty one. `seed` is that of the inode's checksums.
    pub(super) fn new(instance: &Instance, to: MapFormat, seed: ChecksumSeed) -> Self {
        match to {
            MapFormat::Extents => Self::Extents(ExtentTree::new(instance, seed)),
            MapFormat::Blocks => Self::Pointers(PointerMap::new(instance)),
        }
    }

    /// Adds a run, which lies behind all that were added.
    ///
    /// # Errors
    /// `Unsupported` if a map of this kind can't say so; those of `sink`.
    pub(super) fn push(&mut self, run: &Mapped, sink: &mut impl NodeSink) -> Result<()> {
        match self {
            Self::Extents(tree) => tree.push(run, sink),
            Self::Pointers(map) => map.push(run, sink),
        }
    }

    /// The root of the map, all else having gone to `sink`.
    ///
    /// # Errors
    /// Those of `sink`.
    pub(super) fn finish(self, sink: &mut impl NodeSink) -> Result<Root> {
        match self {
            Self::Extents(tree) => tree.finish(sink),
            Self::Pointers(map) => map.finish(sink),
        }
    }
}

/// Blocks that an extent tree of so many entries takes, as [`ExtentTree`] builds it.
pub(super) fn nodes_for(entries: u64, per_node: u64) -> u64 {
    let (mut level, mut nodes) = (entries, 0);
    while level > ROOT_EXTENTS as u64 {
        level = level.div_ceil(per_node);
        nodes += level;
    }
    nodes
}

/// An extent tree that is being built, each node as full as it can be.
#[derive(Debug)]
pub(super) struct ExtentTree {
    block_size: usize,
    per_node: usize,
    seed: Option<ChecksumSeed>,
    /// The last extent, which may grow.
    last: Option<Extent>,
    leaf: Vec<Extent>,
    /// Whether leaves were written.
    has_leaves: bool,
    /// The nodes above, the lowest first: their children so far, and whether nodes of that level
    /// were written.
    above: Vec<(Vec<Child>, bool)>,
}

impl ExtentTree {
    /// An empty one.
    pub(super) fn new(instance: &Instance, seed: ChecksumSeed) -> Self {
        let block_size = instance.superblock.block_size() as usize;
        Self {
            block_size,
            per_node: entries_that_fit(block_size).into(),
            seed: instance.checksums.then_some(seed),
            last: None,
            leaf: Vec::new(),
            has_leaves: false,
            above: Vec::new(),
        }
    }

    /// Adds a run, joined with the one before if it continues that.
    fn push(&mut self, run: &Mapped, sink: &mut impl NodeSink) -> Result<()> {
        let mut done = 0;
        while done < run.len {
            let start = BlockNo(run.start.0 + u64::from(done));
            let first = FileBlock(run.first.0 + done);
            let left = run.len - done;
            let whole = MAX_EXTENT_LEN - u16::from(run.unwritten);
            let meets = |last: &Extent| {
                last.end() == first
                    && last.start.0 + u64::from(last.len) == start.0
                    && last.unwritten == run.unwritten
            };
            let last = self.last.as_ref().filter(|last| meets(last));
            let room = last.map_or(0, |last| whole - last.len);
            let longest = if room == 0 { whole } else { room };
            let len = u16::try_from(left).unwrap_or(longest).min(longest);
            match &mut self.last {
                Some(last) if room > 0 => last.len += len,
                _ => {
                    let extent = Extent {
                        first,
                        len,
                        start,
                        unwritten: run.unwritten,
                    };
                    if let Some(before) = self.last.replace(extent) {
                        self.add(before, sink)?;
                    }
                }
            }
            done += u32::from(len);
        }
        Ok(())
    }

    /// Adds an extent as it is.
    pub(super) fn add(&mut self, extent: Extent, sink: &mut impl NodeSink) -> Result<()> {
        if self.leaf.len() == self.per_node {
            self.put_leaf(sink)?;
        }
        self.leaf.push(extent);
        Ok(())
    }

    /// See [`NewMap::finish`].
    pub(super) fn finish(mut self, sink: &mut impl NodeSink) -> Result<Root> {
        if let Some(last) = self.last.take() {
            self.add(last, sink)?;
        }
        let mut root = [0; ROOT_BYTES];
        if !self.has_leaves && self.leaf.len() <= ROOT_EXTENTS {
            fill_leaf(&mut root, &self.leaf)?;
            return Ok(root);
        }
        self.put_leaf(sink)?;
        let mut level = 0;
        loop {
            match self.above.get(level) {
                Some((children, false)) if children.len() <= ROOT_EXTENTS => {
                    fill_index(&mut root, children, level)?;
                    return Ok(root);
                }
                _ => self.put_index(level, sink)?,
            }
            level += 1;
        }
    }

    fn put_leaf(&mut self, sink: &mut impl NodeSink) -> Result<()> {
        let extents = std::mem::take(&mut self.leaf);
        self.has_leaves = true;
        let first = extents.first().map(|extent| extent.first);
        let mut bytes = vec![0; self.block_size];
        fill_leaf(&mut bytes, &extents)?;
        self.put_node(0, first.unwrap_or_default(), bytes, sink)
    }

    fn put_index(&mut self, level: usize, sink: &mut impl NodeSink) -> Result<()> {
        let Some((children, has_nodes)) = self.above.get_mut(level) else {
            return Ok(());
        };
        let children = std::mem::take(children);
        *has_nodes = true;
        let first = children.first().map(|child| child.first);
        let mut bytes = vec![0; self.block_size];
        fill_index(&mut bytes, &children, level)?;
        self.put_node(level + 1, first.unwrap_or_default(), bytes, sink)
    }

    /// Writes a node that lies `height` levels above the leaves, and adds it to the level above.
    fn put_node(
        &mut self,
        height: usize,
        first: FileBlock,
        mut bytes: Vec<u8>,
        sink: &mut impl NodeSink,
    ) -> Result<()> {
        if let Some(seed) = self.seed {
            extent::update_checksum(&mut bytes, seed).map_err(|_| too_deep())?;
        }
        let child = Child {
            first,
            end: FILE_BLOCKS_END,
            block: sink.put(&bytes)?,
            depth: u16::try_from(height).map_err(|_| too_deep())?,
        };
        if self.above.len() == height {
            self.above.push((Vec::new(), false));
        }
        let is_full = |(children, _): &(Vec<Child>, bool)| children.len() == self.per_node;
        if self.above.get(height).is_some_and(is_full) {
            self.put_index(height, sink)?;
        }
        if let Some((children, _)) = self.above.get_mut(height) {
            children.push(child);
        }
        Ok(())
    }
}

fn fill_leaf(bytes: &mut [u8], extents: &[Extent]) -> Result<()> {
    let mut node = ExtentNodeMut::init(bytes, 0).ok_or_else(too_deep)?;
    let mut inserted = extents.iter().enumerate();
    match inserted.all(|(at, extent)| node.insert_extent(at, extent)) {
        true => Ok(()),
        false => Err(too_deep()),
    }
}

fn fill_index(bytes: &mut [u8], children: &[Child], level: usize) -> Result<()> {
    let depth = u16::try_from(level + 1).map_err(|_| too_deep())?;
    let mut node = ExtentNodeMut::init(bytes, depth).ok_or_else(too_deep)?;
    let mut inserted = children.iter().enumerate();
    match inserted.all(|(at, child)| node.insert_child(at, child)) {
        true => Ok(()),
        false => Err(too_deep()),
    }
}

/// What the format has no room for.
fn too_deep() -> Error {
    Error::Unsupported("an extent tree so deep, or of such blocks")
}

/// A block map that is being built.
#[derive(Debug)]
pub(super) struct PointerMap {
    shape: MapShape,
    block_size: usize,
    root: Root,
    /// The indirect blocks that are being filled, the highest first, each with its slot in the one
    /// above (or in the root).
    open: Vec<(u32, Vec<u8>)>,
}

impl PointerMap {
    fn new(instance: &Instance) -> Self {
        Self {
            shape: instance.map_shape,
            block_size: instance.superblock.block_size() as usize,
            root: [0; ROOT_BYTES],
            open: Vec::new(),
        }
    }

    fn push(&mut self, run: &Mapped, sink: &mut impl NodeSink) -> Result<()> {
        if run.unwritten {
            return Err(Error::Unsupported("unwritten blocks in a block map"));
        }
        let mut done = 0;
        while done < run.len {
            let at = FileBlock(run.first.0 + done);
            let unreached = Error::Unsupported("a block map that reaches so far");
            let path = self.shape.path(at).ok_or(unreached)?;
            let Some((&slot, way)) = path.slots().split_last() else {
                return Ok(());
            };
            self.open_way(way, sink)?;
            let slots = match way {
                [] => DIRECT_SLOTS,
                _ => self.shape.per_block(),
            };
            let count = (slots - slot).min(run.len - done);
            let first = run.start.0 + u64::from(done);
            let pointers = match self.open.last_mut() {
                Some((_, bytes)) => bytes.as_mut_slice(),
                None => &mut self.root,
            };
            for (slot, block) in (slot..slot + count).zip(first..) {
                point(pointers, slot, BlockNo(block))?;
            }
            done += count;
        }
        Ok(())
    }

    /// Closes the indirect blocks that are not on the way, and opens those that are.
    fn open_way(&mut self, way: &[u32], sink: &mut impl NodeSink) -> Result<()> {
        let known = self.open.iter().zip(way);
        let same = known
            .take_while(|((slot, _), on_way)| slot == *on_way)
            .count();
        self.close(same, sink)?;
        for slot in way.iter().skip(same) {
            self.open.push((*slot, vec![0; self.block_size]));
        }
        Ok(())
    }

    /// Writes all open indirect blocks but the first `kept`, and points to them.
    fn close(&mut self, kept: usize, sink: &mut impl NodeSink) -> Result<()> {
        while self.open.len() > kept {
            let Some((slot, bytes)) = self.open.pop() else {
                break;
            };
            let block = sink.put(&bytes)?;
            let above = match self.open.last_mut() {
                Some((_, above)) => above.as_mut_slice(),
                None => &mut self.root,
            };
            point(above, slot, block)?;
        }
        Ok(())
    }

    fn finish(mut self, sink: &mut impl NodeSink) -> Result<Root> {
        self.close(0, sink)?;
        Ok(self.root)
    }
}

fn point(pointers: &mut [u8], slot: u32, block: BlockNo) -> Result<()> {
    match set_pointer(pointers, slot, Some(block)) {
        true => Ok(()),
        false => Err(Error::Unsupported("a block of that number in a block map")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`nodes_for`] says is what a tree takes, at each border of its levels.
    #[test]
    fn trees_take_as_many_blocks_as_was_reckoned() {
        let sizes = [
            0,
            1,
            4,
            5,
            84,
            85,
            168,
            336,
            337,
            4 * 84 * 84,
            4 * 84 * 84 + 1,
        ];
        for entries in sizes {
            let mut count = Count::default();
            let mut tree = ExtentTree {
                block_size: 1024,
                per_node: 84,
                seed: None,
                last: None,
                leaf: Vec::new(),
                has_leaves: false,
                above: Vec::new(),
            };
            for at in 0..entries {
                let extent = Extent {
                    first: FileBlock(at),
                    len: 1,
                    start: BlockNo(1000),
                    unwritten: false,
                };
                tree.add(extent, &mut count).expect("it fits");
            }
            tree.finish(&mut count).expect("it fits");
            assert_eq!(count.0, nodes_for(entries.into(), 84), "{entries}");
        }
    }
}
