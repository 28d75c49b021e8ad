//! Strays: pages of a mapped file's memory that are no pages of the cache (ADR 17).
//!
//! Who loads from a hole of the memory by a map that nobody watches fills it with zeros: so can any program
//! that was given a descriptor for reading. The cache knows nothing of such a page, and counts it nowhere; it
//! harms no reader, as whoever brings that page of the file in writes all of it first. But it takes memory until
//! the file's memory goes. So what is not in the index is made a hole again.
//!
//! Invariant: pages enter the index, and get their memory, with the invalidate lock held shared. So who holds
//! it exclusively and finds a page that is not in the index may take its memory: nobody's bytes are there, nor
//! come there meanwhile. A page that leaves the index at that moment loses its memory anyhow.

use std::ops::Range;

use pagefence_host_memory::FileMemory;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Entry, Invalidate};

use crate::backing::WriteBacking;
use crate::mapping::Mapping;
use crate::pages::Pages;

/// Runs of pages with memory that are looked at in one fence.
const RUNS: usize = 64;

/// Pages of a run that are looked at in one go.
const RUN: u64 = 1024;

impl<B: WriteBacking> Mapping<B> {
    /// How many strays there are, about: pages are being brought in and dropped meanwhile.
    #[must_use]
    pub fn strays(&self) -> u64 {
        let pages = self.pages();
        let memory = pages.memory();
        memory.map_or(0, |memory| {
            memory.allocated_pages().saturating_sub(pages.count())
        })
    }

    /// Makes as many strays holes as there are when it begins, if others come meanwhile; else all. How many that
    /// were.
    ///
    /// Takes the invalidate lock exclusively, a part of the file at a time, and with it waits for the lock of
    /// the memory's inode.
    pub fn punch_strays(&self, held: &mut Held<'_, Entry>) -> u64 {
        let Some(memory) = self.pages().memory() else {
            return 0;
        };
        let (mut at, mut punched) = (0, 0);
        let mut most = None;
        loop {
            let (_fence, _held): (_, Held<'_, Invalidate>) = self.fence(held, 0..0);
            // Nobody is bringing pages in: there are no fewer.
            let most = *most.get_or_insert_with(|| self.strays());
            for _ in 0..RUNS {
                if punched >= most {
                    return punched;
                }
                let Some(run) = memory.next_run(at) else {
                    return punched;
                };
                let run = run.start..run.end.min(run.start + RUN);
                punched += self.pages().punch_absent(&memory, &run);
                at = run.end;
            }
        }
    }
}

impl Pages {
    /// Takes the memory of those of `run` that are not in the index, nor come there meanwhile; how many.
    fn punch_absent(&self, memory: &FileMemory, run: &Range<u64>) -> u64 {
        self.assert_fenced();
        let mut present = Vec::new();
        self.gather(run.clone(), usize::MAX, &mut present);
        #[cfg(any(test, feature = "mutants"))]
        self.shared().probe.stop(crate::probe::Stop::StraysFound);
        let ends = present.iter().map(|folio| folio.index).chain([run.end]);
        let (mut at, mut punched) = (run.start, 0);
        for end in ends {
            if at < end {
                memory.punch(at..end);
                punched += end - at;
            }
            at = end + 1;
        }
        punched
    }
}
