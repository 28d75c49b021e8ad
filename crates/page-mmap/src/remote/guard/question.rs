//! What a program asks the daemon and waits for: one caller at a time, so that each hears his own answer.

use pagefence_lock_order::primitives::{Condvar, Mutex};

/// - Locks: `one`, held by who asks, above all that asking takes; `state`, a leaf.
#[derive(Debug)]
pub(super) struct Question<T> {
    one: Mutex<()>,
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug)]
enum State<T> {
    Idle,
    Asked,
    Answered(T),
}

impl<T> Default for Question<T> {
    fn default() -> Self {
        Self {
            one: Mutex::new(()),
            state: Mutex::new(State::Idle),
            changed: Condvar::new(),
        }
    }
}

impl<T: Copy> Question<T> {
    /// Has `send` ask, and waits for the answer; `None` if nothing can be sent, or once `is_over` says that
    /// nobody answers any more ([`Self::nobody_answers`]).
    pub(super) fn ask(
        &self,
        send: impl FnOnce() -> std::io::Result<()>,
        is_over: impl Fn() -> bool,
    ) -> Option<T> {
        let _one = self.one.lock();
        *self.state.lock() = State::Asked;
        let sent = send();
        let mut state = self.state.lock();
        let answer = loop {
            match *state {
                State::Answered(answer) => break Some(answer),
                // Who ends it takes the lock afterwards.
                _ if sent.is_err() || is_over() => break None,
                _ => self.changed.wait(&mut state),
            }
        };
        *state = State::Idle;
        answer
    }

    /// False if nobody had asked.
    pub(super) fn answer(&self, answer: T) -> bool {
        let mut state = self.state.lock();
        if !matches!(*state, State::Asked) {
            return false;
        }
        *state = State::Answered(answer);
        self.changed.notify_all();
        true
    }

    /// It is over.
    pub(super) fn nobody_answers(&self) {
        drop(self.state.lock());
        self.changed.notify_all();
    }
}
