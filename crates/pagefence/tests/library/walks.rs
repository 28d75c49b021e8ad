//! Walks, of sound trees and of damaged ones.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pagefence::{Kind, Mkfs, Options, Volume};

use crate::volume;

fn tree() -> Mkfs {
    Mkfs::new(Kind::Ext4)
        .file("/a/b/c/deep", "deep")
        .file("/a/other", "other")
        .symlink("/a/loop", "..")
        .directory("/z")
}

#[test]
fn parents_come_before_children_and_links_are_not_followed() {
    let volume = volume(tree());
    let mut met = BTreeSet::new();
    for entry in volume.walk("/") {
        let entry = entry.expect("a sound tree");
        let path = entry.path().to_path_buf();
        assert_eq!(entry.depth(), path.components().count() - 1);
        assert!(path.parent().is_none_or(|parent| met.contains(parent)));
        let own = volume.symlink_metadata(&path).expect("it is there");
        assert_eq!(&own, entry.metadata());
        assert!(met.insert(path));
    }
    let paths = [
        "/",
        "/a",
        "/a/b",
        "/a/b/c",
        "/a/b/c/deep",
        "/a/loop",
        "/a/other",
        "/lost+found",
        "/z",
    ];
    assert_eq!(met, paths.iter().map(PathBuf::from).collect());
    let below: Vec<_> = volume
        .walk("a/b")
        .map(|entry| entry.expect("sound").path().to_owned())
        .collect();
    assert_eq!(below, ["a/b", "a/b/c", "a/b/c/deep"].map(PathBuf::from));
    let one: Vec<_> = volume.walk("/a/other").collect();
    assert_eq!(one.len(), 1);
    let none: Vec<_> = volume.walk("/none").collect();
    assert_eq!(none.len(), 1);
    let error = none[0].as_ref().expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // A link is what it is, also where a walk begins.
    let link: Vec<_> = volume.walk("/a/loop").collect();
    assert!(
        link.len() == 1
            && link[0]
                .as_ref()
                .is_ok_and(|entry| entry.metadata().is_symlink())
    );
}

/// The tree in a file, changed by debugfs.
fn damaged(commands: &str) -> (tempfile::TempDir, Volume) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    tree().size(8 << 20).format(&path).expect("it is made");
    for command in commands.split(';') {
        let status = Command::new("debugfs")
            .args(["-w", "-R", command.trim()])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(status.expect("debugfs (e2fsprogs) runs").success());
    }
    let volume = Volume::open(&path, Options::new().cache(0)).expect("it opens");
    (dir, volume)
}

fn walked(volume: &Volume) -> (Vec<PathBuf>, Vec<pagefence::Error>) {
    let (mut paths, mut errors) = (Vec::new(), Vec::new());
    for entry in volume.walk("/") {
        match entry {
            Ok(entry) => paths.push(entry.path().to_owned()),
            Err(error) => errors.push(error),
        }
        assert!(paths.len() + errors.len() < 100, "it goes round");
    }
    (paths, errors)
}

#[test]
fn a_directory_in_two_places_is_entered_once() {
    for commands in ["link a a/b/again", "link a/b z/again", "link . a/b/c/root"] {
        let (_dir, volume) = damaged(commands);
        let (paths, errors) = walked(&volume);
        assert_eq!(errors.len(), 1, "{commands}: {errors:?}");
        assert_eq!(errors[0].kind(), ErrorKind::InvalidData);
        assert!(
            errors[0].to_string().contains("in two places"),
            "{}",
            errors[0]
        );
        let deep = paths.iter().filter(|path| path.ends_with("deep")).count();
        assert_eq!(deep, 1, "{commands}: {paths:?}");
    }
}

#[test]
fn damage_is_told_and_the_rest_is_walked() {
    // An entry whose inode is free, and a directory whose block is nowhere.
    let (_dir, volume) = damaged("clri a/other; set_inode_field a/b/c size 77");
    let (paths, errors) = walked(&volume);
    let at = |path: &str| {
        errors
            .iter()
            .find(|error| error.path() == Some(Path::new(path)))
    };
    let other = at("/a/other").expect("it is told");
    assert_eq!(other.kind(), ErrorKind::InvalidData);
    let directory = at("/a/b/c").expect("it is told");
    assert!(
        directory.to_string().contains("a directory of 77 bytes"),
        "{directory}"
    );
    assert_eq!(errors.len(), 2, "{errors:?}");
    // The directory itself is met, then what is wrong with it.
    for path in ["/a/b/c", "/a/loop", "/z", "/lost+found"] {
        assert!(paths.contains(&PathBuf::from(path)), "{path}: {paths:?}");
    }
    assert!(!paths.contains(&PathBuf::from("/a/b/c/deep")));
}

/// Who copies a tree out writes to where its names lead.
#[test]
fn names_that_lead_elsewhere_are_neither_walked_nor_read() {
    const NAME: &[u8] = b"innocent";
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    // Without checksums, so that a name can be changed where it lies.
    Mkfs::new(Kind::Ext2)
        .file("/a/innocent", "contents")
        .file("/b/other", "other")
        .size(8 << 20)
        .format(&path)
        .expect("it is made");
    let sound = std::fs::read(&path).expect("it was made");
    let places: Vec<_> = (8..sound.len() - NAME.len())
        .filter(|at| sound[*at..].starts_with(NAME) && usize::from(sound[at - 2]) == NAME.len())
        .collect();
    let [at] = places[..] else {
        panic!("the name is in {} places", places.len())
    };
    for name in [
        &b"../../x"[..],
        b"/etc/x",
        b"a/b",
        b"in\0ocent",
        b"\0",
        b"..",
        b".",
    ] {
        let mut image = sound.clone();
        image[at - 2] = u8::try_from(name.len()).expect("short");
        image[at..at + name.len()].copy_from_slice(name);
        std::fs::write(&path, image).expect("it is ours");
        let volume = Volume::open(&path, Options::new().cache(0)).expect("it opens");
        let (paths, errors) = walked(&volume);
        let expected = ["/", "/a", "/b", "/b/other", "/lost+found"];
        let expected: BTreeSet<_> = expected.iter().map(PathBuf::from).collect();
        assert_eq!(
            paths.into_iter().collect::<BTreeSet<_>>(),
            expected,
            "{name:?}"
        );
        assert_eq!(errors.len(), 1, "{name:?}: {errors:?}");
        assert_eq!(errors[0].kind(), ErrorKind::InvalidData, "{name:?}");
        let listed = volume.read_dir("/a").expect("it is a directory");
        assert!(listed.flatten().next().is_none(), "{name:?}");
        let asked = [b"/a/", name].concat();
        let asked = Path::new(std::ffi::OsStr::from_bytes(&asked));
        let read = volume.read(asked);
        assert!(read.is_err(), "{name:?}: {read:?}");
    }
}
