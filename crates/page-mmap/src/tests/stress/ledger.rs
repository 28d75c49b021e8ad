//! What cells may hold.

use std::ops::Range;

use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};

/// Bytes of a cell.
pub(super) const CELL: usize = 1024;

const WORD: usize = 8;

/// What is known of each cell.
pub(super) struct Ledger(Vec<Cell>);

#[derive(Default)]
struct Cell {
    /// What its owner has finished last: how often it has written (32 bits), and how many punches were
    /// over when it began to (32 bits). Together, so that both are of one write.
    finished: AtomicU64,
    /// What is not to be seen any more: a punch began after it was finished, and is over.
    dead: AtomicU64,
    punches_begun: AtomicU64,
    punches_over: AtomicU64,
}

/// What a read that begins now may find.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expect {
    finished: u64,
    /// Punches that were over when that write began.
    punches: u64,
    dead: u64,
}

/// A write that has begun.
pub(super) struct Write {
    number: u64,
    punches: u64,
}

/// Why a cell is not what it may be.
#[derive(Debug)]
pub(super) enum Wrong {
    /// It may be that it was copied while it was stored to, 8 bytes of which were not copied at once:
    /// another look tells.
    Torn(String),
    Bad(String),
}

impl Ledger {
    pub(super) fn new(bytes: u64) -> Self {
        let cells = usize::try_from(bytes).expect("small") / CELL;
        Self((0..cells).map(|_| Cell::default()).collect())
    }

    pub(super) fn cells(&self) -> usize {
        self.0.len()
    }

    /// The owner of `cell` is about to write it; with these bytes.
    pub(super) fn begin_write(&self, cell: usize) -> (Write, Vec<u8>) {
        let entry = &self.0[cell];
        let (before, _) = unpack(entry.finished.load(Ordering::SeqCst));
        let write = Write {
            number: before + 1,
            punches: entry.punches_over.load(Ordering::SeqCst),
        };
        let bytes = (0..CELL / WORD)
            .flat_map(|at| word(cell, at, write.number).to_le_bytes())
            .collect();
        (write, bytes)
    }

    /// Everybody sees it.
    pub(super) fn end_write(&self, cell: usize, write: &Write) {
        let packed = write.number << 32 | write.punches;
        self.0[cell].finished.store(packed, Ordering::SeqCst);
    }

    /// `cells` are about to be punched.
    pub(super) fn begin_punch(&self, cells: Range<usize>) -> Vec<u64> {
        self.0[cells]
            .iter()
            .map(|entry| {
                let (finished, _) = unpack(entry.finished.load(Ordering::SeqCst));
                entry.punches_begun.fetch_add(1, Ordering::SeqCst);
                finished
            })
            .collect()
    }

    /// They were, and can be written again.
    pub(super) fn end_punch(&self, cells: Range<usize>, finished: &[u64]) {
        for (entry, &finished) in self.0[cells].iter().zip(finished) {
            entry.dead.fetch_max(finished, Ordering::SeqCst);
            entry.punches_over.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// To be asked for before a read.
    pub(super) fn expect(&self, cell: usize) -> Expect {
        let entry = &self.0[cell];
        let (finished, punches) = unpack(entry.finished.load(Ordering::SeqCst));
        Expect {
            finished,
            punches,
            dead: entry.dead.load(Ordering::SeqCst),
        }
    }

    pub(super) fn expect_all(&self) -> Vec<Expect> {
        (0..self.cells()).map(|cell| self.expect(cell)).collect()
    }

    /// Whether `bytes` of `cell`, read after `expect` was asked for, may be.
    pub(super) fn check(&self, cell: usize, bytes: &[u8], expect: Expect) -> Result<(), Wrong> {
        let was_punched = self.0[cell].punches_begun.load(Ordering::SeqCst) > expect.punches;
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
