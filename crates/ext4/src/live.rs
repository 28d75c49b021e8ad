//! What a file system that is written to has besides: the journal, the allocator, the orphans and
//! the superblock that is kept up.
//!
//! Invariants:
//! - The superblock says that it needs recovery (with a journal), or that it was not closed
//!   properly (without), before anything else of it is written; that is taken back when all is on
//!   disk, and not after an error.
//! - Bitmaps, descriptors and the superblock are written by [`Keeper::seal`] alone, when no
//!   handle is open: they agree with each other and with all else of their transaction.

use pagefence_ext4_format::features::{Incompat, RoCompat};
use pagefence_ext4_format::superblock::{SUPERBLOCK_OFFSET, State, Superblock};
use pagefence_ext4_format::{BlockNo, InodeNo};
use pagefence_jbd2::{self as jbd2, Journal, JournalError, JournalLocation, Sealing, Tid};
use pagefence_lock_order::levels::{self, Level};
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_lock_order::{After, Held};
use pagefence_vfs::{Error, Result};

use crate::alloc::Allocator;
use crate::change::Transaction;
use crate::instance::Instance;
use crate::mount::MountError;
use crate::recovery::{mark_error, write_superblock};

/// What an operation may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// Blocks of metadata that it changes at most, bitmaps and descriptors among them.
    pub(crate) credits: u32,
    /// Blocks for metadata that it takes at most.
    pub(crate) blocks: u32,
    /// Whether it may take what is kept for root.
    pub(crate) privileged: bool,
}

/// What a file system that is written to has besides.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) journal: Arc<Journal>,
    pub(crate) allocator: Arc<Allocator>,
    keeper: Arc<Keeper>,
}

/// What the journal asks when it commits.
#[derive(Debug)]
struct Keeper {
    allocator: Arc<Allocator>,
    device: Arc<dyn pagefence_block_io::Device>,
    has_journal: bool,
    /// The superblock as it will be written next.
    superblock: Mutex<Superblock>,
    aborted: AtomicBool,
}
