//! Fast commits, written by the tests themselves behind a transaction of `debugfs`.

use std::collections::BTreeMap;
use std::fs;

use pagefence_block_io::MemoryDevice;
use pagefence_ext4_format::journal::FastCommitTag::{Creat, Link, Unlink};
use pagefence_ext4_format::journal::fast_commit::{FastCommitBuilder, FastCommitEntry};
use pagefence_ext4_format::journal::{FastCommitTag, Sequence};
use pagefence_ext4_format::{FileBlock, InodeNo};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::FileSystem as _;

use crate::crashes::{cut_off, seed};
use crate::images::{Image, read_only, recover, recovered};
use crate::journal::dirty;
use crate::orphans::fill;
use crate::walk::walk;

/// Blocks of the fast commit area.
const AREA: u32 = 400;

/// Fast commits in the making.
struct Log(FastCommitBuilder);

impl Log {
    fn entry<'n>(
        &mut self,
        change: impl Fn(FastCommitEntry<'n>) -> FastCommitTag<'n>,
        parent: u32,
        inode: u32,
        name: &'n str,
    ) {
        self.0.push(&change(FastCommitEntry {
            parent: InodeNo(parent),
            ino: InodeNo(inode),
            name: name.as_bytes(),
        }));
    }

    fn add_range(&mut self, inode: u32, first: u32, start: u64, len: u16, unwritten: bool) {
        let stored = if unwritten { len + 0x8000 } else { len };
        let mut extent = [0; 12];
        extent[..4].copy_from_slice(&first.to_le_bytes());
        extent[4..6].copy_from_slice(&stored.to_le_bytes());
        extent[6..8].copy_from_slice(&((start >> 32) as u16).to_le_bytes());
        extent[8..].copy_from_slice(&(start as u32).to_le_bytes());
        let ino = InodeNo(inode);
        self.0.push(&FastCommitTag::AddRange { ino, extent });
    }

    fn del_range(&mut self, inode: u32, first: u32, count: u32) {
        self.0.push(&FastCommitTag::DelRange {
            ino: InodeNo(inode),
            first: FileBlock(first),
            count,
        });
    }

    fn inode(&mut self, inode: u32, record: &Record) {
        self.0.push(&FastCommitTag::Inode {
            ino: InodeNo(inode),
            raw: &record.0,
        });
    }

    fn tail(&mut self) {
        self.0.end_commit();
    }
}

/// An inode's record, as tags hold it.
struct Record([u8; 160]);

impl Record {
    /// An empty file with extents.
    fn new(mode: u16, links: u16, size: u32) -> Self {
        let mut record = Self([0; 160]);
        record.0[0..2].copy_from_slice(&mode.to_le_bytes());
        record.0[4..8].copy_from_slice(&size.to_le_bytes());
        record.0[26..28].copy_from_slice(&links.to_le_bytes());
        record.0[32..36].copy_from_slice(&0x8_0000_u32.to_le_bytes());
        record.0[100..104].copy_from_slice(&77_u32.to_le_bytes());
        record.0[128..130].copy_from_slice(&32_u16.to_le_bytes());
        record
    }

    /// The record of an inode on an image.
    fn of(image: &Image, inode: u32) -> Self {
        let said = image.debugfs(&[format!("imap <{inode}>")]);
        let (_, rest) = said.split_once("located at block ").unwrap();
        let (block, rest) = rest.split_once(", offset 0x").unwrap();
        let offset = u64::from_str_radix(rest.trim(), 16).unwrap();
        let at = block.parse::<u64>().unwrap() * block_size(image) as u64 + offset;
        Self(
            image.bytes()[at as usize..at as usize + 160]
                .try_into()
                .unwrap(),
        )
    }

    fn with_links(mut self, links: u16) -> Self {
        self.0[26..28].copy_from_slice(&links.to_le_bytes());
        self
    }

    fn with_generation(mut self, generation: u32) -> Self {
        self.0[100..104].copy_from_slice(&generation.to_le_bytes());
        self
    }

    fn with_size(mut self, size: u32) -> Self {
        self.0[4..8].copy_from_slice(&size.to_le_bytes());
        self
    }
}

fn block_size(image: &Image) -> usize {
    1024 << image.bytes()[1024 + 24]
}

/// Blocks that are free, ascending.
fn free_blocks(image: &Image, count: usize) -> Vec<u64> {
    image
        .debugfs(&[format!("ffb {count}")])
        .lines()
        .last()
        .unwrap()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// An image whose journal holds a transaction and then what `write` says.
fn with_fast_commits(image: Image, write: impl FnOnce(&Image, &mut Log)) -> Image {
    let image = dirty(image, &["set_inode_field /kept generation 5".to_owned()]).image;
    let size = block_size(&image);
    let journal = image.blocks(8);
    // Blocks of the map are among those of an inode; the journal of these images has none.
    let mut bytes = image.bytes();
    let at = journal[0] as usize * size;
    let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let sequence = word(&bytes, at + 24);
    let length = word(&bytes, at + 16);
    assert_eq!(
        length as usize,
        journal.len(),
        "the journal is in one extent"
    );
    let mut log = Log(FastCommitBuilder::new(size as u32, Sequence(sequence + 1)));
    write(&image, &mut log);
    let mut area = log.0.area().to_vec();
    area.resize(area.len().next_multiple_of(size), 0);
    assert!(area.len() < AREA as usize * size, "{}", area.len());
    let incompat = word(&bytes, at + 0x28) | 0x20;
    bytes[at + 0x28..at + 0x2C].copy_from_slice(&incompat.to_be_bytes());
    bytes[at + 0x54..at + 0x58].copy_from_slice(&AREA.to_be_bytes());
    // The block between the log and the area belongs to neither.
    for (content, block) in area
        .chunks(size)
        .zip(&journal[(length - AREA + 1) as usize..])
    {
        let at = *block as usize * size;
        bytes[at..at + size].copy_from_slice(content);
    }
    Image::of(&bytes)
}

const ARGUMENTS: [&str; 8] = [
    "-t",
    "ext4",
    "-b",
    "1024",
    "-J",
    "size=4",
    "-O",
    "fast_commit",
];

fn image() -> Image {
    Image::make(24 << 10, &ARGUMENTS, fill)
}

/// Every kind of tag.
fn every_tag(image: &Image, log: &mut Log) {
    let root = 2;
    let made = 40;
    let free = free_blocks(image, 60);
    log.inode(made, &Record::new(0o100644, 1, 20 * 1024));
    log.add_range(made, 0, free[0], 1, false);
    log.add_range(made, 5, free[10], 10, true);
    log.add_range(made, 8, free[13], 2, false);
    log.entry(Creat, root, made, "made");
    // A name more for a file, and one less.
    let small = image.inode("/small");
    log.entry(Link, image.inode("/directory"), small, "small-too");
    log.inode(small, &Record::of(image, small).with_links(2));
    log.entry(Unlink, root, image.inode("/kept"), "kept");
    log.entry(Unlink, root, image.inode("/slow-link"), "slow-link");
    log.tail();
    // A second commit: a directory in a new one, a file moved, ranges changed.
    log.inode(41, &Record::new(0o040755, 2, 1024));
    log.entry(Creat, root, 41, "below");
    log.inode(42, &Record::new(0o040755, 2, 1024));
    log.entry(Creat, 41, 42, "deeper");
    log.entry(Link, 42, made, "moved");
    log.entry(Unlink, root, made, "made");
    log.inode(made, &Record::new(0o100644, 1, 30 * 1024));
    let cut = image.inode("/cut");
    log.del_range(cut, 10, 5);
    log.del_range(cut, 100, 10_000);
    log.add_range(cut, 12, free[40], 2, false);
    log.inode(cut, &Record::of(image, cut).with_size(100 * 1024));
    // Moved to other blocks.
    let scattered = image.inode("/scattered");
    log.add_range(scattered, 3, free[50], 3, false);
    log.inode(scattered, &Record::of(image, scattered));
    log.tail();
    // Not finished: of no effect.
    log.entry(Unlink, root, cut, "cut");
}

#[test]
fn every_tag_is_replayed_on_disk_and_in_memory() {
    let image = with_fast_commits(image(), every_tag);
    let device = Arc::new(image.device());
    let in_memory = walk(&read_only(Arc::clone(&device) as _).unwrap());
    assert!(device.to_vec() == image.bytes(), "not a byte changed");
    let (ours, notes) = recovered(&image);
    assert_eq!(notes, [""; 0]);
    let findings = ours.check();
    assert!(findings.is_clean(), "{findings:?}");
    let on_disk = walk(&read_only(Arc::new(ours.device())).unwrap());
    assert_eq!(in_memory, on_disk);
    let paths: Vec<&str> = on_disk.iter().map(|seen| seen.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "/below",
            "/below/deeper",
            "/below/deeper/moved",
            "/cut",
            "/cut-to-nothing",
            "/directory",
            "/directory/small-too",
            "/fast-link",
            "/lost+found",
            "/scattered",
            "/small",
        ]
    );
    // Once more: the journal is empty, so nothing changes but times of the superblock.
    let (again, _) = recovered(&ours);
    assert_eq!(again.check(), findings);
}

#[test]
fn a_replay_that_is_cut_off_starts_over() {
    let image = with_fast_commits(image(), every_tag);
    cut_off("fast commits", &image, true, seed());
}

#[test]
fn ranges_in_pieces_make_a_deep_tree() {
    const COUNT: u32 = 2500;
    let image = with_fast_commits(image(), |image, log| {
        let free = free_blocks(image, 2 * COUNT as usize + 10);
        log.inode(40, &Record::new(0o100644, 1, 4 * COUNT * 1024));
        // Every other place from the middle on, then before it, backwards: nodes split at their
        // ends, in their middle, and at their start.
        let order = (COUNT / 2..COUNT).chain((0..COUNT / 2).rev());
        for at in order {
            log.add_range(40, 4 * at, free[2 * at as usize], 1, at % 7 == 0);
        }
        log.entry(Creat, 2, 40, "deep");
        // Some go again: whole leaves, and single ones.
        log.del_range(40, 0, 900);
        log.del_range(40, 4 * 1200, 1);
        log.del_range(40, 4 * 1500, 1200);
        log.tail();
    });
    let (ours, notes) = recovered(&image);
    assert_eq!(notes, [""; 0]);
    // Nodes that lost entries are not merged, by Linux neither.
    let mut findings = ours.check();
    findings
        .complaints
        .retain(|line| !line.ends_with("could be narrower.  Optimize? no"));
    assert!(findings.is_clean(), "{findings:?}");
    let stat = ours.debugfs(&["stat /deep".to_owned()]);
    assert!(stat.contains("(ETB1)"), "two levels of nodes");
    let mapped = ours.blocks(40).len();
    assert!(mapped > 1900, "{mapped}");
}

/// As `chattr -v` leaves it, which Linux has in a fast commit.
#[test]
fn a_file_with_another_generation_keeps_its_blocks() {
    let before = image();
    let contents = |image: &Image| {
        let seen = walk(&read_only(Arc::new(image.device())).unwrap());
        let cut = seen.into_iter().find(|seen| seen.path == "/cut").unwrap();
        cut.contents
    };
    let expected = contents(&before);
    assert!(!expected.is_empty());
    let dirty = with_fast_commits(before, |image, log| {
        let cut = image.inode("/cut");
        log.inode(cut, &Record::of(image, cut).with_generation(1234));
        log.tail();
    });
    assert!(contents(&dirty) == expected);
    let (ours, notes) = recovered(&dirty);
    assert_eq!(notes, [""; 0]);
    assert!(contents(&ours) == expected);
    let findings = ours.check();
    assert!(findings.is_clean(), "{findings:?}");
}

/// Names in a directory, and lookups of all of them.
fn many_names(image: Image, count: u32) {
    let directory = image.inode("/many");
    let before = walk(&read_only(Arc::new(image.device())).unwrap()).len();
    let name = |at: u32| format!("a-name-that-is-not-short-{at}");
    let dirty = with_fast_commits(image, |image, log| {
        let small = image.inode("/small");
        for at in 0..count {
            log.entry(Link, directory, small, &name(at));
        }
        log.inode(
            small,
            &Record::of(image, small).with_links(count as u16 + 1),
        );
        log.tail();
    });
    let (ours, notes) = recovered(&dirty);
    assert_eq!(notes, [""; 0]);
    let findings = ours.check();
    assert!(findings.is_clean(), "{findings:?}");
    let fs = read_only(Arc::new(ours.device())).unwrap();
    let parent = fs.lookup(fs.root(), b"many").unwrap().attr.id;
    for at in 0..count {
        fs.lookup(parent, name(at).as_bytes())
            .unwrap_or_else(|error| panic!("{}: {error}", name(at)));
    }
    assert_eq!(walk(&fs).len(), before + count as usize);
}

fn with_directory(count: u32) -> Image {
    Image::make(24 << 10, &ARGUMENTS, |root| {
        fill(root);
        fs::create_dir(root.join("many")).unwrap();
        for at in 0..count {
            fs::write(root.join(format!("many/{at}")), b"").unwrap();
        }
    })
}

#[test]
fn a_directory_without_an_index_grows() {
    many_names(with_directory(10), 500);
}

#[test]
fn a_directory_with_an_index_splits_its_blocks() {
    let image = with_directory(400);
    // e2fsck makes the index.
    image.index_directories();
    assert!(
        image
            .debugfs(&["htree_dump /many".to_owned()])
            .contains("Indirect levels: 0")
    );
    assert!(image.check().is_clean(), "{:?}", image.check());
    // So many that the root of the index gets a level more.
    many_names(image, 5500);
}

#[test]
fn inline_files_and_directories_are_replayed() {
    let arguments = [
        "-t",
        "ext4",
        "-b",
        "1024",
        "-J",
        "size=4",
        "-O",
        "fast_commit,inline_data",
    ];
    let image = Image::make(24 << 10, &arguments, fill);
    let image = with_fast_commits(image, |image, log| {
        let mut record = Record::new(0o100644, 1, 11);
        record.0[32..36].copy_from_slice(&0x1000_0000_u32.to_le_bytes());
        record.0[40..51].copy_from_slice(b"hello there");
        log.inode(40, &record);
        log.entry(Creat, image.inode("/directory"), 40, "inline");
        log.tail();
    });
    let fs = recover(Arc::new(image.device())).unwrap();
    let all: BTreeMap<String, usize> = walk(&fs)
        .into_iter()
        .map(|seen| (seen.path, seen.contents.len()))
        .collect();
    assert_eq!(all.get("/directory/inline"), Some(&11));
}

#[test]
fn fast_commits_that_cannot_be_true_change_nothing() {
    type Write = fn(&Image, &mut Log);
    let cases: [(&str, Write); 6] = [
        ("a reserved inode", |_, log| {
            log.inode(8, &Record::new(0o100644, 1, 0));
        }),
        ("blocks of the file system itself", |image, log| {
            log.add_range(image.inode("/cut"), 2000, 2, 1, false);
        }),
        ("blocks past the end", |image, log| {
            log.add_range(image.inode("/cut"), 2000, 1 << 40, 1, false);
        }),
        ("an extent without blocks", |image, log| {
            log.add_range(image.inode("/cut"), 2000, 9000, 0, false);
        }),
        ("a name in a file", |image, log| {
            log.entry(Link, image.inode("/cut"), image.inode("/kept"), "name");
        }),
        ("a name with a slash", |image, log| {
            log.entry(Link, 2, image.inode("/kept"), "../name");
        }),
    ];
    for (what, write) in cases {
        let image = with_fast_commits(image(), |image, log| {
            write(image, log);
            log.tail();
        });
        let fs = read_only(Arc::new(image.device())).unwrap();
        let notes = fs.notes();
        assert!(
            notes.iter().any(|note| note.contains("fast commits")),
            "{what}: {notes:?}"
        );
        assert!(walk(&fs).iter().any(|seen| seen.path == "/kept"), "{what}");
        let device = Arc::new(MemoryDevice::from_bytes(&image.bytes()));
        let error = recover(Arc::clone(&device) as _).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("fast commit"), "{what}: {error}");
    }
}
