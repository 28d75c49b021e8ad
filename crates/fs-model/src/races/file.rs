//! Threads that write, read, punch, zero, allocate, look for data in, and cut off one file, through its
//! cache and past it.

use std::ops::Range;

use pagefence_vfs::{
    Error, FallocateMode, FileSystem, InodeId, NewKind, SetAttr, Whence, WriteMode,
};

use super::cells::{Becomes, CELL, Cells};
use super::{Random, at_once, make, root};

/// Cells that follow each other and have one owner: more than three pages, so that some lie wholly
/// inside a range, and its ends do not.
const RUN: u64 = 13;
/// Runs of each owner.
const RUNS_EACH: u64 = 4;
/// Cells behind them, which one thread cuts off and brings back.
const TAIL: u64 = 3 * RUN;

/// How a race over a file goes.
#[derive(Clone, Copy, Debug)]
pub struct FileRace {
    /// Decides what each thread does.
    pub seed: u64,
    /// Changes that each thread makes.
    pub changes: u64,
    /// Whether the file can do [`FallocateMode::ZERO_RANGE`], and allocate what it has no data
    /// for (files with block maps can't).
    pub has_unwritten: bool,
}

/// Two owners of the body change it by all means, a third thread cuts the tail off and brings it
/// back, two read, one looks for data; each under the oracle of `cells`. Then the file is read
/// once more.
///
/// # Errors
/// What a reader saw that it should not have, or what the file system failed with.
pub fn race_over_a_file<F: FileSystem>(fs: &F, race: &FileRace) -> Result<(), String> {
    let name = format!("race-{}", race.seed);
    let id = make(fs, fs.root(), name.as_bytes(), NewKind::Regular).map_err(text)?;
    let body = 2 * RUNS_EACH * RUN;
    let cells = Cells::new(body + TAIL);
    set_size(fs, id, body * CELL).map_err(text)?;
    let done = pagefence_lock_order::primitives::atomic::AtomicU64::new(0);
    let player = |thread: u64| Player {
        fs,
        id,
        race,
        cells: &cells,
        done: &done,
        random: Random::new(race.seed, thread),
    };
    let outcome = at_once(vec![
        Box::new(|| player(0).finishing(|player| player.own(0))),
        Box::new(|| player(1).finishing(|player| player.own(1))),
        Box::new(|| player(2).finishing(|player| player.cut(body))),
        Box::new(|| player(3).look_on(Player::read_some)),
        Box::new(|| player(4).look_on(Player::read_some)),
        Box::new(|| player(5).look_on(Player::seek_some)),
    ]);
    let all = outcome.and_then(|()| player(6).read(0..body + TAIL));
    all.map_err(|error| format!("{race:?}: {error}"))?;
    fs.unlink(fs.root(), name.as_bytes()).map_err(text)?;
    fs.forget(id);
    Ok(())
}

fn text(error: Error) -> String {
    error.to_string()
}

fn set_size<F: FileSystem>(fs: &F, id: InodeId, size: u64) -> pagefence_vfs::Result<()> {
    let change = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    fs.set_attr(id, &change, &root()).map(drop)
}

/// One thread.
struct Player<'a, F> {
    fs: &'a F,
    id: InodeId,
    race: &'a FileRace,
    cells: &'a Cells,
    /// Threads that have made their changes.
    done: &'a pagefence_lock_order::primitives::atomic::AtomicU64,
    random: Random,
}

/// Threads that make changes.
const CHANGERS: u64 = 3;

impl<F: FileSystem> Player<'_, F> {
    /// Makes all changes; the others are told, also of a failure.
    fn finishing(
        mut self,
        play: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        use pagefence_lock_order::primitives::atomic::Ordering;
        struct Tell<'a>(&'a pagefence_lock_order::primitives::atomic::AtomicU64);
        impl Drop for Tell<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let _tell = Tell(self.done);
        play(&mut self)
    }

    /// Looks on until all changes are made.
    fn look_on(mut self, look: impl Fn(&mut Self) -> Result<(), String>) -> Result<(), String> {
        use pagefence_lock_order::primitives::atomic::Ordering;
        while self.done.load(Ordering::SeqCst) < CHANGERS {
            look(&mut self)?;
        }
        Ok(())
    }

    fn open(&self) -> Result<F::File, String> {
        self.fs.open(self.id, true).map_err(text)
    }

    /// Some cells of a range of cells.
    fn some(&mut self, of: Range<u64>) -> Range<u64> {
        let first = of.start + self.random.below(of.end - of.start);
        first..first + 1 + self.random.below(of.end - first)
    }

    /// Changes cells that it owns, and sees its own changes.
    fn own(&mut self, owner: u64) -> Result<(), String> {
        for _ in 0..self.race.changes {
            let run = self.random.below(RUNS_EACH) * 2 + owner;
            let cells = self.some(run * RUN..(run + 1) * RUN);
            self.change(cells.clone())
                .map_err(|error| format!("cells {cells:?}: {error}"))?;
            self.read(cells)?;
        }
        Ok(())
    }

    fn change(&mut self, cells: Range<u64>) -> Result<(), String> {
        let file = self.open()?;
        let mode = match self.random.below(8) {
            0..4 => return self.write(&file, cells),
            4..6 => FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE,
            6 if self.race.has_unwritten => FallocateMode::ZERO_RANGE,
            _ => FallocateMode::KEEP_SIZE,
        };
        let clears = mode != FallocateMode::KEEP_SIZE;
        if clears {
            self.cells.begin(cells.clone(), Becomes::Zeros);
        }
        self.allocate(&file, cells.clone(), mode)?;
        if clears {
            self.cells.end(cells);
        }
        Ok(())
    }

    fn allocate(
        &self,
        file: &F::File,
        cells: Range<u64>,
        mode: FallocateMode,
    ) -> Result<(), String> {
        let length = (cells.end - cells.start) * CELL;
        let allocated = self.fs.allocate(file, cells.start * CELL, length, mode);
        allocated.map_err(|error| format!("{mode:?}: {error}"))
    }

    fn write(&mut self, file: &F::File, cells: Range<u64>) -> Result<(), String> {
        self.cells.begin(cells.clone(), Becomes::Data);
        let bytes = self.cells.begun_bytes(cells.clone());
        let (mut at, mut rest) = (cells.start * CELL, &bytes[..]);
        while !rest.is_empty() {
            let mut mode = WriteMode::default();
            mode.set(WriteMode::DIRECT, self.random.below(2) == 0);
            let written = self.fs.write(file, at, rest, mode);
            let written = written.map_err(|error| format!("write: {error}"))?;
            (at, rest) = (at + written as u64, &rest[written..]);
        }
        self.cells.end(cells);
        Ok(())
    }

    /// Cuts the tail off and brings it back.
    fn cut(&mut self, body: u64) -> Result<(), String> {
        let all = body..body + TAIL;
        for _ in 0..self.race.changes {
            let file = self.open()?;
            let cells = self.some(all.clone());
            match self.random.below(4) {
                0 => {
                    let gone = cells.start..all.end;
                    self.cells.begin(gone.clone(), Becomes::Zeros);
                    set_size(self.fs, self.id, cells.start * CELL).map_err(text)?;
                    self.cells.end(gone);
                }
                1 if self.race.has_unwritten => {
                    self.allocate(&file, cells.clone(), FallocateMode::default())?;
                }
                2 => {
                    let size = self.fs.attr(self.id).map_err(text)?.size;
                    set_size(self.fs, self.id, size.max(cells.end * CELL)).map_err(text)?;
                }
                _ => self.write(&file, cells.clone())?,
            }
            self.read(all.clone())?;
        }
        Ok(())
    }

    fn read_some(&mut self) -> Result<(), String> {
        let cells = self.some(0..self.cells.count());
        self.read(cells)
    }

    fn read(&mut self, cells: Range<u64>) -> Result<(), String> {
        let file = self.open()?;
        let length = (cells.end - cells.start) * CELL;
        let mut bytes = vec![0xee; length as usize];
        let before = self.cells.before(cells.clone());
        let at = cells.start * CELL;
        let count = match self.random.below(3) {
            0 => self.fs.read_direct(&file, at, &mut bytes),
            _ => self.fs.read(&file, at, &mut bytes),
        };
        let count = count.map_err(|error| format!("read: {error}"))?;
        self.cells.check(&before, &bytes[..count])
    }

    /// Data that is there all the time is found by lseek.
    fn seek_some(&mut self) -> Result<(), String> {
        let number = self.random.below(self.cells.count());
        let within = self.random.below(CELL);
        let offset = number * CELL + within;
        let file = self.open()?;
        let before = self.cells.before(number..number + 1);
        let data = self.fs.seek(&file, offset, Whence::Data);
        let hole = self.fs.seek(&file, offset, Whence::Hole);
        if self.cells.steady(&before, number) != Some(Becomes::Data) {
            return Ok(());
        }
        match (data, hole) {
            (Ok(data), Ok(hole)) if data == offset && hole >= (number + 1) * CELL => Ok(()),
            found => Err(format!(
                "cell {number} is data, but seeking from {offset}: {found:?}"
            )),
        }
    }
}
