//! The walk over all states.

use stateright::{Model, Property};

use super::property;
use super::state::{Scenario, State};
use crate::walk::walk;

/// Who does a step. Every actor has one next step at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A thread that reads, by its place in the state.
    Reader(usize),
    /// A thread that faults.
    Faulter(usize),
    /// A thread that punches or truncates.
    Invalidator(usize),
    /// Reclaim.
    Reclaim,
    /// Writeback.
    Writeback,
    /// The file that takes free blocks.
    OtherFile,
}

/// A scenario as a model.
#[derive(Clone, Debug)]
pub struct FaultProtocol {
    scenario: Scenario,
}

impl FaultProtocol {
    fn step(&self, state: &State, actor: Actor) -> Option<State> {
        let mut next = state.clone();
        let moved = match actor {
            Actor::Reader(at) => next.step_reader(&self.scenario, at),
            Actor::Faulter(at) => next.step_faulter(&self.scenario, at),
            Actor::Invalidator(at) => next.step_invalidator(&self.scenario, at),
            Actor::Reclaim => next.step_reclaim(&self.scenario),
            Actor::Writeback => next.step_writeback(&self.scenario),
            Actor::OtherFile => next.step_other_file(),
        };
        next.normalize();
        moved.then_some(next)
    }

    fn actors(&self) -> impl Iterator<Item = Actor> + use<> {
        (0..self.scenario.readers)
            .map(Actor::Reader)
            .chain((0..self.scenario.faulters.len()).map(Actor::Faulter))
            .chain((0..self.scenario.cuts.len()).map(Actor::Invalidator))
            .chain([Actor::Reclaim, Actor::Writeback, Actor::OtherFile])
    }

    fn can_go_on(&self, state: &State) -> bool {
        self.actors().any(|actor| self.step(state, actor).is_some())
    }
}

impl Model for FaultProtocol {
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
                state.is_finished() || model.can_go_on(state)
            }),
            Property::always(property::ACCESSES_ARE_CURRENT, |_, state: &State| {
                !state.faults.stale
            }),
            Property::always(property::MAPS_ARE_CACHED, |_, state| {
                property::maps_are_cached(state)
            }),
            Property::always(property::MAPS_ARE_INSIDE, |_, state| {
                property::maps_are_inside(state)
            }),
            Property::always(property::WRITABLE_IS_DIRTY, |_, state| {
                property::writable_is_dirty(state)
            }),
            Property::always(property::DIRTY_IS_COVERED, |_, state| {
                property::dirty_is_covered(state)
            }),
            Property::always(property::CLEAN_IS_ON_DISK, |_, state| {
                property::clean_is_on_disk(state)
            }),
            Property::always(property::WRITES_ARE_OWNED, |_, state| {
                property::writes_are_owned(state)
            }),
            Property::sometimes(FINISHES, |_, state: &State| state.is_finished()),
        ]
    }
}

const FINISHES: &str = "everything gets done";

/// What an exhaustive walk found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Distinct states.
    pub states: usize,
    /// The longest run, in steps.
    pub depth: usize,
    /// The properties that do not hold, each with the shortest run that shows it.
    pub violated: Vec<(&'static str, String)>,
}

/// Walks every state of a scenario.
#[must_use]
pub fn check(scenario: Scenario) -> Outcome {
    let walked = walk(FaultProtocol { scenario }, None);
    let mut violated = walked.violated(&[FINISHES]);
    if !walked.discovered.contains_key(FINISHES) {
        violated.push((FINISHES, String::new()));
    }
    Outcome {
        states: walked.states,
        depth: walked.depth,
        violated,
    }
}

/// Looks for a run that violates one property: the steps of a shortest one, and the states seen.
#[must_use]
pub fn find(scenario: Scenario, property: &'static str) -> (Option<Vec<Actor>>, usize) {
    let mut walked = walk(FaultProtocol { scenario }, Some(property));
    (walked.discovered.remove(property), walked.states)
}
