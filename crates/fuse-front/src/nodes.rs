//! Node numbers of the FUSE protocol and inode numbers of the file system.
//!
//! A node number is the inode number, but for the root: FUSE calls it 1, the file system calls it
//! what it likes. Inode 1 of the file system (ext4: the list of bad blocks) thus has no node
//! number, and must never be reached.

use fuser::{Errno, INodeNo};
use pagefence_vfs::InodeId;

use crate::errno::euclean;

/// The two-way translation for one file system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nodes {
    root: InodeId,
}

impl Nodes {
    /// The translation for a file system whose root directory is `root`.
    pub(crate) fn new(root: InodeId) -> Self {
        Self { root }
    }

    /// The inode behind a node.
    ///
    /// # Errors
    /// ESTALE for a number that was never handed out (a file handle over NFS can be any number).
    pub(crate) fn inode(&self, node: INodeNo) -> Result<InodeId, Errno> {
        if node == INodeNo::ROOT {
            Ok(self.root)
        } else if node.0 == 0 || node.0 == self.root.0 {
            Err(Errno::ESTALE)
        } else {
            Ok(InodeId(node.0))
        }
    }

    /// The node of an inode.
    ///
    /// # Errors
    /// EUCLEAN for 0 and for the number that FUSE keeps for the root: an entry that names such an
    /// inode is damage.
    pub(crate) fn node(&self, id: InodeId) -> Result<INodeNo, Errno> {
        if id == self.root {
            Ok(INodeNo::ROOT)
        } else if id.0 == 0 || id.0 == INodeNo::ROOT.0 {
            Err(euclean())
        } else {
            Ok(INodeNo(id.0))
        }
    }

    /// The number that stat and readdir show.
    pub(crate) fn shown(id: InodeId) -> INodeNo {
        INodeNo(id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_one_and_inode_one_is_out_of_reach() {
        let nodes = Nodes::new(InodeId(2));
        assert_eq!(nodes.inode(INodeNo(1)).ok(), Some(InodeId(2)));
        assert_eq!(nodes.node(InodeId(2)).ok(), Some(INodeNo(1)));
        assert!(nodes.inode(INodeNo(2)).is_err());
        assert!(nodes.inode(INodeNo(0)).is_err());
        assert!(nodes.node(InodeId(1)).is_err());
        assert!(nodes.node(InodeId(0)).is_err());
        assert_eq!(nodes.inode(INodeNo(11)).ok(), Some(InodeId(11)));
    }

    #[test]
    fn a_file_system_whose_root_is_one_is_shown_as_it_is() {
        let nodes = Nodes::new(InodeId(1));
        assert_eq!(nodes.inode(INodeNo(1)).ok(), Some(InodeId(1)));
        assert_eq!(nodes.node(InodeId(1)).ok(), Some(INodeNo(1)));
        assert_eq!(nodes.inode(INodeNo(2)).ok(), Some(InodeId(2)));
    }
}
