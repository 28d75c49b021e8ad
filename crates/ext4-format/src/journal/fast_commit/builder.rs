//! Fast commits as bytes: nothing here writes such, but who replays them has to be tried.

use super::{
    ADD_RANGE, CREAT, DEL_RANGE, FastCommitEntry, FastCommitTag, HEAD, INODE, LINK, PAD, TAG_BYTES,
    TAIL, TAIL_COVERED, UNLINK, located,
};
use crate::checksum::crc32c;
use crate::journal::Sequence;
use crate::num::to_usize;

/// Bytes of a TAIL's tag and its value, without what reaches to the end of the block.
const TAIL_BYTES: usize = TAG_BYTES + 2 * size_of::<u32>();

/// An area of fast commits in the making.
#[derive(Clone, Debug)]
pub struct FastCommitBuilder {
    block_size: usize,
    sequence: Sequence,
    area: Vec<u8>,
}

impl FastCommitBuilder {
    /// An area in blocks of `block_size` bytes, for fast commits made while transaction `sequence`
    /// was running. It begins with a HEAD.
    #[must_use]
    pub fn new(block_size: u32, sequence: Sequence) -> Self {
        let mut builder = Self {
            block_size: to_usize(block_size).max(TAIL_BYTES),
            sequence,
            area: Vec::new(),
        };
        builder.push(&FastCommitTag::Head {
            features: 0,
            sequence,
        });
        builder
    }

    /// A tag more, in the next block if this one has no room for it and the head of another. What
    /// is larger than a block is cut off by whoever reads it.
    pub fn push(&mut self, tag: &FastCommitTag<'_>) {
        let (kind, value) = encode(tag);
        let needed = value.len().saturating_add(2 * TAG_BYTES);
        if self.room() < needed {
            self.pad();
        }
        self.put(kind, &value);
    }

    /// Ends a fast commit, with its checksum. The next one begins in the next block.
    pub fn end_commit(&mut self) {
        if self.room() < TAIL_BYTES {
            self.pad();
        }
        let mut value = self.sequence.0.to_le_bytes().to_vec();
        value.resize(self.room().saturating_sub(TAG_BYTES), 0);
        self.put(TAIL, &value);
        update_checksums(&mut self.area, self.block_size);
    }

    /// What there is of it.
    #[must_use]
    pub fn area(&self) -> &[u8] {
        &self.area
    }

    /// Bytes that are left of the last block.
    fn room(&self) -> usize {
        let used = self.area.len().checked_rem(self.block_size);
        self.block_size.saturating_sub(used.unwrap_or(0))
    }

    fn pad(&mut self) {
        let length = self.room().saturating_sub(TAG_BYTES);
        self.put(PAD, &vec![0; length]);
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        self.area.extend(kind.to_le_bytes());
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.area.extend(length.to_le_bytes());
        self.area.extend(value);
    }
}

/// The number of a tag, and its value.
fn encode(tag: &FastCommitTag<'_>) -> (u16, Vec<u8>) {
    let words =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|it| it.to_le_bytes()).collect() };
    let entry = |it: &FastCommitEntry<'_>| [&words(&[it.parent.0, it.ino.0])[..], it.name].concat();
    match tag {
        FastCommitTag::AddRange { ino, extent } => {
            (ADD_RANGE, [&words(&[ino.0])[..], extent].concat())
        }
        FastCommitTag::DelRange { ino, first, count } => {
            (DEL_RANGE, words(&[ino.0, first.0, *count]))
        }
        FastCommitTag::Creat(it) => (CREAT, entry(it)),
        FastCommitTag::Link(it) => (LINK, entry(it)),
        FastCommitTag::Unlink(it) => (UNLINK, entry(it)),
        FastCommitTag::Inode { ino, raw } => (INODE, [&words(&[ino.0])[..], raw].concat()),
        FastCommitTag::Pad => (PAD, Vec::new()),
        FastCommitTag::Tail { sequence, checksum } => (TAIL, words(&[sequence.0, *checksum])),
        FastCommitTag::Head { features, sequence } => (HEAD, words(&[*features, sequence.0])),
    }
}

/// Makes the checksum of every fast commit in `area` right: blocks of `block_size` bytes, of which
/// the first begins a fast commit. It ends where the tags do.
pub fn update_checksums(area: &mut [u8], block_size: usize) {
    let mut crc = 0;
    for block in area.chunks_mut(block_size.max(1)) {
        let mut places = Vec::new();
        let mut is_whole = true;
        for item in located(block) {
            let Ok(found) = item else {
                is_whole = false;
                break;
            };
            crc = crc32c(crc, found.covered);
            if matches!(found.tag, FastCommitTag::Tail { .. }) {
                let start = found.at.saturating_add(TAG_BYTES + TAIL_COVERED);
                places.push((start, crc));
                crc = 0;
            }
        }
        for (start, crc) in places {
            let place = block.get_mut(start..).and_then(<[u8]>::first_chunk_mut);
            if let Some(place) = place {
                *place = crc.to_le_bytes();
            }
        }
        if !is_whole {
            break;
        }
    }
}
