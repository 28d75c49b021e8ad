//! One episode: a few files, each with its writers, storers, puncher and truncator, for a while;
//! then everything stops, and what is left is compared.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread;
use rustix::fs::{Advice, FallocateFlags};
use rustix::time::{ClockId, clock_gettime};

use crate::history::{By, Clear, History, Store, Verdict};
use crate::random::Random;
use crate::server::Served;
use crate::stamp::{self, SECTOR, Stamp, UNIT};
use crate::storer::{Storer, Task};

/// Length of a file: 48 pages, so that they meet often.
const SIZE: u64 = 48 * 4096;

/// Consecutive sectors of one owner: no divisor of a page, so that every page has several owners
/// and a write may reach into a second and third page.
const BLOCK: u64 = 11;

/// Owners of a file: the first two write, the others store through maps.
const OWNERS: u64 = 4;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// write(2) and maps, beside punches and truncates.
    Mixed,
    /// Maps alone, beside punches and truncates: nothing else changes the size.
    OnlyMaps,
}

/// What one episode found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    /// Broken: half stamps when all was quiet.
    pub(crate) torn: u64,
    /// Broken: files whose size the kernel and the server do not agree on.
    pub(crate) sizes: u64,
}

struct Contest<'a> {
    file: &'a File,
    number: u16,
    stop: &'a AtomicBool,
}

/// Runs one episode of `length` on fresh files, whose names and stamps begin with number `first`.
pub(crate) fn run(
    served: &Served,
    first: u16,
    length: Duration,
    complain: &mut dyn FnMut(String),
) -> Outcome {
    let kinds = [Kind::Mixed, Kind::Mixed, Kind::OnlyMaps];
    let mut outcome = Outcome::default();
    let stop = AtomicBool::new(false);
    let mut running = Vec::new();
    let mut storers: Vec<Vec<Storer>> = Vec::new();
    for (kind, number) in kinds.into_iter().zip(first..) {
        let path = served.join(&name(number));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .expect("a file can be created");
        file.set_len(SIZE).expect("it can be lengthened");
        let of_file = (0..OWNERS)
            .filter(|&owner| !writes(kind, owner))
            .map(|owner| {
                Storer::start(&Task {
                    path: &path,
                    file: number,
                    size: SIZE,
                    owner,
                    owners: OWNERS,
                    block: BLOCK,
                    seed: u64::from(number) * OWNERS + owner,
                })
            })
            .collect();
        storers.push(of_file);
        running.push((kind, number, file));
    }

    let histories: Vec<History> = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (kind, number, file) in &running {
            let contest = || Contest {
                file,
                number: *number,
                stop: &stop,
            };
            let mut of_file = Vec::new();
            for owner in (0..OWNERS).filter(|&owner| writes(*kind, owner)) {
                let contest = contest();
                of_file.push(scope.spawn(move || contest.write(owner)));
            }
            let (punching, truncating) = (contest(), contest());
            of_file.push(scope.spawn(move || punching.punch()));
            of_file.push(scope.spawn(move || truncating.truncate()));
            threads.push(of_file);
        }
        std::thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
        storers.iter_mut().flatten().for_each(Storer::stop);
        threads
            .into_iter()
            .map(|of_file| {
                let mut history = History::default();
                for thread in of_file {
                    history.merge(thread.join().expect("no contestant panics"));
                }
                history
            })
            .collect()
    });

    for (((kind, number, file), storers), mut history) in
        running.into_iter().zip(storers).zip(histories)
    {
        history.only_maps = kind == Kind::OnlyMaps;
        for storer in storers {
            storer.finish(&mut history);
        }
        settle(served, number, &file, &mut history, &mut outcome, complain);
        outcome.verdict.add(&history.judge(complain));
        std::fs::remove_file(served.join(&name(number))).expect("it can be removed");
    }
    outcome
}

/// Reads what is left, and compares the kernel's cache with the server.
fn settle(
    served: &Served,
    number: u16,
    file: &File,
    history: &mut History,
    outcome: &mut Outcome,
    complain: &mut dyn FnMut(String),
) {
    file.sync_all().expect("fsync");
    let size = file.metadata().expect("it is there").len();
    let mut cached = vec![0; SIZE as usize];
    let begin = now();
    file.read_exact_at(&mut cached, 0).expect("it can be read");
    history.note(number, 0, &cached, begin, now());
    let truth = served.contents(&name(number));
    if (size, truth.len() as u64) != (SIZE, SIZE) {
        outcome.sizes += 1;
        complain(format!(
            "sizes: {size} to the kernel, {} to the server",
            truth.len()
        ));
    }
    let stamps = |bytes| stamp::read(number, 0, bytes);
    for ((at, cached), (_, truth)) in stamps(&cached).zip(stamps(&truth)) {
        if cached != truth {
            let value = match cached {
                Stamp::Store(sequence) => sequence,
                Stamp::Zero | Stamp::Torn | Stamp::Misplaced => 0,
            };
            history.diverged.push((at, value));
        }
        // Nothing runs any more that could excuse half a stamp.
        outcome.torn += u64::from([cached, truth].contains(&Stamp::Torn));
    }
    // What the server holds, once more through the kernel: it is what a next mount would show.
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).expect("pages can be dropped");
    let mut again = vec![0; SIZE as usize];
    let begin = now();
    file.read_exact_at(&mut again, 0).expect("it can be read");
    history.note(number, 0, &again, begin, now());
}

impl Contest<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn random(&self, who: u64) -> Random {
        Random::new(u64::from(self.number) << 32 | who)
    }

    /// Reads whole sectors below the end and notes what was there.
    fn look(&self, offset: u64, length: u64, history: &mut History) {
        let mut bytes = vec![0; length as usize];
        let begin = now();
        let read = self
            .file
            .read_at(&mut bytes, offset)
            .expect("it can be read");
        let end = now();
        let stamps = read / UNIT as usize * UNIT as usize;
        history.note(self.number, offset, &bytes[..stamps], begin, end);
    }

    /// Writes up to a block of its own sectors at a time, and reads them back.
    fn write(&self, owner: u64) -> History {
        let mut random = self.random(owner);
        let mut history = History::default();
        let blocks = SIZE / SECTOR / BLOCK / OWNERS;
        let mut last = 0;
        while self.goes_on() {
            let block = random.below(blocks) * OWNERS + owner;
            let from = random.below(BLOCK);
            let sectors = 1 + random.below(BLOCK - from);
            let sector = block * BLOCK + from;
            let (offset, length) = (sector * SECTOR, sectors * SECTOR);
            self.look(offset, length, &mut history);
            let mut bytes = vec![0; length as usize];
            let mut begin = now();
            while begin <= last {
                begin = now();
            }
            last = begin;
            stamp::fill(self.number, offset, begin, &mut bytes);
            self.file
                .write_all_at(&bytes, offset)
                .expect("it can be written");
            let end = now();
            history
                .stores
                .extend((sector..sector + sectors).map(|sector| Store {
                    sector,
                    by: By::Write,
                    begin,
                    end,
                    done: true,
                }));
            self.look(offset, length, &mut history);
            if random.below(128) == 0 {
                self.file.sync_data().expect("fdatasync");
            }
        }
        history
    }

    /// Punches holes of whole sectors, and reads them.
    fn punch(&self) -> History {
        let mut random = self.random(OWNERS);
        let mut history = History::default();
        let sectors = SIZE / SECTOR;
        while self.goes_on() {
            let first = random.below(sectors);
            let count = 1 + random.below(64.min(sectors - first));
            let (from, length) = (first * SECTOR, count * SECTOR);
            let begin = now();
            rustix::fs::fallocate(
                self.file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                from,
                length,
            )
            .expect("a hole can be punched");
            history.clears[0].push(Clear {
                from,
                to: from + length,
                begin,
                end: now(),
                regrown: None,
            });
            self.look(from, length, &mut history);
            std::thread::sleep(Duration::from_micros(random.below(200)));
        }
        history
    }

    /// Cuts the file anywhere, makes it long again, and reads what was cut off.
    fn truncate(&self) -> History {
        let mut random = self.random(OWNERS + 1);
        let mut history = History::default();
        while self.goes_on() {
            let from = SIZE / 4 + random.below(SIZE * 3 / 4 / UNIT) * UNIT;
            let begin = now();
            self.file.set_len(from).expect("it can be cut");
            let end = now();
            std::thread::sleep(Duration::from_micros(random.below(300)));
            let regrown = now();
            self.file.set_len(SIZE).expect("it can be lengthened");
            history.clears[1].push(Clear {
                from,
                to: u64::MAX,
                begin,
                end,
                regrown: Some((regrown, now())),
            });
            let sector = from / SECTOR * SECTOR;
            self.look(sector, (SIZE - sector).min(64 * SECTOR), &mut history);
            std::thread::sleep(Duration::from_micros(1000 + random.below(2000)));
        }
        history
    }
}

fn writes(kind: Kind, owner: u64) -> bool {
    kind == Kind::Mixed && owner < OWNERS / 2
}

/// The name of a file.
pub(crate) fn name(number: u16) -> String {
    number.to_string()
}

/// Nanoseconds of the clock that all processes share.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
