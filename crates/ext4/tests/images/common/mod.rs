//! What the tests share: images, edits that mend checksums, a walk over everything, limits.

pub(crate) mod edit;
pub(crate) mod explore;
pub(crate) mod kernel;
pub(crate) mod limits;
pub(crate) mod log;
pub(crate) mod make;

pub(crate) use edit::Image;
pub(crate) use explore::{Findings, Limits, explore, open};
pub(crate) use make::Recipe;

use pagefence_vfs::{Attr, Cookie, DirEntry, FileSystem as _, InodeId};
use std::ops::ControlFlow;

/// What a path leads to, links not followed.
pub(crate) fn at(fs: &pagefence_ext4::FileSystem, path: &str) -> pagefence_vfs::Result<Attr> {
    let mut attr = fs.attr(fs.root())?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        attr = fs.lookup(attr.id, name.as_bytes())?.attr;
    }
    Ok(attr)
}

/// The inode that a path leads to, in an image that is sound so far.
pub(crate) fn id(fs: &pagefence_ext4::FileSystem, path: &str) -> InodeId {
    at(fs, path)
        .unwrap_or_else(|error| panic!("{path}: {error}"))
        .id
}

/// The whole contents of a file.
pub(crate) fn contents(fs: &pagefence_ext4::FileSystem, path: &str) -> Vec<u8> {
    let attr = at(fs, path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let file = fs.open(attr.id, false).expect(path);
    let mut bytes = vec![0; usize::try_from(attr.size).expect("a small file")];
    let read = fs.read(&file, 0, &mut bytes).expect(path);
    assert_eq!(read, bytes.len(), "{path}");
    bytes
}

/// One entry of a directory, with the cookie behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: Vec<u8>,
    pub(crate) id: InodeId,
    pub(crate) next: Cookie,
}

/// At most `most` entries of a directory from a cookie on.
pub(crate) fn entries_from(
    fs: &pagefence_ext4::FileSystem,
    dir: InodeId,
    from: Cookie,
    most: usize,
) -> pagefence_vfs::Result<Vec<Named>> {
    let dir = fs.open_dir(dir)?;
    let mut entries = Vec::new();
    let read = fs.read_dir(&dir, from, false, &mut |entry: &DirEntry<'_>| {
        if entries.len() == most {
            return ControlFlow::Break(());
        }
        entries.push(Named {
            name: entry.name.to_vec(),
            id: entry.id,
            next: entry.next,
        });
        ControlFlow::Continue(())
    });
    read.map(|()| entries)
}
