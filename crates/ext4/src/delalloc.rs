//! Delayed allocation: file blocks that have space, but no place yet.

/// The delayed blocks of one file. Guarded by the block map's lock.
#[derive(Debug, Default)]
pub(crate) struct Delayed {
    blocks: u64,
}
