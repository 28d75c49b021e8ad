//! Bitmaps of clusters and inodes: bits, runs of free bits, checksums, and what a bitmap that
//! was never written would say.
//!
//! Bit n of a group is bit n % 8, from the lowest, of byte n / 8; 1 means in use. Bits past the
//! group's last cluster or inode are padding, set to 1.

#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::error::Corruption;
use crate::group_desc::GroupDesc;
use crate::ids::{BlockNo, GroupNo};
use crate::num::to_usize;
use crate::superblock::Superblock;

/// Whether a bit is set. Past the end of the bytes every bit counts as set: not to be had.
#[must_use]
pub fn test(bits: &[u8], bit: u32) -> bool {
    bits.get(to_usize(bit / 8))
        .is_none_or(|byte| byte & mask_of(bit) != 0)
}

/// Sets a run of bits and returns how many of them were clear. Bits past the end of the bytes
/// are left out.
pub fn set_range(bits: &mut [u8], range: Range<u32>) -> u32 {
    change(bits, range, |byte, mask| {
        let changed = (!*byte & mask).count_ones();
        *byte |= mask;
        changed
    })
}

/// Clears a run of bits and returns how many of them were set. Bits past the end of the bytes
/// are left out.
pub fn clear_range(bits: &mut [u8], range: Range<u32>) -> u32 {
    change(bits, range, |byte, mask| {
        let changed = (*byte & mask).count_ones();
        *byte &= !mask;
        changed
    })
}

/// The first clear bit in a range.
#[must_use]
pub fn next_zero(bits: &[u8], range: Range<u32>) -> Option<u32> {
    find(bits, range, u64::MAX)
}

/// The first set bit in a range, of those that there are.
#[must_use]
pub fn next_one(bits: &[u8], range: Range<u32>) -> Option<u32> {
    find(bits, range, 0)
}

/// The runs of clear bits in a range, in order, each as long as it can be within the range.
pub fn zero_runs(bits: &[u8], range: Range<u32>) -> impl Iterator<Item = Range<u32>> + '_ {
    let end = range.end.min(bit_count(bits));
    let mut from = range.start;
    std::iter::from_fn(move || {
        let start = next_zero(bits, from..end)?;
        from = next_one(bits, start..end).unwrap_or(end);
        Some(start..from)
    })
}

/// How many bits of a range are clear.
#[must_use]
pub fn count_zeros(bits: &[u8], range: Range<u32>) -> u32 {
    zero_runs(bits, range).fold(0, |sum, run| {
        sum.saturating_add(run.end.saturating_sub(run.start))
    })
}

/// The checksum of a block bitmap: of as many bytes as clusters fill. 0 without `metadata_csum`.
#[must_use]
pub fn block_bitmap_checksum(bits: &[u8], sb: &Superblock) -> u32 {
    checksum(bits, sb, sb.clusters_per_group())
}

/// The checksum of an inode bitmap: of as many bytes as inodes fill. 0 without `metadata_csum`.
#[must_use]
pub fn inode_bitmap_checksum(bits: &[u8], sb: &Superblock) -> u32 {
    checksum(bits, sb, sb.inodes_per_group())
}

/// Checks a block bitmap: its length, checksum and padding, and that it has the group's own
/// metadata in use. Not for groups whose bitmap was never written (`BLOCK_UNINIT`).
///
/// # Errors
/// [`Corruption::Truncated`], [`Corruption::Checksum`], [`Corruption::BitmapPadding`] or
/// [`Corruption::MetadataMarkedFree`].
pub fn verify_block_bitmap(
    bits: &[u8],
    desc: &GroupDesc,
    sb: &Superblock,
) -> Result<(), Corruption> {
    let what = "block bitmap";
    check_len(what, bits, sb)?;
    if sb.has_metadata_csum() {
        desc.block_bitmap_checksum()
            .verify(what, block_bitmap_checksum(bits, sb))?;
    }
    let group = desc.group();
    if let Some(bit) = next_zero(bits, sb.clusters_in_group(group)..bit_count(bits)) {
        return Err(Corruption::BitmapPadding { what, group, bit });
    }
    // Blocks reserved for descriptors belong to an inode that can be taken away.
    let base = sb.base_metadata(group).start..sb.reserved_descriptor_blocks(group).start;
    for zone in [base].into_iter().chain(desc.metadata_zones(sb)) {
        if let Some(cluster) = clusters_of(zone, group, sb).and_then(|run| next_zero(bits, run)) {
            return Err(Corruption::MetadataMarkedFree { group, cluster });
        }
    }
    Ok(())
}

/// Checks an inode bitmap: its length and checksum. Not for groups whose bitmap was never
/// written (`INODE_UNINIT`).
///
/// # Errors
/// [`Corruption::Truncated`] or [`Corruption::Checksum`].
pub fn verify_inode_bitmap(
    bits: &[u8],
    desc: &GroupDesc,
    sb: &Superblock,
) -> Result<(), Corruption> {
    let what = "inode bitmap";
    check_len(what, bits, sb)?;
    if sb.has_metadata_csum() {
        desc.inode_bitmap_checksum()
            .verify(what, inode_bitmap_checksum(bits, sb))?;
    }
    Ok(())
}

/// The block bitmap of a group that never had one written (`BLOCK_UNINIT`), one block long: in
/// use are the superblock's copy with its descriptors, and those bitmaps and inode tables of
/// `descs` that lie here. `descs` are the group's own descriptor at least; with `flex_bg` those
/// of its flex group.
#[must_use]
pub fn uninit_block_bitmap<'a>(
    group: GroupNo,
    descs: impl IntoIterator<Item = &'a GroupDesc>,
    sb: &Superblock,
) -> Vec<u8> {
    let mut bits = vec![0; to_usize(sb.block_size())];
    let zones = descs.into_iter().flat_map(|desc| desc.metadata_zones(sb));
    for zone in [sb.base_metadata(group)].into_iter().chain(zones) {
        if let Some(run) = clusters_of(zone, group, sb) {
            set_range(&mut bits, run);
        }
    }
    let end = bit_count(&bits);
    set_range(&mut bits, sb.clusters_in_group(group)..end);
    bits
}

/// The inode bitmap of a group that never had one written (`INODE_UNINIT`), one block long.
#[must_use]
pub fn uninit_inode_bitmap(sb: &Superblock) -> Vec<u8> {
    let mut bits = vec![0; to_usize(sb.block_size())];
    let end = bit_count(&bits);
    set_range(&mut bits, sb.inodes_per_group()..end);
    bits
}

/// The clusters of a group that a run of blocks touches; nothing if it touches none.
fn clusters_of(zone: Range<BlockNo>, group: GroupNo, sb: &Superblock) -> Option<Range<u32>> {
    let first = sb.first_block_of_group(group).0;
    let end = first.saturating_add(u64::from(sb.blocks_in_group(group)));
    let (start, stop) = (zone.start.0.max(first), zone.end.0.min(end));
    if start >= stop {
        return None;
    }
    let offset = |block: u64| u32::try_from(block.saturating_sub(first)).ok();
    let per_cluster = sb.blocks_per_cluster();
    Some(offset(start)?.checked_div(per_cluster)?..offset(stop)?.div_ceil(per_cluster))
}

fn checksum(bits: &[u8], sb: &Superblock, bit_count: u32) -> u32 {
    if !sb.has_metadata_csum() {
        return 0;
    }
    let covered = bits.get(..to_usize(bit_count / 8)).unwrap_or(bits);
    sb.checksum_seed().checksum(covered)
}

fn check_len(what: &'static str, bits: &[u8], sb: &Superblock) -> Result<(), Corruption> {
    let needed = to_usize(sb.block_size());
    if bits.len() < needed {
        return Err(Corruption::Truncated {
            what,
            needed,
            have: bits.len(),
        });
    }
    Ok(())
}

fn bit_count(bits: &[u8]) -> u32 {
    u32::try_from(bits.len())
        .unwrap_or(u32::MAX)
        .saturating_mul(8)
}

fn mask_of(bit: u32) -> u8 {
    1_u8.wrapping_shl(bit % 8)
}

/// Hands every byte that a run of bits touches to `apply`, with the mask of the run's bits in
/// it, and sums what it returns.
fn change(bits: &mut [u8], range: Range<u32>, apply: impl Fn(&mut u8, u8) -> u32) -> u32 {
    if range.start >= range.end {
        return 0;
    }
    let last_bit = range.end.saturating_sub(1);
    let (first, last) = (to_usize(range.start / 8), to_usize(last_bit / 8));
    let touched = bits
        .iter_mut()
        .enumerate()
        .take(last.saturating_add(1))
        .skip(first);
    touched.fold(0, |sum, (index, byte)| {
        let from = if index == first {
            u8::MAX.wrapping_shl(range.start % 8)
        } else {
            u8::MAX
        };
        let to = if index == last {
            u8::MAX.wrapping_shr(7 & !last_bit)
        } else {
            u8::MAX
        };
        sum.saturating_add(apply(byte, from & to))
    })
}

/// The first bit of a range that is set once its word is flipped by `flip`, 64 bits at a time.
fn find(bits: &[u8], range: Range<u32>, flip: u64) -> Option<u32> {
    let end = range.end.min(bit_count(bits));
    let mut at = range.start;
    while at < end {
        let index = at / 64;
        let from_here = u64::MAX.wrapping_shl(at % 64);
        let hits = (word(bits, index) ^ flip) & from_here;
        if hits != 0 {
            let bit = index
                .saturating_mul(64)
                .saturating_add(hits.trailing_zeros());
            return (bit < end).then_some(bit);
        }
        at = index.saturating_add(1).saturating_mul(64);
    }
    None
}

/// Word `index` of the bits; what is past the end is zero.
fn word(bits: &[u8], index: u32) -> u64 {
    let (words, rest) = bits.as_chunks::<8>();
    if let Some(word) = words.get(to_usize(index)) {
        return u64::from_le_bytes(*word);
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    u64::from_le_bytes(last)
}
