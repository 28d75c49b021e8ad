//! Targets of symbolic links.

use pagefence_ext4_format::FileBlock;
use pagefence_vfs::{Error, FileKind, Result};

use crate::alloc::BlockOwner;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::Instance;

impl Instance {
    /// The target: in the inode (fast, or inline data) or in one block (slow).
    pub(crate) fn link_target(&self, inode: &DiskInode) -> Result<Vec<u8>> {
        if inode.kind != FileKind::Symlink {
            return Err(Error::InvalidArgument);
        }
        if inode.is_encrypted() {
            return Err(Error::NoKey);
        }
        if inode.record.is_fast_symlink() {
            return inode.record.fast_symlink_target().map(<[u8]>::to_vec).at(
                &self.damage,
                Some(inode.number),
                None,
            );
        }
        let size = inode.size();
        let target = if inode.has_inline_data() {
            self.inline_data(inode)?
        } else {
            // One block with room for a NUL: the size of a damaged link never reaches further.
            let length = usize::try_from(size)
                .ok()
                .filter(|&length| length < self.superblock.block_size() as usize);
            let Some(length) = length else {
                return Err(self.bad_target(inode));
            };
            let block = self.metadata_block(inode, FileBlock(0))?;
            let buffer = self.read_owned(BlockOwner::Contents(inode.number), block)?;
            buffer.get(..length).unwrap_or(&[]).to_vec()
        };
        if target.is_empty() || target.contains(&0) || target.len() as u64 != size {
            return Err(self.bad_target(inode));
        }
        Ok(target)
    }

    fn bad_target(&self, inode: &DiskInode) -> Error {
        let size = inode.size();
        self.damaged(
            inode.number,
            None,
            format_args!("a symbolic link of {size} bytes"),
        )
    }
}
