//! Going over everything in a file system that may be damaged, as a mount's user would.

use std::collections::HashSet;
use std::ops::ControlFlow;

use pagefence_block_io::Device;
use pagefence_ext4::{FileSystem, MountError, MountOptions};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{DirEntry, Error, FileKind, FileSystem as _, InodeId, Whence};

/// How much of what there is is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Entries of one directory.
    pub(crate) entries: usize,
    /// Bytes from each end of a file.
    pub(crate) bytes: usize,
    /// Inodes.
    pub(crate) inodes: usize,
    /// Names of one directory that are looked up.
    pub(crate) lookups: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 20_000,
            bytes: 64 << 10,
            inodes: 20_000,
            lookups: 20_000,
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Errors, each with what was tried.
    pub(crate) errors: Vec<(String, Error)>,
    /// Inodes that were looked at.
    pub(crate) inodes: usize,
    /// Names that were handed out.
    pub(crate) names: usize,
}

impl Findings {
    /// Whether damage was found, and nothing else is wrong.
    pub(crate) fn damage(&self) -> bool {
        let corrupt = |(_, error): &(String, Error)| matches!(error, Error::Corrupt { .. });
        !self.errors.is_empty() && self.errors.iter().all(corrupt)
    }

    fn note<T>(&mut self, what: impl FnOnce() -> String, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.errors.push((what(), error));
                None
            }
        }
    }
}

/// Opens with the smallest caches and no readahead.
pub(crate) fn open(device: Arc<dyn Device>) -> Result<FileSystem, MountError> {
    let options = MountOptions {
        cache: Some(0),
        read_ahead: false,
        ..MountOptions::default()
    };
    FileSystem::open(device, &options)
}

/// Lists every directory, looks every name up, reads every file, link and attribute.
pub(crate) fn explore(fs: &FileSystem, limits: &Limits) -> Findings {
    let mut findings = Findings::default();
    findings.note(|| "statfs".to_owned(), fs.stat_fs());
    let mut met = HashSet::from([fs.root()]);
    let mut todo = vec![(fs.root(), FileKind::Directory)];
    while let Some((id, kind)) = todo.pop() {
        findings.inodes += 1;
        attributes(fs, id, &mut findings);
        match kind {
            FileKind::Directory => {
                for (child, kind) in directory(fs, id, limits, &mut findings) {
                    if met.len() < limits.inodes && met.insert(child) {
                        todo.push((child, kind));
                    }
                }
            }
            FileKind::Regular => file(fs, id, limits, &mut findings),
            FileKind::Symlink => {
                let target = findings.note(|| format!("link {id}"), fs.read_link(id));
                assert!(target.is_none_or(|target| !target.is_empty()));
            }
            _ => {}
        }
    }
    findings
}

fn attributes(fs: &FileSystem, id: InodeId, findings: &mut Findings) {
    findings.note(|| format!("fsxattr {id}"), fs.fsxattr(id));
    let names = findings.note(|| format!("attributes {id}"), fs.xattr_names(id));
    for name in names.unwrap_or_default().iter().take(100) {
        assert!(!name.0.contains(&0), "{name:?}");
        match fs.xattr(id, &name.0) {
            // Two attributes of one name, or a value that Linux does not hand out either.
            Err(Error::NoAttribute | Error::Unsupported(_)) => {}
            value => {
                findings.note(|| format!("attribute {name:?} of {id}"), value);
            }
        }
    }
}

fn directory(
    fs: &FileSystem,
    id: InodeId,
    limits: &Limits,
    findings: &mut Findings,
) -> Vec<(InodeId, FileKind)> {
    let Some(dir) = findings.note(|| format!("opendir {id}"), fs.open_dir(id)) else {
        return Vec::new();
    };
    let mut names = Vec::new();
    let read = fs.read_dir(&dir, 0, true, &mut |entry: &DirEntry<'_>| {
        if names.len() == limits.entries {
            return ControlFlow::Break(());
        }
        names.push(entry.name.to_vec());
        ControlFlow::Continue(())
    });
    findings.note(|| format!("readdir {id}"), read);
    let mut children = Vec::new();
    for (at, name) in names.into_iter().enumerate() {
        let dots = matches!(&name[..], b"." | b"..");
        assert!(!dots || at < 2, "dots out of place in {id}");
        assert!((1..=255).contains(&name.len()), "a name of {}", name.len());
        assert!(!name.contains(&b'/') && !name.contains(&0), "{name:?}");
        findings.names += 1;
        if at >= limits.lookups {
            continue;
        }
        let found = fs.lookup(id, &name);
        if let Some(found) = findings.note(|| format!("lookup {name:?} in {id}"), found)
            && !dots
        {
            children.push((found.attr.id, found.attr.kind));
        }
    }
    match fs.lookup(id, b"a name that is nowhere") {
        Err(Error::NotFound) => {}
        other => {
            findings.note(|| format!("lookup of nothing in {id}"), other);
        }
    }
    findings.note(|| format!("extents {id}"), fs.extents(id, 0, u64::MAX, 500));
    children
}

fn file(fs: &FileSystem, id: InodeId, limits: &Limits, findings: &mut Findings) {
    let Some(file) = findings.note(|| format!("open {id}"), fs.open(id, false)) else {
        return;
    };
    let size = fs.attr(id).map_or(0, |attr| attr.size);
    let mut buffer = vec![0; limits.bytes];
    let far = size.saturating_sub(limits.bytes as u64);
    for offset in [0, far, size, u64::MAX - 1] {
        let read = fs.read(&file, offset, &mut buffer);
        if let Some(read) = findings.note(|| format!("read {id} at {offset}"), read) {
            assert!(read as u64 <= size.saturating_sub(offset));
        }
    }
    for whence in [Whence::Data, Whence::Hole] {
        match fs.seek(&file, 0, whence) {
            Err(Error::NoData) => {}
            Ok(found) => assert!(found <= size, "{found} of {size}"),
            other => {
                findings.note(|| format!("seek {id}"), other);
            }
        }
    }
    findings.note(|| format!("extents {id}"), fs.extents(id, 0, u64::MAX, 500));
}
