//! Images opened for writing, and judged.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use pagefence_ext4::{File, FileSystem, MountError, MountOptions};
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread::scope;
use pagefence_vfs::{
    Credentials, Error, FileSystem as _, InodeId, New, NewKind, Result, SetAttr, SetTime, WriteMode,
};

/// A kind of file system: what it is called, the options of mke2fs, whether it has extents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) options: &'static [&'static str],
    pub(crate) has_extents: bool,
}

/// Whether power is cut wherever it can be, with `PAGEFENCE_CRASHES=all`, and not in the same few
/// places each time: that takes minutes.
pub(crate) fn is_thorough() -> bool {
    std::env::var_os("PAGEFENCE_CRASHES").is_some_and(|which| which == "all")
}

/// Runs `operation` while another thread has transactions committed, one after the other with `pause`
/// between them: so that commits come at any moment of it.
pub(crate) fn beside_commits<T>(
    fs: &FileSystem,
    pause: Duration,
    operation: impl FnOnce() -> T,
) -> T {
    let is_over = AtomicBool::new(false);
    scope(|scope| {
        scope.spawn(|| {
            let root_dir = fs.open_dir(fs.root()).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                let change = SetAttr {
                    modified: Some(SetTime::Now),
                    ..SetAttr::default()
                };
                fs.set_attr(fs.root(), &change, &root()).unwrap();
                fs.sync_dir(&root_dir).unwrap();
                std::thread::sleep(pause);
            }
        });
        let outcome = operation();
        is_over.store(true, Ordering::Relaxed);
        outcome
    })
}

const fn kind(name: &'static str, options: &'static [&'static str], has_extents: bool) -> Kind {
    Kind {
        name,
        options,
        has_extents,
    }
}

/// Extents and block maps, at each size of blocks; with and without a journal.
pub(crate) const KINDS: [Kind; 8] = [
    kind("ext4 1k", &["-t", "ext4", "-b", "1024"], true),
    kind("ext4 2k", &["-t", "ext4", "-b", "2048"], true),
    kind("ext4 4k", &["-t", "ext4", "-b", "4096"], true),
    kind("ext2 1k", &["-t", "ext2", "-b", "1024"], false),
    kind("ext2 2k", &["-t", "ext2", "-b", "2048"], false),
    kind("ext3 4k", &["-t", "ext3", "-b", "4096"], false),
    kind(
        "ext4 4k without a journal",
        &["-t", "ext4", "-b", "4096", "-O", "^has_journal"],
        true,
    ),
    kind(
        "ext4 1k with a small log",
        &["-t", "ext4", "-b", "1024", "-J", "size=1"],
        true,
    ),
];

impl Kind {
    pub(crate) fn has_journal(&self) -> bool {
        !self.name.starts_with("ext2") && !self.options.contains(&"^has_journal")
    }
}

/// An image in a temporary directory.
pub(crate) struct Image {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

pub(crate) fn root() -> Credentials {
    Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    }
}

impl Image {
    /// Made by mke2fs with these options; `size` as it takes it.
    pub(crate) fn new(options: &[&str], size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let image = path.to_str().unwrap();
        let arguments = [&["-q", "-F"], options, &[image, size]].concat();
        let output = Command::new("mke2fs").args(&arguments).output().unwrap();
        assert!(output.status.success(), "mke2fs {arguments:?}: {output:?}");
        Self { _dir: dir, path }
    }

    /// One of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        Self { _dir: dir, path }
    }

    pub(crate) fn open(&self) -> FileSystem {
        let options = MountOptions {
            write: true,
            cache: Some(16 << 20),
            ..MountOptions::default()
        };
        let mut tries = 0;
        let fs = loop {
            match FileSystem::open_image(&self.path, &options) {
                // Another test's child, which has all our files until it is another program.
                Err(MountError::InUse { .. }) if tries < 1000 => {
                    tries += 1;
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                opened => break opened.unwrap(),
            }
        };
        assert!(fs.notes().is_empty(), "{:?}", fs.notes());
        fs
    }

    /// Everything that e2fsck says beside its passes and its summary is a complaint.
    pub(crate) fn assert_clean(&self, what: &str) {
        let output = Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(&self.path)
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let image = self.path.display().to_string();
        let complaint = text.lines().find(|line| {
            let is_summary = line.starts_with(&image) && line.contains(" blocks");
            let is_pass = line.starts_with("Pass ") && line.contains(": Checking ");
            // A tree that lost entries is sound; the kernel leaves such ones, too.
            let is_offer = line.starts_with("Inode ") && line.ends_with("Optimize? no");
            let is_said = is_pass || is_summary || is_offer;
            !(line.is_empty() || line.starts_with("e2fsck ") || is_said)
        });
        assert!(
            output.status.success() && complaint.is_none(),
            "{what}: {text}"
        );
    }
}

/// Makes an empty file in the root directory.
pub(crate) fn create(fs: &FileSystem, name: &str) -> InodeId {
    try_create(fs, name).unwrap()
}

/// Makes an empty file in the root directory, if it can be made.
pub(crate) fn try_create(fs: &FileSystem, name: &str) -> Result<InodeId> {
    let new = New {
        kind: NewKind::Regular,
        permissions: 0o644,
        umask: 0,
    };
    let made = fs.create(fs.root(), name.as_bytes(), &new, &root());
    Ok(made?.attr.id)
}

pub(crate) fn find(fs: &FileSystem, name: &str) -> InodeId {
    fs.lookup(fs.root(), name.as_bytes()).unwrap().attr.id
}

/// Writes all of `data`; how much was written, and why not more.
pub(crate) fn write_all(
    fs: &FileSystem,
    file: &File,
    offset: u64,
    data: &[u8],
) -> (usize, Option<Error>) {
    write_all_as(fs, file, offset, data, WriteMode::empty())
}

/// The same, in some way.
pub(crate) fn write_all_as(
    fs: &FileSystem,
    file: &File,
    offset: u64,
    data: &[u8],
    mode: WriteMode,
) -> (usize, Option<Error>) {
    let mut done = 0;
    while done < data.len() {
        let rest = &data[done..];
        match fs.write(file, offset + done as u64, rest, mode) {
            Ok(written) => {
                assert!(written > 0, "a write of nothing");
                done += written;
            }
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}

pub(crate) fn read_all(fs: &FileSystem, id: InodeId) -> Vec<u8> {
    let file = fs.open(id, false).unwrap();
    let size = usize::try_from(fs.attr(id).unwrap().size).unwrap();
    let mut bytes = vec![0; size + 1];
    let mut done = 0;
    loop {
        let read = fs.read(&file, done as u64, &mut bytes[done..]).unwrap();
        if read == 0 {
            bytes.truncate(done);
            return bytes;
        }
        done += read;
    }
}

pub(crate) fn set_size(fs: &FileSystem, id: InodeId, size: u64) -> Result<()> {
    let change = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    fs.set_attr(id, &change, &root()).map(drop)
}

/// Numbers that look random, the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }
}
