//! A device that watches what a damaged file system does with it.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;

use pagefence::device::{Capabilities, Device, DeviceError, MemoryDevice};
use pagefence_lock_order::primitives::Mutex;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};

/// Bytes that are written, or not, as one.
pub(super) const SECTOR: usize = 512;

/// How each sector of data begins that is written to files.
pub(super) const TAG: [u8; 8] = *b"pf-data\n";

/// How often all of a device may be read or written.
const TIMES_MAX: u64 = 64;

/// Counts what is done, and notes what must not be.
#[derive(Debug)]
pub(super) struct Watched {
    device: Arc<MemoryDevice>,
    block_size: u64,
    /// Blocks of metadata, ascending.
    zones: Vec<Range<u64>>,
    calls: AtomicU64,
    bytes: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Watched {
    pub(super) fn new(device: Arc<MemoryDevice>, block_size: u32, zones: Vec<Range<u64>>) -> Self {
        Self {
            device,
            block_size: block_size.into(),
            zones,
            calls: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            wrong: Mutex::new(Vec::new()),
        }
    }

    /// What must not be and was; nothing if all is well.
    pub(super) fn wrong(&self) -> Option<String> {
        let size = self.device.size();
        let (calls, bytes) = (&self.calls, &self.bytes);
        let (calls, bytes) = (calls.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed));
        if bytes > TIMES_MAX * size || calls > TIMES_MAX * size / self.block_size {
            return Some(format!("{calls} calls of the device, for {bytes} bytes"));
        }
        self.wrong.lock().first().cloned()
    }

    fn note(&self, what: &str, offset: u64, length: u64) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(length, Ordering::Relaxed);
        let inside = offset.checked_add(length);
        if inside.is_none_or(|end| end > self.device.size()) {
            let wrong = format!("{what} of {length} bytes at {offset}, past the end of the device");
            self.wrong.lock().push(wrong);
        }
    }

    /// Data has no place among metadata.
    fn check_data(&self, offset: u64, buffers: &[IoSlice<'_>]) {
        let bytes: Vec<u8> = buffers
            .iter()
            .flat_map(|part| part.iter().copied())
            .collect();
        for (number, sector) in (0_u64..).zip(bytes.chunks(SECTOR)) {
            let block = (offset + number * SECTOR as u64) / self.block_size;
            let after = self.zones.partition_point(|zone| zone.start <= block);
            let zone = after.checked_sub(1).and_then(|last| self.zones.get(last));
            if sector.starts_with(&TAG) && zone.is_some_and(|zone| zone.contains(&block)) {
                let wrong = format!("data of a file is written to block {block}, of metadata");
                self.wrong.lock().push(wrong);
                return;
            }
        }
    }
}

impl Device for Watched {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn read_vectored(
        &self,
        offset: u64,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        let length = buffers.iter().map(|part| part.len() as u64).sum();
        self.note("a read", offset, length);
        self.device.read_vectored(offset, buffers)
    }

    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let length = buffers.iter().map(|part| part.len() as u64).sum();
        self.note("a write", offset, length);
        self.check_data(offset, buffers);
        self.device.write_vectored(offset, buffers)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.note("a discard", offset, length);
        self.device.discard(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.note("writing zeroes", offset, length);
        self.device.write_zeroes(offset, length)
    }
}

#[test]
fn data_among_metadata_is_noticed() {
    let device = || Arc::new(MemoryDevice::new(64 << 10));
    let watched = Watched::new(device(), 1024, vec![1..3, 10..11]);
    let mut data = vec![0; 2 * SECTOR];
    data[SECTOR..][..TAG.len()].copy_from_slice(&TAG);
    watched.write(3 * 1024, &data).expect("it is inside");
    // The second sector holds data, and lies behind the zone.
    watched
        .write(3 * 1024 - SECTOR as u64, &data)
        .expect("it is inside");
    assert_eq!(watched.wrong(), None);
    watched.write(10 * 1024, &data).expect("it is inside");
    assert!(watched.wrong().is_some());
    let watched = Watched::new(device(), 1024, Vec::new());
    assert!(watched.read(64 << 10, &mut [0]).is_err() && watched.wrong().is_some());
    let watched = Watched::new(device(), 1024, Vec::new());
    for _ in 0..=64 * 64 {
        watched.read(0, &mut [0]).expect("it is inside");
    }
    assert!(watched.wrong().is_some());
}
