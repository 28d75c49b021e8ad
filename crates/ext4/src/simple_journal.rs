//! Stands in for the running journal of `jbd2`, with its interface, until that is there: commits
//! write home, in no order.
#![allow(dead_code, reason = "the whole interface")]

use std::time::Duration;

use hashbrown::HashMap;
use pagefence_block_io::{Buffer, BufferCache, DeviceError};
use pagefence_ext4_format::BlockNo;
use pagefence_jbd2::{JournalError, JournalLocation};
use pagefence_lock_order::levels::{self, Level};
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, RwLock, RwLockReadGuard};
use pagefence_lock_order::rank::RankGuard;
use pagefence_lock_order::{After, Held};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tid(pub(crate) u64);

pub(crate) trait Client: Send + Sync + 'static {
    fn seal(&self, sealing: &mut Sealing<'_>);
    fn committed(&self, tid: Tid);
    fn aborted(&self, error: &JournalError);
}

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) commit_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            commit_interval: Duration::from_secs(5),
        }
    }
}

pub(crate) struct Journal {
    buffers: Arc<BufferCache>,
    client: Arc<dyn Client>,
    gate: RwLock<()>,
    tid: AtomicU64,
    changed: Mutex<HashMap<u64, Option<Arc<Buffer>>>>,
    aborted: AtomicBool,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

pub(crate) struct Sealing<'a> {
    journal: &'a Journal,
    blocks: Vec<BlockNo>,
}

impl Sealing<'_> {
    pub(crate) fn blocks(&self) -> &[BlockNo] {
        &self.blocks
    }

    pub(crate) fn set(&mut self, block: BlockNo, bytes: &[u8]) {
        let buffer = self.journal.buffers.replace(block.0, bytes);
        self.journal.changed.lock().insert(block.0, Some(buffer));
    }
}

#[derive(Debug)]
pub(crate) struct Handle<'a> {
    journal: &'a Journal,
    credits: u32,
    _gate: RwLockReadGuard<'a, ()>,
    _rank: RankGuard,
}

type Result<T> = std::result::Result<T, JournalError>;

impl Journal {
    pub(crate) fn open(
        buffers: Arc<BufferCache>,
        _location: JournalLocation,
        client: Arc<dyn Client>,
        options: Options,
    ) -> Result<Arc<Self>> {
        Self::without_log(buffers, client, options)
    }

    pub(crate) fn without_log(
        buffers: Arc<BufferCache>,
        client: Arc<dyn Client>,
        _options: Options,
    ) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            buffers,
            client,
            gate: RwLock::new(()),
            tid: AtomicU64::new(1),
            changed: Mutex::new(HashMap::new()),
            aborted: AtomicBool::new(false),
        }))
    }

    pub(crate) fn start<'a, P: Level>(
        &'a self,
        held: &'a mut Held<'_, P>,
        credits: u32,
    ) -> Result<(Handle<'a>, Held<'a, levels::Handle>)>
    where
        levels::Handle: After<P>,
    {
        if self.changed.lock().len() > 2000 {
            self.commit(self.running())?;
        }
        let (rank, held) = held.descend::<levels::Handle>(0);
        let handle = Handle {
            journal: self,
            credits,
            _gate: self.gate.read(),
            _rank: rank,
        };
        Ok((handle, held))
    }

    pub(crate) fn running(&self) -> Tid {
        Tid(self.tid.load(Ordering::SeqCst))
    }

    pub(crate) fn committed_tid(&self) -> Tid {
        Tid(self.running().0 - 1)
    }

    pub(crate) fn commit(&self, tid: Tid) -> Result<()> {
        let _gate = self.gate.write();
        if self.running() > tid {
            return Ok(());
        }
        let mut blocks: Vec<BlockNo> = self
            .changed
            .lock()
            .iter()
            .filter(|(_, buffer)| buffer.is_none())
            .map(|(block, _)| BlockNo(*block))
            .collect();
        blocks.sort_unstable();
        self.client.seal(&mut Sealing {
            journal: self,
            blocks,
        });
        let size = self.buffers.block_size() as u64;
        for (block, buffer) in std::mem::take(&mut *self.changed.lock()) {
            if let Some(buffer) = buffer {
                self.buffers.device().write(block * size, &buffer)?;
            }
        }
        self.buffers.device().flush()?;
        let done = self.running();
        self.tid.fetch_add(1, Ordering::SeqCst);
        self.client.committed(done);
        Ok(())
    }

    pub(crate) fn request_commit(&self, _tid: Tid) {}

    pub(crate) fn flush_data(&self) -> Result<()> {
        Ok(self.buffers.device().flush()?)
    }

    pub(crate) fn abort(&self, error: JournalError) {
        if !self.aborted.swap(true, Ordering::SeqCst) {
            self.client.aborted(&error);
        }
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    pub(crate) fn max_credits(&self) -> u32 {
        1024
    }

    pub(crate) fn close(&self) -> Result<()> {
        self.commit(self.running())
    }
}

impl Handle<'_> {
    pub(crate) fn tid(&self) -> Tid {
        self.journal.running()
    }

    pub(crate) fn change<T, E: From<DeviceError>>(
        &mut self,
        block: BlockNo,
        edit: impl FnOnce(&mut [u8]) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let _read = self.journal.buffers.read(block.0)?;
        let mut changed = self.journal.changed.lock();
        let before = self.journal.buffers.read(block.0)?;
        let mut bytes = before.to_vec();
        let done = edit(&mut bytes)?;
        let buffer = self.journal.buffers.replace(block.0, &bytes);
        changed.insert(block.0, Some(buffer));
        self.credits = self.credits.saturating_sub(1);
        Ok(done)
    }

    pub(crate) fn set(&mut self, block: BlockNo, bytes: &[u8]) {
        let buffer = self.journal.buffers.replace(block.0, bytes);
        self.journal.changed.lock().insert(block.0, Some(buffer));
    }

    pub(crate) fn defer(&mut self, block: BlockNo) {
        self.journal.changed.lock().entry(block.0).or_insert(None);
    }

    pub(crate) fn forget(&mut self, block: BlockNo) {
        self.journal.changed.lock().remove(&block.0);
        self.journal.buffers.invalidate(block.0);
    }

    pub(crate) fn credits(&self) -> u32 {
        self.credits
    }

    pub(crate) fn extend(&mut self, credits: u32) -> bool {
        self.credits += credits;
        true
    }

    pub(crate) fn sync(&mut self) {}
}
