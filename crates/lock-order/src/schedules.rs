//! How a scenario is run under a scheduler that chooses interleavings (`--cfg shuttle`).
//!
//! A test names how many schedules it tries. With `PAGEFENCE_SCHEDULE_MS` set each kind of scheduler goes
//! on for that long instead; `PAGEFENCE_PROOF_SEED` decides which schedules, else chance does. A
//! schedule that fails is printed by shuttle, which replays it. How many were tried is printed, too:
//! `schedules 1234`.

use std::time::Duration;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

/// Threads that a schedule by priorities preempts.
const DEPTH: usize = 3;

/// At each step any thread may go on.
pub fn by_chance(scenario: impl Fn() + Send + Sync + 'static, schedules: usize) {
    let (count, config) = asked(schedules);
    run(
        match seed() {
            Some(seed) => RandomScheduler::new_from_seed(seed, count),
            None => RandomScheduler::new(count),
        },
        config,
        scenario,
    );
}

/// Threads have priorities, which change a few times (PCT): between two steps of one thread the others
/// may do everything that they have to.
pub fn by_priority(scenario: impl Fn() + Send + Sync + 'static, schedules: usize) {
    let (count, config) = asked(schedules);
    run(
        match seed() {
            Some(seed) => PctScheduler::new_from_seed(seed, DEPTH, count),
            None => PctScheduler::new(DEPTH, count),
        },
        config,
        scenario,
    );
}

fn run(
    scheduler: impl Scheduler + 'static,
    config: Config,
    scenario: impl Fn() + Send + Sync + 'static,
) {
    let schedules = Runner::new(scheduler, config).run(scenario);
    println!("schedules {schedules}");
}

fn seed() -> Option<u64> {
    number("PAGEFENCE_PROOF_SEED")
}

fn asked(schedules: usize) -> (usize, Config) {
    let mut config = Config::new();
    match number("PAGEFENCE_SCHEDULE_MS") {
        Some(time) => {
            config.max_time = Some(Duration::from_millis(time));
            (usize::MAX, config)
        }
        None => (schedules, config),
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}
