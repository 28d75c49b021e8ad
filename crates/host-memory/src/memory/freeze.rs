//! Pages that are written back from a mapping that nobody can be asked to protect: the page itself is
//! taken out of the memory, with all stores that were ever made to it, and a copy put in its place.
//!
//! Splicing a page into a pipe takes a reference to it and no copy; punching it then ends every mapping
//! of it; what the pipe holds is from then on what it will be for ever; and is written back.

use std::io;

use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering, fence};
use pagefence_lock_order::primitives::{Mutex, MutexGuard, thread};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use super::{FileMemory, PAGE, end_process};
use crate::FRAME_SIZE;

/// How often somebody reads while pages are frozen, before he has that wait for him.
const TRIES: usize = 16;

/// Where a page waits to be frozen: room for one.
#[derive(Debug)]
pub struct Pipe(Mutex<Ends>);

#[derive(Debug)]
struct Ends {
    from: OwnedFd,
    to: OwnedFd,
}

impl Pipe {
    /// A pipe.
    ///
    /// # Errors
    /// Those of pipe2(2).
    pub fn new() -> io::Result<Self> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self(Mutex::new(Ends { from, to })))
    }
}

/// Counts the beginnings and the ends of freezes, so that who reads meanwhile reads again: for a moment
/// there is a hole where the page was. It is odd then.
#[derive(Debug, Default)]
pub(super) struct Freezes {
    count: AtomicU64,
    /// Held over a freeze.
    one: Mutex<()>,
}

impl Freezes {
    /// Calls `read` until no page was being frozen meanwhile; if one is each time, when none is.
    pub(super) fn read(&self, mut read: impl FnMut()) {
        for _ in 0..TRIES {
            let before = self.count.load(Ordering::Acquire);
            if before.is_multiple_of(2) {
                read();
                fence(Ordering::Acquire);
                if self.count.load(Ordering::Relaxed) == before {
                    return;
                }
            }
            thread::yield_now();
        }
        let _none = self.one.lock();
        read();
    }

    fn begin(&self) -> Freezing<'_> {
        let one = self.one.lock();
        self.count.fetch_add(1, Ordering::AcqRel);
        Freezing {
            count: &self.count,
            _one: one,
        }
    }
}

struct Freezing<'a> {
    count: &'a AtomicU64,
    _one: MutexGuard<'a, ()>,
}

impl Drop for Freezing<'_> {
    fn drop(&mut self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }
}

impl FileMemory {
    /// Takes `page` out of every mapping, but for private copies, and keeps what was stored to it until
    /// then: who maps it again finds that. The caller has its page lock, and `page` is no hole.
    ///
    /// What goes past page tables is lost if it comes later: a direct read whose target is the page.
    ///
    /// Waits for what [`FileMemory::punch`] and [`FileMemory::write`] wait for. Ends the process if the
    /// operating system refuses, as they do.
    pub fn freeze(&self, pipe: &Pipe, page: u64) {
        let ends = pipe.0.lock();
        let mut bytes = [0; FRAME_SIZE];
        let freezing = self.freezes.begin();
        let mut offset = page * PAGE;
        let spliced = retry_on_intr(|| {
            let flags = SpliceFlags::empty();
            splice(
                &self.fd,
                Some(&mut offset),
                &ends.to,
                None,
                FRAME_SIZE,
                flags,
            )
        });
        match spliced {
            Ok(FRAME_SIZE) => {}
            Ok(_) => end_process("a page of a mapped file is not whole", Errno::IO),
            Err(errno) => end_process("a page of a mapped file can't be frozen", errno),
        }
        self.punch(page..page + 1);
        match retry_on_intr(|| rustix::io::read(&ends.from, &mut bytes)) {
            Ok(FRAME_SIZE) => {}
            Ok(_) => end_process("a frozen page is not whole", Errno::IO),
            Err(errno) => end_process("a frozen page can't be read", errno),
        }
        self.write(page, 0, &bytes);
        drop(freezing);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use pagefence_lock_order::primitives::Arc;
    use pagefence_lock_order::primitives::atomic::AtomicBool;

    use super::*;
    use crate::{View, ViewKind};

    #[test]
    fn a_frozen_page_keeps_every_store_and_readers_see_no_hole() {
        let memory = FileMemory::new().expect("memory");
        memory.write(3, 0, &7_u64.to_ne_bytes());
        let view = Arc::new(View::new(&memory, 3, FRAME_SIZE, ViewKind::Shared).expect("a view"));
        let pipe = Pipe::new().expect("a pipe");
        let is_over = Arc::new(AtomicBool::new(false));
        let reader = {
            let (memory, is_over) = (Arc::clone(&memory), Arc::clone(&is_over));
            thread::spawn("reader", move || {
                let mut last = 7;
                while !is_over.load(Ordering::Relaxed) {
                    let mut word = [0; 8];
                    memory.read(3, 0, &mut word);
                    let word = u64::from_ne_bytes(word);
                    assert!(word >= last, "{word} after {last}");
                    last = word;
                }
            })
            .expect("a thread")
        };
        for value in 8..2_000 {
            view.store_u64(0, value, Ordering::Release);
            memory.freeze(&pipe, 3);
            assert_eq!(view.load_u64(0, Ordering::Acquire), value);
        }
        is_over.store(true, Ordering::Relaxed);
        reader.join().expect("no hole was seen");
        assert_eq!(memory.allocated_pages(), 1);
    }
}
