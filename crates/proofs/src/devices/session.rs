//! One run of a workload on a device of which a call fails, and what must hold all the while and
//! afterwards.

use pagefence::Options;
use pagefence::device::MemoryDevice;
use pagefence_block_io::FaultDevice;
use pagefence_block_io::fault_device::Times;
use pagefence_fs_model::files::{Operation, Tree};
use pagefence_lock_order::primitives::Arc;

use super::watched::{Failed, Watched};
use super::{CALLS, Tried, Trouble, Work};
use crate::beliefs::{Beliefs, Outcome, Refusal, perform};
use crate::crash::check::SUPERBLOCK;
use crate::crash::history::options;
use crate::crash::names;
use crate::image::Setup;
use crate::library::Library;

/// A name that no workload makes.
const PROBE: &str = "is anything changed yet";

/// A run.
pub(super) struct Session<'w> {
    work: &'w Work,
    device: Arc<FaultDevice>,
    watched: Arc<Watched>,
    beliefs: Beliefs,
    /// Failures that `Volume::sync` has told of.
    told: Failed,
    is_once: bool,
    /// Whether calls may fail until it is closed.
    lasts: bool,
    tried: Tried,
    /// Calls of each kind that were made by the workload.
    calls: [u64; 5],
}

/// What a run leaves.
pub(super) struct Left {
    pub(super) device: Arc<FaultDevice>,
    pub(super) beliefs: Beliefs,
    /// It was closed without an error.
    pub(super) is_closed: bool,
    pub(super) tried: Tried,
    /// Calls of each kind before all that is left is to look, and to close it.
    pub(super) calls: [u64; 5],
    /// Calls of each kind until it was closed.
    pub(super) calls_in_all: [u64; 5],
}

/// As the volume is opened.
pub(super) fn how_to_open(work: &Work) -> Options {
    options().discard(work.discards)
}

impl<'w> Session<'w> {
    /// On a copy of the image, in this trouble.
    pub(super) fn new(
        setup: &Setup,
        work: &'w Work,
        image: &MemoryDevice,
        (trouble, lasts): (Trouble, bool),
        swallows: bool,
    ) -> Self {
        let device = Arc::new(FaultDevice::new(image, work.seed));
        device.set_atomic(SUPERBLOCK);
        let mut shrink = None;
        match trouble {
            Trouble::None => {}
            Trouble::Fault(fault) => device.fail(fault),
            Trouble::Shrink(end) => shrink = Some(end),
        }
        let is_once = matches!(trouble, Trouble::Fault(fault) if fault.times == Times::Once);
        Self {
            work,
            watched: Arc::new(Watched::new(Arc::clone(&device), shrink, swallows)),
            device,
            beliefs: Beliefs::new(Tree::new(setup.format())),
            told: Failed::default(),
            is_once,
            lasts,
            tried: Tried::default(),
            calls: [0; 5],
        }
    }

    /// Does all of the workload, as far as it goes.
    ///
    /// # Errors
    /// What is not as it has to be.
    pub(super) fn run(mut self) -> Result<Left, String> {
        let opened = Library::open(Arc::clone(&self.watched) as _, how_to_open(self.work));
        self.beliefs.is_exact = self.watched.failed().calls == 0;
        let mut library = match opened {
            Ok(library) => library,
            Err(error) if self.beliefs.is_exact => return Err(error),
            // It is as it was before.
            Err(_) => return Ok(self.left(false)),
        };
        for operation in &self.work.operations {
            if self.beliefs.are_too_many() {
                self.tried.cut_short += 1;
                break;
            }
            if *operation == Operation::Reopen {
                match self.reopen(library)? {
                    Some(opened) => library = opened,
                    None => return Ok(self.left(false)),
                }
                continue;
            }
            match operation {
                Operation::Sync { path } | Operation::SyncData { path } => {
                    self.sync(&mut library, operation, path)?;
                }
                Operation::SyncAll => self.sync_all(&mut library)?,
                _ => drop(self.step(&mut library, operation)?),
            }
        }
        self.calls = CALLS.map(|call| self.device.calls(call));
        if !self.lasts {
            // Whatever happened, it goes on now as it has to.
            self.heal();
        }
        self.sync_all(&mut library)?;
        self.probe(&mut library)?;
        match names::of_volume(library.volume()) {
            Ok(shown) if !self.beliefs.is_aborted => self
                .beliefs
                .check_now(&shown)
                .map_err(|error| format!("before it is closed: {error}"))?,
            Ok(_) => {}
            Err(_) if self.lasts && self.watched.failed().calls > 0 => {}
            Err(error) => return Err(format!("before it is closed: {error}")),
        }
        let before = self.watched.failed();
        let closed = self.close(&mut library)?;
        drop(library);
        if self.beliefs.is_aborted && closed && before.metadata > 0 {
            return Err("nothing was changed any more, and closing did not say so".to_owned());
        }
        if closed && self.watched.failed().metadata > before.metadata {
            return Err("metadata could not be written, and closing did not say so".to_owned());
        }
        Ok(self.left(closed))
    }

    /// Nothing fails any more.
    fn heal(&mut self) {
        self.watched.heal();
    }

    fn left(mut self, is_closed: bool) -> Left {
        let calls_in_all = CALLS.map(|call| self.device.calls(call));
        self.heal();
        self.tried.hit += u64::from(self.watched.failed().calls > 0);
        Left {
            device: self.device,
            beliefs: self.beliefs,
            is_closed,
            tried: self.tried,
            calls: self.calls,
            calls_in_all,
        }
    }

    /// Does one operation.
    fn step(&mut self, library: &mut Library, operation: &Operation) -> Result<Outcome, String> {
        let outcome = perform(library, operation);
        self.take(operation, &outcome)?;
        Ok(outcome)
    }

    fn take(&mut self, operation: &Operation, outcome: &Outcome) -> Result<(), String> {
        self.beliefs.is_exact = self.watched.failed().calls == 0;
        let was_aborted = self.beliefs.is_aborted;
        self.beliefs.take(operation, outcome)?;
        self.tried.aborts += u64::from(self.beliefs.is_aborted && !was_aborted);
        if let Err(refusal) = &outcome.answer {
            self.tried.errors += u64::from(refusal.is_of_device);
        }
        Ok(())
    }

    /// fsync, or fdatasync, of a file that is open twice: what is lost is told to each, once.
    fn sync(
        &mut self,
        library: &mut Library,
        operation: &Operation,
        path: &str,
    ) -> Result<(), String> {
        let before = self.watched.failed();
        let open = || library.volume().open_file(path);
        let (one, other) = match (open(), open()) {
            (Ok(one), Ok(other)) => (one, other),
            (Err(error), _) | (_, Err(error)) => {
                let outcome = refused(Refusal::from(&error));
                return self.take(operation, &outcome);
            }
        };
        let mut heard = Vec::new();
        for file in [&one, &other, &one, &other] {
            let synced = match operation {
                Operation::SyncData { .. } => file.sync_data(),
                _ => file.sync_all(),
            };
            heard.push(synced.is_ok());
            let outcome = match &synced {
                Ok(()) => done(),
                Err(error) => refused(Refusal::from(error)),
            };
            self.take(operation, &outcome)?;
        }
        let after = self.watched.failed();
        let lost_data = after.data > before.data
            && after.metadata == before.metadata
            && !self.beliefs.is_aborted;
        if lost_data {
            if heard[0] || heard[1] {
                return Err(format!(
                    "{path:?}: data was lost, and of two files that were open these heard nothing: {heard:?}"
                ));
            }
            self.tried.told += 2;
            if self.is_once && !(heard[2] && heard[3]) {
                return Err(format!("{path:?}: it was told twice: {heard:?}"));
            }
        }
        Ok(())
    }

    fn sync_all(&mut self, library: &mut Library) -> Result<(), String> {
        let outcome = self.step(library, &Operation::SyncAll)?;
        self.heard(outcome.answer.is_ok(), "Volume::sync")
    }

    /// Whoever makes everything durable says once that data is lost.
    fn heard(&mut self, is_ok: bool, who: &str) -> Result<(), String> {
        let failed = self.watched.failed();
        let is_news = failed.behind_backs > self.told.behind_backs;
        if is_ok && is_news && !self.beliefs.is_aborted {
            return Err(format!("data was lost, and {who} does not say so"));
        }
        self.told = failed;
        Ok(())
    }

    /// Where ext4 gives up, nothing changes any more; where it does not, things do.
    fn probe(&mut self, library: &mut Library) -> Result<(), String> {
        let failed = self.watched.failed();
        let create = Operation::Create {
            path: PROBE.to_owned(),
        };
        let outcome = self.step(library, &create)?;
        let gave_up = matches!(&outcome.answer, Err(refusal) if refusal.is_read_only);
        if failed.metadata > 0 && !gave_up {
            return Err(format!(
                "metadata or a flush failed, and things go on: {outcome:?}"
            ));
        }
        let failed = self.watched.failed();
        let only_data = failed.calls == failed.data;
        if only_data && outcome.answer.is_err() {
            return Err(format!(
                "only data was lost, and nothing is changed any more: {outcome:?}"
            ));
        }
        Ok(())
    }

    fn close(&mut self, library: &mut Library) -> Result<bool, String> {
        let closed = library.close();
        let outcome = match &closed {
            Ok(()) => done(),
            Err(error) => refused(Refusal::from(error)),
        };
        self.take(&Operation::SyncAll, &outcome)?;
        self.heard(closed.is_ok(), "closing")?;
        Ok(closed.is_ok())
    }

    /// Closes the volume and opens it again: what is read from then on comes from the device.
    fn reopen(&mut self, mut library: Library) -> Result<Option<Library>, String> {
        if !self.close(&mut library)? {
            return Ok(None);
        }
        drop(library);
        self.take(&Operation::Reopen, &done())?;
        let opened = Library::open(Arc::clone(&self.watched) as _, how_to_open(self.work));
        self.beliefs.is_exact = self.watched.failed().calls == 0;
        match opened {
            Ok(library) => Ok(Some(library)),
            Err(error) if self.beliefs.is_exact => Err(error),
            Err(_) => Ok(None),
        }
    }
}

fn done() -> Outcome {
    Outcome::new(Ok(pagefence_fs_model::files::Answer::Done))
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome::new(Err(refusal))
}
