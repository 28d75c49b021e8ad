//! Extended attributes, ioctls, and everything that would write.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::common::mount;
use crate::memory_fs::{MemoryFs, ROOT};
use pagefence_fuse_front::ioctl::{EXTENTS, EXTENTS_AT_ONCE};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

#[test]
fn extended_attributes_follow_the_size_protocol() {
    let mut fs = MemoryFs::new();
    let file = fs.bytes(ROOT, "file", b"");
    fs.set_xattr(file, "user.name", b"value");
    fs.set_xattr(file, "user.empty", b"");
    fs.set_xattr(file, "user.large", &[7; 65_536]);
    fs.set_xattr(file, "trusted.secret", b"root's");
    let Some(mounted) = mount(fs) else { return };
    let path = mounted.join("file");
    let mut buffer = vec![0; 70_000];
    let mut get = |name: &str, size: usize| {
        rustix::fs::getxattr(&path, name, &mut buffer[..size])
            .map(|length| buffer[..length].to_vec())
    };
    assert_eq!(get("user.name", 100), Ok(b"value".to_vec()));
    assert_eq!(get("user.name", 5), Ok(b"value".to_vec()));
    assert_eq!(get("user.name", 4), Err(Errno::RANGE));
    assert_eq!(get("user.empty", 4), Ok(Vec::new()));
    assert_eq!(get("user.large", 65_536), Ok(vec![7; 65_536]));
    assert_eq!(get("user.missing", 100), Err(Errno::NODATA));
    assert_eq!(get("security.capability", 100), Err(Errno::NODATA));
    assert_eq!(get("trusted.secret", 100), Ok(b"root's".to_vec()));
    assert_eq!(rustix::fs::getxattr_query(&path, "user.name"), Ok(5));

    let names = b"trusted.secret\0user.empty\0user.large\0user.name\0";
    assert_eq!(rustix::fs::listxattr_query(&path), Ok(names.len()));
    let length = rustix::fs::listxattr(&path, &mut buffer[..names.len()]).expect("it fits");
    assert_eq!(&buffer[..length], names);
    let short = rustix::fs::listxattr(&path, &mut buffer[..names.len() - 1]);
    assert_eq!(short, Err(Errno::RANGE));

    let list = as_nobody(&["getfattr", "-d", "-m", "-", "--absolute-names"], &path);
    if let Some(list) = list {
        assert!(list.contains("user.name=\"value\""), "{list}");
        assert!(!list.contains("trusted"), "{list}");
    }
}

#[test]
fn acls_are_applied_by_the_kernel() {
    let mut fs = MemoryFs::new();
    let file = fs.bytes(ROOT, "file", b"for one user\n");
    fs.attr_mut(file).permissions = 0o640;
    // Version 2; owner rw-, user 65534 r--, group ---, mask r--, others ---.
    let entries: [(u16, u16, u32); 5] = [
        (1, 6, !0),
        (2, 4, 65_534),
        (4, 0, !0),
        (0x10, 4, !0),
        (0x20, 0, !0),
    ];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(rights.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    fs.set_xattr(file, "system.posix_acl_access", &acl);
    let other = fs.bytes(ROOT, "other", b"for root\n");
    fs.attr_mut(other).permissions = 0o640;
    let Some(mounted) = mount(fs) else { return };
    open_to_all(&mounted);
    let path = mounted.join("file");
    let mut buffer = [0; 100];
    let length = rustix::fs::getxattr(&path, "system.posix_acl_access", &mut buffer[..]);
    assert_eq!(length, Ok(acl.len()));
    assert_eq!(&buffer[..acl.len()], acl);
    let Some(read) = as_nobody(&["cat"], &path) else {
        return;
    };
    assert_eq!(read, "for one user\n");
    assert_eq!(
        as_nobody(&["cat"], &mounted.join("other")).as_deref(),
        Some("")
    );
}

#[test]
fn flags_versions_and_extents_by_ioctl() {
    let mut fs = MemoryFs::new();
    let file = fs.pattern(ROOT, "file", 1200 * 4096);
    fs.attr_mut(file).flags = 0x10 | 0x8_0000;
    let directory = fs.directory(ROOT, "directory");
    fs.attr_mut(directory).flags = 0x1000;
    let Some(mounted) = mount(fs) else { return };
    let open = |name: &str| File::open(mounted.join(name)).expect("it opens");
    let flags = |name: &str| rustix::fs::ioctl_getflags(open(name)).map(|flags| flags.bits());
    assert_eq!(flags("file"), Ok(0x8_0010));
    assert_eq!(flags("directory"), Ok(0x1000));

    let perl = |name: &str, number: u32, request: &[u8], room: usize| {
        perl_ioctl(&mounted.join(name), number, request, room)
    };
    let Some(version) = perl("file", 0x8008_7601, &[], 8) else {
        eprintln!("skipped in part: there is no perl to call ioctls");
        return;
    };
    let generation = 1000 + file.0 as u32;
    assert_eq!(version.expect("a version")[..4], generation.to_ne_bytes());
    let fsxattr = perl("directory", 0x801c_581f, &[], 28)
        .flatten()
        .expect("an answer");
    assert_eq!(fsxattr[..4], 0x10u32.to_ne_bytes());
    assert_eq!(fsxattr[12..16], 77u32.to_ne_bytes());
    assert_eq!(
        perl("file", 0x8004_f7f0, &[], 4),
        Some(None),
        "unknown numbers fail"
    );

    // 600 extents, in two answers.
    let mut seen = Vec::new();
    let mut offset = 0u64;
    for expected in [EXTENTS_AT_ONCE, 600 - EXTENTS_AT_ONCE] {
        let mut request = offset.to_ne_bytes().to_vec();
        request.extend(u64::MAX.to_ne_bytes());
        let answer = perl("file", EXTENTS, &request, 16_352)
            .flatten()
            .expect("an answer");
        let word = |at: usize| u64::from_ne_bytes(answer[at..at + 8].try_into().expect("eight"));
        let count = word(16) as u32 as usize;
        assert_eq!(count, expected);
        assert_eq!(
            word(16) >> 32,
            u64::from(count < EXTENTS_AT_ONCE),
            "only the last is marked"
        );
        for extent in 0..count {
            let at = 32 + extent * 32;
            seen.push((word(at), word(at + 8), word(at + 16), word(at + 24)));
        }
        let &(logical, _, length, _) = seen.last().expect("extents");
        offset = logical + length;
    }
    let expected: Vec<_> = (0..600)
        .map(|n| (n * 8192, (1 << 30) + n * 8192, 4096, 0))
        .collect();
    assert_eq!(seen, expected);
    assert_eq!(
        perl("file", EXTENTS, &[0; 16], 16_352),
        Some(None),
        "no length, no answer"
    );
}

#[test]
fn what_would_write_is_refused_as_read_only() {
    let mut fs = MemoryFs::new();
    fs.bytes(ROOT, "file", b"as it was");
    fs.directory(ROOT, "directory");
    let Some(mounted) = mount(fs) else { return };
    let file = mounted.join("file");
    let new = mounted.join("new");
    let erofs = Err(Errno::ROFS);
    let open = |flags| rustix::fs::open(&file, flags, Mode::empty()).map(drop);
    assert_eq!(open(OFlags::WRONLY), erofs);
    assert_eq!(open(OFlags::RDWR), erofs);
    assert_eq!(open(OFlags::RDONLY | OFlags::TRUNC), erofs);
    let create = OFlags::CREATE | OFlags::WRONLY;
    assert_eq!(rustix::fs::open(&new, create, Mode::RUSR).map(drop), erofs);
    assert_eq!(rustix::fs::mkdir(&new, Mode::RWXU), erofs);
    assert_eq!(rustix::fs::unlink(&file), erofs);
    assert_eq!(rustix::fs::rmdir(mounted.join("directory")), erofs);
    assert_eq!(rustix::fs::rename(&file, &new), erofs);
    assert_eq!(rustix::fs::link(&file, &new), erofs);
    assert_eq!(rustix::fs::symlink("target", &new), erofs);
    assert_eq!(
        rustix::fs::mknodat(CWD, &new, rustix::fs::FileType::Fifo, Mode::RUSR, 0),
        erofs
    );
    assert_eq!(rustix::fs::chmod(&file, Mode::RUSR), erofs);
    let id = rustix::fs::Uid::from_raw(1);
    assert_eq!(rustix::fs::chown(&file, Some(id), None), erofs);
    let now = Timespec {
        tv_sec: 1,
        tv_nsec: 1,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    assert_eq!(
        rustix::fs::utimensat(CWD, &file, &times, AtFlags::empty()),
        erofs
    );
    assert_eq!(
        rustix::fs::setxattr(&file, "user.a", b"b", XattrFlags::empty()),
        erofs
    );
    assert_eq!(rustix::fs::removexattr(&file, "user.a"), erofs);
    assert_eq!(fs::read(&file).expect("it can be read"), b"as it was");
    assert_eq!(rustix::fs::access(&file, Access::READ_OK), Ok(()));
}

/// The output of a program run by user 65534 on `path`; `None`, with a word, if it can't be run.
fn as_nobody(program: &[&str], path: &Path) -> Option<String> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    match command.args(program).arg(path).output() {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => {
            eprintln!("skipped in part: setpriv {program:?} can't be run: {error}");
            None
        }
    }
}

/// Lets everyone through the directory that a test made for itself alone.
fn open_to_all(mounted: &crate::common::Mounted) {
    let root = fs::metadata(mounted.path()).expect("the mount answers");
    assert_eq!(
        root.permissions().mode() & 0o777,
        0o755,
        "the mount hides its mount point's mode"
    );
}

/// Calls an ioctl from perl (safe code can't): `None` if there is no perl, `Some(None)` if the
/// ioctl fails. `room` bytes are handed over, beginning with `request`.
fn perl_ioctl(path: &Path, number: u32, request: &[u8], room: usize) -> Option<Option<Vec<u8>>> {
    let script = r"
        open(my $file, '<', $ARGV[0]) or opendir($file, $ARGV[0]) or die;
        my $bytes = pack('H*', $ARGV[2]);
        $bytes .= chr(0) x ($ARGV[3] - length $bytes);
        ioctl($file, $ARGV[1] + 0, $bytes) or exit 1;
        binmode STDOUT; print $bytes;";
    let hex: String = request.iter().map(|byte| format!("{byte:02x}")).collect();
    let output = Command::new("perl")
        .args(["-e", script])
        .arg(path)
        .args([number.to_string(), hex, room.to_string()])
        .output()
        .ok()?;
    Some(output.status.success().then_some(output.stdout))
}
