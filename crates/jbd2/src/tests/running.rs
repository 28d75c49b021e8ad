//! The ground of the tests of the running journal: a client, and a journal of 32 blocks.

use std::time::Duration;

use pagefence_block_io::BufferCache;
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::{Mutex, Weak};

use super::*;
use crate::mutant::Mutant;
use crate::{Client, Handle, Journal, Options, Sealing, Tid};

/// Fills deferred blocks with the transaction's number, and remembers what it was told.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) sealed: Mutex<Vec<u64>>,
    pub(super) committed: Mutex<Vec<u64>>,
    pub(super) aborted: Mutex<Vec<i32>>,
    /// Seals nothing.
    pub(super) lazy: bool,
}

impl Client for Recorder {
    fn seal(&self, sealing: &mut Sealing<'_>) {
        self.sealed.lock().push(sealing.tid().0);
        if self.lazy {
            return;
        }
        let bytes = pattern(sealing.tid());
        for block in sealing.blocks().to_vec() {
            if block.0 % 2 == 0 {
                sealing.set(block, &bytes);
            } else {
                let changed = sealing.change(block, |contents| {
                    contents.copy_from_slice(&bytes);
                    Ok::<(), pagefence_block_io::DeviceError>(())
                });
                assert!(changed.is_ok() || block.0 > DEVICE_BLOCKS);
            }
        }
    }
    fn committed(&self, tid: Tid) {
        self.committed.lock().push(tid.0);
    }
    fn aborted(&self, error: &JournalError) {
        self.aborted.lock().push(error.errno());
    }
}

/// A block that says in which transaction it was made.
pub(super) fn pattern(tid: Tid) -> Vec<u8> {
    tid.0.to_le_bytes().repeat(BLOCK / 8)
}

/// A journal in use.
pub(super) struct Ground {
    pub(super) device: Arc<FaultDevice>,
    pub(super) buffers: Arc<BufferCache>,
    pub(super) client: Arc<Recorder>,
    pub(super) journal: Arc<Journal>,
}

pub(super) fn options(mutant: Option<Mutant>) -> Options {
    Options {
        commit_interval: Duration::from_secs(3600),
        mutant,
        ..Options::default()
    }
}

impl Ground {
    pub(super) fn new(image: &Image) -> Self {
        Self::with(image, options(None), true)
    }

    pub(super) fn with(image: &Image, options: Options, log: bool) -> Self {
        let device = Arc::new(FaultDevice::new(&image.device, 1));
        Self::on(device, &image.location, options, log, Recorder::default())
    }

    pub(super) fn on(
        device: Arc<FaultDevice>,
        location: &JournalLocation,
        options: Options,
        log: bool,
        client: Recorder,
    ) -> Self {
        // Room for very few: what must not be evicted would be.
        let buffers = Arc::new(BufferCache::new(device.clone(), BLOCK as u32, 1));
        let client = Arc::new(client);
        let weak: Weak<Recorder> = Arc::downgrade(&client);
        let journal = if log {
            Journal::open(buffers.clone(), location.clone(), weak, options)
        } else {
            Journal::without_log(buffers.clone(), weak, options)
        };
        Self {
            device,
            buffers,
            client,
            journal: journal.unwrap(),
        }
    }

    /// Runs one handle; its transaction.
    pub(super) fn handle(&self, credits: u32, body: impl FnOnce(&mut Handle<'_>)) -> Tid {
        let mut entry = Held::at_entry();
        let (mut handle, _held) = self.journal.start(&mut entry, credits).unwrap();
        body(&mut handle);
        handle.tid()
    }

    /// Fills one block in a handle of its own.
    pub(super) fn fill(&self, block: u64, byte: u8) -> Tid {
        self.handle(1, |handle| fill(handle, block, byte))
    }

    /// What the cache has of a block.
    pub(super) fn cached(&self, block: u64) -> u8 {
        self.buffers.read(block).unwrap()[100]
    }

    /// What the device has of a block now.
    pub(super) fn at_home(&self, block: u64) -> u8 {
        byte_of(&self.device.live(), block)
    }
}

pub(super) fn byte_of(device: &dyn Device, block: u64) -> u8 {
    let mut bytes = vec![0; BLOCK];
    device.read(block * BLOCK as u64, &mut bytes).unwrap();
    bytes[100]
}

pub(super) fn fill(handle: &mut Handle<'_>, block: u64, byte: u8) {
    handle
        .change(BlockNo(block), |bytes| {
            bytes.fill(byte);
            Ok::<(), pagefence_block_io::DeviceError>(())
        })
        .unwrap();
}

/// The image after recovery.
pub(super) fn recovered(device: MemoryDevice) -> MemoryDevice {
    let location = location();
    let recovery = recover(&device, &location).unwrap();
    assert_eq!(recovery.damaged(), None);
    write_back(&device, &location, &recovery, Emptied::Clean).unwrap();
    device
}
