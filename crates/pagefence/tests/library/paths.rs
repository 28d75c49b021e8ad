//! From paths to what they lead to.

use std::io::ErrorKind;
use std::path::Path;

use pagefence::{Kind, Mkfs, Volume};

use crate::volume;

fn tree() -> Volume {
    volume(
        Mkfs::new(Kind::Ext4)
            .file("/a/b/file", "contents")
            .file("/top", "top")
            .symlink("/relative", "a/b")
            .symlink("/absolute", "/a/b/file")
            .symlink("/a/up", "../top")
            .symlink("/a/b/out", "../../../../../../top")
            .symlink("/a/slash", "b/file/")
            .symlink("/a/dir-slash", "b/")
            .symlink("/dangling", "nowhere")
            .symlink("/self", "self")
            .symlink("/ping", "pong")
            .symlink("/pong", "ping")
            .symlink("/chain0", "top")
            .directory("/empty"),
    )
}

fn kind(result: pagefence::Result<impl std::fmt::Debug>) -> ErrorKind {
    result.expect_err("it fails").kind()
}

#[test]
fn dots_stay_inside() {
    let volume = tree();
    for path in [
        "/a/b/file",
        "a/b/file",
        "//a///b//file",
        "./a/./b/./file",
        "/a/../a/b/../b/file",
        "/../../a/b/file",
        "relative/file",
        "relative/../b/file",
        "absolute",
    ] {
        assert_eq!(volume.read(path).expect(path), b"contents", "{path}");
    }
    for path in ["a/up", "a/b/out", "/a/b/../../top", "../top"] {
        assert_eq!(volume.read(path).expect(path), b"top", "{path}");
    }
    for path in ["/", "", ".", "..", "a/..", "/empty/../."] {
        assert_eq!(volume.metadata(path).expect(path).ino(), 2, "{path:?}");
    }
}

#[test]
fn a_slash_at_the_end_asks_for_a_directory() {
    let volume = tree();
    for path in [
        "/empty/",
        "/empty/.",
        "relative/",
        "a/dir-slash",
        "a/dir-slash/",
    ] {
        assert!(volume.metadata(path).expect(path).is_dir(), "{path}");
    }
    for path in [
        "top/",
        "top/.",
        "top/..",
        "top/x",
        "absolute/",
        "a/slash",
        "a/b/file/../file",
    ] {
        assert_eq!(
            kind(volume.metadata(path)),
            ErrorKind::NotADirectory,
            "{path}"
        );
    }
    // With a slash behind it the link is followed, even where links are not.
    assert!(
        volume
            .symlink_metadata("relative")
            .expect("it")
            .is_symlink()
    );
    assert!(volume.symlink_metadata("relative/").expect("it").is_dir());
    assert!(volume.symlink_metadata("a/slash").expect("it").is_symlink());
}

#[test]
fn links_that_lead_nowhere_or_in_circles() {
    let volume = tree();
    assert_eq!(kind(volume.metadata("dangling")), ErrorKind::NotFound);
    assert!(!volume.exists("dangling").expect("it can be told"));
    for path in ["self", "ping", "pong/x", "ping/"] {
        let error = volume.metadata(path).expect_err("it goes round");
        assert!(error.to_string().contains("too many levels"), "{error}");
        assert!(volume.exists(path).is_err());
    }
    for path in ["self", "ping", "dangling"] {
        assert!(volume.symlink_metadata(path).expect(path).is_symlink());
    }
    assert_eq!(
        volume.read_link("dangling").expect("a link"),
        Path::new("nowhere")
    );
    assert_eq!(kind(volume.read_link("top")), ErrorKind::InvalidInput);
    assert_eq!(kind(volume.read_link("relative/")), ErrorKind::InvalidInput);
}

/// As in Linux, forty links may be followed on one path, and no more.
#[test]
fn forty_links() {
    let mut mkfs = Mkfs::new(Kind::Ext4).file("/l0", "end");
    for number in 1..=41 {
        mkfs = mkfs.symlink(format!("/l{number}"), format!("l{}", number - 1));
    }
    let volume = volume(mkfs);
    assert_eq!(volume.read("l40").expect("forty"), b"end");
    assert!(volume.read("l41").is_err());
}

#[test]
fn names_that_can_not_be() {
    let volume = tree();
    assert_eq!(
        kind(volume.metadata("a".repeat(256))),
        ErrorKind::InvalidFilename
    );
    assert_eq!(kind(volume.metadata("a".repeat(255))), ErrorKind::NotFound);
    assert_eq!(kind(volume.metadata("to\0p")), ErrorKind::NotFound);
    let long = "a/../".repeat(5000) + "top";
    assert_eq!(volume.read(long).expect("as long as one likes"), b"top");
}

#[test]
fn errors_name_the_path_and_become_those_of_io() {
    let volume = tree();
    let error = volume.read("a/b/nothing").expect_err("nothing");
    assert_eq!(error.path(), Some(Path::new("a/b/nothing")));
    assert!(error.to_string().starts_with("a/b/nothing: "), "{error}");
    let error = std::io::Error::from(error);
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(kind(volume.read("a")), ErrorKind::IsADirectory);
    assert_eq!(kind(volume.read_dir("top")), ErrorKind::NotADirectory);
    assert_eq!(
        kind(volume.xattr("top", "nonsense")),
        ErrorKind::Unsupported
    );
    assert_eq!(volume.xattr("top", "user.none").expect("none"), None);
    assert_eq!(
        kind(Volume::open("no-such-image", pagefence::Options::new())),
        ErrorKind::NotFound
    );
}
