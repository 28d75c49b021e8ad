//! Everything there is to see of a volume, whoever made it.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use pagefence::{Error, Result, Volume};

/// Entries that are looked at.
const ENTRIES_MAX: usize = 4000;
/// One name in so many is looked up whose inode was met.
const LOOKUPS: u64 = 8;
/// Bytes that are read at each end of a file.
const BYTES: usize = 16 << 10;
/// Extents of a file that are looked at.
const EXTENTS_MAX: usize = 400;

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Names.
    pub(super) names: u64,
    /// Errors that say what is wrong.
    pub(super) errors: Vec<String>,
    /// What must not be.
    pub(super) wrong: Option<String>,
}

impl Seen {
    /// Sorts a result: what is damaged may well be so.
    pub(super) fn note<T>(&mut self, what: &str, result: Result<T>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        if says_nothing(&error) {
            self.wrong(format!("{what}: {:?}: {error}", error.kind()));
        }
        // What is not served, or has no room, may be sound.
        match error.kind() {
            ErrorKind::Unsupported | ErrorKind::StorageFull => {}
            _ => self.errors.push(format!("{what}: {error}")),
        }
        None
    }

    fn wrong(&mut self, wrong: String) {
        self.wrong.get_or_insert(wrong);
    }
}

/// Whether an error blames the device, which never fails here, or nobody.
fn says_nothing(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::InvalidData
        | ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::AlreadyExists
        | ErrorKind::DirectoryNotEmpty
        | ErrorKind::PermissionDenied
        | ErrorKind::CrossesDevices
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::Unsupported
        | ErrorKind::StorageFull
        | ErrorKind::FileTooLarge
        | ErrorKind::TooManyLinks
        | ErrorKind::ArgumentListTooLong => false,
        // Files that can't be so large, and arguments that a damaged file does not allow.
        ErrorKind::InvalidInput | ErrorKind::InvalidFilename => false,
        // The standard library has no stable kind for too many symbolic links, nor for a key that is
        // not there; and whoever asks for data to be durable is told that some is not (EIO), not why.
        _ => {
            let text = error.to_string();
            let known = ["symbolic links", "could not be written", "encrypted"];
            !known.iter().any(|known| text.contains(known))
        }
    }
}

/// Lists, looks up and reads whatever there is.
pub(super) fn walk(volume: &Volume) -> Seen {
    let mut seen = Seen::default();
    seen.note("usage", volume.usage());
    let mut met = HashSet::new();
    for entry in volume.walk("/").take(ENTRIES_MAX) {
        let Some(entry) = seen.note("walking", entry) else {
            continue;
        };
        let path = entry.path();
        seen.names += 1;
        if seen.names % LOOKUPS == 1 {
            seen.note("looking up", volume.symlink_metadata(path));
        }
        if !met.insert(entry.metadata().ino()) {
            continue;
        }
        attributes(volume, path, &mut seen);
        let kind = entry.metadata().file_type();
        if kind.is_file() {
            file(volume, path, entry.metadata().len(), &mut seen);
        } else if kind.is_symlink() {
            let target = seen.note("a link", volume.read_link(path));
            if target.is_some_and(|target| target.as_os_str().is_empty()) {
                seen.wrong(format!("{}: a link to nothing", path.display()));
            }
        } else if kind.is_dir() {
            names(volume, path, &mut seen);
            let nothing = volume.symlink_metadata(path.join("a name that is nowhere"));
            match nothing {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => drop(seen.note("looking for nothing", other)),
            }
        }
    }
    seen
}

/// Names must not lead elsewhere.
fn names(volume: &Volume, path: &Path, seen: &mut Seen) {
    let Some(entries) = seen.note("listing", volume.read_dir(path)) else {
        return;
    };
    for entry in entries.take(ENTRIES_MAX) {
        let Some(entry) = seen.note("listing", entry) else {
            continue;
        };
        let name = entry.file_name().as_bytes();
        let is_bad = matches!(name, b"" | b"." | b"..") || name.len() > 255;
        if is_bad || name.contains(&0) || name.contains(&b'/') {
            seen.wrong(format!("the name {:?} is handed out", entry.file_name()));
        }
    }
}

fn attributes(volume: &Volume, path: &Path, seen: &mut Seen) {
    let names = seen.note("names of attributes", volume.xattr_names(path));
    for name in names.unwrap_or_default().iter().take(50) {
        if name.as_bytes().contains(&0) {
            seen.wrong(format!("an attribute {name:?}"));
        }
        seen.note("an attribute", volume.xattr(path, name));
    }
}

fn file(volume: &Volume, path: &Path, size: u64, seen: &mut Seen) {
    let Some(file) = seen.note("opening", volume.open_file(path)) else {
        return;
    };
    let mut buffer = vec![0; BYTES];
    let far = size.saturating_sub(BYTES as u64);
    for offset in [0, far / 2, far, size, u64::MAX - 1] {
        let read = seen.note("reading", file.read_at(offset, &mut buffer));
        if read.is_some_and(|read| read as u64 > size.saturating_sub(offset)) {
            seen.wrong(format!("{}: more than there is", path.display()));
        }
    }
    for found in [file.seek_data(0), file.seek_hole(0)] {
        let found = seen.note("seeking", found).flatten();
        if found.is_some_and(|found| found > size) {
            seen.wrong(format!("{}: data past the end", path.display()));
        }
    }
    for extent in file.extents().take(EXTENTS_MAX) {
        if seen.note("extents", extent).is_none() {
            break;
        }
    }
}
