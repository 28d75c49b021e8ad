//! The ioctls that are answered, on files and directories.
//!
//! FUSE passes only ioctls whose number tells direction and size, and takes no lock. Answered are
//! Linux's GETFLAGS, SETFLAGS, GETVERSION, FSGETXATTR, FSSETXATTR and FITRIM, and some of our own:
//! [`EXTENTS`], which stands for FIEMAP (FUSE never passes FIEMAP on), [`FALLOCATE`], which stands for
//! fallocate(2), of which the kernel passes on some modes only, those of [`crate::move_extents`],
//! which move a file's data to other blocks, those of [`mod@crate::check`], and that of
//! [`crate::map_door`], the way to a map. All numbers are in the byte order of the machine.
//!
//! # `EXTENTS`: the extent map
//!
//! `_IOWR(0xF7, 1, 16352 bytes)`. A header, then room for [`EXTENTS_AT_ONCE`] extents:
//!
//! | at | size | header field | |
//! |---|---|---|---|
//! | 0 | 8 | offset | in: first byte of the file asked for |
//! | 8 | 8 | length | in: how many bytes from there on, not 0; `u64::MAX` for all |
//! | 16 | 4 | count | out: extents that follow |
//! | 20 | 4 | flags | out: bit 0: no extents of the range are left |
//! | 24 | 8 | reserved | 0 |
//!
//! | at | size | extent field | |
//! |---|---|---|---|
//! | 0 | 8 | logical | offset in the file, bytes |
//! | 8 | 8 | physical | offset in the image, bytes; 0 for inline data |
//! | 16 | 8 | length | bytes |
//! | 24 | 4 | state | 0 written, 1 unwritten (reads as zeros), 2 inline |
//! | 28 | 4 | reserved | 0 |
//!
//! Extents ascend; holes are left out. Without bit 0 ask again, from where the last extent ends.
//! Fewer bytes than 16352 may be written back: those that hold something.
//!
//! # `FALLOCATE`: what fallocate(2) does not pass on
//!
//! `_IOW(0xF7, 2, 24 bytes)`, on a file open for writing ([`fallocate`] is the call):
//!
//! | at | size | field | |
//! |---|---|---|---|
//! | 0 | 8 | offset | bytes |
//! | 8 | 8 | length | bytes, not 0 |
//! | 16 | 4 | mode | as fallocate(2): FALLOC_FL_KEEP_SIZE and so on |
//! | 20 | 4 | reserved | 0 |
//!
//! Collapsing or inserting a range moves what the kernel has cached of the file behind it. It drops
//! its pages soon after; who opens the file after the call sees none of the old ones at once. What
//! programs stored into a shared map and did not sync before may be lost or misplaced, as with any
//! change below the kernel's cache.

use std::io;
use std::os::fd::AsFd;

use fuser::{Errno, FileHandle, INodeNo, Request};
use pagefence_vfs::{
    Credentials, Error, ExtentInfo, ExtentState, FileKind, FileSystem, Fsxattr, InodeId,
};

use crate::check::{CHECK_BEGIN, CHECK_NEWS};
use crate::dispatch::Dispatch;
use crate::errno::errno;
use crate::map_door::MAP_TICKET;
use crate::move_extents::{DONATE, MOVE_EXTENTS};

/// `_IOC` of Linux (all architectures but alpha, mips, powerpc, sparc).
pub(crate) const fn ioc(direction: u32, kind: u8, number: u8, size: u32) -> u32 {
    assert!(size < 1 << 14, "the size has 14 bits");
    direction << 30 | size << 16 | (kind as u32) << 8 | number as u32
}

const WRITE: u32 = 1;
pub(crate) const READ: u32 = 2;
pub(crate) const READ_WRITE: u32 = 3;

const FS_IOC_GETFLAGS: u32 = ioc(READ, b'f', 1, 8);
const FS_IOC32_GETFLAGS: u32 = ioc(READ, b'f', 1, 4);
const FS_IOC_GETVERSION: u32 = ioc(READ, b'v', 1, 8);
const FS_IOC32_GETVERSION: u32 = ioc(READ, b'v', 1, 4);
const EXT4_IOC_GETVERSION: u32 = ioc(READ, b'f', 3, 8);
const EXT4_IOC32_GETVERSION: u32 = ioc(READ, b'f', 3, 4);
const FS_IOC_FSGETXATTR: u32 = ioc(READ, b'X', 31, 28);
const FS_IOC_SETFLAGS: u32 = ioc(WRITE, b'f', 2, 8);
const FS_IOC32_SETFLAGS: u32 = ioc(WRITE, b'f', 2, 4);
const FS_IOC_FSSETXATTR: u32 = ioc(WRITE, b'X', 32, 28);
const FITRIM: u32 = ioc(READ_WRITE, b'X', 121, 24);

const HEADER_BYTES: usize = 32;
const EXTENT_BYTES: usize = 32;

/// Most extents in one answer.
pub const EXTENTS_AT_ONCE: usize = 510;

/// Number of the extent map's ioctl.
pub const EXTENTS: u32 = ioc(
    READ_WRITE,
    0xf7,
    1,
    (HEADER_BYTES + EXTENTS_AT_ONCE * EXTENT_BYTES) as u32,
);

/// In `flags` of the header: no extents of the range are left.
pub const EXTENTS_LAST: u32 = 1;

const FALLOCATE_BYTES: usize = 24;

/// Number of the ioctl that does what fallocate(2) does.
pub const FALLOCATE: u32 = ioc(WRITE, 0xf7, 2, FALLOCATE_BYTES as u32);

/// As fallocate(2) on a file of a mount that this crate serves, with every mode: what the kernel
/// would refuse before it asks the server (FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE), too.
/// The file is open for writing. What it has in memory maps is to be synced before, and the file
/// to be opened once more after: see the module's documentation.
///
/// # Errors
/// Those of fallocate(2); ENOTTY if the file is not on such a mount.
pub fn fallocate(file: impl AsFd, mode: u32, offset: u64, length: u64) -> io::Result<()> {
    let mut bytes = [0; FALLOCATE_BYTES];
    bytes[..8].copy_from_slice(&offset.to_ne_bytes());
    bytes[8..16].copy_from_slice(&length.to_ne_bytes());
    bytes[16..20].copy_from_slice(&mode.to_ne_bytes());
    pagefence_host_memory::fuse_ioctl(file, FALLOCATE, &mut bytes)
}

/// What a file of a mount that this crate serves has in the image, in ascending order, without holes:
/// what was written and not synced yet is left out.
///
/// # Errors
/// ENOTTY if the file is not on such a mount; EIO for an answer that makes no sense.
pub fn extents(file: impl AsFd) -> io::Result<Vec<ExtentInfo>> {
    let file = file.as_fd();
    let mut all = Vec::new();
    let mut offset = 0u64;
    loop {
        let mut bytes = vec![0; HEADER_BYTES + EXTENTS_AT_ONCE * EXTENT_BYTES];
        bytes[..8].copy_from_slice(&offset.to_ne_bytes());
        bytes[8..16].copy_from_slice(&u64::MAX.to_ne_bytes());
        pagefence_host_memory::fuse_ioctl(file, EXTENTS, &mut bytes)?;
        let is_last = decode_extents(&bytes, &mut all).ok_or(rustix::io::Errno::IO)?;
        let next = all
            .last()
            .map_or(0, |last| last.logical.saturating_add(last.length));
        if is_last {
            return Ok(all);
        }
        if next <= offset {
            return Err(rustix::io::Errno::IO.into());
        }
        offset = next;
    }
}

impl<F: FileSystem> Dispatch<F> {
    /// Answers an ioctl on an open file or directory, by its node and handle; at most `output_size`
    /// bytes.
    pub(crate) fn control(
        &self,
        request: &Request,
        place: (INodeNo, FileHandle),
        command: u32,
        input: &[u8],
        output_size: u32,
    ) -> Result<Vec<u8>, Errno> {
        let (node, handle) = place;
        let id = self.nodes.inode(node)?;
        let mut output = match command {
            // An int, though the number says long: that is what programs have room for, and all
            // that Linux's own file systems write.
            FS_IOC_GETFLAGS | FS_IOC32_GETFLAGS => {
                let attr = self.fs.attr(id).map_err(|error| errno(&error))?;
                attr.flags.to_ne_bytes().to_vec()
            }
            FS_IOC_GETVERSION
            | FS_IOC32_GETVERSION
            | EXT4_IOC_GETVERSION
            | EXT4_IOC32_GETVERSION => {
                let attr = self.fs.attr(id).map_err(|error| errno(&error))?;
                attr.generation.to_ne_bytes().to_vec()
            }
            FS_IOC_FSGETXATTR => {
                let found = self.fs.fsxattr(id).map_err(|error| errno(&error))?;
                let fields = [
                    found.xflags,
                    found.extent_size,
                    found.extents,
                    found.project,
                ];
                // After these, the extent size hint of copy on write, and room to grow.
                let mut output: Vec<u8> = fields.iter().flat_map(|f| f.to_ne_bytes()).collect();
                output.resize(28, 0);
                output
            }
            EXTENTS => {
                let offset = field(input, 0)?;
                let length = field(input, 8)?.min(u64::MAX - offset);
                if length == 0 {
                    return Err(Errno::EINVAL);
                }
                // One more than fits tells whether any are left.
                let found = self
                    .fs
                    .extents(id, offset, length, EXTENTS_AT_ONCE + 1)
                    .map_err(|error| errno(&error))?;
                encode_extents(offset, length, &found)
            }
            FS_IOC_SETFLAGS | FS_IOC32_SETFLAGS => {
                let (flags, who) = (word(input, 0)?, self.credentials(request));
                self.check_owner(id, &who)
                    .and_then(|()| self.fs.set_flags(id, flags, &who))
                    .map_err(|error| errno(&error))?;
                self.attributes_changed(node);
                Vec::new()
            }
            FS_IOC_FSSETXATTR => {
                let attributes = Fsxattr {
                    xflags: word(input, 0)?,
                    extent_size: word(input, 4)?,
                    extents: word(input, 8)?,
                    project: word(input, 12)?,
                };
                let who = self.credentials(request);
                self.check_owner(id, &who)
                    .and_then(|()| self.fs.set_fsxattr(id, &attributes, &who))
                    .map_err(|error| errno(&error))?;
                self.attributes_changed(node);
                Vec::new()
            }
            FALLOCATE => {
                let (offset, length) = (field(input, 0)?, field(input, 8)?);
                let mode = word(input, 16)?.cast_signed();
                if word(input, 20)? != 0 {
                    return Err(Errno::EINVAL);
                }
                self.check_regular(id)?;
                self.move_range(request, node, handle, offset, length, mode)?;
                Vec::new()
            }
            DONATE => self.donate(node, handle)?,
            CHECK_BEGIN => self.begin_check(request, node, handle)?,
            CHECK_NEWS => self.check_news(node, handle)?,
            MAP_TICKET => self.map_ticket(node, handle)?,
            MOVE_EXTENTS => self.move_extents(node, handle, input)?,
            FITRIM => {
                if self.credentials(request).uid != 0 {
                    return Err(Errno::EPERM);
                }
                let (offset, length, least) =
                    (field(input, 0)?, field(input, 8)?, field(input, 16)?);
                let told = self
                    .fs
                    .trim(offset, length, least)
                    .map_err(|error| errno(&error))?;
                let fields = [offset, told, least];
                fields.iter().flat_map(|f| f.to_ne_bytes()).collect()
            }
            _ => return Err(Errno::ENOTTY),
        };
        output.truncate(output_size as usize);
        Ok(output)
    }

    /// Handles of files and of directories are numbered apart: what works on an open file has to
    /// know that the handle is one.
    pub(crate) fn check_regular(&self, id: InodeId) -> Result<(), Errno> {
        let attr = self.fs.attr(id).map_err(|error| errno(&error))?;
        match attr.kind {
            FileKind::Regular => Ok(()),
            _ => Err(Errno::EBADF),
        }
    }

    /// Flags are for the owner and root to set. Linux checks that itself, but not before 5.13.
    fn check_owner(&self, id: InodeId, who: &Credentials) -> pagefence_vfs::Result<()> {
        let owner = match self.overrides.uid {
            Some(shown) => shown,
            None => self.fs.attr(id)?.uid,
        };
        if who.uid == 0 || who.uid == owner {
            Ok(())
        } else {
            Err(Error::NotPermitted)
        }
    }
}

/// Whether an ioctl may change something.
pub(crate) fn changes(command: u32) -> bool {
    matches!(
        command,
        FS_IOC_SETFLAGS | FS_IOC32_SETFLAGS | FS_IOC_FSSETXATTR | FITRIM | FALLOCATE | MOVE_EXTENTS
    )
}

/// The eight bytes at `at`.
pub(crate) fn field(input: &[u8], at: usize) -> Result<u64, Errno> {
    let bytes = input.get(at..at + 8).ok_or(Errno::EINVAL)?;
    Ok(u64::from_ne_bytes(
        bytes.try_into().map_err(|_| Errno::EINVAL)?,
    ))
}

/// A number of 32 bits at byte `at` of what an ioctl brought.
fn word(input: &[u8], at: usize) -> Result<u32, Errno> {
    let bytes = input.get(at..at + 4).ok_or(Errno::EINVAL)?;
    Ok(u32::from_ne_bytes(
        bytes.try_into().map_err(|_| Errno::EINVAL)?,
    ))
}

fn encode_extents(offset: u64, length: u64, found: &[ExtentInfo]) -> Vec<u8> {
    let here = &found[..found.len().min(EXTENTS_AT_ONCE)];
    let last = if found.len() > EXTENTS_AT_ONCE {
        0
    } else {
        EXTENTS_LAST
    };
    let mut output = Vec::with_capacity(HEADER_BYTES + here.len() * EXTENT_BYTES);
    output.extend_from_slice(&offset.to_ne_bytes());
    output.extend_from_slice(&length.to_ne_bytes());
    output.extend_from_slice(&(here.len() as u32).to_ne_bytes());
    output.extend_from_slice(&last.to_ne_bytes());
    output.extend_from_slice(&0u64.to_ne_bytes());
    for extent in here {
        let state: u32 = match extent.state {
            ExtentState::Written => 0,
            ExtentState::Unwritten => 1,
            ExtentState::Inline => 2,
        };
        output.extend_from_slice(&extent.logical.to_ne_bytes());
        output.extend_from_slice(&extent.physical.to_ne_bytes());
        output.extend_from_slice(&extent.length.to_ne_bytes());
        output.extend_from_slice(&state.to_ne_bytes());
        output.extend_from_slice(&0u32.to_ne_bytes());
    }
    output
}

/// Puts the extents of an answer behind those in `all`. Whether it is the last answer; nothing if it
/// makes no sense.
fn decode_extents(bytes: &[u8], all: &mut Vec<ExtentInfo>) -> Option<bool> {
    let count = word(bytes, 16).ok()? as usize;
    let (extents, _) = bytes.get(HEADER_BYTES..)?.as_chunks::<EXTENT_BYTES>();
    for extent in extents.get(..count)? {
        all.push(ExtentInfo {
            logical: field(extent, 0).ok()?,
            physical: field(extent, 8).ok()?,
            length: field(extent, 16).ok()?,
            state: match word(extent, 24).ok()? {
                0 => ExtentState::Written,
                1 => ExtentState::Unwritten,
                2 => ExtentState::Inline,
                _ => return None,
            },
        });
    }
    Some(word(bytes, 20).ok()? & EXTENTS_LAST != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_linux() {
        assert_eq!(FS_IOC_GETFLAGS, 0x8008_6601);
        assert_eq!(FS_IOC32_GETFLAGS, 0x8004_6601);
        assert_eq!(FS_IOC_GETVERSION, 0x8008_7601);
        assert_eq!(FS_IOC_FSGETXATTR, 0x801c_581f);
        assert_eq!(FS_IOC_SETFLAGS, 0x4008_6602);
        assert_eq!(FS_IOC_FSSETXATTR, 0x401c_5820);
        assert_eq!(FITRIM, 0xc018_5879);
        assert_eq!(EXTENTS, 0xffe0_f701);
        assert_eq!(FALLOCATE, 0x4018_f702);
    }

    #[test]
    fn an_answer_fits_and_tells_whether_it_is_the_last() {
        let extent = ExtentInfo {
            logical: 4096,
            physical: 8192,
            length: 4096,
            state: ExtentState::Unwritten,
        };
        let all = encode_extents(7, 9, &[extent; EXTENTS_AT_ONCE]);
        assert_eq!(all.len(), 16352);
        assert_eq!(field(&all, 16).ok(), Some(510 | 1 << 32));
        let more = encode_extents(7, 9, &[extent; EXTENTS_AT_ONCE + 1]);
        assert_eq!(more.len(), 16352);
        assert_eq!(field(&more, 16).ok(), Some(510));
        assert_eq!(field(&more, HEADER_BYTES + 24).ok(), Some(1));
        assert!(field(&[0; 15], 8).is_err());
        let mut found = Vec::new();
        assert_eq!(decode_extents(&more, &mut found), Some(false));
        assert_eq!(decode_extents(&all, &mut found), Some(true));
        assert_eq!(found, [extent; 2 * EXTENTS_AT_ONCE]);
        assert_eq!(decode_extents(&more[..HEADER_BYTES], &mut found), None);
    }
}
