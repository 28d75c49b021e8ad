//! What a file may hold: for each record the writes that may be the last to have reached the device.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use pagefence_fs_model::files::{RECORD_BYTES, contents};

/// What a record may be: of which write, and the number of the record that it was written as. Blocks move
/// within a file, and to others.
type Record = (u64, u64);

/// Nobody wrote it, or it was cleared.
const ZEROS: Record = (0, 0);

/// Records by number. Those that are missing are zeros.
type Records = BTreeMap<u64, Vec<Record>>;

/// A change of a file's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Write {
        offset: u64,
        length: usize,
        tag: u64,
    },
    SetSize(u64),
    /// The file is so long at least.
    Grow(u64),
    /// A range reads as zeros.
    Clear {
        offset: u64,
        length: u64,
    },
    /// A range is taken out of a file that is then so long.
    Collapse {
        offset: u64,
        length: u64,
        size: u64,
    },
    /// A hole is put into a file that is then so long.
    Insert {
        offset: u64,
        length: u64,
        size: u64,
    },
    /// A range has what another one had.
    Exchange {
        offset: u64,
        theirs: Rc<Theirs>,
    },
}

/// What came by an exchange.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Theirs {
    /// Numbers of the range in the file that it came from.
    range: Range<u64>,
    /// What the file held if all that was done to it has reached the device.
    all: Records,
    /// What it may have held.
    any: Records,
}

/// The bytes of a file, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    records: Records,
    /// The lengths that it may have.
    least: u64,
    most: u64,
    /// What was done and is not known to be on the device; whether anybody was told that it failed.
    pending: Vec<(Event, bool)>,
}

fn records(event_offset: u64, length: u64) -> Range<u64> {
    let end = event_offset.saturating_add(length);
    event_offset / RECORD_BYTES..end.div_ceil(RECORD_BYTES)
}

/// What may stand at a place.
fn at(records: &Records, number: u64) -> &[Record] {
    records.get(&number).map_or(&[ZEROS], Vec::as_slice)
}

/// Something else may stand there, too.
fn add(records: &mut Records, number: u64, more: &[Record]) {
    let known = records.entry(number).or_insert_with(|| vec![ZEROS]);
    for record in more {
        if !known.contains(record) {
            known.push(*record);
        }
    }
}

/// Moves what stands from `first` on.
fn moved(records: &mut Records, first: u64, to: u64) {
    let behind = records.split_off(&first);
    records.split_off(&to);
    records.extend(
        behind
            .into_iter()
            .map(|(at, known)| (at - first + to, known)),
    );
}

impl Bytes {
    /// Something was done, or failed half way.
    pub(crate) fn push(&mut self, event: Event, failed: bool) {
        self.pending.push((event, failed));
    }

    /// Whoever asked was told that something of it may be lost: all that is pending stays in doubt.
    pub(crate) fn doubt(&mut self) {
        for (_, failed) in &mut self.pending {
            *failed = true;
        }
    }

    /// All is durable of which nobody was told otherwise.
    pub(crate) fn settle(&mut self) {
        for (event, failed) in std::mem::take(&mut self.pending) {
            self.apply(&event, failed);
        }
    }

    /// As it may be now, whatever of it is on the device.
    fn with_pending(&self) -> Self {
        let mut all = self.clone();
        all.doubt();
        all.settle();
        all
    }

    fn apply(&mut self, event: &Event, in_doubt: bool) {
        match event {
            Event::Write {
                offset,
                length,
                tag,
            } => {
                for number in records(*offset, *length as u64) {
                    if !in_doubt {
                        self.records.insert(number, Vec::new());
                    }
                    add(&mut self.records, number, &[(*tag, number)]);
                }
                self.grow(offset + *length as u64, in_doubt);
            }
            Event::Grow(size) => self.grow(*size, in_doubt),
            Event::SetSize(size) => {
                self.clear(size.div_ceil(RECORD_BYTES)..u64::MAX, in_doubt);
                self.set_size(*size, in_doubt);
            }
            Event::Clear { offset, length } => self.clear(records(*offset, *length), in_doubt),
            Event::Collapse {
                offset,
                length,
                size,
            } => {
                let range = records(*offset, *length);
                if in_doubt {
                    self.may_move(&range, |number| number + (range.end - range.start));
                } else {
                    moved(&mut self.records, range.end, range.start);
                }
                self.set_size(*size, in_doubt);
            }
            Event::Insert {
                offset,
                length,
                size,
            } => {
                let range = records(*offset, *length);
                if in_doubt {
                    // None stands in the place of the hole but what stood there.
                    let from = |number| match number < range.end {
                        true => number,
                        false => number - (range.end - range.start),
                    };
                    self.may_move(&range, from);
                } else {
                    moved(&mut self.records, range.start, range.end);
                }
                self.set_size(*size, in_doubt);
            }
            Event::Exchange { offset, theirs } => {
                let first = offset / RECORD_BYTES;
                for (number, from) in (first..).zip(theirs.range.clone()) {
                    if in_doubt {
                        add(&mut self.records, number, at(&theirs.any, from));
                    } else {
                        self.records.insert(number, at(&theirs.all, from).to_vec());
                    }
                }
            }
        }
    }

    /// From where `range` begins each record by itself stays, is cleared, or comes from elsewhere. (How far
    /// what moves came, it came with all of it: that is for the tests of what moves it.)
    fn may_move(&mut self, range: &Range<u64>, from: impl Fn(u64) -> u64) {
        let old = self.records.clone();
        let last = old.last_key_value().map_or(0, |(number, _)| number + 1);
        for number in range.start..last + (range.end - range.start) {
            add(&mut self.records, number, &[ZEROS]);
            add(&mut self.records, number, at(&old, from(number)));
        }
    }

    fn clear(&mut self, range: Range<u64>, in_doubt: bool) {
        if in_doubt {
            for (_, known) in self.records.range_mut(range) {
                if !known.contains(&ZEROS) {
                    known.push(ZEROS);
                }
            }
        } else {
            let mut behind = self.records.split_off(&range.start);
            self.records.append(&mut behind.split_off(&range.end));
        }
    }

    fn set_size(&mut self, size: u64, in_doubt: bool) {
        if in_doubt {
            self.least = self.least.min(size);
            self.most = self.most.max(size);
        } else {
            (self.least, self.most) = (size, size);
        }
    }

    /// What another file gets that changes places with the range.
    pub(crate) fn given(&self, offset: u64, length: u64) -> Theirs {
        let mut all = self.clone();
        all.settle();
        Theirs {
            range: records(offset, length),
            all: all.records,
            any: self.with_pending().records,
        }
    }

    /// Whether it may be so long.
    pub(crate) fn may_be_long(&self, size: u64) -> bool {
        let known = self.with_pending();
        (known.least..=known.most).contains(&size)
    }

    fn grow(&mut self, size: u64, in_doubt: bool) {
        self.most = self.most.max(size);
        if !in_doubt {
            self.least = self.least.max(size);
        }
    }

    /// Holds all of a file against what it may hold; its length may be rounded up to `unit` bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(&self, found: &[u8], unit: u64) -> Result<(), String> {
        let known = self.with_pending();
        let size = found.len() as u64;
        let most = known.most.next_multiple_of(unit);
        if size < known.least || most < size {
            let least = known.least;
            return Err(format!("{size} bytes; {least} to {most} are possible"));
        }
        known.check_records(0, found)
    }

    /// Holds what was read at `offset`, where up to `asked` bytes were asked for, against it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check_read(&self, offset: u64, asked: usize, found: &[u8]) -> Result<(), String> {
        let known = self.with_pending();
        let there = |size: u64| size.saturating_sub(offset).min(asked as u64);
        let (least, most, count) = (there(known.least), there(known.most), found.len() as u64);
        if count < least || most < count {
            return Err(format!(
                "{count} bytes were read; {least} to {most} are possible"
            ));
        }
        known.check_records(offset, found)
    }

    /// `offset` is that of a record.
    fn check_records(&self, offset: u64, found: &[u8]) -> Result<(), String> {
        let first = offset / RECORD_BYTES;
        for (number, record) in (first..).zip(found.chunks(RECORD_BYTES as usize)) {
            let possible = at(&self.records, number);
            let is_of = |(tag, number): &Record| {
                record == contents(*tag, number * RECORD_BYTES, record.len())
            };
            if !possible.iter().any(is_of) {
                let byte = number * RECORD_BYTES;
                return Err(format!(
                    "byte {byte}: {record:02x?}; writes and records {possible:?} are possible"
                ));
            }
        }
        Ok(())
    }

    /// The records that may be of several writes, or of none.
    #[cfg(test)]
    fn in_doubt(&self) -> usize {
        let known = self.with_pending();
        known.records.values().filter(|tags| tags.len() > 1).count()
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Event};
    use pagefence_fs_model::files::contents;

    fn write(tag: u64) -> Event {
        Event::Write {
            offset: 0,
            length: 64,
            tag,
        }
    }

    #[test]
    fn what_was_told_stays_in_doubt_until_it_is_written_again() {
        let mut bytes = Bytes::default();
        bytes.push(write(1), false);
        bytes.settle();
        assert!(bytes.check(&contents(1, 0, 64), 1).is_ok());
        assert!(bytes.check(&[0; 64], 1).is_err(), "it is durable");
        bytes.push(write(2), false);
        bytes.doubt();
        bytes.settle();
        assert_eq!(bytes.in_doubt(), 2);
        for tag in [1, 2] {
            assert!(bytes.check(&contents(tag, 0, 64), 1).is_ok());
        }
        assert!(bytes.check(&contents(3, 0, 64), 1).is_err());
        bytes.push(write(3), false);
        bytes.settle();
        assert_eq!(bytes.in_doubt(), 0);
        assert!(bytes.check(&contents(2, 0, 64), 1).is_err());
    }

    #[test]
    fn lengths_are_in_doubt_as_bytes_are() {
        let mut bytes = Bytes::default();
        bytes.push(write(1), false);
        bytes.settle();
        bytes.push(Event::SetSize(32), false);
        assert!(bytes.check(&contents(1, 0, 64), 1).is_ok());
        assert!(bytes.check(&contents(1, 0, 32), 1).is_ok());
        assert!(bytes.check(&contents(1, 0, 16), 1).is_err());
        bytes.settle();
        assert!(bytes.check(&contents(1, 0, 64), 1).is_err());
        assert!(bytes.check_read(32, 32, &[]).is_ok());
        bytes.push(Event::Grow(96), false);
        bytes.settle();
        assert!(bytes.check_read(32, 64, &[0; 64]).is_ok());
        assert!(bytes.check_read(32, 64, &[0; 32]).is_err());
    }
}
