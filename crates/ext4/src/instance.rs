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
use pagefence_lock_order::primitives::atomic::AtomicU64;
use pagefence_vfs::{Error, Result};

use crate::error::{DamageLog, device, place};
use crate::name_index::NameIndexes;

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
    pub(crate) buffers: BufferCache,
    pub(crate) limits: BlockLimits,
    pub(crate) map_shape: MapShape,
    pub(crate) dir_format: DirFormat,
    /// Metadata blocks carry checksums (`metadata_csum`).
    pub(crate) checksums: bool,
    pub(crate) seed: ChecksumSeed,
    pub(crate) damage: DamageLog,
    /// First block of each group's inode table; 0 until it has been looked up.
    pub(crate) inode_tables: Vec<AtomicU64>,
    pub(crate) name_indexes: NameIndexes,
    /// Bytes of metadata blocks that may be kept in memory.
    pub(crate) metadata_bytes: u64,
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
            buffers: BufferCache::new(device, block_size, metadata_bytes),
            limits: BlockLimits {
                first_data_block: superblock.first_data_block(),
                blocks_count: superblock.blocks_count(),
            },
            map_shape: MapShape::new(block_size)?,
            dir_format: DirFormat {
                filetype: superblock
                    .has_incompat(pagefence_ext4_format::features::Incompat::FILETYPE),
                checksums: superblock.has_metadata_csum(),
                last_inode: InodeNo(superblock.inodes_count()),
            },
            checksums: superblock.has_metadata_csum(),
            seed: superblock.checksum_seed(),
            damage: DamageLog::default(),
            inode_tables: (0..superblock.group_count())
                .map(|_| AtomicU64::new(0))
                .collect(),
            name_indexes: NameIndexes::new(metadata_bytes / 4),
            metadata_bytes,
            superblock,
        })
    }

    /// The device below.
    pub(crate) fn device(&self) -> &Arc<dyn Device> {
        self.buffers.device()
    }

    /// A block of metadata.
    pub(crate) fn read_block(&self, block: BlockNo) -> Result<Arc<Buffer>> {
        if !self.superblock.contains_block(block) {
            return Err(self.damage.report(
                place(None, Some(block)),
                "a block number past the end of the file system",
            ));
        }
        self.buffers.read(block.0).map_err(device)
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
