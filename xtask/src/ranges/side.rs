//! One of the two file systems, the files that are held open in it, and operations on them.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pagefence_fuse_front::ioctl;
use pagefence_host_memory::{FileMap, PageBuffer};

use super::operation::{FILES, MOST_BYTES, Mode, Operation, Way, What};
use crate::command::command;

/// What an operation gave: bytes, how many, or the number of the error.
pub(crate) type Answer = std::result::Result<Given, i32>;

/// What an operation gave that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    Nothing,
    Count(usize),
    Bytes(Vec<u8>),
}

/// Whose file system it is.
#[derive(Clone, Debug)]
pub(crate) enum Whose {
    /// Ours, and the program `pagefence`.
    Ours(PathBuf),
    Kernels,
}

/// A file system that is mounted.
pub(crate) struct Side {
    whose: Whose,
    files: Vec<Held>,
}

/// A file that is held open.
struct Held {
    path: PathBuf,
    file: File,
    map: Option<FileMap>,
}

impl Held {
    fn new(directory: &Path, number: usize) -> Result<Self> {
        let path = directory.join(format!("file-{number}"));
        let file = open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            path,
            file,
            map: None,
        })
    }

    fn map(&mut self) -> std::io::Result<&FileMap> {
        let map = match self.map.take() {
            Some(map) => map,
            None => FileMap::new(&self.file, 0, MOST_BYTES as usize)?,
        };
        Ok(self.map.insert(map))
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

impl Side {
    /// Opens the files in the root of a file system, and makes those that are not there.
    pub(crate) fn new(whose: Whose, directory: &Path) -> Result<Self> {
        let files = (0..FILES).map(|number| Held::new(directory, number));
        Ok(Self {
            whose,
            files: files.collect::<Result<_>>()?,
        })
    }

    /// Size of a file.
    pub(crate) fn size(&self, number: usize) -> Result<u64> {
        Ok(self.files[number].file.metadata()?.len())
    }

    /// All bytes of a file.
    pub(crate) fn contents(&self, number: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.size(number)? as usize];
        self.files[number].file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// The file itself.
    pub(crate) fn file(&self, number: usize) -> &File {
        &self.files[number].file
    }

    /// Does an operation.
    ///
    /// # Errors
    /// The program can't be run, or says nothing that is understood. What the file system says is
    /// an answer.
    pub(crate) fn apply(&mut self, operation: &Operation) -> Result<Answer> {
        let held = &mut self.files[operation.file];
        if let (What::Change(mode, way), Whose::Ours(program)) = (operation.what, &self.whose) {
            return match way {
                Way::Program => by_program(program, &held.path, mode, operation),
                Way::Call | Way::NoSync => number_of(by_call(held, mode, way, operation)),
            };
        }
        let given = plainly(held, operation);
        if let What::Change(mode, Way::NoSync) = operation.what
            && mode.shifts()
        {
            held.map = None;
        }
        number_of(given)
    }
}

fn number_of(given: std::io::Result<Given>) -> Result<Answer> {
    match given {
        Ok(given) => Ok(Ok(given)),
        Err(error) => match error.raw_os_error() {
            Some(number) => Ok(Err(number)),
            None => Err(error.into()),
        },
    }
}

/// As every program does it.
fn plainly(held: &mut Held, operation: &Operation) -> std::io::Result<Given> {
    let (offset, length) = (operation.offset, operation.length as usize);
    Ok(match operation.what {
        What::Write => Given::Count(held.file.write_at(&operation.bytes(), offset)?),
        What::WriteDirect => {
            let direct = rustix::fs::OFlags::DIRECT.bits();
            let file = File::options()
                .write(true)
                .custom_flags(direct.cast_signed())
                .open(&held.path)?;
            let mut buffer = PageBuffer::new(length.div_ceil(pagefence_host_memory::FRAME_SIZE));
            buffer[..length].copy_from_slice(&operation.bytes());
            Given::Count(file.write_at(&buffer[..length], offset)?)
        }
        What::Store => {
            held.map()?.store(offset as usize, &operation.bytes());
            Given::Nothing
        }
        What::Load => {
            let mut bytes = vec![0; length];
            held.map()?.load(offset as usize, &mut bytes);
            Given::Bytes(bytes)
        }
        What::Read => {
            let mut bytes = vec![0; length];
            let count = held.file.read_at(&mut bytes, offset)?;
            bytes.truncate(count);
            Given::Bytes(bytes)
        }
        What::Truncate => {
            held.file.set_len(offset)?;
            Given::Nothing
        }
        What::Change(mode, _) => {
            rustix::fs::fallocate(&held.file, mode.flags(), offset, operation.length)?;
            Given::Nothing
        }
        What::Unmap => {
            held.map = None;
            Given::Nothing
        }
    })
}

/// The calls of `pagefence fallocate` on a mount.
fn by_call(held: &mut Held, mode: Mode, way: Way, operation: &Operation) -> std::io::Result<Given> {
    if !mode.shifts() {
        return plainly(held, operation);
    }
    if way == Way::NoSync {
        // What was stored goes to the server with the map; nothing is synced there.
        held.map = None;
    } else {
        held.file.sync_all()?;
    }
    let flags = mode.flags().bits();
    let done = ioctl::fallocate(&held.file, flags, operation.offset, operation.length);
    open(&held.path)?;
    done.map(|()| Given::Nothing)
}

/// What the text of an error of the system begins with, before its number.
const NUMBER: &str = "(os error ";

fn by_program(program: &Path, path: &Path, mode: Mode, operation: &Operation) -> Result<Answer> {
    let (offset, length) = (operation.offset.to_string(), operation.length.to_string());
    let output = command(program, ["fallocate", "-o", &offset, "-l", &length])
        .args(mode.options())
        .arg(path)
        .output()
        .context("cannot run pagefence")?;
    if output.status.success() {
        return Ok(Ok(Given::Nothing));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let number = said.split(NUMBER).nth(1);
    let number = number.and_then(|rest| rest.split(')').next()?.parse().ok());
    match number {
        Some(number) => Ok(Err(number)),
        None => bail!("pagefence fallocate ended with {}: {said}", output.status),
    }
}
