//! When to read ahead, and how far: the decisions, per open file. Nothing here reads.
//!
//! A request is sequential if it starts close to where the furthest of the last requests ended.
//! "Close" is eight times its own length: the kernel splits one stream into requests of 128 KiB
//! and more, and they arrive on several threads, slightly out of order. A reader of single
//! random pages is close to its last one by chance only.
//!
//! A sequential miss opens a window and fills it at once. The first page after the request
//! carries a marker: the reader that comes to it has the next window, twice as long, read in the
//! background, with a marker on its own first page. So a steady reader never waits.

use std::ops::Range;

use pagefence_lock_order::primitives::Mutex;
use pagefence_lock_order::primitives::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::backing::PAGE_SIZE;
use crate::cache::Config;

/// Lengths of a request within which the next one counts as its continuation.
const CLOSE: u64 = 8;

/// What a program said about how it will read (`posix_fadvise`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Nothing: watch it.
    Normal,
    /// From front to back.
    Sequential,
    /// Here and there: never read ahead.
    Random,
}

/// What one open file remembers about how it is read. One per open file; shared by its readers.
///
/// Cached reads touch one atomic of it; a small lock inside is taken on misses and markers only.
#[derive(Debug)]
pub struct Readahead {
    hint: AtomicU8,
    /// Page at which the furthest of the last sequential requests ended.
    frontier: AtomicU64,
    window: Mutex<Window>,
}

/// Pages read ahead last, or being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Window {
    start: u64,
    end: u64,
}

/// Limits of the windows of a cache, in pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    initial: u64,
    max: u64,
}

/// How far a miss is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Page to stop before; the request's end or further.
    pub(crate) end: u64,
    /// Page from which on the next window is to be asked for.
    pub(crate) marker: Option<u64>,
    window: Option<Window>,
}

impl Plan {
    /// To read up to page `end` and no further.
    pub(crate) fn up_to(end: u64) -> Self {
        Self {
            end,
            marker: None,
            window: None,
        }
    }
}

/// The next window, to be read in the background.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) range: Range<u64>,
    before: Window,
}

impl Windows {
    /// A quarter of the cache at most: a window larger than the cache would evict itself.
    pub(crate) fn new(config: &Config, frames: usize) -> Self {
        let pages = |bytes: u64| bytes / PAGE_SIZE as u64;
        let quarter = u64::try_from(frames / 4).unwrap_or(u64::MAX);
        let max = pages(config.readahead_max_bytes).min(quarter);
        Self {
            initial: pages(config.readahead_initial_bytes).min(max),
            max,
        }
    }
}

impl Window {
    fn len(self) -> u64 {
        self.end - self.start
    }
}

impl Readahead {
    /// Nothing is known yet. Reading from the front of a file counts as sequential.
    #[must_use]
    pub fn new() -> Self {
        Self {
            hint: AtomicU8::new(Hint::Normal.code()),
            frontier: AtomicU64::new(0),
            window: Mutex::default(),
        }
    }

    /// Notes what the program said about its way of reading.
    pub fn set_hint(&self, hint: Hint) {
        self.hint.store(hint.code(), Ordering::Relaxed);
    }

    /// What the program said last.
    #[must_use]
    pub fn hint(&self) -> Hint {
        Hint::of_code(self.hint.load(Ordering::Relaxed))
    }

    /// Notes a request for `request` pages; says whether it goes on where the last ones ended.
    pub(crate) fn observe(&self, request: &Range<u64>) -> bool {
        let frontier = self.frontier.load(Ordering::Relaxed);
        let close = is_close(request, request.start, frontier);
        if !close {
            self.frontier.store(request.end, Ordering::Relaxed);
        } else if request.end > frontier {
            self.frontier.fetch_max(request.end, Ordering::Relaxed);
        }
        match self.hint() {
            Hint::Normal => close,
            Hint::Sequential => true,
            Hint::Random => false,
        }
    }

    /// How far to read for `request` when page `at` of it is missing.
    pub(crate) fn on_miss(
        &self,
        windows: &Windows,
        request: &Range<u64>,
        at: u64,
        sequential: bool,
    ) -> Plan {
        let alone = Plan {
            end: request.end,
            marker: None,
            window: None,
        };
        if !sequential || windows.max == 0 {
            return alone;
        }
        let window = *self.window.lock();
        let inside = (window.start..window.end).contains(&at);
        let late = at < window.start && is_close(request, at, window.start);
        if inside || late {
            // Another thread reads these, or they came and went: no second window over them.
            return alone;
        }
        let continues = window.len() > 0 && is_close(request, at, window.end);
        let len = if continues {
            window.len().saturating_mul(2).min(windows.max)
        } else {
            windows.initial
        };
        let need = request.end.saturating_sub(at);
        let len = len.max(need.saturating_mul(2).min(windows.max)).max(need);
        let end = at.saturating_add(len);
        Plan {
            end,
            marker: (request.end < end).then_some(request.end),
            window: Some(Window { start: at, end }),
        }
    }

    /// The plan is being carried out.
    pub(crate) fn commit(&self, plan: &Plan) {
        if let Some(window) = plan.window {
            *self.window.lock() = window;
        }
    }

    /// A reader came to the marker on page `at`: what to read next. `None` if
    /// windows are off, or that is being read already.
    pub(crate) fn on_marker(
        &self,
        windows: &Windows,
        request: &Range<u64>,
        at: u64,
    ) -> Option<Ahead> {
        if windows.max == 0 || self.hint() == Hint::Random {
            return None;
        }
        let mut window = self.window.lock();
        let before = *window;
        if at < window.start && window.start - at <= window.len() {
            // Requests out of order: one that came before this one has had the next window read.
            return None;
        }
        // The marker may be that of another open file of this one.
        let own = (window.start..window.end).contains(&at);
        let (start, len) = if own {
            (
                window.end,
                window
                    .len()
                    .saturating_mul(2)
                    .clamp(windows.initial, windows.max),
            )
        } else {
            (request.end, windows.initial)
        };
        let end = start.saturating_add(len);
        *window = Window { start, end };
        Some(Ahead {
            range: start..end,
            before,
        })
    }

    /// The window could not be queued: as if it had not been asked for.
    pub(crate) fn forget(&self, ahead: &Ahead) {
        let mut window = self.window.lock();
        if (window.start..window.end) == ahead.range {
            *window = ahead.before;
        }
    }
}

impl Default for Readahead {
    fn default() -> Self {
        Self::new()
    }
}

impl Hint {
    fn code(self) -> u8 {
        match self {
            Hint::Normal => 0,
            Hint::Sequential => 1,
            Hint::Random => 2,
        }
    }

    fn of_code(code: u8) -> Self {
        match code {
            1 => Hint::Sequential,
            2 => Hint::Random,
            _ => Hint::Normal,
        }
    }
}

fn is_close(request: &Range<u64>, at: u64, to: u64) -> bool {
    let len = request.end.saturating_sub(request.start);
    at.abs_diff(to) <= len.saturating_mul(CLOSE)
}

#[cfg(all(test, not(shuttle)))]
mod tests;
