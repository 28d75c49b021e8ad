//! A long punch under faults: how long it takes, and how long others wait meanwhile.
//!
//! The range has its space in many extents, so that the punch takes many steps. It is punched while
//! nothing else goes on, while eight threads read another file, and while they read in the
//! range: the second is what sharing the processors costs, whatever is read.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use pagefence::{OpenOptions, Options, Volume};
use pagefence_host_memory::FileMap;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread;

use super::{load, prepare};
use crate::mounts::{ServedMount, Server};
use crate::random::Random;
use crate::scratch::Scratch;

/// Bytes that are punched.
const PUNCHED: u64 = 1 << 30;
/// One page in so many of the range is written, the others have space alone.
const WRITTEN_EVERY: u64 = 64 << 10;
/// Bytes of the same file behind the range, and of the other file: all written.
const BEHIND: u64 = 64 << 20;
/// Threads that fault.
const FAULTERS: usize = 8;
const PAGE: u64 = pagefence_host_memory::FRAME_SIZE as u64;
/// The library's page cache: less than [`BEHIND`], so that reads there fault.
const CACHE_BYTES: u64 = 32 << 20;
/// Bytes that stay in the cache.
const CACHED: u64 = 1 << 20;
/// What is looked at waits so long between two reads, so that it does not take the processors.
const PAUSE: Duration = Duration::from_micros(200);

const IMAGE_MIB: u64 = 1536;
/// What a punch may take at most under faults in its range, in times of what it takes alone, through
/// the library (RACES B2).
const TIMES_MAX: f64 = 3.0;
const FILE: &str = "punched";
const OTHER: &str = "other";

/// Where the threads read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Faults {
    Nowhere,
    InOther,
    InRange,
}

const FAULTS: [Faults; 3] = [Faults::Nowhere, Faults::InOther, Faults::InRange];

/// A file by offset: on a mount, or in the library.
trait Bytes: Sync {
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;
    /// Faults in the byte at `offset`.
    fn touch(&self, offset: u64) -> Result<()>;
    fn punch(&self) -> Result<()>;
    fn allocate(&self, length: u64) -> Result<()>;
    fn sync(&self) -> Result<()>;
}

/// A file of a mount, and its map.
struct Mounted(File, FileMap);

impl Bytes for Mounted {
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        Ok(self.0.write_all_at(data, offset)?)
    }

    fn touch(&self, offset: u64) -> Result<()> {
        self.1.load(usize::try_from(offset)?, &mut [0; 8]);
        Ok(())
    }

    fn punch(&self) -> Result<()> {
        use rustix::fs::FallocateFlags as Flags;
        let flags = Flags::PUNCH_HOLE | Flags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.0, flags, 0, PUNCHED)?)
    }

    fn allocate(&self, length: u64) -> Result<()> {
        let flags = rustix::fs::FallocateFlags::empty();
        Ok(rustix::fs::fallocate(&self.0, flags, 0, length)?)
    }

    fn sync(&self) -> Result<()> {
        Ok(self.0.sync_all()?)
    }
}

/// A file of the library.
struct Opened(pagefence::File);

impl Bytes for Opened {
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        Ok(self.0.write_all_at(offset, data)?)
    }

    fn touch(&self, offset: u64) -> Result<()> {
        self.0.read_at(offset, &mut [0; 8])?;
        Ok(())
    }

    fn punch(&self) -> Result<()> {
        Ok(self.0.punch_hole(0, PUNCHED)?)
    }

    fn allocate(&self, length: u64) -> Result<()> {
        Ok(self.0.allocate(0, length)?)
    }

    fn sync(&self) -> Result<()> {
        Ok(self.0.sync_all()?)
    }
}

/// How long reads of one sort took.
#[derive(Default)]
struct Waits(Vec<Duration>);

impl Waits {
    fn at(&mut self, part: f64) -> Duration {
        self.0.sort_unstable();
        let last = self.0.len().saturating_sub(1);
        let at = (last as f64 * part) as usize;
        self.0.get(at).copied().unwrap_or_default()
    }

    fn in_words(&mut self) -> String {
        let micros = |wait: Duration| wait.as_micros();
        format!(
            "median {} us, 99 of 100 within {} us, most {} us ({} reads)",
            micros(self.at(0.5)),
            micros(self.at(0.99)),
            micros(self.at(1.0)),
            self.0.len()
        )
    }
}

/// What is read beside the punch.
const LOOKED_AT: [&str; 3] = [
    "faults elsewhere in the file",
    "cached reads of the file",
    "reads of another file",
];

/// What one kind of faults came to.
#[derive(Default)]
struct Taken {
    punches: Vec<f64>,
    faults: u64,
    waits: [Waits; 3],
}

/// Measures on a mount and through the library, and prints the figures; false if the bound is not kept
/// through the library.
pub(super) fn measure(server: &Server, scratch: &Scratch, rounds: usize) -> Result<bool> {
    println!(
        "a punch of {} MiB in {} extents, medians of {rounds} interleaved rounds; {FAULTERS} threads \
         that fault, 3 that look on, and the punch share {} processors; load {}",
        PUNCHED >> 20,
        2 * PUNCHED / WRITTEN_EVERY,
        thread_count(),
        load()
    );
    let image = scratch.join("ranges.img");
    prepare::empty(&image, IMAGE_MIB)?;
    let directory = scratch.directory("ranges-mnt")?;
    let mut taken = [(); 3].map(|()| Taken::default());
    for round in 0..rounds {
        for place in 0..FAULTS.len() {
            let at = (round + place) % FAULTS.len();
            let mount = ServedMount::new(server, &image, &directory, "rw")?;
            let done = on_mount(&directory, FAULTS[at], &mut taken[at]);
            mount.unmount()?;
            done.context("on a mount")?;
        }
    }
    print("on a mount, faults through maps", &mut taken);
    let mut taken = [(); 3].map(|()| Taken::default());
    for round in 0..rounds {
        for place in 0..FAULTS.len() {
            let at = (round + place) % FAULTS.len();
            in_library(&image, FAULTS[at], &mut taken[at]).context("through the library")?;
        }
    }
    let times = print("through the library, faults by reads", &mut taken);
    std::fs::remove_file(&image)?;
    if times > TIMES_MAX {
        println!("  that is more than {TIMES_MAX} times");
    }
    Ok(times <= TIMES_MAX)
}

fn thread_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn on_mount(directory: &Path, faults: Faults, taken: &mut Taken) -> Result<()> {
    let open = |name: &str, length: u64| -> Result<Mounted> {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(directory.join(name))?;
        file.set_len(length)?;
        let map = FileMap::new(&file, 0, usize::try_from(length)?)?;
        Ok(Mounted(file, map))
    };
    let (file, other) = (open(FILE, PUNCHED + BEHIND)?, open(OTHER, BEHIND)?);
    punch_once(&file, &other, faults, taken)
}

fn in_library(image: &Path, faults: Faults, taken: &mut Taken) -> Result<()> {
    let volume = Volume::open(image, Options::new().write(true).cache(CACHE_BYTES))?;
    let options = OpenOptions::new().read(true).write(true).create(true);
    let open = |name: &str| options.open(&volume, name).map(Opened);
    let (file, other) = (open(FILE)?, open(OTHER)?);
    let done = punch_once(&file, &other, faults, taken);
    drop((file, other));
    volume.close()?;
    done
}

/// Gives the range its space, in extents of a page and of what lies between.
fn prepare_files(file: &dyn Bytes, other: &dyn Bytes) -> Result<()> {
    file.allocate(PUNCHED + BEHIND)?;
    let page = vec![0x5a; PAGE as usize];
    for offset in (0..PUNCHED).step_by(WRITTEN_EVERY as usize) {
        file.write(offset, &page)?;
    }
    let chunk = vec![0x5a; 1 << 20];
    for offset in (0..BEHIND).step_by(chunk.len()) {
        file.write(PUNCHED + offset, &chunk)?;
        other.write(offset, &chunk)?;
    }
    file.sync()?;
    other.sync()
}

fn punch_once(
    file: &dyn Bytes,
    other: &dyn Bytes,
    faults: Faults,
    taken: &mut Taken,
) -> Result<()> {
    prepare_files(file, other)?;
    for offset in (PUNCHED..PUNCHED + CACHED).step_by(PAGE as usize) {
        file.touch(offset)?;
    }
    let is_over = AtomicBool::new(false);
    let is_over = &is_over;
    let (punch, faulted, waits) = thread::scope(|scope| -> Result<_> {
        let faulters: Vec<_> = (0..FAULTERS)
            .filter(|_| faults != Faults::Nowhere)
            .map(|number| {
                let of = if faults == Faults::InRange {
                    file
                } else {
                    other
                };
                let length = if faults == Faults::InRange {
                    PUNCHED
                } else {
                    BEHIND
                };
                scope.spawn(move || fault(of, length, number as u64, is_over))
            })
            .collect();
        let lookers: Vec<_> = (0..LOOKED_AT.len())
            .map(|number| scope.spawn(move || look(file, other, number, is_over)))
            .collect();
        // All of them run before it begins.
        std::thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        let punched = file.punch();
        let punch = start.elapsed();
        is_over.store(true, Ordering::SeqCst);
        let mut faulted = 0;
        for faulter in faulters {
            faulted += faulter.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        let mut waits = Vec::new();
        for looker in lookers {
            waits.push(looker.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        punched.map(|()| (punch, faulted, waits))
    })?;
    taken.punches.push(punch.as_secs_f64());
    taken.faults += faulted;
    for (all, some) in taken.waits.iter_mut().zip(waits) {
        all.0.extend(some);
    }
    Ok(())
}

/// Faults at random pages until it is over: how many.
fn fault(of: &dyn Bytes, length: u64, number: u64, is_over: &AtomicBool) -> Result<u64> {
    let (mut random, mut count) = (Random::new(number), 0);
    while !is_over.load(Ordering::SeqCst) {
        of.touch(random.below(length / PAGE) * PAGE)?;
        count += 1;
    }
    Ok(count)
}

/// Reads what [`LOOKED_AT`] says until it is over: how long each read took.
fn look(
    file: &dyn Bytes,
    other: &dyn Bytes,
    number: usize,
    is_over: &AtomicBool,
) -> Result<Vec<Duration>> {
    let (mut random, mut waits) = (Random::new(number as u64 + 100), Vec::new());
    while !is_over.load(Ordering::SeqCst) {
        let start = Instant::now();
        match number {
            0 => file.touch(PUNCHED + CACHED + random.below((BEHIND - CACHED) / PAGE) * PAGE)?,
            1 => file.touch(PUNCHED + random.below(CACHED / PAGE) * PAGE)?,
            _ => other.touch(random.below(BEHIND / PAGE) * PAGE)?,
        }
        waits.push(start.elapsed());
        std::thread::sleep(PAUSE);
    }
    Ok(waits)
}

fn median(of: &mut [f64]) -> f64 {
    of.sort_unstable_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or_default()
}

/// Prints the figures of one way; how many times as long as alone a punch takes under faults.
fn print(how: &str, taken: &mut [Taken; 3]) -> f64 {
    println!("{how}:");
    let medians = taken.each_mut().map(|taken| median(&mut taken.punches));
    for ((faults, taken), punch) in FAULTS.iter().zip(&mut *taken).zip(medians) {
        let what = match faults {
            Faults::Nowhere => "alone",
            Faults::InOther => "faults in another file",
            Faults::InRange => "faults in the range",
        };
        println!("  {what}: {punch:.3} s, {} faults in all", taken.faults);
        for (name, waits) in LOOKED_AT.iter().zip(&mut taken.waits) {
            println!("    {name}: {}", waits.in_words());
        }
    }
    let [alone, other, range] = medians;
    println!(
        "  faults in the range: {:.2} times as long as alone, {:.2} times as long as with as many \
         threads on another file",
        range / alone,
        range / other
    );
    range / alone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_sorted_before_they_are_told() {
        let mut waits = Waits((1..=200).rev().map(Duration::from_micros).collect());
        assert_eq!(
            waits.in_words(),
            "median 100 us, 99 of 100 within 198 us, most 200 us (200 reads)"
        );
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
    }
}
