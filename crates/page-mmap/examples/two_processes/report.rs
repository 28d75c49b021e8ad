//! What is printed: one line a measurement.

use std::time::{Duration, Instant};

/// Times of one thing, done again and again.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Does `step` once and takes its time.
    pub(crate) fn take<T>(&mut self, step: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = step();
        self.push(start.elapsed());
        done
    }

    /// One more.
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Median, max and how many.
    pub(crate) fn summary(&mut self) -> String {
        self.0.sort_unstable();
        let Some(max) = self.0.last() else {
            return "(none)".to_owned();
        };
        let micros = |time: &Duration| format!("{:.1} µs", time.as_secs_f64() * 1e6);
        let median = &self.0[self.0.len() / 2];
        format!("({}, {} of {})", micros(median), micros(max), self.0.len())
    }

    /// In the order of their size, if [`Self::summary`] was asked for.
    pub(crate) fn nanos(&self) -> impl Iterator<Item = u64> {
        let nanos = |time: &Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.iter().map(nanos)
    }
}

/// Prints `name: outcome`.
pub(crate) fn line(name: &str, outcome: impl std::fmt::Display) {
    println!("{name}: {outcome}");
}
