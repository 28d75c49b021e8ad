//! Images with a few files, opened for writing, and judged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use pagefence_ext4::{FileSystem, MountError, MountOptions};
use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::inode::Inode;
use pagefence_ext4_format::superblock::{SUPERBLOCK_OFFSET, Superblock};
use pagefence_vfs::{Attr, Credentials, FileSystem as _, InodeId, Result, XattrMode};

use crate::kernel::{KernelMount, run};

/// An image of 8 MiB with the files `a`, `b` and `c` (empty but for `a`), the directory `dir`, the
/// symbolic links `link` (fast) and the pipe `pipe`.
pub(crate) struct Image {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

/// Root.
pub(crate) fn root() -> Credentials {
    user(0, 0, &[])
}

pub(crate) fn user(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
    Credentials {
        uid,
        gid,
        groups: groups.to_vec(),
    }
}

impl Image {
    /// Made by mke2fs with these options.
    pub(crate) fn new(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (path, tree) = (dir.path().join("image"), dir.path().join("tree"));
        std::fs::create_dir_all(tree.join("dir")).unwrap();
        std::fs::write(tree.join("a"), vec![7_u8; 3000]).unwrap();
        for name in ["b", "c"] {
            std::fs::write(tree.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("a", tree.join("link")).unwrap();
        run("mkfifo", &[tree.join("pipe").to_str().unwrap()]);
        let (image, tree) = (path.to_str().unwrap(), tree.to_str().unwrap());
        let arguments = [&["-q", "-F", "-d", tree], options, &[image, "8M"]].concat();
        run("mke2fs", &arguments);
        Self { _dir: dir, path }
    }

    /// The same bytes once more.
    pub(crate) fn copy(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::copy(&self.path, &path).unwrap();
        Self { _dir: dir, path }
    }

    pub(crate) fn open(&self) -> Mounted {
        let options = MountOptions {
            write: true,
            cache: Some(16 << 20),
            ..MountOptions::default()
        };
        let mut opened = FileSystem::open_image(&self.path, &options);
        // A child that another test is just starting has the files open that this one had.
        for _ in 0..100 {
            if !matches!(opened, Err(MountError::InUse { .. })) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            opened = FileSystem::open_image(&self.path, &options);
        }
        let fs = opened.unwrap();
        assert!(fs.notes().is_empty(), "{:?}", fs.notes());
        Mounted { fs }
    }

    pub(crate) fn superblock(&self) -> Superblock {
        let bytes = std::fs::read(&self.path).unwrap();
        Superblock::parse(&bytes[SUPERBLOCK_OFFSET as usize..][..1024], None).unwrap()
    }

    /// A block, and an inode's record, as they are on disk.
    pub(crate) fn block(&self, number: u64) -> Vec<u8> {
        let size = self.superblock().block_size() as usize;
        let bytes = std::fs::read(&self.path).unwrap();
        bytes[number as usize * size..][..size].to_vec()
    }

    pub(crate) fn inode(&self, id: InodeId) -> Inode {
        let superblock = self.superblock();
        let number = InodeNo(u32::try_from(id.0).unwrap());
        let imap = debugfs(&self.path, &format!("imap <{number}>"));
        let place = imap.split("located at block ").nth(1).unwrap().trim();
        let (block, offset) = place.split_once(", offset 0x").unwrap();
        let block: u64 = block.parse().unwrap();
        let offset = usize::from_str_radix(offset, 16).unwrap();
        Inode::parse(&self.block(block)[offset..], number, &superblock).unwrap()
    }

    /// Everything that e2fsck says beside its passes and its summary is a complaint.
    pub(crate) fn assert_clean(&self) {
        // time(2) may be a tick behind the clock that the superblock's times come from.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let output = Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(&self.path)
            .env("LC_ALL", "C")
            .env("E2FSCK_TIME", (now.as_secs() + 2).to_string())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let image = self.path.display().to_string();
        let complaint = text.lines().find(|line| {
            let is_summary = line.starts_with(&image) && line.contains(" blocks");
            let is_pass = line.starts_with("Pass ") && line.contains(": Checking ");
            !(line.is_empty() || line.starts_with("e2fsck ") || is_pass || is_summary)
        });
        assert!(output.status.success() && complaint.is_none(), "{text}");
    }
}

/// The kernel's mount of an image; nothing if that is not to be had here.
pub(crate) fn mount(image: &Image, options: &str) -> Option<KernelMount> {
    let mounted = || KernelMount::new(&image.path, options);
    if !Path::new("/dev/loop-control").exists() {
        return mounted();
    }
    // Two that look for a free loop device at once may find the same.
    (0..10).find_map(|_| {
        let found = mounted();
        if found.is_none() {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        found
    })
}

/// What debugfs answers to a request.
pub(crate) fn debugfs(image: &Path, request: &str) -> String {
    run("debugfs", &["-R", request, image.to_str().unwrap()])
}

/// Has debugfs change an image.
pub(crate) fn debugfs_write(image: &Path, request: &str) {
    run("debugfs", &["-w", "-R", request, image.to_str().unwrap()]);
}

/// An open file system. [`Self::close`] ends it well; dropped, it is left to recovery.
pub(crate) struct Mounted {
    pub(crate) fs: FileSystem,
}

/// An inode's attributes by their whole names.
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

impl Mounted {
    pub(crate) fn id(&self, name: &str) -> InodeId {
        if name.is_empty() {
            return self.fs.root();
        }
        self.fs
            .lookup(self.fs.root(), name.as_bytes())
            .unwrap()
            .attr
            .id
    }

    pub(crate) fn attr(&self, name: &str) -> Attr {
        self.fs.attr(self.id(name)).unwrap()
    }

    pub(crate) fn set(&self, file: &str, name: &str, value: &[u8]) -> Result<()> {
        let id = self.id(file);
        self.fs
            .set_xattr(id, name.as_bytes(), value, XattrMode::Set)
    }

    pub(crate) fn remove(&self, file: &str, name: &str) -> Result<()> {
        self.fs.remove_xattr(self.id(file), name.as_bytes())
    }

    pub(crate) fn xattrs(&self, file: &str) -> Xattrs {
        let id = self.id(file);
        let names = self.fs.xattr_names(id).unwrap();
        let values = names.into_iter().map(|name| {
            let value = self.fs.xattr(id, &name.0).unwrap();
            (name.0, value)
        });
        values.collect()
    }

    /// Ends it.
    pub(crate) fn close(self) {
        self.fs.shut_down().unwrap();
    }
}

/// What `getfattr` shows of a file, `security.selinux` left out.
pub(crate) fn shown_by_kernel(path: &Path) -> Xattrs {
    let path = path.to_str().unwrap();
    let arguments = ["-h", "-d", "-m", "-", "-e", "hex", "--absolute-names", path];
    let text = run("getfattr", &arguments);
    let pairs = text.lines().filter(|line| !line.starts_with('#'));
    pairs
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, value) = line.split_once('=').unwrap_or((line, "0x"));
            let value = value.strip_prefix("0x").unwrap();
            let byte = |at: usize| u8::from_str_radix(&value[at..at + 2], 16).unwrap();
            let value = (0..value.len()).step_by(2).map(byte).collect();
            (name.as_bytes().to_vec(), value)
        })
        .filter(|(name, _): &(Vec<u8>, Vec<u8>)| name != b"security.selinux")
        .collect()
}
