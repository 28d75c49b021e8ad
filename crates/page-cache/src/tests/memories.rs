//! Memories of mapped files: they are given back when nobody maps the file any more and another wants
//! one, and not before.

use std::io::ErrorKind;
use std::ops::Range;

use pagefence_lock_order::levels::{Inode, Invalidate, PageLock, Writepages};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::{Held, OrderedRwLock};

use super::device::{Device, TestMapping};
use super::{SMALL, Task, config, read, stamped, sync, write};
use crate::backing::PAGE_SIZE;
use crate::folio::PageLockGuard;
use crate::simulated::AddressSpace;
use crate::{
    Backing, FaultError, FaultKind, FileMemory, FrameMut, Mapping, PageCache, Readahead, Segment,
    ShareError, WriteBacking, WriteBatch,
};

const PAGE: u64 = PAGE_SIZE as u64;
const PAGES: u64 = 8;

fn setup() -> (Arc<PageCache>, Arc<TestMapping>) {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Device::stamped(8, PAGE_SIZE).mapped(&cache);
    (cache, mapping)
}

/// What [`Mapping::share_memory`] returns to who has the inode lock.
fn share(mapping: &TestMapping, inode: &OrderedRwLock<Inode, ()>) -> Arc<FileMemory> {
    let mut entry = Held::at_entry();
    let (_alone, mut held) = inode.write(&mut entry);
    mapping.share_memory(&mut held).expect("memory")
}

fn share_alone(mapping: &TestMapping) -> Arc<FileMemory> {
    share(mapping, &OrderedRwLock::new(mapping.number(), ()))
}

/// Has all memories given back that nobody needs, by who maps another file; how many.
fn give_back(cache: &PageCache) -> usize {
    let other: OrderedRwLock<Inode, ()> = OrderedRwLock::new(3, ());
    let mut entry = Held::at_entry();
    let (_alone, mut held) = other.write(&mut entry);
    cache.shared().unused_memories.shrink(&mut held, 0)
}

fn is_shared(mapping: &TestMapping) -> bool {
    mapping.pages().memory().is_some()
}

#[test]
fn a_memory_that_nobody_maps_is_given_back() {
    let (cache, mapping) = setup();
    let memory = share_alone(&mapping);
    assert_eq!(give_back(&cache), 0, "somebody is about to map it");
    let spaces = [(); 2].map(|()| AddressSpace::shared(&mapping, 0..PAGES));
    drop(memory);
    spaces[0].store(PAGE, &[9; 10]).expect("stored");
    for space in spaces {
        assert_eq!(give_back(&cache), 0, "it is mapped");
        let mut bytes = [0; 10];
        space.load(PAGE, &mut bytes).expect("loaded");
        assert_eq!(bytes, [9; 10]);
    }
    assert!(is_shared(&mapping), "nobody else wants one");
    assert_eq!(read(&mapping, PAGE, 10), Ok(vec![9; 10]));
    assert_eq!(mapping.dirty_pages(), 1);
    assert_eq!(give_back(&cache), 1);
    assert!(!is_shared(&mapping));
    assert_eq!((mapping.dirty_pages(), mapping.nr_pages()), (0, 0));
    assert_eq!(mapping.backing().contents()[PAGE_SIZE..][..10], [9; 10]);

    // It is as one that was never mapped, and can be mapped again.
    write(&mapping, 0, &[5; 100]).expect("written");
    assert_eq!(read(&mapping, PAGE, 10), Ok(vec![9; 10]));
    assert_eq!(give_back(&cache), 0, "there is none");
    drop(share_alone(&mapping));
    assert!(is_shared(&mapping));
    let space = AddressSpace::shared(&mapping, 0..PAGES);
    let mut bytes = [0; 100];
    space.load(0, &mut bytes).expect("loaded");
    assert_eq!(bytes, [5; 100]);
    drop(space);
    assert_eq!(give_back(&cache), 1);
    assert_eq!(mapping.backing().violations(), 0);
}

/// One that was never mapped, and one whose data could not be written, which is tried again.
#[test]
fn a_memory_that_stays_is_tried_again() {
    let (cache, mapping) = setup();
    drop(share_alone(&mapping));
    assert_eq!(give_back(&cache), 1, "nobody came to map it");
    drop(share_alone(&mapping));
    write(&mapping, 0, &[5; 100]).expect("written");
    let cursor = mapping.error_cursor();
    mapping.backing().fail_writes(1);
    assert_eq!(give_back(&cache), 0);
    assert!(mapping.check_errors(&cursor).is_err(), "it is told");
    assert!(is_shared(&mapping));
    assert_eq!(read(&mapping, 0, 100), Ok(vec![5; 100]), "as the flusher");
    assert_eq!(give_back(&cache), 1);
}

/// A page that somebody copies from keeps its memory.
#[test]
fn a_memory_that_is_read_from_stays() {
    let (cache, mapping) = setup();
    drop(share_alone(&mapping));
    assert_eq!(read(&mapping, PAGE, PAGE_SIZE), Ok(stamped(1, 1)));
    let pinned = mapping.pages().get(1).expect("cached");
    assert_eq!(give_back(&cache), 0);
    assert!(is_shared(&mapping));
    drop(pinned);
    assert_eq!(give_back(&cache), 1);
}

/// Beyond a bound they go by themselves, the oldest first; none that is mapped.
#[test]
fn no_more_than_some_are_kept() {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let most = FileMemory::most_unused();
    assert!((1..=256).contains(&most));
    let file = |number: usize| {
        let device = Device::stamped(1, PAGE_SIZE);
        Mapping::new(&cache, 10 + number as u64, device)
    };
    let files: Vec<_> = (0..most + 10).map(file).collect();
    let mapped = AddressSpace::shared(&files[0], 0..1);
    for mapping in &files {
        drop(share_alone(mapping));
    }
    let shared: Vec<bool> = files.iter().map(|mapping| is_shared(mapping)).collect();
    assert!(shared[0], "it is mapped");
    assert!(shared[1..10].iter().all(|shared| !shared), "the oldest");
    assert!(shared[11..].iter().all(|&shared| shared), "no others");
    drop(mapped);
    assert!(give_back(&cache) >= most - 1);
    assert!(!files.iter().any(|mapping| is_shared(mapping)));
}

/// Memories come and go below who maps, stores, reads, writes and reclaims.
#[test]
fn nothing_is_lost_while_memories_come_and_go() {
    let (cache, mapping) = setup();
    let inode: Arc<OrderedRwLock<Inode, ()>> = Arc::new(OrderedRwLock::new(7, ()));
    let over = Arc::new(AtomicBool::new(false));
    let until_over = |work: Box<dyn Fn(u64) + Send>| {
        let over = Arc::clone(&over);
        Task::start(move || {
            for round in 0_u64.. {
                if over.load(Ordering::Relaxed) {
                    return round;
                }
                work(round);
            }
            unreachable!("it ends before")
        })
    };
    let others = {
        let (giver, reclaimer, reader) =
            (Arc::clone(&cache), Arc::clone(&cache), Arc::clone(&mapping));
        [
            until_over(Box::new(move |_| _ = give_back(&giver))),
            until_over(Box::new(move |_| _ = reclaimer.shrink(64 << 10))),
            until_over(Box::new(move |round| {
                let page = round % PAGES;
                let bytes = read(&reader, page * PAGE, PAGE_SIZE).expect("read");
                assert_eq!(bytes[..8], page.to_le_bytes(), "another page");
            })),
        ]
    };
    let mappers = [0_u64, 1].map(|own| {
        let (mapping, inode) = (Arc::clone(&mapping), Arc::clone(&inode));
        Task::start(move || {
            for round in 0..200_u64 {
                let memory = share(&mapping, &inode);
                let space = AddressSpace::shared(&mapping, 0..PAGES);
                drop(memory);
                let at = (round % PAGES) * PAGE + 100 + 8 * own;
                let before = round.checked_sub(PAGES);
                let mut bytes = [0; 8];
                space.load(at, &mut bytes).expect("loaded");
                let expected = before.map_or([1; 8], u64::to_le_bytes);
                assert_eq!(bytes, expected, "a store is lost");
                space.store(at, &round.to_le_bytes()).expect("stored");
                space.check();
            }
        })
    });
    mappers.into_iter().for_each(Task::finish);
    over.store(true, Ordering::Relaxed);
    let rounds = others.map(Task::finish);
    assert!(rounds.iter().all(|&rounds| rounds > 0));
    sync(&mapping).expect("synced");
    give_back(&cache);
    assert!(!is_shared(&mapping));
    let contents = mapping.backing().contents();
    let cached = read(&mapping, 0, 8 * PAGE_SIZE).expect("read");
    assert!(contents == cached);
    assert_eq!(mapping.backing().violations(), 0);
}

/// A file of any size, of pages that hold 1.
#[derive(Default)]
struct Huge(AtomicU64);

impl Backing for Huge {
    type Error = ();

    fn size(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn segment(&self, _: &mut Held<'_, Invalidate>, at: u64) -> Result<(Segment, u64), ()> {
        Ok((Segment::Data, u64::MAX - at))
    }

    fn read_pages(
        &self,
        _: &mut Held<'_, PageLock>,
        _: u64,
        pages: &mut [FrameMut],
    ) -> Result<(), ()> {
        pages.iter_mut().for_each(|frame| frame.fill(1));
        Ok(())
    }
}

impl WriteBacking for Huge {
    fn block_size(&self) -> u32 {
        4096
    }

    fn reserve(&self, _: &mut Held<'_, PageLock>, _: Range<u64>) -> Result<(), ()> {
        Ok(())
    }

    fn grow(&self, _: &mut Held<'_, PageLock>, end: u64) {
        self.0.fetch_max(end, Ordering::Relaxed);
    }

    fn write_pages(&self, _: &mut Held<'_, Writepages>, _: &WriteBatch<'_>) -> Result<(), ()> {
        Ok(())
    }
}

/// The last page that a file can have has no place in a memory.
#[test]
fn a_mapped_file_ends_where_its_memory_does() {
    const END: u64 = u64::MAX >> 1;
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let mapping = Mapping::new(&cache, 7, Huge::default());
    let set_size = |size| mapping.backing().0.store(size, Ordering::Relaxed);
    let inode: OrderedRwLock<Inode, ()> = OrderedRwLock::new(7, ());
    let share = || {
        let mut entry = Held::at_entry();
        let (_alone, mut held) = inode.write(&mut entry);
        mapping.share_memory(&mut held)
    };
    let read = |offset| {
        let mut bytes = [0; 2 * PAGE_SIZE];
        let readahead = Readahead::new();
        let read = mapping.read(&mut Held::at_entry(), &readahead, offset, &mut bytes);
        read.expect("read")
    };
    let limit = FileMemory::PAGES * PAGE;
    set_size(limit + 1);
    match share() {
        Err(ShareError::Memory(error)) => assert_eq!(error.kind(), ErrorKind::FileTooLarge),
        other => panic!("{other:?}"),
    }
    set_size(limit);
    let memory = share().expect("memory");
    let space = AddressSpace::shared(&mapping, 0..u64::MAX);
    drop(memory);
    let last = FileMemory::PAGES - 1;
    for kind in [FaultKind::Read, FaultKind::Write] {
        assert_eq!(space.fault(last, kind), Ok(()));
    }
    set_size(u64::MAX);
    assert_eq!(
        space.fault(last + 1, FaultKind::Read),
        Err(FaultError::Beyond)
    );
    assert_eq!(
        space.fault(last + 1, FaultKind::Write),
        Err(FaultError::Beyond)
    );
    assert_eq!(read(limit - 10), 10);
    assert_eq!(read(limit), 0);
    {
        let mut entry = Held::at_entry();
        let (_alone, mut held) = inode.write(&mut entry);
        assert_eq!(mapping.write(&mut held, limit - 10, &[1; 20]), Ok(10));
        assert_eq!(mapping.write(&mut held, limit, &[1; 20]), Ok(0));
    }
    drop(space);
    assert_eq!(give_back(&cache), 1);
    assert_eq!(read(limit - 10), 10 + PAGE_SIZE - 1, "all there is");
    assert_eq!(read(END), 0);
}

/// A page that leaves while somebody waits to zero what is past the end of the file gets no byte any
/// more: its place is a hole.
#[test]
fn a_page_that_has_gone_is_not_zeroed_past_the_end() {
    let (_cache, mapping) = setup();
    mapping.backing().set_size(PAGE + 100);
    let memory = share_alone(&mapping);
    read(&mapping, PAGE, 100).expect("read");
    let folio = mapping.pages().get(1).expect("cached");
    let guard = PageLockGuard::try_lock(&folio).expect("free");
    let writer = Arc::clone(&mapping);
    let writing = Task::start(move || write(&writer, 3 * PAGE, &[5; PAGE_SIZE]));
    assert!(!writing.is_over_shortly(), "it waits for the page");
    // As reclaim does.
    assert!(mapping.pages().remove_locked(&guard));
    assert_eq!(memory.allocated_pages(), 0);
    drop(guard);
    assert_eq!(writing.finish(), Ok(PAGE_SIZE));
    assert_eq!(memory.allocated_pages(), 1, "what was written");
    assert!(read(&mapping, PAGE, 100) == Ok(stamped(1, 1)[..100].to_vec()));
}
