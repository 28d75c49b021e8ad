//! From a sequence to a list of operations that can be done: files that are missing are made, and
//! what is in the way is removed.

use pagefence_fs_model::files::{Kind as Node, NodeNo, Operation, RenameHow, Tree};

use super::{
    CUT, Core, FIRST, INSIDE, LONG, PAGES, Persist, Place, ROOT, SECOND, SHORT, Sequence, Space,
    XATTR, is_directory, parent,
};
use crate::image::Setup;

/// The operations of a sequence, with all that has to be there before. With `settled` that is
/// durable before the operation that needs it.
pub(crate) fn operations(setup: &Setup, sequence: &Sequence, settled: bool) -> Vec<Operation> {
    let mut builder = Builder {
        tree: Tree::new(setup.format()),
        block: u64::from(setup.block_size),
        operations: Vec::new(),
    };
    for (core, end) in sequence {
        let operations = builder.prepare(*core);
        if settled {
            builder.done(Operation::SyncAll);
        }
        for operation in operations {
            // Some file systems refuse some: nothing happens then, and that is tried, too.
            let _ = builder.tree.apply(&operation);
            builder.operations.push(operation);
        }
        builder.persist(*end);
    }
    builder.operations
}

/// What was done so far.
struct Builder {
    tree: Tree,
    block: u64,
    operations: Vec<Operation>,
}

impl Builder {
    /// Does what can be done.
    fn done(&mut self, operation: Operation) {
        let outcome = self.tree.apply(&operation);
        assert!(outcome.is_ok(), "{operation:?}: {outcome:?}");
        self.operations.push(operation);
    }

    /// A number for the next write: one that no other has, and that the library writes through its
    /// cache.
    fn tag(&self) -> u64 {
        self.operations.len() as u64 * 3 + 1
    }

    fn node(&self, path: &str) -> Option<NodeNo> {
        self.tree.node_at(path, false).ok()
    }

    /// Where a path leads: links are followed here, not by who does the operations. `None` if it leads
    /// nowhere, in a circle.
    fn real(&self, path: &'static str) -> Option<&'static str> {
        let known = FIRST.into_iter().chain(SECOND);
        let mut path = path;
        for _ in 0..=known.clone().count() {
            let node = self.node(path).map(|node| &self.tree.node(node).kind);
            let Some(Node::Symlink(target)) = node else {
                return Some(path);
            };
            path = known.clone().find(|known| known == target)?;
        }
        None
    }

    fn size(&self, path: &str) -> u64 {
        match self.node(path).map(|node| &self.tree.node(node).kind) {
            Some(Node::File(bytes)) => bytes.size(),
            _ => 0,
        }
    }

    fn ensure_directory(&mut self, path: &'static str) {
        if self.node(path).is_none() {
            self.done(Operation::MakeDirectory { path: path.into() });
        }
    }

    /// A file, behind whatever link; its path.
    fn ensure_file(&mut self, path: &'static str) -> &'static str {
        self.ensure_directory(parent(path));
        let path = self.real(path).unwrap_or_else(|| {
            self.ensure_nothing(path);
            path
        });
        self.ensure_directory(parent(path));
        if self.node(path).is_none() {
            self.done(Operation::Create { path: path.into() });
        }
        path
    }

    /// A file that is not empty.
    fn ensure_bytes(&mut self, path: &'static str) -> &'static str {
        let path = self.ensure_file(path);
        if self.size(path) < LONG {
            let (length, tag) = (LONG as usize, self.tag());
            self.done(Operation::Append {
                path: path.into(),
                length,
                tag,
            });
        }
        path
    }

    fn ensure_nothing(&mut self, path: &str) {
        let Some(node) = self.node(path) else { return };
        let path = path.to_owned();
        if let Node::Directory(entries) = &self.tree.node(node).kind {
            let inside: Vec<String> = entries
                .keys()
                .map(|name| format!("{path}/{name}"))
                .collect();
            for path in inside {
                self.ensure_nothing(&path);
            }
            self.done(Operation::RemoveDirectory { path });
        } else {
            self.done(Operation::Remove { path });
        }
    }

    /// Sees to what an operation needs; what it then is.
    fn prepare(&mut self, core: Core) -> Vec<Operation> {
        use Operation as O;
        let operation = match core {
            Core::Create(path) => {
                self.ensure_directory(parent(path));
                self.ensure_nothing(path);
                O::Create { path: path.into() }
            }
            Core::MakeDirectory(path) => {
                self.ensure_nothing(path);
                O::MakeDirectory { path: path.into() }
            }
            Core::Link(from, to) => {
                let original = self.ensure_file(from).to_owned();
                self.ensure_directory(parent(to));
                self.ensure_nothing(to);
                // What it leads to may have been what was in the way.
                let original = self.ensure_file_again(original);
                let link = to.into();
                O::Link { original, link }
            }
            Core::Symlink(target, path) => {
                self.ensure_directory(parent(path));
                self.ensure_nothing(path);
                let (target, path) = (target.into(), path.into());
                O::Symlink { target, path }
            }
            Core::Unlink(path) | Core::Remove(path) => {
                self.ensure_directory(parent(path));
                if self.node(path).is_none() {
                    self.done(O::Create { path: path.into() });
                }
                O::Remove { path: path.into() }
            }
            Core::RenameFile(from, to) => {
                self.ensure_directory(parent(from));
                if self.node(from).is_none() {
                    self.done(O::Create { path: from.into() });
                }
                self.ensure_directory(parent(to));
                rename(from, to)
            }
            Core::RenameDirectory(from, to) => {
                self.ensure_directory(from);
                self.ensure_nothing(to);
                rename(from, to)
            }
            Core::SetXattr(path) => self.set_xattr(path),
            Core::RemoveXattr(path) => {
                let set = self.set_xattr(path);
                let path = set.paths()[0].to_owned();
                self.done(set);
                let name = XATTR.into();
                O::RemoveXattr { path, name }
            }
            Core::SyncData(path) => {
                let path = self.ensure_file(path).into();
                O::SyncData { path }
            }
            bytes => return self.prepare_bytes(bytes),
        };
        vec![operation]
    }

    fn ensure_file_again(&mut self, path: String) -> String {
        if self.node(&path).is_none() {
            self.done(Operation::Create { path: path.clone() });
        }
        path
    }

    fn set_xattr(&mut self, path: &'static str) -> Operation {
        Operation::SetXattr {
            path: self.ensure_file(path).into(),
            name: XATTR.into(),
            value: b"a value".to_vec(),
        }
    }

    /// Where a range begins, and its length, in a file that has been made long enough.
    fn range(&mut self, path: &'static str, place: Place, length: u64) -> (&'static str, u64, u64) {
        let path = match place {
            Place::Append => self.ensure_file(path),
            _ => self.ensure_bytes(path),
        };
        let size = self.size(path);
        match place {
            Place::Append => (path, size, LONG),
            Place::Start => (path, 0, length),
            Place::End => (path, size.saturating_sub(length), length),
            Place::Extend => (path, size.saturating_sub(INSIDE), length),
        }
    }

    fn prepare_bytes(&mut self, core: Core) -> Vec<Operation> {
        use Operation as O;
        match core {
            Core::Fallocate(path, space, place) => {
                self.ensure_bytes(path);
                let (path, offset, length) = self.range(path, place, SHORT);
                let path = path.into();
                vec![match space {
                    Space::Plain => O::Allocate {
                        path,
                        offset,
                        length,
                    },
                    Space::Range(how) => O::ChangeRange {
                        path,
                        offset,
                        length,
                        how,
                    },
                }]
            }
            Core::Write(path, place) => {
                let (path, offset, length) = self.range(path, place, SHORT);
                let (path, tag) = (path.into(), self.tag());
                vec![O::Write {
                    path,
                    offset,
                    length: length as usize,
                    tag,
                }]
            }
            Core::WriteDirect(path, place) => {
                let (path, offset, length) = self.range(path, place, PAGES);
                let (path, tag) = (path.into(), self.tag());
                vec![O::WriteDirect {
                    path,
                    offset,
                    length: length as usize,
                    tag,
                }]
            }
            Core::Store(path, place) => {
                let (path, offset, length) = self.range(path, place, PAGES);
                let (path, tag, size) = (path.to_owned(), self.tag(), offset + length);
                let mut steps = Vec::new();
                if size > self.size(&path) {
                    let path = path.clone();
                    steps.push(O::SetSize { path, size });
                }
                steps.push(O::Store {
                    path: path.clone(),
                    offset,
                    length: length as usize,
                    tag,
                });
                // msync(2).
                steps.push(O::SyncData { path });
                steps
            }
            Core::Truncate(path, to_nothing) => {
                let path = self.ensure_bytes(path).into();
                let size = if to_nothing { 0 } else { CUT };
                vec![O::SetSize { path, size }]
            }
            Core::Shift(path, how, at_start) => {
                let path = self.ensure_bytes(path).into();
                let offset = if at_start { 0 } else { 2 * self.block };
                vec![O::ChangeRange {
                    path,
                    offset,
                    length: 2 * self.block,
                    how,
                }]
            }
            Core::Exchange(one, two) => {
                let (one, two) = (self.ensure_bytes(one), self.ensure_bytes(two));
                let (path, other) = (one.into(), two.into());
                vec![O::ExchangeRange {
                    path,
                    offset: 0,
                    other,
                    other_offset: self.block,
                    length: 3 * self.block,
                }]
            }
            Core::Migrate(path) => {
                let path = self.ensure_bytes(path);
                let node = self.node(path).map(|node| &self.tree.node(node).kind);
                if matches!(node, Some(Node::File(bytes)) if bytes.may_have_unwritten()) {
                    return Vec::new();
                }
                let migrate = |to_extents| O::Migrate {
                    path: path.into(),
                    to_extents,
                };
                vec![migrate(false), migrate(true)]
            }
            names => unreachable!("{names:?} is about names"),
        }
    }

    fn persist(&mut self, end: Persist) {
        let operation = match end {
            Persist::None => return,
            Persist::All => Operation::SyncAll,
            Persist::One(path) if is_directory(path) => {
                if path != ROOT {
                    self.ensure_directory(path);
                }
                Operation::SyncDirectory { path: path.into() }
            }
            Persist::One(path) => Operation::Sync {
                path: self.ensure_file(path).into(),
            },
        };
        self.done(operation);
    }
}

fn rename(from: &str, to: &str) -> Operation {
    Operation::Rename {
        from: from.into(),
        to: to.into(),
        how: RenameHow::Replace,
    }
}
