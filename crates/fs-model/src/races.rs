//! Threads that race over one file system through the trait that every file system here
//! implements, under oracles. Deterministic but for the scheduler: each thread's operations come
//! from the seed.
//!
//! What a failure says is enough to run it again; an error of the file system ends the race.

mod cells;
mod churn;
mod file;
mod full;
mod names;
mod random;

pub use churn::{Churn, leave_room};
pub use file::{FileRace, race_over_a_file};
pub use full::fill_to_the_last_byte;
pub use names::race_over_names;

use pagefence_vfs::{Credentials, FileSystem, InodeId, New, NewKind};

use random::Random;

fn root() -> Credentials {
    Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    }
}

/// Makes an inode in `parent`.
fn make<F: FileSystem>(
    fs: &F,
    parent: InodeId,
    name: &[u8],
    kind: NewKind<'_>,
) -> pagefence_vfs::Result<InodeId> {
    let new = New {
        kind,
        permissions: 0o755,
        umask: 0,
    };
    Ok(fs.create(parent, name, &new, &root())?.attr.id)
}

/// Runs the parts at once, each on a thread of its own; the first failure.
fn at_once<'a>(
    parts: Vec<Box<dyn FnOnce() -> Result<(), String> + Send + 'a>>,
) -> Result<(), String> {
    use pagefence_lock_order::primitives::thread;
    thread::scope(|scope| {
        let threads: Vec<_> = parts.into_iter().map(|part| scope.spawn(part)).collect();
        let results = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        // All of them end before any result counts.
        let results: Vec<_> = results.collect();
        results.into_iter().collect()
    })
}
