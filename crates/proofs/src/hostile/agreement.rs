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

/// What the check finds in a case and e2fsck passes over: what is said of what, if this is in the name of
/// the field.
struct OnlyOurs {
    field: &'static str,
    subjects: &'static [&'static str],
    said: &'static str,
}

const fn ours(field: &'static str, said: &'static str) -> OnlyOurs {
    OnlyOurs {
        field,
        subjects: &[""],
        said,
    }
}

/// Of inodes without a name: those that are reserved, the orphan file, quotas.
const fn of_hidden(said: &'static str) -> OnlyOurs {
    OnlyOurs {
        field: "",
        subjects: &[
            "inode 1: ",
            "inode 3: ",
            "inode 4: ",
            "inode 5: ",
            "inode 6: ",
            "inode 7: ",
            "inode 8: ",
            "inode 9: ",
            "inode 10: ",
            "inode 12: ",
            "journal: ",
        ],
        said,
    }
}

const ONLY_OURS: [OnlyOurs; 35] = [
    // Linux refuses it, and so do we. e2fsck looks at names of attributes by their length alone
    // (`check_xattrs`), at extents past the last block that there can be (`ext4_valid_extent`), at the
    // depth of nodes (`__ext4_ext_check`) and at the first block of the log (`journal_load`) not at all.
    ours("", "the name of an attribute contains NUL"),
    ours("ee_block", " reach past 4294967295"),
    ours("eh_depth", "an extent node is of depth"),
    ours(
        "journal superblock",
        "field s_first of the journal's superblock",
    ),
    ours("s_num_fc_blks", "leaves too few blocks"),
    // Of inodes without a name, e2fsck looks at the map alone; or it takes its copy of it.
    of_hidden("attribute block"),
    of_hidden("bytes of extra fields in an inode with room"),
    of_hidden("is of no kind of file"),
    of_hidden("the magic of an extent node is"),
    of_hidden("is no journal"),
    of_hidden("a journal of "),
    of_hidden("an encrypted journal"),
    of_hidden("of the journal is not mapped once"),
    // High halves: counts have them without 64bit, too (`ext4_blocks_count`), and times.
    ours("s_r_blocks_count_hi", " blocks are reserved"),
    ours("s_blocks_count_hi", " blocks, which no file system has"),
    ours("s_mtime_hi", "it was last mounted"),
    ours("s_wtime_hi", "it was last written"),
    // Linux refuses both a journal in an inode and one on a device, whatever their UUIDs.
    ours("s_journal_dev", "both in an inode and on another device"),
    // e2fsck takes every link of less than 60 bytes for one with its target in the inode.
    ours("i_size_lo", "whose target does not end there"),
    // e2fsck counts the blocks of a directory in 32 bits, compares no sizes of attribute inodes (Linux
    // does: `ext4_xattr_inode_get`), and hashes a value with what follows it in its last word.
    ours("i_size_high", "bytes with blocks up to byte"),
    ours("e_value_size", "is no attribute inode of"),
    ours("e_value_size", "the hash of an attribute is"),
    // It looks at a fourth of what the resize inode keeps, and for an inode of quotas only where inodes
    // were ever in use.
    ours("pointer", "leads to a wrong block"),
    ours("s_reserved_gdt_blocks", "leads to a wrong block"),
    ours("s_prj_quota_inum", "quotas of projects in inode"),
    // It reads all entries of quota files, whatever leads to them, of a file of any kind. Linux knows a
    // file by its magic, and an entry by its way; it gives a block back that has no entries.
    ours("dqh_magic", "the magic of the quotas"),
    ours("dqdh_entries", " of quotas has "),
    ours("reference", " of quotas leads to block "),
    ours("reference", " of quotas is of the tree"),
    ours("i_links_count", "it holds quotas, and has no link"),
    // With `-n`, e2fsck looks at no list of orphans.
    ours("s_last_orphan", "the orphan list"),
    // e2fsck does not compare the hashes of different levels: Linux, too, then finds no such name.
    ours("hash", "its hashes go on past those of the next block"),
    ours("hash", "does not belong into file block"),
    // Linux hands out no inode that says so (`check_igot_inode`), without ea_inode too.
    ours("", "leads to the attribute inode"),
    ours("", "an attribute inode that no attribute leads to"),
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

/// What e2fsck finds in a case and the check passes over, line by line, if this is in the name of the field.
const ONLY_E2FSCK: [(&str, &str); 2] = [
    // A feature that never came to be, and of which Linux takes no notice.
    ("feature", "has unsupported feature(s): FEATURE_R2"),
    // For e2fsck, some fields then mean something else. Linux sets only what it writes itself apart.
    ("s_creator_os", ""),
];

/// What e2fsck says after whatever it found.
const AFTER: [&str; 3] = [
    "Fix? no",
    "Clear? no",
    "e2fsck: Get a newer version of e2fsck!",
];
const AT_END: &str = "********** WARNING: Filesystem still has errors **********";

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

/// What the check finds, and whether e2fsck agrees.
pub(super) struct Compared {
    pub(super) verdict: Verdict,
    /// The check finds nothing.
    pub(super) is_clean: bool,
}

/// Compares them on an image of which `field` was changed. The check is bounded as whoever opens the
/// image is.
///
/// # Errors
/// One finds something and the other does not; the check reads without end.
pub(super) fn compare(
    damaged: &MemoryDevice,
    block_size: u32,
    is_dirty: bool,
    field: Option<&str>,
) -> Result<Compared, String> {
    let found = watched_findings(damaged, block_size)?;
    let compared = |verdict| Compared {
        verdict,
        is_clean: found.is_empty(),
    };
    let Some(field) = field else {
        return Ok(compared(Verdict::Alone));
    };
    if !is_dirty {
        return judge(field, &found, e2fsck::check_to_its_end(damaged)).map(compared);
    }
    let device = Arc::new(damaged.fork());
    let options = Options::new().write(true).cache(16 << 20);
    let opened = Volume::open_device(Arc::clone(&device) as _, options);
    let is_closed = opened.is_ok_and(|volume| volume.close().is_ok());
    let asks = |layout: Layout| layout.superblock.has_incompat(Incompat::RECOVER);
    if !is_closed || Layout::of(device.fork()).is_none_or(asks) {
        return Ok(compared(Verdict::Alone));
    }
    let recovered = watched_findings(&device, block_size)?;
    judge(field, &recovered, e2fsck::check_to_its_end(&device)).map(compared)
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

/// `said` is nothing if e2fsck did not come to its end.
fn judge(
    field: &str,
    found: &[String],
    said: Option<Result<(), String>>,
) -> Result<Verdict, String> {
    let Some(said) = said else {
        return Ok(Verdict::Alone);
    };
    match (found, said) {
        ([], Ok(())) => Ok(Verdict::Sound),
        ([_, ..], Err(_)) => Ok(Verdict::Damaged),
        ([], Err(said)) if is_known_of_e2fsck(field, &said) => Ok(Verdict::Known),
        ([], Err(said)) => Err(format!("the check finds nothing, but {said}")),
        (found, Ok(())) => {
            let is_known = |line: &String| {
                ONLY_OURS.iter().any(|known| {
                    let is_of = |subject: &&str| line.starts_with(*subject);
                    field.contains(known.field)
                        && known.subjects.iter().any(is_of)
                        && line.contains(known.said)
                })
            };
            let follows = |line: &String| FOLLOWS.iter().any(|known| line.contains(known));
            if found.iter().any(is_known)
                && found.iter().all(|line| is_known(line) || follows(line))
            {
                return Ok(Verdict::Known);
            }
            Err(format!("e2fsck finds nothing, but: {}", found.join("; ")))
        }
    }
}

/// Whether each line that e2fsck says is known.
fn is_known_of_e2fsck(field: &str, said: &str) -> bool {
    let is_known = |line: &str| {
        let of_field = |(of, known): &(&str, &str)| field.contains(of) && line.contains(known);
        ONLY_E2FSCK.iter().any(of_field)
    };
    // The first tells how it ended.
    let lines = said.lines().skip(1).map(str::trim);
    let mut lines = lines.filter(|line| !AFTER.contains(line) && !line.ends_with(AT_END));
    let mut is_any = false;
    lines.all(|line| {
        is_any = true;
        is_known(line)
    }) && is_any
}

#[test]
fn one_that_finds_something_alone_is_told() {
    let line = |what: &str| vec![what.to_owned()];
    let said = |lines: &str| Some(Err(format!("e2fsck -fn, exit status: 4:\n{lines}")));
    let nothing = || Some(Ok(()));
    assert_eq!(judge("", &[], nothing()), Ok(Verdict::Sound));
    assert_eq!(
        judge("", &line("inode 2: a hole"), said("a hole")),
        Ok(Verdict::Damaged)
    );
    assert!(judge("", &[], said("a hole")).is_err());
    assert!(judge("", &line("inode 2: a hole"), nothing()).is_err());
    assert_eq!(judge("", &[], None), Ok(Verdict::Alone));
    // What follows from something needs something.
    assert!(judge("", &line("group 0: free clusters 1, counted 2"), nothing()).is_err());
    let known = line("inode 8: is no journal");
    assert_eq!(judge("", &known, nothing()), Ok(Verdict::Known));
    // Of others, it is not.
    assert!(judge("", &line("inode 20: is no journal"), nothing()).is_err());
    let known = line("superblock: 9 of 8 blocks are reserved");
    assert!(judge("superblock: s_r_blocks_count_lo = 0x9", &known, nothing()).is_err());
    // Every line has to be known.
    let known = "e2fsck: image has unsupported feature(s): FEATURE_R2";
    let judge = |lines: &str| judge("compat features 0", &[], said(lines));
    assert_eq!(judge(known), Ok(Verdict::Known));
    assert!(judge(&format!("a hole\n{known}")).is_err());
    assert!(judge("Fix? no").is_err());
    assert!(judge(&format!("a hole. Fix? no\n{known}")).is_err());
}
