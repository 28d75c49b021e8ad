//! Whether a directory can be mounted on.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::mountinfo::{self, TYPE};

/// Checks that `given` is an empty directory (or any, if `non_empty`) with nothing of ours
/// mounted on it, and returns its absolute path.
///
/// # Errors
/// One sentence that says what to do.
pub(crate) fn check(given: &Path, non_empty: bool) -> anyhow::Result<PathBuf> {
    let shown = given.display();
    let path = mountinfo::resolve(given).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            anyhow::anyhow!("the mount point {shown} does not exist: make it with `mkdir {shown}`")
        }
        _ => anyhow::anyhow!("the mount point {shown} can't be used: {error}"),
    })?;
    if let Some(mounted) = mountinfo::on_top(&path)?.filter(|mounted| mounted.kind == TYPE) {
        bail!(
            "{shown} has {} mounted on it already: unmount that with `pagefence umount {shown}`, or choose another directory",
            mounted.source.display()
        );
    }
    let metadata = path
        .metadata()
        .with_context(|| format!("the mount point {shown} can't be used"))?;
    if !metadata.is_dir() {
        bail!("the mount point {shown} is not a directory: give an empty directory");
    }
    if !non_empty {
        let mut entries = path
            .read_dir()
            .with_context(|| format!("the mount point {shown} can't be looked into"))?;
        if entries.next().is_some() {
            bail!(
                "the mount point {shown} is not empty: give an empty directory, or mount over it with -o nonempty"
            );
        }
    }
    Ok(path)
}
