//! What fallocate(2) does to a range of a file, and two ranges that change places.

use super::bytes::Bytes;
use super::operation::{Failure, RangeChange};
use super::tree::{Format, Tree};

/// Changes a range: its first byte and its length.
pub(super) fn change(
    bytes: &mut Bytes,
    format: Format,
    (offset, length): (u64, u64),
    how: RangeChange,
) -> Result<(), Failure> {
    let end = offset.checked_add(length).ok_or(Failure::FileTooLarge)?;
    if length == 0 {
        return Err(Failure::Invalid);
    }
    if end >= format.size_limit {
        return Err(Failure::FileTooLarge);
    }
    let is_whole = [offset, length]
        .iter()
        .all(|edge| edge.is_multiple_of(u64::from(format.block_size)));
    // Zeros stand for space there, which must not be seen past the end.
    let has_no_space = !format.has_unwritten && end > bytes.size();
    match how {
        RangeChange::Reserve | RangeChange::Zero | RangeChange::ZeroInside if has_no_space => {
            return Err(Failure::Unsupported);
        }
        RangeChange::Reserve => bytes.reserve(offset, length),
        RangeChange::Punch => bytes.clear(offset, length),
        RangeChange::Zero => {
            bytes.clear(offset, length);
            bytes.promise(offset, length);
        }
        RangeChange::ZeroInside => {
            bytes.clear(offset, length);
            bytes.reserve(offset, length);
        }
        RangeChange::Collapse if is_whole && end < bytes.size() => bytes.collapse(offset, length),
        RangeChange::Insert if is_whole && offset < bytes.size() => {
            if bytes.size().saturating_add(length) >= format.size_limit {
                return Err(Failure::FileTooLarge);
            }
            bytes.insert(offset, length);
        }
        RangeChange::Collapse | RangeChange::Insert => return Err(Failure::Invalid),
    }
    Ok(())
}

impl Tree {
    /// Whole blocks of two files change places.
    pub(super) fn exchange_range(
        &mut self,
        (path, offset): (&str, u64),
        (other, other_offset): (&str, u64),
        length: u64,
    ) -> Result<(), Failure> {
        let block = u64::from(self.format.block_size);
        let edges = [offset, other_offset, length];
        let mut theirs = self.file_at(other)?.clone();
        let is_one = self.node_at(path, true) == self.node_at(other, true);
        let mine = self.file_at(path)?;
        let is_inside = offset + length <= mine.size() && other_offset + length <= theirs.size();
        if is_one || !is_inside || edges.iter().any(|edge| !edge.is_multiple_of(block)) {
            return Err(Failure::Invalid);
        }
        mine.exchange(offset, &mut theirs, other_offset, length);
        *self.file_at(other)? = theirs;
        Ok(())
    }
}
