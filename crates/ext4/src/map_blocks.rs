//! From a file's blocks to the file system's: the one front of extent trees and block maps.

use pagefence_ext4_format::{BlockNo, FileBlock};
use pagefence_vfs::Result;

use crate::disk_inode::DiskInode;
use crate::instance::Instance;

/// What a run of file blocks is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Nothing: reads as zeros.
    Hole,
    /// Data in the blocks from this one on.
    Written(BlockNo),
    /// The blocks from this one on, which read as zeros until they are written.
    Unwritten(BlockNo),
}

/// A run of file blocks that is mapped in one piece, from the block that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Blocks in the run, at least 1.
    pub(crate) len: u32,
    /// Where they are.
    pub(crate) target: Target,
}

impl Run {
    /// A hole of `len` blocks; an empty one counts as one block, so that every caller advances.
    pub(crate) fn hole(len: u32) -> Self {
        Self {
            len: len.max(1),
            target: Target::Hole,
        }
    }
}

impl Instance {
    /// Looks up where `block` of the file is, and for how many blocks from there the answer holds
    /// (a run may stop early, at the border of a piece of the map).
    ///
    /// # Errors
    /// `Corrupt`, `Io`. An inode that keeps its data inline has no map: whoever asks for it was
    /// led here by damage.
    pub(crate) fn map_blocks(&self, inode: &DiskInode, block: FileBlock) -> Result<Run> {
        if inode.has_inline_data() {
            let what = "an inode with inline data where one with blocks belongs";
            return Err(self.damaged(inode.number, None, what));
        }
        let run = if inode.has_extents() {
            self.find_extent(inode, block)?
        } else {
            self.find_in_block_map(inode, block)?
        };
        match run.target {
            Target::Hole => {}
            Target::Written(start) | Target::Unwritten(start) => {
                self.check_owned(inode.number, start, run.len)?;
            }
        }
        Ok(run)
    }

    /// The block behind `block` of a file of metadata (a directory, a slow symbolic link, the
    /// journal), where a hole is damage.
    pub(crate) fn metadata_block(&self, inode: &DiskInode, block: FileBlock) -> Result<BlockNo> {
        match self.map_blocks(inode, block)?.target {
            Target::Written(start) => Ok(start),
            Target::Hole | Target::Unwritten(_) => Err(self.damaged(
                inode.number,
                None,
                format_args!("its block {block} is a hole"),
            )),
        }
    }
}
