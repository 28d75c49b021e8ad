//! Making a file system in a file of the host, new or old, or on a block device.

use std::fs::{File, OpenOptions as HostOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use pagefence_block_io::Device;
use pagefence_block_io::file_device::{FileDevice, OpenOptions};

use super::{Contents, Made, MkfsError, Parameters, Tree, format, signature};
use crate::mount::{MountError, MountOptions, image_error, open_device};

/// Where a file system is made.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// A file, which is made if it does not exist, or a block device.
    pub path: &'a Path,
    /// Bytes of the file system. A file that exists becomes so large; by default it keeps its
    /// size, and a block device is used whole.
    pub size_bytes: Option<u64>,
    /// Overwrite a file system or the like that is there.
    pub overwrite: bool,
}

/// Makes a file system at `target`. A file becomes a sparse one, and what it held is gone;
/// [`Parameters::contents`] is ignored, as the target is known.
///
/// # Errors
/// As [`format()`], and [`MkfsError::Open`], [`MkfsError::Holds`], [`MkfsError::NoSize`] and
/// [`MkfsError::DeviceSize`], before which nothing is changed. A file that was made for a
/// file system that then could not be made is removed.
pub fn format_path(
    target: &Target<'_>,
    parameters: &Parameters,
    tree: &Tree,
) -> Result<Made, MkfsError> {
    match std::fs::metadata(target.path) {
        Ok(metadata) if metadata.file_type().is_block_device() => {
            format_block_device(target, parameters, tree)
        }
        Ok(_) => format_file(target, parameters, tree),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let size = target.size_bytes.ok_or(MkfsError::NoSize)?;
            let file = HostOptions::new()
                .write(true)
                .create_new(true)
                .open(target.path);
            let file = file.map_err(|error| image(&error))?;
            let made = fill(&file, size, target.path, parameters, tree);
            if made.is_err() {
                // The error that led here says more than one about the removal.
                let _ = std::fs::remove_file(target.path);
            }
            made
        }
        Err(error) => Err(image(&error)),
    }
}

fn format_file(
    target: &Target<'_>,
    parameters: &Parameters,
    tree: &Tree,
) -> Result<Made, MkfsError> {
    // Held to the end: it keeps others that lock images away.
    let device = open_device(target.path, &for_writing())?;
    let size = target.size_bytes.unwrap_or(device.size());
    if size == 0 {
        return Err(MkfsError::NoSize);
    }
    check_holds(target, &device)?;
    let file = HostOptions::new().write(true).open(target.path);
    fill(
        &file.map_err(|error| image(&error))?,
        size,
        target.path,
        parameters,
        tree,
    )
}

/// Makes the file a sparse one of `size` bytes, and a file system in it.
fn fill(
    file: &File,
    size: u64,
    path: &Path,
    parameters: &Parameters,
    tree: &Tree,
) -> Result<Made, MkfsError> {
    // What can be known to fail fails before the old contents go.
    super::check(parameters, size)?;
    let resized = file.set_len(0).and_then(|()| file.set_len(size));
    resized.map_err(|error| image(&error))?;
    let device = open_raw(path, None)?;
    let parameters = Parameters {
        contents: Contents::Zeros,
        ..parameters.clone()
    };
    format(&device, &parameters, tree)
}

fn format_block_device(
    target: &Target<'_>,
    parameters: &Parameters,
    tree: &Tree,
) -> Result<Made, MkfsError> {
    let device = open_device(target.path, &for_writing())?;
    let have_bytes = device.size();
    let asked_bytes = target.size_bytes.unwrap_or(have_bytes);
    if asked_bytes > have_bytes {
        return Err(MkfsError::DeviceSize {
            have_bytes,
            asked_bytes,
        });
    }
    check_holds(target, &device)?;
    let device = if asked_bytes < have_bytes {
        drop(device);
        open_raw(target.path, Some(asked_bytes))?
    } else {
        device
    };
    let parameters = Parameters {
        contents: Contents::Unknown,
        ..parameters.clone()
    };
    format(&device, &parameters, tree)
}

fn check_holds(target: &Target<'_>, device: &FileDevice) -> Result<(), MkfsError> {
    match signature::find(device)? {
        Some(what) if !target.overwrite => Err(MkfsError::Holds { what }),
        _ => Ok(()),
    }
}

fn for_writing() -> MountOptions {
    MountOptions {
        write: true,
        ..MountOptions::default()
    }
}

fn open_raw(path: &Path, length_bytes: Option<u64>) -> Result<FileDevice, MkfsError> {
    let options = OpenOptions {
        write: true,
        length_bytes,
        ..OpenOptions::default()
    };
    FileDevice::open(path, options).map_err(|error| {
        MkfsError::Open(MountError::Image {
            reason: error.to_string(),
            kind: io::ErrorKind::Other,
        })
    })
}

fn image(error: &io::Error) -> MkfsError {
    let error = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => MountError::Image {
            reason: format!("it can't be made: {error}"),
            kind: error.kind(),
        },
        _ => image_error(error),
    };
    MkfsError::Open(error)
}
