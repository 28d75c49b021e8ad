//! A client that holds the locks that it can get for as long as it likes: what of the daemon's calls come
//! back?

use std::fs::File;
use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use pagefence_host_memory::{FRAME_SIZE, FileMemory};
use pagefence_lock_order::primitives::{Arc, thread};
use rustix::fd::{AsFd, BorrowedFd};

use crate::freeze::{Pipe, sample_out_of};
use crate::hostage::{FILE, Hostage, LATE, LATE_BYTE, NEVER};
use crate::report::{Times, line};
use crate::wire::{Actor, PATIENCE, Wire};

/// After so long a call is taken to hang.
const HANGS: Duration = Duration::from_millis(1500);

/// Pages of the memory; `hostile.py` maps as many, and half of them before it is stuck.
const PAGES: u64 = 512;
const PAGE: u64 = FRAME_SIZE as u64;

pub(crate) fn run() -> io::Result<()> {
    map_lock("plain")?;
    map_lock("fixed")?;
    inode_lock("read ahead")?;
    inode_lock("not read ahead")?;
    pinned(false)?;
    pinned(true)?;
    backed()
}

fn filled() -> io::Result<Arc<FileMemory>> {
    let memory = FileMemory::new()?;
    for page in 0..PAGES {
        memory.write(page, 0, &[0xab; FRAME_SIZE]);
    }
    Ok(memory)
}

/// A process that runs `hostile.py` in a role.
fn hostile(arguments: &[&str]) -> io::Result<(Actor, Wire)> {
    let (wire, theirs) = Wire::pair()?;
    let mut command = Command::new("python3");
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/two_processes/hostile.py"
    );
    command.arg(script).args(arguments);
    Ok((Actor::start(command, theirs)?, wire))
}

fn mountpoint(hostage: &Hostage) -> &str {
    hostage.mountpoint().to_str().expect("it was one already")
}

/// Holds a client's map lock, and tries what a daemon could do with the client's userfaultfd, and
/// with the memory.
fn map_lock(place: &str) -> io::Result<()> {
    // Dropped last: those who hang end when the server has.
    let mut hanging = Vec::new();
    let memory = filled()?;
    let hostage = Hostage::start(memory.fd())?;
    let (client, wire) = hostile(&["stuck", mountpoint(&hostage), place])?;
    wire.send_with([0, 0], &[memory.fd()])?;
    let ([_, shared], mut fds) = wire.expect_with()?;
    let userfault = fds.pop().ok_or(io::ErrorKind::InvalidData)?;
    let [_, private] = wire.expect()?;
    wire.send([0, 0])?;
    hostage.wait_until_held(FILE)?;
    let id = client.id();
    hanging.push(client);
    let what = format!("map lock held ({place})");
    line(&what, where_it_stands(id, "mmap")?);
    // Past what the kernel has mapped around the others.
    let not_mapped = shared + PAGES / 4 * 3 * PAGE;
    for (name, label, address) in [
        ("continue", "CONTINUE, shared view", not_mapped),
        ("continue", "CONTINUE, private view never faulted", private),
        ("poison", "POISON, shared view", not_mapped + PAGE),
        ("write-protect", "WRITEPROTECT, shared view", shared),
        ("wake", "WAKE", shared),
    ] {
        let (outcome, actor) = call(name, address, userfault.as_fd())?;
        line(&format!("{what}, {label}"), &outcome);
        if name == "write-protect" {
            assert!(outcome.starts_with("HANGS"), "{outcome}");
        }
        if name == "wake" {
            assert!(outcome.starts_with("returns"), "{outcome}");
        }
        if place == "fixed" && name != "wake" {
            assert!(outcome.starts_with("HANGS"), "{outcome}");
        }
        hanging.push(actor);
    }
    files_calls(&what, &memory)?;
    hostage.release()?;
    assert_eq!(wire.expect()?, [3, 0], "mmap comes back");
    Ok(())
}

/// Has another process do one call, and says what came of it.
fn call(name: &str, number: u64, fd: BorrowedFd<'_>) -> io::Result<(String, Actor)> {
    let (mut actor, wire) = hostile(&["call", name])?;
    wire.send_with([0, number], &[fd])?;
    assert_eq!(wire.expect()?[0], 1, "it begins");
    let start = Instant::now();
    if wire.is_ready_within(HANGS)? {
        let [_, error] = wire.expect()?;
        let answer = match i32::try_from(error).expect("an errno") {
            0 => "0".to_owned(),
            errno => rustix::io::Errno::from_raw_os_error(errno).to_string(),
        };
        return Ok((format!("returns {answer} ({:?})", start.elapsed()), actor));
    }
    let place = where_it_stands(actor.id(), "")?;
    actor.kill()?;
    let killed = match actor.ended_within(HANGS)? {
        Some(_) => "SIGKILL ends it",
        None => "SIGKILL does not end it",
    };
    Ok((format!("HANGS, {place}; {killed}"), actor))
}

/// The state of a process that hangs, and where in the kernel; waits until `function` is part of that.
fn where_it_stands(id: u32, function: &str) -> io::Result<String> {
    let start = Instant::now();
    loop {
        let stack = std::fs::read_to_string(format!("/proc/{id}/stack"))?;
        let names: Vec<_> = stack
            .lines()
            .filter_map(|line| line.split(' ').nth(1)?.split('+').next())
            .collect();
        let inside = names.iter().any(|name| name.contains(function));
        if (inside && !names.is_empty()) || start.elapsed() > PATIENCE {
            assert!(inside, "not in {function}: {names:?}");
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
            let state = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.chars().next());
            let shown = names[..names.len().min(7)].join(" < ");
            return Ok(format!("state {}, {shown}", state.unwrap_or('?')));
        }
        thread::yield_now();
    }
}

/// What the daemon does with the memory itself, page by page, on pages that the client has mapped.
fn files_calls(what: &str, memory: &Arc<FileMemory>) -> io::Result<()> {
    let (wire, theirs) = Wire::pair()?;
    let memory = Arc::clone(memory);
    let calls = thread::spawn("calls", move || -> io::Result<_> {
        let mut times: [Times; 5] = Default::default();
        let pipe = Pipe::new()?;
        let mut bytes = vec![0; FRAME_SIZE];
        for page in 0..PAGES / 2 {
            times[0].take(|| memory.read(page, 0, &mut bytes));
            assert!(bytes.iter().all(|byte| *byte == 0xab));
            times[1].take(|| sample_out_of(&memory, page, &pipe))?;
            pipe.drain(&mut bytes)?;
            times[2].take(|| memory.write(page, 0, &bytes));
            times[3].take(|| memory.punch(page..page + 1));
            times[4].take(|| memory.write(page, 0, &bytes));
        }
        theirs.send([0, 0])?;
        Ok(times)
    })?;
    assert!(wire.is_ready_within(PATIENCE)?, "the daemon's calls return");
    let times = calls.join().expect("no panic")?;
    let names = ["pread", "splice", "pwrite", "punch", "pwrite to the hole"];
    for (name, mut times) in names.into_iter().zip(times) {
        line(
            &format!("{what}, {name}"),
            format!("returns {}", times.summary()),
        );
    }
    Ok(())
}

/// A client with the memory open for writing holds its inode's lock: write(2) takes that and then reads
/// the source, a page that a file system of the client's never delivers.
fn inode_lock(source: &str) -> io::Result<()> {
    let mut hanging = Vec::new();
    let memory = filled()?;
    let hostage = Hostage::start(memory.fd())?;
    let advice = if source == "read ahead" { "0" } else { "1" };
    let (client, wire) = hostile(&["hold", mountpoint(&hostage), advice])?;
    wire.send_with([0, 0], &[memory.fd()])?;
    wire.expect()?;
    hostage.wait_until_held(NEVER)?;
    let id = client.id();
    hanging.push(client);
    let what = format!("inode lock of the memfd held (source {source})");
    line(&what, where_it_stands(id, "write")?);
    let mut bytes = vec![0; FRAME_SIZE];
    let mut times: [Times; 2] = Default::default();
    let pipe = Pipe::new()?;
    for page in 8..PAGES {
        times[0].take(|| memory.read(page, 0, &mut bytes));
        times[1].take(|| sample_out_of(&memory, page, &pipe))?;
        pipe.drain(&mut bytes)?;
    }
    let [mut read, mut splice] = times;
    line(
        &format!("{what}, pread"),
        format!("returns {}", read.summary()),
    );
    line(
        &format!("{what}, splice"),
        format!("returns {}", splice.summary()),
    );
    for name in ["punch", "write"] {
        let (outcome, actor) = call(name, 8 * PAGE, memory.fd())?;
        line(&format!("{what}, {name}"), &outcome);
        assert!(outcome.starts_with("HANGS"), "{outcome}");
        hanging.push(actor);
    }
    let holder = &mut hanging[0];
    holder.kill()?;
    let ended = holder.ended_within(HANGS)?.is_some();
    assert_eq!(ended, advice == "0");
    line(&format!("{what}, SIGKILL ends its holder"), ended);
    hostage.release()
}

/// A page that a direct read into the map has pinned: what the read brings comes too late for a page that
/// was frozen meanwhile.
fn pinned(freezes: bool) -> io::Result<()> {
    let memory = filled()?;
    let hostage = Hostage::start(memory.fd())?;
    let (_client, wire) = hostile(&["pin", mountpoint(&hostage)])?;
    wire.send_with([0, 0], &[memory.fd()])?;
    wire.expect()?;
    hostage.wait_until_held(LATE)?;
    if freezes {
        let pipe = Pipe::new()?;
        let mut bytes = vec![0; FRAME_SIZE];
        sample_out_of(&memory, 0, &pipe)?;
        memory.punch(0..1);
        pipe.drain(&mut bytes)?;
        memory.write(0, 0, &bytes);
    }
    hostage.release()?;
    let [_, byte] = wire.expect()?;
    // What was stored before the read, or what the read brought.
    let expected = if freezes { 0x11 } else { LATE_BYTE };
    assert_eq!(byte, u64::from(expected));
    let when = if freezes {
        "frozen meanwhile"
    } else {
        "left alone"
    };
    line(
        &format!("direct read into a map, {when}, its bytes are there"),
        !freezes,
    );
    Ok(())
}

/// A map of the memory by way of a file of a FUSE mount, whose descriptor the client is handed: it never
/// has the memory itself open.
fn backed() -> io::Result<()> {
    let memory = filled()?;
    let hostage = Hostage::start(memory.fd())?;
    let path = hostage.mountpoint().join("backed");
    let file = File::options().read(true).write(true).open(path)?;
    let (_client, wire) = hostile(&["backed"])?;
    wire.send_with([0, 0], &[file.as_fd()])?;
    drop(file);
    let [_, loaded] = wire.expect()?;
    memory.punch(1..2);
    wire.send([0, 0])?;
    let [_, punched] = wire.expect()?;
    assert_eq!((loaded, punched), (0xab, 0), "it shows the memory");
    let name = |errno: u64| match i32::try_from(errno).expect("an errno") {
        0 => "succeeds".to_owned(),
        errno => rustix::io::Errno::from_raw_os_error(errno).to_string(),
    };
    let registered = name(wire.expect()?[1]);
    let written = name(wire.expect()?[1]);
    let reopened = name(wire.expect()?[1]);
    // Nothing of what write(2) brought: its store was the last.
    let mut stored = [0];
    memory.read(0, 0, &mut stored);
    assert_eq!(stored, [0x66], "stores reach the memory, write(2) does not");
    let served = hostage.wire.is_ready_within(Duration::ZERO)?;
    assert!(served, "write(2) is the server's business");
    let what = "mapped through FUSE passthrough";
    line(
        &format!("{what}, loads, stores, punches"),
        "are the memory's",
    );
    line(&format!("{what}, UFFDIO_REGISTER"), registered);
    line(
        &format!("{what}, write(2)"),
        format!("{written}, by a request to the server"),
    );
    line(
        &format!("{what}, open of its map_files entry, as root"),
        reopened,
    );
    hostage.release()
}
