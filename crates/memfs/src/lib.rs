//! A file system in memory (Linux: tmpfs): its pages in the cache are its storage.
//!
//! ```text
//! filesystem (the trait) ─► namespace, rename          names: directory, inodes (the table)
//!                        ─► file, fallocate            data:  data (the backing of a file's pages)
//!                        ─► setattr, xattr             attributes: inode
//!                                  all of them charge  limits (the size, and memory for inodes)
//! ```
//!
//! It shares with ext4 the page cache and the trait it is served by, nothing else: reading,
//! writing, the fence, and what races what are the cache's. What is its own: a page that was
//! written has nowhere to go, so it stays ([`pagefence_page_cache::Backing::IS_STORAGE`]) until a
//! truncate, a punch or the end of the file frees it.
//!
//! # Space
//!
//! A file *has* the pages that were written, and those that fallocate promised. Each is charged to
//! the file system's size when it is first reserved, and is given back inside the fence that drops
//! it, once it is dropped. A promised page takes no memory until it is written.
//!
//! **Invariant:** a page that was written is one that its file has; no more pages are charged than
//! the size allows; and the cache has a frame for each of them, besides those that writers hold
//! until they are refused. So a writer waits for a frame only while other writers have some in hand,
//! and when the size is used up it is told so: it never waits for memory that nobody gives back.
//!
//! What names, attributes and inodes take is bounded beside that, by the number of inodes.
//!
//! # Locks
//!
//! The levels of `docs/LOCKING.md`: rename, inode (by number), invalidate, page lock, block map
//! (which pages a file has). Leaves: the entries of a directory, below which the table of inodes
//! is looked at; a shard of that table; an inode's record; its life (who has it open).

mod clock;
mod data;
mod directory;
mod fallocate;
#[cfg(all(test, not(shuttle)))]
mod fault_tests;
mod file;
mod filesystem;
mod inode;
mod inodes;
mod limits;
mod namespace;
mod rename;
mod runs;
mod setattr;
mod xattr;

pub use directory::OpenDirectory;
pub use file::File;
pub use filesystem::{MemFs, Options};
