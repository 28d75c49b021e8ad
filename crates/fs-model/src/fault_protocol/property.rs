//! What must hold in every state.

use super::invalidate::Invalidator;
use super::state::{Data, Entry, Owner, State};

/// Some thread can go on, or everything is done.
pub const NO_DEADLOCK: &str = "whoever has work to do can go on";
/// Nobody sees another file's data, nor data that was gone before he asked.
pub const ACCESSES_ARE_CURRENT: &str = "an access shows current data";
/// What page tables refer to is the page in the cache (S4.2).
pub const MAPS_ARE_CACHED: &str = "a mapped page is the cached page";
/// Behind the end of a file nothing is mapped once the truncate is finished (S4.14).
pub const MAPS_ARE_INSIDE: &str = "nothing is mapped past the end";
/// What can be stored to without a fault is dirty.
pub const WRITABLE_IS_DIRTY: &str = "a writable page is dirty";
/// A dirty page has a block or the promise of one (S3.3).
pub const DIRTY_IS_COVERED: &str = "a dirty page is covered";
/// A page that is clean holds what its block holds; zeros without a block.
pub const CLEAN_IS_ON_DISK: &str = "a clean page is on disk";
/// Data goes only to blocks of the file.
pub const WRITES_ARE_OWNED: &str = "data goes to blocks of the file";

/// All of them.
pub const ALL: [&str; 8] = [
    NO_DEADLOCK,
    ACCESSES_ARE_CURRENT,
    MAPS_ARE_CACHED,
    MAPS_ARE_INSIDE,
    WRITABLE_IS_DIRTY,
    DIRTY_IS_COVERED,
    CLEAN_IS_ON_DISK,
    WRITES_ARE_OWNED,
];

/// The folios that page tables refer to, and whether they may be stored to.
fn shared_entries(state: &State) -> impl Iterator<Item = (u8, bool)> + '_ {
    state
        .faulters
        .iter()
        .filter_map(|faulter| match faulter.entry {
            Some(Entry::Shared { folio, writable }) => Some((folio, writable)),
            _ => None,
        })
}

pub(super) fn maps_are_cached(state: &State) -> bool {
    let cached = state.folio.filter(|folio| folio.uptodate);
    shared_entries(state).all(|(number, _)| cached.is_some_and(|folio| folio.number == number))
}

pub(super) fn maps_are_inside(state: &State) -> bool {
    state.inside
        || state.invalidators.iter().any(Invalidator::is_cutting)
        || state.faulters.iter().all(|faulter| faulter.entry.is_none())
}

pub(super) fn writable_is_dirty(state: &State) -> bool {
    shared_entries(state)
        .filter(|(_, writable)| *writable)
        .all(|_| state.folio.is_some_and(|folio| folio.dirty))
}

pub(super) fn dirty_is_covered(state: &State) -> bool {
    state.map.is_some() || state.reserved || !state.folio.is_some_and(|folio| folio.dirty)
}

pub(super) fn clean_is_on_disk(state: &State) -> bool {
    let clean = state
        .folio
        .filter(|folio| folio.uptodate && !folio.dirty && !folio.writeback);
    clean.is_none_or(|folio| folio.data == state.read_block(state.map))
}

pub(super) fn writes_are_owned(state: &State) -> bool {
    let kept = |block: &super::state::Block| {
        block.owner != Owner::OtherFile || block.data == Data::Foreign
    };
    !state.faults.unowned && state.blocks.iter().all(kept)
}
