//! How the device writes: the data first, then what maps it.

use std::ops::Range;

use pagefence_lock_order::Held;
use pagefence_lock_order::levels::PageLock;

use super::{Control, Device, Failed, State, Stop};
use crate::WriteBatch;
use crate::backing::DirectBacking;

impl DirectBacking for Device {
    fn write_direct(
        &self,
        _held: &mut Held<'_, PageLock>,
        batch: &WriteBatch<'_>,
    ) -> Result<u64, Failed> {
        let run = batch.runs().next().expect("blocks");
        let fails_at = {
            let mut state = self.state();
            state.direct += 1;
            state.direct_most = state.direct_most.max(state.direct);
            state.failing_direct_at.unwrap_or(u64::MAX)
        };
        let outcome = self.write_batch(batch, fails_at);
        self.state().direct -= 1;
        outcome.and(match run.end.min(fails_at) {
            end if end > run.start => Ok(end),
            _ => Err(Failed),
        })
    }
}

impl Control {
    /// Writes the blocks of `batch` and maps those before byte `end`.
    pub(super) fn write_batch(&self, batch: &WriteBatch<'_>, end: u64) -> Result<(), Failed> {
        let runs: Vec<Range<u64>> = batch.runs().collect();
        assert!(!runs.is_empty(), "a batch has something to write");
        let submitted: Vec<(usize, Option<u64>)> = {
            let mut state = self.state();
            state.batches += 1;
            let blocks: Vec<usize> = runs.iter().flat_map(|run| state.blocks_of(run)).collect();
            let homeless = blocks
                .iter()
                .filter(|at| state.blocks[**at].is_none() && !state.reserved.contains(at));
            let homeless = homeless.count();
            state.violations += homeless;
            blocks
                .into_iter()
                .map(|at| (at, state.blocks[at]))
                .collect()
        };
        self.pause(Stop::BeforeWrite);
        let fill = |state: &mut State, at: usize| {
            let block = state.block_size;
            let start = (at * block) as u64;
            let bytes = batch.bytes(start..start + block as u64);
            state.bytes[at * block..][..block].copy_from_slice(bytes);
        };
        {
            let mut state = self.state();
            if state.panicking_writes > 0 {
                state.panicking_writes -= 1;
                drop(state);
                panic!("the device was told to panic");
            }
            if state.failing_writes > 0 {
                state.failing_writes -= 1;
                return Err(Failed);
            }
            for &(at, generation) in &submitted {
                if state.blocks[at] != generation {
                    state.violations += 1;
                }
                if generation.is_some() {
                    fill(&mut state, at);
                }
            }
        }
        self.pause(Stop::BeforeMapping);
        let mut state = self.state();
        state.generation += 1;
        for (at, generation) in submitted {
            if state.blocks[at] != generation {
                state.violations += 1;
            }
            if (at * state.block_size) as u64 >= end {
                continue;
            }
            if generation.is_none() {
                if !state.reserved.remove(&at) {
                    state.violations += 1;
                }
                // Until now these bytes were in a block that was nobody's.
                fill(&mut state, at);
                state.blocks[at] = Some(state.generation);
            }
        }
        let end = runs.last().map_or(0, |run| run.end).min(end);
        state.disk_size = state.disk_size.max(batch.size().min(end));
        state.writes.extend(runs);
        Ok(())
    }
}
