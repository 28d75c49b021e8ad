//! What must hold in every state, and what recovery must make of every crash.

use super::config::Scenario;
use super::disk::{TREE, Tag, ZEROS, version_of};
use super::journal::{Stage, Transaction, written_home};
use super::state::{BLOCKS, FILES, Metadata, NONE, PAGES, State, has};

/// Some thread or the journal can go on, or everything is done.
pub const NO_DEADLOCK: &str = "whoever has work to do can go on";
/// Writeback and punch always get the blocks that were reserved for them.
pub const NO_LATE_ENOSPC: &str = "what was accepted can be mapped";
/// A block is mapped, busy or in a tree once.
pub const ONE_OWNER: &str = "a block has one owner";
/// A read returns what the page was at some moment of the read.
pub const READS_ARE_CURRENT: &str = "a read returns current data";
/// Data goes only to blocks that the page owns, at submission and at completion.
pub const WRITES_ARE_OWNED: &str = "data goes to blocks of its page";
/// A dirty page has a block or the promise of one.
pub const DIRTY_IS_COVERED: &str = "a dirty page is covered";
/// The counter is the sum of what pages and files must have reserved.
pub const RESERVATION_EXACT: &str = "the reservation is exact";
/// No block belongs to another owner in the metadata that a crash would bring back.
pub const NO_EARLY_REUSE: &str = "no block is reused before the commit";
/// After a crash each mapped page holds data of its own, of whatever version.
pub const CRASH_SHOWS_OWN: &str = "a crash shows own data or zeros";
/// After a crash each page is at the version of the last fsync, or a later one.
pub const FSYNC_SURVIVES: &str = "fsynced data survives a crash";
/// After a crash each tree block holds the tree.
pub const TREE_SURVIVES: &str = "the tree survives a crash";
/// A crash that brings the punch brings the zeroed edge.
pub const EDGE_SURVIVES: &str = "a punch brings its edge";

/// All of them.
pub const ALL: [&str; 12] = [
    NO_DEADLOCK,
    NO_LATE_ENOSPC,
    ONE_OWNER,
    READS_ARE_CURRENT,
    WRITES_ARE_OWNED,
    DIRTY_IS_COVERED,
    RESERVATION_EXACT,
    NO_EARLY_REUSE,
    CRASH_SHOWS_OWN,
    FSYNC_SURVIVES,
    TREE_SURVIVES,
    EDGE_SURVIVES,
];

pub(super) fn is_reservation_exact(scenario: &Scenario, state: &State) -> bool {
    let files = scenario.files();
    let sum: u8 = files
        .map(|file| state.must_be_reserved(scenario, file))
        .sum();
    // Nor does anybody who is evicted keep one.
    let is_orphan = |page: &super::state::Page| page.reserved && !page.present;
    sum == state.reserved && !state.pages.iter().any(is_orphan)
}

pub(super) fn is_dirty_covered(state: &State) -> bool {
    (0..PAGES).all(|page| !state.pages[page].dirty || state.is_covered(page))
}

/// Who owns each block now: pages by number, then trees. `Err` if two do.
fn owners(state: &State) -> Result<[Option<usize>; BLOCKS], ()> {
    let mut owners = [None; BLOCKS];
    let mapped = state.metadata.map.iter().copied().enumerate();
    let busy = state.pages.iter().map(|page| page.chosen).enumerate();
    let trees = (PAGES..).zip(state.metadata.tree);
    for (owner, block) in mapped.chain(busy).chain(trees) {
        if block == NONE {
            continue;
        }
        let before = &mut owners[usize::from(block)];
        if before.is_some() {
            return Err(());
        }
        *before = Some(owner);
    }
    Ok(owners)
}

pub(super) fn has_one_owner(state: &State) -> bool {
    owners(state).is_ok()
}

pub(super) fn is_reuse_late_enough(state: &State) -> bool {
    let Ok(owners) = owners(state) else {
        return true;
    };
    let journal = &state.journal;
    let frozen = journal.committing.as_ref().map(|_| &journal.frozen);
    [&journal.durable].into_iter().chain(frozen).all(|before| {
        let owned = before.map.iter().chain(&before.tree).enumerate();
        owned
            .filter(|&(_, &block)| block != NONE)
            .all(|(owner, &block)| owners[usize::from(block)].is_none_or(|now| now == owner))
    })
}

/// What recovery finds.
struct Recovered<'a> {
    state: &'a State,
    metadata: &'a Metadata,
    log: Vec<&'a Transaction>,
    sequence: u8,
}

impl Recovered<'_> {
    /// What a block may hold after replay. Blocks lose their unflushed writes independently of each
    /// other, so the sets say as much as the list of all images would.
    fn contents(&self, block: u8) -> Vec<Tag> {
        let block = usize::from(block);
        let is_replayed = (0..self.log.len()).any(|at| has(written_home(&self.log, at), block));
        if is_replayed {
            vec![TREE]
        } else {
            self.state.blocks[block].after_crash().collect()
        }
    }

    fn page(&self, page: usize) -> Vec<Tag> {
        match self.metadata.map[page] {
            NONE => vec![ZEROS],
            block => self.contents(block),
        }
    }

    fn is_own(&self, page: usize) -> bool {
        let is_own = |&tag: &Tag| tag == ZEROS || version_of(page, tag).is_some();
        self.page(page).iter().all(is_own)
    }

    /// Whether the page can only be at this version or a later one.
    fn is_from(&self, page: usize, version: u8) -> bool {
        let holes = self.state.pages[page].holes;
        self.page(page)
            .iter()
            .all(|&tag| match version_of(page, tag) {
                Some(found) => found >= version,
                None => tag == ZEROS && holes >> version != 0,
            })
    }
}

/// Asks a question of every crash that can happen now.
fn every_crash(state: &State, is_right: impl Fn(&Recovered<'_>) -> bool) -> bool {
    let journal = &state.journal;
    let before = Recovered {
        state,
        metadata: &journal.durable,
        log: journal.logged(false),
        sequence: journal.committed,
    };
    if !is_right(&before) {
        return false;
    }
    if journal.stage != Stage::Record {
        return true;
    }
    is_right(&Recovered {
        state,
        metadata: &journal.frozen,
        log: journal.logged(true),
        sequence: journal.committed + 1,
    })
}

pub(super) fn is_own_after_crash(state: &State) -> bool {
    every_crash(state, |found| (0..PAGES).all(|page| found.is_own(page)))
}

pub(super) fn is_fsync_kept(state: &State) -> bool {
    every_crash(state, |found| {
        (0..PAGES).all(|page| found.is_from(page, state.pages[page].promised))
    })
}

pub(super) fn is_tree_kept(state: &State) -> bool {
    every_crash(state, |found| {
        (0..FILES).all(|file| match found.metadata.tree[file] {
            NONE => true,
            block => found.contents(block) == [TREE],
        })
    })
}

pub(super) fn is_edge_kept(state: &State) -> bool {
    every_crash(state, |found| {
        state.edge.is_none_or(|edge| {
            found.sequence < edge.sequence || found.is_from(edge.page.into(), edge.version)
        })
    })
}
