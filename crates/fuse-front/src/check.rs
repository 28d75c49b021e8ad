//! Checks of the file system that is served, while it is in use, by two ioctls of our own on its root
//! directory. [`check()`] is both of them.
//!
//! # `CHECK_BEGIN`: begins a check
//!
//! `_IOR(0xF7, 6, 8 bytes)`, which are 0. The check belongs to the open directory: when that is closed
//! it ends. Errors, the first that applies: EINVAL on another directory than the root, EBADF if it is
//! not open; EPERM for anybody but root and the user who serves the mount; EBUSY while another check
//! goes on.
//!
//! # `CHECK_NEWS`: what there is to tell since the last call
//!
//! `_IOR(0xF7, 7, 16352 bytes)`, on the same open directory; EBADF on another. Does not wait: who has
//! been told nothing new comes back later. A check whose findings nobody fetches waits.
//!
//! | at | size | field | |
//! |---|---|---|---|
//! | 0 | 4 | length | bytes of text |
//! | 4 | 4 | state | 0: it goes on; 1: it has ended, and all is told; 2: it has failed, and the text says why |
//! | 8 | 8 | done | units of the part that are done |
//! | 16 | 8 | total | units that there are |
//! | 24 | 32 | stage | the part, a few words, NUL at the end |
//! | 56 | 8 | findings | from here on with state 1 |
//! | 64 | 8 | inodes | in use |
//! | 72 | 8 | directories | |
//! | 80 | 8 | orphans | |
//! | 88 | 8 | blocks | in use |
//! | 96 | 4 | flags | bit 0: it came to its end; bit 1: a journal was replayed in memory |
//! | 100 | 28 | reserved | 0 |
//! | 128 | length | text | findings, each a line with its newline |

use std::fmt::Write as _;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use fuser::{Errno, FileHandle, INodeNo, Request};
use pagefence_lock_order::primitives::thread::{self, JoinHandle};
use pagefence_lock_order::primitives::{Arc, Condvar, Mutex};
use pagefence_vfs::{CheckEvent, CheckProgress, CheckSummary, Error, FileSystem};

use crate::dispatch::Dispatch;
use crate::ioctl::{READ, field, ioc};

const HEADER_BYTES: usize = 128;
const NEWS_BYTES: usize = 16352;
const STAGE: std::ops::Range<usize> = 24..56;

/// Number of the ioctl that begins a check.
pub const CHECK_BEGIN: u32 = ioc(READ, 0xf7, 6, 8);

/// Number of the ioctl that tells what a check has found.
pub const CHECK_NEWS: u32 = ioc(READ, 0xf7, 7, NEWS_BYTES as u32);

const GOES_ON: u32 = 0;
const ENDED: u32 = 1;
const FAILED: u32 = 2;

const IS_COMPLETE: u32 = 1;
const WAS_REPLAYED: u32 = 2;

/// Bytes of findings that wait to be fetched, before the check waits, too.
const WAITING_BYTES_MAX: usize = 64 << 10;
/// Bytes of a line, at most: one always fits into an answer.
const LINE_BYTES_MAX: usize = 4096;
/// Between two questions of a client that was told nothing new.
const PAUSE: Duration = Duration::from_millis(20);

/// How a check of a mount ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It came to this.
    Ended(CheckSummary),
    /// It could not be done, for this reason.
    Failed(String),
    /// Who was told of findings wanted no more of them.
    LeftOff,
}

/// Checks the file system whose root is the open `directory`, on a mount that this crate serves, while
/// it is in use. `event` is told of findings and progress; if it breaks, the check ends.
///
/// # Errors
/// As the ioctls in the module's documentation; ENOTTY if the directory is not on such a mount; EIO for
/// an answer that makes no sense.
pub fn check(
    directory: impl AsFd,
    mut event: impl FnMut(CheckEvent<'_>) -> ControlFlow<()>,
) -> io::Result<Checked> {
    let directory = directory.as_fd();
    pagefence_host_memory::fuse_ioctl(directory, CHECK_BEGIN, &mut [0; 8])?;
    let mut before = Vec::new();
    loop {
        let mut bytes = vec![0; NEWS_BYTES];
        pagefence_host_memory::fuse_ioctl(directory, CHECK_NEWS, &mut bytes)?;
        let news = News::parse(&bytes).ok_or(rustix::io::Errno::IO)?;
        if let State::Failed = news.state {
            return Ok(Checked::Failed(news.text.to_owned()));
        }
        let mut told = ControlFlow::Continue(());
        for line in news.text.lines() {
            told = event(CheckEvent::Finding(&line));
            if told.is_break() {
                return Ok(Checked::LeftOff);
            }
        }
        let is_new = bytes.get(8..STAGE.end) != before.get(8..STAGE.end);
        if is_new && news.progress.total > 0 {
            told = event(CheckEvent::Progress(CheckProgress {
                stage: &news.progress.stage,
                done: news.progress.done,
                total: news.progress.total,
            }));
        }
        match news.state {
            State::Ended(summary) => return Ok(Checked::Ended(summary)),
            _ if told.is_break() => return Ok(Checked::LeftOff),
            _ if news.text.is_empty() => std::thread::sleep(PAUSE),
            _ => {}
        }
        before = bytes;
    }
}

/// An answer to [`CHECK_NEWS`].
struct News<'a> {
    progress: Progress,
    state: State,
    text: &'a str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Progress {
    stage: String,
    done: u64,
    total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    GoesOn,
    Ended(CheckSummary),
    Failed,
}

impl<'a> News<'a> {
    /// Nothing if it makes no sense.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let number = |at| field(bytes, at).ok();
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let stage = bytes.get(STAGE)?.split(|byte| *byte == 0).next()?;
        let flags = word(96)?;
        let state = match word(4)? {
            GOES_ON => State::GoesOn,
            ENDED => State::Ended(CheckSummary {
                findings: number(56)?,
                inodes: number(64)?,
                directories: number(72)?,
                orphans: number(80)?,
                blocks: number(88)?,
                is_complete: flags & IS_COMPLETE != 0,
                was_replayed: flags & WAS_REPLAYED != 0,
            }),
            FAILED => State::Failed,
            _ => return None,
        };
        let length = usize::try_from(word(0)?).ok()?;
        let text = bytes.get(HEADER_BYTES..)?.get(..length)?;
        Some(Self {
            progress: Progress {
                stage: std::str::from_utf8(stage).ok()?.to_owned(),
                done: number(8)?,
                total: number(16)?,
            },
            state,
            text: std::str::from_utf8(text).ok()?,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        let (state, summary) = match self.state {
            State::GoesOn => (GOES_ON, CheckSummary::default()),
            State::Ended(summary) => (ENDED, summary),
            State::Failed => (FAILED, CheckSummary::default()),
        };
        bytes[..4].copy_from_slice(&(self.text.len() as u32).to_ne_bytes());
        bytes[4..8].copy_from_slice(&state.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.progress.done.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.progress.total.to_ne_bytes());
        let stage = self.progress.stage.as_bytes();
        // The last byte stays NUL.
        let stage = &stage[..stage.len().min(STAGE.len() - 1)];
        bytes[STAGE.start..STAGE.start + stage.len()].copy_from_slice(stage);
        let numbers = [
            summary.findings,
            summary.inodes,
            summary.directories,
            summary.orphans,
            summary.blocks,
        ];
        for (slot, number) in bytes[STAGE.end..].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_ne_bytes());
        }
        let flags = (u32::from(summary.is_complete) * IS_COMPLETE)
            | (u32::from(summary.was_replayed) * WAS_REPLAYED);
        bytes[96..100].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(self.text.as_bytes());
        bytes
    }
}

/// What a check has to tell, and who asked for it. A leaf.
#[derive(Debug, Default)]
struct Talk {
    told: Mutex<Told>,
    /// For the check: there is room again, or nobody listens any more.
    fetched: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    /// Findings that were not fetched, a line each.
    text: String,
    progress: Progress,
    /// How it ended.
    end: Option<Result<CheckSummary, String>>,
    is_left: bool,
}

impl Talk {
    fn take(&self, event: CheckEvent<'_>) -> ControlFlow<()> {
        let mut told = self.told.lock();
        match event {
            CheckEvent::Finding(finding) => {
                let line = cut(finding.to_string(), LINE_BYTES_MAX - 1);
                while told.text.len() + line.len() >= WAITING_BYTES_MAX && !told.is_left {
                    self.fetched.wait(&mut told);
                }
                // Writing to a string can't fail.
                let _ = writeln!(told.text, "{line}");
            }
            CheckEvent::Progress(progress) => {
                told.progress = Progress {
                    stage: progress.stage.to_string(),
                    done: progress.done,
                    total: progress.total,
                };
            }
        }
        match told.is_left {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn leave(&self) {
        self.told.lock().is_left = true;
        self.fetched.notify_all();
    }

    fn has_ended(&self) -> bool {
        self.told.lock().end.is_some()
    }

    /// What there is to tell, as [`CHECK_NEWS`] answers it.
    fn fetch(&self) -> Vec<u8> {
        let mut told = self.told.lock();
        let room = NEWS_BYTES - HEADER_BYTES;
        let whole_lines = match told.text.len() <= room {
            true => told.text.len(),
            false => told.text.as_bytes()[..room]
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1),
        };
        let rest = told.text.split_off(whole_lines);
        let text = std::mem::replace(&mut told.text, rest);
        let is_all = told.text.is_empty();
        let mut news = News {
            progress: told.progress.clone(),
            state: State::GoesOn,
            text: &text,
        };
        match &told.end {
            Some(Ok(summary)) if is_all => news.state = State::Ended(*summary),
            // What it found before is worth nothing without an end, but is told first.
            Some(Err(why)) if is_all && text.is_empty() => {
                news.state = State::Failed;
                news.text = why;
            }
            _ => {}
        }
        let answer = news.encode();
        drop(told);
        self.fetched.notify_all();
        answer
    }
}

/// Why a check could not be done.
fn reason(error: &Error) -> String {
    match error {
        Error::Io(error) => error.to_string(),
        Error::Busy => "it is being checked already".to_owned(),
        other => other.to_string(),
    }
}

/// At most `most` bytes of a text.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let at = (0..=most).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(at.unwrap_or(0));
    }
    text
}

/// The check that goes on, or went on last.
#[derive(Default)]
pub(crate) struct Checks(Mutex<Option<Running>>);

struct Running {
    /// The open directory that it belongs to.
    handle: FileHandle,
    talk: Arc<Talk>,
    thread: JoinHandle<()>,
}

impl Checks {
    /// The open directory was closed: a check that belongs to it ends, soon.
    pub(crate) fn closed(&self, handle: FileHandle) {
        if let Some(running) = &*self.0.lock()
            && running.handle == handle
        {
            running.talk.leave();
        }
    }

    /// Ends what goes on, and waits for that.
    pub(crate) fn end(&self) {
        let running = self.0.lock().take();
        if let Some(running) = running {
            running.talk.leave();
            if running.thread.join().is_err() {
                tracing::error!("a check panicked");
            }
        }
    }
}

impl<F: FileSystem> Dispatch<F> {
    /// Answers [`CHECK_BEGIN`].
    pub(crate) fn begin_check(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
    ) -> Result<Vec<u8>, Errno> {
        if self.nodes.inode(node)? != self.fs.root() {
            return Err(Errno::EINVAL);
        }
        // Of the directory, and no file's of the same number: it is the root's.
        let _open = self.directories.get(handle.0).ok_or(Errno::EBADF)?;
        let own = rustix::process::geteuid().as_raw();
        if self.credentials(request).uid != 0 && request.uid() != own {
            return Err(Errno::EPERM);
        }
        let mut current = self.checks.0.lock();
        if current
            .as_ref()
            .is_some_and(|running| !running.talk.has_ended())
        {
            return Err(Errno::EBUSY);
        }
        let talk = Arc::new(Talk::default());
        let (fs, to) = (Arc::clone(&self.fs), Arc::clone(&talk));
        let body = move || {
            let ended = catch_unwind(AssertUnwindSafe(|| {
                fs.check(&mut |event| to.take(event))
                    .map_err(|error| cut(reason(&error), LINE_BYTES_MAX))
            }));
            let defect = || Err("a defect of pagefence was met".to_owned());
            // The file system goes first: who sees the end may unmount.
            drop(fs);
            to.told.lock().end = Some(ended.unwrap_or_else(|_| defect()));
        };
        let thread = thread::spawn("pagefence-check", body).map_err(|_| Errno::ENOMEM)?;
        *current = Some(Running {
            handle,
            talk,
            thread,
        });
        Ok(vec![0; 8])
    }

    /// Answers [`CHECK_NEWS`].
    pub(crate) fn check_news(&self, node: INodeNo, handle: FileHandle) -> Result<Vec<u8>, Errno> {
        let is_root = self.nodes.inode(node)? == self.fs.root();
        let talk = match &*self.checks.0.lock() {
            Some(running) if is_root && running.handle == handle => Arc::clone(&running.talk),
            _ => return Err(Errno::EBADF),
        };
        Ok(talk.fetch())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_tell_direction_and_size() {
        assert_eq!(CHECK_BEGIN, 0x8008_f706);
        assert_eq!(CHECK_NEWS, 0xbfe0_f707);
    }

    fn tell(talk: &Talk, line: &str) {
        assert!(talk.take(CheckEvent::Finding(&line)).is_continue());
    }

    #[test]
    fn what_is_told_arrives_in_whole_lines() {
        let talk = Talk::default();
        let line = "x".repeat(999);
        (0..40).for_each(|_| tell(&talk, &line));
        tell(&talk, &"é".repeat(LINE_BYTES_MAX));
        let stage = &"links";
        let progress = CheckProgress {
            stage,
            done: 3,
            total: 4,
        };
        assert!(talk.take(CheckEvent::Progress(progress)).is_continue());
        let summary = CheckSummary {
            findings: 41,
            is_complete: true,
            was_replayed: false,
            inodes: 7,
            directories: 6,
            orphans: 5,
            blocks: u64::MAX,
        };
        talk.told.lock().end = Some(Ok(summary));
        let mut lines = 0;
        loop {
            let bytes = talk.fetch();
            assert!(bytes.len() <= NEWS_BYTES);
            let news = News::parse(&bytes).expect("it makes sense");
            assert!(news.text.ends_with('\n'));
            assert_eq!((news.progress.done, news.progress.total), (3, 4));
            assert_eq!(news.progress.stage, "links");
            lines += news.text.lines().count();
            match news.state {
                State::GoesOn => {}
                state => {
                    assert_eq!(state, State::Ended(summary));
                    break;
                }
            }
        }
        assert_eq!(lines, 41);
    }

    #[test]
    fn a_failure_is_told_last() {
        let talk = Talk::default();
        tell(&talk, "found");
        talk.told.lock().end = Some(Err("why".to_owned()));
        let bytes = talk.fetch();
        let news = News::parse(&bytes).expect("it makes sense");
        assert_eq!((news.text, news.state), ("found\n", State::GoesOn));
        let bytes = talk.fetch();
        let news = News::parse(&bytes).expect("it makes sense");
        assert_eq!((news.text, news.state), ("why", State::Failed));
    }

    #[test]
    fn who_leaves_ends_a_check_that_waits_for_him() {
        let talk = Arc::new(Talk::default());
        let checking = Arc::clone(&talk);
        let check = thread::spawn("check", move || {
            let line = "x".repeat(1000);
            (0..).find(|_| checking.take(CheckEvent::Finding(&line)).is_break())
        })
        .expect("a thread");
        while talk.told.lock().text.len() < WAITING_BYTES_MAX - 2000 {
            thread::yield_now();
        }
        talk.leave();
        let told = check.join().expect("it ends");
        assert!(told.is_some_and(|told| told < 80), "{told:?}");
    }

    #[test]
    fn nonsense_is_no_news() {
        let mut bytes = Talk::default().fetch();
        assert!(News::parse(&bytes).is_some());
        assert!(News::parse(&bytes[..100]).is_none());
        bytes[0] = 1;
        assert!(News::parse(&bytes).is_none(), "text that is not there");
        bytes[0] = 0;
        bytes[4] = 3;
        assert!(News::parse(&bytes).is_none(), "no such state");
    }
}
