//! The images that a power cut may leave: all of them where they are few, else the boundary
//! sets and random ones.

use pagefence_lock_order::primitives::Arc;

use super::random::Random;
use super::units::write;
use crate::memory_device::MemoryDevice;

/// With at most this many free units every state is visited …
const FREE_UNITS_MAX: usize = 12;
/// … if there are no more states than this (units may have more than two versions).
const STATES_MAX: u64 = 1 << 14;
/// Members of each boundary set, at most.
const BOUNDARY_MAX: usize = 64;

/// A unit whose contents a crash decides.
#[derive(Clone, Debug)]
pub(super) struct PendingUnit {
    pub(super) offset: u64,
    /// The durable version, then every later one with the time it was written; at least two.
    pub(super) versions: Vec<(Arc<[u8]>, u64)>,
}

impl PendingUnit {
    fn newest(&self) -> u32 {
        self.versions.len() as u32 - 1
    }
}

/// One outcome of a crash: for each free unit, which of its versions came back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CrashState(Box<[u32]>);

/// Every outcome that a crash at one moment may have.
#[derive(Debug)]
pub struct CrashStates {
    durable: MemoryDevice,
    units: Vec<PendingUnit>,
}

impl CrashStates {
    pub(super) fn new(durable: MemoryDevice, units: Vec<PendingUnit>) -> Self {
        Self { durable, units }
    }

    /// Units whose contents the crash decides.
    #[must_use]
    pub fn free_units(&self) -> usize {
        self.units.len()
    }

    /// How many outcomes there are; nothing if more than 2^64.
    #[must_use]
    pub fn count(&self) -> Option<u64> {
        self.units.iter().try_fold(1_u64, |count, unit| {
            count.checked_mul(unit.versions.len() as u64)
        })
    }

    /// The image of an outcome.
    ///
    /// # Panics
    ///
    /// If `state` is of another crash.
    #[must_use]
    pub fn image(&self, state: &CrashState) -> MemoryDevice {
        assert_eq!(state.0.len(), self.units.len(), "a state of this crash");
        let image = self.durable.fork();
        for (unit, version) in self.units.iter().zip(&state.0) {
            if *version > 0 {
                write(&image, unit.offset, &unit.versions[*version as usize].0);
            }
        }
        image
    }

    /// Nothing that was not durable came back.
    #[must_use]
    pub fn nothing(&self) -> CrashState {
        CrashState(self.units.iter().map(|_| 0).collect())
    }

    /// Everything came back: the live image.
    #[must_use]
    pub fn everything(&self) -> CrashState {
        CrashState(self.units.iter().map(PendingUnit::newest).collect())
    }

    /// Every unit as of `time`, as if the device wrote in order.
    fn as_of(&self, time: u64) -> CrashState {
        CrashState(
            self.units
                .iter()
                .map(|unit| unit.versions.partition_point(|(_, at)| *at <= time) as u32 - 1)
                .collect(),
        )
    }

    /// An outcome by chance: each unit by itself, in one of three moods (any version; mostly the
    /// newest; mostly the durable one), so that lone losses and lone survivors are met as often.
    #[must_use]
    pub fn random(&self, random: &mut Random) -> CrashState {
        let mood = random.below(3);
        let rarity = 1 << random.below(6);
        CrashState(
            self.units
                .iter()
                .map(|unit| match mood {
                    1 if !random.one_in(rarity) => unit.newest(),
                    2 if !random.one_in(rarity) => 0,
                    _ => random.below(unit.versions.len() as u64) as u32,
                })
                .collect(),
        )
    }

    /// Every outcome, in a fixed order. There may be very many.
    pub fn all(&self) -> impl Iterator<Item = CrashState> + '_ {
        let mut next = Some(self.nothing());
        std::iter::from_fn(move || {
            let current = next.take()?;
            let mut following = current.clone();
            for (digit, unit) in following.0.iter_mut().zip(&self.units) {
                if *digit < unit.newest() {
                    *digit += 1;
                    next = Some(following);
                    break;
                }
                *digit = 0;
            }
            Some(current)
        })
    }

    /// Whether [`CrashStates::explore`] visits every outcome.
    #[must_use]
    pub fn is_exhaustive(&self) -> bool {
        self.units.len() <= FREE_UNITS_MAX && self.count().is_some_and(|count| count <= STATES_MAX)
    }

    /// The outcomes to try: all if few, else the boundary sets and `random_count` by chance.
    /// Boundary sets: nothing; everything; each unit alone; everything but one unit; everything
    /// up to a moment; of each set 64 spread evenly if it has more.
    pub fn explore(&self, seed: u64, random_count: usize) -> Vec<CrashState> {
        if self.is_exhaustive() {
            return self.all().collect();
        }
        let mut states = vec![self.nothing(), self.everything()];
        for at in spread(self.units.len()) {
            let mut alone = self.nothing();
            alone.0[at] = self.units[at].newest();
            states.push(alone);
            let mut without = self.everything();
            without.0[at] = 0;
            states.push(without);
        }
        let mut times: Vec<u64> = self
            .units
            .iter()
            .flat_map(|unit| unit.versions.iter().map(|(_, time)| *time))
            .collect();
        times.sort_unstable();
        times.dedup();
        states.extend(spread(times.len()).map(|at| self.as_of(times[at])));
        let mut random = Random::new(seed);
        states.extend((0..random_count).map(|_| self.random(&mut random)));
        states.sort();
        states.dedup();
        states
    }
}

/// Up to [`BOUNDARY_MAX`] numbers below `count`, evenly spread, each once.
fn spread(count: usize) -> impl Iterator<Item = usize> {
    let taken = count.min(BOUNDARY_MAX);
    (0..taken).map(move |at| at * count / taken)
}
