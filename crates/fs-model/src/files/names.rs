//! The operations that change names.

use std::collections::BTreeMap;

use super::bytes::Bytes;
use super::operation::{Failure, Operation, RenameHow};
use super::tree::{Kind, Node, NodeNo, Tree};

impl Tree {
    pub(super) fn apply_to_names(&mut self, operation: &Operation) -> Result<(), Failure> {
        use Operation as O;
        match operation {
            O::Create { path } => {
                let empty = Kind::File(Bytes::new(self.format.block_size));
                self.make(path, empty, 0o644)
            }
            O::MakeDirectory { path } => self.make(path, Kind::Directory(BTreeMap::new()), 0o755),
            O::Fifo { path } => self.make(path, Kind::Fifo, 0o644),
            O::Symlink { target, path } => self.symlink(target, path),
            O::Link { original, link } => self.link(original, link),
            O::Remove { path } => {
                let (parent, name) = self.parent_of(path)?;
                let child = self.entry(parent, name)?.ok_or(Failure::NotFound)?;
                if self.is_directory(child) {
                    return Err(Failure::IsDirectory);
                }
                self.take_out(parent, name);
                self.drop_link(child);
                Ok(())
            }
            O::RemoveDirectory { path } => {
                let (parent, name) = self.parent_of(path)?;
                let child = self.entry(parent, name)?.ok_or(Failure::NotFound)?;
                if !self.is_directory(child) {
                    return Err(Failure::NotDirectory);
                }
                if !self.is_empty(child) {
                    return Err(Failure::NotEmpty);
                }
                self.take_out(parent, name);
                self.node_mut(parent).links -= 1;
                self.nodes.remove(&child);
                Ok(())
            }
            O::Rename { from, to, how } => self.rename(from, to, *how),
            other => unreachable!("{other:?} does not change names"),
        }
    }

    pub(super) fn make(&mut self, path: &str, kind: Kind, permissions: u16) -> Result<(), Failure> {
        let (parent, name) = self.parent_of(path)?;
        if self.entry(parent, name)?.is_some() {
            return Err(Failure::Exists);
        }
        let mut node = Node::new(kind, permissions);
        self.inherit(parent, &mut node);
        let is_directory = matches!(node.kind, Kind::Directory(_));
        if is_directory {
            node.links = 2;
            self.node_mut(parent).links += 1;
        }
        let child = self.insert(node);
        self.put_in(parent, name, child);
        Ok(())
    }

    /// A target fits into a block, with a byte to end it.
    fn symlink(&mut self, target: &str, path: &str) -> Result<(), Failure> {
        let (parent, name) = self.parent_of(path)?;
        if self.entry(parent, name)?.is_some() {
            return Err(Failure::Exists);
        }
        if target.len() >= self.format.block_size as usize {
            return Err(Failure::NameTooLong);
        }
        self.make(path, Kind::Symlink(target.to_owned()), 0o777)
    }

    fn link(&mut self, original: &str, link: &str) -> Result<(), Failure> {
        let number = self.node_at(original, false)?;
        let (parent, name) = self.parent_of(link)?;
        if self.entry(parent, name)?.is_some() {
            return Err(Failure::Exists);
        }
        if self.is_directory(number) {
            return Err(Failure::NotPermitted);
        }
        self.node_mut(number).links += 1;
        self.put_in(parent, name, number);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, how: RenameHow) -> Result<(), Failure> {
        let (old_parent, old_name) = self.parent_of(from)?;
        let (new_parent, new_name) = self.parent_of(to)?;
        let moved = self.entry(old_parent, old_name)?.ok_or(Failure::NotFound)?;
        let target = self.entry(new_parent, new_name)?;
        match (how, target) {
            (RenameHow::NoReplace, Some(_)) => return Err(Failure::Exists),
            (RenameHow::Exchange, None) => return Err(Failure::NotFound),
            _ => {}
        }
        if self.is_below(new_parent, moved) {
            return Err(Failure::Invalid);
        }
        if target.is_some_and(|target| self.is_below(old_parent, target)) {
            return Err(match how {
                RenameHow::Exchange => Failure::Invalid,
                _ => Failure::NotEmpty,
            });
        }
        if target == Some(moved) {
            return Ok(());
        }
        if how == RenameHow::Exchange
            && let Some(target) = target
        {
            self.move_dotdot(moved, old_parent, new_parent);
            self.move_dotdot(target, new_parent, old_parent);
            self.put_in(old_parent, old_name, target);
            self.put_in(new_parent, new_name, moved);
            return Ok(());
        }
        if let Some(target) = target {
            match (self.is_directory(moved), self.is_directory(target)) {
                (true, false) => return Err(Failure::NotDirectory),
                (false, true) => return Err(Failure::IsDirectory),
                (true, true) if !self.is_empty(target) => return Err(Failure::NotEmpty),
                _ => {}
            }
        }
        self.take_out(old_parent, old_name);
        self.put_in(new_parent, new_name, moved);
        self.move_dotdot(moved, old_parent, new_parent);
        match target {
            Some(target) if self.is_directory(target) => {
                self.node_mut(new_parent).links -= 1;
                self.nodes.remove(&target);
            }
            Some(target) => self.drop_link(target),
            None => {}
        }
        Ok(())
    }

    /// A directory that moves takes its `..` along.
    fn move_dotdot(&mut self, moved: NodeNo, from: NodeNo, to: NodeNo) {
        if self.is_directory(moved) {
            self.node_mut(from).links -= 1;
            self.node_mut(to).links += 1;
        }
    }

    fn drop_link(&mut self, number: NodeNo) {
        self.node_mut(number).links -= 1;
        self.drop_if_unused(number);
    }

    fn is_directory(&self, number: NodeNo) -> bool {
        matches!(self.node(number).kind, Kind::Directory(_))
    }

    fn is_empty(&self, number: NodeNo) -> bool {
        matches!(&self.node(number).kind, Kind::Directory(entries) if entries.is_empty())
    }

    /// Whether `below` is `above` or in it, however deep.
    fn is_below(&self, below: NodeNo, above: NodeNo) -> bool {
        below == above
            || match &self.node(above).kind {
                Kind::Directory(entries) => entries
                    .values()
                    .any(|child| self.is_directory(*child) && self.is_below(below, *child)),
                _ => false,
            }
    }

    fn entries(&mut self, parent: NodeNo) -> &mut BTreeMap<String, NodeNo> {
        match &mut self.node_mut(parent).kind {
            Kind::Directory(entries) => entries,
            other => unreachable!("{other:?} is no directory"),
        }
    }

    fn take_out(&mut self, parent: NodeNo, name: &str) {
        let taken = self.entries(parent).remove(name);
        assert!(taken.is_some(), "it was looked up");
    }

    fn put_in(&mut self, parent: NodeNo, name: &str, child: NodeNo) {
        self.entries(parent).insert(name.to_owned(), child);
    }
}
