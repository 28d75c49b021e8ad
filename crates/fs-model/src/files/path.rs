//! From a path to a node, as path_resolution(7) says.

use super::operation::Failure;
use super::tree::{Kind, NodeNo, Tree};

/// Symbolic links followed on one path.
const SYMLINKS_MAX: usize = 40;
/// Bytes of a name.
pub(super) const NAME_MAX: usize = 255;

/// Where a path leads.
pub(super) enum Found {
    There(NodeNo),
    Missing,
}

impl Tree {
    /// The node at `path`; the last name is followed if it is a symbolic link and `follow` says so.
    ///
    /// # Errors
    /// Nothing there; what stands in the way.
    pub fn node_at(&self, path: &str, follow: bool) -> Result<NodeNo, Failure> {
        match self.walk(path, follow)? {
            Found::There(node) => Ok(node),
            Found::Missing => Err(Failure::NotFound),
        }
    }

    pub(super) fn walk(&self, path: &str, follow: bool) -> Result<Found, Failure> {
        let mut rest: Vec<String> = Vec::new();
        push(&mut rest, path);
        let mut here = Self::ROOT;
        // The directories on the way are kept: a link's target starts in the link's own.
        let mut followed = 0;
        while let Some(name) = rest.pop() {
            let is_last = rest.is_empty();
            let Kind::Directory(entries) = &self.node(here).kind else {
                return Err(Failure::NotDirectory);
            };
            if name.len() > NAME_MAX {
                return Err(Failure::NameTooLong);
            }
            let Some(&next) = entries.get(&name) else {
                return if is_last {
                    Ok(Found::Missing)
                } else {
                    Err(Failure::NotFound)
                };
            };
            if let Kind::Symlink(target) = &self.node(next).kind
                && (!is_last || follow)
            {
                followed += 1;
                if followed > SYMLINKS_MAX {
                    return Err(Failure::TooManySymlinks);
                }
                push(&mut rest, target);
                continue;
            }
            if !is_last && !matches!(self.node(next).kind, Kind::Directory(_)) {
                return Err(Failure::NotDirectory);
            }
            here = next;
        }
        Ok(Found::There(here))
    }

    /// The directory that `path` names an entry of, and the entry's name.
    pub(super) fn parent_of<'p>(&self, path: &'p str) -> Result<(NodeNo, &'p str), Failure> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.node_at(parent, true)?;
        match self.node(parent).kind {
            Kind::Directory(_) => Ok((parent, name)),
            _ => Err(Failure::NotDirectory),
        }
    }

    /// The entry `name` of directory `parent`.
    pub(super) fn entry(&self, parent: NodeNo, name: &str) -> Result<Option<NodeNo>, Failure> {
        if name.len() > NAME_MAX {
            return Err(Failure::NameTooLong);
        }
        match &self.node(parent).kind {
            Kind::Directory(entries) => Ok(entries.get(name).copied()),
            _ => Err(Failure::NotDirectory),
        }
    }
}

/// Puts the names of a relative path on the stack, the first on top.
fn push(stack: &mut Vec<String>, path: &str) {
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    stack.extend(names.rev().map(str::to_owned));
}
