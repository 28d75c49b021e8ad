//! What a file may hold: for each record the writes that may be the last to have reached the device.

use std::collections::BTreeMap;

use pagefence_fs_model::files::{RECORD_BYTES, contents};

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
}

/// The bytes of a file, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    /// The tags that a record may have, 0 standing for zeros. Those that are missing are zeros.
    records: BTreeMap<u64, Vec<u64>>,
    /// The lengths that it may have.
    least: u64,
    most: u64,
    /// What was done and is not known to be on the device; whether anybody was told that it failed.
    pending: Vec<(Event, bool)>,
}

fn records(event_offset: u64, length: usize) -> std::ops::Range<u64> {
    let end = event_offset + length as u64;
    event_offset / RECORD_BYTES..end.div_ceil(RECORD_BYTES)
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
        match *event {
            Event::Write {
                offset,
                length,
                tag,
            } => {
                for number in records(offset, length) {
                    let tags = self.records.entry(number).or_insert_with(|| vec![0]);
                    if !in_doubt {
                        tags.clear();
                    }
                    if !tags.contains(&tag) {
                        tags.push(tag);
                    }
                }
                self.grow(offset + length as u64, in_doubt);
            }
            Event::Grow(size) => self.grow(size, in_doubt),
            Event::SetSize(size) => {
                let first = size.div_ceil(RECORD_BYTES);
                if in_doubt {
                    for (_, tags) in self.records.range_mut(first..) {
                        if !tags.contains(&0) {
                            tags.push(0);
                        }
                    }
                    self.least = self.least.min(size);
                    self.most = self.most.max(size);
                } else {
                    self.records.split_off(&first);
                    (self.least, self.most) = (size, size);
                }
            }
        }
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
            let zeros = &[0][..];
            let possible = self.records.get(&number).map_or(zeros, Vec::as_slice);
            let at = number * RECORD_BYTES;
            let is_of = |tag: &u64| record == contents(*tag, at, record.len());
            if !possible.iter().any(is_of) {
                return Err(format!(
                    "byte {at}: {record:02x?}; writes {possible:?} are possible"
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
