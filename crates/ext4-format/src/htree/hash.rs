//! The hashes by which directories are indexed. Source: the kernel's
//! `Documentation/filesystems/ext4/directory.rst`; the compression functions are TEA (Wheeler and
//! Needham) and MD4 (RFC 1320) cut to eight steps a round.

use super::HtreeCorruption;

/// Initial state if the seed is zero: MD4's.
const DEFAULT_SEED: [u32; 4] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476];
/// The hash that readdir takes for the end, which no name may have.
const END: u32 = 0xFFFF_FFFE;
/// What a name gets that would have it.
const BEFORE_END: u32 = 0xFFFF_FFFC;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Legacy,
    HalfMd4,
    Tea,
}

/// The hash of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirHash {
    /// What the index is ordered by. Bit 0 is clear: the index uses it for collisions.
    pub major: u32,
    /// Orders names of equal `major` in readdir; 0 for the legacy hash.
    pub minor: u32,
}

/// A hash function with its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirHasher {
    function: Function,
    /// Whether bytes of names count as signed: a matter of the machine that made the file system.
    signed: bool,
    seed: [u32; 4],
}

impl DirHasher {
    /// By `hash_version` of a directory's root, or `s_def_hash_version`; `unsigned` from the
    /// superblock's flags (`EXT2_FLAGS_UNSIGNED_HASH`); `seed` is `s_hash_seed`, four
    /// little-endian words, where all zero stands for a default.
    ///
    /// # Errors
    ///
    /// [`HtreeCorruption::SipHash`] for the hash that takes an encryption key, and
    /// [`HtreeCorruption::HashVersion`] for what the format does not define. On disk it defines
    /// the signed versions alone: 3 to 5, the unsigned ones, are no values of `hash_version`.
    pub fn new(version: u8, unsigned: bool, seed: &[u32; 4]) -> Result<Self, HtreeCorruption> {
        let function = match version {
            0 => Function::Legacy,
            1 => Function::HalfMd4,
            2 => Function::Tea,
            6 => return Err(HtreeCorruption::SipHash),
            _ => return Err(HtreeCorruption::HashVersion { version }),
        };
        Ok(Self {
            function,
            signed: !unsigned,
            seed: if *seed == [0; 4] { DEFAULT_SEED } else { *seed },
        })
    }

    /// The hash of `name`.
    #[must_use]
    pub fn hash(&self, name: &[u8]) -> DirHash {
        let (major, minor) = match self.function {
            Function::Legacy => (self.legacy(name), 0),
            Function::HalfMd4 => {
                let mut state = self.seed;
                for (at, chunk) in name.chunks(32).enumerate() {
                    let left = name.len().saturating_sub(at.saturating_mul(32));
                    half_md4(&mut state, &self.words::<8>(chunk, left));
                }
                (state[1], state[2])
            }
            Function::Tea => {
                let mut state = self.seed;
                for (at, chunk) in name.chunks(16).enumerate() {
                    let left = name.len().saturating_sub(at.saturating_mul(16));
                    tea(&mut state, &self.words::<4>(chunk, left));
                }
                (state[0], state[1])
            }
        };
        let major = major & !1;
        DirHash {
            major: if major == END { BEFORE_END } else { major },
            minor,
        }
    }

    /// A byte of a name as a word, sign-extended if the file system does.
    fn byte(&self, byte: u8) -> u32 {
        if self.signed {
            i32::from(byte.cast_signed()).cast_unsigned()
        } else {
            byte.into()
        }
    }

    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut last, mut before) = (0x12A3_FE2D_u32, 0x37AB_E8F9_u32);
        for byte in name {
            let mixed = last ^ self.byte(*byte).wrapping_mul(7_152_373);
            let mut next = before.wrapping_add(mixed);
            if next & 0x8000_0000 != 0 {
                next = next.wrapping_sub(0x7FFF_FFFF);
            }
            before = last;
            last = next;
        }
        last << 1
    }

    /// A part of a name as words, first byte uppermost. Missing bytes are made of the length of
    /// all that is left of the name.
    fn words<const N: usize>(&self, chunk: &[u8], left: usize) -> [u32; N] {
        // A name has 255 bytes at most, so that its length is a byte.
        let len = u32::try_from(left).unwrap_or(u32::MAX);
        let pad = len | (len << 8);
        let pad = pad | (pad << 16);
        let mut words = [pad; N];
        for (word, bytes) in words.iter_mut().zip(chunk.chunks(4)) {
            *word = bytes
                .iter()
                .fold(pad, |word, byte| (word << 8).wrapping_add(self.byte(*byte)));
        }
        words
    }
}

/// 16 rounds of TEA, the state added back.
fn tea(state: &mut [u32; 4], key: &[u32; 4]) {
    let [k0, k1, k2, k3] = *key;
    let [mut left, mut right, ..] = *state;
    let half = |value: u32, sum: u32, up: u32, down: u32| {
        (value << 4).wrapping_add(up) ^ value.wrapping_add(sum) ^ (value >> 5).wrapping_add(down)
    };
    let mut sum = 0_u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9E37_79B9);
        left = left.wrapping_add(half(right, sum, k0, k1));
        right = right.wrapping_add(half(left, sum, k2, k3));
    }
    state[0] = state[0].wrapping_add(left);
    state[1] = state[1].wrapping_add(right);
}

/// Three rounds of eight steps with MD4's functions, constants and shifts.
fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    type Round = (fn(u32, u32, u32) -> u32, u32, [usize; 8], [u32; 4]);
    const ROUNDS: [Round; 3] = [
        (
            |x, y, z| z ^ (x & (y ^ z)),
            0,
            [0, 1, 2, 3, 4, 5, 6, 7],
            [3, 7, 11, 19],
        ),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5A82_7999,
            [1, 3, 5, 7, 0, 2, 4, 6],
            [3, 5, 9, 13],
        ),
        (
            |x, y, z| x ^ y ^ z,
            0x6ED9_EBA1,
            [3, 7, 2, 6, 1, 5, 0, 4],
            [3, 9, 11, 15],
        ),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in ROUNDS {
        for (index, shift) in order.into_iter().zip(shifts.into_iter().cycle()) {
            let word = input.get(index).copied().unwrap_or(0);
            let step = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(word)
                .wrapping_add(constant)
                .rotate_left(shift);
            (a, b, c, d) = (d, step, b, c);
        }
    }
    for (word, mixed) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(mixed);
    }
}
