//! Can a daemon serve memory maps of other processes? What a client that is stuck, hostile or gone, and
//! a daemon that is gone, do to the other side: each printed as one line `name: outcome (median, max of
//! N)`, and asserted where it is a yes or a no. The decision is in
//! `docs/adr/0017-maps-across-processes.md`.
//!
//! Needs root (it mounts a FUSE file system and reads /proc/PID/stack), Linux 6.9 on x86-64, and python3.
//! While a client is stuck, for some seconds, ps(1) waits for it.
//! `two_processes [PART [FREEZES]]`, where PART is `stuck`, `sealed`, `killed`, `freeze`, `trip` or `all`.

mod freeze;
mod hostage;
mod killed;
mod protocol;
mod report;
mod sealed;
mod stuck;
mod trip;
mod wire;

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Freezes of a page under load, if the command line does not say.
const FREEZES: u64 = 100_000;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["hostage", path] => hostage::run(path),
        ["storing"] => freeze::storing(),
        ["served", kind] => killed::served(kind),
        ["faulting", kind] => killed::faulting(kind),
        ["touching"] => trip::touching(),
        [] => measure("all", FREEZES),
        [part] => measure(part, FREEZES),
        [part, freezes] => measure(part, freezes.parse().map_err(io::Error::other)?),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn measure(part: &str, freezes: u64) -> io::Result<()> {
    // Clients end by signals.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    let is = |name| part == name || part == "all";
    if is("sealed") {
        sealed::run()?;
    }
    if is("killed") {
        killed::run()?;
    }
    if is("trip") {
        trip::run()?;
    }
    if is("freeze") {
        freeze::run(freezes)?;
    }
    if is("stuck") {
        stuck::run()?;
    }
    Ok(())
}
