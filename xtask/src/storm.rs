//! `cargo xtask storm`: threads that do everything the library can do to files, at once, on a volume
//! that is nearly full, under oracles.
//!
//! Each thread has files of its own, every byte of which follows from the model; all of them change
//! shared files, in which blocks say what they are ([`shared`]). At the end of each round all of it is
//! read, the volume closed, shown to e2fsck, opened, and read once more.

mod own;
mod shared;
mod stamps;
#[cfg(test)]
mod tests;
mod watch;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use pagefence::{Kind, Mkfs, OpenOptions, Options, Volume};
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread;

use self::own::{Owns, outcome};
use self::shared::{Actor, Shared};
use self::watch::{PATIENCE, Watch};
use crate::command::find;
use crate::diff_walk::check;
use crate::random::Random;
use crate::scratch::Scratch;

/// Arguments of `storm`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Minutes on each type of file system.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Decides what each thread does; not how they meet.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads.
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// Types of file system, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "ext3,ext4")]
    types: Vec<String>,
    /// Block sizes, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1024,4096")]
    block_sizes: Vec<u32>,
}

/// How long a round takes.
const ROUND: Duration = Duration::from_secs(10);
/// Bytes of a volume.
const IMAGE_BYTES: u64 = 16 << 20;
/// Blocks that are free in it when the storm begins: less than what the files grow to.
const FREE_BLOCKS: u64 = 768;
/// The page cache: less than the files hold.
const CACHE_BYTES: u64 = 4 << 20;

/// A storm on one type of file system.
struct Storm {
    kind: Kind,
    block_size: u32,
    seed: u64,
    threads: usize,
    length: Duration,
    round: Duration,
}

/// Runs the chore; `true` if nothing was seen that should not be.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    ensure!(
        find("e2fsck").is_some(),
        "this chore needs e2fsck: apt-get install e2fsprogs"
    );
    ensure!(arguments.threads > 0, "without threads nothing happens");
    let length = Duration::try_from_secs_f64(arguments.minutes * 60.0)?;
    let (mut operations, mut mismatches) = (0, 0);
    for name in &arguments.types {
        for &block_size in &arguments.block_sizes {
            let storm = Storm {
                kind: kind(name)?,
                block_size,
                seed: arguments.seed,
                threads: arguments.threads,
                length,
                round: ROUND,
            };
            let scratch = Scratch::new()?;
            let watch = Watch::new(storm.threads);
            let outcome = storm.rage(&scratch.join("storm.img"), &watch);
            let (table, count) = watch.table();
            operations += count;
            println!("{name} {block_size}, operations done by each thread:\n{table}");
            if let Err(error) = outcome {
                mismatches += 1;
                println!(
                    "FAILED   {name} {block_size}, seed {}: {error:#}",
                    storm.seed
                );
                println!("         the image is kept in {}", scratch.keep().display());
            }
        }
    }
    println!("storm: {operations} operations, {mismatches} mismatches");
    Ok(mismatches == 0)
}

/// A storm of four threads on one type of file system, for `time`; how many operations were done, and
/// whether all of them were right.
pub(crate) fn prove(
    name: &str,
    block_size: u32,
    seed: u64,
    time: Duration,
) -> Result<(u64, Result<()>)> {
    let storm = Storm {
        kind: kind(name)?,
        block_size,
        seed,
        threads: 4,
        length: time,
        round: ROUND,
    };
    let scratch = Scratch::new()?;
    let watch = Watch::new(storm.threads);
    let outcome = storm.rage(&scratch.join("storm.img"), &watch);
    Ok((watch.table().1, outcome))
}

fn kind(name: &str) -> Result<Kind> {
    match name {
        "ext2" => Ok(Kind::Ext2),
        "ext3" => Ok(Kind::Ext3),
        "ext4" => Ok(Kind::Ext4),
        _ => Err(anyhow!("there is no type {name}")),
    }
}

impl Storm {
    /// Makes the image and lets round follow on round, and has somebody look whether they get on.
    fn rage(&self, image: &Path, watch: &Watch) -> Result<()> {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| look_after(watch, image, &is_over));
            let _end = AtEnd(&is_over);
            self.rounds(image, watch)
        })
    }

    fn rounds(&self, image: &Path, watch: &Watch) -> Result<()> {
        let mkfs = Mkfs::new(self.kind)
            .size(IMAGE_BYTES)
            .block_size(self.block_size);
        mkfs.reserved_percent(0).format(image)?;
        let block_size = u64::from(self.block_size);
        let mut owns: Vec<_> = (0..self.threads)
            .map(|thread| Owns::new(thread, block_size))
            .collect();
        watch.between("filling", || self.fill(image))?;
        let start = Instant::now();
        let mut round = 0;
        while round == 0 || start.elapsed() < self.length {
            let left = self.length.saturating_sub(start.elapsed());
            self.round(image, round, left.min(self.round), &mut owns, watch)
                .with_context(|| format!("round {round}"))?;
            round += 1;
        }
        Ok(())
    }

    fn open(image: &Path) -> Result<Volume> {
        let options = Options::new().write(true).cache(CACHE_BYTES);
        Ok(Volume::open(image, options)?)
    }

    /// Leaves [`FREE_BLOCKS`].
    fn fill(&self, image: &Path) -> Result<()> {
        let volume = Self::open(image)?;
        let taken = volume
            .usage()?
            .free
            .saturating_sub(FREE_BLOCKS * u64::from(self.block_size));
        let bytes = vec![0x5a; usize::try_from(taken)?];
        volume.write("/ballast", bytes)?;
        Ok(volume.close()?)
    }

    fn round(
        &self,
        image: &Path,
        round: u64,
        length: Duration,
        owns: &mut [Owns],
        watch: &Watch,
    ) -> Result<()> {
        let block_size = u64::from(self.block_size);
        let volume = watch.between("opening", || Self::open(image))?;
        let shared = watch.between("opening of files", || {
            let shared = Shared::new(&volume, block_size).map_err(|error| anyhow!(error))?;
            for own in &mut *owns {
                own.open(&volume)
                    .map_err(|error| anyhow!("opened again: {error}"))?;
            }
            anyhow::Ok(shared)
        })?;
        let end = Instant::now() + length;
        let outcome = thread::scope(|scope| {
            let threads: Vec<_> = owns
                .iter_mut()
                .enumerate()
                .map(|(number, own)| {
                    let (volume, shared) = (&volume, &shared);
                    let random = Random::for_name(self.seed, &format!("{round} {number}"));
                    scope.spawn(move || {
                        let done = play(volume, shared, own, (number, random), end, watch);
                        done.inspect_err(|_| watch.fail())
                            .map_err(|error| anyhow!("thread {number}: {error}"))
                    })
                })
                .collect();
            let all: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            all.into_iter().try_for_each(|joined| match joined {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        });
        outcome.map_err(|error| {
            let of_threads = owns.iter().flat_map(Owns::complaints);
            let all: Vec<_> = shared.complaints().into_iter().chain(of_threads).collect();
            match all.is_empty() {
                true => error,
                false => error.context(format!("fsync says: {}", all.join("; "))),
            }
        })?;
        let contents = watch.between("comparison", || {
            shared.check().map_err(|error| anyhow!(error))?;
            for own in &mut *owns {
                own.compare()
                    .map_err(|error| anyhow!("at the end: {error}"))?;
                own.close();
            }
            let contents = shared.contents().map_err(|error| anyhow!(error))?;
            drop(shared);
            anyhow::Ok(contents)
        })?;
        watch.between("closing", || volume.close())?;
        if let Some(complaints) = watch.between("e2fsck", || check::complaints(image))? {
            return Err(anyhow!("e2fsck: {complaints}"));
        }
        watch.between("comparison, opened again", || {
            let volume = Self::open(image)?;
            for own in &mut *owns {
                own.open(&volume)
                    .map_err(|error| anyhow!("opened again: {error}"))?;
                own.close();
            }
            let again = Shared::read(&volume).map_err(|error| anyhow!(error))?;
            ensure!(
                contents == again,
                "opened again, shared files hold something else"
            );
            Ok(volume.close()?)
        })
    }
}

/// Does one thing after the other.
fn play(
    volume: &Volume,
    shared: &Shared,
    own: &mut Owns,
    (thread, mut random): (usize, Random),
    end: Instant,
    watch: &Watch,
) -> std::result::Result<(), String> {
    while Instant::now() < end && !watch.has_failed() {
        let mut actor = Actor {
            thread,
            random: &mut random,
            watch,
        };
        match actor.random.below(100) {
            0..45 => own.step(volume, &mut random, watch)?,
            45..70 => shared.stay(&mut actor)?,
            70..95 => shared.shift(&mut actor)?,
            95..99 => come_and_go(volume, &mut actor)?,
            _ => {
                watch.begin(thread, "sync of the volume".to_owned());
                volume.sync().map_err(|error| error.to_string())?;
                watch.end(thread, "sync", watch::Came::Done)?;
            }
        }
    }
    Ok(())
}

/// Makes a file, writes to it, and removes it: blocks that were others' come and go.
fn come_and_go(volume: &Volume, actor: &mut Actor<'_>) -> std::result::Result<(), String> {
    let path = format!("/passing-{}", actor.thread);
    let length = 1 + actor.random.below(200_000) as usize;
    actor
        .watch
        .begin(actor.thread, format!("{length} bytes in {path}"));
    let options = OpenOptions::new().read(true).write(true).create(true);
    let written = options
        .open(volume, &path)
        .and_then(|file| file.write_at(0, &vec![0x5a; length]).map(drop));
    let came = outcome(written)?;
    match volume.remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.to_string()),
    }
    actor.watch.end(actor.thread, "come and go", came)
}

/// Says that it is over, also if its owner panics: whoever looks after it comes to an end.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Ends the process, and says what all threads do, if one of them hangs, or what is done while none
/// of them runs. The image stays.
fn look_after(watch: &Watch, image: &Path, is_over: &AtomicBool) {
    while !is_over.load(Ordering::SeqCst) {
        if let Some(what) = watch.hangs(PATIENCE) {
            println!("HANGS    {}:\n{what}", image.display());
            println!("storm: 1 mismatch");
            std::process::exit(1);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A storm of a few seconds on each type, for the tests.
#[cfg(test)]
fn short(kind: Kind, block_size: u32, scratch: &Scratch) -> Result<u64> {
    let storm = Storm {
        kind,
        block_size,
        seed: 5,
        threads: 4,
        length: Duration::from_secs(3),
        round: Duration::from_secs(1),
    };
    let watch = Watch::new(storm.threads);
    let image = scratch.join("storm.img");
    storm.rage(&image, &watch)?;
    for what in [
        "comparison",
        "closing",
        "e2fsck",
        "comparison, opened again",
    ] {
        ensure!(watch.done_between(what) > 0, "nobody looked after: {what}");
    }
    Ok(watch.table().1)
}
