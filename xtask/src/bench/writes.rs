//! What writes: names made, moved and removed by one process and by four, data by fio, trees
//! unpacked, cloned and removed.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::bench::systems::{System, Systems};
use crate::bench::table::{Better, Table};
use crate::bench::{fio, prepare};
use crate::command::{command, find, run as run_program};
use crate::mounts::drop_caches;
use crate::scratch::Scratch;

/// How much is written.
pub(super) struct Scale {
    pub(super) rounds: usize,
    /// Files made, moved and removed.
    pub(super) files: u64,
    /// Files in the tree that is unpacked.
    pub(super) tree_files: u64,
    /// Bytes that fio writes, in MiB.
    pub(super) data_mib: u64,
    pub(super) seconds: u32,
    /// Files in one directory.
    pub(super) crowd: u64,
}

/// What a worker process does to its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Work {
    /// Makes them.
    Create,
    /// Gives them another name.
    Rename,
    /// Removes them.
    Unlink,
}

/// Arguments of a worker process.
#[derive(clap::Args)]
pub(crate) struct WorkerArguments {
    work: Work,
    directory: PathBuf,
    first: u64,
    end: u64,
}

/// A worker: prints nothing, so that all it does is its work.
pub(crate) fn worker(arguments: &WorkerArguments) -> Result<bool> {
    for number in arguments.first..arguments.end {
        let old = arguments.directory.join(format!("file-{number}"));
        let new = arguments.directory.join(format!("renamed-{number}"));
        match arguments.work {
            Work::Create => drop(std::fs::File::create_new(old)?),
            Work::Rename => std::fs::rename(old, new)?,
            Work::Unlink => std::fs::remove_file(new)?,
        }
    }
    Ok(true)
}

/// Has `processes` workers do their work on `files` files in all, each in a directory of its own,
/// and says how many a second.
fn names_per_second(directory: &Path, work: Work, files: u64, processes: u64) -> Result<f64> {
    let program = std::env::current_exe()?;
    let name = match work {
        Work::Create => "create",
        Work::Rename => "rename",
        Work::Unlink => "unlink",
    };
    let share = files / processes;
    let start = Instant::now();
    let mut children = Vec::new();
    for process in 0..processes {
        let own = directory.join(format!("of-{process}-of-{processes}"));
        if work == Work::Create {
            std::fs::create_dir(&own)?;
        }
        let first = process * share;
        let child = command(&program, ["bench-worker", name])
            .arg(&own)
            .args([first.to_string(), (first + share).to_string()])
            .spawn()
            .context("a worker can't be started")?;
        children.push(child);
    }
    for mut child in children {
        ensure!(child.wait()?.success(), "a worker failed");
    }
    let done = u32::try_from(share * processes).context("too many files")?;
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}

/// Everything that is written, each system on a fresh image.
pub(super) fn measure(
    systems: &Systems,
    scratch: &Scratch,
    scale: &Scale,
    table: &mut Table,
) -> Result<()> {
    let tree = Tree::new(scratch, scale.tree_files)?;
    let directory = scratch.directory("write-mnt")?;
    let image = scratch.join("write.img");
    for round in 0..scale.rounds {
        for system in systems.each(round) {
            prepare::empty(&image, scale.data_mib * 8 + 2048)?;
            drop_caches()?;
            let mount = system.mount_writable(&image, &directory)?;
            let measured = measure_names(system, &directory, scale, table)
                .and_then(|()| measure_tree(system, &directory, &tree, table));
            mount.unmount()?;
            measured.with_context(|| system.name().to_owned())?;
            if find("fio").is_some() {
                for job in fio::write_jobs() {
                    prepare::empty(&image, scale.data_mib * 8 + 2048)?;
                    drop_caches()?;
                    let mount = system.mount_writable(&image, &directory)?;
                    let file = directory.join(prepare::DATA_FILE);
                    let figure = fio::run_write(&job, &file, scale.data_mib, scale.seconds);
                    mount.unmount()?;
                    let row = format!("{}, {}", job.name(), job.unit());
                    table.record(&row, Better::More, system.name(), figure?);
                }
            }
        }
    }
    std::fs::remove_file(&image)?;
    measure_crowd(systems, scratch, scale, table)
}

fn measure_names(
    system: &System,
    directory: &Path,
    scale: &Scale,
    table: &mut Table,
) -> Result<()> {
    for processes in [1, 4] {
        for (work, what) in [
            (Work::Create, "create"),
            (Work::Rename, "rename"),
            (Work::Unlink, "unlink"),
        ] {
            let rate = names_per_second(directory, work, scale.files, processes)?;
            let plural = if processes == 1 { "" } else { "es" };
            let row = format!(
                "{what} {} files, {processes} process{plural}, thousands/s",
                scale.files
            );
            table.record(&row, Better::More, system.name(), rate / 1000.0);
        }
    }
    Ok(())
}

/// A tree of small files, as an archive and as a repository.
struct Tree {
    archive: PathBuf,
    repository: Option<PathBuf>,
}

impl Tree {
    fn new(scratch: &Scratch, files: u64) -> Result<Self> {
        let source = scratch.directory("tree")?;
        prepare::fill_files(&source, files)?;
        let archive = scratch.join("tree.tar");
        let in_source = |program: &str, arguments: &[&str]| -> Result<()> {
            let output = command(program, arguments).current_dir(&source).output()?;
            ensure!(
                output.status.success(),
                "{program}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(())
        };
        run_program(
            "tar",
            [
                "-cf".as_ref(),
                archive.as_os_str(),
                "-C".as_ref(),
                source.as_os_str(),
                ".".as_ref(),
            ],
        )?;
        let repository = if find("git").is_some() {
            in_source("git", &["init", "-q"])?;
            in_source("git", &["add", "."])?;
            let who = [
                "-c",
                "user.name=bench",
                "-c",
                "user.email=bench@example.org",
            ];
            let commit: Vec<&str> = who
                .into_iter()
                .chain(["commit", "-q", "-m", "all"])
                .collect();
            in_source("git", &commit)?;
            Some(source)
        } else {
            println!("git clone is not measured: git is missing (apt-get install git)");
            None
        };
        Ok(Self {
            archive,
            repository,
        })
    }
}

fn measure_tree(system: &System, directory: &Path, tree: &Tree, table: &mut Table) -> Result<()> {
    let unpacked = directory.join("unpacked");
    std::fs::create_dir(&unpacked)?;
    let mut timed = |row: &str, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let start = Instant::now();
        work()?;
        let seconds = start.elapsed().as_secs_f64();
        table.record(row, Better::Less, system.name(), seconds);
        Ok(())
    };
    timed("untar and sync, s", &mut || {
        run_program(
            "tar",
            [
                "-xf".as_ref(),
                tree.archive.as_os_str(),
                "-C".as_ref(),
                unpacked.as_os_str(),
            ],
        )?;
        run_program("sync", ["-f".as_ref(), unpacked.as_os_str()]).map(drop)
    })?;
    timed("rm -r, s", &mut || {
        run_program("rm", ["-r".as_ref(), unpacked.as_os_str()]).map(drop)
    })?;
    if let Some(repository) = &tree.repository {
        let clone = directory.join("clone");
        timed("git clone, s", &mut || {
            run_program(
                "git",
                [
                    "clone".as_ref(),
                    "-q".as_ref(),
                    "--no-hardlinks".as_ref(),
                    repository.as_os_str(),
                    clone.as_os_str(),
                ],
            )
            .map(drop)
        })?;
    }
    Ok(())
}

/// Many files in one directory: how the last are made, against the first. By pagefence and by the
/// kernel alone: fuse2fs would take hours.
fn measure_crowd(
    systems: &Systems,
    scratch: &Scratch,
    scale: &Scale,
    table: &mut Table,
) -> Result<()> {
    let directory = scratch.directory("crowd-mnt")?;
    let image = scratch.join("crowd.img");
    for system in systems.each(0).filter(|system| system.name() != "fuse2fs") {
        prepare::empty_with_inodes(&image, 4096, scale.crowd + 100_000)?;
        let mount = system.mount_writable(&image, &directory)?;
        let crowd = directory.join("crowd");
        let sample = (scale.crowd / 100).max(1);
        let measured = (|| -> Result<(f64, f64)> {
            std::fs::create_dir(&crowd)?;
            let make = |first: u64, end: u64| -> Result<f64> {
                let start = Instant::now();
                for number in first..end {
                    drop(std::fs::File::create_new(
                        crowd.join(format!("file-{number}")),
                    )?);
                }
                let made = u32::try_from(end - first).context("too many files")?;
                Ok(f64::from(made) / start.elapsed().as_secs_f64() / 1000.0)
            };
            let first = make(0, sample)?;
            make(sample, scale.crowd - sample)?;
            Ok((first, make(scale.crowd - sample, scale.crowd)?))
        })();
        mount.unmount()?;
        let (first, last) = measured.with_context(|| system.name().to_owned())?;
        let row = |what: &str| {
            format!(
                "create the {what} {sample} of {} files in one directory, thousands/s",
                scale.crowd
            )
        };
        table.record(&row("first"), Better::More, system.name(), first);
        table.record(&row("last"), Better::More, system.name(), last);
    }
    std::fs::remove_file(&image)?;
    Ok(())
}
