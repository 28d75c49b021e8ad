//! SIGKILL of the daemon while a client's thread stands at a fault: the guard poisons the view, and the
//! thread gets SIGBUS. Without a guard it reads zeros, which shows that the test would see them.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

use pagefence_host_memory::{FRAME_SIZE, FileMemory, Userfault, View, ViewKind};
use pagefence_lock_order::primitives::{Arc, thread};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;

use crate::protocol::{FAULT, guard};
use crate::report::{Times, line};
use crate::wire::{Actor, PATIENCE, Wire};

const PAGES: usize = 256;
const ROUNDS: usize = 30;

/// Pages of a view that is poisoned for its time alone.
const MANY: usize = 16384;

/// How a client ends that loaded a zero.
const ZEROS: i32 = 3;

pub(crate) fn run() -> io::Result<()> {
    let mut times = Times::default();
    for _ in 0..ROUNDS {
        let status = times_of_one("guarded", &mut times)?;
        assert_eq!(status.signal(), Some(Signal::BUS.as_raw()), "{status}");
    }
    line(
        "SIGKILL of the daemon to the client's end by SIGBUS, with a guard",
        times.summary(),
    );
    let status = times_of_one("bare", &mut Times::default())?;
    assert_eq!(status.code(), Some(ZEROS), "{status}");
    line("the same without a guard (the control)", "zeros");
    poison()
}

/// What a guard's last act costs where much is mapped: page by page, and with all of it taken out of the
/// view before.
fn poison() -> io::Result<()> {
    for zaps in [false, true] {
        let memory = FileMemory::new()?;
        let view = View::new(&memory, 0, MANY * FRAME_SIZE, ViewKind::Shared)?;
        let mut userfault = Userfault::open().map_err(io::Error::other)?;
        for page in 0..MANY {
            view.store(page * FRAME_SIZE, &[1]);
        }
        userfault.register(&view)?;
        let mut times = Times::default();
        times
            .take(|| {
                if zaps {
                    view.zap(view.pages());
                }
                userfault.poison(&view, view.pages())
            })
            .map_err(io::Error::other)?;
        let how = if zaps {
            "zapped, then poisoned"
        } else {
            "poisoned"
        };
        line(&format!("{MANY} mapped pages {how}"), times.summary());
    }
    Ok(())
}

fn times_of_one(kind: &str, times: &mut Times) -> io::Result<std::process::ExitStatus> {
    let (ours, theirs) = Wire::pair()?;
    let (daemons, clients) = Wire::pair()?;
    let mut daemon = Actor::role(&["served", kind], theirs)?;
    ours.send_with([0, 0], &[rustix::fd::AsFd::as_fd(&daemons)])?;
    drop(daemons);
    let mut client = Actor::role(&["faulting", kind], clients)?;
    ours.expect()?;
    let start = Instant::now();
    daemon.kill()?;
    let status = client.ended_within(PATIENCE)?;
    times.push(start.elapsed());
    status.ok_or_else(|| io::ErrorKind::TimedOut.into())
}

/// The role of the daemon: hands the memory over, hears of the fault, and never answers.
pub(crate) fn served(kind: &str) -> io::Result<()> {
    let main = Wire::inherited()?;
    let (_, mut fds) = main.expect_with()?;
    let client = Wire::from(fds.pop().ok_or(io::ErrorKind::InvalidData)?);
    let memory = FileMemory::new()?;
    client.send_with([0, 0], &[memory.fd()])?;
    let mut kept = None;
    if kind == "bare" {
        let (_, mut fds) = client.expect_with()?;
        let userfault = kept.insert(fds.pop().ok_or(io::ErrorKind::InvalidData)?);
        poll(&mut [PollFd::new(userfault, PollFlags::IN)], None)?;
    } else {
        assert_eq!(client.expect()?[0], FAULT, "it faults");
    }
    main.send([0, 0])?;
    // Killed here.
    main.receive()?;
    drop(kept);
    Ok(())
}

/// The role of the client.
pub(crate) fn faulting(kind: &str) -> io::Result<()> {
    let wire = Wire::inherited()?;
    let (_, mut fds) = wire.expect_with()?;
    let memory = fds.pop().ok_or(io::ErrorKind::InvalidData)?;
    let view = View::of_fd(memory, 0, PAGES * FRAME_SIZE, ViewKind::Shared)?;
    let view = Arc::new(view);
    let mut userfault = Userfault::open().map_err(io::Error::other)?;
    userfault.register(&view)?;
    if kind == "bare" {
        wire.send_with([0, 0], &[rustix::fd::AsFd::as_fd(&userfault)])?;
        drop(userfault);
    } else {
        let view = Arc::clone(&view);
        thread::spawn("guard", move || guard(&wire, &userfault, &view, false))?;
    }
    let mut bytes = [1; 8];
    view.load(7 * FRAME_SIZE, &mut bytes);
    std::process::exit(if bytes == [0; 8] { ZEROS } else { 1 });
}
