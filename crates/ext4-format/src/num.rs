//! Conversions between widths, spelled without `as`: each is exact, or says how it saturates.

/// `u32` to `usize`: exact wherever `usize` has 32 bits or more, which Linux needs anyway.
pub(crate) fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The low 32 bits.
pub(crate) const fn lo32(value: u64) -> u32 {
    let [a, b, c, d, _, _, _, _] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The high 32 bits.
pub(crate) const fn hi32(value: u64) -> u32 {
    let [_, _, _, _, a, b, c, d] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The low 16 bits.
pub(crate) const fn lo16(value: u32) -> u16 {
    let [a, b, _, _] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// The high 16 bits.
pub(crate) const fn hi16(value: u32) -> u16 {
    let [_, _, a, b] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// A 64-bit number out of its halves.
pub(crate) fn join32(lo: u32, hi: u32) -> u64 {
    (u64::from(hi) << 32) | u64::from(lo)
}

/// A 32-bit number out of its halves.
pub(crate) fn join16(lo: u16, hi: u16) -> u32 {
    (u32::from(hi) << 16) | u32::from(lo)
}
