//! /proc/self/mountinfo: what is mounted where.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The type of our mounts.
pub(crate) const TYPE: &str = "fuse.pagefence";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `major:minor` of its device: the same for all mounts of one file system.
    pub(crate) device: String,
    /// Where it is mounted.
    pub(crate) path: PathBuf,
    /// Type, with subtype.
    pub(crate) kind: String,
    /// What is mounted.
    pub(crate) source: OsString,
}

/// Everything that is mounted, in the order of mounting.
pub(crate) fn mounts() -> anyhow::Result<Vec<Mount>> {
    let table = std::fs::read("/proc/self/mountinfo")
        .context("the table of mounts, /proc/self/mountinfo, can't be read")?;
    Ok(table
        .split(|&byte| byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// The mount that is on top at `path`: an absolute path, no symbolic link.
pub(crate) fn on_top(path: &Path) -> anyhow::Result<Option<Mount>> {
    Ok(mounts()?.into_iter().rev().find(|mount| mount.path == path))
}

/// The absolute path of a mount point, without symbolic links, even if its server is dead (when
/// the directory itself can't be looked at, but its parent can).
pub(crate) fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if is_dead(&error) => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(error);
            };
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            Ok(parent.canonicalize()?.join(name))
        }
        result => result,
    }
}

/// Whether an error says that a FUSE server is gone.
pub(crate) fn is_dead(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    errno == Some(Errno::NOTCONN.raw_os_error()) || errno == Some(Errno::CONNABORTED.raw_os_error())
}

/// One line: id, parent, device, root, mount point, options, optional fields, `-`, type, source.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = fields.nth(2)?;
    let path = fields.nth(1)?;
    fields.find(|field| *field == b"-")?;
    let kind = fields.next()?;
    let source = fields.next()?;
    Some(Mount {
        device: String::from_utf8_lossy(device).into_owned(),
        path: PathBuf::from(unescape(path)),
        kind: String::from_utf8_lossy(kind).into_owned(),
        source: unescape(source),
    })
}

/// Space, tab, newline, backslash (and `#`) are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let code = digits
            .and_then(|digits| OsStr::from_bytes(digits).to_str())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = br"36 35 0:45 / /mnt/a\040b\134c rw,nosuid shared:1 master:2 - fuse.pagefence /im\054age rw,user_id=0";
        let mount = parse(line).expect("a line");
        assert_eq!(mount.device, "0:45");
        assert_eq!(mount.path, Path::new(r"/mnt/a b\c"));
        assert_eq!(mount.kind, TYPE);
        assert_eq!(mount.source, OsStr::new("/im,age"));
        let plain = parse(b"1 2 8:1 / / rw - ext4 /dev/sda1 rw").expect("no optional fields");
        assert_eq!(plain.source, OsStr::new("/dev/sda1"));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 8:1 / / rw"), None);
    }

    #[test]
    fn the_table_holds_the_root() {
        let root = on_top(Path::new("/")).expect("the table can be read");
        assert!(root.is_some());
    }
}
