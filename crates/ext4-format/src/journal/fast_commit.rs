//! Fast commits: short records of what changed since the last transaction, in an area at the
//! end of the journal. Little-endian.
//!
//! The area is a list of tags. A HEAD tag says after which transaction it counts; each TAIL tag
//! ends one fast commit, and carries the checksum of everything since the one before it. Tags
//! don't cross blocks; a TAIL reaches to the end of its block.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Sequence;
use crate::checksum::crc32c;
use crate::error::Corruption;
use crate::ids::{FileBlock, InodeNo};

mod builder;

pub use builder::{FastCommitBuilder, update_checksums};

/// Bytes of a tag before its value (`struct ext4_fc_tl`).
const TAG_BYTES: usize = 4;
/// Bytes of a TAIL's value that its checksum covers.
const TAIL_COVERED: usize = 4;
/// Bytes of a name at most.
const NAME_MAX: usize = 255;
/// Bytes of an inode that are always there.
const INODE_BYTES_MIN: usize = 128;

const ADD_RANGE: u16 = 1;
const DEL_RANGE: u16 = 2;
const CREAT: u16 = 3;
const LINK: u16 = 4;
const UNLINK: u16 = 5;
const INODE: u16 = 6;
const PAD: u16 = 7;
const TAIL: u16 = 8;
const HEAD: u16 = 9;

#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawTag {
    fc_tag: U16,
    fc_len: U16,
}

#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPair {
    first: U32,
    second: U32,
}

#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawAddRange {
    fc_ino: U32,
    fc_ex: [u8; 12],
}

#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDelRange {
    fc_ino: U32,
    fc_lblk: U32,
    fc_len: U32,
}

/// A directory entry that was made or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastCommitEntry<'a> {
    /// The directory.
    pub parent: InodeNo,
    /// The inode that the entry names.
    pub ino: InodeNo,
    /// The name, 1 to 255 bytes. Not checked for what a name must not contain.
    pub name: &'a [u8],
}

/// What one tag of a fast commit says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastCommitTag<'a> {
    /// An extent of a file was added.
    AddRange {
        /// The file.
        ino: InodeNo,
        /// The extent as in an extent tree.
        extent: [u8; 12],
    },
    /// Blocks of a file were taken away.
    DelRange {
        /// The file.
        ino: InodeNo,
        /// The first of them.
        first: FileBlock,
        /// How many.
        count: u32,
    },
    /// An inode was created, with its first name.
    Creat(FastCommitEntry<'a>),
    /// A name was added.
    Link(FastCommitEntry<'a>),
    /// A name was removed.
    Unlink(FastCommitEntry<'a>),
    /// An inode, as it is now.
    Inode {
        /// Its number.
        ino: InodeNo,
        /// The record in the inode table, 128 bytes or more.
        raw: &'a [u8],
    },
    /// Nothing.
    Pad,
    /// The end of one fast commit.
    Tail {
        /// The transaction that is running.
        sequence: Sequence,
        /// Checksum of everything since the last tail, this tag's number included.
        checksum: u32,
    },
    /// The start of the area.
    Head {
        /// Features; none is known.
        features: u32,
        /// The transaction that is running.
        sequence: Sequence,
    },
}

/// A tag and the bytes it was read from.
#[derive(Clone, Copy, Debug)]
struct Located<'a> {
    tag: FastCommitTag<'a>,
    /// Its first byte in the block.
    at: usize,
    /// The tag and the part of its value that a checksum covers.
    covered: &'a [u8],
}

fn parse_value<'a>(kind: u16, value: &'a [u8]) -> Option<FastCommitTag<'a>> {
    let entry = |value: &'a [u8]| {
        let (raw, name) = RawPair::read_from_prefix(value).ok()?;
        (1..=NAME_MAX)
            .contains(&name.len())
            .then_some(FastCommitEntry {
                parent: InodeNo(raw.first.get()),
                ino: InodeNo(raw.second.get()),
                name,
            })
    };
    Some(match kind {
        ADD_RANGE => {
            let raw = RawAddRange::read_from_bytes(value).ok()?;
            FastCommitTag::AddRange {
                ino: InodeNo(raw.fc_ino.get()),
                extent: raw.fc_ex,
            }
        }
        DEL_RANGE => {
            let raw = RawDelRange::read_from_bytes(value).ok()?;
            FastCommitTag::DelRange {
                ino: InodeNo(raw.fc_ino.get()),
                first: FileBlock(raw.fc_lblk.get()),
                count: raw.fc_len.get(),
            }
        }
        CREAT => FastCommitTag::Creat(entry(value)?),
        LINK => FastCommitTag::Link(entry(value)?),
        UNLINK => FastCommitTag::Unlink(entry(value)?),
        INODE => {
            let (ino, raw) = U32::read_from_prefix(value).ok()?;
            (raw.len() >= INODE_BYTES_MIN).then_some(FastCommitTag::Inode {
                ino: InodeNo(ino.get()),
                raw,
            })?
        }
        PAD => FastCommitTag::Pad,
        TAIL => {
            let (raw, _) = RawPair::read_from_prefix(value).ok()?;
            FastCommitTag::Tail {
                sequence: Sequence(raw.first.get()),
                checksum: raw.second.get(),
            }
        }
        HEAD => {
            let raw = RawPair::read_from_bytes(value).ok()?;
            FastCommitTag::Head {
                features: raw.first.get(),
                sequence: Sequence(raw.second.get()),
            }
        }
        _ => return None,
    })
}

/// The tags of one block, until its end or the first that is none.
fn located(block: &[u8]) -> impl Iterator<Item = Result<Located<'_>, Corruption>> {
    let mut rest = block;
    std::iter::from_fn(move || {
        let (raw, values) = RawTag::read_from_prefix(rest).ok()?;
        let (kind, length) = (raw.fc_tag.get(), usize::from(raw.fc_len.get()));
        let bad = Corruption::FastCommitTag {
            tag: kind,
            length: raw.fc_len.get(),
        };
        let parsed = values
            .split_at_checked(length)
            .and_then(|(value, after)| Some((parse_value(kind, value)?, after)));
        let Some((tag, after)) = parsed else {
            rest = &[];
            return Some(Err(bad));
        };
        let covered_value = if kind == TAIL { TAIL_COVERED } else { length };
        let covered = rest
            .get(..TAG_BYTES.saturating_add(covered_value))
            .unwrap_or_default();
        let at = block.len().saturating_sub(rest.len());
        rest = after;
        Some(Ok(Located { tag, at, covered }))
    })
}

/// The tags of one block of a fast commit area.
///
/// # Errors
/// An item is an error, and the last, if there is no such tag, or its length is wrong.
pub fn tags(block: &[u8]) -> impl Iterator<Item = Result<FastCommitTag<'_>, Corruption>> {
    located(block).map(|item| item.map(|located| located.tag))
}

/// Follows a fast commit area block by block, and says how far it is valid.
#[derive(Debug)]
pub struct FastCommitScan {
    expected: Sequence,
    crc: u32,
    /// Tags seen.
    seen: u64,
    /// Tags up to the last valid tail.
    valid: u64,
    ended: bool,
    first: bool,
}

impl FastCommitScan {
    /// A scan for fast commits made while transaction `expected` was running: the one after the
    /// last that the log has.
    #[must_use]
    pub fn new(expected: Sequence) -> Self {
        Self {
            expected,
            crc: 0,
            seen: 0,
            valid: 0,
            ended: false,
            first: true,
        }
    }

    /// Looks at the next block. True if there may be more; false if the area ended here, be it
    /// at a tag of another transaction, at bytes that are no tag, or at a wrong checksum: such
    /// a fast commit was never finished.
    ///
    /// # Errors
    /// The area has features that are not known.
    pub fn block(&mut self, block: &[u8]) -> Result<bool, Corruption> {
        for item in located(block) {
            if self.ended {
                break;
            }
            let Ok(Located { tag, covered, .. }) = item else {
                self.ended = true;
                break;
            };
            let is_head = matches!(tag, FastCommitTag::Head { .. });
            if std::mem::take(&mut self.first) && !is_head {
                self.ended = true;
                break;
            }
            self.seen = self.seen.saturating_add(1);
            self.crc = crc32c(self.crc, covered);
            match tag {
                FastCommitTag::Head { features, sequence } => {
                    if sequence != self.expected {
                        self.ended = true;
                    } else if features != 0 {
                        return Err(Corruption::JournalFeatures {
                            set: "fast commit",
                            unknown: features,
                        });
                    }
                }
                FastCommitTag::Tail { sequence, checksum } => {
                    if sequence == self.expected && checksum == self.crc {
                        self.valid = self.seen;
                    } else {
                        self.ended = true;
                    }
                    self.crc = 0;
                }
                _ => {}
            }
        }
        Ok(!self.ended)
    }

    /// Tags from the start of the area up to the last valid tail.
    #[must_use]
    pub fn valid_tags(&self) -> u64 {
        self.valid
    }
}

#[cfg(test)]
mod tests;
