//! Whether a file system is as the model has it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use pagefence_vfs::{DirEntry, Error, FileKind, FileSystem, InodeId, Result, Whence};

use super::Driven;
use crate::files::{Bytes, Kind, NodeNo, Tree};

/// How much of a file's space is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// None: what has a place on disk is the format's business.
    Contents,
    /// What was written is data for lseek and the rest are holes; what was written or promised
    /// is what stat counts, and nothing else is.
    Space,
}

/// Files up to this size are read whole, larger ones where the model has something.
const READ_WHOLE: u64 = 1 << 20;

impl<F: FileSystem> Driven<'_, F> {
    /// Compares every name, attribute and byte.
    ///
    /// # Errors
    /// Where they differ.
    pub fn compare(&self, tree: &Tree, exactness: Exactness) -> Result<(), String> {
        let mut known: BTreeMap<NodeNo, InodeId> = BTreeMap::new();
        let mut numbers: BTreeMap<InodeId, NodeNo> = BTreeMap::new();
        for (path, number) in tree.paths() {
            let at = |error: Error| format!("{path:?}: {error}");
            let differs = |what: String| format!("{path:?}: {what}");
            let id = self.find(&path, false).map_err(at)?;
            let its = (
                *known.entry(number).or_insert(id),
                *numbers.entry(id).or_insert(number),
            );
            if its != (id, number) {
                return Err(differs("an inode of another name".to_owned()));
            }
            self.compare_attributes(tree, number, id)
                .map_err(&differs)?;
            match &tree.node(number).kind {
                Kind::File(bytes) => {
                    self.compare_bytes(bytes, id).map_err(&differs)?;
                    if exactness == Exactness::Space {
                        self.compare_space(bytes, id).map_err(&differs)?;
                    }
                }
                Kind::Directory(entries) => {
                    let names = self.names(id).map_err(at)?;
                    let expected: BTreeSet<Vec<u8>> =
                        entries.keys().map(|name| name.clone().into()).collect();
                    let found: BTreeSet<Vec<u8>> = names.iter().cloned().collect();
                    if found != expected || names.len() != expected.len() {
                        return Err(differs(format!("expected {expected:?}, found {names:?}")));
                    }
                }
                Kind::Symlink(target) => {
                    if self.fs.read_link(id).map_err(at)? != target.as_bytes() {
                        return Err(differs("another target".to_owned()));
                    }
                }
                Kind::Fifo => {}
            }
        }
        Ok(())
    }

    fn compare_attributes(
        &self,
        tree: &Tree,
        number: NodeNo,
        id: InodeId,
    ) -> std::result::Result<(), String> {
        let node = tree.node(number);
        let attr = self.fs.attr(id).map_err(|error| error.to_string())?;
        let kind = match &node.kind {
            Kind::File(_) => FileKind::Regular,
            Kind::Directory(_) => FileKind::Directory,
            Kind::Symlink(_) => FileKind::Symlink,
            Kind::Fifo => FileKind::Fifo,
        };
        let expected = (kind, node.permissions, node.uid, node.gid, node.links);
        let found = (attr.kind, attr.permissions, attr.uid, attr.gid, attr.links);
        if expected != found {
            return Err(format!("expected {expected:?}, found {found:?}"));
        }
        let mut xattrs = BTreeMap::new();
        let names = self.fs.xattr_names(id).map_err(|error| error.to_string())?;
        for name in names {
            let value = self.fs.xattr(id, &name.0);
            let name = String::from_utf8_lossy(&name.0).into_owned();
            xattrs.insert(name, value.map_err(|error| error.to_string())?);
        }
        if xattrs != node.xattrs {
            return Err(format!("expected {:?}, found {xattrs:?}", node.xattrs));
        }
        Ok(())
    }

    fn compare_bytes(&self, bytes: &Bytes, id: InodeId) -> std::result::Result<(), String> {
        let text = |error: Error| error.to_string();
        let size = self.fs.attr(id).map_err(text)?.size;
        if size != bytes.size() {
            return Err(format!("expected {} bytes, found {size}", bytes.size()));
        }
        let file = self.fs.open(id, false).map_err(text)?;
        for (at, length) in pieces(bytes) {
            let mut found = vec![0xee; length];
            let count = self.fs.read(&file, at, &mut found).map_err(text)?;
            found.truncate(count);
            let expected = bytes.read(at, length);
            if found != expected {
                let same = found.iter().zip(&expected).take_while(|(a, b)| a == b);
                return Err(format!("other bytes from {} on", at + same.count() as u64));
            }
        }
        Ok(())
    }

    fn compare_space(&self, bytes: &Bytes, id: InodeId) -> std::result::Result<(), String> {
        let text = |error: Error| error.to_string();
        let space: u64 = bytes.with_space().iter().map(|(_, length)| length).sum();
        let found = self.fs.attr(id).map_err(text)?.blocks_512 * 512;
        if found != space {
            return Err(format!("expected {space} bytes of space, found {found}"));
        }
        let file = self.fs.open(id, false).map_err(text)?;
        let (mut at, mut runs) = (0, Vec::new());
        loop {
            let start = match self.fs.seek(&file, at, Whence::Data) {
                Ok(start) => start,
                Err(Error::NoData) => break,
                Err(error) => return Err(text(error)),
            };
            at = self.fs.seek(&file, start, Whence::Hole).map_err(text)?;
            runs.push((start, at - start));
        }
        let inside = |(start, length): (u64, u64)| (start, length.min(bytes.size() - start));
        let expected: Vec<_> = bytes.written().into_iter().map(inside).collect();
        if runs != expected {
            return Err(format!("expected data at {expected:?}, found {runs:?}"));
        }
        Ok(())
    }

    /// The names of a directory, read a few at a time.
    fn names(&self, id: InodeId) -> Result<Vec<Vec<u8>>> {
        const AT_ONCE: usize = 7;
        let directory = self.fs.open_dir(id)?;
        let (mut names, mut from) = (Vec::new(), 0);
        loop {
            let (mut taken, start) = (0, from);
            let mut sink = |entry: &DirEntry<'_>| {
                if taken == AT_ONCE {
                    return ControlFlow::Break(());
                }
                taken += 1;
                from = entry.next;
                if !matches!(entry.name, b"." | b"..") {
                    names.push(entry.name.to_vec());
                }
                ControlFlow::Continue(())
            };
            self.fs.read_dir(&directory, start, false, &mut sink)?;
            if taken == 0 {
                return Ok(names);
            }
        }
    }
}

/// The pieces of a file that are compared.
fn pieces(bytes: &Bytes) -> Vec<(u64, usize)> {
    if bytes.size() <= READ_WHOLE {
        return vec![(0, bytes.size() as usize + 1)];
    }
    let around = |(start, length): (u64, u64)| {
        let first = start.saturating_sub(4096);
        (first, (start + length + 4096 - first) as usize)
    };
    let mut pieces: Vec<_> = bytes.with_space().into_iter().map(around).collect();
    pieces.extend([(0, 4096), (bytes.size() - 4096, 8192)]);
    pieces
}
