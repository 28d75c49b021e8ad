//! The checksum of a node of an extent tree, in `struct ext4_extent_tail` behind its last entry.
//! The root has none: the inode's covers it.

use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::{ENTRY, RawExtentHeader, read_header};
use crate::Corruption;
use crate::checksum::ChecksumSeed;

/// Where `ext4_extent_tail` lies in a block: behind the last entry that fits.
fn tail_offset(block: &[u8]) -> Result<usize, Corruption> {
    let (header, _) = read_header(block)?;
    let offset = usize::from(header.eh_max.get())
        .saturating_mul(ENTRY)
        .saturating_add(size_of::<RawExtentHeader>());
    let needed = offset.saturating_add(size_of::<U32>());
    if needed > block.len() {
        return Err(Corruption::Truncated {
            what: "extent tail",
            needed,
            have: block.len(),
        });
    }
    Ok(offset)
}

/// Compares the checksum at the end of a node that lies in a block (the root has none). `seed` is
/// the inode's.
///
/// # Errors
///
/// [`Corruption::Checksum`]; [`Corruption::Extent`] or [`Corruption::Truncated`] if the header
/// does not say where the checksum is.
pub fn verify_checksum(block: &[u8], seed: ChecksumSeed) -> Result<(), Corruption> {
    let offset = tail_offset(block)?;
    let (covered, tail) = block.split_at_checked(offset).unwrap_or((block, &[]));
    let stored = U32::ref_from_prefix(tail).map_or(0, |(stored, _)| stored.get());
    let computed = seed.checksum(covered);
    if stored != computed {
        return Err(Corruption::Checksum {
            what: "extent block",
            stored,
            computed,
        });
    }
    Ok(())
}

/// Stores the checksum at the end of a node that lies in a block. `seed` is the inode's.
///
/// # Errors
///
/// As [`verify_checksum`], for the header.
pub fn update_checksum(block: &mut [u8], seed: ChecksumSeed) -> Result<(), Corruption> {
    let offset = tail_offset(block)?;
    if let Some((covered, tail)) = block.split_at_mut_checked(offset)
        && let Ok((stored, _)) = U32::mut_from_prefix(tail)
    {
        stored.set(seed.checksum(covered));
    }
    Ok(())
}
