//! What threads do at the moment, what they have done, and whether they still get on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::Mutex;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};

/// An operation that takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Operations of one sort.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) done: u64,
    /// For want of space.
    pub(crate) full: u64,
    /// Others that were refused.
    pub(crate) refused: u64,
}

/// What an operation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Done,
    Full,
    Refused,
}

#[derive(Debug, Default)]
struct Thread {
    /// The operation that goes on.
    now: Option<(Instant, String)>,
    counts: BTreeMap<&'static str, Count>,
}

/// All threads, and who has them run and looks at what they left.
#[derive(Debug)]
pub(crate) struct Watch {
    threads: Vec<Mutex<Thread>>,
    /// What is done while no thread runs, and how often it was done.
    between: Mutex<Thread>,
    has_failed: AtomicBool,
}

impl Watch {
    /// Of so many threads.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads: (0..threads).map(|_| Mutex::default()).collect(),
            between: Mutex::default(),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Does what is to be done while no thread runs.
    pub(crate) fn between<T>(&self, what: &'static str, act: impl FnOnce() -> T) -> T {
        self.between.lock().now = Some((Instant::now(), what.to_owned()));
        let outcome = act();
        let mut between = self.between.lock();
        between.now = None;
        between.counts.entry(what).or_default().done += 1;
        outcome
    }

    /// How often that was done.
    #[cfg(test)]
    pub(crate) fn done_between(&self, what: &str) -> u64 {
        let between = self.between.lock();
        between.counts.get(what).map_or(0, |count| count.done)
    }

    /// Thread `number` begins an operation.
    pub(crate) fn begin(&self, number: usize, what: String) {
        self.threads[number].lock().now = Some((Instant::now(), what));
    }

    /// It has come to this.
    ///
    /// # Errors
    /// What no file of a storm may refuse was refused.
    pub(crate) fn end(&self, number: usize, sort: &'static str, came: Came) -> Result<(), String> {
        if came == Came::Refused && !may_be_refused(sort) {
            return Err(format!("{sort} was refused"));
        }
        let mut thread = self.threads[number].lock();
        thread.now = None;
        let count = thread.counts.entry(sort).or_default();
        match came {
            Came::Done => count.done += 1,
            Came::Full => count.full += 1,
            Came::Refused => count.refused += 1,
        }
        Ok(())
    }

    /// Somebody saw what should not be: all stop.
    pub(crate) fn fail(&self) {
        self.has_failed.store(true, Ordering::SeqCst);
    }

    /// Whether somebody did.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::SeqCst)
    }

    /// What all threads do, and what is done between their times, if one of these hangs.
    pub(crate) fn hangs(&self, patience: Duration) -> Option<String> {
        let all = self.threads.iter().chain([&self.between]);
        let now: Vec<_> = all.map(|thread| thread.lock().now.clone()).collect();
        let since =
            |now: &Option<(Instant, String)>| now.as_ref().map(|(since, _)| since.elapsed());
        if !now
            .iter()
            .any(|now| since(now).is_some_and(|taken| taken > patience))
        {
            return None;
        }
        let lines = now.iter().enumerate().map(|(number, now)| {
            let who = match number == self.threads.len() {
                true => "while no thread runs".to_owned(),
                false => format!("thread {number}"),
            };
            match now {
                Some((since, what)) => format!("{who}: {what}, since {:?}", since.elapsed()),
                None => format!("{who}: nothing, or between two operations"),
            }
        });
        Some(lines.collect::<Vec<_>>().join("\n"))
    }

    /// Operations by sort: of each thread, done; and of all, refused for want of space, and else.
    pub(crate) fn table(&self) -> (String, u64) {
        let counts: Vec<_> = self
            .threads
            .iter()
            .map(|thread| thread.lock().counts.clone())
            .collect();
        let mut sorts: Vec<_> = counts
            .iter()
            .flat_map(|counts| counts.keys().copied())
            .collect();
        sorts.sort_unstable();
        sorts.dedup();
        let (mut table, mut all) = (String::new(), 0);
        for sort in sorts {
            let of_all: Vec<_> = counts
                .iter()
                .map(|counts| counts.get(sort).copied().unwrap_or_default())
                .collect();
            let sum = |of: fn(&Count) -> u64| of_all.iter().map(of).sum::<u64>();
            let (full, refused) = (sum(|count| count.full), sum(|count| count.refused));
            all += sum(|count| count.done) + full + refused;
            table += &format!("  {sort:<18}");
            for count in &of_all {
                table += &format!(" {:>8}", count.done);
            }
            table += &format!("   full {full}, refused {refused}\n");
        }
        (table, all)
    }
}

/// Whether the kind of a file's map, its size, or where a range lies may be in the way.
fn may_be_refused(sort: &str) -> bool {
    let sorts = [
        "allocate", "zero", "collapse", "insert", "exchange", "migrate",
    ];
    sorts.iter().any(|may| sort.contains(may))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_told_with_what_the_others_do() {
        let watch = Watch::new(2);
        watch.begin(1, "punch".to_owned());
        assert_eq!(watch.hangs(PATIENCE), None);
        let told = watch.hangs(Duration::ZERO).expect("one hangs");
        assert!(told.contains("thread 1: punch"), "{told}");
        watch.end(1, "punch", Came::Full).expect("it is allowed");
        assert_eq!(watch.hangs(Duration::ZERO), None);
        let (table, all) = watch.table();
        assert!(table.contains("full 1, refused 0"), "{table}");
        assert_eq!(all, 1);
    }

    #[test]
    fn what_hangs_while_no_thread_runs_is_told() {
        let watch = Watch::new(1);
        watch.between("e2fsck", || {
            let told = watch.hangs(Duration::ZERO).expect("it hangs");
            assert!(told.contains("while no thread runs: e2fsck"), "{told}");
            assert!(told.contains("thread 0: nothing"), "{told}");
        });
        assert_eq!(watch.hangs(Duration::ZERO), None);
        assert_eq!(watch.done_between("e2fsck"), 1);
    }

    #[test]
    fn what_nothing_stands_in_the_way_of_may_not_be_refused() {
        let watch = Watch::new(1);
        watch.end(0, "s punch", Came::Refused).expect_err("never");
        watch.end(0, "m zero", Came::Refused).expect("block maps");
        assert_eq!(watch.table().1, 1);
    }
}
