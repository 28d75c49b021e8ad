//! Writing what is known only at the end: inode tables, bitmaps, descriptors, superblocks.

use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::group_desc::{GroupDesc, GroupFlags};
use pagefence_ext4_format::inode::Inode;
use pagefence_ext4_format::superblock::{SUPERBLOCK_OFFSET, Superblock};
use pagefence_ext4_format::{BlockNo, GroupNo, bitmap};
use zerocopy::IntoBytes;

use super::builder::Builder;
use super::error::MkfsError;
use super::layout::{Group, group_range, uninitialized_count};

/// Writes all of it; the first superblock after everything else is durable.
pub(super) fn write(builder: &mut Builder<'_>) -> Result<(), MkfsError> {
    let groups = std::mem::take(&mut builder.groups);
    let mut descriptors = Vec::with_capacity(groups.len());
    for (group, place) in builder.sb.groups().zip(&groups) {
        descriptors.push(describe(builder, group, place)?);
    }
    // In passes, as those of a flexible group lie together.
    for (descriptor, place) in descriptors.iter_mut().zip(&groups) {
        write_block_bitmap(builder, descriptor, place)?;
    }
    for (descriptor, place) in descriptors.iter_mut().zip(&groups) {
        write_inode_bitmap(builder, descriptor, place)?;
    }
    for (descriptor, place) in descriptors.iter().zip(&groups) {
        write_inode_table(builder, descriptor.group(), place)?;
    }
    let free_inodes = descriptors.iter().map(GroupDesc::free_inodes).sum();
    builder.sb.set_free_inodes_count(free_inodes);
    let free_blocks = builder.free_blocks();
    builder.sb.set_free_blocks_count(free_blocks);
    for descriptor in &mut descriptors {
        descriptor.update_checksum(&builder.sb);
    }
    write_descriptors(builder, &descriptors)?;
    let written_kbytes = builder.writer.written_bytes().div_ceil(1024);
    builder.sb.raw_mut().s_kbytes_written = written_kbytes.into();
    write_superblocks(builder)
}

/// The descriptor of a group, without the checksums of its bitmaps.
fn describe(builder: &Builder<'_>, group: GroupNo, place: &Group) -> Result<GroupDesc, MkfsError> {
    let sb = &builder.sb;
    let mut descriptor = GroupDesc::read(&vec![0; sb.desc_size()], group, sb)?;
    descriptor.set_locations(
        BlockNo(place.block_bitmap),
        BlockNo(place.inode_bitmap),
        BlockNo(place.inode_table),
    );
    descriptor.set_free_clusters(builder.free_in_group(group) as u32);
    let unused = sb.inodes_per_group() - place.used_inodes;
    descriptor.set_free_inodes(unused);
    descriptor.set_used_dirs(place.directories);
    if sb.has_group_desc_csum() {
        descriptor.set_itable_unused(unused);
        descriptor.set_flags(flags(builder, group, place));
    }
    Ok(descriptor)
}

fn flags(builder: &Builder<'_>, group: GroupNo, place: &Group) -> GroupFlags {
    let sb = &builder.sb;
    let mut flags = GroupFlags::empty();
    flags.set(GroupFlags::INODE_UNINIT, place.used_inodes == 0);
    // Linux makes no padding behind the end of the file system: the last bitmap is written.
    let is_last = group.0 + 1 == sb.group_count();
    let used = builder.used.count_in(&group_range(sb, group));
    let is_plain = used == uninitialized_count(sb, group, place);
    flags.set(GroupFlags::BLOCK_UNINIT, is_plain && !is_last);
    let all_used = place.used_inodes == sb.inodes_per_group();
    let is_zeroed = builder.writer.reads_as_zeros() || all_used;
    flags.set(GroupFlags::INODE_ZEROED, is_zeroed);
    flags
}

fn write_block_bitmap(
    builder: &mut Builder<'_>,
    descriptor: &mut GroupDesc,
    place: &Group,
) -> Result<(), MkfsError> {
    let sb = &builder.sb;
    if descriptor.flags(sb).contains(GroupFlags::BLOCK_UNINIT) {
        return Ok(());
    }
    let range = group_range(sb, descriptor.group());
    let mut bitmap = vec![0; sb.block_size() as usize];
    for run in builder.used.runs_in(&range) {
        let bits = (run.start - range.start) as u32..(run.end - range.start) as u32;
        bitmap::set_range(&mut bitmap, bits);
    }
    let past_end = (range.end - range.start) as u32..sb.block_size() * 8;
    bitmap::set_range(&mut bitmap, past_end);
    if sb.has_metadata_csum() {
        descriptor.set_block_bitmap_checksum(bitmap::block_bitmap_checksum(&bitmap, sb));
    }
    Ok(builder.writer.write(place.block_bitmap, &bitmap)?)
}

fn write_inode_bitmap(
    builder: &mut Builder<'_>,
    descriptor: &mut GroupDesc,
    place: &Group,
) -> Result<(), MkfsError> {
    let sb = &builder.sb;
    if descriptor.flags(sb).contains(GroupFlags::INODE_UNINIT) {
        return Ok(());
    }
    let mut bitmap = vec![0; sb.block_size() as usize];
    bitmap::set_range(&mut bitmap, 0..place.used_inodes);
    bitmap::set_range(&mut bitmap, sb.inodes_per_group()..sb.block_size() * 8);
    if sb.has_metadata_csum() {
        descriptor.set_inode_bitmap_checksum(bitmap::inode_bitmap_checksum(&bitmap, sb));
    }
    Ok(builder.writer.write(place.inode_bitmap, &bitmap)?)
}

/// Writes the blocks of a table that hold inodes in use. Those behind them are zeroed only if
/// there is no checksum of the descriptor, and so no count of inodes never used to be believed.
fn write_inode_table(
    builder: &mut Builder<'_>,
    group: GroupNo,
    place: &Group,
) -> Result<(), MkfsError> {
    let sb = &builder.sb;
    let inode_size = sb.inode_size();
    let block_size = sb.block_size() as usize;
    let used_blocks = (place.used_inodes as usize * inode_size).div_ceil(block_size);
    let first = group.0 * sb.inodes_per_group() + 1;
    let mut table = vec![0; used_blocks * block_size];
    for (ino, inode) in builder.inodes.range_mut(first..first + place.used_inodes) {
        let offset = (*ino - first) as usize * inode_size;
        Inode::update_checksum(inode);
        inode.write_to(&mut table[offset..])?;
    }
    let is_lazy = sb.has_group_desc_csum();
    let end = place.inode_table + u64::from(sb.inode_table_blocks());
    if !table.is_empty() {
        builder.writer.write(place.inode_table, &table)?;
    }
    if !is_lazy {
        let behind = place.inode_table + used_blocks as u64;
        builder.writer.zero(behind..end)?;
    }
    Ok(())
}

/// Writes the backups of the descriptors first.
fn write_descriptors(
    builder: &mut Builder<'_>,
    descriptors: &[GroupDesc],
) -> Result<(), MkfsError> {
    let sb = builder.sb.clone();
    let per_block = sb.descriptors_per_block() as usize;
    let mut together = Vec::new();
    for (index, in_block) in (0..).zip(descriptors.chunks(per_block)) {
        let mut bytes = vec![0; sb.block_size() as usize];
        for (descriptor, out) in in_block.iter().zip(bytes.chunks_mut(sb.desc_size())) {
            descriptor.write_to(out)?;
        }
        if index < sb.contiguous_descriptor_blocks() {
            together.extend_from_slice(&bytes);
            continue;
        }
        for block in sb.backup_descriptor_blocks(index)? {
            builder.writer.write(block.0, &bytes)?;
        }
        builder
            .writer
            .write(sb.descriptor_block(index)?.0, &bytes)?;
    }
    if together.is_empty() {
        return Ok(());
    }
    for block in sb.backup_descriptor_blocks(0)? {
        builder.writer.write(block.0, &together)?;
    }
    builder.writer.write(sb.descriptor_block(0)?.0, &together)?;
    Ok(())
}

fn write_superblocks(builder: &mut Builder<'_>) -> Result<(), MkfsError> {
    let mut sb = builder.sb.clone();
    let backups: Vec<(GroupNo, u64)> = sb.backup_superblock_offsets().collect();
    for (group, offset) in backups {
        sb.raw_mut().s_block_group_nr = (group.0 as u16).into();
        sb.update_checksum();
        // Whole blocks, so that nothing old is left behind the superblock.
        builder
            .writer
            .write(offset / u64::from(sb.block_size()), sb.as_bytes())?;
    }
    builder.writer.flush()?;
    builder.sb.update_checksum();
    // Parsed once more: what is written must be what the reading half accepts.
    let bytes = builder.sb.raw().as_bytes().to_vec();
    builder.sb = Superblock::parse(&bytes, None)?;
    builder.writer.write_at(SUPERBLOCK_OFFSET, &bytes)?;
    debug_assert!(
        !builder.sb.has_incompat(Incompat::RECOVER),
        "a new file system is clean"
    );
    Ok(builder.writer.flush()?)
}
