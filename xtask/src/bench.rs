//! `cargo xtask bench`: pagefence, fuse2fs and the kernel on a loop device, in turn on the same
//! image, in interleaved rounds; medians and ratios in one table.

mod fio;
mod maps;
pub(crate) mod null_server;
pub(crate) mod prepare;
mod ranges;
mod systems;
mod table;
pub(crate) mod writes;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command::{Needs, command, find, require, run as run_program};
use crate::mounts::{Server, drop_caches, pagefence_binary};
use crate::scratch::Scratch;
pub(crate) use prepare::{fill_files, format, write_data};
use systems::{HOST, System, Systems};
use table::{Better, Table};

/// Arguments of `bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Fewer rounds, smaller files, shorter runs.
    #[arg(long)]
    quick: bool,
    /// Rounds, where not as many as usual.
    #[arg(long)]
    rounds: Option<usize>,
    /// Size of the sparse image whose mount is timed, in GiB.
    #[arg(long, default_value_t = 1024)]
    image_size: u64,
    /// Where the images go while it runs; `TMPDIR` unless given.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// The binary to measure; built in the release profile unless given.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// More options for pagefence's mounts, separated by commas.
    #[arg(long, default_value = "")]
    options: String,
    /// Only what reads, only what writes, only ranges that are punched under faults, or only maps.
    #[arg(long)]
    only: Option<Only>,
}

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// Mounting, walking, reading.
    Reads,
    /// Names and data that are written.
    Writes,
    /// A long punch under faults, by pagefence alone.
    Ranges,
    /// Files in memory.
    Maps,
}

/// How much is measured.
struct Scale {
    rounds: usize,
    read_rounds: usize,
    files: u64,
    data_mib: u64,
    seconds: u32,
}

/// Runs the chore.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    require(&Needs {
        programs: &["mke2fs", "losetup", "mount", "umount", "find", "findmnt"],
        fuse: true,
    })?;
    let mut scale = if arguments.quick {
        Scale {
            rounds: 3,
            read_rounds: 3,
            files: 20_000,
            data_mib: 256,
            seconds: 1,
        }
    } else {
        Scale {
            rounds: 5,
            read_rounds: 3,
            files: 100_000,
            data_mib: 1024,
            seconds: 4,
        }
    };
    let mut writes = if arguments.quick {
        QUICK_WRITES
    } else {
        FULL_WRITES
    };
    if let Some(rounds) = arguments.rounds {
        (scale.rounds, scale.read_rounds, writes.rounds) = (rounds, rounds, rounds);
    }
    let server = Server::Pagefence(pagefence_binary(arguments.binary.as_deref())?);
    let systems = Systems::new(server.clone(), &arguments.options);
    let scratch = match &arguments.directory {
        Some(directory) => Scratch::within(directory)?,
        None => Scratch::new()?,
    };
    let mut table = Table::new(systems.names());
    println!(
        "medians of {} rounds ({} of reads, {} of writes), interleaved; cold: the kernel's caches \
         dropped, the image mounted anew; image in {} on {}; load {}",
        scale.rounds,
        scale.read_rounds,
        writes.rounds,
        scratch.join("").display(),
        disk_of(&scratch.join(""))?,
        load()
    );

    let mut is_bounded = true;
    let is_wanted = |part| arguments.only.is_none_or(|only| only == part);
    if is_wanted(Only::Reads) {
        measure_reading(&systems, arguments, &scratch, &scale, &mut table)?;
    }
    if is_wanted(Only::Writes) {
        writes::measure(&systems, &scratch, &writes, &mut table).context("writing")?;
    }
    if is_wanted(Only::Ranges) {
        is_bounded = ranges::measure(&server, &scratch, scale.read_rounds).context("punching")?;
    }
    let mut is_reached = true;
    if is_wanted(Only::Maps) {
        let rounds = scale.read_rounds;
        is_reached = maps::measure(&server, &scratch, rounds, scale.data_mib).context("mapping")?;
    }
    println!("{}", table.render());
    println!("load at the end {}", load());
    Ok(is_bounded && is_reached)
}

const QUICK_WRITES: writes::Scale = writes::Scale {
    rounds: 3,
    files: 4000,
    tree_files: 2000,
    data_mib: 128,
    seconds: 2,
    crowd: 50_000,
};

const FULL_WRITES: writes::Scale = writes::Scale {
    rounds: 5,
    files: 20_000,
    tree_files: 10_000,
    data_mib: 512,
    seconds: 5,
    crowd: 1_000_000,
};

fn measure_reading(
    systems: &Systems,
    arguments: &Arguments,
    scratch: &Scratch,
    scale: &Scale,
    table: &mut Table,
) -> Result<()> {
    let huge = scratch.join("huge.img");
    prepare::huge(&huge, arguments.image_size)?;
    measure_mount(systems, &huge, scratch, scale, table).context("mounting the sparse image")?;
    std::fs::remove_file(&huge)?;

    let image = scratch.join("bench.img");
    prepare::filled(&image, scratch, scale.files, scale.data_mib)?;
    measure_walks(systems, &image, scratch, scale, table).context("walking")?;
    if find("fio").is_some() {
        measure_reads(systems, &image, scratch, scale, table).context("fio")?;
    } else {
        println!("reads are not measured: fio is missing (apt-get install fio)");
    }
    Ok(std::fs::remove_file(&image)?)
}

/// The type and the source of the file system below `directory`.
///
/// # Errors
/// It is in memory: nothing could be measured cold there.
fn disk_of(directory: &Path) -> Result<String> {
    let printed = run_program(
        "findmnt",
        [
            "--noheadings".as_ref(),
            "--output=FSTYPE,SOURCE".as_ref(),
            "--target".as_ref(),
            directory.as_os_str(),
        ],
    )?;
    let disk = printed.split_whitespace().collect::<Vec<_>>().join(" of ");
    anyhow::ensure!(
        !disk.starts_with("tmpfs") && !disk.starts_with("ramfs"),
        "{} lies in memory ({disk}), where nothing is cold: give --directory on a disk",
        directory.display()
    );
    Ok(disk)
}

/// The load averages: on a busy machine ratios are worth more than figures.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

fn measure_mount(
    systems: &Systems,
    image: &Path,
    scratch: &Scratch,
    scale: &Scale,
    table: &mut Table,
) -> Result<()> {
    let directory = scratch.directory("huge-mnt")?;
    for round in 0..scale.rounds {
        for system in systems.each(round) {
            drop_caches()?;
            let start = Instant::now();
            let mount = system.mount(image, &directory)?;
            std::fs::metadata(&directory)?;
            let row = "mount of a sparse image, s";
            table.record(
                row,
                Better::Less,
                system.name(),
                start.elapsed().as_secs_f64(),
            );
            mount.unmount()?;
        }
    }
    Ok(())
}

/// Runs `find` with these arguments below `directory`.
fn time_find(directory: &Path, arguments: &[&str]) -> Result<Duration> {
    let start = Instant::now();
    let output = command("find", [directory]).args(arguments).output()?;
    anyhow::ensure!(
        output.status.success(),
        "find: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(start.elapsed())
}

fn measure_walks(
    systems: &Systems,
    image: &Path,
    scratch: &Scratch,
    scale: &Scale,
    table: &mut Table,
) -> Result<()> {
    let directory = scratch.directory("walk-mnt")?;
    let walks: [(&str, &[&str]); 2] = [("find", &[]), ("find and stat", &["-printf", "%s %T@\n"])];
    for round in 0..scale.rounds {
        for (name, arguments) in walks {
            for system in systems.each(round) {
                drop_caches()?;
                let mount = system.mount(image, &directory)?;
                for temperature in ["cold", "warm"] {
                    let taken = time_find(&directory, arguments)?;
                    let row = format!("{name}, {} files, {temperature}, s", scale.files);
                    table.record(&row, Better::Less, system.name(), taken.as_secs_f64());
                }
                mount.unmount()?;
            }
        }
    }
    Ok(())
}

fn measure_reads(
    systems: &Systems,
    image: &Path,
    scratch: &Scratch,
    scale: &Scale,
    table: &mut Table,
) -> Result<()> {
    let directory = scratch.directory("read-mnt")?;
    let plain = scratch.join(prepare::DATA_FILE);
    prepare::write_data(&plain, scale.data_mib)?;
    for round in 0..scale.read_rounds {
        for job in fio::jobs() {
            drop_caches()?;
            let figure = fio::run(&job, &plain, scale.seconds, false)?;
            table.record(&row_of(&job, "cold"), Better::More, HOST, figure);
            for system in systems.each(round) {
                measure_job(&job, system, image, &directory, scale, table)?;
            }
        }
    }
    std::fs::remove_file(&plain)?;
    Ok(())
}

fn row_of(job: &fio::Job, temperature: &str) -> String {
    format!("{}, {temperature}, {}", job.name(), job.unit())
}

fn measure_job(
    job: &fio::Job,
    system: &System,
    image: &Path,
    directory: &Path,
    scale: &Scale,
    table: &mut Table,
) -> Result<()> {
    drop_caches()?;
    let mount = system.mount(image, directory)?;
    let file = directory.join(prepare::DATA_FILE);
    for temperature in ["cold", "warm"] {
        let is_warm = temperature == "warm";
        if is_warm {
            // Everything is in some cache before the warm run starts.
            std::io::copy(&mut std::fs::File::open(&file)?, &mut std::io::sink())?;
        }
        let measured = fio::run(job, &file, scale.seconds, is_warm)?;
        let row = row_of(job, temperature);
        table.record(&row, Better::More, system.name(), measured);
    }
    mount.unmount()
}
