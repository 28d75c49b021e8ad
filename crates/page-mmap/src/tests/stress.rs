//! Everybody at once on one file: threads that load and store through maps, writers, readers, who
//! punches and truncates, writeback and reclaim. No byte may be stale, foreign or lost.
//!
//! The file is cells of 1 KiB, each with one owner, who alone stores or writes to it. Each 8 bytes of a
//! cell say where they belong and how often the cell was written before. So who reads a cell knows what
//! it may find: nothing older than what its owner had finished before, nothing that was there when a
//! punch began that is over, and zeros only if there was a punch since the owner began. (Sub-page
//! truncates count as punches.)

mod actors;

use std::time::{Duration, Instant};

use pagefence_fs_model::ledger::{CELL, Ledger};
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, RwLock};
use pagefence_page_cache::PAGE_SIZE;

use super::disk::Disk;
use super::{Bench, PAGE, Task, load};
use crate::mutants::Mutant;
use crate::{Kind, Region};
use actors::{ACTORS, Actor};

/// Pages of the file: more than the cache has frames.
const PAGES: u64 = 256;

/// Pages at the end that come and go: nobody loads or stores there while they do, since that would
/// end the process, but for the page before them, which loses and gets back its last cells only.
const TAIL: u64 = 16;

/// Bytes of the cache: 118 pages.
const BUDGET: u64 = 512 << 10;

/// An actor that does nothing for so long hangs.
const STUCK: Duration = Duration::from_secs(20);

/// What all actors share.
struct World {
    bench: Arc<Bench>,
    shared: [Region<Disk>; 2],
    private: Region<Disk>,
    ledger: Ledger,
    /// Held exclusively while the tail is not there.
    tail: RwLock<()>,
    stop: AtomicBool,
    /// What each actor has done.
    done: [AtomicU64; ACTORS.len()],
    wrong: Mutex<Vec<String>>,
}

impl World {
    fn new() -> Arc<Self> {
        let disk = Disk::hole(PAGES * PAGE, CELL);
        let bench = Bench::with(disk, BUDGET, 1);
        Arc::new(Self {
            shared: [0, 1].map(|_| bench.map(0..PAGES, Kind::Shared)),
            private: bench.map(0..PAGES, Kind::Private),
            ledger: Ledger::new(PAGES * PAGE),
            tail: RwLock::new(()),
            stop: AtomicBool::new(false),
            done: std::array::from_fn(|_| AtomicU64::new(0)),
            wrong: Mutex::new(Vec::new()),
            bench,
        })
    }

    fn note(&self, wrong: String) {
        let mut list = self.wrong.lock();
        if list.len() < 10 {
            list.push(wrong);
        }
        drop(list);
        self.stop.store(true, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Lets all actors act for `time`, or until something is wrong; then looks at everything. What is
    /// wrong.
    fn run(self: &Arc<Self>, time: Duration) -> Vec<String> {
        let tasks: Vec<_> = (0..ACTORS.len())
            .map(|nr| {
                let world = Arc::clone(self);
                Task::start(move || {
                    let mut actor = Actor::new(nr, world);
                    while actor.act() {}
                })
            })
            .collect();
        self.watch(time);
        self.stop.store(true, Ordering::SeqCst);
        tasks.into_iter().for_each(Task::finish);
        for (nr, actor) in ACTORS.iter().enumerate() {
            let done = self.done[nr].load(Ordering::SeqCst);
            println!("{actor:?} {nr}: {done} operations");
        }
        self.look_at_all();
        std::mem::take(&mut *self.wrong.lock())
    }

    /// Waits until `time` is over; nobody may stand still.
    fn watch(&self, time: Duration) {
        let counts = || self.done.each_ref().map(|done| done.load(Ordering::SeqCst));
        let start = Instant::now();
        let mut seen = counts();
        let mut since = [start; ACTORS.len()];
        while start.elapsed() < time && !self.is_over() {
            std::thread::sleep(Duration::from_millis(50));
            let now = counts();
            for nr in 0..ACTORS.len() {
                if now[nr] != seen[nr] {
                    since[nr] = Instant::now();
                }
                assert!(since[nr].elapsed() < STUCK, "{:?} {nr} hangs", ACTORS[nr]);
            }
            seen = now;
        }
    }

    /// When all is quiet: the cells by maps, by reads, and on the disk are the same, and right.
    fn look_at_all(&self) {
        let bench = &self.bench;
        let expect = self.ledger.expect_all();
        bench.sync().expect("synced");
        let contents = bench.disk().contents();
        for reclaims in [false, true] {
            if reclaims {
                bench.reclaim_all();
            }
            for page in 0..PAGES {
                let at = usize::try_from(page * PAGE).expect("small");
                let on_disk = &contents[at..at + PAGE_SIZE];
                let read = bench.read(page * PAGE, PAGE_SIZE).expect("read");
                let is_same = self
                    .shared
                    .iter()
                    .chain([&self.private])
                    .all(|region| load(region, page * PAGE, PAGE_SIZE) == on_disk);
                if read != on_disk || !is_same {
                    self.note(format!("page {page} differs, reclaimed: {reclaims}"));
                }
                for (nr, cell) in on_disk.chunks(CELL).enumerate() {
                    let cell_nr = at / CELL + nr;
                    if let Err(wrong) = self.ledger.check(cell_nr, cell, expect[cell_nr]) {
                        self.note(format!("at the end: {wrong:?}"));
                    }
                }
            }
        }
        bench.reclaim_all();
        let memory = bench.memory().allocated_pages();
        if (memory, bench.mapping.nr_pages()) != (0, 0) {
            self.note(format!("{memory} pages of memory are left"));
        }
        if bench.disk().violations() > 0 {
            self.note(format!("{} violations", bench.disk().violations()));
        }
    }
}

#[test]
fn nothing_is_stale_or_lost() {
    let world = World::new();
    // For as long as somebody says, or 10 seconds.
    let seconds = std::env::var("PAGEFENCE_STRESS_SECONDS");
    let seconds = seconds.ok().and_then(|text| text.parse().ok());
    let wrong = world.run(Duration::from_secs(seconds.unwrap_or(10)));
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (nr, done) in world.done.iter().enumerate() {
        let done = done.load(Ordering::SeqCst);
        assert!(done > 0, "{:?} {nr} has done nothing", ACTORS[nr]);
    }
}

/// Whether something is found when `mutate` was done to the world.
fn is_found(mutate: impl FnOnce(&World)) -> bool {
    let world = World::new();
    mutate(&world);
    // It ends with the first finding.
    !world.run(Duration::from_secs(40)).is_empty()
}

#[test]
fn the_stress_finds_missing_write_protection() {
    assert!(is_found(|world| {
        for region in &world.shared {
            region.leave_out(Mutant::WriteProtection);
        }
    }));
}

#[test]
fn the_stress_finds_missing_protection_of_what_is_loaded() {
    assert!(is_found(|world| {
        for region in &world.shared {
            region.leave_out(Mutant::LoadProtection);
        }
    }));
}

#[test]
fn the_stress_finds_pages_that_stay_mapped() {
    assert!(is_found(|world| world.bench.cache.leave_memory()));
}

#[test]
fn the_stress_finds_readers_who_look_once() {
    assert!(is_found(|world| world.bench.cache.look_once()));
}
