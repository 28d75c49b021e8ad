//! From a path to an inode, by lookups.

use pagefence_vfs::{Error, FileKind, FileSystem, InodeId, Result};

use super::Driven;

/// Symbolic links followed on one path.
const SYMLINKS_MAX: usize = 40;

impl<F: FileSystem> Driven<'_, F> {
    /// The inode at `path`; the last name is followed if it is a symbolic link and `follow` says
    /// so.
    ///
    /// # Errors
    /// What a lookup says; `TooManySymlinks`.
    pub(super) fn find(&self, path: &str, follow: bool) -> Result<InodeId> {
        let mut rest = Vec::new();
        push(&mut rest, path.as_bytes());
        let (mut here, mut followed) = (self.fs.root(), 0);
        while let Some(name) = rest.pop() {
            let found = self.fs.lookup(here, &name)?.attr;
            if found.kind == FileKind::Symlink && (follow || !rest.is_empty()) {
                followed += 1;
                if followed > SYMLINKS_MAX {
                    return Err(Error::TooManySymlinks);
                }
                push(&mut rest, &self.fs.read_link(found.id)?);
                continue;
            }
            if !rest.is_empty() && found.kind != FileKind::Directory {
                return Err(Error::NotDirectory);
            }
            here = found.id;
        }
        Ok(here)
    }

    /// The directory that `path` names an entry of, and the entry's name.
    ///
    /// # Errors
    /// As [`Self::find`]; `NotDirectory`.
    pub(super) fn parent_of<'p>(&self, path: &'p str) -> Result<(InodeId, &'p [u8])> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.find(parent, true)?;
        if self.fs.attr(parent)?.kind != FileKind::Directory {
            return Err(Error::NotDirectory);
        }
        Ok((parent, name.as_bytes()))
    }
}

/// Puts the names of a relative path on the stack, the first on top.
fn push(stack: &mut Vec<Vec<u8>>, path: &[u8]) {
    let names = path.split(|byte| *byte == b'/');
    let names = names.filter(|name| !matches!(*name, b"" | b"."));
    stack.extend(names.rev().map(<[u8]>::to_vec));
}
