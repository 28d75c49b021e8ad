//! The group descriptors, and the blocks that metadata owns.

use pagefence_ext4_format::group_desc::{GroupDesc, GroupFlags};
use pagefence_ext4_format::{BlockNo, GroupNo};

use super::{Checker, Stage, Step};

impl Checker<'_> {
    /// Every descriptor. What it owns is claimed.
    pub(super) fn check_descriptors(&mut self) -> Step {
        let total = u64::from(self.instance.superblock.group_count());
        for group in self.instance.superblock.groups() {
            if group.0.is_multiple_of(1024) {
                self.report
                    .progress(Stage::Descriptors, u64::from(group.0), total)?;
            }
            match self.descriptor(group)? {
                Ok(desc) => self.check_descriptor(&desc)?,
                Err(what) => {
                    self.report.group(group, what)?;
                    self.memory.take(64)?;
                    self.lost_groups.insert(group);
                }
            }
        }
        self.claim_metadata()
    }

    fn check_descriptor(&mut self, desc: &GroupDesc) -> Step {
        let superblock = &self.instance.superblock;
        let group = desc.group();
        if let Err(what) = desc.check_counts(superblock) {
            self.report.group(group, what)?;
        }
        let superblock = &self.instance.superblock;
        let flags = desc.flags(superblock);
        let is_last = group.0.saturating_add(1) == superblock.group_count();
        let (unused, free) = (desc.itable_unused(), desc.free_inodes());
        if !superblock.has_group_desc_csum() {
            let unmade = GroupFlags::BLOCK_UNINIT | GroupFlags::INODE_UNINIT;
            let is_lazy = desc.stored_flags().intersects(unmade) || unused != 0;
            return if is_lazy {
                self.report.group(
                    group,
                    "parts of it are not made, without the feature for it",
                )
            } else {
                Ok(())
            };
        }
        if is_last && flags.contains(GroupFlags::BLOCK_UNINIT) {
            self.report
                .group(group, "the last group, and its block bitmap is not made")?;
        }
        if unused > free && unused <= superblock.inodes_per_group() {
            self.report.group(
                group,
                format_args!("{unused} inodes never used, {free} free"),
            )?;
        }
        Ok(())
    }

    /// Claims every block that metadata owns.
    pub(super) fn claim_metadata(&mut self) -> Step {
        for group in self.instance.superblock.groups() {
            self.claim_group(group)?;
        }
        let superblock = &self.instance.superblock;
        if let Some(block) = superblock.mmp_block()
            && superblock.contains_block(block)
        {
            let blocks = block..BlockNo(block.0.saturating_add(1));
            self.usage.claim_metadata(blocks, &mut self.memory)?;
        }
        Ok(())
    }

    fn claim_group(&mut self, group: GroupNo) -> Step {
        let base = self.instance.superblock.base_metadata(group);
        self.usage.claim_metadata(base, &mut self.memory)?;
        if self.lost_groups.contains(&group) {
            return Ok(());
        }
        let Ok(desc) = self.descriptor(group)? else {
            return Ok(());
        };
        for zone in desc.metadata_zones(&self.instance.superblock) {
            self.usage.claim_metadata(zone, &mut self.memory)?;
        }
        Ok(())
    }
}
