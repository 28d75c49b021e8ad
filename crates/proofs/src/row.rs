//! What one proof is asked, and what it says.

use std::time::Duration;

/// How a proof is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The first seed; the next case has the next.
    pub seed: u64,
    /// How long each row goes on; one case is tried at least.
    pub time: Duration,
}

/// A line of the table: one kind of trial, on one kind of image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// What was tried.
    pub what: String,
    /// Its first seed.
    pub seed: u64,
    /// What was done, counted: `(4211, "distinct states")`. The first is the number of trials.
    pub counts: Vec<(u64, &'static str)>,
    /// What went wrong, each with the seed that gives it again.
    pub failures: Vec<String>,
    /// What could not be tried here, and why.
    pub skipped: Vec<String>,
}

impl Row {
    /// A row without counts yet.
    #[must_use]
    pub fn new(what: impl Into<String>, seed: u64) -> Self {
        Self {
            what: what.into(),
            seed,
            ..Self::default()
        }
    }

    /// Adds to the count of this name.
    pub fn count(&mut self, name: &'static str, more: u64) {
        match self.counts.iter_mut().find(|(_, found)| *found == name) {
            Some((count, _)) => *count += more,
            None => self.counts.push((more, name)),
        }
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}, seed {}: ", self.what, self.seed)?;
        for (count, name) in &self.counts {
            write!(formatter, "{count} {name}, ")?;
        }
        write!(formatter, "failures {}", self.failures.len())?;
        for reason in &self.skipped {
            write!(formatter, "; skipped: {reason}")?;
        }
        Ok(())
    }
}

#[test]
fn counts_of_one_name_add_up() {
    let mut row = Row::new("a", 1);
    row.count("states", 2);
    row.count("cases", 0);
    row.count("states", 3);
    assert_eq!(row.counts, [(5, "states"), (0, "cases")]);
}
