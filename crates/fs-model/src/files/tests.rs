//! The model is held against what the manual pages say.

use super::*;

fn tree() -> Tree {
    Tree::new(Format {
        block_size: 1024,
        has_unwritten: true,
        size_limit: 1 << 40,
    })
}

fn create(path: &str) -> Operation {
    Operation::Create { path: path.into() }
}

fn directory(path: &str) -> Operation {
    Operation::MakeDirectory { path: path.into() }
}

fn rename(from: &str, to: &str, how: RenameHow) -> Operation {
    Operation::Rename {
        from: from.into(),
        to: to.into(),
        how,
    }
}

fn symlink(target: &str, path: &str) -> Operation {
    Operation::Symlink {
        target: target.into(),
        path: path.into(),
    }
}

#[test]
fn renames_fail_as_rename_2_says() {
    let mut tree = tree();
    for made in [directory("a"), directory("a/b"), create("a/f"), create("g")] {
        tree.apply(&made).unwrap();
    }
    let mut fails = |from: &str, to: &str, how, with| {
        assert_eq!(tree.apply(&rename(from, to, how)), Err(with), "{from} {to}");
    };
    use RenameHow::{Exchange, NoReplace, Replace};
    fails("x", "y", Replace, Failure::NotFound);
    fails("x", "g/y", Replace, Failure::NotDirectory);
    fails("g", "a/f", NoReplace, Failure::Exists);
    fails("g", "y", Exchange, Failure::NotFound);
    fails("a", "a/b/c", Replace, Failure::Invalid);
    fails("a/b", "a", Replace, Failure::NotEmpty);
    fails("a/b", "a", Exchange, Failure::Invalid);
    fails("a", "g", Replace, Failure::NotDirectory);
    fails("g", "a", Replace, Failure::IsDirectory);
    tree.apply(&rename("a/b", "g", Exchange)).unwrap();
    assert_eq!(tree.node(Tree::ROOT).links, 5, "., .., lost+found, a, g");
    assert_eq!(tree.node_at("a/b", true), tree.node_at("a/b", false));
    tree.apply(&rename("a/f", "a/b", Replace)).unwrap();
    assert_eq!(tree.node_at("a/f", true), Err(Failure::NotFound));
}

#[test]
fn links_are_followed_and_loops_end() {
    let mut tree = tree();
    for made in [
        directory("d"),
        create("d/f"),
        symlink("d", "l"),
        symlink("l/./f", "m"),
        symlink("loop", "loop"),
    ] {
        tree.apply(&made).unwrap();
    }
    assert_eq!(tree.node_at("m", true), tree.node_at("d/f", true));
    assert_ne!(tree.node_at("m", false), tree.node_at("d/f", true));
    assert_eq!(tree.node_at("loop", true), Err(Failure::TooManySymlinks));
    assert_eq!(tree.apply(&create("l/f")), Err(Failure::Exists));
    assert_eq!(
        tree.apply(&create(&"n".repeat(256))),
        Err(Failure::NameTooLong)
    );
}

#[test]
fn bytes_have_holes_and_a_cut_leaves_zeros_behind_it() {
    let mut tree = tree();
    let path = "f".to_owned();
    tree.apply(&create("f")).unwrap();
    let write = |offset, length| Operation::Write {
        path: "f".into(),
        offset,
        length,
        tag: 7,
    };
    tree.apply(&write(5000, 2000)).unwrap();
    let number = tree.node_at("f", true).unwrap();
    let bytes = |tree: &Tree| match &tree.node(number).kind {
        Kind::File(bytes) => bytes.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(bytes(&tree).written(), [(4096, 3072)]);
    assert_eq!(bytes(&tree).read(4990, 30)[10..], contents(7, 5000, 20));
    for size in [5010, 6000] {
        tree.apply(&Operation::SetSize {
            path: path.clone(),
            size,
        })
        .unwrap();
    }
    assert_eq!(bytes(&tree).read(5000, 10), contents(7, 5000, 10));
    assert_eq!(bytes(&tree).read(5010, 2000), vec![0; 990]);
    assert_eq!(bytes(&tree).written(), [(4096, 1024)]);
    tree.apply(&Operation::Allocate {
        path,
        offset: 0,
        length: 1,
    })
    .unwrap();
    assert_eq!(bytes(&tree).with_space(), [(0, 1024), (4096, 1024)]);
}

#[test]
fn an_open_file_outlives_its_name() {
    let mut tree = tree();
    tree.apply(&create("f")).unwrap();
    let hold = Operation::Hold {
        slot: 0,
        path: "f".into(),
    };
    tree.apply(&hold).unwrap();
    tree.apply(&Operation::Remove { path: "f".into() }).unwrap();
    tree.apply(&Operation::WriteHeld {
        slot: 0,
        offset: 0,
        length: 5,
        tag: 1,
    })
    .unwrap();
    let read = Operation::ReadHeld {
        slot: 0,
        offset: 0,
        length: 9,
    };
    assert_eq!(tree.apply(&read), Ok(Answer::Bytes(contents(1, 0, 5))));
    tree.apply(&Operation::LetGo { slot: 0 }).unwrap();
    assert_eq!(tree.nodes.len(), 2);
}

#[test]
fn ranges_change_as_fallocate_2_says() {
    use RangeChange as R;
    let mut tree = tree();
    for path in ["f", "g"] {
        tree.apply(&create(path)).unwrap();
        tree.apply(&Operation::Write {
            path: path.into(),
            offset: 0,
            length: 8192,
            tag: path.len() as u64,
        })
        .unwrap();
    }
    let change = |offset, length, how| Operation::ChangeRange {
        path: "f".into(),
        offset,
        length,
        how,
    };
    let size = |tree: &Tree| match &tree.node(tree.node_at("f", true).unwrap()).kind {
        Kind::File(bytes) => bytes.size(),
        other => panic!("{other:?}"),
    };
    for (operation, failure) in [
        (change(0, 0, R::Punch), Failure::Invalid),
        (change(0, 100, R::Collapse), Failure::Invalid),
        (change(4096, 4096, R::Collapse), Failure::Invalid),
        (change(8192, 1024, R::Insert), Failure::Invalid),
        (change(1 << 40, 1, R::Zero), Failure::FileTooLarge),
    ] {
        assert_eq!(tree.apply(&operation), Err(failure), "{operation:?}");
    }
    let sizes = [
        (R::Punch, 8192),
        (R::Reserve, 8192),
        (R::ZeroInside, 8192),
        (R::Zero, 9216),
        (R::Insert, 10_240),
        (R::Collapse, 9216),
    ];
    for (how, after) in sizes {
        let offset = if how == R::Zero { 8192 } else { 1024 };
        tree.apply(&change(offset, 1024, how)).unwrap();
        assert_eq!(size(&tree), after, "{how:?}");
    }
    let exchange = |length| Operation::ExchangeRange {
        path: "f".into(),
        offset: 0,
        other: "g".into(),
        other_offset: 2048,
        length,
    };
    assert_eq!(tree.apply(&exchange(100)), Err(Failure::Invalid));
    tree.apply(&exchange(1024)).unwrap();
    let read = |path: &str, offset| Operation::Read {
        path: path.into(),
        offset,
        length: 1024,
    };
    let expected = [("f", 0, 2048), ("g", 2048, 0)];
    for (path, offset, came_from) in expected {
        let found = tree.apply(&read(path, offset));
        assert_eq!(found, Ok(Answer::Bytes(contents(1, came_from, 1024))));
    }
}
