//! Directories: reading them while they change, and what is special about their names.

use std::ops::ControlFlow;

use pagefence_memfs::{MemFs, OpenDirectory};
use pagefence_vfs::{DirEntry, Error, FileSystem as _, InodeId, NewKind, RenameMode};

use crate::{fresh, make};

/// Up to `most` names behind a position, and the position behind them.
fn read(fs: &MemFs, dir: &OpenDirectory, from: u64, most: usize) -> (Vec<String>, u64) {
    let (mut names, mut next) = (Vec::new(), from);
    let mut sink = |entry: &DirEntry<'_>| {
        if names.len() == most {
            return ControlFlow::Break(());
        }
        names.push(String::from_utf8_lossy(entry.name).into_owned());
        next = entry.next;
        ControlFlow::Continue(())
    };
    fs.read_dir(dir, from, true, &mut sink).expect("it is read");
    (names, next)
}

#[test]
fn reading_goes_on_where_it_was_whatever_changes() {
    let fs = fresh(8 << 20);
    for number in 0..300 {
        make(&fs, fs.root(), &format!("{number:03}"), NewKind::Regular);
    }
    let dir = fs.open_dir(fs.root()).expect("it opens");
    let (mut seen, mut next) = read(&fs, &dir, 0, 100);
    // Those seen and those to come: removed, renamed to the end, replaced.
    fs.unlink(fs.root(), b"050").expect("there");
    fs.unlink(fs.root(), b"150").expect("there");
    let rename = |from: &[u8], to: &[u8]| {
        fs.rename(fs.root(), from, fs.root(), to, RenameMode::default())
            .expect("renamed");
    };
    rename(b"010", b"new");
    rename(b"020", b"200");
    loop {
        let (names, position) = read(&fs, &dir, next, 37);
        if names.is_empty() {
            break;
        }
        seen.extend(names);
        next = position;
    }
    assert_eq!(&seen[..2], [".", ".."]);
    seen.sort();
    let twice = seen.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(twice, None);
    assert!(!seen.contains(&"150".to_owned()) && seen.contains(&"200".to_owned()));
    let stayed = (0..300).filter(|number| *number != 150);
    assert!(
        stayed
            .into_iter()
            .all(|number| seen.contains(&format!("{number:03}")))
    );
    let (all, _) = read(&fs, &dir, 0, usize::MAX);
    assert_eq!(all.len(), 2 + 300 - 3, "two removed, one replaced");
}

#[test]
fn special_names_and_removed_directories() {
    let fs = fresh(1 << 20);
    let root = fs.root();
    let dir = make(&fs, root, "d", NewKind::Directory);
    let sub = make(&fs, dir, "sub", NewKind::Directory);
    let id = |parent: InodeId, name: &[u8]| fs.lookup(parent, name).map(|entry| entry.attr.id);
    assert_eq!(id(sub, b"..").ok(), Some(dir));
    assert_eq!(id(root, b"..").ok(), Some(root));
    assert_eq!(id(sub, b".").ok(), Some(sub));
    assert!(matches!(fs.rmdir(root, b"."), Err(Error::InvalidArgument)));
    assert!(matches!(fs.rmdir(root, b".."), Err(Error::NotEmpty)));
    assert!(matches!(fs.unlink(root, b"."), Err(Error::IsDirectory)));
    assert!(matches!(fs.rmdir(root, b"d"), Err(Error::NotEmpty)));
    assert!(matches!(
        fs.link(dir, root, b"e", &super::root()),
        Err(Error::NotPermitted)
    ));
    assert!(matches!(
        fs.link(dir, root, b"d", &super::root()),
        Err(Error::Exists)
    ));
    for name in [&b""[..], b"a/b", b"a\0"] {
        let renamed = fs.rename(root, b"d", root, name, RenameMode::default());
        assert!(matches!(renamed, Err(Error::InvalidArgument)), "{name:?}");
    }
    let both = RenameMode::EXCHANGE | RenameMode::NO_REPLACE;
    assert!(matches!(
        fs.rename(root, b"d", root, b"e", both),
        Err(Error::InvalidArgument)
    ));
    let open = fs.open_dir(sub).expect("it opens");
    fs.rmdir(dir, b"sub").expect("it is empty");
    let new = fs.create(
        sub,
        b"x",
        &pagefence_vfs::New {
            kind: NewKind::Regular,
            permissions: 0,
            umask: 0,
        },
        &crate::root(),
    );
    assert!(matches!(new, Err(Error::NotFound)), "{new:?}");
    assert_eq!(read(&fs, &open, 0, 10).0, [".", ".."]);
    fs.forget(sub);
    drop(open);
    assert!(matches!(fs.attr(sub), Err(Error::Stale)));
    assert_eq!(fs.attr(dir).expect("there").links, 2);
}
