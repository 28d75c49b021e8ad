//! A long punch under faults: how long it takes, and how long others wait meanwhile.
//!
//! The range has its space in many extents, so that the punch takes many steps. It is punched while
//! nothing else goes on, while eight threads read another file, and while they read in the
//! range: the second is what sharing the processors costs, whatever is read.
//!
//! On a mount, fallocate(2) is not done when the server has answered: the kernel then drops what it
//! has cached of the range, without a lock that faults take, until it finds no page there. So the
//! answer is timed as well, by when the file's space is seen to have come to what stays; and the same
//! is measured on the mount of a server that does nothing ([`super::null_server`]), where all is the
//! kernel's. Threads that fault are threads that load, most of the time what is there already: what the
//! server does is measured once more with a server that the scheduler prefers to them, where it waits
//! for locks and requests, and not for a processor.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use pagefence::{OpenOptions, Options, Volume};
use pagefence_host_memory::FileMap;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread;

use super::{load, null_server, prepare};
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
/// What a punch may take at most under faults in its range, in times of what it takes alone: through
/// the library, and on a mount until the answer of a server that is preferred (RACES B2).
const TIMES_MAX: f64 = 3.0;
const FILE: &str = null_server::FILES[0];
const OTHER: &str = null_server::FILES[1];
/// Who faults for so long gives up, so that a punch that is starved comes to its end.
const STARVED: Duration = Duration::from_secs(60);
/// Of a server that is preferred, as of nice(1).
const SERVER_NICENESS: i32 = -15;
/// So often the space of a file is looked at while it is punched.
const LOOK_EVERY: Duration = Duration::from_millis(1);

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
    /// Bytes of space that the server says the file has, where there is one.
    fn space(&self) -> Result<Option<u64>>;
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

    fn space(&self) -> Result<Option<u64>> {
        use rustix::fs::{AtFlags, StatxFlags};
        // What the server says, and not what the kernel remembers.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        let found = rustix::fs::statx(&self.0, c"", flags, StatxFlags::BLOCKS)?;
        Ok(Some(found.stx_blocks * 512))
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

    fn space(&self) -> Result<Option<u64>> {
        Ok(None)
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

/// What each of [`FAULTS`] came to.
type Kinds = [Taken; 3];

/// What one kind of faults came to.
#[derive(Default)]
struct Taken {
    /// Seconds of each punch.
    punches: Vec<f64>,
    /// Seconds until the server had done its part, of each punch on a mount.
    answers: Vec<f64>,
    /// Punches that did not end before those who fault gave up.
    starved: usize,
    faults: u64,
    waits: [Waits; 3],
}

/// Measures on mounts and through the library, and prints the figures; false if the bound is not kept.
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
    let (mut ours, mut preferred) = <(Kinds, Kinds)>::default();
    let (mut nothing, mut library) = <(Kinds, Kinds)>::default();
    for round in 0..rounds {
        for place in 0..FAULTS.len() {
            let at = (round + place) % FAULTS.len();
            let faults = FAULTS[at];
            let mount = ServedMount::new(server, &image, &directory, "rw")?;
            on_mount(mount, &directory, faults, &mut ours[at]).context("on a mount")?;
            let mount = with_niceness(SERVER_NICENESS, || {
                ServedMount::new(server, &image, &directory, "rw")
            })?;
            let taken = &mut preferred[at];
            on_mount(mount, &directory, faults, taken).context("on a mount, preferred")?;
            let mount = ServedMount::nothing(&directory)?;
            pagefence_fuse_front::tune(&directory);
            on_mount(mount, &directory, faults, &mut nothing[at]).context("without a server")?;
            in_library(&image, faults, &mut library[at]).context("through the library")?;
        }
    }
    std::fs::remove_file(&image)?;
    print("on a mount, faults through maps", &mut ours);
    print("the same, the server preferred", &mut preferred);
    print("on a mount of a server that does nothing", &mut nothing);
    print("through the library, faults by reads", &mut library);
    println!("\n{HEAD}");
    let (times, _) = summary("through the library", &mut library);
    summary("on a mount", &mut ours);
    let (_, answered) = summary("the same, the server preferred", &mut preferred);
    summary(
        "the kernel's alone: a server that does nothing",
        &mut nothing,
    );
    println!();
    let mut is_bounded = true;
    for (what, times) in [
        ("through the library", times),
        ("until the answer of a server that is preferred", answered),
    ] {
        let is_within = times <= TIMES_MAX;
        is_bounded &= is_within;
        let verdict = if is_within { "within" } else { "MORE THAN" };
        println!("{what}: {times:.2} times as long under faults, {verdict} {TIMES_MAX:.2}");
    }
    Ok(is_bounded)
}

/// Starts what `start` starts with this niceness, which is not kept for anything else.
fn with_niceness<T>(niceness: i32, start: impl FnOnce() -> Result<T>) -> Result<T> {
    use rustix::process::{getpriority_process, setpriority_process};
    // Of this thread, and of processes that it starts.
    let before = getpriority_process(None)?;
    setpriority_process(None, niceness)?;
    let started = start();
    setpriority_process(None, before)?;
    started
}

fn thread_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn on_mount(mount: ServedMount, directory: &Path, faults: Faults, taken: &mut Taken) -> Result<()> {
    let done = on_files(directory, faults, taken);
    mount.unmount()?;
    done
}

fn on_files(directory: &Path, faults: Faults, taken: &mut Taken) -> Result<()> {
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
    let (punch, answer, faulted, waits) = thread::scope(|scope| -> Result<_> {
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
        let watcher = scope.spawn(move || answered(file, start, is_over));
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
        let answer = watcher.join().map_err(|_| anyhow!("a thread panicked"))??;
        punched.map(|()| (punch, answer, faulted, waits))
    })?;
    taken.punches.push(punch.as_secs_f64());
    taken
        .answers
        .extend(answer.map(|answer| answer.as_secs_f64()));
    taken.starved += usize::from(faulted > 0 && punch >= STARVED);
    taken.faults += faulted;
    for (all, some) in taken.waits.iter_mut().zip(waits) {
        all.0.extend(some);
    }
    Ok(())
}

/// When the space of `file` changed last until it is over: by then the server had done its part.
fn answered(file: &dyn Bytes, start: Instant, is_over: &AtomicBool) -> Result<Option<Duration>> {
    let Some(mut space) = file.space()? else {
        return Ok(None);
    };
    let mut changed = start.elapsed();
    loop {
        let was_over = is_over.load(Ordering::SeqCst);
        let asked = start.elapsed();
        let found = file.space()?.unwrap_or_default();
        if found != space {
            (space, changed) = (found, asked);
        }
        if was_over {
            return Ok(Some(changed));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Faults at random pages until it is over: how many.
fn fault(of: &dyn Bytes, length: u64, number: u64, is_over: &AtomicBool) -> Result<u64> {
    let (mut random, mut count) = (Random::new(number), 0);
    let start = Instant::now();
    while !is_over.load(Ordering::SeqCst) && start.elapsed() < STARVED {
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

/// Prints the figures of one way.
fn print(how: &str, taken: &mut Kinds) {
    println!("{how}:");
    for (faults, taken) in FAULTS.iter().zip(taken) {
        let what = match faults {
            Faults::Nowhere => "alone",
            Faults::InOther => "faults in another file",
            Faults::InRange => "faults in the range",
        };
        println!(
            "  {what}: {:.3} s, {} faults in all",
            median(&mut taken.punches),
            taken.faults
        );
        if taken.starved > 0 {
            println!(
                "    {} did not end until who faults gave up, after {STARVED:?}",
                taken.starved
            );
        }
        for (name, waits) in LOOKED_AT.iter().zip(&mut taken.waits) {
            println!("    {name}: {}", waits.in_words());
        }
    }
}

const HEAD: &str = "| a punch, s | alone | faults in another file | in the range | times alone | \
                    answered, alone | faults in another file | in the range | times alone | then |\n\
                    |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|";

/// Prints a line of the table; how many times as long as alone a punch takes under faults in its range,
/// and how many times as long its answer.
fn summary(how: &str, taken: &mut Kinds) -> (f64, f64) {
    let punches = taken.each_mut().map(|taken| median(&mut taken.punches));
    let answers = taken.each_mut().map(|taken| median(&mut taken.answers));
    let times = |[alone, _, range]: [f64; 3]| range / alone;
    let cells = |of: [f64; 3]| {
        let [alone, other, range] = of;
        format!("{alone:.3} | {other:.3} | {range:.3} | {:.2}", times(of))
    };
    let answered = if taken[0].answers.is_empty() {
        "– | – | – | – | –".to_owned()
    } else {
        format!("{} | {:.3}", cells(answers), punches[2] - answers[2])
    };
    println!("| {how} | {} | {answered} |", cells(punches));
    (times(punches), times(answers))
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
