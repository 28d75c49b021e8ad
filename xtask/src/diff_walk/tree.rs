//! Walking two trees side by side.

use std::ffi::OsString;
use std::os::unix::fs::{DirEntryExt, FileTypeExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::FileType;

use super::attributes::{self, Attributes};
use super::report::Report;
use super::{Scope, contents, inode_flags};

/// One entry as readdir gives it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    name: OsString,
    inode: u64,
    /// `d_type`; where the directory records none, std asks for the inode.
    kind: &'static str,
}

fn kind_of(entry: std::fs::FileType) -> &'static str {
    let kinds = [
        (entry.is_dir(), "directory"),
        (entry.is_file(), "file"),
        (entry.is_symlink(), "symlink"),
        (entry.is_fifo(), "fifo"),
        (entry.is_socket(), "socket"),
        (entry.is_block_device(), "block device"),
        (entry.is_char_device(), "character device"),
    ];
    kinds
        .iter()
        .find(|(is_it, _)| *is_it)
        .map_or("unknown", |(_, name)| name)
}

/// A directory's entries, sorted; a name listed twice stays twice.
fn list(directory: &Path) -> std::io::Result<Vec<Listed>> {
    let mut entries = std::fs::read_dir(directory)?
        .map(|entry| {
            let entry = entry?;
            Ok(Listed {
                inode: entry.ino(),
                kind: kind_of(entry.file_type()?),
                name: entry.file_name(),
            })
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

/// Two mounts and a place in both.
pub(crate) struct Pair {
    /// Relative to the mounts.
    pub(crate) path: PathBuf,
    pub(crate) theirs: PathBuf,
    pub(crate) ours: PathBuf,
}

impl Pair {
    fn new(theirs: &Path, ours: &Path, path: PathBuf) -> Self {
        Self {
            theirs: theirs.join(&path),
            ours: ours.join(&path),
            path,
        }
    }
}

/// Compares everything below two mount points.
pub(crate) fn compare(theirs: &Path, ours: &Path, scope: Scope, report: &mut Report) -> Result<()> {
    if !scope.is_copy {
        attributes::compare_statfs(theirs, ours, scope.free_counts, report)?;
    }
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let pair = Pair::new(theirs, ours, path);
        let Some(kind) = compare_inode(&pair, scope, report)? else {
            continue;
        };
        match kind {
            FileType::Directory => {
                let names = compare_listing(&pair, scope, report)?;
                // The last is taken first: so names come in order.
                waiting.extend(names.into_iter().rev().map(|name| pair.path.join(name)));
            }
            FileType::RegularFile => contents::compare(&pair, scope.is_copy, report)?,
            FileType::Symlink => compare_targets(&pair, report)?,
            _ => {}
        }
    }
    if scope.is_copy {
        return Ok(());
    }
    inode_flags::compare(theirs, ours, report)
}

/// Compares attributes and extended attributes; says the kind if there is an inode of the same
/// kind on both sides.
fn compare_inode(pair: &Pair, scope: Scope, report: &mut Report) -> Result<Option<FileType>> {
    report.count_file();
    let theirs = Attributes::read(&pair.theirs)
        .with_context(|| format!("the kernel's {}", pair.path.display()))?;
    let ours = match Attributes::read(&pair.ours) {
        Ok(ours) => ours,
        Err(error) => {
            report.mismatch(&pair.path, &format!("stat: {error:#}"));
            return Ok(None);
        }
    };
    attributes::compare(&pair.path, &theirs, &ours, scope, report);
    if theirs.kind() != ours.kind() {
        return Ok(None);
    }
    attributes::compare_xattrs(pair, report)?;
    Ok(Some(theirs.kind()))
}

/// Compares what readdir says; returns the names that both have.
fn compare_listing(pair: &Pair, scope: Scope, report: &mut Report) -> Result<Vec<OsString>> {
    let theirs = list(&pair.theirs)
        .with_context(|| format!("cannot list the kernel's {}", pair.path.display()))?;
    let ours = match list(&pair.ours) {
        Ok(ours) => ours,
        Err(error) => {
            report.mismatch(&pair.path, &format!("readdir: {error}"));
            return Ok(Vec::new());
        }
    };
    let mut both = Vec::new();
    let (mut left, mut right) = (theirs.iter().peekable(), ours.iter().peekable());
    loop {
        match (left.peek(), right.peek()) {
            (Some(&a), Some(&b)) if a.name == b.name => {
                let is_same = a.kind == b.kind && (a.inode == b.inode || scope.is_copy);
                if !is_same {
                    let path = pair.path.join(&a.name);
                    let what = format!(
                        "readdir: kernel {} {}, ours {} {}",
                        a.kind, a.inode, b.kind, b.inode
                    );
                    report.mismatch(&path, &what);
                }
                both.push(a.name.clone());
                left.next();
                right.next();
            }
            (Some(&a), b) if b.is_none_or(|b| a.name < b.name) => {
                report.mismatch(&pair.path.join(&a.name), "readdir: we do not list it");
                left.next();
            }
            (_, Some(&b)) => {
                report.mismatch(&pair.path.join(&b.name), "readdir: only we list it");
                right.next();
            }
            (_, None) => break,
        }
    }
    Ok(both)
}

fn compare_targets(pair: &Pair, report: &mut Report) -> Result<()> {
    let theirs = std::fs::read_link(&pair.theirs)
        .with_context(|| format!("cannot read the kernel's link {}", pair.path.display()))?;
    match std::fs::read_link(&pair.ours) {
        Ok(ours) if ours == theirs => {}
        Ok(ours) => report.mismatch(
            &pair.path,
            &format!("target: kernel {theirs:?}, ours {ours:?}"),
        ),
        Err(error) => report.mismatch(&pair.path, &format!("readlink: {error}")),
    }
    Ok(())
}
