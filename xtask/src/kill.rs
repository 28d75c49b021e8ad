//! `cargo xtask kill`: the server is killed while several processes write and fsync; what their
//! fsync said is durable is there once the image is mounted again.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{Needs, command, output, require, run as run_program};
use crate::diff_walk::check;
use crate::mounts::{ServedMount, Server, pagefence_binary};
use crate::random::Random;
use crate::scratch::Scratch;

/// Arguments of `kill`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The binary to try; built in the release profile unless given.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// How often the server is killed, for each type of file system.
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// Processes that write.
    #[arg(long, default_value_t = 4)]
    writers: u64,
    /// Types of file system, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "ext4")]
    types: Vec<String>,
    /// Block size.
    #[arg(long, default_value_t = 4096)]
    block_size: u32,
    /// Decides when the server is killed, and what is written.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The latest moment of a kill, in milliseconds after the writers began.
    #[arg(long, default_value_t = 1500)]
    latest_ms: u64,
    /// Leave the server no more memory than it has a second before it is killed.
    #[arg(long)]
    starve: bool,
}

/// Arguments of a process that writes.
#[derive(clap::Args)]
pub(crate) struct WriterArguments {
    directory: PathBuf,
    log: PathBuf,
    seed: u64,
}

/// How long a server goes on that gets no more memory.
const STARVED_FOR: Duration = Duration::from_secs(1);
/// Bytes of the image.
const IMAGE_BYTES: u64 = 512 << 20;
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

/// FNV-1a, of the number and the payload.
fn checksum(number: u64, payload: &[u8]) -> u64 {
    let number = number.to_le_bytes();
    let bytes = number.iter().chain(payload);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A writer: works until the file system goes away.
pub(crate) fn writer(arguments: &WriterArguments) -> Result<bool> {
    // That the server is killed is why we are here; what was promised before counts.
    let _ = write_until_it_fails(arguments);
    Ok(true)
}

fn write_until_it_fails(arguments: &WriterArguments) -> Result<()> {
    let (directory, seed) = (&arguments.directory, arguments.seed);
    let mut log = OpenOptions::new().append(true).open(&arguments.log)?;
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

/// What was found of what was promised.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    /// What was promised, and was there.
    pub(crate) promises: u64,
    bytes: u64,
    /// Servers that ended for want of memory.
    pub(crate) starved: u64,
}

/// Holds a writer's directory against its log.
fn verify(directory: &Path, log: &Path, seed: u64, found: &mut Found) -> Result<()> {
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
        ensure!(is_there, "file-{number} is lost (moved: {is_moved})");
        let bytes = std::fs::read(if old.exists() { old } else { new })?;
        ensure!(
            bytes == record(seed, number),
            "file-{number} is not what was written"
        );
        found.bytes += bytes.len() as u64;
    }
    let Some(current) = current else {
        return Ok(());
    };
    let bytes = std::fs::read(directory.join("current")).context("the current version")?;
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

/// Runs the chore; `true` if nothing was lost.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    require(&Needs {
        programs: &["mke2fs", "e2fsck", "umount"],
        fuse: true,
    })?;
    let server = Server::Pagefence(pagefence_binary(arguments.binary.as_deref())?);
    let mut all_kept = true;
    for kind in &arguments.types {
        let mut failures = 0;
        let mut random = Random::for_name(arguments.seed, kind);
        let mut found = Found::default();
        for round in 0..arguments.rounds {
            let seed = random.next();
            let lost = match one_round(arguments, &server, kind, seed, &mut found) {
                Ok(()) => continue,
                Err(error) => error,
            };
            failures += 1;
            println!("{kind}, round {round} of seed {}: {lost:#}", arguments.seed);
        }
        println!(
            "{kind}: {} kills under {} writers, {} promises, {} bytes of them read back, \
             failures {failures}",
            arguments.rounds, arguments.writers, found.promises, found.bytes
        );
        all_kept &= failures == 0;
    }
    Ok(all_kept)
}

/// Rounds with what the chore's arguments are unless given.
pub(crate) struct Kills {
    arguments: Arguments,
    server: Server,
}

impl Kills {
    /// Of the binary of the release profile.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            arguments: Arguments {
                binary: None,
                rounds: 1,
                writers: 4,
                types: Vec::new(),
                block_size: 4096,
                seed: 1,
                latest_ms: 1500,
                starve: false,
            },
            server: Server::Pagefence(pagefence_binary(None)?),
        })
    }

    /// As [`Self::new`], of servers that get no more memory.
    pub(crate) fn starving() -> Result<Self> {
        let mut kills = Self::new()?;
        kills.arguments.starve = true;
        Ok(kills)
    }

    /// One round, and what was found of what was promised.
    pub(crate) fn round(&self, kind: &str, seed: u64) -> Result<Found> {
        let mut found = Found::default();
        one_round(&self.arguments, &self.server, kind, seed, &mut found)?;
        Ok(found)
    }
}

fn one_round(
    arguments: &Arguments,
    server: &Server,
    kind: &str,
    seed: u64,
    found: &mut Found,
) -> Result<()> {
    let mut random = Random::new(seed);
    let scratch = Scratch::new()?;
    let (image, directory) = (scratch.join("image"), scratch.directory("mnt")?);
    File::create(&image)?.set_len(IMAGE_BYTES)?;
    let block_size = arguments.block_size.to_string();
    let options = ["-q", "-F", "-t", kind, "-b", &block_size];
    let options = options.into_iter().map(AsRef::as_ref);
    run_program("mke2fs", options.chain([image.as_os_str()]))?;

    let mut mount = ServedMount::new(server, &image, &directory, "rw")?;
    let mut writers = Vec::new();
    for number in 0..arguments.writers {
        let writer = Writer {
            name: format!("writer-{number}"),
            log: scratch.join(&format!("log-{number}")),
            seed: random.next(),
        };
        std::fs::create_dir(directory.join(&writer.name))?;
        File::create(&writer.log)?;
        writers.push(writer);
    }
    // The directories are durable before anything in them is promised.
    rustix::fs::syncfs(File::open(&directory)?)?;
    let children: Vec<Child> = writers
        .iter()
        .map(|writer| writer.start(&directory))
        .collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_millis(random.below(arguments.latest_ms)));
    if arguments.starve {
        mount.take_memory()?;
        std::thread::sleep(STARVED_FOR);
        found.starved += u64::from(mount.is_dead()?);
    }
    mount.kill()?;
    for mut child in children {
        child.wait()?;
    }

    if kind == "ext2" {
        // Without a journal e2fsck is who recovers.
        let mended = output("e2fsck", ["-fy".as_ref(), image.as_os_str()])?;
        ensure!(
            mended.status.code().is_some_and(|code| code <= 1),
            "e2fsck can't mend it: {}",
            String::from_utf8_lossy(&mended.stdout)
        );
    }
    let mount = ServedMount::new(server, &image, &directory, "rw")?;
    let verified = writers.iter().try_for_each(|writer| {
        let directory = directory.join(&writer.name);
        verify(&directory, &writer.log, writer.seed, found).context(writer.name.clone())
    });
    mount.unmount()?;
    verified?;
    match check::complaints(&image)? {
        None => Ok(()),
        Some(complaints) => bail!("e2fsck: {complaints}"),
    }
}

/// A process that writes.
struct Writer {
    name: String,
    log: PathBuf,
    seed: u64,
}

impl Writer {
    fn start(&self, directory: &Path) -> Result<Child> {
        command(std::env::current_exe()?, ["kill-writer"])
            .arg(directory.join(&self.name))
            .arg(&self.log)
            .arg(self.seed.to_string())
            .stdout(Stdio::null())
            .spawn()
            .context("a writer can't be started")
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, Promise, record, verify};
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
        let is_fine = || verify(&directory, &log, seed, &mut Found::default()).is_ok();
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
        whole();
        std::fs::write(directory.join("file-4"), record(seed, 4)).unwrap();
        assert!(!is_fine(), "the old name");
    }
}
