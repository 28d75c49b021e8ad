//! Renames: what replaces what, what may lie in what.

use pagefence_ext4::mkfs::Kind;
use pagefence_vfs::{FileSystem as _, Fsxattr, RenameMode};

use crate::kit::{self, FLAVOURS, Paths, close, fails, open};

const EXCHANGE: RenameMode = RenameMode::EXCHANGE;
const NO_REPLACE: RenameMode = RenameMode::NO_REPLACE;

#[test]
fn everything_that_a_rename_can_meet() {
    for (kind, block_size, features) in FLAVOURS {
        let device = kit::device(kind, block_size, features, 16 << 20);
        let fs = open(&device);
        for dir in ["a", "b", "a/x", "a/x/y", "b/empty", "b/full"] {
            fs.mkdir(dir).unwrap();
        }
        for file in ["a/f", "b/g", "b/full/h"] {
            fs.touch(file).unwrap();
        }
        let number = |path: &str| fs.look(path).unwrap().id;
        let links = |path: &str| fs.look(path).unwrap().links;
        fails(fs.mv("a/none", "b/none"), "NotFound");
        fails(fs.mv("a/f", "b/empty"), "IsDirectory");
        fails(fs.mv("a/x", "b/g"), "NotDirectory");
        fails(fs.mv("a/x", "b/full"), "NotEmpty");
        fails(fs.mv("a", "a/x/y/a"), "InvalidArgument");
        fails(fs.mv("a/x", "a/x/x"), "InvalidArgument");
        fails(fs.mv("a/x", "a"), "NotEmpty");
        fails(fs.mv_as("a", "a/x/y", EXCHANGE), "InvalidArgument");
        fails(fs.mv_as("a/x/y", "a", EXCHANGE), "InvalidArgument");
        fails(fs.mv_as("a/f", "b/none", EXCHANGE), "NotFound");
        fails(fs.mv_as("a/f", "b/g", NO_REPLACE), "Exists");
        // To itself, and to another name of itself: nothing happens.
        fs.mv("a/f", "a/f").unwrap();
        fs.ln("a/f", "b/f").unwrap();
        fs.mv("a/f", "b/f").unwrap();
        assert_eq!((number("a/f"), links("a/f")), (number("b/f"), 2));
        // A directory moves, over an empty one.
        let x = number("a/x");
        assert_eq!((links("a"), links("b")), (3, 4));
        fs.mv("a/x", "b/empty").unwrap();
        assert_eq!(number("b/empty"), x);
        assert_eq!((links("a"), links("b")), (2, 4));
        assert_eq!(number("b/empty/.."), number("b"));
        // Within a directory, over an empty one.
        fs.mkdir("b/gone").unwrap();
        fs.mv("b/full", "b/gone").unwrap();
        assert_eq!(links("b"), 4);
        // A file over a file.
        let g = number("b/g");
        fs.mv("b/g", "a/f").unwrap();
        assert_eq!((number("a/f"), links("b/f")), (g, 1));
        // What is a directory and what is not change places.
        fs.mv_as("a/f", "b/gone", EXCHANGE).unwrap();
        assert_eq!((number("b/gone"), number("a/f/..")), (g, number("a")));
        assert_eq!((links("a"), links("b")), (3, 3));
        let (one, other) = (number("a/f"), number("b/empty"));
        fs.mv_as("a/f", "b/empty", EXCHANGE).unwrap();
        assert_eq!((number("a/f"), number("b/empty")), (other, one));
        assert_eq!(number("a/f/.."), number("a"));
        assert_eq!(number("b/empty/.."), number("b"));
        fs.mv_as("b/empty", "b/gone", EXCHANGE).unwrap();
        assert_eq!((number("b/gone"), number("b/empty")), (one, g));
        fs.mv_as("b/gone", "c", NO_REPLACE).unwrap();
        assert_eq!(number("c/.."), fs.root());
        assert_eq!(links("c"), 2);
        close(fs, &device);
    }
}

/// The same directory splits, gets an index, or leaves its inode while a name of it changes.
#[test]
fn a_name_changes_while_its_directory_grows() {
    for (kind, block_size, features) in FLAVOURS {
        let device = kit::device(kind, block_size, features, 16 << 20);
        let fs = open(&device);
        fs.mkdir("d").unwrap();
        let count = 700;
        for at in 0..count {
            fs.touch(&format!("d/{at}")).unwrap();
            // Short names become long ones: again and again there is no room.
            let long = format!("d/{at}{}", "x".repeat(at % 200 + 20));
            fs.mv(&format!("d/{at}"), &long).unwrap();
        }
        let listed = fs.list("d").unwrap();
        assert_eq!(listed.len(), count);
        for at in 0..count {
            fs.look(&format!("d/{at}{}", "x".repeat(at % 200 + 20)))
                .unwrap();
        }
        close(fs, &device);
    }
}

/// A directory that moves far up and down keeps its place in the tree known.
#[test]
fn deep_trees_are_looked_through() {
    let device = kit::device(Kind::Ext4, 1024, "", 16 << 20);
    let fs = open(&device);
    let mut path = String::from("d");
    fs.mkdir(&path).unwrap();
    for _ in 0..60 {
        path.push_str("/d");
        fs.mkdir(&path).unwrap();
    }
    fails(fs.mv("d/d", &format!("{path}/e")), "InvalidArgument");
    fs.mv("d/d/d", "e").unwrap();
    fails(fs.look(&path), "NotFound");
    fs.mv("d", &format!("e{}/d", &path[5..])).unwrap();
    close(fs, &device);
}

/// Whoever moves files copies them where a rename crosses devices.
#[test]
fn what_belongs_to_another_project_is_to_be_copied() {
    let device = kit::device(Kind::Ext4, 4096, "project", 16 << 20);
    let fs = open(&device);
    let project = fs.mkdir("project").unwrap().id;
    let attributes = Fsxattr {
        xflags: 0x200,
        project: 7,
        ..Fsxattr::default()
    };
    fs.set_fsxattr(project, &attributes, &kit::root()).unwrap();
    fs.touch("file").unwrap();
    fails(fs.mv("file", "project/file"), "CrossesDevices");
    fails(fs.ln("file", "project/file"), "CrossesDevices");
    fs.touch("project/inside").unwrap();
    fs.mv("project/inside", "outside").unwrap();
    fs.mv("outside", "project/inside").unwrap();
    close(fs, &device);
}
