//! Reading a whole map: its runs in the order of the file, and the blocks that it is made of.

use pagefence_ext4_format::extent::FILE_BLOCKS_END;
use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::{Error, Result};

use crate::disk_inode::DiskInode;
use crate::instance::Instance;
use crate::map_blocks::Target;

/// A run of a file that has blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) first: FileBlock,
    pub(super) start: BlockNo,
    pub(super) len: u32,
    pub(super) unwritten: bool,
}

/// What a piece of a map says.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) runs: Vec<Mapped>,
    /// Blocks of the map that were met for the first time.
    pub(super) nodes: Vec<BlockNo>,
}

/// A walk through a map, piece by piece. The map must not change between two pieces.
#[derive(Debug, Default)]
pub(super) struct Walk {
    at: FileBlock,
    /// The blocks of the map on the way to what was met last.
    path: Vec<BlockNo>,
    /// Blocks met so far.
    met: u64,
}

impl Walk {
    /// The next piece, of up to `most` runs and holes; nothing at the end.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(super) fn next(
        &mut self,
        instance: &Instance,
        disk: &DiskInode,
        most: usize,
    ) -> Result<Option<Piece>> {
        let end = if disk.has_extents() {
            FILE_BLOCKS_END
        } else {
            instance.map_shape.end()
        };
        if self.at >= end {
            return Ok(None);
        }
        let mut piece = Piece::default();
        for _ in 0..most {
            if self.at >= end {
                break;
            }
            let mut path = Vec::new();
            let run = if disk.has_extents() {
                instance.walk_to(disk, self.at, |_, _, block| {
                    path.extend(block);
                    Ok(())
                })?
            } else {
                instance.walk_pointers_to(disk, self.at, |block| path.push(block))?
            };
            // In the order of the file, what is left is not come back to.
            let known = self.path.iter().zip(&path);
            let same = known.take_while(|(old, new)| old == new).count();
            piece.nodes.extend(path.iter().skip(same));
            self.met += (path.len() - same) as u64;
            self.path = path;
            let len = run.len.min(end.0 - self.at.0);
            if let Target::Written(start) | Target::Unwritten(start) = run.target {
                instance.check_owned(disk.number, start, len)?;
                self.met += u64::from(len);
                piece.runs.push(Mapped {
                    first: self.at,
                    start,
                    len,
                    unwritten: matches!(run.target, Target::Unwritten(_)),
                });
            }
            self.check_length(instance, disk)?;
            self.at = FileBlock(self.at.0 + len);
        }
        Ok(Some(piece))
    }

    /// A map that leads to more blocks than there are has some of them twice, and may have no end
    /// that anybody would wait for.
    fn check_length(&self, instance: &Instance, disk: &DiskInode) -> Result<()> {
        if self.met <= instance.superblock.blocks_count() {
            return Ok(());
        }
        let what = "it has more blocks than the file system";
        Err(instance.damaged(disk.number, None, what))
    }
}

/// The blocks that a map is made of, which nobody changes meanwhile.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(super) fn nodes_of(instance: &Instance, disk: &DiskInode) -> Result<Vec<BlockNo>> {
    let mut walk = Walk::default();
    let mut nodes = Vec::new();
    while let Some(piece) = walk.next(instance, disk, usize::MAX)? {
        nodes.extend(piece.nodes);
    }
    Ok(nodes)
}

/// Sorts the blocks of a map, each of which must be in it once.
///
/// # Errors
/// `Corrupt`.
pub(super) fn sort_nodes(
    instance: &Instance,
    disk: &DiskInode,
    nodes: &mut [BlockNo],
) -> Result<()> {
    nodes.sort_unstable();
    let twice = nodes.windows(2).find(|pair| pair[0] == pair[1]);
    match twice {
        None => Ok(()),
        Some(pair) => Err::<(), Error>(instance.damaged(
            disk.number,
            pair.first().copied(),
            "a block is in its map twice",
        )),
    }
}
