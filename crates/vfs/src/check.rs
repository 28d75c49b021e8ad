//! What a check of a whole file system tells.

use std::fmt;

/// What a check tells as it goes.
#[derive(Clone, Copy)]
pub enum CheckEvent<'a> {
    /// Something is not as it should be: one line, without control characters.
    Finding(&'a dyn fmt::Display),
    /// How far it is.
    Progress(CheckProgress<'a>),
}

/// How far a check is.
#[derive(Clone, Copy)]
pub struct CheckProgress<'a> {
    /// The part of it, in a few words.
    pub stage: &'a dyn fmt::Display,
    /// Units of that part that are done.
    pub done: u64,
    /// Units that there are.
    pub total: u64,
}

/// What a check came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckSummary {
    /// Findings; none if the file system is sound.
    pub findings: u64,
    /// The check came to its end.
    pub is_complete: bool,
    /// A journal was replayed in memory, and what was checked is what came of it.
    pub was_replayed: bool,
    /// Inodes in use.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Inodes that wait to be deleted or cut short, which is no damage.
    pub orphans: u64,
    /// Blocks in use.
    pub blocks: u64,
}
