//! Directories with very many names.

use pagefence_ext4::mkfs::{Contents, Kind, Parameters};
use pagefence_vfs::{FileSystem as _, NewKind};

use crate::kit::{self, Paths, close, fails, new, open, root};

/// Names of different lengths, so that blocks of entries fill up differently.
fn name(at: u32) -> String {
    format!("{at}{}", "y".repeat(at as usize % 37))
}

fn grow_and_shrink(kind: Kind, block_size: u32, features: &str, count: u32, names: u32) {
    let mut parameters = Parameters::new(kind);
    parameters.block_size = Some(block_size);
    parameters.contents = Contents::Zeros;
    parameters.inodes = Some(count / names + 2000);
    if !features.is_empty() {
        parameters.features.edit(features).unwrap();
    }
    let device = kit::format(&parameters, 160 << 20);
    let fs = open(&device);
    let dir = fs.mkdir("d").unwrap().id;
    let mut id = dir;
    for at in 0..count {
        // Many names of few inodes: the directory is what is tried.
        if at % names == 0 {
            let regular = new(NewKind::Regular, 0o644);
            let made = fs.create(dir, name(at).as_bytes(), &regular, &root());
            id = made.unwrap().attr.id;
        } else {
            fs.link(id, dir, name(at).as_bytes(), &root()).unwrap();
        }
    }
    assert_eq!(fs.list("d").unwrap().len(), count as usize);
    close(fs, &device);
    let fs = open(&device);
    for at in (0..count).step_by(97) {
        let found = fs.lookup(dir, name(at).as_bytes()).unwrap().attr;
        assert!(found.links > 0);
        fails(fs.lookup(dir, format!("{at}.").as_bytes()), "NotFound");
    }
    for at in (0..count).filter(|at| at % 3 != 0) {
        fs.unlink(dir, name(at).as_bytes()).unwrap();
    }
    close(fs, &device);
    let fs = open(&device);
    for at in 0..count {
        if at % 3 == 0 {
            fs.unlink(dir, name(at).as_bytes()).unwrap();
        } else {
            fs.touch(&format!("d/{}", name(at))).unwrap();
            fs.rm(&format!("d/{}", name(at))).unwrap();
        }
    }
    fs.rmd("d").unwrap();
    close(fs, &device);
}

#[test]
fn an_index_grows_by_levels() {
    grow_and_shrink(Kind::Ext4, 4096, "", 120_000, 500);
}

/// Blocks of 1 KiB: 124 entries a node, so that 60,000 names need two levels of them.
#[test]
fn an_index_of_small_blocks() {
    grow_and_shrink(Kind::Ext3, 1024, "", 60_000, 500);
    grow_and_shrink(Kind::Ext4, 1024, "large_dir", 60_000, 500);
}

#[test]
fn a_directory_without_an_index() {
    grow_and_shrink(Kind::Ext2, 4096, "^dir_index", 20_000, 100);
}

/// With three levels, one more than without `large_dir`.
#[test]
fn a_third_level() {
    let mut parameters = Parameters::new(Kind::Ext4);
    parameters.block_size = Some(1024);
    parameters.contents = Contents::Zeros;
    parameters.inodes = Some(4000);
    parameters.features.edit("large_dir").unwrap();
    let device = kit::format(&parameters, 320 << 20);
    let fs = open(&device);
    let dir = fs.mkdir("d").unwrap().id;
    let long = "z".repeat(240);
    let mut id = dir;
    // Three names a block, 126 blocks a node, 123 nodes a root.
    for at in 0..60_000_u32 {
        let name = format!("{at}{long}");
        if at % 50 == 0 {
            let regular = new(NewKind::Regular, 0o644);
            id = fs
                .create(dir, name.as_bytes(), &regular, &root())
                .unwrap()
                .attr
                .id;
        } else {
            fs.link(id, dir, name.as_bytes(), &root()).unwrap();
        }
    }
    for at in (0..60_000).step_by(61) {
        fs.lookup(dir, format!("{at}{long}").as_bytes()).unwrap();
    }
    close(fs, &device);
}

/// An index that is as large as it can be takes no more, and says so before anything changes.
#[test]
fn a_full_index() {
    let mut parameters = Parameters::new(Kind::Ext4);
    parameters.block_size = Some(1024);
    parameters.contents = Contents::Zeros;
    parameters.inodes = Some(4000);
    let device = kit::format(&parameters, 320 << 20);
    let fs = open(&device);
    let dir = fs.mkdir("d").unwrap().id;
    let long = "z".repeat(240);
    let (mut id, mut made, mut refused) = (dir, 0, 0);
    for at in 0..80_000_u32 {
        let name = format!("{at}{long}");
        let done = if at % 50 == 0 {
            let regular = new(NewKind::Regular, 0o644);
            let done = fs.create(dir, name.as_bytes(), &regular, &root());
            done.inspect(|entry| id = entry.attr.id)
        } else {
            fs.link(id, dir, name.as_bytes(), &root())
        };
        match done {
            Ok(_) => made += 1,
            Err(pagefence_vfs::Error::NoSpace) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if refused > 2000 {
            break;
        }
    }
    assert!(made > 20_000 && refused > 2000, "{made} {refused}");
    assert_eq!(fs.list("d").unwrap().len(), made);
    close(fs, &device);
}
