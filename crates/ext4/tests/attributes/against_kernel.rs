//! The same changes made by the kernel and here, compared: bytes of attributes, modes and owners.

use std::path::Path;

use pagefence_ext4_format::xattr::acl::{Acl, AclEntry, AclTag};
use pagefence_vfs::{Credentials, FileSystem as _, SetAttr, SetTime, Timestamp};

use crate::kernel::run;
use crate::support::{Image, Mounted, mount, root, shown_by_kernel, user};

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

fn setfattr(path: &Path, name: &str, value: &[u8]) {
    let value = hex(value);
    let path = path.to_str().unwrap();
    run("setfattr", &["-h", "-n", name, "-v", &value, path]);
}

/// A list with names; `mask` and what others get.
fn list(mask: u8, other: u8) -> Vec<u8> {
    let entries = [
        (AclTag::UserObj, 7),
        (AclTag::User(1003), 6),
        (AclTag::GroupObj, 5),
        (AclTag::Group(1004), 3),
        (AclTag::Mask, mask),
        (AclTag::Other, other),
    ];
    let entries = entries.map(|(tag, perm)| AclEntry { tag, perm });
    Acl::new(entries.to_vec()).unwrap().to_xattr()
}

/// What lies in the record and in the block, the block's checksum left out: it depends on the
/// block's number.
fn bytes(image: &Image, id: pagefence_vfs::InodeId) -> (Vec<u8>, Option<Vec<u8>>) {
    let inode = image.inode(id);
    let region = inode.xattr_region().unwrap_or_default().to_vec();
    let block = inode.file_acl().map(|block| {
        let mut bytes = image.block(block.0);
        bytes[16..20].fill(0);
        bytes
    });
    (region, block)
}

/// Byte for byte what the kernel writes.
#[test]
fn attributes_lie_where_the_kernel_puts_them() {
    let steps: [(&str, Option<&[u8]>); 15] = [
        ("user.first", Some(b"1")),
        ("user.b", Some(&[2; 30])),
        ("trusted.long-name-of-an-attribute", Some(&[3; 90])),
        ("security.x", Some(b"")),
        ("user.a", Some(&[4; 200])),
        ("user.first", Some(b"22")),
        ("user.b", Some(&[5; 61])),
        ("trusted.empty", Some(b"")),
        ("user.first", None),
        ("system.posix_acl_access", Some(&[])),
        ("user.a", Some(&[6; 7])),
        ("user.c", Some(&[7; 120])),
        ("user.\u{e4}\u{fc}", Some(&[8; 33])),
        ("security.x", None),
        ("user.b", Some(&[9; 12])),
    ];
    for options in [
        ["-t", "ext4", "-b", "1024", "-I", "256"],
        ["-t", "ext4", "-b", "1024", "-I", "128"],
        ["-t", "ext4", "-b", "4096", "-I", "256"],
    ] {
        // After each number of steps, so that each state is compared.
        for upto in 1..=steps.len() {
            let by_kernel = Image::new(&options);
            let by_us = by_kernel.copy();
            {
                let Some(kernel) = mount(&by_kernel, "rw") else {
                    return;
                };
                let path = kernel.path("b");
                for (name, value) in &steps[..upto] {
                    match value {
                        Some([]) if name.starts_with("system") => {
                            setfattr(&path, name, &list(6, 4))
                        }
                        Some(value) => setfattr(&path, name, value),
                        None => {
                            run("setfattr", &["-x", name, path.to_str().unwrap()]);
                        }
                    }
                }
            }
            let mounted = by_us.open();
            for (name, value) in &steps[..upto] {
                match value {
                    Some([]) if name.starts_with("system") => {
                        mounted.set("b", name, &list(6, 4)).unwrap();
                    }
                    Some(value) => mounted.set("b", name, value).unwrap(),
                    None => mounted.remove("b", name).unwrap(),
                }
            }
            let id = mounted.id("b");
            mounted.close();
            by_us.assert_clean();
            assert_eq!(
                bytes(&by_us, id),
                bytes(&by_kernel, id),
                "{options:?}, {upto} steps"
            );
            assert_eq!(by_us.inode(id).mode(), by_kernel.inode(id).mode());
            assert_eq!(by_us.inode(id).sectors(), by_kernel.inode(id).sectors());
        }
    }
}

/// One change, for both.
#[derive(Clone, Copy, Debug)]
enum Change {
    Mode(u16),
    Owner(Option<u32>, Option<u32>),
    Access(u8, u8),
    ModeOnly(u8, u8, u8),
    NoAccess,
    Modified(i64),
}

fn by_kernel(path: &Path, change: Change, who: &Credentials) {
    let path = path.to_str().unwrap();
    let groups: Vec<String> = who.groups.iter().map(ToString::to_string).collect();
    let groups = match groups.as_slice() {
        [] => "--clear-groups".to_owned(),
        groups => format!("--groups={}", groups.join(",")),
    };
    let (uid, gid) = (who.uid.to_string(), who.gid.to_string());
    let as_who = |command: &[&str]| {
        let ids = ["--reuid", &uid, "--regid", &gid, &groups];
        let all = [&ids[..], command, &[path]].concat();
        run("setpriv", &all);
    };
    let ids = |uid: Option<u32>, gid: Option<u32>| {
        let text = |id: Option<u32>| id.map_or_else(String::new, |id| id.to_string());
        format!("{}:{}", text(uid), text(gid))
    };
    let acl = |value: &[u8]| {
        let value = hex(value);
        as_who(&["setfattr", "-n", "system.posix_acl_access", "-v", &value]);
    };
    match change {
        Change::Mode(mode) => as_who(&["chmod", &format!("{mode:05o}")]),
        Change::Owner(uid, None) => as_who(&["chown", &ids(uid, None).replace(':', "")]),
        Change::Owner(uid, gid) => as_who(&["chown", &ids(uid, gid)]),
        Change::Access(mask, other) => acl(&list(mask, other)),
        Change::ModeOnly(user, group, other) => acl(&mode_only(user, group, other)),
        Change::NoAccess => as_who(&["setfattr", "-x", "system.posix_acl_access"]),
        Change::Modified(seconds) => {
            // Half a second later.
            let time = match seconds {
                ..0 => format!("@-{}.5", -(seconds + 1)),
                _ => format!("@{seconds}.5"),
            };
            as_who(&["touch", "-m", "-d", &time]);
        }
    }
}

fn mode_only(user: u8, group: u8, other: u8) -> Vec<u8> {
    let tags = [AclTag::UserObj, AclTag::GroupObj, AclTag::Other];
    let entries = tags.into_iter().zip([user, group, other]);
    let entries = entries.map(|(tag, perm)| AclEntry { tag, perm });
    Acl::new(entries.collect()).unwrap().to_xattr()
}

fn by_us(mounted: &Mounted, file: &str, change: Change, who: &Credentials) {
    let set = |change: SetAttr| {
        let id = mounted.id(file);
        mounted.fs.set_attr(id, &change, who).unwrap();
    };
    let access = "system.posix_acl_access";
    match change {
        Change::Mode(mode) => set(SetAttr {
            permissions: Some(mode),
            ..SetAttr::default()
        }),
        Change::Owner(uid, gid) => set(SetAttr {
            uid,
            gid,
            ..SetAttr::default()
        }),
        Change::Access(mask, other) => mounted.set(file, access, &list(mask, other)).unwrap(),
        Change::ModeOnly(user, group, other) => {
            let value = mode_only(user, group, other);
            mounted.set(file, access, &value).unwrap();
        }
        Change::NoAccess => mounted.remove(file, access).unwrap(),
        Change::Modified(seconds) => set(SetAttr {
            modified: Some(SetTime::To(Timestamp {
                seconds,
                nanoseconds: 500_000_000,
            })),
            ..SetAttr::default()
        }),
    }
}

/// Rows: the mode before, who asks, what. The files belong to 1000 and 1001 and have
/// capabilities; `b` is a file, `dir` a directory.
#[test]
fn modes_owners_lists_and_times_become_what_the_kernel_makes_of_them() {
    let owner_in = user(1000, 1000, &[1001, 1002]);
    let owner_out = user(1000, 1000, &[]);
    let rows: Vec<(u16, Credentials, Change)> = vec![
        (0o644, owner_in.clone(), Change::Mode(0o2755)),
        (0o644, owner_out.clone(), Change::Mode(0o2755)),
        (0o644, owner_out.clone(), Change::Mode(0o4711)),
        (0o644, root(), Change::Mode(0o6755)),
        (0o6755, root(), Change::Mode(0o755)),
        (0o6755, root(), Change::Owner(Some(1005), None)),
        (0o6755, root(), Change::Owner(None, Some(1005))),
        (0o6745, root(), Change::Owner(Some(1005), Some(1006))),
        (0o6755, owner_in.clone(), Change::Owner(None, Some(1002))),
        (0o6745, owner_in.clone(), Change::Owner(None, Some(1002))),
        (0o6745, owner_out.clone(), Change::Owner(None, Some(1000))),
        (0o2645, root(), Change::Owner(Some(0), Some(0))),
        (
            0o644,
            root(),
            Change::Owner(Some(70_000), Some(4_000_000_000)),
        ),
        (0o644, owner_in.clone(), Change::Access(6, 4)),
        (0o2755, owner_in.clone(), Change::Access(0, 0)),
        (0o644, owner_in.clone(), Change::ModeOnly(6, 0, 1)),
        (0o644, root(), Change::NoAccess),
        (0o644, root(), Change::Modified(-3_000_000_000)),
        (0o644, root(), Change::Modified(-1)),
        (0o644, root(), Change::Modified(5_000_000_000)),
        (0o644, root(), Change::Modified(90_000_000_000)),
    ];
    let capability = {
        let mut value = vec![1, 0, 0, 2, 0, 4];
        value.resize(20, 0);
        value
    };
    for size in ["256", "128"] {
        let image = Image::new(&["-t", "ext4", "-b", "1024", "-I", size]);
        for (before, who, change) in &rows {
            // With a list first, and without.
            for with_list in [false, true] {
                let theirs = image.copy();
                {
                    let Some(kernel) = mount(&theirs, "rw") else {
                        return;
                    };
                    for file in ["b", "dir"] {
                        let path = kernel.path(file);
                        let text = path.to_str().unwrap();
                        run("chown", &["1000:1001", text]);
                        if with_list {
                            setfattr(&path, "system.posix_acl_access", &list(7, 5));
                        } else if matches!(change, Change::NoAccess) {
                            continue;
                        }
                        run("chmod", &[&format!("{before:05o}"), text]);
                    }
                    setfattr(&kernel.path("b"), "security.capability", &capability);
                }
                if !with_list && matches!(change, Change::NoAccess) {
                    continue;
                }
                let ours = theirs.copy();
                let kernel = mount(&theirs, "rw").unwrap();
                let mounted = ours.open();
                for file in ["b", "dir"] {
                    by_kernel(&kernel.path(file), *change, who);
                    by_us(&mounted, file, *change, who);
                    let (path, attr) = (kernel.path(file), mounted.attr(file));
                    let stat = run("stat", &["-c", "%a %u %g %.9Y", path.to_str().unwrap()]);
                    let (nanos, modified) = (attr.modified.nanoseconds, attr.modified.seconds);
                    // stat(1) counts the fraction of a time before the epoch from above.
                    let time = if modified < 0 && nanos > 0 {
                        let nanos = 1_000_000_000 - nanos;
                        format!("-{}.{nanos:09}", -(modified + 1))
                    } else {
                        format!("{modified}.{nanos:09}")
                    };
                    let shown = match change {
                        Change::Modified(_) => time,
                        _ => stat.trim().rsplit(' ').next().unwrap().to_owned(),
                    };
                    let ours = format!("{:o} {} {} {shown}", attr.permissions, attr.uid, attr.gid);
                    let row = format!("{file}, {size}: {before:o} {who:?} {change:?} {with_list}");
                    assert_eq!(ours, stat.trim(), "{row}");
                    assert_eq!(mounted.xattrs(file), shown_by_kernel(&path), "{row}");
                }
                mounted.close();
                ours.assert_clean();
            }
        }
    }
}
