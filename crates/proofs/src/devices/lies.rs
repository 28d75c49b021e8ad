//! Random work on a device that lies. A lie about the bytes of a file is seen in those blocks and nowhere
//! else. A lie about metadata is found, or shows what was there before; nothing panics, hangs, or shows
//! a name that nobody made, where there are checksums.

use std::collections::BTreeSet;
use std::time::Duration;

use pagefence::{Kind, Volume};
use pagefence_block_io::fault_device::random::Random;
use pagefence_fs_model::files::{Answer, Kind as Node, Operation, RangeChange, Tree};
use pagefence_lock_order::primitives::Arc;

use super::liar::{Liar, Lie, Lied};
use super::{Work, work};
use crate::beliefs::{Shown, perform};
use crate::crash::check::mend;
use crate::crash::history::options;
use crate::crash::names;
use crate::guarded::guarded;
use crate::image::Setup;
use crate::library::Library;
use crate::{Budget, Plan, Row, e2fsck};

/// One image in so many is mended by e2fsck.
const E2FSCK_ONE_IN: u64 = 8;

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    lies: u64,
    not_tried: u64,
    harmless: u64,
    about_data: u64,
    found: u64,
    mended: u64,
}

/// What a run may show.
struct Run<'w> {
    work: &'w Work,
    tree: Tree,
    device: Arc<Liar>,
    block_size: u64,
    /// How far, in blocks, what was written may have moved in its file, or to another one.
    moved: BTreeSet<i64>,
    /// A lie about metadata was found, in words.
    found: bool,
}

impl Run<'_> {
    fn lied(&self) -> Option<Lied> {
        self.device.lied().filter(|lied| !lied.is_harmless)
    }

    /// Whether everything but the bytes that were lied about has to be right.
    fn is_strict(&self) -> bool {
        self.lied().is_none_or(|lied| lied.is_about_data)
    }

    /// Holds bytes of a file, from `offset` on, against what they have to be.
    fn check_bytes(&self, offset: u64, found: &[u8], expected: &[u8]) -> Result<(), String> {
        let lied = self.lied().map(|lied| lied.blocks).unwrap_or_default();
        if found.len() != expected.len() {
            let (found, expected) = (found.len(), expected.len());
            return Err(format!("{found} bytes, not {expected}"));
        }
        let wrong = |at: &usize| {
            let block = ((offset + *at as u64) / self.block_size) as i64;
            let origins = self.moved.iter().map(|moved| block - moved);
            let mut origins = origins.filter_map(|origin| u64::try_from(origin).ok());
            found[*at] != expected[*at] && !origins.any(|origin| lied.contains(&origin))
        };
        match (0..found.len()).find(wrong) {
            None => Ok(()),
            Some(at) => Err(format!("byte {} is wrong", offset + at as u64)),
        }
    }

    fn step(&mut self, library: &mut Library, operation: &Operation) -> Result<(), String> {
        let outcome = perform(library, operation);
        let expected = self.tree.apply(operation);
        for moves in moves(operation, self.block_size) {
            let further = self.moved.iter().map(|moved| moved + moves);
            let further: Vec<i64> = further.collect();
            self.moved.extend(further);
        }
        if !self.is_strict() {
            self.found |= outcome.answer.is_err();
            return Ok(());
        }
        match (&outcome.answer, &expected) {
            (Ok(Answer::Bytes(found)), Ok(Answer::Bytes(expected))) => {
                let offset = match operation {
                    Operation::Read { offset, .. } | Operation::ReadHeld { offset, .. } => *offset,
                    _ => 0,
                };
                self.check_bytes(offset, found, expected)
                    .map_err(|error| format!("{operation:.300?}: {error}"))
            }
            (Ok(found), Ok(expected)) if found == expected => Ok(()),
            (Err(refusal), Err(expected)) if refusal.failure == Some(*expected) => Ok(()),
            (found, expected) => Err(format!(
                "{operation:.300?}: expected {expected:.200?}, found {found:.300?}"
            )),
        }
    }

    fn check(&self, shown: &Shown) -> Result<(), String> {
        for (path, named) in names::of_model(&self.tree) {
            let Some((looks, bytes)) = shown.get(&path) else {
                return Err(format!("{path:?} is gone"));
            };
            if *looks != named.looks {
                return Err(format!("{path:?} is {looks:?}, not {:?}", named.looks));
            }
            if let Node::File(expected) = &self.tree.node(named.node).kind {
                let expected = expected.read(0, expected.size() as usize);
                self.check_bytes(0, bytes, &expected)
                    .map_err(|error| format!("{path:?}: {error}"))?;
            }
        }
        Ok(())
    }

    /// With checksums nothing is taken for names that is none.
    fn check_names(&self, shown: &Shown) -> Result<(), String> {
        let mut made: BTreeSet<&str> = BTreeSet::from(["lost+found", ""]);
        for operation in &self.work.operations {
            made.extend(
                operation
                    .paths()
                    .into_iter()
                    .flat_map(|path| path.split('/')),
            );
        }
        let mut components = shown.keys().flat_map(|path| path.split('/'));
        match components.find(|name| !made.contains(name)) {
            None => Ok(()),
            Some(name) => Err(format!("nobody made {name:?}")),
        }
    }
}

/// How far blocks move by an operation.
fn moves(operation: &Operation, block_size: u64) -> Vec<i64> {
    let blocks = |bytes: u64| (bytes / block_size) as i64;
    match operation {
        Operation::ChangeRange { length, how, .. } => match how {
            RangeChange::Collapse => vec![-blocks(*length)],
            RangeChange::Insert => vec![blocks(*length)],
            _ => Vec::new(),
        },
        Operation::ExchangeRange {
            offset,
            other_offset,
            ..
        } => {
            let moves = blocks(*other_offset) - blocks(*offset);
            vec![moves, -moves]
        }
        _ => Vec::new(),
    }
}

/// One run; what it lied about, how many calls it made.
fn case(
    setup: &Setup,
    image: &pagefence::device::MemoryDevice,
    work: &Work,
    lie: Option<Lie>,
    is_mended: bool,
) -> Result<(Option<Lied>, [u64; 2], bool), String> {
    let device = Arc::new(Liar::new(image, setup.block_size, lie));
    let mut run = Run {
        work,
        tree: Tree::new(setup.format()),
        device: Arc::clone(&device),
        block_size: setup.block_size.into(),
        moved: BTreeSet::from([0]),
        found: false,
    };
    let opened = Library::open(Arc::clone(&device) as _, options().discard(work.discards));
    let mut library = match opened {
        Ok(library) => library,
        Err(error) if run.is_strict() => return Err(error),
        Err(_) => return Ok((device.lied(), device.calls(), true)),
    };
    for operation in &work.operations {
        if *operation == Operation::Reopen {
            let closed = library.close();
            if let (Err(error), true) = (&closed, run.is_strict()) {
                return Err(format!("closing: {error}"));
            }
            run.found |= closed.is_err();
            drop(library);
            let device = Arc::clone(&device) as _;
            match Library::open(device, options().discard(work.discards)) {
                Ok(opened) => library = opened,
                Err(error) if run.is_strict() => return Err(error),
                Err(_) => return Ok((run.lied(), run.device.calls(), true)),
            }
            assert!(run.tree.apply(operation).is_ok(), "it always can be");
            continue;
        }
        run.step(&mut library, operation)?;
    }
    let calls = device.calls();
    let closed = library.close();
    if let (Err(error), true) = (&closed, run.is_strict()) {
        return Err(format!("closing: {error}"));
    }
    run.found |= closed.is_err();
    drop(library);
    let again = Arc::new(device.image());
    let shown = Volume::open_device(Arc::clone(&again) as _, options()).and_then(|volume| {
        let shown = names::of_volume(&volume)?;
        volume.close()?;
        Ok(shown)
    });
    match shown {
        Err(error) if run.is_strict() => return Err(format!("opened again: {error}")),
        Err(_) => run.found = true,
        Ok(shown) => {
            if run.is_strict() {
                run.check(&shown)
                    .map_err(|error| format!("opened again: {error}"))?;
            } else if setup.kind == Kind::Ext4 {
                run.check_names(&shown)?;
            }
        }
    }
    if is_mended {
        if run.is_strict() {
            e2fsck::check(&again)?;
        } else {
            // Whatever it found to mend, it comes to an end with it.
            mend(&again, &["-fy"]).or_else(|_| mend(&again, &["-fy"]))?;
        }
    }
    Ok((run.device.lied(), calls, run.found))
}

/// One workload, and each of its calls a lie.
fn workload(setup: Setup, seed: u64, budget: &Budget) -> Result<Tried, String> {
    let image = setup.make();
    let work = Arc::new(work(&setup, seed));
    let mut random = Random::new(seed);
    let mut run = |lie: Option<Lie>| {
        let (image, work) = (image.fork(), Arc::clone(&work));
        let is_mended = random.one_in(E2FSCK_ONE_IN);
        guarded(move || case(&setup, &image, &work, lie, is_mended))
            .and_then(|outcome| outcome)
            .map(|outcome| (outcome, is_mended))
            .map_err(|error| format!("{setup:?}, seed {seed}, {lie:?}: {error}"))
    };
    let ((_, [reads, writes], _), _) = run(None)?;
    let mut lies: Vec<Lie> = (0..reads).map(Lie::StaleRead).collect();
    lies.extend((0..writes).flat_map(|call| [Lie::LostWrite(call), Lie::MisdirectedWrite(call)]));
    let mut tried = Tried::default();
    let mut random = Random::new(!seed);
    while !lies.is_empty() && (tried.lies == 0 || budget.is_left()) {
        let chosen = random.below(lies.len() as u64) as usize;
        let ((lied, _, found), is_mended) = run(Some(lies.swap_remove(chosen)))?;
        tried.lies += 1;
        tried.found += u64::from(found);
        tried.mended += u64::from(is_mended);
        match lied {
            Some(lied) if !lied.is_harmless => {
                tried.about_data += u64::from(lied.is_about_data);
            }
            _ => tried.harmless += 1,
        }
    }
    tried.not_tried = lies.len() as u64;
    Ok(tried)
}

/// Each read and write of random workloads is a lie, for as long as there is time.
#[must_use]
pub fn prove_lies(setup: Setup, plan: &Plan) -> Row {
    let mut row = Row::new(format!("devices that lie, random work, {setup}"), plan.seed);
    if !e2fsck::is_there() {
        row.skipped.push("there is no e2fsck".to_owned());
        return row;
    }
    let budget = Budget::new(plan.time.max(Duration::from_millis(1)));
    let mut seed = plan.seed;
    while seed == plan.seed || budget.is_left() {
        row.count("workloads", 1);
        match workload(setup, seed, &budget) {
            Ok(tried) => {
                row.count("lies", tried.lies);
                row.count("lies not told", tried.not_tried);
                row.count("without any effect", tried.harmless);
                row.count("about bytes of files", tried.about_data);
                row.count("found by an error", tried.found);
                row.count("mended by e2fsck", tried.mended);
            }
            Err(error) => row.failures.push(error),
        }
        seed += 1;
    }
    row
}
