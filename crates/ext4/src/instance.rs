//! One open file system: what every operation needs of it.

use pagefence_block_io::{Buffer, BufferCache, Device};
use pagefence_ext4_format::checksum::ChecksumSeed;
use pagefence_ext4_format::dir_entry::DirFormat;
use pagefence_ext4_format::extent::BlockLimits;
use pagefence_ext4_format::htree::{DirHasher, HtreeCorruption};
use pagefence_ext4_format::indirect::MapShape;
use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::{BlockNo, InodeNo};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Error, FileKind, Result};

use crate::alloc::BlockOwner;
use crate::disk_inode::DiskInode;
use crate::error::{DamageLog, device, place};
use crate::inode_tables::InodeTables;
use crate::live::Live;
use crate::name_index::NameIndexes;
use crate::system_zones::SystemZones;

/// Kinds of checks that a buffer remembers having passed.
pub(crate) mod checked {
    /// Node of an extent tree: checksum and contents.
    pub(crate) const EXTENT_NODE: u32 = 1;
    /// Block of directory entries: checksum.
    pub(crate) const DIR_BLOCK: u32 = 1 << 1;
    /// Block of a directory index: checksum.
    pub(crate) const DX_NODE: u32 = 1 << 2;
    /// Block of extended attributes: checksum.
    pub(crate) const XATTR_BLOCK: u32 = 1 << 3;
}

/// One open file system.
///
/// Owns: the superblock as it was read, the metadata in memory, the log of damage. Stays outside:
/// inodes in core and pages, which belong to [`crate::FileSystem`].
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) superblock: Superblock,
    pub(crate) buffers: Arc<BufferCache>,
    pub(crate) limits: BlockLimits,
    pub(crate) map_shape: MapShape,
    pub(crate) dir_format: DirFormat,
    /// Metadata blocks carry checksums (`metadata_csum`).
    pub(crate) checksums: bool,
    pub(crate) seed: ChecksumSeed,
    pub(crate) damage: DamageLog,
    pub(crate) inode_tables: InodeTables,
    /// What files may not own; nothing until [`Self::guard_metadata`].
    zones: SystemZones,
    /// The superblock's block: a backup's, if the file system was opened by one.
    pub(crate) superblock_block: BlockNo,
    pub(crate) name_indexes: NameIndexes,
    /// Bytes of metadata blocks that may be kept in memory.
    pub(crate) metadata_bytes: u64,
    /// Whether reading updates the time of access.
    pub(crate) access_times: bool,
    /// What is needed to write, if the file system was opened for that.
    pub(crate) live: Option<Live>,
    /// Where tests hold a migration, and what they leave out of it.
    #[cfg(test)]
    pub(crate) migration_probe: crate::migrate::probe::Probe,
    #[cfg(test)]
    pub(crate) probe: crate::probe::Probe,
}

impl Instance {
    /// The file system of `superblock` on `device`, with at most `metadata_bytes` of metadata
    /// kept in memory.
    pub(crate) fn new(
        superblock: Superblock,
        device: Arc<dyn Device>,
        metadata_bytes: u64,
    ) -> Option<Self> {
        let block_size = superblock.block_size();
        Some(Self {
            buffers: Arc::new(BufferCache::new(device, block_size, metadata_bytes)),
            limits: BlockLimits::from(&superblock),
            map_shape: MapShape::new(block_size)?,
            dir_format: DirFormat::from(&superblock),
            checksums: superblock.has_metadata_csum(),
            seed: superblock.checksum_seed(),
            damage: DamageLog::default(),
            inode_tables: InodeTables::new(superblock.group_count()),
            zones: SystemZones::default(),
            superblock_block: superblock.superblock_block(),
            name_indexes: NameIndexes::new(metadata_bytes / 4),
            metadata_bytes,
            access_times: true,
            live: None,
            #[cfg(test)]
            migration_probe: crate::migrate::probe::Probe::default(),
            #[cfg(test)]
            probe: crate::probe::Probe::default(),
            superblock,
        })
    }

    /// Has the group descriptors read that follow the backup superblock at `offset`, a byte of
    /// the device, as Linux does with `sb=`.
    pub(crate) fn use_backup(&mut self, offset: u64) {
        self.superblock_block = BlockNo(offset / u64::from(self.superblock.block_size()));
    }

    /// From here on, a file that claims the file system's own blocks is damaged.
    pub(crate) fn guard_metadata(&mut self) {
        self.zones = SystemZones::of(self);
    }

    /// Makes sure that `len` blocks from `start` on may belong to `inode`.
    pub(crate) fn check_owned(&self, inode: InodeNo, start: BlockNo, len: u32) -> Result<()> {
        if self.zones.overlap_of(inode, start, len) {
            return Err(self.damaged(
                inode,
                Some(start),
                "a block of the file system's own metadata belongs to a file",
            ));
        }
        Ok(())
    }

    /// Makes sure that the root directory can be read.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn check_root(&self) -> Result<()> {
        let root = DiskInode::read(self, InodeNo::ROOT)?;
        if root.kind != FileKind::Directory {
            return Err(Error::NotDirectory);
        }
        self.dot_dot(&root).map(|_| ())
    }

    /// The device below.
    pub(crate) fn device(&self) -> &Arc<dyn Device> {
        self.buffers.device()
    }

    /// Makes sure that there is such a block.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check_block(&self, block: BlockNo) -> Result<()> {
        if self.superblock.contains_block(block) {
            return Ok(());
        }
        let what = "a block number past the end of the file system";
        Err(self.damage.report(place(None, Some(block)), what))
    }

    /// A block of metadata.
    pub(crate) fn read_block(&self, block: BlockNo) -> Result<Arc<Buffer>> {
        self.check_block(block)?;
        self.buffers.read(block.0).map_err(device)
    }

    /// A block of metadata that `owner` claims. Nobody else may write to it from now on, nor read it as
    /// his own. That is looked at once while the block is in memory, if somebody may write.
    ///
    /// # Errors
    /// `Corrupt` if it is the file system's own, or known to be another's; `Io`.
    pub(crate) fn read_owned(&self, owner: BlockOwner, block: BlockNo) -> Result<Arc<Buffer>> {
        let buffer = self.read_block(block)?;
        let Some(live) = &self.live else {
            self.check_owned(owner.inode(), block, 1)?;
            return Ok(buffer);
        };
        let note = live.allocator.owner_note(owner);
        if buffer.owner() != note {
            self.check_owned(owner.inode(), block, 1)?;
            live.allocator.claim_metadata(self, owner, block)?;
            buffer.set_owner(note);
        }
        Ok(buffer)
    }

    /// Logs damage of an inode and makes it an error.
    pub(crate) fn damaged(
        &self,
        inode: InodeNo,
        block: Option<BlockNo>,
        what: impl std::fmt::Display,
    ) -> Error {
        self.damage.report(place(Some(inode), block), what)
    }

    /// The hash of names in directories whose index says `version`, or nothing says otherwise.
    pub(crate) fn dir_hasher(&self, version: Option<u8>) -> Result<DirHasher, HtreeCorruption> {
        DirHasher::new(
            version.unwrap_or(self.superblock.def_hash_version()),
            self.superblock.hash_is_unsigned(),
            &self.superblock.hash_seed(),
        )
    }
}
