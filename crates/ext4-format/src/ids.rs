//! Numbers that must not be mixed up: blocks of the file system, blocks of a file, inodes and
//! groups.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($repr:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $repr);

        impl $name {
            /// The number `count` further on, or nothing if it does not fit.
            #[must_use]
            pub fn checked_add(self, count: $repr) -> Option<Self> {
                self.0.checked_add(count).map(Self)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// Number of a block of the file system, from its start (below 2^48).
    BlockNo(u64)
}
id! {
    /// Number of a block of a file, from its start (a logical block; below 2^32).
    FileBlock(u32)
}
id! {
    /// Number of an inode, from 1.
    InodeNo(u32)
}
id! {
    /// Number of a block group, from 0.
    GroupNo(u32)
}

impl InodeNo {
    /// Bad blocks.
    pub const BAD_BLOCKS: Self = Self(1);
    /// The root directory.
    pub const ROOT: Self = Self(2);
    /// User quota.
    pub const USER_QUOTA: Self = Self(3);
    /// Group quota.
    pub const GROUP_QUOTA: Self = Self(4);
    /// Boot loader.
    pub const BOOT_LOADER: Self = Self(5);
    /// Blocks reserved for growing the group descriptor table.
    pub const RESIZE: Self = Self(7);
    /// The journal.
    pub const JOURNAL: Self = Self(8);
}
