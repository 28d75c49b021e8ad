//! What is handed to a file system to be written: consecutive pages, and which blocks of them are
//! dirty; or the blocks of a direct write.

use std::iter;
use std::ops::Range;

use crate::backing::PAGE_SIZE;
use crate::mapping::PAGE_BYTES;

/// The granularity of dirty masks: the least block size.
const UNIT: u64 = 1024;

/// Which KiB of a page are meant, one bit each.
pub(crate) type Mask = u8;

/// All of a page.
pub(crate) const WHOLE: Mask = 0xF;

/// The bits of the blocks, of `block_size` bytes, that bytes `range` of a page touch.
pub(crate) fn blocks_touched(range: Range<u64>, block_size: u64) -> Mask {
    debug_assert!(range.end <= PAGE_BYTES, "inside a page");
    if range.is_empty() {
        return 0;
    }
    let start = range.start / block_size * block_size;
    let end = range.end.next_multiple_of(block_size);
    bits(start / UNIT..end / UNIT)
}

/// The bits of the blocks that lie wholly in bytes `range` of a page.
pub(crate) fn blocks_inside(range: Range<u64>, block_size: u64) -> Mask {
    let start = range.start.next_multiple_of(block_size);
    let end = range.end / block_size * block_size;
    bits(start / UNIT..end.max(start) / UNIT)
}

fn bits(units: Range<u64>) -> Mask {
    units.fold(0, |mask, unit| mask | 1 << unit)
}

/// The first run of bits in `mask`, from byte `from` of the page on, as bytes of the page.
pub(crate) fn first_run(mask: Mask, from: u64) -> Option<Range<u64>> {
    let set = |unit: &u64| mask & 1 << unit != 0;
    let units = PAGE_BYTES / UNIT;
    let start = (from / UNIT..units).find(set)?;
    let end = (start..units)
        .find(|unit| !set(unit))
        .map_or(units, |unit| unit);
    Some((start * UNIT).max(from)..end * UNIT)
}

/// The mask of each page that whole blocks `range` of a file touch.
pub(crate) fn masks_of(range: &Range<u64>, block_size: u64) -> Vec<Mask> {
    let pages = range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES);
    pages
        .map(|page| {
            let base = page * PAGE_BYTES;
            let part = range.start.max(base) - base..range.end.min(base + PAGE_BYTES) - base;
            blocks_touched(part, block_size)
        })
        .collect()
}

/// Consecutive pages of a file under writeback, as they are to be written; or the blocks of a
/// direct write.
///
/// Of pages, the bytes are a copy, taken after they were marked: what is stored to a page later makes
/// it dirty again. Bytes past the end of the file are zeros (RACES B22). Of a direct write, they are
/// the caller's.
#[derive(Debug)]
pub struct WriteBatch<'a> {
    first: u64,
    masks: &'a [Mask],
    data: &'a [u8],
    /// Where `data` begins in the file.
    start: u64,
    size: u64,
}

impl<'a> WriteBatch<'a> {
    /// `data` has [`PAGE_SIZE`] bytes for each of `masks`.
    pub(crate) fn new(first: u64, masks: &'a [Mask], data: &'a [u8], size: u64) -> Self {
        debug_assert_eq!(data.len(), masks.len() * PAGE_SIZE);
        Self {
            first,
            masks,
            data,
            start: first * PAGE_BYTES,
            size,
        }
    }

    /// `data`, whole blocks from byte `start` on, for pages of which `masks` says which blocks those
    /// are ([`masks_of`]).
    pub(crate) fn direct(start: u64, masks: &'a [Mask], data: &'a [u8], size: u64) -> Self {
        debug_assert_eq!(
            masks.len() as u64,
            (start + data.len() as u64).div_ceil(PAGE_BYTES) - start / PAGE_BYTES
        );
        Self {
            first: start / PAGE_BYTES,
            masks,
            data,
            start,
            size,
        }
    }

    /// The bytes of the file that the pages hold: at most 4 MiB, whole pages.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let start = self.first * PAGE_BYTES;
        start..start + self.masks.len() as u64 * PAGE_BYTES
    }

    /// The dirty bytes: runs of whole blocks, ascending, neighbours joined. At least one. A run
    /// may reach past the end of the file, to the end of its last block and further.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let range = self.range();
        let mut at = range.start;
        iter::from_fn(move || {
            let start = self.next_dirty(at)?;
            let mut end = start.end;
            while let Some(next) = self.next_dirty(end).filter(|next| next.start == end) {
                end = next.end;
            }
            at = end;
            Some(start.start..end)
        })
    }

    /// The first dirty bytes from `at` on, inside one page.
    fn next_dirty(&self, at: u64) -> Option<Range<u64>> {
        let start = self.range().start;
        let mut from = at % PAGE_BYTES;
        let index = usize::try_from((at - start) / PAGE_BYTES).ok()?;
        for (page, &mask) in (at / PAGE_BYTES..).zip(self.masks.get(index..)?) {
            if let Some(run) = first_run(mask, from) {
                let base = page * PAGE_BYTES;
                return Some(base + run.start..base + run.end);
            }
            from = 0;
        }
        None
    }

    /// The bytes of the file at `range`, which lies in [`Self::range`]; of a direct write, in one of
    /// [`Self::runs`]. Of pages, a page begins at an address that is a multiple of [`PAGE_SIZE`]; the
    /// bytes of a direct write may lie anywhere.
    ///
    /// # Panics
    ///
    /// If `range` does not lie there.
    #[must_use]
    pub fn bytes(&self, range: Range<u64>) -> &'a [u8] {
        let inside = self.start..self.start + self.data.len() as u64;
        assert!(
            inside.start <= range.start && range.end <= inside.end,
            "bytes {range:?} of a batch of {inside:?}"
        );
        let at = |offset: u64| usize::try_from(offset - inside.start).expect("at most 4 MiB");
        &self.data[at(range.start)..at(range.end)]
    }

    /// The file's size just before the bytes were copied: those before it are as they were written,
    /// those from there on are zeros, and the size on disk must not pass it on account of this
    /// batch. For a direct write, the size that the file has when all of it is written.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::{WHOLE, WriteBatch, blocks_inside, blocks_touched, first_run, masks_of};
    use crate::backing::PAGE_SIZE;

    #[test]
    fn blocks_touched_and_inside() {
        assert_eq!(blocks_touched(0..4096, 4096), WHOLE);
        assert_eq!(blocks_touched(100..101, 4096), WHOLE);
        assert_eq!(blocks_touched(100..101, 1024), 0b0001);
        assert_eq!(blocks_touched(1023..1025, 1024), 0b0011);
        assert_eq!(blocks_touched(2048..4096, 2048), 0b1100);
        assert_eq!(blocks_touched(5..5, 1024), 0);
        assert_eq!(blocks_inside(0..4096, 4096), WHOLE);
        assert_eq!(blocks_inside(1..4096, 4096), 0);
        assert_eq!(blocks_inside(1..4096, 1024), 0b1110);
        assert_eq!(blocks_inside(1..2047, 1024), 0);
        assert_eq!(blocks_inside(1024..2050, 1024), 0b0010);
    }

    #[test]
    fn runs_of_a_mask() {
        assert_eq!(first_run(0, 0), None);
        assert_eq!(first_run(WHOLE, 5), Some(5..4096));
        assert_eq!(first_run(0b0110, 0), Some(1024..3072));
        assert_eq!(first_run(0b0110, 3072), None);
        assert_eq!(first_run(0b1001, 1000), Some(1000..1024));
        assert_eq!(first_run(0b1001, 1024), Some(3072..4096));
        assert_eq!(first_run(WHOLE, 4096), None);
    }

    #[test]
    fn a_direct_write_is_one_run_of_the_blocks_it_has() {
        let data: Vec<u8> = (0..7 * 1024_u32).map(|at| (at / 1024) as u8).collect();
        let start = 3 * 4096 + 3072;
        let range = start..start + data.len() as u64;
        let masks = masks_of(&range, 1024);
        assert_eq!(masks, [0b1000, WHOLE, 0b0011]);
        let batch = WriteBatch::direct(start, &masks, &data, range.end);
        assert_eq!(batch.range(), 3 * 4096..6 * 4096);
        assert_eq!(
            batch.runs().collect::<Vec<_>>(),
            std::slice::from_ref(&range)
        );
        assert_eq!(batch.bytes(range.end - 1024..range.end), [6; 1024]);
        assert_eq!(masks_of(&(4096..8192), 4096), [WHOLE]);
    }

    #[test]
    fn runs_join_over_pages() {
        let data = vec![0; 5 * PAGE_SIZE];
        let batch = WriteBatch::new(10, &[0b1000, WHOLE, 0b0001, 0, 0b0101], &data, 1);
        let base = 10 * 4096;
        let runs: Vec<_> = batch.runs().collect();
        assert_eq!(
            runs,
            [
                base + 3072..base + 2 * 4096 + 1024,
                base + 4 * 4096..base + 4 * 4096 + 1024,
                base + 4 * 4096 + 2048..base + 4 * 4096 + 3072
            ]
        );
        assert_eq!(batch.bytes(base + 1..base + 5000).len(), 4999);
    }
}
