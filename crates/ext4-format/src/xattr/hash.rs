//! The hashes of attributes: of an entry, of a block, of a value in an inode of its own.

use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::{Value, XattrCorruption, XattrEntry, Xattrs};
use crate::checksum::ChecksumSeed;

/// How bytes of a name enter the hash: the kernel once took them as signed where `char` is, and
/// accepts both since.
#[derive(Clone, Copy)]
enum NameBytes {
    Unsigned,
    Signed,
}

/// The hash of a name without its prefix, and of a value, or of what stands for it.
fn entry_hash(name: &[u8], value: &[u8], bytes: NameBytes) -> u32 {
    let hash = name.iter().fold(0_u32, |hash, byte| {
        let byte = match bytes {
            NameBytes::Unsigned => u32::from(*byte),
            NameBytes::Signed => i32::from(byte.cast_signed()).cast_unsigned(),
        };
        hash.rotate_left(5) ^ byte
    });
    value.chunks(4).fold(hash, |hash, chunk| {
        // A last part of a word is filled up with zeroes.
        let word = U32::read_from_bytes(chunk).map_or_else(
            |_| {
                let bytes = chunk.iter().rev();
                bytes.fold(0, |word, byte| (word << 8) | u32::from(*byte))
            },
            U32::get,
        );
        hash.rotate_left(16) ^ word
    })
}

fn verify(entry: &XattrEntry<'_>, value: &[u8]) -> Result<(), XattrCorruption> {
    let computed = entry_hash(entry.name, value, NameBytes::Unsigned);
    let signed = entry_hash(entry.name, value, NameBytes::Signed);
    if entry.hash == computed || entry.hash == signed {
        return Ok(());
    }
    Err(XattrCorruption::Hash {
        stored: entry.hash,
        computed,
    })
}

impl XattrEntry<'_> {
    /// What `e_hash` is for an entry with that name, without prefix, and that value, in a block.
    /// In an inode, Linux stores 0.
    #[must_use]
    pub fn hash_of(name: &[u8], value: &[u8]) -> u32 {
        entry_hash(name, value, NameBytes::Unsigned)
    }

    /// Compares the hash of an entry whose value is with it. An entry in an inode may have 0
    /// instead. Linux does not check this when it reads.
    ///
    /// # Errors
    ///
    /// [`XattrCorruption::Hash`].
    pub fn verify_hash(&self, in_inode: bool) -> Result<(), XattrCorruption> {
        match self.value {
            Value::Bytes(_) if in_inode && self.hash == 0 => Ok(()),
            Value::Bytes(value) => verify(self, value),
            Value::Inode { .. } => Ok(()),
        }
    }

    /// Compares the hashes of an entry whose value is in an inode: `value` is that inode's
    /// contents, `stored` the hash in its `i_atime`, `seed` the file system's. (Lustre keeps a
    /// reference to the owner instead; Linux then checks nothing.)
    ///
    /// # Errors
    ///
    /// [`XattrCorruption::EaInodeHash`], [`XattrCorruption::Hash`].
    pub fn verify_ea_inode(
        &self,
        value: &[u8],
        stored: u32,
        seed: ChecksumSeed,
    ) -> Result<(), XattrCorruption> {
        let computed = ea_inode_hash(value, seed);
        if stored != computed {
            return Err(XattrCorruption::EaInodeHash { stored, computed });
        }
        verify(self, &computed.to_le_bytes())
    }
}

/// The hash of a value in an inode of its own. `seed` is the file system's.
#[must_use]
pub fn ea_inode_hash(value: &[u8], seed: ChecksumSeed) -> u32 {
    seed.checksum(value)
}

/// The hash of a block: of all entries', or 0 if one of them is 0, so that the block is not
/// shared.
#[must_use]
pub fn block_hash(block: &Xattrs<'_>) -> u32 {
    let mut hash = 0_u32;
    for entry in block.entries() {
        if entry.hash == 0 {
            return 0;
        }
        hash = hash.rotate_left(16) ^ entry.hash;
    }
    hash
}
