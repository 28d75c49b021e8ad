//! Attributes: lists, privileges, owners, times.

use pagefence_posix_acl::{Acl, AclEntry, AclTag};
use pagefence_vfs::{
    Access, Credentials, Error, FileKind, FileSystem as _, New, NewKind, SetAttr, SetTime,
    Timestamp, WriteMode, XattrMode,
};

use crate::{fresh, make, root};

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const CAPABILITY: &[u8] = b"security.capability";

fn list(user: u8, mask: u8) -> Acl {
    let entries = [
        (AclTag::UserObj, 7),
        (AclTag::User(1000), user),
        (AclTag::GroupObj, 5),
        (AclTag::Mask, mask),
        (AclTag::Other, 0),
    ];
    let entries = entries.map(|(tag, perm)| AclEntry { tag, perm });
    Acl::new(entries.to_vec()).expect("a list in order")
}

fn somebody(uid: u32) -> Credentials {
    Credentials {
        uid,
        gid: uid,
        groups: vec![],
    }
}

#[test]
fn lists_are_inherited_and_follow_the_mode() {
    let fs = fresh(1 << 20);
    let dir = make(&fs, fs.root(), "d", NewKind::Directory);
    fs.set_xattr(dir, DEFAULT, &list(6, 7).to_xattr(), XattrMode::Set)
        .expect("a list");
    let new = New {
        kind: NewKind::Regular,
        permissions: 0o666,
        umask: 0o777,
    };
    let made = fs.create(dir, b"f", &new, &root()).expect("made").attr;
    assert_eq!(made.permissions, 0o660, "the umask does not count");
    let expected = list(6, 7).inherited(0o666);
    assert_eq!(
        fs.xattr(made.id, ACCESS).expect("it has one"),
        expected.to_xattr()
    );
    let writes = |who| fs.access(made.id, Access::WRITE, &somebody(who)).is_ok();
    assert!(writes(1000) && !writes(1001));
    let chmod = SetAttr {
        permissions: Some(0o640),
        ..SetAttr::default()
    };
    fs.set_attr(made.id, &chmod, &root()).expect("set");
    assert!(!writes(1000), "the mask is the mode's group");
    let names = fs.xattr_names(made.id).expect("listed");
    assert_eq!(names.len(), 1);
    fs.set_xattr(made.id, ACCESS, &list(7, 6).to_xattr(), XattrMode::Set)
        .expect("set");
    assert_eq!(fs.attr(made.id).expect("there").permissions, 0o760);
    fs.remove_xattr(made.id, ACCESS).expect("removed");
    fs.remove_xattr(made.id, ACCESS).expect("also without one");
    assert!(matches!(fs.xattr(made.id, ACCESS), Err(Error::NoAttribute)));
    let refused = fs.set_xattr(made.id, DEFAULT, &list(1, 1).to_xattr(), XattrMode::Set);
    assert!(matches!(refused, Err(Error::PermissionDenied)));
    let sub = make(&fs, dir, "sub", NewKind::Directory);
    assert_eq!(
        fs.xattr(sub, DEFAULT).expect("passed on"),
        list(6, 7).to_xattr()
    );
}

#[test]
fn privileges_go_with_data_and_owner() {
    let fs = fresh(1 << 20);
    let id = make(&fs, fs.root(), "f", NewKind::Regular);
    let privileged = || {
        let change = SetAttr {
            permissions: Some(0o6755),
            ..SetAttr::default()
        };
        fs.set_attr(id, &change, &root()).expect("set");
        fs.set_xattr(id, CAPABILITY, b"all", XattrMode::Set)
            .expect("set");
    };
    let left = || {
        let permissions = fs.attr(id).expect("there").permissions;
        (permissions, fs.xattr(id, CAPABILITY).is_ok())
    };
    let file = fs.open(id, true).expect("it opens");
    privileged();
    fs.write(&file, 0, b"x", WriteMode::default())
        .expect("written");
    assert_eq!(left(), (0o6755, true), "whoever may keep them");
    fs.write(&file, 0, b"x", WriteMode::KILL_PRIVILEGES)
        .expect("written");
    assert_eq!(left(), (0o755, false));
    privileged();
    let change = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    fs.set_attr(id, &change, &somebody(5)).expect("cut off");
    assert_eq!(left(), (0o755, false));
    privileged();
    let change = SetAttr {
        uid: Some(7),
        ..SetAttr::default()
    };
    fs.set_attr(id, &change, &root()).expect("owned anew");
    assert_eq!(left(), (0o755, false));
}

#[test]
fn times_are_kept_as_linux_keeps_them() {
    let fs = fresh(1 << 20);
    let id = make(&fs, fs.root(), "f", NewKind::Regular);
    let old = Timestamp {
        seconds: 1_000,
        nanoseconds: 5,
    };
    let change = SetAttr {
        accessed: Some(SetTime::To(old)),
        modified: Some(SetTime::To(old)),
        changed: Some(old),
        ..SetAttr::default()
    };
    let file = fs.open(id, true).expect("it opens");
    let set = || fs.set_attr(id, &change, &root()).expect("set");
    let attr = set();
    assert_eq!(
        (attr.accessed, attr.modified, attr.changed),
        (old, old, old)
    );
    fs.read(&file, 0, &mut [0; 4]).expect("read");
    let attr = fs.attr(id).expect("there");
    assert!(attr.accessed > old, "not after the last change");
    let accessed = attr.accessed;
    fs.read(&file, 0, &mut [0; 4]).expect("read");
    assert_eq!(fs.attr(id).expect("there").accessed, accessed);
    fs.write(&file, 0, b"x", WriteMode::WRITEBACK)
        .expect("written");
    assert_eq!(
        fs.attr(id).expect("there").modified,
        old,
        "the kernel's business"
    );
    fs.write(&file, 0, b"x", WriteMode::default())
        .expect("written");
    let attr = fs.attr(id).expect("there");
    assert!(attr.modified > old && attr.changed > old);
    set();
    let same = SetAttr {
        size: Some(1),
        ..SetAttr::default()
    };
    let attr = fs.set_attr(id, &same, &root()).expect("set");
    assert_eq!(attr.modified, old, "the size stays");
    let wrong = SetAttr {
        modified: Some(SetTime::To(Timestamp {
            seconds: 0,
            nanoseconds: 1_000_000_000,
        })),
        ..SetAttr::default()
    };
    let refused = fs.set_attr(id, &wrong, &root());
    assert!(matches!(refused, Err(Error::InvalidArgument)));
}

#[test]
fn attributes_have_namespaces_and_modes() {
    let fs = fresh(1 << 20);
    let id = make(&fs, fs.root(), "f", NewKind::Regular);
    let link = make(&fs, fs.root(), "l", NewKind::Symlink(b"f"));
    let set = |id, name: &[u8], mode| fs.set_xattr(id, name, b"v", mode);
    assert!(matches!(
        set(id, b"user.", XattrMode::Set),
        Err(Error::Unsupported(_))
    ));
    assert!(matches!(
        set(id, b"other.a", XattrMode::Set),
        Err(Error::Unsupported(_))
    ));
    assert!(matches!(
        set(link, b"user.a", XattrMode::Set),
        Err(Error::NotPermitted)
    ));
    set(link, b"trusted.a", XattrMode::Set).expect("on any inode");
    assert!(matches!(
        set(id, b"user.a", XattrMode::Replace),
        Err(Error::NoAttribute)
    ));
    set(id, b"user.a", XattrMode::Create).expect("new");
    assert!(matches!(
        set(id, b"user.a", XattrMode::Create),
        Err(Error::Exists)
    ));
    let large = vec![0; (64 << 10) + 1];
    let refused = fs.set_xattr(id, b"user.a", &large, XattrMode::Set);
    assert!(matches!(refused, Err(Error::TooLarge)));
    assert_eq!(fs.xattr(id, b"user.a").expect("as it was"), b"v");
}

#[test]
fn new_inodes_are_of_their_kind_and_take_the_directorys_group() {
    let fs = fresh(1 << 20);
    let dir = make(&fs, fs.root(), "d", NewKind::Directory);
    let change = SetAttr {
        permissions: Some(0o2777),
        gid: Some(50),
        ..SetAttr::default()
    };
    fs.set_attr(dir, &change, &root()).expect("set");
    let (major, minor) = (8, 17);
    let kinds = [
        (NewKind::BlockDevice { major, minor }, FileKind::BlockDevice),
        (NewKind::CharDevice { major, minor }, FileKind::CharDevice),
        (NewKind::Fifo, FileKind::Fifo),
        (NewKind::Socket, FileKind::Socket),
        (NewKind::Regular, FileKind::Regular),
        (NewKind::Directory, FileKind::Directory),
    ];
    for (number, (kind, expected)) in kinds.into_iter().enumerate() {
        let new = New {
            kind,
            permissions: 0o2775,
            umask: 0o022,
        };
        let name = [b'a' + number as u8];
        let attr = fs
            .create(dir, &name, &new, &somebody(7))
            .expect("made")
            .attr;
        assert_eq!((attr.kind, attr.uid, attr.gid), (expected, 7, 50));
        // A file that its maker's groups may run does not lend out a group that is none of them.
        let lends = expected != FileKind::Regular;
        assert_eq!(attr.permissions, if lends { 0o2755 } else { 0o755 });
        let is_device = matches!(expected, FileKind::BlockDevice | FileKind::CharDevice);
        let numbers = if is_device { (major, minor) } else { (0, 0) };
        assert_eq!((attr.device_major, attr.device_minor), numbers);
        let opened = fs.open(attr.id, false);
        match expected {
            FileKind::Regular => assert!(opened.is_ok()),
            FileKind::Directory => assert!(matches!(opened, Err(Error::IsDirectory))),
            _ => assert!(matches!(opened, Err(Error::InvalidArgument))),
        }
    }
    for (target, refused) in [(0, true), (1, false), (4095, false), (4096, true)] {
        let target = vec![b'x'; target];
        let new = New {
            kind: NewKind::Symlink(&target),
            permissions: 0,
            umask: 0o777,
        };
        let name = format!("l{}", target.len());
        let made = fs.create(dir, name.as_bytes(), &new, &root());
        assert_eq!(made.is_err(), refused, "{}", target.len());
        if let Ok(made) = made {
            assert_eq!(made.attr.permissions, 0o777);
            assert_eq!(fs.read_link(made.attr.id).expect("a link"), target);
        }
    }
}
