//! The nodes of a tree, and the operations on one of them.

use std::collections::BTreeMap;

use super::bytes::{Bytes, contents};
use super::operation::{Answer, Failure, Operation};
use super::ranges;

/// What tells one node from another for as long as the tree lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeNo(pub u64);

/// What depends on the format of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bytes of a block.
    pub block_size: u32,
    /// Whether files may have space that was not written (extents do).
    pub has_unwritten: bool,
    /// No file gets this long or longer.
    pub size_limit: u64,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File(Bytes),
    /// A directory: its entries.
    Directory(BTreeMap<String, NodeNo>),
    /// A symbolic link: its target.
    Symlink(String),
    /// A named pipe.
    Fifo,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// The low 12 bits of the mode.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names, and for a directory its `.` and the `..` of those in it.
    pub links: u32,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o0010;

impl Node {
    pub(super) fn new(kind: Kind, permissions: u16) -> Self {
        Self {
            kind,
            permissions,
            uid: 0,
            gid: 0,
            links: 1,
            xattrs: BTreeMap::new(),
        }
    }
}

/// The tree. See [`files`](super).
#[derive(Clone, Debug)]
pub struct Tree {
    pub(super) format: Format,
    pub(super) nodes: BTreeMap<NodeNo, Node>,
    next: u64,
    held: BTreeMap<u8, NodeNo>,
}

impl Tree {
    /// The root directory.
    pub const ROOT: NodeNo = NodeNo(2);

    /// A file system as it is made: a root directory that holds `lost+found`.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let mut tree = Self {
            format,
            nodes: BTreeMap::new(),
            next: Self::ROOT.0,
            held: BTreeMap::new(),
        };
        let mut root = Node::new(Kind::Directory(BTreeMap::new()), 0o755);
        root.links = 2;
        tree.insert(root);
        let made = tree.make("lost+found", Kind::Directory(BTreeMap::new()), 0o700);
        assert_eq!(made, Ok(()), "the root is empty");
        tree
    }

    /// What depends on the format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    pub(super) fn insert(&mut self, node: Node) -> NodeNo {
        let number = NodeNo(self.next);
        self.next += 1;
        self.nodes.insert(number, node);
        number
    }

    /// A node that is there.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn node(&self, number: NodeNo) -> &Node {
        &self.nodes[&number]
    }

    pub(super) fn node_mut(&mut self, number: NodeNo) -> &mut Node {
        self.nodes.get_mut(&number).expect("it is in the tree")
    }

    /// Every path, parents before what is in them; the root is the empty one.
    #[must_use]
    pub fn paths(&self) -> Vec<(String, NodeNo)> {
        let mut paths = vec![(String::new(), Self::ROOT)];
        let mut at = 0;
        while let Some((path, number)) = paths.get(at).cloned() {
            if let Kind::Directory(entries) = &self.node(number).kind {
                for (name, child) in entries {
                    let path = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}/{name}")
                    };
                    paths.push((path, *child));
                }
            }
            at += 1;
        }
        paths
    }

    /// The file that a slot holds open.
    #[must_use]
    pub fn held(&self, slot: u8) -> Option<NodeNo> {
        self.held.get(&slot).copied()
    }

    /// Forgets a node that has no name left and is not open.
    pub(super) fn drop_if_unused(&mut self, number: NodeNo) {
        let is_held = self.held.values().any(|held| *held == number);
        if self.node(number).links == 0 && !is_held {
            self.nodes.remove(&number);
        }
    }

    pub(super) fn file_at(&mut self, path: &str) -> Result<&mut Bytes, Failure> {
        let number = self.node_at(path, true)?;
        self.bytes_of(number)
    }

    fn bytes_of(&mut self, number: NodeNo) -> Result<&mut Bytes, Failure> {
        match &mut self.node_mut(number).kind {
            Kind::File(bytes) => Ok(bytes),
            Kind::Directory(_) => Err(Failure::IsDirectory),
            _ => Err(Failure::Invalid),
        }
    }

    /// Does an operation; what can't be done changes nothing.
    ///
    /// # Errors
    /// Why it can't be done.
    pub fn apply(&mut self, operation: &Operation) -> Result<Answer, Failure> {
        use Operation as O;
        let limit = self.format.size_limit;
        let fits = |end: Option<u64>| match end {
            Some(end) if end < limit => Ok(()),
            _ => Err(Failure::FileTooLarge),
        };
        match operation {
            O::Write {
                path,
                offset,
                length,
                tag,
            }
            | O::WriteDirect {
                path,
                offset,
                length,
                tag,
            } => {
                let bytes = self.file_at(path)?;
                fits(offset.checked_add(*length as u64))?;
                bytes.write(*offset, &contents(*tag, *offset, *length));
            }
            O::Append { path, length, tag } => {
                let bytes = self.file_at(path)?;
                let offset = bytes.size();
                fits(offset.checked_add(*length as u64))?;
                bytes.write(offset, &contents(*tag, offset, *length));
            }
            O::Read {
                path,
                offset,
                length,
            } => return Ok(Answer::Bytes(self.file_at(path)?.read(*offset, *length))),
            O::SetSize { path, size } => {
                let bytes = self.file_at(path)?;
                fits(Some(*size))?;
                bytes.set_size(*size);
            }
            O::Allocate {
                path,
                offset,
                length,
            } => {
                let has_unwritten = self.format.has_unwritten;
                let bytes = self.file_at(path)?;
                let end = offset.checked_add(*length);
                fits(end)?;
                if !has_unwritten && end.is_none_or(|end| end > bytes.size()) {
                    return Err(Failure::Unsupported);
                }
                bytes.promise(*offset, *length);
            }
            O::Store {
                path,
                offset,
                length,
                tag,
            } => {
                let bytes = self.file_at(path)?;
                if *length == 0 || *offset + *length as u64 > bytes.size() {
                    return Err(Failure::Invalid);
                }
                bytes.write(*offset, &contents(*tag, *offset, *length));
            }
            O::ChangeRange {
                path,
                offset,
                length,
                how,
            } => {
                let format = self.format;
                ranges::change(self.file_at(path)?, format, (*offset, *length), *how)?;
            }
            O::ExchangeRange {
                path,
                offset,
                other,
                other_offset,
                length,
            } => self.exchange_range((path, *offset), (other, *other_offset), *length)?,
            O::Sync { path } | O::SyncData { path } | O::Migrate { path, .. } => {
                self.file_at(path)?;
            }
            O::SyncDirectory { path } => {
                let number = self.node_at(path, true)?;
                if !matches!(self.node(number).kind, Kind::Directory(_)) {
                    return Err(Failure::NotDirectory);
                }
            }
            O::SyncAll => {}
            O::SetPermissions { path, permissions } => {
                let number = self.node_at(path, true)?;
                self.node_mut(number).permissions = permissions & 0o7777;
            }
            O::SetOwner { path, uid, gid } => self.set_owner(path, *uid, *gid)?,
            O::SetXattr { path, name, value } => {
                let node = self.with_xattrs(path, name)?;
                node.xattrs.insert(name.clone(), value.clone());
            }
            O::RemoveXattr { path, name } => {
                let node = self.with_xattrs(path, name)?;
                return Ok(Answer::Was(node.xattrs.remove(name).is_some()));
            }
            O::Hold { slot, path } => {
                self.let_go(*slot);
                let number = self.node_at(path, true)?;
                self.bytes_of(number)?;
                self.held.insert(*slot, number);
            }
            O::WriteHeld {
                slot,
                offset,
                length,
                tag,
            } => {
                if let Some(number) = self.held(*slot) {
                    fits(offset.checked_add(*length as u64))?;
                    let data = contents(*tag, *offset, *length);
                    self.bytes_of(number)?.write(*offset, &data);
                }
            }
            O::ReadHeld {
                slot,
                offset,
                length,
            } => {
                if let Some(number) = self.held(*slot) {
                    let bytes = self.bytes_of(number)?.read(*offset, *length);
                    return Ok(Answer::Bytes(bytes));
                }
            }
            O::LetGo { slot } => self.let_go(*slot),
            O::Reopen => {
                for slot in self.held.keys().copied().collect::<Vec<_>>() {
                    self.let_go(slot);
                }
            }
            names => self.apply_to_names(names)?,
        }
        Ok(Answer::Done)
    }

    fn let_go(&mut self, slot: u8) {
        if let Some(number) = self.held.remove(&slot) {
            self.drop_if_unused(number);
        }
    }

    /// What chown(2) does: what is no directory loses its set-uid bit, and its set-group-id bit
    /// if its group may execute it.
    fn set_owner(&mut self, path: &str, uid: Option<u32>, gid: Option<u32>) -> Result<(), Failure> {
        let number = self.node_at(path, false)?;
        let node = self.node_mut(number);
        node.uid = uid.unwrap_or(node.uid);
        node.gid = gid.unwrap_or(node.gid);
        if matches!(node.kind, Kind::File(_) | Kind::Fifo) {
            node.permissions &= !SET_UID;
            if node.permissions & GROUP_EXECUTE != 0 {
                node.permissions &= !SET_GID;
            }
        }
        Ok(())
    }

    /// Attributes of users are for files and directories only.
    fn with_xattrs(&mut self, path: &str, name: &str) -> Result<&mut Node, Failure> {
        let number = self.node_at(path, false)?;
        let node = self.node_mut(number);
        let takes_users = matches!(node.kind, Kind::File(_) | Kind::Directory(_));
        if name.starts_with("user.") && !takes_users {
            return Err(Failure::NotPermitted);
        }
        Ok(node)
    }

    /// Owner and mode of what is made in `parent`: a set-group-id directory hands on its group,
    /// and to directories the bit too.
    pub(super) fn inherit(&self, parent: NodeNo, node: &mut Node) {
        let parent = self.node(parent);
        if parent.permissions & SET_GID != 0 {
            node.gid = parent.gid;
            if matches!(node.kind, Kind::Directory(_)) {
                node.permissions |= SET_GID;
            }
        }
    }
}
