//! One run of a workload on a fault device, and what is promised of it at each moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pagefence::Options;
use pagefence::device::Device;
use pagefence_block_io::fault_device::{FaultDevice, Trace};
use pagefence_fs_model::files::{Bytes, Kind, NodeNo, Operation, RenameHow, Tree};

use crate::common::brief;
use crate::common::image::Setup;
use crate::common::library::Library;
use crate::names::{self, Names};

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

/// A change of a file's bytes.
#[derive(Clone, Debug)]
enum Event {
    Write {
        offset: u64,
        length: usize,
        tag: u64,
    },
    SetSize(u64),
    Allocate {
        offset: u64,
        length: u64,
    },
}

/// A run. Operation `i` is done between `names[i]` and `names[i + 1]`.
pub(crate) struct History {
    pub(crate) steps: Vec<Step>,
    pub(crate) names: Vec<Names>,
    block_size: u32,
    events: BTreeMap<NodeNo, Vec<(usize, Event)>>,
    /// Files that were made durable, and by which operations.
    synced: BTreeMap<NodeNo, Vec<usize>>,
    synced_all: Vec<usize>,
    /// Files that were renamed over others.
    replacing: BTreeMap<NodeNo, Vec<usize>>,
}

/// What is known of a file's bytes at a crash.
pub(crate) struct Expected {
    /// What was durable.
    base: Bytes,
    /// What was done later.
    later: Vec<Event>,
}

/// How the device of a run is wrapped: tests of the tests take flushes away.
pub(crate) type Wrap = fn(Arc<FaultDevice>) -> Arc<dyn Device>;

impl History {
    /// Does it all, and gives what the device saw of it. `claims_all`: every operation counts as durable once it returned, which is not
    /// so (to see that the check notices).
    pub(crate) fn record(
        setup: &Setup,
        device: &Arc<FaultDevice>,
        wrap: Wrap,
        operations: Vec<Operation>,
        claims_all: bool,
    ) -> Result<(Self, Trace), String> {
        let mut library = Library::open(wrap(Arc::clone(device)), options())?;
        // From here on: opened, and clean but for what opening wrote.
        library.volume().sync().map_err(|error| error.to_string())?;
        device.start_trace();
        let mut tree = Tree::new(setup.format());
        let mut history = Self {
            steps: Vec::new(),
            names: vec![names::of_model(&tree)],
            block_size: setup.block_size,
            events: BTreeMap::new(),
            synced: BTreeMap::new(),
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
            history.note(&before, &tree, &operation);
            if claims_all {
                history.synced_all.push(history.steps.len());
            }
            history.names.push(names::of_model(&tree));
            let touched = touched(&before, &tree, &operation);
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
        let mut event = |node: Option<NodeNo>, event: Event| {
            let node = node.expect("it is there");
            self.events.entry(node).or_default().push((step, event));
        };
        let at = |path: &str| before.node_at(path, true).ok();
        match operation {
            O::Write {
                path,
                offset,
                length,
                tag,
            } => event(
                at(path),
                Event::Write {
                    offset: *offset,
                    length: *length,
                    tag: *tag,
                },
            ),
            O::Append { path, length, tag } => {
                let node = at(path);
                let offset = node.map_or(0, |node| size(before, node));
                event(
                    node,
                    Event::Write {
                        offset,
                        length: *length,
                        tag: *tag,
                    },
                );
            }
            O::WriteHeld {
                slot,
                offset,
                length,
                tag,
            } => event(
                before.held(*slot),
                Event::Write {
                    offset: *offset,
                    length: *length,
                    tag: *tag,
                },
            ),
            O::SetSize { path, size } => event(at(path), Event::SetSize(*size)),
            O::Allocate {
                path,
                offset,
                length,
            } => event(
                at(path),
                Event::Allocate {
                    offset: *offset,
                    length: *length,
                },
            ),
            O::Sync { path } => {
                let node = at(path).expect("it is there");
                self.synced.entry(node).or_default().push(step);
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
        let least = all.chain(files.map(|step| step + 1)).max().unwrap_or(0);
        (least, most.count())
    }

    /// What the file holds after a crash at this moment that left the first `kept` operations'
    /// names.
    pub(crate) fn expected(&self, node: NodeNo, position: usize, kept: usize) -> Expected {
        let is_done = |step: &usize| self.steps[*step].done <= position;
        let synced = self.synced.get(&node).into_iter().flatten().copied();
        let all = self.synced_all.iter().copied();
        let durable = synced.chain(all).filter(is_done);
        // What was renamed over something else was complete before.
        let replacing = self.replacing.get(&node).into_iter().flatten().copied();
        let replacing = replacing.filter(|step| *step < kept);
        let since = durable.chain(replacing).max();
        let mut expected = Expected {
            base: Bytes::new(self.block_size),
            later: Vec::new(),
        };
        for (step, event) in self.events.get(&node).into_iter().flatten() {
            if since.is_some_and(|since| *step <= since) {
                event.apply(&mut expected.base);
            } else if self.steps[*step].begun <= position {
                expected.later.push(event.clone());
            }
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
                let stays = named.node == *node
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
fn disturbs(operation: &Operation, path: &str) -> bool {
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
pub(crate) fn options() -> Options {
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

/// The files that an operation is about. No workload does anything through a symbolic link.
fn touched(before: &Tree, after: &Tree, operation: &Operation) -> Vec<NodeNo> {
    if matches!(
        operation,
        Operation::Sync { .. } | Operation::Hold { .. } | Operation::Read { .. }
    ) {
        return Vec::new();
    }
    let mut touched = Vec::new();
    for path in operation.paths() {
        for tree in [before, after] {
            if let Ok(node) = tree.node_at(path, false)
                && is_file(tree, node)
            {
                touched.push(node);
            }
        }
    }
    touched
}

impl Event {
    fn apply(&self, bytes: &mut Bytes) {
        match self {
            Self::Write {
                offset,
                length,
                tag,
            } => bytes.write(
                *offset,
                &pagefence_fs_model::files::contents(*tag, *offset, *length),
            ),
            Self::SetSize(size) => bytes.set_size(*size),
            Self::Allocate { offset, length } => bytes.promise(*offset, *length),
        }
    }
}

impl Expected {
    /// Holds what a crash left against what it may leave: each record is as it was made durable,
    /// or of a later write, or zeros where a later cut makes them; the size is one that the file
    /// had since, rounded up to `unit` bytes at most.
    pub(crate) fn check(&self, found: &[u8], unit: u64) -> Result<(), String> {
        use pagefence_fs_model::files::{RECORD_BYTES, contents};
        let mut now = self.base.clone();
        let (mut least, mut most) = (now.size(), now.size());
        for event in &self.later {
            event.apply(&mut now);
            least = least.min(now.size());
            most = most.max(now.size());
        }
        let size = found.len() as u64;
        let most = most.next_multiple_of(unit);
        if size < least || most < size {
            return Err(format!("{size} bytes; {least} to {most} are possible"));
        }
        let cut = self.later.iter().filter_map(|event| match event {
            Event::SetSize(size) => Some(*size),
            _ => None,
        });
        let cut = cut.min();
        for (number, record) in (0_u64..).zip(found.chunks(RECORD_BYTES as usize)) {
            let at = number * RECORD_BYTES;
            let mut durable = self.base.read(at, record.len());
            durable.resize(record.len(), 0);
            let is_zero = record.iter().all(|byte| *byte == 0);
            let is_later = |event: &Event| match event {
                Event::Write {
                    offset,
                    length,
                    tag,
                } => {
                    *offset <= at
                        && at < offset + *length as u64
                        && record == contents(*tag, at, record.len())
                }
                _ => false,
            };
            let is_fine = record == durable
                || (is_zero && cut.is_some_and(|cut| cut <= at))
                || self.later.iter().any(is_later);
            if !is_fine {
                let later = &self.later;
                return Err(format!(
                    "byte {at} of {size}: {record:02x?}; durable was {durable:02x?}, later {later:?}"
                ));
            }
        }
        Ok(())
    }
}
