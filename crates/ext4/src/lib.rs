//! ext2, ext3 and ext4 on the page cache: the file system itself, behind [`pagefence_vfs`]'s
//! interface.
//!
//! Layers, top to bottom:
//!
//! ```text
//! filesystem      the interface; open files and directories; inodes in core
//! dir  read_dir  htree  name_index     names         symlink  xattr  statfs
//! namespace  rename  new_inode         names that come, go and change: dir_lock, name_credits
//! orphans  orphan_file  delete_inode   inodes without names
//! map_blocks ── extents, indirect      from a file's blocks to the file system's
//! backing  writeback  delalloc         what the page cache asks for: space, data written, mapped
//! file_write  direct  truncate  fallocate  inode_data  seek  atime   what is done to files
//! map_file                             a file's pages, to be mapped into memory
//! migrate                              a file's map of the other kind
//! fsync                                what is durable when
//! instance  group  inode_tables        superblock, descriptors, inode tables, metadata blocks
//! system_zones                         blocks that no file may own
//! alloc                                which blocks and inodes are free, promised, busy
//! change                               what changes metadata
//! mount  support  recovery  orphan     opening: checks, features, the journal, orphans
//! info  journal_location               what an image is, told without opening it
//! check                                whether it is sound, all of it
//! mkfs                                 making: needs none of the above
//! ```
//!
//! Invariant: a block number from disk is checked against the file system's limits before it is
//! read, a checksum before the bytes it covers are believed.

mod acl;
mod alloc;
mod atime;
mod backing;
mod block_ranges;
mod change;
pub mod check;
mod clock;
mod collapse_range;
mod cookie;
mod delalloc;
mod delete_inode;
mod dir;
mod dir_lock;
mod direct;
mod disk_inode;
mod error;
mod exchange;
mod extents;
#[cfg(test)]
mod failures;
mod fallocate;
mod file_write;
mod filesystem;
mod fsync;
mod group;
mod htree;
mod indirect;
pub mod info;
mod inode;
mod inode_cache;
mod inode_data;
mod inode_tables;
mod insert_range;
mod instance;
mod journal_location;
mod live;
mod map_blocks;
mod map_file;
mod memory;
mod migrate;
pub mod mkfs;
mod mount;
#[cfg(feature = "mutants")]
mod mutant;
mod name_credits;
mod name_index;
mod namespace;
mod new_inode;
mod orphan;
mod orphan_file;
mod orphans;
#[cfg(test)]
mod probe;
mod punch;
mod read_dir;
mod recovery;
mod rename;
#[cfg(all(test, shuttle))]
mod schedules;
mod seek;
mod set_xattr;
mod setattr;
mod shift_range;
mod statfs;
mod support;
mod symlink;
mod system_zones;
mod trim;
mod truncate;
mod unsound;
mod writeback;
mod xattr;

pub use backing::FileData;
pub use error::FillError;
pub use filesystem::{File, FileSystem};
pub use map_file::{ShareError, SharedPages};
pub use mount::{MountError, MountOptions};
pub use read_dir::Directory;
