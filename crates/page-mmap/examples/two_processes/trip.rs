//! The way of one fault: to a handler in the process, and by guard and socket to another process and back.

use std::io;
use std::time::Duration;

use pagefence_host_memory::{FRAME_SIZE, FileMemory, Userfault, View, ViewKind};
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, thread};

use crate::protocol::{FAULT, GRANT, PROTECT, TAKEN, guard, map, number};
use crate::report::{Times, line};
use crate::wire::{Actor, Wire};

const PAGES: u64 = 8192;
const BYTES: usize = 8192 * FRAME_SIZE;

fn filled() -> io::Result<Arc<FileMemory>> {
    let memory = FileMemory::new()?;
    for page in 0..PAGES {
        memory.write(page, 0, &[1; FRAME_SIZE]);
    }
    Ok(memory)
}

/// Touches each page once.
fn touch(view: &View) -> Times {
    let mut times = Times::default();
    let mut byte = [0];
    for page in 0..BYTES / FRAME_SIZE {
        times.take(|| view.load(page * FRAME_SIZE, &mut byte));
        assert_eq!(byte, [1]);
    }
    times
}

pub(crate) fn run() -> io::Result<()> {
    line("fault, handler in the process", in_process()?.summary());
    line(
        "fault, guard, socket, daemon, socket, guard",
        across()?.summary(),
    );
    Ok(())
}

fn in_process() -> io::Result<Times> {
    let memory = filled()?;
    let view = View::new(&memory, 0, BYTES, ViewKind::Shared)?;
    let mut userfault = Userfault::open().map_err(io::Error::other)?;
    userfault.register(&view)?;
    let stop = AtomicBool::new(false);
    Ok(thread::scope(|scope| {
        scope.spawn(|| {
            let mut events = Vec::new();
            while !stop.load(Ordering::Acquire) {
                let limit = Some(Duration::from_millis(50));
                userfault.wait(None, limit).expect("a wait");
                userfault.read_events(&mut events).expect("events");
                for event in events.drain(..) {
                    map(&userfault, &view, event.page..event.page + 1).expect("a grant");
                }
            }
        });
        let times = touch(&view);
        stop.store(true, Ordering::Release);
        times
    }))
}

fn across() -> io::Result<Times> {
    let memory = filled()?;
    let (wire, theirs) = Wire::pair()?;
    let (results, clients) = Wire::pair()?;
    let _client = Actor::role(&["touching"], theirs)?;
    wire.send_with([0, 0], &[memory.fd(), rustix::fd::AsFd::as_fd(&clients)])?;
    drop(clients);
    for _ in 0..PAGES {
        let [what, page] = wire.expect()?;
        assert_eq!(what, FAULT, "nothing else is asked");
        wire.send([GRANT, page])?;
    }
    let mut times = Times::default();
    for _ in 0..PAGES {
        times.push(Duration::from_nanos(results.expect()?[1]));
    }
    for (pages, name) in [(1, "one page"), (256, "256 pages")] {
        let mut protects = Times::default();
        for first in (0..PAGES).step_by(256) {
            protects.take(|| -> io::Result<()> {
                wire.send([PROTECT, number(&(first..first + pages))])?;
                assert_eq!(wire.expect()?[0], TAKEN, "it is protected");
                Ok(())
            })?;
        }
        line(
            &format!("write-protect by guard and socket, {name}"),
            protects.summary(),
        );
    }
    Ok(times)
}

/// The role of the client.
pub(crate) fn touching() -> io::Result<()> {
    let wire = Wire::inherited()?;
    let (_, mut fds) = wire.expect_with()?;
    let results = Wire::from(fds.pop().ok_or(io::ErrorKind::InvalidData)?);
    let memory = fds.pop().ok_or(io::ErrorKind::InvalidData)?;
    let view = Arc::new(View::of_fd(memory, 0, BYTES, ViewKind::Shared)?);
    let mut userfault = Userfault::open().map_err(io::Error::other)?;
    userfault.register(&view)?;
    let guarded = Arc::clone(&view);
    thread::spawn("guard", move || guard(&wire, &userfault, &guarded, false))?;
    for nanos in touch(&view).nanos() {
        results.send([0, nanos])?;
    }
    // The guard goes on until the daemon is gone.
    results.receive()?;
    std::process::exit(0);
}
