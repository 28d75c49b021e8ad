//! Migrations against stores that come without the inode lock, and what each protection is for.

use std::process::Command;
use std::time::Duration;

use pagefence_block_io::{Device, MemoryDevice};
use pagefence_lock_order::Held;
use pagefence_lock_order::levels;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread::{scope, spawn};
use pagefence_page_cache::WaitFor;
use pagefence_vfs::{
    Credentials, Error, FallocateMode, FileSystem as _, InodeId, MapFormat, New, NewKind, Result,
    SetAttr, WriteMode,
};

use crate::failures::maps::{Source, Space, with_either};
use crate::failures::wait_for;
use crate::filesystem::{File, FileSystem};
use crate::inode::Inode;
use crate::mkfs::{Contents, Kind, Parameters, Tree, format};
use crate::mount::MountOptions;

/// Pieces of a block, with a gap behind each: more than fit into one node of an extent tree.
const PIECES: u64 = 400;
const BOTH: [MapFormat; 2] = [MapFormat::Extents, MapFormat::Blocks];

fn other(format: MapFormat) -> MapFormat {
    match format {
        MapFormat::Extents => MapFormat::Blocks,
        MapFormat::Blocks => MapFormat::Extents,
    }
}

fn root() -> Credentials {
    Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    }
}

fn open(device: &Arc<MemoryDevice>) -> Arc<FileSystem> {
    let options = MountOptions {
        write: true,
        cache: Some(16 << 20),
        commit_interval: Some(Duration::from_secs(3600)),
        ..MountOptions::default()
    };
    let device: Arc<dyn Device> = Arc::<MemoryDevice>::clone(device);
    Arc::new(FileSystem::open(device, &options).expect("it opens"))
}

/// A file system with one file, in pieces, of a map of this kind.
struct World {
    device: Arc<MemoryDevice>,
    fs: Arc<FileSystem>,
    id: InodeId,
    file: Arc<File>,
    block: u64,
    contents: Vec<u8>,
}

impl World {
    fn new(block: u32, kind: MapFormat) -> Self {
        let device = MemoryDevice::new(24 << 20);
        let mut parameters = Parameters::new(Kind::Ext4);
        parameters.block_size = Some(block);
        parameters.contents = Contents::Zeros;
        format(&device, &parameters, &Tree::new()).expect("a new file system");
        let device = Arc::new(device);
        let fs = open(&device);
        let new = New {
            kind: NewKind::Regular,
            permissions: 0o644,
            umask: 0,
        };
        let made = fs.create(fs.root(), b"file", &new, &root());
        let id = made.expect("it is made").attr.id;
        let file = Arc::new(fs.open(id, true).expect("it opens"));
        let block = u64::from(block);
        let mut world = Self {
            device,
            fs,
            id,
            file,
            block,
            contents: vec![0; (2 * PIECES * block) as usize],
        };
        for piece in 0..PIECES {
            world.write(2 * piece * block, 1 + (piece % 250) as u8);
        }
        let change = SetAttr {
            size: Some(world.contents.len() as u64),
            ..SetAttr::default()
        };
        let resized = world.fs.set_attr(id, &change, &root());
        resized.expect("it grows");
        world.migrate(kind).expect("nobody is in the way");
        world.fs.sync().expect("nothing fails");
        world
    }

    fn write(&mut self, offset: u64, byte: u8) {
        let data = vec![byte; self.block as usize];
        let written = self.fs.write(&self.file, offset, &data, WriteMode::empty());
        assert_eq!(written.expect("there is room"), data.len());
        self.expect(offset, byte);
    }

    /// A block holds this from now on.
    fn expect(&mut self, offset: u64, byte: u8) {
        let at = offset as usize;
        self.contents[at..at + self.block as usize].fill(byte);
    }

    fn migrate(&self, to: MapFormat) -> Result<()> {
        self.fs.migrate(self.id, to, &root())
    }

    fn inode(&self) -> Arc<Inode> {
        self.fs.inode(self.id).expect("it is in core")
    }

    fn has(&self) -> MapFormat {
        match self.inode().disk().has_extents() {
            true => MapFormat::Extents,
            false => MapFormat::Blocks,
        }
    }

    /// Has something done in each migration before its swap, by a thread of its own, without any
    /// lock: a store through a mapping, as far as the cache knows of it.
    fn hold(&self, store: impl Fn(&FileSystem, &File) + Send + Sync + 'static) {
        let fs = Arc::downgrade(&self.fs);
        let file = Arc::downgrade(&self.file);
        let store = Arc::new(store);
        self.fs.instance.migration_probe.hold_before_swap(move || {
            let (fs, file) = (fs.upgrade(), file.upgrade());
            let store = Arc::clone(&store);
            let thread = spawn("store", move || {
                let (fs, file) = fs.zip(file).expect("they are open");
                store(&fs, &file);
            });
            let thread = thread.expect("a thread can be started");
            thread.join().expect("it does not fail");
        });
    }

    /// A mapping of the whole file.
    fn map(&self, source: Source) -> Arc<Space> {
        let pages = (self.contents.len() as u64).div_ceil(4096);
        Arc::new(Space::of(source, &self.file, 0..pages))
    }

    fn way(&self, source: Option<Source>) -> Way {
        source.map_or(Way::Copied, |source| Way::Mapped(self.map(source)))
    }

    fn release(&self) {
        self.fs.instance.migration_probe.release();
    }

    fn free_blocks(&self) -> u64 {
        self.fs.sync().expect("nothing fails");
        let live = self.fs.instance.live().expect("it is written to");
        live.allocator.counts().blocks
    }

    /// What readers see, from the cache and from the device, and what e2fsck says.
    fn judge(self) -> Result<(), String> {
        let Self {
            device,
            fs,
            id,
            file,
            contents,
            ..
        } = self;
        let read = |fs: &FileSystem, file: &File| {
            let mut bytes = vec![0xEE; contents.len()];
            let mut done = 0;
            while done < bytes.len() {
                match fs.read(file, done as u64, &mut bytes[done..]) {
                    Ok(0) => return Err(format!("it ends at {done}")),
                    Ok(read) => done += read,
                    Err(error) => return Err(error.to_string()),
                }
            }
            match bytes.iter().zip(&contents).position(|(is, due)| is != due) {
                Some(at) => Err(format!("byte {} at {at}", bytes[at])),
                None => Ok(()),
            }
        };
        read(&fs, &file)?;
        fs.sync_file(&file, false)
            .map_err(|error| error.to_string())?;
        fs.cache.shrink(u64::MAX);
        read(&fs, &file)?;
        drop(file);
        fs.shut_down().map_err(|error| error.to_string())?;
        drop(fs);
        let image = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(image.path(), device.to_vec()).expect("it is written");
        let output = Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(image.path())
            .env("LC_ALL", "C")
            .output()
            .expect("e2fsck runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(said);
        }
        let fs = open(&device);
        read(&fs, &fs.open(id, false).map_err(|error| error.to_string())?)?;
        fs.shut_down().map_err(|error| error.to_string())
    }
}

/// How bytes get into a page without the inode lock.
#[derive(Clone)]
enum Way {
    /// They are copied there: the inode lock is not taken, though the cache is told so. What has none
    /// is given space block by block.
    Copied,
    /// Through a mapping, by faults, which give a whole page space.
    Mapped(Arc<Space>),
}

/// Copied, or through a mapping with these faults.
const WAYS: [Option<Source>; 3] = [None, Some(Source::Simulated), Some(Source::Real)];

impl Way {
    fn store(&self, file: &File, offset: u64, data: &[u8]) {
        match self {
            Self::Copied => store(file, offset, data),
            Self::Mapped(space) => {
                space.store(offset, data);
                space.check();
            }
        }
    }
}

/// Stores to a block, copied.
fn store(file: &File, offset: u64, data: &[u8]) {
    let mut entry = Held::at_entry();
    let (_rank, mut held) = entry.descend::<levels::Inode>(u64::MAX);
    let stored = file.mapping.write(&mut held, offset, data);
    assert_eq!(stored.expect("there is room"), data.len());
}

fn write_back(file: &File) {
    let all = 0..u64::MAX;
    let mut entry = Held::at_entry();
    let written = file.mapping.write_back(&mut entry, all, WaitFor::All);
    written.expect("nothing fails");
}

/// A store into a hole that is written back before the swap: blocks are allocated.
fn race(world: &mut World, source: Option<Source>) -> Result<()> {
    let way = world.way(source);
    let to = other(world.has());
    let (hole, size) = (world.block, world.block as usize);
    world.hold(move |_, file| {
        way.store(file, hole, &vec![0xAB; size]);
        write_back(file);
    });
    let migrated = world.migrate(to);
    world.release();
    world.expect(hole, 0xAB);
    migrated
}

#[test]
fn t9_blocks_that_are_allocated_meanwhile_end_it_and_nothing_is_lost() {
    WAYS.into_iter().for_each(allocate_meanwhile);
}

fn allocate_meanwhile(source: Option<Source>) {
    for (block, from) in [(1024, BOTH[0]), (4096, BOTH[1]), (1024, BOTH[1])] {
        let mut world = World::new(block, from);
        let before = world.free_blocks();
        let told = race(&mut world, source);
        assert!(matches!(told, Err(Error::Again)), "{told:?}");
        assert_eq!(world.has(), from);
        // The holes that were stored to, and nothing else: what was built is freed. In an extent tree
        // the new extents join their neighbours or not, and no node splits. A page has a hole for
        // each two of its blocks.
        let holes = source.map_or(1, |_| (4096 / u64::from(block) / 2).max(1));
        assert_eq!(world.free_blocks(), before - holes, "{source:?} {from:?}");
        world.migrate(other(from)).expect("nobody is in the way");
        assert_eq!(world.has(), other(from));
        world.judge().expect("nothing is lost");
    }
}

/// Also who asks by flags is told (S2.13), and no other flag has changed then.
#[test]
fn t9_again_reaches_who_sets_flags() {
    WAYS.into_iter().for_each(set_flags_meanwhile);
}

fn set_flags_meanwhile(source: Option<Source>) {
    let world = World::new(4096, MapFormat::Blocks);
    let flags = world.fs.attr(world.id).expect("it is there").flags;
    let (extents, nodump) = (0x8_0000, 0x40);
    let way = world.way(source);
    world.hold(move |_, file| {
        way.store(file, 4096, &[0xAB; 4096]);
        write_back(file);
    });
    let set = || {
        world
            .fs
            .set_flags(world.id, flags | extents | nodump, &root())
    };
    let told = set();
    assert!(matches!(told, Err(Error::Again)), "{told:?}");
    assert_eq!(world.fs.attr(world.id).expect("it is there").flags, flags);
    world.release();
    set().expect("nobody is in the way");
    let now = world.fs.attr(world.id).expect("it is there").flags;
    assert_eq!(now, flags | extents | nodump);
    world
        .fs
        .set_flags(world.id, flags, &root())
        .expect("and back");
    assert_eq!(world.has(), MapFormat::Blocks);
    let mut world = world;
    world.expect(4096, 0xAB);
    world.judge().expect("nothing is lost");
}

#[test]
fn t10_an_overwrite_is_not_in_the_way() {
    WAYS.into_iter().for_each(overwrite_meanwhile);
}

fn overwrite_meanwhile(source: Option<Source>) {
    for from in BOTH {
        let mut world = World::new(4096, from);
        let way = world.way(source);
        let (at, size) = (2 * world.block, world.block as usize);
        world.hold(move |_, file| {
            way.store(file, at, &vec![0xAB; size]);
            write_back(file);
        });
        world.migrate(other(from)).expect("nothing was allocated");
        world.release();
        world.expect(at, 0xAB);
        assert_eq!(world.has(), other(from));
        world.judge().expect("nothing is lost");
    }
}

/// What has space but no place yet gets it in the new map.
#[test]
fn delayed_blocks_come_along() {
    for (block, from) in [(1024, BOTH[0]), (1024, BOTH[1]), (4096, BOTH[1])] {
        let mut world = World::new(block, from);
        let block = world.block;
        world.hold(move |_, file| {
            for piece in (0..PIECES).step_by(3) {
                let at = (2 * piece + 1) * block;
                store(file, at, &vec![0xAB; block as usize]);
            }
        });
        world.migrate(other(from)).expect("nothing was allocated");
        world.release();
        for piece in (0..PIECES).step_by(3) {
            world.expect((2 * piece + 1) * block, 0xAB);
        }
        assert_eq!(world.has(), other(from));
        world.judge().expect("nothing is lost");
    }
}

/// As the two before, with stores as they are: faults, which make holes delayed, all of their page
/// at once, while the old map is read and the new one is built.
#[test]
fn stores_through_a_map_come_along_or_end_it() {
    with_either(store_through_a_map);
}

fn store_through_a_map(source: Source) {
    for (block, from) in [(1024, BOTH[0]), (1024, BOTH[1]), (4096, BOTH[1])] {
        for writes_back in [false, true] {
            let mut world = World::new(block, from);
            let (block, space) = (world.block, world.map(source));
            world.hold(move |_, file| {
                for piece in (0..PIECES).step_by(3) {
                    let data = vec![0xAB; block as usize];
                    let at = (2 * piece + 1) * block;
                    space.store(at, &data);
                }
                space.check();
                if writes_back {
                    write_back(file);
                }
            });
            let migrated = world.migrate(other(from));
            world.release();
            for piece in (0..PIECES).step_by(3) {
                world.expect((2 * piece + 1) * block, 0xAB);
            }
            if writes_back {
                assert!(matches!(migrated, Err(Error::Again)), "{migrated:?}");
                assert_eq!(world.has(), from);
            } else {
                migrated.expect("nothing was allocated");
                assert_eq!(world.has(), other(from));
            }
            world.judge().expect("nothing is lost");
        }
    }
}

#[test]
fn a_flag_that_allocation_leaves_alone_is_noticed() {
    for (from, source) in BOTH
        .into_iter()
        .flat_map(|from| WAYS.map(|way| (from, way)))
    {
        let mut world = World::new(4096, from);
        let core = &world.inode().core;
        core.keeps_migrating.store(true, Ordering::Release);
        race(&mut world, source).expect("the mutant does not notice");
        let found = world.judge();
        assert!(found.is_err(), "{source:?}: nobody noticed");
    }
}

#[test]
fn a_flag_that_is_tested_outside_the_lock_is_noticed() {
    for (from, source) in BOTH
        .into_iter()
        .flat_map(|from| WAYS.map(|way| (from, way)))
    {
        let mut world = World::new(4096, from);
        let probe = &world.fs.instance.migration_probe;
        probe.tests_flag_early.store(true, Ordering::Release);
        race(&mut world, source).expect("the mutant does not notice");
        let found = world.judge();
        assert!(found.is_err(), "{source:?}: nobody noticed");
    }
}

/// Readers, writers that overwrite, and fsync go on while a migration is held.
#[test]
fn nobody_waits_for_a_migration() {
    WAYS.into_iter().for_each(go_on_meanwhile);
}

fn go_on_meanwhile(source: Option<Source>) {
    let world = World::new(4096, MapFormat::Blocks);
    let way = world.way(source);
    world.hold(move |fs, file| {
        let mut byte = [0];
        fs.cache.shrink(u64::MAX);
        assert_eq!(fs.read(file, 2 * 4096, &mut byte).expect("read"), 1);
        way.store(file, 0, &[1; 4096]);
        fs.sync_file(file, false).expect("nothing fails");
    });
    world
        .migrate(MapFormat::Extents)
        .expect("nothing is in the way");
    world.release();
    world.judge().expect("nothing is lost");
}

/// RACES B5: a punch looks at the form of the map when the migration is over (S2.1).
#[test]
fn a_punch_waits_for_a_migration_and_changes_the_new_map() {
    for from in BOTH {
        let mut world = World::new(4096, from);
        let is_held = Arc::new(AtomicBool::new(false));
        let holds = Arc::clone(&is_held);
        world.hold(move |_, _| {
            holds.store(true, Ordering::Release);
            std::thread::sleep(Duration::from_millis(200));
        });
        let length = 5 * world.block;
        scope(|scope| {
            let migrating = scope.spawn(|| world.migrate(other(from)));
            wait_for("the migration", || is_held.load(Ordering::Acquire));
            let mode = FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE;
            let punched = world.fs.allocate(&world.file, 0, length, mode);
            assert_eq!(world.has(), other(from), "it waits");
            punched.expect("it is punched");
            let migrated = migrating.join().expect("no panic");
            migrated.expect("nothing was allocated");
        });
        world.release();
        world.contents[..length as usize].fill(0);
        world.judge().expect("nothing else is lost");
    }
}

#[test]
fn what_the_other_map_cannot_say_is_refused() {
    let world = World::new(1024, MapFormat::Extents);
    let unsupported = |world: &World| {
        let told = world.migrate(MapFormat::Blocks);
        assert!(matches!(told, Err(Error::Unsupported(_))), "{told:?}");
        assert_eq!(world.has(), MapFormat::Extents);
    };
    let mode = FallocateMode::empty();
    let end = world.contents.len() as u64;
    let allocated = world.fs.allocate(&world.file, end, 4096, mode);
    allocated.expect("there is room");
    unsupported(&world);
    let resize = |size: u64| {
        let change = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let resized = world.fs.set_attr(world.id, &change, &root());
        resized.expect("it can be so long");
    };
    // 16 GiB and a bit is as far as pointers of 1 KiB reach.
    resize(17 << 30);
    unsupported(&world);
    resize(end);
    world.migrate(MapFormat::Blocks).expect("that it can say");
    world.judge().expect("nothing is lost");
}

#[test]
fn what_is_migrated_already_stays() {
    for kind in BOTH {
        let world = World::new(4096, kind);
        let before = world.free_blocks();
        world.migrate(kind).expect("there is nothing to do");
        assert_eq!(world.free_blocks(), before);
        world.judge().expect("nothing is lost");
    }
}

#[test]
fn an_immutable_file_stays() {
    let world = World::new(4096, MapFormat::Blocks);
    let flags = world.fs.attr(world.id).expect("it is there").flags;
    let immutable = 0x10;
    let set = |flags| world.fs.set_flags(world.id, flags, &root());
    set(flags | immutable).expect("root may");
    let told = world.migrate(MapFormat::Extents);
    assert!(matches!(told, Err(Error::NotPermitted)), "{told:?}");
    set(flags).expect("root may");
    world.migrate(MapFormat::Extents).expect("it may change");
    world.judge().expect("nothing is lost");
}

/// On a full disk it is refused, and the file is as before; what it took meanwhile is free again.
#[test]
fn without_space_the_file_stays() {
    for from in BOTH {
        let world = World::new(1024, from);
        let new = New {
            kind: NewKind::Regular,
            permissions: 0o644,
            umask: 0,
        };
        let made = world.fs.create(world.fs.root(), b"filler", &new, &root());
        let id = made.expect("it is made").attr.id;
        let filler = world.fs.open(id, true).expect("it opens");
        let mut offset = 0;
        for size in [1 << 18, 1 << 10] {
            let data = vec![0xF1; size];
            let mode = WriteMode::USE_RESERVE;
            while let Ok(written) = world.fs.write(&filler, offset, &data, mode) {
                offset += written as u64;
            }
        }
        let before = world.free_blocks();
        let told = world.migrate(other(from));
        assert!(matches!(told, Err(Error::NoSpace)), "{told:?}");
        assert_eq!(world.has(), from);
        assert_eq!(world.free_blocks(), before);
        drop(filler);
        world
            .fs
            .unlink(world.fs.root(), b"filler")
            .expect("it goes");
        world.fs.forget(id);
        world.migrate(other(from)).expect("there is space");
        world.judge().expect("nothing is lost");
    }
}
