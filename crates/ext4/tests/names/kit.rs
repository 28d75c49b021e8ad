//! A file system in memory, its operations by path, and its judge.

use std::ops::ControlFlow;
use std::process::Command;
use std::sync::Arc;

use pagefence_block_io::MemoryDevice;
use pagefence_ext4::mkfs::{self, Contents, Kind, Parameters, Tree};
use pagefence_ext4::{FileSystem, MountOptions};
use pagefence_vfs::{
    Attr, Credentials, DirEntry, DirSink, Error, FileSystem as _, InodeId, New, NewKind,
    RenameMode, Result,
};

/// Kinds, block sizes and features that everything is tried on.
pub(crate) const FLAVOURS: [(Kind, u32, &str); 9] = [
    (Kind::Ext2, 1024, ""),
    (Kind::Ext2, 4096, "^dir_index"),
    (Kind::Ext3, 1024, ""),
    (Kind::Ext3, 4096, ""),
    (Kind::Ext4, 1024, ""),
    (Kind::Ext4, 4096, ""),
    (Kind::Ext4, 4096, "inline_data,^has_journal"),
    (Kind::Ext4, 1024, "large_dir,inline_data"),
    (
        Kind::Ext4,
        1024,
        "^metadata_csum,^orphan_file,^extents,^64bit",
    ),
];

pub(crate) fn root() -> Credentials {
    user(0, 0)
}

pub(crate) fn user(uid: u32, gid: u32) -> Credentials {
    Credentials {
        uid,
        gid,
        groups: Vec::new(),
    }
}

pub(crate) fn new(kind: NewKind<'_>, permissions: u16) -> New<'_> {
    New {
        kind,
        permissions,
        umask: 0o022,
    }
}

/// A device with a fresh file system.
pub(crate) fn device(kind: Kind, block_size: u32, features: &str, bytes: u64) -> Arc<MemoryDevice> {
    let mut parameters = Parameters::new(kind);
    parameters.block_size = Some(block_size);
    parameters.contents = Contents::Zeros;
    parameters.hash_seed = [7; 16];
    if !features.is_empty() {
        parameters.features.edit(features).unwrap();
    }
    format(&parameters, bytes)
}

pub(crate) fn format(parameters: &Parameters, bytes: u64) -> Arc<MemoryDevice> {
    let device = Arc::new(MemoryDevice::new(bytes));
    mkfs::format(&*device, parameters, &Tree::default()).unwrap();
    device
}

pub(crate) fn open(device: &Arc<MemoryDevice>) -> FileSystem {
    open_as(device, true)
}

pub(crate) fn open_as(device: &Arc<MemoryDevice>, write: bool) -> FileSystem {
    open_with(device, write, 32 << 20)
}

pub(crate) fn open_with(device: &Arc<MemoryDevice>, write: bool, cache: u64) -> FileSystem {
    let options = MountOptions {
        write,
        cache: Some(cache),
        ..MountOptions::default()
    };
    let fs = FileSystem::open(Arc::clone(device) as Arc<_>, &options).unwrap();
    assert_eq!(fs.notes(), &[] as &[String], "no reason for a note");
    fs
}

/// Closes the file system and has it judged.
pub(crate) fn close(fs: FileSystem, device: &MemoryDevice) {
    fs.shut_down().unwrap();
    drop(fs);
    judge(device);
}

/// Nothing that e2fsck has to say.
pub(crate) fn judge(device: &MemoryDevice) {
    assert_eq!(complaints(device), Vec::<String>::new());
}

/// Everything that e2fsck says beside its title, its passes and its summary.
pub(crate) fn complaints(device: &MemoryDevice) -> Vec<String> {
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), device.to_vec()).unwrap();
    let output = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(image.path())
        .env("LC_ALL", "C")
        .output()
        .expect("e2fsck (e2fsprogs) runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said: Vec<String> = text
        .lines()
        .filter(|line| {
            let is_pass = line.starts_with("Pass ");
            let is_summary = line.contains(" files (") && line.contains(" blocks");
            !(line.is_empty() || line.starts_with("e2fsck ") || is_pass || is_summary)
        })
        .map(str::to_owned)
        .collect();
    assert!(
        output.status.success() || !said.is_empty(),
        "e2fsck: {text} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// The operations, by paths relative to the root.
pub(crate) trait Paths {
    fn parts<'p>(&self, path: &'p str) -> Result<(InodeId, &'p [u8])>;
    fn look(&self, path: &str) -> Result<Attr>;
    fn make(&self, path: &str, kind: NewKind<'_>) -> Result<Attr>;
    fn touch(&self, path: &str) -> Result<Attr> {
        self.make(path, NewKind::Regular)
    }
    fn mkdir(&self, path: &str) -> Result<Attr> {
        self.make(path, NewKind::Directory)
    }
    fn ln(&self, from: &str, to: &str) -> Result<Attr>;
    fn rm(&self, path: &str) -> Result<()>;
    fn rmd(&self, path: &str) -> Result<()>;
    fn mv(&self, from: &str, to: &str) -> Result<()> {
        self.mv_as(from, to, RenameMode::empty())
    }
    fn mv_as(&self, from: &str, to: &str, mode: RenameMode) -> Result<()>;
    fn list(&self, path: &str) -> Result<Vec<(String, u64)>>;
}

impl Paths for FileSystem {
    fn parts<'p>(&self, path: &'p str) -> Result<(InodeId, &'p [u8])> {
        let mut parts: Vec<&str> = path.split('/').collect();
        let name = parts.pop().unwrap();
        let mut at = self.root();
        for part in parts {
            at = self.lookup(at, part.as_bytes())?.attr.id;
        }
        Ok((at, name.as_bytes()))
    }

    fn look(&self, path: &str) -> Result<Attr> {
        if path.is_empty() {
            return self.attr(self.root());
        }
        let (parent, name) = self.parts(path)?;
        Ok(self.lookup(parent, name)?.attr)
    }

    fn make(&self, path: &str, kind: NewKind<'_>) -> Result<Attr> {
        let (parent, name) = self.parts(path)?;
        Ok(self.create(parent, name, &new(kind, 0o777), &root())?.attr)
    }

    fn ln(&self, from: &str, to: &str) -> Result<Attr> {
        let id = self.look(from)?.id;
        let (parent, name) = self.parts(to)?;
        Ok(self.link(id, parent, name, &root())?.attr)
    }

    fn rm(&self, path: &str) -> Result<()> {
        let id = self.look(path).map(|attr| attr.id);
        let (parent, name) = self.parts(path)?;
        self.unlink(parent, name)?;
        self.forget(id?);
        Ok(())
    }

    fn rmd(&self, path: &str) -> Result<()> {
        let id = self.look(path).map(|attr| attr.id);
        let (parent, name) = self.parts(path)?;
        self.rmdir(parent, name)?;
        self.forget(id?);
        Ok(())
    }

    fn mv_as(&self, from: &str, to: &str, mode: RenameMode) -> Result<()> {
        let replaced = self.look(to).map(|attr| attr.id);
        let (parent, name) = self.parts(from)?;
        let (new_parent, new_name) = self.parts(to)?;
        self.rename(parent, name, new_parent, new_name, mode)?;
        if let Ok(id) = replaced {
            self.forget(id);
        }
        Ok(())
    }

    fn list(&self, path: &str) -> Result<Vec<(String, u64)>> {
        struct All(Vec<(String, u64)>);
        impl DirSink for All {
            fn entry(&mut self, entry: &DirEntry<'_>) -> ControlFlow<()> {
                let name = String::from_utf8(entry.name.to_vec()).unwrap();
                if name != "." && name != ".." {
                    self.0.push((name, entry.id.0));
                }
                ControlFlow::Continue(())
            }
        }
        let dir = self.open_dir(self.look(path)?.id)?;
        let mut all = All(Vec::new());
        self.read_dir(&dir, 0, false, &mut all)?;
        all.0.sort();
        Ok(all.0)
    }
}

/// What kind of error it is.
pub(crate) fn kind_of(error: &Error) -> String {
    let text = format!("{error:?}");
    text.split([' ', '(', '{']).next().unwrap().to_owned()
}

/// Asserts that the operation fails so.
pub(crate) fn fails<T: std::fmt::Debug>(result: Result<T>, kind: &str) {
    match result {
        Ok(value) => panic!("{value:?} instead of {kind}"),
        Err(error) => assert_eq!(kind_of(&error), kind, "{error}"),
    }
}
