//! The trait of a block device: a range of bytes that can be read, written, flushed and given
//! back.

use std::io::{IoSlice, IoSliceMut};

/// What a device did not do, and where.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of {length} bytes at offset {offset} failed: {source}")]
pub struct DeviceError {
    /// What was asked for.
    pub operation: Operation,
    /// Byte offset on the device.
    pub offset: u64,
    /// Bytes asked for.
    pub length: u64,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// The operations of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Make earlier writes durable.
    Flush,
    /// Give space back.
    Discard,
    /// Make a range read as zeros.
    WriteZeroes,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "writing zeroes",
        })
    }
}

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Writes fail.
    pub read_only: bool,
    /// Offsets and lengths are multiples of this many bytes (a power of two), or the device
    /// bounces them itself.
    pub alignment: u32,
    /// Discard gives space back; otherwise it does nothing.
    pub discard: bool,
    /// Writing zeroes is cheaper than writing.
    pub write_zeroes: bool,
    /// Requests worth having in flight at once.
    pub queue_depth: u32,
}

/// Result of a device operation.
pub type Result<T> = std::result::Result<T, DeviceError>;

/// A block device. All methods may be called from many threads at once; none takes a lock that
/// its caller could hold (it is the leaf of the lock order).
///
/// Contract (`docs/CRASH.md`): a write is durable once a flush that began after its completion
/// has returned. Until then each 512-byte sector of it may hold the old or the new bytes after a
/// crash, independently of every other sector.
pub trait Device: Send + Sync + std::fmt::Debug + 'static {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Fills `buffers`, one after the other, from `offset` on.
    ///
    /// # Errors
    /// The device failed, or the range reaches past its end. The buffers' contents are then
    /// undefined.
    fn read_vectored(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()>;

    /// Writes `buffers`, one after the other, from `offset` on.
    ///
    /// # Errors
    /// The device failed, is read-only, or the range reaches past its end. Any part may have
    /// been written.
    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()>;

    /// Makes every write that completed before this call durable.
    ///
    /// # Errors
    /// The device failed: which writes are durable is then unknown, and stays so.
    fn flush(&self) -> Result<()>;

    /// Advises that the range is no longer needed; what it reads as afterwards is undefined.
    ///
    /// # Errors
    /// The device failed.
    fn discard(&self, offset: u64, length: u64) -> Result<()>;

    /// Makes the range read as zeros.
    ///
    /// # Errors
    /// As [`Device::write_vectored`].
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// As [`Device::read_vectored`].
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.read_vectored(offset, &mut [IoSliceMut::new(buffer)])
    }

    /// Writes `buffer` from `offset` on.
    ///
    /// # Errors
    /// As [`Device::write_vectored`].
    fn write(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.write_vectored(offset, &[IoSlice::new(buffer)])
    }
}
