//! The flags of an inode, and which of them pass to whom.

use bitflags::bitflags;

use super::FileKind;

bitflags! {
    /// `i_flags` (`EXT4_*_FL`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct InodeFlags: u32 {
        /// Delete securely. Ignored.
        const SECRM = 0x1;
        /// Keep for undeletion. Ignored.
        const UNRM = 0x2;
        /// Compress. Ignored.
        const COMPR = 0x4;
        /// Write synchronously.
        const SYNC = 0x8;
        /// May not be changed.
        const IMMUTABLE = 0x10;
        /// May only be appended to.
        const APPEND = 0x20;
        /// Left out by dump(8).
        const NODUMP = 0x40;
        /// Access times are not kept.
        const NOATIME = 0x80;
        /// Compressed and dirty. Unused.
        const DIRTY = 0x100;
        /// Has compressed clusters. Unused.
        const COMPRBLK = 0x200;
        /// Do not compress. Unused.
        const NOCOMPR = 0x400;
        /// Encrypted.
        const ENCRYPT = 0x800;
        /// The directory has a hash tree.
        const INDEX = 0x1000;
        /// AFS magic directory. Unused.
        const IMAGIC = 0x2000;
        /// Data goes through the journal.
        const JOURNAL_DATA = 0x4000;
        /// Tails are not merged. Unused.
        const NOTAIL = 0x8000;
        /// Changes of the directory are synchronous.
        const DIRSYNC = 0x1_0000;
        /// Top of a hierarchy, for the allocator.
        const TOPDIR = 0x2_0000;
        /// `i_blocks` counts blocks of the file system instead of sectors.
        const HUGE_FILE = 0x4_0000;
        /// `i_block` holds an extent tree.
        const EXTENTS = 0x8_0000;
        /// Protected by fs-verity.
        const VERITY = 0x10_0000;
        /// Holds the value of an extended attribute.
        const EA_INODE = 0x20_0000;
        /// Has blocks past its end. No longer used.
        const EOFBLOCKS = 0x40_0000;
        /// A snapshot. Never in Linux.
        const SNAPFILE = 0x0100_0000;
        /// Access memory directly.
        const DAX = 0x0200_0000;
        /// A snapshot being deleted. Never in Linux.
        const SNAPFILE_DELETED = 0x0400_0000;
        /// A snapshot that shrank. Never in Linux.
        const SNAPFILE_SHRUNK = 0x0800_0000;
        /// The data, or its start, lies in the inode.
        const INLINE_DATA = 0x1000_0000;
        /// Children get the same project.
        const PROJINHERIT = 0x2000_0000;
        /// The directory ignores case.
        const CASEFOLD = 0x4000_0000;
        /// Reserved for libraries.
        const RESERVED = 0x8000_0000;
        const _ = !0;
    }
}

impl InodeFlags {
    /// What `lsattr` and `FS_IOC_GETFLAGS` show.
    pub const USER_VISIBLE: Self = Self::from_bits_retain(0x725B_DFFF);
    /// What `chattr` and `FS_IOC_SETFLAGS` may change.
    pub const USER_MODIFIABLE: Self = Self::from_bits_retain(0x624B_C0FF);

    /// What a new file takes of these flags of its directory.
    #[must_use]
    pub fn inherited_by(self, kind: FileKind) -> Self {
        let inherited = Self::SECRM
            | Self::UNRM
            | Self::COMPR
            | Self::SYNC
            | Self::NODUMP
            | Self::NOATIME
            | Self::NOCOMPR
            | Self::JOURNAL_DATA
            | Self::NOTAIL
            | Self::DIRSYNC
            | Self::PROJINHERIT
            | Self::CASEFOLD
            | Self::DAX;
        (self & inherited).allowed_for(kind)
    }

    /// Those of these flags that a file of this kind can have.
    #[must_use]
    pub fn allowed_for(self, kind: FileKind) -> Self {
        match kind {
            FileKind::Directory => self,
            FileKind::Regular => {
                let not = Self::DIRSYNC | Self::TOPDIR | Self::CASEFOLD | Self::PROJINHERIT;
                self.difference(not)
            }
            _ => self & (Self::NODUMP | Self::NOATIME),
        }
    }

    /// Their names, without the prefix `EXT4_` and the ending `_FL`; a bit without a name is
    /// left out.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.iter_names().map(|(name, _)| name)
    }
}
