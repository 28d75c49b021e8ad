//! What changed a fault device, step by step, so that a crash at every moment of one run is
//! tried without running it again.

use std::ops::Range;

use pagefence_lock_order::primitives::Arc;

use super::states::CrashStates;
use super::units::Units;

#[derive(Clone, Debug)]
enum Step {
    Write { offset: u64, bytes: Arc<[u8]> },
    Flush { succeeded: bool },
    Atomic(Range<u64>),
}

/// A recording. It holds every byte that was written meanwhile.
#[derive(Debug)]
pub struct Trace {
    start: Units,
    steps: Vec<Step>,
}

/// A moment of a trace: after its first `position` steps.
#[derive(Debug)]
pub struct TracePoint<'a> {
    position: usize,
    before_flush: bool,
    units: &'a Units,
}

impl TracePoint<'_> {
    /// Steps done so far.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether the next step is a flush, or there is none. What a crash may leave here contains
    /// all that it may leave since the flush before: each unit keeps its older versions.
    #[must_use]
    pub fn is_before_flush(&self) -> bool {
        self.before_flush
    }

    /// What a crash here may leave.
    #[must_use]
    pub fn crash_states(&self) -> CrashStates {
        self.units.crash_states()
    }
}

impl Trace {
    pub(super) fn new(units: &Units) -> Self {
        Self {
            start: units.fork(),
            steps: Vec::new(),
        }
    }

    pub(super) fn push_write(&mut self, offset: u64, bytes: &[u8]) {
        self.steps.push(Step::Write {
            offset,
            bytes: bytes.into(),
        });
    }

    pub(super) fn push_flush(&mut self, succeeded: bool) {
        self.steps.push(Step::Flush { succeeded });
    }

    pub(super) fn set_atomic(&mut self, range: Range<u64>) {
        self.steps.push(Step::Atomic(range));
    }

    /// Steps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether nothing was recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Where was written: the first byte of each write and how many, in order.
    pub fn writes(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.steps.iter().filter_map(|step| match step {
            Step::Write { offset, bytes } => Some((*offset, bytes.len() as u64)),
            Step::Flush { .. } | Step::Atomic(_) => None,
        })
    }

    /// Visits every moment in order: before the first step, between steps, after the last.
    pub fn walk(&self, mut visit: impl FnMut(TracePoint<'_>)) {
        let mut units = self.start.fork();
        for position in 0..=self.steps.len() {
            let next = self.steps.get(position);
            visit(TracePoint {
                position,
                before_flush: matches!(next, None | Some(Step::Flush { .. })),
                units: &units,
            });
            match next {
                Some(Step::Write { offset, bytes }) => units.write(*offset, bytes),
                Some(Step::Flush { succeeded }) => units.flush(*succeeded),
                Some(Step::Atomic(range)) => units.set_atomic(range.clone()),
                None => {}
            }
        }
    }
}
