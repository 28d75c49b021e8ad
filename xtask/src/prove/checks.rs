//! Checks of volumes that are in use: of what is sound nothing may ever be found, whatever is changed
//! meanwhile, and e2fsck agrees at the end.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pagefence::check::Event;
use pagefence::{Kind, Mkfs, Options, Volume};
use pagefence_fs_model::races::{Churn, leave_room};
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::thread;
use pagefence_proofs::{Plan, Row};

use crate::command::{Needs, require};
use crate::diff_walk::check::complaints;
use crate::scratch::Scratch;

/// Types, with and without a journal, checksums, an orphan file.
const VOLUMES: [(Kind, &str); 5] = [
    (Kind::Ext4, "orphan_file"),
    (Kind::Ext3, ""),
    (Kind::Ext2, ""),
    (Kind::Ext4, "^metadata_csum,^orphan_file"),
    (Kind::Ext4, "^has_journal,^orphan_file"),
];
const IMAGE_BYTES: u64 = 16 << 20;
/// Bytes that are left to writers, so that what is freed is soon used again.
const ROOM: u64 = 3 << 20;
const BLOCK_SIZE: u32 = 1024;
/// Threads that change things.
const WRITERS: u64 = 3;
/// Findings of a check that are told.
const TOLD_MAX: usize = 5;

/// Volumes under random work are checked again and again, until the time is over.
pub(crate) fn beside_writers(plan: &Plan) -> Result<Row> {
    let mut row = Row::new("online check beside writers", plan.seed);
    let needs = Needs {
        programs: &["e2fsck"],
        fuse: false,
    };
    if let Err(lack) = require(&needs) {
        row.skipped.push(lack.to_string());
        return Ok(row);
    }
    let time = plan.time / u32::try_from(VOLUMES.len())?;
    let scratch = Scratch::new()?;
    let image = scratch.join("checked.img");
    for (kind, features) in VOLUMES {
        if let Err(error) = check_one(&mut row, &image, kind, features, plan.seed, time) {
            let of = if features.is_empty() {
                "no features"
            } else {
                features
            };
            row.failures.push(format!("{kind}, {of}: {error:#}"));
        }
    }
    Ok(row)
}

fn check_one(
    row: &mut Row,
    image: &Path,
    kind: Kind,
    features: &str,
    seed: u64,
    time: Duration,
) -> Result<()> {
    let mkfs = Mkfs::new(kind).size(IMAGE_BYTES).block_size(BLOCK_SIZE);
    let mkfs = mkfs.overwrite(true);
    match features {
        "" => mkfs,
        features => mkfs.features(features),
    }
    .format(image)?;
    let options = Options::new()
        .write(true)
        .cache(16 << 20)
        .commit_interval(Duration::from_secs(1))
        .discard(true);
    let volume = Volume::open(image, options)?;
    leave_room(&*volume.file_system(), ROOM)?;
    let (is_over, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let outcome = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let (volume, is_over, changes) = (&volume, &is_over, &changes);
                let seed = seed.wrapping_mul(WRITERS).wrapping_add(number);
                scope.spawn(move || {
                    let fs = volume.file_system();
                    let mut churn = Churn::new(&*fs, seed).map_err(|error| error.to_string())?;
                    while !is_over.load(Ordering::Relaxed) {
                        churn.step()?;
                        changes.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, String>(())
                })
            })
            .collect();
        let checked = AtEnd(&is_over).check_until(row, &volume, time);
        let writers: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        for writer in writers {
            match writer {
                Ok(done) => done.map_err(anyhow::Error::msg).context("a writer")?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        checked
    });
    row.count("changes beside them", changes.into_inner());
    row.count("findings", 0);
    volume.close()?;
    outcome?;
    let summary = pagefence::check::check(image, 0, |_| ControlFlow::Continue(()))?;
    row.count("images held against e2fsck", 1);
    match complaints(image)? {
        Some(told) => anyhow::bail!("closed, e2fsck: {told}; the check: {summary:?}"),
        None => ensure!(
            summary.findings == 0 && summary.is_complete,
            "closed, e2fsck finds nothing, the check: {summary:?}"
        ),
    }
    Ok(())
}

/// Says that it is over, also if a check panics: then the writers end.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl AtEnd<'_> {
    /// Once at least; all that was found in the first check that found something.
    fn check_until(self, row: &mut Row, volume: &Volume, time: Duration) -> Result<()> {
        let begun = Instant::now();
        loop {
            let mut told = Vec::new();
            let summary = volume.check(|event| {
                match event {
                    Event::Finding(finding) if told.len() < TOLD_MAX => {
                        told.push(finding.to_string());
                    }
                    // What changes is changed between the parts of the check, too.
                    _ => thread::yield_now(),
                }
                ControlFlow::Continue(())
            });
            row.count("checks", 1);
            let summary = summary?;
            row.count("findings", summary.findings);
            ensure!(
                summary.findings == 0 && summary.is_complete,
                "{} findings: {}",
                summary.findings,
                told.join("; ")
            );
            if begun.elapsed() >= time {
                return Ok(());
            }
        }
    }
}
