//! The superblock: what opening does not look at, but for the journal.

use pagefence_ext4_format::features::{Compat, Features, Incompat, RoCompat};
use pagefence_ext4_format::inode::RawInode;
use pagefence_ext4_format::{InodeNo, mmp};

use super::{Checker, Step};
use crate::{clock, support};

/// Features that a check knows, beside those that it can't do without: others may own blocks and
/// change rules. It knows more than is written.
const KNOWN: (Compat, RoCompat) = (
    Compat::DIR_PREALLOC
        .union(Compat::IMAGIC_INODES)
        .union(Compat::HAS_JOURNAL)
        .union(Compat::EXT_ATTR)
        .union(Compat::RESIZE_INODE)
        .union(Compat::DIR_INDEX)
        .union(Compat::SPARSE_SUPER2)
        .union(Compat::FAST_COMMIT)
        .union(Compat::STABLE_INODES)
        .union(Compat::ORPHAN_FILE),
    support::WRITABLE
        .union(RoCompat::QUOTA)
        .union(RoCompat::BIGALLOC)
        .union(RoCompat::READONLY)
        .union(RoCompat::SHARED_BLOCKS),
);

/// Reserved inodes that can't hold a quota.
const NO_QUOTA: [u32; 8] = [1, 2, 5, 6, 7, 8, 9, 10];

/// The last revision.
const DYNAMIC_REV: u32 = 1;

/// Groups of a flexible group, as a power of two, at most.
const LOG_GROUPS_PER_FLEX_MAX: u8 = 31;

/// Bytes of a descriptor, at most.
const DESC_SIZE_MAX: u16 = 1024;

/// Seconds by which clocks may differ: a day, for those that keep local time.
const CLOCKS_DIFFER: u64 = 86_400;

/// The year 2010: a clock that stands before it was never set.
const CLOCK_IS_SET: u64 = 1_262_304_000;

impl Checker<'_> {
    pub(super) fn check_superblock(&mut self) -> Step {
        for what in self.wrong_counts().into_iter().chain(self.wrong_names()) {
            self.report.superblock(what)?;
        }
        self.check_mmp()?;
        self.check_times()
    }

    fn check_mmp(&mut self) -> Step {
        let Some(block) = self.instance.superblock.mmp_block() else {
            return Ok(());
        };
        let Some(bytes) = self.block(block)? else {
            return Ok(());
        };
        let seed = self.instance.checksums.then_some(self.instance.seed);
        match mmp::verify(&bytes, seed) {
            Ok(()) => Ok(()),
            Err(what) => self.report.superblock(format_args!("its mmp: {what}")),
        }
    }

    fn wrong_counts(&self) -> Vec<String> {
        let superblock = &self.instance.superblock;
        let raw = superblock.raw();
        let mut wrong = Vec::new();
        let (reserved, blocks) = (
            superblock.reserved_blocks_count(),
            superblock.blocks_count(),
        );
        if reserved > blocks / 2 {
            wrong.push(format!("{reserved} of {blocks} blocks are reserved"));
        }
        let revision = raw.s_rev_level.get();
        if revision > DYNAMIC_REV {
            wrong.push(format!("it is of the unknown revision {revision}"));
        }
        // The bitmap of a group has a bit for each.
        let clusters = u64::from(raw.s_clusters_per_group.get());
        let ratio = u64::from(superblock.blocks_per_cluster());
        let per_group = superblock.blocks_per_group();
        if clusters.saturating_mul(ratio) != u64::from(per_group) {
            wrong.push(format!(
                "{clusters} clusters in a group of {per_group} blocks"
            ));
        }
        let flex = raw.s_log_groups_per_flex;
        if flex > LOG_GROUPS_PER_FLEX_MAX {
            wrong.push(format!("flexible groups of 2^{flex} groups"));
        }
        let desc_size = raw.s_desc_size.get();
        if desc_size > DESC_SIZE_MAX || !(desc_size == 0 || desc_size.is_power_of_two()) {
            wrong.push(format!("descriptors of {desc_size} bytes"));
        }
        let room = superblock
            .inode_size()
            .saturating_sub(size_of::<RawInode>());
        for (what, bytes) in [
            ("must", raw.s_min_extra_isize.get()),
            ("should", raw.s_want_extra_isize.get()),
        ] {
            let fits = (4..=room).contains(&usize::from(bytes)) && bytes.is_multiple_of(4);
            if room > 0 && bytes != 0 && !fits {
                wrong.push(format!("inodes {what} have {bytes} bytes of extra fields"));
            }
        }
        wrong
    }

    /// What leads elsewhere, and what the file system is.
    fn wrong_names(&self) -> Vec<String> {
        let superblock = &self.instance.superblock;
        let (raw, features) = (superblock.raw(), superblock.features());
        let mut wrong = Vec::new();
        let (compat, ro_compat) = KNOWN;
        let unknown = support::names(Features {
            compat: features.compat.difference(compat),
            ro_compat: features.ro_compat.difference(ro_compat),
            incompat: Incompat::empty(),
        });
        if !unknown.is_empty() {
            let unknown = unknown.join(", ");
            wrong.push(format!(
                "with {unknown}, of which nothing is known, not all of it can be checked"
            ));
        }
        if superblock.has_compat(Compat::RESIZE_INODE) {
            if superblock.has_incompat(Incompat::META_BG) {
                wrong.push("both resize_inode and meta_bg".to_owned());
            }
        } else if raw.s_reserved_gdt_blocks.get() != 0 {
            wrong.push("blocks are kept for new descriptors, without resize_inode".to_owned());
        }
        let csum = RoCompat::METADATA_CSUM;
        if superblock.has_ro_compat(csum) && superblock.has_ro_compat(RoCompat::GDT_CSUM) {
            wrong.push("both metadata_csum and uninit_bg".to_owned());
        }
        if superblock.has_incompat(Incompat::CSUM_SEED) && !superblock.has_ro_compat(csum) {
            wrong.push("metadata_csum_seed without metadata_csum".to_owned());
        }
        if superblock.has_incompat(Incompat::SIXTY_FOUR_BIT)
            && !superblock.has_incompat(Incompat::EXTENTS)
        {
            wrong.push("64bit without extents".to_owned());
        }
        let blocks = superblock.blocks_count();
        if let Some(block) = superblock.mmp_block()
            && !(superblock.contains_block(block) && block > superblock.first_data_block())
        {
            wrong.push(format!("the block of mmp is {block} of {blocks}"));
        }
        let quotas = superblock.quota_inodes();
        for InodeNo(number) in quotas.into_iter().flatten() {
            if NO_QUOTA.contains(&number) || number > superblock.inodes_count() {
                wrong.push(format!("its quotas are in inode {number}"));
            }
        }
        // Those of users and groups have reserved inodes, which nobody else takes.
        if let [_, _, Some(number)] = quotas
            && !superblock.has_ro_compat(RoCompat::QUOTA)
        {
            wrong.push(format!(
                "quotas of projects in inode {number}, without quota"
            ));
        }
        wrong
    }

    fn check_times(&mut self) -> Step {
        let superblock = &self.instance.superblock;
        let times = [
            ("mounted", superblock.mount_time()),
            ("written", superblock.write_time()),
        ];
        let now = u64::try_from(clock::now().seconds).unwrap_or(0);
        if now < CLOCK_IS_SET {
            return Ok(());
        }
        for (what, time) in times {
            if time > now.saturating_add(CLOCKS_DIFFER) {
                self.report.superblock(format_args!(
                    "it was last {what} {} days from now",
                    (time - now) / CLOCKS_DIFFER
                ))?;
            }
        }
        Ok(())
    }
}
