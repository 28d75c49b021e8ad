//! Tests of the superblock.

use super::*;
use crate::test_image::TestImage;

#[test]
fn quick() {
    for (i, (mib, args)) in [
        (64, &["-t", "ext4", "-b", "1024"][..]),
        (64, &["-t", "ext4", "-b", "4096", "-g", "1024"][..]),
        (64, &["-t", "ext4", "-b", "4096", "-O", "bigalloc"][..]),
        (
            64,
            &["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "8192"][..],
        ),
        (64, &["-t", "ext2", "-b", "1024", "-O", "uninit_bg"][..]),
        (
            64,
            &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"][..],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let image = TestImage::make(&format!("quick{i}"), mib, args);
        let sb = image.superblock();
        for group in sb.groups() {
            image.group(&sb, group).check_counts(&sb).unwrap();
        }
    }
}
