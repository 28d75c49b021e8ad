//! Operations on the library, told how far each write came.

use std::io::ErrorKind;

use pagefence::{Error, File, OpenOptions};
use pagefence_fs_model::files::{Answer, Failure, Operation, contents};

use super::events::{is_of_range, measured};
use super::{Outcome, Refusal};
use crate::library::{Library, failure};

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        let kind = error.kind();
        let failure = failure(kind);
        // Errors of the host have no kind of their own, or are wrapped: `Other`, which the model takes for
        // something else.
        let is_of_device = matches!(
            failure,
            None | Some(Failure::NoSpace | Failure::TooManySymlinks)
        );
        Self {
            failure,
            is_of_device,
            is_read_only: kind == ErrorKind::ReadOnlyFilesystem,
            text: error.to_string(),
        }
    }
}

/// Does it, and looks how long the files are for which this counts.
pub(crate) fn perform(library: &mut Library, operation: &Operation) -> Outcome {
    let mut sizes = Vec::new();
    for path in measured(operation) {
        if let Ok(metadata) = library.volume().metadata(path) {
            sizes.push((path.to_owned(), metadata.len()));
        }
    }
    let mut outcome = attempt(library, operation);
    outcome.sizes = sizes;
    if let Err(refusal) = &outcome.answer
        && refusal.failure == Some(Failure::NoSpace)
        && is_of_range(operation)
    {
        for path in operation.paths() {
            if let Ok(bytes) = library.volume().read(path) {
                outcome.left.push((path.to_owned(), bytes));
            }
        }
    }
    outcome
}

fn attempt(library: &mut Library, operation: &Operation) -> Outcome {
    use Operation as O;
    let volume = library.volume();
    let to_write = OpenOptions::new().write(true);
    let (file, offset, length, tag) = match operation {
        O::Write {
            path,
            offset,
            length,
            tag,
        } => {
            // Some past the cache, and those of whole blocks indeed.
            let to_write = to_write.direct(is_direct(*tag));
            (to_write.open(volume, path), Some(*offset), *length, *tag)
        }
        O::Append { path, length, tag } => {
            let file = OpenOptions::new().append(true).open(volume, path);
            (file, None, *length, *tag)
        }
        O::WriteHeld {
            slot,
            offset,
            length,
            tag,
        } => {
            let Some(file) = library.held(*slot) else {
                return all(library.step(operation));
            };
            return write(file, Some(*offset), *length, *tag);
        }
        _ => return all(library.step(operation)),
    };
    match file {
        Ok(file) => write(&file, offset, length, tag),
        Err(error) => all(Err(error)),
    }
}

/// Whether writes with this tag are asked for past the cache.
pub(crate) fn is_direct(tag: u64) -> bool {
    tag.is_multiple_of(3)
}

fn all(answer: Result<Answer, Error>) -> Outcome {
    Outcome::new(answer.map_err(|error| Refusal::from(&error)))
}

/// Writes what belongs at `offset`, or at the file's end.
fn write(file: &File, offset: Option<u64>, length: usize, tag: u64) -> Outcome {
    let mut accepted = 0;
    let answer = (|| {
        let start = match offset {
            Some(offset) => offset,
            None => file.metadata()?.len(),
        };
        let data = contents(tag, start, length);
        while accepted < length {
            accepted += file.write_at(start + accepted as u64, &data[accepted..])?;
        }
        Ok(Answer::Done)
    })();
    let answer = answer.map_err(|error: Error| Refusal::from(&error));
    Outcome {
        accepted,
        ..Outcome::new(answer)
    }
}
