//! The one chain of lock levels, top to bottom.
//!
//! ```text
//! Entry → Freeze → Rename → Inode → Invalidate → Writepages
//!   → PageLock → Handle → BlockMap → Group → Buffer → Counters
//! ```
//!
//! A thread that holds a lock of one level may take only locks of levels further down (two locks
//! of one level: see [`crate::pair`]). `docs/LOCKING.md` says which lock each level stands for.

/// A level of the chain.
pub trait Level: 'static {
    /// Position in the chain; 0 is the top.
    const RANK: u8;
    /// Name in messages of the rank checker.
    const NAME: &'static str;
}

/// `Self` may be taken while the lowest level held is `P`: it stands below `P` in the chain.
pub trait After<P: Level>: Level {}

macro_rules! chain {
    ($rank:expr; $(#[$doc:meta])* $name:ident $(, $(#[$more:meta])* $rest:ident)*) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}
        impl Level for $name {
            const RANK: u8 = $rank;
            const NAME: &'static str = stringify!($name);
        }
        $(impl After<$name> for $rest {})*
        chain!($rank + 1; $($(#[$more])* $rest),*);
    };
    ($rank:expr;) => {};
}

chain! { 0;
    /// Nothing is held: the state in which a request enters.
    Entry,
    /// The file system is frozen, or may not be.
    Freeze,
    /// Renames between directories, one at a time per file system.
    Rename,
    /// The inode lock (Linux: `i_rwsem`). Several of them by number ([`crate::pair`]).
    Inode,
    /// The invalidate lock of a mapping (S1.1): shared by what fills the cache, exclusive for
    /// what takes blocks away.
    Invalidate,
    /// Writeback of a file against a change of its format (S2).
    Writepages,
    /// Page locks, ascending by index within a file.
    PageLock,
    /// A journal handle.
    Handle,
    /// The block map of an inode (Linux: `i_data_sem`).
    BlockMap,
    /// The allocation state of a block group.
    Group,
    /// The contents of a metadata buffer.
    Buffer,
    /// Counters and indexes; nothing sleeps below.
    Counters
}
