//! The walk over all states.

use std::collections::HashMap;

use stateright::{Model, Property};

use super::config::Scenario;
use super::property;
use super::state::State;
use crate::walk::walk;

/// Who does a step. Every actor has one next step at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A thread, by number.
    Thread(usize),
    /// The journal's thread.
    Journal,
    /// The timer that asks for a commit.
    Timer,
}

/// A scenario as a model.
#[derive(Clone, Debug)]
pub struct WriteProtocol {
    scenario: Scenario,
}

impl WriteProtocol {
    fn step(&self, state: &State, actor: Actor) -> Option<State> {
        let mut next = state.clone();
        let moved = match actor {
            Actor::Thread(thread) => next.step_thread(&self.scenario, thread),
            Actor::Journal => next.step_journal(&self.scenario),
            Actor::Timer => next.step_timer(&self.scenario),
        };
        moved.then_some(next)
    }

    fn actors(&self) -> impl Iterator<Item = Actor> + use<> {
        (0..self.scenario.threads.len())
            .map(Actor::Thread)
            .chain([Actor::Journal, Actor::Timer])
    }

    fn can_go_on(&self, state: &State) -> bool {
        self.actors().any(|actor| self.step(state, actor).is_some())
    }
}

impl Model for WriteProtocol {
    type State = State;
    type Action = Actor;

    fn init_states(&self) -> Vec<State> {
        vec![State::initial(&self.scenario)]
    }

    fn actions(&self, _state: &State, actions: &mut Vec<Actor>) {
        actions.extend(self.actors());
    }

    fn next_state(&self, state: &State, actor: Actor) -> Option<State> {
        self.step(state, actor)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(property::NO_DEADLOCK, |model: &Self, state: &State| {
                state.is_finished(&model.scenario) || model.can_go_on(state)
            }),
            Property::always(property::NO_LATE_ENOSPC, |_, state: &State| {
                !state.faults.late_enospc
            }),
            Property::always(property::READS_ARE_CURRENT, |_, state: &State| {
                !state.faults.stale_read
            }),
            Property::always(property::WRITES_ARE_OWNED, |_, state: &State| {
                !state.faults.foreign_write
            }),
            Property::always(property::ONE_OWNER, |_, state| {
                property::has_one_owner(state)
            }),
            Property::always(property::DIRTY_IS_COVERED, |_, state| {
                property::is_dirty_covered(state)
            }),
            Property::always(property::RESERVATION_EXACT, |model: &Self, state| {
                property::is_reservation_exact(&model.scenario, state)
            }),
            Property::always(property::NO_EARLY_REUSE, |_, state| {
                property::is_reuse_late_enough(state)
            }),
            Property::always(property::CRASH_SHOWS_OWN, |_, state| {
                property::is_own_after_crash(state)
            }),
            Property::always(property::FSYNC_SURVIVES, |_, state| {
                property::is_fsync_kept(state)
            }),
            Property::always(property::TREE_SURVIVES, |_, state| {
                property::is_tree_kept(state)
            }),
            Property::always(property::EDGE_SURVIVES, |_, state| {
                property::is_edge_kept(state)
            }),
            Property::sometimes(FINISHES, |model: &Self, state: &State| {
                state.is_finished(&model.scenario)
            }),
            Property::sometimes(ENOSPC, |_, state: &State| state.seen.enospc),
            Property::sometimes(FULL_JOURNAL, |_, state: &State| state.seen.full_journal),
        ]
    }
}

const FINISHES: &str = "everything gets done";
const ENOSPC: &str = "a write or a punch is refused";
const FULL_JOURNAL: &str = "a handle waits for space in the log";

/// What an exhaustive walk found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Distinct states.
    pub states: usize,
    /// The longest run, in steps.
    pub depth: usize,
    /// The properties that do not hold, each with the shortest run that shows it.
    pub violated: Vec<(&'static str, String)>,
    /// Some write or punch was refused for lack of space.
    pub saw_enospc: bool,
    /// Some handle waited for space in the log.
    pub saw_full_journal: bool,
}

/// Walks every state of a scenario.
#[must_use]
pub fn check(scenario: Scenario) -> Outcome {
    let walked = walk(WriteProtocol { scenario }, None);
    let mut violated = walked.violated(&[FINISHES, ENOSPC, FULL_JOURNAL]);
    if !walked.discovered.contains_key(FINISHES) {
        violated.push((FINISHES, String::new()));
    }
    Outcome {
        states: walked.states,
        depth: walked.depth,
        violated,
        saw_enospc: walked.discovered.contains_key(ENOSPC),
        saw_full_journal: walked.discovered.contains_key(FULL_JOURNAL),
    }
}

/// Looks for a run that violates one property: the steps of a shortest one, and the states seen.
#[must_use]
pub fn find(scenario: Scenario, property: &'static str) -> (Option<Vec<Actor>>, usize) {
    let mut walked = walk(WriteProtocol { scenario }, Some(property));
    (walked.discovered.remove(property), walked.states)
}

/// Whether no step leads back: then a run ends, and only where nobody can go on.
#[must_use]
pub fn is_acyclic(scenario: Scenario) -> bool {
    let model = WriteProtocol { scenario };
    // Depth first, with the actors that are still to be tried at each state of the path.
    let mut on_path: HashMap<State, bool> = HashMap::new();
    let start = State::initial(&model.scenario);
    on_path.insert(start.clone(), true);
    let mut path = vec![(start, model.actors())];
    while let Some((state, actors)) = path.last_mut() {
        let Some(actor) = actors.next() else {
            let (done, _) = path.pop().expect("the path has a last state");
            on_path.insert(done, false);
            continue;
        };
        let Some(next) = model.step(state, actor) else {
            continue;
        };
        match on_path.get(&next) {
            Some(true) => return false,
            Some(false) => {}
            None => {
                on_path.insert(next.clone(), true);
                path.push((next, model.actors()));
            }
        }
    }
    true
}
