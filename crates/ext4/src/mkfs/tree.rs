//! What a new file system is filled with: directories, files and symbolic links, by path.

use std::collections::BTreeMap;

use pagefence_ext4_format::dir_entry::{EntryName, MAX_NAME_LEN};
use pagefence_ext4_format::inode::Timestamp;
use pagefence_ext4_format::xattr::name::{SECURITY, TRUSTED, USER, split};

use super::error::{EntryError, MkfsError};

/// The directory that e2fsck puts lost files into; every file system has it.
pub(super) const LOST_AND_FOUND: &[u8] = b"lost+found";
/// The longest path, which is also Linux's. It bounds the depth of the tree, which is walked by
/// recursion.
const MAX_PATH_BYTES: usize = 4095;

/// Owner, permissions, time and attributes of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeMeta {
    /// The low twelve bits of the mode; by default 0755 for directories, 0644 for files. Links
    /// have 0777 always.
    pub permissions: Option<u16>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Times; the file system's own time by default.
    pub mtime: Option<Timestamp>,
    /// Attributes, by whole names (`user.…`, `trusted.…`, `security.…`), which must fit into the
    /// inode.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Children by name.
    Directory(BTreeMap<Vec<u8>, Node>),
    /// Data, and whether blocks of zeros become holes.
    File { bytes: Vec<u8>, holes: bool },
    /// A target.
    Symlink(Vec<u8>),
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) meta: NodeMeta,
    pub(super) content: Content,
}

impl Node {
    fn directory(permissions: u16) -> Self {
        Self {
            meta: NodeMeta {
                permissions: Some(permissions),
                ..NodeMeta::default()
            },
            content: Content::Directory(BTreeMap::new()),
        }
    }
}

/// The files of a new file system, in memory. It always has a root directory with `lost+found`
/// in it. Directories that a path leads through are made, with the permissions 0755.
#[derive(Clone, Debug)]
pub struct Tree {
    pub(super) root: Node,
}

impl Default for Tree {
    fn default() -> Self {
        let mut tree = Self {
            root: Node::directory(0o755),
        };
        if let Content::Directory(children) = &mut tree.root.content {
            children.insert(LOST_AND_FOUND.to_vec(), Node::directory(0o700));
        }
        tree
    }
}

impl Tree {
    /// Only `lost+found`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory. If it is there already (a path led through it, or it is the root), it
    /// gets `meta`.
    ///
    /// # Errors
    /// [`MkfsError::Entry`]; nothing is changed then.
    pub fn directory(&mut self, path: &[u8], meta: NodeMeta) -> Result<(), MkfsError> {
        check_xattr_names(path, &meta)?;
        let names = components(path)?;
        let node = self.make_directories(&names, path)?;
        node.meta = meta;
        Ok(())
    }

    /// Adds a regular file. With `holes`, whole blocks of zeros take no space.
    ///
    /// # Errors
    /// [`MkfsError::Entry`]; no file is added then.
    pub fn file(
        &mut self,
        path: &[u8],
        bytes: Vec<u8>,
        holes: bool,
        meta: NodeMeta,
    ) -> Result<(), MkfsError> {
        self.insert(path, meta, Content::File { bytes, holes })
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// [`MkfsError::Entry`]; no link is added then.
    pub fn symlink(&mut self, path: &[u8], target: &[u8], meta: NodeMeta) -> Result<(), MkfsError> {
        self.insert(path, meta, Content::Symlink(target.to_vec()))
    }

    /// Whether there is nothing but `lost+found`.
    pub(super) fn is_empty(&self) -> bool {
        match &self.root.content {
            Content::Directory(children) => children.len() == 1,
            _ => false,
        }
    }

    fn insert(&mut self, path: &[u8], meta: NodeMeta, content: Content) -> Result<(), MkfsError> {
        check_xattr_names(path, &meta)?;
        let names = components(path)?;
        let Some((name, parents)) = names.split_last() else {
            return Err(EntryError::Exists.at(path));
        };
        let parent = self.make_directories(parents, path)?;
        let Content::Directory(children) = &mut parent.content else {
            return Err(EntryError::NotDirectory.at(path));
        };
        if children.contains_key(*name) {
            return Err(EntryError::Exists.at(path));
        }
        children.insert(name.to_vec(), Node { meta, content });
        Ok(())
    }

    /// Walks to a directory, making what is missing on the way.
    fn make_directories(&mut self, names: &[&[u8]], path: &[u8]) -> Result<&mut Node, MkfsError> {
        let mut node = &mut self.root;
        for name in names {
            let Content::Directory(children) = &mut node.content else {
                return Err(EntryError::NotDirectory.at(path));
            };
            node = children
                .entry(name.to_vec())
                .or_insert_with(|| Node::directory(0o755));
        }
        match node.content {
            Content::Directory(_) => Ok(node),
            _ => Err(EntryError::NotDirectory.at(path)),
        }
    }
}

/// The names in an absolute path; slashes too many are passed over.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, MkfsError> {
    if path.len() > MAX_PATH_BYTES {
        return Err(EntryError::PathLength.at(path));
    }
    let Some(rest) = path.strip_prefix(b"/") else {
        return Err(EntryError::Path.at(path));
    };
    let names = rest
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty());
    let checked = names.map(|name| match EntryName::new(name) {
        Some(name) => Ok(name.as_bytes()),
        None if name.len() > MAX_NAME_LEN || name.contains(&0) => Err(EntryError::Name.at(path)),
        None => Err(EntryError::Path.at(path)),
    });
    checked.collect()
}

fn check_xattr_names(path: &[u8], meta: &NodeMeta) -> Result<(), MkfsError> {
    let is_storable = |name: &Vec<u8>| {
        name.len() <= MAX_NAME_LEN
            && !name.contains(&0)
            && matches!(split(name), Some((USER | TRUSTED | SECURITY, _)))
    };
    if meta.xattrs.keys().all(is_storable) {
        Ok(())
    } else {
        Err(EntryError::XattrName.at(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_checked_before_anything_is_added() {
        let mut tree = Tree::new();
        let meta = NodeMeta::default;
        tree.file(b"/a/b", b"x".to_vec(), false, meta())
            .expect("a new path");
        for (path, reason) in [
            (&b"a"[..], EntryError::Path),
            (b"/a/../c", EntryError::Path),
            (b"/a/./c", EntryError::Path),
            (b"/n\0l", EntryError::Name),
            (b"/a/b", EntryError::Exists),
            (b"/a", EntryError::Exists),
            (b"/", EntryError::Exists),
            (b"/a/b/c", EntryError::NotDirectory),
            (b"/lost+found", EntryError::Exists),
        ] {
            let error = tree.symlink(path, b"t", meta()).expect_err("a wrong path");
            assert!(
                matches!(error, MkfsError::Entry { reason: found, .. } if found == reason),
                "{error}"
            );
        }
        assert!(
            tree.file(
                &[b"/".to_vec(), vec![b'n'; 256]].concat(),
                vec![],
                false,
                meta()
            )
            .is_err()
        );
        tree.directory(b"/a//", NodeMeta { uid: 7, ..meta() })
            .expect("it is a directory");
        let mut with_acl = meta();
        with_acl
            .xattrs
            .insert(b"system.posix_acl_access".to_vec(), vec![]);
        assert!(
            tree.directory(b"/d", with_acl).is_err(),
            "ACLs have a form of their own"
        );
    }
}
