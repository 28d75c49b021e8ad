//! What is built is what is read.

use super::{FastCommitBuilder, FastCommitScan, FastCommitTag, update_checksums};
use crate::ids::InodeNo;
use crate::journal::Sequence;
use crate::journal::tests::{tag, tailed, words};

#[test]
fn fast_commits_are_built_as_they_are_read() {
    let mut builder = FastCommitBuilder::new(1024, Sequence(40));
    builder.push(&FastCommitTag::Pad);
    builder.end_commit();
    let head = tag(9, &words(&[0, 40]));
    let mut expected = tailed([head, tag(7, &[])].concat(), 0, 40, 1024);
    expected[28..].fill(0);
    assert!(builder.area() == expected);
    // Seven records do not fit one block.
    let record = FastCommitTag::Inode {
        ino: InodeNo(12),
        raw: &[7; 160],
    };
    for _ in 0..7 {
        builder.push(&record);
    }
    builder.end_commit();
    let valid = |area: &[u8]| {
        let mut scan = FastCommitScan::new(Sequence(40));
        let scanned = area.chunks(1024).map(|block| scan.block(block));
        let _ = scanned.take_while(|more| *more == Ok(true)).count();
        scan.valid_tags()
    };
    let mut area = builder.area().to_vec();
    assert_eq!((area.len(), valid(&area)), (3 * 1024, 3 + 7 + 1 + 1));
    // A change in the second is a wrong checksum, until that is mended.
    area[1024 + 100] ^= 1;
    assert_eq!(valid(&area), 3);
    update_checksums(&mut area[1024..], 1024);
    assert_eq!(valid(&area), 3 + 7 + 1 + 1);
}
