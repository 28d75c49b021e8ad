//! What a record must say, and must not, by the features, its kind and itself.

use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::features::{Compat, Incompat, RoCompat};
use pagefence_ext4_format::inode::{FileKind, Inode, InodeFlags};

use super::xattrs::XattrUse;
use super::{Checker, Step};

/// Flags that special files and links can't have.
const PROTECTED: InodeFlags = InodeFlags::IMMUTABLE.union(InodeFlags::APPEND);

/// `s_creator_os` of Linux.
const LINUX: u32 = 0;

/// Bytes of a file that takes `large_file`.
const LARGE: u64 = 1 << 31;

impl Checker<'_> {
    /// Whether an inode is one that names lead to. Of others (the journal, the orphan file, quotas,
    /// what keeps blocks for descriptors), only what they hold is of interest.
    pub(super) fn is_named(&self, number: InodeNo) -> bool {
        let superblock = &self.instance.superblock;
        let hidden = superblock.orphan_file_inode();
        let mut hidden = hidden.into_iter().chain(self.quota_inodes());
        number == InodeNo::ROOT
            || (number >= superblock.first_inode() && !hidden.any(|inode| inode == number))
    }

    /// With the feature, the inodes of quota files.
    pub(super) fn quota_inodes(&self) -> impl Iterator<Item = InodeNo> {
        let superblock = &self.instance.superblock;
        let has_them = self.has_quotas();
        let inodes = superblock.quota_inodes().into_iter().flatten();
        inodes.filter(move |_| has_them)
    }

    /// Flags that go with the features, the kind and each other. Says whether `i_block` can be
    /// understood.
    pub(super) fn check_flags(&mut self, record: &Inode) -> Step<bool> {
        let number = record.ino();
        let (flags, kind) = (record.flags(), record.kind());
        let superblock = &self.instance.superblock;
        let has_blocks = matches!(
            kind,
            Some(FileKind::Regular | FileKind::Directory | FileKind::Symlink) | None
        );
        let extents = flags.contains(InodeFlags::EXTENTS);
        let inline = flags.contains(InodeFlags::INLINE_DATA);
        let mut wrong = Vec::new();
        if extents && !superblock.has_incompat(Incompat::EXTENTS) {
            wrong.push("it has an extent tree, and the file system has not that feature");
        }
        if inline && !superblock.has_incompat(Incompat::INLINE_DATA) {
            wrong.push("it has inline data, and the file system has not that feature");
        }
        if extents && inline {
            wrong.push("it has both inline data and an extent tree");
        }
        if (extents || inline) && !has_blocks {
            wrong.push("a device, pipe or socket with an extent tree or inline data");
        }
        let is_usable = wrong.is_empty();
        if flags.contains(InodeFlags::INDEX) {
            if kind != Some(FileKind::Directory) {
                wrong.push("it has a directory's index, and is none");
            } else if !superblock.has_compat(Compat::DIR_INDEX) {
                wrong.push("it has an index, and the file system has not that feature");
            } else if inline {
                wrong.push("it has an index, and inline data");
            }
        }
        if flags.contains(InodeFlags::CASEFOLD) {
            if kind != Some(FileKind::Directory) {
                wrong.push("it ignores case, and is no directory");
            } else if !superblock.has_incompat(Incompat::CASEFOLD) {
                wrong.push("it ignores case, and the file system has not that feature");
            }
        }
        let is_special = !matches!(kind, Some(FileKind::Regular | FileKind::Directory) | None);
        if flags.intersects(PROTECTED) && is_special {
            wrong.push("a special file that is immutable or append-only");
        }
        for what in wrong {
            self.report.inode(number, what)?;
        }
        Ok(is_usable)
    }

    /// Fields of an inode that names lead to.
    pub(super) fn check_fields(&mut self, record: &Inode, xattrs: &XattrUse) -> Step {
        let number = record.ino();
        let is_regular = record.kind() == Some(FileKind::Regular);
        let has_large = self.instance.superblock.has_ro_compat(RoCompat::LARGE_FILE);
        if is_regular && record.size() >= LARGE && !has_large {
            self.report
                .inode(number, "a file of 2 GiB or more, without large_file")?;
        }
        if !self.is_named(number) {
            return self.check_hidden(record);
        }
        let (raw, flags, kind) = (record.raw(), record.flags(), record.kind());
        let superblock = &self.instance.superblock;
        let mut wrong = Vec::new();
        if raw.i_obso_faddr.get() != 0 {
            wrong.push("it has the address of a fragment, which nobody uses");
        }
        // Other systems keep other things there.
        if superblock.raw().s_creator_os.get() == LINUX {
            let is_wide = superblock.has_incompat(Incompat::SIXTY_FOUR_BIT);
            if !is_wide && raw.l_i_file_acl_high.get() != 0 {
                wrong.push("an attribute block of more than 32 bits, without 64bit");
            }
            let may_be_huge = superblock.has_ro_compat(RoCompat::HUGE_FILE);
            if !may_be_huge && raw.l_i_blocks_high.get() != 0 {
                wrong.push("its sectors have more than 32 bits, without huge_file");
            }
        }
        let may_be_large = match kind {
            Some(FileKind::Directory) => superblock.has_incompat(Incompat::LARGE_DIR),
            kind => kind == Some(FileKind::Regular),
        };
        if raw.i_size_high.get() != 0 && !may_be_large {
            wrong.push("its size has more than 32 bits, and it can't be so large");
        }
        if flags.contains(InodeFlags::IMAGIC) && !superblock.has_compat(Compat::IMAGIC_INODES) {
            wrong.push("an inode of AFS, and the file system has not that feature");
        }
        if flags.contains(InodeFlags::ENCRYPT) && !xattrs.has_context {
            wrong.push("it is encrypted, and no attribute says how");
        }
        for what in wrong {
            self.report.inode(number, what)?;
        }
        Ok(())
    }

    /// Whether a reserved inode is for something that the file system does not have.
    fn is_idle(&self, number: InodeNo) -> bool {
        let superblock = &self.instance.superblock;
        match number {
            InodeNo::RESIZE => !superblock.has_compat(Compat::RESIZE_INODE),
            InodeNo::JOURNAL => superblock.journal_inode() != Some(number),
            InodeNo::USER_QUOTA | InodeNo::GROUP_QUOTA => {
                !self.quota_inodes().any(|inode| inode == number)
            }
            _ => false,
        }
    }

    /// A reserved inode without links: it is not in use, and holds nothing.
    pub(super) fn check_unused(&mut self, number: InodeNo) -> Step {
        let superblock = &self.instance.superblock;
        let is_idle = self.is_idle(number);
        let is_watched = match number {
            InodeNo::ROOT => false,
            InodeNo::RESIZE | InodeNo::JOURNAL => is_idle,
            _ => number < superblock.first_inode(),
        };
        if !is_watched {
            return Ok(());
        }
        let record = self.with_record(number, |bytes| {
            let is_clear = bytes.iter().all(|byte| *byte == 0);
            (!is_clear).then(|| Inode::parse(bytes, number, superblock))
        })?;
        match record.flatten() {
            None => Ok(()),
            Some(Err(what)) => self.report.inode(number, what),
            Some(Ok(record)) if self.holds_something(&record) => self
                .report
                .inode(number, "it is not in use, and holds something"),
            Some(Ok(_)) => Ok(()),
        }
    }

    /// Whether a reserved inode without links says something of which anybody takes notice.
    fn holds_something(&self, record: &Inode) -> bool {
        let (number, raw, flags) = (record.ino(), record.raw(), record.flags());
        if flags.contains(InodeFlags::CASEFOLD) {
            return true;
        }
        let block_area = record.block_area();
        match number {
            InodeNo::RESIZE if *block_area != [0; 60] => return true,
            InodeNo::RESIZE => {}
            _ if self.is_idle(number) => {
                let has_extents = self.instance.superblock.has_incompat(Incompat::EXTENTS);
                let is_lost = flags.contains(InodeFlags::EXTENTS) && !has_extents;
                return block_area[..4] != [0; 4]
                    || raw.i_blocks_lo.get() != 0
                    || (is_lost && number == InodeNo::JOURNAL);
            }
            _ => {}
        }
        // Both halves, of whatever kind it is.
        let size = u64::from(raw.i_size_high.get()) << 32 | u64::from(raw.i_size_lo.get());
        record.sectors() != 0
            || size > self.block_map_reach()
            || self.has_wrong_mode(record)
            || record.file_acl().is_some()
            || flags.contains(InodeFlags::INDEX)
    }

    /// What keeps bad blocks is nobody's, and nothing else.
    pub(super) fn check_bad_blocks(&mut self, record: &Inode) -> Step {
        let raw = record.raw();
        if record.mode() != 0
            || [raw.i_uid.get(), raw.i_gid.get(), record.links()] != [0; 3]
            || record.flags().contains(InodeFlags::INLINE_DATA)
            || record.file_acl().is_some()
        {
            self.report.inode(
                record.ino(),
                "what keeps bad blocks has an owner, a kind, a link or attributes",
            )?;
        }
        Ok(())
    }

    /// Whether an inode that no name leads to is of a kind that it must not have.
    fn has_wrong_mode(&self, record: &Inode) -> bool {
        let number = record.ino();
        let superblock = &self.instance.superblock;
        let may_be_file = self.is_idle(number)
            || superblock.journal_inode() == Some(number)
            || superblock.orphan_file_inode() == Some(number)
            || number == InodeNo::RESIZE;
        let is_file = record.kind() == Some(FileKind::Regular);
        match number {
            InodeNo::BOOT_LOADER => record.kind() == Some(FileKind::Directory),
            _ if may_be_file => record.mode() != 0 && !is_file,
            _ if self.quota_inodes().any(|inode| inode == number) => !is_file,
            _ => record.mode() != 0,
        }
    }

    /// Fields of an inode that no name leads to.
    fn check_hidden(&mut self, record: &Inode) -> Step {
        let number = record.ino();
        let superblock = &self.instance.superblock;
        if self.has_wrong_mode(record) {
            let mode = record.mode();
            return self
                .report
                .inode(number, format_args!("a reserved inode with mode {mode:#o}"));
        }
        if self.is_idle(number) && number != InodeNo::RESIZE {
            return self
                .report
                .inode(number, "it is not in use, and has a link");
        }
        let is_orphan_file = superblock.orphan_file_inode() == Some(number);
        let size = record.size();
        if is_orphan_file && !size.is_multiple_of(u64::from(superblock.block_size())) {
            return self
                .report
                .inode(number, format_args!("an orphan file of {size} bytes"));
        }
        let is_journal = superblock.journal_inode() == Some(number);
        if is_journal && record.flags().contains(InodeFlags::ENCRYPT) {
            return self.report.inode(number, "an encrypted journal");
        }
        Ok(())
    }
}
