//! Contents: holes, block maps, inline data, large blocks, links.

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_vfs::{Error, ExtentState, FileSystem as _, Whence};

use crate::common::{Recipe, at, contents, id, open};
use crate::exploits::inode_of;

/// A sparse file in the host, with data of one block at each offset.
fn sparse(path: &std::path::Path, size: u64, offsets: &[u64]) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::create(path).expect("a file");
    file.set_len(size).expect("a size");
    for &offset in offsets {
        let text = format!("at {offset}");
        file.write_all_at(text.as_bytes(), offset).expect("data");
    }
}

/// The offsets where data is, by the image's own map.
#[test]
fn a_block_map_of_three_levels() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("sparse");
    // 1 KiB blocks: direct to 12 KiB, then 256 KiB, 64 MiB, 16 GiB.
    let offsets = [
        0,
        11 << 10,
        12 << 10,
        267 << 10,
        268 << 10,
        60 << 20,
        70 << 20,
        8 << 30,
    ];
    let size = (16 << 30) + 5;
    sparse(&source, size, &offsets);
    let image = Recipe::new(8, "-t ext2 -b 1024")
        .run(format!("write {} mapped", source.display()))
        .make();
    assert!(
        !image
            .inode(inode_of(&image, "mapped"))
            .flags()
            .contains(InodeFlags::EXTENTS)
    );
    let fs = open(image.device()).expect("it opens");
    let attr = at(&fs, "mapped").expect("it is there");
    assert_eq!(attr.size, size);
    let file = fs.open(attr.id, false).expect("it opens");
    let mut buffer = vec![0xEE; 3000];
    for offset in offsets {
        let text = format!("at {offset}");
        assert_eq!(fs.read(&file, offset, &mut buffer).expect("it reads"), 3000);
        assert_eq!(&buffer[..text.len()], text.as_bytes());
        assert!(buffer[text.len()..1024].iter().all(|&byte| byte == 0));
    }
    assert_eq!(fs.read(&file, size - 5, &mut buffer).expect("it reads"), 5);
    assert_eq!(&buffer[..5], &[0; 5]);

    // SEEK_DATA and SEEK_HOLE tell the runs; extents() tells the same ones.
    let mut runs = Vec::new();
    let mut from = 0;
    while let Ok(data) = fs.seek(&file, from, Whence::Data) {
        let hole = fs.seek(&file, data, Whence::Hole).expect("the end is one");
        assert!(hole > data);
        runs.push((data, hole));
        from = hole;
    }
    assert!(matches!(
        fs.seek(&file, from, Whence::Data),
        Err(Error::NoData)
    ));
    assert!(matches!(
        fs.seek(&file, size, Whence::Hole),
        Err(Error::NoData)
    ));
    assert_eq!(
        fs.seek(&file, size - 1, Whence::Hole).expect("within"),
        size - 1
    );
    let kib = |first: u64, last: u64| (first << 10, last << 10);
    let (mib60, mib70, gib8) = (60 << 10, 70 << 10, 8 << 20);
    assert_eq!(
        runs,
        [
            kib(0, 1),
            kib(11, 13),
            kib(267, 269),
            kib(mib60, mib60 + 1),
            kib(mib70, mib70 + 1),
            kib(gib8, gib8 + 1),
        ]
    );
    let extents = fs.extents(attr.id, 0, u64::MAX, 100).expect("a map");
    let mapped: u64 = extents.iter().map(|extent| extent.length).sum();
    assert_eq!(mapped, 8 << 10);
    assert!(extents.iter().all(|extent| {
        extent.state == ExtentState::Written
            && runs
                .iter()
                .any(|run| run.0 <= extent.logical && extent.logical + extent.length <= run.1)
    }));
    assert_eq!(fs.extents(attr.id, 0, u64::MAX, 2).expect("a map").len(), 2);
    assert_eq!(fs.extents(attr.id, 1 << 20, 1 << 20, 9).expect("a map"), []);
}

#[test]
fn unwritten_extents_read_as_zeros_and_are_holes() {
    let image = Recipe::new(8, "-t ext4 -b 1024 -O ^has_journal")
        .file("f", vec![b'd'; 4096])
        .run("fallocate f 4 19")
        .run("set_inode_field f size 20480")
        .make();
    let fs = open(image.device()).expect("it opens");
    let bytes = contents(&fs, "f");
    assert!(bytes[..4096].iter().all(|&byte| byte == b'd'));
    assert!(bytes[4096..].iter().all(|&byte| byte == 0));
    let attr = at(&fs, "f").expect("it is there");
    let file = fs.open(attr.id, false).expect("it opens");
    assert_eq!(fs.seek(&file, 0, Whence::Hole).expect("within"), 4096);
    assert!(matches!(
        fs.seek(&file, 4096, Whence::Data),
        Err(Error::NoData)
    ));
    let extents = fs.extents(attr.id, 0, 20480, 10).expect("a map");
    let states: Vec<_> = extents.iter().map(|extent| extent.state).collect();
    assert!(states.contains(&ExtentState::Unwritten) && states.contains(&ExtentState::Written));
}

#[test]
fn inline_files() {
    let sizes = [0usize, 1, 59, 60, 61, 100, 150];
    let mut recipe = Recipe::new(8, "-t ext4 -b 1024 -O ^has_journal,inline_data");
    for size in sizes {
        recipe = recipe.file(&format!("f{size}"), vec![b'i'; size]);
    }
    let image = recipe.make();
    let fs = open(image.device()).expect("it opens");
    for size in sizes {
        let path = format!("f{size}");
        assert_eq!(contents(&fs, &path), vec![b'i'; size]);
        let attr = at(&fs, &path).expect("it is there");
        let inline = image
            .inode(inode_of(&image, &path))
            .flags()
            .contains(InodeFlags::INLINE_DATA);
        assert!(inline || size > 100, "{size}");
        let file = fs.open(attr.id, false).expect("it opens");
        let extents = fs.extents(attr.id, 0, u64::MAX, 10).expect("a map");
        if inline {
            if size == 0 {
                assert_eq!(extents, []);
                continue;
            }
            assert_eq!(extents.len(), 1);
            assert_eq!(
                (extents[0].state, extents[0].length),
                (ExtentState::Inline, size as u64)
            );
            assert_eq!(fs.seek(&file, 0, Whence::Data).expect("data"), 0);
            assert_eq!(
                fs.seek(&file, 0, Whence::Hole).expect("its end"),
                size as u64
            );
            assert_eq!(attr.blocks_512, (size as u64).div_ceil(512));
        }
    }
}

/// Blocks larger than a page are served like others.
#[test]
fn blocks_of_64k() {
    let mut data: Vec<u8> = (0..300_000u32).map(|at| (at / 7) as u8).collect();
    data[65_536..3 * 65_536].fill(0);
    let mut recipe = Recipe::new(64, "-t ext4 -b 65536 -O ^has_journal").file("f", data.clone());
    for number in 0..400 {
        recipe = recipe.file(&format!("d/{number:0>250}"), "x");
    }
    let image = recipe
        .run(format!("symlink slow {}", "a".repeat(2000)))
        .rehash()
        .make();
    assert_eq!(image.superblock.block_size(), 65536);
    let fs = open(image.device()).expect("it opens");
    assert!(contents(&fs, "f") == data);
    let all = crate::common::entries_from(&fs, id(&fs, "d"), 0, 1000).expect("it reads");
    assert_eq!(all.len(), 402);
    for number in [0, 399] {
        assert_eq!(contents(&fs, &format!("d/{number:0>250}")), b"x");
    }
    assert_eq!(
        fs.read_link(id(&fs, "slow")).expect("a link"),
        vec![b'a'; 2000]
    );
    let file = fs.open(id(&fs, "f"), false).expect("it opens");
    assert_eq!(fs.seek(&file, 0, Whence::Hole).expect("a hole"), 65_536);
    assert_eq!(
        fs.seek(&file, 65_536, Whence::Data).expect("data"),
        3 * 65_536
    );
}

#[test]
fn links_of_every_length() {
    let lengths = [1usize, 58, 59, 60, 61, 500, 1022];
    for features in [
        "^has_journal",
        "^has_journal,inline_data",
        "^has_journal,ea_inode",
    ] {
        let mut recipe = Recipe::new(8, &format!("-t ext4 -b 1024 -O {features}"));
        for length in lengths {
            recipe = recipe.run(format!("symlink l{length} {}", "t".repeat(length)));
        }
        let image = recipe.make();
        let fs = open(image.device()).expect("it opens");
        for length in lengths {
            let link = id(&fs, &format!("l{length}"));
            let target = fs
                .read_link(link)
                .unwrap_or_else(|error| panic!("{features} {length}: {error}"));
            assert_eq!(target, vec![b't'; length], "{features}");
            assert!(matches!(fs.open(link, false), Err(Error::InvalidArgument)));
        }
        assert!(matches!(
            fs.read_link(fs.root()),
            Err(Error::InvalidArgument)
        ));
        assert!(matches!(fs.open(fs.root(), false), Err(Error::IsDirectory)));
    }
}

#[test]
fn encrypted_inodes_are_named_so() {
    let image = Recipe::new(8, "-t ext4 -b 1024 -O ^has_journal,encrypt")
        .file("d/f", "secret")
        .run("symlink l target")
        .make();
    for path in ["d", "d/f", "l"] {
        image.set_inode(inode_of(&image, path), |inode| {
            inode.set_flags(inode.flags() | InodeFlags::ENCRYPT);
        });
    }
    let fs = open(image.device()).expect("it opens");
    let (dir, link) = (id(&fs, "d"), id(&fs, "l"));
    assert!(matches!(fs.open_dir(dir), Err(Error::NoKey)));
    assert!(matches!(fs.lookup(dir, b"nowhere"), Err(Error::NoKey)));
    assert!(matches!(fs.read_link(link), Err(Error::NoKey)));
    let file = inode_of(&image, "d/f");
    let file = pagefence_vfs::InodeId(file.0.into());
    assert!(matches!(fs.open(file, false), Err(Error::NoKey)));
    assert!(fs.attr(file).is_ok());
}
