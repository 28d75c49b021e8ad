//! Times of inodes: 34 bits of seconds that start in 1901, and nanoseconds.

/// Least second that an inode can hold.
pub const MIN_SECONDS: i64 = -0x8000_0000;
/// Greatest second without the extra field (2038).
pub const MAX_SECONDS_SHORT: i64 = 0x7FFF_FFFF;
/// Greatest second with the extra field (2446).
pub const MAX_SECONDS: i64 = 0x3_7FFF_FFFF;

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since the epoch; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds after that second, below 10^9.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// Decodes the two fields; without `extra` there are no nanoseconds. More nanoseconds than
    /// a second has, which only a damaged field holds, count as the last one.
    #[must_use]
    pub fn decode(low: u32, extra: Option<u32>) -> Self {
        let extra = extra.unwrap_or(0);
        let epoch = i64::from(extra & 3) << 32;
        Self {
            // 34 bits and a sign: can't wrap.
            seconds: i64::from(low.cast_signed()).wrapping_add(epoch),
            nanoseconds: (extra >> 2).min(999_999_999),
        }
    }

    /// The field that every record has, for one without the extra field; later and earlier
    /// times are clamped.
    #[must_use]
    pub fn encode_short(self) -> u32 {
        let [a, b, c, d, ..] = self
            .seconds
            .clamp(MIN_SECONDS, MAX_SECONDS_SHORT)
            .to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Both fields; later and earlier times are clamped.
    #[must_use]
    pub fn encode(self) -> (u32, u32) {
        let seconds = self.seconds.clamp(MIN_SECONDS, MAX_SECONDS);
        let [a, b, c, d, ..] = seconds.to_le_bytes();
        let low = u32::from_le_bytes([a, b, c, d]);
        // What is left after the signed low half is a multiple of 2^32 from 0 to 3.
        let [_, _, _, _, epoch, ..] = seconds
            .wrapping_sub(i64::from(low.cast_signed()))
            .to_le_bytes();
        (
            low,
            (self.nanoseconds.min(999_999_999) << 2) | u32::from(epoch & 3),
        )
    }
}
