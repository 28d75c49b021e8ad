//! Space: what is free, what is reserved, and for what.

use super::config::{Mutant, Scenario};
use super::state::{BLOCKS, Hand, NONE, State};

/// Extents that fit into an inode; with more, the file needs a tree block.
const INLINE_EXTENTS: usize = 1;

impl State {
    /// Blocks that may be allocated: not mapped, not in a tree, not busy, and not waiting for the
    /// commit that frees them.
    pub(super) fn allocatable(&self, scenario: &Scenario) -> impl Iterator<Item = u8> {
        let mut taken = self.journal.freed_running | self.journal.freed_committing;
        let owned = self.metadata.map.iter().chain(&self.metadata.tree);
        for &block in owned.chain(self.busy(scenario)) {
            if block != NONE {
                taken |= 1 << block;
            }
        }
        (0..scenario.blocks).filter(move |&block| taken & (1 << block) == 0)
    }

    /// Blocks that writeback has chosen and not mapped yet.
    fn busy(&self, scenario: &Scenario) -> impl Iterator<Item = &u8> {
        let sees_busy = !scenario.is(Mutant::BusyLooksFree);
        let pages = self.pages.iter().filter(move |_| sees_busy);
        pages.map(|page| &page.chosen)
    }

    /// Extents of a file: runs of blocks.
    fn extents(&self, scenario: &Scenario, file: usize) -> usize {
        let mut before = NONE;
        let mut extents = 0;
        for page in scenario.pages_of(file) {
            let block = self.metadata.map[page];
            if block != NONE && (before == NONE || block != before + 1) {
                extents += 1;
            }
            before = block;
        }
        extents
    }

    pub(super) fn needs_tree(&self, scenario: &Scenario, file: usize) -> bool {
        self.extents(scenario, file) > INLINE_EXTENTS
    }

    fn hands(&self, scenario: &Scenario, file: usize, hand: Hand) -> usize {
        (0..self.threads.len())
            .filter(|&thread| {
                self.threads[thread].hand == hand
                    && self
                        .op(scenario, thread)
                        .is_some_and(|op| op.file(scenario) == file)
            })
            .count()
    }

    /// Pages of a file that wait for a block of their own.
    fn waiting(&self, scenario: &Scenario, file: usize) -> usize {
        let pages = scenario.pages_of(file);
        pages.filter(|&page| self.pages[page].reserved).count()
            + self.hands(scenario, file, Hand::Page)
    }

    /// Pages of a file that will be mapped: waiting for a block, or with one chosen.
    pub(super) fn unmapped(&self, scenario: &Scenario, file: usize) -> usize {
        let pages = scenario.pages_of(file);
        self.waiting(scenario, file)
            + pages
                .filter(|&page| self.pages[page].chosen != NONE)
                .count()
    }

    /// What a file must have reserved: a block for each waiting page, and the tree block of the worst
    /// case, in which no two pages are contiguous.
    pub(super) fn must_be_reserved(&self, scenario: &Scenario, file: usize) -> u8 {
        let unmapped = self.unmapped(scenario, file);
        let mapped = scenario
            .pages_of(file)
            .filter(|&page| self.metadata.map[page] != NONE)
            .count();
        let is_tree_missing = self.metadata.tree[file] == NONE;
        let may_split = self.hands(scenario, file, Hand::Tree) > 0;
        let may_grow = unmapped > 0 && mapped + unmapped > INLINE_EXTENTS;
        let tree =
            is_tree_missing && (may_split || may_grow) && !scenario.is(Mutant::NoTreeReservation);
        let blocks = self.waiting(scenario, file) + usize::from(tree);
        u8::try_from(blocks).expect("few pages")
    }

    /// Changes something that the reservation of a file follows.
    pub(super) fn adjust(
        &mut self,
        scenario: &Scenario,
        file: usize,
        change: impl FnOnce(&mut Self),
    ) {
        let before = self.must_be_reserved(scenario, file);
        change(self);
        let after = self.must_be_reserved(scenario, file);
        self.reserved = (self.reserved + after)
            .checked_sub(before)
            .expect("no more is released than was reserved");
    }

    /// Puts a reservation into the thread's hand, if there is space for it.
    pub(super) fn reserve(&mut self, scenario: &Scenario, thread: usize, hand: Hand) -> bool {
        let file = self
            .op(scenario, thread)
            .expect("a thread reserves within an operation")
            .file(scenario);
        let mut with = self.clone();
        with.adjust(scenario, file, |state| state.threads[thread].hand = hand);
        let is_space = with.allocatable(scenario).count() >= usize::from(with.reserved);
        if is_space {
            *self = with;
        }
        is_space
    }

    /// The transaction after whose commit there may be more space.
    pub(super) fn space_after(&self) -> Option<u8> {
        let running = self.journal.running.sequence;
        if self.journal.freed_running != 0 {
            Some(running)
        } else if self.journal.freed_committing != 0 {
            Some(running - 1)
        } else {
            None
        }
    }

    /// A page that can be dirty without reserving: it has a block, or the promise of one.
    pub(super) fn is_covered(&self, page: usize) -> bool {
        let cached = &self.pages[page];
        cached.reserved || cached.chosen != NONE || self.metadata.map[page] != NONE
    }

    /// Takes a block that a reservation covers. None can be had only if reservations are wrong.
    pub(super) fn allocate(&mut self, scenario: &Scenario) -> u8 {
        let first = self.allocatable(scenario).next();
        if first.is_none() {
            self.faults.late_enospc = true;
        }
        first.unwrap_or(NONE)
    }
}

const _: () = assert!(BLOCKS <= 8, "sets of blocks are masks of 8 bits");
