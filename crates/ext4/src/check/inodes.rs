//! Every record in use: that its size and its count of blocks fit what it owns.

use pagefence_ext4_format::features::Compat;
use pagefence_ext4_format::group_desc::GroupFlags;
use pagefence_ext4_format::inode::{FileKind, Inode, InodeFlags, RawInode};
use pagefence_ext4_format::{Corruption, FileBlock, GroupNo, InodeNo};
use zerocopy::FromBytes;

use super::duplicates::Owners;
use super::map::{self, Mapped, Runs, has_map};
use super::xattrs::XattrUse;
use super::{Checker, Stage, Step};

/// Blocks that an extent tree reaches.
const EXTENT_BLOCKS: u64 = 1 << 32;

/// Blocks of the map of a symbolic link that are read: it has one block.
const LINK_NODES: u64 = 8;

/// The bytes of `i_block`.
const BLOCK_AREA: u64 = 60;

/// What a record says at a glance.
#[derive(Clone, Copy)]
struct Glance {
    mode: u16,
    links: u16,
    deleted: u32,
}

impl Checker<'_> {
    pub(super) fn check_inodes(&mut self) -> Step {
        let total = u64::from(self.instance.superblock.group_count());
        for group in self.instance.superblock.groups() {
            self.report
                .progress(Stage::Inodes, u64::from(group.0), total)?;
            self.check_inodes_of(group)?;
        }
        self.check_xattr_counts()
    }

    fn check_inodes_of(&mut self, group: GroupNo) -> Step {
        if self.lost_groups.contains(&group) {
            self.miss_quotas_of_group();
            return Ok(());
        }
        let Ok(desc) = self.descriptor(group)? else {
            return Ok(());
        };
        let superblock = &self.instance.superblock;
        if desc.flags(superblock).contains(GroupFlags::INODE_UNINIT) {
            return Ok(());
        }
        let unused = if superblock.has_group_desc_csum() {
            desc.itable_unused()
        } else {
            0
        };
        let count = superblock.inodes_per_group().saturating_sub(unused);
        for index in 0..count {
            let Some(number) = self.instance.superblock.inode_of_group(group, index) else {
                break;
            };
            let glance = self.with_record(number, |bytes| {
                let (raw, _) = RawInode::ref_from_prefix(bytes).ok()?;
                Some(Glance {
                    mode: raw.i_mode.get(),
                    links: raw.i_links_count.get(),
                    deleted: raw.i_dtime.get(),
                })
            })?;
            if let Some(Some(glance)) = glance {
                self.check_glance(number, glance)?;
            }
        }
        Ok(())
    }

    /// Whether a time of deletion is the number of an inode: the next of the list of orphans. Where
    /// clocks stood so low, nobody knows.
    fn is_on_list(&self, deleted: u32) -> bool {
        let superblock = &self.instance.superblock;
        let inodes = u64::from(superblock.inodes_count());
        let times = [
            superblock.mkfs_time(),
            superblock.mount_time(),
            superblock.write_time(),
        ];
        let is_later = |time: u64| time == 0 || time >= inodes;
        u64::from(deleted) < inodes && times.into_iter().all(is_later)
    }

    /// Whether a record is in use, and all of it if it is.
    fn check_glance(&mut self, number: InodeNo, glance: Glance) -> Step {
        let is_orphan = self.orphans.contains(&number);
        if glance.deleted != 0 && !is_orphan && self.is_on_list(glance.deleted) {
            self.report
                .inode(number, "it names an orphan after it, and is none itself")?;
        }
        let is_bad_blocks = number == InodeNo::BAD_BLOCKS;
        if glance.links == 0 && self.quota_inodes().any(|inode| inode == number) {
            self.report
                .inode(number, "it holds quotas, and has no link")?;
        } else if glance.links == 0 && !is_orphan && !is_bad_blocks {
            let is_reserved = number < self.instance.superblock.first_inode();
            if glance.mode != 0 && glance.deleted == 0 && !is_reserved {
                self.report
                    .inode(number, "deleted, but without a time of deletion")?;
            }
            return self.check_unused(number);
        }
        let superblock = &self.instance.superblock;
        let parsed = self.with_record(number, |bytes| {
            (
                Inode::parse(bytes, number, superblock),
                Inode::read(bytes, number, superblock),
            )
        })?;
        let Some((parsed, read)) = parsed else {
            return Ok(());
        };
        let record = match (parsed, read) {
            (Ok(record), _) => record,
            // Only the checksum is wrong: the rest may be worth a look.
            (Err(what @ Corruption::Checksum { .. }), Ok(record)) => {
                self.report.inode(number, what)?;
                record
            }
            (Err(what), _) => {
                self.miss_quota_of(number);
                self.report.inode(number, what)?;
                return self.inodes.use_inode(number, None, false, &mut self.memory);
            }
        };
        self.check_record(&record, is_orphan)
    }

    fn check_record(&mut self, record: &Inode, is_orphan: bool) -> Step {
        let number = record.ino();
        let is_ea_inode = record.flags().contains(InodeFlags::EA_INODE);
        self.inodes
            .use_inode(number, record.kind(), is_ea_inode, &mut self.memory)?;
        self.summary.inodes += 1;
        if record.kind() == Some(FileKind::Directory) {
            self.summary.directories += 1;
        }
        if record.dtime() != 0 && !is_orphan && self.is_named(number) {
            self.report
                .inode(number, "in use, and has a time of deletion")?;
        }
        if record.kind().is_none()
            && (record.mode() != 0 || number >= self.instance.superblock.first_inode())
        {
            self.report.inode(
                number,
                format_args!("mode {:#o} is of no kind of file", record.mode()),
            )?;
        }
        let mut owners = Owners::default();
        if number == InodeNo::BAD_BLOCKS {
            self.check_bad_blocks(record)?;
            let mapped = self.claim_map(record, &mut owners)?;
            if mapped.is_shared {
                self.inodes.set_sharing(number, &mut self.memory)?;
            }
            return Ok(());
        }
        let flags_fit = self.check_flags(record)?;
        let xattrs = self.check_xattrs(record, &mut owners)?;
        self.check_fields(record, &xattrs)?;
        if number == InodeNo::RESIZE && self.instance.superblock.has_compat(Compat::RESIZE_INODE) {
            let clusters = self.claim_resize_inode(record, &mut owners)?;
            return match clusters {
                Some(clusters) => self.check_sectors(record, clusters),
                None => Ok(()),
            };
        }
        if !flags_fit {
            self.miss_quota_of(number);
            return Ok(());
        }
        let mapped = self.claim_map(record, &mut owners)?;
        if mapped.is_shared || xattrs.is_shared {
            self.inodes.set_sharing(number, &mut self.memory)?;
        }
        if mapped.is_partial {
            self.miss_quota_of(number);
            return Ok(());
        }
        let clusters = mapped.clusters.saturating_add(xattrs.clusters);
        self.charge_quotas(record, clusters, xattrs.value_inodes)?;
        self.check_sectors(record, clusters)?;
        if !is_orphan {
            self.check_size(record, &mapped, &xattrs)?;
        }
        Ok(())
    }

    /// The count of sectors against the clusters that it owns.
    fn check_sectors(&mut self, record: &Inode, clusters: u64) -> Step {
        let per_cluster = u64::from(self.instance.superblock.cluster_size() / 512);
        let due = clusters.saturating_mul(per_cluster);
        let stored = record.sectors();
        if stored == due {
            return Ok(());
        }
        self.report.inode(
            record.ino(),
            format_args!("{stored} sectors, counted {due}"),
        )
    }

    /// The size against the blocks that are mapped, or what is inline.
    fn check_size(&mut self, record: &Inode, mapped: &Mapped, xattrs: &XattrUse) -> Step {
        let number = record.ino();
        let (size, kind) = (record.size(), record.kind());
        if record.flags().contains(InodeFlags::INLINE_DATA) {
            return self.check_inline_size(record, xattrs);
        }
        let block_size = u64::from(self.instance.superblock.block_size());
        match kind {
            Some(FileKind::Directory) => {
                let blocks = size / block_size;
                let slack = u64::from(self.instance.superblock.raw().s_prealloc_dir_blocks);
                if !size.is_multiple_of(block_size)
                    || blocks > mapped.end
                    || mapped.end - blocks > slack
                    || size == 0
                {
                    self.report.inode(
                        number,
                        format_args!(
                            "a directory of {size} bytes with blocks up to byte {}",
                            mapped.end.saturating_mul(block_size)
                        ),
                    )?;
                }
                if mapped.has_unwritten {
                    self.report
                        .inode(number, "a directory with blocks that were never written")?;
                }
                Ok(())
            }
            Some(FileKind::Regular) => self.check_file_size(record, mapped),
            Some(FileKind::Symlink) => self.check_symlink(record, mapped),
            Some(_) if size != 0 => self
                .report
                .inode(number, format_args!("a special file of {size} bytes")),
            _ => Ok(()),
        }
    }

    fn check_file_size(&mut self, record: &Inode, mapped: &Mapped) -> Step {
        let size = record.size();
        let block_size = u64::from(self.instance.superblock.block_size());
        let is_tree = record.flags().contains(InodeFlags::EXTENTS);
        let starts = |block: Option<u64>| block.map(|block| block.saturating_mul(block_size));
        // A block that starts where the file ends is left to a tree of one node; in one with levels,
        // the last index ends where the file does.
        let is_behind_index = is_tree
            && mapped.has_nodes
            && size > 0
            && starts(mapped.last_written_of_node) == Some(size);
        let past_end =
            is_behind_index || starts(mapped.last_written).is_some_and(|start| start > size);
        // The tree of hashes lies behind the end.
        if past_end && !record.flags().contains(InodeFlags::VERITY) {
            return self.report.inode(
                record.ino(),
                format_args!(
                    "{size} bytes, but written blocks up to byte {}",
                    mapped.end.saturating_mul(block_size)
                ),
            );
        }
        let reach = if is_tree {
            EXTENT_BLOCKS.saturating_mul(block_size).saturating_sub(1)
        } else {
            self.block_map_reach()
        };
        if size > reach {
            return self.report.inode(
                record.ino(),
                format_args!("{size} bytes are more than its map reaches"),
            );
        }
        let is_journal = self.instance.superblock.journal_inode() == Some(record.ino());
        let there = mapped.end.saturating_mul(block_size);
        if is_journal && size > there {
            return self.report.inode(
                record.ino(),
                format_args!("a journal of {size} bytes, of which {there} are there"),
            );
        }
        Ok(())
    }

    fn check_inline_size(&mut self, record: &Inode, xattrs: &XattrUse) -> Step {
        let size = record.size();
        let room = BLOCK_AREA + xattrs.inline_rest.unwrap_or(0) as u64;
        let is_whole = matches!(record.kind(), Some(FileKind::Directory | FileKind::Symlink));
        let fits = if is_whole { size == room } else { size <= room };
        // The attribute is there even if it is empty.
        if fits && xattrs.inline_rest.is_some() {
            return Ok(());
        }
        self.report.inode(
            record.ino(),
            format_args!("{size} bytes of inline data, with {room} bytes there"),
        )
    }

    fn check_symlink(&mut self, record: &Inode, mapped: &Mapped) -> Step {
        let number = record.ino();
        let is_tree = record.flags().contains(InodeFlags::EXTENTS);
        let is_opaque = record.flags().contains(InodeFlags::ENCRYPT);
        if !has_map(record) {
            let len = usize::try_from(record.size()).unwrap_or(usize::MAX);
            let is_ended = record.block_area().get(len) == Some(&0);
            return match record.fast_symlink_target() {
                Err(what) if !is_opaque => self.report.inode(number, what),
                Ok(_) if !is_ended && !is_opaque => self
                    .report
                    .inode(number, "a symbolic link whose target goes on past its size"),
                _ if is_tree => self
                    .report
                    .inode(number, "a symbolic link with its target in an extent tree"),
                _ => Ok(()),
            };
        }
        let (size, block_size) = (
            record.size(),
            u64::from(self.instance.superblock.block_size()),
        );
        let has_more = mapped.data_blocks != 1 || mapped.has_nodes || mapped.has_unwritten;
        if size == 0 || size >= block_size || has_more {
            return self.report.inode(
                number,
                format_args!(
                    "a symbolic link of {size} bytes in {} blocks",
                    mapped.data_blocks
                ),
            );
        }
        let runs = Runs::of(&self.instance, record, &mut { LINK_NODES })?;
        let Some(block) = map::find(&runs, FileBlock(0)) else {
            return self
                .report
                .inode(number, "a symbolic link without its first block");
        };
        if is_opaque {
            return Ok(());
        }
        let buffer = self.instance.buffers.read(block.0)?;
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        let end = buffer.iter().position(|byte| *byte == 0);
        if end != Some(len) {
            return self.report.inode(
                number,
                format_args!("a symbolic link of {len} bytes whose target does not end there"),
            );
        }
        Ok(())
    }
}
