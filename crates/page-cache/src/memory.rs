//! Files whose pages are mapped into the memory of programs.
//!
//! From its first map on, the bytes of a file's pages are in a memory of its own, at their place in
//! the file ([`FileMemory`]), which programs map; a page's frame is no more than its share of the
//! budget then. What lies in the memory is always a whole page that is up to date: pages are filled
//! as ever, and written there when they are complete.
//!
//! Taking a page's memory away unmaps it everywhere at once, whatever lock of whoever maps it is held
//! by whom; who is about to map it finds it, or finds none. So a page that leaves the cache loses its
//! memory under its page lock, and that is S4's "unmapped, and removed, and nobody in between".
//!
//! A reader copies with no lock held, from a page that may lose its memory meanwhile, and whose place
//! may have the next page by then. It looks again afterwards ([`have_lost_memory`]): the page is
//! marked before its memory goes.
//!
//! # When it is given back
//!
//! A memory costs a descriptor, of which a process has few. It is kept when nobody maps the file any
//! more, as it may be mapped again; but when another file's is wanted and too many lie idle
//! ([`FileMemory::most_unused`]), or none can be had, the oldest are given back: inside a fence, what is
//! dirty is written, all pages are dropped, and if nobody has a use for it even then, the file is one
//! that was never mapped.
//!
//! Invariant: who maps a file, or is about to, either has a reference to its memory or is on the list of who
//! maps it; the reference is let go of after the entry in the list is made. References are handed out
//! below the lock of the place where the memory is. So who holds that lock, has the only
//! reference and then finds the list empty may take it ([`crate::pages::Pages::give_memory_back`]). A page that
//! somebody copies from has a reference, too. Memories come and go with the invalidate lock held
//! exclusively and no page in the cache: so all pages of a file are of one sort at any moment.
//!
//! A memory that nobody maps is on the list of [`Unused`], or in the hands of who took it off and puts it
//! back if it stays; one that is mapped may still be there, and is passed over.

use std::collections::VecDeque;

use pagefence_host_memory::FileMemory;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Inode, Invalidate};
use pagefence_lock_order::primitives::atomic::{Ordering, fence};
use pagefence_lock_order::primitives::{Arc, Mutex, Weak};

use crate::backing::WriteBacking;
use crate::fence::Evict;
use crate::folio::Folio;
use crate::mapping::{LARGEST, Mapping, PAGE_BYTES};
use crate::rmap::runs_of;

/// Where a file ends whose pages are in a memory: the last page that files can have has no place there.
pub(crate) const LARGEST_SHARED: u64 = FileMemory::PAGES * PAGE_BYTES;

const _: () = assert!(LARGEST / PAGE_BYTES == FileMemory::PAGES);

/// Why a file's pages could not be put where programs can map them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError<E> {
    /// What is dirty could not be written first.
    #[error("the file's pages could not be written: {0:?}")]
    Write(E),
    /// The operating system gives no memory that can be mapped.
    #[error("no memory to map: {0}")]
    Memory(#[from] std::io::Error),
}

impl<B: WriteBacking> Mapping<B> {
    /// Has the file's pages in a memory that can be mapped, from now on for as long as somebody has what
    /// this returns or maps the file ([`Self::map_range`]), and as long after that as nobody else needs
    /// the descriptor. Where they are not yet, what is dirty is written and all pages are dropped: none is
    /// moved.
    ///
    /// The caller holds the inode lock exclusively, with no direct I/O in flight, and lets go of what this
    /// returns when whoever maps it is registered, no earlier. The first time, takes the invalidate
    /// lock exclusively; before that those of other files, one at a time, whose memories nobody needs and
    /// whose dirty pages are written then.
    ///
    /// # Errors
    ///
    /// [`ShareError`]; the file is as before. A file of more than 2^63 - 4096 bytes is `FileTooLarge`; one
    /// that gets so long while its pages are there ends at that byte until they are not.
    pub fn share_memory(
        &self,
        held: &mut Held<'_, Inode>,
    ) -> Result<Arc<FileMemory>, ShareError<B::Error>> {
        debug_assert!(
            !B::IS_STORAGE,
            "pages that are the storage can't be dropped"
        );
        if let Some(memory) = self.pages().memory() {
            return Ok(memory);
        }
        if self.size() > LARGEST_SHARED {
            return Err(std::io::Error::from(std::io::ErrorKind::FileTooLarge).into());
        }
        let memory = self.shared().unused_memories.replace_by_new(held)?;
        let (mut fence, mut held): (_, Held<'_, Invalidate>) = self.fence(held, 0..LARGEST);
        let evicted = fence
            .evict(&mut held, Evict::WriteFirst)
            .map_err(ShareError::Write)?;
        evicted.mapping().pages().set_memory(Arc::clone(&memory));
        // Should nobody come to map it.
        self.list_memory();
        Ok(memory)
    }

    /// Somebody maps the file no longer.
    pub(crate) fn note_unmapped(&self) {
        let pages = self.pages();
        if pages.rmap().is_empty() && pages.memory().is_some() {
            self.list_memory();
        }
    }

    fn list_memory(&self) {
        if !self.pages().set_listed(true) {
            let this: Weak<dyn GiveBack> = Weak::<Self>::clone(self.this());
            self.shared().unused_memories.0.lock().push_back(this);
        }
    }
}

/// Files with a memory that nobody maps, but for some that are mapped again by now; those that came first
/// are in front. Each is here once.
#[derive(Default)]
pub(crate) struct Unused(Mutex<VecDeque<Weak<dyn GiveBack>>>);

/// A mapping, to those who want its memory back.
pub(crate) trait GiveBack: Send + Sync {
    /// Gives the file's memory back, if nobody has a use for it; the list of [`Unused`] has just lost
    /// it. Whether that was so. The caller holds the inode lock of another file.
    fn give_memory_back(&self, held: &mut Held<'_, Inode>) -> bool;
}

impl<B: WriteBacking> GiveBack for Mapping<B> {
    fn give_memory_back(&self, held: &mut Held<'_, Inode>) -> bool {
        // Before the look: who stops mapping after it lists the memory again.
        self.pages().set_listed(false);
        if !self.pages().rmap().is_empty() {
            return false;
        }
        let (mut fence, mut held): (_, Held<'_, Invalidate>) = self.fence(held, 0..LARGEST);
        // What could not be written is told to who has the file open, as by the flusher.
        let is_given = match fence.evict(&mut held, Evict::WriteFirst) {
            Ok(evicted) => evicted.mapping().pages().give_memory_back(),
            Err(_) => false,
        };
        if !is_given {
            self.note_unmapped();
        }
        is_given
    }
}

impl Unused {
    /// A new memory, for which others are given back where there are too many, or there would be none.
    fn replace_by_new(&self, held: &mut Held<'_, Inode>) -> std::io::Result<Arc<FileMemory>> {
        self.shrink(held, FileMemory::most_unused().saturating_sub(1));
        match FileMemory::new() {
            Err(_) if self.shrink(held, 0) > 0 => FileMemory::new(),
            made => made,
        }
    }

    /// Has memories given back until no more than `most` are left that nobody maps; how many were.
    pub(crate) fn shrink(&self, held: &mut Held<'_, Inode>, most: usize) -> usize {
        let mut given = 0;
        // Those that stay go to the end: each is asked once.
        let tries = self.0.lock().len();
        for _ in 0..tries {
            let oldest = {
                let mut files = self.0.lock();
                if files.len() <= most {
                    break;
                }
                files.pop_front()
            };
            // One that is gone has given its memory back.
            let file = oldest.and_then(|file| file.upgrade());
            if file.is_some_and(|file| file.give_memory_back(held)) {
                given += 1;
            }
        }
        given
    }
}

impl std::fmt::Debug for Unused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Unused").field(&self.0.lock().len()).finish()
    }
}

/// Takes the memory of `folios`, which are locked, ascending and about to leave the cache: they are
/// mapped nowhere from then on.
pub(crate) fn take_memory<'a>(memory: &FileMemory, folios: impl Iterator<Item = &'a Arc<Folio>>) {
    let owners = folios.filter(|folio| {
        debug_assert!(folio.state.is_locked(), "its memory taken without its lock");
        // The place of one that has left already is another page's.
        let owns = folio.is_uptodate() && !folio.state.is_detached();
        if owns {
            folio.state.set_detached();
        }
        owns && !keeps_memory(folio)
    });
    // All of a run are marked before its memory goes.
    runs_of(owners.map(|folio| folio.index), |run| memory.punch(run));
}

/// Whether one of `folios`, from which was copied, has lost its memory since it was found.
pub(crate) fn have_lost_memory(folios: &[Arc<Folio>]) -> bool {
    let Some(first) = folios.first() else {
        return false;
    };
    if !first.frame().is_some_and(|frame| frame.is_in_memory()) || looks_once(first) {
        return false;
    }
    // After the copy: if that saw what came after the mark, this sees the mark.
    fence(Ordering::SeqCst);
    folios.iter().any(|folio| folio.state.is_detached())
}

/// The mutant: a page that leaves stays mapped.
fn keeps_memory(folio: &Folio) -> bool {
    #[cfg(any(test, feature = "mutants"))]
    return folio.shared().probe.keeps_memory();
    #[cfg(not(any(test, feature = "mutants")))]
    {
        let _ = folio;
        false
    }
}

/// The mutant: what was copied is taken for the page.
fn looks_once(folio: &Folio) -> bool {
    #[cfg(any(test, feature = "mutants"))]
    return folio.shared().probe.looks_once();
    #[cfg(not(any(test, feature = "mutants")))]
    {
        let _ = folio;
        false
    }
}
