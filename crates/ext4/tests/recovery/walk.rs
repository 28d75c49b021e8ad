//! Everything that can be reached in a file system, in order.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use pagefence_ext4::FileSystem;
use pagefence_vfs::{DirEntry, FileKind, FileSystem as _, InodeId};

/// A name and what lies behind it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) path: String,
    inode: u64,
    kind: FileKind,
    links: u32,
    size: u64,
    blocks_512: u64,
    /// Data of a file, target of a link.
    pub(crate) contents: Vec<u8>,
}

/// Walks the whole tree. Inode 11 (`lost+found`) and the root count as well.
pub(crate) fn walk(fs: &FileSystem) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut directories = vec![(String::new(), fs.root())];
    while let Some((path, id)) = directories.pop() {
        for (name, id) in list(fs, id) {
            let attr = fs.attr(id).unwrap();
            let path = format!("{path}/{name}");
            let contents = match attr.kind {
                FileKind::Regular => read(fs, id, attr.size),
                FileKind::Symlink => fs.read_link(id).unwrap(),
                _ => Vec::new(),
            };
            if attr.kind == FileKind::Directory {
                directories.push((path.clone(), id));
            }
            seen.push(Seen {
                path,
                inode: id.0,
                kind: attr.kind,
                links: attr.links,
                size: attr.size,
                blocks_512: attr.blocks_512,
                contents,
            });
        }
    }
    seen.sort_by(|left, right| left.path.cmp(&right.path));
    seen
}

fn list(fs: &FileSystem, id: InodeId) -> BTreeMap<String, InodeId> {
    let directory = fs.open_dir(id).unwrap();
    let mut names = BTreeMap::new();
    let mut sink = |entry: &DirEntry<'_>| {
        if entry.name != b"." && entry.name != b".." {
            let name = String::from_utf8_lossy(entry.name).into_owned();
            assert!(names.insert(name, entry.id).is_none(), "each name once");
        }
        ControlFlow::Continue(())
    };
    fs.read_dir(&directory, 0, false, &mut sink).unwrap();
    names
}

fn read(fs: &FileSystem, id: InodeId, size: u64) -> Vec<u8> {
    let file = fs.open(id, false).unwrap();
    let mut contents = vec![0; usize::try_from(size).unwrap()];
    let mut at = 0;
    while at < contents.len() {
        let count = fs.read(&file, at as u64, &mut contents[at..]).unwrap();
        assert!(count > 0, "data up to the size");
        at += count;
    }
    contents
}
