//! Images as a power cut leaves them: copied while mounted, with transactions in the journal that
//! are not yet in place.
//!
//! The kernel commits only when asked to (`commit=` is long), and a copy is taken while nothing
//! is asked, so what is copied is one state. Nevertheless each copy is recovered by e2fsck, on a
//! copy of its own, and must then be sound.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::dirty_work::{self, Scene};
use super::journal_state::{Log, log, pending};
use super::matrix::{EXT2, EXT3, EXT4_1_42, EXT4_1_45, EXT4_1_47, Variant, plain};
use super::{Outcome, image_path, make as making};
use crate::command::output;
use crate::mounts::{Access, KernelMount};
use crate::random::Random;
use crate::scratch::Scratch;
use crate::sparse;

/// How often a copy is taken anew if e2fsck does not recover it.
const ATTEMPTS: usize = 3;

/// What is done before the copy is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Files and directories made, renamed, deleted; extended attributes.
    Basic,
    /// Files deleted while open.
    Orphans,
    /// Directories deleted, and their blocks written again as data.
    Revokes,
    /// Journalled data that looks like journal blocks.
    Escapes,
    /// More transactions than the log holds, until it goes on at its start.
    Wrap,
    /// fsync after small changes, which fast commits record.
    FastCommit,
}

/// A dirty image to make.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) variant: Variant,
    work: &'static [Work],
    /// After unmounting, an inode on the orphan list with blocks past its size: a truncate that
    /// was interrupted. The journal is then clean.
    interrupted_truncate: bool,
}

fn case(
    name: &str,
    kind: &'static str,
    block_bytes: u32,
    features: &str,
    mount_options: &'static str,
    work: &'static [Work],
) -> Case {
    let mut variant = plain(&format!("dirty-{name}"), kind, block_bytes, features);
    variant.size_mib = 64;
    variant.mount_options = mount_options;
    if features.contains("has_journal") && !features.contains("fast_commit") {
        // Fast commits take a part of the journal, so they get one of the usual size. Else the smallest that mke2fs makes: 1024 blocks.
        variant.make_arguments = vec!["-J".to_owned(), format!("size={}", block_bytes / 1024)];
    }
    Case {
        variant,
        work,
        interrupted_truncate: false,
    }
}

fn without(base: &str, feature: &str) -> String {
    base.split(',')
        .filter(|one| *one != feature)
        .collect::<Vec<_>>()
        .join(",")
}

/// All of them, or one of each sort.
pub(crate) fn cases(quick: bool) -> Vec<Case> {
    use Work::{Basic, Escapes, FastCommit, Orphans, Revokes, Wrap};

    let fast_commit = format!("{EXT4_1_45},fast_commit");
    let inline_data = format!("{EXT4_1_45},inline_data");
    let without_64bit = without(EXT4_1_45, "64bit");
    let mut cases = vec![
        case("csum3-64bit", "ext4", 4096, EXT4_1_45, "", &[Basic]),
        case(
            "orphan-list",
            "ext4",
            1024,
            EXT4_1_45,
            "",
            &[Basic, Orphans],
        ),
        case(
            "orphan-file",
            "ext4",
            4096,
            EXT4_1_47,
            "",
            &[Basic, Orphans],
        ),
        case("revokes", "ext4", 1024, EXT4_1_45, "", &[Basic, Revokes]),
        case("wrap", "ext4", 1024, EXT4_1_45, "", &[Basic, Wrap]),
        case(
            "fast-commit",
            "ext4",
            4096,
            &fast_commit,
            "",
            &[Basic, FastCommit],
        ),
        case(
            "escapes",
            "ext3",
            1024,
            EXT3,
            "data=journal",
            &[Basic, Escapes],
        ),
        Case {
            interrupted_truncate: true,
            ..case("truncate", "ext4", 4096, EXT4_1_45, "", &[Basic])
        },
    ];
    if quick {
        return cases;
    }
    cases.extend([
        case(
            "csum3-64bit",
            "ext4",
            1024,
            EXT4_1_45,
            "",
            &[Basic, Revokes],
        ),
        case(
            "csum3-64bit",
            "ext4",
            2048,
            EXT4_1_45,
            "",
            &[Basic, Orphans, Revokes],
        ),
        case(
            "csum3",
            "ext4",
            4096,
            &without_64bit,
            "",
            &[Basic, Revokes, Orphans],
        ),
        case(
            "csum1",
            "ext4",
            1024,
            EXT4_1_42,
            "journal_checksum",
            &[Basic, Revokes],
        ),
        case(
            "async",
            "ext4",
            4096,
            EXT4_1_42,
            "data=writeback,journal_async_commit",
            &[Basic, Orphans],
        ),
        case(
            "async-csum3",
            "ext4",
            1024,
            EXT4_1_45,
            "data=writeback,journal_async_commit",
            &[Basic],
        ),
        case(
            "no-checksum",
            "ext4",
            4096,
            EXT4_1_42,
            "",
            &[Basic, Revokes, Orphans],
        ),
        case("ext3", "ext3", 1024, EXT3, "", &[Basic, Orphans]),
        case("ext3", "ext3", 4096, EXT3, "", &[Basic, Revokes]),
        case("ext2", "ext2", 1024, EXT2, "", &[Basic]),
        case(
            "escapes-csum3",
            "ext4",
            4096,
            EXT4_1_45,
            "data=journal",
            &[Basic, Escapes],
        ),
        case("wrap", "ext4", 4096, EXT4_1_45, "", &[Revokes, Wrap]),
        case(
            "wrap-revokes",
            "ext3",
            1024,
            EXT3,
            "",
            &[Revokes, Basic, Wrap],
        ),
        case(
            "wrap-journalled",
            "ext4",
            1024,
            EXT4_1_45,
            "data=journal",
            &[Escapes, Wrap],
        ),
        case(
            "orphan-file",
            "ext4",
            1024,
            EXT4_1_47,
            "",
            &[Basic, Orphans, Revokes],
        ),
        case(
            "fast-commit",
            "ext4",
            1024,
            &fast_commit,
            "",
            &[Orphans, Basic, FastCommit],
        ),
        case(
            "inline-data",
            "ext4",
            4096,
            &inline_data,
            "",
            &[Basic, Orphans],
        ),
        Case {
            interrupted_truncate: true,
            ..case("truncate", "ext3", 1024, EXT3, "", &[Basic])
        },
    ]);
    cases
}

/// Makes one.
pub(crate) fn make(case: &Case, directory: &Path, seed: u64) -> Result<Outcome> {
    let variant = &case.variant;
    let scratch = Scratch::within(directory)?;
    let live = scratch.join("live.img");
    if let Some(reason) = making::format(variant, &live)? {
        return Ok(Outcome::Skipped { reason });
    }
    let mount_point = scratch.directory("mnt")?;
    // ext2 has no commits to put off.
    let no_commits = if variant.features.contains("has_journal") {
        "commit=300"
    } else {
        ""
    };
    let mount = match making::mount(variant, &live, &mount_point, no_commits)? {
        Ok(mount) => mount,
        Err(reason) => return Ok(Outcome::Skipped { reason }),
    };
    let image = image_path(directory, &variant.name);
    let mut scene = Scene::new(
        &mount_point,
        &live,
        u64::from(variant.block_bytes),
        Random::for_name(seed, &variant.name),
    );
    let worked = case
        .work
        .iter()
        .try_for_each(|&work| dirty_work::perform(&mut scene, work))
        .and_then(|()| copy_while_mounted(&scene, &image, &scratch, case));
    // The files that are open and deleted are closed after the copy, before the unmount.
    drop(scene);
    mount.unmount()?;
    worked?;
    if case.interrupted_truncate {
        interrupt_truncate(&live, variant)?;
        sparse::copy(&live, &image)?;
    }
    let skipped = make_sure_it_is_dirty(case, &image)?;
    Ok(Outcome::Made { skipped })
}

fn copy_while_mounted(
    scene: &Scene<'_>,
    image: &Path,
    scratch: &Scratch,
    case: &Case,
) -> Result<()> {
    let recovered = scratch.join("recovered.img");
    let mut complaint = String::new();
    for _ in 0..ATTEMPTS {
        if case.variant.features.contains("has_journal") {
            scene.sync_last_file()?;
        } else {
            // Nothing recovers what is not in place.
            scene.settle()?;
        }
        sparse::copy(scene.image(), image)?;
        sparse::copy(image, &recovered)?;
        // e2fsck 1.47.0 can't be asked about fast commits: its replay may take a block as a node of
        // an extent tree that a later tag names as data, and then it complains of its own work.
        let by_e2fsck = if case.variant.features.contains("fast_commit") {
            None
        } else {
            recover_by_e2fsck(&recovered, case)?
        };
        let refusal = match by_e2fsck {
            Some(printed) => Some(printed),
            None => {
                sparse::copy(image, &recovered)?;
                recover_by_kernel(&recovered, scratch)?
            }
        };
        match refusal {
            None => return Ok(()),
            Some(printed) => complaint = printed,
        }
    }
    bail!("the copy can't be recovered: {complaint}");
}

/// Why the kernel does not recover the image, if it doesn't.
fn recover_by_kernel(image: &Path, scratch: &Scratch) -> Result<Option<String>> {
    let mount_point = scratch.join("recovered");
    std::fs::create_dir_all(&mount_point)?;
    match KernelMount::new(image, &mount_point, Access::ReadWrite, "rw") {
        Ok(mount) => mount.unmount().map(|()| None),
        Err(error) => Ok(Some(format!("{error:#}"))),
    }
}

/// What e2fsck complains of once it has replayed the journal and dealt with the orphans.
fn recover_by_e2fsck(image: &Path, case: &Case) -> Result<Option<String>> {
    // Preen recovers, and refuses whatever else it finds.
    let preen = output("e2fsck", ["-fp".as_ref(), image.as_os_str()])?;
    if !matches!(preen.status.code(), Some(0 | 1)) {
        return Ok(Some(String::from_utf8_lossy(&preen.stdout).into_owned()));
    }
    let check = output("e2fsck", ["-fn".as_ref(), image.as_os_str()])?;
    ensure!(
        check.status.success(),
        "{}: e2fsck -fn after e2fsck -fp: {}",
        case.variant.name,
        String::from_utf8_lossy(&check.stdout)
    );
    Ok(None)
}

/// Puts an inode on the orphan list whose blocks go on past its size.
fn interrupt_truncate(image: &Path, variant: &Variant) -> Result<()> {
    const NAME: &str = "/to-be-truncated";
    let printed = crate::command::run(
        "debugfs",
        [
            "-R".as_ref(),
            format!("stat {NAME}").as_ref(),
            image.as_os_str(),
        ],
    )?;
    let inode: u64 = printed
        .split_once("Inode: ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .context("debugfs does not say the inode's number")?;
    let size = 3 * variant.block_bytes + 5;
    making::debugfs(image, &format!("set_inode_field {NAME} size {size}"))?;
    making::debugfs(image, &format!("set_super_value last_orphan {inode}"))
}

/// The image is what its case says; returns what it lacks without being useless.
fn make_sure_it_is_dirty(case: &Case, image: &Path) -> Result<Vec<String>> {
    let mut lacks = Vec::new();
    let found = pending(image)?;
    if case.interrupted_truncate {
        ensure!(found.orphans, "{}: no orphan", case.variant.name);
        return Ok(lacks);
    }
    if !case.variant.features.contains("has_journal") {
        return Ok(lacks);
    }
    ensure!(found.journal, "{}: needs no recovery", case.variant.name);
    let Log {
        commits,
        revoke_blocks,
        wraps,
        fast_commits,
    } = log(image)?;
    ensure!(commits > 0, "{}: no commit in the log", case.variant.name);
    // debugfs replays no fast commits.
    let can_tell = !case.variant.features.contains("fast_commit");
    if case.work.contains(&Work::Orphans) && !found.orphans && can_tell {
        // The list of orphans starts in a superblock that may be in the journal alone.
        let recovered = has_orphans_once_replayed(image)?;
        ensure!(
            recovered,
            "{}: no orphan, replayed or not",
            case.variant.name
        );
    }
    if case.work.contains(&Work::Revokes) && revoke_blocks == 0 {
        lacks.push("a revoke record in the log".to_owned());
    }
    if case.work.contains(&Work::FastCommit) && fast_commits == 0 {
        lacks.push("a fast commit".to_owned());
    }
    if case.work.contains(&Work::Wrap) && !wraps {
        lacks.push("a log that wraps around".to_owned());
    }
    Ok(lacks)
}

/// Whether orphans show once the journal was replayed.
fn has_orphans_once_replayed(image: &Path) -> Result<bool> {
    let scratch = Scratch::new()?;
    let copy = scratch.join("replayed.img");
    sparse::copy(image, &copy)?;
    making::debugfs(&copy, "journal_run")?;
    Ok(pending(&copy)?.orphans)
}
