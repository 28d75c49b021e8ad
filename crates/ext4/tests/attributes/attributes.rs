//! What set_attr and set_xattr refuse, and what else they change.

use pagefence_ext4_format::xattr::acl::{Acl, AclEntry, AclTag};
use pagefence_vfs::{Error, FileSystem as _, SetAttr, SetTime, Timestamp, XattrMode};

use crate::support::{Image, mount, root, shown_by_kernel, user};

fn image() -> Image {
    Image::new(&["-t", "ext4", "-b", "1024"])
}

#[test]
fn every_change_moves_the_change_time_and_nothing_else() {
    let image = image();
    let mounted = image.open();
    let id = mounted.id("a");
    let start = mounted.attr("a");
    let long_ago = Timestamp {
        seconds: 1,
        nanoseconds: 2,
    };
    let back = SetAttr {
        changed: Some(long_ago),
        ..SetAttr::default()
    };
    let reset = || mounted.fs.set_attr(id, &back, &root()).unwrap();
    assert_eq!(reset().changed, long_ago);
    let nothing = mounted.fs.set_attr(id, &SetAttr::default(), &root());
    assert!(
        nothing.unwrap().changed > start.changed,
        "as chown(2) of nothing"
    );
    reset();
    mounted.set("a", "user.x", b"1").unwrap();
    assert!(mounted.attr("a").changed > start.changed);
    reset();
    mounted.remove("a", "user.x").unwrap();
    assert!(mounted.attr("a").changed > start.changed);
    let times = SetAttr {
        accessed: Some(SetTime::To(long_ago)),
        modified: Some(SetTime::Now),
        ..SetAttr::default()
    };
    let attr = mounted.fs.set_attr(id, &times, &root()).unwrap();
    assert_eq!(attr.accessed, long_ago);
    assert!(attr.modified > start.modified);
    let due = pagefence_vfs::Attr {
        accessed: attr.accessed,
        modified: attr.modified,
        changed: attr.changed,
        ..start
    };
    assert_eq!(attr, due);
    mounted.close();
    image.assert_clean();
    let again = image.open();
    assert_eq!(again.attr("a"), attr, "on disk, too");
}

#[test]
fn what_makes_no_sense_is_refused_as_a_whole() {
    let image = image();
    let mounted = image.open();
    let late = Timestamp {
        seconds: 0,
        nanoseconds: 1_000_000_000,
    };
    let bad = [
        SetAttr {
            uid: Some(u32::MAX),
            ..SetAttr::default()
        },
        SetAttr {
            gid: Some(u32::MAX),
            ..SetAttr::default()
        },
        SetAttr {
            accessed: Some(SetTime::To(late)),
            ..SetAttr::default()
        },
        SetAttr {
            changed: Some(late),
            ..SetAttr::default()
        },
    ];
    let before = mounted.attr("a");
    for bad in bad {
        let bad = SetAttr {
            permissions: Some(0o777),
            ..bad
        };
        let refused = mounted.fs.set_attr(mounted.id("a"), &bad, &root());
        assert!(matches!(refused, Err(Error::InvalidArgument)), "{bad:?}");
    }
    assert_eq!(mounted.attr("a"), before);
    let size = SetAttr {
        size: Some(0),
        permissions: Some(0o777),
        ..SetAttr::default()
    };
    let refused = |name| mounted.fs.set_attr(mounted.id(name), &size, &root());
    assert!(matches!(refused("dir"), Err(Error::IsDirectory)));
    assert!(matches!(refused("pipe"), Err(Error::InvalidArgument)));
    let mode = SetAttr {
        permissions: Some(0o777),
        ..SetAttr::default()
    };
    let refused = mounted.fs.set_attr(mounted.id("link"), &mode, &root());
    assert!(matches!(refused, Err(Error::Unsupported(_))));
}

/// Whoever cuts a file off or makes it longer: what it runs with was for other contents. Root keeps the bits.
#[test]
fn another_size_takes_privileges_off() {
    let image = image();
    let mounted = image.open();
    let id = mounted.id("a");
    let capability = || mounted.fs.xattr(id, b"security.capability");
    for (who, size, kept) in [
        (user(1000, 1000, &[]), 10_000, 0o755),
        (user(1000, 1000, &[]), 0, 0o755),
        (root(), 10_000, 0o6755),
        (root(), 0, 0o6755),
    ] {
        let mode = SetAttr {
            permissions: Some(0o6755),
            ..SetAttr::default()
        };
        mounted.fs.set_attr(id, &mode, &root()).unwrap();
        mounted.set("a", "security.capability", &[1; 20]).unwrap();
        assert!(capability().is_ok());
        let size = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        mounted.fs.set_attr(id, &size, &who).unwrap();
        assert_eq!(mounted.attr("a").permissions, kept, "{who:?} {size:?}");
        assert!(matches!(capability(), Err(Error::NoAttribute)), "{who:?}");
    }
    mounted.close();
    image.assert_clean();
}

#[test]
fn namespaces_and_kinds() {
    let image = image();
    let mounted = image.open();
    for (file, name) in [("link", "user.x"), ("pipe", "user.x")] {
        let refused = mounted.set(file, name, b"1");
        assert!(matches!(refused, Err(Error::NotPermitted)), "{file}");
    }
    for file in ["link", "pipe", "dir", "a"] {
        mounted.set(file, "trusted.x", b"1").unwrap();
        mounted.set(file, "security.x", &[2; 300]).unwrap();
    }
    assert_eq!(
        mounted.fs.read_link(mounted.id("link")).unwrap(),
        b"a",
        "still a fast link"
    );
    for name in [
        "system.data",
        "system.x",
        "other.x",
        "user.",
        "user",
        "",
        "system.richacl",
    ] {
        let refused = mounted.set("a", name, b"1");
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{name}");
        let refused = mounted.remove("a", name);
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{name}");
    }
    let long = format!("user.{}", "n".repeat(256));
    assert!(matches!(
        mounted.set("a", &long, b""),
        Err(Error::NameTooLong)
    ));
    mounted.set("a", &long[..260], b"").unwrap();
    assert!(matches!(
        mounted.set("a", "user.a\0b", b""),
        Err(Error::InvalidArgument)
    ));
    assert!(matches!(
        mounted.remove("a", "user.none"),
        Err(Error::NoAttribute)
    ));
    let set = |mode| mounted.fs.set_xattr(mounted.id("a"), b"user.n", b"1", mode);
    assert!(matches!(set(XattrMode::Replace), Err(Error::NoAttribute)));
    set(XattrMode::Create).unwrap();
    assert!(matches!(set(XattrMode::Create), Err(Error::Exists)));
    set(XattrMode::Replace).unwrap();
    mounted.close();
    image.assert_clean();
}

#[test]
fn lists_are_checked() {
    let image = image();
    let mounted = image.open();
    let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
    let entries = [
        (AclTag::UserObj, 7),
        (AclTag::GroupObj, 5),
        (AclTag::Other, 0),
    ];
    let entries = entries.map(|(tag, perm)| AclEntry { tag, perm }).to_vec();
    let list = Acl::new(entries).unwrap().to_xattr();
    for bad in [
        &b""[..],
        b"\x02\0\0",
        &list[..list.len() - 1],
        &list[..12],
        &[0; 28],
    ] {
        for (file, name) in [("a", access), ("dir", access), ("dir", default)] {
            let refused = mounted.set(file, name, bad);
            assert!(matches!(refused, Err(Error::InvalidArgument)), "{bad:?}");
        }
    }
    assert!(matches!(
        mounted.set("a", default, &list),
        Err(Error::PermissionDenied)
    ));
    assert!(matches!(
        mounted.set("link", access, &list),
        Err(Error::Unsupported(_))
    ));
    mounted.set("dir", default, &list).unwrap();
    assert_eq!(
        mounted.xattrs("dir")[default.as_bytes()],
        list,
        "kept, though it is a mode"
    );
    assert_eq!(mounted.attr("dir").permissions, 0o755);
    mounted.set("dir", access, &list).unwrap();
    assert_eq!(mounted.attr("dir").permissions, 0o750);
    assert_eq!(mounted.xattrs("dir").len(), 1, "the mode says it all");
    // No entries: it goes; and nothing is wrong if there was none.
    mounted.set("dir", default, &[2, 0, 0, 0]).unwrap();
    mounted.remove("dir", default).unwrap();
    assert!(mounted.xattrs("dir").is_empty());
    mounted.close();
    image.assert_clean();
}

/// What a file keeps inline lies among its attributes, and stays.
#[test]
fn inline_data_survives() {
    let image = Image::new(&["-t", "ext4", "-b", "1024", "-I", "512", "-O", "inline_data"]);
    let text = vec![b'x'; 150];
    let file = image.path.with_file_name("inline");
    std::fs::write(&file, &text).unwrap();
    crate::support::debugfs_write(&image.path, &format!("write {} inline", file.display()));
    let mounted = image.open();
    let read = || {
        let file = mounted.fs.open(mounted.id("inline"), false).unwrap();
        let mut bytes = vec![0; 150];
        mounted.fs.read(&file, 0, &mut bytes).unwrap();
        bytes
    };
    assert_eq!(
        mounted.fs.extents(mounted.id("inline"), 0, 150, 1).unwrap()[0].physical,
        0
    );
    for length in [4, 60, 100, 300, 8, 700] {
        mounted.set("inline", "user.x", &vec![1; length]).unwrap();
        mounted
            .set("inline", &format!("user.{length}"), b"2")
            .unwrap();
        assert_eq!(read(), text, "{length}");
    }
    mounted.remove("inline", "user.x").unwrap();
    assert_eq!(read(), text);
    mounted.close();
    image.assert_clean();
}

#[test]
fn ids_of_32_bits_and_groups() {
    let image = image();
    let mounted = image.open();
    let change = SetAttr {
        uid: Some(0x1234_5678),
        gid: Some(0xFFFF_FFFE),
        permissions: Some(0o2777),
        ..SetAttr::default()
    };
    let who = user(5, 6, &[7, 0xFFFF_FFFE]);
    let attr = mounted.fs.set_attr(mounted.id("a"), &change, &who).unwrap();
    assert_eq!(
        (attr.uid, attr.gid, attr.permissions),
        (0x1234_5678, 0xFFFF_FFFE, 0o2777)
    );
    let attr = mounted
        .fs
        .set_attr(mounted.id("a"), &change, &user(5, 6, &[7]))
        .unwrap();
    assert_eq!(attr.permissions, 0o777, "not in that group");
    mounted.close();
    image.assert_clean();
}

/// A record as ext3 wrote it, with room behind it and no extra fields, gets them.
#[test]
fn a_record_without_extra_fields_gets_them() {
    let image = image();
    crate::support::debugfs_write(&image.path, "set_inode_field b extra_isize 0");
    let mounted = image.open();
    let time = SetAttr {
        modified: Some(SetTime::To(Timestamp {
            seconds: 5,
            nanoseconds: 6,
        })),
        ..SetAttr::default()
    };
    let attr = mounted
        .fs
        .set_attr(mounted.id("b"), &time, &root())
        .unwrap();
    assert_eq!(attr.modified.nanoseconds, 6);
    mounted.set("b", "user.x", &[1; 60]).unwrap();
    assert_eq!(mounted.attr("b").blocks_512, 0, "in the record");
    let before = mounted.xattrs("b");
    mounted.close();
    image.assert_clean();
    if let Some(kernel) = mount(&image, "ro") {
        assert_eq!(shown_by_kernel(&kernel.path("b")), before);
    }
}
