//! The orphan file (`orphan_file`): blocks of inode numbers, each block with a magic number and a
//! checksum at its end. An entry of 0 is free.

use pagefence_ext4_format::checksum::ChecksumSeed;
use pagefence_ext4_format::inode::FileKind;
use pagefence_ext4_format::{BlockNo, FileBlock, InodeNo};
use pagefence_vfs::Result;

use crate::alloc::{Allocator, BlockOwner};
use crate::change::Transaction;
use crate::disk_inode::DiskInode;
use crate::instance::Instance;

/// `ob_magic` (`EXT4_ORPHAN_BLOCK_MAGIC`).
const MAGIC: u32 = 0x0B10_CA04;
/// Bytes of `struct ext4_orphan_block_tail`: magic number and checksum.
const TAIL: usize = 8;
/// Bytes of an entry.
const ENTRY: usize = 4;
/// Blocks of the largest orphan file (Linux: `EXT4_MAX_ORPHAN_FILE_BLOCKS`).
const BLOCKS_MAX: u64 = 512;

/// The orphan file of a file system.
#[derive(Debug)]
pub(crate) struct OrphanFile {
    number: InodeNo,
    seed: ChecksumSeed,
    blocks: Vec<BlockNo>,
}

/// An entry in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OrphanEntry {
    block: BlockNo,
    at: usize,
    /// The orphan.
    pub(crate) inode: InodeNo,
}

impl OrphanFile {
    /// Opens the orphan file `number`.
    ///
    /// # Errors
    /// `Corrupt` if it is no file of a fitting size without holes; `Io`.
    pub(crate) fn open(instance: &Instance, number: InodeNo) -> Result<Self> {
        let record = instance.read_inode(number)?;
        let block_size = u64::from(instance.superblock.block_size());
        let count = record.size() / block_size;
        let is_file = record.kind() == Some(FileKind::Regular) && record.links() > 0;
        let Some(count) = u32::try_from(count)
            .ok()
            .filter(|count| is_file && u64::from(*count) <= BLOCKS_MAX)
        else {
            return Err(instance.damaged(number, None, "it is no orphan file"));
        };
        let inode = DiskInode {
            number,
            kind: pagefence_vfs::FileKind::Regular,
            seed: record.checksum_seed(),
            record,
        };
        let blocks = (0..count)
            .map(|block| instance.metadata_block(&inode, FileBlock(block)))
            .collect::<Result<_>>()?;
        Ok(Self {
            number,
            seed: inode.seed,
            blocks,
        })
    }

    /// The entries in use.
    ///
    /// # Errors
    /// `Corrupt` if a block's magic number or checksum is wrong; `Io`.
    pub(crate) fn entries(&self, instance: &Instance) -> Result<Vec<OrphanEntry>> {
        let mut entries = Vec::new();
        for block in &self.blocks {
            let bytes = instance.read_owned(self.owner(), *block)?;
            let (words, tail) = bytes.split_at(bytes.len().saturating_sub(TAIL));
            let damaged = |what: &str| instance.damaged(self.number, Some(*block), what);
            if word(tail, 0) != MAGIC {
                return Err(damaged("a block of the orphan file has no magic number"));
            }
            if instance.checksums && word(tail, 4) != self.checksum(*block, words) {
                return Err(damaged("a block of the orphan file has a wrong checksum"));
            }
            let in_use = words
                .chunks_exact(ENTRY)
                .map(|entry| word(entry, 0))
                .enumerate()
                .filter(|(_, inode)| *inode != 0);
            entries.extend(in_use.map(|(slot, inode)| OrphanEntry {
                block: *block,
                at: slot * ENTRY,
                inode: InodeNo(inode),
            }));
        }
        Ok(entries)
    }

    /// Blocks of the file.
    pub(crate) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// From here on the blocks of the file are nobody else's.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn claim(&self, instance: &Instance, allocator: &Allocator) -> Result<()> {
        self.blocks
            .iter()
            .try_for_each(|block| allocator.claim_metadata(instance, self.owner(), *block))
    }

    fn owner(&self) -> BlockOwner {
        BlockOwner::Contents(self.number)
    }

    /// Which block of the file an entry is in.
    pub(crate) fn block_of(&self, entry: &OrphanEntry) -> usize {
        let found = self.blocks.iter().position(|block| *block == entry.block);
        found.unwrap_or(0)
    }

    /// Takes an entry of block number `at` of the file for `inode`; nothing if all are in use.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn add(
        &self,
        transaction: &mut Transaction<'_>,
        at: usize,
        inode: InodeNo,
    ) -> Result<Option<OrphanEntry>> {
        let Some(block) = self.blocks.get(at).copied() else {
            return Ok(None);
        };
        let bytes = transaction.instance.read_owned(self.owner(), block)?;
        let (words, _) = bytes.split_at(bytes.len().saturating_sub(TAIL));
        let Some(slot) = words
            .chunks_exact(ENTRY)
            .position(|entry| word(entry, 0) == 0)
        else {
            return Ok(None);
        };
        let entry = OrphanEntry {
            block,
            at: slot * ENTRY,
            inode,
        };
        self.put(transaction, &entry, inode.0)?;
        Ok(Some(entry))
    }

    /// Frees an entry.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn clear(
        &self,
        transaction: &mut Transaction<'_>,
        entry: &OrphanEntry,
    ) -> Result<()> {
        self.put(transaction, entry, 0)
    }

    fn put(
        &self,
        transaction: &mut Transaction<'_>,
        entry: &OrphanEntry,
        inode: u32,
    ) -> Result<()> {
        let checksums = transaction.instance.checksums;
        transaction.change(entry.block, |bytes| {
            let (words, tail) = bytes.split_at_mut(bytes.len().saturating_sub(TAIL));
            if let Some(slot) = words.get_mut(entry.at..entry.at + ENTRY) {
                slot.copy_from_slice(&inode.to_le_bytes());
            }
            if checksums && let Some(stored) = tail.last_chunk_mut() {
                *stored = self.checksum(entry.block, words).to_le_bytes();
            }
            Ok(())
        })
    }

    /// The checksum of a block with these entries.
    fn checksum(&self, block: BlockNo, entries: &[u8]) -> u32 {
        ChecksumSeed(self.seed.checksum(&block.0.to_le_bytes())).checksum(entries)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |word| u32::from_le_bytes(*word))
}
