//! Freezing a page without its client: the page is spliced out of the memory into a pipe, which takes a
//! reference to it, punched, so that no mapping leads to it any more, read out of the pipe, and written
//! back as a new page. Is a store ever lost, and what does it cost?

use std::io;
use std::time::{Duration, Instant};

use pagefence_host_memory::{FRAME_SIZE, FileMemory, Userfault, View, ViewKind};
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, thread};
use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use crate::protocol::{FAULT, GRANT, TAKEN, guard, map};
use crate::report::{Times, line};
use crate::wire::{Actor, Wire};

const PAGE: u64 = FRAME_SIZE as u64;

/// Threads that store, each to a word of its own in the page that is frozen.
const STORERS: usize = 2;

/// What the client's threads say in the page beside: the last number whose store was begun, the last one
/// whose store was done, and how often a page did not hold what had been stored.
const BEGUN: usize = 0;
const DONE: usize = 8;
const LOST: usize = 16;
const STOP: usize = 2048;
const STRIDE: usize = 64;

/// Where thread `storer` stores in the page.
fn word(storer: usize) -> usize {
    storer * 2048
}

/// A pipe that holds a page.
pub(crate) struct Pipe {
    from: OwnedFd,
    to: OwnedFd,
}

impl Pipe {
    pub(crate) fn new() -> io::Result<Self> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { from, to })
    }

    /// Reads the page that it holds.
    pub(crate) fn drain(&self, bytes: &mut [u8]) -> io::Result<()> {
        let count = rustix::io::read(&self.from, &mut *bytes)?;
        assert_eq!(count, bytes.len(), "the pipe holds the page");
        Ok(())
    }
}

/// Puts the very page, not a copy, into the pipe.
pub(crate) fn sample_out_of(memory: &FileMemory, page: u64, pipe: &Pipe) -> io::Result<()> {
    let mut offset = page * PAGE;
    let flags = SpliceFlags::empty();
    let count = splice(
        memory.fd(),
        Some(&mut offset),
        &pipe.to,
        None,
        FRAME_SIZE,
        flags,
    )?;
    assert_eq!(count, FRAME_SIZE, "one page");
    Ok(())
}

/// How a page is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As designed.
    Splice,
    /// A copy, taken while stores go on: what the check must catch.
    Copy,
}

pub(crate) fn run(freezes: u64) -> io::Result<()> {
    same_page()?;
    let (lost, mut times) = under_load(freezes, Way::Splice)?;
    line(
        &format!("freezes by splice, {freezes} under load, stores lost"),
        format!("{lost} {}", times.summary()),
    );
    assert_eq!(lost, 0);
    let control = freezes.min(20_000);
    let (lost, mut times) = under_load(control, Way::Copy)?;
    line(
        &format!("freezes by pread (the control), {control} under load, stores lost"),
        format!("{lost} {}", times.summary()),
    );
    assert_ne!(lost, 0, "the check sees lost stores");
    protects(freezes.min(20_000))
}

/// A store after the splice and before the punch is in the pipe: it holds the page, not a copy.
fn same_page() -> io::Result<()> {
    let memory = FileMemory::new()?;
    let view = View::new(&memory, 0, FRAME_SIZE, ViewKind::Shared)?;
    let pipe = Pipe::new()?;
    let mut bytes = [0; FRAME_SIZE];
    for round in 1..=1000 {
        view.store_u64(0, 2 * round, Ordering::Release);
        sample_out_of(&memory, 0, &pipe)?;
        view.store_u64(0, 2 * round + 1, Ordering::Release);
        memory.punch(0..1);
        assert_eq!(view.load_u64(0, Ordering::Acquire), 0, "a hole");
        pipe.drain(&mut bytes)?;
        assert_eq!(number(&bytes, 0), 2 * round + 1, "the very page");
    }
    line(
        "splice hands out the page itself, not a copy",
        "yes, 1000 of 1000",
    );
    Ok(())
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What daemon's threads share.
#[derive(Debug, Default)]
struct Daemon {
    /// The page lock: held from a grant until the guard says that it took effect, and over a freeze.
    page: Mutex<()>,
    grants: AtomicU64,
}

/// Freezes the page of a storing client `freezes` times; how many stores were lost, and what each
/// freeze took.
fn under_load(freezes: u64, way: Way) -> io::Result<(u64, Times)> {
    let memory = FileMemory::new()?;
    memory.write(0, 0, &[0; FRAME_SIZE]);
    let beside = FileMemory::new()?;
    beside.write(0, 0, &[0; FRAME_SIZE]);
    let said = View::new(&beside, 0, FRAME_SIZE, ViewKind::Shared)?;
    let (wire, theirs) = Wire::pair()?;
    let mut client = Actor::role(&["storing"], theirs)?;
    wire.send_with([0, 0], &[memory.fd(), beside.fd()])?;
    let daemon = Arc::new(Daemon::default());
    let serving = {
        let daemon = Arc::clone(&daemon);
        thread::spawn("serve", move || serve(&wire, &daemon))?
    };
    let mut times = Times::default();
    let pipe = Pipe::new()?;
    let mut bytes = [0; FRAME_SIZE];
    let mut last = [0; STORERS];
    let mut grants = 0;
    for _ in 0..freezes {
        // A page that nobody has stored to since is no test.
        while daemon.grants.load(Ordering::Acquire) == grants {
            assert!(!serving.is_finished(), "the client is there");
            thread::yield_now();
        }
        let lock = daemon.page.lock();
        grants = daemon.grants.load(Ordering::Acquire);
        let done = said_by(&said, DONE);
        times.take(|| -> io::Result<()> {
            match way {
                Way::Splice => sample_out_of(&memory, 0, &pipe)?,
                Way::Copy => memory.read(0, 0, &mut bytes),
            }
            memory.punch(0..1);
            if way == Way::Splice {
                pipe.drain(&mut bytes)?;
            }
            memory.write(0, 0, &bytes);
            Ok(())
        })?;
        let begun = said_by(&said, BEGUN);
        drop(lock);
        for storer in 0..STORERS {
            let sample = number(&bytes, word(storer));
            assert!(sample <= begun[storer], "nothing that was not stored");
            if way == Way::Splice {
                assert!(
                    sample >= done[storer],
                    "what was stored before is in the sample"
                );
                assert!(sample >= last[storer], "it never goes back");
            }
            last[storer] = sample;
        }
    }
    said.store_u64(STOP, 1, Ordering::Release);
    assert!(client.wait()?.success(), "the client");
    serving.join().expect("no panic")?;
    Ok((said_by(&said, LOST).iter().sum(), times))
}

fn said_by(said: &View, what: usize) -> [u64; STORERS] {
    std::array::from_fn(|storer| said.load_u64(storer * STRIDE + what, Ordering::Acquire))
}

/// Grants each fault under the page lock, which is kept until the grant has taken effect.
fn serve(wire: &Wire, daemon: &Daemon) -> io::Result<()> {
    let mut waiting = 0_u64;
    loop {
        if waiting == 0 {
            match wire.receive()? {
                None => return Ok(()),
                Some([what, _]) => assert_eq!(what, FAULT, "nothing else was sent"),
            }
            waiting = 1;
        }
        let _page = daemon.page.lock();
        wire.send([GRANT, 0])?;
        waiting -= 1;
        loop {
            match wire.receive()? {
                None => return Ok(()),
                Some([FAULT, _]) => waiting += 1,
                Some([what, _]) => break assert_eq!(what, TAKEN, "the grant took effect"),
            }
        }
        daemon.grants.fetch_add(1, Ordering::Release);
    }
}

/// The role of the client: two threads that store, and a guard.
pub(crate) fn storing() -> io::Result<()> {
    let wire = Wire::inherited()?;
    let (_, fds) = wire.expect_with()?;
    let [memory, beside] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| io::ErrorKind::InvalidData)?;
    let view = Arc::new(View::of_fd(memory, 0, FRAME_SIZE, ViewKind::Shared)?);
    let said = Arc::new(View::of_fd(beside, 0, FRAME_SIZE, ViewKind::Shared)?);
    let mut userfault = Userfault::open().map_err(io::Error::other)?;
    userfault.register(&view)?;
    let guarded = Arc::clone(&view);
    thread::spawn("guard", move || guard(&wire, &userfault, &guarded, true))?;
    thread::scope(|scope| {
        for storer in 0..STORERS {
            let (view, said) = (&view, &said);
            scope.spawn(move || store(view, said, storer));
        }
    });
    // The guard ends with the process.
    std::process::exit(0);
}

fn store(view: &View, said: &View, storer: usize) {
    let base = storer * STRIDE;
    let mut count = 0;
    while said.load_u64(STOP, Ordering::Acquire) == 0 {
        if view.load_u64(word(storer), Ordering::Acquire) != count {
            said.fetch_add_u64(base + LOST, 1, Ordering::AcqRel);
        }
        count += 1;
        said.store_u64(base + BEGUN, count, Ordering::Release);
        view.store_u64(word(storer), count, Ordering::Release);
        said.store_u64(base + DONE, count, Ordering::Release);
    }
}

/// The same by UFFDIO_WRITEPROTECT in the client's own process, as maps of one process do it.
fn protects(count: u64) -> io::Result<()> {
    let memory = FileMemory::new()?;
    memory.write(0, 0, &[0; FRAME_SIZE]);
    let view = View::new(&memory, 0, FRAME_SIZE, ViewKind::Shared)?;
    let mut userfault = Userfault::open().map_err(io::Error::other)?;
    userfault.register(&view)?;
    let stop = AtomicBool::new(false);
    let grants = AtomicU64::new(0);
    let page = Mutex::new(());
    let mut times = Times::default();
    let mut bytes = [0; FRAME_SIZE];
    thread::scope(|scope| -> io::Result<()> {
        let (view, userfault, stop, grants, page) = (&view, &userfault, &stop, &grants, &page);
        scope.spawn(move || {
            let mut events = Vec::new();
            while !stop.load(Ordering::Acquire) {
                let limit = Some(Duration::from_millis(50));
                userfault.wait(None, limit).expect("a wait");
                userfault.read_events(&mut events).expect("events");
                for event in events.drain(..) {
                    let _page = page.lock();
                    map(userfault, view, event.page..event.page + 1).expect("a grant");
                    grants.fetch_add(1, Ordering::Release);
                }
            }
            // Nobody stays at a fault.
            map(userfault, view, 0..1).expect("the last grant");
        });
        for storer in 0..STORERS {
            scope.spawn(move || {
                let mut stored = 0;
                while !stop.load(Ordering::Acquire) {
                    stored += 1;
                    view.store_u64(word(storer), stored, Ordering::Release);
                }
            });
        }
        let mut seen = 0;
        for _ in 0..count {
            while grants.load(Ordering::Acquire) == seen {
                thread::yield_now();
            }
            let lock = page.lock();
            seen = grants.load(Ordering::Acquire);
            let start = Instant::now();
            userfault
                .protect(view, 0..1, true)
                .map_err(io::Error::other)?;
            memory.read(0, 0, &mut bytes);
            times.push(start.elapsed());
            drop(lock);
        }
        stop.store(true, Ordering::Release);
        Ok(())
    })?;
    line(
        &format!("UFFDIO_WRITEPROTECT and pread in one process, {count} under load"),
        times.summary(),
    );
    Ok(())
}
