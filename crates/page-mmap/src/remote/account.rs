//! What others have waited for a program lately: who makes others wait again and again waits himself.
//!
//! No wait for a program is longer than [`PATIENCE`], but one that answers a moment before that, each time,
//! would cost whoever needs its pages as much for every one. So such waits are charged to an account, and are
//! forgotten little by little. A program whose account is overdrawn is not waited for: it is asked nothing, the
//! pages that it stores to are frozen, and its faults are put off until the account is good again, as rights
//! would have to be waited for. It is not ended: one that is stopped and goes on, or has a slow machine, is
//! late and no liar, and loses time in proportion, but nothing that it has.
//!
//! Invariant: in any stretch of time, what waits for the programs of an account took is no more than [`MOST`], a
//! [`PATIENCE`] for each thread that was waiting when it was overdrawn, and one in [`SHARE`] parts of that
//! time. Waits shorter than [`FREE`] are not counted: a disk may take that long, and so does a guard where many
//! programs share a processor; nor is time for which who waits was not let run himself.

use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::Mutex;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};

use super::PATIENCE;

/// Waits as short as this cost nothing.
const FREE: Duration = PATIENCE.checked_div(10).expect("ten is not zero");

/// What may be owed.
const MOST: Duration = PATIENCE.saturating_mul(3);

/// What is owed when an account is good again that was overdrawn: one more wait overdraws it.
const GOOD: Duration = PATIENCE.saturating_mul(2);

/// One in so many parts of the time is forgiven.
const SHARE: u32 = 10;

/// What is owed for waits by one program, or by all of a user's.
#[derive(Debug, Default)]
pub struct Account {
    /// For a look that costs nothing. Changed with the lock of the debt.
    is_overdrawn: AtomicBool,
    /// A leaf.
    debt: Mutex<Debt>,
}

#[derive(Debug, Default)]
struct Debt {
    owed: Duration,
    /// When that was so.
    at: Option<Instant>,
}

impl Account {
    /// Notes that somebody has waited for `waited` until `now`. Takes its own lock, a leaf.
    pub fn charge(&self, waited: Duration, now: Instant) {
        if waited < FREE {
            return;
        }
        let mut debt = self.debt.lock();
        debt.forgive(now);
        debt.owed += waited;
        if debt.owed > MOST && !self.is_overdrawn.swap(true, Ordering::SeqCst) {
            tracing::warn!(
                "a program that maps files answers late again and again: it has to wait itself"
            );
        }
    }

    /// For how long from `now` on nobody is to wait, at least; `None` if the account is good.
    pub(super) fn overdrawn_for(&self, now: Instant) -> Option<Duration> {
        if !self.is_overdrawn.load(Ordering::SeqCst) {
            return None;
        }
        let mut debt = self.debt.lock();
        debt.forgive(now);
        let over = debt.owed.saturating_sub(GOOD);
        if over.is_zero() {
            self.is_overdrawn.store(false, Ordering::SeqCst);
            return None;
        }
        Some(over * SHARE)
    }

    /// Whether nothing is owed at `now`. Takes its own lock, a leaf.
    #[must_use]
    pub fn is_even(&self, now: Instant) -> bool {
        let mut debt = self.debt.lock();
        debt.forgive(now);
        debt.owed.is_zero()
    }
}

#[cfg(test)]
impl Account {
    /// Nothing is owed any more.
    pub(crate) fn forget(&self) {
        let mut debt = self.debt.lock();
        *debt = Debt::default();
        self.is_overdrawn.store(false, Ordering::SeqCst);
    }
}

impl Debt {
    fn forgive(&mut self, now: Instant) {
        let passed = self.at.map(|at| now.saturating_duration_since(at));
        self.owed = self.owed.saturating_sub(passed.unwrap_or_default() / SHARE);
        self.at = self.at.max(Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second.
    const S: Duration = Duration::from_secs(1);

    #[test]
    fn short_waits_cost_nothing() {
        let (account, now) = (Account::default(), Instant::now());
        for _ in 0..1000 {
            account.charge(FREE - Duration::from_nanos(1), now);
        }
        assert!(account.is_even(now));
        assert_eq!(account.overdrawn_for(now), None);
    }

    #[test]
    fn it_is_overdrawn_by_more_than_three_waits_and_good_again_with_time() {
        let (account, now) = (Account::default(), Instant::now());
        for _ in 0..3 {
            account.charge(PATIENCE, now);
        }
        assert_eq!(account.overdrawn_for(now), None);
        account.charge(PATIENCE / 2, now);
        assert_eq!(account.overdrawn_for(now), Some(15 * S));
        assert_eq!(account.overdrawn_for(now + 14 * S), Some(S));
        assert_eq!(account.overdrawn_for(now + 15 * S), None);
        // Now one wait is enough.
        account.charge(PATIENCE, now + 15 * S);
        assert_eq!(account.overdrawn_for(now + 15 * S), None);
        account.charge(FREE, now + 15 * S);
        assert_eq!(account.overdrawn_for(now + 15 * S), Some(11 * S));
        assert!(!account.is_even(now + 45 * S));
        assert!(account.is_even(now + 46 * S));
    }

    /// A program that lets others wait whenever they do, and as long as they do.
    #[test]
    fn the_worst_program_costs_a_tenth_of_the_time() {
        let (account, begun) = (Account::default(), Instant::now());
        let (mut now, mut waited) = (begun, Duration::ZERO);
        while now < begun + 10_000 * S {
            if let Some(rest) = account.overdrawn_for(now) {
                now += rest;
            } else {
                now += PATIENCE;
                waited += PATIENCE;
                account.charge(PATIENCE, now);
            }
        }
        let time = now - begun;
        assert!(waited <= MOST + PATIENCE + time / SHARE, "{waited:?}");
        assert!(waited >= time / SHARE / 2, "it is not ended: {waited:?}");
    }

    #[test]
    fn time_that_seems_to_go_back_forgives_nothing_twice() {
        let (account, now) = (Account::default(), Instant::now());
        account.charge(4 * S, now + 10 * S);
        assert_eq!(account.overdrawn_for(now), Some(20 * S));
        assert_eq!(account.overdrawn_for(now + 10 * S), Some(20 * S));
    }
}
