//! From a path to an inode, inside a volume.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pagefence_vfs::{Attr, Error, FileKind, FileSystem, InodeId, Result};

/// Symbolic links followed on one path at most, as Linux.
const SYMLINKS_MAX: usize = 40;

/// Whether the last name of a path is followed if it is a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    /// Yes.
    Last,
    /// No: the link itself is meant.
    NotLast,
}

/// Walks `path` from the root. Absolute and relative paths start there alike, `..` does not leave
/// it, and symbolic links resolve inside the volume.
pub(crate) fn resolve<F: FileSystem>(fs: &F, path: &Path, follow: Follow) -> Result<Attr> {
    let root = fs.attr(fs.root())?;
    // What is still to be walked, last part first, and where we are: the chain from the root.
    let mut rest: Vec<Vec<u8>> = Vec::new();
    push_parts(&mut rest, path.as_os_str().as_bytes());
    let mut must_be_directory = ends_as_directory(path.as_os_str().as_bytes());
    let mut chain: Vec<Attr> = vec![root];
    let mut followed = 0;
    while let Some(name) = rest.pop() {
        if name == b".." {
            if chain.len() > 1 {
                chain.pop();
            }
            continue;
        }
        let here: InodeId = match chain.last() {
            Some(attr) if attr.kind == FileKind::Directory => attr.id,
            _ => return Err(Error::NotDirectory),
        };
        let attr = fs.lookup(here, &name)?.attr;
        let last = rest.is_empty();
        if attr.kind == FileKind::Symlink && (!last || follow == Follow::Last || must_be_directory)
        {
            followed += 1;
            if followed > SYMLINKS_MAX {
                return Err(Error::TooManySymlinks);
            }
            let target = fs.read_link(attr.id)?;
            if target.is_empty() {
                return Err(Error::NotFound);
            }
            if target.first() == Some(&b'/') {
                chain.truncate(1);
            }
            must_be_directory |= last && ends_as_directory(&target);
            push_parts(&mut rest, &target);
            continue;
        }
        if !last && attr.kind != FileKind::Directory {
            return Err(Error::NotDirectory);
        }
        chain.push(attr);
    }
    match chain.pop() {
        Some(attr) if must_be_directory && attr.kind != FileKind::Directory => {
            Err(Error::NotDirectory)
        }
        Some(attr) => Ok(attr),
        None => Err(Error::NotFound),
    }
}

/// Puts the names of `path` on the stack, the first on top; empty names and `.` go.
fn push_parts(stack: &mut Vec<Vec<u8>>, path: &[u8]) {
    stack.extend(
        path.split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
            .rev()
            .map(<[u8]>::to_vec),
    );
}

fn ends_as_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || path.ends_with(b"/.")
}
