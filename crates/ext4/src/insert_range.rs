//! Putting a hole into a file: what follows moves up (`FALLOC_FL_INSERT_RANGE`).
//!
//! The file becomes longer first, so that nothing ever lies behind its end that was before it
//! (S0.11). Then the blocks move up, from the last to the first, and the hole that lies behind
//! them moves down to its place. So after each transaction, for some block x: what lies below x is
//! as it was, then comes a hole as long as the range, and what follows it is as it will be in the
//! end. The size is that of the end from the first transaction on.

use pagefence_lock_order::Held;
use pagefence_lock_order::levels;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::Result;

use crate::change::Transaction;
use crate::change::cut::Cut;
use crate::change::remove_blocks::Progress;
use crate::change::shift_block_map::Way;
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::shift_range::{Shift, Sizes};

impl FileSystem {
    /// Puts a hole of whole blocks where `bytes` begins, before the file's end
    /// ([`check_shift`](crate::instance::Instance::check_shift)). The caller holds the inode lock
    /// exclusively; below it the invalidate lock, page locks and transactions are taken.
    ///
    /// # Errors
    /// `NoSpace`, and then nothing changed; `InvalidArgument`, too, if what lies behind the file's
    /// end would come to lie too far; `Corrupt`, `Io`, `ReadOnly`: the file may be as it is between
    /// two transactions (see the module's documentation).
    pub(crate) fn insert_range(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        bytes: std::ops::Range<u64>,
    ) -> Result<()> {
        self.finish_cut(held, inode)?;
        let gap = self.instance.gap_of(&bytes)?;
        let size = inode.core.size() + (bytes.end - bytes.start);
        let sizes = Sizes {
            meanwhile: size,
            after: size,
        };
        // e2fsck takes what lies behind the end of a file for damage: without a log, where a
        // commit is not one step, the file is longer before anything moves.
        let mut is_longer = self.instance.has_log();
        let step = |shift: &mut Shift, transaction: &mut Transaction<'_>, cut: &mut Cut<'_>| {
            if is_longer {
                shift.step(transaction, cut)
            } else {
                is_longer = true;
                Ok(Progress::More)
            }
        };
        self.shift(held, inode, (gap, Way::Up), sizes, step)
    }
}
