//! A process that writes and fsyncs, what it promises, and whether that was kept.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::Found;
use crate::random::Random;

/// Bytes of a record: its number, its length, its checksum, and what it says.
const HEADER_BYTES: usize = 24;
const PAYLOAD_BYTES_MAX: u64 = 6000;

/// What a writer says after an fsync returned: a line of its log, which the kill doesn't touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// Records below this number are in `records`.
    Records(u64),
    /// The file `file-N` is there.
    Made(u64),
    /// It is called `moved-N` now.
    Moved(u64),
    /// `current` is of this version or a later one.
    Current(u64),
}

impl Promise {
    fn line(self) -> String {
        let (letter, number) = match self {
            Self::Records(number) => ('r', number),
            Self::Made(number) => ('c', number),
            Self::Moved(number) => ('m', number),
            Self::Current(number) => ('v', number),
        };
        format!("{letter} {number}\n")
    }

    fn parse(line: &str) -> Result<Self> {
        let (letter, number) = line.split_once(' ').context("a line of two words")?;
        let number = number.parse().context("a number")?;
        Ok(match letter {
            "r" => Self::Records(number),
            "c" => Self::Made(number),
            "m" => Self::Moved(number),
            "v" => Self::Current(number),
            other => bail!("no promise is called {other}"),
        })
    }
}

/// What records, files and versions hold: known from the writer's seed and the number.
fn record(seed: u64, number: u64) -> Vec<u8> {
    let mut random = Random::new(seed ^ number.wrapping_mul(0x9e37_79b9));
    let length = random.below(PAYLOAD_BYTES_MAX);
    let payload = random.bytes(usize::try_from(length).unwrap_or(0));
    let mut record = Vec::with_capacity(HEADER_BYTES + payload.len());
    for word in [number, length, checksum(number, &payload)] {
        record.extend_from_slice(&word.to_le_bytes());
    }
    record.extend_from_slice(&payload);
    record
}

/// The number of a whole record.
fn version_of(seed: u64, bytes: &[u8]) -> Option<u64> {
    let head = bytes.get(..8)?.try_into().ok()?;
    let number = u64::from_le_bytes(head);
    (record(seed, number) == bytes).then_some(number)
}

/// FNV-1a, of the number and the payload.
fn checksum(number: u64, payload: &[u8]) -> u64 {
    let number = number.to_le_bytes();
    let bytes = number.iter().chain(payload);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Writes and promises, until the file system goes away.
pub(super) fn write_until_it_fails(directory: &Path, log: &Path, seed: u64) -> Result<()> {
    let mut log = OpenOptions::new().append(true).open(log)?;
    let mut promise =
        |promise: Promise| -> Result<()> { Ok(log.write_all(promise.line().as_bytes())?) };
    let mut random = Random::new(seed);
    let mut records = File::create_new(directory.join("records"))?;
    let mut written = 0;
    for number in 0.. {
        match random.below(8) {
            0..5 => {
                for _ in 0..=random.below(4) {
                    records.write_all(&record(seed, written))?;
                    written += 1;
                }
                if random.below(4) == 0 {
                    records.sync_all()?;
                } else {
                    records.sync_data()?;
                }
                promise(Promise::Records(written))?;
            }
            5 | 6 => {
                let (made, moved) = (
                    directory.join(format!("file-{number}")),
                    directory.join(format!("moved-{number}")),
                );
                let mut file = File::create_new(&made)?;
                file.write_all(&record(seed, number))?;
                file.sync_all()?;
                promise(Promise::Made(number))?;
                if random.below(2) == 0 {
                    std::fs::rename(&made, &moved)?;
                    File::open(directory)?.sync_all()?;
                    promise(Promise::Moved(number))?;
                }
            }
            _ => {
                let new = directory.join("new");
                let mut file = File::create(&new)?;
                file.write_all(&record(seed, number))?;
                file.sync_all()?;
                std::fs::rename(&new, directory.join("current"))?;
                File::open(directory)?.sync_all()?;
                promise(Promise::Current(number))?;
            }
        }
    }
    Ok(())
}

/// What lost+found holds: where there is no journal, what was about to be renamed may be there instead.
pub(super) fn lost_and_found(mountpoint: &Path) -> Result<Vec<Vec<u8>>> {
    let mut lost = Vec::new();
    for entry in std::fs::read_dir(mountpoint.join("lost+found"))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            lost.push(std::fs::read(entry.path())?);
        }
    }
    Ok(lost)
}

/// Holds a writer's directory against its log. Without a journal, `lost` may hold what the last rename was about.
pub(super) fn verify(
    directory: &Path,
    log: &Path,
    seed: u64,
    lost: Option<&[Vec<u8>]>,
    found: &mut Found,
) -> Result<()> {
    let log = std::fs::read_to_string(log)?;
    let mut records = 0;
    let mut current = None;
    let mut made = Vec::new();
    for line in log.split_inclusive('\n') {
        // The writer itself is not killed: every line is whole.
        match Promise::parse(line.trim_end())? {
            Promise::Records(number) => records = number,
            Promise::Made(number) => made.push((number, false)),
            Promise::Moved(number) => {
                let last = made.last_mut().context("made before it is moved")?;
                ensure!(last.0 == number, "the last one that was made is moved");
                last.1 = true;
            }
            Promise::Current(number) => current = Some(number),
        }
        found.promises += 1;
    }
    let mut offset = 0;
    if records > 0 {
        let file = File::open(directory.join("records")).context("the records")?;
        for number in 0..records {
            let expected = record(seed, number);
            let mut bytes = vec![0; expected.len()];
            file.read_exact_at(&mut bytes, offset)
                .with_context(|| format!("record {number} of {records}, at byte {offset}"))?;
            ensure!(
                bytes == expected,
                "record {number} of {records}, at byte {offset}, is not what was written"
            );
            offset += bytes.len() as u64;
        }
    }
    found.bytes += offset;
    let last = made.len().saturating_sub(1);
    for (index, (number, is_moved)) in made.into_iter().enumerate() {
        let old = directory.join(format!("file-{number}"));
        let new = directory.join(format!("moved-{number}"));
        // The last one may have been moved without a promise.
        let is_there = if is_moved {
            ensure!(!old.exists(), "file-{number} was moved and is still there");
            new.exists()
        } else {
            old.exists() || (index == last && new.exists())
        };
        let due = record(seed, number);
        if !is_there && index == last && lost.is_some_and(|lost| lost.contains(&due)) {
            continue;
        }
        ensure!(is_there, "file-{number} is lost (moved: {is_moved})");
        let bytes = std::fs::read(if old.exists() { old } else { new })?;
        ensure!(bytes == due, "file-{number} is not what was written");
        found.bytes += bytes.len() as u64;
    }
    let Some(current) = current else {
        return Ok(());
    };
    let path = directory.join("current");
    if !path.exists() {
        let new = std::fs::read(directory.join("new")).ok();
        let may_be = |bytes: &Vec<u8>| version_of(seed, bytes).is_some_and(|is| is >= current);
        let is_elsewhere = lost.is_some_and(|lost| new.iter().chain(lost).any(may_be));
        ensure!(
            is_elsewhere,
            "version {current} was durable, none came back"
        );
        return Ok(());
    }
    let bytes = std::fs::read(path).context("the current version")?;
    let head = bytes.get(..8).context("the current version is cut off")?;
    let version = u64::from_le_bytes(head.try_into()?);
    ensure!(
        version >= current,
        "version {current} was durable, {version} came back"
    );
    ensure!(
        bytes == record(seed, version),
        "version {version} is not what was written"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Promise, record, verify};
    use crate::kill::Found;
    use crate::scratch::Scratch;

    #[test]
    fn promises_are_read_as_they_were_written() {
        for promise in [
            Promise::Records(3),
            Promise::Made(0),
            Promise::Moved(u64::MAX),
            Promise::Current(7),
        ] {
            assert_eq!(Promise::parse(promise.line().trim_end()).unwrap(), promise);
        }
        assert!(Promise::parse("x 1").is_err());
        assert!(Promise::parse("r").is_err());
    }

    /// A loss of any sort is told.
    #[test]
    fn what_is_lost_is_found() {
        let scratch = Scratch::new().unwrap();
        let directory = scratch.directory("of-a-writer").unwrap();
        let log = scratch.join("log");
        let seed = 5;
        std::fs::write(&log, "r 2\nc 3\nc 4\nm 4\nv 6\n").unwrap();
        let records = [record(seed, 0), record(seed, 1)].concat();
        let whole = || {
            let files = [
                ("records", records.clone()),
                ("file-3", record(seed, 3)),
                ("moved-4", record(seed, 4)),
                ("current", record(seed, 7)),
            ];
            for (name, bytes) in files {
                std::fs::write(directory.join(name), bytes).unwrap();
            }
        };
        let is_so = |lost: Option<&[Vec<u8>]>| {
            verify(&directory, &log, seed, lost, &mut Found::default()).is_ok()
        };
        let is_fine = || is_so(None);
        whole();
        assert!(is_fine());
        for name in ["records", "file-3", "moved-4", "current"] {
            std::fs::remove_file(directory.join(name)).unwrap();
            assert!(!is_fine(), "{name} is gone");
            let mut bytes = record(seed, 1);
            bytes.pop();
            std::fs::write(directory.join(name), bytes).unwrap();
            assert!(!is_fine(), "{name} is another");
            whole();
        }
        std::fs::write(directory.join("current"), record(seed, 5)).unwrap();
        assert!(!is_fine(), "an old version");
        std::fs::remove_file(directory.join("current")).unwrap();
        assert!(
            is_so(Some(&[record(seed, 9), record(seed, 7)])),
            "a later one"
        );
        assert!(!is_so(Some(&[
            record(seed, 5),
            record(seed, 9)[1..].to_vec()
        ])));
        whole();
        std::fs::remove_file(directory.join("moved-4")).unwrap();
        assert!(is_so(Some(&[record(seed, 4)])), "while it was renamed");
        std::fs::remove_file(directory.join("file-3")).unwrap();
        assert!(
            !is_so(Some(&[record(seed, 4), record(seed, 3)])),
            "which is over"
        );
        whole();
        std::fs::write(directory.join("file-4"), record(seed, 4)).unwrap();
        assert!(!is_fine(), "the old name");
    }
}
