//! What was said to a client, in the order of the wire.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Instant;

use crate::remote::PATIENCE;

/// What was said.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// How much.
    pub(super) packets: u64,
    /// Of that, from the first on, what has taken effect.
    pub(super) acknowledged: u64,
    /// The last that is to be answered at once.
    pub(super) asked: u64,
    /// What others may have to wait for, oldest first.
    pub(super) outstanding: VecDeque<Outstanding>,
    /// A wait for this packet was in vain: until it is acknowledged nobody waits for the client, and it gets
    /// no rights.
    pub(super) silent_since: Option<u64>,
    /// A right of this packet became too old while somebody waited: until it is acknowledged there are no
    /// others, for which somebody would have to wait again.
    pub(super) late_since: Option<u64>,
    /// Bytes of the file, as it was last told.
    pub(super) size: u64,
    /// No page from here on may be mapped or have a private copy.
    pub(super) mapped_end: u64,
    pub(super) poisoned: BTreeSet<u64>,
    /// Faults were put off: it is to be told to ask again.
    pub(super) owes_wake: bool,
    /// It was silent when the file became shorter.
    pub(super) owes_size: bool,
}

/// What somebody is about to wait for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    /// The last packet that it is about.
    pub(super) number: u64,
    /// When it was asked: from then on the client has its time.
    pub(super) at: Instant,
    /// The client was asked to answer, and has nothing else to be waited for.
    pub(super) is_asked: bool,
}

/// Something about pages that was not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Outstanding {
    pub(super) number: u64,
    pub(super) pages: Range<u64>,
    pub(super) sent: Instant,
    /// Pages may be mapped by it, until it is as old as [`PATIENCE`].
    pub(super) is_right: bool,
}

impl Said {
    /// That all that was said by now has taken effect.
    pub(super) fn question(&self, is_asked: bool) -> Question {
        Question {
            number: self.packets,
            at: Instant::now(),
            is_asked,
        }
    }

    /// The last of what is outstanding about some of `pages`.
    pub(super) fn last_of(
        &self,
        pages: &Range<u64>,
        which: impl Fn(&Outstanding) -> bool,
    ) -> Option<Outstanding> {
        let overlaps = |of: &Outstanding| of.pages.start < pages.end && pages.start < of.pages.end;
        let mut found = self.outstanding.iter().rev();
        found.find(|of| which(of) && overlaps(of)).cloned()
    }

    /// Forgets rights that are too old at `now` to be made use of.
    pub(super) fn forget_old_rights(&mut self, now: Instant) {
        let is_old = |of: &Outstanding| of.is_right && of.sent + PATIENCE <= now;
        // The others between them are few.
        if self.outstanding.iter().any(is_old) {
            self.outstanding.retain(|of| !is_old(of));
        }
    }

    /// The client has done the first `done` packets; `None` if that can't be.
    pub(super) fn acknowledge(&mut self, done: u64) -> Option<()> {
        (self.acknowledged..=self.packets)
            .contains(&done)
            .then_some(())?;
        self.acknowledged = done;
        self.silent_since = self.silent_since.filter(|&number| number > done);
        self.late_since = self.late_since.filter(|&number| number > done);
        let is_done = |of: &mut Outstanding| of.number <= done;
        while self.outstanding.pop_front_if(is_done).is_some() {}
        Some(())
    }

    pub(super) fn is_silent(&self) -> bool {
        self.silent_since.is_some()
    }

    pub(super) fn gets_rights(&self) -> bool {
        self.silent_since.or(self.late_since).is_none()
    }

    pub(super) fn takes_owed_size(&mut self) -> bool {
        !self.is_silent() && std::mem::take(&mut self.owes_size)
    }
}
