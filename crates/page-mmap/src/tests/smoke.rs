//! What a mapped file does, one thing after the other.

use pagefence_page_cache::PAGE_SIZE;

use super::disk::Disk;
use super::{Bench, PAGE, load, stamped, stamped_disk, store};
use crate::Kind;

#[test]
fn loads_see_data_and_holes() {
    let bench = Bench::new(stamped_disk(8));
    let region = bench.map(0..8, Kind::Shared);
    for page in [3, 0, 7] {
        assert_eq!(load(&region, page * PAGE, PAGE_SIZE), stamped(page));
    }
    assert_eq!(bench.mapping.dirty_pages(), 0, "loads make nothing dirty");

    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let region = bench.map(0..8, Kind::Shared);
    assert_eq!(load(&region, 0, 8 * PAGE_SIZE), vec![0; 8 * PAGE_SIZE]);
    assert_eq!(
        (bench.mapping.dirty_pages(), bench.disk().reserved()),
        (0, 0)
    );
}

#[test]
fn stores_reserve_are_written_back_and_ask_again() {
    let bench = Bench::new(Disk::hole(8 * PAGE, PAGE_SIZE));
    let region = bench.map(0..8, Kind::Shared);
    store(&region, 2 * PAGE - 2, &[9; 4]);
    assert_eq!(
        (bench.mapping.dirty_pages(), bench.disk().reserved()),
        (2, 2)
    );
    assert_eq!(bench.read(2 * PAGE - 3, 6), Ok(vec![0, 9, 9, 9, 9, 0]));
    bench.sync().expect("synced");
    assert_eq!(
        (bench.mapping.dirty_pages(), bench.disk().reserved()),
        (0, 0)
    );
    let at = 2 * PAGE_SIZE;
    assert_eq!(bench.disk().contents()[at - 3..at + 3], [0, 9, 9, 9, 9, 0]);
    store(&region, 2 * PAGE, &[7]);
    assert_eq!(
        bench.mapping.dirty_pages(),
        1,
        "write-protected, so it asked"
    );
    bench.sync().expect("synced");
    assert_eq!(bench.disk().contents()[at], 7);
    assert_eq!(bench.disk().violations(), 0);
}
