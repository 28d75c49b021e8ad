//! `cargo xtask soak`: processes that map files of one mount, while others read, write, punch, cut off and
//! collapse the same files and write them back. No byte may be stale, foreign or lost.
//!
//! What the processes may see is in [`pagefence_fs_model::ledger`], in memory that they share.

mod actors;
mod mapper;
mod world;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pagefence_lock_order::primitives::{Arc, thread};

use self::actors::{ACTS, Actor, make_files};
use self::world::{ACTORS, CELLS, WRITEBACK, WRITER, World};
use crate::command::{Needs, require, run as run_program};
use crate::diff_walk::check;
use crate::mounts::{ServedMount, Server, pagefence_binary, workspace_root};
use crate::scratch::Scratch;

pub(crate) use mapper::{MapperArguments, mapper};

/// Arguments of `soak`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The binary to try; built in the release profile unless given.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// How long.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Decides what each does; not how they meet.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Block size.
    #[arg(long, default_value_t = 4096)]
    block_size: u32,
    /// A protection to leave out of the server (WriteProtection, LoadProtection or ProtectWait): then
    /// something stale must be seen.
    #[arg(long)]
    mutant: Option<String>,
}

/// The file that is punched and cut off.
const FILE: &str = "cells";
/// The file that is collapsed.
const MOVED_FILE: &str = "moved";
/// Processes that map.
const PROCESSES: usize = 2;
const IMAGE_BYTES: u64 = 64 << 20;
/// Less than the files have.
const MOUNT_OPTIONS: &str = "cache=4M";
/// Somebody who does nothing for so long hangs.
const STUCK: Duration = Duration::from_secs(60);
/// How a mount's server is told what to leave out, if it can.
const MUTANT_VARIABLE: &str = "PAGEFENCE_LEAVE_OUT";

/// Runs the chore; `true` if nothing was seen that should not be, or the mutant was caught.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    require(&Needs {
        programs: &["mke2fs", "e2fsck"],
        fuse: true,
    })?;
    let binary = match &arguments.mutant {
        Some(_) => mutable_binary()?,
        None => pagefence_binary(arguments.binary.as_deref())?,
    };
    let started = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    let length = Duration::try_from_secs_f64(arguments.minutes * 60.0)?;
    let begun = Instant::now();
    let (wrong, operations) = soak(arguments, &binary, length)?;
    println!(
        "soak: begun at {started} (seconds of 1970), {:.0} s, seed {}, {operations} operations, {wrong} stale",
        begun.elapsed().as_secs_f64(),
        arguments.seed,
    );
    if let Some(mutant) = &arguments.mutant {
        let outcome = if wrong > 0 { "caught" } else { "NOT CAUGHT" };
        println!("mutant {mutant}: {outcome}");
        return Ok(wrong > 0);
    }
    Ok(wrong == 0)
}

/// As the chore, with the binary of the release profile and for `time`; how many operations there were,
/// and how many stale bytes were seen.
pub(crate) fn prove(seed: u64, time: Duration) -> Result<(u64, u64)> {
    let arguments = Arguments {
        binary: None,
        minutes: 0.0,
        seed,
        block_size: 4096,
        mutant: None,
    };
    let binary = pagefence_binary(None)?;
    let (stale, operations) = soak(&arguments, &binary, time)?;
    Ok((operations, stale))
}

/// The binary, built so that protections can be left out.
fn mutable_binary() -> Result<PathBuf> {
    let root = workspace_root()?;
    let target = root.join("target/mutants");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--package",
            "pagefence-cli",
            "--features",
            "mutants",
        ])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(&root)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo build --features mutants failed");
    Ok(target.join("release/pagefence"))
}

/// How many stale bytes were seen, at least, and how many operations there were.
fn soak(arguments: &Arguments, binary: &Path, length: Duration) -> Result<(u64, u64)> {
    let scratch = Scratch::new()?;
    let image = scratch.join("soak.img");
    std::fs::File::create(&image)?.set_len(IMAGE_BYTES)?;
    let block_size = arguments.block_size.to_string();
    run_program(
        "mke2fs",
        [
            "-q".as_ref(),
            "-F".as_ref(),
            "-t".as_ref(),
            "ext4".as_ref(),
            "-b".as_ref(),
            block_size.as_ref(),
            image.as_os_str(),
        ],
    )?;
    let directory = scratch.directory("mount")?;
    let binary = match &arguments.mutant {
        Some(mutant) => leaving_out(mutant, binary, &scratch.join("pagefence"))?,
        None => binary.to_owned(),
    };
    let server = Server::Pagefence(binary);
    let mount = ServedMount::new(&server, &image, &directory, MOUNT_OPTIONS)?;
    make_files(&directory)?;
    let world = Arc::new(World::new()?);
    let raged = rage(arguments, &directory, &world, length);
    let operations = (0..=WRITEBACK).map(|actor| world.done(actor)).sum();
    for actor in 0..=WRITEBACK {
        let name = ACTORS.get(actor).copied().unwrap_or("write back");
        println!("{name:>12} {:>12}", world.done(actor));
    }
    raged?;
    look_at_all(&world, &directory, "read() at the end")?;
    mount.unmount()?;
    if let Some(complaints) = check::complaints(&image)? {
        world.note_wrong(&format!("e2fsck: {complaints}"));
    }
    let mount = ServedMount::new(&server, &image, &directory, MOUNT_OPTIONS)?;
    look_at_all(&world, &directory, "read() after the next mount")?;
    mount.unmount()?;
    Ok((world.wrong(), operations))
}

/// `binary` with a protection left out, as a program at `path`.
fn leaving_out(mutant: &str, binary: &Path, path: &Path) -> Result<PathBuf> {
    let is_name = mutant.bytes().all(|byte| byte.is_ascii_alphanumeric());
    ensure!(is_name, "{mutant} is no name of a mutant");
    let binary = binary.display();
    let script = format!("#!/bin/sh\n{MUTANT_VARIABLE}={mutant} exec '{binary}' \"$@\"\n");
    std::fs::write(path, script)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path.to_owned())
}

/// Has everybody act for `length`, or until something is wrong.
fn rage(
    arguments: &Arguments,
    directory: &Path,
    world: &Arc<World>,
    length: Duration,
) -> Result<()> {
    let mut processes: Vec<Process> = (0..PROCESSES)
        .map(|process| Process::start(process, arguments.seed, directory, world))
        .collect::<Result<_>>()?;
    let raged = rage_with(&mut processes, arguments, directory, world, length);
    world.end();
    let ended = processes
        .iter_mut()
        .try_for_each(|process| process.end(world));
    raged.and(ended)
}

fn rage_with(
    processes: &mut [Process],
    arguments: &Arguments,
    directory: &Path,
    world: &Arc<World>,
    length: Duration,
) -> Result<()> {
    let begun = Instant::now();
    while world.ready() < PROCESSES as u64 {
        for process in &mut *processes {
            let ended = process.0.try_wait()?;
            ensure!(ended.is_none(), "a process that maps has ended at once");
        }
        ensure!(begun.elapsed() < STUCK, "processes that map do not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Files that are opened now are read and written past the kernel's cache.
    let actors: Vec<_> = ACTS
        .iter()
        .enumerate()
        .map(|(nr, &act)| {
            let number = WRITER + nr;
            let name = ACTORS.get(number).copied().unwrap_or("write back");
            let mut actor = Actor::new(directory, world, name, arguments.seed)?;
            let world = Arc::clone(world);
            Ok(thread::spawn("actor", move || {
                while !world.is_over() {
                    if let Err(error) = act(&mut actor) {
                        return world.note_wrong(&format!("{name}: {error:#}"));
                    }
                    world.count(number);
                }
            })?)
        })
        .collect::<Result<_>>()?;
    let watched = watch(processes, world, length);
    world.end();
    for actor in actors {
        ensure!(actor.join().is_ok(), "an actor has panicked");
    }
    watched
}

/// Waits until `length` is over or something is wrong; nobody may stand still meanwhile.
fn watch(processes: &mut [Process], world: &World, length: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut seen = vec![(0, begun); WRITEBACK + 1];
    while begun.elapsed() < length && !world.is_over() {
        std::thread::sleep(Duration::from_millis(100));
        for (actor, seen) in seen.iter_mut().enumerate() {
            let done = world.done(actor);
            if done != seen.0 {
                *seen = (done, Instant::now());
            }
            let name = ACTORS.get(actor).copied().unwrap_or("write back");
            ensure!(seen.1.elapsed() < STUCK, "{name} does nothing any more");
        }
        for process in &mut *processes {
            if let Some(status) = process.0.try_wait()? {
                world.note_wrong(&format!("a process that maps has ended: {status}"));
            }
        }
    }
    Ok(())
}

/// A process that maps; killed when dropped.
struct Process(Child);

impl Process {
    fn start(process: usize, seed: u64, directory: &Path, world: &World) -> Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .arg("soak-mapper")
            .arg(directory)
            .arg(world.path()?)
            .args([process.to_string(), seed.to_string()])
            .spawn()?;
        Ok(Self(child))
    }

    /// Waits for its end, which must come soon.
    fn end(&mut self, world: &World) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < STUCK {
            if let Some(status) = self.0.try_wait()? {
                if !status.success() {
                    world.note_wrong(&format!("a process that maps has ended: {status}"));
                }
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        world.note_wrong("a process that maps does not end");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended, unless something went wrong.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Looks at every cell when nobody changes any.
fn look_at_all(world: &World, directory: &Path, who: &str) -> Result<()> {
    let file = std::fs::File::open(directory.join(FILE))?;
    for cell in 0..CELLS {
        world.look(who, cell, || actors::read(&file, cell))?;
    }
    Ok(())
}
