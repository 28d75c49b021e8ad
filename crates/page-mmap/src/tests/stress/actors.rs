//! Who does what in the stress.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use pagefence_fs_model::ledger::{CELL, Expect, Wrong};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_lock_order::primitives::thread::yield_now;
use pagefence_page_cache::{FaultError, FaultKind, PAGE_SIZE};

use super::{PAGES, TAIL, World};
use crate::tests::disk::Disk;
use crate::tests::{PAGE, load, store};
use crate::{Kind, Region};

/// What an actor does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Loads any cell and stores to its own, by both shared maps; owner number so and so.
    Mapper(usize),
    /// Loads by the private map.
    PrivateLoader,
    /// Writes its own cells; owner number so and so.
    Writer(usize),
    /// Writes them past the cache.
    DirectWriter(usize),
    Reader,
    Puncher,
    Truncater,
    Syncer,
    Reclaimer,
    /// Has pages faulted in that nobody touches.
    Faulter,
    /// Stores to private maps of its own, and looks whether that stays.
    Copier,
}

pub(super) const ACTORS: [Role; 14] = [
    Role::Mapper(0),
    Role::Mapper(1),
    Role::Mapper(2),
    Role::Mapper(3),
    Role::Writer(4),
    Role::DirectWriter(5),
    Role::PrivateLoader,
    Role::Reader,
    Role::Puncher,
    Role::Truncater,
    Role::Syncer,
    Role::Reclaimer,
    Role::Faulter,
    Role::Copier,
];

const OWNERS: usize = 6;

const CELLS_PER_PAGE: usize = PAGE_SIZE / CELL;

/// Looks at a cell that seems torn.
const LOOKS: usize = 20;

/// One of them.
pub(super) struct Actor {
    nr: usize,
    world: Arc<World>,
    random: u64,
    copies: Option<Copies>,
}

/// A private map, and what was stored to its pages last.
struct Copies {
    region: Region<Disk>,
    stored: BTreeMap<u64, u64>,
    steps: u32,
}

/// Steps until a private map is given up for a new one.
const STEPS: u32 = 300;

impl Actor {
    pub(super) fn new(nr: usize, world: Arc<World>) -> Self {
        let random = 0x9E37_79B9_7F4A_7C15 ^ (nr as u64 + 1) << 32;
        Self {
            nr,
            world,
            random,
            copies: None,
        }
    }

    /// One step; false if it was the last one.
    pub(super) fn act(&mut self) -> bool {
        match ACTORS[self.nr] {
            Role::Mapper(owner) => self.map(owner),
            Role::PrivateLoader => self.load_private(),
            Role::Writer(owner) => self.write(owner),
            Role::DirectWriter(owner) => self.write_direct(owner),
            Role::Reader => self.read(),
            Role::Puncher => self.punch(),
            Role::Truncater => self.truncate(),
            Role::Syncer => {
                self.world.bench.sync().expect("synced");
                rest(2);
            }
            Role::Reclaimer => {
                self.world.bench.cache.shrink(24 * PAGE);
                rest(1);
            }
            Role::Faulter => self.fault(),
            Role::Copier => self.copy(),
        }
        self.world.done[self.nr].fetch_add(1, Ordering::SeqCst);
        !self.world.is_over()
    }

    fn below(&mut self, end: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let end = u64::try_from(end).expect("small");
        usize::try_from((self.random >> 11) % end).expect("small")
    }

    fn any_cell(&mut self) -> usize {
        self.below(self.world.ledger.cells())
    }

    fn own_cell(&mut self, owner: usize) -> usize {
        let most = (self.world.ledger.cells() - owner).div_ceil(OWNERS);
        self.below(most) * OWNERS + owner
    }

    fn map(&mut self, owner: usize) {
        let stores = self.below(2) == 0;
        let cell = if stores {
            self.own_cell(owner)
        } else {
            self.any_cell()
        };
        let region = self.below(2);
        let world = &self.world;
        let region = &world.shared[region];
        let _there = is_in_tail(cell).then(|| world.tail.read());
        if stores {
            let (write, bytes) = world.ledger.begin_write(cell);
            store(region, offset_of(cell), &bytes);
            world.ledger.end_write(cell, &write);
        } else {
            world.look_at(cell, || load(region, offset_of(cell), CELL));
        }
    }

    fn load_private(&mut self) {
        let cell = self.any_cell();
        let world = &self.world;
        let _there = is_in_tail(cell).then(|| world.tail.read());
        world.look_at(cell, || load(&world.private, offset_of(cell), CELL));
    }

    fn write(&mut self, owner: usize) {
        let cell = self.own_cell(owner);
        let world = &self.world;
        let (write, bytes) = world.ledger.begin_write(cell);
        let written = world.bench.write(offset_of(cell), &bytes);
        assert_eq!(written, Ok(CELL));
        world.ledger.end_write(cell, &write);
    }

    fn write_direct(&mut self, owner: usize) {
        let cell = self.own_cell(owner);
        let world = &self.world;
        let (write, bytes) = world.ledger.begin_write(cell);
        let (offset, mut entry) = (offset_of(cell), Held::at_entry());
        let (mapping, inode) = (&world.bench.mapping, &world.bench.inode);
        // Where the file may end before, it grows.
        let written = if cell < cut_at(CELLS_PER_PAGE) {
            let (_shared, mut held) = inode.read(&mut entry);
            mapping.write_direct(&mut held, offset, &bytes)
        } else {
            let (_alone, mut held) = inode.write(&mut entry);
            mapping.write_direct(&mut held, offset, &bytes)
        };
        assert_eq!(written, Ok(CELL));
        world.ledger.end_write(cell, &write);
        rest(1);
    }

    fn read(&mut self) {
        let first = self.any_cell();
        let count = 1 + self.below(64);
        let world = &self.world;
        let cells = first..(first + count).min(world.ledger.cells());
        let expected: Vec<Expect> = cells
            .clone()
            .map(|cell| world.ledger.expect(cell))
            .collect();
        let bytes = world.bench.read(offset_of(first), cells.len() * CELL);
        let bytes = bytes.expect("read");
        for ((cell, expected), bytes) in cells.zip(expected).zip(bytes.chunks(CELL)) {
            match world.ledger.check(cell, bytes, expected) {
                Ok(()) => {}
                Err(Wrong::Bad(wrong)) => world.note(format!("read: {wrong}")),
                Err(Wrong::Torn(_)) => world.look_at(cell, || {
                    world.bench.read(offset_of(cell), CELL).expect("read")
                }),
            }
        }
    }

    fn punch(&mut self) {
        let first = self.any_cell();
        let count = 1 + self.below(64);
        let world = &self.world;
        let cells = first..(first + count).min(world.ledger.cells());
        let finished = world.ledger.begin_punch(cells.clone());
        world
            .bench
            .punch(offset_of(cells.start)..offset_of(cells.end));
        world.ledger.end_punch(cells, &finished);
        rest(1);
    }

    fn truncate(&mut self) {
        let cut = cut_at(self.below(CELLS_PER_PAGE));
        let syncs = self.below(2) == 0;
        let world = &self.world;
        {
            let _gone = world.tail.write();
            let cells: Range<usize> = cut..world.ledger.cells();
            let finished = world.ledger.begin_punch(cells.clone());
            world.bench.truncate(offset_of(cut));
            if syncs {
                world.bench.sync().expect("synced");
            }
            world.bench.truncate(PAGES * PAGE);
            world.ledger.end_punch(cells, &finished);
        }
        rest(3);
    }

    fn fault(&mut self) {
        let page = self.below(usize::try_from(PAGES).expect("small")) as u64;
        let region = self.below(3);
        let loads = self.below(2) == 0;
        let world = &self.world;
        let store = if region == 2 {
            FaultKind::PrivateWrite
        } else {
            FaultKind::Write
        };
        let kind = if loads { FaultKind::Read } else { store };
        let range = world.shared.get(region).unwrap_or(&world.private).range();
        match range.fault(&mut Held::at_entry(), page, kind) {
            Ok(()) => {}
            Err(FaultError::Beyond) if page >= PAGES - TAIL => {}
            Err(error) => world.note(format!("fault on page {page}: {error}")),
        }
        rest(1);
    }
}

impl Actor {
    /// Copies stay whatever happens to the file, but for a truncate that they lie behind.
    fn copy(&mut self) {
        let page = self.below(usize::try_from(PAGES).expect("small")) as u64;
        let value = self.random;
        let world = &self.world;
        let copies = self.copies.get_or_insert_with(|| Copies {
            region: world.bench.map(0..PAGES, Kind::Private),
            stored: BTreeMap::new(),
            steps: 0,
        });
        let _there = (page >= PAGES - TAIL).then(|| world.tail.read());
        let offset = page * PAGE + 8 * (page % 512);
        let region = &copies.region;
        if let Some(stored) = copies.stored.get(&page)
            && page < PAGES - TAIL
            && load(region, offset, 8) != stored.to_le_bytes()
        {
            world.note(format!("a private copy of page {page} is lost"));
        }
        store(region, offset, &value.to_le_bytes());
        if load(region, offset, 8) != value.to_le_bytes() {
            world.note(format!("a private store to page {page} is lost"));
        }
        copies.stored.insert(page, value);
        copies.steps += 1;
        if copies.steps == STEPS {
            self.copies = None;
        }
    }
}

impl World {
    /// Looks at `cell`, more than once if it seems torn.
    fn look_at(&self, cell: usize, read: impl Fn() -> Vec<u8>) {
        for look in 1.. {
            let expected = self.ledger.expect(cell);
            match self.ledger.check(cell, &read(), expected) {
                Ok(()) => return,
                Err(Wrong::Torn(_)) if look < LOOKS => yield_now(),
                Err(Wrong::Torn(wrong) | Wrong::Bad(wrong)) => return self.note(wrong),
            }
        }
    }
}

/// The first cell that goes when the file is cut so that `kept_off` cells of the page before its tail
/// go as well.
fn cut_at(kept_off: usize) -> usize {
    let pages = usize::try_from(PAGES - TAIL).expect("small");
    pages * CELLS_PER_PAGE - kept_off
}

fn is_in_tail(cell: usize) -> bool {
    cell >= cut_at(0)
}

fn offset_of(cell: usize) -> u64 {
    u64::try_from(cell * CELL).expect("small")
}

fn rest(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
