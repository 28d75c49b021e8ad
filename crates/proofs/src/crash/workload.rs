//! Random work that a seed determines: what a program does to its files, with an fsync here and
//! there. Everything it asks for can be done; bytes come in whole records, so that each is of one
//! write.

use pagefence::Kind;
use pagefence_block_io::fault_device::random::Random;
use pagefence_fs_model::files::{
    Bytes, Kind as Node, Operation, RECORD_BYTES, RangeChange, RenameHow, Tree,
};

use crate::image::Setup;

/// What the work is mostly about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Names: made, moved, linked, removed.
    Names,
    /// Bytes: written, appended, cut off.
    Data,
    /// Files that are written anew and renamed over the old one.
    Replace,
    /// All of it.
    Mixed,
    /// Ranges of files: given space, cleared, moved, exchanged; maps that are migrated.
    Ranges,
    /// Names, and blocks of data and of directories, that come and go where there are few.
    Reuse,
}

const PROFILES: [Profile; 6] = [
    Profile::Mixed,
    Profile::Names,
    Profile::Data,
    Profile::Replace,
    Profile::Ranges,
    Profile::Reuse,
];

const SLOTS: u64 = 2;

impl Profile {
    /// That of a seed's remainder.
    pub(crate) fn of(seed: u64) -> Self {
        PROFILES[(seed % PROFILES.len() as u64) as usize]
    }
}

/// Files that move block by block are no longer than this.
const MOVED_MAX: u64 = 512 << 10;

/// The list of operations.
pub(crate) fn operations(
    setup: &Setup,
    profile: Profile,
    random: &mut Random,
    count: usize,
) -> Vec<Operation> {
    let mut tree = Tree::new(setup.format());
    let mut operations = Vec::new();
    while operations.len() < count {
        let tag = operations.len() as u64 + 1;
        let group = match pick(profile, random) {
            0 => names(&tree, random),
            1 => data(setup, &tree, random, tag),
            2 => replace(&tree, random, tag),
            3 => attributes(&tree, random),
            4 => held(&tree, random, tag),
            5 => sync(&tree, random),
            6 => ranges(setup, &tree, random),
            _ => reuse(random, tag),
        };
        for operation in group {
            // What can't be done is left out: it would only show that nothing happens.
            if tree.clone().apply(&operation).is_ok() {
                assert!(tree.apply(&operation).is_ok(), "it could be done");
                operations.push(operation);
            }
        }
    }
    operations
}

fn pick(profile: Profile, random: &mut Random) -> u8 {
    let weights: [u64; 8] = match profile {
        Profile::Names => [12, 1, 1, 2, 1, 3, 0, 0],
        Profile::Data => [2, 12, 1, 1, 1, 4, 1, 0],
        Profile::Replace => [2, 2, 8, 1, 0, 1, 0, 0],
        Profile::Mixed => [5, 6, 2, 2, 2, 3, 2, 0],
        Profile::Ranges => [1, 5, 0, 0, 1, 3, 12, 0],
        Profile::Reuse => [1, 1, 1, 0, 2, 1, 0, 6],
    };
    let mut at = random.below(weights.iter().sum());
    for (index, weight) in (0..).zip(weights) {
        if at < weight {
            return index;
        }
        at -= weight;
    }
    unreachable!("one of them is meant")
}

/// A path that may or may not be there; all below directories that are.
fn any_path(tree: &Tree, random: &mut Random) -> String {
    let paths = tree.paths();
    let directories: Vec<&String> = paths
        .iter()
        .filter(|(path, number)| {
            path != "lost+found" && matches!(tree.node(*number).kind, Node::Directory(_))
        })
        .map(|(path, _)| path)
        .collect();
    let parent = directories[random.below(directories.len() as u64) as usize];
    let name = match random.below(12) {
        0 => "n".repeat(100 + random.below(156) as usize),
        number => format!("{}", b"abcdef"[number as usize % 6] as char),
    };
    if parent.is_empty() {
        name
    } else {
        format!("{parent}/{name}")
    }
}

fn file(tree: &Tree, random: &mut Random) -> Option<String> {
    let files: Vec<String> = tree
        .paths()
        .into_iter()
        .filter(|(_, number)| matches!(tree.node(*number).kind, Node::File(_)))
        .map(|(path, _)| path)
        .collect();
    let count = files.len() as u64;
    (count > 0).then(|| files[random.below(count) as usize].clone())
}

fn existing(tree: &Tree, random: &mut Random) -> String {
    let paths = tree.paths();
    let path = &paths[random.below(paths.len() as u64) as usize].0;
    if matches!(path.as_str(), "" | "lost+found") {
        any_path(tree, random)
    } else {
        path.clone()
    }
}

fn names(tree: &Tree, random: &mut Random) -> Vec<Operation> {
    use Operation as O;
    let path = any_path(tree, random);
    match random.below(14) {
        0..4 => vec![O::Create { path }],
        4..6 => vec![O::MakeDirectory { path }],
        6..9 => {
            let how = match random.below(6) {
                0 => RenameHow::Exchange,
                1 => RenameHow::NoReplace,
                _ => RenameHow::Replace,
            };
            let to = if random.one_in(2) {
                existing(tree, random)
            } else {
                path
            };
            let from = existing(tree, random);
            vec![O::Rename { from, to, how }]
        }
        9 => {
            let original = existing(tree, random);
            vec![O::Link {
                original,
                link: path,
            }]
        }
        10 => {
            // Leads nowhere: nothing is done through it.
            let target = "nowhere/".repeat(1 + random.below(12) as usize);
            vec![O::Symlink { target, path }]
        }
        11 => {
            let path = existing(tree, random);
            vec![
                O::Remove { path: path.clone() },
                O::RemoveDirectory { path },
            ]
        }
        12 => vec![O::Fifo { path }],
        _ => {
            // A directory gets more names than a block holds.
            let prefix = format!("{path}-{}", "x".repeat(120));
            (0..8 + random.below(16))
                .map(|number| O::Create {
                    path: format!("{prefix}{number}"),
                })
                .collect()
        }
    }
}

fn place(setup: &Setup, random: &mut Random) -> u64 {
    let block = u64::from(setup.block_size);
    let offset = match random.below(8) {
        0..3 => random.below(16 * 1024),
        3..5 => random.below(24) * block,
        5 | 6 => random.below(100 * 1024),
        // Past the first indirect block of small blocks.
        _ => 260 * 1024 + random.below(20 * 1024),
    };
    offset / RECORD_BYTES * RECORD_BYTES
}

fn length(random: &mut Random) -> usize {
    let records = match random.below(4) {
        0 => 1 + random.below(40),
        1 | 2 => 1 + random.below(300),
        _ => 1 + random.below(2000),
    };
    (records * RECORD_BYTES) as usize
}

fn data(setup: &Setup, tree: &Tree, random: &mut Random, tag: u64) -> Vec<Operation> {
    use Operation as O;
    let Some(path) = file(tree, random) else {
        return vec![O::Create {
            path: any_path(tree, random),
        }];
    };
    let done = match random.below(10) {
        0..5 => O::Write {
            path: path.clone(),
            offset: place(setup, random),
            length: length(random),
            tag,
        },
        5..7 => O::Append {
            path: path.clone(),
            length: length(random),
            tag,
        },
        7 | 8 => O::SetSize {
            path: path.clone(),
            size: place(setup, random),
        },
        _ if setup.kind == Kind::Ext4 => O::Allocate {
            path: path.clone(),
            offset: place(setup, random),
            length: length(random) as u64,
        },
        _ => O::SetSize {
            path: path.clone(),
            size: 0,
        },
    };
    if random.one_in(4) {
        vec![done, O::Sync { path }]
    } else {
        vec![done]
    }
}

/// What an editor does, with and without its fsync.
fn replace(tree: &Tree, random: &mut Random, tag: u64) -> Vec<Operation> {
    use Operation as O;
    let to = file(tree, random).unwrap_or_else(|| any_path(tree, random));
    let from = "new".to_owned();
    let mut steps = vec![
        O::Create { path: from.clone() },
        O::Append {
            path: from.clone(),
            length: length(random),
            tag,
        },
    ];
    if random.one_in(2) {
        steps.push(O::Sync { path: from.clone() });
    }
    let how = RenameHow::Replace;
    steps.push(O::Rename { from, to, how });
    steps
}

fn attributes(tree: &Tree, random: &mut Random) -> Vec<Operation> {
    use Operation as O;
    let path = existing(tree, random);
    vec![match random.below(4) {
        0 => O::SetPermissions {
            path,
            permissions: random.below(0o1000) as u16,
        },
        1 => O::SetOwner {
            path,
            uid: Some(random.below(100_000) as u32),
            gid: None,
        },
        2 => O::SetXattr {
            path,
            name: format!("trusted.{}", random.below(3)),
            value: vec![random.next_u64() as u8; random.below(180) as usize],
        },
        _ => O::RemoveXattr {
            path,
            name: format!("trusted.{}", random.below(3)),
        },
    }]
}

/// Files that are written after their last name is gone.
fn held(tree: &Tree, random: &mut Random, tag: u64) -> Vec<Operation> {
    use Operation as O;
    let slot = random.below(SLOTS) as u8;
    if tree.held(slot).is_some() {
        return vec![O::LetGo { slot }];
    }
    let Some(path) = file(tree, random) else {
        return Vec::new();
    };
    let mut steps = vec![
        O::Hold {
            slot,
            path: path.clone(),
        },
        O::Remove { path },
        O::WriteHeld {
            slot,
            offset: random.below(64) * RECORD_BYTES,
            length: length(random),
            tag,
        },
    ];
    if random.one_in(2) {
        steps.push(O::LetGo { slot });
    }
    steps
}

/// What fallocate(2) does, exchange and migration. What moves blocks does so in an order of its own
/// where there is no journal, which no sector that tears keeps: `docs/CRASH.md` says what is promised
/// then, and the tests of ext4 try it.
fn ranges(setup: &Setup, tree: &Tree, random: &mut Random) -> Vec<Operation> {
    use Operation as O;
    use RangeChange as R;
    let block = u64::from(setup.block_size);
    let Some((path, bytes)) = file(tree, random).and_then(|path| {
        let bytes = bytes_at(tree, &path)?;
        Some((path, bytes))
    }) else {
        return Vec::new();
    };
    let whole = bytes.size() / block;
    let moves = setup.has_journal() && whole > 1 && bytes.size() <= MOVED_MAX;
    let change = |how, offset, length| {
        let path = path.clone();
        vec![O::ChangeRange {
            path,
            offset,
            length,
            how,
        }]
    };
    match random.below(if moves { 10 } else { 4 }) {
        0 | 1 => change(R::Punch, place(setup, random), length(random) as u64),
        2 => {
            let how = [R::Zero, R::ZeroInside][random.below(2) as usize];
            change(how, place(setup, random), length(random) as u64)
        }
        3 => change(R::Reserve, place(setup, random), length(random) as u64),
        4..6 => {
            let first = random.below(whole - 1);
            let count = 1 + random.below((whole - first - 1).min(20));
            change(R::Collapse, first * block, count * block)
        }
        6 | 7 => {
            let (first, count) = (random.below(whole), 1 + random.below(20));
            change(R::Insert, first * block, count * block)
        }
        8 => {
            let other = file(tree, random).filter(|other| *other != path);
            let size = other.as_ref().and_then(|other| bytes_at(tree, other));
            let theirs = size.map_or(0, |bytes| bytes.size().min(MOVED_MAX) / block);
            let (Some(other), 1..) = (other, theirs) else {
                return Vec::new();
            };
            let (first, from) = (random.below(whole), random.below(theirs));
            let count = 1 + random.below((whole - first).min(theirs - from));
            vec![O::ExchangeRange {
                path,
                offset: first * block,
                other,
                other_offset: from * block,
                length: count * block,
            }]
        }
        _ if setup.kind == Kind::Ext4 && !bytes.may_have_unwritten() => {
            let migrate = |to_extents| O::Migrate {
                path: path.clone(),
                to_extents,
            };
            vec![migrate(false), migrate(true)]
        }
        _ => Vec::new(),
    }
}

fn bytes_at<'t>(tree: &'t Tree, path: &str) -> Option<&'t Bytes> {
    match &tree.node(tree.node_at(path, false).ok()?).kind {
        Node::File(bytes) => Some(bytes),
        _ => None,
    }
}

/// Blocks change hands: of a directory that goes, or a file, to one that comes, each durable or not.
fn reuse(random: &mut Random, tag: u64) -> Vec<Operation> {
    use Operation as O;
    let mut steps = Vec::new();
    let mut maybe_sync = |steps: &mut Vec<O>, one_in| {
        if random.one_in(one_in) {
            steps.push(O::SyncAll);
        }
    };
    let (directory, name) = ("reuse".to_owned(), "x".repeat(200));
    let path = |number| format!("{directory}/{name}{number}");
    steps.push(O::MakeDirectory {
        path: directory.clone(),
    });
    steps.extend((0..12).map(|number| O::Create { path: path(number) }));
    maybe_sync(&mut steps, 1);
    steps.extend((0..12).map(|number| O::Remove { path: path(number) }));
    steps.push(O::RemoveDirectory { path: directory });
    maybe_sync(&mut steps, 2);
    for number in 0..2 {
        let path = format!("new{number}");
        let tag = tag + number;
        steps.push(O::Remove { path: path.clone() });
        maybe_sync(&mut steps, 2);
        steps.push(O::Create { path: path.clone() });
        let length = 12_288;
        let path_ = path.clone();
        steps.push(O::Append { path, length, tag });
        maybe_sync(&mut steps, 6);
        steps.push(O::Sync { path: path_ });
    }
    steps
}

fn sync(tree: &Tree, random: &mut Random) -> Vec<Operation> {
    match file(tree, random) {
        Some(path) if random.one_in(4) => vec![Operation::SyncData { path }],
        Some(path) if !random.one_in(4) => vec![Operation::Sync { path }],
        _ => vec![Operation::SyncAll],
    }
}
