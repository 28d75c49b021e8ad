//! What each piece of a file may hold while threads change it.
//!
//! The file is cut into cells of 1 KiB, so that the ends of ranges lie within pages and within
//! blocks. A cell is changed by one thread only. Its versions are counted: a change is *begun*
//! before it is asked for and *ended* when the call has returned. Whoever reads notes what had
//! ended before, and what had begun by the end: the bytes it got are of those versions or of one
//! between. If none was changed meanwhile, that is one version, to the byte.

use std::ops::Range;

use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};

use crate::files::contents;

/// Bytes of a cell.
pub(super) const CELL: u64 = 1024;
/// Bytes that a copy never tears.
const WORD: usize = 8;

/// The versions of a cell, by number.
#[derive(Debug, Default)]
struct Cell {
    begun: AtomicU64,
    ended: AtomicU64,
    /// Which of them hold data, by number modulo 64: the others are zeros.
    data: AtomicU64,
}

/// All cells of a file.
#[derive(Debug)]
pub(super) struct Cells(Vec<Cell>);

/// What the cells of a range were when a reader began.
pub(super) struct Before {
    cells: Range<u64>,
    ended: Vec<u64>,
}

/// What a cell becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Becomes {
    Data,
    Zeros,
}

impl Cells {
    /// `count` cells of zeros.
    pub(super) fn new(count: u64) -> Self {
        Self((0..count).map(|_| Cell::default()).collect())
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len() as u64
    }

    fn cell(&self, number: u64) -> &Cell {
        &self.0[number as usize]
    }

    /// The thread that owns the cells is about to change them.
    pub(super) fn begin(&self, cells: Range<u64>, becomes: Becomes) {
        for number in cells {
            let cell = self.cell(number);
            let version = cell.begun.load(Ordering::SeqCst) + 1;
            let bit = 1 << (version % 64);
            match becomes {
                Becomes::Data => cell.data.fetch_or(bit, Ordering::SeqCst),
                Becomes::Zeros => cell.data.fetch_and(!bit, Ordering::SeqCst),
            };
            cell.begun.store(version, Ordering::SeqCst);
        }
    }

    /// The bytes of a version that has begun, as its owner writes them.
    pub(super) fn begun_bytes(&self, cells: Range<u64>) -> Vec<u8> {
        let bytes = cells.map(|number| {
            let version = self.cell(number).begun.load(Ordering::SeqCst);
            self.bytes(number, version)
        });
        bytes.collect::<Vec<_>>().concat()
    }

    /// The change has been made.
    pub(super) fn end(&self, cells: Range<u64>) {
        for number in cells {
            let cell = self.cell(number);
            let version = cell.begun.load(Ordering::SeqCst);
            cell.ended.store(version, Ordering::SeqCst);
        }
    }

    fn is_data(&self, number: u64, version: u64) -> bool {
        self.cell(number).data.load(Ordering::SeqCst) >> (version % 64) & 1 == 1
    }

    fn bytes(&self, number: u64, version: u64) -> Vec<u8> {
        let is_data = version > 0 && self.is_data(number, version);
        let tag = if is_data { number << 40 | version } else { 0 };
        contents(tag, number * CELL, CELL as usize)
    }

    /// Before reading `cells`.
    pub(super) fn before(&self, cells: Range<u64>) -> Before {
        let ended = |number| self.cell(number).ended.load(Ordering::SeqCst);
        Before {
            ended: cells.clone().map(ended).collect(),
            cells,
        }
    }

    /// The one version that a cell had all the time since `before`, and whether it is data.
    pub(super) fn steady(&self, before: &Before, number: u64) -> Option<Becomes> {
        let ended = before.ended[(number - before.cells.start) as usize];
        let is_steady = self.cell(number).begun.load(Ordering::SeqCst) == ended;
        is_steady.then(|| match ended > 0 && self.is_data(number, ended) {
            true => Becomes::Data,
            false => Becomes::Zeros,
        })
    }

    /// Whether `bytes`, read from the start of the cells on, may be what they held since `before`.
    /// Cells that were not read to their end are not looked at.
    ///
    /// # Errors
    /// What should not be there.
    pub(super) fn check(&self, before: &Before, bytes: &[u8]) -> Result<(), String> {
        let cells = bytes.chunks_exact(CELL as usize).zip(before.cells.clone());
        for ((found, number), &ended) in cells.zip(&before.ended) {
            let begun = self.cell(number).begun.load(Ordering::SeqCst);
            if begun - ended >= 60 {
                // More than is remembered.
                continue;
            }
            let versions: Vec<_> = (ended..=begun)
                .map(|version| self.bytes(number, version))
                .collect();
            let word = |at: usize| at * WORD..(at + 1) * WORD;
            let wrong = (0..CELL as usize / WORD).find(|&at| {
                !versions
                    .iter()
                    .any(|version| version[word(at)] == found[word(at)])
            });
            if let Some(at) = wrong {
                let first = at * WORD / 32 * 32;
                return Err(format!(
                    "cell {number} (bytes from {} on), versions {ended} to {begun}: foreign or \
                     stale bytes at {} of it: {:02x?}",
                    number * CELL,
                    at * WORD,
                    &found[first..first + 32]
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Becomes, Before, CELL, Cells};

    fn seen(cells: &Cells) -> (Before, Vec<u8>) {
        (cells.before(0..2), cells.begun_bytes(0..2))
    }

    #[test]
    fn stale_and_foreign_bytes_are_told() {
        let cells = Cells::new(2);
        cells.begin(0..1, Becomes::Data);
        let (before, bytes) = seen(&cells);
        assert_eq!(cells.check(&before, &bytes), Ok(()), "begun");
        assert_eq!(cells.check(&before, &vec![0; 2048]), Ok(()), "or not yet");
        cells.end(0..1);
        let (before, _) = seen(&cells);
        assert_eq!(cells.check(&before, &bytes), Ok(()));
        assert_eq!(cells.steady(&before, 0), Some(Becomes::Data));
        assert!(cells.check(&before, &vec![0; 2048]).is_err(), "lost");
        let mut foreign = bytes.clone();
        foreign.copy_within(0..CELL as usize, CELL as usize);
        assert!(cells.check(&before, &foreign).is_err(), "another cell's");
        cells.begin(0..1, Becomes::Zeros);
        assert_eq!(cells.steady(&before, 0), None);
        cells.end(0..1);
        let (before, zeros) = seen(&cells);
        assert_eq!(cells.check(&before, &zeros), Ok(()));
        assert!(cells.check(&before, &bytes).is_err(), "stale");
    }
}
