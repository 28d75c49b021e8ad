//! `cargo xtask prove`: what pagefence promises, tried for as long as one likes; a table of what was
//! done, under which seed, and what went wrong.

mod checks;
mod fuzz;
mod processes;
mod programs;
mod trials;

use std::collections::VecDeque;
use std::num::NonZero;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use pagefence_lock_order::primitives::{Arc, Mutex, thread};
use pagefence_proofs::{Plan, Row, hostile};

use crate::mounts::workspace_root;
use trials::Trial;

/// Arguments of `prove`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to try; everything unless given.
    class: Option<Class>,
    /// How long, in all: each class has its share.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A protection to leave out: then something must fail.
    #[arg(long, requires = "class")]
    mutant: Option<String>,
}

/// What goes wrong in a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Class {
    /// The power goes.
    Crash,
    /// Calls of the device fail.
    Eio,
    /// There is no space, or no memory.
    Enospc,
    /// The image is made to harm.
    Hostile,
    /// The server is killed.
    Kill,
    /// Threads and processes meet in every way that there is time for.
    Races,
    /// A hostile image has taken over the server.
    Contain,
}

/// Which protection a process leaves out.
const MUTANT_VARIABLE: &str = "PAGEFENCE_LEAVE_OUT";

/// Runs the chore; `true` if nothing failed, or the mutant was caught.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    if hostile::served() {
        return Ok(true);
    }
    if let Some(mutant) = &arguments.mutant
        && std::env::var_os(MUTANT_VARIABLE).is_none()
    {
        return run_mutated(mutant);
    }
    let classes: Vec<Class> = match arguments.class {
        Some(class) => vec![class],
        None => Class::value_variants().to_vec(),
    };
    let share = Duration::try_from_secs_f64(arguments.minutes * 60.0)?
        .checked_div(u32::try_from(classes.len())?)
        .context("no class")?;
    let begun = Instant::now();
    let mut rows = Vec::new();
    for class in classes {
        let plan = Plan {
            seed: arguments.seed,
            time: share,
        };
        rows.extend(class.prove(&plan)?);
    }
    let failures: usize = rows.iter().map(|row| row.failures.len()).sum();
    for row in &rows {
        for failure in &row.failures {
            println!("FAILED: {}: {failure}", row.what);
        }
    }
    let trials: u64 = rows
        .iter()
        .filter_map(|row| row.counts.first())
        .map(|(count, _)| count)
        .sum();
    let skipped: usize = rows.iter().map(|row| row.skipped.len()).sum();
    println!(
        "proved: {} rows, {trials} trials, {skipped} skipped, {:.0} s, seed {}, failures {failures}",
        rows.len(),
        begun.elapsed().as_secs_f64(),
        arguments.seed,
    );
    if let Some(mutant) = &arguments.mutant {
        let outcome = if failures > 0 { "caught" } else { "NOT CAUGHT" };
        println!("mutant {mutant}: {outcome}");
        return Ok(failures > 0);
    }
    Ok(failures == 0)
}

impl Class {
    fn prove(self, plan: &Plan) -> Result<Vec<Row>> {
        let name = self
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned());
        match self {
            Self::Crash => in_process(&name, trials::crash(), plan),
            Self::Eio => in_process(&name, trials::eio(), plan),
            Self::Enospc => {
                let part = |share: u32| Plan {
                    time: plan.time * share / 10,
                    ..plan.clone()
                };
                let mut rows = in_process(&name, trials::enospc(), &part(7))?;
                if std::env::var_os(MUTANT_VARIABLE).is_none() {
                    rows.push(shown(&name, processes::memory_that_ends(&part(1))?));
                    rows.push(shown(&name, processes::cgroup_that_ends(&part(2))?));
                    rows.push(shown(&name, processes::budget(plan)?));
                }
                Ok(rows)
            }
            Self::Hostile => hostile_images(&name, plan),
            Self::Kill => Ok(vec![shown(&name, processes::kill(plan)?)]),
            Self::Races => {
                if std::env::var_os(MUTANT_VARIABLE).is_some() {
                    // Only what runs in this process leaves anything out.
                    return Ok(vec![shown(&name, checks::beside_writers(plan)?)]);
                }
                let plan = Plan {
                    time: plan.time / 4,
                    ..plan.clone()
                };
                Ok(vec![
                    shown(&name, programs::schedules(&plan)?),
                    shown(&name, processes::storm(&plan)?),
                    shown(&name, checks::beside_writers(&plan)?),
                    shown(&name, processes::soak(&plan)?),
                ])
            }
            Self::Contain => Ok(vec![shown(&name, programs::confinement(plan)?)]),
        }
    }
}

/// Fields of images first, then a fuzzer; it is built without mutants.
fn hostile_images(name: &str, plan: &Plan) -> Result<Vec<Row>> {
    let of_fields = Plan {
        time: plan.time * 3 / 4,
        ..plan.clone()
    };
    let mut rows = in_process(name, trials::hostile()?, &of_fields)?;
    if std::env::var_os(MUTANT_VARIABLE).is_none() {
        let of_fuzzer = Plan {
            time: plan.time / 4,
            ..plan.clone()
        };
        let fuzzed = fuzz::fuzz(&of_fuzzer)?;
        rows.extend(fuzzed.into_iter().map(|row| shown(name, row)));
    }
    Ok(rows)
}

/// Prints a row as soon as it is there.
fn shown(class: &str, row: Row) -> Row {
    println!("{class:8} {row}");
    row
}

/// Tries them on all processors; together they take the time of the plan.
fn in_process(class: &str, trials: Vec<Trial>, plan: &Plan) -> Result<Vec<Row>> {
    let workers = std::thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(trials.len());
    let plan = Plan {
        time: plan.time * u32::try_from(workers)? / u32::try_from(trials.len().max(1))?,
        ..plan.clone()
    };
    let waiting = Arc::new(Mutex::new(VecDeque::from(trials)));
    let mut threads = Vec::new();
    for _ in 0..workers {
        let (waiting, plan, class) = (Arc::clone(&waiting), plan.clone(), class.to_owned());
        threads.push(thread::spawn("trials", move || {
            let next = || waiting.lock().pop_front();
            let mut rows = Vec::new();
            while let Some(trial) = next() {
                rows.push(shown(&class, trial(&plan)));
            }
            rows
        })?);
    }
    let mut rows = Vec::new();
    for thread in threads {
        rows.extend(
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a trial panicked"))?,
        );
    }
    Ok(rows)
}

/// Runs this chore in a build that can leave protections out.
fn run_mutated(mutant: &str) -> Result<bool> {
    let root = workspace_root()?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--release", "--package", "xtask"])
        .args(["--features", "mutants", "--target-dir"])
        .arg(root.join("target/mutants"))
        .arg("--")
        .args(std::env::args_os().skip(1))
        .env(MUTANT_VARIABLE, mutant)
        .status()
        .context("cannot run cargo")?;
    ensure!(
        status.code().is_some(),
        "the build that leaves {mutant} out was killed"
    );
    Ok(status.success())
}
