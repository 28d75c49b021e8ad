//! The orphans of a file system that is written to: inodes that a crash would leave half deleted
//! or half cut off. On disk they form a list, from the superblock from inode to inode, or stand in
//! the orphan file.
//!
//! Owns: the list as it is on disk, and a reference to every inode in it, so that none leaves core.
//! Stays outside: what is done to an orphan.
//!
//! Invariants:
//! - What an inode's record in core says of its successor is what this list says: both change
//!   under the list's mutex, and the record is written before the handle ends. A commit waits for
//!   the handle, so the list on disk is whole in every transaction.
//! - Nothing that reads or writes blocks happens under the mutex but in the orphan file's case,
//!   where a block's free entry must not be found twice.
//!
//! The mutex is taken inside a journal handle. Below it: an inode's record, the superblock, and
//! buffers.

use hashbrown::HashMap;
use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::features::Compat;
use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_vfs::{Error, Result};

use crate::alloc::Allocator;
use crate::change::Transaction;
use crate::inode::Inode;
use crate::instance::Instance;
use crate::orphan_file::{OrphanEntry, OrphanFile};

/// Blocks that [`Orphans::add`] and [`Orphans::remove`] change at most: the inode's own, that of
/// the inode before it in the list, and the superblock or a block of the orphan file.
pub(crate) const CREDITS: u32 = 3;

/// The orphans of a file system. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Orphans {
    state: Mutex<State>,
    /// Orphans, and those that wait to be deleted, for who only wants to know whether there are
    /// any.
    count: AtomicUsize,
    due: AtomicUsize,
    /// The mutant: they stand nowhere on the disk.
    #[cfg(feature = "mutants")]
    forgets: bool,
}

#[derive(Debug)]
struct State {
    /// The first of the list: the inode that came last.
    first: Option<InodeNo>,
    nodes: HashMap<InodeNo, Node>,
    file: Option<File>,
    /// Inodes without names that nobody knows any more, to be deleted once nobody has them.
    due: Vec<InodeNo>,
}

#[derive(Debug)]
struct Node {
    inode: Arc<Inode>,
    place: Place,
    is_due: bool,
}

/// Where an orphan stands on disk.
#[derive(Debug)]
enum Place {
    List {
        /// The inode that points to it; the superblock does if there is none.
        newer: Option<InodeNo>,
        /// The inode that it points to.
        older: Option<InodeNo>,
    },
    File(OrphanEntry),
    #[cfg(feature = "mutants")]
    Nowhere,
}

#[derive(Debug)]
struct File {
    file: OrphanFile,
    /// Entries that may be free, by block. (Blocks that are full are not searched.)
    free: Vec<bool>,
    /// Entries in use.
    used: usize,
}

impl Orphans {
    /// The orphans of a file system that was just opened: what stands on its list, if it could not
    /// be settled, stays at its end.
    ///
    /// # Errors
    /// `Corrupt` if the orphan file is damaged; `Io`.
    pub(crate) fn open(instance: &Instance, allocator: &Allocator) -> Result<Self> {
        let superblock = &instance.superblock;
        let file = superblock
            .orphan_file_inode()
            .filter(|_| superblock.has_compat(Compat::ORPHAN_FILE))
            .map(|number| OrphanFile::open(instance, number))
            .transpose()?
            .map(|file| {
                file.claim(instance, allocator)?;
                Ok::<_, Error>(File {
                    free: vec![true; file.block_count()],
                    used: file.entries(instance)?.len(),
                    file,
                })
            })
            .transpose()?;
        Ok(Self {
            state: Mutex::new(State {
                first: superblock.last_orphan(),
                nodes: HashMap::new(),
                file,
                due: Vec::new(),
            }),
            count: AtomicUsize::new(0),
            due: AtomicUsize::new(0),
            #[cfg(feature = "mutants")]
            forgets: crate::mutant::Mutant::ForgottenOrphan.is_named(),
        })
    }

    /// Makes an inode an orphan, and writes it. Does nothing more if it is one. The caller holds
    /// the inode lock exclusively.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn add(&self, transaction: &mut Transaction<'_>, inode: &Arc<Inode>) -> Result<()> {
        let number = inode.core.number;
        {
            let mut state = self.state.lock();
            if !state.nodes.contains_key(&number) {
                #[cfg(feature = "mutants")]
                let place = match self.forgets {
                    true => Place::Nowhere,
                    false => state.place(transaction, inode)?,
                };
                #[cfg(not(feature = "mutants"))]
                let place = state.place(transaction, inode)?;
                let node = Node {
                    inode: Arc::clone(inode),
                    place,
                    is_due: false,
                };
                state.nodes.insert(number, node);
                self.count.fetch_add(1, Ordering::AcqRel);
            }
        }
        inode.core.write(transaction, true)
    }

    /// Takes an inode that has names off the list, and writes it: it is whole again. One without
    /// names stays. The caller holds the inode lock exclusively.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn remove(&self, transaction: &mut Transaction<'_>, inode: &Inode) -> Result<()> {
        if inode.disk().record.links() > 0 {
            self.take_off(transaction, inode)?;
        }
        inode.core.write(transaction, true)
    }

    /// Takes an inode off the list that is being deleted. The record is the caller's to write.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn take_off(&self, transaction: &mut Transaction<'_>, inode: &Inode) -> Result<()> {
        let mut state = self.state.lock();
        let Some(node) = state.nodes.remove(&inode.core.number) else {
            return Ok(());
        };
        self.count.fetch_sub(1, Ordering::AcqRel);
        if node.is_due {
            self.due.fetch_sub(1, Ordering::AcqRel);
        }
        let (newer, older) = match node.place {
            Place::File(entry) => {
                if let Some(file) = &mut state.file {
                    file.file.clear(transaction, &entry)?;
                    file.used = file.used.saturating_sub(1);
                    let at = file.file.block_of(&entry);
                    if let Some(free) = file.free.get_mut(at) {
                        *free = true;
                    }
                }
                return Ok(());
            }
            Place::List { newer, older } => (newer, older),
            #[cfg(feature = "mutants")]
            Place::Nowhere => return Ok(()),
        };
        if let Some(Node {
            place: Place::List { newer: before, .. },
            ..
        }) = older.and_then(|older| state.nodes.get_mut(&older))
        {
            *before = newer;
        }
        inode.core.update(|record| record.set_orphan_next(None));
        let Some(newer) = newer else {
            state.first = older;
            transaction.set_last_orphan(older);
            return Ok(());
        };
        let Some(node) = state.nodes.get_mut(&newer) else {
            return Ok(());
        };
        if let Place::List { older: next, .. } = &mut node.place {
            *next = older;
        }
        let before = Arc::clone(&node.inode);
        before.core.update(|record| record.set_orphan_next(older));
        drop(state);
        before.core.write(transaction, false)
    }

    /// Nobody knows an inode by its number any more: if it is an orphan without names, it is to be
    /// deleted.
    pub(crate) fn forget(&self, number: InodeNo) {
        // Whoever forgets an inode has seen its last name go.
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut state = self.state.lock();
        if let Some(node) = state.nodes.get_mut(&number)
            && !node.is_due
            && node.inode.disk().record.links() == 0
        {
            node.is_due = true;
            state.due.push(number);
            self.due.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// As [`Self::forget`] for all of them.
    pub(crate) fn forget_all(&self) {
        let numbers: Vec<_> = self.state.lock().nodes.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.forget(number));
    }

    /// Whether inodes wait to be deleted.
    pub(crate) fn has_due(&self) -> bool {
        self.due.load(Ordering::Acquire) > 0
    }

    /// The inodes that wait to be deleted, for one thread to try: [`Self::put_back`] what somebody
    /// still has.
    pub(crate) fn take_due(&self) -> Vec<Arc<Inode>> {
        let mut state = self.state.lock();
        let due = std::mem::take(&mut state.due);
        due.iter()
            .filter_map(|number| Some(Arc::clone(&state.nodes.get(number)?.inode)))
            .collect()
    }

    /// An inode that can't be deleted yet.
    pub(crate) fn put_back(&self, number: InodeNo) {
        self.state.lock().due.push(number);
    }

    /// Lets go of the inodes, which stay orphans on the disk: the file system is closed. They have it,
    /// so that it would never go.
    pub(crate) fn let_go(&self) {
        let mut state = self.state.lock();
        let gone = std::mem::take(&mut state.nodes);
        state.due.clear();
        drop(state);
        drop(gone);
    }

    /// Whether the orphan file has entries.
    pub(crate) fn is_file_in_use(&self) -> bool {
        let state = self.state.lock();
        state.file.as_ref().is_some_and(|file| file.used > 0)
    }
}

impl State {
    /// Finds a place on disk for an orphan and has it written there, but for the inode's own
    /// record.
    fn place(&mut self, transaction: &mut Transaction<'_>, inode: &Inode) -> Result<Place> {
        let number = inode.core.number;
        if let Some(File { file, free, used }) = &mut self.file {
            // From the block that the number falls on: neighbours in time share a block then.
            let count = free.len();
            let start = number.0 as usize / 256 % count.max(1);
            for at in (0..count).map(|step| (start + step) % count) {
                if !free[at] {
                    continue;
                }
                if let Some(entry) = file.add(transaction, at, number)? {
                    *used += 1;
                    return Ok(Place::File(entry));
                }
                free[at] = false;
            }
        }
        let older = self.first.replace(number);
        if let Some(Node {
            place: Place::List { newer, .. },
            ..
        }) = older.and_then(|older| self.nodes.get_mut(&older))
        {
            *newer = Some(number);
        }
        inode.core.update(|record| record.set_orphan_next(older));
        transaction.set_last_orphan(Some(number));
        Ok(Place::List { newer: None, older })
    }
}
