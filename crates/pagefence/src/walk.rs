//! Walking a tree.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use pagefence_vfs::Place;

use crate::directory::{DirEntry, ReadDir};
use crate::error::{Error, Result};
use crate::metadata::Metadata;
use crate::path::Follow;
use crate::volume::Volume;

/// Something met by [`Volume::walk`].
#[derive(Clone, Debug)]
pub struct WalkEntry {
    path: PathBuf,
    depth: usize,
    metadata: Metadata,
}

impl WalkEntry {
    /// Its path, which starts with the path that the walk was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many names below the start; 0 for the start itself.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Its attributes; of a symbolic link its own.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

/// Iterator over a tree, from [`Volume::walk`].
///
/// An error concerns the path that it names; the walk goes on with the rest. If a directory can't
/// be read, its entry comes before the error. A directory that is met a second time (only a damaged
/// file system has one) is reported and not entered again, so that every walk ends.
#[derive(Debug)]
pub struct Walk {
    volume: Volume,
    start: Option<PathBuf>,
    stack: Vec<ReadDir>,
    entered: HashSet<u64>,
    /// What is wrong with the directory whose entry was handed out last.
    error: Option<Error>,
}

impl Walk {
    pub(crate) fn new(volume: &Volume, start: PathBuf) -> Self {
        Self {
            volume: volume.clone(),
            start: Some(start),
            stack: Vec::new(),
            entered: HashSet::new(),
            error: None,
        }
    }

    fn enter(&mut self, path: &Path, metadata: &Metadata) -> Result<()> {
        if !self.entered.insert(metadata.ino()) {
            let error = pagefence_vfs::Error::Corrupt {
                what: "the directory is in two places".to_owned(),
                place: Place {
                    inode: Some(metadata.ino()),
                    block: None,
                },
            };
            return Err(Error::at(path, error));
        }
        let dir = ReadDir::open(&self.volume, path.to_path_buf(), metadata.0.id)?.with_attr();
        self.stack.push(dir);
        Ok(())
    }

    fn begin(&mut self, start: PathBuf) -> Result<WalkEntry> {
        let attr = self.volume.resolve(&start, Follow::NotLast)?;
        Ok(self.found(start, 0, Metadata(attr)))
    }

    fn found(&mut self, path: PathBuf, depth: usize, metadata: Metadata) -> WalkEntry {
        if metadata.is_dir() {
            self.error = self.enter(&path, &metadata).err();
        }
        WalkEntry {
            path,
            depth,
            metadata,
        }
    }

    fn step(&mut self, entry: &DirEntry) -> Result<WalkEntry> {
        let depth = self.stack.len();
        let metadata = entry.metadata()?;
        Ok(self.found(entry.path(), depth, metadata))
    }
}

impl Iterator for Walk {
    type Item = Result<WalkEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.error.take() {
            return Some(Err(error));
        }
        if let Some(start) = self.start.take() {
            return Some(self.begin(start));
        }
        loop {
            let top = self.stack.last_mut()?;
            match top.next() {
                Some(Ok(entry)) => return Some(self.step(&entry)),
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.stack.pop();
                }
            }
        }
    }
}
