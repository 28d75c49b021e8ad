//! Owners, times, flags, extended attributes and ACLs.

use std::fs::File;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, IFlags, Timespec, Timestamps, XattrFlags, lsetxattr, utimensat};
use rustix::fs::{ioctl_getflags, ioctl_setflags};

use super::fill::Plan;
use crate::command::output;

/// The longest value that Linux passes on.
const MAX_VALUE_BYTES: usize = 65_536;
/// Files with the same attributes, which share a block.
const SHARING_FILES: u32 = 40;

/// Fills in everything that hangs on inodes.
pub(crate) fn fill(plan: &mut Plan<'_>) -> Result<()> {
    owners(plan)?;
    times(plan)?;
    flags(plan)?;
    xattrs(plan)?;
    acls(plan)
}

fn make(path: &Path) -> Result<()> {
    std::fs::write(path, b"contents\n").with_context(|| format!("cannot make {}", path.display()))
}

fn owners(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("owners")?;
    for (uid, gid) in [
        (0, 0),
        (1000, 1000),
        (65_535, 65_535),
        (65_536, 70_000),
        (4_000_000_000, 1),
    ] {
        let path = directory.join(format!("{uid}-{gid}"));
        make(&path)?;
        lchown(&path, Some(uid), Some(gid))?;
    }
    for mode in [0o000, 0o111, 0o644, 0o777, 0o1777, 0o2755, 0o4711, 0o7777] {
        let path = directory.join(format!("mode-{mode:o}"));
        make(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    let link = directory.join("symlink-of-someone");
    std::os::unix::fs::symlink("1000-1000", &link)?;
    lchown(&link, Some(123_456), Some(654_321))?;
    Ok(())
}

/// Seconds around the edges of the 32 bits and of the two epoch bits.
const MOMENTS: &[i64] = &[
    0,
    -1,
    -(1 << 31),
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (3 << 32) - (1 << 31) - 1,
    (3 << 32) + (1 << 31) - 1,
    1_700_000_000,
];

fn times(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("times")?;
    for (index, &seconds) in MOMENTS.iter().enumerate() {
        let path = directory.join(format!("moment-{index}"));
        make(&path)?;
        let moment = |nanoseconds| Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        let times = Timestamps {
            last_access: moment(999_999_999),
            last_modification: moment(index as i64),
        };
        utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn flags(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("flags")?;
    let cases = [
        ("append", IFlags::APPEND),
        ("immutable", IFlags::IMMUTABLE),
        ("nodump", IFlags::NODUMP),
        ("noatime", IFlags::NOATIME),
        ("sync", IFlags::SYNC),
        ("journalled", IFlags::JOURNALING),
    ];
    for (name, flag) in cases {
        let path = directory.join(name);
        make(&path)?;
        let file = File::open(&path)?;
        let now = ioctl_getflags(&file)?;
        let result = ioctl_setflags(&file, now | flag);
        plan.attempt(&format!("the flag {name}"), result)?;
    }
    let path = directory.join("dirsync");
    std::fs::create_dir(&path)?;
    let file = File::open(&path)?;
    let now = ioctl_getflags(&file)?;
    let result = ioctl_setflags(&file, now | IFlags::DIRSYNC | IFlags::TOPDIR);
    plan.attempt("flags of a directory", result)?;
    if plan.has("project") {
        let path = directory.join("project");
        make(&path)?;
        let changed = output(
            "chattr",
            ["-p".as_ref(), "31337".as_ref(), path.as_os_str()],
        )?;
        anyhow::ensure!(changed.status.success(), "chattr -p failed");
    }
    Ok(())
}

fn set(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    lsetxattr(path, name, value, XattrFlags::empty()).with_context(|| {
        format!(
            "cannot set {name} ({} bytes) on {}",
            value.len(),
            path.display()
        )
    })
}

/// Capabilities as the kernel stores them: revision 2, cap_net_raw permitted and effective.
fn capability() -> Vec<u8> {
    let mut value = Vec::new();
    for word in [0x0200_0001_u32, 1 << 13, 0, 0, 0] {
        value.extend(word.to_le_bytes());
    }
    value
}

fn xattrs(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("xattrs")?;
    let block = usize::try_from(plan.block_bytes)?;
    namespaces(&directory)?;
    let small = directory.join("many-small");
    make(&small)?;
    for index in 0..12 {
        set(
            &small,
            &format!("user.n{index}"),
            format!("value {index}").as_bytes(),
        )?;
    }
    let long_name = directory.join("long-name");
    make(&long_name)?;
    set(
        &long_name,
        &format!("user.{}", "n".repeat(250)),
        b"the name has 255 bytes",
    )?;
    // In the inode's own space, at its edge, in a block, at the edge of a block.
    for length in [
        0,
        1,
        3,
        4,
        40,
        60,
        64,
        80,
        100,
        160,
        300,
        block / 2,
        block - 100,
    ] {
        let path = directory.join(format!("value-{length}"));
        make(&path)?;
        let value = plan.random.bytes(length);
        set(&path, "user.value", &value)?;
    }
    let shared = plan.random.bytes(block / 2);
    for index in 0..SHARING_FILES {
        let path = directory.join(format!("shared-{index}"));
        make(&path)?;
        set(&path, "user.shared", &shared)?;
    }
    let link = directory.join("symlink");
    std::os::unix::fs::symlink("nowhere", &link)?;
    set(&link, "trusted.of-a-symlink", b"value")?;
    let inner = directory.join("directory");
    std::fs::create_dir(&inner)?;
    set(&inner, "user.of-a-directory", b"value")?;
    if plan.has("ea_inode") {
        let value = plan.random.bytes(MAX_VALUE_BYTES);
        for index in 0..3 {
            // The same value thrice: one inode holds it for all.
            let path = directory.join(format!("huge-{index}"));
            make(&path)?;
            set(&path, "user.huge", &value)?;
            set(&path, "user.huge-too", &value[..block + 1 + index])?;
        }
    }
    Ok(())
}

fn namespaces(directory: &Path) -> Result<()> {
    let path = directory.join("namespaces");
    make(&path)?;
    set(&path, "user.a", b"user")?;
    set(&path, "user.empty", b"")?;
    set(&path, "trusted.a", b"trusted")?;
    set(&path, "security.a", b"security\0with a NUL")?;
    set(&path, "security.capability", &capability())?;
    Ok(())
}

/// Tags of ACL entries.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NOBODY: u32 = u32::MAX;

/// An ACL as setxattr(2) takes it: version 2, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn acls(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("acls")?;
    let full = acl(&[
        (USER_OBJ, 6, NOBODY),
        (USER, 7, 1000),
        (USER, 4, 70_000),
        (GROUP_OBJ, 4, NOBODY),
        (GROUP, 5, 1001),
        (MASK, 7, NOBODY),
        (OTHER, 0, NOBODY),
    ]);
    let path = directory.join("access");
    make(&path)?;
    set(&path, "system.posix_acl_access", &full)?;
    let inner = directory.join("default");
    std::fs::create_dir(&inner)?;
    set(&inner, "system.posix_acl_default", &full)?;
    set(&inner, "system.posix_acl_access", &full)?;
    // These inherit.
    make(&inner.join("file"))?;
    std::fs::create_dir(inner.join("directory"))?;
    // As many entries as fit into half a block: 8 bytes each on disk.
    let many = (plan.block_bytes / 2 / 8) as u32 - 8;
    let mut entries = vec![(USER_OBJ, 6, NOBODY)];
    entries.extend((0..many).map(|index| (USER, (index % 8) as u16, 2000 + index)));
    entries.extend([
        (GROUP_OBJ, 4, NOBODY),
        (MASK, 7, NOBODY),
        (OTHER, 4, NOBODY),
    ]);
    let path = directory.join("many-entries");
    make(&path)?;
    set(&path, "system.posix_acl_access", &acl(&entries))?;
    Ok(())
}
