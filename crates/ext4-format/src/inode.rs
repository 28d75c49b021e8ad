//! Inodes: the record of a file, checked, and its fields in and out.

mod device;
mod fields;
mod flags;
mod raw;
#[cfg(test)]
mod tests;
mod time;

use std::mem::offset_of;
use std::ops::Range;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

pub use self::device::DeviceNo;
pub use self::flags::InodeFlags;
pub use self::raw::{RawInode, RawInodeExtra};
pub use self::time::{MAX_SECONDS, MAX_SECONDS_SHORT, MIN_SECONDS, Timestamp};
use crate::checksum::{ChecksumSeed, crc32c};
use crate::error::Corruption;
use crate::features::{Incompat, RoCompat};
use crate::ids::{BlockNo, InodeNo};
use crate::num::{hi16, join16, lo16};
use crate::superblock::Superblock;

/// Bytes of the part that every record has.
const BASE_BYTES: usize = size_of::<RawInode>();
/// Bytes of the extra fields known here.
const EXTRA_BYTES: usize = size_of::<RawInodeExtra>();
/// End of `i_checksum_hi` in the extra fields.
const CHECKSUM_HI_END: usize = 4;
/// Where the fields of a time lie: in [`RawInode`], and in [`RawInodeExtra`].
type TimeFields = (usize, usize);
/// The times that change while others change the inode.
const TIMES: [TimeFields; 3] = [
    (
        offset_of!(RawInode, i_atime),
        offset_of!(RawInodeExtra, i_atime_extra),
    ),
    (
        offset_of!(RawInode, i_ctime),
        offset_of!(RawInodeExtra, i_ctime_extra),
    ),
    (
        offset_of!(RawInode, i_mtime),
        offset_of!(RawInodeExtra, i_mtime_extra),
    ),
];
/// `s_creator_os` of the Hurd, which keeps other things in the fields of 48-bit block numbers.
const OS_HURD: u32 = 1;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A pipe with a name.
    Fifo,
    /// A character device.
    CharDevice,
    /// A directory.
    Directory,
    /// A block device.
    BlockDevice,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A socket.
    Socket,
}

impl FileKind {
    /// The kind in the top four bits of a mode; nothing if they name none.
    #[must_use]
    pub fn from_mode(mode: u16) -> Option<Self> {
        match mode >> 12 {
            0x1 => Some(Self::Fifo),
            0x2 => Some(Self::CharDevice),
            0x4 => Some(Self::Directory),
            0x6 => Some(Self::BlockDevice),
            0x8 => Some(Self::Regular),
            0xA => Some(Self::Symlink),
            0xC => Some(Self::Socket),
            _ => None,
        }
    }

    /// The top four bits of a mode, in their place.
    #[must_use]
    pub fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0x1000,
            Self::CharDevice => 0x2000,
            Self::Directory => 0x4000,
            Self::BlockDevice => 0x6000,
            Self::Regular => 0x8000,
            Self::Symlink => 0xA000,
            Self::Socket => 0xC000,
        }
    }
}

/// What the fields of an inode depend on in its file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context {
    seed: ChecksumSeed,
    metadata_csum: bool,
    huge_file: bool,
    large_dir: bool,
    ea_inode: bool,
    hurd: bool,
    block_size_bits: u32,
    sectors_per_cluster: u32,
    want_extra_isize: u16,
}

impl Context {
    fn new(sb: &Superblock) -> Self {
        Self {
            seed: sb.checksum_seed(),
            metadata_csum: sb.has_metadata_csum(),
            huge_file: sb.has_ro_compat(RoCompat::HUGE_FILE),
            large_dir: sb.has_incompat(Incompat::LARGE_DIR),
            ea_inode: sb.has_incompat(Incompat::EA_INODE),
            hurd: sb.raw().s_creator_os == OS_HURD,
            block_size_bits: sb.block_size_bits(),
            sectors_per_cluster: sb.cluster_size() / 512,
            want_extra_isize: want_extra_isize(sb),
        }
    }
}

/// Extra bytes of new inodes: what the superblock wants if it can be had, else the fields known
/// here; none in records of 128 bytes.
fn want_extra_isize(sb: &Superblock) -> u16 {
    let room = sb.inode_size().saturating_sub(BASE_BYTES);
    let wanted = sb
        .raw()
        .s_want_extra_isize
        .get()
        .max(sb.raw().s_min_extra_isize.get());
    let fits = wanted >= 4 && wanted.is_multiple_of(4) && usize::from(wanted) <= room;
    if fits {
        wanted
    } else {
        u16::try_from(EXTRA_BYTES.min(room)).unwrap_or(0)
    }
}

/// An inode's record that passed its checks.
///
/// Owns: the whole record, attributes and unknown bytes included, so that writing it back
/// changes nothing but what was set. Outside: reading and writing it, and what `i_block` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    ino: InodeNo,
    base: RawInode,
    /// The record from byte 128 on.
    rest: Box<[u8]>,
    /// Bytes of `rest` that hold fields.
    extra_isize: usize,
    context: Context,
}

impl Inode {
    /// Checks the record of `ino`, the first `s_inode_size` bytes of `bytes`.
    ///
    /// A record of zeros, never used, passes and has no [kind](Self::kind).
    ///
    /// # Errors
    /// [`Corruption::Truncated`], [`Corruption::InodeExtraSize`], [`Corruption::Checksum`],
    /// [`Corruption::InodeMode`], [`Corruption::FileSize`], or [`Corruption::NumberRange`] of the
    /// attribute block.
    pub fn parse(bytes: &[u8], ino: InodeNo, sb: &Superblock) -> Result<Self, Corruption> {
        let inode = Self::read(bytes, ino, sb)?;
        inode.check_checksum()?;
        let mode = inode.base.i_mode.get();
        if mode >> 12 != 0 && FileKind::from_mode(mode).is_none() {
            return Err(Corruption::InodeMode { mode });
        }
        // Offsets in files are signed.
        if i64::try_from(inode.size()).is_err() {
            return Err(Corruption::FileSize { size: inode.size() });
        }
        if let Some(block) = inode.file_acl().filter(|block| !sb.contains_block(*block)) {
            let (number, count) = (block.0, sb.blocks_count());
            return Err(Corruption::NumberRange {
                what: "attribute block",
                number,
                count,
            });
        }
        Ok(inode)
    }

    /// Reads a record, checking only that its fields fit into it.
    ///
    /// # Errors
    /// [`Corruption::Truncated`] or [`Corruption::InodeExtraSize`].
    pub fn read(bytes: &[u8], ino: InodeNo, sb: &Superblock) -> Result<Self, Corruption> {
        let needed = sb.inode_size();
        let truncated = Corruption::Truncated {
            what: "inode",
            needed,
            have: bytes.len(),
        };
        let record = bytes.get(..needed).ok_or(truncated.clone())?;
        let (base, rest) = RawInode::read_from_prefix(record).map_err(|_| truncated)?;
        let extra_isize = extra_isize(rest)?;
        Ok(Self {
            ino,
            base,
            rest: rest.into(),
            extra_isize,
            context: Context::new(sb),
        })
    }

    /// A record of zeros for a new file, with the extra fields that the superblock wants.
    /// `permissions` are the low twelve bits of the mode.
    #[must_use]
    pub fn create(
        ino: InodeNo,
        sb: &Superblock,
        kind: FileKind,
        permissions: u16,
        generation: u32,
    ) -> Self {
        let room = sb.inode_size().saturating_sub(BASE_BYTES);
        let mut inode = Self {
            ino,
            base: RawInode::new_zeroed(),
            rest: vec![0; room].into(),
            extra_isize: 0,
            context: Context::new(sb),
        };
        inode.ensure_extra();
        inode.base.i_mode = (kind.mode_bits() | (permissions & 0o7777)).into();
        inode.base.i_generation = generation.into();
        inode
    }

    /// The same record for another inode of the file system, and for another life of it.
    #[must_use]
    pub fn renumbered(&self, ino: InodeNo, generation: u32) -> Self {
        let mut inode = self.clone();
        inode.ino = ino;
        inode.base.i_generation = generation.into();
        inode
    }

    /// Its number.
    #[must_use]
    pub fn ino(&self) -> InodeNo {
        self.ino
    }

    /// The fields that every record has, as they lie on disk.
    #[must_use]
    pub fn raw(&self) -> &RawInode {
        &self.base
    }

    /// The extra fields; those that the record has not are zero.
    #[must_use]
    pub fn raw_extra(&self) -> RawInodeExtra {
        let mut extra = RawInodeExtra::new_zeroed();
        for (to, from) in extra.as_mut_bytes().iter_mut().zip(self.extra_bytes()) {
            *to = *from;
        }
        extra
    }

    /// Takes over what changed between `before` and `after`, two states of this inode: bytes that
    /// are equal in both stay as they are here. Access, change and modification time are taken
    /// over whole, or stay so.
    pub fn adopt(&mut self, before: &Self, after: &Self) {
        let times = TIMES.map(|time| {
            let changed = before.raw_time(time) != after.raw_time(time);
            (time, if changed { after } else { &*self }.raw_time(time))
        });
        let merge = |here: &mut [u8], before: &[u8], after: &[u8]| {
            for ((here, before), after) in here.iter_mut().zip(before).zip(after) {
                if before != after {
                    *here = *after;
                }
            }
        };
        merge(
            self.base.as_mut_bytes(),
            before.base.as_bytes(),
            after.base.as_bytes(),
        );
        merge(&mut self.rest, &before.rest, &after.rest);
        self.extra_isize = after.extra_isize;
        for (time, value) in times {
            self.set_raw_time(time, value);
        }
    }

    /// The two fields of a time; zeros for what the record has not.
    fn raw_time(&self, (low, extra): TimeFields) -> ([u8; 4], u32) {
        let low = self.base.as_bytes().get(low..);
        let low = low.and_then(|bytes| bytes.first_chunk().copied());
        (low.unwrap_or_default(), self.extra32(extra).unwrap_or(0))
    }

    fn set_raw_time(&mut self, (low, extra): TimeFields, (low_value, extra_value): ([u8; 4], u32)) {
        let field = self.base.as_mut_bytes().get_mut(low..);
        if let Some(field) = field.and_then(|bytes| bytes.first_chunk_mut()) {
            *field = low_value;
        }
        self.set_extra32(extra, extra_value);
    }

    /// Writes the record, all of its `s_inode_size` bytes, to the start of `out`.
    /// [`Self::update_checksum`] comes first.
    ///
    /// # Errors
    /// [`Corruption::Truncated`] if `out` is too short.
    pub fn write_to(&self, out: &mut [u8]) -> Result<(), Corruption> {
        let needed = BASE_BYTES.saturating_add(self.rest.len());
        let truncated = Corruption::Truncated {
            what: "inode",
            needed,
            have: out.len(),
        };
        let out = out.get_mut(..needed).ok_or(truncated)?;
        for (to, from) in out
            .iter_mut()
            .zip(self.base.as_bytes().iter().chain(&self.rest))
        {
            *to = *from;
        }
        Ok(())
    }

    /// The seed of everything that belongs to this inode: directory blocks, extent blocks.
    #[must_use]
    pub fn checksum_seed(&self) -> ChecksumSeed {
        self.context
            .seed
            .of_inode(self.ino, self.base.i_generation.get())
    }

    /// crc32c of the record, its own two fields taken as zero; of the low half only where there
    /// is no room for the high one. 0 without `metadata_csum`.
    #[must_use]
    pub fn compute_checksum(&self) -> u32 {
        if !self.context.metadata_csum {
            return 0;
        }
        let base = RawInode {
            l_i_checksum_lo: 0.into(),
            ..self.base.clone()
        };
        let checksum = crc32c(self.checksum_seed().0, base.as_bytes());
        if !self.has_checksum_hi() {
            return crc32c(checksum, &self.rest) & u32::from(u16::MAX);
        }
        let (before, from_field) = self.rest.split_at_checked(2).unwrap_or_default();
        let (_, after) = from_field.split_at_checked(2).unwrap_or_default();
        [before, &[0, 0], after].into_iter().fold(checksum, crc32c)
    }

    /// Recomputes the checksum, if the file system has one.
    pub fn update_checksum(&mut self) {
        if !self.context.metadata_csum {
            return;
        }
        let checksum = self.compute_checksum();
        self.base.l_i_checksum_lo = lo16(checksum).into();
        self.set_extra16(
            std::mem::offset_of!(RawInodeExtra, i_checksum_hi),
            hi16(checksum),
        );
    }

    /// Bytes of the extra fields that the record has: a multiple of 4, 0 in old records.
    #[must_use]
    pub fn extra_isize(&self) -> usize {
        self.extra_isize
    }

    /// Where attributes lie in the record, in bytes from its start, header included; nothing if
    /// there is no room for any. Records without extra fields have no attributes either.
    #[must_use]
    pub fn xattr_range(&self) -> Option<Range<usize>> {
        let region = self.xattr_region()?;
        let end = BASE_BYTES.saturating_add(self.rest.len());
        Some(end.saturating_sub(region.len())..end)
    }

    /// The bytes of [`Self::xattr_range`].
    #[must_use]
    pub fn xattr_region(&self) -> Option<&[u8]> {
        // The header is a magic number of 4 bytes.
        let region = self.rest.get(self.extra_isize..)?;
        (self.extra_isize > 0 && region.len() >= 4).then_some(region)
    }

    /// The bytes of [`Self::xattr_range`], to be changed.
    pub fn xattr_region_mut(&mut self) -> Option<&mut [u8]> {
        let region = self.rest.get_mut(self.extra_isize..)?;
        (self.extra_isize > 0 && region.len() >= 4).then_some(region)
    }

    /// Gives a record that has room but no extra fields, as ext3 wrote them, the fields that
    /// the superblock wants, zeroed. Changes nothing else.
    pub fn ensure_extra(&mut self) {
        let wanted = usize::from(self.context.want_extra_isize);
        if self.extra_isize != 0 || wanted == 0 || wanted > self.rest.len() {
            return;
        }
        // What lies behind the fields becomes the room of attributes: it must not look like any.
        self.rest.fill(0);
        self.extra_isize = wanted;
        self.set_extra16(
            std::mem::offset_of!(RawInodeExtra, i_extra_isize),
            self.context.want_extra_isize,
        );
    }

    /// Block of extended attributes.
    #[must_use]
    pub fn file_acl(&self) -> Option<BlockNo> {
        let high = if self.context.hurd {
            0
        } else {
            self.base.l_i_file_acl_high.get()
        };
        let block = (u64::from(high) << 32) | u64::from(self.base.i_file_acl_lo.get());
        (block != 0).then_some(BlockNo(block))
    }

    fn check_checksum(&self) -> Result<(), Corruption> {
        let high = if self.has_checksum_hi() {
            self.raw_extra().i_checksum_hi.get()
        } else {
            0
        };
        let stored = join16(self.base.l_i_checksum_lo.get(), high);
        let computed = self.compute_checksum();
        if !self.context.metadata_csum || stored == computed || self.base.is_unused() {
            return Ok(());
        }
        Err(Corruption::Checksum {
            what: "inode",
            stored,
            computed,
        })
    }

    fn has_checksum_hi(&self) -> bool {
        self.extra_isize >= CHECKSUM_HI_END
    }

    /// The extra fields that the record has, without those not known here.
    fn extra_bytes(&self) -> &[u8] {
        self.rest
            .get(..self.extra_isize.min(EXTRA_BYTES))
            .unwrap_or_default()
    }

    fn extra32(&self, offset: usize) -> Option<u32> {
        let bytes = self.extra_bytes().get(offset..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes))
    }

    /// Sets a field if the record has it, and says whether it does.
    fn set_extra32(&mut self, offset: usize, value: u32) -> bool {
        self.set_extra(offset, &value.to_le_bytes())
    }

    fn set_extra16(&mut self, offset: usize, value: u16) -> bool {
        self.set_extra(offset, &value.to_le_bytes())
    }

    fn set_extra(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let end = offset.saturating_add(bytes.len());
        if end > self.extra_isize {
            return false;
        }
        match self.rest.get_mut(offset..end) {
            Some(field) => {
                field.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }
}

/// `i_extra_isize` of what follows the first 128 bytes; 0 if nothing does.
fn extra_isize(rest: &[u8]) -> Result<usize, Corruption> {
    let Some(bytes) = rest.first_chunk::<2>() else {
        return Ok(0);
    };
    let extra_isize = u16::from_le_bytes(*bytes);
    if !extra_isize.is_multiple_of(4) || usize::from(extra_isize) > rest.len() {
        return Err(Corruption::InodeExtraSize {
            extra_isize,
            room: rest.len(),
        });
    }
    Ok(usize::from(extra_isize))
}
