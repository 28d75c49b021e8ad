//! What the reference tests and the crash tests share: images, the library driven by the model's
//! operations, e2fsck with its output read, and how long a run may take.

pub(crate) mod e2fsck;
pub(crate) mod image;
pub(crate) mod library;

use std::time::{Duration, Instant};

/// How long one test goes on: `normal`, or `PAGEFENCE_PROOF_SECONDS` if that is set.
pub(crate) struct Budget {
    end: Instant,
}

impl Budget {
    pub(crate) fn new(normal: Duration) -> Self {
        let seconds = from_environment("PAGEFENCE_PROOF_SECONDS");
        Self {
            end: Instant::now() + seconds.map_or(normal, Duration::from_secs),
        }
    }

    pub(crate) fn is_left(&self) -> bool {
        Instant::now() < self.end
    }
}

/// The seed of the first case: 1, or `PAGEFENCE_PROOF_SEED`, which replays what a failure printed.
pub(crate) fn first_seed() -> u64 {
    from_environment("PAGEFENCE_PROOF_SEED").unwrap_or(1)
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}
