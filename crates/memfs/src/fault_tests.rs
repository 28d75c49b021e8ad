//! Faults on files in memory: they take space as writes do, and race whatever takes pages away
//! (S4.20; Linux: f00cdc6df7d7).

use std::collections::BTreeMap;
use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, thread};
use pagefence_page_cache::{
    Access, Answer, CannotMap, FaultError, FaultKind, MapTarget, MappedPage, MappedRange, PageRun,
    Unmap,
};
use pagefence_vfs::{
    Credentials, FallocateMode, FileSystem as _, InodeId, New, NewKind, SetAttr, WriteMode,
};

use crate::data::{FileData, PAGE_BYTES};
use crate::file::File;
use crate::filesystem::{MemFs, Options};

const PAGES: u64 = 64;

/// A page table.
#[derive(Default)]
struct Table(Mutex<BTreeMap<u64, (MappedPage, Access)>>);

impl Table {
    /// Stores to a page if that is mapped so; a store is one moment.
    fn store(&self, index: u64, bytes: &[u8]) -> bool {
        let table = self.0.lock();
        match table.get(&index) {
            Some((page, Access::Store)) => {
                assert!(
                    page.is_current(),
                    "page {index} is mapped and not the file's"
                );
                assert!(
                    page.is_dirty(),
                    "page {index} is stored to and would be lost"
                );
                page.copy_in(0, bytes);
                true
            }
            _ => false,
        }
    }

    /// The first byte of a page, if it is mapped.
    fn load(&self, index: u64) -> Option<u8> {
        let table = self.0.lock();
        let (page, _) = table.get(&index)?;
        assert!(
            page.is_current(),
            "page {index} is mapped and not the file's"
        );
        let mut byte = [0];
        page.copy_out(0, &mut byte);
        Some(byte[0])
    }

    fn last(&self) -> Option<u64> {
        self.0.lock().keys().next_back().copied()
    }
}

impl MapTarget for Table {
    fn map(&self, run: &PageRun<'_>, access: Access) -> Result<(), CannotMap> {
        let mut table = self.0.lock();
        for page in run.iter() {
            let entry = table
                .entry(page.index())
                .or_insert_with(|| (page.clone(), access));
            assert!(entry.0.is_same(&page), "another page of the same place");
            if access == Access::Store {
                entry.1 = access;
            }
        }
        Ok(())
    }

    fn map_copy(&self, page: &MappedPage) -> Result<(), CannotMap> {
        panic!("nobody maps page {} privately", page.index());
    }

    fn unmap(&self, pages: Range<u64>, _: Unmap) -> Answer<'_> {
        self.0.lock().retain(|index, _| !pages.contains(index));
        Answer::done()
    }

    fn write_protect(&self, pages: Range<u64>) -> Answer<'_> {
        for (_, (_, access)) in self.0.lock().range_mut(pages) {
            *access = Access::Load;
        }
        Answer::done()
    }
}

struct Bench {
    fs: MemFs,
    id: InodeId,
    file: File,
    table: Arc<Table>,
    range: MappedRange<FileData>,
}

fn root() -> Credentials {
    Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    }
}

/// A file of [`PAGES`] pages, all holes, mapped as a whole, with room for `room` pages.
fn bench(room: u64) -> Bench {
    let fs = MemFs::new(&Options::new(room * PAGE_BYTES)).expect("memory");
    let new = New {
        kind: NewKind::Regular,
        permissions: 0o644,
        umask: 0,
    };
    let made = fs.create(fs.root(), b"f", &new, &root()).expect("made");
    let file = fs.open(made.attr.id, true).expect("it opens");
    let table = Arc::new(Table::default());
    let target: Arc<dyn MapTarget> = Arc::clone(&table) as _;
    let bench = Bench {
        range: file.mapping().map_range(0..PAGES, target),
        id: made.attr.id,
        fs,
        file,
        table,
    };
    bench.set_size(PAGES * PAGE_BYTES);
    bench
}

impl Bench {
    fn set_size(&self, size: u64) {
        let change = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        self.fs.set_attr(self.id, &change, &root()).expect("set");
    }

    fn fault(&self, index: u64, kind: FaultKind) -> Result<(), FaultError<crate::data::Full>> {
        self.range.fault(&mut Held::at_entry(), index, kind)
    }

    fn free(&self) -> u64 {
        self.fs.core.limits.pages().1
    }
}

#[test]
fn stores_take_space_and_loads_take_none() {
    let bench = bench(10);
    for index in 0..PAGES {
        bench.fault(index, FaultKind::Read).expect("a hole is read");
        assert_eq!(bench.table.load(index), Some(0));
    }
    assert_eq!(bench.free(), 10);
    for index in 0..10 {
        bench.fault(index, FaultKind::Write).expect("there is room");
        assert!(bench.table.store(index, &[index as u8 + 1]));
    }
    let refused = bench.fault(10, FaultKind::Write);
    assert!(
        matches!(refused, Err(FaultError::NoSpace(_))),
        "{refused:?}"
    );
    assert!(!bench.table.store(10, &[1]));
    let beyond = bench.fault(PAGES, FaultKind::Read);
    assert!(matches!(beyond, Err(FaultError::Beyond)), "{beyond:?}");
    // Whatever wants memory: what was stored stays.
    bench.fs.core.cache.shrink(u64::MAX);
    let mut byte = [0xee];
    for index in 0..11 {
        let read = bench.fs.read(&bench.file, index * PAGE_BYTES, &mut byte);
        assert_eq!(read.expect("read"), 1);
        assert_eq!(u64::from(byte[0]), if index < 10 { index + 1 } else { 0 });
    }
    bench.set_size(0);
    assert_eq!((bench.free(), bench.table.last()), (10, None));
}

/// Whoever stores finds its pages in the file or gone; whoever takes pages away gets through, and
/// all space is accounted for.
#[test]
fn faults_race_punch_truncate_and_fallocate() {
    let bench = bench(PAGES / 2);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (bench, is_over) = (&bench, &is_over);
            scope.spawn(move || {
                let mut number = thread;
                while !is_over.load(Ordering::Relaxed) {
                    number = number
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(99);
                    let index = (number >> 33) % PAGES;
                    let kind = match thread {
                        0 => FaultKind::Read,
                        _ => FaultKind::Write,
                    };
                    match bench.fault(index, kind) {
                        Ok(()) => {
                            bench.table.load(index);
                            bench.table.store(index, &[7; 100]);
                        }
                        Err(FaultError::NoSpace(_) | FaultError::Beyond) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        let punch = FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE;
        for round in 0..400_u64 {
            let (first, count) = (round * 7 % PAGES, 1 + round % 9);
            let (offset, length) = (first * PAGE_BYTES + 5, count * PAGE_BYTES);
            let allocate = |mode| bench.fs.allocate(&bench.file, offset, length, mode);
            match round % 4 {
                0 | 1 => allocate(punch).expect("punched"),
                2 => {
                    // Refused if there is no room.
                    let _ = allocate(FallocateMode::KEEP_SIZE);
                }
                _ => {
                    bench.set_size(offset);
                    // Nobody else changes the size: nothing past it is mapped, nor will be.
                    assert!(bench.table.last().is_none_or(|last| last <= first));
                    bench.set_size(PAGES * PAGE_BYTES);
                    let _ = bench
                        .fs
                        .write(&bench.file, offset, &[1; 5000], WriteMode::default());
                }
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let has = bench.file.mapping().backing().pages();
    assert_eq!(bench.free(), PAGES / 2 - has);
    assert!(bench.file.mapping().dirty_pages() as u64 <= has);
    bench.set_size(0);
    assert_eq!((bench.free(), bench.table.last()), (PAGES / 2, None));
}
