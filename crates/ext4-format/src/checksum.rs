//! The checksums of the format: crc32c as `metadata_csum` uses it, and crc16 as `uninit_bg` does.
//!
//! ext4 continues a crc32c from a seed and stores the register as it is: unlike the usual
//! crc32c it inverts neither at the start nor at the end. Seeds therefore chain: the checksum
//! of two runs of bytes is the checksum of the second, seeded with that of the first.

use crate::ids::InodeNo;

/// Continues a crc32c from `seed` over `bytes`, without inverting (`ext4_chksum`).
#[must_use]
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    // The library inverts what comes in and what goes out: undo both.
    !::crc32c::crc32c_append(!seed, bytes)
}

/// Continues a crc16 (polynomial 0x8005, reflected, not inverted) from `seed` over `bytes`.
#[must_use]
pub fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, byte| {
        let [low, high] = crc.to_le_bytes();
        u16::from(high)
            ^ CRC16_TABLE
                .get(usize::from(low ^ byte))
                .copied()
                .unwrap_or(0)
    })
}

const CRC16_TABLE: [u16; 256] = crc16_table();

#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "runs when this is compiled: an index out of range would not build"
)]
const fn crc16_table() -> [u16; 256] {
    let mut table = [0_u16; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u16;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xA001
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// The seed from which every metadata checksum of one file system starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksumSeed(pub u32);

impl ChecksumSeed {
    /// The seed of a file system without `metadata_csum_seed`: crc32c of its UUID.
    #[must_use]
    pub fn of_uuid(uuid: &[u8; 16]) -> Self {
        Self(crc32c(!0, uuid))
    }

    /// The seed of what belongs to one inode: its record, its directory blocks, its extent
    /// blocks.
    #[must_use]
    pub fn of_inode(self, ino: InodeNo, generation: u32) -> Self {
        let with_ino = crc32c(self.0, &ino.0.to_le_bytes());
        Self(crc32c(with_ino, &generation.to_le_bytes()))
    }

    /// The checksum of `bytes` from this seed.
    #[must_use]
    pub fn checksum(self, bytes: &[u8]) -> u32 {
        crc32c(self.0, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_the_register_of_the_published_check_value() {
        // The catalogued check value is inverted on the way out.
        assert_eq!(crc32c(!0, b"123456789"), !0xE306_9283);
    }

    #[test]
    fn crc16_matches_the_published_check_values() {
        assert_eq!(crc16(0, b"123456789"), 0xBB3D, "CRC-16/ARC");
        assert_eq!(crc16(!0, b"123456789"), 0x4B37, "CRC-16/MODBUS");
    }

    #[test]
    fn seeds_chain() {
        let whole = crc32c(7, b"abcdef");
        assert_eq!(crc32c(crc32c(7, b"abc"), b"def"), whole);
        assert_eq!(crc16(crc16(7, b"abc"), b"def"), crc16(7, b"abcdef"));
    }
}
