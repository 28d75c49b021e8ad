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

/// A text whose long runs of one letter (of names as long as they may be) are counted instead.
pub(crate) fn brief(text: &str) -> String {
    const RUN: usize = 12;
    let mut brief = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let run = rest.len() - rest.trim_start_matches(first).len();
        let letters = run / first.len_utf8();
        if letters > RUN {
            brief += &format!("{first}{{{letters}}}");
        } else {
            brief += &rest[..run];
        }
        rest = &rest[run..];
    }
    brief
}

#[test]
fn long_runs_are_counted() {
    let long = "é".repeat(30);
    assert_eq!(brief(&format!("aab{long}c")), "aabé{30}c");
    assert_eq!(brief(""), "");
}
