//! Handles: the right of one operation to change blocks within the running transaction.
//!
//! All that one handle does is in one transaction, so a crash shows all of it or nothing. While it
//! is open its transaction can't be committed; who holds it therefore waits for nothing that needs
//! a commit, a page lock or writeback.

use pagefence_block_io::{DeviceError, Operation};
use pagefence_ext4_format::BlockNo;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::rank::RankGuard;

use crate::error::JournalError;
use crate::shared::Shared;
use crate::transaction::{Credits, Tid, Transaction, Turn};

/// A handle ([`crate::Journal::start`]). Dropping it ends it.
///
/// Each block that the handle is the first of its transaction to change takes a *credit*, and so
/// does the first of each few hundred that are forgotten. One that asks for too few credits is
/// not stopped, but counted ([`crate::Journal::overdrawn`]): the log has slack for it.
#[derive(Debug)]
#[must_use = "a handle that is dropped has ended"]
pub struct Handle<'a> {
    shared: &'a Shared,
    transaction: Arc<Transaction>,
    credits: u32,
    sync: bool,
    _rank: RankGuard,
}

impl<'a> Handle<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        transaction: Arc<Transaction>,
        credits: u32,
        rank: RankGuard,
    ) -> Self {
        Self {
            shared,
            transaction,
            credits,
            sync: false,
            _rank: rank,
        }
    }

    /// The transaction that the handle is part of.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.transaction.tid
    }

    /// Changes the block by `edit`, which sees its newest contents, and returns what it returns.
    /// Who has the old buffer keeps it. The new one counts as having passed the checks of the old
    /// one: `edit` keeps checksums right.
    ///
    /// Reads the block first if it is not in memory. `edit` runs under a lock of level `Buffer`.
    ///
    /// # Errors
    /// The block can't be read, or must not be changed (`InvalidInput`; that aborts the journal);
    /// or what `edit` returns. Then nothing has changed.
    pub fn change<T, E: From<DeviceError>>(
        &mut self,
        block: BlockNo,
        edit: impl FnOnce(&mut [u8]) -> Result<T, E>,
    ) -> Result<T, E> {
        if !self.may_change(block) {
            return Err(self.refused(block).into());
        }
        let before = self.shared.buffers.read(block.0)?;
        let shared = self.shared;
        let (transaction, mut credits) = self.parts();
        transaction.change(&shared.buffers, &before, &mut credits, edit)
    }

    /// Makes `bytes` the contents of a block that was free until now.
    ///
    /// # Panics
    ///
    /// If `bytes` is not one block long.
    pub fn set(&mut self, block: BlockNo, bytes: &[u8]) {
        if self.may_change(block) {
            let shared = self.shared;
            let (transaction, mut credits) = self.parts();
            transaction.set(&shared.buffers, block, bytes, &mut credits);
        }
    }

    /// Says when a block that this handle changed goes home, where there is no log. Of several
    /// turns that the handles of a transaction give it, the last one counts; one that was free
    /// before keeps the first.
    pub fn take_turn(&mut self, block: BlockNo, turn: Turn) {
        self.transaction.take_turn(block, turn);
    }

    /// Whether a crash may bring back what the block was before this transaction, next to others
    /// as the transaction makes them: where there is no log, and the block was not free before.
    #[must_use]
    pub fn may_come_back(&self, block: BlockNo) -> bool {
        self.shared.location.is_none() && !self.transaction.is_new(block)
    }

    /// Makes the block part of the transaction; its contents come from
    /// [`crate::Client::seal`].
    pub fn defer(&mut self, block: BlockNo) {
        if self.may_change(block) {
            let (transaction, mut credits) = self.parts();
            transaction.defer(block, &mut credits);
        }
    }

    /// Takes a metadata block that was freed out of the transaction and revokes it: neither
    /// recovery nor a late write home touches it once the transaction is committed. It may be
    /// used for something else only then.
    pub fn forget(&mut self, block: BlockNo) {
        if self.may_change(block) {
            let revokes_a_block = self.shared.revokes_a_block;
            let (transaction, mut credits) = self.parts();
            transaction.forget(block, revokes_a_block, &mut credits);
        }
    }

    /// Credits that are left.
    #[must_use]
    pub fn credits(&self) -> u32 {
        self.credits
    }

    /// Asks for `credits` more. False: the transaction has no room, or is about to be committed;
    /// then end the handle where the file system is sound and start another.
    #[must_use]
    pub fn extend(&mut self, credits: u32) -> bool {
        let extended = self.transaction.extend(credits, self.shared.credits_max);
        if extended {
            self.credits = self.credits.saturating_add(credits);
        }
        extended
    }

    /// Has the transaction committed soon after the handle ended.
    pub fn sync(&mut self) {
        self.sync = true;
    }

    fn parts(&mut self) -> (&Transaction, Credits<'_>) {
        let credits = Credits {
            transaction: &self.transaction,
            left: &mut self.credits,
            overdrawn: &self.shared.overdrawn,
        };
        (&self.transaction, credits)
    }

    /// Whether a transaction may change the block; aborts the journal if not, for then the
    /// transaction can't be whole.
    fn may_change(&self, block: BlockNo) -> bool {
        let may = self.shared.may_change(block);
        if !may {
            self.shared.abort(JournalError::Block { block });
        }
        may
    }

    fn refused(&self, block: BlockNo) -> DeviceError {
        let length = u64::try_from(self.shared.buffers.block_size()).unwrap_or_default();
        DeviceError {
            operation: Operation::Write,
            offset: block.0.saturating_mul(length),
            length,
            source: std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "a block that the journal must not change",
            ),
        }
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        let left = self.transaction.leave(self.credits);
        let tid = self.transaction.tid;
        if left.ready {
            self.shared.wake_thread();
        }
        // Half full: what is committed early does not hold up who comes when it is full.
        let large = left.credits > self.shared.credits_max >> 1 && self.transaction.tell_large();
        if self.sync || large {
            self.shared.request_commit(tid);
        }
    }
}
