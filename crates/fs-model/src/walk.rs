//! Walking every state of a model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, HasDiscoveries, Model, Path};

/// What a walk found.
pub(crate) struct Walk<A> {
    /// Distinct states.
    pub(crate) states: usize,
    /// The longest run, in steps.
    pub(crate) depth: usize,
    /// The properties that were discovered (violated, or seen to hold sometimes), each with the
    /// steps of a shortest run that shows it.
    pub(crate) discovered: BTreeMap<&'static str, Vec<A>>,
}

impl<A: Debug> Walk<A> {
    /// What was discovered and is none of `expected`, with its run.
    pub(crate) fn violated(&self, expected: &[&str]) -> Vec<(&'static str, String)> {
        self.discovered
            .iter()
            .filter(|(name, _)| !expected.contains(*name))
            .map(|(&name, run)| (name, format!("{run:?}")))
            .collect()
    }
}

/// Walks every state of `model`; with `until`, no further than to where that is discovered.
pub(crate) fn walk<M>(model: M, until: Option<&'static str>) -> Walk<M::Action>
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Eq + Hash + Send + Sync,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
    // Without one, a name that is never discovered: the walk goes on to its end.
    let until = BTreeSet::from([until.unwrap_or("no such property")]);
    let checker = model
        .checker()
        .threads(1)
        .finish_when(HasDiscoveries::AllOf(until))
        .spawn_bfs()
        .join();
    Walk {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        discovered: checker
            .discoveries()
            .into_iter()
            .map(|(name, path)| (name, Path::into_actions(path)))
            .collect(),
    }
}
