//! The library, driven by the model's operations.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

use pagefence::device::Device;
use pagefence::{Error, File, MapFormat, MapOptions, Node, OpenOptions, Options, Volume};
use pagefence_fs_model::files::{Answer, Failure, Operation, RangeChange, RenameHow, contents};

/// An open volume and the files that are held open.
pub struct Library {
    device: Arc<dyn Device>,
    options: Options,
    volume: Option<Volume>,
    held: BTreeMap<u8, File>,
}

/// What an operation gave: what it is for the model, and the error's own words.
pub type Outcome = Result<Answer, (Option<Failure>, String)>;

impl Library {
    /// Opens the volume.
    ///
    /// # Errors
    /// It can't be opened, in words.
    pub fn open(device: Arc<dyn Device>, options: Options) -> Result<Self, String> {
        let volume = Volume::open_device(Arc::clone(&device), options.clone())
            .map_err(|error| format!("opening: {error}"))?;
        Ok(Self {
            device,
            options,
            volume: Some(volume),
            held: BTreeMap::new(),
        })
    }

    /// The volume.
    ///
    /// # Panics
    /// It was closed.
    #[must_use]
    pub fn volume(&self) -> &Volume {
        self.volume.as_ref().expect("it is open")
    }

    /// The file that a slot holds open.
    pub(crate) fn held(&self, slot: u8) -> Option<&File> {
        self.held.get(&slot)
    }

    /// Closes it all.
    ///
    /// # Errors
    /// What could not be written.
    pub fn close(&mut self) -> Result<(), Error> {
        self.held.clear();
        match self.volume.take() {
            Some(volume) => volume.close(),
            None => Ok(()),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// It can't be done.
    pub fn apply(&mut self, operation: &Operation) -> Outcome {
        self.step(operation)
            .map_err(|error| (failure(error.kind()), error.to_string()))
    }

    /// As [`Self::apply`], with the library's own errors.
    pub(crate) fn step(&mut self, operation: &Operation) -> Result<Answer, Error> {
        use Operation as O;
        let volume = self.volume.as_ref().expect("it is open");
        let to_write = OpenOptions::new().write(true);
        match operation {
            O::Create { path } => drop(to_write.create_new(true).open(volume, path)?),
            O::Write {
                path,
                offset,
                length,
                tag,
            } => {
                let data = contents(*tag, *offset, *length);
                // Some past the cache, and those of whole blocks indeed.
                let to_write = to_write.direct(tag.is_multiple_of(3));
                to_write.open(volume, path)?.write_all_at(*offset, &data)?;
            }
            O::WriteDirect {
                path,
                offset,
                length,
                tag,
            } => {
                let file = to_write.direct(true).open(volume, path)?;
                file.write_all_at(*offset, &contents(*tag, *offset, *length))?;
            }
            O::Store {
                path,
                offset,
                length,
                tag,
            } => {
                let file = to_write.read(true).open(volume, path)?;
                let map = file.map(*offset..*offset + *length as u64, MapOptions::shared())?;
                map.write_at(0, &contents(*tag, *offset, *length))?;
            }
            O::Append { path, length, tag } => {
                let file = OpenOptions::new().append(true).open(volume, path)?;
                let end = file.metadata()?.len();
                // Where it says does not count.
                file.write_all_at(0, &contents(*tag, end, *length))?;
            }
            O::Read {
                path,
                offset,
                length,
            } => {
                let file = volume.open_file(path)?;
                return read(&file, *offset, *length);
            }
            O::SetSize { path, size } => volume.set_len(path, *size)?,
            O::Allocate {
                path,
                offset,
                length,
            } => to_write.open(volume, path)?.allocate(*offset, *length)?,
            O::ChangeRange {
                path,
                offset,
                length,
                how,
            } => change_range(&to_write.open(volume, path)?, *offset, *length, *how)?,
            O::ExchangeRange {
                path,
                offset,
                other,
                other_offset,
                length,
            } => {
                let file = to_write.open(volume, path)?;
                let other = to_write.open(volume, other)?;
                file.exchange_range(*offset, &other, *other_offset, *length)?;
            }
            O::Migrate { path, to_extents } => {
                let to = if *to_extents {
                    MapFormat::Extents
                } else {
                    MapFormat::Blocks
                };
                volume.open_file(path)?.migrate(to)?;
            }
            O::Sync { path } => volume.open_file(path)?.sync_all()?,
            O::SyncData { path } => volume.open_file(path)?.sync_data()?,
            O::SyncDirectory { path } => volume.sync_dir(path)?,
            O::SyncAll => volume.sync()?,
            O::MakeDirectory { path } => volume.create_dir(path)?,
            O::RemoveDirectory { path } => volume.remove_dir(path)?,
            O::Remove { path } => volume.remove_file(path)?,
            O::Rename { from, to, how } => match how {
                RenameHow::Replace => volume.rename(from, to)?,
                RenameHow::NoReplace => volume.rename_new(from, to)?,
                RenameHow::Exchange => volume.exchange(from, to)?,
            },
            O::Link { original, link } => volume.hard_link(original, link)?,
            O::Symlink { target, path } => volume.symlink(target, path)?,
            O::Fifo { path } => volume.make_node(path, Node::Fifo)?,
            O::SetPermissions { path, permissions } => {
                volume.set_permissions(path, *permissions)?
            }
            O::SetOwner { path, uid, gid } => volume.set_owner(path, *uid, *gid)?,
            O::SetXattr { path, name, value } => volume.set_xattr(path, name, value)?,
            O::RemoveXattr { path, name } => {
                return volume.remove_xattr(path, name).map(Answer::Was);
            }
            O::Hold { slot, path } => {
                self.held.remove(slot);
                let file = to_write.read(true).open(volume, path)?;
                self.held.insert(*slot, file);
            }
            O::WriteHeld {
                slot,
                offset,
                length,
                tag,
            } => {
                if let Some(file) = self.held.get(slot) {
                    file.write_all_at(*offset, &contents(*tag, *offset, *length))?;
                }
            }
            O::ReadHeld {
                slot,
                offset,
                length,
            } => {
                if let Some(file) = self.held.get(slot) {
                    return read(file, *offset, *length);
                }
            }
            O::LetGo { slot } => drop(self.held.remove(slot)),
            O::Reopen => {
                self.close()?;
                let device = Arc::clone(&self.device);
                self.volume = Some(Volume::open_device(device, self.options.clone())?);
            }
        }
        Ok(Answer::Done)
    }
}

fn change_range(file: &File, offset: u64, length: u64, how: RangeChange) -> Result<(), Error> {
    match how {
        RangeChange::Reserve => file.allocate_keeping_size(offset, length),
        RangeChange::Punch => file.punch_hole(offset, length),
        RangeChange::Zero => file.zero_range(offset, length),
        RangeChange::ZeroInside => file.zero_range_keeping_size(offset, length),
        RangeChange::Collapse => file.collapse_range(offset, length),
        RangeChange::Insert => file.insert_range(offset, length),
    }
}

fn read(file: &File, offset: u64, length: usize) -> Result<Answer, Error> {
    let mut bytes = vec![0xee; length];
    let mut count = 0;
    // One that fails half way gives what it has, and the error when it is asked again.
    while count < length {
        match file.read_at(offset + count as u64, &mut bytes[count..])? {
            0 => break,
            more => count += more,
        }
    }
    bytes.truncate(count);
    Ok(Answer::Bytes(bytes))
}

/// The library's errors as the model has them; nothing if the model has none of the sort.
pub(crate) fn failure(kind: ErrorKind) -> Option<Failure> {
    Some(match kind {
        ErrorKind::NotFound => Failure::NotFound,
        ErrorKind::NotADirectory => Failure::NotDirectory,
        ErrorKind::IsADirectory => Failure::IsDirectory,
        ErrorKind::AlreadyExists => Failure::Exists,
        ErrorKind::DirectoryNotEmpty => Failure::NotEmpty,
        ErrorKind::InvalidInput => Failure::Invalid,
        ErrorKind::InvalidFilename => Failure::NameTooLong,
        ErrorKind::PermissionDenied => Failure::NotPermitted,
        ErrorKind::FileTooLarge => Failure::FileTooLarge,
        ErrorKind::Unsupported => Failure::Unsupported,
        ErrorKind::StorageFull => Failure::NoSpace,
        // The standard library has no stable kind for too many symbolic links.
        ErrorKind::Other => Failure::TooManySymlinks,
        _ => return None,
    })
}

/// A text whose long runs of one letter (of names as long as they may be) are counted instead.
#[must_use]
pub fn brief(text: &str) -> String {
    const RUN: usize = 12;
    let mut brief = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let run = rest.len() - rest.trim_start_matches(first).len();
        let letters = run / first.len_utf8();
        if letters > RUN {
            brief += &format!("{first}{{{letters}}}");
        } else {
            brief += &rest[..run];
        }
        rest = &rest[run..];
    }
    brief
}

#[test]
fn long_runs_are_counted() {
    let long = "é".repeat(30);
    assert_eq!(brief(&format!("aab{long}c")), "aabé{30}c");
    assert_eq!(brief(""), "");
}
