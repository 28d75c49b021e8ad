//! One run of a workload on a fault device, and what is promised of it at each moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pagefence::Options;
use pagefence::device::Device;
use pagefence_block_io::fault_device::{FaultDevice, Trace};
use pagefence_fs_model::files::{Answer, Bytes, Kind, NodeNo, Operation, RenameHow, Tree};

use super::How;
use super::expected::{Change, Expected};
use super::log::{self, Log};
use super::names::{self, Names};
use crate::image::Setup;
use crate::library::{Library, brief};

/// Characters of an operation that are shown.
const SHOWN: usize = 120;

/// An operation, and the steps of the trace between which it was done.
pub(crate) struct Step {
    pub(crate) operation: Operation,
    pub(crate) begun: usize,
    pub(crate) done: usize,
    /// Files whose inode it changed, or one of whose names.
    touched: Vec<NodeNo>,
}

struct Changed {
    step: usize,
    change: Change,
    after: Bytes,
}

/// A run. Operation `i` is done between `names[i]` and `names[i + 1]`.
pub(crate) struct History {
    pub(crate) steps: Vec<Step>,
    pub(crate) names: Vec<Names>,
    block_size: u32,
    /// Changes of a file's bytes, by the operation, with what the file holds behind it.
    changes: BTreeMap<NodeNo, Vec<Changed>>,
    /// Files and directories that were made durable, and by which operations.
    synced: BTreeMap<NodeNo, Vec<usize>>,
    /// Files whose data was made durable.
    data_synced: BTreeMap<NodeNo, Vec<usize>>,
    synced_all: Vec<usize>,
    /// Files that were renamed over others.
    replacing: BTreeMap<NodeNo, Vec<usize>>,
}

/// How the device of a run is wrapped: tests of this proof take flushes away.
pub type Wrap = fn(Arc<FaultDevice>) -> Arc<dyn Device>;

impl History {
    /// Does it all, and gives what the device saw of it. With `worn` that log is brought near its end
    /// before.
    pub(crate) fn record(
        setup: &Setup,
        device: &Arc<FaultDevice>,
        how: How,
        worn: Option<Log>,
        operations: Vec<Operation>,
    ) -> Result<(Self, Trace), String> {
        let mut library = Library::open((how.wrap)(Arc::clone(device)), options())?;
        // From here on: opened, and clean but for what opening wrote.
        let volume = library.volume();
        volume
            .sync()
            .and_then(|()| worn.map_or(Ok(()), |log| log::wear(log, volume, device)))
            .map_err(|error| error.to_string())?;
        device.start_trace();
        let mut tree = Tree::new(setup.format());
        let mut history = Self {
            steps: Vec::new(),
            names: vec![names::of_model(&tree)],
            block_size: setup.block_size,
            changes: BTreeMap::new(),
            synced: BTreeMap::new(),
            data_synced: BTreeMap::new(),
            synced_all: Vec::new(),
            replacing: BTreeMap::new(),
        };
        for operation in operations {
            let begun = device.trace_position();
            let found = library.apply(&operation);
            let done = device.trace_position();
            let before = tree.clone();
            let expected = tree.apply(&operation);
            if found.as_ref().ok() != expected.as_ref().ok() {
                return Err(format!(
                    "{operation:.300?}: expected {expected:.300?}, found {found:.300?}"
                ));
            }
            if expected.is_ok() {
                history.note(&before, &tree, &operation);
            }
            if how.claims_all {
                history.synced_all.push(history.steps.len());
            }
            history.names.push(names::of_model(&tree));
            // What was refused, or found nothing to do, did nothing that an fsync could wait for.
            let touched = match expected {
                Ok(Answer::Was(false)) | Err(_) => Vec::new(),
                Ok(_) => touched(&before, &tree, &operation),
            };
            history.steps.push(Step {
                operation,
                begun,
                done,
                touched,
            });
        }
        Ok((history, device.take_trace().expect("it was started")))
    }

    fn note(&mut self, before: &Tree, after: &Tree, operation: &Operation) {
        use Operation as O;
        let step = self.steps.len();
        let at = |path: &str| before.node_at(path, true).ok();
        for (node, change) in changes(before, after, operation) {
            // One that was held open and let go of is gone.
            let Kind::File(bytes) = &after.node(node).kind else {
                continue;
            };
            let changed = Changed {
                step,
                change,
                after: bytes.clone(),
            };
            self.changes.entry(node).or_default().push(changed);
        }
        match operation {
            O::Sync { path } | O::SyncDirectory { path } => {
                let node = at(path).expect("it is there");
                self.synced.entry(node).or_default().push(step);
            }
            O::SyncData { path } => {
                let node = at(path).expect("it is there");
                self.data_synced.entry(node).or_default().push(step);
            }
            O::SyncAll => self.synced_all.push(step),
            O::Rename {
                to,
                how: RenameHow::Replace,
                ..
            } => {
                let replaced = before.node_at(to, false);
                let moved = after.node_at(to, false);
                if let (Ok(replaced), Ok(moved)) = (replaced, moved)
                    && replaced != moved
                    && is_file(after, moved)
                {
                    self.replacing.entry(moved).or_default().push(step);
                }
            }
            _ => {}
        }
    }

    /// The operations that were begun by this moment, a line each, with the steps of the trace between which they were done.
    pub(crate) fn shown(&self, position: usize) -> String {
        let begun = self.steps.iter().enumerate();
        let begun = begun.filter(|(_, step)| step.begun <= position);
        let lines = begun.map(|(number, step)| {
            let operation = brief(&format!("{:?}", step.operation));
            let start: String = operation.chars().take(SHOWN).collect();
            format!("{number} ({}..{}): {start}", step.begun, step.done)
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// How many operations are surely in what a crash at this moment of the trace leaves, and how
    /// many may be, where a journal keeps them in order.
    pub(crate) fn range(&self, position: usize) -> (usize, usize) {
        let most = self.steps.iter().filter(|step| step.begun <= position);
        let is_done = |step: &&usize| self.steps[**step].done <= position;
        let all = self.synced_all.iter().filter(is_done).map(|step| step + 1);
        let files = self.synced.iter().flat_map(|(node, syncs)| {
            let sync = syncs.iter().rfind(is_done).copied().unwrap_or(0);
            let before = &self.steps[..sync];
            before.iter().rposition(|step| step.touched.contains(node))
        });
        // Whose data is durable is there, however it is called.
        let born = self.data_synced.iter().filter_map(|(node, syncs)| {
            syncs.iter().find(is_done)?;
            Some(self.changes.get(node)?.first()?.step)
        });
        let sure = files.chain(born).map(|step| step + 1);
        let least = all.chain(sure).max().unwrap_or(0);
        (least, most.count())
    }

    /// What the file holds after a crash at this moment that left the first `kept` operations'
    /// names.
    pub(crate) fn expected(&self, node: NodeNo, position: usize, kept: usize) -> Expected {
        self.expected_before(node, position, kept, self.steps.len())
    }

    /// As [`Self::expected`], of a run that ended before operation `end`.
    fn expected_before(&self, node: NodeNo, position: usize, kept: usize, end: usize) -> Expected {
        let is_done = |step: &usize| self.steps[*step].done <= position;
        let of = |list: &BTreeMap<NodeNo, Vec<usize>>| list.get(&node).cloned().unwrap_or_default();
        let synced = of(&self.synced).into_iter().chain(of(&self.data_synced));
        let all = self.synced_all.iter().copied();
        let durable = synced.chain(all).filter(is_done);
        // What was renamed over something else was complete before.
        let replacing = of(&self.replacing).into_iter().filter(|step| *step < kept);
        let since = durable.chain(replacing).filter(|step| *step < end).max();
        let is_durable = |changed: &&Changed| since.is_some_and(|since| changed.step <= since);
        let changes = self.changes.get(&node).map_or(&[][..], Vec::as_slice);
        let base = changes.iter().rfind(is_durable);
        let base = base.map_or_else(
            || Bytes::new(self.block_size),
            |changed| changed.after.clone(),
        );
        let mut expected = Expected::new(base);
        for changed in changes {
            let step = changed.step;
            let is_later = step < end && self.steps[step].begun <= position;
            if is_durable(&changed) || !is_later {
                continue;
            }
            let other = match &changed.change {
                Change::Exchanged { other, .. } => {
                    Some(self.expected_before(*other, position, kept, step))
                }
                _ => None,
            };
            expected.change(&changed.change, changed.after.size(), other.as_ref());
        }
        expected
    }

    /// Files that were made durable before this moment and whose names nobody touched since: at
    /// which path they are.
    pub(crate) fn surely_there(&self, position: usize) -> Vec<(String, NodeNo)> {
        let mut sure = Vec::new();
        for (node, syncs) in &self.synced {
            let syncs = syncs.iter().chain(&self.synced_all).copied();
            let Some(sync) = syncs
                .filter(|step| self.steps[*step].done <= position)
                .max()
            else {
                continue;
            };
            for (path, named) in &self.names[sync + 1] {
                let stays = named.is_file
                    && named.node == *node
                    && self.steps[sync + 1..]
                        .iter()
                        .filter(|step| step.begun <= position)
                        .all(|step| !disturbs(&step.operation, path));
                if stays {
                    sure.push((path.clone(), *node));
                }
            }
        }
        sure
    }
}

/// Whether the operation changes a name on the way to `path`.
pub(crate) fn disturbs(operation: &Operation, path: &str) -> bool {
    let is_about_names = matches!(
        operation,
        Operation::Rename { .. }
            | Operation::Remove { .. }
            | Operation::RemoveDirectory { .. }
            | Operation::Link { .. }
    );
    let is_on_the_way = |named: &str| {
        path == named
            || path
                .strip_prefix(named)
                .is_some_and(|rest| rest.starts_with('/'))
    };
    is_about_names && operation.paths().into_iter().any(is_on_the_way)
}

/// No commit but those that are asked for, so that a seed gives the same run each time.
/// As the volume is opened: as little as can be is written without being asked for.
pub fn options() -> Options {
    Options::new()
        .write(true)
        .cache(0)
        .read_ahead(false)
        .commit_interval(Duration::from_secs(3600))
}

fn size(tree: &Tree, node: NodeNo) -> u64 {
    match &tree.node(node).kind {
        Kind::File(bytes) => bytes.size(),
        _ => 0,
    }
}

fn is_file(tree: &Tree, node: NodeNo) -> bool {
    matches!(tree.node(node).kind, Kind::File(_))
}

/// The files and directories that an operation is about. No workload does anything through a
/// symbolic link.
pub(crate) fn touched(before: &Tree, after: &Tree, operation: &Operation) -> Vec<NodeNo> {
    use Operation as O;
    let parents: &[&String] = match operation {
        O::Sync { .. }
        | O::SyncData { .. }
        | O::SyncDirectory { .. }
        | O::Hold { .. }
        | O::Read { .. } => return Vec::new(),
        // Two names of one file stay as they are.
        O::Rename { from, to, .. } if before.node_at(from, false) == before.node_at(to, false) => {
            return Vec::new();
        }
        O::Create { path }
        | O::MakeDirectory { path }
        | O::RemoveDirectory { path }
        | O::Remove { path }
        | O::Symlink { path, .. }
        | O::Fifo { path }
        | O::Link { link: path, .. } => &[path],
        O::Rename { from, to, .. } => &[from, to],
        _ => &[],
    };
    let parents = parents
        .iter()
        .map(|path| path.rsplit_once('/').map_or("", |(parent, _)| parent));
    let mut touched = Vec::new();
    for path in operation.paths().into_iter().chain(parents) {
        for tree in [before, after] {
            if let Ok(node) = tree.node_at(path, false)
                && matches!(tree.node(node).kind, Kind::File(_) | Kind::Directory(_))
            {
                touched.push(node);
            }
        }
    }
    touched
}

/// How it changes the bytes of which files.
fn changes(before: &Tree, after: &Tree, operation: &Operation) -> Vec<(NodeNo, Change)> {
    use Operation as O;
    let at = |path: &str| before.node_at(path, true).expect("it is there");
    let written = |node: NodeNo, offset: u64, length: usize, tag: u64| {
        let change = Change::Written {
            offset,
            length,
            tag,
        };
        vec![(node, change)]
    };
    match operation {
        O::Create { path } => {
            let node = after.node_at(path, true).expect("it was made");
            vec![(node, Change::Grown)]
        }
        O::Write {
            path,
            offset,
            length,
            tag,
        }
        | O::WriteDirect {
            path,
            offset,
            length,
            tag,
        }
        | O::Store {
            path,
            offset,
            length,
            tag,
        } => written(at(path), *offset, *length, *tag),
        O::Append { path, length, tag } => written(at(path), size(before, at(path)), *length, *tag),
        O::WriteHeld {
            slot,
            offset,
            length,
            tag,
        } => match before.held(*slot) {
            Some(node) => written(node, *offset, *length, *tag),
            None => Vec::new(),
        },
        O::SetSize { path, size } => vec![(at(path), Change::SetSize(*size))],
        O::Allocate { path, .. } => vec![(at(path), Change::Grown)],
        O::ChangeRange {
            path,
            offset,
            length,
            how,
        } => {
            let change = Change::Range {
                offset: *offset,
                length: *length,
                how: *how,
            };
            vec![(at(path), change)]
        }
        O::ExchangeRange {
            path,
            offset,
            other,
            other_offset,
            length,
        } => {
            let sides = [
                (at(path), *offset, at(other), *other_offset),
                (at(other), *other_offset, at(path), *offset),
            ];
            let change = |(node, offset, other, other_offset)| {
                let change = Change::Exchanged {
                    offset,
                    other,
                    other_offset,
                    length: *length,
                };
                (node, change)
            };
            sides.into_iter().map(change).collect()
        }
        _ => Vec::new(),
    }
}
