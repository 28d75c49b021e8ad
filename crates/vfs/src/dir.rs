//! Entries of a directory and how they are handed over.

use std::ops::ControlFlow;

use crate::attr::{Attr, FileKind, InodeId};

/// A position in a directory, after an entry: where reading goes on.
///
/// 0 is the start. Other values mean nothing outside the directory that gave them; they stay
/// valid while entries are added, removed, and while the directory's blocks are split.
pub type Cookie = u64;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The inode it names.
    pub id: InodeId,
    /// Its kind, where the directory records it.
    pub kind: Option<FileKind>,
    /// Its name: never empty, no `/`, no NUL.
    pub name: &'a [u8],
    /// Where reading goes on after this entry.
    pub next: Cookie,
    /// The inode's attributes, if they were asked for and could be read; never for `.` and `..`.
    pub attr: Option<Attr>,
}

/// What takes entries. `Break` means that the entry did not fit: it was not taken, and will be
/// handed over again by the next call.
pub trait DirSink {
    /// Takes one entry.
    fn entry(&mut self, entry: &DirEntry<'_>) -> ControlFlow<()>;
}

impl<F: FnMut(&DirEntry<'_>) -> ControlFlow<()>> DirSink for F {
    fn entry(&mut self, entry: &DirEntry<'_>) -> ControlFlow<()> {
        self(entry)
    }
}
