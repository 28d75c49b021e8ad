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

use pagefence_host_memory::FileMemory;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{Inode, Invalidate};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{Ordering, fence};

use crate::backing::WriteBacking;
use crate::fence::Evict;
use crate::folio::Folio;
use crate::mapping::{LARGEST, Mapping};
use crate::rmap::runs_of;

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
    /// Has the file's pages in a memory that can be mapped, from now on for as long as the mapping
    /// lives. The first time, what is dirty is written and all pages are dropped: none is moved.
    ///
    /// The caller holds the inode lock exclusively, with no direct I/O in flight; takes the
    /// invalidate lock exclusively, the first time.
    ///
    /// # Errors
    ///
    /// [`ShareError`]; the file is as before.
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
        let memory = FileMemory::new()?;
        let (mut fence, mut held): (_, Held<'_, Invalidate>) = self.fence(held, 0..LARGEST);
        let evicted = fence
            .evict(&mut held, Evict::WriteFirst)
            .map_err(ShareError::Write)?;
        evicted.mapping().pages().set_memory(Arc::clone(&memory));
        Ok(memory)
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
