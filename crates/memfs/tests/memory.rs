//! Memory: taken as files are written, given back when they are gone. Alone in its process, so that
//! nobody else's memory comes and goes.
#![cfg(not(shuttle))]

use pagefence_memfs::{MemFs, Options};
use pagefence_vfs::{Credentials, FileSystem as _, New, NewKind, SetAttr, WriteMode};

const MIB: u64 = 1 << 20;

/// Bytes of this process in memory; nothing where that can't be known.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[test]
fn memory_is_taken_as_it_is_used_and_given_back() {
    let Some(empty) = resident() else {
        println!("skipped: there is no /proc/self/status");
        return;
    };
    let fs = MemFs::new(&Options::new(64 << 30)).expect("addresses are no memory");
    let who = Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    };
    let grown = || resident().unwrap_or(0).saturating_sub(empty);
    assert!(grown() < 24 * MIB, "{} bytes for nothing", grown());
    let new = New {
        kind: NewKind::Regular,
        permissions: 0o644,
        umask: 0,
    };
    let id = fs
        .create(fs.root(), b"f", &new, &who)
        .expect("made")
        .attr
        .id;
    let file = fs.open(id, true).expect("it opens");
    let before = grown();
    let data = vec![7; MIB as usize];
    for _ in 0..96 {
        fs.write(&file, 0, &data, WriteMode::APPEND).expect("room");
    }
    let full = grown() - before;
    assert!((96 * MIB..128 * MIB).contains(&full), "{full} bytes");
    let half = SetAttr {
        size: Some(48 * MIB),
        ..SetAttr::default()
    };
    fs.set_attr(id, &half, &who).expect("cut off");
    let left = grown().saturating_sub(before);
    assert!(left < 72 * MIB, "{left} bytes for half of it");
    fs.unlink(fs.root(), b"f").expect("there");
    fs.forget(id);
    drop(file);
    let left = grown().saturating_sub(before);
    assert!(left < 24 * MIB, "{left} bytes for nothing");
}
