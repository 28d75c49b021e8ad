//! How long a proof goes on, and where it begins.

use std::time::{Duration, Instant};

/// Time that a proof has.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    end: Instant,
}

impl Budget {
    /// Begins now.
    #[must_use]
    pub fn new(time: Duration) -> Self {
        Self {
            end: Instant::now() + time,
        }
    }

    /// Whether there is some left.
    #[must_use]
    pub fn is_left(&self) -> bool {
        Instant::now() < self.end
    }
}

/// How long a test tries: `normal`, or `PAGEFENCE_PROOF_SECONDS` if that is set.
///
/// # Panics
/// That is no number.
#[must_use]
pub fn seconds(normal: Duration) -> Duration {
    from_environment("PAGEFENCE_PROOF_SECONDS").map_or(normal, Duration::from_secs)
}

/// The seed of a test's first case: 1, or `PAGEFENCE_PROOF_SEED`, which replays what a failure
/// printed.
///
/// # Panics
/// That is no number.
#[must_use]
pub fn first_seed() -> u64 {
    from_environment("PAGEFENCE_PROOF_SEED").unwrap_or(1)
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}
