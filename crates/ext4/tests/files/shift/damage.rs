//! Maps that lie: shared, self-pointing, out of range. They cost the operation, not the mount, and
//! nothing goes on for ever.

use pagefence_ext4::FileSystem;
use pagefence_vfs::{Error, FileSystem as _, InodeId};

use super::{COLLAPSE, INSERT};
use crate::maps::set_field;
use crate::support::{Image, create, write_all};

const BLOCK: usize = 1024;
/// Blocks of the file whose map is damaged: it has single and double indirect blocks.
const BLOCKS: u64 = 700;

/// Makes a file, and blocks of our own making that its map is to lead to; where those lie.
fn prepare(image: &Image, crafted: &[&dyn Fn(u32) -> Vec<u8>]) -> (InodeId, Vec<u32>) {
    let fs = image.open();
    let id = create(&fs, "file");
    let file = fs.open(id, true).unwrap();
    for at in 0..BLOCKS {
        write_all(
            &fs,
            &file,
            at * BLOCK as u64,
            &[1 + (at % 251) as u8; BLOCK],
        );
    }
    let mut places = Vec::new();
    for (number, contents) in crafted.iter().enumerate() {
        let id = create(&fs, &format!("crafted{number}"));
        let file = fs.open(id, true).unwrap();
        write_all(&fs, &file, 0, &[1; BLOCK]);
        fs.sync().unwrap();
        let extents = fs.extents(id, 0, u64::MAX, 2).unwrap();
        let place = (extents[0].physical / BLOCK as u64) as u32;
        let mut bytes = contents(place);
        bytes.resize(BLOCK, 0);
        write_all(&fs, &file, 0, &bytes);
        places.push(place);
    }
    drop(file);
    fs.shut_down().unwrap();
    (id, places)
}

/// Both operations are refused, and the file system goes on.
fn assert_refused(image: &Image, id: InodeId, what: &str) {
    for mode in [COLLAPSE, INSERT] {
        let fs: FileSystem = image.open();
        let file = fs.open(id, true).unwrap();
        let outcome = fs.allocate(&file, 0, BLOCK as u64, mode);
        assert!(
            matches!(outcome, Err(Error::Corrupt { .. })),
            "{what}, {mode:?}: {outcome:?}"
        );
        create(&fs, &format!("another {mode:?}"));
        fs.sync().unwrap();
        drop(file);
        fs.shut_down().unwrap();
    }
}

fn words(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

#[test]
fn block_maps_that_lie_are_refused() {
    let itself = |place: u32| words([place; BLOCK / 4]);
    let outside = |_: u32| words([0, 0xffff_fff0]);
    let own = |_: u32| words([1; BLOCK / 4]);
    for (what, slot, crafted) in [
        (
            "three levels that are one block",
            "TIND",
            &itself as &dyn Fn(u32) -> Vec<u8>,
        ),
        ("two levels that are one block", "DIND", &itself),
        ("pointers out of range", "IND", &outside),
        ("indirect blocks out of range", "DIND", &outside),
        ("the file system's own blocks", "DIND", &own),
    ] {
        let image = Image::new(&["-t", "ext2", "-b", "1024"], "8M");
        let (id, places) = prepare(&image, &[crafted]);
        set_field(&image.path, id, &format!("block[{slot}]"), places[0].into());
        assert_refused(&image, id, what);
    }
    let image = Image::new(&["-t", "ext2", "-b", "1024"], "8M");
    let (id, _) = prepare(&image, &[]);
    set_field(&image.path, id, "block[5]", 0x7fff_ff00);
    assert_refused(&image, id, "a direct pointer out of range");
}

/// A node of an extent tree.
fn node(entries: &[[u32; 3]], depth: u32) -> Vec<u8> {
    let header = [0xf30a | (entries.len() as u32) << 16, 84 | depth << 16, 0];
    words(header.iter().chain(entries.iter().flatten()).copied())
}

fn set_root(image: &Image, id: InodeId, entries: &[[u32; 3]], depth: u32) {
    let header = [0xf30a | (entries.len() as u32) << 16, 4 | depth << 16, 0];
    let all = header.iter().chain(entries.iter().flatten());
    for (at, word) in all.enumerate() {
        set_field(&image.path, id, &format!("block[{at}]"), (*word).into());
    }
}

#[test]
fn extent_trees_that_lie_are_refused() {
    let options = ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"];
    let leaf = |_: u32| node(&[[0, 1, 5000], [7, 1, 5001]], 0);
    // Two entries lead to one leaf.
    let image = Image::new(&options, "8M");
    let (id, places) = prepare(&image, &[&leaf]);
    set_root(&image, id, &[[0, places[0], 0], [400, places[0], 0]], 1);
    assert_refused(&image, id, "a leaf that two entries lead to");
    // A node that leads to itself.
    let itself = |place: u32| node(&[[0, place, 0]], 1);
    let image = Image::new(&options, "8M");
    let (id, places) = prepare(&image, &[&itself]);
    set_root(&image, id, &[[0, places[0], 0]], 2);
    assert_refused(&image, id, "a node that leads to itself");
    // Two index nodes lead to one leaf, far apart.
    let image = Image::new(&options, "8M");
    let (id, leaves) = prepare(&image, &[&leaf, &|_| Vec::new(), &|_| Vec::new()]);
    let mut bytes = std::fs::read(&image.path).unwrap();
    for (at, first) in [(leaves[1], 0), (leaves[2], 300)] {
        let index = node(&[[first, leaves[0], 0]], 1);
        let at = at as usize * BLOCK;
        bytes[at..at + index.len()].copy_from_slice(&index);
    }
    std::fs::write(&image.path, bytes).unwrap();
    set_root(&image, id, &[[0, leaves[1], 0], [300, leaves[2], 0]], 2);
    assert_refused(&image, id, "a leaf below two nodes");
}
