//! What the kernel's page table has for the pages of a view: /proc/self/pagemap.

use std::fs::File;
use std::os::unix::fs::FileExt;

use pagefence_host_memory::{View, ViewKind};
use pagefence_page_cache::PAGE_SIZE;
use pagefence_page_cache::simulated::Entry;

/// What of a page is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing.
    Nothing,
    /// Nothing; a load or a store gives SIGBUS.
    Poison,
    /// A page.
    Page(Entry),
}

const PRESENT: u64 = 1 << 63;
/// An entry that is no page: poison, or the mark that a protected page leaves when it goes.
const SPECIAL: u64 = 1 << 62;
/// A page of a file or of a memfd, no copy.
const OF_FILE: u64 = 1 << 61;
const PROTECTED: u64 = 1 << 57;

/// What `view` has at page `index` of the file.
pub(super) fn look(view: &View, index: u64) -> Seen {
    let page = view.as_ptr().addr() / PAGE_SIZE;
    let place = u64::try_from(page).expect("an address") + (index - view.pages().start);
    let mut word = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").expect("the page table");
    pagemap.read_exact_at(&mut word, place * 8).expect("read");
    let word = u64::from_ne_bytes(word);
    let has = |bit| word & bit != 0;
    if has(PRESENT) {
        let is_shared = matches!(view.kind(), ViewKind::Shared | ViewKind::SharedReadOnly);
        return Seen::Page(match (has(OF_FILE), is_shared && !has(PROTECTED)) {
            (false, _) => Entry::Private,
            (true, true) => Entry::Writable,
            (true, false) => Entry::ReadOnly,
        });
    }
    if has(SPECIAL) && !has(PROTECTED) {
        Seen::Poison
    } else {
        Seen::Nothing
    }
}
