//! What the kernel puts into each image.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::matrix::Variant;
use super::{attributes, contents, names};
use crate::random::Random;

/// What the parts of the filling share.
pub(crate) struct Plan<'a> {
    /// The mount.
    pub(crate) root: &'a Path,
    /// Block size in bytes.
    pub(crate) block_bytes: u64,
    /// Entries of the big directory.
    pub(crate) big_directory_entries: u64,
    /// Whether a feature is on.
    pub(crate) features: &'a str,
    /// Repeatable numbers.
    pub(crate) random: Random,
    /// What this file system refused, each once.
    skipped: Vec<String>,
}

impl Plan<'_> {
    /// Whether `feature` is on.
    pub(crate) fn has(&self, feature: &str) -> bool {
        self.features.split(',').any(|one| one == feature)
    }

    /// Lets an operation be refused as unsupported: records it and says `None`. Any other error
    /// is one.
    pub(crate) fn attempt<T>(
        &mut self,
        what: &str,
        result: std::result::Result<T, impl Into<io::Error>>,
    ) -> Result<Option<T>> {
        let error: io::Error = match result {
            Ok(value) => return Ok(Some(value)),
            Err(error) => error.into(),
        };
        let is_refusal = matches!(
            error.kind(),
            io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge
        ) || [Errno::NOTTY, Errno::OVERFLOW, Errno::PERM]
            .iter()
            .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        if !is_refusal {
            return Err(error).context(what.to_owned());
        }
        let note = format!("{what} ({error})");
        if !self.skipped.contains(&note) {
            self.skipped.push(note);
        }
        Ok(None)
    }

    /// Makes a directory of the filling.
    pub(crate) fn directory(&self, name: &str) -> Result<std::path::PathBuf> {
        let path = self.root.join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

/// Fills the mount at `root`; returns what was refused.
pub(crate) fn everything(root: &Path, variant: &Variant, seed: u64) -> Result<Vec<String>> {
    let mut plan = Plan {
        root,
        block_bytes: u64::from(variant.block_bytes),
        big_directory_entries: variant.big_directory_entries,
        features: &variant.features,
        random: Random::for_name(seed, &variant.name),
        skipped: Vec::new(),
    };
    names::fill(&mut plan).context("names")?;
    contents::fill(&mut plan).context("contents")?;
    attributes::fill(&mut plan).context("attributes")?;
    let directory = File::open(root)?;
    rustix::fs::syncfs(&directory)?;
    anyhow::ensure!(
        directory.metadata()?.nlink() > 2,
        "the root has no directories"
    );
    Ok(plan.skipped)
}
