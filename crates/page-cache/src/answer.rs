//! What somebody who maps a file was asked to do and has not done yet.
//!
//! A mapper may be a program in another process, which is asked by a message. Several of them map a file,
//! and each may take as long as it is allowed: so all are asked first, and only then is the first one waited
//! for. As the time of each begins when it is asked, all of them together take as long as one.

/// An answer that is due. Whoever asked waits for it before he makes use of what he asked for.
#[must_use = "nothing is done before it was waited for"]
pub struct Answer<'a>(Option<Box<dyn FnOnce() + 'a>>);

impl<'a> Answer<'a> {
    /// It is done.
    pub fn done() -> Self {
        Self(None)
    }

    /// It is done when `wait` comes back. That does so by itself, at a time that was set when the question was
    /// asked, or little later: however late it is called, it waits no longer than that.
    pub fn awaited(wait: impl FnOnce() + 'a) -> Self {
        Self(Some(Box::new(wait)))
    }

    /// Both are.
    pub fn and(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(first), Some(second)) => Self::awaited(move || {
                first();
                second();
            }),
            (first, second) => Self(first.or(second)),
        }
    }

    /// Returns when it is done.
    pub fn wait(self) {
        if let Some(wait) = self.0 {
            wait();
        }
    }
}

impl std::fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("is_done", &self.0.is_none())
            .finish()
    }
}

/// What several were asked, in one round.
pub(crate) struct Round<'a> {
    answers: Vec<Answer<'a>>,
    /// The mutant: each is waited for before the next is asked.
    in_turn: bool,
}

impl<'a> Round<'a> {
    pub(crate) fn new(in_turn: bool) -> Self {
        Self {
            answers: Vec::new(),
            in_turn,
        }
    }

    /// One more was asked.
    pub(crate) fn add(&mut self, answer: Answer<'a>) {
        if self.in_turn {
            answer.wait();
        } else if answer.0.is_some() {
            self.answers.push(answer);
        }
    }

    /// Returns when all have answered, or had the time for it.
    pub(crate) fn wait(self) {
        self.answers.into_iter().for_each(Answer::wait);
    }
}
