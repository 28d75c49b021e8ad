//! Extent trees and block maps that debugfs made, against what debugfs says of them.

use std::io::{Seek, Write};
use std::process::Stdio;

use super::{BlockLimits, Child, Extent, ExtentNode, Found, Place, verify_checksum};
use crate::checksum::ChecksumSeed;
use crate::dir_entry::{DirBlock, DirFormat};
use crate::indirect::{MapShape, Pointers};
use crate::inode::Inode;
use crate::superblock::Superblock;
use crate::test_image::{TestImage, tool};
use crate::{BlockNo, FileBlock, InodeNo};

/// Runs a script of debugfs commands and returns what it prints.
pub(crate) fn debugfs(image: &TestImage, script: &[u8]) -> Vec<u8> {
    let mut commands = tempfile::tempfile().unwrap();
    commands.write_all(script).unwrap();
    commands.rewind().unwrap();
    let output = tool("debugfs")
        .args(["-w", "-f", "-"])
        .arg(image.path())
        .stdin(commands)
        .stderr(Stdio::null())
        .output()
        .expect("debugfs runs");
    assert!(output.status.success());
    output.stdout
}

/// The extents of an inode, every node checked; and how deep the tree is.
pub(crate) fn extents(image: &TestImage, sb: &Superblock, inode: &Inode) -> (Vec<Extent>, u16) {
    let limits = BlockLimits::from(sb);
    let seed = inode.checksum_seed();
    let root = ExtentNode::parse(inode.block_area(), &Place::Root, &limits).unwrap();
    let mut extents = root.extents().collect();
    for child in root.children() {
        below(image, sb, child, &limits, seed, &mut extents);
    }
    (extents, root.depth())
}

fn below(
    image: &TestImage,
    sb: &Superblock,
    place: Child,
    limits: &BlockLimits,
    seed: ChecksumSeed,
    extents: &mut Vec<Extent>,
) {
    let block = image.block(sb, place.block);
    if sb.has_metadata_csum() {
        verify_checksum(&block, seed).unwrap();
        assert!(verify_checksum(&block, ChecksumSeed(!seed.0)).is_err());
    }
    let node = ExtentNode::parse(&block, &Place::Block(place), limits).unwrap();
    extents.extend(node.extents());
    for child in node.children() {
        assert!(child.first >= place.first && child.end <= place.end);
        below(image, sb, child, limits, seed, extents);
    }
}

/// The blocks of a file that is mapped by extents and has no holes.
pub(crate) fn file_blocks(image: &TestImage, sb: &Superblock, inode: &Inode) -> Vec<Vec<u8>> {
    let blocks = extents(image, sb, inode).0.into_iter().flat_map(|extent| {
        (0..u64::from(extent.len)).map(move |into| BlockNo(extent.start.0 + into))
    });
    blocks.map(|block| image.block(sb, block)).collect()
}

/// The inode at a path below the root, by walking linearly.
pub(crate) fn inode_at(image: &TestImage, sb: &Superblock, path: &[&[u8]]) -> Inode {
    let mut ino = InodeNo::ROOT;
    for name in path {
        let dir = Inode::parse(&image.inode(sb, ino), ino, sb).unwrap();
        let blocks = file_blocks(image, sb, &dir);
        let found = blocks.iter().enumerate().find_map(|(at, block)| {
            let view = DirBlock::new(block, &DirFormat::from(sb), at == 0);
            view.find(name).unwrap().map(|entry| entry.inode)
        });
        ino = found.unwrap_or_else(|| panic!("no {}", String::from_utf8_lossy(name)));
    }
    Inode::parse(&image.inode(sb, ino), ino, sb).unwrap()
}

/// A file with a hole at every second block, written and unwritten by turns.
fn holes(image: &TestImage, unwritten: bool) {
    // A file with bytes in it: zeroes would become holes.
    let mut source = tempfile::NamedTempFile::new().unwrap();
    source.write_all(&vec![0x5A; 1_500_000]).unwrap();
    let mut script = format!("write {} holes\n", source.path().display());
    for block in (1..1400).step_by(2) {
        script += &format!("punch holes {block} {block}\n");
    }
    if unwritten {
        script += "fallocate holes 5000 5099\nfallocate holes 200000 200000\n";
    }
    debugfs(image, script.as_bytes());
}

#[test]
fn a_deep_tree_as_debugfs_prints_it() {
    let image = TestImage::make("extents", 16, &["-t", "ext4", "-b", "1024"]);
    holes(&image, true);
    let sb = image.superblock();
    let inode = inode_at(&image, &sb, &[b"holes"]);
    let (read, depth) = extents(&image, &sb, &inode);
    assert!(depth >= 2, "a tree of depth {depth} shows little");

    let printed = String::from_utf8(debugfs(&image, b"ex -l holes\n")).unwrap();
    let lines = printed.lines().filter(|line| line.contains(" - "));
    let expected: Vec<_> = lines
        .map(|line| {
            let tail = line.split('/').next_back().unwrap();
            let numbers: Vec<u64> = tail
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            let [_, first, _, start, _, len] = numbers[..] else {
                panic!("{line}");
            };
            Extent {
                first: FileBlock(first as u32),
                len: len as u16,
                start: BlockNo(start),
                unwritten: line.contains("Uninit"),
            }
        })
        .collect();
    assert_eq!(read, expected);
    assert!(read.iter().any(|extent| extent.unwritten));

    // Block by block from the root.
    let limits = BlockLimits::from(&sb);
    for block in [0, 1, 2, 700, 1398, 1399, 1400, 5050, 100_000, 200_000] {
        let mut bytes = inode.block_area().to_vec();
        let mut place = Place::Root;
        let found = loop {
            let node = ExtentNode::parse(&bytes, &place, &limits).unwrap();
            match node.find(FileBlock(block)) {
                Found::Child(child) => {
                    bytes = image.block(&sb, child.block);
                    place = Place::Block(child);
                }
                found => break found,
            }
        };
        let expected = expected
            .iter()
            .find(|extent| extent.block_at(FileBlock(block)).is_some());
        match (found, expected) {
            (Found::Extent(found), Some(expected)) => assert_eq!(&found, expected),
            (Found::Hole { until }, None) => assert!(until.0 > block),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_block_map_as_debugfs_walks_it() {
    let image = TestImage::make("block-map", 16, &["-t", "ext2", "-b", "1024"]);
    holes(&image, false);
    let sb = image.superblock();
    let limits = BlockLimits::from(&sb);
    let shape = MapShape::new(sb.block_size()).unwrap();
    // The root directory is mapped by blocks, too.
    let root = Inode::parse(&image.inode(&sb, InodeNo::ROOT), InodeNo::ROOT, &sb).unwrap();
    let lookup = |inode: &Inode, block: u32| {
        let path = shape.path(FileBlock(block)).unwrap();
        let mut bytes = inode.block_area().to_vec();
        let (last, above) = path.slots().split_last().unwrap();
        for slot in above {
            let pointers = Pointers::block(&bytes, &limits);
            bytes = image.block(&sb, pointers.get(*slot).unwrap()?);
        }
        Pointers::block(&bytes, &limits).get(*last).unwrap()
    };
    let entries = image.block(&sb, lookup(&root, 0).unwrap());
    let format = DirFormat::from(&sb);
    let found = DirBlock::new(&entries, &format, true).find(b"holes");
    let ino = found.unwrap().unwrap().inode;
    let inode = Inode::parse(&image.inode(&sb, ino), ino, &sb).unwrap();

    let blocks: Vec<u32> = (0..30).chain(260..280).chain(1380..1464).collect();
    let script: String = blocks
        .iter()
        .map(|block| format!("bmap holes {block}\n"))
        .collect();
    let printed = String::from_utf8(debugfs(&image, script.as_bytes())).unwrap();
    let expected: Vec<u64> = printed
        .lines()
        .filter(|line| !line.starts_with("debugfs"))
        .map(|line| line.trim().parse().unwrap())
        .collect();
    let read: Vec<u64> = blocks
        .iter()
        .map(|block| lookup(&inode, *block).map_or(0, |block| block.0))
        .collect();
    assert_eq!(read, expected);
    assert!(read.contains(&0) && read.iter().any(|block| *block > 0));
}
