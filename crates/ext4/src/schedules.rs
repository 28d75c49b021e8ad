//! All of ext4, with its page cache, journal and allocator, under a scheduler that chooses
//! interleavings: each column of the matrix (who takes blocks away, moves them, or gives back space)
//! against all who fill: reads, loads, stores, writes, writeback; and against somebody who wants
//! whatever becomes free.
//!
//! Oracles: what anybody reads was put there, by its tag, by this file's owners and not by who got its
//! blocks, also when the power was cut somewhere; the mapping checker; in the end the cache and the
//! device have the same, which is what the operation says; no block has two owners; and every block
//! that was free is free when the files are cut.

use std::time::Duration;

use pagefence_block_io::device::Operation;
use pagefence_block_io::{Device, MemoryDevice};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::thread::{JoinHandle, spawn};
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_lock_order::schedules::{by_chance, by_priority};
use pagefence_page_cache::simulated::AddressSpace;
use pagefence_page_cache::{Config, FaultError, PageCache, WaitFor};
use pagefence_vfs::{
    Error, ExtentState, FallocateMode, FileSystem as _, InodeId, MapFormat, WriteMode,
};

use crate::backing::FileData;
use crate::failures::device::TestDevice;
use crate::failures::{create, extents, find, punch, read, root, set_size};
use crate::filesystem::{File, FileSystem};
use crate::instance::Instance;
use crate::live::Live;
use crate::mkfs::{Contents, Kind, Parameters, Tree, format};
use crate::mount::{MountOptions, read_superblock};
use crate::recovery;

const PAGE: u64 = 4096;
/// Pages of the file.
const PAGES: u64 = 3;
/// What is free, in pages, beside what the files have.
const SPARE: u64 = 6;

/// What page `n` of the file holds, and of the other one; what is stored and written to the first; what
/// belongs to who takes what is free.
const TAGS: [u8; 3] = [11, 12, 13];
const OTHER: [u8; 3] = [21, 22, 23];
const STORED: u8 = 31;
const WRITTEN: u8 = 32;
const FOREIGN: u8 = 0xF0;

const SCHEDULES: usize = 400;

/// Who takes blocks away, moves them, or gives back space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Truncate,
    Punch,
    Zero,
    Collapse,
    Insert,
    Exchange,
    Migrate,
    PunchDelalloc,
}

use Column::*;

/// A file system of three files, "file", "other" and "taker", and few free blocks, as bytes.
fn image() -> &'static [u8] {
    let place = tempfile::NamedTempFile::new().expect("a file");
    let path = place.path().to_owned();
    ::shuttle::check_random(
        move || {
            let memory = MemoryDevice::new(5 << 20);
            let mut parameters = Parameters::new(Kind::Ext4);
            parameters.block_size = Some(1024);
            parameters.inodes = Some(32);
            parameters.reserved_percent = 0;
            parameters.contents = Contents::Zeros;
            format(&memory, &parameters, &Tree::new()).expect("a new file system");
            let device = Arc::new(TestDevice::new(memory));
            let fs = open(&device);
            for (name, tags) in [("file", TAGS), ("other", OTHER)] {
                let file = fs.open(create(&fs, name), true).expect("it opens");
                for (page, tag) in (0..).zip(tags) {
                    put(&fs, &file, page * PAGE, &[tag; PAGE as usize]);
                }
            }
            create(&fs, "taker");
            let filler = fs.open(create(&fs, "filler"), true).expect("it opens");
            fs.sync().expect("it is written");
            let free = fs.stat_fs().expect("it is known").blocks_available * 1024;
            let rest = free - SPARE * PAGE;
            let mode = FallocateMode::empty();
            fs.allocate(&filler, 0, rest, mode).expect("there is room");
            drop(filler);
            fs.shut_down().expect("all is written");
            std::fs::write(&path, device.memory().to_vec()).expect("written");
        },
        1,
    );
    std::fs::read(place.path()).expect("it was made").leak()
}

/// Opens it with a small cache and no thread but the journal's.
fn open(device: &Arc<TestDevice>) -> FileSystem {
    let options = MountOptions {
        write: true,
        ..MountOptions::default()
    };
    let device: Arc<dyn Device> = Arc::<TestDevice>::clone(device);
    let superblock = read_superblock(&*device, &options).expect("sound");
    let recovered = recovery::recover(device, superblock, true, &options).expect("sound");
    let mut instance =
        Instance::new(recovered.superblock, recovered.device, 1 << 20).expect("a size of blocks");
    instance.guard_metadata();
    let journal = recovery::journal_of(&instance).expect("sound");
    let never = Some(Duration::from_secs(3600));
    instance.live = Some(Live::start(&instance, journal, never, false).expect("it starts"));
    let cache = PageCache::new(Config {
        readahead_workers: 0,
        flusher_threads: 0,
        ..Config::new(256 << 10)
    });
    FileSystem::new(instance, cache.expect("memory"), 16, Vec::new())
}

fn put(fs: &FileSystem, file: &File, offset: u64, bytes: &[u8]) {
    let written = fs.write(file, offset, bytes, WriteMode::empty());
    assert_eq!(written.expect("there is room"), bytes.len());
}

struct World {
    device: Arc<TestDevice>,
    fs: FileSystem,
    id: InodeId,
    file: File,
    other: File,
    space: AddressSpace<FileData>,
    free: u64,
    left: Mutex<Option<MemoryDevice>>,
}

impl World {
    fn of(image: &[u8]) -> Arc<Self> {
        let device = Arc::new(TestDevice::new(MemoryDevice::from_bytes(image)));
        let fs = open(&device);
        let id = find(&fs, "file");
        let file = fs.open(id, true).expect("it opens");
        let other = fs.open(find(&fs, "other"), true).expect("it opens");
        let space = AddressSpace::shared(&file.mapping, 0..2 * PAGES);
        let free = fs.stat_fs().expect("it is known").blocks_free;
        Arc::new(Self {
            device,
            fs,
            id,
            file,
            other,
            space,
            free,
            left: Mutex::new(None),
        })
    }

    fn thread(self: &Arc<Self>, name: &str, body: impl FnOnce(&Self) + Send + 'static) -> Thread {
        let world = Arc::clone(self);
        spawn(name, move || body(&world)).expect("a thread")
    }

    fn run(&self, column: Column) {
        let (fs, file, id) = (&self.fs, &self.file, self.id);
        let outcome = match column {
            Truncate => set_size(fs, id, PAGE).and_then(|()| set_size(fs, id, PAGES * PAGE)),
            Punch => punch(fs, file, PAGE..PAGES * PAGE),
            Zero => fs.allocate(file, PAGE, 2 * PAGE, FallocateMode::ZERO_RANGE),
            Collapse => fs.allocate(file, PAGE, PAGE, FallocateMode::COLLAPSE_RANGE),
            Insert => fs.allocate(file, PAGE, PAGE, FallocateMode::INSERT_RANGE),
            Exchange => fs.exchange_range(file, PAGE, &self.other, PAGE, 2 * PAGE),
            Migrate => fs.migrate(id, MapFormat::Blocks, &root()),
            PunchDelalloc => {
                self.give_back();
                Ok(())
            }
        };
        match outcome {
            Ok(()) => {}
            // A migration that others were in the way of.
            Err(Error::Again) if column == Migrate => {}
            Err(Error::NoSpace) => {}
            Err(error) => panic!("{column:?}: {error:?}"),
        }
    }

    /// What could not be written gives its space back, while it is stored to again.
    fn give_back(&self) {
        // All but the log: what was committed is brought home by nobody meanwhile.
        let location = recovery::journal_of(&self.fs.instance).expect("sound");
        let mut at = 0;
        for run in recovery::blocks_of(&location.expect("it has one")) {
            self.device.fail(Operation::Write, at..run.start.0 * 1024);
            at = run.end.0 * 1024;
        }
        self.device.fail(Operation::Write, at..u64::MAX);
        let held = &mut Held::at_entry();
        let _told = self
            .file
            .mapping
            .write_back(held, 0..u64::MAX, WaitFor::All);
        self.device.heal();
        let mut entry = Held::at_entry();
        let (_lock, mut held) = self.file.inode.lock.write(&mut entry);
        self.file.mapping.give_back_unwritten(&mut held);
    }

    /// Reads all there is; every byte is somebody's of this file.
    fn read(&self) -> Vec<u8> {
        known(&self.fs, &self.file)
    }

    fn store(&self, page: u64) {
        match self.space.store(page * PAGE + 100, &[STORED; 8]) {
            Ok(()) | Err(FaultError::Beyond | FaultError::NoSpace(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
        self.space.check();
    }

    fn load(&self, page: u64) {
        let mut bytes = [0; 8];
        match self.space.load(page * PAGE + 100, &mut bytes) {
            Ok(()) => assert!(!bytes.contains(&FOREIGN), "stale: of another file"),
            Err(FaultError::Beyond) => {}
            Err(error) => panic!("{error:?}"),
        }
        self.space.check();
    }

    fn write(&self, page: u64) {
        let bytes = [WRITTEN; 8];
        match self
            .fs
            .write(&self.file, page * PAGE + 200, &bytes, WriteMode::empty())
        {
            Ok(_) | Err(Error::NoSpace) => {}
            Err(error) => panic!("{error:?}"),
        }
    }

    fn write_back(&self) {
        let held = &mut Held::at_entry();
        // It fails where the device is made to.
        let _told = self
            .file
            .mapping
            .write_back(held, 0..u64::MAX, WaitFor::Own);
    }

    /// Wants whatever becomes free.
    fn take(&self) {
        let taker = self
            .fs
            .open(find(&self.fs, "taker"), true)
            .expect("it opens");
        let bytes = vec![FOREIGN; ((SPARE + 1) * PAGE) as usize];
        match self.fs.write(&taker, 0, &bytes, WriteMode::empty()) {
            Ok(_) | Err(Error::NoSpace) => {}
            Err(error) => panic!("{error:?}"),
        }
        // Writing it back may meet the device while it fails for others.
        let _told = self.fs.sync_file(&taker, false);
    }

    /// The power is cut, or so the device thinks: what it has now is looked at in the end.
    fn cut_power(&self) {
        *self.left.lock() = Some(self.device.memory().fork());
    }

    fn check_what_was_left(&self) {
        let Some(left) = self.left.lock().take() else {
            return;
        };
        let fs = open(&Arc::new(TestDevice::new(left)));
        check_owners(&fs);
        let file = fs.open(find(&fs, "file"), false).expect("it opens");
        known(&fs, &file);
        drop(file);
        fs.shut_down().expect("nothing fails");
    }

    fn end(self: Arc<Self>, column: Column) {
        self.space.check();
        let fs = &self.fs;
        let cached = self.read();
        expect(column, &cached);
        // One tells of what failed before; what is dirty yet is written by then.
        let _told = fs.sync_file(&self.file, false);
        let told = fs.sync_file(&self.file, false);
        assert!(told.is_ok(), "{told:?}");
        while fs.cache.shrink(u64::MAX) > 0 {}
        let read_back = self.read();
        if column != PunchDelalloc {
            assert!(read_back == cached, "stale: the cache and the device");
        }
        check_owners(fs);
        self.check_what_was_left();
        for name in ["file", "taker"] {
            set_size(fs, find(fs, name), 0).expect("it is cut");
        }
        let _told = fs.sync();
        fs.sync().expect("nothing fails");
        let free = fs.stat_fs().expect("it is known").blocks_free;
        let had = PAGES * PAGE / 1024;
        assert_eq!(
            free,
            self.free + had,
            "stale: blocks are lost, or free twice"
        );
        let world = Arc::into_inner(self).expect("all threads are over");
        let World {
            fs,
            file,
            other,
            space,
            ..
        } = world;
        drop((space, file, other));
        fs.shut_down().expect("all is written");
    }
}

type Thread = JoinHandle<()>;

/// What the file holds: every byte is somebody's of this file.
fn known(fs: &FileSystem, file: &File) -> Vec<u8> {
    let bytes = read(fs, file, 0..3 * PAGES * PAGE).expect("it can be read");
    for byte in &bytes {
        let is_known = *byte == 0
            || TAGS.contains(byte)
            || OTHER.contains(byte)
            || [STORED, WRITTEN].contains(byte);
        assert!(is_known, "stale: {byte:#x} of another file");
    }
    bytes
}

/// What anybody has on disk belongs to nobody else.
fn check_owners(fs: &FileSystem) {
    let mut owned: Vec<_> = ["file", "other", "taker", "filler"]
        .iter()
        .flat_map(|name| extents(fs, find(fs, name)))
        .filter(|extent| extent.state != ExtentState::Inline)
        .map(|extent| extent.physical..extent.physical + extent.length)
        .collect();
    owned.sort_by_key(|run| run.start);
    for two in owned.windows(2) {
        assert!(two[0].end <= two[1].start, "stale: two owners: {two:?}");
    }
}

/// Panics if a page holds what `column` took from there, or moved away.
fn expect(column: Column, bytes: &[u8]) {
    // A page's own tag is where nobody stores or writes.
    let tags: Vec<u8> = bytes.chunks(PAGE as usize).map(|page| page[50]).collect();
    let [one, two, three] = TAGS;
    let expected: &[&[u8]] = match column {
        Truncate | Punch | Zero => &[&[one, 0, 0]],
        Collapse => &[&[one, three]],
        Insert => &[&[one, 0, two, three], &[one, two, three]],
        Exchange => &[&[one, OTHER[1], OTHER[2]], &TAGS],
        Migrate => &[&TAGS],
        PunchDelalloc => &[&TAGS],
    };
    // A write behind the end of what has become shorter makes it longer.
    let is_right = expected.iter().any(|expected| {
        tags.starts_with(expected) && tags[expected.len()..].iter().all(|tag| *tag == 0)
    });
    assert!(is_right, "stale: {column:?} left {tags:?}");
}

/// Runs everybody against `column`, in a world that is prepared by `leave_out`.
fn scenario(image: &[u8], column: Column, leave_out: fn(&World)) {
    let world = World::of(image);
    leave_out(&world);
    let threads = vec![
        world.thread("column", move |world| world.run(column)),
        world.thread("reader", |world| {
            world.read();
            world.read();
        }),
        world.thread("storer", |world| {
            world.store(1);
            world.load(2);
            world.store(2);
        }),
        world.thread("writer", |world| {
            world.write(2);
            world.write(PAGES);
            world.write_back();
            world.write(1);
        }),
        world.thread("writeback", |world| world.write_back()),
        world.thread("taker", |world| world.take()),
        world.thread("power", |world| world.cut_power()),
    ];
    for thread in threads {
        thread.join().expect("a thread");
    }
    world.end(column);
}

fn check(column: Column) {
    check_without(column, |_| ());
}

fn check_without(column: Column, leave_out: fn(&World)) {
    let image = image();
    by_chance(move || scenario(image, column, leave_out), SCHEDULES);
    by_priority(move || scenario(image, column, leave_out), SCHEDULES);
}

#[test]
fn shuttle_truncate() {
    check(Truncate);
}

#[test]
fn shuttle_punch() {
    check(Punch);
}

#[test]
fn shuttle_zero() {
    check(Zero);
}

#[test]
fn shuttle_collapse() {
    check(Collapse);
}

#[test]
fn shuttle_insert() {
    check(Insert);
}

#[test]
fn shuttle_exchange() {
    check(Exchange);
}

#[test]
fn shuttle_migrate() {
    check(Migrate);
}

#[test]
fn shuttle_punch_delalloc() {
    check(PunchDelalloc);
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_punch_without_its_fence_is_caught() {
    check_without(Punch, |world| {
        world.fs.cache.leave_out_fences("ext4/src/punch.rs")
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_zero_without_its_fence_is_caught() {
    check_without(Zero, |world| {
        world.fs.cache.leave_out_fences("ext4/src/punch.rs")
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_collapse_without_its_fence_is_caught() {
    check_without(Collapse, |world| {
        world.fs.cache.leave_out_fences("ext4/src/shift_range.rs")
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_insert_without_its_fence_is_caught() {
    check_without(Insert, |world| {
        world.fs.cache.leave_out_fences("ext4/src/shift_range.rs")
    });
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_exchange_without_its_fence_is_caught() {
    check_without(Exchange, |world| {
        world.fs.cache.leave_out_fences("ext4/src/exchange.rs")
    });
}
