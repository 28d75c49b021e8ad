//! Short storms: a few seconds on each type of file system.

use pagefence::Kind;

use super::short;
use crate::scratch::Scratch;

fn storm(kind: Kind, block_size: u32) {
    let scratch = Scratch::new().expect("a directory");
    match short(kind, block_size, &scratch) {
        Ok(operations) => assert!(operations > 100, "{operations} operations only"),
        Err(error) => panic!(
            "{error:#}; the image is kept in {}",
            scratch.keep().display()
        ),
    }
}

#[test]
fn a_storm_on_block_maps() {
    storm(Kind::Ext3, 1024);
    storm(Kind::Ext3, 4096);
}

#[test]
fn a_storm_on_extents() {
    storm(Kind::Ext4, 1024);
    storm(Kind::Ext4, 4096);
}
