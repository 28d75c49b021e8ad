//! What a check tells as it goes: findings, and how far it is.

use std::fmt;
use std::ops::ControlFlow;

use pagefence_ext4_format::{BlockNo, GroupNo, InodeNo};

use super::{FINDINGS_MAX, Step, Stop};

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// The superblock.
    Superblock,
    /// The journal.
    Journal,
    /// A block group: its descriptor, bitmaps or counts.
    Group(GroupNo),
    /// An inode: its record, blocks, attributes, names or links.
    Inode(InodeNo),
    /// A block that belongs to no inode, or to several.
    Block(BlockNo),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::Journal => f.write_str("journal"),
            Self::Group(number) => write!(f, "group {number}"),
            Self::Inode(number) => write!(f, "inode {number}"),
            Self::Block(number) => write!(f, "block {number}"),
        }
    }
}

/// Something that is not as it should be. Printed, it is one line: control characters of names
/// are escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Where.
    pub subject: Subject,
    /// What.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.what)
    }
}

/// A part of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Group descriptors; a unit is a group.
    Descriptors,
    /// Inodes and their blocks; a unit is a group.
    Inodes,
    /// Directories; a unit is one.
    Directories,
    /// Links; a unit is a group.
    Links,
    /// Bitmaps and counts; a unit is a group.
    Bitmaps,
    /// Quotas; a unit is a file of them.
    Quotas,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "group descriptors",
            Self::Inodes => "inodes",
            Self::Directories => "directories",
            Self::Links => "links",
            Self::Bitmaps => "bitmaps",
            Self::Quotas => "quotas",
        })
    }
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// In which part.
    pub stage: Stage,
    /// Units of it that are done.
    pub done: u64,
    /// Units that there are.
    pub total: u64,
}

/// What a check tells.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A finding.
    Finding(&'a Finding),
    /// Progress, at least at the start of each part.
    Progress(Progress),
}

/// Where findings go.
pub(super) struct Report<'a> {
    event: &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    findings: u64,
    /// Nothing is told: something is gone over again.
    pub(super) is_muted: bool,
}

impl<'a> Report<'a> {
    pub(super) fn new(event: &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> Self {
        Self {
            event,
            findings: 0,
            is_muted: false,
        }
    }

    pub(super) fn findings(&self) -> u64 {
        self.findings
    }

    /// Tells a finding.
    pub(super) fn find(&mut self, subject: Subject, what: impl fmt::Display) -> Step {
        if self.is_muted {
            return Ok(());
        }
        self.findings = self.findings.saturating_add(1);
        let what = what.to_string();
        let told = (self.event)(Event::Finding(&Finding { subject, what }));
        if told.is_break() || self.findings >= FINDINGS_MAX {
            return Err(Stop::Enough);
        }
        Ok(())
    }

    pub(super) fn inode(&mut self, number: InodeNo, what: impl fmt::Display) -> Step {
        self.find(Subject::Inode(number), what)
    }

    pub(super) fn group(&mut self, number: GroupNo, what: impl fmt::Display) -> Step {
        self.find(Subject::Group(number), what)
    }

    pub(super) fn superblock(&mut self, what: impl fmt::Display) -> Step {
        self.find(Subject::Superblock, what)
    }

    pub(super) fn journal(&mut self, what: impl fmt::Display) -> Step {
        self.find(Subject::Journal, what)
    }

    /// Tells progress.
    pub(super) fn progress(&mut self, stage: Stage, done: u64, total: u64) -> Step {
        if self.is_muted {
            return Ok(());
        }
        match (self.event)(Event::Progress(Progress { stage, done, total })) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Stop::Enough),
        }
    }
}

/// A name from disk as part of a line.
pub(super) fn shown(name: &[u8]) -> impl fmt::Display {
    format!("\"{}\"", name.escape_ascii())
}
