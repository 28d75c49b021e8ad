//! A log of 1,024 blocks under threads that allocate, punch, sync and write data, with commits by
//! a timer besides: nothing hangs, and whenever the power goes, what recovery shows is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pagefence_block_io::fault_device::random::Random;
use pagefence_block_io::{BufferCache, Device, DeviceError, FaultDevice, MemoryDevice};
use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::journal::superblock::{RawJournalSuperblock, SuperblockUpdate};
use pagefence_ext4_format::journal::{BlockKind, RawHeader, Sequence};
use pagefence_jbd2::{
    Client, Emptied, Handle, Journal, JournalError, JournalLocation, JournalRun, Options, Sealing,
    Tid, recover, write_back,
};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, Weak, thread};
use zerocopy::{FromZeros, IntoBytes};

const BLOCK: usize = 1024;
const DEVICE_BLOCKS: u64 = 8192;
/// Revokes, 64-bit numbers, checksums of version 3.
const FEATURES: u32 = 1 | 2 | 0x10;
/// How long any of these tests may take.
const PATIENCE: Duration = Duration::from_secs(240);

fn location(log_blocks: u32) -> JournalLocation {
    // In two runs, out of order.
    let runs = [(0, 6000, 100), (100, 4000, log_blocks - 100)];
    let runs = runs.map(|(logical, physical, count)| JournalRun {
        logical,
        physical: BlockNo(physical),
        count,
    });
    JournalLocation::new(BLOCK as u32, DEVICE_BLOCKS, runs).unwrap()
}

fn image(log_blocks: u32) -> MemoryDevice {
    let mut raw = RawJournalSuperblock::new_zeroed();
    raw.s_header = RawHeader::new(BlockKind::SuperblockV2, Sequence(0));
    raw.s_blocksize = (BLOCK as u32).into();
    raw.s_maxlen = log_blocks.into();
    raw.s_first = 1.into();
    raw.s_sequence = (u32::MAX - 20).into();
    raw.s_feature_incompat = FEATURES.into();
    raw.s_uuid = *b"a small journal!";
    raw.s_checksum_type = 4;
    let mut bytes = raw.as_bytes().to_vec();
    SuperblockUpdate::default().apply(&mut bytes).unwrap();
    let device = MemoryDevice::new(DEVICE_BLOCKS * BLOCK as u64);
    device.write(6000 * BLOCK as u64, &bytes).unwrap();
    device
}

/// Brings an image of a crash home.
fn recovered(device: MemoryDevice, log_blocks: u32) -> MemoryDevice {
    let location = location(log_blocks);
    let recovery = recover(&device, &location).unwrap();
    assert_eq!(recovery.damaged(), None);
    write_back(&device, &location, &recovery, Emptied::Clean).unwrap();
    device
}

fn words_of(device: &dyn Device, block: u64) -> Vec<u64> {
    let mut bytes = vec![0; BLOCK];
    device.read(block * BLOCK as u64, &mut bytes).unwrap();
    words(&bytes)
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(BLOCK, 0);
    bytes
}

fn change_words(handle: &mut Handle<'_>, block: u64, edit: impl FnOnce(&mut Vec<u64>)) {
    handle
        .change(BlockNo(block), |bytes| {
            let mut words = words(bytes);
            edit(&mut words);
            bytes.copy_from_slice(&bytes_of(&words));
            Ok::<(), DeviceError>(())
        })
        .unwrap();
}

/// Runs `bodies` on a thread each and `meanwhile` over and over until all have ended. A test that
/// hangs fails, and leaves its threads behind.
fn run_threads(bodies: Vec<Box<dyn FnOnce() + Send + 'static>>, mut meanwhile: impl FnMut(bool)) {
    let begin = Instant::now();
    let threads: Vec<_> = bodies
        .into_iter()
        .map(|body| thread::spawn("test", body).unwrap())
        .collect();
    while threads.iter().any(|thread| !thread.is_finished()) {
        assert!(begin.elapsed() < PATIENCE, "the threads hang");
        meanwhile(false);
        std::thread::sleep(Duration::from_millis(5));
    }
    for thread in threads {
        thread.join().unwrap();
    }
    meanwhile(true);
}

struct Quiet;

impl Client for Quiet {
    fn seal(&self, _: &mut Sealing<'_>) {}
    fn committed(&self, _: Tid) {}
    fn aborted(&self, error: &JournalError) {
        panic!("{error}");
    }
}

const COUNTERS: usize = 8;
/// Sum of all counters.
const SUM: u64 = 20;

/// What a crash shows of the counters; each thread's counter stands in two blocks, and the sum of
/// all in another.
fn counters(device: &MemoryDevice) -> Vec<u64> {
    let counters: Vec<u64> = (0..COUNTERS as u64)
        .map(|at| {
            let (one, two) = (words_of(device, 30 + at), words_of(device, 40 + at * 5));
            assert_eq!(one[7], two[9], "counter {at} in part");
            one[7]
        })
        .collect();
    let sum = words_of(device, SUM)[0];
    assert_eq!(sum, counters.iter().sum::<u64>(), "{counters:?}");
    counters
}

fn count_on(log_blocks: u32, handles: u64) {
    let device = Arc::new(FaultDevice::new(&image(log_blocks), 1));
    let buffers = Arc::new(BufferCache::new(device.clone(), BLOCK as u32, 64 << 10));
    let client: Arc<Quiet> = Arc::new(Quiet);
    let weak: Weak<Quiet> = Arc::downgrade(&client);
    let options = Options {
        commit_interval: Duration::from_millis(10),
        ..Options::default()
    };
    let journal = Journal::open(buffers, location(log_blocks), weak, options).unwrap();
    assert_eq!(journal.max_credits(), (log_blocks - 1) / 4);
    // Counters whose commit was waited for.
    let promised: Arc<Vec<AtomicU64>> =
        Arc::new((0..COUNTERS).map(|_| AtomicU64::new(0)).collect());
    let mut bodies: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for at in 0..COUNTERS as u64 {
        let (journal, promised) = (journal.clone(), promised.clone());
        bodies.push(Box::new(move || {
            let mut random = Random::new(at);
            for count in 1..=handles {
                let mut entry = Held::at_entry();
                // Some ask for far more than they use.
                let spare = random.below(u64::from(journal.max_credits() - 10)) as u32;
                let credits = if random.one_in(8) { 10 + spare } else { 10 };
                let (mut handle, held) = journal.start(&mut entry, credits).unwrap();
                change_words(&mut handle, 30 + at, |words| words[7] += 1);
                change_words(&mut handle, SUM, |words| words[0] += 1);
                let other = 100 + random.below(600);
                change_words(&mut handle, other, |words| words[3] += 1);
                change_words(&mut handle, 40 + at * 5, |words| words[9] += 1);
                let tid = handle.tid();
                drop((handle, held));
                if random.one_in(50) {
                    journal.commit(tid).unwrap();
                    promised[at as usize].store(count, Ordering::SeqCst);
                }
            }
        }));
    }
    let mut seed = 0;
    run_threads(bodies, |_| {
        let before: Vec<u64> = promised
            .iter()
            .map(|at| at.load(Ordering::SeqCst))
            .collect();
        seed += 1;
        let shown = counters(&recovered(device.crash(seed), log_blocks));
        for (shown, before) in shown.iter().zip(&before) {
            assert!(shown >= before, "{shown} of {before}");
        }
    });
    assert_eq!(journal.overdrawn(), 0);
    journal.close().unwrap();
    let closed = device.crash(0);
    assert!(recover(&closed, &location(log_blocks)).unwrap().is_clean());
    assert_eq!(counters(&closed), vec![handles; COUNTERS]);
    println!("{seed} crashes");
}

#[test]
fn counters_of_eight_threads_survive_crashes() {
    count_on(1024, 2000);
}

#[test]
fn counters_survive_on_a_tiny_log() {
    count_on(256, 1000);
}

// The prototype: a file system in miniature.

const FILES: u64 = 6;
const INODES: u64 = 10;
const BITMAP: u64 = 8;
const POOL: std::ops::Range<u64> = 100..1100;
const POINTERS_MAX: usize = 100;
const DATA: u64 = 0xda7a_da7a_da7a_da7a;

/// Which blocks are used for what.
#[derive(Default)]
struct Space {
    /// As the bitmap says.
    used: BTreeSet<u64>,
    /// Freed, and by which transaction: not free before its commit.
    waiting: BTreeMap<u64, Tid>,
    /// Free again, not written as data yet.
    returned: BTreeSet<u64>,
    /// Durably file data, and which time.
    data: BTreeMap<u64, u64>,
    /// Times that data was written.
    writes: u64,
    /// Being written as data.
    busy: BTreeSet<u64>,
}

struct Miniature {
    space: Mutex<Space>,
    files: Vec<Mutex<Vec<u64>>>,
    aborted: AtomicBool,
}

impl Client for Miniature {
    fn seal(&self, sealing: &mut Sealing<'_>) {
        assert_eq!(sealing.blocks(), [BlockNo(BITMAP)]);
        let mut bitmap = vec![0_u8; BLOCK];
        for block in &self.space.lock().used {
            bitmap[*block as usize / 8] |= 1 << (block % 8);
        }
        sealing.set(BlockNo(BITMAP), &bitmap);
    }
    fn committed(&self, tid: Tid) {
        let mut space = self.space.lock();
        let freed: Vec<u64> = space
            .waiting
            .iter()
            .filter(|(_, by)| **by <= tid)
            .map(|(block, _)| *block)
            .collect();
        for block in freed {
            space.waiting.remove(&block);
            space.returned.insert(block);
        }
    }
    fn aborted(&self, error: &JournalError) {
        eprintln!("{error}");
        self.aborted.store(true, Ordering::SeqCst);
    }
}

fn tree_block(file: u64, block: u64) -> Vec<u8> {
    bytes_of(&[file, block].repeat(BLOCK / 16))
}

impl Miniature {
    /// A writer maps what it has written: allocates tree blocks for a file.
    fn grow(&self, journal: &Journal, random: &mut Random) -> Tid {
        let file = random.below(FILES);
        let mut pointers = self.files[file as usize].lock();
        let mut entry = Held::at_entry();
        let (mut handle, _held) = journal.start(&mut entry, 6).unwrap();
        for _ in 0..1 + random.below(4) {
            let start = POOL.start + random.below(POOL.end - POOL.start);
            let mut space = self.space.lock();
            let free = (start..POOL.end).chain(POOL.start..start).find(|block| {
                !space.used.contains(block)
                    && !space.waiting.contains_key(block)
                    && !space.busy.contains(block)
            });
            let Some(block) = free.filter(|_| pointers.len() < POINTERS_MAX) else {
                break;
            };
            space.used.insert(block);
            space.returned.remove(&block);
            space.data.remove(&block);
            drop(space);
            handle.set(BlockNo(block), &tree_block(file, block));
            pointers.push(block);
        }
        self.write_inode(&mut handle, file, &pointers);
        handle.tid()
    }

    /// A punch frees tree blocks of a file.
    fn punch(&self, journal: &Journal, random: &mut Random) -> Tid {
        let file = random.below(FILES);
        let mut pointers = self.files[file as usize].lock();
        let mut entry = Held::at_entry();
        let (mut handle, _held) = journal.start(&mut entry, 3).unwrap();
        for _ in 0..random.below(6) {
            if pointers.is_empty() {
                break;
            }
            let at = random.below(pointers.len() as u64) as usize;
            let block = pointers.swap_remove(at);
            handle.forget(BlockNo(block));
            let mut space = self.space.lock();
            space.used.remove(&block);
            space.waiting.insert(block, handle.tid());
        }
        self.write_inode(&mut handle, file, &pointers);
        handle.tid()
    }

    fn write_inode(&self, handle: &mut Handle<'_>, file: u64, pointers: &[u64]) {
        change_words(handle, INODES + file, |words| {
            words.fill(0);
            words[0] = pointers.len() as u64;
            words[1..=pointers.len()].copy_from_slice(pointers);
        });
        handle.defer(BlockNo(BITMAP));
    }

    /// File data goes to blocks that were tree blocks.
    fn write_data(&self, journal: &Journal, device: &FaultDevice) {
        let block = {
            let mut space = self.space.lock();
            let Some(block) = space.returned.pop_first() else {
                return;
            };
            space.busy.insert(block);
            block
        };
        let bytes = bytes_of(&[DATA; BLOCK / 8]);
        device.write(block * BLOCK as u64, &bytes).unwrap();
        journal.flush_data().unwrap();
        let mut space = self.space.lock();
        space.busy.remove(&block);
        space.writes += 1;
        let write = space.writes;
        space.data.insert(block, write);
    }
}

/// Checks what a crash left: every pointer leads to its tree block, the bitmap is just what the
/// pointers say, and `data` is untouched.
fn check_miniature(device: &MemoryDevice, data: &BTreeSet<u64>) -> usize {
    let mut used = BTreeSet::new();
    for file in 0..FILES {
        let inode = words_of(device, INODES + file);
        let count = inode[0] as usize;
        for block in &inode[1..=count] {
            assert!(used.insert(*block), "{block} belongs to two files");
            let expected = words(&tree_block(file, *block));
            assert_eq!(
                words_of(device, *block),
                expected,
                "tree block {block} of {file}"
            );
        }
    }
    let mut bitmap = vec![0; BLOCK];
    device.read(BITMAP * BLOCK as u64, &mut bitmap).unwrap();
    let marked: BTreeSet<u64> = (0..DEVICE_BLOCKS)
        .filter(|block| bitmap[*block as usize / 8] & (1 << (block % 8)) != 0)
        .collect();
    assert_eq!(marked, used, "the bitmap is of another transaction");
    for block in data {
        if !used.contains(block) {
            assert_eq!(
                words_of(device, *block),
                [DATA; BLOCK / 8],
                "data in {block}"
            );
        }
    }
    used.len()
}

#[test]
fn writers_punches_syncs_and_a_timer_share_a_small_log() {
    const LOG_BLOCKS: u32 = 1024;
    const ROUNDS: u32 = 2500;
    const ROUNDS_MAX: u32 = 100_000;
    let device = Arc::new(FaultDevice::new(&image(LOG_BLOCKS), 2));
    let buffers = Arc::new(BufferCache::new(device.clone(), BLOCK as u32, 64 << 10));
    let client = Arc::new(Miniature {
        space: Mutex::new(Space::default()),
        files: (0..FILES).map(|_| Mutex::new(Vec::new())).collect(),
        aborted: AtomicBool::new(false),
    });
    let weak: Weak<Miniature> = Arc::downgrade(&client);
    let options = Options {
        commit_interval: Duration::from_millis(3),
        ..Options::default()
    };
    let journal = Journal::open(buffers, location(LOG_BLOCKS), weak, options).unwrap();
    let running = Arc::new(AtomicU64::new(0));
    // How much a crash finds is up to how threads meet: they go on until one found enough.
    let is_enough = Arc::new(AtomicBool::new(false));
    let mut bodies: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for number in 0..6_u64 {
        let (client, journal, running) = (client.clone(), journal.clone(), running.clone());
        let is_enough = is_enough.clone();
        running.fetch_add(1, Ordering::SeqCst);
        bodies.push(Box::new(move || {
            let mut random = Random::new(number);
            for round in 0..ROUNDS_MAX {
                if round >= ROUNDS && is_enough.load(Ordering::SeqCst) {
                    break;
                }
                let tid = if number < 4 {
                    client.grow(&journal, &mut random)
                } else {
                    client.punch(&journal, &mut random)
                };
                if round % 100 == 0 {
                    journal.commit(tid).unwrap();
                }
            }
            running.fetch_sub(1, Ordering::SeqCst);
        }));
    }
    for number in 0..3 {
        let (client, journal, running) = (client.clone(), journal.clone(), running.clone());
        let device = device.clone();
        bodies.push(Box::new(move || {
            while running.load(Ordering::SeqCst) > 0 {
                match number {
                    0 => journal.commit(journal.running()).unwrap(),
                    1 => journal.flush_data().unwrap(),
                    _ => client.write_data(&journal, &device),
                }
                thread::yield_now();
            }
        }));
    }
    let (mut seed, mut most, mut kept) = (0, 0, 0);
    run_threads(bodies, |_| {
        seed += 1;
        // What is data before the crash and was not taken for a tree block until after it.
        let before = client.space.lock().data.clone();
        let crashed = device.crash(seed);
        let after = client.space.lock().data.clone();
        let data: BTreeSet<u64> = before
            .iter()
            .filter(|(block, write)| after.get(block) == Some(write))
            .map(|(block, _)| *block)
            .collect();
        kept = kept.max(data.len());
        most = most.max(check_miniature(&recovered(crashed, LOG_BLOCKS), &data));
        is_enough.store(most > 100 && kept > 10, Ordering::SeqCst);
    });
    assert!(!client.aborted.load(Ordering::SeqCst));
    assert_eq!(journal.overdrawn(), 0);
    assert!(
        most > 100 && kept > 10,
        "{most} tree blocks, {kept} of data"
    );
    println!("{seed} crashes, {} transactions", journal.committed_tid());
    assert!(journal.committed_tid() > Tid(50));
    journal.close().unwrap();
    let end = device.crash(0);
    assert!(recover(&end, &location(LOG_BLOCKS)).unwrap().is_clean());
    let data = client.space.lock().data.keys().copied().collect();
    let used = check_miniature(&end, &data);
    assert_eq!(used, client.space.lock().used.len());
}
