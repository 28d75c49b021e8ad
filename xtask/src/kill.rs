//! `cargo xtask kill`: the server is killed while several processes write and fsync, one stores to a map and
//! flushes it, and checks of the mount follow on each other. What was said to be durable is there once the
//! image is mounted again, and what each kill leaves is sound.

mod mapper;
mod online;
mod process;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pagefence::{Options, Volume};

use self::online::Checks;
use self::process::Process;
use crate::cgroup::MemoryCgroup;
use crate::command::{Needs, output, require, run as run_program};
use crate::diff_walk::check;
use crate::mounts::{ServedMount, Server, pagefence_binary};
use crate::random::Random;
use crate::scratch::Scratch;
use crate::sparse;

pub(crate) use process::{WriterArguments, run as writer};

/// Arguments of `kill`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The binary to try; built in the release profile unless given.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Images, for each type of file system.
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// How often the server of an image is killed; once if it gets no memory.
    #[arg(long, default_value_t = 3)]
    lives: u64,
    /// Processes that write, besides one that stores to a map.
    #[arg(long, default_value_t = 4)]
    writers: u64,
    /// Types of file system, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "ext4")]
    types: Vec<String>,
    /// Block size.
    #[arg(long, default_value_t = 4096)]
    block_size: u32,
    /// Decides when the server is killed, and what is written.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The latest moment of a kill, in milliseconds after the writers began.
    #[arg(long, default_value_t = 1500)]
    latest_ms: u64,
    /// Leave the server no more memory than it has, or hardly more, a second before it is killed.
    #[arg(long, value_enum)]
    starve: Option<Shortage>,
}

/// Who says that there is no more memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shortage {
    /// The limit of its address space (`RLIMIT_AS`): a call for more fails.
    AddressSpace,
    /// A control group, with what the page cache has of the image: the kernel kills who needs more.
    Cgroup,
}

/// How long a server goes on that gets no more memory.
const STARVED_FOR: Duration = Duration::from_secs(1);
/// What its control group leaves it, in bytes: as much as one of its writers makes dirty in a moment.
const CGROUP_BYTES: u64 = 2 << 20;
/// Bytes of the image.
const IMAGE_BYTES: u64 = 512 << 20;
/// What was found of what was promised.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    /// Servers that were killed.
    pub(crate) kills: u64,
    /// What was promised, and was there at the end.
    pub(crate) promises: u64,
    /// Stamps that were stored to a map, flushed, and there at the end.
    pub(crate) stamps: u64,
    /// Processes with a map that were ended by SIGBUS, or by an error.
    pub(crate) by_signal: u64,
    pub(crate) by_error: u64,
    /// Checks of mounts that were in use, which found nothing.
    pub(crate) checks: u64,
    /// Checks of images, which found nothing.
    pub(crate) images: u64,
    bytes: u64,
    /// Servers that ended for want of memory, and those of them that the kernel killed.
    pub(crate) starved: u64,
    pub(crate) by_kernel: u64,
}

/// Runs the chore; `true` if nothing was lost.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    require(&Needs {
        programs: &["mke2fs", "e2fsck", "umount"],
        fuse: true,
    })?;
    let server = Server::Pagefence(pagefence_binary(arguments.binary.as_deref())?);
    let mut all_kept = true;
    for kind in &arguments.types {
        let mut failures = 0;
        let mut random = Random::for_name(arguments.seed, kind);
        let mut found = Found::default();
        for round in 0..arguments.rounds {
            let seed = random.next();
            let lost = match one_round(arguments, &server, kind, seed, &mut found) {
                Ok(()) => continue,
                Err(error) => error,
            };
            failures += 1;
            println!("{kind}, round {round} of seed {}: {lost:#}", arguments.seed);
        }
        println!(
            "{kind}: {} kills under {} writers, {} promises, {} bytes of them read back, {} stamps of \
             maps, {} checks of mounts and {} of images, failures {failures}",
            found.kills,
            arguments.writers,
            found.promises,
            found.bytes,
            found.stamps,
            found.checks,
            found.images,
        );
        all_kept &= failures == 0;
    }
    Ok(all_kept)
}

/// Rounds with what the chore's arguments are unless given.
pub(crate) struct Kills {
    arguments: Arguments,
    server: Server,
}

impl Kills {
    /// Of the binary of the release profile.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            arguments: Arguments {
                binary: None,
                rounds: 1,
                lives: 3,
                writers: 4,
                types: Vec::new(),
                block_size: 4096,
                seed: 1,
                latest_ms: 1500,
                starve: None,
            },
            server: Server::Pagefence(pagefence_binary(None)?),
        })
    }

    /// As [`Self::new`], of servers that get no more memory.
    pub(crate) fn starving(shortage: Shortage) -> Result<Self> {
        let mut kills = Self::new()?;
        kills.arguments.starve = Some(shortage);
        Ok(kills)
    }

    /// One round: what was found, and whether all of it was as it should be.
    pub(crate) fn round(&self, kind: &str, seed: u64) -> (Found, Result<()>) {
        let mut found = Found::default();
        let outcome = one_round(&self.arguments, &self.server, kind, seed, &mut found);
        (found, outcome)
    }
}

fn one_round(
    arguments: &Arguments,
    server: &Server,
    kind: &str,
    seed: u64,
    found: &mut Found,
) -> Result<()> {
    let mut random = Random::new(seed);
    let scratch = Scratch::new()?;
    let (image, directory) = (scratch.join("image"), scratch.directory("mnt")?);
    File::create(&image)?.set_len(IMAGE_BYTES)?;
    let block_size = arguments.block_size.to_string();
    let options = ["-q", "-F", "-t", kind, "-b", &block_size];
    let options = options.into_iter().map(AsRef::as_ref);
    run_program("mke2fs", options.chain([image.as_os_str()]))?;

    let mut writers = Vec::new();
    let lives = match arguments.starve {
        Some(_) => 1,
        None => arguments.lives,
    };
    for life in 0..lives {
        let mut mount = ServedMount::new(server, &image, &directory, "rw")?;
        let new = Process::all(arguments, life, &mut random, &scratch, &directory)?;
        let children: Vec<Child> = new
            .iter()
            .map(|process| process.start(&directory))
            .collect::<Result<_>>()?;
        // Of a server that gets no memory nothing is asked.
        let checks = match arguments.starve {
            Some(_) => None,
            None => Some(Checks::begin(server, &directory)?),
        };
        verify_all(kind, &writers, &directory, &mut Found::default())
            .with_context(|| format!("after kill {life}"))?;
        std::thread::sleep(Duration::from_millis(random.below(arguments.latest_ms)));
        if let Some(shortage) = arguments.starve {
            starve(shortage, &mut mount, found)?;
        }
        if let Some(checks) = &checks {
            checks.may_fail();
        }
        found.kills += 1;
        mount.kill()?;
        for (process, child) in new.iter().zip(children) {
            process.wait(child, found)?;
        }
        if let Some(checks) = checks {
            found.checks += checks.end()?;
        }
        writers.extend(new);
        look_at_what_is_left(server, kind, &image, &scratch.join("copy"), found)
            .with_context(|| format!("after kill {}", life + 1))?;
    }

    let mount = ServedMount::new(server, &image, &directory, "rw")?;
    let verified = verify_all(kind, &writers, &directory, found);
    let checked = online::check(server, &directory);
    mount.unmount()?;
    verified?;
    checked.context("at the end")?;
    found.checks += 1;
    ensure_sound(server, &image, found).context("at the end")
}

fn starve(shortage: Shortage, mount: &mut ServedMount, found: &mut Found) -> Result<()> {
    let group = match shortage {
        Shortage::AddressSpace => {
            mount.take_memory()?;
            None
        }
        Shortage::Cgroup => {
            let group = MemoryCgroup::new(CGROUP_BYTES)?;
            group.add(mount.process())?;
            Some(group)
        }
    };
    std::thread::sleep(STARVED_FOR);
    found.starved += u64::from(mount.is_dead()?);
    if let Some(group) = group {
        found.by_kernel += group.killed()?;
    }
    Ok(())
}

fn verify_all(kind: &str, writers: &[Process], directory: &Path, found: &mut Found) -> Result<()> {
    // Without a journal a rename is not atomic (docs/CRASH.md).
    let lost = match kind {
        "ext2" => Some(writer::lost_and_found(directory)?),
        _ => None,
    };
    writers
        .iter()
        .try_for_each(|writer| writer.verify(directory, lost.as_deref(), found))
}

/// What a kill leaves is sound once its journal is replayed: in memory by a check, and in a copy by us. Without
/// a journal e2fsck is who recovers.
fn look_at_what_is_left(
    server: &Server,
    kind: &str,
    image: &Path,
    copy: &Path,
    found: &mut Found,
) -> Result<()> {
    if kind == "ext2" {
        let mended = output("e2fsck", ["-fy".as_ref(), image.as_os_str()])?;
        ensure!(
            mended.status.code().is_some_and(|code| code <= 1),
            "e2fsck can't mend it: {}",
            String::from_utf8_lossy(&mended.stdout)
        );
        return ensure_sound(server, image, found);
    }
    online::check(server, image).context("before its recovery")?;
    found.images += 1;
    sparse::copy(image, copy)?;
    Volume::open(copy, Options::new().write(true))?.close()?;
    ensure_sound(server, copy, found).context("recovered")
}

/// Neither e2fsck nor a check has anything to say about an image that was closed.
fn ensure_sound(server: &Server, image: &Path, found: &mut Found) -> Result<()> {
    if let Some(complaints) = check::complaints(image)? {
        bail!("e2fsck: {complaints}");
    }
    online::check(server, image)?;
    found.images += 1;
    Ok(())
}
