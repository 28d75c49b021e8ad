//! The metadata of one moment, readable while the file system is written to.
//!
//! A snapshot is a device that reads, block by block of metadata, as home would if everything had
//! ended with one commit and all of it had been brought home. It begins with references to the
//! buffers that are committed and not home, which stay in the buffer cache for as long; whatever
//! else is about to be overwritten is read and kept before.
//!
//! Invariant: a block that was metadata at that commit is overwritten by the journal alone, or with
//! its leave. The journal's thread writes blocks home, and what was freed is used again, and
//! discarded, only after it has said so ([`crate::Client::committed`]). Before it does either it
//! keeps the contents. So who writes file data need not know of snapshots, and pays nothing.
//!
//! Only of metadata this is true: blocks of file data, free ones, and the journal's own read as
//! whatever they hold by then.
//!
//! Who reads asks the device first and then looks at what is kept: if the block was overwritten
//! under the read, it was kept before.

use std::io::{IoSlice, IoSliceMut};

use hashbrown::HashMap;
use pagefence_block_io::aligned::AlignedBytes;
use pagefence_block_io::device::{Capabilities, Result};
use pagefence_block_io::{Buffer, BufferCache, Device, DeviceError, Operation};
use pagefence_lock_order::primitives::{Arc, Mutex};

/// Bytes of one read, at most (but one block at least).
const READ_BYTES_MAX: usize = 1 << 20;
/// What a block costs beside its bytes.
const OVERHEAD_BYTES: u64 = 64;

/// Why a snapshot can't be read any more. The file system that it was taken of goes on.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotLost {
    /// More changed than it may keep.
    #[error("more than {} MiB of metadata changed since", bytes_max >> 20)]
    Outgrown {
        /// Bytes that it may keep.
        bytes_max: u64,
    },
    /// What was about to be overwritten could not be read.
    #[error("what was about to be overwritten can't be read: {0}")]
    Device(#[source] Arc<DeviceError>),
}

/// See the module's documentation. It ends when it is dropped.
#[derive(Debug)]
pub struct Snapshot(Arc<Keeper>);

/// What the journal's thread has of a snapshot. It may outlive that for the moment in which the thread
/// is at work for it.
#[derive(Debug)]
pub(crate) struct Keeper {
    device: Arc<dyn Device>,
    block_size: usize,
    /// Of what is read from the device.
    alignment: usize,
    bytes_max: u64,
    /// A leaf: nothing is read or taken under it.
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    blocks: HashMap<u64, Contents>,
    bytes: u64,
    lost: Option<SnapshotLost>,
}

/// What a block held.
#[derive(Debug)]
enum Contents {
    /// Committed, and not home when the snapshot began.
    Committed(Arc<Buffer>),
    /// What was home before it was overwritten.
    Home(AlignedBytes),
}

impl Contents {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Committed(buffer) => buffer,
            Self::Home(bytes) => bytes,
        }
    }
}

impl Snapshot {
    /// As of now, when `not_home` is all that is committed and may not be home. Called on the
    /// journal's thread.
    pub(crate) fn new(
        buffers: &BufferCache,
        not_home: impl Iterator<Item = Arc<Buffer>>,
        bytes_max: u64,
    ) -> Self {
        let device = buffers.device().clone();
        let block_size = buffers.block_size();
        // Alignment takes room; the device bounces blocks that are smaller.
        let alignment = match usize::try_from(device.capabilities().alignment) {
            Ok(alignment) if alignment <= block_size => alignment.max(1),
            _ => 1,
        };
        let keeper = Keeper {
            device,
            block_size,
            alignment,
            bytes_max,
            kept: Mutex::default(),
        };
        for buffer in not_home {
            let kept = keeper.put(buffer.block(), Contents::Committed(buffer));
            if let Err(lost) = kept {
                keeper.lose(lost);
                break;
            }
        }
        Self(Arc::new(keeper))
    }

    /// For the journal's thread.
    pub(crate) fn keeper(&self) -> &Arc<Keeper> {
        &self.0
    }

    /// Why it can't be read any more, if so.
    #[must_use]
    pub fn lost(&self) -> Option<SnapshotLost> {
        self.0.kept.lock().lost.clone()
    }

    /// Bytes that it keeps.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.0.kept.lock().bytes
    }

    fn refused(operation: Operation, offset: u64, length: u64) -> DeviceError {
        DeviceError {
            operation,
            offset,
            length,
            source: std::io::Error::new(
                std::io::ErrorKind::ReadOnlyFilesystem,
                "a snapshot is not written to",
            ),
        }
    }
}

impl Keeper {
    /// Keeps what `blocks` (ascending) hold: they are about to be overwritten, by the journal or by
    /// who may use them from now on. Called on the journal's thread, which is alone in doing so. If
    /// that can't be done the snapshot is lost.
    pub(crate) fn keep(&self, blocks: impl Iterator<Item = u64>) {
        let missing: Vec<u64> = {
            let kept = self.kept.lock();
            if kept.lost.is_some() {
                return;
            }
            blocks
                .filter(|block| !kept.blocks.contains_key(block))
                .collect()
        };
        let mut rest = missing.as_slice();
        while let Some(first) = rest.first() {
            let most = READ_BYTES_MAX.checked_div(self.block_size);
            let count = rest
                .iter()
                .zip(*first..)
                .take(most.unwrap_or_default().max(1))
                .take_while(|(block, expected)| *block == expected)
                .count();
            let (now, later) = rest.split_at(count);
            if let Err(lost) = self.keep_run(*first, now.len()) {
                self.lose(lost);
                return;
            }
            rest = later;
        }
    }

    fn keep_run(&self, first: u64, count: usize) -> std::result::Result<(), SnapshotLost> {
        let mut contents: Vec<AlignedBytes> = (0..count)
            .map(|_| AlignedBytes::zeroed(self.block_size, self.alignment))
            .collect();
        let mut slices: Vec<IoSliceMut<'_>> = contents
            .iter_mut()
            .map(|bytes| IoSliceMut::new(bytes))
            .collect();
        let size = u64::try_from(self.block_size).unwrap_or(u64::MAX);
        self.device
            .read_vectored(first.saturating_mul(size), &mut slices)
            .map_err(|error| SnapshotLost::Device(Arc::new(error)))?;
        for (block, bytes) in (first..).zip(contents) {
            self.put(block, Contents::Home(bytes))?;
        }
        Ok(())
    }

    fn put(&self, block: u64, contents: Contents) -> std::result::Result<(), SnapshotLost> {
        let cost = u64::try_from(self.block_size.saturating_add(self.alignment))
            .unwrap_or(u64::MAX)
            .saturating_add(OVERHEAD_BYTES);
        let mut kept = self.kept.lock();
        let bytes = kept.bytes.saturating_add(cost);
        if bytes > self.bytes_max {
            return Err(SnapshotLost::Outgrown {
                bytes_max: self.bytes_max,
            });
        }
        let before = kept.blocks.insert(block, contents);
        debug_assert!(before.is_none(), "a block is kept once");
        kept.bytes = bytes;
        Ok(())
    }

    /// Gives it up: from here on blocks are overwritten that it does not have.
    fn lose(&self, lost: SnapshotLost) {
        let mut kept = self.kept.lock();
        let blocks = std::mem::take(&mut kept.blocks);
        kept.bytes = 0;
        kept.lost = Some(lost);
        drop(kept);
        drop(blocks);
    }
}

impl Device for Snapshot {
    fn size(&self) -> u64 {
        self.0.device.size()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: true,
            discard: false,
            write_zeroes: false,
            ..self.0.device.capabilities()
        }
    }

    fn read_vectored(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.0.device.read_vectored(offset, buffers)?;
        let kept = self.0.kept.lock();
        if let Some(lost) = &kept.lost {
            let length = buffers.iter().map(|buffer| buffer.len()).sum::<usize>();
            return Err(DeviceError {
                operation: Operation::Read,
                offset,
                length: u64::try_from(length).unwrap_or(u64::MAX),
                source: std::io::Error::other(lost.clone()),
            });
        }
        let size = u64::try_from(self.0.block_size).unwrap_or(u64::MAX);
        let mut at = offset;
        for buffer in buffers {
            let mut rest: &mut [u8] = buffer;
            while !rest.is_empty() {
                let block = at.checked_div(size).unwrap_or_default();
                let from = at.checked_rem(size).unwrap_or_default();
                let from = usize::try_from(from).unwrap_or_default();
                let here = self
                    .0
                    .block_size
                    .saturating_sub(from)
                    .max(1)
                    .min(rest.len());
                let (now, later) = rest.split_at_mut(here);
                let contents = kept.blocks.get(&block);
                let end = from.saturating_add(here);
                if let Some(bytes) = contents.and_then(|contents| contents.bytes().get(from..end)) {
                    now.copy_from_slice(bytes);
                }
                at = at.saturating_add(u64::try_from(here).unwrap_or(u64::MAX));
                rest = later;
            }
        }
        Ok(())
    }

    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let length = buffers.iter().map(|buffer| buffer.len()).sum::<usize>();
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        Err(Self::refused(Operation::Write, offset, length))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        Err(Self::refused(Operation::Discard, offset, length))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        Err(Self::refused(Operation::WriteZeroes, offset, length))
    }
}
