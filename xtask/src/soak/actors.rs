//! Who changes the files of a soak through the mount: by system calls.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pagefence_fs_model::ledger::CELL;
use pagefence_fuse_front::ioctl;
use pagefence_lock_order::primitives::Arc;
use rustix::fs::{FallocateFlags, fallocate};

use super::mapper::in_tail;
use super::world::{
    ACTORS, CELLS, MOVE_GATE, MOVED_PAGES, OWNERS, PAGE, PAGES, PER_PAGE, STEP, TAIL, TAIL_GATE,
    WRITER, World,
};
use super::{FILE, MOVED_FILE};
use crate::random::Random;

/// Modes of fallocate(2).
const COLLAPSE_RANGE: u32 = 0x08;
const INSERT_RANGE: u32 = 0x20;

/// What an actor does again and again.
type Act = fn(&mut Actor) -> Result<()>;

/// Those of [`ACTORS`] that map nothing, from the first on, and who writes back.
pub(super) const ACTS: [Act; 6] = [
    Actor::write,
    Actor::read,
    Actor::punch,
    Actor::truncate,
    Actor::collapse,
    Actor::write_back,
];

/// The most cells that are punched at a time.
const PUNCHED: usize = 64;

pub(super) struct Actor {
    file: File,
    moved: File,
    world: Arc<World>,
    random: Random,
}

impl Actor {
    pub(super) fn new(directory: &Path, world: &Arc<World>, name: &str, seed: u64) -> Result<Self> {
        let open = |name| {
            let path = directory.join(name);
            let file = File::options().read(true).write(true).open(&path);
            file.with_context(|| format!("cannot open {}", path.display()))
        };
        Ok(Self {
            file: open(FILE)?,
            moved: open(MOVED_FILE)?,
            world: Arc::clone(world),
            random: Random::for_name(seed, name),
        })
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    fn write(&mut self) -> Result<()> {
        let cell = self.below(CELLS / OWNERS) * OWNERS + WRITER;
        let (world, file) = (&self.world, &self.file);
        in_tail(world, cell, || {
            let (write, bytes) = world.cells.begin_write(cell);
            file.write_all_at(&bytes, (cell * CELL) as u64)?;
            world.cells.end_write(cell, &write);
            Ok(())
        })
    }

    fn read(&mut self) -> Result<()> {
        let cell = self.below(CELLS);
        let (world, file) = (&self.world, &self.file);
        in_tail(world, cell, || {
            Ok(world.look(ACTORS[WRITER + 1], cell, || read(file, cell))?)
        })
    }

    fn punch(&mut self) -> Result<()> {
        let first = self.below(CELLS - TAIL * PER_PAGE - PUNCHED);
        let cells = first..first + 1 + self.below(PUNCHED);
        let how = match self.below(4) {
            0 => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            _ => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        };
        let finished = self.world.cells.begin_punch(cells.clone());
        let (offset, len) = ((first * CELL) as u64, (cells.len() * CELL) as u64);
        fallocate(&self.file, how, offset, len)?;
        self.world.cells.end_punch(cells, &finished);
        Ok(())
    }

    fn truncate(&mut self) -> Result<()> {
        let cut = CELLS - 1 - self.below((TAIL - 1) * PER_PAGE);
        let world = Arc::clone(&self.world);
        world.alone(TAIL_GATE, || {
            let finished = world.cells.begin_punch(cut..CELLS);
            self.file.set_len((cut * CELL) as u64)?;
            self.file.set_len((PAGES * PAGE) as u64)?;
            world.cells.end_punch(cut..CELLS, &finished);
            anyhow::Ok(())
        })?;
        // Most of the time there is a tail.
        std::thread::sleep(Duration::from_millis(2));
        Ok(())
    }

    fn collapse(&mut self) -> Result<()> {
        let world = Arc::clone(&self.world);
        world.alone(MOVE_GATE, || {
            let mode = if world.phase().is_multiple_of(4) {
                COLLAPSE_RANGE
            } else {
                INSERT_RANGE
            };
            world.next_phase();
            ioctl::fallocate(&self.moved, mode, 0, (STEP * PAGE) as u64)?;
            world.next_phase();
            anyhow::Ok(())
        })?;
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    }

    fn write_back(&mut self) -> Result<()> {
        match self.below(3) {
            0 => self.file.sync_data()?,
            1 => self.moved.sync_all()?,
            _ => rustix::fs::syncfs(&self.file)?,
        }
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }
}

pub(super) fn read(file: &File, cell: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; CELL];
    file.read_exact_at(&mut bytes, (cell * CELL) as u64)?;
    Ok(bytes)
}

/// Makes both files, of holes.
pub(super) fn make_files(directory: &Path) -> Result<()> {
    for (name, pages) in [(FILE, PAGES), (MOVED_FILE, MOVED_PAGES)] {
        File::create_new(directory.join(name))?.set_len((pages * PAGE) as u64)?;
    }
    Ok(())
}
