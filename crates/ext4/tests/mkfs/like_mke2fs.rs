//! Sizes and features, each compared with what mke2fs makes of the same.

use std::path::Path;

use pagefence_ext4::mkfs::{Kind, Tree};

use crate::judges::{GIB, KIB, MIB, assert_clean, make, parameters, sparse_file, tool};

/// The lines of `dumpe2fs -h` that two makers must agree on.
fn facts(path: &Path) -> Vec<String> {
    const COMPARED: &[&str] = &[
        "Filesystem revision #",
        "Filesystem features",
        "Filesystem flags",
        "Default mount options",
        "Filesystem state",
        "Errors behavior",
        "Filesystem OS type",
        "Inode count",
        "Block count",
        "Reserved block count",
        "Overhead clusters",
        "Free blocks",
        "Free inodes",
        "First block",
        "Block size",
        "Fragment size",
        "Group descriptor size",
        "Reserved GDT blocks",
        "Blocks per group",
        "Inodes per group",
        "Inode blocks per group",
        "Flex block group size",
        "Mount count",
        "Maximum mount count",
        "Check interval",
        "Reserved blocks uid",
        "First inode",
        "Inode size",
        "Required extra isize",
        "Desired extra isize",
        "Journal inode",
        "Default directory hash",
        "Journal backup",
        "Backup block groups",
        "Checksum type",
        "Orphan file inode",
        "Journal features",
        "Total journal size",
        "Total journal blocks",
        "Max transaction length",
        "Fast commit length",
        "Journal sequence",
        "Journal start",
    ];
    let (success, text) = tool("dumpe2fs", &["-h"], path);
    assert!(success, "{text}");
    text.lines()
        .filter(|line| COMPARED.iter().any(|name| line.starts_with(name)))
        .map(str::to_owned)
        .collect()
}

/// What mke2fs makes of the same, with upstream's features whatever the distribution's are.
fn mke2fs(path: &Path, kind: Kind, block_size: u32, features: &str) {
    let (kind, is_ext4) = match kind {
        Kind::Ext2 => ("ext2", false),
        Kind::Ext3 => ("ext3", false),
        Kind::Ext4 => ("ext4", true),
    };
    // mke2fs would take these for wishes, and refuse them without what they need.
    let mut list = features.to_owned();
    for (default, needs) in [
        ("metadata_csum_seed", "metadata_csum"),
        ("orphan_file", "has_journal"),
    ] {
        let is_gone = features
            .split(',')
            .any(|word| word.strip_prefix('^') == Some(needs));
        if is_ext4 && !is_gone {
            list = format!("{default},{list}");
        }
    }
    let features = list.trim_end_matches(',');
    let block_size = block_size.to_string();
    let mut arguments = vec!["-q", "-F", "-t", kind, "-b", &block_size];
    if !features.is_empty() {
        arguments.extend(["-O", features]);
    }
    let (success, text) = tool("mke2fs", &arguments, path);
    assert!(success, "mke2fs {arguments:?}: {text}");
}

fn check_like_mke2fs(kind: Kind, block_size: u32, size: u64, features: &str) {
    let context = format!("{kind:?}, blocks of {block_size}, {size} bytes, {features:?}");
    let dir = tempfile::tempdir().expect("a directory");
    let path = sparse_file(dir.path(), size);
    make(&path, &parameters(kind, block_size, features), &Tree::new())
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_clean(&path, &context);
    let ours = facts(&path);
    std::fs::remove_file(&path).expect("our image goes");
    let path = sparse_file(dir.path(), size);
    mke2fs(&path, kind, block_size, features);
    let theirs = facts(&path);
    let differing: Vec<_> = (ours.iter().zip(&theirs)).filter(|(a, b)| a != b).collect();
    assert!(
        ours.len() == theirs.len() && differing.is_empty(),
        "{context}: {differing:#?}"
    );
}

#[test]
fn all_kinds_and_block_sizes_are_clean_and_like_those_of_mke2fs() {
    for kind in [Kind::Ext2, Kind::Ext3, Kind::Ext4] {
        for block_size in [1024, 2048, 4096] {
            for size in [256 * KIB, 8 * MIB, 64 * MIB, GIB] {
                check_like_mke2fs(kind, block_size, size, "");
            }
        }
    }
}

#[test]
fn sizes_at_the_edges_of_groups_are_clean_and_like_those_of_mke2fs() {
    for odd in [
        8 * MIB + KIB,
        // One group of small blocks, and a second one: too small, just large enough.
        8193 * KIB,
        8 * MIB + 700 * KIB,
        16 * MIB,
        // The last flexible group has one group.
        (16 * 8 + 4) * MIB,
        511 * MIB,
        700 * MIB + 12 * KIB,
    ] {
        check_like_mke2fs(Kind::Ext4, 1024, odd, "");
        check_like_mke2fs(Kind::Ext3, 1024, odd, "");
    }
    for odd in [1025 * MIB, 17 * 128 * MIB + 40 * KIB, 3 * GIB] {
        check_like_mke2fs(Kind::Ext4, 4096, odd, "");
    }
}

#[test]
fn large_sparse_file_systems_are_clean_and_like_those_of_mke2fs() {
    check_like_mke2fs(Kind::Ext4, 4096, 100 * GIB, "");
    check_like_mke2fs(Kind::Ext4, 4096, 2048 * GIB, "");
    check_like_mke2fs(Kind::Ext4, 1024, 20 * GIB, "");
    check_like_mke2fs(Kind::Ext3, 4096, 20 * GIB, "");
    check_like_mke2fs(Kind::Ext2, 4096, 100 * GIB, "");
}

#[test]
fn edited_features_are_clean_and_like_those_of_mke2fs() {
    for features in [
        "^has_journal",
        "^resize_inode",
        "^resize_inode,meta_bg",
        "^flex_bg",
        "^flex_bg,^resize_inode,meta_bg",
        "^64bit",
        "^64bit,^resize_inode,meta_bg",
        "^metadata_csum",
        "^metadata_csum,uninit_bg",
        "^metadata_csum,^64bit,uninit_bg,^flex_bg",
        "sparse_super2",
        "sparse_super2,^resize_inode",
        "^sparse_super,^resize_inode",
        "fast_commit",
        "^filetype,^dir_index,^ext_attr",
        "^64bit,^extent",
        "large_dir,ea_inode,encrypt,project,verity,stable_inodes",
        "^huge_file,^large_file,^dir_nlink,^extra_isize",
    ] {
        for (block_size, size) in [(1024, 8 * MIB), (1024, 300 * MIB), (4096, 5 * GIB)] {
            check_like_mke2fs(Kind::Ext4, block_size, size, features);
        }
    }
    for features in [
        "extent",
        "flex_bg",
        "64bit,extent",
        "metadata_csum",
        "uninit_bg",
        "none",
    ] {
        check_like_mke2fs(Kind::Ext2, 1024, 64 * MIB, features);
        check_like_mke2fs(Kind::Ext2, 4096, GIB, features);
    }
}
