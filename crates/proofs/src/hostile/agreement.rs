//! What the check finds in an image, held against `e2fsck -fn`: both find something, or neither.
//!
//! What e2fsck makes of a journal that waits to be replayed is another matter (with `-n` it does not
//! replay it): such an image is recovered first, and what was recovered is what both look at.

use std::ops::ControlFlow;
use std::sync::Arc;

use pagefence::check::{Event, Summary, check_device};
use pagefence::device::MemoryDevice;
use pagefence::{Options, Volume};
use pagefence_ext4_format::features::Incompat;

use super::device::Watched;
use super::layout::Layout;
use crate::e2fsck;

/// What the check finds and e2fsck passes over, by what is said of it.
const ONLY_OURS: [&str; 25] = [
    // Linux refuses it, and so do we. e2fsck looks at names of attributes by their length alone
    // (`check_xattrs`), at extents past the last block that there can be (`ext4_valid_extent`), at the
    // depth of nodes (`__ext4_ext_check`) and at the first block of the log (`journal_load`) not at all.
    "the name of an attribute contains NUL",
    " reach past 4294967295",
    "an extent node is of depth",
    "field s_first of the journal's superblock",
    // Of the journal and others without a name, e2fsck looks at the map alone, or it has a copy of it.
    "attribute block",
    "bytes of extra fields in an inode with room",
    "is no journal",
    "a journal of ",
    "an encrypted journal",
    "of the journal is not mapped once",
    // High halves: counts have them without 64bit, too (`ext4_blocks_count`), and times.
    " blocks are reserved",
    " blocks, which no file system has",
    "it was last mounted",
    "it was last written",
    // Linux refuses both a journal in an inode and one on a device, whatever their UUIDs.
    "its journal is on another device",
    // e2fsck counts the blocks of a directory in 32 bits, compares no sizes of attribute inodes (Linux
    // does: `ext4_xattr_inode_get`), hashes a value with what follows it in its last word, and looks at
    // those slots of the resize inode alone that are in use.
    "bytes with blocks up to byte",
    "is no attribute inode of",
    "the hash of an attribute is",
    "leads to a wrong block",
    // With `-n`, e2fsck looks at no list of orphans.
    "the orphan list",
    // e2fsck does not compare the hashes of different levels: Linux, too, then finds no such name.
    "its hashes go on past those of the next block",
    "does not belong into file block",
    // Linux hands out no inode that says so (`check_igot_inode`), without ea_inode too.
    "leads to the attribute inode",
    "an attribute inode that no attribute leads to",
    // It has fields of its own, which e2fsck knows.
    "it was made for the Hurd",
];

/// What follows from something else: blocks and attributes of an inode that can't be read are nobody's.
const FOLLOWS: [&str; 7] = [
    "sectors, counted",
    "bytes of inline data, with",
    "marked in use, but nobody's",
    "free clusters",
    "free blocks",
    "marked in use, but free",
    "free inodes",
];

/// What e2fsck finds and the check passes over.
const ONLY_E2FSCK: [&str; 2] = [
    // What is in quota files is not counted.
    "Update quota info for quota type",
    // Nobody looks where a value of no bytes lies, but e2fsck when it looks for inline data.
    "has INLINE_DATA_FL flag but extended attribute not found",
];

/// How it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Neither finds anything.
    Sound,
    /// Both do.
    Damaged,
    /// One does alone, for a reason that is known.
    Known,
    /// They were not compared: there is no e2fsck, or the journal can't be replayed here.
    #[default]
    Alone,
}

impl Verdict {
    /// What it is counted as.
    pub(super) const NAMES: [(Self, &str); 4] = [
        (Self::Damaged, "damaged for the check and e2fsck"),
        (Self::Sound, "sound for both"),
        (Self::Known, "for one, as is known"),
        (Self::Alone, "not compared"),
    ];
}

/// What the check says: what it finds, a line each, or why it can't look.
fn findings(watched: &Arc<Watched>) -> Vec<String> {
    let mut lines = Vec::new();
    let ended = check_device(Arc::clone(watched) as _, |event| {
        if let Event::Finding(finding) = event {
            lines.push(finding.to_string());
        }
        ControlFlow::Continue(())
    });
    match ended {
        Ok(Summary { findings, .. }) if findings == lines.len() as u64 => {}
        Ok(summary) => lines.push(format!("{} lines, and {summary:?}", lines.len())),
        Err(error) => lines.push(format!("refused: {error}")),
    }
    lines
}

/// Compares them. The check is bounded as whoever opens the image is.
///
/// # Errors
/// One finds something and the other does not; the check reads without end.
pub(super) fn compare(
    damaged: &MemoryDevice,
    block_size: u32,
    is_dirty: bool,
    asks_e2fsck: bool,
) -> Result<Verdict, String> {
    let found = watched_findings(damaged, block_size)?;
    if !asks_e2fsck {
        return Ok(Verdict::Alone);
    }
    if !is_dirty {
        return judge(&found, e2fsck::check(damaged));
    }
    let device = Arc::new(damaged.fork());
    let options = Options::new().write(true).cache(16 << 20);
    let opened = Volume::open_device(Arc::clone(&device) as _, options);
    let is_closed = opened.is_ok_and(|volume| volume.close().is_ok());
    let asks = |layout: Layout| layout.superblock.has_incompat(Incompat::RECOVER);
    if !is_closed || Layout::of(device.fork()).is_none_or(asks) {
        return Ok(Verdict::Alone);
    }
    judge(
        &watched_findings(&device, block_size)?,
        e2fsck::check(&device),
    )
}

fn watched_findings(device: &MemoryDevice, block_size: u32) -> Result<Vec<String>, String> {
    let device = Arc::new(device.fork());
    let watched = Arc::new(Watched::new(device, block_size, Vec::new()));
    let found = findings(&watched);
    match watched.wrong() {
        Some(wrong) => Err(format!("the check: {wrong}")),
        None => Ok(found),
    }
}

fn judge(found: &[String], said: Result<(), String>) -> Result<Verdict, String> {
    let is_in = |list: &[&str], line: &str| list.iter().any(|known| line.contains(known));
    match (found, said) {
        ([], Ok(())) => Ok(Verdict::Sound),
        ([_, ..], Err(_)) => Ok(Verdict::Damaged),
        ([], Err(said)) if is_in(&ONLY_E2FSCK, &said) => Ok(Verdict::Known),
        ([], Err(said)) => Err(format!("the check finds nothing, but {said}")),
        (found, Ok(())) => {
            let is_known = |line: &&String| is_in(&ONLY_OURS, line);
            let follows = |line: &String| is_in(&FOLLOWS, line);
            if found.iter().any(|line| is_known(&line))
                && found.iter().all(|line| is_known(&line) || follows(line))
            {
                return Ok(Verdict::Known);
            }
            Err(format!("e2fsck finds nothing, but: {}", found.join("; ")))
        }
    }
}

#[test]
fn one_that_finds_something_alone_is_told() {
    let line = |what: &str| vec![what.to_owned()];
    let said = || Err("e2fsck -fn, exit status: 4:".to_owned());
    assert_eq!(judge(&[], Ok(())), Ok(Verdict::Sound));
    assert_eq!(
        judge(&line("inode 2: a hole"), said()),
        Ok(Verdict::Damaged)
    );
    assert!(judge(&[], said()).is_err());
    assert!(judge(&line("inode 2: a hole"), Ok(())).is_err());
    // What follows from something needs something.
    assert!(judge(&line("group 0: free clusters 1, counted 2"), Ok(())).is_err());
    let known = line("inode 8 is no journal");
    assert_eq!(judge(&known, Ok(())), Ok(Verdict::Known));
}
