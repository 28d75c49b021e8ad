//! Requests about names and inodes: lookup, forget, stat, symbolic links, access, statfs.

use std::time::Duration;

use fuser::{AccessFlags, Errno, FileAttr, Generation, INodeNo};
use pagefence_vfs::{Attr, Error, FileKind, FileSystem, FileSystemStat};

use crate::attributes::{LIFETIME, absent};
use crate::dispatch::Dispatch;
use crate::errno::{errno, euclean};
use crate::invalidate::SHORT;
use crate::nodes::Nodes;

/// The answer to a lookup.
pub(crate) struct Found {
    /// Attributes under the node's number.
    pub(crate) attr: FileAttr,
    /// How long they hold.
    pub(crate) attr_lifetime: Duration,
    /// Generation of the inode.
    pub(crate) generation: Generation,
    /// Its node; 0 for a name that is missing.
    pub(crate) node: INodeNo,
}

impl<F: FileSystem> Dispatch<F> {
    /// Finds `name` in a directory. A name that is missing is an answer too: node 0, which the
    /// kernel remembers as missing.
    ///
    /// `.` is asked for any kind of inode, when a file handle (NFS, open_by_handle_at) is opened.
    pub(crate) fn find(&self, parent: INodeNo, name: &[u8]) -> Result<Found, Errno> {
        let parent = self.nodes.inode(parent)?;
        let attr = if name == b"." {
            self.fs.attr(parent)
        } else {
            self.fs.lookup(parent, name).map(|entry| entry.attr)
        };
        match attr {
            // No directory holds the root.
            Ok(attr) if attr.id == self.fs.root() && !matches!(name, b"." | b"..") => {
                Err(euclean())
            }
            Ok(attr) => self.found(&attr),
            Err(Error::NotFound) => Ok(Found {
                attr: absent(),
                attr_lifetime: LIFETIME,
                generation: Generation(0),
                node: INodeNo(0),
            }),
            Err(error) => Err(errno(&error)),
        }
    }

    /// The answer that gives the kernel an inode, which counts as one lookup of it.
    pub(crate) fn found(&self, attr: &Attr) -> Result<Found, Errno> {
        let found = self.shown(attr)?;
        if found.node != INodeNo::ROOT {
            self.lookups.add(attr.id);
        }
        Ok(found)
    }

    /// As [`Self::found`], for what the kernel may not take: nothing is counted.
    pub(crate) fn shown(&self, attr: &Attr) -> Result<Found, Errno> {
        let node = self.nodes.node(attr.id)?;
        let (generation, attr_lifetime) = match node {
            // The kernel insists on generation 0 for the root. And fuser gives an entry the same
            // number as node and for stat, so these attributes must not be kept: they would show
            // the root as number 1.
            INodeNo::ROOT => (0, Duration::ZERO),
            _ => (attr.generation, self.lifetime(attr)),
        };
        Ok(Found {
            attr: self.overrides.show(node, attr),
            attr_lifetime,
            generation: Generation(generation.into()),
            node,
        })
    }

    /// Counts a forget, and passes the last one on; the root is never forgotten.
    pub(crate) fn forget_node(&self, node: INodeNo, count: u64) {
        if node != INodeNo::ROOT
            && let Ok(id) = self.nodes.inode(node)
        {
            self.lookups.take(id, count, || self.fs.forget(id));
        }
    }

    /// Attributes, under the number on disk: so the root shows its own, not FUSE's 1. And how long
    /// they hold.
    pub(crate) fn stat(&self, node: INodeNo) -> Result<(FileAttr, Duration), Errno> {
        let id = self.nodes.inode(node)?;
        // Looked at before: a map that ends meanwhile may have stored since.
        let is_mapped = self.is_mapped(id);
        let attr = self.fs.attr(id).map_err(|error| errno(&error))?;
        let shown = self.overrides.show(Nodes::shown(id), &attr);
        let lifetime = if is_mapped {
            SHORT
        } else {
            self.lifetime(&attr)
        };
        Ok((shown, lifetime))
    }

    /// The target of a symbolic link.
    pub(crate) fn target(&self, node: INodeNo) -> Result<Vec<u8>, Errno> {
        let id = self.nodes.inode(node)?;
        self.fs.read_link(id).map_err(|error| errno(&error))
    }

    /// access(2). The kernel asks only where it does not check permissions itself, and there
    /// everything is allowed (see `ServeOptions`), but for writing what can't be written.
    pub(crate) fn may(&self, node: INodeNo, mask: AccessFlags) -> Result<(), Errno> {
        let id = self.nodes.inode(node)?;
        let attr = self.fs.attr(id).map_err(|error| errno(&error))?;
        let kept_here = matches!(
            attr.kind,
            FileKind::Regular | FileKind::Directory | FileKind::Symlink
        );
        if self.read_only && kept_here && mask.contains(AccessFlags::W_OK) {
            return Err(Errno::EROFS);
        }
        Ok(())
    }

    /// statfs(2).
    pub(crate) fn stat_fs(&self) -> Result<FileSystemStat, Errno> {
        self.fs.stat_fs().map_err(|error| errno(&error))
    }
}
