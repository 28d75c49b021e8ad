//! What shared files hold: blocks that say which write they are of and where they were written for,
//! word by word, and what each block may hold while threads change it.
//!
//! Nobody owns the blocks of these files. Each change takes a number of a clock when it begins and
//! one when it has ended. Of two changes of a block, one that began after the other had ended comes
//! after it: what the earlier one left can't be there any more. The order of others is open.

use pagefence_lock_order::primitives::Mutex;

/// Bytes that a copy never tears.
const WORD: usize = 8;
/// The highest byte of each word.
const MAGIC: u64 = 0xa5;
/// Bits of a block's number.
const BLOCK_BITS: u32 = 20;
/// Bits of a write's number.
const WRITE_BITS: u32 = 36;

/// A write: its blocks, and when it began and ended.
#[derive(Clone, Copy, Debug)]
struct Write {
    first: u64,
    count: u64,
    begin: u64,
    end: u64,
}

/// A block's past.
#[derive(Clone, Copy, Debug, Default)]
struct Past {
    /// The latest begin of those changes that have ended.
    floor: u64,
    /// The same of writes alone.
    written: u64,
    /// The latest end of a change to zeros.
    cleared: u64,
    /// Changes to zeros that go on.
    clearing: u64,
}

#[derive(Debug, Default)]
struct State {
    clock: u64,
    writes: Vec<Write>,
    blocks: Vec<Past>,
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn write_of(&self, word: u64) -> Option<(Write, u64)> {
        let number = usize::try_from(word & ((1 << WRITE_BITS) - 1)).ok()?;
        let block = word >> WRITE_BITS & ((1 << BLOCK_BITS) - 1);
        let write = *self.writes.get(number)?;
        let is_of = word >> (WRITE_BITS + BLOCK_BITS) == MAGIC
            && (write.first..write.first + write.count).contains(&block);
        is_of.then_some((write, block))
    }
}

/// The stamps of files that share numbers of writes.
#[derive(Debug)]
pub(crate) struct Stamps {
    block_size: usize,
    state: Mutex<State>,
}

/// A change that goes on: its number of the clock, and its blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    begin: u64,
    first: u64,
    count: u64,
}

/// What blocks were when a reader began.
pub(crate) struct Before {
    first: u64,
    pasts: Vec<Past>,
}

impl Stamps {
    /// Of files that have at most `blocks` blocks of zeros as yet.
    pub(crate) fn new(block_size: u64, blocks: u64) -> Self {
        Self {
            block_size: block_size as usize,
            state: Mutex::new(State {
                blocks: vec![Past::default(); blocks as usize],
                ..State::default()
            }),
        }
    }

    /// A write of blocks begins: its number, and its bytes.
    pub(crate) fn begin_write(&self, first: u64, count: u64) -> (usize, Vec<u8>) {
        let mut state = self.state.lock();
        let number = state.writes.len();
        let begin = state.tick();
        state.writes.push(Write {
            first,
            count,
            begin,
            end: u64::MAX,
        });
        let words = self.block_size / WORD;
        let bytes = (first..first + count).flat_map(|block| {
            let word = MAGIC << (WRITE_BITS + BLOCK_BITS) | block << WRITE_BITS | number as u64;
            std::iter::repeat_n(word.to_le_bytes(), words).flatten()
        });
        (number, bytes.collect())
    }

    /// It has ended, and this many bytes of it were taken.
    pub(crate) fn end_write(&self, number: usize, taken: usize) {
        let mut state = self.state.lock();
        let end = state.tick();
        let Write { first, begin, .. } = state.writes[number];
        state.writes[number].end = end;
        for past in state
            .blocks
            .iter_mut()
            .skip(first as usize)
            .take(taken / self.block_size)
        {
            past.floor = past.floor.max(begin);
            past.written = past.written.max(begin);
        }
    }

    /// A change of blocks to zeros begins.
    pub(crate) fn begin_clear(&self, first: u64, count: u64) -> Change {
        let mut state = self.state.lock();
        let begin = state.tick();
        for past in state
            .blocks
            .iter_mut()
            .skip(first as usize)
            .take(count as usize)
        {
            past.clearing += 1;
        }
        Change {
            begin,
            first,
            count,
        }
    }

    /// It has ended; whether it was made, or some of it at most.
    pub(crate) fn end_clear(&self, change: Change, was_made: bool) {
        let mut state = self.state.lock();
        let end = state.tick();
        let blocks = state.blocks.iter_mut().skip(change.first as usize);
        for past in blocks.take(change.count as usize) {
            past.clearing -= 1;
            past.cleared = past.cleared.max(end);
            if was_made {
                past.floor = past.floor.max(change.begin);
            }
        }
    }

    /// Before blocks are read.
    pub(crate) fn before(&self, first: u64, count: u64) -> Before {
        let state = self.state.lock();
        let blocks = state.blocks.iter().skip(first as usize);
        Before {
            first,
            pasts: blocks.take(count as usize).copied().collect(),
        }
    }

    /// Whether the blocks of a file that stay where they are may hold these bytes, read since.
    ///
    /// # Errors
    /// What should not be there.
    pub(crate) fn check(&self, before: &Before, bytes: &[u8]) -> Result<(), String> {
        let state = self.state.lock();
        let blocks = bytes.chunks_exact(self.block_size).zip(&before.pasts);
        for ((found, past), block) in blocks.zip(before.first..) {
            let now = state.blocks[block as usize];
            let may_be_zeros = now.clearing > 0 || now.cleared >= past.written;
            for word in distinct(found) {
                if word == 0 {
                    if !may_be_zeros {
                        return Err(format!(
                            "block {block} is zeros: a write is lost ({past:?})"
                        ));
                    }
                    continue;
                }
                match state.write_of(word) {
                    Some((_, of)) if of != block => {
                        return Err(format!("block {block} holds what was written to {of}"));
                    }
                    Some((write, _)) if write.end < past.floor => {
                        return Err(format!(
                            "block {block} is stale: {write:?}, {past:?} before it was read"
                        ));
                    }
                    Some(_) => {}
                    None => return Err(format!("block {block} holds foreign bytes {word:016x}")),
                }
            }
        }
        Ok(())
    }

    /// Whether all of it is zeros or of some write: what blocks that change their places may hold.
    ///
    /// # Errors
    /// What should not be there.
    pub(crate) fn check_any(&self, bytes: &[u8]) -> Result<(), String> {
        let state = self.state.lock();
        for word in distinct(bytes) {
            if word != 0 && state.write_of(word).is_none() {
                return Err(format!("foreign bytes {word:016x}"));
            }
        }
        Ok(())
    }
}

/// The words of it, those that follow an equal one left out.
pub(crate) fn distinct(bytes: &[u8]) -> Vec<u64> {
    let words = bytes.chunks_exact(WORD);
    let mut words: Vec<u64> = words
        .map(|word| {
            word.iter()
                .rev()
                .fold(0, |all, &byte| all << 8 | u64::from(byte))
        })
        .collect();
    words.dedup();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(stamps: &Stamps, bytes: &[u8]) -> Result<(), String> {
        stamps.check(&stamps.before(0, 4), bytes)
    }

    #[test]
    fn lost_stale_and_foreign_blocks_are_told() {
        let (stamps, zeros) = (Stamps::new(1024, 4), vec![0; 2048]);
        let before = stamps.before(0, 2);
        let (first, old) = stamps.begin_write(0, 2);
        assert_eq!(seen(&stamps, &old), Ok(()), "begun");
        assert_eq!(seen(&stamps, &zeros), Ok(()), "or not yet");
        stamps.end_write(first, 2048);
        assert!(seen(&stamps, &zeros).is_err(), "lost");
        assert_eq!(
            stamps.check(&before, &zeros),
            Ok(()),
            "read before it ended"
        );
        let (second, new) = stamps.begin_write(0, 1);
        assert_eq!(seen(&stamps, &old), Ok(()));
        stamps.end_write(second, 1024);
        assert_eq!(seen(&stamps, &new), Ok(()));
        assert!(seen(&stamps, &old).is_err(), "stale");
        assert!(seen(&stamps, &old[1024..]).is_err(), "another block's");
        assert!(seen(&stamps, &[1; 1024]).is_err(), "foreign");
        assert!(stamps.check_any(&[1; 1024]).is_err(), "foreign");
        assert_eq!(stamps.check_any(&old), Ok(()));
    }

    #[test]
    fn what_is_cleared_stays_cleared() {
        let (stamps, zeros) = (Stamps::new(1024, 4), vec![0; 1024]);
        let (number, data) = stamps.begin_write(0, 1);
        stamps.end_write(number, 1024);
        let clear = stamps.begin_clear(0, 4);
        assert_eq!(seen(&stamps, &data), Ok(()));
        assert_eq!(seen(&stamps, &zeros), Ok(()));
        stamps.end_clear(clear, true);
        assert!(seen(&stamps, &data).is_err(), "it came back");
        assert_eq!(seen(&stamps, &zeros), Ok(()));
        let failed = stamps.begin_clear(0, 4);
        let (number, data) = stamps.begin_write(0, 1);
        stamps.end_write(number, 1024);
        stamps.end_clear(failed, false);
        assert_eq!(seen(&stamps, &data), Ok(()));
        assert_eq!(seen(&stamps, &zeros), Ok(()), "the order is open");
    }
}
