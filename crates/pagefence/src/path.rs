//! From a path to an inode, inside a volume.

use std::ffi::OsStr;
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

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// To something.
    There(Attr),
    /// To a name that its directory does not have.
    Missing {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Vec<u8>,
        /// Whether the path says that it is a directory.
        is_directory: bool,
    },
}

/// What `path` leads to.
pub(crate) fn resolve<F: FileSystem>(fs: &F, path: &Path, follow: Follow) -> Result<Attr> {
    match walk(fs, path, follow)? {
        Found::There(attr) => Ok(attr),
        Found::Missing { .. } => Err(Error::NotFound),
    }
}

/// The directory that `path`, taken literally, names an entry of, and the entry's name.
///
/// # Errors
/// `InvalidArgument` if the path ends in `..` or is the root.
pub(crate) fn parent_of<'p, F: FileSystem>(fs: &F, path: &'p Path) -> Result<(InodeId, &'p [u8])> {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes
        .iter()
        .rposition(|&byte| byte != b'/')
        .map_or(0, |last| last + 1);
    let bytes = &bytes[..end];
    let start = bytes
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |slash| slash + 1);
    let (parent, name) = bytes.split_at(start);
    if matches!(name, b"" | b"." | b"..") {
        return Err(Error::InvalidArgument);
    }
    let parent = resolve(fs, Path::new(OsStr::from_bytes(parent)), Follow::Last)?;
    if parent.kind != FileKind::Directory {
        return Err(Error::NotDirectory);
    }
    Ok((parent.id, name))
}

/// Walks `path` from the root. Absolute and relative paths start there alike, `..` does not leave
/// it, and symbolic links resolve inside the volume.
pub(crate) fn walk<F: FileSystem>(fs: &F, path: &Path, follow: Follow) -> Result<Found> {
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
        let last = rest.is_empty();
        let attr = match fs.lookup(here, &name) {
            Ok(entry) => entry.attr,
            Err(Error::NotFound) if last => {
                return Ok(Found::Missing {
                    parent: here,
                    name,
                    is_directory: must_be_directory,
                });
            }
            Err(error) => return Err(error),
        };
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
        Some(attr) => Ok(Found::There(attr)),
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
