//! The units of a fault device: the live image, the durable image, and the versions between.

use std::collections::BTreeMap;
use std::ops::Range;

use pagefence_lock_order::primitives::Arc;

use super::SECTOR_BYTES;
use super::states::{CrashStates, PendingUnit};
use crate::device::Device;
use crate::memory_device::MemoryDevice;

/// What a unit held after one write.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) bytes: Arc<[u8]>,
    /// When it was written, in writes since the device was made.
    pub(super) time: u64,
    /// Was pending when a flush failed: no flush makes it durable any more.
    unsettled: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Units {
    live: MemoryDevice,
    durable: MemoryDevice,
    /// Versions since the last durable one, oldest first; by the first byte of the unit.
    pending: BTreeMap<u64, Vec<Version>>,
    /// Units larger than a sector: first byte and end.
    atomic: BTreeMap<u64, u64>,
    time: u64,
}

impl Units {
    pub(super) fn new(image: MemoryDevice) -> Self {
        Self {
            live: image.fork(),
            durable: image,
            pending: BTreeMap::new(),
            atomic: BTreeMap::new(),
            time: 0,
        }
    }

    /// The same, with images of its own.
    pub(super) fn fork(&self) -> Self {
        Self {
            live: self.live.fork(),
            durable: self.durable.fork(),
            pending: self.pending.clone(),
            atomic: self.atomic.clone(),
            time: self.time,
        }
    }

    pub(super) fn live(&self) -> &MemoryDevice {
        &self.live
    }

    pub(super) fn set_atomic(&mut self, range: Range<u64>) {
        assert!(
            range.start < range.end
                && range.start.is_multiple_of(SECTOR_BYTES)
                && range.end.is_multiple_of(SECTOR_BYTES)
                && range.end <= self.live.size(),
            "whole sectors of the device"
        );
        assert!(
            self.pending.range(range.clone()).next().is_none(),
            "not while it is being written"
        );
        assert!(
            self.split(range.start, range.end)
                .iter()
                .all(|unit| !self.atomic.contains_key(&unit.start)),
            "atomic ranges don't overlap"
        );
        self.atomic.insert(range.start, range.end);
    }

    /// The unit that `offset` lies in. The last may be cut by the end of the device.
    fn unit(&self, offset: u64) -> Range<u64> {
        if let Some((start, end)) = self.atomic.range(..=offset).next_back()
            && offset < *end
        {
            return *start..*end;
        }
        let start = offset - offset % SECTOR_BYTES;
        start..(start + SECTOR_BYTES).min(self.live.size())
    }

    /// Cuts `start..end` at the borders of units.
    pub(super) fn split(&self, start: u64, end: u64) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        let mut at = start;
        while at < end {
            let next = self.unit(at).end.min(end);
            parts.push(at..next);
            at = next;
        }
        parts
    }

    /// Whether a part from [`Units::split`] is all of its unit.
    pub(super) fn is_whole(&self, part: &Range<u64>) -> bool {
        self.unit(part.start) == *part
    }

    /// Writes `bytes` at `offset`: a new version of each unit.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        write(&self.live, offset, bytes);
        self.time += 1;
        for part in self.split(offset, offset + bytes.len() as u64) {
            let unit = self.unit(part.start);
            let version = Version {
                bytes: read(&self.live, &unit),
                time: self.time,
                unsettled: false,
            };
            self.pending.entry(unit.start).or_default().push(version);
        }
    }

    /// Ends a flush.
    pub(super) fn flush(&mut self, succeeded: bool) {
        if !succeeded {
            for version in self.pending.values_mut().flatten() {
                version.unsettled = true;
            }
            return;
        }
        let durable = &self.durable;
        self.pending
            .retain(|offset, versions| match versions.last() {
                Some(newest) if !newest.unsettled => {
                    write(durable, *offset, &newest.bytes);
                    false
                }
                _ => true,
            });
    }

    /// What a crash may leave now. A version that equals the one before it counts with that.
    pub(super) fn crash_states(&self) -> CrashStates {
        let mut units = Vec::new();
        for (offset, versions) in &self.pending {
            let durable = read(&self.durable, &self.unit(*offset));
            let mut choices: Vec<(Arc<[u8]>, u64)> = vec![(durable, 0)];
            for version in versions {
                if choices
                    .last()
                    .is_none_or(|(bytes, _)| *bytes != version.bytes)
                {
                    choices.push((version.bytes.clone(), version.time));
                }
            }
            if choices.len() > 1 {
                units.push(PendingUnit {
                    offset: *offset,
                    versions: choices,
                });
            }
        }
        CrashStates::new(self.durable.fork(), units)
    }
}

/// Bytes of an image that is known to reach that far.
fn read(image: &MemoryDevice, range: &Range<u64>) -> Arc<[u8]> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    if let Err(error) = image.read(range.start, &mut bytes) {
        unreachable!("inside the device: {error}");
    }
    bytes.into()
}

/// Writes to an image that is known to reach that far.
pub(super) fn write(image: &MemoryDevice, offset: u64, bytes: &[u8]) {
    if let Err(error) = image.write(offset, bytes) {
        unreachable!("inside the device: {error}");
    }
}
