//! Memory that is no page of the cache is taken, and no other.

use pagefence_lock_order::levels::Inode;
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_lock_order::{Held, OrderedRwLock};

use super::device::{Device, TestMapping};
use super::{NEVER, SMALL, Task, config, read, stamped, sync, write};
use crate::backing::PAGE_SIZE;
use crate::probe::Stop;
use crate::{FileMemory, PageCache};

const PAGE: u64 = PAGE_SIZE as u64;
const PAGES: u64 = 16;

/// A file of stamped pages that is mapped.
fn setup() -> (Arc<PageCache>, Arc<TestMapping>, Arc<FileMemory>) {
    let cache = PageCache::new(config(SMALL)).expect("a cache");
    let pages = usize::try_from(PAGES).expect("few");
    let mapping = Device::stamped(pages, PAGE_SIZE).mapped(&cache);
    let inode: OrderedRwLock<Inode, ()> = OrderedRwLock::new(mapping.number(), ());
    let memory = {
        let mut entry = Held::at_entry();
        let (_alone, mut held) = inode.write(&mut entry);
        mapping.share_memory(&mut held).expect("memory")
    };
    (cache, mapping, memory)
}

/// Fills holes of `memory`, as loads do.
fn fill(memory: &FileMemory, pages: impl IntoIterator<Item = u64>) {
    for page in pages {
        if !memory.has_page(page) {
            memory.write(page, 0, &[0; PAGE_SIZE]);
        }
    }
}

#[test]
fn pages_of_the_cache_stay_and_others_go() {
    let (_cache, mapping, memory) = setup();
    assert_eq!(mapping.punch_strays(&mut Held::at_entry()), 0);
    write(&mapping, 2 * PAGE, &[7; PAGE_SIZE]).expect("written");
    sync(&mapping).expect("synced");
    write(&mapping, 5 * PAGE, &[9; PAGE_SIZE]).expect("written");
    let cached = mapping.nr_pages();
    assert_eq!(cached, 2);
    fill(&memory, (0..PAGES).chain([1 << 40, FileMemory::PAGES - 1]));
    assert_eq!(mapping.strays(), PAGES);
    assert_eq!(mapping.punch_strays(&mut Held::at_entry()), PAGES);
    assert_eq!((memory.allocated_pages(), mapping.nr_pages()), (2, 2));
    assert_eq!(mapping.strays(), 0);
    assert_eq!(read(&mapping, 2 * PAGE, PAGE_SIZE), Ok(vec![7; PAGE_SIZE]));
    assert_eq!(read(&mapping, 5 * PAGE, PAGE_SIZE), Ok(vec![9; PAGE_SIZE]));
    assert_eq!(mapping.dirty_pages(), 1);
    assert_eq!(read(&mapping, 3 * PAGE, PAGE_SIZE), Ok(stamped(3, 1)));
}

#[test]
fn many_runs_are_taken_in_several_fences() {
    let (cache, mapping, memory) = setup();
    let fences = Arc::<Mutex<u64>>::default();
    {
        let fences = Arc::clone(&fences);
        cache.stop_at(Stop::BeforeLock, move || *fences.lock() += 1);
    }
    fill(&memory, (0..1000).step_by(2).chain(2000..5000));
    assert_eq!(mapping.punch_strays(&mut Held::at_entry()), 3500);
    assert_eq!(memory.allocated_pages(), 0);
    assert!(*fences.lock() > 5, "others get in between");
}

/// Whether a page that is brought in while its place is a stray, and is about to be taken, keeps its bytes.
fn keeps_a_page_that_comes(is_fenced: bool) -> bool {
    let (cache, mapping, memory) = setup();
    if !is_fenced {
        cache.leave_out_fences("src/stray.rs");
    }
    fill(&memory, [3]);
    let reader = Arc::<Mutex<Option<Task<_>>>>::default();
    {
        // The cache has the stop: with a mapping in it, it would never go.
        let (reader, mapping) = (Arc::clone(&reader), Arc::downgrade(&mapping));
        cache.stop_at(Stop::StraysFound, move || {
            let mapping = mapping.upgrade().expect("it is in use");
            let task = Task::start(move || read(&mapping, 3 * PAGE, PAGE_SIZE));
            if is_fenced {
                assert!(!task.is_over_shortly(), "it waits for the fence");
            } else {
                assert!(task.wait(NEVER), "it hangs");
            }
            *reader.lock() = Some(task);
        });
    }
    assert_eq!(mapping.punch_strays(&mut Held::at_entry()), 1);
    let reader = reader.lock().take().expect("it was found");
    assert_eq!(reader.finish(), Ok(stamped(3, 1)));
    read(&mapping, 3 * PAGE, PAGE_SIZE) == Ok(stamped(3, 1))
}

#[test]
fn the_fence_of_strays() {
    assert!(keeps_a_page_that_comes(true));
    assert!(!keeps_a_page_that_comes(false));
}
