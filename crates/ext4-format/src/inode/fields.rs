//! The fields of an inode in the terms of a file, in and out.

use std::mem::offset_of;

use super::{DeviceNo, FileKind, Inode, InodeFlags, RawInode, RawInodeExtra, Timestamp};
use crate::error::Corruption;
use crate::ids::{BlockNo, InodeNo};
use crate::num::{hi16, hi32, join16, join32, lo16, lo32};

/// Sectors, of 512 bytes, that `i_blocks` can count without blocks of the file system as unit.
const MAX_SECTORS: u64 = (1 << 48) - 1;

impl Inode {
    /// What it is; nothing if the record is unused, or of a reserved inode without a kind.
    #[must_use]
    pub fn kind(&self) -> Option<FileKind> {
        FileKind::from_mode(self.base.i_mode.get())
    }

    /// Kind and permissions, as in `st_mode`.
    #[must_use]
    pub fn mode(&self) -> u16 {
        self.base.i_mode.get()
    }

    /// Sets the permissions (the low twelve bits) and keeps the kind.
    pub fn set_permissions(&mut self, permissions: u16) {
        self.base.i_mode = ((self.mode() & 0xF000) | (permissions & 0o7777)).into();
    }

    /// User.
    #[must_use]
    pub fn uid(&self) -> u32 {
        join16(self.base.i_uid.get(), self.base.l_i_uid_high.get())
    }

    /// Sets the user.
    pub fn set_uid(&mut self, uid: u32) {
        self.base.i_uid = lo16(uid).into();
        self.base.l_i_uid_high = hi16(uid).into();
    }

    /// Group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        join16(self.base.i_gid.get(), self.base.l_i_gid_high.get())
    }

    /// Sets the group.
    pub fn set_gid(&mut self, gid: u32) {
        self.base.i_gid = lo16(gid).into();
        self.base.l_i_gid_high = hi16(gid).into();
    }

    /// Project, if the record has room for one.
    #[must_use]
    pub fn project(&self) -> Option<u32> {
        self.extra32(offset_of!(RawInodeExtra, i_projid))
    }

    /// Sets the project; false if the record has no room for it.
    pub fn set_project(&mut self, project: u32) -> bool {
        self.set_extra32(offset_of!(RawInodeExtra, i_projid), project)
    }

    /// Size in bytes. The high half counts for regular files, and with `large_dir` for all.
    #[must_use]
    pub fn size(&self) -> u64 {
        let wide = self.context.large_dir || self.kind() == Some(FileKind::Regular);
        let high = if wide { self.base.i_size_high.get() } else { 0 };
        join32(self.base.i_size_lo.get(), high)
    }

    /// Sets the size in bytes.
    pub fn set_size(&mut self, size: u64) {
        self.base.i_size_lo = lo32(size).into();
        self.base.i_size_high = hi32(size).into();
    }

    /// Links. 1 in a directory may mean: more than could be counted.
    #[must_use]
    pub fn links(&self) -> u16 {
        self.base.i_links_count.get()
    }

    /// Sets the links.
    pub fn set_links(&mut self, links: u16) {
        self.base.i_links_count = links.into();
    }

    /// Sectors of 512 bytes in use, attribute block and tree blocks included.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        if !self.context.huge_file {
            return u64::from(self.base.i_blocks_lo.get());
        }
        let count = join32(
            self.base.i_blocks_lo.get(),
            u32::from(self.base.l_i_blocks_high.get()),
        );
        if !self.flags().contains(InodeFlags::HUGE_FILE) {
            return count;
        }
        // 48 bits and a block size of at most 2^16: can't overflow.
        count.saturating_mul(self.sectors_per_block())
    }

    /// Sets the sectors in use, in whichever unit holds them (`HUGE_FILE` is set or cleared).
    ///
    /// # Errors
    /// [`Corruption::SectorCount`] if the file system has no field for so many.
    pub fn set_sectors(&mut self, sectors: u64) -> Result<(), Corruption> {
        let too_many = Corruption::SectorCount { sectors };
        if hi32(sectors) != 0 && !self.context.huge_file {
            return Err(too_many);
        }
        let in_blocks = sectors > MAX_SECTORS;
        let count = if in_blocks {
            sectors
                .checked_div(self.sectors_per_block())
                .ok_or(too_many.clone())?
        } else {
            sectors
        };
        if count > MAX_SECTORS {
            return Err(too_many);
        }
        self.base.i_blocks_lo = lo32(count).into();
        if self.context.huge_file {
            self.base.l_i_blocks_high = lo16(hi32(count)).into();
        }
        let mut flags = self.flags();
        flags.set(InodeFlags::HUGE_FILE, in_blocks);
        self.set_flags(flags);
        Ok(())
    }

    /// Flags.
    #[must_use]
    pub fn flags(&self) -> InodeFlags {
        InodeFlags::from_bits_retain(self.base.i_flags.get())
    }

    /// Sets the flags.
    pub fn set_flags(&mut self, flags: InodeFlags) {
        self.base.i_flags = flags.bits().into();
    }

    /// Generation.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.base.i_generation.get()
    }

    /// Sets the generation. All checksums of what belongs to the inode depend on it.
    pub fn set_generation(&mut self, generation: u32) {
        self.base.i_generation = generation.into();
    }

    /// Version: counts changes.
    #[must_use]
    pub fn version(&self) -> u64 {
        let high = self.extra32(offset_of!(RawInodeExtra, i_version_hi));
        join32(self.base.l_i_version.get(), high.unwrap_or(0))
    }

    /// Sets the version; its high half is lost where the record has no room for it.
    pub fn set_version(&mut self, version: u64) {
        self.base.l_i_version = lo32(version).into();
        self.set_extra32(offset_of!(RawInodeExtra, i_version_hi), hi32(version));
    }

    /// Sets the block of extended attributes.
    pub fn set_file_acl(&mut self, block: Option<BlockNo>) {
        let block = block.map_or(0, |block| block.0);
        self.base.i_file_acl_lo = lo32(block).into();
        if !self.context.hurd {
            self.base.l_i_file_acl_high = lo16(hi32(block)).into();
        }
    }

    /// Access time.
    #[must_use]
    pub fn atime(&self) -> Timestamp {
        let extra = self.extra32(offset_of!(RawInodeExtra, i_atime_extra));
        Timestamp::decode(self.base.i_atime.get(), extra)
    }

    /// Change time.
    #[must_use]
    pub fn ctime(&self) -> Timestamp {
        let extra = self.extra32(offset_of!(RawInodeExtra, i_ctime_extra));
        Timestamp::decode(self.base.i_ctime.get(), extra)
    }

    /// Modification time.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        let extra = self.extra32(offset_of!(RawInodeExtra, i_mtime_extra));
        Timestamp::decode(self.base.i_mtime.get(), extra)
    }

    /// Creation time, if the record has room for it.
    #[must_use]
    pub fn crtime(&self) -> Option<Timestamp> {
        let low = self.extra32(offset_of!(RawInodeExtra, i_crtime))?;
        Some(Timestamp::decode(
            low,
            self.extra32(offset_of!(RawInodeExtra, i_crtime_extra)),
        ))
    }

    /// Sets the access time, as exactly as the record has room for.
    pub fn set_atime(&mut self, time: Timestamp) {
        self.base.i_atime = self
            .set_time_extra(offset_of!(RawInodeExtra, i_atime_extra), time)
            .into();
    }

    /// Sets the change time, as exactly as the record has room for.
    pub fn set_ctime(&mut self, time: Timestamp) {
        self.base.i_ctime = self
            .set_time_extra(offset_of!(RawInodeExtra, i_ctime_extra), time)
            .into();
    }

    /// Sets the modification time, as exactly as the record has room for.
    pub fn set_mtime(&mut self, time: Timestamp) {
        self.base.i_mtime = self
            .set_time_extra(offset_of!(RawInodeExtra, i_mtime_extra), time)
            .into();
    }

    /// Sets the creation time, if the record has room for it.
    pub fn set_crtime(&mut self, time: Timestamp) {
        let low = self.set_time_extra(offset_of!(RawInodeExtra, i_crtime_extra), time);
        self.set_extra32(offset_of!(RawInodeExtra, i_crtime), low);
    }

    /// Deletion time, in seconds.
    #[must_use]
    pub fn dtime(&self) -> u32 {
        self.base.i_dtime.get()
    }

    /// Sets the deletion time.
    pub fn set_dtime(&mut self, seconds: u32) {
        self.base.i_dtime = seconds.into();
    }

    /// The next inode of the orphan list, while this one is on it: the deletion time's field.
    #[must_use]
    pub fn orphan_next(&self) -> Option<InodeNo> {
        (self.dtime() != 0).then_some(InodeNo(self.dtime()))
    }

    /// Sets the next inode of the orphan list.
    pub fn set_orphan_next(&mut self, next: Option<InodeNo>) {
        self.set_dtime(next.map_or(0, |ino| ino.0));
    }

    /// The 60 bytes that map the file's blocks or hold its data.
    #[must_use]
    pub fn block_area(&self) -> &[u8; 60] {
        &self.base.i_block
    }

    /// The 60 bytes that map the file's blocks or hold its data, to be changed.
    pub fn block_area_mut(&mut self) -> &mut [u8; 60] {
        &mut self.base.i_block
    }

    /// Number of the device that this is.
    #[must_use]
    pub fn device(&self) -> Option<DeviceNo> {
        if !matches!(
            self.kind(),
            Some(FileKind::CharDevice | FileKind::BlockDevice)
        ) {
            return None;
        }
        let (old, rest) = self.base.i_block.split_first_chunk::<4>()?;
        let new = rest.first_chunk::<4>()?;
        Some(DeviceNo::decode(
            u32::from_le_bytes(*old),
            u32::from_le_bytes(*new),
        ))
    }

    /// Sets the number of the device; false if it has too many bits.
    pub fn set_device(&mut self, device: DeviceNo) -> bool {
        let Some((old, new)) = device.encode() else {
            return false;
        };
        self.base.i_block = [0; 60];
        let words = old.to_le_bytes().into_iter().chain(new.to_le_bytes());
        for (to, from) in self.base.i_block.iter_mut().zip(words) {
            *to = from;
        }
        true
    }

    /// Whether this is a symbolic link with its target in `i_block`. By Linux's rule: with
    /// `ea_inode` the size says so, since attributes in other inodes count into the sectors;
    /// else that there are no sectors but those of the attribute block.
    #[must_use]
    pub fn is_fast_symlink(&self) -> bool {
        if self.kind() != Some(FileKind::Symlink) {
            return false;
        }
        if self.context.ea_inode {
            return (1..60).contains(&self.size());
        }
        if self.flags().contains(InodeFlags::INLINE_DATA) {
            return false;
        }
        let attribute_sectors = if self.file_acl().is_some() {
            self.context.sectors_per_cluster
        } else {
            0
        };
        self.sectors() == u64::from(attribute_sectors)
    }

    /// The target of a fast symbolic link.
    ///
    /// # Errors
    /// [`Corruption::SymlinkTarget`] if it is empty, does not fit or holds a NUL byte.
    pub fn fast_symlink_target(&self) -> Result<&[u8], Corruption> {
        let size = self.size();
        let wrong = Corruption::SymlinkTarget { size };
        let len = usize::try_from(size)
            .ok()
            .filter(|len| (1..60).contains(len));
        let target = len
            .and_then(|len| self.base.i_block.get(..len))
            .ok_or(wrong.clone())?;
        if target.contains(&0) {
            Err(wrong)
        } else {
            Ok(target)
        }
    }

    /// Makes this a fast symbolic link to `target`, its size included; false if it is empty, too
    /// long (60 bytes or more) or holds a NUL byte.
    pub fn set_fast_symlink_target(&mut self, target: &[u8]) -> bool {
        if !(1..60).contains(&target.len()) || target.contains(&0) {
            return false;
        }
        self.base.i_block = [0; 60];
        for (to, from) in self.base.i_block.iter_mut().zip(target) {
            *to = *from;
        }
        self.set_size(u64::try_from(target.len()).unwrap_or(0));
        self.set_flags(
            self.flags()
                .difference(InodeFlags::EXTENTS | InodeFlags::INLINE_DATA),
        );
        true
    }

    /// In an attribute inode: the hash of its value.
    #[must_use]
    pub fn ea_hash(&self) -> u32 {
        self.base.i_atime.get()
    }

    /// Sets the hash of the value of an attribute inode.
    pub fn set_ea_hash(&mut self, hash: u32) {
        self.set_atime(Timestamp {
            seconds: i64::from(hash),
            nanoseconds: 0,
        });
    }

    /// In an attribute inode: how many inodes and attribute blocks use it. (The kernel keeps
    /// the high half in the change time and the low half in the version.)
    #[must_use]
    pub fn ea_refcount(&self) -> u64 {
        join32(self.base.l_i_version.get(), self.base.i_ctime.get())
    }

    /// Sets the users of an attribute inode.
    pub fn set_ea_refcount(&mut self, count: u64) {
        let seconds = i64::from(hi32(count));
        self.set_ctime(Timestamp {
            seconds,
            nanoseconds: 0,
        });
        self.set_version(u64::from(lo32(count)));
    }

    fn sectors_per_block(&self) -> u64 {
        // Blocks have 2^10 to 2^16 bytes.
        1_u64.wrapping_shl(self.context.block_size_bits.saturating_sub(9))
    }

    /// Sets the extra field of a time, if there is one, and returns the other.
    fn set_time_extra(&mut self, offset: usize, time: Timestamp) -> u32 {
        let (low, extra) = time.encode();
        if self.set_extra32(offset, extra) {
            low
        } else {
            time.encode_short()
        }
    }
}

impl RawInode {
    /// Whether no byte of the record is set: it was never used.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        zerocopy::IntoBytes::as_bytes(self)
            .iter()
            .all(|byte| *byte == 0)
    }
}
