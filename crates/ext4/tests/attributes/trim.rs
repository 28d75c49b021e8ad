//! Free space that the device is told of.

use std::sync::Arc;

use pagefence_block_io::{Device as _, MemoryDevice};
use pagefence_ext4::{FileSystem, MountOptions};
use pagefence_vfs::{Error, FileSystem as _};

use crate::support::Image;

const MIB: u64 = 1 << 20;

fn open(image: &Image) -> (Arc<MemoryDevice>, FileSystem) {
    let bytes = std::fs::read(&image.path).unwrap();
    let device = Arc::new(MemoryDevice::new(bytes.len() as u64));
    device.write(0, &bytes).unwrap();
    let options = MountOptions {
        write: true,
        cache: Some(16 << 20),
        ..MountOptions::default()
    };
    let fs = FileSystem::open(device.clone(), &options).unwrap();
    (device, fs)
}

/// Free blocks are filled with a mark; all of it goes, and nothing else changes.
#[test]
fn what_is_free_is_discarded_and_nothing_else() {
    let image = Image::new(&["-t", "ext4", "-b", "1024"]);
    let (device, fs) = open(&image);
    let mut free = Vec::new();
    for line in crate::support::debugfs(&image.path, "ffb 100000").split_whitespace() {
        if let Ok(block) = line.parse::<u64>() {
            free.push(block);
        }
    }
    let count = image.superblock().free_blocks_count();
    assert_eq!(free.len() as u64, count, "debugfs names them all");
    for block in &free {
        device.write(block * 1024, &[0xA5; 1024]).unwrap();
    }
    let mut before = vec![0; 8 << 20];
    device.read(0, &mut before).unwrap();
    assert_eq!(fs.trim(0, u64::MAX, 0).unwrap(), count * 1024);
    let mut after = vec![0; 8 << 20];
    device.read(0, &mut after).unwrap();
    for block in 0..8 << 10 {
        let range = block as usize * 1024..(block as usize + 1) * 1024;
        if free.contains(&block) {
            assert_eq!(after[range], [0; 1024], "block {block} is free");
        } else {
            assert_eq!(
                after[range.clone()],
                before[range],
                "block {block} is in use"
            );
        }
    }
    // Blocks can be had again at once.
    let id = fs.lookup(fs.root(), b"a").unwrap().attr.id;
    fs.set_xattr(id, b"user.x", &[1; 500], pagefence_vfs::XattrMode::Set)
        .unwrap();
    fs.shut_down().unwrap();
}

#[test]
fn only_the_range_and_only_runs_that_are_long_enough() {
    // Groups of 2 MiB, the first with less to spare.
    let groups = ["-g", "2048", "-O", "^flex_bg,^resize_inode", "-J", "size=1"];
    let image = Image::new(&[&["-t", "ext4", "-b", "1024"], &groups[..]].concat());
    let (_, fs) = open(&image);
    let told = fs.trim(4 * MIB, MIB, 0).unwrap();
    assert!(told <= MIB, "{told}");
    let all = fs.trim(0, u64::MAX, 0).unwrap();
    let parts = fs.trim(0, 4 * MIB, 0).unwrap() + fs.trim(4 * MIB, 4 * MIB, 0).unwrap();
    assert_eq!(all, parts);
    let long = fs.trim(0, u64::MAX, MIB + MIB / 2).unwrap();
    assert!(long > 0 && long < all, "{long} of {all}");
    for (offset, length, least) in [(8 * MIB, MIB, 0), (0, 1023, 0), (0, MIB, 3 * MIB)] {
        let refused = fs.trim(offset, length, least);
        assert!(matches!(refused, Err(Error::InvalidArgument)), "{offset}");
    }
    fs.shut_down().unwrap();
}
