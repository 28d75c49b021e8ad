//! Data and holes of two files.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::report::Report;
use super::tree::Pair;
use crate::sparse::data_ranges;

const CHUNK_BYTES: u64 = 1 << 20;
/// A hole up to this long is read from end to end; of a longer one both ends and its middle.
const WHOLE_HOLE_BYTES: u64 = 16 << 20;

/// Compares the maps of data and holes, then every byte of data, then that holes read as zeros.
///
/// The maps come first: a page that was read over an unwritten extent may count as data. Those of
/// copies are not compared: blocks may have another size.
pub(crate) fn compare(pair: &Pair, is_copy: bool, report: &mut Report) -> Result<()> {
    let theirs = File::open(&pair.theirs)
        .with_context(|| format!("cannot open the kernel's {}", pair.path.display()))?;
    let length = theirs.metadata()?.len();
    let ours = match File::open(&pair.ours) {
        Ok(ours) => ours,
        Err(error) => {
            report.mismatch(&pair.path, &format!("open: {error}"));
            return Ok(());
        }
    };
    let their_ranges = data_ranges(&theirs, length)
        .with_context(|| format!("the kernel's {}", pair.path.display()))?;
    match data_ranges(&ours, length) {
        Ok(our_ranges) if is_copy || our_ranges == their_ranges => {}
        Ok(our_ranges) => report.mismatch(&pair.path, &describe(&their_ranges, &our_ranges)),
        Err(error) => report.mismatch(&pair.path, &format!("{error:#}")),
    }
    let mut files = Files {
        theirs,
        ours,
        their_chunk: vec![0; CHUNK_BYTES as usize],
        our_chunk: vec![0; CHUNK_BYTES as usize],
    };
    let mut end_of_last = 0;
    for &(start, end) in their_ranges.iter().chain([&(length, length)]) {
        for (from, to) in hole_samples(end_of_last, start) {
            if !files.are_equal(pair, from, to, report)? {
                return Ok(());
            }
        }
        if !files.are_equal(pair, start, end, report)? {
            return Ok(());
        }
        end_of_last = end;
    }
    files.check_end(pair, length, report);
    Ok(())
}

/// The parts of a hole that are read.
fn hole_samples(start: u64, end: u64) -> Vec<(u64, u64)> {
    if end - start <= WHOLE_HOLE_BYTES {
        return vec![(start, end)];
    }
    let middle = start + (end - start) / 2;
    vec![
        (start, start + CHUNK_BYTES),
        (middle, middle + CHUNK_BYTES),
        (end - CHUNK_BYTES, end),
    ]
}

/// Where two maps part.
fn describe(theirs: &[(u64, u64)], ours: &[(u64, u64)]) -> String {
    let at = theirs
        .iter()
        .zip(ours)
        .take_while(|(theirs, ours)| theirs == ours)
        .count();
    format!(
        "data ranges: kernel has {}, we {}; the first that differs: kernel {:?}, ours {:?}",
        theirs.len(),
        ours.len(),
        theirs.get(at),
        ours.get(at)
    )
}

struct Files {
    theirs: File,
    ours: File,
    their_chunk: Vec<u8>,
    our_chunk: Vec<u8>,
}

impl Files {
    /// Compares the bytes of a range; reports the first that differs.
    fn are_equal(
        &mut self,
        pair: &Pair,
        start: u64,
        end: u64,
        report: &mut Report,
    ) -> Result<bool> {
        let mut offset = start;
        while offset < end {
            let length = (end - offset).min(CHUNK_BYTES);
            let theirs = &mut self.their_chunk[..length as usize];
            let ours = &mut self.our_chunk[..length as usize];
            self.theirs
                .read_exact_at(theirs, offset)
                .with_context(|| format!("cannot read the kernel's {}", pair.path.display()))?;
            if let Err(error) = self.ours.read_exact_at(ours, offset) {
                report.mismatch(&pair.path, &format!("read at {offset}: {error}"));
                return Ok(false);
            }
            if theirs != ours {
                let at = theirs.iter().zip(ours.iter()).position(|(a, b)| a != b);
                let at = at.unwrap_or_default();
                report.mismatch(
                    &pair.path,
                    &format!(
                        "contents differ at {}: kernel {:#04x}, ours {:#04x}",
                        offset + at as u64,
                        theirs[at],
                        ours[at]
                    ),
                );
                return Ok(false);
            }
            report.count_bytes(length);
            offset += length;
        }
        Ok(true)
    }

    /// Nothing is read past the end.
    fn check_end(&mut self, pair: &Pair, length: u64, report: &mut Report) {
        match self.ours.read_at(&mut self.our_chunk[..1], length) {
            Ok(0) => {}
            Ok(_) => report.mismatch(&pair.path, "there is data past the end"),
            Err(error) => report.mismatch(&pair.path, &format!("read at the end: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK_BYTES, WHOLE_HOLE_BYTES, hole_samples};

    #[test]
    fn a_short_hole_is_read_whole_and_a_long_one_at_three_places() {
        assert_eq!(
            hole_samples(5, 5 + WHOLE_HOLE_BYTES),
            [(5, 5 + WHOLE_HOLE_BYTES)]
        );
        let end = 1 << 40;
        let samples = hole_samples(0, end);
        assert_eq!(samples.len(), 3);
        assert_eq!(samples[0], (0, CHUNK_BYTES));
        assert_eq!(samples[2], (end - CHUNK_BYTES, end));
    }
}
