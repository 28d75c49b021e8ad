//! Each of ext4's invalidators, stopped where a filler would do harm, and with its fence left out:
//! then the filler does, and what the file holds tells.

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicUsize, Ordering};
use pagefence_lock_order::primitives::thread;
use pagefence_page_cache::WaitFor;
use pagefence_page_cache::probe::Stop;
use pagefence_vfs::{FallocateMode, FileSystem as _, InodeId};

use super::device::TestDevice;
use super::maps::{Source, Space, with_either};
use super::{
    BLOCK, after_power_cut, create, drop_cache, extents, formatted, formatted_as, open, punch,
    read, set_size, wait_for, write,
};
use crate::filesystem::{File, FileSystem};
use crate::mkfs::Kind;

/// Blocks of each file.
const BLOCKS: u64 = 16;
/// The block that the filler wants.
const WANTED: u64 = 8;

/// Who takes blocks away, or moves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Invalidator {
    Truncate,
    Punch,
    Zero,
    Collapse,
    Insert,
    Exchange,
}

use Invalidator::*;

const ALL: [Invalidator; 6] = [Truncate, Punch, Zero, Collapse, Insert, Exchange];

impl Invalidator {
    /// Where its fence is asked for.
    fn source(self) -> &'static str {
        match self {
            Truncate => "ext4/src/truncate.rs",
            Punch | Zero => "ext4/src/punch.rs",

            Collapse | Insert => "ext4/src/shift_range.rs",
            Exchange => "ext4/src/exchange.rs",
        }
    }

    fn run(self, world: &World) {
        let (fs, [file, other]) = (&world.fs, &world.files);
        let allocate = |mode| fs.allocate(file, 4 * BLOCK, 8 * BLOCK, mode);
        let outcome = match self {
            Truncate => set_size(fs, world.id, 4 * BLOCK),
            Punch => punch(fs, file, 4 * BLOCK..12 * BLOCK),
            Zero => allocate(FallocateMode::ZERO_RANGE),
            Collapse => fs.allocate(file, 4 * BLOCK, 2 * BLOCK, FallocateMode::COLLAPSE_RANGE),
            Insert => allocate(FallocateMode::INSERT_RANGE),
            Exchange => fs.exchange_range(file, 4 * BLOCK, other, 4 * BLOCK, 8 * BLOCK),
        };
        outcome.expect("nothing fails");
    }

    /// What the file holds then, as one byte a block.
    fn apply(self, blocks: &mut Vec<u8>) {
        match self {
            Truncate => blocks[4..].fill(0),
            Punch | Zero => blocks[4..12].fill(0),
            Collapse => drop(blocks.drain(4..6)),
            Insert => drop(blocks.splice(4..4, [0; 8])),
            Exchange => blocks[4..12].copy_from_slice(&contents(1)[4..12]),
        }
    }
}

/// What block by block file 0 or 1 holds.
fn contents(file: u8) -> Vec<u8> {
    (0..BLOCKS as u8).map(|at| 100 * file + 1 + at).collect()
}

/// Who brings a page of the file in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filler {
    Read,
    /// Of a mapping of it.
    Load(Source),
}

const FILLERS: [Filler; 3] = [
    Filler::Read,
    Filler::Load(Source::Simulated),
    Filler::Load(Source::Real),
];

struct World {
    fs: FileSystem,
    id: InodeId,
    files: [File; 2],
    space: Option<Arc<Space>>,
}

impl World {
    fn of(device: &Arc<TestDevice>, filler: Filler) -> Self {
        let fs = open(device);
        let ids = ["one", "other"].map(|name| create(&fs, name));
        let files = ids.map(|id| fs.open(id, true).expect("it opens"));
        for (at, file) in (0..).zip(&files) {
            for (block, byte) in (0..).zip(contents(at)) {
                write(&fs, file, block * BLOCK, &[byte; BLOCK as usize]);
            }
            fs.sync_file(file, false).expect("it is written");
        }
        let space = match filler {
            Filler::Read => None,
            Filler::Load(source) => Some(Arc::new(Space::of(source, &files[0], 0..2 * BLOCKS))),
        };
        drop_cache(&fs);
        Self {
            fs,
            id: ids[0],
            files,
            space,
        }
    }

    /// Brings in what is missing of one block.
    fn fill(&self, block: u64) {
        let bytes = block * BLOCK..(block + 1) * BLOCK;
        match &self.space {
            None => drop(read(&self.fs, &self.files[0], bytes).expect("it can be read")),
            Some(space) => space.load(bytes.start, &mut [0; 8]),
        }
    }

    /// Whether the file holds what `invalidator` should have left, as far as anybody can see.
    fn is_right_after(&self, invalidator: Invalidator) -> bool {
        let mut expected = contents(0);
        invalidator.apply(&mut expected);
        if invalidator == Truncate {
            set_size(&self.fs, self.id, BLOCKS * BLOCK).expect("it grows");
        }
        let size = expected.len() as u64 * BLOCK;
        let seen = read(&self.fs, &self.files[0], 0..size + 1).expect("it can be read");
        let loaded = self.space.as_ref().map(|space| {
            let mut bytes = vec![0xEE; expected.len() * BLOCK as usize];
            space.load(0, &mut bytes);
            space.check();
            bytes
        });
        let bytes = |byte: &u8| std::iter::repeat_n(*byte, BLOCK as usize);
        let expected: Vec<u8> = expected.iter().flat_map(bytes).collect();
        seen == expected && loaded.is_none_or(|loaded| loaded == expected)
    }
}

/// Where a thread of a test stops, once.
#[derive(Default)]
struct Halt {
    is_reached: AtomicBool,
    is_lifted: AtomicBool,
}

impl Halt {
    fn at(fs: &FileSystem, stop: Stop) -> Arc<Self> {
        let halt = Arc::new(Self::default());
        let own = Arc::clone(&halt);
        fs.cache.stop_at(stop, move || own.stop());
        halt
    }

    fn stop(&self) {
        if !self.is_reached.swap(true, Ordering::AcqRel) {
            wait_for("the test", || self.is_lifted.load(Ordering::Acquire));
        }
    }

    fn is_reached(&self) -> bool {
        self.is_reached.load(Ordering::Acquire)
    }

    fn wait(&self) {
        wait_for("the stop", || self.is_reached());
    }

    fn lift(&self) {
        self.is_lifted.store(true, Ordering::Release);
    }
}

/// A filler knows that its page has data when the invalidator comes, and reads it when the pages are
/// gone and the blocks are not (K1). True if the file is wrong then.
fn is_overtaken(invalidator: Invalidator, filler: Filler, left_out: bool) -> bool {
    let world = World::of(&formatted(), filler);
    if left_out {
        world.fs.cache.leave_out_fences(invalidator.source());
    }
    let looked_up = Halt::at(&world.fs, Stop::LookedUp);
    let pages_gone = Halt::at(&world.fs, Stop::PagesGone);
    thread::scope(|scope| {
        let filling = scope.spawn(|| world.fill(WANTED));
        looked_up.wait();
        scope.spawn(|| invalidator.run(&world));
        if left_out {
            pages_gone.wait();
        } else {
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert!(!pages_gone.is_reached(), "{invalidator:?} waits");
        }
        looked_up.lift();
        if !left_out {
            // A load may lose its page again before it is mapped, and then waits for the fence.
            pages_gone.lift();
        }
        filling.join().expect("no panic");
        pages_gone.lift();
    });
    world.fs.cache.stop_nowhere();
    !world.is_right_after(invalidator)
}

fn only_with_its_fence(invalidator: Invalidator) {
    for filler in FILLERS {
        for left_out in [false, true] {
            let is_wrong = is_overtaken(invalidator, filler, left_out);
            assert_eq!(is_wrong, left_out, "{invalidator:?}, {filler:?}");
        }
    }
}

/// Of a truncate that makes the file longer. (One that makes it shorter sets the size before pages
/// go, and who brings one in looks at that under the page lock: S4.5, T6.) A store that comes when
/// what lies behind the end is zeros, and the size is what it was, marks no block as dirty that
/// begins behind it.
#[test]
fn the_fence_of_truncate() {
    with_either(store_beside_growth);
}

fn store_beside_growth(source: Source) {
    for left_out in [false, true] {
        let device = formatted_as(Kind::Ext3, 1024, "");
        let fs = open(&device);
        let id = create(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        write(&fs, &file, 0, &[1; 1000]);
        fs.sync_file(&file, false).expect("it is written");
        let space = Space::of(source, &file, 0..1);
        if left_out {
            fs.cache.leave_out_fences(Truncate.source());
        }
        let halt = Halt::at(&fs, Stop::PagesGone);
        thread::scope(|scope| {
            scope.spawn(|| set_size(&fs, id, 4096).expect("it grows"));
            halt.wait();
            let store = scope.spawn(|| space.store(2048, &[5; 10]));
            let most = if left_out { 30_000 } else { 100 };
            let start = std::time::Instant::now();
            while !store.is_finished() && start.elapsed().as_millis() < most {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            let is_early = store.is_finished();
            halt.lift();
            assert_eq!(is_early, left_out);
        });
        fs.cache.stop_nowhere();
        let stored = || read(&fs, &file, 2048..2058).expect("it can be read");
        assert_eq!(stored(), [5; 10]);
        drop(space);
        fs.sync_file(&file, false).expect("it is written");
        drop_cache(&fs);
        assert_eq!(stored() != [5; 10], left_out, "it was there, and is lost");
    }
}

#[test]
fn the_fence_of_punch() {
    only_with_its_fence(Punch);
}

#[test]
fn the_fence_of_zero() {
    only_with_its_fence(Zero);
}

#[test]
fn the_fence_of_collapse() {
    only_with_its_fence(Collapse);
}

#[test]
fn the_fence_of_insert() {
    only_with_its_fence(Insert);
}

#[test]
fn the_fence_of_exchange() {
    only_with_its_fence(Exchange);
}

/// A store that comes when fallocate has found a hole, and is given its place by writeback, before
/// the unwritten blocks are there.
#[test]
fn the_fence_of_fallocate() {
    with_either(store_beside_preallocation);
}

fn store_beside_preallocation(source: Source) {
    for left_out in [false, true] {
        let device = formatted();
        let fs = open(&device);
        let id = create(&fs, "file");
        set_size(&fs, id, BLOCKS * BLOCK).expect("it grows");
        fs.sync().expect("it is written");
        let file = fs.open(id, true).expect("it opens");
        let space = Space::of(source, &file, 0..BLOCKS);
        if left_out {
            fs.cache.leave_out_fences("ext4/src/fallocate.rs");
        }
        let halt = Arc::new(Halt::default());
        let own = Arc::clone(&halt);
        fs.instance.probe.before_transaction(move || own.stop());
        let outcome = thread::scope(|scope| {
            let filled =
                scope.spawn(|| fs.allocate(&file, 0, BLOCKS * BLOCK, FallocateMode::empty()));
            halt.wait();
            let store = scope.spawn(|| {
                space.store(WANTED * BLOCK, &[5; 10]);
                fs.sync_file(&file, false).expect("it is written");
            });
            if left_out {
                wait_for("the store", || store.is_finished());
            } else {
                std::thread::sleep(std::time::Duration::from_millis(100));
                assert!(!store.is_finished(), "it waits");
            }
            halt.lift();
            filled.join().expect("no panic")
        });
        drop(space);
        drop_cache(&fs);
        let stored = read(&fs, &file, WANTED * BLOCK..WANTED * BLOCK + 10);
        assert_eq!(stored.expect("it can be read"), [5; 10]);
        let covered: u64 = extents(&fs, id).iter().map(|extent| extent.length).sum();
        let is_wrong = outcome.is_err() || covered != BLOCKS * BLOCK;
        assert_eq!(
            is_wrong, left_out,
            "{outcome:?}, {covered} bytes have space"
        );
    }
}

/// K1 and K2: a filler that comes when the pages are gone, or the blocks as well, waits, and finds
/// the file as it is then.
#[test]
fn a_filler_waits_while_pages_or_blocks_are_gone() {
    for filler in FILLERS {
        wait_while_gone(filler);
    }
}

fn wait_while_gone(filler: Filler) {
    for (invalidator, stop) in ALL
        .into_iter()
        .flat_map(|invalidator| [Stop::PagesGone, Stop::BlocksGone].map(|stop| (invalidator, stop)))
    {
        let world = World::of(&formatted(), filler);
        let halt = Halt::at(&world.fs, stop);
        let filled = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| invalidator.run(&world));
            halt.wait();
            let filling = scope.spawn(|| {
                // Of a file that is cut, what is before its end: behind it nobody waits.
                world.fill(if invalidator == Truncate { 2 } else { WANTED });
                filled.store(true, Ordering::Release);
            });
            std::thread::sleep(std::time::Duration::from_millis(100));
            let is_early = filled.load(Ordering::Acquire);
            halt.lift();
            assert!(!is_early, "{invalidator:?} at {stop:?}, {filler:?}");
            filling.join().expect("no panic");
        });
        world.fs.cache.stop_nowhere();
        let is_right = world.is_right_after(invalidator);
        assert!(is_right, "{invalidator:?} at {stop:?}, {filler:?}");
    }
}

/// B3: what is stored between the flush and the drop of the pages is lost, if the flush comes before
/// the lock.
#[test]
fn the_flush_inside_the_fence() {
    with_either(|source| {
        for invalidator in [Collapse, Insert, Exchange] {
            for left_out in [false, true] {
                let is_lost = store_beside_the_flush(invalidator, source, left_out);
                assert_eq!(is_lost, left_out, "{invalidator:?}");
            }
        }
    });
}

/// True if what was stored is lost.
fn store_beside_the_flush(invalidator: Invalidator, source: Source, left_out: bool) -> bool {
    let world = World::of(&formatted(), Filler::Load(source));
    let (fs, files) = (&world.fs, &world.files);
    let space = Arc::clone(world.space.as_ref().expect("it is mapped"));
    space.store(WANTED * BLOCK, &[50; BLOCK as usize]);
    if left_out {
        fs.cache.flush_before_fences();
    }
    let (is_done, mapping) = (AtomicBool::new(false), Arc::clone(&files[0].mapping));
    fs.cache.stop_at(Stop::BeforeLock, move || {
        if is_done.swap(true, Ordering::AcqRel) {
            return;
        }
        let (space, mapping) = (Arc::clone(&space), Arc::clone(&mapping));
        let company = thread::spawn("company", move || {
            let flushed = mapping.write_back(&mut Held::at_entry(), 0..u64::MAX, WaitFor::All);
            flushed.expect("nothing fails");
            space.store(WANTED * BLOCK, &[99; BLOCK as usize]);
        });
        let company = company.expect("a thread");
        company.join().expect("no panic");
    });
    invalidator.run(&world);
    fs.cache.stop_nowhere();
    let (file, block) = match invalidator {
        Collapse => (&files[0], WANTED - 2),
        Insert => (&files[0], WANTED + 8),
        _ => (&files[1], WANTED),
    };
    let bytes = block * BLOCK..(block + 1) * BLOCK;
    let stored = read(fs, file, bytes).expect("it can be read");
    let lost = [50; BLOCK as usize];
    assert!(stored == [99; BLOCK as usize] || stored == lost, "either");
    stored == lost
}

/// B21: a power cut when a file was cut inside a block and grew again, and nothing was written back
/// since.
#[test]
fn the_edge_inside_the_fence() {
    cut_inside_a_block(None);
    with_either(|source| cut_inside_a_block(Some(source)));
}

/// Of data that was written, or stored through a mapping, which is there all the time.
fn cut_inside_a_block(source: Option<Source>) {
    for left_out in [false, true] {
        let device = formatted();
        let fs = open(&device);
        let id = create(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        let data = [7; 2 * BLOCK as usize];
        set_size(&fs, id, 2 * BLOCK).expect("it grows");
        let space = source.map(|source| Space::of(source, &file, 0..2));
        match &space {
            None => write(&fs, &file, 0, &data),
            Some(space) => space.store(0, &data),
        }
        fs.sync().expect("it is written");
        if left_out {
            fs.cache.leave_out_edges();
        }
        set_size(&fs, id, 1000).expect("it is cut");
        set_size(&fs, id, BLOCK).expect("it grows");
        let live = fs.instance.live().expect("it is written to");
        live.commit(live.journal.running().0)
            .expect("it is committed");
        let shows = old_bytes_after_power_cut(&device);
        assert_eq!(shows, left_out, "old bytes");
    }
}

fn old_bytes_after_power_cut(device: &TestDevice) -> bool {
    let fs = after_power_cut(device);
    let file = fs.open(super::find(&fs, "file"), false).expect("it opens");
    let bytes = read(&fs, &file, 0..BLOCK).expect("it can be read");
    assert_eq!(bytes.len(), BLOCK as usize, "it is as long as it was");
    bytes[1000..].iter().any(|byte| *byte != 0)
}

/// K13: a filler that comes between two transactions of a collapse or an insertion waits.
#[test]
fn a_filler_waits_between_two_transactions() {
    // Each waits for the commit of one before the next begins.
    for (invalidator, filler) in [Collapse, Insert]
        .into_iter()
        .flat_map(|invalidator| FILLERS.map(|filler| (invalidator, filler)))
    {
        let world = World::of(&super::formatted_with("^has_journal"), filler);
        let halt = Arc::new(Halt::default());
        let (starts, own) = (AtomicUsize::new(0), Arc::clone(&halt));
        world.fs.instance.probe.before_transaction(move || {
            if starts.fetch_add(1, Ordering::AcqRel) == 1 {
                own.stop();
            }
        });
        let filled = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| invalidator.run(&world));
            halt.wait();
            let filling = scope.spawn(|| {
                world.fill(WANTED);
                filled.store(true, Ordering::Release);
            });
            std::thread::sleep(std::time::Duration::from_millis(100));
            let is_early = filled.load(Ordering::Acquire);
            halt.lift();
            assert!(!is_early, "{invalidator:?}, {filler:?}");
            filling.join().expect("no panic");
        });
        let is_right = world.is_right_after(invalidator);
        assert!(is_right, "{invalidator:?}, {filler:?}");
    }
}
