//! One file of a mount in the memory of two processes, and a third that punches holes into it through the
//! mount: the two count together and stamp pages, all three look for a stamp that should be gone.
//!
//! `cargo run --release -p pagefence --example map_shared [-- --seconds N]`
//!
//! Makes an image, mounts it with the command `pagefence` (that of the variable PAGEFENCE, or the workspace's
//! own, which is built if need be), and removes everything in the end. Needs no root where fusermount3 mounts
//! for everybody. The last line says what was checked; the exit status is 1 if a byte was stale or a count lost.
//!
//! A stamp is a number that is given once. Who punches a page waits until what is being stamped at that moment is
//! stored, punches, and only then says, for each page that it punched, which stamps were given before: none of
//! them may be seen in it ever after.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pagefence::{Kind, Map, MapOptions, Mkfs, Options, Volume};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::{Pid, Signal, kill_process};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const PAGE: usize = 4096;
const WORD: usize = 8;

/// Counts of both processes together; behind it are the counts of each.
const COUNTS: usize = 0;
/// The last stamp that was given.
const STAMP: usize = 256;
/// What each process is at: odd while it stamps a page. In cache lines of their own.
const ROUNDS: usize = 512;
const LINE: usize = 64;
/// Not 0 when it is over.
const OVER: usize = 1024;
/// For each of the pages a word: stamps up to it were given before the page was last punched.
const GONE: usize = PAGE;
/// The pages that are stamped and punched.
const PAGES: usize = 512;
const STAMPED: usize = 2 * PAGE;
const SIZE: usize = STAMPED + PAGES * PAGE;

/// Who counts.
const COUNTERS: usize = 2;
/// Counts between two stamps.
const COUNTS_A_STAMP: u64 = 50;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        [] => run(Duration::from_secs(10)),
        ["--seconds", seconds] => match seconds.parse() {
            Ok(seconds) => run(Duration::from_secs(seconds)),
            Err(error) => Err(format!("--seconds {seconds}: {error}").into()),
        },
        // What this program runs itself as.
        ["count", directory, which] => count(Path::new(directory), which),
        ["punch", directory] => punch(Path::new(directory)),
        _ => Err("usage: map_shared [--seconds N]".into()),
    };
    match outcome {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("map_shared: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(time: Duration) -> Outcome<String> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("shared.img");
    Mkfs::new(Kind::Ext4).size(64 << 20).format(&image)?;
    let mount = Mount::of(&image, directory.path().join("mnt"))?;
    let file = File::create_new(mount.path.join("shared"))?;
    file.set_len(SIZE as u64)?;

    let mut workers = Vec::new();
    for which in 0..COUNTERS {
        workers.push(Worker::start(&[
            "count",
            mount.name()?,
            &which.to_string(),
        ])?);
    }
    workers.push(Worker::start(&["punch", mount.name()?])?);
    let end = Instant::now() + time;
    while Instant::now() < end && workers.iter_mut().all(Worker::goes_on) {
        std::thread::sleep(Duration::from_millis(20));
    }
    // The others read it in their memory.
    file.write_all_at(&1_u64.to_ne_bytes(), OVER as u64)?;
    drop(file);
    let mut told = Vec::new();
    for worker in workers {
        told.push(worker.numbers()?);
    }
    mount.end()?;
    let [by_first, by_second, by_puncher] = told[..] else {
        return Err("there are three processes".into());
    };
    check_counts(&image, [by_first[0], by_second[0]])?;
    let (counts, stamps) = (by_first[0] + by_second[0], by_first[1] + by_second[1]);
    let seen = by_first[2] + by_second[2] + by_puncher[2];
    Ok(format!(
        "map_shared: {counts} counts by two processes in one page of a mounted file, none lost; {stamps} pages \
         stamped by them, {} punched in {} holes by a third process beside them; {seen} pages looked at by \
         all three: 0 stale",
        by_puncher[1], by_puncher[0],
    ))
}

/// What they counted is on disk.
fn check_counts(image: &Path, counts: [u64; COUNTERS]) -> Outcome<()> {
    let volume = Volume::open(image, Options::new())?;
    let mut bytes = [0; 3 * WORD];
    volume
        .open_file("/shared")?
        .read_at(COUNTS as u64, &mut bytes)?;
    let on_disk = words(&bytes);
    let due = [counts[0] + counts[1], counts[0], counts[1]];
    if on_disk != due {
        return Err(format!("lost: {on_disk:?} of {due:?} counts are on disk").into());
    }
    Ok(())
}

/// Counts, stamps its share of the pages, and looks at all, until it is over.
fn count(directory: &Path, which: &str) -> Outcome<String> {
    let which: usize = which.parse()?;
    let map = Volume::connect(directory)?.map("shared", .., MapOptions::shared())?;
    let mut random = Random(which as u64);
    let (mut counts, mut stamps, mut seen) = (0_u64, 0_u64, 0_u64);
    let add = |at| map.fetch_add(at, 1_u64, Ordering::SeqCst);
    while map.load::<u64>(OVER, Ordering::SeqCst)? == 0 {
        for _ in 0..COUNTS_A_STAMP {
            add(COUNTS)?;
            add(COUNTS + (1 + which) * WORD)?;
            counts += 1;
        }
        let own = random.below(PAGES / COUNTERS) * COUNTERS + which;
        add(ROUNDS + which * LINE)?;
        let stamp = add(STAMP)? + 1;
        map.write_at(
            STAMPED + own * PAGE,
            &stamp.to_ne_bytes().repeat(PAGE / WORD),
        )?;
        add(ROUNDS + which * LINE)?;
        stamps += 1;
        for page in [own, random.below(PAGES), random.below(PAGES)] {
            look(&map, page)?;
            seen += 1;
        }
    }
    map.flush()?;
    Ok(format!("{counts} {stamps} {seen}"))
}

fn look(map: &Map, page: usize) -> Outcome<()> {
    // First, as it may grow while the page is looked at.
    let gone = map.load(GONE + page * WORD, Ordering::SeqCst)?;
    let mut bytes = [0; PAGE];
    map.read_at(STAMPED + page * PAGE, &mut bytes)?;
    check(&bytes, page, gone)
}

/// Checks that no word of a page is a stamp that is gone.
fn check(bytes: &[u8], page: usize, gone: u64) -> Outcome<()> {
    match words(bytes).iter().find(|&&word| word != 0 && word <= gone) {
        None => Ok(()),
        Some(word) => Err(format!(
            "stale: page {page} shows stamp {word}, and those up to {gone} are gone"
        )
        .into()),
    }
}

/// Punches holes through the mount, looks at them there, and says what is gone, until it is over.
fn punch(directory: &Path) -> Outcome<String> {
    let open = || {
        let path = directory.join("shared");
        File::options().read(true).write(true).open(path)
    };
    // Who opens the file when it is mapped sees at once what is stored.
    while word(&open()?, COUNTS + WORD)? == 0 || word(&open()?, COUNTS + 2 * WORD)? == 0 {
        if word(&open()?, OVER)? != 0 {
            return Ok("0 0 0".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let file = open()?;
    let mut random = Random(7);
    let (mut holes, mut pages, mut seen) = (0_u64, 0_u64, 0_u64);
    let mut bytes = vec![0; 64 * PAGE];
    while word(&file, OVER)? == 0 {
        let first = random.below(PAGES - 64);
        let count = 1 + random.below(64);
        let gone = word(&file, STAMP)?;
        for which in 0..COUNTERS {
            wait_for_stamp(&file, ROUNDS + which * LINE)?;
        }
        let at = (STAMPED + first * PAGE) as u64;
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, how, at, (count * PAGE) as u64)?;
        let all_gone = gone.to_ne_bytes().repeat(count);
        file.write_all_at(&all_gone, (GONE + first * WORD) as u64)?;
        let bytes = &mut bytes[..count * PAGE];
        file.read_exact_at(bytes, at)?;
        for (page, bytes) in (first..).zip(bytes.chunks(PAGE)) {
            check(bytes, page, gone)?;
        }
        holes += 1;
        pages += count as u64;
        seen += count as u64;
    }
    Ok(format!("{holes} {pages} {seen}"))
}

/// Waits until a stamp that is being stored, if there is one, is there.
fn wait_for_stamp(file: &File, round_at: usize) -> Outcome<()> {
    let round = word(file, round_at)?;
    let is_at_it = round % 2 == 1;
    while is_at_it && word(file, round_at)? == round && word(file, OVER)? == 0 {
        std::thread::yield_now();
    }
    Ok(())
}

fn word(file: &File, at: usize) -> Outcome<u64> {
    let mut bytes = [0; WORD];
    file.read_exact_at(&mut bytes, at as u64)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn words(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks::<WORD>();
    words.iter().map(|word| u64::from_ne_bytes(*word)).collect()
}

/// Numbers without a pattern.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % end
    }
}

/// This program in another process; ended if it is dropped.
struct Worker(Option<Child>);

impl Worker {
    fn start(arguments: &[&str]) -> Outcome<Self> {
        let child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self(Some(child)))
    }

    fn goes_on(&mut self) -> bool {
        let child = self.0.as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for its end: the three numbers that it says.
    fn numbers(mut self) -> Outcome<[u64; 3]> {
        let child = self.0.take().ok_or("it was waited for already")?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("one of the processes failed: {}", output.status).into());
        }
        let said = String::from_utf8(output.stdout)?;
        let numbers: Result<Vec<u64>, _> = said.split_whitespace().map(str::parse).collect();
        let numbers = numbers?.try_into();
        numbers.map_err(|_| format!("one of the processes says {said:?}").into())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The mounted image; unmounted if it is dropped.
struct Mount {
    server: Child,
    path: PathBuf,
}

impl Mount {
    fn of(image: &Path, path: PathBuf) -> Outcome<Self> {
        let command = command()?;
        std::fs::create_dir(&path)?;
        let server = Command::new(&command)
            .args(["mount", "-f", "-o", "rw"])
            .args([image, &path])
            .spawn()
            .map_err(|error| format!("{} can't be run: {error}", command.display()))?;
        let mut mount = Self { server, path };
        while !mount.is_mounted()? {
            // It has said why.
            if let Some(status) = mount.server.try_wait()? {
                return Err(format!("{} can't mount: {status}", command.display()).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Volume::connect(&mount.path)?;
        Ok(mount)
    }

    fn name(&self) -> Outcome<&str> {
        self.path
            .to_str()
            .ok_or_else(|| "a path that is no text".into())
    }

    /// Whether it is another file system than the directory around it.
    fn is_mounted(&self) -> Outcome<bool> {
        let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
        let around = self.path.parent().unwrap_or(&self.path);
        Ok(device(&self.path)? != device(around)?)
    }

    /// Unmounts, and waits until all is on disk.
    fn end(mut self) -> Outcome<()> {
        self.interrupt();
        let status = self.server.wait()?;
        if !status.success() {
            return Err(format!("the mount's server ended with {status}").into());
        }
        Ok(())
    }

    /// Has the server unmount what it serves, and end.
    fn interrupt(&self) {
        // It may have ended.
        let _ = kill_process(Pid::from_child(&self.server), Signal::TERM);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Ok(None) = self.server.try_wait() {
            self.interrupt();
            let _ = self.server.wait();
        }
    }
}

/// The command `pagefence`: one that is named, or the workspace's own.
fn command() -> Outcome<PathBuf> {
    if let Some(named) = std::env::var_os("PAGEFENCE") {
        return Ok(named.into());
    }
    let own = std::env::current_exe()?;
    let built = own
        .ancestors()
        .nth(2)
        .ok_or("this program is in no directory")?;
    let command = built.join("pagefence");
    if let Some(cargo) = std::env::var_os("CARGO") {
        // Does nothing if it is up to date.
        let profile = if cfg!(debug_assertions) {
            "dev"
        } else {
            "release"
        };
        let status = Command::new(cargo)
            .args([
                "build",
                "--quiet",
                "--package",
                "pagefence-cli",
                "--profile",
            ])
            .arg(profile)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()?;
        if !status.success() {
            return Err("the command pagefence can't be built".into());
        }
    }
    if !command.exists() {
        let hint =
            "`cargo build --release -p pagefence-cli` builds it; or set PAGEFENCE to its path";
        return Err(format!("there is no {}: {hint}", command.display()).into());
    }
    Ok(command)
}
