//! Trials that are chores of their own: processes that are killed, threads that rage, maps of two
//! processes.

use std::time::Instant;

use anyhow::Result;
use pagefence_proofs::{Plan, Row};

use crate::cgroup::MemoryCgroup;
use crate::command::{Needs, require};
use crate::kill::{Found, Kills, Shortage};
use crate::{memory, soak, storm};

/// A row of what `needs` allow to be tried, or that says what is missing.
fn row(
    what: &str,
    plan: &Plan,
    needs: &Needs<'_>,
    trial: impl FnOnce(&mut Row) -> Result<()>,
) -> Result<Row> {
    let mut row = Row::new(what, plan.seed);
    match require(needs) {
        Ok(()) => trial(&mut row)?,
        Err(lack) => row.skipped.push(lack.to_string()),
    }
    Ok(row)
}

/// What a mount of an image takes that mke2fs makes.
const MOUNT: Needs<'_> = Needs {
    programs: &["mke2fs", "e2fsck"],
    fuse: true,
};

/// Servers under fsynced writes, each of which comes to an end or nearly, until the time is over.
fn rounds(
    row: &mut Row,
    plan: &Plan,
    kills: &Kills,
    note: impl Fn(&mut Row, &Found),
) -> Result<()> {
    let begun = Instant::now();
    let mut seed = plan.seed;
    while seed == plan.seed || begun.elapsed() < plan.time {
        let kind = ["ext4", "ext3", "ext2"][usize::try_from(seed % 3)?];
        let (found, outcome) = kills.round(kind, seed);
        note(row, &found);
        row.count("promises kept", found.promises);
        if let Err(error) = outcome {
            row.failures.push(format!("{kind}, seed {seed}: {error:#}"));
        }
        seed += 1;
    }
    Ok(())
}

/// The server is killed under fsynced writes, maps and checks, until the time is over.
pub(crate) fn kill(plan: &Plan) -> Result<Row> {
    let what = "kill -9 under fsynced writes, maps and checks";
    row(what, plan, &MOUNT, |row| {
        rounds(row, plan, &Kills::new()?, |row, found| {
            row.count("kills", found.kills);
            row.count("stamps of maps kept", found.stamps);
            row.count("maps ended by SIGBUS", found.by_signal);
            row.count("by an error", found.by_error);
            row.count("checks of mounts", found.checks);
            row.count("of images", found.images);
        })
    })
}

/// The server gets no more memory under fsynced writes: it goes on, or dies, and loses nothing.
pub(crate) fn memory_that_ends(plan: &Plan) -> Result<Row> {
    row("no more memory under fsynced writes", plan, &MOUNT, |row| {
        let kills = Kills::starving(Shortage::AddressSpace)?;
        rounds(row, plan, &kills, |row, found| {
            row.count("servers", found.kills);
            row.count("ended by it", found.starved);
        })
    })
}

/// As [`memory_that_ends`], in a control group, whose memory is that of the image's pages, too.
pub(crate) fn cgroup_that_ends(plan: &Plan) -> Result<Row> {
    let what = "a memory cgroup's limit under fsynced writes";
    row(what, plan, &MOUNT, |row| {
        if let Err(lack) = MemoryCgroup::new(1 << 30) {
            row.skipped.push(format!("{lack:#}"));
            return Ok(());
        }
        let kills = Kills::starving(Shortage::Cgroup)?;
        rounds(row, plan, &kills, |row, found| {
            row.count("servers", found.kills);
            row.count("killed by the kernel", found.by_kernel);
        })
    })
}

/// The server's memory stays within its budget, whatever is read.
pub(crate) fn budget(plan: &Plan) -> Result<Row> {
    let needs = Needs {
        programs: &["mke2fs", "losetup", "mount", "umount", "find"],
        fuse: true,
    };
    row("the budget of the cache", plan, &needs, |row| {
        row.count("servers", 1);
        if !memory::run(&memory::Arguments::short())? {
            row.failures.push("it took more".to_owned());
        }
        Ok(())
    })
}

/// Threads that do to files all that the library can do, on volumes that are nearly full.
pub(crate) fn storm(plan: &Plan) -> Result<Row> {
    let needs = Needs {
        programs: &["e2fsck"],
        fuse: false,
    };
    let volumes = [
        ("ext3", 1024),
        ("ext4", 1024),
        ("ext3", 4096),
        ("ext4", 4096),
    ];
    row(
        "threads on a volume that is nearly full",
        plan,
        &needs,
        |row| {
            let time = plan.time / u32::try_from(volumes.len())?;
            for (kind, block_size) in volumes {
                let (operations, outcome) = storm::prove(kind, block_size, plan.seed, time)?;
                row.count("operations", operations);
                if let Err(error) = outcome {
                    row.failures.push(format!("{kind} {block_size}: {error:#}"));
                }
            }
            Ok(())
        },
    )
}

/// Files of a mount that two processes map, while others change them.
pub(crate) fn soak(plan: &Plan) -> Result<Row> {
    row("maps of two processes on a mount", plan, &MOUNT, |row| {
        let (operations, stale) = soak::prove(plan.seed, plan.time)?;
        row.count("operations", operations);
        if stale > 0 {
            row.failures.push(format!("{stale} stale"));
        }
        Ok(())
    })
}
