//! Descriptor blocks: tags that say where the data blocks that follow belong.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::{check_tail, data_checksum, set_tail};
use super::{BlockKind, HEADER_BYTES, LogFormat, MAGIC_BYTES, RawHeader, Sequence};
use crate::error::Corruption;
use crate::ids::BlockNo;
use crate::num::{hi32, join32, lo16, lo32, to_usize};

/// What a descriptor block is called in errors.
const WHAT: &str = "a descriptor block of the journal";
/// Bytes of the UUID that follows a tag without `SAME_UUID`.
const UUID_BYTES: usize = 16;

bitflags::bitflags! {
    /// Flags of a tag.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TagFlags: u16 {
        /// The first four bytes of the block were the journal's magic number, and lie in the
        /// log as zeros.
        const ESCAPE = 1;
        /// No UUID follows: the block is of the same file system as the one before.
        const SAME_UUID = 2;
        /// The block was deleted by this transaction. Never written by Linux, and of no effect
        /// on recovery.
        const DELETED = 4;
        /// The last tag of this block.
        const LAST_TAG = 8;
    }
}

/// How tags lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagFormat {
    /// 8 bytes (`journal_block_tag_t` without its upper half), of which version 2 uses the
    /// checksum and is followed by two bytes of padding.
    Narrow {
        /// Version 2 of checksums.
        csum_v2: bool,
    },
    /// The same with the upper 32 bits of the block number (`64bit`).
    Wide {
        /// Version 2 of checksums.
        csum_v2: bool,
    },
    /// 16 bytes with a whole checksum (`journal_block_tag3_t`, version 3).
    V3 {
        /// The upper 32 bits of the block number count.
        is_64bit: bool,
    },
}

impl TagFormat {
    /// The format that a journal with these features has (`journal_tag_bytes`).
    #[must_use]
    pub fn of(format: &LogFormat) -> Self {
        let features = format.features;
        if features.csum_v3() {
            Self::V3 {
                is_64bit: features.is_64bit(),
            }
        } else if features.is_64bit() {
            Self::Wide {
                csum_v2: features.csum_v2(),
            }
        } else {
            Self::Narrow {
                csum_v2: features.csum_v2(),
            }
        }
    }

    /// Bytes of a tag, without a UUID.
    #[must_use]
    pub fn tag_bytes(self) -> usize {
        match self {
            Self::Narrow { csum_v2: false } => 8,
            Self::Narrow { csum_v2: true } => 10,
            Self::Wide { csum_v2: false } => 12,
            Self::Wide { csum_v2: true } => 14,
            Self::V3 { .. } => 16,
        }
    }
}

/// The first 8 bytes of a tag before version 3 (`journal_block_tag_t`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawTag {
    t_blocknr: U32,
    t_checksum: U16,
    t_flags: U16,
}

/// A tag of version 3 (`journal_block_tag3_t`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawTag3 {
    t_blocknr: U32,
    t_flags: U32,
    t_blocknr_high: U32,
    t_checksum: U32,
}

const _: () = assert!(size_of::<RawTag>() == 8 && size_of::<RawTag3>() == 16);

/// The checksum of a data block, as its tag has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagChecksum {
    /// None.
    None,
    /// The low 16 bits (version 2).
    Low(u16),
    /// All of it (version 3).
    Full(u32),
}

impl TagChecksum {
    /// Whether a data block, as it lies in the log, has this checksum.
    #[must_use]
    pub fn matches(self, seed: u32, sequence: Sequence, block: &[u8]) -> bool {
        match self {
            Self::None => true,
            Self::Low(low) => low == lo16(data_checksum(seed, sequence, block)),
            Self::Full(full) => full == data_checksum(seed, sequence, block),
        }
    }
}

/// A tag: where one data block of the log belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The block of the file system.
    pub block: BlockNo,
    /// Flags.
    pub flags: TagFlags,
    /// Checksum of the data block.
    pub checksum: TagChecksum,
}

/// Checks the checksum of a descriptor block, in a journal that has them.
///
/// # Errors
/// It is wrong.
pub fn check(format: &LogFormat, block: &[u8]) -> Result<(), Corruption> {
    check_tail(format, WHAT, block)
}

/// The tags of a descriptor block, up to the one marked as last or to the end of the block. The
/// n-th belongs to the n-th block of the log after the descriptor.
///
/// # Errors
/// The block is shorter than its header. Tags never reach past the block: one that does not fit
/// is none.
pub fn tags<'a>(
    format: &LogFormat,
    block: &'a [u8],
) -> Result<impl Iterator<Item = Tag> + use<'a>, Corruption> {
    let layout = TagFormat::of(format);
    let body = format.body(WHAT, block)?;
    let mut rest = body.get(HEADER_BYTES..).unwrap_or_default();
    Ok(std::iter::from_fn(move || {
        let (bytes, after) = rest.split_at_checked(layout.tag_bytes())?;
        let tag = parse_tag(layout, bytes)?;
        rest = if tag.flags.contains(TagFlags::LAST_TAG) {
            &[]
        } else if tag.flags.contains(TagFlags::SAME_UUID) {
            after
        } else {
            after.get(UUID_BYTES..).unwrap_or_default()
        };
        Some(tag)
    }))
}

fn parse_tag(layout: TagFormat, bytes: &[u8]) -> Option<Tag> {
    let wide = |low: U32, high: U32| BlockNo(join32(low.get(), high.get()));
    let (csum_v2, high) = match layout {
        TagFormat::V3 { is_64bit } => {
            let (raw, _) = RawTag3::read_from_prefix(bytes).ok()?;
            let high = if is_64bit {
                raw.t_blocknr_high
            } else {
                0.into()
            };
            return Some(Tag {
                block: wide(raw.t_blocknr, high),
                flags: TagFlags::from_bits_truncate(lo16(raw.t_flags.get())),
                checksum: TagChecksum::Full(raw.t_checksum.get()),
            });
        }
        TagFormat::Narrow { csum_v2 } => (csum_v2, U32::new(0)),
        TagFormat::Wide { csum_v2 } => {
            let (_, high) = bytes.split_at_checked(size_of::<RawTag>())?;
            (csum_v2, U32::read_from_prefix(high).ok()?.0)
        }
    };
    let (raw, _) = RawTag::read_from_prefix(bytes).ok()?;
    Some(Tag {
        block: wide(raw.t_blocknr, high),
        flags: TagFlags::from_bits_truncate(raw.t_flags.get()),
        checksum: if csum_v2 {
            TagChecksum::Low(raw.t_checksum.get())
        } else {
            TagChecksum::None
        },
    })
}

/// Builds a descriptor block.
#[derive(Debug)]
pub struct DescriptorBuilder {
    format: LogFormat,
    sequence: Sequence,
    uuid: [u8; UUID_BYTES],
    bytes: Vec<u8>,
    /// Where the flags of the last tag lie (two bytes).
    last_flags_at: usize,
    count: u32,
}

impl DescriptorBuilder {
    /// An empty descriptor block of transaction `sequence`. `uuid` follows the first tag; Linux
    /// writes the file system's and reads none.
    #[must_use]
    pub fn new(format: LogFormat, sequence: Sequence, uuid: [u8; 16]) -> Self {
        Self {
            format,
            sequence,
            uuid,
            bytes: RawHeader::new(BlockKind::Descriptor, sequence)
                .as_bytes()
                .to_vec(),
            last_flags_at: 0,
            count: 0,
        }
    }

    /// How many tags a descriptor block of this format has room for.
    #[must_use]
    pub fn capacity(format: &LogFormat) -> u32 {
        let tail = if format.has_checksums() {
            super::TAIL_BYTES
        } else {
            0
        };
        to_usize(format.block_size)
            .saturating_sub(HEADER_BYTES)
            .saturating_sub(UUID_BYTES)
            .saturating_sub(tail)
            .checked_div(TagFormat::of(format).tag_bytes())
            .and_then(|tags| u32::try_from(tags).ok())
            .unwrap_or_default()
    }

    /// Adds a tag for `data`, the contents of `block`, unless the descriptor is full. `data` is
    /// changed to what must be written to the log: escaped, if it begins with the journal's
    /// magic number. Nothing is changed if the tag is not added.
    ///
    /// # Errors
    /// The number of the block has more bits than the journal's tags.
    pub fn push(&mut self, block: BlockNo, data: &mut [u8]) -> Result<bool, Corruption> {
        if self.count >= Self::capacity(&self.format) {
            return Ok(false);
        }
        let layout = TagFormat::of(&self.format);
        let low = U32::new(lo32(block.0));
        let high = hi32(block.0);
        if high != 0 && !self.format.features.is_64bit() {
            return Err(Corruption::JournalBlockRange { block });
        }
        let mut flags = TagFlags::empty();
        if let Some(first) = data.first_chunk_mut::<4>()
            && *first == MAGIC_BYTES
        {
            *first = [0; 4];
            flags |= TagFlags::ESCAPE;
        }
        if self.count > 0 {
            flags |= TagFlags::SAME_UUID;
        }
        let checksum = data_checksum(self.format.seed, self.sequence, data);
        // In both layouts the low half of the flags ends 8 bytes into the tag.
        self.last_flags_at = self.bytes.len().saturating_add(6);
        match layout {
            TagFormat::V3 { .. } => {
                let raw = RawTag3 {
                    t_blocknr: low,
                    t_flags: u32::from(flags.bits()).into(),
                    t_blocknr_high: high.into(),
                    t_checksum: checksum.into(),
                };
                self.bytes.extend_from_slice(raw.as_bytes());
            }
            TagFormat::Narrow { csum_v2 } | TagFormat::Wide { csum_v2 } => {
                let raw = RawTag {
                    t_blocknr: low,
                    t_checksum: if csum_v2 { lo16(checksum) } else { 0 }.into(),
                    t_flags: flags.bits().into(),
                };
                self.bytes.extend_from_slice(raw.as_bytes());
                if matches!(layout, TagFormat::Wide { .. }) {
                    self.bytes.extend_from_slice(&high.to_be_bytes());
                }
                if csum_v2 {
                    self.bytes.extend_from_slice(&[0; 2]);
                }
            }
        }
        if self.count == 0 {
            self.bytes.extend_from_slice(&self.uuid);
        }
        self.count = self.count.saturating_add(1);
        Ok(true)
    }

    /// Tags so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The finished block.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let flags_at = self.last_flags_at..self.last_flags_at.saturating_add(2);
        if self.count > 0
            && let Some(flags) = self.bytes.get_mut(flags_at)
            && let Ok(raw) = U16::mut_from_bytes(flags)
        {
            *raw = (raw.get() | TagFlags::LAST_TAG.bits()).into();
        }
        self.bytes.resize(to_usize(self.format.block_size), 0);
        set_tail(&self.format, &mut self.bytes);
        self.bytes
    }
}
