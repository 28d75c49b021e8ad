//! Crashes of a journal in use. At any moment, whatever of the unflushed is lost, recovery shows
//! the file system as it was after some transaction, none in part, none lost that somebody had
//! waited for, and never touches a block that was freed and became file data.
//!
//! Each rule of the journal is then broken once, and the same test must notice.

use pagefence_block_io::fault_device::random::Random;

use pagefence_lock_order::primitives::thread;

use super::running::*;
use super::*;
use crate::mutant::Mutant;
use crate::{Handle, Tid};

/// Names the transaction, so that a recovered image says which one it shows.
const TID_BLOCK: u64 = 3;
/// The client's.
const DEFERRED: [u64; 2] = [4, 5];
const FIRST: u64 = 10;
const END: u64 = 50;
const DATA: u8 = 0x77;

/// What a block must hold, if that is known.
pub(super) type State = BTreeMap<u64, Option<Vec<u8>>>;

/// What the file system uses a block for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Metadata,
    /// Freed by this transaction.
    Freed(Tid),
    /// File data; for good.
    Data,
}

pub(super) struct Model {
    random: Random,
    uses: BTreeMap<u64, Use>,
    pub(super) state: State,
    /// The state after each transaction.
    states: BTreeMap<u64, State>,
    /// Moments of the trace from which on this transaction is durable by promise.
    promised: Vec<(usize, u64)>,
    /// Moments from which on this block is data, durably.
    data: Vec<(usize, u64)>,
}

impl Model {
    pub(super) fn new(image: &Image, seed: u64) -> Self {
        let state: State = [TID_BLOCK]
            .into_iter()
            .chain(DEFERRED)
            .chain(FIRST..END)
            .map(|block| (block, Some(vec![0x80 | block as u8; BLOCK])))
            .collect();
        assert_eq!(byte_of(&image.device, FIRST), 0x80 | FIRST as u8);
        Self {
            random: Random::new(seed),
            uses: (FIRST..END).map(|block| (block, Use::Metadata)).collect(),
            states: BTreeMap::from([(0, state.clone())]),
            state,
            promised: Vec::new(),
            data: Vec::new(),
        }
    }

    fn pick(&mut self, wanted: impl Fn(Use) -> bool) -> Option<u64> {
        // A few blocks are hot.
        let end = if self.random.one_in(2) {
            18
        } else {
            END - FIRST
        };
        let block = FIRST + self.random.below(end);
        wanted(self.uses[&block]).then_some(block)
    }

    fn contents(&mut self) -> Vec<u8> {
        let byte = self.random.next_u64() as u8;
        if self.random.one_in(4) {
            escaped(byte)
        } else {
            vec![byte; BLOCK]
        }
    }

    fn change(&mut self, handle: &mut Handle<'_>, block: u64, bytes: Vec<u8>) {
        handle
            .change(BlockNo(block), |old| {
                old.copy_from_slice(&bytes);
                Ok::<(), pagefence_block_io::DeviceError>(())
            })
            .unwrap();
        self.state.insert(block, Some(bytes));
    }

    /// One operation of the file system: a handle.
    pub(super) fn operate(&mut self, ground: &Ground) -> Tid {
        let mut entry = pagefence_lock_order::Held::at_entry();
        let (mut handle, _held) = ground.journal.start(&mut entry, 7).unwrap();
        let tid = handle.tid();
        let metadata = |used| used == Use::Metadata;
        self.change(&mut handle, TID_BLOCK, pattern(tid));
        if self.random.one_in(3) {
            // A commit that is asked for now waits for what follows.
            ground.journal.request_commit(tid);
            thread::yield_now();
        }
        for _ in 0..1 + self.random.below(6) {
            if let Some(block) = self.pick(metadata) {
                let bytes = self.contents();
                self.change(&mut handle, block, bytes);
            }
        }
        if self.random.one_in(3) {
            let block = DEFERRED[self.random.below(2) as usize];
            handle.defer(BlockNo(block));
            self.state.insert(block, Some(pattern(tid)));
        }
        if self.random.one_in(2)
            && let Some(block) = self.pick(metadata)
        {
            handle.forget(BlockNo(block));
            self.uses.insert(block, Use::Freed(tid));
            self.state.insert(block, None);
        }
        if self.random.one_in(5)
            && let Some(block) = self.pick(metadata)
        {
            // Freed and taken again at once.
            handle.forget(BlockNo(block));
            let bytes = self.contents();
            handle.set(BlockNo(block), &bytes);
            self.state.insert(block, Some(bytes));
        }
        let committed = ground.journal.committed_tid();
        let free = |used| matches!(used, Use::Freed(tid) if tid <= committed);
        if self.random.one_in(2)
            && let Some(block) = self.pick(free)
        {
            let bytes = self.contents();
            handle.set(BlockNo(block), &bytes);
            self.uses.insert(block, Use::Metadata);
            self.state.insert(block, Some(bytes));
        }
        self.states.insert(tid.0, self.state.clone());
        tid
    }

    /// File data goes to blocks that commits have freed.
    pub(super) fn write_data(&mut self, ground: &Ground) {
        let committed = ground.journal.committed_tid();
        let free: Vec<u64> = self
            .uses
            .iter()
            .filter(|(_, used)| matches!(used, Use::Freed(tid) if *tid <= committed))
            .map(|(block, _)| *block)
            .take(2)
            .collect();
        for block in &free {
            let bytes = [DATA; BLOCK];
            ground.device.write(block * BLOCK as u64, &bytes).unwrap();
            self.uses.insert(*block, Use::Data);
        }
        ground.journal.flush_data().unwrap();
        let now = ground.device.trace_position();
        self.data.extend(free.iter().map(|block| (now, *block)));
    }

    pub(super) fn promise(&mut self, ground: &Ground, tid: Tid) {
        ground.journal.commit(tid).unwrap();
        self.promised.push((ground.device.trace_position(), tid.0));
    }

    /// What is wrong with an image of a crash at `position`.
    fn check(
        &self,
        position: usize,
        device: MemoryDevice,
        exact: Option<u64>,
    ) -> Result<u64, String> {
        let location = location();
        let recovery = recover(&device, &location).map_err(|error| format!("recovery: {error}"))?;
        if let Some(damaged) = recovery.damaged() {
            return Err(format!("{damaged} is damaged"));
        }
        write_back(&device, &location, &recovery, Emptied::Clean)
            .map_err(|error| format!("write-back: {error}"))?;
        let read = |block: u64| {
            let mut bytes = vec![0; BLOCK];
            device.read(block * BLOCK as u64, &mut bytes).unwrap();
            bytes
        };
        let named = u64::from_le_bytes(*read(TID_BLOCK).first_chunk().unwrap());
        let initial = u64::from_le_bytes([0x80 | TID_BLOCK as u8; 8]);
        let tid = if named == initial { 0 } else { named };
        let promised = self
            .promised
            .iter()
            .filter(|(at, _)| *at <= position)
            .map(|(_, tid)| *tid)
            .max()
            .unwrap_or(0);
        if tid < promised {
            return Err(format!("{tid} of {promised}"));
        }
        if exact.is_some_and(|exact| exact != tid) {
            return Err(format!("{tid} in the end"));
        }
        let state = self.states.get(&tid).ok_or(format!("no state {tid}"))?;
        for (block, bytes) in state {
            if bytes.as_ref().is_some_and(|bytes| *bytes != read(*block)) {
                return Err(format!("block {block} of {tid}"));
            }
        }
        for (at, block) in &self.data {
            if *at <= position && read(*block) != [DATA; BLOCK] {
                return Err(format!("data in block {block}"));
            }
        }
        Ok(tid)
    }
}

/// One life of a journal, crashed everywhere; how many states were tried.
fn crash_everywhere(
    kind: (u32, u32),
    seed: u64,
    operations: usize,
    mutant: Option<Mutant>,
) -> Result<usize, String> {
    let image = Image::new(kind.0, kind.1, 0, u32::MAX - 3);
    let mut model = Model::new(&image, seed);
    let ground = Ground::with(&image, options(mutant), true);
    ground.device.start_trace();
    for _ in 0..operations {
        let tid = model.operate(&ground);
        match model.random.below(4) {
            0 => model.promise(&ground, tid),
            1 => ground.journal.request_commit(tid),
            _ => {}
        }
        if model.random.one_in(6) {
            model.write_data(&ground);
        }
    }
    let last = model.states.keys().next_back().copied().unwrap();
    let closed = model.random.one_in(2);
    if closed {
        ground.journal.close().unwrap();
        model.promised.push((ground.device.trace_position(), last));
    }
    // The client must not be what ends the thread.
    let Ground {
        device,
        journal,
        client,
        ..
    } = ground;
    drop(journal);
    drop(client);
    let end = device.trace_position();
    let live = device.live();
    if closed && !recover(&live, &image.location).unwrap().is_clean() {
        return Err("closed, not clean".to_owned());
    }
    model.check(end, live, closed.then_some(last))?;
    let trace = device.take_trace().unwrap();
    let mut random = Random::new(seed);
    let mut tried = 0;
    let mut outcome = Ok(());
    let mut highest = 0;
    trace.walk(|point| {
        if !point.is_before_flush() || outcome.is_err() {
            return;
        }
        let states = point.crash_states();
        let some = [states.nothing(), states.everything()]
            .into_iter()
            .chain((0..if mutant.is_some() { 24 } else { 6 }).map(|_| states.random(&mut random)));
        for state in some {
            tried += 1;
            let position = point.position();
            match model.check(position, states.image(&state), None) {
                Ok(tid) => highest = highest.max(tid),
                Err(error) => {
                    outcome = Err(format!("step {position} of {end}: {error}"));
                    return;
                }
            }
        }
    });
    outcome?;
    assert!(highest > 3, "the log was used");
    Ok(tried)
}

#[test]
fn every_crash_shows_whole_transactions() {
    let mut tried = 0;
    for (at, kind) in KINDS.into_iter().enumerate() {
        for seed in 0..4 {
            tried += crash_everywhere(kind, seed * 100 + at as u64, 60, None)
                .unwrap_or_else(|error| panic!("{kind:x?}, seed {seed}: {error}"));
        }
    }
    println!("{tried} states");
    assert!(tried > 10_000);
}

/// Whether a crash shows that the rule was broken, beginning with a seed that was seen to.
fn noticed(mutant: Mutant, first_seed: u64) {
    // A journal without checksums, that can't tell a block that was lost.
    let noticed = (first_seed..first_seed + 60).find_map(|seed| {
        let outcome = std::panic::catch_unwind(|| {
            crash_everywhere((0, REVOKE), 1000 + seed, 60, Some(mutant))
        });
        match outcome {
            Ok(outcome) => outcome.err().map(|error| (seed, error)),
            Err(_) => Some((seed, "a panic".to_owned())),
        }
    });
    println!("{mutant:?}: {noticed:?}");
    assert!(noticed.is_some(), "{mutant:?} is not noticed");
}

#[test]
fn a_commit_block_before_its_transaction() {
    noticed(Mutant::NoFlushBeforeCommitBlock, 0);
}

#[test]
fn a_commit_that_is_not_flushed() {
    noticed(Mutant::NoFlushBehindCommitBlock, 0);
}

#[test]
fn a_tail_that_is_not_durable() {
    noticed(Mutant::TailNotDurable, 29);
}

#[test]
fn a_home_that_is_not_durable() {
    noticed(Mutant::HomeNotDurable, 0);
}

#[test]
fn no_revoke_records() {
    noticed(Mutant::NoRevokeRecords, 0);
}

#[test]
fn revoked_blocks_go_home() {
    noticed(Mutant::RevokedStayInCheckpoint, 0);
}

#[test]
fn uncommitted_blocks_go_home() {
    noticed(Mutant::HomeUncommitted, 0);
}

#[test]
fn open_handles_are_committed() {
    noticed(Mutant::OpenHandlesCommitted, 0);
}
