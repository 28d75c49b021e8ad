//! The file system in memory, through the interface: against the model of a file system, under
//! races, full, and what is its own.
#![cfg(not(shuttle))]

mod attributes;
mod model;
mod names;
#[path = "../../../proofs/tests/reference/operations.rs"]
mod operations;
mod races;
mod space;

use pagefence_memfs::{MemFs, Options};
use pagefence_vfs::{Credentials, FileSystem, InodeId, New, NewKind};

/// A file system of so many bytes.
fn fresh(size_bytes: u64) -> MemFs {
    let mut options = Options::new(size_bytes);
    options.permissions = 0o755;
    MemFs::new(&options).expect("memory is reserved")
}

fn root() -> Credentials {
    Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    }
}

fn make(fs: &MemFs, parent: InodeId, name: &str, kind: NewKind<'_>) -> InodeId {
    let new = New {
        kind,
        permissions: 0o755,
        umask: 0,
    };
    let made = fs.create(parent, name.as_bytes(), &new, &root());
    made.expect("it can be made").attr.id
}
