//! Threads that fill a volume together, cut and remove what they have, and fill it again.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use pagefence::{OpenOptions, Volume};
use pagefence_block_io::fault_device::random::Random;
use pagefence_fs_model::files::{Bytes, RECORD_BYTES, contents};
use pagefence_lock_order::primitives::{Arc, thread};

use super::{Free, open, remove_all, text};
use crate::guarded::guarded;
use crate::image::Setup;
use crate::{Budget, Plan, Row, e2fsck};

const THREADS: u64 = 4;
/// Times that a thread fills what is left and gives up some of it, before everything is counted.
const ROUNDS: u64 = 3;
/// Files of a thread.
const FILES: u64 = 4;
/// Records of a write, at most.
const RECORDS: u64 = 2000;
/// Writes of a round, at most: who is always given up to would go on for ever.
const WRITES_MAX: u64 = 4000;

/// What a thread has written, by file.
type Files = BTreeMap<String, Bytes>;

struct Worker {
    volume: Volume,
    number: u64,
    block_size: u32,
    random: Random,
    files: Files,
    tag: u64,
    refused: u64,
}

impl Worker {
    fn run(mut self) -> Result<(Files, u64), String> {
        for _ in 0..ROUNDS {
            self.fill()?;
            self.give_up()?;
        }
        Ok((self.files, self.refused))
    }

    fn name(&mut self) -> String {
        format!("{}-{}", self.number, self.random.below(FILES))
    }

    /// Writes here and there until nothing is taken.
    fn fill(&mut self) -> Result<(), String> {
        let mut most = RECORDS;
        for _ in 0..WRITES_MAX {
            let name = self.name();
            let to_write = OpenOptions::new().write(true).create(true);
            let file = match to_write.open(&self.volume, &name) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::StorageFull => {
                    self.refused += 1;
                    return Ok(());
                }
                Err(error) => return Err(text(error)),
            };
            let block_size = self.block_size;
            let known = self
                .files
                .entry(name)
                .or_insert_with(|| Bytes::new(block_size));
            let size = known.size() / RECORD_BYTES * RECORD_BYTES;
            let offset = match self.random.below(4) {
                0 => self.random.below(size + 1) / RECORD_BYTES * RECORD_BYTES,
                // A gap, now and then.
                1 => size + self.random.below(16) * u64::from(block_size),
                _ => size,
            };
            let length = ((1 + self.random.below(most)) * RECORD_BYTES) as usize;
            self.tag += 1;
            let tag = self.number << 32 | self.tag;
            let data = contents(tag, offset, length);
            let mut done = 0;
            while done < length {
                match file.write_at(offset + done as u64, &data[done..]) {
                    Ok(some) => done += some,
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(text(error)),
                }
            }
            if done > 0 {
                known.write(offset, &data[..done]);
            }
            if done < length {
                self.refused += 1;
                most /= 4;
                if most == 0 {
                    return Ok(());
                }
            }
            if self.random.one_in(16) {
                file.sync_all()
                    .map_err(|error| format!("what was taken can't be written: {error}"))?;
            }
        }
        Ok(())
    }

    /// Cuts some files, and removes some.
    fn give_up(&mut self) -> Result<(), String> {
        let names: Vec<String> = self.files.keys().cloned().collect();
        for name in names {
            match self.random.below(3) {
                0 => {
                    self.volume.remove_file(&name).map_err(text)?;
                    self.files.remove(&name);
                }
                1 => {
                    let known = self.files.get_mut(&name).expect("it is listed");
                    let size = self.random.below(known.size() + 1) / RECORD_BYTES * RECORD_BYTES;
                    self.volume.set_len(&name, size).map_err(text)?;
                    known.set_size(size);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Holds what is there against what was taken.
fn check(volume: &Volume, files: &Files) -> Result<(), String> {
    for (name, known) in files {
        let bytes = volume.read(name).map_err(text)?;
        if bytes.len() as u64 != known.size() {
            let (found, expected) = (bytes.len(), known.size());
            return Err(format!("{name}: {found} bytes, and {expected} were taken"));
        }
        let expected = known.read(0, bytes.len());
        if let Some(at) = (0..bytes.len()).find(|at| bytes[*at] != expected[*at]) {
            return Err(format!("{name}: byte {at} is not what was written"));
        }
    }
    Ok(())
}

/// One volume that is filled; how often there was no space.
fn case(setup: &Setup, seed: u64) -> Result<u64, String> {
    let device = Arc::new(setup.make());
    let volume = open(&device)?;
    let empty = Free::of(&volume)?;
    let mut threads = Vec::new();
    for number in 1..=THREADS {
        let worker = Worker {
            volume: volume.clone(),
            number,
            block_size: setup.block_size,
            random: Random::new(seed << 8 | number),
            files: Files::new(),
            tag: 0,
            refused: 0,
        };
        threads
            .push(thread::spawn("fills", move || worker.run()).map_err(|error| error.to_string())?);
    }
    let (mut files, mut refused) = (Files::new(), 0);
    for thread in threads {
        let (more, times) = thread
            .join()
            .map_err(|_| "a thread panicked".to_owned())??;
        files.extend(more);
        refused += times;
    }
    volume
        .sync()
        .map_err(|error| format!("what was taken can't be written: {error}"))?;
    check(&volume, &files).map_err(|error| format!("before it is closed: {error}"))?;
    let free = Free::of(&volume)?;
    volume.close().map_err(text)?;
    e2fsck::check(&device)?;
    let volume = open(&device)?;
    if Free::of(&volume)? != free {
        let found = Free::of(&volume)?;
        return Err(format!(
            "{free:?} before it was closed, {found:?} afterwards"
        ));
    }
    check(&volume, &files).map_err(|error| format!("opened again: {error}"))?;
    remove_all(&volume)?;
    Free::of(&volume)?.is_back(empty)?;
    volume.close().map_err(text)?;
    e2fsck::check(&device).map_err(|error| format!("with all removed: {error}"))?;
    Ok(refused)
}

/// Volumes that are filled by threads, again and again, for as long as there is time.
#[must_use]
pub fn prove_full(setup: Setup, plan: &Plan) -> Row {
    let mut row = Row::new(
        format!("{THREADS} writers on a full volume, {setup}"),
        plan.seed,
    );
    if !e2fsck::is_there() {
        row.skipped.push("there is no e2fsck".to_owned());
        return row;
    }
    let budget = Budget::new(plan.time);
    let mut seed = plan.seed;
    while seed == plan.seed || budget.is_left() {
        row.count("volumes filled", 1);
        match guarded(move || case(&setup, seed)).and_then(|outcome| outcome) {
            Ok(refused) => row.count("times without space", refused),
            Err(error) => row
                .failures
                .push(format!("{setup:?}, seed {seed}: {error}")),
        }
        seed += 1;
    }
    row
}
