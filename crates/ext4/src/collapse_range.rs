//! Taking a range out of a file: what follows moves down (`FALLOC_FL_COLLAPSE_RANGE`).
//!
//! The range becomes a hole first. Then the blocks behind it move down, from the first to the last,
//! and the hole moves up to the end of the file before them; with the last of them the file becomes
//! shorter. So after each transaction, for some block x: what lies below x is as it will be in
//! the end, then comes a hole as long as the range, and what follows it is as it was; or, before
//! that, a part of the range is a hole already. The size is what it was until all is done.

use pagefence_lock_order::Held;
use pagefence_lock_order::levels;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::Result;

use crate::change::Transaction;
use crate::change::cut::Cut;
use crate::change::remove_blocks::{Progress, remove_range};
use crate::change::shift_block_map::Way;
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::shift_range::{Shift, Sizes};

impl FileSystem {
    /// Takes `bytes` out of a file, of whole blocks before its end
    /// ([`check_shift`](crate::instance::Instance::check_shift)). The caller holds the inode lock
    /// exclusively; below it the invalidate lock, page locks and transactions are taken.
    ///
    /// # Errors
    /// `NoSpace`, and then nothing changed; `Corrupt`, `Io`, `ReadOnly`: the file may be as it is
    /// between two transactions (see the module's documentation).
    pub(crate) fn collapse_range(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        bytes: std::ops::Range<u64>,
    ) -> Result<()> {
        self.finish_cut(held, inode)?;
        let gap = self.instance.gap_of(&bytes)?;
        let size = inode.core.size();
        let sizes = Sizes {
            meanwhile: size,
            after: size - (bytes.end - bytes.start),
        };
        let mut phase = Phase::Punch;
        let mut left = gap.first..gap.end();
        let step = |shift: &mut Shift, transaction: &mut Transaction<'_>, cut: &mut Cut<'_>| {
            loop {
                let (progress, next) = match phase {
                    Phase::Punch => {
                        let progress = remove_range(transaction, cut, &mut left)?;
                        (progress, Phase::Move)
                    }
                    Phase::Move => (shift.step(transaction, cut)?, Phase::Shrink),
                    Phase::Shrink => return Ok(Progress::Done),
                };
                if progress == Progress::More {
                    return Ok(progress);
                }
                phase = next;
                if !self.instance.has_log() {
                    return Ok(Progress::More);
                }
            }
        };
        self.shift(held, inode, (gap, Way::Down), sizes, step)
    }
}

/// What comes next. Each is durable before the next begins where there is no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The range becomes a hole.
    Punch,
    /// What is behind it moves.
    Move,
    /// The file becomes shorter.
    Shrink,
}
