//! The entries of a directory, and reading them.
//!
//! Each entry has a position of its own, which no other entry of the directory ever had: reading
//! goes on behind one, whatever came and went meanwhile (Linux: `simple_offset_add`). Who reads
//! sees what was there when it began at the start, so that renames don't keep it busy for ever.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use hashbrown::HashMap;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, RwLock};
use pagefence_vfs::{Attr, Cookie, DirEntry, DirSink, Error, FileKind, InodeId, Result};

use crate::filesystem::{MemFs, Open};
use crate::inode::Inode;

/// The positions after `.` and `..`.
const AFTER_DOT: Cookie = 1;
const AFTER_DOT_DOT: Cookie = 2;

/// Entries taken under one hold of the lock.
const BATCH: usize = 64;

/// A directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// The inode's number of the directory that it lies in, or its own at the root. Changes with
    /// the rename lock and the inode lock held.
    parent: AtomicU64,
    /// A leaf but for the table of inodes. Changes happen with the inode lock held exclusively.
    entries: RwLock<Entries>,
}

#[derive(Debug)]
struct Entries {
    by_name: HashMap<Arc<[u8]>, Cookie>,
    by_position: BTreeMap<Cookie, Named>,
    /// The position that was given last.
    last: Cookie,
}

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    name: Arc<[u8]>,
    pub(crate) number: u64,
    pub(crate) kind: FileKind,
}

impl Directory {
    /// An empty one.
    pub(crate) fn new(parent: u64) -> Self {
        Self {
            parent: AtomicU64::new(parent),
            entries: RwLock::new(Entries {
                by_name: HashMap::new(),
                by_position: BTreeMap::new(),
                last: AFTER_DOT_DOT,
            }),
        }
    }

    pub(crate) fn parent(&self) -> u64 {
        self.parent.load(Ordering::Acquire)
    }

    pub(crate) fn set_parent(&self, parent: &Inode) {
        self.parent.store(parent.number, Ordering::Release);
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> u64 {
        self.entries.read().by_name.len() as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What `name` means.
    pub(crate) fn find(&self, name: &[u8]) -> Option<Named> {
        self.find_with(name, Clone::clone)
    }

    /// What `then` makes of what `name` means, while the name stays: below, it looks at the table
    /// of inodes at most.
    pub(crate) fn find_with<T>(&self, name: &[u8], then: impl FnOnce(&Named) -> T) -> Option<T> {
        let entries = self.entries.read();
        let position = entries.by_name.get(name)?;
        entries.by_position.get(position).map(then)
    }

    /// Puts in a name that is not there.
    pub(crate) fn insert(&self, name: &[u8], inode: &Inode) {
        let mut entries = self.entries.write();
        let entries = &mut *entries;
        entries.last += 1;
        let name: Arc<[u8]> = name.into();
        let before = entries.by_name.insert(Arc::clone(&name), entries.last);
        debug_assert!(before.is_none(), "the name was there");
        let named = Named {
            name,
            number: inode.number,
            kind: inode.kind,
        };
        entries.by_position.insert(entries.last, named);
    }

    /// Takes a name out that is there.
    pub(crate) fn remove(&self, name: &[u8]) {
        let mut entries = self.entries.write();
        let position = entries.by_name.remove(name);
        debug_assert!(position.is_some(), "the name was not there");
        if let Some(position) = position {
            entries.by_position.remove(&position);
        }
    }

    /// Lets a name that is there mean another inode.
    pub(crate) fn redirect(&self, name: &[u8], inode: &Inode) {
        let mut entries = self.entries.write();
        let position = entries.by_name.get(name).copied();
        debug_assert!(position.is_some(), "the name was not there");
        if let Some(named) = position.and_then(|position| entries.by_position.get_mut(&position)) {
            (named.number, named.kind) = (inode.number, inode.kind);
        }
    }

    /// The position that was given last.
    fn end(&self) -> Cookie {
        self.entries.read().last
    }

    /// Entries with their positions behind `from`, up to `end`.
    fn batch(&self, from: Cookie, end: Cookie, batch: &mut Vec<(Cookie, Named)>) {
        batch.clear();
        if from >= end {
            return;
        }
        let entries = self.entries.read();
        let found = entries.by_position.range(from + 1..=end).take(BATCH);
        batch.extend(found.map(|(position, named)| (*position, named.clone())));
    }
}

/// An open directory.
#[derive(Debug)]
pub struct OpenDirectory {
    open: Open,
    /// Where reading ends: behind what was there when it began.
    end: AtomicU64,
}

impl MemFs {
    pub(crate) fn open_directory(&self, id: InodeId) -> Result<OpenDirectory> {
        let inode = self.core.inodes.get(id)?;
        let end = inode.directory()?.end();
        Ok(OpenDirectory {
            open: Open::new(&self.core, inode)?,
            end: AtomicU64::new(end),
        })
    }

    pub(crate) fn read_directory(
        &self,
        dir: &OpenDirectory,
        from: Cookie,
        with_attr: bool,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        let inode = dir.open.inode();
        let directory = inode.directory()?;
        if from == 0 {
            dir.end.store(directory.end(), Ordering::Relaxed);
        }
        let mut give = |id: u64, name: &[u8], kind, next: Cookie, attr: Option<Attr>| {
            sink.entry(&DirEntry {
                id: InodeId(id),
                kind: Some(kind),
                name,
                next,
                attr,
            })
        };
        let dots = [
            (inode.number, &b"."[..], AFTER_DOT),
            (directory.parent(), &b".."[..], AFTER_DOT_DOT),
        ];
        for (id, name, next) in dots {
            if from < next && give(id, name, FileKind::Directory, next, None).is_break() {
                return Ok(());
            }
        }
        let end = dir.end.load(Ordering::Relaxed);
        let (mut at, mut batch) = (from.max(AFTER_DOT_DOT), Vec::with_capacity(BATCH));
        loop {
            directory.batch(at, end, &mut batch);
            if batch.is_empty() {
                self.note_access(inode);
                return Ok(());
            }
            for (position, named) in &batch {
                at = *position;
                let attr = if with_attr {
                    match self.core.inodes.get(InodeId(named.number)) {
                        Ok(child) => Some(child.attr()),
                        // Its last name went meanwhile, this one.
                        Err(Error::Stale) => continue,
                        Err(error) => return Err(error),
                    }
                } else {
                    None
                };
                let given = give(named.number, &named.name, named.kind, at, attr);
                if given == ControlFlow::Break(()) {
                    self.note_access(inode);
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use pagefence_vfs::InodeId;

    use super::{AFTER_DOT_DOT, Directory};
    use crate::filesystem::{MemFs, Options};

    /// Positions stay as names come and go, and none is used again.
    #[test]
    fn positions_are_never_used_again() {
        let fs = MemFs::new(&Options::new(1 << 20)).expect("memory");
        let root = fs.core.inodes.get(InodeId(1)).expect("the root");
        let directory = Directory::new(1);
        let (mut batch, mut seen) = (Vec::new(), Vec::new());
        for name in [b"a", b"b", b"c"] {
            directory.insert(name, &root);
        }
        directory.batch(0, directory.end(), &mut batch);
        seen.extend(batch.iter().map(|(position, _)| *position));
        directory.remove(b"b");
        directory.insert(b"b", &root);
        directory.redirect(b"a", &root);
        directory.batch(seen[0], directory.end(), &mut batch);
        let names: Vec<_> = batch.iter().map(|(_, named)| named.name[0]).collect();
        assert_eq!(names, *b"cb");
        assert!(seen[0] > AFTER_DOT_DOT);
        assert!(batch.iter().all(|(position, _)| *position > seen[1]));
        assert_eq!(directory.len(), 3);
    }
}
