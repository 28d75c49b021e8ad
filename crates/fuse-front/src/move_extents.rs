//! Moving a file's data to the blocks of another one on a mount: what ext4 does by EXT4_IOC_MOVE_EXT,
//! as two ioctls of our own.
//!
//! EXT4_IOC_MOVE_EXT itself is not answered. It names the donor by a descriptor of the calling
//! process, of which FUSE tells a server nothing, and what /proc tells of one may be of another file a
//! moment later. e4defrag, for which it was made, refuses what statfs(2) does not call ext4, and needs
//! FIEMAP, which FUSE does not pass on. So the donor is named by what a request on itself was
//! answered: only who has it open for writing gets that.
//!
//! # `DONATE`: names a donor
//!
//! `_IOR(0xF7, 3, 24 bytes)`, on a file that is open for writing ([`donate`] is the call). The answer
//! is 24 bytes that mean something to this server only, and only until the file is closed.
//!
//! # `MOVE_EXTENTS`: moves data to a donor's blocks
//!
//! `_IOWR(0xF7, 4, 56 bytes)`, on a file that is open for reading and writing
//! ([`move_extents`] is the call):
//!
//! | at | size | field | |
//! |---|---|---|---|
//! | 0 | 24 | donor | in: what `DONATE` answered |
//! | 24 | 8 | offset | in: bytes, in the file; a multiple of the block size |
//! | 32 | 8 | donor offset | in: bytes, in the donor; as well |
//! | 40 | 8 | length | in: bytes, not 0; as well |
//! | 48 | 8 | moved | out: bytes from `offset` on that are done |
//!
//! The file reads the same before, after and meanwhile, whoever reads or writes it; its times stay.
//! Where both have blocks, they change places: the donor reads as zeros there. Where either has a hole,
//! nothing happens. What lies behind the end of either is left out. No more than 64 MiB are done at a
//! time, and fewer if something fails behind them, so ask again from there.
//!
//! The kernel keeps its pages of the file, which are not out of date; it drops those of the donor soon
//! after, as with [`crate::ioctl::FALLOCATE`].

use std::io;
use std::os::fd::AsFd;

use fuser::{Errno, FileHandle, INodeNo};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::FileSystem;

use crate::dispatch::Dispatch;
use crate::errno::errno;
use crate::files::OpenFile;
use crate::ioctl::{READ, READ_WRITE, field, ioc};

const DONOR_BYTES: usize = 24;
const MOVE_BYTES: usize = DONOR_BYTES + 32;

/// Bytes that are moved by one request.
const LENGTH_MAX: u64 = 64 << 20;

/// Number of the ioctl that names a donor.
pub const DONATE: u32 = ioc(READ, 0xf7, 3, DONOR_BYTES as u32);

/// Number of the ioctl that moves data.
pub const MOVE_EXTENTS: u32 = ioc(READ_WRITE, 0xf7, 4, MOVE_BYTES as u32);

/// Set-user-id and set-group-id.
const PRIVILEGES: u16 = 0o6000;

/// A file that gives its blocks to others, as long as it is open.
#[derive(Clone, Copy, Debug)]
pub struct Donor([u8; DONOR_BYTES]);

/// Names a file as a donor: one of a mount that this crate serves, open for writing.
///
/// # Errors
/// EBADF if it is not open for writing, or no regular file; ENOTTY if it is not on such a mount.
pub fn donate(file: impl AsFd) -> io::Result<Donor> {
    let mut bytes = [0; DONOR_BYTES];
    pagefence_host_memory::fuse_ioctl(file, DONATE, &mut bytes)?;
    Ok(Donor(bytes))
}

/// Moves what `file` holds in `length` bytes from `offset` on to the blocks that `donor` has from
/// `donor_offset` on, see the module's documentation; returns for how many bytes that is done.
///
/// # Errors
/// EBADF if `file` is not open for reading and writing, or the donor was closed or is not of this mount; EINVAL if
/// both are one file, if the offsets or the length are not multiples of the block size or nothing of
/// either is left there, or if the donor is set-user-id or set-group-id; EPERM if one of them is
/// immutable or append-only; EOPNOTSUPP if one of them has no extents, or can't part with its blocks;
/// ENOSPC; ENOTTY if `file` is not on such a mount.
pub fn move_extents(
    file: impl AsFd,
    offset: u64,
    donor: &Donor,
    donor_offset: u64,
    length: u64,
) -> io::Result<u64> {
    let mut bytes = [0; MOVE_BYTES];
    let (named, numbers) = bytes.split_at_mut(DONOR_BYTES);
    named.copy_from_slice(&donor.0);
    for (slot, number) in numbers
        .chunks_exact_mut(8)
        .zip([offset, donor_offset, length])
    {
        slot.copy_from_slice(&number.to_ne_bytes());
    }
    pagefence_host_memory::fuse_ioctl(file, MOVE_EXTENTS, &mut bytes)?;
    let moved = field(&bytes, MOVE_BYTES - 8).map_err(|_| rustix::io::Errno::IO)?;
    Ok(moved.min(length))
}

impl<F: FileSystem> Dispatch<F> {
    /// A regular file that is open for writing.
    fn writable(&self, node: INodeNo, handle: FileHandle) -> Result<Arc<OpenFile<F>>, Errno> {
        self.check_regular(self.nodes.inode(node)?)?;
        let file = self.files.get(handle.0).ok_or(Errno::EBADF)?;
        if file.writes {
            Ok(file)
        } else {
            Err(Errno::EBADF)
        }
    }

    /// Answers [`DONATE`].
    pub(crate) fn donate(&self, node: INodeNo, handle: FileHandle) -> Result<Vec<u8>, Errno> {
        self.writable(node, handle)?;
        let proof = self.files.proof(handle.0, node.0);
        let named = [node.0, handle.0, proof];
        Ok(named.iter().flat_map(|f| f.to_ne_bytes()).collect())
    }

    /// Answers [`MOVE_EXTENTS`].
    pub(crate) fn move_extents(
        &self,
        node: INodeNo,
        handle: FileHandle,
        input: &[u8],
    ) -> Result<Vec<u8>, Errno> {
        let file = self.writable(node, handle)?;
        // Half-way the donor may have what the file has.
        if !file.reads {
            return Err(Errno::EBADF);
        }
        let donor_node = INodeNo(field(input, 0)?);
        let donor_handle = FileHandle(field(input, 8)?);
        if field(input, 16)? != self.files.proof(donor_handle.0, donor_node.0) {
            return Err(Errno::EBADF);
        }
        let donor = self.writable(donor_node, donor_handle)?;
        let (offset, donor_offset) = (field(input, 24)?, field(input, 32)?);
        let length = field(input, 40)?.min(LENGTH_MAX);
        let donor_id = self.nodes.inode(donor_node)?;
        let attr = self.fs.attr(donor_id).map_err(|error| errno(&error))?;
        if attr.permissions & PRIVILEGES != 0 {
            return Err(Errno::EINVAL);
        }
        let change = self.stale_pages.begin(donor_node, donor_offset, 0);
        let outcome = self
            .fs
            .move_blocks(&file, offset, &donor, donor_offset, length);
        // Also after an error: half of it may have been done.
        change.tell();
        self.attributes_changed(node);
        self.attributes_changed(donor_node);
        let moved = outcome.map_err(|error| errno(&error))?;
        let mut output = input.to_vec();
        output
            .get_mut(MOVE_BYTES - 8..MOVE_BYTES)
            .ok_or(Errno::EINVAL)?
            .copy_from_slice(&moved.to_ne_bytes());
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_tell_direction_and_size() {
        assert_eq!(DONATE, 0x8018_f703);
        assert_eq!(MOVE_EXTENTS, 0xc038_f704);
    }
}
