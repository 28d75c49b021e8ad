//! Positions in a directory that survive what happens to its blocks.
//!
//! A directory that has, or may get, an index is read in the order of its names' hashes, so that
//! a split of a block moves no entry past a reader. A position is then the hash of an entry (that
//! of the index, then part of a CRC-32C, since the index's may be the same for many names), plus
//! how many entries with the same hashes come before it. Directories that never get an index are
//! read block by block, where entries do not move: a position there is a byte offset.
//!
//! ```text
//! 0                 before "."             1  before ".."            2  before all others
//! 01 | major >> 1 (31 bits) | crc32c >> 8 (24 bits) | ordinal (7 bits)   hash order
//! 001 | byte offset (61 bits)                                            block order
//! ```
//! Positions are never negative as signed 64-bit numbers: lseek has to carry them.

use pagefence_ext4_format::checksum::crc32c;
use pagefence_vfs::Cookie;

const HASHED: u64 = 1 << 62;
const LINEAR: u64 = 1 << 61;
const ORDINAL_BITS: u32 = 7;
const MINOR_BITS: u32 = 24;

/// The largest ordinal that a cookie can carry.
pub(crate) const ORDINAL_MAX: u32 = (1 << ORDINAL_BITS) - 1;

/// The sort key of a name in hash order: what of its hash a cookie carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HashKey(u64);

impl HashKey {
    /// Of a name whose hash, as the directory index uses it, is `major`: the lowest bit is a flag
    /// there and does not count.
    pub(crate) fn new(major: u32, name: &[u8]) -> Self {
        Self(Self::first(major).0 | u64::from(crc32c(0, name) >> (32 - MINOR_BITS)))
    }

    /// The least of all names with that hash.
    pub(crate) fn first(major: u32) -> Self {
        Self(u64::from(major >> 1) << MINOR_BITS)
    }

    /// The smallest hash with this key, to look up in an index.
    pub(crate) fn major(self) -> u32 {
        u32::try_from(self.0 >> MINOR_BITS).map_or(u32::MAX, |half| half << 1)
    }
}

/// A decoded [`Cookie`]: where reading goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// At ".".
    Dot,
    /// At "..".
    DotDot,
    /// At the first entry whose (key, ordinal) is not below this.
    Hash {
        /// Key of the entry.
        key: HashKey,
        /// How many entries with this key have been read.
        ordinal: u32,
    },
    /// At the first entry at or after this byte of the directory.
    Offset(u64),
}

impl Position {
    /// The first position after "..".
    pub(crate) const FIRST_HASH: Self = Self::Hash {
        key: HashKey(0),
        ordinal: 0,
    };

    /// After everything, in hash order.
    pub(crate) const END: Self = Self::Hash {
        key: HashKey((1 << (31 + MINOR_BITS)) - 1),
        ordinal: ORDINAL_MAX,
    };

    /// Decodes a cookie for a directory read in hash order (`hashed`) or in block order. Any
    /// number is some position: seekdir may bring what it likes.
    pub(crate) fn decode(cookie: Cookie, hashed: bool) -> Self {
        match cookie {
            0 => Self::Dot,
            1 => Self::DotDot,
            _ if hashed => {
                if cookie & HASHED == 0 {
                    return Self::FIRST_HASH;
                }
                let bits = cookie & (HASHED - 1);
                Self::Hash {
                    key: HashKey((bits >> ORDINAL_BITS) & ((1 << (31 + MINOR_BITS)) - 1)),
                    ordinal: (bits & u64::from(ORDINAL_MAX)) as u32,
                }
            }
            _ if cookie & LINEAR == 0 => Self::Offset(0),
            _ => Self::Offset(cookie & (LINEAR - 1)),
        }
    }

    /// The cookie of this position.
    pub(crate) fn encode(self) -> Cookie {
        match self {
            Self::Dot => 0,
            Self::DotDot => 1,
            Self::Hash {
                key: HashKey(0),
                ordinal: 0,
            } => 2,
            Self::Hash { key, ordinal } => {
                HASHED | (key.0 << ORDINAL_BITS) | u64::from(ordinal.min(ORDINAL_MAX))
            }
            Self::Offset(0) => 2,
            Self::Offset(offset) => LINEAR | (offset & (LINEAR - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hash_positions_round_trip(major: u32, name: Vec<u8>, ordinal in 0..=ORDINAL_MAX) {
            let position = Position::Hash { key: HashKey::new(major, &name), ordinal };
            let cookie = position.encode();
            prop_assert!(i64::try_from(cookie).is_ok());
            prop_assert_eq!(Position::decode(cookie, true), position);
        }

        #[test]
        fn offsets_round_trip(offset in 0u64..1 << 61) {
            let position = Position::Offset(offset);
            prop_assert!(i64::try_from(position.encode()).is_ok());
            prop_assert_eq!(Position::decode(position.encode(), false), position);
        }

        #[test]
        fn any_number_is_some_position(cookie: u64, hashed: bool) {
            let _ = Position::decode(cookie, hashed);
        }

        #[test]
        fn keys_order_as_hashes_do(a: (u32, Vec<u8>), b: (u32, Vec<u8>)) {
            prop_assume!(a.0 >> 1 != b.0 >> 1);
            let (low, high) = if a.0 < b.0 { (a, b) } else { (b, a) };
            prop_assert!(HashKey::new(low.0, &low.1) < HashKey::first(high.0));
            prop_assert!(HashKey::first(high.0) <= HashKey::new(high.0, &high.1));
        }
    }

    #[test]
    fn dots_come_first() {
        assert_eq!(Position::decode(0, true), Position::Dot);
        assert_eq!(Position::decode(1, false), Position::DotDot);
        assert_eq!(Position::decode(2, true), Position::FIRST_HASH);
        assert_eq!(Position::decode(2, false), Position::Offset(0));
    }

    #[test]
    fn the_key_gives_back_the_hash_to_search_for() {
        assert_eq!(HashKey::new(0xfeed_beef, b"name").major(), 0xfeed_beee);
    }
}
