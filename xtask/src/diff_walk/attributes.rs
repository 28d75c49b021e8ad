//! stat, statfs and extended attributes.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Statx, StatxFlags, lgetxattr, llistxattr, statvfs, statx,
};
use rustix::io::Errno;

use super::Scope;
use super::report::Report;
use super::tree::Pair;

/// What statx says, without following a link.
pub(crate) struct Attributes(Statx);

impl Attributes {
    /// Asks for everything, past any cache.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        Ok(Self(statx(CWD, path, flags, mask)?))
    }

    /// The kind of file.
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.0.stx_mode.into())
    }

    fn birth(&self) -> Option<(i64, u32)> {
        StatxFlags::from_bits_retain(self.0.stx_mask)
            .contains(StatxFlags::BTIME)
            .then_some((self.0.stx_btime.tv_sec, self.0.stx_btime.tv_nsec))
    }

    /// Every attribute that both mounts must agree on, by name.
    fn named(&self) -> [(&'static str, String); 11] {
        let stat = &self.0;
        let time = |at: &rustix::fs::StatxTimestamp| format!("{}.{:09}", at.tv_sec, at.tv_nsec);
        [
            ("inode", stat.stx_ino.to_string()),
            ("mode", format!("{:o}", stat.stx_mode)),
            ("links", stat.stx_nlink.to_string()),
            ("uid", stat.stx_uid.to_string()),
            ("gid", stat.stx_gid.to_string()),
            ("size", stat.stx_size.to_string()),
            ("blocks", stat.stx_blocks.to_string()),
            (
                "device",
                format!("{}:{}", stat.stx_rdev_major, stat.stx_rdev_minor),
            ),
            ("atime", time(&stat.stx_atime)),
            ("mtime", time(&stat.stx_mtime)),
            ("ctime", time(&stat.stx_ctime)),
        ]
    }
}

/// Compares two inodes' attributes. Times that the kernel's recovery set are left out; of a copy
/// what no copy keeps, and the size of directories.
pub(crate) fn compare(
    path: &Path,
    theirs: &Attributes,
    ours: &Attributes,
    scope: Scope,
    report: &mut Report,
) {
    let is_directory = theirs.kind() == FileType::Directory;
    let is_stamped = scope
        .recovery_began
        .is_some_and(|began| theirs.0.stx_ctime.tv_sec >= began);
    for ((name, theirs), (_, ours)) in theirs.named().into_iter().zip(ours.named()) {
        let is_left_out = is_stamped && matches!(name, "mtime" | "ctime")
            || scope.is_copy && matches!(name, "inode" | "blocks" | "ctime" | "atime")
            || scope.is_copy && is_directory && name == "size";
        if theirs != ours && !is_left_out {
            report.mismatch(path, &format!("{name}: kernel {theirs}, ours {ours}"));
        }
    }
    if scope.is_copy {
        return;
    }
    match (theirs.birth(), ours.birth()) {
        (theirs, Some(ours)) if theirs != Some(ours) => {
            report.mismatch(path, &format!("btime: kernel {theirs:?}, ours {ours:?}"));
        }
        (Some(_), None) => report.not_compared("btime: the server answers no STATX"),
        _ => {}
    }
}

/// Compares what statvfs says.
pub(crate) fn compare_statfs(
    theirs: &Path,
    ours: &Path,
    free_counts: bool,
    report: &mut Report,
) -> Result<()> {
    let a = statvfs(theirs).context("statfs of the kernel's mount")?;
    let b = match statvfs(ours) {
        Ok(b) => b,
        Err(error) => {
            report.mismatch(Path::new("/"), &format!("statfs: {error}"));
            return Ok(());
        }
    };
    let mut fields = vec![
        ("f_bsize", a.f_bsize, b.f_bsize),
        ("f_frsize", a.f_frsize, b.f_frsize),
        ("f_blocks", a.f_blocks, b.f_blocks),
        ("f_files", a.f_files, b.f_files),
        ("f_namemax", a.f_namemax, b.f_namemax),
    ];
    if free_counts {
        fields.extend([
            ("f_bfree", a.f_bfree, b.f_bfree),
            ("f_bavail", a.f_bavail, b.f_bavail),
            ("f_ffree", a.f_ffree, b.f_ffree),
        ]);
    }
    for (name, theirs, ours) in fields {
        if theirs != ours {
            let what = format!("{name}: kernel {theirs}, ours {ours}");
            report.mismatch(Path::new("/"), &what);
        }
    }
    Ok(())
}

/// Names and values, or the error of the first call that failed.
fn xattrs(path: &Path) -> Result<BTreeMap<CString, Vec<u8>>, Errno> {
    // The most that Linux hands out: 64 KiB of names, 64 KiB a value.
    let mut buffer = vec![0; 1 << 16];
    let length = llistxattr(path, buffer.as_mut_slice())?;
    let names: Vec<CString> = buffer[..length]
        .split_inclusive(|&byte| byte == 0)
        .filter_map(|name| CString::from_vec_with_nul(name.to_vec()).ok())
        .collect();
    let mut attributes = BTreeMap::new();
    for name in names {
        let length = lgetxattr(path, &name, buffer.as_mut_slice())?;
        attributes.insert(name, buffer[..length].to_vec());
    }
    Ok(attributes)
}

/// Compares all extended attributes that root sees.
pub(crate) fn compare_xattrs(pair: &Pair, report: &mut Report) -> Result<()> {
    let theirs = xattrs(&pair.theirs)
        .with_context(|| format!("the kernel's xattrs of {}", pair.path.display()))?;
    let ours = match xattrs(&pair.ours) {
        Ok(ours) => ours,
        Err(error) => {
            report.mismatch(&pair.path, &format!("xattrs: {error}"));
            return Ok(());
        }
    };
    for (name, value) in &theirs {
        match ours.get(name) {
            None => report.mismatch(&pair.path, &format!("xattr {name:?}: we lack it")),
            Some(our_value) if our_value != value => report.mismatch(
                &pair.path,
                &format!(
                    "xattr {name:?}: kernel {} bytes, ours {} bytes, not the same",
                    value.len(),
                    our_value.len()
                ),
            ),
            Some(_) => {}
        }
    }
    for name in ours.keys().filter(|name| !theirs.contains_key(*name)) {
        report.mismatch(&pair.path, &format!("xattr {name:?}: only we have it"));
    }
    report.count_bytes(theirs.values().map(|value| value.len() as u64).sum());
    Ok(())
}
