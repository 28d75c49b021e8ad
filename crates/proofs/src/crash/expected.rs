//! What a file may hold after a crash: for each record of 32 bytes, what was durable, or what any
//! later operation may have put there, in part or as a whole, as `docs/CRASH.md` allows it.
//!
//! A range that moves in many transactions is allowed more than the document says: each record by
//! itself may be as it was, as it will be, or zeros. That it is one of them up to some place, and
//! the other behind it, the tests of the crate that moves it hold it to.

use std::collections::BTreeMap;

use pagefence_fs_model::files::{Bytes, NodeNo, RECORD_BYTES, RangeChange, contents};

/// A record.
pub(crate) type Record = [u8; RECORD_BYTES as usize];

const ZEROS: Record = [0; RECORD_BYTES as usize];

/// A change of a file's bytes.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Made, or longer.
    Grown,
    /// Written.
    Written {
        offset: u64,
        length: usize,
        tag: u64,
    },
    /// Cut off, or longer.
    SetSize(u64),
    /// As fallocate(2) does it.
    Range {
        offset: u64,
        length: u64,
        how: RangeChange,
    },
    /// Blocks of another file came.
    Exchanged {
        offset: u64,
        other: NodeNo,
        other_offset: u64,
        length: u64,
    },
}

/// The records that a file may hold.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    base: Bytes,
    /// All that may stand at a record's place, where that is not `base` alone.
    records: BTreeMap<u64, Vec<Record>>,
    /// From this record on there may be zeros: the file was cut there.
    cut: Option<u64>,
    /// The sizes that it may have.
    least: u64,
    most: u64,
    later: Vec<Change>,
}

impl Expected {
    /// What was durable.
    pub(crate) fn new(base: Bytes) -> Self {
        let size = base.size();
        Self {
            base,
            records: BTreeMap::new(),
            cut: None,
            least: size,
            most: size,
            later: Vec::new(),
        }
    }

    fn of_base(&self, number: u64) -> Record {
        let mut record = ZEROS;
        let found = self.base.read(number * RECORD_BYTES, record.len());
        record[..found.len()].copy_from_slice(&found);
        record
    }

    /// All that may stand at this place.
    fn at(&self, number: u64) -> Vec<Record> {
        let known = self.records.get(&number).cloned();
        let mut all = known.unwrap_or_else(|| vec![self.of_base(number)]);
        if self.cut.is_some_and(|cut| cut <= number) {
            all.push(ZEROS);
        }
        all
    }

    fn add(&mut self, number: u64, more: impl IntoIterator<Item = Record>) {
        let mut all = self.at(number);
        all.extend(more);
        all.sort_unstable();
        all.dedup();
        self.records.insert(number, all);
    }

    /// Another change may be there, in part; `size` is the file's behind it. `other` is what the
    /// other file of an exchange may hold.
    pub(crate) fn change(&mut self, change: &Change, size: u64, other: Option<&Self>) {
        self.later.push(change.clone());
        let before = self.most;
        self.least = self.least.min(size);
        self.most = self.most.max(size);
        match change {
            Change::Grown => {}
            Change::Written {
                offset,
                length,
                tag,
            } => {
                for number in records(*offset, *length as u64) {
                    let bytes = contents(*tag, number * RECORD_BYTES, ZEROS.len());
                    let mut record = ZEROS;
                    record.copy_from_slice(&bytes);
                    self.add(number, [record]);
                }
            }
            Change::SetSize(size) => {
                let record = size / RECORD_BYTES;
                self.cut = Some(self.cut.map_or(record, |cut| cut.min(record)));
            }
            Change::Range {
                offset,
                length,
                how,
            } => match how {
                RangeChange::Reserve => {}
                RangeChange::Punch | RangeChange::Zero | RangeChange::ZeroInside => {
                    let length = (*length).min(self.most.saturating_sub(*offset));
                    for number in records(*offset, length) {
                        self.add(number, [ZEROS]);
                    }
                }
                RangeChange::Collapse => self.collapse(*offset, *length, before),
                RangeChange::Insert => self.insert(*offset, *length),
            },
            Change::Exchanged {
                offset,
                other_offset,
                length,
                ..
            } => {
                let Some(other) = other else { return };
                let theirs = other_offset / RECORD_BYTES;
                for (number, from) in records(*offset, *length).zip(theirs..) {
                    self.add(number, other.at(from));
                }
            }
        }
    }

    /// What lies behind the range comes to where it began, and a hole behind it.
    fn collapse(&mut self, offset: u64, length: u64, size: u64) {
        let old = self.clone();
        let moved = length / RECORD_BYTES;
        for number in records(offset, size.saturating_sub(offset)) {
            self.add(number, old.at(number + moved));
            self.add(number, [ZEROS]);
        }
        self.cut = self.cut.map(|cut| cut.saturating_sub(moved));
    }

    /// What lies behind the offset moves up, and a hole comes before it.
    fn insert(&mut self, offset: u64, length: u64) {
        let old = self.clone();
        let (first, moved) = (offset / RECORD_BYTES, length / RECORD_BYTES);
        for number in records(offset, self.most.saturating_sub(offset)) {
            if number >= first + moved {
                self.add(number, old.at(number - moved));
            }
            self.add(number, [ZEROS]);
        }
    }

    /// Holds what a crash left against it; the size may be rounded up to `unit` bytes.
    pub(crate) fn check(&self, found: &[u8], unit: u64) -> Result<(), String> {
        let size = found.len() as u64;
        let (least, most) = (self.least, self.most.next_multiple_of(unit));
        if size < least || most < size {
            return Err(format!("{size} bytes; {least} to {most} are possible"));
        }
        for (number, record) in (0_u64..).zip(found.chunks(ZEROS.len())) {
            let known = self.at(number);
            if !known.iter().any(|known| *record == known[..record.len()]) {
                let at = number * RECORD_BYTES;
                let (durable, later) = (self.of_base(number), &self.later);
                return Err(format!(
                    "byte {at} of {size}: {record:02x?}; durable was {durable:02x?}, later {later:?}"
                ));
            }
        }
        Ok(())
    }
}

/// The numbers of the records that bytes touch.
fn records(offset: u64, length: u64) -> std::ops::Range<u64> {
    offset / RECORD_BYTES..(offset + length).div_ceil(RECORD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 1024;

    /// A file of four blocks of tag 1, after a change that may be there.
    fn changed(change: &Change, size: u64) -> Expected {
        let mut base = Bytes::new(1024);
        base.write(0, &contents(1, 0, 4096));
        let mut expected = Expected::new(base);
        expected.change(change, size, None);
        expected
    }

    #[test]
    fn a_range_is_as_it_was_as_it_will_be_or_zeros() {
        let before = contents(1, 0, 4096);
        for (how, size) in [(RangeChange::Collapse, 3072), (RangeChange::Insert, 5120)] {
            let expected = changed(
                &Change::Range {
                    offset: BLOCK,
                    length: BLOCK,
                    how,
                },
                size,
            );
            let mut after = before.clone();
            match how {
                RangeChange::Collapse => drop(after.drain(1024..2048)),
                _ => drop(after.splice(1024..1024, [0; 1024])),
            }
            for bytes in [&before, &after] {
                assert_eq!(expected.check(bytes, 1), Ok(()), "{how:?}");
            }
            // Foreign, and misplaced.
            for (tag, offset) in [(2, 1024), (1, 0)] {
                let mut wrong = before.clone();
                wrong[1024..2048].copy_from_slice(&contents(tag, offset, 1024));
                assert!(expected.check(&wrong, 1).is_err(), "{how:?} {tag}");
            }
            let mut lost = before.clone();
            lost[..32].fill(0);
            assert!(expected.check(&lost, 1).is_err(), "before the range");
        }
    }

    #[test]
    fn what_is_cleared_is_there_or_zeros() {
        let expected = changed(
            &Change::Range {
                offset: 512,
                length: 1024,
                how: RangeChange::Punch,
            },
            4096,
        );
        let mut bytes = contents(1, 0, 4096);
        bytes[1024..1056].fill(0);
        assert_eq!(expected.check(&bytes, 1), Ok(()));
        bytes[1536..1568].fill(0);
        assert!(expected.check(&bytes, 1).is_err(), "behind the range");
        assert!(expected.check(&bytes[..4095], 1).is_err(), "too short");
    }
}
