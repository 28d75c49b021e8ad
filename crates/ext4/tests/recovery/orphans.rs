//! Orphans: deleted while open, or half truncated.

use std::fs;
use std::path::Path;

use pagefence_ext4_format::checksum::ChecksumSeed;
use pagefence_ext4_format::features::RoCompat;
use pagefence_ext4_format::superblock::Superblock;
use pagefence_lock_order::primitives::Arc;

use crate::images::{Image, read_only, recovered};

/// File systems of every way to map blocks, with a journal and without.
pub(crate) const KINDS: [(&str, &[&str]); 6] = [
    ("ext4 1k", &["-t", "ext4", "-b", "1024", "-J", "size=1"]),
    ("ext4 2k", &["-t", "ext4", "-b", "2048", "-J", "size=2"]),
    ("ext4 4k", &["-t", "ext4", "-b", "4096", "-J", "size=4"]),
    ("ext3 1k", &["-t", "ext3", "-b", "1024", "-J", "size=1"]),
    ("ext2 1k", &["-t", "ext2", "-b", "1024"]),
    (
        "ea_inode, inline_data",
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-J",
            "size=1",
            "-O",
            "ea_inode,inline_data",
        ],
    ),
];

pub(crate) fn fill(root: &Path) {
    let bytes = |count: usize| -> Vec<u8> { (0..count).map(|at| (at % 251) as u8 + 1).collect() };
    fs::write(root.join("scattered"), bytes(1_500_000)).expect("room");
    fs::write(root.join("cut"), bytes(900_000)).expect("room");
    fs::write(root.join("cut-to-nothing"), bytes(300_000)).expect("room");
    fs::write(root.join("kept"), bytes(100_000)).expect("room");
    fs::write(root.join("small"), b"a few bytes").expect("room");
    fs::create_dir(root.join("directory")).expect("a directory");
    std::os::unix::fs::symlink("x".repeat(200), root.join("slow-link")).expect("a link");
    std::os::unix::fs::symlink("short", root.join("fast-link")).expect("a link");
}

/// An image with orphans of every kind on its list, and how many bytes "cut" is left with.
pub(crate) fn with_orphans(arguments: &[&str]) -> (Image, u64) {
    let image = Image::make(12 << 10, arguments, fill);
    // Holes in every other place make many extents: a tree of several levels.
    let mut commands: Vec<String> = (1..1400)
        .step_by(3)
        .map(|block| format!("punch /scattered {block} {block}"))
        .collect();
    commands.push("mknod pipe p".to_owned());
    for at in 0..3 {
        // Too large for the inode.
        commands.push(format!("ea_set /small user.large{at} {}", "v".repeat(150)));
    }
    image.debugfs(&commands);
    let deleted = [
        "scattered",
        "small",
        "directory",
        "slow-link",
        "fast-link",
        "pipe",
    ];
    let mut orphans: Vec<u32> = deleted
        .iter()
        .map(|name| image.inode(&format!("/{name}")))
        .collect();
    let mut commands = vec!["set_inode_field / links_count 3".to_owned()];
    for (name, inode) in deleted.iter().zip(&orphans) {
        commands.push(format!("unlink /{name}"));
        commands.push(format!("set_inode_field <{inode}> links_count 0"));
    }
    let size = 12 * 1024 + 77;
    commands.push(format!("set_inode_field /cut size {size}"));
    commands.push("set_inode_field /cut-to-nothing size 0".to_owned());
    image.debugfs(&commands);
    orphans.insert(2, image.inode("/cut"));
    orphans.push(image.inode("/cut-to-nothing"));
    image.list_orphans(&orphans);
    (image, size)
}

#[test]
fn a_list_of_orphans_is_settled_as_by_e2fsck() {
    for (kind, arguments) in KINDS {
        let (image, size) = with_orphans(arguments);
        let mended = image.fork();
        mended.mend();
        let (ours, notes) = recovered(&image);
        assert_eq!(notes, [""; 0], "{kind}");
        let findings = ours.check();
        assert!(findings.is_clean(), "{kind}: {findings:?}");
        assert_eq!(findings.usage, mended.check().usage, "{kind}");
        // The last block is zero behind the file's end.
        let cut = ours.inode("/cut");
        let said = ours.debugfs(&[format!("bmap <{cut}> 0")]);
        assert!(!said.trim().ends_with(" 0"), "{kind}: {said}");
        let stat = ours.debugfs(&[format!("stat <{cut}>")]);
        assert!(stat.contains(&format!("Size: {size}")), "{kind}: {stat}");
        let block_size = block_size(&ours);
        let last = ours
            .debugfs(&[format!("bmap <{cut}> {}", size / block_size)])
            .lines()
            .last()
            .and_then(|line| line.split_whitespace().last()?.parse::<u64>().ok())
            .expect("a block");
        let bytes = ours.bytes();
        let block = &bytes[(last * block_size) as usize..((last + 1) * block_size) as usize];
        let (head, tail) = block.split_at((size % block_size) as usize);
        assert!(head.iter().all(|byte| *byte != 0), "{kind}");
        assert!(tail.iter().all(|byte| *byte == 0), "{kind}");
    }
}

fn block_size(image: &Image) -> u64 {
    1024 << image.bytes()[1024 + 24]
}

#[test]
fn orphans_are_left_alone_by_a_reader() {
    let (image, _) = with_orphans(KINDS[0].1);
    let before = image.bytes();
    let device = Arc::new(image.device());
    drop(read_only(Arc::clone(&device) as _).expect("it opens"));
    assert!(device.to_vec() == before, "not a byte changed");
}

#[test]
fn a_large_orphan_takes_several_transactions() {
    // Groups of 256 blocks, so that many bitmaps change; a log with room for few of them.
    let arguments = [
        "-t",
        "ext4",
        "-b",
        "1024",
        "-g",
        "256",
        "-J",
        "size=1",
        "-O",
        "^resize_inode,^flex_bg",
    ];
    let image = Image::make(160 << 10, &arguments, |root| {
        fs::write(root.join("huge"), b"").expect("room");
    });
    image.debugfs(&["fallocate /huge 0 110000".to_owned()]);
    let huge = image.inode("/huge");
    image.debugfs(&[
        "unlink /huge".to_owned(),
        format!("set_inode_field <{huge}> links_count 0"),
    ]);
    image.list_orphans(&[huge]);
    let mended = image.fork();
    mended.mend();
    let (ours, notes) = recovered(&image);
    assert_eq!(notes, [""; 0]);
    let findings = ours.check();
    assert!(findings.is_clean(), "{findings:?}");
    assert_eq!(findings.usage, mended.check().usage);
}

/// Recovery of an image with a bad list: it opens, says so, and e2fsck can mend the rest.
fn bad_list(image: &Image, what: &str) {
    let (ours, notes) = recovered(image);
    assert!(
        notes.iter().any(|note| note.contains("orphans")),
        "{what}: {notes:?}"
    );
    let state = u16::from_le_bytes([ours.bytes()[1024 + 58], ours.bytes()[1024 + 59]]);
    assert_eq!(state & 2, 2, "{what}: marked as having errors");
    let findings = ours.mend().check();
    assert!(findings.is_clean(), "{what}: {findings:?}");
}

#[test]
fn lists_that_make_no_sense_are_given_up() {
    let base = Image::make(12 << 10, KINDS[0].1, fill);
    let (cut, kept, pipe) = (
        base.inode("/cut"),
        base.inode("/kept"),
        base.inode("/fast-link"),
    );
    for (what, orphans) in [
        ("a reserved inode", vec![5]),
        ("no such inode", vec![4_000_000]),
        ("a free inode", vec![cut, 2000]),
        ("a link with a name", vec![pipe]),
    ] {
        let image = base.fork();
        image.debugfs(&[format!("set_inode_field <{cut}> size 1000")]);
        image.list_orphans(&orphans);
        bad_list(&image, what);
    }
    // Two deleted files that own the same blocks: the second is not freed twice.
    let image = base.fork();
    image.debugfs(&[
        format!("copy_inode <{cut}> <{kept}>"),
        "unlink /cut".to_owned(),
        "unlink /kept".to_owned(),
        format!("set_inode_field <{cut}> links_count 0"),
        format!("set_inode_field <{kept}> links_count 0"),
    ]);
    image.list_orphans(&[cut, kept]);
    bad_list(&image, "blocks owned twice");
}

#[test]
fn blocks_of_the_file_system_itself_are_never_freed() {
    let image = Image::make(12 << 10, KINDS[3].1, fill);
    let cut = image.inode("/cut");
    // The group descriptors, and a block of the journal.
    let journal = image.blocks(8)[3];
    for block in [2, journal] {
        let image = image.fork();
        image.debugfs(&[
            format!("set_inode_field <{cut}> block[2] {block}"),
            "unlink /cut".to_owned(),
            format!("set_inode_field <{cut}> links_count 0"),
        ]);
        image.list_orphans(&[cut]);
        bad_list(&image, "a block of the file system itself");
    }
}

#[test]
fn a_list_that_goes_round_in_a_circle_ends() {
    let image = Image::make(12 << 10, KINDS[0].1, fill);
    let (cut, kept) = (image.inode("/cut"), image.inode("/kept"));
    image.debugfs(&["set_inode_field /cut size 1000".to_owned()]);
    image.list_orphans(&[cut, kept]);
    image.debugfs(&[format!("set_inode_field <{kept}> dtime @{cut}")]);
    let (ours, notes) = recovered(&image);
    assert_eq!(notes, [""; 0]);
    let findings = ours.check();
    assert!(findings.is_clean(), "{findings:?}");
}

#[test]
fn orphans_of_a_file_system_with_errors_are_left() {
    let (image, _) = with_orphans(KINDS[0].1);
    image.debugfs(&["set_super_value state 3".to_owned()]);
    let (ours, notes) = recovered(&image);
    assert!(
        notes.iter().any(|note| note.contains("e2fsck")),
        "{notes:?}"
    );
    assert!(!ours.check().is_clean());
    assert!(ours.mend().check().is_clean());
}

#[test]
fn values_in_inodes_of_their_own_lose_a_user() {
    let arguments = ["-t", "ext4", "-b", "1024", "-J", "size=1", "-O", "ea_inode"];
    let mut image = Image::make(12 << 10, &arguments, |root| {
        fs::write(root.join("a"), b"").expect("room");
        fs::write(root.join("b"), b"").expect("room");
    });
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), [b'v'; 5000]).expect("room");
    let path = file.path().display();
    // Both name the same inodes for their values: each of those has two users.
    let (a, b) = (image.inode("/a"), image.inode("/b"));
    image.debugfs(&[
        format!("ea_set -f {path} /a user.one"),
        format!("ea_set -f {path} /a user.two"),
        format!("copy_inode <{a}> <{b}>"),
        format!("set_inode_field <{}> version 2", b + 1),
        format!("set_inode_field <{}> version 2", b + 2),
    ]);
    // debugfs does not count the values' blocks.
    image.mend();
    let values = |image: &Image| image.debugfs(&[format!("stat <{}>", b + 1)]);
    for (orphan, name, freed) in [(b, "/b", false), (a, "/a", true)] {
        let users = if freed {
            "Version: 0x00000000:00000001"
        } else {
            "00000002"
        };
        assert!(values(&image).contains(users), "{}", values(&image));
        image.debugfs(&[
            format!("unlink {name}"),
            format!("set_inode_field <{orphan}> links_count 0"),
        ]);
        image.list_orphans(&[orphan]);
        let mended = image.fork();
        mended.mend();
        let (ours, notes) = recovered(&image);
        assert_eq!(notes, [""; 0]);
        let findings = ours.check();
        assert!(findings.is_clean(), "{findings:?}");
        // e2fsck leaves inodes that hold values in use when their last user goes.
        let expected = if freed {
            "11/3072 files, 2005/12288 blocks".to_owned()
        } else {
            mended.check().usage
        };
        assert_eq!(findings.usage, expected);
        image = ours;
    }
    assert!(values(&image).contains("Links: 0"), "{}", values(&image));
}

#[test]
fn data_in_the_inode_is_cut_to_its_size() {
    let arguments = [
        "-t",
        "ext4",
        "-b",
        "1024",
        "-J",
        "size=1",
        "-O",
        "inline_data",
        "-I",
        "256",
    ];
    let image = Image::make(12 << 10, &arguments, |root| {
        for name in ["a", "b", "c"] {
            fs::write(root.join(name), [b'x'; 120]).expect("room");
        }
    });
    assert!(
        image
            .debugfs(&["stat /a".to_owned()])
            .contains("0x10000000"),
        "it is inline"
    );
    let inodes = ["/a", "/b", "/c"].map(|name| image.inode(name));
    image.debugfs(&[
        "set_inode_field /a size 70".to_owned(),
        "set_inode_field /b size 20".to_owned(),
        "set_inode_field /c size 0".to_owned(),
    ]);
    image.list_orphans(&inodes);
    let (ours, notes) = recovered(&image);
    assert_eq!(notes, [""; 0]);
    let findings = ours.check();
    assert!(findings.is_clean(), "{findings:?}");
    for (name, size) in [("/a", 70), ("/b", 20), ("/c", 0)] {
        let contents = ours.debugfs(&[format!("cat {name}")]);
        assert_eq!(contents.matches('x').count(), size, "{name}: {contents}");
    }
}

/// Writes the orphan file's first block: these inodes, and what stands in the place of a sound
/// checksum if `sound` is not set.
fn write_orphan_file(image: &Image, orphans: &[u32], sound: bool) -> Image {
    let mut bytes = image.bytes();
    let superblock = Superblock::parse(&bytes[1024..2048], None).expect("a superblock");
    let number = superblock.orphan_file_inode().expect("an orphan file");
    let block = image.blocks(number.0)[0];
    let generation = image
        .debugfs(&[format!("stat <{}>", number.0)])
        .split_once("Generation: ")
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .expect("a generation");
    let size = superblock.block_size() as usize;
    let at = block as usize * size;
    let content = &mut bytes[at..at + size];
    for (slot, orphan) in content.chunks_exact_mut(12).zip(orphans) {
        // Not side by side.
        slot[4..8].copy_from_slice(&orphan.to_le_bytes());
    }
    let (entries, tail) = content.split_at_mut(size - 8);
    assert_eq!(tail[..4], 0x0B10_CA04_u32.to_le_bytes());
    let seed = superblock.checksum_seed().of_inode(number, generation);
    let seed = ChecksumSeed(seed.checksum(&block.to_le_bytes()));
    let checksum = seed.checksum(entries) ^ u32::from(!sound);
    tail[4..].copy_from_slice(&checksum.to_le_bytes());
    // orphan_present
    let mut superblock = superblock;
    let mut features = superblock.features();
    features.ro_compat.insert(RoCompat::ORPHAN_PRESENT);
    superblock.set_features(features);
    superblock.update_checksum();
    bytes[1024..2048].copy_from_slice(superblock.as_bytes());
    Image::of(&bytes)
}

fn with_orphan_file() -> (Image, [u32; 3]) {
    let arguments = [
        "-t",
        "ext4",
        "-b",
        "1024",
        "-J",
        "size=1",
        "-O",
        "orphan_file",
    ];
    let image = Image::make(12 << 10, &arguments, fill);
    let names = ["/scattered", "/directory", "/cut"];
    let inodes = names.map(|name| image.inode(name));
    let [scattered, directory, _] = inodes;
    image.debugfs(&[
        "unlink /scattered".to_owned(),
        "unlink /directory".to_owned(),
        "set_inode_field / links_count 3".to_owned(),
        format!("set_inode_field <{scattered}> links_count 0"),
        format!("set_inode_field <{directory}> links_count 0"),
        "set_inode_field /cut size 5000".to_owned(),
    ]);
    (image, inodes)
}

#[test]
fn orphans_in_the_orphan_file_are_settled() {
    let (image, inodes) = with_orphan_file();
    let image = write_orphan_file(&image, &inodes, true);
    let mended = image.fork();
    mended.mend();
    let (ours, notes) = recovered(&image);
    assert_eq!(notes, [""; 0]);
    let findings = ours.check();
    assert!(findings.is_clean(), "{findings:?}");
    assert_eq!(findings.usage, mended.check().usage);
}

#[test]
fn an_orphan_file_that_is_damaged_is_given_up() {
    let (image, inodes) = with_orphan_file();
    bad_list(
        &write_orphan_file(&image, &inodes, false),
        "a wrong checksum",
    );
    let [scattered, ..] = inodes;
    let twice = write_orphan_file(&image, &[scattered, scattered], true);
    bad_list(&twice, "an inode named twice");
}
