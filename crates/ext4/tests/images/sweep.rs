//! Field sweep: every field of every structure is set to each awkward value, its checksum mended,
//! and everything is gone over. Whatever comes of it is an error or nothing, never a panic, a hang
//! or memory without bound.

use std::ops::Range;
use std::time::Instant;

use pagefence_ext4_format::{BlockNo, GroupNo, InodeNo};

use crate::common::edit::Kind;
use crate::common::limits::{Watchdog, check_memory};
use crate::common::log::damage_lines;
use crate::common::{Image, Limits, Recipe, explore, open};
use crate::exploits::inode_of;

/// Widths of the fields of a structure, in bytes.
#[derive(Clone, Copy)]
enum Widths {
    /// 16 and 32 bits.
    Words,
    /// 8, 16 and 32 bits.
    All,
}

/// One way to change one structure.
type Edit<'a> = &'a dyn Fn(&Image, &dyn Fn(&mut [u8]));

struct Sweep<'a> {
    image: &'a Image,
    watchdog: Watchdog,
    cases: usize,
    opened: usize,
    damaged: usize,
}

impl<'a> Sweep<'a> {
    fn new(image: &'a Image) -> Self {
        Self {
            image,
            watchdog: Watchdog::new(),
            cases: 0,
            opened: 0,
            damaged: 0,
        }
    }

    /// Every field in `range` of a structure; `own` is a number that points back to it.
    fn over(&mut self, what: &str, range: Range<usize>, widths: Widths, own: u64, edit: Edit<'_>) {
        let widths: &[usize] = match widths {
            Widths::Words => &[2, 4],
            Widths::All => &[1, 2, 4],
        };
        for &width in widths {
            let max = u64::MAX >> (64 - 8 * width);
            for at in range.clone().step_by(width) {
                let mut values = vec![0, 1, max, max - 1, own & max];
                values.sort_unstable();
                values.dedup();
                for value in values {
                    let case = format!("{what} at {at}, {width} bytes: {value}");
                    self.case(case, edit, &|bytes| {
                        let field = &mut bytes[at..at + width];
                        field.copy_from_slice(&value.to_le_bytes()[..width]);
                    });
                }
            }
        }
    }

    fn case(&mut self, case: String, edit: Edit<'_>, set: &dyn Fn(&mut [u8])) {
        // Many names only where the index itself is what changes: hashing them takes time.
        let entries = if case.starts_with("index") { 300 } else { 30 };
        self.watchdog.case(case);
        let image = self.image.fork();
        edit(&image, set);
        self.cases += 1;
        let limits = Limits {
            entries,
            bytes: 4096,
            inodes: 20,
            lookups: 12,
        };
        let (opened, _) = damage_lines(|| open(image.device()));
        let Ok(fs) = opened else {
            return;
        };
        self.opened += 1;
        let (findings, lines) = damage_lines(|| explore(&fs, &limits));
        if findings.damage() {
            self.damaged += 1;
            assert!(!lines.is_empty(), "{:?}", findings.errors);
        }
    }
}

fn sweep(block_size: u32) {
    let started = Instant::now();
    let image = tree(block_size);
    let find = |path: &str| inode_of(&image, path);
    let (big, small, dir, deep) = (find("big"), find("small"), find("sub"), find("deep"));
    let number = |block: BlockNo| block.0;
    let mut sweep = Sweep::new(&image);

    let own = u64::from(block_size == 1024);
    sweep.over("superblock", 0..0x180, Widths::Words, own, &|image, set| {
        image.edit_superblock(|bytes| set(bytes));
    });
    let (block, _) = image.place_of_group(GroupNo(0));
    sweep.over(
        "descriptor",
        0..64,
        Widths::Words,
        number(block),
        &|image, set| {
            image.edit_group(GroupNo(0), |bytes| set(bytes));
        },
    );
    for (what, inode) in [("root", InodeNo::ROOT), ("file", small)] {
        let own = u64::from(inode.0);
        sweep.over(what, 0..160, Widths::Words, own, &|image, set| {
            image.edit_inode(inode, |bytes| set(bytes));
        });
    }
    sweep.over(
        "attributes",
        160..200,
        Widths::All,
        u64::from(small.0),
        &|image, set| {
            image.edit_inode(small, |bytes| set(bytes));
        },
    );
    let in_block = |owner: InodeNo, block: BlockNo, kind: Kind| {
        move |image: &Image, set: &dyn Fn(&mut [u8])| {
            image.edit_block(owner, block, kind, |bytes| set(bytes));
        }
    };
    let leaf = image.extent_block_of(big, 0).expect("a tree");
    let edit = in_block(big, leaf, Kind::ExtentNode);
    sweep.over("extents", 0..36, Widths::Words, number(leaf), &edit);
    let entries = image.block_of(dir, 0);
    let edit = in_block(dir, entries, Kind::Directory);
    sweep.over("entries", 0..40, Widths::All, u64::from(dir.0), &edit);
    let root = image.block_of(deep, 0);
    let edit = in_block(deep, root, Kind::Index);
    sweep.over("index root", 0..56, Widths::All, 0, &edit);
    let node = image.block_of(deep, node_of(&image, root));
    let edit = in_block(deep, node, Kind::Index);
    let own = u64::from(node_of(&image, root));
    sweep.over("index node", 0..32, Widths::Words, own, &edit);
    let block = image.inode(small).file_acl().expect("a block");
    let edit = in_block(small, block, Kind::Xattrs);
    sweep.over("attribute block", 0..64, Widths::All, number(block), &edit);

    let Sweep {
        cases,
        opened,
        damaged,
        ..
    } = sweep;
    println!(
        "{cases} cases of {block_size}: {opened} opened, {damaged} damaged, {:?}",
        started.elapsed()
    );
    assert!(cases > 2500 && opened > cases / 4 && damaged > cases / 20);
    check_memory();
}

/// As few files as have every structure.
fn tree(block_size: u32) -> Image {
    Recipe::rich(&format!(
        "-t ext4 -b {block_size} -N 700 -O ^has_journal,^resize_inode"
    ))
    .make()
}

/// The directory's block of the first node below an index root; the first leaf, if there is none.
fn node_of(image: &Image, root: BlockNo) -> u32 {
    let bytes = image.read_block(root);
    u32::from_le_bytes(bytes[0x24..0x28].try_into().expect("4 bytes"))
}

#[test]
fn fields_of_an_image_of_1k_blocks() {
    sweep(1024);
}

#[test]
fn fields_of_an_image_of_4k_blocks() {
    sweep(4096);
}
