//! Index blocks as they are written, read back.

use super::*;
use crate::checksum::ChecksumSeed;
use crate::dir_entry::{DirBlock, DirFormat};
use crate::htree::{DxNode, DxRoot, HtreeFormat, update_checksum, verify_checksum};

const SEED: ChecksumSeed = ChecksumSeed(77);

fn format(checksums: bool) -> HtreeFormat {
    HtreeFormat {
        checksums,
        large_dir: false,
        blocks: 1000,
    }
}

#[test]
fn a_root_is_one_to_those_who_know_it_and_to_those_who_do_not() {
    for (checksums, size) in [(true, 1024), (false, 1024), (true, 4096), (false, 4096)] {
        let mut block = vec![0xAA; size];
        let numbers = (InodeNo(12), InodeNo(2));
        assert!(init_root(
            &mut block,
            numbers,
            (true, checksums),
            1,
            FileBlock(1)
        ));
        if checksums {
            update_checksum(&mut block, SEED).unwrap();
            verify_checksum(&block, SEED).unwrap();
        }
        let root = DxRoot::parse(&block, &format(checksums)).unwrap();
        assert_eq!((root.hash_version, root.indirect_levels), (1, 0));
        assert_eq!(root.parent, InodeNo(2));
        assert_eq!(root.node.get(0), Some((0, FileBlock(1))));
        assert_eq!((root.node.len(), root.node.is_full()), (1, false));
        let plain = DirFormat {
            filetype: true,
            checksums: false,
            last_inode: InodeNo(100),
        };
        let view = DirBlock::new(&block, &plain, true);
        assert_eq!(view.dots(), Ok(numbers));
        assert_eq!(view.entries().count(), 2);
        let again = DxRoot::reopen(&block).unwrap();
        assert_eq!(again.node.get(0), root.node.get(0));
    }
}

#[test]
fn a_node_holds_what_fits_and_no_more() {
    for checksums in [true, false] {
        let mut block = vec![0xAA; 1024];
        let limit = node_limit(1024, checksums);
        assert_eq!(limit, if checksums { 126 } else { 127 });
        let entries: Vec<_> = (0..u32::from(limit))
            .map(|at| (at * 2, FileBlock(at + 1)))
            .collect();
        assert!(init_node(&mut block, checksums, &entries));
        let node = DxNode::parse(&block, &format(checksums), 0).unwrap();
        assert!(node.is_full());
        assert_eq!(node.iter().collect::<Vec<_>>(), entries);
        assert_eq!(DxNode::reopen(&block, 0).unwrap().len(), entries.len());
        let before = block.clone();
        let more = [entries.as_slice(), &[(999, FileBlock(7))]].concat();
        assert!(!set_entries(&mut block, false, checksums, &more));
        assert!(!set_entries(&mut block, false, checksums, &[]));
        assert_eq!(block, before);
        let fewer = [(0, FileBlock(9)), (40, FileBlock(8))];
        assert!(set_entries(&mut block, false, checksums, &fewer));
        let node = DxNode::parse(&block, &format(checksums), 0).unwrap();
        assert_eq!(node.iter().collect::<Vec<_>>(), fewer);
    }
}

#[test]
fn a_root_gets_levels() {
    let mut block = vec![0; 1024];
    let numbers = (InodeNo(12), InodeNo(2));
    assert!(init_root(
        &mut block,
        numbers,
        (true, true),
        1,
        FileBlock(1)
    ));
    assert!(set_levels(&mut block, 1));
    let root = DxRoot::parse(&block, &format(true)).unwrap();
    assert_eq!(root.indirect_levels, 1);
    assert!(!set_levels(&mut [0; 8], 1));
    assert!(!init_root(
        &mut [0; 32],
        numbers,
        (true, true),
        1,
        FileBlock(1)
    ));
}
