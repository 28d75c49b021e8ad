//! What a crash left is recovered and held against what was promised.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use pagefence::Volume;
use pagefence::device::MemoryDevice;
use pagefence_block_io::fault_device::FaultDevice;
use pagefence_block_io::fault_device::random::Random;

use super::history::{History, options};
use super::{kernel, names};
use crate::image::Setup;
use crate::{Row, e2fsck};

/// One state in so many crashes a second time, during its recovery.
const CRASH_AGAIN_ONE_IN: u64 = 12;
/// One state in so many is shown to e2fsck.
const E2FSCK_ONE_IN: u64 = 12;
/// One state in so many is also recovered by e2fsck.
const THEIRS_ONE_IN: u64 = 40;
/// One state in so many is also recovered by the kernel.
const KERNEL_ONE_IN: u64 = 160;

/// The superblock, which is written as a whole.
pub(crate) const SUPERBLOCK: std::ops::Range<u64> = 1024..2048;

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    states: u64,
    crashed_again: u64,
    by_e2fsck: u64,
    recovered_by_e2fsck: u64,
    recovered_by_the_kernel: u64,
    wraps: u64,
    /// Files that e2fsck had to give a name, without a journal.
    without_a_name: u64,
}

impl Tried {
    /// The log went on at its start so often.
    pub(crate) fn wraps(&mut self, more: u64) {
        self.wraps += more;
    }

    /// States that were tried.
    #[must_use]
    pub fn states(&self) -> u64 {
        self.states
    }

    /// Adds these counts to a row's.
    pub(crate) fn add_to(self, row: &mut Row) {
        row.count("distinct states", self.states);
        row.count("crashed again", self.crashed_again);
        row.count("shown to e2fsck", self.by_e2fsck);
        row.count("recovered by e2fsck, too", self.recovered_by_e2fsck);
        row.count("recovered by the kernel, too", self.recovered_by_the_kernel);
        row.count("wraps of the log", self.wraps);
        row.count("files found without their names", self.without_a_name);
    }
}

/// Looks and bytes, by path.
type Paths = BTreeMap<String, (String, Vec<u8>)>;

/// Everything a volume shows.
#[derive(PartialEq, Eq)]
struct Shown {
    paths: Paths,
    /// Inodes that are in use.
    inodes: u64,
}

/// What states are held against.
pub(crate) struct Check<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) history: &'a History,
    /// Inodes in use that have no names: those of the file system itself.
    pub(crate) unnamed: u64,
    /// Whether the kernel can be asked.
    pub(crate) kernel: bool,
}

impl Check<'_> {
    /// Recovers one image, of a crash at this moment, and checks it.
    pub(crate) fn run(
        &self,
        position: usize,
        crashed: MemoryDevice,
        random: &mut Random,
        tried: &mut Tried,
    ) -> Result<(), String> {
        tried.states += 1;
        if !self.setup.has_journal() {
            return check_mended(self.setup, self.history, position, &crashed, tried);
        }
        let crashed = if random.one_in(CRASH_AGAIN_ONE_IN) {
            tried.crashed_again += 1;
            crash_again(&crashed, random)?
        } else {
            crashed
        };
        let device = Arc::new(crashed.fork());
        let shown = recover(&device).map_err(|error| format!("our recovery: {error}"))?;
        check_journaled(self.history, position, &shown.paths)?;
        // Nothing has no name: what was open when the power went is gone.
        let nodes = names::count(&shown.paths);
        if shown.inodes != self.unnamed + nodes {
            return Err(format!(
                "{} inodes are in use, {nodes} of them have names",
                shown.inodes
            ));
        }
        if random.one_in(E2FSCK_ONE_IN) {
            tried.by_e2fsck += 1;
            e2fsck::check(&device)?;
        }
        if random.one_in(THEIRS_ONE_IN) {
            tried.recovered_by_e2fsck += 1;
            let theirs = mend(&crashed, &["-y", "-E", "journal_only"])?;
            same_tree("e2fsck", theirs, &shown)?;
        }
        if random.one_in(KERNEL_ONE_IN) && self.kernel {
            tried.recovered_by_the_kernel += 1;
            let theirs = kernel::recover(&crashed)?;
            e2fsck::check(&theirs).map_err(|error| format!("the kernel recovered it: {error}"))?;
            same_tree("the kernel", theirs, &shown)?;
        }
        Ok(())
    }
}

/// Whether what somebody else recovered shows what we show.
fn same_tree(who: &str, theirs: MemoryDevice, ours: &Shown) -> Result<(), String> {
    let theirs = recover(&Arc::new(theirs)).map_err(|error| format!("after {who}: {error}"))?;
    if theirs == *ours {
        return Ok(());
    }
    let (counts, ours, theirs) = ([ours.inodes, theirs.inodes], &ours.paths, &theirs.paths);
    let different = ours.keys().chain(theirs.keys());
    let different = different.filter(|path| ours.get(*path) != theirs.get(*path));
    let paths: Vec<&String> = different.take(4).collect();
    Err(format!(
        "the journal recovered by {who} gives another tree: {paths:?}, inodes {counts:?}"
    ))
}

/// Opens the volume, which recovers it, looks at everything, and closes it.
fn recover(device: &Arc<MemoryDevice>) -> Result<Shown, pagefence::Error> {
    let volume = Volume::open_device(Arc::clone(device) as _, options())?;
    let paths = names::of_volume(&volume)?;
    let usage = volume.usage()?;
    volume.close()?;
    Ok(Shown {
        paths,
        inodes: usage.inodes - usage.inodes_free,
    })
}

/// Another crash while the first one is recovered from, or right after.
fn crash_again(crashed: &MemoryDevice, random: &mut Random) -> Result<MemoryDevice, String> {
    let device = Arc::new(FaultDevice::new(crashed, random.next_u64()));
    device.set_atomic(SUPERBLOCK);
    device.start_trace();
    recover_on(&device).map_err(|error| format!("our recovery: {error}"))?;
    let trace = device.take_trace().ok_or("no trace")?;
    let chosen = random.below(trace.len() as u64 + 1) as usize;
    let mut left = None;
    trace.walk(|point| {
        if point.position() == chosen {
            let states = point.crash_states();
            left = Some(states.image(&states.random(random)));
        }
    });
    left.ok_or_else(|| "a moment of the trace".to_owned())
}

fn recover_on(device: &Arc<FaultDevice>) -> Result<(), pagefence::Error> {
    Volume::open_device(Arc::clone(device) as _, options())?.close()
}

/// With a journal: the names are those after some operation, none of those that are durable is
/// lost, and each file holds its own bytes.
fn check_journaled(history: &History, position: usize, shown: &Paths) -> Result<(), String> {
    let (least, most) = history.range(position);
    let looks_like = |kept: &usize| {
        let names = &history.names[*kept];
        names.len() == shown.len()
            && names
                .iter()
                .zip(shown)
                .all(|(one, other)| one.0 == other.0 && one.1.looks == other.1.0)
    };
    let mut failure = None;
    for kept in (least..=most).rev().filter(looks_like) {
        match check_bytes(history, position, kept, shown) {
            Ok(()) => return Ok(()),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    if let Some(earlier) = (0..least).rev().find(looks_like) {
        return Err(format!(
            "the first {least} operations are durable; what came back is as after {earlier}"
        ));
    }
    Err(format!(
        "the names are as after none of the operations {least} to {most}: {}",
        names_of_difference(history, least, shown)
    ))
}

fn names_of_difference(history: &History, kept: usize, shown: &Paths) -> String {
    let names = &history.names[kept];
    let mut differences = Vec::new();
    for (path, named) in names {
        match shown.get(path) {
            Some((looks, _)) if *looks == named.looks => {}
            other => differences.push(format!(
                "{path:?} was {:?} after {kept}, is {:?}",
                named.looks,
                other.map(|(looks, _)| looks)
            )),
        }
    }
    for (path, (looks, _)) in shown {
        if !names.contains_key(path) {
            differences.push(format!(
                "{path:?} is {looks:?}, and was not there after {kept}"
            ));
        }
    }
    differences.truncate(6);
    differences.join("; ")
}

fn check_bytes(
    history: &History,
    position: usize,
    kept: usize,
    shown: &Paths,
) -> Result<(), String> {
    for (path, named) in &history.names[kept] {
        if !named.is_file {
            continue;
        }
        let (_, bytes) = &shown[path];
        let expected = history.expected(named.node, position, kept);
        expected
            .check(bytes, 1)
            .map_err(|error| format!("{path:?}, names as after {kept} operations: {error}"))?;
    }
    Ok(())
}

/// Without a journal: once e2fsck has mended it, what was made durable is there.
fn check_mended(
    setup: &Setup,
    history: &History,
    position: usize,
    crashed: &MemoryDevice,
    tried: &mut Tried,
) -> Result<(), String> {
    let sure = history.surely_there(position);
    tried.by_e2fsck += 1;
    let mended = Arc::new(mend(crashed, &["-fy"])?);
    let shown = recover(&mended).map_err(|error| format!("what e2fsck mended: {error}"))?;
    let shown = shown.paths;
    for (path, node) in sure {
        // No rename is promised to have waited for the bytes.
        let expected = history.expected(node, position, 0);
        // A file with blocks past its end is made longer by e2fsck, in whole blocks.
        let is_right = |bytes: &[u8]| expected.check(bytes, setup.block_size.into());
        if let Some((_, bytes)) = shown.get(&path) {
            let checked = is_right(bytes);
            checked.map_err(|error| format!("{path:?}: {error}"))?;
            continue;
        }
        // A block of names that is split in two is not written as a whole: e2fsck then finds a
        // file without a name, and gives it one if there are bytes in it.
        let is_found = is_right(&[]).is_ok()
            || shown.iter().any(|(path, (looks, bytes))| {
                path.starts_with("lost+found/")
                    && looks.starts_with("file ")
                    && is_right(bytes).is_ok()
            });
        if !is_found {
            return Err(format!("{path:?} is lost"));
        }
        tried.without_a_name += 1;
    }
    Ok(())
}

/// Runs e2fsck with these arguments on a copy of the device; what is there then.
///
/// # Errors
/// It could not mend it.
pub(crate) fn mend(device: &MemoryDevice, arguments: &[&str]) -> Result<MemoryDevice, String> {
    let file = e2fsck::file_of(device);
    let output = Command::new("timeout")
        .arg("60")
        .arg("e2fsck")
        .args(arguments)
        .arg(file.path())
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| format!("e2fsck: {error}"))?;
    // 1: errors were mended.
    if !matches!(output.status.code(), Some(0 | 1)) {
        return Err(format!(
            "e2fsck {arguments:?}, {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout)
        ));
    }
    let bytes = std::fs::read(file.path()).map_err(|error| error.to_string())?;
    Ok(MemoryDevice::from_bytes(&bytes))
}

/// Inodes in use on a new image that have no names.
pub(crate) fn unnamed(image: &MemoryDevice) -> u64 {
    let shown = recover(&Arc::new(image.fork())).expect("it is sound");
    shown.inodes - names::count(&shown.paths)
}
