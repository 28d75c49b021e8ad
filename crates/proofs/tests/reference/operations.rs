//! Which operations are tried: few names, so that they meet; sizes around what the formats treat
//! specially; now and then what can't be done at all.

use pagefence_fs_model::files::{Operation, RenameHow};
use proptest::prelude::*;
use proptest::sample::select;

/// Holds of open files.
const SLOTS: u8 = 3;
/// Longer than any format's files.
const TOO_FAR: u64 = 1 << 46;

/// A list of operations, mostly on a tree that has something in it. What belongs together (a crowd
/// of names) shrinks together.
pub(crate) fn operations(most: usize) -> BoxedStrategy<Vec<Operation>> {
    let steps = prop::collection::vec(step(), 1..most);
    (prop::bool::weighted(0.8), steps)
        .prop_map(|(is_begun, steps)| {
            let start = if is_begun { beginning() } else { Vec::new() };
            [start, steps.concat()].concat()
        })
        .boxed()
}

/// Two directories and a file in each.
fn beginning() -> Vec<Operation> {
    let directory = |path: &str| Operation::MakeDirectory { path: path.into() };
    let file = |path: &str| Operation::Create { path: path.into() };
    vec![
        directory("a"),
        directory("a/b"),
        file("c"),
        file("a/c"),
        file("a/b/d"),
    ]
}

fn step() -> BoxedStrategy<Vec<Operation>> {
    let one = |strategy: BoxedStrategy<Operation>| strategy.prop_map(|operation| vec![operation]);
    prop_oneof![
        8 => one(namespace().boxed()),
        8 => one(data().boxed()),
        3 => one(attributes().boxed()),
        3 => one(held().boxed()),
        1 => one(Just(Operation::Reopen).boxed()),
        1 => one(Just(Operation::SyncAll).boxed()),
        1 => crowd(),
    ]
    .boxed()
}

fn name() -> BoxedStrategy<String> {
    prop_oneof![
        20 => select(vec!["a", "b", "c", "d"]).prop_map(str::to_owned),
        1 => Just("l".repeat(255)),
        1 => select(vec!["m".repeat(100), "m".repeat(200), "x".repeat(256)]),
    ]
    .boxed()
}

fn path() -> BoxedStrategy<String> {
    prop_oneof![
        4 => name(),
        3 => (name(), name()).prop_map(|(one, two)| format!("{one}/{two}")),
        1 => (name(), name(), name()).prop_map(|(one, two, three)| format!("{one}/{two}/{three}")),
    ]
    .boxed()
}

/// Relative, so that it stays within wherever the image is mounted; some too long to fit into an
/// inode, some too long for a block.
fn target() -> BoxedStrategy<String> {
    let dots = prop_oneof![
        6 => Just(0_usize),
        2 => 20_usize..40,
        1 => 100_usize..500,
        1 => 505_usize..520,
    ];
    (path(), dots)
        .prop_map(|(path, dots)| "./".repeat(dots) + &path)
        .boxed()
}

fn namespace() -> BoxedStrategy<Operation> {
    use Operation as O;
    let how = prop_oneof![
        4 => Just(RenameHow::Replace),
        1 => Just(RenameHow::NoReplace),
        1 => Just(RenameHow::Exchange),
    ];
    prop_oneof![
        6 => path().prop_map(|path| O::Create { path }),
        4 => path().prop_map(|path| O::MakeDirectory { path }),
        2 => path().prop_map(|path| O::Remove { path }),
        1 => path().prop_map(|path| O::RemoveDirectory { path }),
        4 => (path(), path(), how).prop_map(|(from, to, how)| O::Rename { from, to, how }),
        2 => (path(), path()).prop_map(|(original, link)| O::Link { original, link }),
        2 => (target(), path()).prop_map(|(target, path)| O::Symlink { target, path }),
        1 => path().prop_map(|path| O::Fifo { path }),
    ]
    .boxed()
}

fn offset() -> BoxedStrategy<u64> {
    prop_oneof![
        8 => 0_u64..16_384,
        4 => (0_u64..32).prop_map(|block| block * 1024),
        4 => 0_u64..120_000,
        // The first indirect blocks, and the second ones of small blocks.
        2 => 250_000_u64..300_000,
        1 => 4_100_000_u64..4_300_000,
        1 => 67_000_000_u64..67_500_000,
        1 => (2_u64 << 30) - 5_000..(2 << 30) + 5_000,
    ]
    .boxed()
}

fn length() -> BoxedStrategy<usize> {
    prop_oneof![4 => 1_usize..200, 6 => 1_usize..9_000, 1 => 9_000_usize..120_000].boxed()
}

fn tag() -> BoxedStrategy<u64> {
    prop_oneof![8 => 1_u64..1_000_000, 1 => Just(0)].boxed()
}

fn data() -> BoxedStrategy<Operation> {
    use Operation as O;
    let size = prop_oneof![20 => offset(), 1 => Just(TOO_FAR)];
    prop_oneof![
        8 => (path(), offset(), length(), tag()).prop_map(|(path, offset, length, tag)| {
            O::Write { path, offset, length, tag }
        }),
        1 => (path(), length(), tag()).prop_map(|(path, length, tag)| {
            O::Write { path, offset: TOO_FAR, length, tag }
        }),
        3 => (path(), length(), tag())
            .prop_map(|(path, length, tag)| O::Append { path, length, tag }),
        3 => (path(), offset(), length())
            .prop_map(|(path, offset, length)| O::Read { path, offset, length }),
        4 => (path(), size).prop_map(|(path, size)| O::SetSize { path, size }),
        2 => (path(), offset(), 1_u64..100_000)
            .prop_map(|(path, offset, length)| O::Allocate { path, offset, length }),
        2 => path().prop_map(|path| O::Sync { path }),
    ]
    .boxed()
}

fn attributes() -> BoxedStrategy<Operation> {
    use Operation as O;
    let permissions = select(vec![
        0o644_u16, 0o600, 0, 0o755, 0o4755, 0o2755, 0o2644, 0o1777, 0o6711,
    ]);
    let id = || prop::option::of(select(vec![0_u32, 1000, 65_535, 65_536, 4_000_000_000]));
    let xattr = || {
        select(vec![
            "user.a",
            "user.b",
            "user.longer.name",
            "trusted.c",
            "security.d",
        ])
        .prop_map(str::to_owned)
    };
    let value = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..20),
        2 => prop::collection::vec(any::<u8>(), 20..150),
    ];
    prop_oneof![
        (path(), permissions)
            .prop_map(|(path, permissions)| O::SetPermissions { path, permissions }),
        (path(), id(), id())
            .prop_filter("one of them", |(_, uid, gid)| uid.is_some()
                || gid.is_some())
            .prop_map(|(path, uid, gid)| O::SetOwner { path, uid, gid }),
        (path(), xattr(), value).prop_map(|(path, name, value)| O::SetXattr { path, name, value }),
        (path(), xattr()).prop_map(|(path, name)| O::RemoveXattr { path, name }),
    ]
    .boxed()
}

fn held() -> BoxedStrategy<Operation> {
    use Operation as O;
    let slot = || 0..SLOTS;
    prop_oneof![
        3 => (slot(), path()).prop_map(|(slot, path)| O::Hold { slot, path }),
        3 => (slot(), offset(), length(), tag()).prop_map(|(slot, offset, length, tag)| {
            O::WriteHeld { slot, offset, length, tag }
        }),
        2 => (slot(), offset(), length())
            .prop_map(|(slot, offset, length)| O::ReadHeld { slot, offset, length }),
        1 => slot().prop_map(|slot| O::LetGo { slot }),
    ]
    .boxed()
}

/// Many names in one directory, so that its blocks split and its index grows, or most of them
/// removed again.
fn crowd() -> BoxedStrategy<Vec<Operation>> {
    use Operation as O;
    let directory = prop_oneof![Just(String::new()), path().prop_map(|path| path + "/")];
    (
        directory,
        1_usize..90,
        select(vec![8_usize, 60, 240]),
        0_u8..3,
    )
        .prop_map(|(directory, count, length, what)| {
            let paths = (0..count).map(|number| {
                let name = format!("{number:03}{}", "n".repeat(length - 3));
                format!("{directory}{name}")
            });
            match what {
                0 => paths.skip(1).map(|path| O::Remove { path }).collect(),
                _ => paths.map(|path| O::Create { path }).collect(),
            }
        })
        .boxed()
}
