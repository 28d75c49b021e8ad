//! What the processes of a soak share: memory of their own, in which the ledgers are, and who is at work.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use pagefence_fs_model::ledger::{CELL, Ledger, WORDS_OF_CELL, Words, Wrong};
use pagefence_host_memory::{FileMemory, View, ViewKind};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_lock_order::primitives::thread::yield_now;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// Cells of a page.
pub(super) const PER_PAGE: usize = PAGE / CELL;

/// Pages of the file that is punched and cut off: more than the cache has.
pub(super) const PAGES: usize = 2048;
/// Pages at its end that come and go.
pub(super) const TAIL: usize = 64;
/// Pages of the file that is collapsed.
pub(super) const MOVED_PAGES: usize = 512;
/// Pages that are taken out at its front, and put in again; and that nobody touches at its end.
pub(super) const STEP: usize = 32;

/// Cells of either.
pub(super) const CELLS: usize = PAGES * PER_PAGE;
pub(super) const MOVED_CELLS: usize = MOVED_PAGES * PER_PAGE;

/// Who does something, as the table calls them.
pub(super) const ACTORS: [&str; 13] = [
    "map 1.1", "map 1.2", "map 1.3", "map 1.4", "map 2.1", "map 2.2", "map 2.3", "map 2.4",
    "write()", "read()", "punch", "truncate", "collapse",
];
/// And who writes back.
pub(super) const WRITEBACK: usize = ACTORS.len();
/// Threads that map, in each of the processes.
pub(super) const THREADS: usize = 4;
/// Who writes by system calls.
pub(super) const WRITER: usize = 8;
/// Cells are owned by threads that map, and by the writer.
pub(super) const OWNERS: usize = 9;

/// Where numbers are.
const STOP: usize = 0;
const WRONG: usize = 1;
const READY: usize = 2;
/// Whether the tail may be touched, and who does.
pub(super) const TAIL_GATE: Gate = Gate(4);
/// Whether the file that is collapsed may be stored to, and who does.
pub(super) const MOVE_GATE: Gate = Gate(6);
/// How often its pages have begun to move, or come to rest.
const PHASE: usize = 8;
const DONE: usize = 16;
const LEDGER: usize = 64;
const MOVED_LEDGER: usize = LEDGER + CELLS * WORDS_OF_CELL;
const WORDS: usize = MOVED_LEDGER + MOVED_CELLS * WORDS_OF_CELL;

/// A door that is open to many, or closed by one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gate(usize);

/// Shared numbers.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    view: Arc<View>,
    first: usize,
}

impl Numbers {
    fn at(&self, at: usize) -> usize {
        (self.first + at) * size_of::<u64>()
    }
}

impl Words for Numbers {
    fn load(&self, at: usize) -> u64 {
        self.view.load_u64(self.at(at), Ordering::SeqCst)
    }

    fn store(&self, at: usize, value: u64) {
        self.view.store_u64(self.at(at), value, Ordering::SeqCst);
    }

    fn fetch_add(&self, at: usize, value: u64) -> u64 {
        self.view
            .fetch_add_u64(self.at(at), value, Ordering::SeqCst)
    }

    fn fetch_max(&self, at: usize, value: u64) {
        let mut before = self.load(at);
        while before < value {
            let exchanged = self.view.compare_exchange_u64(
                self.at(at),
                before,
                value,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
            match exchanged {
                Ok(_) => return,
                Err(found) => before = found,
            }
        }
    }
}

/// What all processes see.
#[derive(Debug)]
pub(super) struct World {
    numbers: Numbers,
    /// Where the numbers are, if this process has made it.
    memory: Option<Arc<FileMemory>>,
    /// Of the file that is punched and cut off.
    pub(super) cells: Ledger<Numbers>,
    /// Of the file that is collapsed, by where each cell was at first.
    pub(super) moved: Ledger<Numbers>,
}

impl World {
    /// A new one.
    pub(super) fn new() -> Result<Self> {
        let memory = FileMemory::new()?;
        Ok(Self {
            memory: Some(Arc::clone(&memory)),
            ..Self::of(memory.fd())?
        })
    }

    /// Where other processes find one that is new, as long as this one lives.
    pub(super) fn path(&self) -> Result<PathBuf> {
        let memory = self.memory.as_ref().context("it is another process's")?;
        let number = memory.fd().as_raw_fd();
        Ok(format!("/proc/{}/fd/{number}", std::process::id()).into())
    }

    /// That of another process.
    pub(super) fn open(path: &std::path::Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path);
        Self::of(file.with_context(|| format!("cannot open {}", path.display()))?)
    }

    fn of(fd: impl AsFd) -> Result<Self> {
        let view = Arc::new(View::of_fd(
            fd,
            0,
            WORDS * size_of::<u64>(),
            ViewKind::Shared,
        )?);
        let from = |first| Numbers {
            view: Arc::clone(&view),
            first,
        };
        Ok(Self {
            numbers: from(0),
            memory: None,
            cells: Ledger::over(from(LEDGER), CELLS),
            moved: Ledger::over(from(MOVED_LEDGER), MOVED_CELLS),
        })
    }

    pub(super) fn is_over(&self) -> bool {
        self.numbers.load(STOP) != 0
    }

    pub(super) fn end(&self) {
        self.numbers.store(STOP, 1);
    }

    /// Tells of something that should not be, and ends the soak.
    pub(super) fn note_wrong(&self, what: &str) {
        if self.numbers.fetch_add(WRONG, 1) < 10 {
            println!("STALE    {what}");
        }
        self.end();
    }

    pub(super) fn wrong(&self) -> u64 {
        self.numbers.load(WRONG)
    }

    /// A process has its maps.
    pub(super) fn is_ready(&self) {
        self.numbers.fetch_add(READY, 1);
    }

    pub(super) fn ready(&self) -> u64 {
        self.numbers.load(READY)
    }

    /// Actor `actor` has done something.
    pub(super) fn count(&self, actor: usize) {
        self.numbers.fetch_add(DONE + actor, 1);
    }

    pub(super) fn done(&self, actor: usize) -> u64 {
        self.numbers.load(DONE + actor)
    }

    /// Does `what` if the gate is open, and keeps it open meanwhile.
    pub(super) fn inside<R>(&self, gate: Gate, what: impl FnOnce() -> R) -> Option<R> {
        self.numbers.fetch_add(gate.0 + 1, 1);
        let result = (self.numbers.load(gate.0) == 0).then(what);
        self.numbers.fetch_add(gate.0 + 1, u64::MAX);
        result
    }

    /// Does `what` with the gate closed and nobody inside.
    pub(super) fn alone<R>(&self, gate: Gate, what: impl FnOnce() -> R) -> R {
        self.numbers.store(gate.0, 1);
        while self.numbers.load(gate.0 + 1) != 0 {
            yield_now();
        }
        let result = what();
        self.numbers.store(gate.0, 0);
        result
    }

    /// Pages begin to move, or have come to rest.
    pub(super) fn next_phase(&self) {
        self.numbers.fetch_add(PHASE, 1);
    }

    pub(super) fn phase(&self) -> u64 {
        self.numbers.load(PHASE)
    }

    /// Whether what `read` gives is what `cell` may hold; another look if it was copied while somebody
    /// stored to it.
    pub(super) fn look<E>(
        &self,
        who: &str,
        cell: usize,
        mut read: impl FnMut() -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        let mut looks = 0;
        loop {
            let expect = self.cells.expect(cell);
            let bytes = read()?;
            match self.cells.check(cell, &bytes, expect) {
                Ok(()) => return Ok(()),
                Err(Wrong::Torn(_)) if looks < 100 => looks += 1,
                Err(Wrong::Torn(what) | Wrong::Bad(what)) => {
                    self.note_wrong(&format!("{who}: {what}"));
                    return Ok(());
                }
            }
        }
    }
}

/// Where a cell of the file that is collapsed lies in a phase of rest, of which every other one is that of the
/// collapsed file.
pub(super) fn moved_to(cell: usize, phase: u64) -> usize {
    if phase % 4 == 2 {
        cell - STEP * PER_PAGE
    } else {
        cell
    }
}
