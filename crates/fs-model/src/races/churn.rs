//! Somebody who changes metadata in all ways that there are, frees it, and uses it again.

use pagefence_vfs::{
    Error, FallocateMode, FileSystem, InodeId, MapFormat, NewKind, RenameMode, Result, SetAttr,
    WriteMode, XattrMode,
};

use super::random::Random;
use super::{make, root};

/// Names of a kind that are used.
const NAMES: u64 = 8;

/// Chooses what to do by a seed, in a directory of its own.
pub struct Churn<'a, F> {
    fs: &'a F,
    random: Random,
    home: InodeId,
    /// What was done so far.
    pub steps: u64,
}

/// Leaves `bytes` free, so that what is freed is soon used again: for files of bytes that metadata would not be.
///
/// # Errors
/// What the file system says.
pub fn leave_room<F: FileSystem>(fs: &F, bytes: u64) -> Result<()> {
    const PIECE: u64 = 1 << 16;
    let filler = make(fs, fs.root(), b"filler", NewKind::Regular)?;
    let file = fs.open(filler, true)?;
    let free = fs.stat_fs()?;
    let free = free.blocks_available * u64::from(free.block_size);
    for at in (0..free.saturating_sub(bytes)).step_by(PIECE as usize) {
        fs.write(&file, at, &[0xA5; PIECE as usize], WriteMode::default())?;
    }
    drop(file);
    fs.sync()
}

impl<'a, F: FileSystem> Churn<'a, F> {
    /// One in a new directory, named for `seed`.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn new(fs: &'a F, seed: u64) -> Result<Self> {
        let name = format!("churn {seed}");
        let home = make(fs, fs.root(), name.as_bytes(), NewKind::Directory)?;
        Ok(Self {
            fs,
            random: Random::new(seed, 0),
            home,
            steps: 0,
        })
    }

    /// Does one thing. That there is no space for it, or nothing to do it to, is no failure.
    ///
    /// # Errors
    /// What should not fail did: a sentence that says what.
    pub fn step(&mut self) -> std::result::Result<(), String> {
        let kind = self.random.below(16);
        let done = match kind {
            0..=3 => self.write(),
            4 => self.sync(),
            5 => self.unlink(),
            6 => self.truncate(),
            7 => self.punch(),
            8 | 9 => self.make_directory(),
            10 => self.remove_directory(),
            11 => self.set_attribute(),
            12 => self.remove_attribute(),
            13 => self.rename(),
            14 => self.link(),
            _ => self.migrate(),
        };
        self.steps += 1;
        match done {
            Ok(())
            | Err(
                Error::NoSpace
                | Error::NotFound
                | Error::Exists
                | Error::NotEmpty
                | Error::Again
                | Error::NoAttribute
                | Error::InvalidArgument
                | Error::IsDirectory
                | Error::NotDirectory
                | Error::TooLarge
                | Error::Unsupported(_),
            ) => Ok(()),
            Err(error) => Err(format!("after {} steps, kind {kind}: {error}", self.steps)),
        }
    }

    fn name(&mut self, kind: &str) -> Vec<u8> {
        let number = self.random.below(NAMES);
        format!("{kind} {number:0>60}").into_bytes()
    }

    fn find(&mut self, kind: &str) -> Result<InodeId> {
        let name = self.name(kind);
        Ok(self.fs.lookup(self.home, &name)?.attr.id)
    }

    fn write(&mut self) -> Result<()> {
        let name = self.name("file");
        let id = match make(self.fs, self.home, &name, NewKind::Regular) {
            Ok(id) => id,
            Err(Error::Exists) => self.fs.lookup(self.home, &name)?.attr.id,
            Err(error) => return Err(error),
        };
        let file = self.fs.open(id, true)?;
        let length = 1 + self.random.below(60_000) as usize;
        let offset = self.random.below(200_000);
        // Bytes that metadata would not be.
        let bytes = vec![0xA5; length];
        self.fs.write(&file, offset, &bytes, WriteMode::default())?;
        if self.random.one_in(2) {
            self.fs.sync_file(&file, false)?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.fs.sync()
    }

    fn unlink(&mut self) -> Result<()> {
        let kind = ["file", "symlink", "link"][self.random.below(3) as usize];
        let name = self.name(kind);
        let id = self.fs.lookup(self.home, &name)?.attr.id;
        self.fs.unlink(self.home, &name)?;
        // Some stay open for a while.
        if self.random.one_in(3) {
            self.write()?;
        }
        self.fs.forget(id);
        Ok(())
    }

    fn truncate(&mut self) -> Result<()> {
        let id = self.find("file")?;
        let change = SetAttr {
            size: Some(self.random.below(150_000)),
            ..SetAttr::default()
        };
        self.fs.set_attr(id, &change, &root()).map(drop)
    }

    fn punch(&mut self) -> Result<()> {
        let id = self.find("file")?;
        let file = self.fs.open(id, true)?;
        let mode = [
            FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE,
            FallocateMode::COLLAPSE_RANGE,
            FallocateMode::INSERT_RANGE,
            FallocateMode::empty(),
        ][self.random.below(4) as usize];
        let (offset, length) = (
            self.random.below(60) << 10,
            (1 + self.random.below(40)) << 10,
        );
        self.fs.allocate(&file, offset, length, mode)
    }

    /// One of many blocks, with an index.
    fn make_directory(&mut self) -> Result<()> {
        let name = self.name("directory");
        let id = make(self.fs, self.home, &name, NewKind::Directory)?;
        for number in 0..10 + self.random.below(40) {
            let name = format!("{number:0>200}");
            let kind = match number % 8 {
                0 => NewKind::Directory,
                1 => NewKind::Symlink(&[b't'; 300]),
                _ => NewKind::Regular,
            };
            let id = make(self.fs, id, name.as_bytes(), kind)?;
            self.fs.forget(id);
        }
        Ok(())
    }

    fn remove_directory(&mut self) -> Result<()> {
        let name = self.name("directory");
        let id = self.fs.lookup(self.home, &name)?.attr.id;
        for number in 0..50 {
            let name = format!("{number:0>200}");
            let removed = match number % 8 {
                0 => self.fs.rmdir(id, name.as_bytes()),
                _ => self.fs.unlink(id, name.as_bytes()),
            };
            match removed {
                Ok(()) | Err(Error::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        self.fs.rmdir(self.home, &name)?;
        self.fs.forget(id);
        // What it had is free when that is durable, and soon somebody's data.
        self.fs.sync()?;
        self.write()
    }

    fn set_attribute(&mut self) -> Result<()> {
        let id = self.find("file")?;
        let name = format!("user.{}", self.random.below(3));
        let value = vec![b'v'; self.random.below(800) as usize];
        self.fs
            .set_xattr(id, name.as_bytes(), &value, XattrMode::Set)
    }

    fn remove_attribute(&mut self) -> Result<()> {
        let id = self.find("file")?;
        let name = format!("user.{}", self.random.below(3));
        self.fs.remove_xattr(id, name.as_bytes())
    }

    fn rename(&mut self) -> Result<()> {
        let kind = ["file", "directory"][self.random.below(2) as usize];
        let (from, to) = (self.name(kind), self.name(kind));
        let mode = match self.random.below(3) {
            0 => RenameMode::EXCHANGE,
            _ => RenameMode::empty(),
        };
        self.fs.rename(self.home, &from, self.home, &to, mode)
    }

    fn link(&mut self) -> Result<()> {
        if self.random.one_in(2) {
            let name = self.name("symlink");
            let target = vec![b'l'; 1 + self.random.below(900) as usize];
            return make(self.fs, self.home, &name, NewKind::Symlink(&target)).map(drop);
        }
        let (id, name) = (self.find("file")?, self.name("link"));
        self.fs.link(id, self.home, &name, &root()).map(drop)
    }

    fn migrate(&mut self) -> Result<()> {
        let kind = ["file", "directory"][self.random.below(2) as usize];
        let id = self.find(kind)?;
        let to = match self.random.below(2) {
            0 => MapFormat::Blocks,
            _ => MapFormat::Extents,
        };
        self.fs.migrate(id, to, &root())
    }
}
