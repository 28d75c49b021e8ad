//! The files that the file system keeps for itself: journal, resize inode, orphan file.

use pagefence_ext4_format::checksum::crc32c;
use pagefence_ext4_format::features::{Compat, Features};
use pagefence_ext4_format::inode::{FileKind, Inode};
use pagefence_ext4_format::{GroupNo, InodeNo};

use super::builder::Builder;
use super::error::MkfsError;
use super::journal;
use super::layout::all_blocks;
use super::mapping::{self, consecutive, narrow, put_words};

/// Owner may read and write.
const PRIVATE: u16 = 0o600;
/// `ob_magic`, in the last eight bytes of each block of the orphan file.
const ORPHAN_MAGIC: u32 = 0x0B10_CA04;
/// `ob_magic` and `ob_checksum`.
const ORPHAN_TAIL_BYTES: usize = 8;
/// Slot of the doubly indirect block in `i_block`.
const DOUBLE_SLOT: usize = 13;

/// Makes the journal: one run of blocks about the middle of the file system if there is one, and
/// a copy of its map in the superblock.
pub(super) fn journal(builder: &mut Builder<'_>, blocks: u64) -> Result<(), MkfsError> {
    let goal = journal_goal(builder);
    let pieces = builder.allocate_near(blocks, goal)?;
    let uuid = builder.sb.uuid();
    let fast_commit_blocks = if builder.sb.has_compat(Compat::FAST_COMMIT) {
        journal::fast_commit_blocks(blocks)
    } else {
        0
    };
    let superblock = journal::superblock(builder.block_size(), blocks, fast_commit_blocks, &uuid);
    for (at, piece) in pieces.iter().enumerate() {
        // Blocks that an older journal left there must not look like this one's.
        builder.writer.zero(piece.clone())?;
        if at == 0 {
            builder.writer.write(piece.start, &superblock)?;
        }
    }
    let mut inode = builder.new_inode(InodeNo::JOURNAL, FileKind::Regular, PRIVATE);
    inode.set_size(blocks * u64::from(builder.sb.block_size()));
    mapping::map(builder, &mut inode, &consecutive(pieces))?;
    back_up_journal_map(builder, &inode);
    builder.put_inode(inode);
    Ok(())
}

fn back_up_journal_map(builder: &mut Builder<'_>, inode: &Inode) {
    let raw = builder.sb.raw_mut();
    raw.s_journal_inum = InodeNo::JOURNAL.0.into();
    raw.s_jnl_backup_type = 1;
    let words = inode.block_area().chunks_exact(4);
    for (to, word) in raw.s_jnl_blocks.iter_mut().zip(words) {
        let word: [u8; 4] = word.try_into().unwrap_or_default();
        *to = u32::from_le_bytes(word).into();
    }
    raw.s_jnl_blocks[15] = ((inode.size() >> 32) as u32).into();
    raw.s_jnl_blocks[16] = (inode.size() as u32).into();
}

/// The first block of the group with most room, of those about the middle. Within the first
/// flexible group they are the three about the middle one; beyond it, it is the start of a
/// flexible group, or the first group behind it that its metadata left room in.
fn journal_goal(builder: &Builder<'_>) -> u64 {
    let sb = &builder.sb;
    let groups = sb.group_count();
    let all = all_blocks(sb);
    let middle_block = (all.end - all.start) / 2;
    let middle = (middle_block / u64::from(sb.blocks_per_group())) as u32;
    let middle = middle.min(groups - 1);
    let per_flex = sb.groups_per_flex();
    let first = if per_flex > 1 && middle > per_flex {
        let start = middle - middle % per_flex;
        (start..groups)
            .find(|group| builder.free_in_group(GroupNo(*group)) > 0)
            .unwrap_or(0)
    } else {
        middle.saturating_sub(1)
    };
    let last = if first < middle { middle } else { first }.saturating_add(1);
    let candidates = first..=last.min(groups - 1);
    // The first of those with most room.
    let best = candidates
        .rev()
        .max_by_key(|group| builder.free_in_group(GroupNo(*group)));
    sb.first_block_of_group(GroupNo(best.unwrap_or(0))).0
}

/// Makes the inode that keeps the blocks into which the descriptors can grow. Its map has only a
/// doubly indirect block; in it, the slot of each reserved block (by its place in the descriptor
/// table) points to the one behind the superblock, which as an indirect block points to those
/// behind the backups, in the order of their groups.
pub(super) fn resize_inode(builder: &mut Builder<'_>) -> Result<(), MkfsError> {
    let reserved = u32::from(builder.sb.raw().s_reserved_gdt_blocks.get());
    let block_size = builder.block_size();
    let per_block = builder.sb.block_size() / 4;
    let in_use = builder.sb.descriptor_blocks();
    let backups: Vec<u64> = builder
        .sb
        .groups()
        .skip(1)
        .filter(|group| builder.sb.has_super(*group))
        .map(|group| builder.sb.first_block_of_group(group).0)
        .collect();
    let superblock = builder.sb.superblock_block().0;
    let double = builder.allocate_one()?;
    let mut double_bytes = vec![0; block_size];
    for number in in_use..in_use + reserved {
        let offset = u64::from(number) + 1;
        let single = superblock + offset;
        let mut single_bytes = vec![0; block_size];
        for (word, backup) in single_bytes.chunks_exact_mut(4).zip(&backups) {
            word.copy_from_slice(&narrow(backup + offset)?.to_le_bytes());
        }
        builder.writer.write(single, &single_bytes)?;
        let slot = (number % per_block) as usize * 4;
        double_bytes[slot..slot + 4].copy_from_slice(&narrow(single)?.to_le_bytes());
    }
    builder.writer.write(double, &double_bytes)?;

    let mut inode = builder.new_inode(InodeNo::RESIZE, FileKind::Regular, PRIVATE);
    let mut words = [0; 15];
    words[DOUBLE_SLOT] = narrow(double)?;
    put_words(&mut inode, &words);
    let file_blocks = u64::from(per_block) * u64::from(per_block) + u64::from(per_block) + 12;
    set_size(builder, &mut inode, file_blocks * block_size as u64);
    let blocks = 1 + u64::from(reserved) * (1 + backups.len() as u64);
    inode.set_sectors(blocks * block_size as u64 / 512)?;
    builder.put_inode(inode);
    Ok(())
}

/// Sets a size, and the feature that files of 2 GiB and more need.
pub(super) fn set_size(builder: &mut Builder<'_>, inode: &mut Inode, bytes: u64) {
    inode.set_size(bytes);
    if i32::try_from(bytes).is_err() {
        let mut features = builder.sb.features();
        let large_file = Features::from_name("large_file").unwrap_or_default();
        features = features.union(large_file);
        builder.sb.set_features(features);
    }
}

/// Makes the file that Linux keeps the numbers of orphans in. Each of its blocks has a magic
/// number and a checksum, which also covers the block's number.
pub(super) fn orphan_file(builder: &mut Builder<'_>) -> Result<(), MkfsError> {
    let ino = builder.take_inode(FileKind::Regular)?;
    let blocks = match builder.sb.blocks_count() {
        few if few < 128 << 10 => 32,
        some if some < 2 << 20 => some / 4096,
        _ => 512,
    };
    let mut inode = builder.new_inode(ino, FileKind::Regular, PRIVATE);
    inode.set_size(blocks * u64::from(builder.sb.block_size()));
    let pieces = builder.allocate(blocks)?;
    for block in pieces.iter().cloned().flatten() {
        let mut bytes = vec![0; builder.block_size()];
        let tail = bytes.len() - ORPHAN_TAIL_BYTES;
        if builder.sb.has_metadata_csum() {
            let seed = crc32c(inode.checksum_seed().0, &block.to_le_bytes());
            let checksum = crc32c(seed, &bytes[..tail]);
            bytes[tail + 4..].copy_from_slice(&checksum.to_le_bytes());
        }
        bytes[tail..tail + 4].copy_from_slice(&ORPHAN_MAGIC.to_le_bytes());
        builder.writer.write(block, &bytes)?;
    }
    mapping::map(builder, &mut inode, &consecutive(pieces))?;
    builder.put_inode(inode);
    builder.sb.raw_mut().s_orphan_file_inum = ino.0.into();
    Ok(())
}
