//! Set-uid bits, set-group-id bits and capabilities go with data and owner, as Linux has it, on the mount of an
//! image. This mounts and becomes another user, which needs root and /dev/fuse.

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use common::{Bench, can_mount};
use pagefence::{OpenOptions, Options, Volume};
use rustix::fs::{FallocateFlags, XattrFlags};
use rustix::io::Errno;

const CAPABILITY: &str = "security.capability";

/// CAP_CHOWN, effective (version 2): the kernel refuses what makes no sense.
fn capability() -> Vec<u8> {
    let mut value = vec![1, 0, 0, 2, 1];
    value.resize(20, 0);
    value
}

/// Gives the file all privileges; all may write to it.
fn give(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o6777)).expect("root may");
    rustix::fs::setxattr(path, CAPABILITY, &capability(), XattrFlags::empty()).expect("root may");
    assert_eq!(left(path), (0o6777, true));
}

/// The mode that is left, and whether the capability is.
fn left(path: &Path) -> (u32, bool) {
    let mode = fs::metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
        & 0o7777;
    match rustix::fs::getxattr(path, CAPABILITY, &mut [0; 64]) {
        Ok(_) => (mode, true),
        Err(Errno::NODATA) => (mode, false),
        Err(error) => panic!("{error}"),
    }
}

/// Runs a line of shell as somebody who owns nothing.
fn as_nobody(directory: &Path, line: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(directory);
    let status = shell
        .uid(65_534)
        .gid(65_534)
        .status()
        .expect("there is a shell");
    assert!(status.success(), "{line}");
}

#[test]
fn on_a_mount_privileges_go_with_data_and_owner() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    fs::set_permissions(bench.join(""), Permissions::from_mode(0o755)).expect("it is ours");
    bench.run("mkfs -q -t ext4 --size 32M a.img");
    let mountpoint = bench.join("mnt");
    fs::create_dir(&mountpoint).expect("it is ours");
    for mode in ["", ",writeback"] {
        bench.run(&format!("mount -o rw,suid,allow_other{mode} a.img mnt"));
        let path = mountpoint.join("file");
        fs::write(&path, [7; 10_000]).expect("there is room");
        // Nobody's.
        for line in [
            "printf x >> file",
            "printf x | dd of=file conv=notrunc status=none",
            ": > file",
            "truncate -s 100 file",
            "truncate -s 20000 file",
            "fallocate -l 30000 file",
            "fallocate --punch-hole -o 0 -l 4096 file",
        ] {
            give(&path);
            as_nobody(&mountpoint, line);
            assert_eq!(left(&path), (0o777, false), "{line}{mode}");
        }
        // Root's: capabilities go, for they were given to other contents; bits stay, as CAP_FSETID says.
        let open = || File::options().write(true).open(&path).expect("it opens");
        let write = || open().write_all_at(b"by root", 0).expect("there is room");
        let cut = || open().set_len(50).expect("root may");
        let by_root: [(&str, &dyn Fn()); 2] = [("a write", &write), ("a cut", &cut)];
        for (what, change) in by_root {
            give(&path);
            change();
            assert_eq!(left(&path), (0o6777, false), "{what}{mode}");
        }
        // Another owner: everything goes, whoever does it.
        let owner = || chown(&path, Some(1000), None).expect("root may");
        let group = || chown(&path, None, Some(1000)).expect("root may");
        let both = || chown(&path, Some(0), Some(0)).expect("root may");
        let owners: [(&str, &dyn Fn()); 3] =
            [("an owner", &owner), ("a group", &group), ("both", &both)];
        for (what, change) in owners {
            give(&path);
            change();
            assert_eq!(left(&path), (0o777, false), "{what}{mode}");
        }
        // Set-group-id without the right of the group to run it is a mark of another kind.
        give(&path);
        fs::set_permissions(&path, Permissions::from_mode(0o6767)).expect("root may");
        as_nobody(&mountpoint, "printf x >> file");
        assert_eq!(left(&path), (0o2767, false), "{mode}");
        // What is only read or allocated by root keeps what it has.
        give(&path);
        as_nobody(&mountpoint, "cat file > /dev/null");
        rustix::fs::fallocate(open(), FallocateFlags::KEEP_SIZE, 0, 60_000).expect("room");
        assert_eq!(left(&path).0, 0o6777, "{mode}");
        bench.run("umount mnt");
    }
}

/// The library is root.
#[test]
fn in_an_image_privileges_go_with_data_and_owner() {
    let bench = Bench::new();
    bench.run("mkfs -q -t ext4 --size 32M a.img");
    let options = Options::new().write(true);
    let volume = Volume::open(bench.join("a.img"), options).expect("it was made");
    volume.write("/file", [7; 10_000]).expect("there is room");
    let give = || {
        volume
            .set_permissions("/file", 0o6777)
            .expect("it is there");
        let value = capability();
        volume
            .set_xattr("/file", CAPABILITY, value)
            .expect("there is room");
    };
    let left = || {
        let metadata = volume.metadata("/file").expect("it is there");
        let value = volume.xattr("/file", CAPABILITY).expect("it can be read");
        (metadata.permissions(), value.is_some())
    };
    let open = |direct| {
        let mut options = OpenOptions::new().write(true);
        options = options.direct(direct);
        options.open(&volume, "/file").expect("it is there")
    };
    let write = || open(false).write_all_at(0, b"x").expect("there is room");
    let direct = || {
        open(true)
            .write_all_at(0, &[1; 4096])
            .expect("there is room")
    };
    let cut = || open(false).set_len(5000).expect("it can be cut");
    let grow = || open(false).set_len(9000).expect("it can grow");
    let punch = || open(false).punch_hole(0, 4096).expect("it can be punched");
    let data: [(&str, &dyn Fn()); 5] = [
        ("a hole", &punch),
        ("a write", &write),
        ("a direct write", &direct),
        ("a cut", &cut),
        ("growth", &grow),
    ];
    for (what, change) in data {
        give();
        change();
        assert_eq!(left(), (0o6777, false), "{what}");
    }
    let owner = || {
        volume
            .set_owner("/file", Some(1000), None)
            .expect("root may")
    };
    let group = || {
        volume
            .set_owner("/file", None, Some(1000))
            .expect("root may")
    };
    let owners: [(&str, &dyn Fn()); 2] = [("an owner", &owner), ("a group", &group)];
    for (what, change) in owners {
        give();
        change();
        assert_eq!(left(), (0o777, false), "{what}");
    }
    give();
    volume.close().expect("it closes");

    // And by commands; not by one that does nothing.
    let left = || {
        let volume = Volume::open(bench.join("a.img"), Options::new()).expect("an image");
        let metadata = volume.metadata("/file").expect("it is there");
        let value = volume.xattr("/file", CAPABILITY).expect("it can be read");
        (metadata.permissions(), value.is_some())
    };
    let said = bench.fail("truncate --size 3000 a.img:/other");
    assert!(said.contains("can't be changed"), "{said}");
    assert_eq!(left(), (0o6777, true));
    bench.run("truncate --size 3000 a.img:/file");
    assert_eq!(left(), (0o6777, false));
}
