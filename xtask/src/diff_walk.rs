//! `cargo xtask diff-walk IMAGE… | DIR`: pagefence's mount of an image against the kernel's.
//!
//! A clean image is compared as it is, and must not change by a byte. One that needs recovery is
//! compared three times: read with `ro` and with `noload` (it must not change), against the
//! replayed journal without the orphans dealt with; and mounted with `rw`, against the kernel's
//! own recovery. Then e2fsck must find the same, nothing, after ours, after the kernel's and after
//! its own.

mod attributes;
pub(crate) mod check;
mod contents;
mod inode_flags;
pub(crate) mod report;
pub(crate) mod tree;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::command::{Needs, output, require, run as run_program};
use crate::images::pending;
use crate::mounts::{Access, KernelMount, ServedMount, Server, pagefence_binary};
use crate::scratch::Scratch;
use crate::sparse;
use report::Report;

/// Arguments of `diff-walk`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Images, or directories whose `*.img` are taken.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// The binary to try; built in the release profile unless given.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// More options for every mount by pagefence, separated by commas.
    #[arg(long, default_value = "")]
    options: String,
}

/// Runs the chore; `true` if nothing differs.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    require(&Needs {
        programs: &["e2fsck", "debugfs", "lsattr", "losetup", "mount", "umount"],
        fuse: true,
    })?;
    let images = images_in(&arguments.images)?;
    ensure!(!images.is_empty(), "there is no image to compare");
    let walker = Walker {
        server: Server::Pagefence(pagefence_binary(arguments.binary.as_deref())?),
        options: arguments.options.clone(),
    };
    let mut report = Report::default();
    for image in &images {
        report.start_image(image);
        // One image that can't be compared is a mismatch of its own; the others still count.
        if let Err(error) = walker.compare_image(image, &mut report) {
            report.mismatch(Path::new("/"), &format!("{error:#}"));
        }
        report.end_image();
    }
    println!("{}", report.summary());
    Ok(report.mismatches() == 0)
}

fn images_in(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for path in given {
        if !path.is_dir() {
            images.push(path.clone());
            continue;
        }
        let entries =
            std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
        for entry in entries {
            let entry = entry?.path();
            if entry
                .extension()
                .is_some_and(|extension| extension == "img")
            {
                images.push(entry);
            }
        }
    }
    images.sort();
    Ok(images)
}

struct Walker {
    server: Server,
    options: String,
}

/// What two trees are compared in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// Whether the counts of free blocks and inodes are compared: what orphans hold may be
    /// counted either way until they are dealt with.
    pub(crate) free_counts: bool,
    /// When a recovery that is compared began, in seconds since the epoch: what it touches, it
    /// stamps with its own time, which no two recoveries share.
    pub(crate) recovery_began: Option<i64>,
    /// One is a copy of the other: numbers of inodes and what the format decides may differ.
    pub(crate) is_copy: bool,
}

/// Has pagefence (by `server`), the kernel and e2fsck each recover a copy of `image`, and compares
/// what comes out; the image stays as it is.
pub(crate) fn recover_three_ways(
    server: &Server,
    image: &Path,
    scratch: &Scratch,
    report: &mut Report,
) -> Result<()> {
    let walker = Walker {
        server: server.clone(),
        options: String::new(),
    };
    report.start_image(image);
    report.start_pass("rw");
    walker.compare_recoveries(image, scratch, report)
}

impl Walker {
    fn compare_image(&self, image: &Path, report: &mut Report) -> Result<()> {
        let state = pending(image)?;
        let scratch = Scratch::new()?;
        let before = sparse::fingerprint(image)?;
        if state.any() {
            let replayed = scratch.join("replayed.img");
            sparse::copy(image, &replayed)?;
            let recovery_began = replay_without_orphans(&replayed)?;
            let scope = Scope {
                free_counts: !pending(&replayed)?.orphans && !state.orphans,
                recovery_began,
                is_copy: false,
            };
            for options in ["ro", "ro,noload"] {
                report.start_pass(options);
                self.compare_mounts(&replayed, image, options, scope, report)?;
                ensure!(
                    sparse::fingerprint(image)? == before,
                    "the image changed under {options}"
                );
            }
            report.start_pass("rw");
            self.compare_recoveries(image, &scratch, report)?;
        } else {
            report.start_pass("ro");
            let scope = Scope {
                free_counts: true,
                recovery_began: None,
                is_copy: false,
            };
            if let Some(reason) = kernel_refuses(image)? {
                report.skip(&reason);
                return Ok(());
            }
            // A copy, since pagefence refuses an image that the kernel has mounted.
            let reference = scratch.join("reference.img");
            sparse::copy(image, &reference)?;
            self.compare_mounts(&reference, image, "ro", scope, report)?;
        }
        ensure!(
            sparse::fingerprint(image)? == before,
            "the image changed, though it was only read"
        );
        Ok(())
    }

    fn served(&self, image: &Path, directory: &Path, options: &str) -> Result<ServedMount> {
        let options = [options, self.options.as_str()]
            .into_iter()
            .filter(|one| !one.is_empty())
            .collect::<Vec<_>>()
            .join(",");
        ServedMount::new(&self.server, image, directory, &options)
    }

    /// Mounts `reference` read-only by the kernel and `image` by pagefence, and compares.
    fn compare_mounts(
        &self,
        reference: &Path,
        image: &Path,
        options: &str,
        scope: Scope,
        report: &mut Report,
    ) -> Result<()> {
        let scratch = Scratch::new()?;
        let (theirs_at, ours_at) = (
            scratch.directory("kernel")?,
            scratch.directory("pagefence")?,
        );
        let theirs = KernelMount::new(reference, &theirs_at, Access::ReadOnly, "ro")?;
        let ours = self.served(image, &ours_at, options)?;
        let compared = tree::compare(&theirs_at, &ours_at, scope, report);
        ours.unmount()?;
        theirs.unmount()?;
        compared
    }

    /// Lets pagefence, the kernel and e2fsck each recover a copy, and compares what comes out.
    fn compare_recoveries(
        &self,
        image: &Path,
        scratch: &Scratch,
        report: &mut Report,
    ) -> Result<()> {
        let (ours, theirs, checked) = (
            scratch.join("ours.img"),
            scratch.join("theirs.img"),
            scratch.join("checked.img"),
        );
        for copy in [&ours, &theirs, &checked] {
            sparse::copy(image, copy)?;
        }
        let scope = Scope {
            free_counts: true,
            recovery_began: Some(now()?),
            is_copy: false,
        };
        let (ours_at, theirs_at) = (scratch.directory("ours")?, scratch.directory("theirs")?);
        let their_mount = KernelMount::new(&theirs, &theirs_at, Access::ReadWrite, "rw,noatime")?;
        let our_mount = self.served(&ours, &ours_at, "rw,noatime")?;
        let compared = tree::compare(&theirs_at, &ours_at, scope, report);
        our_mount.unmount()?;
        their_mount.unmount()?;
        compared?;
        let ours_after = pending(&ours)?;
        if ours_after.any() {
            report.mismatch(
                Path::new("/"),
                &format!("after our recovery the image still says {ours_after:?}"),
            );
        }
        check::compare(&ours, &theirs, &checked, report)
    }
}

fn now() -> Result<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(i64::try_from(now.as_secs())?)
}

/// Replays the journal and leaves orphans as they are. debugfs does that, except for fast
/// commits. Those the kernel replays, which deals with the orphans too and stamps directories with
/// its own time: the answer is then when it began. (e2fsck 1.47.0 replays fast commits as well,
/// but takes blocks for extent trees that a later tag names as data: then two files own a block.)
fn replay_without_orphans(image: &Path) -> Result<Option<i64>> {
    let mut recovery_began = None;
    let features = run_program(
        "debugfs",
        ["-R".as_ref(), "features".as_ref(), image.as_os_str()],
    )?;
    if features.contains("fast_commit") {
        recovery_began = Some(now()?);
        let scratch = Scratch::new()?;
        let directory = scratch.directory("mnt")?;
        KernelMount::new(image, &directory, Access::ReadWrite, "rw,noatime")?.unmount()?;
    } else if pending(image)?.journal {
        output(
            "debugfs",
            ["-w", "-R", "journal_run"]
                .map(AsRef::as_ref)
                .into_iter()
                .chain([image.as_os_str()]),
        )?;
    }
    ensure!(
        !pending(image)?.journal,
        "neither debugfs nor the kernel replays the journal of the copy"
    );
    Ok(recovery_began)
}

/// Why the kernel does not mount an image that needs no recovery, if it doesn't: then there is
/// nothing to compare with.
fn kernel_refuses(image: &Path) -> Result<Option<String>> {
    let scratch = Scratch::new()?;
    let directory = scratch.directory("mnt")?;
    match KernelMount::new(image, &directory, Access::ReadOnly, "ro") {
        Ok(mount) => mount.unmount().map(|()| None),
        Err(error) => Ok(Some(format!("{error:#}"))),
    }
}
