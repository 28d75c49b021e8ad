//! The block by which those that mount one device from several machines see each other (`mmp`). Source:
//! the kernel's `Documentation/filesystems/ext4/mmp.rst`.

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Corruption;
use crate::checksum::ChecksumSeed;

/// "MMP".
const MAGIC: u32 = 0x004D_4D50;
/// `EXT4_MMP_SEQ_CLEAN`: nobody has it mounted.
const CLEAN: u32 = 0xFF4D_4D50;
/// `EXT4_MMP_SEQ_FSCK`: e2fsck changes it.
const CHECKED: u32 = 0xE24D_4D50;

/// `struct mmp_struct`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawMmp {
    /// What it is.
    pub mmp_magic: U32,
    /// Counts as long as it is mounted.
    pub mmp_seq: U32,
    /// When it was counted.
    pub mmp_time: U64,
    /// By which machine.
    pub mmp_nodename: [u8; 64],
    /// On which device.
    pub mmp_bdevname: [u8; 32],
    /// Seconds between looks at it.
    pub mmp_check_interval: U16,
    /// 0.
    pub mmp_pad1: U16,
    /// 0.
    pub mmp_pad2: [U32; 226],
    /// crc32c over what is before it, with `metadata_csum`.
    pub mmp_checksum: U32,
}
const _: () = assert!(size_of::<RawMmp>() == 1024);

/// A check that the block did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MmpCorruption {
    /// Its magic number is another.
    #[error("its magic is {found:#010x}")]
    Magic {
        /// As stored.
        found: u32,
    },
    /// It says that e2fsck is at work, or was when it was stopped.
    #[error("e2fsck changes the file system, or was stopped while it did")]
    Checked,
    /// A number that does not count anything.
    #[error("it counts {found:#010x}")]
    Sequence {
        /// As stored.
        found: u32,
    },
}

/// What is wrong with the block; `seed` with `metadata_csum`. One that is mounted, or was not unmounted,
/// is sound.
///
/// # Errors
/// See [`MmpCorruption`]; a checksum that does not match.
pub fn verify(block: &[u8], seed: Option<ChecksumSeed>) -> Result<(), Corruption> {
    let (mmp, _) = RawMmp::ref_from_prefix(block).map_err(|_| Corruption::Truncated {
        what: "mmp",
        needed: size_of::<RawMmp>(),
        have: block.len(),
    })?;
    let found = mmp.mmp_magic.get();
    if found != MAGIC {
        return Err(MmpCorruption::Magic { found }.into());
    }
    if let Some(seed) = seed {
        let (stored, computed) = (mmp.mmp_checksum.get(), checksum(block, seed));
        if stored != computed {
            let what = "mmp";
            return Err(Corruption::Checksum {
                what,
                stored,
                computed,
            });
        }
    }
    match mmp.mmp_seq.get() {
        CLEAN | 0..CHECKED => Ok(()),
        CHECKED => Err(MmpCorruption::Checked.into()),
        found => Err(MmpCorruption::Sequence { found }.into()),
    }
}

fn checksum(block: &[u8], seed: ChecksumSeed) -> u32 {
    let covered = block.get(..offset_of!(RawMmp, mmp_checksum));
    seed.checksum(covered.unwrap_or(&[]))
}

/// Makes the checksum match; a block that is cut off has none.
pub fn update_checksum(block: &mut [u8], seed: ChecksumSeed) {
    let checksum = checksum(block, seed);
    if let Ok((mmp, _)) = RawMmp::mut_from_prefix(block) {
        mmp.mmp_checksum = checksum.into();
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::{CHECKED, CLEAN, MAGIC, MmpCorruption, RawMmp, update_checksum, verify};
    use crate::Corruption;
    use crate::checksum::ChecksumSeed;

    #[test]
    fn magic_sequence_and_checksum() {
        let seed = ChecksumSeed(7);
        let block = |magic: u32, seq: u32| {
            let mut mmp = RawMmp::new_zeroed();
            (mmp.mmp_magic, mmp.mmp_seq) = (magic.into(), seq.into());
            let mut block = mmp.as_bytes().to_vec();
            block.resize(4096, 0xEE);
            update_checksum(&mut block, seed);
            block
        };
        for seq in [CLEAN, 1, CHECKED - 1] {
            assert_eq!(verify(&block(MAGIC, seq), Some(seed)), Ok(()));
        }
        let wrong = |block: &[u8], expected| {
            let expected = Err(Corruption::Mmp(expected));
            assert_eq!(verify(block, Some(seed)), expected);
        };
        wrong(&block(1, 1), MmpCorruption::Magic { found: 1 });
        wrong(&block(MAGIC, CHECKED), MmpCorruption::Checked);
        let found = CLEAN + 1;
        wrong(&block(MAGIC, found), MmpCorruption::Sequence { found });
        let mut cut = block(MAGIC, 1);
        cut[16] ^= 1;
        assert!(matches!(
            verify(&cut, Some(seed)),
            Err(Corruption::Checksum { .. })
        ));
        assert_eq!(verify(&cut, None), Ok(()));
        cut.truncate(1023);
        update_checksum(&mut cut, seed);
        assert!(verify(&cut, None).is_err());
    }
}
