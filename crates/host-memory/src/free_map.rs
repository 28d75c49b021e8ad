//! Which frames of an arena are free: a bitmap of two levels, without a lock.
//!
//! A bit of a word is a free frame; a bit of a summary word is a word that may have a free frame.
//! Runs of free frames are taken together, so a batch is a few runs of neighbours.
//!
//! Orderings are sequentially consistent: the summary and the words refer to each other, and who
//! waits for a frame relies on seeing every frame given back before it looked.

use pagefence_lock_order::primitives::atomic::{AtomicU64, AtomicUsize, Ordering};

const BITS: usize = 64;

/// The free frames of an arena.
#[derive(Debug)]
pub(crate) struct FreeMap {
    words: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
    /// Summary word at which the next search starts: where a frame was last given back.
    start: AtomicUsize,
}

impl FreeMap {
    /// A map of `frames` free frames.
    pub(crate) fn new(frames: usize) -> Self {
        let full = |count: usize| -> Box<[AtomicU64]> {
            (0..count.div_ceil(BITS))
                .map(|word| AtomicU64::new(low_bits(count - word * BITS)))
                .collect()
        };
        Self {
            words: full(frames),
            summary: full(frames.div_ceil(BITS)),
            start: AtomicUsize::new(0),
        }
    }

    /// Takes up to `want` free frames and appends their numbers to `taken`, runs together.
    ///
    /// May come back with fewer although frames are free when it races another call; who needs
    /// one and found none waits to be told of the next one given back.
    pub(crate) fn take(&self, want: usize, taken: &mut Vec<u32>) {
        let mut left = want;
        let start = self.start.load(Ordering::Relaxed) % self.summary.len();
        for step in 0..self.summary.len() {
            let at = (start + step) % self.summary.len();
            let mut candidates = self.summary[at].load(Ordering::SeqCst);
            while candidates != 0 && left > 0 {
                let bit = candidates.trailing_zeros();
                candidates &= candidates - 1;
                left -= self.take_from_word(at * BITS + usize_of(bit), left, taken);
            }
            if left == 0 {
                self.start.store(at, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Takes every free frame of the next word that has one at or after word `from`; says which
    /// word, and which of its bits.
    pub(crate) fn take_word(&self, from: usize) -> Option<(usize, u64)> {
        (from..self.words.len()).find_map(|word| {
            let bits = self.words[word].swap(0, Ordering::SeqCst);
            (bits != 0).then_some((word, bits))
        })
    }

    /// Gives back bits that [`Self::take_word`] took.
    pub(crate) fn give_word(&self, word: usize, bits: u64) {
        let before = self.words[word].fetch_or(bits, Ordering::SeqCst);
        assert_eq!(before & bits, 0, "a free frame was given back");
        self.announce(word);
    }

    /// Gives a frame back.
    pub(crate) fn give(&self, frame: u32) {
        let frame = usize_of(frame);
        let word = frame / BITS;
        let bit = 1_u64 << (frame % BITS);
        let before = self.words[word].fetch_or(bit, Ordering::SeqCst);
        assert_eq!(before & bit, 0, "a free frame was given back");
        if before == 0 {
            self.announce(word);
        }
    }

    /// Free frames; a sum over a moving map, exact when nothing moves.
    pub(crate) fn count(&self) -> usize {
        self.words
            .iter()
            .map(|word| usize_of(word.load(Ordering::Relaxed).count_ones()))
            .sum()
    }

    fn announce(&self, word: usize) {
        self.summary[word / BITS].fetch_or(1 << (word % BITS), Ordering::SeqCst);
        self.start.store(word / BITS, Ordering::Relaxed);
    }

    fn take_from_word(&self, word: usize, want: usize, taken: &mut Vec<u32>) -> usize {
        let cell = &self.words[word];
        let mut bits = cell.load(Ordering::SeqCst);
        let chosen = loop {
            let chosen = choose(bits, want);
            match cell.compare_exchange_weak(
                bits,
                bits & !chosen,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(_) => break chosen,
                Err(now) => bits = now,
            }
        };
        if bits == chosen {
            // Empty now: take it off the summary, and put it back if a frame came meanwhile.
            // Either this sees the frame or its giver, who set the word first, sets the bit.
            let mark = 1_u64 << (word % BITS);
            self.summary[word / BITS].fetch_and(!mark, Ordering::SeqCst);
            if cell.load(Ordering::SeqCst) != 0 {
                self.summary[word / BITS].fetch_or(mark, Ordering::SeqCst);
            }
        }
        let mut rest = chosen;
        while rest != 0 {
            let frame = word * BITS + usize_of(rest.trailing_zeros());
            taken.push(u32::try_from(frame).expect("an arena has fewer than 2^32 frames"));
            rest &= rest - 1;
        }
        usize_of(chosen.count_ones())
    }
}

/// Up to `want` of the set bits of `bits`: the lowest run that is long enough, else the lowest
/// bits.
fn choose(bits: u64, want: usize) -> u64 {
    let have = usize_of(bits.count_ones());
    if have <= want {
        return bits;
    }
    // `starts` has a bit where `want` set bits begin; a run never wraps past bit 63, since the
    // shifts bring zeros in.
    let mut starts = bits;
    for step in 1..want {
        starts &= bits >> step;
    }
    if starts != 0 {
        return low_bits(want) << starts.trailing_zeros();
    }
    let mut rest = bits;
    for _ in 0..want {
        rest &= rest - 1;
    }
    bits & !rest
}

/// The lowest `count` bits; all of them from 64 on.
fn low_bits(count: usize) -> u64 {
    if count >= BITS {
        u64::MAX
    } else {
        (1 << count) - 1
    }
}

fn usize_of(value: u32) -> usize {
    usize::try_from(value).expect("usize has 32 bits or more")
}

#[cfg(all(test, not(shuttle)))]
mod tests;
