//! What a new inode takes from its directory.

use pagefence_ext4::mkfs::{Contents, Kind, Parameters};
use pagefence_vfs::{Credentials, FileSystem as _, NewKind, XattrMode};

use crate::kit::{self, Paths, close, new, open, root, user};

#[test]
fn owners_groups_and_modes() {
    let device = kit::device(Kind::Ext4, 4096, "", 16 << 20);
    let fs = open(&device);
    let mut plain = new(NewKind::Directory, 0o2777);
    plain.umask = 0o027;
    let dir = fs
        .create(fs.root(), b"d", &plain, &user(7, 8))
        .unwrap()
        .attr;
    assert_eq!((dir.uid, dir.gid, dir.permissions), (7, 8, 0o2750));
    let who = user(10, 20);
    let make = |name: &str, kind, permissions| {
        let new = new(kind, permissions);
        let made = fs.create(dir.id, name.as_bytes(), &new, &who).unwrap();
        (made.attr.uid, made.attr.gid, made.attr.permissions)
    };
    assert_eq!(make("f", NewKind::Regular, 0o666), (10, 8, 0o644));
    assert_eq!(make("s", NewKind::Directory, 0o777), (10, 8, 0o2755));
    assert_eq!(make("l", NewKind::Symlink(b"t"), 0), (10, 8, 0o777));
    // Set-group-id for a group that who makes it is not in.
    assert_eq!(make("x", NewKind::Regular, 0o2775), (10, 8, 0o755));
    assert_eq!(make("y", NewKind::Regular, 0o2765), (10, 8, 0o2745));
    let member = Credentials {
        groups: vec![8],
        ..user(10, 20)
    };
    let kept = new(NewKind::Regular, 0o2775);
    let made = fs.create(dir.id, b"z", &kept, &member).unwrap().attr;
    assert_eq!(made.permissions, 0o2755);
    let large = fs.create(fs.root(), b"big ids", &kept, &user(1 << 20, 1 << 21));
    let large = large.unwrap().attr;
    assert_eq!((large.uid, large.gid), (1 << 20, 1 << 21));
    close(fs, &device);
}

/// A list as the kernel's interface carries it.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NONE: u32 = u32::MAX;

/// A file system whose directory `r` has this default access list.
fn with_default(
    entries: &[(u16, u16, u32)],
    inode_size: u16,
) -> std::sync::Arc<pagefence_block_io::MemoryDevice> {
    let mut parameters = Parameters::new(Kind::Ext4);
    parameters.block_size = Some(4096);
    parameters.inode_size = Some(inode_size);
    parameters.contents = Contents::Zeros;
    let device = kit::format(&parameters, 16 << 20);
    let fs = open(&device);
    let dir = fs.mkdir("r").unwrap().id;
    let list = acl(entries);
    fs.set_xattr(dir, b"system.posix_acl_default", &list, XattrMode::Create)
        .unwrap();
    close(fs, &device);
    device
}

#[test]
fn a_default_list_takes_the_place_of_the_umask() {
    let named = [
        (0x01, 7, NONE),
        (0x02, 6, 1000),
        (0x04, 5, NONE),
        (0x10, 7, NONE),
        (0x20, 5, NONE),
    ];
    // A list of many names has no room in an inode.
    let mut many = named.to_vec();
    let users = (0..60).map(|user| (0x02, 6, 2000 + user));
    many.splice(2..2, users);
    for (entries, inode_size) in [(named.to_vec(), 256), (many, 256), (named.to_vec(), 512)] {
        let device = with_default(&entries, inode_size);
        let fs = open(&device);
        let file = fs.make("r/f", NewKind::Regular).unwrap();
        assert_eq!(file.permissions, 0o775, "the mask is the group's");
        let mut quiet = new(NewKind::Regular, 0o640);
        quiet.umask = 0o077;
        let quiet = fs
            .create(fs.look("r").unwrap().id, b"q", &quiet, &root())
            .unwrap()
            .attr;
        assert_eq!(quiet.permissions, 0o640);
        let dir = fs.mkdir("r/d").unwrap();
        let value = |id, name: &str| fs.xattr(id, name.as_bytes());
        let mut access = entries.clone();
        assert_eq!(
            value(file.id, "system.posix_acl_access").unwrap(),
            acl(&access)
        );
        assert!(value(file.id, "system.posix_acl_default").is_err());
        assert_eq!(
            value(dir.id, "system.posix_acl_default").unwrap(),
            acl(&entries)
        );
        let last = access.len() - 1;
        (access[0].1, access[last - 1].1, access[last].1) = (6, 4, 0);
        assert_eq!(
            value(quiet.id, "system.posix_acl_access").unwrap(),
            acl(&access)
        );
        let link = fs.make("r/l", NewKind::Symlink(b"t")).unwrap();
        assert_eq!(link.permissions, 0o777);
        assert!(fs.xattr_names(link.id).unwrap().is_empty());
        fs.touch("r/d/below").unwrap();
        close(fs, &device);
        let fs = open(&device);
        let below = fs.look("r/d/below").unwrap().id;
        assert_eq!(
            fs.xattr(below, b"system.posix_acl_access").unwrap(),
            acl(&entries)
        );
        fs.rm("r/d/below").unwrap();
        fs.rmd("r/d").unwrap();
        fs.rm("r/f").unwrap();
        close(fs, &device);
    }
}

/// A default list without names is the mode's alone.
#[test]
fn a_default_list_that_is_a_mode_leaves_no_list() {
    let device = with_default(&[(0x01, 7, NONE), (0x04, 5, NONE), (0x20, 0, NONE)], 256);
    let fs = open(&device);
    let file = fs.touch("r/f").unwrap();
    assert_eq!(file.permissions, 0o750);
    assert!(fs.xattr_names(file.id).unwrap().is_empty());
    close(fs, &device);
}
