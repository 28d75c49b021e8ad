//! Directories of every shape: positions, indexes, names.

use std::collections::BTreeSet;

use pagefence_ext4::FileSystem;
use pagefence_ext4_format::htree::DirHasher;
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_vfs::{Cookie, Error, FileSystem as _, InodeId};

use crate::common::{Image, Named, Recipe, entries_from, id, open};
use crate::exploits::inode_of;
use crate::legacy_names::{MAJOR, NAMES};

fn opened(image: &Image) -> FileSystem {
    open(image.device()).expect("it opens")
}

/// Reads a directory in pieces of `most` entries, each by a handle of its own.
fn in_pieces(fs: &FileSystem, dir: InodeId, most: usize) -> Vec<Named> {
    let mut all: Vec<Named> = Vec::new();
    let mut from: Cookie = 0;
    loop {
        let piece = entries_from(fs, dir, from, most).expect("it reads");
        let Some(last) = piece.last() else {
            return all;
        };
        from = last.next;
        all.extend(piece);
        assert!(all.len() < 1_000_000, "it goes round");
    }
}

/// What holds for every directory: each position resumes behind its entry, however it is read,
/// and every name is found.
fn check_positions(image: &Image, path: &str, names: usize) -> Vec<Named> {
    let fs = opened(image);
    let dir = id(&fs, path);
    let all = entries_from(&fs, dir, 0, usize::MAX).expect("it reads");
    let distinct: BTreeSet<_> = all.iter().map(|entry| &entry.name).collect();
    assert_eq!(
        (all.len(), distinct.len()),
        (names + 2, names + 2),
        "{path}"
    );
    assert_eq!(
        (&all[0].name[..], &all[1].name[..]),
        (&b"."[..], &b".."[..])
    );
    for most in [1, 7, 64] {
        assert_eq!(in_pieces(&fs, dir, most), all, "{path} by {most}");
    }
    let shared = fs.open_dir(dir).expect("it opens");
    for (at, entry) in all.iter().enumerate().rev() {
        assert!(i64::try_from(entry.next).is_ok(), "lseek has to carry it");
        let mut next = None;
        let read = fs.read_dir(
            &shared,
            entry.next,
            false,
            &mut |entry: &pagefence_vfs::DirEntry<'_>| {
                next = Some(entry.name.to_vec());
                std::ops::ControlFlow::Break(())
            },
        );
        read.expect("it reads");
        assert_eq!(
            next.as_ref(),
            all.get(at + 1).map(|entry| &entry.name),
            "{path} at {at}"
        );
    }
    for entry in &all[2..] {
        let found = fs.lookup(dir, &entry.name).expect("it is there");
        assert_eq!(found.attr.id, entry.id);
    }
    for missing in [&b"nowhere"[..], b"a", &[b'x'; 255], b"0"] {
        assert!(matches!(fs.lookup(dir, missing), Err(Error::NotFound)));
    }
    assert!(matches!(
        fs.lookup(dir, &[b'x'; 256]),
        Err(Error::NameTooLong)
    ));
    all
}

fn many(recipe: Recipe, count: usize, width: usize) -> Recipe {
    (0..count).fold(recipe, |recipe, number| {
        recipe.file(&format!("d/{number:0>width$}"), "")
    })
}

#[test]
fn an_index_of_two_levels() {
    let recipe = Recipe::new(8, "-t ext4 -b 1024 -O ^has_journal");
    let image = many(recipe, 700, 250).rehash().make();
    let root = image.read_block(image.block_of(inode_of(&image, "d"), 0));
    assert_eq!(root[0x1E], 1, "levels below the root");
    let all = check_positions(&image, "d", 700);
    let seed = image.superblock.hash_seed();
    let unsigned = image.superblock.hash_is_unsigned();
    let hasher = DirHasher::new(root[0x1C], unsigned, &seed).expect("a hash");
    let hashes: Vec<_> = all[2..]
        .iter()
        .map(|entry| hasher.hash(&entry.name).major)
        .collect();
    assert!(hashes.is_sorted(), "in the order of their hashes");
}

#[test]
fn directories_without_an_index() {
    let recipe = Recipe::new(8, "-t ext2 -b 1024 -O ^dir_index");
    let image = many(recipe, 300, 200).make();
    check_positions(&image, "d", 300);
    let recipe = Recipe::new(8, "-t ext4 -b 1024 -O ^has_journal");
    let image = many(recipe, 300, 200).make();
    let flags = image.inode(inode_of(&image, "d")).flags();
    assert!(!flags.contains(InodeFlags::INDEX), "debugfs makes none");
    check_positions(&image, "d", 300);
    check_positions(&image, "lost+found", 0);
}

#[test]
fn one_block_and_inline() {
    let recipe = Recipe::new(8, "-t ext4 -b 4096 -O ^has_journal");
    let image = many(recipe, 20, 10).make();
    check_positions(&image, "d", 20);
    for (count, width) in [(0, 1), (2, 6), (4, 12), (3, 14)] {
        let recipe = Recipe::new(8, "-t ext4 -b 1024 -O ^has_journal,inline_data")
            .run("mkdir d")
            .run("cd d");
        let recipe = (0..count).fold(recipe, |recipe, number| {
            recipe.run(format!("mknod {number:0>width$} p"))
        });
        let image = recipe.make();
        let flags = image.inode(inode_of(&image, "d")).flags();
        // debugfs moves a directory that grows into a block.
        let inline = flags.contains(InodeFlags::INLINE_DATA);
        assert!(inline || count > 2, "{count} names");
        check_positions(&image, "d", count);
    }
}

/// More names of one hash than a cookie's ordinal counts, and than fit into a block.
#[test]
fn many_names_of_one_hash() {
    let arguments =
        "-t ext4 -b 1024 -O ^has_journal -E hash_seed=b3f2a1d4-5c6e-4f70-8a9b-0c1d2e3f4a5b";
    let probe = Recipe::new(8, arguments).make();
    let unsigned = probe.superblock.hash_is_unsigned();
    let hasher = DirHasher::new(0, unsigned, &probe.superblock.hash_seed()).expect("legacy");
    let names: Vec<_> = NAMES.split(' ').collect();
    assert!(
        names
            .iter()
            .all(|name| hasher.hash(name.as_bytes()).major == MAJOR)
    );
    let count = names.len();
    assert!(count > 128, "{count} names of one hash");
    // debugfs makes no legacy index, e2fsck -D takes the superblock's default.
    let mut recipe = Recipe::new(8, arguments).run("set_super_value def_hash_version legacy");
    for name in &names {
        recipe = recipe.file(&format!("d/{name}"), "");
    }
    for number in 0..100 {
        recipe = recipe.file(&format!("d/other-{number}"), "");
    }
    let image = recipe.rehash().make();
    let root = image.read_block(image.block_of(inode_of(&image, "d"), 0));
    assert_eq!(root[0x1C], 0, "the legacy hash");
    check_positions(&image, "d", count + 100);
}

#[test]
fn every_hash_version() {
    for (version, number) in [("legacy", 0), ("half_md4", 1), ("tea", 2)] {
        let recipe = Recipe::new(8, "-t ext4 -b 1024 -O ^has_journal");
        let recipe = recipe.run(format!("set_super_value def_hash_version {version}"));
        let mut recipe = many(recipe, 120, 30);
        for name in ["ünï", "ÿÿÿÿ", "日本語"] {
            recipe = recipe.file(&format!("d/{name}"), "");
        }
        let image = recipe.rehash().make();
        let root = image.read_block(image.block_of(inode_of(&image, "d"), 0));
        assert_eq!(root[0x1C], number, "{version}");
        check_positions(&image, "d", 123);
    }
}

/// Any number is a position: what comes from it is a tail of the directory, or nothing.
#[test]
fn positions_that_nobody_handed_out() {
    let recipe = Recipe::new(8, "-t ext4 -b 1024 -O ^has_journal");
    let image = many(recipe, 200, 100).rehash().make();
    let fs = opened(&image);
    let dir = id(&fs, "d");
    let all = in_pieces(&fs, dir, 50);
    for cookie in (0..64).map(|bit| 1u64 << bit).chain([u64::MAX, 3, 12345]) {
        let tail = entries_from(&fs, dir, cookie, usize::MAX).expect("some position");
        assert!(all.ends_with(&tail), "{cookie:#x}");
    }
}

/// Names of a directory that ignores case are found as they are written, and no other way.
#[test]
fn a_directory_that_ignores_case_has_exact_names() {
    let recipe = Recipe::new(
        8,
        "-t ext4 -b 1024 -O ^has_journal,casefold -E encoding=utf8",
    );
    let image = many(recipe, 200, 100).file("d/MixedCase", "").make();
    let dir = inode_of(&image, "d");
    image.set_inode(dir, |inode| {
        inode.set_flags(inode.flags() | InodeFlags::CASEFOLD);
    });
    check_positions(&image, "d", 201);
    let fs = opened(&image);
    assert!(fs.lookup(id(&fs, "d"), b"MixedCase").is_ok());
    assert!(matches!(
        fs.lookup(id(&fs, "d"), b"mixedcase"),
        Err(Error::NotFound)
    ));
}
