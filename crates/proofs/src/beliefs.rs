//! What a volume may hold when some of its operations failed: all trees that what it answered leaves
//! possible, and for each of them which of its past is surely durable.

mod bytes;
mod events;
mod perform;
mod short;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

use pagefence_fs_model::files::{Answer, Failure, Kind, NodeNo, Operation, Tree};

use crate::crash::history::{disturbs, touched};
use crate::crash::names::{self, Names};
use bytes::{Bytes, Event};
use events::{events, is_of_range, shortened, size};
pub(crate) use perform::{is_direct, perform};

/// Everything a volume shows: looks and bytes by path.
pub(crate) type Shown = BTreeMap<String, (String, Vec<u8>)>;

/// Trees that are kept apart, at most.
const CANDIDATES_MAX: usize = 32;

/// What came of an operation.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How long files were for which this counts, by path, before it was done.
    pub(crate) sizes: Vec<(String, u64)>,
    /// What the files have whose ranges could not be changed for want of space.
    pub(crate) left: Vec<(String, Vec<u8>)>,
    /// Bytes that a write took, all of them unless it failed.
    pub(crate) accepted: usize,
    pub(crate) answer: Result<Answer, Refusal>,
}

impl Outcome {
    /// One that is no write.
    pub(crate) fn new(answer: Result<Answer, Refusal>) -> Self {
        Self {
            sizes: Vec::new(),
            left: Vec::new(),
            accepted: 0,
            answer,
        }
    }

    /// For whoever reads of a failure.
    fn words(&self) -> String {
        let accepted = self.accepted;
        match &self.answer {
            Ok(answer) => format!("{answer:.300?}, {accepted} bytes written"),
            Err(refusal) => format!("{:?}, {accepted} bytes written", refusal.text),
        }
    }
}

/// An error.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// What it is for the model, if it has it.
    pub(crate) failure: Option<Failure>,
    /// Whether the device, or a lack of space, may be the reason.
    pub(crate) is_of_device: bool,
    /// Whether it says that nothing is changed any more.
    pub(crate) is_read_only: bool,
    pub(crate) text: String,
}

/// One course of events.
#[derive(Clone)]
struct Candidate {
    tree: Tree,
    files: BTreeMap<NodeNo, Bytes>,
    /// The names after each step; the first are those before any.
    past: Vec<Rc<Names>>,
    /// The step after which each node was touched last.
    touched: BTreeMap<NodeNo, usize>,
    /// This many steps are durable.
    least: usize,
    /// Files that are durable under names that nobody touched since.
    sure: BTreeMap<String, NodeNo>,
}

/// See the module's documentation.
pub(crate) struct Beliefs {
    candidates: Vec<Candidate>,
    /// Whether no call of the device has failed so far: then everything is as the model says.
    pub(crate) is_exact: bool,
    /// Whether the volume said that it changes nothing any more.
    pub(crate) is_aborted: bool,
}

impl Beliefs {
    /// Nothing was done to this tree yet, and it is durable.
    pub(crate) fn new(tree: Tree) -> Self {
        let names = Rc::new(names::of_model(&tree));
        Self {
            candidates: vec![Candidate {
                tree,
                files: BTreeMap::new(),
                past: vec![names],
                touched: BTreeMap::new(),
                least: 0,
                sure: BTreeMap::new(),
            }],
            is_exact: true,
            is_aborted: false,
        }
    }

    /// Whether more trees are possible than are told apart.
    pub(crate) fn are_too_many(&self) -> bool {
        self.candidates.len() > CANDIDATES_MAX
    }

    /// Takes in what came of an operation.
    ///
    /// # Errors
    /// None of what was possible gives this answer.
    pub(crate) fn take(&mut self, operation: &Operation, outcome: &Outcome) -> Result<(), String> {
        let mut next: Vec<Candidate> = Vec::new();
        let mut wrong = String::new();
        for candidate in &self.candidates {
            let mut add = |candidate: Candidate| {
                if !next.iter().any(|other| other.is_same(&candidate)) {
                    next.push(candidate);
                }
            };
            match candidate.after(operation, outcome, self.is_exact) {
                Ok(after) => after.into_iter().for_each(&mut add),
                Err(error) => wrong = error,
            }
        }
        if let Err(refusal) = &outcome.answer
            && refusal.is_read_only
        {
            self.is_aborted = true;
        }
        if !next.is_empty() {
            self.candidates = next;
            return Ok(());
        }
        if self.is_aborted && !matches!(operation, Operation::Read { .. }) {
            // What was half done when it gave up may be seen until the next mount.
            return Ok(());
        }
        if let (true, Operation::Read { offset, length, .. }, Ok(Answer::Bytes(found))) =
            (self.is_aborted, operation, &outcome.answer)
            && self.is_of_some_file(*offset, *length, found)
        {
            return Ok(());
        }
        Err(format!(
            "{operation:.300?}: expected {wrong}, found {}",
            outcome.words()
        ))
    }

    /// Whether these bytes may be those of any file at this place.
    fn is_of_some_file(&self, offset: u64, length: usize, found: &[u8]) -> bool {
        let files = self.candidates.iter().flat_map(|one| one.files.values());
        found.is_empty()
            || files
                .into_iter()
                .any(|bytes| bytes.check_read(offset, length, found).is_ok())
    }

    /// Whether what an open volume shows is one of the trees that are possible now.
    ///
    /// # Errors
    /// It is none of them.
    pub(crate) fn check_now(&self, shown: &Shown) -> Result<(), String> {
        self.any(|candidate| candidate.check(candidate.past.len() - 1, shown, 1))
    }

    /// As [`Self::check_now`], with every byte as the model has it: nothing failed but for a lack of space, and
    /// everything is durable.
    ///
    /// # Errors
    /// It is none of them.
    pub(crate) fn check_exactly(&self, shown: &Shown) -> Result<(), String> {
        self.check_now(shown)?;
        self.any(|candidate| {
            for (path, node) in candidate.tree.paths() {
                if let Kind::File(bytes) = &candidate.tree.node(node).kind
                    && shown[&path].1 != bytes.read(0, bytes.size() as usize)
                {
                    return Err(format!("{path:?} does not hold what was taken"));
                }
            }
            Ok(())
        })
    }

    /// Whether what came back after the volume was closed, or not closed properly, is one of the trees that
    /// may be durable, where a journal keeps operations in order.
    ///
    /// # Errors
    /// It is none of them.
    pub(crate) fn check_recovered(&self, shown: &Shown) -> Result<(), String> {
        self.any(|candidate| {
            let mut failure = None;
            for kept in (candidate.least..candidate.past.len()).rev() {
                match candidate.check(kept, shown, 1) {
                    Ok(()) => return Ok(()),
                    Err(error) if candidate.looks_like(kept, shown) => {
                        failure = Some(format!("names as after step {kept}: {error}"));
                    }
                    Err(error) => {
                        failure.get_or_insert_with(|| {
                            let (least, last) = (candidate.least, candidate.past.len() - 1);
                            format!("names as after none of the steps {least} to {last}; {error}")
                        });
                    }
                }
            }
            failure.map_or(Ok(()), Err)
        })
    }

    /// Whether what e2fsck made of a volume without a journal has what was made durable.
    ///
    /// # Errors
    /// Something is lost.
    pub(crate) fn check_mended(&self, shown: &Shown, unit: u64) -> Result<(), String> {
        self.any(|candidate| candidate.check_sure(shown, unit))
    }

    fn any(&self, check: impl Fn(&Candidate) -> Result<(), String>) -> Result<(), String> {
        let mut failure = String::new();
        for candidate in &self.candidates {
            match check(candidate) {
                Ok(()) => return Ok(()),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

impl Candidate {
    /// Whether nothing tells the two apart any more.
    fn is_same(&self, other: &Self) -> bool {
        let looks = |one: &Names, other: &Names| {
            one.len() == other.len()
                && one
                    .iter()
                    .zip(other)
                    .all(|(one, other)| one.0 == other.0 && one.1.looks == other.1.looks)
        };
        self.least == other.least
            && self.sure == other.sure
            && self.files == other.files
            && self.past.len() == other.past.len()
            && self
                .past
                .iter()
                .zip(&other.past)
                .all(|(one, other)| Rc::ptr_eq(one, other) || looks(one, other))
    }

    /// What it may be after an operation that gave this; the error is what it should have given.
    fn after(
        &self,
        operation: &Operation,
        outcome: &Outcome,
        is_exact: bool,
    ) -> Result<Vec<Self>, String> {
        self.as_long(&outcome.sizes, is_exact)?
            .after_as_long(operation, outcome, is_exact)
    }

    /// With files as long as they are seen to be.
    fn as_long(&self, sizes: &[(String, u64)], is_exact: bool) -> Result<Cow<'_, Self>, String> {
        let mut seen = Cow::Borrowed(self);
        for (path, found) in sizes {
            let Ok(node) = self.tree.node_at(path, true) else {
                continue;
            };
            let expected = size(&self.tree, node);
            if expected.is_none_or(|expected| expected == *found) {
                continue;
            }
            let known = self.files.get(&node).cloned().unwrap_or_default();
            if is_exact || !known.may_be_long(*found) {
                return Err(format!(
                    "{path:?} to be {expected:?} bytes long, not {found}"
                ));
            }
            let cut = Operation::SetSize {
                path: path.clone(),
                size: *found,
            };
            let done = seen.to_mut().tree.apply(&cut);
            done.map_err(|error| format!("{path:?}: {error:?}"))?;
        }
        Ok(seen)
    }

    fn after_as_long(
        &self,
        operation: &Operation,
        outcome: &Outcome,
        is_exact: bool,
    ) -> Result<Vec<Self>, String> {
        let expected = self.tree.clone().apply(operation);
        let refusal = match (&outcome.answer, &expected) {
            (Ok(found), Ok(expected)) => {
                if !is_exact && let Some((node, offset, length)) = self.read_of(operation) {
                    let Answer::Bytes(found) = found else {
                        return Err("bytes".to_owned());
                    };
                    let known = self.files.get(&node).cloned().unwrap_or_default();
                    known.check_read(offset, length, found)?;
                } else if found != expected {
                    return Err(format!("{expected:.200?}"));
                }
                return Ok(vec![self.done(operation)]);
            }
            (Ok(_), Err(expected)) => return Err(format!("{expected:?}")),
            (Err(refusal), Err(expected)) if refusal.failure == Some(*expected) => {
                return Ok(vec![self.undone(operation)]);
            }
            (Err(refusal), expected) => {
                let is_possible = !is_exact || refusal.failure == Some(Failure::NoSpace);
                if !(refusal.is_of_device && is_possible) {
                    return Err(format!("{expected:.200?}"));
                }
                refusal
            }
        };
        let mut after = self.half_done(operation, outcome.accepted, refusal);
        if is_exact && is_of_range(operation) {
            for after in &mut after {
                short::adopt(&mut after.tree, operation, &outcome.left)?;
            }
        }
        Ok(after)
    }

    /// What it may be after an operation that the device made fail.
    fn half_done(&self, operation: &Operation, accepted: usize, refusal: &Refusal) -> Vec<Self> {
        use Operation as O;
        let mut undone = self.undone(operation);
        match operation {
            O::Read { .. } | O::ReadHeld { .. } | O::Hold { .. } | O::LetGo { .. } | O::Reopen => {
                vec![undone]
            }
            O::Sync { path } | O::SyncData { path } => {
                if let Ok(node) = self.tree.node_at(path, true) {
                    undone.file(node).doubt();
                }
                vec![undone]
            }
            O::SyncAll => {
                undone.files.values_mut().for_each(Bytes::doubt);
                vec![undone]
            }
            O::Write { .. } | O::Append { .. } | O::WriteHeld { .. } => {
                let rest = events(self, operation);
                if accepted > 0 {
                    undone = self.done(&shortened(operation, accepted));
                }
                // A lack of space takes nothing of what was taken, and writes nothing of the rest.
                if refusal.failure != Some(Failure::NoSpace) {
                    undone.in_doubt(rest);
                }
                vec![undone]
            }
            _ if is_of_range(operation) => {
                // Any part of it is done. How long the files are is seen when it counts.
                undone.in_doubt(events(self, operation));
                vec![undone]
            }
            _ => {
                // Nothing of it is done, or all, or it is given up with everything else.
                undone.in_doubt(events(self, operation));
                let is_possible = self.tree.clone().apply(operation).is_ok();
                if is_possible && refusal.failure != Some(Failure::NoSpace) {
                    vec![self.done(operation), undone]
                } else {
                    vec![undone]
                }
            }
        }
    }

    /// Some of this may have happened, and what was to be written before may be lost.
    fn in_doubt(&mut self, events: Vec<(NodeNo, Event)>) {
        for (node, event) in events {
            self.file(node).push(event, true);
            self.file(node).doubt();
        }
    }

    fn file(&mut self, node: NodeNo) -> &mut Bytes {
        self.files.entry(node).or_default()
    }

    /// The operation was done.
    fn done(&self, operation: &Operation) -> Self {
        let mut after = self.clone();
        // What is not possible is not done: a name that another course of events has.
        if after.tree.apply(operation).is_err() {
            return self.undone(operation);
        }
        for (node, event) in events(self, operation) {
            after.file(node).push(event, false);
        }
        let step = after.past.len();
        for node in touched(&self.tree, &after.tree, operation) {
            after.touched.insert(node, step);
        }
        match operation {
            Operation::Sync { path } => {
                let node = self.tree.node_at(path, true);
                let node = node.expect("what the model did, it found");
                after.file(node).settle();
                let touched = after.touched.get(&node).copied();
                after.least = after.least.max(touched.unwrap_or(0));
                for (path, found) in self.tree.paths() {
                    if found == node {
                        after.sure.insert(path, node);
                    }
                }
            }
            Operation::SyncData { path } => {
                let node = self.tree.node_at(path, true);
                let node = node.expect("what the model did, it found");
                after.file(node).settle();
                // It is there, however it is called.
                let has = |names: &Rc<Names>| names.values().any(|named| named.node == node);
                let born = after.past.iter().position(has);
                after.least = after.least.max(born.unwrap_or(0));
            }
            Operation::SyncAll | Operation::Reopen => {
                after.files.values_mut().for_each(Bytes::settle);
                after.least = step - 1;
                for (path, node) in self.tree.paths() {
                    if matches!(self.tree.node(node).kind, Kind::File(_)) {
                        after.sure.insert(path, node);
                    }
                }
            }
            _ => {}
        }
        after.sure.retain(|path, _| !disturbs(operation, path));
        after.past.push(Rc::new(names::of_model(&after.tree)));
        after
    }

    /// The operation failed and changed nothing.
    fn undone(&self, operation: &Operation) -> Self {
        let mut after = self.clone();
        after.sure.retain(|path, _| !disturbs(operation, path));
        let names = Rc::clone(after.past.last().expect("there is a first"));
        after.past.push(names);
        after
    }

    /// What it reads: which file, where, and how much.
    fn read_of(&self, operation: &Operation) -> Option<(NodeNo, u64, usize)> {
        match operation {
            Operation::Read {
                path,
                offset,
                length,
            } => Some((self.tree.node_at(path, true).ok()?, *offset, *length)),
            Operation::ReadHeld {
                slot,
                offset,
                length,
            } => Some((self.tree.held(*slot)?, *offset, *length)),
            _ => None,
        }
    }

    fn looks_like(&self, kept: usize, shown: &Shown) -> bool {
        let names = &self.past[kept];
        names.len() == shown.len()
            && names
                .iter()
                .zip(shown)
                .all(|(one, other)| one.0 == other.0 && one.1.looks == other.1.0)
    }

    /// Holds what is shown against the names after step `kept`, and the bytes of those files.
    fn check(&self, kept: usize, shown: &Shown, unit: u64) -> Result<(), String> {
        if !self.looks_like(kept, shown) {
            return Err(difference(&self.past[kept], shown));
        }
        for (path, named) in self.past[kept].iter().filter(|(_, named)| named.is_file) {
            let known = self.files.get(&named.node).cloned().unwrap_or_default();
            known
                .check(&shown[path].1, unit)
                .map_err(|error| format!("{path:?}: {error}"))?;
        }
        Ok(())
    }

    fn check_sure(&self, shown: &Shown, unit: u64) -> Result<(), String> {
        for (path, node) in &self.sure {
            let known = self.files.get(node).cloned().unwrap_or_default();
            if let Some((_, bytes)) = shown.get(path) {
                let checked = known.check(bytes, unit);
                checked.map_err(|error| format!("{path:?}: {error}"))?;
                continue;
            }
            // A block of names that is written in part loses some: e2fsck finds the files, if there
            // are bytes in them.
            let is_found = known.check(&[], unit).is_ok()
                || shown.iter().any(|(path, (looks, bytes))| {
                    path.starts_with("lost+found/")
                        && looks.starts_with("file ")
                        && known.check(bytes, unit).is_ok()
                });
            if !is_found {
                return Err(format!("{path:?} is lost"));
            }
        }
        Ok(())
    }
}

/// Some paths that are not what they were.
fn difference(names: &Names, shown: &Shown) -> String {
    let mut differences = Vec::new();
    for (path, named) in names {
        match shown.get(path) {
            Some((looks, _)) if *looks == named.looks => {}
            other => differences.push(format!(
                "{path:?} is to be {:?}, is {:?}",
                named.looks,
                other.map(|(looks, _)| looks)
            )),
        }
    }
    let more = shown.iter().filter(|(path, _)| !names.contains_key(*path));
    differences.extend(more.map(|(path, (looks, _))| format!("{path:?} is {looks:?}")));
    differences.truncate(4);
    differences.join("; ")
}
