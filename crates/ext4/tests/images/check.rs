//! The check against e2fsck: images that are sound for both, and what a check leaves alone.

use std::ops::ControlFlow;
use std::process::Command;

use pagefence_ext4::check::{CheckError, Event, Summary, check_device, check_image};
use pagefence_ext4::mkfs;
use pagefence_ext4::{FileSystem, MountOptions};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Credentials, FileSystem as _, InodeId, New, NewKind, WriteMode, XattrMode};

use crate::common::{Image, Recipe};

/// What the check finds, a line each.
pub(crate) fn findings(image: &Image) -> (Vec<String>, Summary) {
    let mut lines = Vec::new();
    let summary = check_device(image.device(), &mut |event| {
        if let Event::Finding(finding) = event {
            lines.push(finding.to_string());
        }
        ControlFlow::Continue(())
    });
    let summary = summary.unwrap_or_else(|error| panic!("{error}, after {lines:?}"));
    assert_eq!(summary.findings, lines.len() as u64, "{lines:?}");
    let is_one_line = |line: &String| !line.contains(char::is_control) && line.len() < 500;
    assert!(lines.iter().all(is_one_line), "{lines:?}");
    (lines, summary)
}

/// What e2fsck says: its exit status, and everything beside its title, its passes and its
/// summary.
pub(crate) fn complaints(image: &Image) -> (i32, Vec<String>) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), image.device().to_vec()).expect("an image");
    let output = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(file.path())
        .env("LC_ALL", "C")
        .output()
        .expect("e2fsck (e2fsprogs) runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = text
        .lines()
        .filter(|line| {
            let is_pass = line.starts_with("Pass ");
            let is_summary = line.contains(" files (") && line.contains(" blocks");
            !(line.is_empty() || is_pass || is_summary)
        })
        .map(str::to_owned)
        .collect();
    (output.status.code().expect("it ends"), said)
}

/// Kinds and features that sound images are made of.
const SOUND: [(&str, &str); 24] = [
    ("ext2 1k", "-t ext2 -b 1024"),
    ("ext2 4k", "-t ext2 -b 4096"),
    ("ext3 1k", "-t ext3 -b 1024"),
    ("ext3 4k", "-t ext3 -b 4096"),
    ("ext4 1k", "-t ext4 -b 1024"),
    ("ext4 2k", "-t ext4 -b 2048"),
    ("ext4 4k", "-t ext4 -b 4096"),
    ("many groups", "-t ext4 -b 1024 -g 1024"),
    ("no checksums", "-t ext4 -b 1024 -O ^metadata_csum"),
    (
        "uninit_bg",
        "-t ext4 -b 1024 -g 1024 -O ^metadata_csum,uninit_bg",
    ),
    ("inline_data 1k", "-t ext4 -b 1024 -O inline_data"),
    ("inline_data 4k", "-t ext4 -b 4096 -O inline_data"),
    ("ea_inode", "-t ext4 -b 1024 -O ea_inode"),
    (
        "orphan_file",
        "-t ext4 -b 1024 -O orphan_file,metadata_csum_seed",
    ),
    ("large_dir", "-t ext4 -b 1024 -O large_dir"),
    (
        "meta_bg",
        "-t ext4 -b 1024 -g 1024 -O meta_bg,^resize_inode",
    ),
    ("no flex_bg", "-t ext4 -b 1024 -g 1024 -O ^flex_bg"),
    (
        "sparse_super2",
        "-t ext4 -b 1024 -g 1024 -O sparse_super2,^sparse_super,^resize_inode",
    ),
    (
        "bigalloc",
        "-t ext4 -b 1024 -O bigalloc,^resize_inode -C 8192",
    ),
    ("no extents", "-t ext4 -b 1024 -O ^extent,^64bit"),
    ("small inodes", "-t ext4 -b 1024 -I 128 -O ^extra_isize"),
    ("quota, mmp", "-t ext4 -b 1024 -O quota,mmp,project"),
    ("quota 4k", "-t ext4 -b 4096 -O quota,project,ea_inode,mmp"),
    (
        "quota, bigalloc",
        "-t ext4 -b 1024 -C 8192 -O bigalloc,quota,^resize_inode",
    ),
];

fn root() -> Credentials {
    Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    }
}

/// Fills a file system by what is served: directories of each size, holes, links, attributes, and
/// what is taken away again. False if it can't be written.
fn fill(image: &Image) -> bool {
    let options = MountOptions {
        write: true,
        cache: Some(16 << 20),
        ..MountOptions::default()
    };
    let fs = FileSystem::open(image.device(), &options).expect("it is sound");
    if fs.read_only_because().is_some() {
        return false;
    }
    let make = |parent: InodeId, name: &str, kind: NewKind<'_>| {
        let new = New {
            kind,
            permissions: 0o755,
            umask: 0,
        };
        fs.create(parent, name.as_bytes(), &new, &root())
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .attr
            .id
    };
    let top = make(fs.root(), "filled", NewKind::Directory);
    let many = make(top, "many", NewKind::Directory);
    for number in 0..200 {
        let name = format!("{number:0>60}");
        let id = make(many, &name, NewKind::Regular);
        if number % 3 == 0 {
            fs.unlink(many, name.as_bytes()).expect(&name);
        }
        fs.forget(id);
    }
    let file = make(top, "holes", NewKind::Regular);
    let open = fs.open(file, true).expect("it opens");
    for piece in 0..40_u64 {
        fs.write(&open, piece * 9000, &[7; 3000], WriteMode::default())
            .expect("it is written");
    }
    fs.sync_file(&open, false).expect("it is synced");
    drop(open);
    fs.set_xattr(file, b"user.small", b"value", XattrMode::Set)
        .expect("an attribute");
    fs.set_xattr(file, b"user.large", &[b'v'; 700], XattrMode::Set)
        .expect("an attribute");
    fs.link(file, many, b"other", &root()).expect("a link");
    make(top, "short", NewKind::Symlink(b"holes"));
    make(top, "long", NewKind::Symlink(&[b'l'; 200]));
    for depth in 0..5 {
        make(top, &format!("directory {depth}"), NewKind::Directory);
    }
    fs.rmdir(top, b"directory 3").expect("it is empty");
    fs.shut_down().expect("it closes");
    true
}

#[test]
fn what_is_sound_for_e2fsck_is_sound() {
    let mut table = vec![format!(
        "{:<16} {:>8} {:>10} {:>12}",
        "image", "findings", "complaints", "filled by us"
    )];
    let mut differ = Vec::new();
    for (name, arguments) in SOUND {
        let image = Recipe::rich(arguments).make();
        let before = image.device().to_vec();
        let (lines, summary) = findings(&image);
        let (status, said) = complaints(&image);
        assert_eq!(
            image.device().to_vec(),
            before,
            "{name}: not a byte changes"
        );
        assert!(
            summary.is_complete && summary.directories >= 4,
            "{name}: {summary:?}"
        );
        let filled = fill(&image);
        let (more, after) = findings(&image);
        let (status_after, said_after) = complaints(&image);
        if filled {
            assert!(after.inodes > summary.inodes, "{name}: {after:?}");
        }
        table.push(format!(
            "{name:<16} {:>8} {:>10} {:>12}",
            lines.len() + more.len(),
            said.len() + said_after.len(),
            if filled { "yes" } else { "read-only" }
        ));
        let sound = [lines, more, said, said_after].concat();
        if !sound.is_empty() || status != 0 || status_after != 0 {
            differ.push(format!("{name}: {sound:?}"));
        }
    }
    println!("{}", table.join("\n"));
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[test]
fn what_our_mkfs_makes_is_sound() {
    for (kind, block_size) in [
        (mkfs::Kind::Ext2, 1024),
        (mkfs::Kind::Ext3, 4096),
        (mkfs::Kind::Ext4, 1024),
        (mkfs::Kind::Ext4, 4096),
    ] {
        let device = pagefence_block_io::MemoryDevice::new(64 << 20);
        let mut parameters = mkfs::Parameters::new(kind);
        parameters.block_size = Some(block_size);
        parameters.contents = mkfs::Contents::Zeros;
        mkfs::format(&device, &parameters, &mkfs::Tree::new()).expect("it fits");
        let image = Image::from_bytes(&device.to_vec());
        for _ in 0..2 {
            let (lines, summary) = findings(&image);
            assert_eq!(
                (lines, complaints(&image)),
                (vec![], (0, vec![])),
                "{kind:?}"
            );
            assert!(summary.blocks > 0, "{summary:?}");
            if summary.inodes < 100 {
                fill(&image);
            }
        }
    }
}

#[test]
fn an_unclean_image_is_checked_as_a_mount_would_see_it() {
    let image = Recipe::rich("-t ext4 -b 1024").make();
    let options = MountOptions {
        write: true,
        cache: Some(16 << 20),
        ..MountOptions::default()
    };
    let fs = FileSystem::open(image.device(), &options).expect("it is sound");
    let new = New {
        kind: NewKind::Directory,
        permissions: 0o755,
        umask: 0,
    };
    for number in 0..20 {
        let name = format!("late {number}");
        fs.create(fs.root(), name.as_bytes(), &new, &root())
            .expect("it is made");
    }
    fs.sync().expect("it is durable");
    // As after a power cut: what is only in the journal is all there is.
    let unclean = image.fork();
    fs.shut_down().expect("it closes");
    let before = unclean.device().to_vec();
    let (lines, summary) = findings(&unclean);
    assert_eq!(lines, [""; 0]);
    assert!(summary.was_replayed && summary.is_complete, "{summary:?}");
    assert_eq!(unclean.device().to_vec(), before, "not a byte changes");
    let (_, closed) = findings(&image);
    assert_eq!(closed.directories, summary.directories);
    assert!(!closed.was_replayed);
}

#[test]
fn a_deleted_file_that_was_open_is_no_finding() {
    let image = Recipe::rich("-t ext4 -b 1024").make();
    let options = MountOptions {
        write: true,
        cache: Some(16 << 20),
        ..MountOptions::default()
    };
    let fs = FileSystem::open(image.device(), &options).expect("it is sound");
    let id = crate::common::id(&fs, "small");
    fs.unlink(fs.root(), b"small").expect("it is there");
    fs.sync().expect("it is durable");
    let unclean = image.fork();
    fs.forget(id);
    fs.shut_down().expect("it closes");
    let (lines, summary) = findings(&unclean);
    assert_eq!((lines, summary.orphans), (vec![], 1));
    let (lines, summary) = findings(&image);
    assert_eq!((lines, summary.orphans), (vec![], 0));
}

#[test]
fn who_listens_can_end_it() {
    let image = Recipe::rich("-t ext4 -b 1024").make();
    let mut told = 0;
    let summary = check_device(image.device(), &mut |_| {
        told += 1;
        ControlFlow::Break(())
    });
    let summary = summary.expect("nothing failed");
    assert!(!summary.is_complete && told == 1);
}

#[test]
fn what_is_no_file_system_is_an_error() {
    let device = Arc::new(pagefence_block_io::MemoryDevice::new(1 << 20));
    let result = check_device(device, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(result, Err(CheckError::Open(_))), "{result:?}");
    let missing = std::path::Path::new("no such image");
    let result = check_image(missing, 0, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(result, Err(CheckError::Open(_))), "{result:?}");
}

#[test]
fn a_journal_on_another_device_is_no_finding() {
    let image = Recipe::new(8, "-t ext4 -b 1024 -O ^has_journal").make();
    image.edit_superblock(|bytes| {
        bytes[0x5C] |= 4;
        bytes[0xD0..0xE0].fill(7);
        bytes[0xE4..0xE8].copy_from_slice(&0x0701_u32.to_le_bytes());
    });
    assert_eq!(findings(&image).0, [""; 0]);
}

#[test]
fn bad_blocks_lie_where_they_are_in_their_clusters() {
    let list = tempfile::NamedTempFile::new().expect("a list");
    std::fs::write(list.path(), "5003\n5010\n7001\n").expect("its lines");
    let list = list.path().display();
    let arguments = format!("-t ext4 -b 1024 -O bigalloc,^resize_inode -C 4096 -l {list}");
    let image = Recipe::new(16, &arguments).make();
    assert_eq!(complaints(&image), (0, vec![]));
    assert_eq!(findings(&image).0, [""; 0]);
}

#[test]
fn what_the_hurd_makes_is_sound() {
    let image = Recipe::new(8, "-t ext2 -b 4096 -o hurd")
        .file("small", vec![b's'; 100])
        .make();
    // The mode's upper half, where Linux keeps that of the attribute block.
    let small = crate::exploits::inode_of(&image, "small");
    image.edit_inode(small, |record| record[0x76] = 1);
    assert_eq!(complaints(&image), (0, vec![]));
    assert_eq!(findings(&image).0, [""; 0]);
}
