//! Programs that load where nobody has given them anything: the memory that they fill so is taken again.

use pagefence_page_cache::PAGE_SIZE;

use super::clients::Fake;
use super::{open_of, pair, source_of, wait_until};
use crate::remote::RemoteKind;
use crate::serve_until_over;
use crate::tests::disk::Disk;
use crate::tests::{Bench, PAGE, Task, stamped};

/// What is cached lies between them: pages of zeros where a hole of the file is.
fn touch(fake: &Fake, pages: impl IntoIterator<Item = u64>) {
    for page in pages {
        let mut byte = [1];
        let at = usize::try_from(page * PAGE).expect("small");
        fake.view.load(at, &mut byte);
    }
}

#[test]
fn what_a_program_filled_with_zeros_goes_with_it() {
    let bench = Bench::new(Disk::of_bytes(
        (0..8).flat_map(stamped).collect(),
        PAGE_SIZE,
    ));
    let (here, there) = pair();
    let source = source_of(&bench, here, &open_of(0..8, RemoteKind::ReadOnly));
    let server = {
        let (mapping, service) = (bench.mapping.clone(), bench.service.clone());
        Task::start(move || serve_until_over(&mapping, source, &service))
    };
    let fake = Fake::welcomed(there, RemoteKind::ReadOnly);
    let memory = bench.memory();
    bench.read(2 * PAGE, 2 * PAGE_SIZE).expect("read");
    bench.write(5 * PAGE, &[9; PAGE_SIZE]).expect("written");
    let cached = bench.mapping.nr_pages();
    assert_eq!(memory.allocated_pages(), cached);
    touch(&fake, 0..8);
    let strays = 8 - cached;
    assert_eq!(memory.allocated_pages(), 8);
    assert_eq!(bench.mapping.strays(), strays);
    assert!(strays >= 2, "some on either side");
    drop(fake);
    server.finish().expect("served");
    assert_eq!(memory.allocated_pages(), cached);
    assert_eq!(bench.mapping.nr_pages(), cached, "those of the cache stay");
    assert_eq!(bench.read(2 * PAGE, PAGE_SIZE), Ok(stamped(2)));
    assert_eq!(bench.read(5 * PAGE, PAGE_SIZE), Ok(vec![9; PAGE_SIZE]));
    assert_eq!(bench.read(0, PAGE_SIZE), Ok(stamped(0)));
}

#[test]
fn a_program_that_fills_memory_with_zeros_does_not_keep_it_while_it_is_there() {
    const PAGES: u64 = 2000;
    let count = usize::try_from(PAGES).expect("few");
    let bench = Bench::new(Disk::hole(PAGES * PAGE, PAGE_SIZE));
    let (here, there) = pair();
    let source = source_of(&bench, here, &open_of(0..PAGES, RemoteKind::ReadOnly));
    let _served = crate::Region::of_source(&bench.mapping, source, &bench.service);
    let fake = Fake::welcomed_to(there, RemoteKind::ReadOnly, count);
    let memory = bench.memory();
    // Every other one, so that each is a run of its own; and some without a hole between them.
    touch(&fake, (0..1000).step_by(2).chain(1000..PAGES));
    assert_eq!(memory.allocated_pages(), 1500);
    wait_until(|| memory.allocated_pages() == 0);
    drop(fake);
}
