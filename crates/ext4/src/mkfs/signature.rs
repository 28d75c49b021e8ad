//! What a device holds already, told by the marks that file systems and the like leave at fixed
//! places.

use pagefence_block_io::{Device, DeviceError};

/// A mark: its place in bytes, the bytes, and what it stands for.
const MARKS: &[(u64, &[u8], &str)] = &[
    (1080, &[0x53, 0xEF], "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
    (0x400, &[0x10, 0x20, 0xF5, 0xF2], "an F2FS file system"),
    (0, b"hsqs", "a squashfs image"),
    (0x400, &[0xE2, 0xE1, 0xF5, 0xE0], "an EROFS image"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (0x36, b"FAT", "a FAT file system"),
    (0x52, b"FAT32   ", "a FAT file system"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0, b"LUKS\xBA\xBE", "an encrypted volume (LUKS)"),
    (512, b"LABELONE", "a physical volume of LVM"),
    (512, b"EFI PART", "a partition table"),
    (0, b"QFI\xFB", "a qcow2 image"),
];

/// What `device` holds, as far as it can be told.
pub(super) fn find(device: &dyn Device) -> Result<Option<&'static str>, DeviceError> {
    for (offset, mark, what) in MARKS {
        if offset + mark.len() as u64 > device.size() {
            continue;
        }
        let mut bytes = vec![0; mark.len()];
        device.read(*offset, &mut bytes)?;
        if bytes == *mark {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use pagefence_block_io::memory_device::MemoryDevice;

    use super::*;

    #[test]
    fn each_mark_is_found_where_it_lies() {
        let empty = MemoryDevice::new(1 << 20);
        assert_eq!(find(&empty).expect("memory is read"), None);
        assert_eq!(find(&MemoryDevice::new(0)).expect("memory is read"), None);
        for (offset, mark, what) in MARKS {
            let device = MemoryDevice::new(offset + mark.len() as u64);
            device.write(*offset, mark).expect("memory is written");
            assert_eq!(find(&device).expect("memory is read"), Some(*what));
        }
    }
}
