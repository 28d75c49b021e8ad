//! Devices that fail: a call of any kind, once or from then on. Nothing panics or hangs, nobody reads
//! what is not there, whoever asks is told once what is lost, and what was durable stays so.

mod left;
mod liar;
mod lies;
mod session;
mod watched;

use std::time::Duration;

use pagefence::Kind;
use pagefence::device::MemoryDevice;
use pagefence_block_io::Operation as Call;
use pagefence_block_io::fault_device::random::Random;
use pagefence_block_io::fault_device::{Fault, Times};
use pagefence_fs_model::files::{Kind as Node, Operation, RECORD_BYTES, Tree};
use pagefence_lock_order::primitives::Arc;

use crate::crash::workload::{Profile, operations};
use crate::guarded::guarded;
use crate::image::Setup;
use crate::{Budget, Plan, Row, e2fsck};
pub use lies::prove_lies;
use session::Session;
use watched::Shrink;

/// Operations of a workload, about.
const OPERATIONS: u64 = 28;
/// EIO.
const ERRNO: i32 = 5;
/// The kinds of calls that fail.
const CALLS: [Call; 5] = [
    Call::Read,
    Call::Write,
    Call::Flush,
    Call::Discard,
    Call::WriteZeroes,
];

/// Of the calls of a workload one in so many fails until the volume is closed, the others until the
/// workload is done. Those that come later can only fail later.
const LASTS_ONE_IN: u64 = 4;

/// What is wrong with a device.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    Fault(Fault),
    Shrink(Shrink),
}

/// Calls of each of the kinds [`CALLS`].
struct Calls {
    /// By the workload.
    of_work: [u64; 5],
    /// Those too that look at what is there, and close it.
    in_all: [u64; 5],
}

/// What a run does.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) seed: u64,
    pub(crate) operations: Vec<Operation>,
    /// The device is told of what is free.
    pub(crate) discards: bool,
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    cases: u64,
    /// Faults that a workload could have had, and that were not tried for want of time.
    not_tried: u64,
    hit: u64,
    errors: u64,
    told: u64,
    aborts: u64,
    by_e2fsck: u64,
    after_power_cut: u64,
    cut_short: u64,
}

impl Tried {
    fn add(&mut self, other: Self) {
        self.cases += other.cases;
        self.not_tried += other.not_tried;
        self.hit += other.hit;
        self.errors += other.errors;
        self.told += other.told;
        self.aborts += other.aborts;
        self.by_e2fsck += other.by_e2fsck;
        self.after_power_cut += other.after_power_cut;
        self.cut_short += other.cut_short;
    }

    fn add_to(self, row: &mut Row) {
        row.count("cases", self.cases);
        row.count("faults not tried", self.not_tried);
        row.count("in which a call failed", self.hit);
        row.count("errors reported", self.errors);
        row.count("told by fsync", self.told);
        row.count("journals aborted", self.aborts);
        row.count("power cut afterwards", self.after_power_cut);
        row.count("shown to e2fsck", self.by_e2fsck);
        row.count("given up as ambiguous", self.cut_short);
    }
}

/// How runs are made; tests of this proof break it.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// The device says that a write succeeded that did not.
    pub swallows_errors: bool,
    /// It ends earlier from some call on, instead of failing calls of one kind.
    pub shrinks: bool,
}

/// One image of a type, on which devices fail.
pub struct Failures {
    setup: Setup,
    image: MemoryDevice,
    how: How,
}

impl Failures {
    /// Makes the image.
    #[must_use]
    pub fn new(setup: Setup, how: How) -> Self {
        Self {
            setup,
            image: setup.make(),
            how,
        }
    }

    /// One workload, and each of its calls failing, once and for ever, in an order of the seed's for as long
    /// as there is time; at least one.
    ///
    /// # Errors
    /// What was not as it has to be, in words.
    pub fn workload(&self, seed: u64, budget: &Budget) -> Result<Tried, String> {
        let work = Arc::new(work(&self.setup, seed));
        let name =
            |fault: &str, error: String| format!("{:?}, seed {seed}, {fault}: {error}", self.setup);
        let mut tried = Tried::default();
        let clean = self.case(&work, (Trouble::None, false));
        let (calls, _) = clean.map_err(|error| name("no fault", error))?;
        let mut random = Random::new(seed);
        let mut troubles = self.troubles(&calls, &mut random);
        while !troubles.is_empty() {
            if tried.cases > 0 && !budget.is_left() {
                break;
            }
            let chosen = random.below(troubles.len() as u64) as usize;
            let trouble = troubles.swap_remove(chosen);
            let case = self.case(&work, trouble);
            let (_, more) = case.map_err(|error| name(&shown(trouble), error))?;
            tried.add(more);
        }
        tried.not_tried += troubles.len() as u64;
        Ok(tried)
    }

    /// Everything that can go wrong in a run of so many calls of each kind, and whether it goes on while
    /// the volume is closed.
    fn troubles(&self, calls: &Calls, random: &mut Random) -> Vec<(Trouble, bool)> {
        let mut troubles = Vec::new();
        if self.how.shrinks {
            let reach = |calls: &[u64; 5]| calls[0] + calls[1];
            troubles.extend((0..reach(&calls.in_all)).map(|call| {
                let lasts = call >= reach(&calls.of_work) || random.one_in(LASTS_ONE_IN);
                let blocks = self.setup.size / u64::from(self.setup.block_size);
                // What is used is mostly at the beginning.
                let most = 1 + random.below(blocks);
                let end = random.below(most) * u64::from(self.setup.block_size);
                (Trouble::Shrink(Shrink { call, end }), lasts)
            }));
            return troubles;
        }
        for (kind, operation) in CALLS.into_iter().enumerate() {
            for call in 0..calls.in_all[kind] {
                troubles.extend([Times::Once, Times::Forever].map(|times| {
                    let fault = Fault {
                        operation,
                        call,
                        times,
                        errno: ERRNO,
                    };
                    let lasts = call >= calls.of_work[kind] || random.one_in(LASTS_ONE_IN);
                    (Trouble::Fault(fault), lasts)
                }));
            }
        }
        troubles
    }

    /// One run; how many calls of each kind it made.
    fn case(
        &self,
        work: &Arc<Work>,
        (trouble, lasts): (Trouble, bool),
    ) -> Result<(Calls, Tried), String> {
        let (setup, how, work) = (self.setup, self.how, Arc::clone(work));
        let image = self.image.fork();
        guarded(move || {
            let session =
                Session::new(&setup, &work, &image, (trouble, lasts), how.swallows_errors);
            let left = session.run()?;
            let calls = Calls {
                of_work: left.calls,
                in_all: left.calls_in_all,
            };
            let salt = match trouble {
                Trouble::None => 0,
                Trouble::Fault(fault) => fault.call,
                Trouble::Shrink(shrink) => shrink.call,
            };
            let mut random = Random::new(work.seed ^ salt << 8);
            let mut tried = left::check(&setup, left, &mut random)?;
            tried.cases += 1;
            Ok((calls, tried))
        })?
    }
}

/// As a failure names it.
fn shown((trouble, lasts): (Trouble, bool)) -> String {
    let fault = match trouble {
        Trouble::None => "no fault".to_owned(),
        Trouble::Fault(fault) => {
            format!("{} {}, {:?}", fault.operation, fault.call, fault.times)
        }
        Trouble::Shrink(shrink) => {
            format!("{} bytes long from call {} on", shrink.end, shrink.call)
        }
    };
    match lasts {
        true => format!("{fault}, until it is closed"),
        false => fault,
    }
}

/// Operations that a seed determines, with reads between them, and the volume closed and opened again in
/// every other one.
pub(crate) fn work(setup: &Setup, seed: u64) -> Work {
    let mut random = Random::new(seed);
    let count = 4 + random.below(OPERATIONS) as usize;
    let mut tree = Tree::new(setup.format());
    let mut all = Vec::new();
    let done = operations(setup, Profile::of(seed), &mut random, count);
    let reopened = random.below(2 * done.len() as u64) as usize;
    for (number, operation) in done.into_iter().enumerate() {
        // Afterwards nothing is held open; what the rest does with it does nothing.
        let possible = tree.apply(&operation).is_ok();
        if possible {
            all.push(operation);
        }
        if number == reopened {
            all.push(Operation::Reopen);
            assert!(tree.apply(&Operation::Reopen).is_ok(), "it always can be");
        }
        if random.one_in(2)
            && let Some(read) = read(&tree, &mut random)
        {
            all.push(read);
        }
    }
    Work {
        seed,
        operations: all,
        discards: random.one_in(2) && setup.kind != Kind::Ext2,
    }
}

/// A read of some file.
fn read(tree: &Tree, random: &mut Random) -> Option<Operation> {
    let paths = tree.paths();
    let mut files = Vec::new();
    for (path, node) in &paths {
        if let Node::File(bytes) = &tree.node(*node).kind {
            files.push((path, bytes.size()));
        }
    }
    let (path, size) = files.get(random.below(files.len().max(1) as u64) as usize)?;
    let record = random.below(size / RECORD_BYTES + 1);
    Some(Operation::Read {
        path: (*path).clone(),
        offset: record * RECORD_BYTES,
        length: (1 + random.below(40_000)) as usize,
    })
}

/// The name of a protection that is left out, which a process is told by a variable of its environment.
const SWALLOWED_ERROR: &str = "swallowed-error";

impl How {
    /// As the environment of this process says.
    #[must_use]
    pub fn of_process() -> Self {
        let left_out = std::env::var("PAGEFENCE_LEAVE_OUT");
        Self {
            swallows_errors: left_out.as_deref() == Ok(SWALLOWED_ERROR),
            shrinks: false,
        }
    }
}

/// Each call of random workloads fails, for as long as there is time.
#[must_use]
pub fn prove_errors(setup: Setup, plan: &Plan, how: How) -> Row {
    let what = if how.shrinks {
        "devices that shrink"
    } else {
        "calls that fail"
    };
    let mut row = Row::new(format!("{what}, random work, {setup}"), plan.seed);
    if !e2fsck::is_there() {
        row.skipped.push("there is no e2fsck".to_owned());
        return row;
    }
    let budget = Budget::new(plan.time.max(Duration::from_millis(1)));
    let failures = Failures::new(setup, how);
    let mut tried = Tried::default();
    let mut seed = plan.seed;
    while seed == plan.seed || budget.is_left() {
        row.count("workloads", 1);
        match failures.workload(seed, &budget) {
            Ok(more) => tried.add(more),
            Err(error) => row.failures.push(error),
        }
        seed += 1;
    }
    tried.add_to(&mut row);
    row
}
