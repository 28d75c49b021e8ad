//! What an operation looks at before its first change, so that it fails before that or not at all;
//! and whether a part of it that failed left something half done.

use pagefence_ext4_format::{BlockNo, InodeNo};
use pagefence_vfs::Result;

use super::{Backend, Running, Transaction};
use crate::alloc::{BlockOwner, Reach};

impl Transaction<'_> {
    /// Finds the next `count` blocks that [`Self::allocate`] gives for `reach`, near `goal`, so that
    /// it can't fail for so many; changes nothing. A gathered one, which can take everything back,
    /// finds none.
    ///
    /// # Errors
    /// `NoSpace` if a live one may not take so many, or has none within `reach`; `Io`.
    pub(crate) fn prepare(&mut self, goal: BlockNo, reach: Reach, count: u64) -> Result<()> {
        let Backend::Running(running) = &mut self.backend else {
            return Ok(());
        };
        if running.prepared_reach != reach {
            running.unprepare();
            running.prepared_reach = reach;
        }
        let allocator = &running.live.allocator;
        while (running.prepared.len() as u64) < count {
            let space = &mut running.reservation;
            let run = allocator.allocate_within(self.instance, goal, reach, 1, space)?;
            running.prepared.push_back(run);
        }
        Ok(())
    }

    /// Makes sure that [`Self::release`] of a block of `inode` won't fail; a gathered one, which can
    /// take everything back, does not look.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub(crate) fn check_release(&self, inode: InodeNo, block: BlockNo) -> Result<()> {
        match &self.backend {
            Backend::Gathered(_) => Ok(()),
            Backend::Running(running) => {
                let allocator = &running.live.allocator;
                allocator.check_in_use(self.instance, BlockOwner::Map(inode), block, 1)
            }
        }
    }

    /// Counts what was changed so far: if it stays the same over a part of an operation that failed,
    /// that part left nothing half done. 0 for a gathered one, which takes back all that it did.
    pub(crate) fn changes(&self) -> u64 {
        match &self.backend {
            Backend::Gathered(_) => 0,
            Backend::Running(running) => running.record.changes,
        }
    }
}

impl Running<'_> {
    /// Gives back the blocks that were found and not taken.
    pub(super) fn unprepare(&mut self) {
        for run in self.prepared.drain(..) {
            run.give_back(&mut self.reservation);
        }
    }
}
