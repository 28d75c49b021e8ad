//! Workloads that are enumerated, not drawn: each file-system operation on each file, with whatever
//! has to be there before, and each way to make it durable behind it. The bounds are those of ACE
//! (Mohan and others, "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing", OSDI
//! 2018), whose authors show that one to three operations on two or four files find most bugs.
//!
//! # The bounds
//!
//! Files are `foo`, `A/foo` (first) and `bar`, `A/bar` (second); directories are the root, `A`, `B`.
//! An operation is followed by an fsync of a file or directory that it names, of the sibling or the
//! parent of one, or by a sync of everything: four ways for one file, seven for files of two
//! directories.
//!
//! | operation | its arguments | workloads |
//! |---|---|---|
//! | creat | 2 files | 8 |
//! | mkdir | `A` | 4 |
//! | fallocate | 2 files × zero range, zero range that keeps the size, punch, keep size, plain × 4 ranges | 160 |
//! | write | 2 files × 4 ranges | 32 |
//! | direct write, write through a map and msync | 2 files × 3 ranges, each | 48 |
//! | link, symlink | a file to a second one, 6, each | 72 |
//! | unlink, remove | 4 files, each | 32 |
//! | rename | a file to a second one, 6; `A` to `B` | 40 |
//! | setxattr, removexattr, fdatasync | 2 files, each | 24 |
//! | truncate | 2 files × to nothing, into a block | 16 |
//!
//! These are 436: the bounds of ACE's generator with all the ranges that it knows and with symbolic
//! links. As it is published it leaves out symbolic links and the ranges at the end of a file, and
//! makes 336. Its lengths are 5000, 2500 and 2000 bytes; ours are the next whole records of 32 bytes,
//! so that each is of one write. It runs no second sync behind fdatasync and msync; ours does.
//!
//! Where there is a journal, collapse, insert, exchange and migration come on top, which ACE does not
//! have. A sequence of two draws two of all operations, and also no sync at all after the first.

mod builder;
#[cfg(test)]
mod tests;

use pagefence::Kind;
use pagefence_block_io::fault_device::random::Random;
use pagefence_fs_model::files::{RECORD_BYTES, RangeChange};

use crate::image::Setup;

pub(crate) use builder::operations;

/// Files of the first set.
const FIRST: [&str; 2] = ["foo", "A/foo"];
/// Files of the second set.
const SECOND: [&str; 2] = ["bar", "A/bar"];
const ROOT: &str = "";
/// Bytes of an append.
const LONG: u64 = 32 << 10;
/// Bytes of a write that is no whole number of blocks, nor of sectors.
const SHORT: u64 = 157 * RECORD_BYTES;
/// Bytes of it that lie inside the file, if it makes it longer.
const INSIDE: u64 = 63 * RECORD_BYTES;
/// Bytes of a direct write, and of one through a map.
const PAGES: u64 = 8 << 10;
/// Where a truncated file ends.
const CUT: u64 = 78 * RECORD_BYTES;
const XATTR: &str = "user.ace";

/// Which bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Behind the end.
    Append,
    /// The first ones.
    Start,
    /// The last ones.
    End,
    /// The last ones and more.
    Extend,
}

const PLACES: [Place; 4] = [Place::Append, Place::Start, Place::Extend, Place::End];
const WHOLE_PLACES: [Place; 3] = [Place::Append, Place::Start, Place::End];

/// How a fallocate is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Plain,
    Range(RangeChange),
}

const SPACES: [Space; 5] = [
    Space::Range(RangeChange::Zero),
    Space::Range(RangeChange::ZeroInside),
    Space::Range(RangeChange::Punch),
    Space::Range(RangeChange::Reserve),
    Space::Plain,
];

/// One operation with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Core {
    Create(&'static str),
    MakeDirectory(&'static str),
    Fallocate(&'static str, Space, Place),
    Write(&'static str, Place),
    WriteDirect(&'static str, Place),
    Store(&'static str, Place),
    Link(&'static str, &'static str),
    Symlink(&'static str, &'static str),
    Unlink(&'static str),
    /// remove(3), which is unlink(2) for a file: listed twice, as there.
    Remove(&'static str),
    RenameFile(&'static str, &'static str),
    RenameDirectory(&'static str, &'static str),
    SetXattr(&'static str),
    RemoveXattr(&'static str),
    /// To nothing, or into a block.
    Truncate(&'static str, bool),
    SyncData(&'static str),
    /// Ours: collapse or insert, at the start or behind it.
    Shift(&'static str, RangeChange, bool),
    /// Ours.
    Exchange(&'static str, &'static str),
    /// Ours: to a block map, and back.
    Migrate(&'static str),
}

/// How a workload, or a part of it, ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persist {
    /// Nothing is made durable.
    None,
    All,
    /// This file or directory is.
    One(&'static str),
}

/// A workload in short: each operation, and what is made durable behind it.
pub(crate) type Sequence = Vec<(Core, Persist)>;

/// Two different files of which the second is of the second set.
fn pairs() -> Vec<(&'static str, &'static str)> {
    let mut pairs = Vec::new();
    for from in FIRST.into_iter().chain(SECOND) {
        pairs.extend(
            SECOND
                .into_iter()
                .filter(|to| *to != from)
                .map(|to| (from, to)),
        );
    }
    pairs
}

/// All operations within the bounds of ACE.
fn cores() -> Vec<Core> {
    let mut cores = Vec::new();
    cores.extend(FIRST.map(Core::Create));
    cores.push(Core::MakeDirectory("A"));
    for file in FIRST {
        for space in SPACES {
            cores.extend(PLACES.map(|place| Core::Fallocate(file, space, place)));
        }
        cores.extend(PLACES.map(|place| Core::Write(file, place)));
        cores.extend(WHOLE_PLACES.map(|place| Core::WriteDirect(file, place)));
        cores.extend(WHOLE_PLACES.map(|place| Core::Store(file, place)));
        cores.extend([true, false].map(|to_nothing| Core::Truncate(file, to_nothing)));
    }
    for (from, to) in pairs() {
        cores.extend([
            Core::Link(from, to),
            Core::Symlink(from, to),
            Core::RenameFile(from, to),
        ]);
    }
    cores.push(Core::RenameDirectory("A", "B"));
    for file in FIRST.into_iter().chain(SECOND) {
        cores.extend([Core::Unlink(file), Core::Remove(file)]);
    }
    for file in FIRST {
        cores.extend([
            Core::SetXattr(file),
            Core::RemoveXattr(file),
            Core::SyncData(file),
        ]);
    }
    cores
}

/// Operations of ours, for images with a journal.
fn own(setup: &Setup) -> Vec<Core> {
    let mut cores = Vec::new();
    if !setup.has_journal() {
        return cores;
    }
    for file in FIRST {
        for how in [RangeChange::Collapse, RangeChange::Insert] {
            cores.extend([true, false].map(|at_start| Core::Shift(file, how, at_start)));
        }
        if setup.kind == Kind::Ext4 {
            cores.push(Core::Migrate(file));
        }
    }
    cores.extend(
        pairs()
            .into_iter()
            .map(|(one, two)| Core::Exchange(one, two)),
    );
    cores
}

impl Core {
    /// The files and directories that it names.
    fn names(self) -> Vec<&'static str> {
        match self {
            Self::Create(path)
            | Self::MakeDirectory(path)
            | Self::Fallocate(path, ..)
            | Self::Write(path, _)
            | Self::WriteDirect(path, _)
            | Self::Store(path, _)
            | Self::Unlink(path)
            | Self::Remove(path)
            | Self::SetXattr(path)
            | Self::RemoveXattr(path)
            | Self::Truncate(path, _)
            | Self::SyncData(path)
            | Self::Shift(path, ..)
            | Self::Migrate(path) => vec![path],
            Self::Link(one, two)
            | Self::Symlink(one, two)
            | Self::RenameFile(one, two)
            | Self::RenameDirectory(one, two)
            | Self::Exchange(one, two) => vec![one, two],
        }
    }
}

fn is_directory(path: &str) -> bool {
    matches!(path, ROOT | "A" | "B")
}

fn sibling(path: &str) -> &'static str {
    match path {
        "foo" => "bar",
        "bar" => "foo",
        "A/foo" => "A/bar",
        "A/bar" => "A/foo",
        "A" => "B",
        "B" => "A",
        _ => ROOT,
    }
}

fn parent(path: &str) -> &'static str {
    if path.starts_with("A/") { "A" } else { ROOT }
}

/// Every way to make something durable that has to do with these operations.
fn persists(cores: &[Core]) -> Vec<Persist> {
    let mut paths: Vec<&'static str> = Vec::new();
    for path in cores.iter().flat_map(|core| core.names()) {
        paths.extend([path, sibling(path), parent(path)]);
    }
    paths.sort_unstable();
    paths.dedup();
    let mut persists: Vec<_> = paths.into_iter().map(Persist::One).collect();
    persists.push(Persist::All);
    persists
}

fn each_with_its_ends(cores: Vec<Core>) -> Vec<Sequence> {
    let mut sequences = Vec::new();
    for core in cores {
        let ends = persists(&[core]).into_iter();
        sequences.extend(ends.map(|end| vec![(core, end)]));
    }
    sequences
}

/// Every sequence of one operation: how many of them are within ACE's bounds, and then ours.
pub(crate) fn ones(setup: &Setup) -> (usize, Vec<Sequence>) {
    let mut sequences = each_with_its_ends(cores());
    let count = sequences.len();
    sequences.extend(each_with_its_ends(own(setup)));
    (count, sequences)
}

/// A sequence of two operations by chance.
pub(crate) fn two(setup: &Setup, random: &mut Random) -> Sequence {
    let mut all = cores();
    all.extend(own(setup));
    let chosen = [0; 2].map(|_: u8| all[random.below(all.len() as u64) as usize]);
    let ends = persists(&chosen);
    let mut end = |more: u64| {
        let at = random.below(ends.len() as u64 + more) as usize;
        ends.get(at).copied().unwrap_or(Persist::None)
    };
    vec![(chosen[0], end(1)), (chosen[1], end(0))]
}
