//! The superblock: what the file system is made of, how large it is, and in what state it was
//! left.

mod geometry;
mod raw;
#[cfg(test)]
mod tests;
mod validate;

use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes};

pub use self::geometry::{InodeLocation, backup_superblocks};
pub use self::raw::RawSuperblock;
use self::validate::Geometry;
use crate::checksum::{ChecksumSeed, crc32c};
use crate::error::Corruption;
use crate::features::{Compat, Features, Incompat, RoCompat};
use crate::ids::{BlockNo, InodeNo};
use crate::num::{hi32, join32, lo32};

/// Where the superblock lies on the device, in bytes.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// Bytes of the superblock.
pub const SUPERBLOCK_BYTES: usize = 1024;
/// `s_magic`.
pub const MAGIC: u16 = 0xEF53;
/// Bytes of an inode record of revision 0, and of the part that all records have.
pub const GOOD_OLD_INODE_SIZE: u16 = 128;
/// First inode for files of revision 0, and the least of any.
pub const GOOD_OLD_FIRST_INO: u32 = 11;

bitflags! {
    /// State of the file system (`s_state`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct State: u16 {
        /// Unmounted cleanly.
        const VALID = 0x1;
        /// Errors were found.
        const ERROR = 0x2;
        /// Orphans are being recovered.
        const ORPHAN = 0x4;
        /// A fast commit is being replayed.
        const FC_REPLAY = 0x20;
        const _ = !0;
    }
}

bitflags! {
    /// `s_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SuperblockFlags: u32 {
        /// Directory hashes take names as signed bytes.
        const SIGNED_HASH = 0x1;
        /// Directory hashes take names as unsigned bytes.
        const UNSIGNED_HASH = 0x2;
        /// For tests of development code.
        const TEST_FILESYS = 0x4;
        const _ = !0;
    }
}

bitflags! {
    /// Mount options that hold unless the mount says otherwise (`s_default_mount_opts`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DefaultMountOptions: u32 {
        /// Print debugging information.
        const DEBUG = 0x1;
        /// New files take the group of their directory.
        const BSDGROUPS = 0x2;
        /// Attributes of users.
        const XATTR_USER = 0x4;
        /// Access control lists.
        const ACL = 0x8;
        /// Only 16-bit user and group numbers.
        const UID16 = 0x10;
        /// Journal data. Together with `JMODE_ORDERED`: write-back mode.
        const JMODE_DATA = 0x20;
        /// Ordered mode.
        const JMODE_ORDERED = 0x40;
        /// No flushes.
        const NOBARRIER = 0x100;
        /// Keep metadata blocks from being used as data.
        const BLOCK_VALIDITY = 0x200;
        /// Tell the device of freed blocks.
        const DISCARD = 0x400;
        /// No delayed allocation.
        const NODELALLOC = 0x800;
        const _ = !0;
    }
}

/// What to do when an error is found (`s_errors`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorBehaviour {
    /// Go on. Also what an unknown number means.
    Continue,
    /// Go read-only.
    RemountReadOnly,
    /// Panic.
    Panic,
}

/// The first or the last error that was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorRecord {
    /// Seconds since the epoch.
    pub time_seconds: u64,
    /// Inode concerned, or 0.
    pub ino: u32,
    /// Block concerned, or 0.
    pub block: u64,
    /// Function that found it.
    pub function: String,
    /// Line of the source.
    pub line: u32,
    /// Linux's code of the error.
    pub code: u8,
}

/// A superblock that passed every check.
///
/// Owns: the 1024 bytes and the geometry computed from them. Outside: reading and writing them,
/// and whether the features are supported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    raw: Box<RawSuperblock>,
    geometry: Geometry,
}

impl Superblock {
    /// Checks the bytes at [`SUPERBLOCK_OFFSET`] of a device, or of a backup.
    /// `device_len_bytes` is the length of the device, if it is known.
    ///
    /// # Errors
    /// [`Corruption::NotExt`] if there is no ext file system at all,
    /// [`Corruption::ImageTruncated`] if the device is too short, and one kind for every other
    /// check. An external journal (`journal_dev`) has no geometry: ask
    /// [`RawSuperblock::is_journal_dev`] first.
    pub fn parse(bytes: &[u8], device_len_bytes: Option<u64>) -> Result<Self, Corruption> {
        let raw = RawSuperblock::read(bytes)?;
        let geometry = Geometry::validate(&raw, device_len_bytes)?;
        Ok(Self {
            raw: Box::new(raw),
            geometry,
        })
    }

    /// The fields as they lie on disk.
    #[must_use]
    pub fn raw(&self) -> &RawSuperblock {
        &self.raw
    }

    /// The fields as they lie on disk, to be changed. Sizes and features must stay as they are:
    /// the geometry was computed from them.
    pub fn raw_mut(&mut self) -> &mut RawSuperblock {
        &mut self.raw
    }

    /// The bytes to be written. [`Self::update_checksum`] comes first.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.raw.as_bytes()
    }

    /// Recomputes the checksum, if the file system has one.
    pub fn update_checksum(&mut self) {
        if self.has_metadata_csum() {
            self.raw.s_checksum = self.raw.compute_checksum().into();
        }
    }

    /// All features.
    #[must_use]
    pub fn features(&self) -> Features {
        self.raw.features()
    }

    /// Whether it has any of these features.
    #[must_use]
    pub fn has_compat(&self, features: Compat) -> bool {
        self.features().compat.intersects(features)
    }

    /// Whether it has any of these features.
    #[must_use]
    pub fn has_incompat(&self, features: Incompat) -> bool {
        self.features().incompat.intersects(features)
    }

    /// Whether it has any of these features.
    #[must_use]
    pub fn has_ro_compat(&self, features: RoCompat) -> bool {
        self.features().ro_compat.intersects(features)
    }

    /// Sets or clears features that do not change the geometry, such as `needs_recovery`,
    /// `orphan_present` or `large_file`.
    pub fn set_features(&mut self, features: Features) {
        self.raw.s_feature_compat = features.compat.bits().into();
        self.raw.s_feature_incompat = features.incompat.bits().into();
        self.raw.s_feature_ro_compat = features.ro_compat.bits().into();
    }

    /// Whether all metadata carries a crc32c.
    #[must_use]
    pub fn has_metadata_csum(&self) -> bool {
        self.has_ro_compat(RoCompat::METADATA_CSUM)
    }

    /// Whether group descriptors carry a checksum of either kind; only then do the flags of
    /// uninitialised groups mean anything.
    #[must_use]
    pub fn has_group_desc_csum(&self) -> bool {
        self.has_ro_compat(RoCompat::METADATA_CSUM | RoCompat::GDT_CSUM)
    }

    /// The seed of all metadata checksums.
    #[must_use]
    pub fn checksum_seed(&self) -> ChecksumSeed {
        if self.has_incompat(Incompat::CSUM_SEED) {
            ChecksumSeed(self.raw.s_checksum_seed.get())
        } else {
            ChecksumSeed::of_uuid(&self.raw.s_uuid)
        }
    }

    /// UUID.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.raw.s_uuid
    }

    /// Label, up to its first NUL byte; any bytes.
    #[must_use]
    pub fn volume_name(&self) -> &[u8] {
        until_nul(&self.raw.s_volume_name)
    }

    /// Where it was mounted last, up to the first NUL byte; any bytes.
    #[must_use]
    pub fn last_mounted(&self) -> &[u8] {
        until_nul(&self.raw.s_last_mounted)
    }

    /// How it was left.
    #[must_use]
    pub fn state(&self) -> State {
        State::from_bits_retain(self.raw.s_state.get())
    }

    /// Says how it is.
    pub fn set_state(&mut self, state: State) {
        self.raw.s_state = state.bits().into();
    }

    /// Flags.
    #[must_use]
    pub fn flags(&self) -> SuperblockFlags {
        SuperblockFlags::from_bits_retain(self.raw.s_flags.get())
    }

    /// Default mount options.
    #[must_use]
    pub fn default_mount_options(&self) -> DefaultMountOptions {
        DefaultMountOptions::from_bits_retain(self.raw.s_default_mount_opts.get())
    }

    /// What to do on an error.
    #[must_use]
    pub fn error_behaviour(&self) -> ErrorBehaviour {
        match self.raw.s_errors.get() {
            2 => ErrorBehaviour::RemountReadOnly,
            3 => ErrorBehaviour::Panic,
            _ => ErrorBehaviour::Continue,
        }
    }

    /// Free blocks, of all groups. A hint: group descriptors are the truth.
    #[must_use]
    pub fn free_blocks_count(&self) -> u64 {
        join32(
            self.raw.s_free_blocks_count_lo.get(),
            self.raw.s_free_blocks_count_hi.get(),
        )
    }

    /// Sets the free blocks.
    pub fn set_free_blocks_count(&mut self, blocks: u64) {
        self.raw.s_free_blocks_count_lo = lo32(blocks).into();
        self.raw.s_free_blocks_count_hi = hi32(blocks).into();
    }

    /// Blocks kept for the privileged user.
    #[must_use]
    pub fn reserved_blocks_count(&self) -> u64 {
        join32(
            self.raw.s_r_blocks_count_lo.get(),
            self.raw.s_r_blocks_count_hi.get(),
        )
    }

    /// Sets the blocks kept for the privileged user.
    pub fn set_reserved_blocks_count(&mut self, blocks: u64) {
        self.raw.s_r_blocks_count_lo = lo32(blocks).into();
        self.raw.s_r_blocks_count_hi = hi32(blocks).into();
    }

    /// Free inodes, of all groups. A hint: group descriptors are the truth.
    #[must_use]
    pub fn free_inodes_count(&self) -> u32 {
        self.raw.s_free_inodes_count.get()
    }

    /// Sets the free inodes.
    pub fn set_free_inodes_count(&mut self, inodes: u32) {
        self.raw.s_free_inodes_count = inodes.into();
    }

    /// Time of the last mount, seconds since the epoch.
    #[must_use]
    pub fn mount_time(&self) -> u64 {
        join_time(self.raw.s_mtime.get(), self.raw.s_mtime_hi)
    }

    /// Sets the time of the last mount.
    pub fn set_mount_time(&mut self, seconds: u64) {
        let (low, high) = split_time(seconds);
        self.raw.s_mtime = low.into();
        self.raw.s_mtime_hi = high;
    }

    /// Time of the last write, seconds since the epoch.
    #[must_use]
    pub fn write_time(&self) -> u64 {
        join_time(self.raw.s_wtime.get(), self.raw.s_wtime_hi)
    }

    /// Sets the time of the last write.
    pub fn set_write_time(&mut self, seconds: u64) {
        let (low, high) = split_time(seconds);
        self.raw.s_wtime = low.into();
        self.raw.s_wtime_hi = high;
    }

    /// Time of the last check, seconds since the epoch.
    #[must_use]
    pub fn check_time(&self) -> u64 {
        join_time(self.raw.s_lastcheck.get(), self.raw.s_lastcheck_hi)
    }

    /// Time of creation, seconds since the epoch.
    #[must_use]
    pub fn mkfs_time(&self) -> u64 {
        join_time(self.raw.s_mkfs_time.get(), self.raw.s_mkfs_time_hi)
    }

    /// The journal's inode, if it is internal.
    #[must_use]
    pub fn journal_inode(&self) -> Option<InodeNo> {
        let there = self.has_compat(Compat::HAS_JOURNAL);
        nonzero_inode(self.raw.s_journal_inum.get()).filter(|_| there)
    }

    /// The copy of the journal inode's `i_block` and its size in bytes, if one is kept.
    #[must_use]
    pub fn journal_backup(&self) -> Option<([u32; 15], u64)> {
        // 0 means a copy, too, of file systems from before the field.
        if self.raw.s_jnl_backup_type > 1 || self.raw.s_jnl_blocks.iter().all(|word| *word == 0) {
            return None;
        }
        let (map, size) = self.raw.s_jnl_blocks.split_first_chunk::<15>()?;
        let [high, low] = size else { return None };
        Some((
            map.map(zerocopy::little_endian::U32::get),
            join32(low.get(), high.get()),
        ))
    }

    /// First inode of the orphan list.
    #[must_use]
    pub fn last_orphan(&self) -> Option<InodeNo> {
        nonzero_inode(self.raw.s_last_orphan.get())
    }

    /// Sets the first inode of the orphan list.
    pub fn set_last_orphan(&mut self, ino: Option<InodeNo>) {
        self.raw.s_last_orphan = ino.map_or(0, |ino| ino.0).into();
    }

    /// The orphan file, with `orphan_file`.
    #[must_use]
    pub fn orphan_file_inode(&self) -> Option<InodeNo> {
        let there = self.has_compat(Compat::ORPHAN_FILE);
        nonzero_inode(self.raw.s_orphan_file_inum.get()).filter(|_| there)
    }

    /// Seed of the directory hash.
    #[must_use]
    pub fn hash_seed(&self) -> [u32; 4] {
        self.raw.s_hash_seed.map(zerocopy::little_endian::U32::get)
    }

    /// Hash of new directories (0 legacy, 1 half MD4, 2 TEA, 6 SipHash).
    #[must_use]
    pub fn def_hash_version(&self) -> u8 {
        self.raw.s_def_hash_version
    }

    /// Whether directory hashes take names as unsigned bytes. Neither flag set means signed:
    /// such file systems come from before the flags and from x86.
    #[must_use]
    pub fn hash_is_unsigned(&self) -> bool {
        self.flags().contains(SuperblockFlags::UNSIGNED_HASH)
    }

    /// Hidden inodes of the quota of users, groups and projects.
    #[must_use]
    pub fn quota_inodes(&self) -> [Option<InodeNo>; 3] {
        let raw = &self.raw;
        [
            raw.s_usr_quota_inum,
            raw.s_grp_quota_inum,
            raw.s_prj_quota_inum,
        ]
        .map(|ino| nonzero_inode(ino.get()))
    }

    /// Block of the protection against mounting twice, with `mmp`.
    #[must_use]
    pub fn mmp_block(&self) -> Option<BlockNo> {
        let there = self.has_incompat(Incompat::MMP);
        Some(BlockNo(self.raw.s_mmp_block.get())).filter(|_| there)
    }

    /// The first and the last error on record; nothing if there are none.
    #[must_use]
    pub fn error_records(&self) -> Option<(ErrorRecord, ErrorRecord)> {
        let raw = &self.raw;
        if raw.s_error_count == 0 {
            return None;
        }
        let first = ErrorRecord {
            time_seconds: join_time(raw.s_first_error_time.get(), raw.s_first_error_time_hi),
            ino: raw.s_first_error_ino.get(),
            block: raw.s_first_error_block.get(),
            function: text(&raw.s_first_error_func),
            line: raw.s_first_error_line.get(),
            code: raw.s_first_error_errcode,
        };
        let last = ErrorRecord {
            time_seconds: join_time(raw.s_last_error_time.get(), raw.s_last_error_time_hi),
            ino: raw.s_last_error_ino.get(),
            block: raw.s_last_error_block.get(),
            function: text(&raw.s_last_error_func),
            line: raw.s_last_error_line.get(),
            code: raw.s_last_error_errcode,
        };
        Some((first, last))
    }

    /// Records an error: as the last, and as the first if there was none; counts it.
    /// Function names longer than 32 bytes are cut.
    pub fn record_error(&mut self, error: &ErrorRecord) {
        let (low, high) = split_time(error.time_seconds);
        let mut function = [0_u8; 32];
        for (to, from) in function.iter_mut().zip(error.function.bytes()) {
            *to = from;
        }
        let raw = &mut self.raw;
        if raw.s_error_count == 0 {
            raw.s_first_error_time = low.into();
            raw.s_first_error_time_hi = high;
            raw.s_first_error_ino = error.ino.into();
            raw.s_first_error_block = error.block.into();
            raw.s_first_error_func = function;
            raw.s_first_error_line = error.line.into();
            raw.s_first_error_errcode = error.code;
        }
        raw.s_last_error_time = low.into();
        raw.s_last_error_time_hi = high;
        raw.s_last_error_ino = error.ino.into();
        raw.s_last_error_block = error.block.into();
        raw.s_last_error_func = function;
        raw.s_last_error_line = error.line.into();
        raw.s_last_error_errcode = error.code;
        raw.s_error_count = raw.s_error_count.get().saturating_add(1).into();
    }
}

impl RawSuperblock {
    /// Reads the fields and checks nothing but the magic number.
    ///
    /// # Errors
    /// [`Corruption::Truncated`] or [`Corruption::NotExt`].
    pub fn read(bytes: &[u8]) -> Result<Self, Corruption> {
        let (raw, _) = Self::read_from_prefix(bytes).map_err(|_| Corruption::Truncated {
            what: "superblock",
            needed: SUPERBLOCK_BYTES,
            have: bytes.len(),
        })?;
        match raw.s_magic.get() {
            MAGIC => Ok(raw),
            magic => Err(Corruption::NotExt { magic }),
        }
    }

    /// All features.
    #[must_use]
    pub fn features(&self) -> Features {
        Features {
            compat: Compat::from_bits_retain(self.s_feature_compat.get()),
            incompat: Incompat::from_bits_retain(self.s_feature_incompat.get()),
            ro_compat: RoCompat::from_bits_retain(self.s_feature_ro_compat.get()),
        }
    }

    /// Whether this is an external journal and no file system.
    #[must_use]
    pub fn is_journal_dev(&self) -> bool {
        self.features().incompat.contains(Incompat::JOURNAL_DEV)
    }

    /// crc32c of all bytes before the checksum. Its seed is no file system's, but all ones.
    #[must_use]
    pub fn compute_checksum(&self) -> u32 {
        let (covered, _) = self
            .as_bytes()
            .split_at(std::mem::offset_of!(Self, s_checksum));
        crc32c(!0, covered)
    }
}

fn nonzero_inode(ino: u32) -> Option<InodeNo> {
    (ino != 0).then_some(InodeNo(ino))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(until_nul(bytes)).into_owned()
}

fn join_time(low: u32, high: u8) -> u64 {
    join32(low, u32::from(high))
}

/// The two fields of a time of 40 bits; later times are cut off.
fn split_time(seconds: u64) -> (u32, u8) {
    let [_, _, _, _, high, _, _, _] = seconds.to_le_bytes();
    (lo32(seconds), high)
}
