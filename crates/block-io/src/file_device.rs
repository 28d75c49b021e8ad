//! A file or block device of the host as a [`Device`], or a range of it (a partition inside an
//! image).
//!
//! With O_DIRECT, requests whose position, length and memory are aligned go straight to the
//! host's device; others are bounced through an aligned buffer, and an unaligned edge of a write
//! is read, changed and written back under a lock, so that two neighbours that share a sector
//! don't lose each other's bytes.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pagefence_lock_order::primitives::Mutex;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU32, Ordering};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use crate::aligned::AlignedBytes;
use crate::device::{Capabilities, Device, DeviceError, Operation, Result};

mod direct;
mod transfer;

/// Requests worth having in flight at once: enough for a solid-state disk, and for the host's
/// own queue behind a file.
const QUEUE_DEPTH: u32 = 32;
/// Bytes of one write of zeros where the host has nothing better, at most.
const ZERO_BYTES_MAX: usize = 1 << 20;

/// How to open a [`FileDevice`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Open for writing; a block device then also exclusively, so that one in use by the kernel
    /// (mounted, say) is refused with [`OpenError::Busy`].
    pub write: bool,
    /// Bypass the host's page cache (O_DIRECT) where the host can; see [`FileDevice::is_direct`].
    pub direct: bool,
    /// First byte of the host's file that belongs to the device.
    pub offset_bytes: u64,
    /// Bytes of the device; to the end of the host's file if not given.
    pub length_bytes: Option<u64>,
}

/// Why a file could not become a device. The message of each is for a developer; who faces a
/// user builds a sentence from the facts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The host did not open or examine the file.
    #[error("{path} can't be opened: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("{path} is neither a file nor a block device")]
    NotABlockDevice {
        /// The file.
        path: PathBuf,
    },
    /// The block device is in use by the kernel or by another exclusive user.
    #[error("the block device {path} is in use")]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// The range asked for lies outside of the file.
    #[error("{path} has {size_bytes} bytes; offset {offset_bytes} and its length reach past that")]
    Range {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The offset asked for.
        offset_bytes: u64,
        /// The length asked for.
        length_bytes: Option<u64>,
    },
}

/// How a device is locked against other users ([`FileDevice::lock`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Others may hold it shared too.
    Shared,
    /// Nobody else holds it.
    Exclusive,
}

/// What became of an attempt to lock a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// This device now holds the lock, until it is dropped.
    Yes,
    /// Somebody else holds a lock that forbids it.
    HeldElsewhere,
}

/// A file or block device of the host. See the module's documentation.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    offset: u64,
    length: u64,
    read_only: bool,
    /// What O_DIRECT asks for, if it is on.
    direct: Option<direct::Alignment>,
    /// Held while an unaligned edge of a direct write is read, changed and written.
    edges: Mutex<()>,
    /// The host refused to punch holes; not tried again.
    no_discard: AtomicBool,
    /// The host refused to zero ranges; not tried again.
    no_write_zeroes: AtomicBool,
    /// Errno of the first flush that failed, or 0. The host forgets which pages it lost, so no
    /// later flush may claim success.
    flush_failed: AtomicU32,
    /// The process that locked the file, or 0.
    locked_by: AtomicU32,
}

/// The lock belongs to the open file, of which a child that another thread has just forked holds a
/// copy until it runs its program: what is closed is unlocked before. A child that never does leaves
/// its parent's lock alone.
impl Drop for FileDevice {
    fn drop(&mut self) {
        if *self.locked_by.get_mut() == std::process::id() {
            let _unlocked_by_closing = rustix::fs::flock(&self.file, FlockOperation::Unlock);
        }
    }
}

impl FileDevice {
    /// Opens `path`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, options: OpenOptions) -> std::result::Result<Self, OpenError> {
        let failed = |source: std::io::Error| OpenError::Open {
            path: path.to_owned(),
            source,
        };
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::NotABlockDevice {
                path: path.to_owned(),
            });
        }
        // Not blocking: the path may have become a FIFO since. The type is checked again below.
        let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        if options.write && kind.is_block_device() {
            flags |= OFlags::EXCL;
        }
        let file = File::options()
            .read(true)
            .write(options.write)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(|source| {
                if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) {
                    OpenError::Busy {
                        path: path.to_owned(),
                    }
                } else {
                    failed(source)
                }
            })?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(OpenError::NotABlockDevice {
                path: path.to_owned(),
            });
        }
        // For a block device, whose metadata has no size, the end is the size.
        let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
            .map_err(|error| failed(error.into()))?;
        let length = size
            .checked_sub(options.offset_bytes)
            .and_then(|rest| match options.length_bytes {
                Some(length) if length > rest => None,
                Some(length) => Some(length),
                None => Some(rest),
            })
            .ok_or_else(|| OpenError::Range {
                path: path.to_owned(),
                size_bytes: size,
                offset_bytes: options.offset_bytes,
                length_bytes: options.length_bytes,
            })?;
        let direct = if options.direct {
            direct::enable(&file, size)
        } else {
            None
        };
        Ok(Self {
            file,
            offset: options.offset_bytes,
            length,
            read_only: !options.write,
            direct,
            edges: Mutex::new(()),
            no_discard: AtomicBool::new(false),
            no_write_zeroes: AtomicBool::new(false),
            flush_failed: AtomicU32::new(0),
            locked_by: AtomicU32::new(0),
        })
    }

    /// Whether the host's page cache is bypassed. False although asked for where the host can't,
    /// or where the file ends within an alignment unit.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Tries to lock the whole file against other users that lock it (flock; advisory: it tells
    /// other users of this crate, not those that don't lock). Does not wait. Locking again
    /// changes the lock's kind.
    ///
    /// # Errors
    /// The host can't lock this file.
    pub fn lock(&self, lock: Lock) -> std::io::Result<Locked> {
        let operation = match lock {
            Lock::Shared => FlockOperation::NonBlockingLockShared,
            Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(&self.file, operation) {
            Ok(()) => {
                self.locked_by.store(std::process::id(), Ordering::Relaxed);
                Ok(Locked::Yes)
            }
            Err(Errno::WOULDBLOCK) => Ok(Locked::HeldElsewhere),
            Err(error) => Err(error.into()),
        }
    }

    /// Device and inode number of the file on the host, which tell whether two paths are one
    /// file.
    ///
    /// # Errors
    /// The host can't tell.
    pub fn identity(&self) -> std::io::Result<(u64, u64)> {
        let metadata = self.file.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Checks a request and gives its position in the host's file.
    fn position(&self, operation: Operation, offset: u64, length: u64) -> Result<u64> {
        let error = |source| DeviceError {
            operation,
            offset,
            length,
            source,
        };
        if self.read_only && operation != Operation::Read {
            return Err(error(Errno::ROFS.into()));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(self.offset + offset),
            _ => Err(error(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                "past the end of the device",
            ))),
        }
    }

    /// Writes zeros the plain way; `position` is in the host's file.
    fn write_zero_bytes(&self, mut position: u64, mut length: u64) -> std::io::Result<()> {
        let alignment = self.direct.map_or(1, |direct| direct.memory);
        let chunk = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(ZERO_BYTES_MAX);
        let zeros = AlignedBytes::zeroed(chunk, alignment);
        while length > 0 {
            let now = length.min(chunk as u64);
            self.write_at(position, &[IoSlice::new(&zeros[..now as usize])])?;
            position += now;
            length -= now;
        }
        Ok(())
    }

    fn read_at(&self, position: u64, buffers: &mut [IoSliceMut<'_>]) -> std::io::Result<()> {
        match self.direct {
            None => transfer::read_full(&self.file, position, buffers),
            Some(alignment) => direct::read(&self.file, alignment, position, buffers),
        }
    }

    fn write_at(&self, position: u64, buffers: &[IoSlice<'_>]) -> std::io::Result<()> {
        match self.direct {
            None => transfer::write_full(&self.file, position, buffers),
            Some(alignment) => direct::write(&self.file, alignment, &self.edges, position, buffers),
        }
    }

    /// Runs fallocate, which signals may interrupt.
    fn fallocate(
        &self,
        mode: FallocateFlags,
        position: u64,
        length: u64,
    ) -> rustix::io::Result<()> {
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.file, mode, position, length))
    }
}

/// The host, or its file system, does not know this kind of fallocate at all.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV)
}

impl Device for FileDevice {
    fn size(&self) -> u64 {
        self.length
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: self.read_only,
            alignment: self.direct.map_or(1, |direct| direct.capability()),
            discard: !self.read_only && !self.no_discard.load(Ordering::Acquire),
            write_zeroes: !self.read_only && !self.no_write_zeroes.load(Ordering::Acquire),
            queue_depth: QUEUE_DEPTH,
        }
    }

    fn read_vectored(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let position = self.position(Operation::Read, offset, length)?;
        self.read_at(position, buffers)
            .map_err(|source| DeviceError {
                operation: Operation::Read,
                offset,
                length,
                source,
            })
    }

    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let position = self.position(Operation::Write, offset, length)?;
        self.write_at(position, buffers)
            .map_err(|source| DeviceError {
                operation: Operation::Write,
                offset,
                length,
                source,
            })
    }

    /// fdatasync. Once it has failed it keeps failing with the first error: the host may have
    /// dropped what it could not write, and says so only once.
    fn flush(&self) -> Result<()> {
        let error = |source| DeviceError {
            operation: Operation::Flush,
            offset: 0,
            length: self.length,
            source,
        };
        if self.read_only {
            return Ok(());
        }
        let failed = self.flush_failed.load(Ordering::Acquire);
        if failed != 0 {
            return Err(error(std::io::Error::from_raw_os_error(
                failed.cast_signed(),
            )));
        }
        rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.file)).map_err(|errno| {
            let raw = errno.raw_os_error().cast_unsigned();
            let first = self
                .flush_failed
                .compare_exchange(0, raw, Ordering::AcqRel, Ordering::Acquire)
                .map_or_else(|first| first, |_| raw);
            error(std::io::Error::from_raw_os_error(first.cast_signed()))
        })
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        let position = self.position(Operation::Discard, offset, length)?;
        if length == 0 || self.no_discard.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.fallocate(
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            position,
            length,
        ) {
            Ok(()) => Ok(()),
            Err(error) if is_unsupported(error) => {
                self.no_discard.store(true, Ordering::Release);
                Ok(())
            }
            // A block device discards whole sectors only; a discard is advice.
            Err(Errno::INVAL) => Ok(()),
            Err(error) => Err(DeviceError {
                operation: Operation::Discard,
                offset,
                length,
                source: error.into(),
            }),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        let position = self.position(Operation::WriteZeroes, offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let outcome = if self.no_write_zeroes.load(Ordering::Acquire) {
            self.write_zero_bytes(position, length)
        } else {
            match self.fallocate(
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                position,
                length,
            ) {
                Ok(()) => Ok(()),
                Err(error) if is_unsupported(error) => {
                    self.no_write_zeroes.store(true, Ordering::Release);
                    self.write_zero_bytes(position, length)
                }
                // A block device zeroes whole sectors only.
                Err(Errno::INVAL) => self.write_zero_bytes(position, length),
                Err(error) => Err(error.into()),
            }
        };
        outcome.map_err(|source| DeviceError {
            operation: Operation::WriteZeroes,
            offset,
            length,
            source,
        })
    }
}

#[cfg(test)]
mod tests;
