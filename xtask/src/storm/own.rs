//! The files that belong to one thread: every operation is held against the model of a file, byte by
//! byte.

use std::collections::VecDeque;
use std::io::ErrorKind;

use pagefence::{File, MapFormat, OpenOptions, Result as PagefenceResult, Volume};
use pagefence_fs_model::files::{Bytes, contents};

use super::watch::{Came, Watch};
use crate::random::Random;

/// No file grows beyond.
const MOST_BYTES: u64 = 1 << 20;
/// Most bytes that an operation is about.
const MOST_RANGE: u64 = 128 << 10;
/// Operations on a file that are told if the next one fails.
const TRAIL: usize = 24;

/// A file, and what it should hold.
struct Own {
    path: String,
    file: Option<File>,
    model: Bytes,
    /// What was done to it of late, in words.
    trail: VecDeque<String>,
}

/// The files of a thread.
pub(crate) struct Owns {
    thread: usize,
    block_size: u64,
    files: [Own; 2],
    /// Tells what one operation writes from what others do.
    tag: u64,
}

fn came(error: &pagefence::Error) -> Result<Came, String> {
    match error.kind() {
        ErrorKind::StorageFull => Ok(Came::Full),
        ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::WouldBlock => {
            Ok(Came::Refused)
        }
        _ => Err(format!("it failed: {error}")),
    }
}

/// What an operation came to, if that is allowed; another error is a mismatch.
pub(crate) fn outcome(done: PagefenceResult<()>) -> Result<Came, String> {
    match done {
        Ok(()) => Ok(Came::Done),
        Err(error) => came(&error),
    }
}

pub(crate) fn text(error: pagefence::Error) -> String {
    error.to_string()
}

impl Own {
    fn file(&self) -> Result<&File, String> {
        self.file
            .as_ref()
            .ok_or_else(|| "no file is open".to_owned())
    }

    /// Compares all of it.
    fn compare(&self) -> Result<(), String> {
        let found = self.file()?.read_all().map_err(text)?;
        self.differs(0, &found, usize::MAX)
    }

    fn differs(&self, offset: u64, found: &[u8], length: usize) -> Result<(), String> {
        let length = length.min(self.model.size() as usize);
        let expected = self.model.read(offset, length);
        if expected == found {
            return Ok(());
        }
        let same = expected
            .iter()
            .zip(found)
            .take_while(|(a, b)| a == b)
            .count();
        let some = |of: &[u8]| format!("{:02x?}", &of[same.min(of.len())..of.len().min(same + 32)]);
        Err(format!(
            "{}: byte {} is the first that differs: {} found, {} expected; {} bytes found, {} \
             expected",
            self.path,
            offset + same as u64,
            some(found),
            some(&expected),
            found.len(),
            expected.len()
        ))
    }

    /// What a failed operation may have done: zeros in the range, and a size between the two.
    fn adopt(&mut self, offset: u64, length: u64, grown: u64) -> Result<(), String> {
        let size = self.file()?.metadata().map_err(text)?.len();
        if !(self.model.size()..=grown.max(self.model.size())).contains(&size) {
            return Err(format!("{}: its size became {size}", self.path));
        }
        self.model.set_size(size);
        let mut found = vec![0; length as usize];
        let count = self.file()?.read_at(offset, &mut found).map_err(text)?;
        let expected = self.model.read(offset, length as usize);
        let is_so = |(found, expected): (&u8, &u8)| found == expected || *found == 0;
        if count != expected.len() || !found.iter().zip(&expected).all(is_so) {
            return Err(format!("{}: neither zeros nor what was there", self.path));
        }
        if count > 0 {
            self.model.write(offset, &found[..count]);
        }
        self.compare()
    }
}

impl Owns {
    /// Makes the files, empty.
    pub(crate) fn new(thread: usize, block_size: u64) -> Self {
        let file = |number| Own {
            path: format!("/own-{thread}-{number}"),
            file: None,
            model: Bytes::new(block_size as u32),
            trail: VecDeque::new(),
        };
        Self {
            thread,
            block_size,
            files: [file(0), file(1)],
            tag: 0,
        }
    }

    /// Opens them in a volume that has just been opened, and compares them.
    pub(crate) fn open(&mut self, volume: &Volume) -> Result<(), String> {
        let options = OpenOptions::new().read(true).write(true).create(true);
        for own in &mut self.files {
            own.file = Some(options.open(volume, &own.path).map_err(text)?);
        }
        self.compare()
    }

    /// Closes them.
    pub(crate) fn close(&mut self) {
        for own in &mut self.files {
            own.file = None;
        }
    }

    /// What fsync says of each file that is open: why its data could not be written.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let files = self.files.iter().filter_map(|own| own.file.as_ref());
        files
            .filter_map(|file| file.sync_all().err().map(text))
            .collect()
    }

    /// Compares all files with their models.
    pub(crate) fn compare(&self) -> Result<(), String> {
        self.files.iter().try_for_each(Own::compare)
    }

    /// Does something to one of the files, or to both.
    pub(crate) fn step(
        &mut self,
        volume: &Volume,
        random: &mut Random,
        watch: &Watch,
    ) -> Result<(), String> {
        self.tag += 1;
        let number = random.below(2) as usize;
        let size = self.files[number].model.size();
        let (mut offset, mut length) = some(random, MOST_BYTES);
        if random.below(2) == 0 {
            offset -= offset % self.block_size;
            length = length.next_multiple_of(self.block_size);
        }
        let sort = match random.below(100) {
            0..26 => "write",
            26..40 => "read",
            40..47 => "truncate",
            47..51 => "allocate",
            51..55 => "allocate keeping",
            55..63 => "punch",
            63..67 => "zero",
            67..71 => "zero keeping",
            71..78 => "collapse",
            78..84 => "insert",
            84..88 => "exchange",
            88..94 => "migrate",
            94..96 => "fsync",
            96..98 => "compare",
            98 => "reopen",
            _ => "reopen direct",
        };
        let what = format!("{sort} {offset}+{length} of file {number} ({size} bytes)");
        watch.begin(self.thread, what.clone());
        let came = match sort {
            "exchange" => self.exchange(random),
            "reopen" | "reopen direct" => {
                self.files[number].file = None;
                let options = OpenOptions::new().read(true).write(true);
                let options = options.direct(sort == "reopen direct");
                let opened = options.open(volume, &self.files[number].path);
                self.files[number].file = Some(opened.map_err(text)?);
                Ok(Came::Done)
            }
            _ => self.on_one(number, sort, (offset, length), random),
        };
        let came = came.map_err(|error| {
            let trail = self.files[number].trail.iter();
            let before: Vec<_> = trail.map(String::as_str).collect();
            let before = before.join("; ");
            format!("operation {}, {what}: {error}; before: {before}", self.tag)
        })?;
        for (other, own) in self.files.iter_mut().enumerate() {
            if other == number || sort == "exchange" {
                own.trail.push_back(format!("{what}: {came:?}"));
                if own.trail.len() > TRAIL {
                    own.trail.pop_front();
                }
            }
        }
        watch.end(self.thread, sort, came)
    }

    fn on_one(
        &mut self,
        number: usize,
        sort: &str,
        (offset, length): (u64, u64),
        random: &mut Random,
    ) -> Result<Came, String> {
        let (block_size, tag) = (self.block_size, (self.thread as u64 + 1) << 32 | self.tag);
        let own = &mut self.files[number];
        let size = own.model.size();
        let end = offset + length;
        let file = own.file.take().ok_or("no file is open")?;
        let done = match sort {
            "write" => {
                let data = contents(tag, offset, length as usize);
                file.write_at(offset, &data).map(|count| {
                    own.model.write(offset, &data[..count]);
                })
            }
            "truncate" => file.set_len(offset).map(|()| own.model.set_size(offset)),
            "allocate" => {
                let done = file.allocate(offset, length);
                done.map(|()| own.model.set_size(size.max(end)))
            }
            "allocate keeping" => file.allocate_keeping_size(offset, length),
            "punch" => file
                .punch_hole(offset, length)
                .map(|()| own.model.clear(offset, length)),
            "zero" => file.zero_range(offset, length).map(|()| {
                own.model.clear(offset, length);
                own.model.set_size(size.max(end));
            }),
            "zero keeping" => {
                let done = file.zero_range_keeping_size(offset, length);
                done.map(|()| own.model.clear(offset, length))
            }
            "collapse" => {
                let first = offset % size.max(1);
                let first = first - first % block_size;
                let length = length.next_multiple_of(block_size);
                let done = file.collapse_range(first, length);
                if done.is_ok() {
                    own.model.collapse(first, length);
                } else if first + length < size && refused(&done) {
                    return Err(format!("refused: {done:?}"));
                }
                done
            }
            "insert" => {
                let first = offset % size.max(1);
                let first = first - first % block_size;
                let length = length.next_multiple_of(block_size);
                if size + length > MOST_BYTES {
                    own.file = Some(file);
                    return Ok(Came::Refused);
                }
                let done = file.insert_range(first, length);
                if done.is_ok() {
                    own.model.insert(first, length);
                } else if first < size && refused(&done) {
                    return Err(format!("refused: {done:?}"));
                }
                done
            }
            "migrate" => file.migrate(match random.below(2) {
                0 => MapFormat::Extents,
                _ => MapFormat::Blocks,
            }),
            "fsync" => match random.below(2) {
                0 => file.sync_data(),
                _ => file.sync_all(),
            },
            "read" => {
                let mut found = vec![0xee; length as usize];
                let read = file.read_at(offset, &mut found);
                own.file = Some(file);
                found.truncate(read.map_err(text)?);
                own.differs(offset, &found, length as usize)?;
                return Ok(Came::Done);
            }
            _ => {
                own.file = Some(file);
                own.compare()?;
                return Ok(Came::Done);
            }
        };
        own.file = Some(file);
        let came = match sort {
            // What was taken can be written.
            "fsync" => done.map(|()| Came::Done).map_err(text)?,
            _ => outcome(done)?,
        };
        if came != Came::Done {
            match sort {
                "allocate" => own.adopt(offset, 0, end)?,
                "zero" => own.adopt(offset, length, end)?,
                "zero keeping" | "punch" => own.adopt(offset, length, 0)?,
                _ => own.compare()?,
            }
        }
        Ok(came)
    }

    /// Lets blocks of the two files change places.
    fn exchange(&mut self, random: &mut Random) -> Result<Came, String> {
        let [one, other] = &mut self.files;
        let whole = |own: &Own| own.model.size() / self.block_size;
        let count = 1 + random.below(32);
        let (blocks, other_blocks) = (whole(one), whole(other));
        if blocks < count || other_blocks < count {
            return Ok(Came::Refused);
        }
        let offset = random.below(blocks - count + 1) * self.block_size;
        let other_offset = random.below(other_blocks - count + 1) * self.block_size;
        let length = count * self.block_size;
        let done = one
            .file()?
            .exchange_range(offset, other.file()?, other_offset, length);
        let came = outcome(done)?;
        if came == Came::Done {
            one.model
                .exchange(offset, &mut other.model, other_offset, length);
        } else {
            one.compare()?;
            other.compare()?;
        }
        Ok(came)
    }
}

fn refused(done: &PagefenceResult<()>) -> bool {
    done.as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::InvalidInput)
}

/// Some bytes below `end`.
fn some(random: &mut Random, end: u64) -> (u64, u64) {
    let offset = random.below(end);
    let bits = random.below(u64::from(MOST_RANGE.ilog2()) + 1);
    (offset, 1 + random.below(1 << bits))
}
