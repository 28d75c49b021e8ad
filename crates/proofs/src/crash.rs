//! Power cuts at every moment of work: nothing that was made durable is lost, names change as a
//! whole and in order, no file shows bytes that are not its own, and e2fsck has nothing to say.

mod ace;
pub(crate) mod check;
mod expected;
pub(crate) mod history;
mod kernel;
mod log;
pub(crate) mod names;
pub(crate) mod workload;

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use pagefence::device::{Device, MemoryDevice};
use pagefence_block_io::fault_device::random::Random;
use pagefence_block_io::fault_device::{FaultDevice, Trace};
use pagefence_fs_model::files::Operation;

use crate::image::Setup;
use crate::{Budget, Plan, Row, e2fsck};
use check::{Check, SUPERBLOCK};
use history::History;
use log::Log;

pub use check::Tried;
pub use history::{Wrap, options};
use workload::Profile;

/// Operations of a workload.
const OPERATIONS: u64 = 50;
/// One workload in so many begins with a log near its end, so that it goes on at its start.
const WORN_ONE_IN: u64 = 4;
/// Moments of a workload at which the power is cut.
const MOMENTS: usize = 24;
/// The same of a sequence of few operations without a journal, where e2fsck has to mend each state.
const MOMENTS_FEW: usize = 8;
/// A row ends with so many failures.
const FAILURES_MAX: usize = 3;
/// States that are tried of each, and of each of few.
const STATES: usize = 6;
const STATES_FEW: usize = 2;

/// How a workload is run, and what is claimed of it: tests of this proof break one or the other.
#[derive(Clone, Copy)]
pub struct How {
    /// Wraps the device that the volume is opened on.
    pub wrap: Wrap,
    /// Every operation counts as durable once it returned, which is not so.
    pub claims_all: bool,
}

impl Default for How {
    fn default() -> Self {
        Self {
            wrap: |device| device,
            claims_all: false,
        }
    }
}

/// One image of a type, and the states of it that were tried.
pub struct Crashes {
    setup: Setup,
    image: MemoryDevice,
    /// Where its journal logs.
    log: Option<Log>,
    /// Inodes in use that have no names.
    unnamed: u64,
    kernel: Result<(), String>,
    how: How,
    seen: HashSet<u64>,
}

impl Crashes {
    /// Makes the image.
    ///
    /// # Panics
    /// It has a journal that is not found.
    #[must_use]
    pub fn new(setup: Setup, how: How) -> Self {
        let image = setup.make();
        let log = setup.has_journal().then(|| Log::find(&setup, &image));
        Self {
            unnamed: check::unnamed(&image),
            setup,
            image,
            log: log.map(|found| found.expect("a journal")),
            kernel: Err("it is not asked".to_owned()),
            how,
            seen: HashSet::new(),
        }
    }

    /// Has the kernel recover some of what crashes leave, if it can.
    #[must_use]
    pub fn beside_the_kernel(mut self) -> Self {
        self.kernel = match self.setup.has_journal() {
            true => kernel::recover(&self.image).map(drop),
            false => Err("there is no journal".to_owned()),
        };
        self
    }

    /// One random workload.
    ///
    /// # Errors
    /// What did not survive, in words.
    pub fn random(&mut self, seed: u64) -> Result<Tried, String> {
        let profile = Profile::of(seed);
        let mut random = Random::new(seed);
        let count = 4 + random.below(OPERATIONS) as usize;
        let operations = workload::operations(&self.setup, profile, &mut random, count);
        self.everywhere(operations, &mut random, (MOMENTS, STATES))
            .map_err(|error| format!("{:?}, {profile:?}, seed {seed}: {error}", self.setup))
    }

    /// How many sequences of one operation there are: within ACE's bounds, and in all.
    #[must_use]
    pub fn ones(&self) -> (usize, usize) {
        let (count, sequences) = ace::ones(&self.setup);
        (count, sequences.len())
    }

    /// A sequence of one operation, by its number below [`Self::ones`].
    ///
    /// # Errors
    /// What did not survive, in words.
    pub fn one(&mut self, number: usize, seed: u64) -> Result<Tried, String> {
        let (_, sequences) = ace::ones(&self.setup);
        self.sequence(&sequences[number % sequences.len()], seed)
            .map_err(|error| format!("sequence {number} of one operation, {error}"))
    }

    /// A sequence of two operations.
    ///
    /// # Errors
    /// What did not survive, in words.
    pub fn two(&mut self, seed: u64) -> Result<Tried, String> {
        let sequence = ace::two(&self.setup, &mut Random::new(seed));
        self.sequence(&sequence, seed)
    }

    fn sequence(&mut self, sequence: &ace::Sequence, seed: u64) -> Result<Tried, String> {
        let mut random = Random::new(!seed);
        let settled = random.one_in(2);
        let operations = ace::operations(&self.setup, sequence, settled);
        let depth = match self.setup.has_journal() {
            true => (MOMENTS, STATES),
            false => (MOMENTS_FEW, STATES_FEW),
        };
        self.everywhere(operations, &mut random, depth)
            .map_err(|error| format!("{sequence:?}, {:?}, seed {seed}: {error}", self.setup))
    }

    /// One workload, crashed at some of its moments, in some of the states each leaves; told how many
    /// states were new.
    fn everywhere(
        &mut self,
        operations: Vec<Operation>,
        random: &mut Random,
        (moments_max, states_max): (usize, usize),
    ) -> Result<Tried, String> {
        let Self {
            setup, how, seen, ..
        } = self;
        let worn = self.log.filter(|_| random.one_in(WORN_ONE_IN));
        let device = Arc::new(FaultDevice::new(&self.image, random.next_u64()));
        device.set_atomic(SUPERBLOCK);
        // What goes wrong before the power is cut is no finding of a crash.
        let (history, trace) = History::record(setup, &device, *how, worn, operations)
            .map_err(|error| format!("before the power was cut: {error}"))?;
        let moments = moments(&trace, random, moments_max);
        let mut tried = Tried::default();
        tried.wraps(self.log.map_or(0, |log| log.wraps(&trace)));
        let check = Check {
            setup,
            history: &history,
            unnamed: self.unnamed,
            kernel: self.kernel.is_ok(),
        };
        let mut failure = None;
        trace.walk(|point| {
            let position = point.position();
            if failure.is_some() || !moments.contains(&position) {
                return;
            }
            let states = point.crash_states();
            let mut chosen = states.explore(random.next_u64(), states_max);
            while chosen.len() > states_max {
                chosen.swap_remove(random.below(chosen.len() as u64) as usize);
            }
            for state in chosen {
                // Drawn for each, so that what follows is the same whatever was seen before.
                let mut random = Random::new(random.next_u64());
                let crashed = states.image(&state);
                if !seen.insert(fingerprint(&crashed) ^ position as u64) {
                    continue;
                }
                if let Err(error) = check.run(position, crashed, &mut random, &mut tried) {
                    let done = history.shown(position);
                    failure = Some(format!(
                        "at step {position} of {}: {error}\n{done}",
                        trace.len()
                    ));
                    return;
                }
            }
        });
        match failure {
            None => Ok(tried),
            Some(error) => Err(error),
        }
    }
}

/// Where the power is cut: mostly before flushes, where what was written before is in every state.
fn moments(trace: &Trace, random: &mut Random, count: usize) -> HashSet<usize> {
    let mut before_flushes = Vec::new();
    trace.walk(|point| {
        if point.is_before_flush() {
            before_flushes.push(point.position());
        }
    });
    let mut moments = HashSet::new();
    for number in 0..count {
        let any = random.below(trace.len() as u64 + 1) as usize;
        let before = before_flushes[random.below(before_flushes.len() as u64) as usize];
        moments.insert(if number % 4 == 0 { any } else { before });
    }
    moments
}

/// A number for what is on the device.
fn fingerprint(device: &MemoryDevice) -> u64 {
    const STEP: u64 = 4096;
    let mut hasher = DefaultHasher::new();
    let mut block = vec![0; STEP as usize];
    let zeros = block.clone();
    for offset in (0..device.size()).step_by(STEP as usize) {
        device.read(offset, &mut block).expect("whole blocks");
        if block != zeros {
            offset.hash(&mut hasher);
            hasher.write(&block);
        }
    }
    hasher.finish()
}

/// Which workloads a row tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Random operations.
    Random,
    /// Every sequence of one operation, and again with other moments while there is time.
    Ones,
    /// Sequences of one operation while there is time, in an order that the seed gives.
    SomeOnes,
    /// Sequences of two operations.
    Twos,
}

/// Workloads on one type of image, for as long as there is time.
#[must_use]
pub fn prove(work: Work, setup: Setup, plan: &Plan) -> Row {
    let what = match work {
        Work::Random => "random work",
        Work::Ones => "ACE seq-1",
        Work::SomeOnes => "some of ACE seq-1",
        Work::Twos => "some of ACE seq-2",
    };
    let mut row = Row::new(format!("power cuts, {what}, {setup}"), plan.seed);
    if !e2fsck::is_there() {
        row.skipped.push("there is no e2fsck".to_owned());
        return row;
    }
    let budget = Budget::new(plan.time);
    let mut crashes = Crashes::new(setup, How::default()).beside_the_kernel();
    if let Err(reason) = &crashes.kernel {
        row.skipped.push(format!("the kernel's recovery: {reason}"));
    }
    let (ones, all) = crashes.ones();
    let mut per_workload = Vec::new();
    for number in 0.. {
        let is_due = match work {
            Work::Ones => number < all as u64,
            _ => number == 0,
        };
        let is_over = !is_due && !budget.is_left();
        if is_over || row.failures.len() >= FAILURES_MAX {
            break;
        }
        let seed = plan.seed + number;
        let outcome = match work {
            Work::Random => crashes.random(seed),
            Work::Ones => crashes.one(number as usize % all, seed),
            Work::SomeOnes => crashes.one(Random::new(seed).below(all as u64) as usize, seed),
            Work::Twos => crashes.two(seed),
        };
        row.count("workloads", 1);
        match outcome {
            Ok(tried) => {
                tried.add_to(&mut row);
                per_workload.push(tried.states());
            }
            Err(error) => row.failures.push(error),
        }
    }
    if matches!(work, Work::Ones | Work::SomeOnes) {
        row.count("different ones there are", all as u64);
        row.count("of these of ACE", ones as u64);
    }
    per_workload.sort_unstable();
    if let [least, .., most] = per_workload[..] {
        let middle = per_workload[per_workload.len() / 2];
        row.count("states of a workload at least", least);
        row.count("in the middle", middle);
        row.count("at most", most);
    }
    row
}
