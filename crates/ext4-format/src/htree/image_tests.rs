//! Hashes, and an index that e2fsck built, against e2fsprogs.

use std::collections::HashSet;
use std::fs;

use super::{DirHasher, DxNode, DxRoot, HtreeFormat, continues, is_node, verify_checksum};
use crate::dir_entry::{self, DirBlock, DirFormat, Role};
use crate::extent::image_tests::{debugfs, file_blocks, inode_at};
use crate::test_image::{TestImage, tool};

/// Names of every length from 1 to 255, each with and without bytes above 0x7F.
fn names() -> Vec<Vec<u8>> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let mut names = Vec::new();
    for len in 1..=255 {
        names.push((0..len).map(|_| b'a' + random() % 26).collect());
        names.push(
            (0..len)
                .map(|_| match random() {
                    byte if byte < 0x80 => b'0' + byte % 10,
                    byte => byte,
                })
                .collect(),
        );
    }
    names
}

#[test]
fn hashes_of_many_names() {
    let image = TestImage::make("hashes", 1, &["-t", "ext2"]);
    let names = names();
    let seeds = [
        ("", [0; 4]),
        (
            "-s 01020304-0506-0708-090a-0b0c0d0e0ff0",
            [0x0403_0201, 0x0807_0605, 0x0C0B_0A09, 0xF00F_0E0D],
        ),
    ];
    for (option, seed) in seeds {
        for version in 0..6_u8 {
            let mut script = Vec::new();
            for name in &names {
                script.extend(format!("dx_hash -h {version} {option} ").bytes());
                script.extend(name);
                script.push(b'\n');
            }
            let printed = debugfs(&image, &script);
            let hashes: Vec<(u32, u32)> = printed
                .split(|byte| *byte == b'\n')
                .filter(|line| line.starts_with(b"Hash of "))
                .map(|line| {
                    let at = line.windows(6).rposition(|part| part == b" is 0x").unwrap();
                    let tail = str::from_utf8(&line[at + 6..]).unwrap();
                    let (major, minor) = tail.split_once(" (minor 0x").unwrap();
                    let minor = minor.trim_end_matches(')');
                    let number = |text| u32::from_str_radix(text, 16).unwrap();
                    (number(major), number(minor))
                })
                .collect();
            assert_eq!(hashes.len(), names.len());
            let hasher = DirHasher::new(version % 3, version >= 3, &seed).unwrap();
            for (name, expected) in names.iter().zip(hashes) {
                let hash = hasher.hash(name);
                assert_eq!((hash.major, hash.minor), expected, "{version}: {name:?}");
            }
        }
    }
}

/// An image with a directory of `count` files, indexed by e2fsck.
fn indexed(label: &str, count: usize, options: &[&str]) -> (TestImage, HashSet<Vec<u8>>) {
    let source = std::env::temp_dir().join(format!("pagefence-{label}-{}", std::process::id()));
    let dir = source.join("big");
    fs::create_dir_all(&dir).unwrap();
    let mut names = HashSet::new();
    for number in 0..count {
        let name = format!("{number:05}-{}", "\u{e9}".repeat(100));
        fs::write(dir.join(&name), b"").unwrap();
        names.insert(name.into_bytes());
    }
    let inodes = (count + 100).to_string();
    let mut arguments = vec!["-t", "ext4", "-b", "1024", "-N", &inodes];
    arguments.extend(options);
    arguments.extend(["-d", source.to_str().unwrap()]);
    let image = TestImage::make(label, 32, &arguments);
    fs::remove_dir_all(&source).unwrap();
    let checked = tool("e2fsck").args(["-fyD"]).arg(image.path()).output();
    // 0 or 1: nothing is left to mend.
    assert!(matches!(checked.unwrap().status.code(), Some(0 | 1)));
    (image, names)
}

fn check_index(image: &TestImage, names: &HashSet<Vec<u8>>, levels: u8) {
    let sb = image.superblock();
    let dir = inode_at(image, &sb, &[b"big"]);
    let blocks = file_blocks(image, &sb, &dir);
    let format = HtreeFormat {
        checksums: sb.has_metadata_csum(),
        large_dir: false,
        blocks: blocks.len() as u32,
    };
    let root = DxRoot::parse(&blocks[0], &format).unwrap();
    assert_eq!(root.indirect_levels, levels);
    assert_eq!(root.parent.0, 2);
    let hasher = DirHasher::new(root.hash_version, sb.hash_is_unsigned(), &sb.hash_seed()).unwrap();

    // From the index to every leaf: hashes in the range that the index gives.
    let mut leaves: Vec<(u32, usize)> = Vec::new();
    let mut nodes = 1;
    for (hash, block) in root.node.iter() {
        let at = block.0 as usize;
        if levels == 0 {
            leaves.push((hash, at));
        } else {
            nodes += 1;
            assert!(is_node(&blocks[at]));
            let node = DxNode::parse(&blocks[at], &format, hash).unwrap();
            leaves.extend(node.iter().map(|(hash, leaf)| (hash, leaf.0 as usize)));
        }
    }
    assert_eq!(leaves.len() + nodes, blocks.len());
    let mut listed = HashSet::new();
    for (place, (from, at)) in leaves.iter().enumerate() {
        let below = leaves.get(place + 1).map_or(u32::MAX, |(hash, _)| *hash);
        for entry in DirBlock::new(&blocks[*at], &DirFormat::from(&sb), false).entries() {
            let entry = entry.unwrap();
            let major = hasher.hash(entry.name).major;
            assert!(major >= from & !1);
            assert!(major < below || continues(below, major));
            listed.insert(entry.name.to_vec());
        }
    }
    assert_eq!(&listed, names);

    // From a name to its leaf.
    for name in names {
        let major = hasher.hash(name).major;
        let (hash, mut block) = root.node.get(root.node.find(major)).unwrap();
        if levels > 0 {
            let node = DxNode::parse(&blocks[block.0 as usize], &format, hash).unwrap();
            block = node.get(node.find(major)).unwrap().1;
        }
        let leaf = DirBlock::new(&blocks[block.0 as usize], &DirFormat::from(&sb), false);
        assert!(leaf.find(name).unwrap().is_some());
    }

    // Without the index: as linear blocks.
    let mut count = 0;
    for (at, block) in blocks.iter().enumerate() {
        let entries = DirBlock::new(block, &DirFormat::from(&sb), at == 0).entries();
        count += entries
            .filter(|entry| entry.as_ref().unwrap().role == Role::Name)
            .count();
        if !format.checksums {
            continue;
        }
        let seed = dir.checksum_seed();
        if at == 0 || is_node(block) {
            verify_checksum(block, seed).unwrap();
            assert!(dir_entry::verify_checksum(block, seed).is_err());
            let mut again = block.clone();
            super::update_checksum(&mut again, seed).unwrap();
            assert_eq!(&again, block);
        } else {
            dir_entry::verify_checksum(block, seed).unwrap();
            let mut again = block.clone();
            dir_entry::update_checksum(&mut again, seed).unwrap();
            assert_eq!(&again, block);
        }
    }
    assert_eq!(count, names.len());
}

#[test]
fn an_index_of_two_levels_with_checksums() {
    let (image, names) = indexed("htree", 1500, &["-O", "metadata_csum"]);
    check_index(&image, &names, 1);
}

#[test]
fn an_index_of_one_level_without_checksums() {
    let (image, names) = indexed("htree-plain", 200, &["-O", "^metadata_csum"]);
    check_index(&image, &names, 0);
}
