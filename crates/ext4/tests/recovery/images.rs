//! Images for the tests of recovery: made by `mke2fs`, damaged and made dirty by `debugfs`,
//! judged by `e2fsck`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use pagefence_block_io::{Device, MemoryDevice};
use pagefence_ext4::{FileSystem, MountError, MountOptions};
use pagefence_lock_order::primitives::Arc;
use tempfile::TempDir;

/// An image in a directory of its own.
pub(crate) struct Image {
    directory: TempDir,
    path: PathBuf,
}

/// What `e2fsck -fn` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) exit: i32,
    pub(crate) complaints: Vec<String>,
    /// Inodes and blocks in use.
    pub(crate) usage: String,
}

impl Findings {
    pub(crate) fn is_clean(&self) -> bool {
        self.exit == 0 && self.complaints.is_empty()
    }
}

impl Image {
    /// A file system of `kib` KiB by these arguments of `mke2fs`, filled by `fill`.
    pub(crate) fn make(kib: u64, arguments: &[&str], fill: impl FnOnce(&Path)) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let root = directory.path().join("root");
        fs::create_dir(&root).expect("a new directory");
        fill(&root);
        let path = directory.path().join("test.img");
        let file = File::create(&path).expect("a new file");
        file.set_len(kib * 1024).expect("room");
        let output = tool("mke2fs")
            .args(["-q", "-F", "-d"])
            .arg(&root)
            .args(arguments)
            .arg(&path)
            .output()
            .expect("mke2fs runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "mke2fs {arguments:?}: {said}");
        Self { directory, path }
    }

    pub(crate) fn fork(&self) -> Self {
        Self::of(&self.bytes())
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let path = directory.path().join("test.img");
        fs::write(&path, bytes).expect("room");
        Self { directory, path }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).expect("the image")
    }

    pub(crate) fn device(&self) -> MemoryDevice {
        MemoryDevice::from_bytes(&self.bytes())
    }

    /// Commands of `debugfs` that change the image. Returns what it printed.
    pub(crate) fn debugfs(&self, commands: &[String]) -> String {
        let script = self.directory.path().join("script");
        let mut file = File::create(&script).expect("a new file");
        for command in commands {
            writeln!(file, "{command}").expect("room");
        }
        let output = tool("debugfs")
            .args(["-w", "-f"])
            .arg(&script)
            .arg(&self.path)
            .output()
            .expect("debugfs runs");
        // It exits with 0 whatever happens, and says its version first.
        let said = String::from_utf8_lossy(&output.stderr);
        let complaints: Vec<_> = said.lines().skip(1).collect();
        assert!(complaints.is_empty(), "debugfs: {complaints:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The number of the inode that a path names.
    pub(crate) fn inode(&self, path: &str) -> u32 {
        let said = self.debugfs(&[format!("stat {path}")]);
        let number = said
            .split_once("Inode: ")
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("no inode of {path}: {said}"))
    }

    /// The blocks of an inode, its map's among them.
    pub(crate) fn blocks(&self, inode: u32) -> Vec<u64> {
        self.debugfs(&[format!("blocks <{inode}>")])
            .lines()
            .last()
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect()
    }

    /// Puts inodes on the orphan list, the first one first.
    pub(crate) fn list_orphans(&self, inodes: &[u32]) {
        let next = inodes.iter().skip(1).copied().chain([0]);
        let mut commands: Vec<String> = inodes
            .iter()
            .zip(next)
            // Those that there are.
            .filter(|(inode, _)| **inode < 1 << 16)
            .map(|(inode, next)| format!("set_inode_field <{inode}> dtime @{next}"))
            .collect();
        let first = inodes.first().copied().unwrap_or(0);
        commands.push(format!("set_super_value last_orphan {first}"));
        self.debugfs(&commands);
    }

    /// What `e2fsck -fn` finds.
    pub(crate) fn check(&self) -> Findings {
        let output = tool("e2fsck")
            .arg("-fn")
            .arg(&self.path)
            .output()
            .expect("e2fsck runs");
        let printed = String::from_utf8_lossy(&output.stdout);
        let mut findings = Findings {
            exit: output.status.code().unwrap_or(-1),
            complaints: Vec::new(),
            usage: String::new(),
        };
        for line in printed.lines().map(str::trim) {
            if line.contains(" files (") && line.ends_with(" blocks") {
                let (_, usage) = line.split_once(": ").unwrap_or(("", line));
                let (files, rest) = usage.split_once(" (").unwrap_or((usage, ""));
                let (_, blocks) = rest.split_once("), ").unwrap_or(("", rest));
                findings.usage = format!("{files}, {blocks}");
            } else if !line.is_empty() && !line.starts_with("Pass ") {
                findings.complaints.push(line.to_owned());
            }
        }
        findings
    }

    /// Lets e2fsck give directories of several blocks an index.
    pub(crate) fn index_directories(&self) {
        let output = tool("e2fsck").arg("-fyD").arg(&self.path).output();
        assert!(output.is_ok_and(|output| output.status.code().is_some_and(|code| code <= 1)));
    }

    /// Lets e2fsck mend the image.
    pub(crate) fn mend(&self) -> &Self {
        let status = tool("e2fsck")
            .arg("-fy")
            .arg(&self.path)
            .output()
            .expect("e2fsck runs")
            .status;
        assert!(
            status.code().is_some_and(|code| code <= 1),
            "e2fsck: {status}"
        );
        self
    }
}

/// Opens the file system for writing: recovers it.
pub(crate) fn recover(device: Arc<dyn Device>) -> Result<FileSystem, MountError> {
    let options = MountOptions {
        write: true,
        cache: Some(16 << 20),
        ..MountOptions::default()
    };
    FileSystem::open(device, &options)
}

/// Opens the file system to be read.
pub(crate) fn read_only(device: Arc<dyn Device>) -> Result<FileSystem, MountError> {
    let options = MountOptions {
        cache: Some(16 << 20),
        ..MountOptions::default()
    };
    FileSystem::open(device, &options)
}

/// Recovers the image's contents in memory and returns them as an image, with the notes.
pub(crate) fn recovered(image: &Image) -> (Image, Vec<String>) {
    let device = Arc::new(image.device());
    let fs = recover(Arc::clone(&device) as Arc<dyn Device>)
        .unwrap_or_else(|error| panic!("recovery: {error}"));
    let notes = fs.notes().to_vec();
    drop(fs);
    (Image::of(&device.to_vec()), notes)
}

/// A tool of e2fsprogs, wherever it is installed.
pub(crate) fn tool(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(extra)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    let found = found
        .unwrap_or_else(|| panic!("this test needs {name} of e2fsprogs, and it is not installed"));
    Command::new(found)
}
