//! The images that are damaged: each has a structure of every kind that its features allow.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use pagefence::device::MemoryDevice;
use pagefence::{Kind, Mkfs, Options, Result, Uuid, Volume};
use pagefence_ext4_format::InodeNo;

use super::fast_commits;
use super::work::FILES;
#[cfg(test)]
use crate::e2fsck;
use crate::e2fsck::file_of;

/// Who makes the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// [`Mkfs`], with these features added or taken away.
    Own(Kind, &'static str),
    /// `mke2fs`, with these arguments: for what the other can't make.
    Mke2fs(&'static str),
}

/// How an image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// What sets it apart.
    pub name: &'static str,
    /// Who makes it.
    pub maker: Maker,
    /// Bytes of a block.
    pub block_size: u32,
    /// Mebibytes of the image.
    pub mib: u64,
    /// It was not closed: its journal holds what is not yet at home, and the log is what is damaged.
    pub is_dirty: bool,
    /// Only cases whose names contain this are tried.
    pub only: &'static str,
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}, blocks of {}", self.name, self.block_size)
    }
}

/// The matrix of features.
#[must_use]
pub fn recipes() -> Vec<Recipe> {
    let own = |name, kind, block_size, features| Recipe {
        name,
        maker: Maker::Own(kind, features),
        block_size,
        mib: if block_size == 1024 { 10 } else { 24 },
        is_dirty: false,
        only: "",
    };
    let dirty = |name, kind, block_size| Recipe {
        is_dirty: true,
        ..own(name, kind, block_size, "")
    };
    let foreign = |name, arguments| Recipe {
        name,
        maker: Maker::Mke2fs(arguments),
        block_size: 1024,
        mib: 10,
        is_dirty: false,
        only: "",
    };
    use Kind::{Ext2, Ext3, Ext4};
    vec![
        own("ext4", Ext4, 1024, ""),
        own("ext4", Ext4, 4096, ""),
        own("ext3", Ext3, 1024, ""),
        own("ext2", Ext2, 1024, ""),
        own("ext2", Ext2, 4096, ""),
        own(
            "ext4 without checksums",
            Ext4,
            1024,
            "^metadata_csum,^metadata_csum_seed,uninit_bg",
        ),
        own("ext4 without extents", Ext4, 1024, "^extents,^64bit"),
        own("ext4 without a journal", Ext4, 4096, "^has_journal"),
        own("ext4 with inline_data", Ext4, 1024, "inline_data"),
        own(
            "ext4 with inline_data",
            Ext4,
            4096,
            "inline_data,^metadata_csum,^metadata_csum_seed",
        ),
        own(
            "ext4 with ea_inode, large_dir",
            Ext4,
            1024,
            "ea_inode,large_dir",
        ),
        own(
            "ext4 with fast_commit, meta_bg",
            Ext4,
            1024,
            "fast_commit,meta_bg,^resize_inode",
        ),
        dirty("ext4 with a full journal", Ext4, 1024),
        dirty("ext4 with a full journal", Ext4, 4096),
        dirty("ext3 with a full journal", Ext3, 1024),
        Recipe {
            is_dirty: true,
            ..own("ext4 with fast commits", Ext4, 1024, "fast_commit")
        },
        foreign("ext4 with bigalloc", "-t ext4 -b 1024 -C 4096 -O bigalloc"),
        foreign(
            "ext4 with mmp, quota",
            "-t ext4 -b 1024 -O mmp,quota,project",
        ),
    ]
}

/// An image in a file.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) file: tempfile::NamedTempFile,
    pub(super) is_dirty: bool,
    pub(super) only: &'static str,
}

/// Makes it, the same each time but for what mke2fs chooses.
///
/// # Errors
/// Who is to make it is not there.
///
/// # Panics
/// It can't be made or filled: what is sound and is served fails.
pub(super) fn make(recipe: &Recipe) -> std::result::Result<Image, String> {
    let file = match recipe.maker {
        Maker::Own(kind, features) => {
            let device = Arc::new(MemoryDevice::new(recipe.mib << 20));
            Mkfs::new(kind)
                .block_size(recipe.block_size)
                .inodes(1024)
                .features(features)
                .uuid(Uuid::from_u128(0x686f_7374_696c_6500))
                .hash_seed(Uuid::from_u128(0x6861_7368))
                .time(UNIX_EPOCH + Duration::from_secs(1_700_000_000))
                .format_device(&*device)
                .expect("the file system is made");
            let device = if recipe.is_dirty {
                let left = fill_and_leave(&device).expect("it is filled");
                match features {
                    "fast_commit" => with_fast_commits(&left).expect("fast commits are written"),
                    _ => left,
                }
            } else {
                fill(&device, recipe).expect("it is filled");
                device
            };
            file_of(&device)
        }
        Maker::Mke2fs(arguments) => foreign(recipe, arguments)?,
    };
    Ok(Image {
        file,
        is_dirty: recipe.is_dirty,
        only: recipe.only,
    })
}

fn open(device: &Arc<MemoryDevice>) -> Result<Volume> {
    let options = Options::new()
        .write(true)
        .cache(16 << 20)
        .commit_interval(Duration::from_secs(3600));
    Volume::open_device(Arc::clone(device) as _, options)
}

/// Something of every kind.
fn fill(device: &Arc<MemoryDevice>, recipe: &Recipe) -> Result<()> {
    let block = u64::from(recipe.block_size);
    let volume = open(device)?;
    volume.create_dir_all("sub/inner")?;
    volume.create_dir("deep")?;
    volume.create_dir("tinydir")?;
    // More pieces than the inode has room for; behind a hole, so that a block map has levels.
    let big = volume.create("big")?;
    for piece in 0..12 {
        let at = if piece < 8 { piece } else { 300 + piece };
        big.write_all_at(2 * at * block, &vec![b'b'; recipe.block_size as usize])?;
    }
    let small = volume.create("small")?;
    small.write_all_at(0, &[b's'; 1500])?;
    volume.set_xattr("small", "user.short", b"value")?;
    volume.set_xattr(
        "small",
        "user.long",
        vec![b'v'; recipe.block_size as usize / 2],
    )?;
    if recipe.name.contains("ea_inode") {
        volume.set_xattr("small", "user.large", vec![b'l'; 3000])?;
    }
    let unwritten = volume.create("unwritten")?;
    if unwritten.allocate(0, 16 * block).is_err() {
        unwritten.write_all_at(0, &[b'u'; 3000])?;
    }
    volume.create("sub/inner/leaf")?.write_all_at(0, b"leaf")?;
    volume.create("tiny")?.write_all_at(0, &[b't'; 90])?;
    volume.create("tinydir/a")?;
    volume.create("tinydir/b")?;
    volume.symlink("small", "fast")?;
    volume.symlink("sub/../".repeat(12) + "small", "slow")?;
    volume.make_node("fifo", pagefence::Node::Fifo)?;
    volume.hard_link("small", "sub/other")?;
    // An index of two levels where blocks are small.
    let names = if recipe.block_size == 1024 { 560 } else { 60 };
    for number in 0..names {
        volume.hard_link("fifo", format!("deep/{number:0>240}"))?;
    }
    volume.sync()?;
    drop((big, small, unwritten));
    volume.close()
}

/// A journal with transactions that are not at home, and a revoked block.
fn fill_and_leave(device: &Arc<MemoryDevice>) -> Result<Arc<MemoryDevice>> {
    let volume = open(device)?;
    volume.create("small")?.write_all_at(0, &[b's'; 1500])?;
    volume.create_dir("sub")?;
    volume.create_dir("going")?;
    volume.create("going/file")?;
    volume.sync()?;
    volume.remove_dir_all("going")?;
    volume.create("big")?.write_all_at(0, &[b'b'; 50_000])?;
    volume.sync()?;
    volume.set_xattr("small", "user.short", b"value")?;
    volume.sync()?;
    let left = Arc::new(device.fork());
    volume.close()?;
    Ok(left)
}

/// What the journal holds, and fast commits on top of that, which are replayed.
fn with_fast_commits(left: &MemoryDevice) -> Result<Arc<MemoryDevice>> {
    let recovered = Arc::new(left.fork());
    let volume = open(&recovered)?;
    let inode = |path| Ok(InodeNo(volume.symlink_metadata(path)?.ino() as u32));
    let inodes = [inode("small")?, inode("sub")?, inode("big")?];
    volume.close()?;
    let device = fast_commits::write(left.fork(), recovered.fork(), inodes);
    let device = Arc::new(device.expect("the image is sound"));
    // As in memory, so on the device.
    for write in [false, true] {
        let volume = Volume::open_device(Arc::new(device.fork()), Options::new().write(write))?;
        for path in ["unwritten", "sub/inner/leaf", "sub/other"] {
            volume.symlink_metadata(path)?;
        }
        volume.close()?;
    }
    Ok(device)
}

fn foreign(
    recipe: &Recipe,
    arguments: &str,
) -> std::result::Result<tempfile::NamedTempFile, String> {
    let tree = tempfile::tempdir().expect("a directory");
    for name in FILES {
        let path = tree.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("its directory");
        std::fs::write(path, vec![b'f'; 3000]).expect("a file");
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(recipe.mib << 20).expect("its size");
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-N", "512", "-E", "root_owner=0:0"]);
    mke2fs.args(arguments.split_whitespace());
    let output = mke2fs.arg("-d").arg(tree.path()).arg(file.path()).output();
    let output = match output {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err("there is no mke2fs".to_owned());
        }
        output => output.expect("mke2fs runs"),
    };
    let said = OsString::from(String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "mke2fs {arguments}: {said:?}");
    // It does not count the files that it copies into quotas.
    let mut e2fsck = Command::new("e2fsck");
    let output = e2fsck.arg("-fy").arg(file.path()).output();
    let status = output.expect("it comes with mke2fs").status;
    assert!(matches!(status.code(), Some(0 | 1)), "e2fsck: {status}");
    Ok(file)
}

#[test]
fn fast_commits_are_sound_once_they_are_home() {
    let recipes = recipes();
    let recipe = recipes
        .iter()
        .find(|it| it.name == "ext4 with fast commits");
    let image = make(recipe.expect("it is listed")).expect("it is made here");
    let bytes = std::fs::read(image.file.path()).expect("the image");
    let device = Arc::new(MemoryDevice::from_bytes(&bytes));
    let volume = open(&device).expect("it opens");
    assert_eq!(volume.notes(), [""; 0]);
    let is_there = |path| volume.symlink_metadata(path).is_ok();
    assert_eq!(
        volume.read_link("fast").expect("a link"),
        Path::new("small")
    );
    assert!(is_there("unwritten") && !is_there("tiny-at-first") && !is_there("going"));
    volume.close().expect("it closes");
    if e2fsck::is_there() {
        assert_eq!(e2fsck::check(&device), Ok(()));
    }
}
