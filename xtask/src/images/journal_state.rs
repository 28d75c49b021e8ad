//! What an image's superblock and journal say about recovery.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::command::run;

/// Where the superblock starts.
const SUPERBLOCK_OFFSET: u64 = 1024;
/// Offsets of fields within it.
const INCOMPAT_OFFSET: u64 = 0x60;
const RO_COMPAT_OFFSET: u64 = 0x64;
const LAST_ORPHAN_OFFSET: u64 = 0xe8;
/// The incompatible feature "the journal needs recovery".
const INCOMPAT_RECOVER: u32 = 0x4;
/// The read-only-compatible feature "the orphan file may have entries".
const RO_COMPAT_ORPHAN_PRESENT: u32 = 0x1_0000;

/// What has to be done before the tree is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// The journal holds transactions.
    pub(crate) journal: bool,
    /// Inodes wait for their deletion or truncation.
    pub(crate) orphans: bool,
}

impl Pending {
    /// Whether anything is to be done.
    pub(crate) fn any(self) -> bool {
        self.journal || self.orphans
    }
}

/// Reads an image's superblock.
pub(crate) fn pending(image: &Path) -> Result<Pending> {
    let file = File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let field = |offset: u64| -> Result<u32> {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, SUPERBLOCK_OFFSET + offset)?;
        Ok(u32::from_le_bytes(bytes))
    };
    Ok(Pending {
        journal: field(INCOMPAT_OFFSET)? & INCOMPAT_RECOVER != 0,
        orphans: field(LAST_ORPHAN_OFFSET)? != 0
            || field(RO_COMPAT_OFFSET)? & RO_COMPAT_ORPHAN_PRESENT != 0,
    })
}

/// Where the log starts, and how long it is, in blocks of the journal.
pub(crate) fn log_start_and_length(image: &Path) -> Result<(u64, u64)> {
    let printed = run("dumpe2fs", ["-h".as_ref(), image.as_os_str()])?;
    let number = |label: &str| -> Result<u64> {
        printed
            .lines()
            .find_map(|line| line.strip_prefix(label))
            .and_then(|rest| rest.trim().parse().ok())
            .with_context(|| format!("dumpe2fs prints no {label}"))
    };
    Ok((number("Journal start:")?, number("Total journal blocks:")?))
}

/// What `debugfs logdump` finds in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) commits: usize,
    pub(crate) revoke_blocks: usize,
    /// The log goes on at the journal's first block.
    pub(crate) wraps: bool,
    /// Fast commits, whether or not they are newer than the last full one.
    pub(crate) fast_commits: usize,
}

/// Reads the log.
pub(crate) fn log(image: &Path) -> Result<Log> {
    let printed = run(
        "debugfs",
        ["-R".as_ref(), "logdump".as_ref(), image.as_os_str()],
    )?;
    Ok(parse_log(&printed))
}

fn parse_log(printed: &str) -> Log {
    let mut log = Log::default();
    let mut last_block = 0;
    for line in printed.lines() {
        if line.starts_with("tag TAIL") {
            log.fast_commits += 1;
        }
        if !line.starts_with("Found expected sequence") {
            continue;
        }
        if line.contains("(commit block)") {
            log.commits += 1;
        }
        if line.contains("(revoke table)") {
            log.revoke_blocks += 1;
        }
        let block = line
            .rsplit("block ")
            .next()
            .and_then(|rest| rest.trim().parse::<u64>().ok());
        if let Some(block) = block {
            log.wraps |= block < last_block;
            last_block = block;
        }
    }
    log
}

#[cfg(test)]
mod tests {
    use super::{Log, parse_log};

    #[test]
    fn a_log_that_wraps_is_told_from_one_that_does_not() {
        let line = |sequence: u32, kind: &str, block: u32| {
            format!("Found expected sequence {sequence}, type 1 ({kind}) at block {block}\n")
        };
        let straight = line(1, "descriptor block", 3) + &line(1, "commit block", 9);
        assert_eq!(
            parse_log(&straight),
            Log {
                commits: 1,
                revoke_blocks: 0,
                wraps: false,
                fast_commits: 0,
            }
        );
        let wrapping = straight
            + &line(2, "revoke table", 1)
            + &line(2, "commit block", 2)
            + "tag TAIL, tid 3\n";
        assert_eq!(
            parse_log(&wrapping),
            Log {
                commits: 2,
                revoke_blocks: 1,
                wraps: true,
                fast_commits: 1,
            }
        );
    }
}
