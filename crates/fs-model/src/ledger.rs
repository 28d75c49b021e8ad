//! What the cells of a file may hold while many write, punch and read them at once: nothing stale, foreign or
//! lost.
//!
//! A cell is 1 KiB, each 8 bytes of which say where they belong and how often the cell was written before.
//! Each cell has one owner, who alone writes to it. So who reads one knows what it may find: nothing older
//! than what its owner had finished before, nothing that was there when a punch began that is over, and
//! zeros only if there was a punch since the owner began.

use std::ops::Range;

use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};

/// Bytes of a cell.
pub const CELL: usize = 1024;

/// Bytes of a word of a cell.
const WORD: usize = 8;

/// Numbers that all who use a ledger share, each of which is one access, in one order for all of them: of a
/// process, or of several.
pub trait Words {
    /// The number at `at`.
    fn load(&self, at: usize) -> u64;

    /// Makes the number at `at` another one.
    fn store(&self, at: usize, value: u64);

    /// Adds to the number at `at`; gives what it was.
    fn fetch_add(&self, at: usize, value: u64) -> u64;

    /// Makes the number at `at` `value`, if it is less.
    fn fetch_max(&self, at: usize, value: u64);
}

impl Words for Box<[AtomicU64]> {
    fn load(&self, at: usize) -> u64 {
        self[at].load(Ordering::SeqCst)
    }

    fn store(&self, at: usize, value: u64) {
        self[at].store(value, Ordering::SeqCst);
    }

    fn fetch_add(&self, at: usize, value: u64) -> u64 {
        self[at].fetch_add(value, Ordering::SeqCst)
    }

    fn fetch_max(&self, at: usize, value: u64) {
        self[at].fetch_max(value, Ordering::SeqCst);
    }
}

/// What is known of each cell.
#[derive(Debug)]
pub struct Ledger<W = Box<[AtomicU64]>> {
    words: W,
    cells: usize,
}

/// Numbers that are kept of a cell:
/// what its owner has finished last: how often it has written (32 bits), and how many punches were over when
/// it began to (32 bits), together, so that both are of one write;
const FINISHED: usize = 0;
/// what is not to be seen any more: a punch began after it was finished, and is over;
const DEAD: usize = 1;
/// punches;
const PUNCHES_BEGUN: usize = 2;
/// those that are over.
const PUNCHES_OVER: usize = 3;
/// So many.
pub const WORDS_OF_CELL: usize = 4;

/// What a read that begins now may find.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    finished: u64,
    /// Punches that were over when that write began.
    punches: u64,
    dead: u64,
}

/// A write that has begun.
#[derive(Debug)]
pub struct Write {
    number: u64,
    punches: u64,
}

/// Why a cell is not what it may be.
#[derive(Debug)]
pub enum Wrong {
    /// It may be that it was copied while it was stored to, 8 bytes of which were not copied at once:
    /// another look tells.
    Torn(String),
    /// It is stale, foreign or lost.
    Bad(String),
}

impl Ledger {
    /// Of a file of holes of `bytes` bytes, for one process.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let cells = usize::try_from(bytes).expect("small") / CELL;
        let words = (0..cells * WORDS_OF_CELL).map(|_| AtomicU64::new(0));
        Self::over(words.collect(), cells)
    }
}

impl<W: Words> Ledger<W> {
    /// Of `cells` cells, in `words`, [`WORDS_OF_CELL`] for each: zeros for a file of holes.
    #[must_use]
    pub fn over(words: W, cells: usize) -> Self {
        Self { words, cells }
    }

    /// Cells of the file.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.cells
    }

    fn word(&self, cell: usize, which: usize) -> usize {
        assert!(cell < self.cells, "cell {cell} of {}", self.cells);
        cell * WORDS_OF_CELL + which
    }

    fn get(&self, cell: usize, which: usize) -> u64 {
        self.words.load(self.word(cell, which))
    }

    /// The owner of `cell` is about to write it; with these bytes.
    pub fn begin_write(&self, cell: usize) -> (Write, Vec<u8>) {
        let (before, _) = unpack(self.get(cell, FINISHED));
        let write = Write {
            number: before + 1,
            punches: self.get(cell, PUNCHES_OVER),
        };
        let bytes = (0..CELL / WORD)
            .flat_map(|at| word(cell, at, write.number).to_le_bytes())
            .collect();
        (write, bytes)
    }

    /// Everybody sees it.
    pub fn end_write(&self, cell: usize, write: &Write) {
        let packed = write.number << 32 | write.punches;
        self.words.store(self.word(cell, FINISHED), packed);
    }

    /// `cells` are about to be punched.
    pub fn begin_punch(&self, cells: Range<usize>) -> Vec<u64> {
        let begin = |cell| {
            let (finished, _) = unpack(self.get(cell, FINISHED));
            self.words.fetch_add(self.word(cell, PUNCHES_BEGUN), 1);
            finished
        };
        cells.map(begin).collect()
    }

    /// They were, and can be written again.
    pub fn end_punch(&self, cells: Range<usize>, finished: &[u64]) {
        for (cell, &finished) in cells.zip(finished) {
            self.words.fetch_max(self.word(cell, DEAD), finished);
            self.words.fetch_add(self.word(cell, PUNCHES_OVER), 1);
        }
    }

    /// To be asked for before a read.
    pub fn expect(&self, cell: usize) -> Expect {
        let (finished, punches) = unpack(self.get(cell, FINISHED));
        Expect {
            finished,
            punches,
            dead: self.get(cell, DEAD),
        }
    }

    /// As [`Self::expect`], of all cells.
    pub fn expect_all(&self) -> Vec<Expect> {
        (0..self.cells()).map(|cell| self.expect(cell)).collect()
    }

    /// Whether `bytes` of `cell`, read after `expect` was asked for, may be.
    ///
    /// # Errors
    /// They may not, and why.
    pub fn check(&self, cell: usize, bytes: &[u8], expect: Expect) -> Result<(), Wrong> {
        let was_punched = self.get(cell, PUNCHES_BEGUN) > expect.punches;
        for (at, bytes) in bytes.chunks_exact(WORD).enumerate() {
            let found = u64::from_le_bytes(bytes.try_into().expect("8"));
            let says =
                |what: &str| format!("cell {cell}, word {at}: {found:#x} {what}; {expect:?}");
            let number = found >> NUMBER_SHIFT;
            if found == 0 {
                if expect.finished > 0 && !was_punched {
                    return Err(Wrong::Bad(says("is lost")));
                }
            } else if found != word(cell, at, number) {
                return Err(Wrong::Torn(says("is no word of this place")));
            } else if number < expect.finished {
                return Err(Wrong::Bad(says("is older than what was finished")));
            } else if number <= expect.dead {
                return Err(Wrong::Bad(says("was punched")));
            }
        }
        Ok(())
    }
}

/// Number of the write: 24 bits from here on; the place: 24 bits before; 16 that check both.
const NUMBER_SHIFT: u32 = 40;
const PLACE_SHIFT: u32 = 16;

/// What word `at` of `cell` is after write `number`.
fn word(cell: usize, at: usize, number: u64) -> u64 {
    let place = u64::try_from(cell * (CELL / WORD) + at).expect("small");
    assert!(number < 1 << 24 && place < 1 << 24, "too many writes");
    let word = number << NUMBER_SHIFT | place << PLACE_SHIFT;
    // Never 0, so that no word is.
    word | (word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 49 << 1 | 1)
}

fn unpack(packed: u64) -> (u64, u64) {
    (packed >> 32, packed & u64::from(u32::MAX))
}

#[test]
fn a_ledger_knows_what_is_stale_lost_and_foreign() {
    let ledger = Ledger::new(2048);
    let zeros = vec![0; CELL];
    let write = || {
        let (write, bytes) = ledger.begin_write(1);
        ledger.end_write(1, &write);
        bytes
    };
    assert!(ledger.check(1, &zeros, ledger.expect(1)).is_ok());
    let before = ledger.expect(1);
    let first = write();
    assert!(ledger.check(1, &first, before).is_ok() && ledger.check(1, &zeros, before).is_ok());
    let second = write();
    let now = ledger.expect(1);
    assert!(ledger.check(1, &second, now).is_ok());
    assert!(ledger.check(1, &first, now).is_err(), "stale");
    assert!(ledger.check(1, &zeros, now).is_err(), "lost");
    assert!(
        ledger.check(0, &second, ledger.expect(0)).is_err(),
        "foreign"
    );
    let finished = ledger.begin_punch(1..2);
    assert!(ledger.check(1, &zeros, now).is_ok() && ledger.check(1, &second, now).is_ok());
    ledger.end_punch(1..2, &finished);
    let now = ledger.expect(1);
    assert!(ledger.check(1, &zeros, now).is_ok());
    assert!(ledger.check(1, &second, now).is_err(), "punched");
    let third = write();
    let now = ledger.expect(1);
    assert!(ledger.check(1, &third, now).is_ok());
    assert!(ledger.check(1, &zeros, now).is_err(), "lost");
}
