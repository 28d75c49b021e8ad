//! Device numbers as a device's inode holds them.

/// Number of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNo {
    /// Major number, below 2^12.
    pub major: u32,
    /// Minor number, below 2^20.
    pub minor: u32,
}

impl DeviceNo {
    /// Decodes the first two words of `i_block`: the first holds the old encoding of 8 and 8
    /// bits, or is zero and the second holds the new one.
    #[must_use]
    pub fn decode(old: u32, new: u32) -> Self {
        if old != 0 {
            return Self {
                major: (old >> 8) & 0xFF,
                minor: old & 0xFF,
            };
        }
        Self {
            major: (new >> 8) & 0xFFF,
            minor: (new & 0xFF) | ((new >> 12) & 0xF_FF00),
        }
    }

    /// The first two words of `i_block`, of which one is zero; nothing if the number has too
    /// many bits.
    #[must_use]
    pub fn encode(self) -> Option<(u32, u32)> {
        if self.major < 256 && self.minor < 256 {
            return Some(((self.major << 8) | self.minor, 0));
        }
        if self.major >= 1 << 12 || self.minor >= 1 << 20 {
            return None;
        }
        Some((
            0,
            (self.minor & 0xFF) | (self.major << 8) | ((self.minor & !0xFF) << 12),
        ))
    }
}
