//! A directory that goes away with its owner, unless something is still mounted within.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::run;

/// A fresh directory under `TMPDIR`. A panic leaves it for who looks into that.
///
/// Invariant: it is never removed while a file system is mounted inside: removing would then
/// delete that file system's files.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    is_kept: bool,
}

/// What the names of the directories begin with that a process makes.
pub(crate) fn prefix(process: u32) -> String {
    format!("pagefence-xtask-{process}.")
}

impl Scratch {
    /// Makes one in `TMPDIR`.
    pub(crate) fn new() -> Result<Self> {
        Self::within(&std::env::temp_dir())
    }

    /// Makes one in `parent`, on whose file system it then lies.
    pub(crate) fn within(parent: &Path) -> Result<Self> {
        let prefix = prefix(std::process::id());
        let template = parent.join(format!("{prefix}XXXXXXXX"));
        let printed = run("mktemp", [Path::new("-d"), &template])?;
        let path = PathBuf::from(printed.trim_end());
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))?;
        Ok(Self {
            path,
            is_kept: false,
        })
    }

    /// Leaves it where it is.
    pub(crate) fn keep(mut self) -> PathBuf {
        self.is_kept = true;
        self.path.clone()
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path within.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a directory within.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        if std::thread::panicking() {
            eprintln!("{} is kept", self.path.display());
            return;
        }
        if is_anything_mounted_in(&self.path) {
            eprintln!(
                "warning: something is still mounted in {}; it is left there",
                self.path.display()
            );
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("warning: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Whether mountinfo lists a mount at or below `path`. If it can't be read, the answer is yes.
fn is_anything_mounted_in(path: &Path) -> bool {
    let Ok(mounts) = std::fs::read("/proc/self/mountinfo") else {
        return true;
    };
    mounts.split(|&byte| byte == b'\n').any(|line| {
        line.split(|&byte| byte == b' ')
            .nth(4)
            .is_some_and(|mount_point| mount_point.starts_with(path.as_os_str().as_bytes()))
    })
}
