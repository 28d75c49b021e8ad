//! Two files whose contents change places under a scheduler that chooses interleavings, both ways
//! round at once (RACES 3.11, T23).
//!
//! Oracles: what is read, loaded or stored is of the file that had it at that moment, where the
//! exchanges that began and ended around it leave no doubt; a store is in one of the files in the end;
//! no I/O to blocks that were taken away (the device's); in the end the device has what the cache has.

use pagefence_lock_order::levels::Inode;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_lock_order::primitives::thread::{JoinHandle, spawn};
use pagefence_lock_order::{Held, OrderedRwLock, pair};

use super::device::{Device, TestMapping};
use super::shuttle_writes::check;
use super::{SMALL, config, read_with, stamped, sync};
use crate::backing::PAGE_SIZE;
use crate::mutants::Mutants;
use crate::reclaim::Pressure;
use crate::simulated::AddressSpace;
use crate::{Evict, Mapping, PageCache, Readahead, WaitFor, fence_both};

const PAGE: u64 = PAGE_SIZE as u64;
const PAGES: usize = 2;
const BYTES: u64 = PAGES as u64 * PAGE;
/// Number of the second file.
const SECOND: u64 = 8;
/// What is stored, and where in its page.
const STORED: [u8; 8] = [7; 8];
const WITHIN: usize = 100;

struct World {
    cache: Arc<PageCache>,
    files: [Arc<TestMapping>; 2],
    inodes: [OrderedRwLock<Inode, ()>; 2],
    /// Exchanges that began, and that ended.
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// What file `which` has in page `page` after `exchanges`.
fn due(which: usize, page: usize, exchanges: usize) -> Vec<u8> {
    let version = 1 + (which + exchanges) % 2;
    stamped(page, u8::try_from(version).expect("small"))
}

impl World {
    fn new(mutants: Mutants) -> Arc<Self> {
        let cache = PageCache::with_mutants(config(SMALL), mutants).expect("a cache");
        let device = || Device::stamped(PAGES, PAGE_SIZE);
        let first = device().mapped(&cache);
        let second = Mapping::new(&cache, SECOND, device());
        let world = Self {
            cache,
            inodes: [first.number(), SECOND].map(|number| OrderedRwLock::new(number, ())),
            files: [first, second],
            begun: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
        };
        let bytes: Vec<u8> = (0..PAGES).flat_map(|page| due(1, page, 0)).collect();
        {
            let mut entry = Held::at_entry();
            let (_lock, mut held) = world.inodes[1].write(&mut entry);
            let written = world.files[1].write(&mut held, 0, &bytes);
            assert_eq!(written, Ok(bytes.len()));
        }
        sync(&world.files[1]).expect("synced");
        world.cache.shrink(u64::MAX);
        Arc::new(world)
    }

    fn thread(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce(&Self) + Send + 'static,
    ) -> JoinHandle<()> {
        let world = Arc::clone(self);
        spawn(name, move || body(&world)).expect("a thread")
    }

    /// All of file `one` and all of the other one change places.
    fn exchange(&self, one: usize) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let order = [one, 1 - one];
        let [inode, other_inode] = order.map(|which| &self.inodes[which]);
        let [file, other] = order.map(|which| &*self.files[which]);
        let mut entry = Held::at_entry();
        let (_inode, _other, mut held) = pair::write_both(inode, other_inode, &mut entry);
        let all = 0..BYTES;
        let (mut fence, other_fence, mut held) =
            fence_both((file, all.clone()), (other, all), &mut held);
        let mut other_fence = other_fence.expect("two files");
        let evicted = fence.evict(&mut held, Evict::WriteFirst).expect("evicted");
        let other_evicted = other_fence.evict(&mut held, Evict::WriteFirst);
        let other_evicted = other_evicted.expect("evicted");
        let [bytes, other_bytes] = [file, other].map(|file| file.backing().contents());
        Device::replace(&evicted, &other_bytes);
        Device::replace(&other_evicted, &bytes);
        drop((fence, other_fence));
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    /// Does `what`; returns how many exchanges there were at that moment, if that is certain.
    fn during<T>(&self, what: impl FnOnce() -> T) -> (T, Option<usize>) {
        let ended = self.ended.load(Ordering::SeqCst);
        let done = what();
        let begun = self.begun.load(Ordering::SeqCst);
        (done, (begun == ended).then_some(ended))
    }

    fn read(&self, which: usize, page: usize) {
        let offset = page as u64 * PAGE;
        let (bytes, exchanges) = self.during(|| {
            let bytes = read_with(&self.files[which], &Readahead::new(), offset, PAGE_SIZE);
            without_the_store(bytes.expect("read"))
        });
        let is_of_one = [0, 1].map(|exchanges| without_the_store(due(which, page, exchanges)));
        assert!(is_of_one.contains(&bytes), "stale: torn");
        if let Some(exchanges) = exchanges {
            assert!(
                bytes == is_of_one[exchanges % 2],
                "stale: of the other file"
            );
        }
    }
}

/// A page, whatever was stored to it.
fn without_the_store(mut page: Vec<u8>) -> Vec<u8> {
    page[WITHIN..WITHIN + STORED.len()].fill(0);
    page
}

/// Exchanges both ways round, a store to the first page of each file's map in turn, and readers.
fn exchanged(mutants: Mutants, storer: usize) {
    let world = World::new(mutants);
    let space = Arc::new(AddressSpace::shared(&world.files[storer], 0..PAGES as u64));
    let stored_after = Arc::new(AtomicUsize::new(usize::MAX));
    let mut threads: Vec<_> = [0, 1]
        .map(|one| world.thread("exchange", move |world| world.exchange(one)))
        .into();
    threads.push({
        let (space, stored_after) = (Arc::clone(&space), Arc::clone(&stored_after));
        world.thread("storer", move |world| {
            let store = || space.store(WITHIN as u64, &STORED).expect("stored");
            let ((), exchanges) = world.during(store);
            space.check();
            if let Some(exchanges) = exchanges {
                stored_after.store(exchanges, Ordering::SeqCst);
            }
        })
    });
    threads.extend([0, 1].map(|which| {
        world.thread("reader", move |world| {
            world.read(which, 1);
            world.read(which, 0);
        })
    }));
    threads.push(world.thread("company", move |world| {
        let held = &mut Held::at_entry();
        let written = world.files[storer].write_back(held, 0..u64::MAX, WaitFor::Own);
        assert_eq!(written, Ok(()));
        world.cache.shared().clock.sweep(64, 1, Pressure::Any);
    }));
    for thread in threads {
        thread.join().expect("a thread");
    }
    space.check();
    drop(space);
    let mut has_it = Vec::new();
    for which in [0, 1] {
        let file = &world.files[which];
        let all = || {
            let bytes = read_with(file, &Readahead::new(), 0, PAGES * PAGE_SIZE);
            bytes.expect("read")
        };
        let cached = all();
        sync(file).expect("synced");
        let device = file.backing();
        assert_eq!(device.violations(), 0, "stale: I/O to blocks taken away");
        assert!(
            device.contents() == cached,
            "stale: the device and the cache"
        );
        world.cache.shrink(u64::MAX);
        assert!(all() == cached, "stale: read back");
        for page in 0..PAGES {
            world.read(which, page);
        }
        if cached[WITHIN..].starts_with(&STORED) {
            has_it.push(which);
        }
    }
    assert_eq!(has_it.len(), 1, "stale: a store is lost, or in both files");
    // Where it was stored to, or, one exchange later, in the other one.
    match stored_after.load(Ordering::SeqCst) {
        usize::MAX => {}
        exchanges => assert_eq!(
            has_it[0],
            (storer + exchanges) % 2,
            "stale: a store to the other file"
        ),
    }
}

#[test]
fn shuttle_exchange() {
    for storer in [0, 1] {
        check(move || exchanged(Mutants::default(), storer));
    }
}

#[test]
#[should_panic(expected = "stale")]
fn shuttle_exchange_fencing_one_file_is_caught() {
    check(|| {
        let mutants = Mutants {
            unfenced: Some(SECOND),
            ..Mutants::default()
        };
        exchanged(mutants, 0);
    });
}
