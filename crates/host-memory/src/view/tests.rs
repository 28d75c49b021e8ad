//! What a view shows, what of it is refused, and how the kernel is advised about it.

use pagefence_lock_order::primitives::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use pagefence_lock_order::primitives::thread;

use super::*;
use crate::test_child::{DONE, in_child};

fn memory() -> Arc<FileMemory> {
    FileMemory::new().expect("memory")
}

#[test]
fn stores_are_the_memorys_bytes_and_its_bytes_are_loaded() {
    let memory = memory();
    let view = View::new(&memory, 7, 10_000, ViewKind::Shared).expect("a view");
    assert_eq!((view.len(), view.is_empty()), (10_000, false));
    assert_eq!(view.pages(), 7..10);
    view.store(5000, b"stored");
    let mut found = [0; 6];
    memory.read(8, 5000 - FRAME_SIZE, &mut found);
    assert_eq!(&found, b"stored");
    memory.write(9, 1000, b"loaded");
    view.load(2 * FRAME_SIZE + 1000, &mut found);
    assert_eq!(&found, b"loaded");
}

#[test]
fn the_last_page_can_be_mapped_and_nothing_behind_it() {
    let memory = memory();
    let last = FileMemory::PAGES - 1;
    let view = View::new(&memory, last, FRAME_SIZE, ViewKind::Shared).expect("a view");
    view.store(FRAME_SIZE - 1, &[4]);
    let mut found = [0];
    memory.read(last, FRAME_SIZE - 1, &mut found);
    assert_eq!(found, [4]);
    let refused = |first, bytes| {
        let made = View::new(&memory, first, bytes, ViewKind::Shared);
        made.expect_err("refused").kind()
    };
    for (first, bytes) in [
        (last, FRAME_SIZE + 1),
        (last + 1, 1),
        (u64::MAX, 1),
        (0, 0),
        (0, usize::MAX),
    ] {
        assert_eq!(refused(first, bytes), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn a_private_view_keeps_its_stores() {
    let memory = memory();
    memory.write(0, 0, b"everybody's");
    let view = View::new(&memory, 0, FRAME_SIZE, ViewKind::Private).expect("a view");
    view.store(0, b"nobody else");
    let mut found = [0; 11];
    memory.read(0, 0, &mut found);
    assert_eq!(&found, b"everybody's");
    view.zap(0..1);
    view.load(0, &mut found);
    assert_eq!(&found, b"everybody's");
}

#[test]
#[should_panic(expected = "a store to a view for loads alone")]
fn a_read_only_view_takes_no_store() {
    let memory = memory();
    let view = View::new(&memory, 0, FRAME_SIZE, ViewKind::SharedReadOnly).expect("a view");
    view.load(0, &mut [0; 8]);
    view.store(0, &[1]);
}

#[test]
#[should_panic(expected = "a store to a view for loads alone")]
fn a_read_only_view_takes_no_atomic_store() {
    let memory = memory();
    let view = View::new(&memory, 0, FRAME_SIZE, ViewKind::SharedReadOnly).expect("a view");
    assert_eq!(view.load_u32(4, Acquire), 0);
    view.fetch_add_u32(4, 1, AcqRel);
}

#[test]
#[should_panic(expected = "within the map")]
fn nothing_is_loaded_from_behind_the_view() {
    let memory = memory();
    let view = View::new(&memory, 0, 100, ViewKind::Shared).expect("a view");
    view.load(90, &mut [0; 11]);
}

#[test]
#[should_panic(expected = "byte 12 is no place for an atomic of 8 bytes: it is not aligned")]
fn atomics_are_aligned() {
    let memory = memory();
    let view = View::new(&memory, 0, 100, ViewKind::Shared).expect("a view");
    let _ = view.load_u64(12, SeqCst);
}

#[test]
#[should_panic(expected = "within the map")]
fn atomics_are_inside() {
    let memory = memory();
    let view = View::new(&memory, 0, 100, ViewKind::Shared).expect("a view");
    view.store_u64(96, 1, SeqCst);
}

#[test]
fn atomics_are_of_their_size_and_place() {
    let memory = memory();
    let view = View::new(&memory, 1, FRAME_SIZE, ViewKind::Shared).expect("a view");
    view.store_u8(1, 0xa1, SeqCst);
    view.store_u16(2, 0xb1b2, SeqCst);
    view.store_u32(4, 0xc1c2_c3c4, SeqCst);
    view.store_u64(8, 0xd1d2_d3d4_d5d6_d7d8, SeqCst);
    let mut found = [0; 24];
    memory.read(1, 0, &mut found);
    assert_eq!(found[..2], [0, 0xa1]);
    assert_eq!(found[2..4], 0xb1b2_u16.to_ne_bytes());
    assert_eq!(found[4..8], 0xc1c2_c3c4_u32.to_ne_bytes());
    assert_eq!(found[8..16], 0xd1d2_d3d4_d5d6_d7d8_u64.to_ne_bytes());
    assert_eq!(found[16..], [0; 8]);
    assert_eq!(view.load_u8(1, SeqCst), 0xa1);
    assert_eq!(view.load_u16(2, SeqCst), 0xb1b2);
    assert_eq!(view.load_u32(4, SeqCst), 0xc1c2_c3c4);
    assert_eq!(view.load_u64(8, SeqCst), 0xd1d2_d3d4_d5d6_d7d8);
    assert_eq!(view.fetch_add_u64(16, 5, AcqRel), 0);
    assert_eq!(view.compare_exchange_u64(16, 4, 9, AcqRel, Relaxed), Err(5));
    assert_eq!(view.compare_exchange_u64(16, 5, 9, AcqRel, Relaxed), Ok(5));
    assert_eq!(view.load_u64(16, Relaxed), 9);
    assert_eq!(view.compare_exchange_u32(20, 1, 2, SeqCst, SeqCst), Err(0));
}

#[test]
fn two_views_add_to_one_counter() {
    let memory = memory();
    let views = [2, 0].map(|first| {
        let view = View::new(&memory, first, 3 * FRAME_SIZE, ViewKind::Shared);
        (
            view.expect("a view"),
            2 - usize::try_from(first).expect("few"),
        )
    });
    let adders: Vec<_> = views
        .into_iter()
        .map(|(view, page)| {
            thread::spawn("adder", move || {
                for _ in 0..20_000 {
                    view.fetch_add_u32(page * FRAME_SIZE + 8, 1, Relaxed);
                }
            })
            .expect("a thread")
        })
        .collect();
    for adder in adders {
        adder.join().expect("an adder");
    }
    let mut sum = [0; 4];
    memory.read(2, 8, &mut sum);
    assert_eq!(u32::from_ne_bytes(sum), 40_000);
}

#[test]
fn zapping_what_is_not_shown_is_nothing() {
    let memory = memory();
    let view = View::new(&memory, 5, 2 * FRAME_SIZE, ViewKind::Private).expect("a view");
    view.store(0, &[1]);
    view.store(FRAME_SIZE, &[1]);
    for pages in [0..5, 7..u64::MAX, 6..6] {
        view.zap(pages);
    }
    assert_eq!(view.load_u8(0, Relaxed), 1);
    view.zap(0..6);
    assert_eq!(view.load_u8(0, Relaxed), 0);
    assert_eq!(view.load_u8(FRAME_SIZE, Relaxed), 1);
    view.zap(6..u64::MAX);
    assert_eq!(view.load_u8(FRAME_SIZE, Relaxed), 0);
}

#[test]
fn a_page_that_the_user_locked_is_zapped_all_the_same() {
    let memory = memory();
    let view = View::new(&memory, 0, FRAME_SIZE, ViewKind::Private).expect("a view");
    view.store(0, &[1]);
    // SAFETY: the page is the view's.
    unsafe { rustix::mm::mlock(view.as_ptr().cast(), FRAME_SIZE) }.expect("locked");
    view.zap(0..1);
    assert_eq!(view.load_u8(0, Relaxed), 0);
}

/// The flags that the kernel shows of the mapping at the view's beginning.
fn flags(view: &View) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
    let start = format!("{:x}-", view.as_ptr().addr());
    let entry = maps
        .lines()
        .skip_while(|line| !line.starts_with(&start))
        .find_map(|line| line.strip_prefix("VmFlags: "))
        .expect("the view's mapping");
    entry.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn children_of_a_fork_do_not_inherit_a_view_and_huge_pages_are_off() {
    let memory = memory();
    for kind in [
        ViewKind::Shared,
        ViewKind::SharedReadOnly,
        ViewKind::Private,
    ] {
        let view = View::new(&memory, 0, 1 << 22, kind).expect("a view");
        let flags = flags(&view);
        let has = |flag: &str| flags.iter().any(|found| found == flag);
        assert!(has("dc"), "copied by fork: {flags:?}");
        assert!(
            has("nh") || !std::fs::exists("/sys/kernel/mm/transparent_hugepage").expect("sysfs"),
            "huge pages: {flags:?}"
        );
        assert!(!has("lo") && !has("ex"), "{flags:?}");
    }
}

#[test]
fn a_process_that_locks_its_memory_fills_no_holes() {
    let name = "view::tests::a_process_that_locks_its_memory_fills_no_holes";
    let status = in_child(name, || {
        use rustix::mm::{MlockAllFlags, mlockall};
        let memory = memory();
        mlockall(MlockAllFlags::FUTURE).expect("locked");
        for kind in [
            ViewKind::Shared,
            ViewKind::SharedReadOnly,
            ViewKind::Private,
        ] {
            let view = View::new(&memory, 0, 4 * FRAME_SIZE, kind).expect("a view");
            assert_eq!(memory.allocated_pages(), 0);
            assert!(!flags(&view).iter().any(|flag| flag == "lo"));
        }
    });
    assert_eq!(status.code(), Some(DONE));
}

#[test]
fn a_descriptor_for_reading_is_mapped_private() {
    let memory = memory();
    memory.write(1, 0, b"read");
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&memory.fd())
    );
    let file = std::fs::File::open(path).expect("the memfd");
    assert!(View::of_fd(&file, 1, 10, ViewKind::Shared).is_err());
    let view = View::of_fd(&file, 1, 10, ViewKind::Private).expect("a view");
    let mut found = [0; 4];
    view.load(0, &mut found);
    assert_eq!(&found, b"read");
}
