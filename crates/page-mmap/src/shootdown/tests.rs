//! What a run that meets an obstacle does for the page that the fault is at.

use std::io;
use std::os::fd::BorrowedFd;

use super::*;
use crate::fault_source::{Cause, Woken};

/// A view in which one page can't be mapped.
#[derive(Debug)]
struct Obstructed {
    obstacle: Obstacle,
    mapped: RwLock<Vec<(u64, u64)>>,
    woken: RwLock<Vec<u64>>,
}

impl FaultSource for Obstructed {
    fn pages(&self) -> Range<u64> {
        0..16
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn read(&self, _: &mut Vec<Cause>) -> io::Result<()> {
        Ok(())
    }

    fn wait(&self, _: BorrowedFd<'_>, _: Option<Duration>) -> io::Result<Woken> {
        Ok(Woken::Late)
    }

    fn map(&self, pages: Range<u64>, _: bool) -> Result<(), Obstacle> {
        assert!(self.mapped.read().len() < 4, "tried for ever");
        let is_met = pages.contains(&self.obstacle.page);
        let end = if is_met {
            self.obstacle.page
        } else {
            pages.end
        };
        self.mapped.write().push((pages.start, end));
        if is_met { Err(self.obstacle) } else { Ok(()) }
    }

    fn protect(&self, _: Range<u64>) -> Answer<'_> {
        panic!("nothing is written back")
    }

    fn unprotect(&self, pages: Range<u64>) {
        self.woken.write().extend(pages);
    }

    fn poison(&self, _: u64) -> bool {
        true
    }

    fn wake(&self, page: u64) {
        self.woken.write().push(page);
    }

    fn zap(&self, _: Range<u64>) {}
}

/// Maps pages 0 to 15 for a fault at page 5; whether that went well, the runs that were mapped (each
/// with its end), and who
/// was woken besides.
fn map_all(page: u64, why: Why) -> (bool, Vec<(u64, u64)>, Vec<u64>) {
    let entries = Entries::new(Obstructed {
        obstacle: Obstacle { page, why },
        mapped: RwLock::new(Vec::new()),
        woken: RwLock::new(Vec::new()),
    });
    let is_mapped = entries.map_run(0..16, 5, false).is_ok();
    if why != Why::MappedBefore {
        assert!(!entries.is_mapped(page));
    }
    assert_eq!(
        entries.is_mapped(4),
        page > 4 || page == 4 && why == Why::MappedBefore
    );
    let (mapped, woken) = (entries.source.mapped.read(), entries.source.woken.read());
    (is_mapped, mapped.clone(), woken.clone())
}

#[test]
fn a_neighbour_that_can_not_be_mapped_is_no_matter() {
    for why in [Why::Failed, Why::Gone, Why::MappedBefore] {
        assert_eq!(
            map_all(3, why),
            (true, vec![(0, 3), (5, 16)], vec![]),
            "{why:?}"
        );
        assert_eq!(map_all(9, why), (true, vec![(0, 9)], vec![]), "{why:?}");
    }
}

#[test]
fn the_page_of_the_fault_is_woken_unless_it_is_the_one_that_failed() {
    let before = vec![(0, 5)];
    assert_eq!(
        map_all(5, Why::MappedBefore),
        (true, before.clone(), vec![5])
    );
    assert_eq!(map_all(5, Why::Gone), (true, before.clone(), vec![5]));
    assert_eq!(map_all(5, Why::Failed), (false, before, vec![]));
}
