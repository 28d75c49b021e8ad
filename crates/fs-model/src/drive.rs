//! A file system driven by the model's operations, through the trait that every file system here
//! implements, and compared with the model.

mod compare;
mod path;

use std::collections::BTreeMap;

use pagefence_vfs::{
    Credentials, Error, FallocateMode, FileSystem, InodeId, MapFormat, New, NewKind, RenameMode,
    Result, SetAttr, WriteMode, XattrMode,
};

pub use compare::Exactness;

use crate::files::{Answer, Failure, Operation, RangeChange, RenameHow, contents};

/// A file system and the files that are held open.
pub struct Driven<'a, F: FileSystem> {
    fs: &'a F,
    held: BTreeMap<u8, F::File>,
    who: Credentials,
}

/// What an operation gave: what it is for the model, and the error's own words.
pub type Outcome = Result<Answer, (Option<Failure>, String)>;

impl<'a, F: FileSystem> Driven<'a, F> {
    /// Drives `fs` as root.
    #[must_use]
    pub fn new(fs: &'a F) -> Self {
        Self {
            fs,
            held: BTreeMap::new(),
            who: Credentials {
                uid: 0,
                gid: 0,
                groups: Vec::new(),
            },
        }
    }

    /// Does an operation. [`Operation::Reopen`] closes what is held, no more.
    ///
    /// # Errors
    /// What the file system says.
    pub fn apply(&mut self, operation: &Operation) -> Outcome {
        self.step(operation)
            .map_err(|error| (failure(&error), error.to_string()))
    }

    fn step(&mut self, operation: &Operation) -> Result<Answer> {
        use Operation as O;
        match operation {
            O::Create { path } => self.create(path, NewKind::Regular, 0o644)?,
            O::MakeDirectory { path } => self.create(path, NewKind::Directory, 0o755)?,
            O::Symlink { target, path } => {
                self.create(path, NewKind::Symlink(target.as_bytes()), 0o777)?;
            }
            O::Fifo { path } => self.create(path, NewKind::Fifo, 0o644)?,
            O::Write {
                path,
                offset,
                length,
                tag,
            } => {
                let file = self.open(path)?;
                self.write_all(&file, *offset, &contents(*tag, *offset, *length))?;
            }
            O::WriteDirect {
                path,
                offset,
                length,
                tag,
            } => {
                let file = self.open(path)?;
                let data = contents(*tag, *offset, *length);
                let written = self.fs.write(&file, *offset, &data, WriteMode::DIRECT)?;
                if written < data.len() {
                    self.write_all(&file, *offset + written as u64, &data[written..])?;
                }
            }
            O::Store { .. } => return Err(Error::Unsupported("a map of a file of this trait")),
            O::Append { path, length, tag } => {
                let id = self.find(path, true)?;
                let file = self.fs.open(id, true)?;
                let end = self.fs.attr(id)?.size;
                let data = contents(*tag, end, *length);
                let written = self.fs.write(&file, 0, &data, WriteMode::APPEND)?;
                if written < data.len() {
                    self.write_all(&file, end + written as u64, &data[written..])?;
                }
            }
            O::Read {
                path,
                offset,
                length,
            } => return self.read(&self.open(path)?, *offset, *length),
            O::SetSize { path, size } => {
                let change = SetAttr {
                    size: Some(*size),
                    ..SetAttr::default()
                };
                self.set_attr(self.find(path, true)?, &change)?;
            }
            O::Allocate {
                path,
                offset,
                length,
            } => {
                let file = self.open(path)?;
                let mode = FallocateMode::default();
                self.fs.allocate(&file, *offset, *length, mode)?;
            }
            O::ChangeRange {
                path,
                offset,
                length,
                how,
            } => {
                let file = self.open(path)?;
                self.fs.allocate(&file, *offset, *length, mode(*how))?;
            }
            O::ExchangeRange {
                path,
                offset,
                other,
                other_offset,
                length,
            } => {
                let (file, other) = (self.open(path)?, self.open(other)?);
                self.fs
                    .exchange_range(&file, *offset, &other, *other_offset, *length)?;
            }
            O::Migrate { path, to_extents } => {
                let to = if *to_extents {
                    MapFormat::Extents
                } else {
                    MapFormat::Blocks
                };
                self.fs.migrate(self.find(path, true)?, to, &self.who)?;
            }
            O::Sync { path } => self.fs.sync_file(&self.open(path)?, false)?,
            O::SyncData { path } => self.fs.sync_file(&self.open(path)?, true)?,
            O::SyncDirectory { path } => {
                let directory = self.fs.open_dir(self.find(path, true)?)?;
                self.fs.sync_dir(&directory)?;
            }
            O::SyncAll => self.fs.sync()?,
            O::RemoveDirectory { path } => {
                let (parent, name) = self.parent_of(path)?;
                self.forgetting(parent, name, || self.fs.rmdir(parent, name))?;
            }
            O::Remove { path } => {
                let (parent, name) = self.parent_of(path)?;
                self.forgetting(parent, name, || self.fs.unlink(parent, name))?;
            }
            O::Rename { from, to, how } => {
                let (parent, name) = self.parent_of(from)?;
                let (new_parent, new_name) = self.parent_of(to)?;
                let mode = match how {
                    RenameHow::Replace => RenameMode::default(),
                    RenameHow::NoReplace => RenameMode::NO_REPLACE,
                    RenameHow::Exchange => RenameMode::EXCHANGE,
                };
                self.forgetting(new_parent, new_name, || {
                    self.fs.rename(parent, name, new_parent, new_name, mode)
                })?;
            }
            O::Link { original, link } => {
                let id = self.find(original, false)?;
                let (parent, name) = self.parent_of(link)?;
                self.fs.link(id, parent, name, &self.who)?;
            }
            O::SetPermissions { path, permissions } => {
                let change = SetAttr {
                    permissions: Some(*permissions),
                    ..SetAttr::default()
                };
                self.set_attr(self.find(path, true)?, &change)?;
            }
            O::SetOwner { path, uid, gid } => {
                let change = SetAttr {
                    uid: *uid,
                    gid: *gid,
                    ..SetAttr::default()
                };
                self.set_attr(self.find(path, false)?, &change)?;
            }
            O::SetXattr { path, name, value } => {
                let id = self.find(path, false)?;
                self.fs
                    .set_xattr(id, name.as_bytes(), value, XattrMode::Set)?;
            }
            O::RemoveXattr { path, name } => {
                let id = self.find(path, false)?;
                return match self.fs.remove_xattr(id, name.as_bytes()) {
                    Ok(()) => Ok(Answer::Was(true)),
                    Err(Error::NoAttribute) => Ok(Answer::Was(false)),
                    Err(error) => Err(error),
                };
            }
            O::Hold { slot, path } => {
                self.held.remove(slot);
                let file = self.open(path)?;
                self.held.insert(*slot, file);
            }
            O::WriteHeld {
                slot,
                offset,
                length,
                tag,
            } => {
                if let Some(file) = self.held.get(slot) {
                    self.write_all(file, *offset, &contents(*tag, *offset, *length))?;
                }
            }
            O::ReadHeld {
                slot,
                offset,
                length,
            } => {
                if let Some(file) = self.held.get(slot) {
                    return self.read(file, *offset, *length);
                }
            }
            O::LetGo { slot } => drop(self.held.remove(slot)),
            O::Reopen => self.held.clear(),
        }
        Ok(Answer::Done)
    }

    fn create(&self, path: &str, kind: NewKind<'_>, permissions: u16) -> Result<()> {
        let (parent, name) = self.parent_of(path)?;
        let new = New {
            kind,
            permissions,
            umask: 0,
        };
        self.fs.create(parent, name, &new, &self.who).map(drop)
    }

    /// Runs what may take the name away, and forgets what it meant.
    fn forgetting(
        &self,
        parent: InodeId,
        name: &[u8],
        run: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let before = self.fs.lookup(parent, name);
        run()?;
        if let Ok(entry) = before {
            self.fs.forget(entry.attr.id);
        }
        Ok(())
    }

    fn open(&self, path: &str) -> Result<F::File> {
        self.fs.open(self.find(path, true)?, true)
    }

    fn set_attr(&self, id: InodeId, change: &SetAttr) -> Result<()> {
        self.fs.set_attr(id, change, &self.who).map(drop)
    }

    fn write_all(&self, file: &F::File, mut offset: u64, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let written = self.fs.write(file, offset, data, WriteMode::default())?;
            assert_ne!(written, 0, "nothing was written, and nothing failed");
            offset += written as u64;
            data = &data[written..];
        }
        Ok(())
    }

    fn read(&self, file: &F::File, offset: u64, length: usize) -> Result<Answer> {
        let mut bytes = vec![0xee; length];
        let count = self.fs.read(file, offset, &mut bytes)?;
        bytes.truncate(count);
        Ok(Answer::Bytes(bytes))
    }
}

fn mode(how: RangeChange) -> FallocateMode {
    use FallocateMode as M;
    match how {
        RangeChange::Reserve => M::KEEP_SIZE,
        RangeChange::Punch => M::PUNCH_HOLE | M::KEEP_SIZE,
        RangeChange::Zero => M::ZERO_RANGE,
        RangeChange::ZeroInside => M::ZERO_RANGE | M::KEEP_SIZE,
        RangeChange::Collapse => M::COLLAPSE_RANGE,
        RangeChange::Insert => M::INSERT_RANGE,
    }
}

/// The interface's errors as the model has them; nothing if the model has none of the sort.
fn failure(error: &Error) -> Option<Failure> {
    Some(match error {
        Error::NotFound => Failure::NotFound,
        Error::NotDirectory => Failure::NotDirectory,
        Error::IsDirectory => Failure::IsDirectory,
        Error::Exists => Failure::Exists,
        Error::NotEmpty => Failure::NotEmpty,
        Error::InvalidArgument => Failure::Invalid,
        Error::NameTooLong => Failure::NameTooLong,
        Error::NotPermitted | Error::PermissionDenied => Failure::NotPermitted,
        Error::TooManySymlinks => Failure::TooManySymlinks,
        Error::FileTooLarge => Failure::FileTooLarge,
        Error::Unsupported(_) => Failure::Unsupported,
        Error::NoSpace => Failure::NoSpace,
        _ => return None,
    })
}
