//! A cut is of the inode that its proof is of, and of the blocks whose pages are gone.

use pagefence_lock_order::Held;
use pagefence_page_cache::Evict;
use pagefence_vfs::FileSystem as _;

use super::*;
use crate::failures::{BLOCK, create, formatted, inode, open, write};
use crate::live::Need;

/// What is done to the record of a cut comes to the inode whose pages were evicted.
#[test]
fn a_cut_changes_the_inode_that_was_fenced() {
    let device = formatted();
    let fs = open(&device);
    let [fenced, other] = ["fenced", "other"].map(|name| {
        let id = create(&fs, name);
        let file = fs.open(id, true).expect("it opens");
        write(&fs, &file, 0, &[1; 3 * BLOCK as usize]);
        fs.sync_file(&file, false).expect("it is written");
        inode(&fs, id)
    });
    let mapping = fenced.mapping(&fs.instance, &fs.cache);
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, 100..2 * BLOCK + 1);
    let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
    let (_map, _held) = fenced.core.block_map.write(&mut held);
    let mut cut = Cut::of(&evicted);
    assert_eq!(cut.record().ino(), fenced.core.number);
    cut.check(1..2).expect("its page is gone");
    cut.check(5..5).expect("it is no block");
    let sectors = fenced.disk().record.sectors();
    cut.record_mut().set_sectors(sectors - 8).expect("as many");
    cut.adopt();
    assert_eq!(fenced.disk().record.sectors(), sectors - 8);
    assert_eq!(other.disk().record.sectors(), sectors);
}

#[test]
#[should_panic(expected = "whose pages are gone")]
fn a_cut_is_of_no_block_with_pages() {
    let device = formatted();
    let fs = open(&device);
    let inode = inode(&fs, create(&fs, "file"));
    let mapping = inode.mapping(&fs.instance, &fs.cache);
    let mut entry = Held::at_entry();
    let (mut fence, mut held) = mapping.fence(&mut entry, 100..2 * BLOCK);
    let evicted = fence.evict(&mut held, Evict::Discard).expect("evicted");
    // It begins in the first block.
    let _checked = Cut::of(&evicted).check(0..2);
}

/// Files of users are cut by their fence and by nothing else.
#[test]
fn the_record_of_a_file_is_no_proof() {
    let device = formatted();
    let fs = open(&device);
    let inode = inode(&fs, create(&fs, "file"));
    let cut = Cut::of_value(&fs.instance, inode.disk().record.clone());
    assert!(matches!(cut, Err(Error::Corrupt { .. })), "{cut:?}");
    let mut held = Held::at_entry();
    let (transaction, _held) = fs
        .instance
        .begin(&mut held, Need::RECORD)
        .expect("it begins");
    assert!(transaction.recovering().is_none());
}
