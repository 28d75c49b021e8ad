//! Random work with so many blocks left and no more: every promise of space is the first that can't be
//! kept, for some number of blocks.

use pagefence::device::MemoryDevice;
use pagefence_block_io::fault_device::random::Random;
use pagefence_fs_model::files::{Failure, Operation, Tree};
use pagefence_lock_order::primitives::Arc;

use super::{Free, fill, open, remove_all, show, text};
use crate::beliefs::{Beliefs, Shown, perform};
use crate::crash::history::options;
use crate::crash::names;
use crate::devices::{Work, work};
use crate::guarded::guarded;
use crate::image::Setup;
use crate::library::Library;
use crate::{Budget, Plan, Row, e2fsck};

/// What fills the volume up. No workload makes it.
const FILLER: &str = "what fills it up";
/// One image in so many is shown to e2fsck.
const E2FSCK_ONE_IN: u64 = 3;
/// What is kept for bookkeeping when it is counted how many blocks a workload takes.
const MORE_BLOCKS: u64 = 40;

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    cases: u64,
    not_tried: u64,
    refused: u64,
    by_e2fsck: u64,
}

/// A volume on which nothing can be written any more.
struct Full {
    image: MemoryDevice,
    empty: Free,
    filled: u64,
}

impl Full {
    fn new(setup: &Setup) -> Result<Self, String> {
        let device = Arc::new(setup.make());
        let volume = open(&device)?;
        let empty = Free::of(&volume)?;
        let filled = fill(&volume, FILLER)?;
        volume.close().map_err(text)?;
        Ok(Self {
            image: device.fork(),
            empty,
            filled,
        })
    }
}

/// Does the work on a volume with `blocks` left; returns how many refusals there were, and how many blocks it
/// took.
fn case(
    setup: &Setup,
    full: &Full,
    work: &Work,
    blocks: u64,
    is_checked: bool,
) -> Result<(u64, u64), String> {
    let block = u64::from(setup.block_size);
    let device = Arc::new(full.image.fork());
    let mut library = Library::open(Arc::clone(&device) as _, options().discard(work.discards))?;
    let left = full.filled.saturating_sub(blocks * block);
    library.volume().set_len(FILLER, left).map_err(text)?;
    library.volume().sync().map_err(text)?;
    let mut beliefs = Beliefs::new(Tree::new(setup.format()));
    let (mut refused, mut most_used) = (0, 0);
    let free = |library: &Library| library.volume().usage().map(|usage| usage.free);
    let before = free(&library).map_err(text)?;
    for operation in &work.operations {
        let outcome = perform(&mut library, operation);
        if let Err(refusal) = &outcome.answer
            && refusal.failure == Some(Failure::NoSpace)
        {
            refused += 1;
            if !may_need_space(operation) {
                return Err(format!("{operation:.200?}: there is no space for it"));
            }
        }
        beliefs.take(operation, &outcome)?;
        let now = free(&library).map_err(text)?;
        most_used = most_used.max(before.saturating_sub(now) / block);
    }
    library
        .volume()
        .sync()
        .map_err(|error| format!("what was taken can't be written: {error}"))?;
    let unfilled = |mut shown: Shown| {
        shown.remove(FILLER);
        shown
    };
    let now = names::of_volume(library.volume()).map_err(text)?;
    beliefs
        .check_exactly(&unfilled(now))
        .map_err(|error| format!("before it is closed: {error}"))?;
    library.close().map_err(text)?;
    drop(library);
    beliefs
        .check_exactly(&unfilled(show(&device)?))
        .map_err(|error| format!("opened again: {error}"))?;
    if is_checked {
        e2fsck::check(&device)?;
    }
    let volume = open(&device)?;
    remove_all(&volume)?;
    Free::of(&volume)?.is_back(full.empty)?;
    // What is free can be had, too.
    let again = fill(&volume, FILLER)?;
    let grown = Free::of(&volume)?
        .root_bytes
        .saturating_sub(full.empty.root_bytes);
    if again + grown + 2 * block < full.filled {
        let filled = full.filled;
        return Err(format!(
            "{filled} bytes could be written when it was empty, {again} can be now"
        ));
    }
    volume.close().map_err(text)?;
    if is_checked {
        e2fsck::check(&device).map_err(|error| format!("filled again: {error}"))?;
    }
    Ok((refused, most_used))
}

/// What makes things durable, or gives them up, is never short of space.
fn may_need_space(operation: &Operation) -> bool {
    use Operation as O;
    !matches!(
        operation,
        O::Sync { .. }
            | O::SyncData { .. }
            | O::SyncAll
            | O::Reopen
            | O::LetGo { .. }
            | O::Remove { .. }
            | O::RemoveDirectory { .. }
            | O::Read { .. }
            | O::ReadHeld { .. }
            | O::SetPermissions { .. }
            | O::SetOwner { .. }
            | O::RemoveXattr { .. }
    )
}

fn workload(setup: Setup, full: &Arc<Full>, seed: u64, budget: &Budget) -> Result<Tried, String> {
    let work = Arc::new(work(&setup, seed));
    let mut random = Random::new(seed);
    let mut tried = Tried::default();
    let mut run = |blocks: u64, tried: &mut Tried| {
        let (full, work) = (Arc::clone(full), Arc::clone(&work));
        let is_checked = random.one_in(E2FSCK_ONE_IN);
        tried.cases += 1;
        tried.by_e2fsck += 2 * u64::from(is_checked);
        let outcome = guarded(move || case(&setup, &full, &work, blocks, is_checked));
        let (refused, used) = outcome
            .and_then(|outcome| outcome)
            .map_err(|error| format!("{setup:?}, seed {seed}, {blocks} blocks left: {error}"))?;
        tried.refused += refused;
        Ok::<u64, String>(used)
    };
    let all = full.filled / u64::from(setup.block_size);
    let used = run(all, &mut tried)?;
    let mut left: Vec<u64> = (0..(used + MORE_BLOCKS).min(all)).collect();
    let mut random = Random::new(seed);
    while !left.is_empty() && (tried.cases < 2 || budget.is_left()) {
        let chosen = random.below(left.len() as u64) as usize;
        run(left.swap_remove(chosen), &mut tried)?;
    }
    tried.not_tried = left.len() as u64;
    Ok(tried)
}

/// Random work with every number of blocks left, for as long as there is time.
#[must_use]
pub fn prove_short(setup: Setup, plan: &Plan) -> Row {
    let mut row = Row::new(
        format!("space that runs out, random work, {setup}"),
        plan.seed,
    );
    if !e2fsck::is_there() {
        row.skipped.push("there is no e2fsck".to_owned());
        return row;
    }
    let budget = Budget::new(plan.time);
    let full = match Full::new(&setup) {
        Ok(full) => Arc::new(full),
        Err(error) => {
            row.failures.push(error);
            return row;
        }
    };
    let mut seed = plan.seed;
    while seed == plan.seed || budget.is_left() {
        row.count("workloads", 1);
        match workload(setup, &full, seed, &budget) {
            Ok(tried) => {
                row.count("numbers of blocks left", tried.cases);
                row.count("numbers not tried", tried.not_tried);
                row.count("operations refused", tried.refused);
                row.count("shown to e2fsck", tried.by_e2fsck);
            }
            Err(error) => row.failures.push(error),
        }
        seed += 1;
    }
    row
}
