//! The same operations on the kernel's mount of a copy, where this process may make one: equal
//! files, equal errors, equal holes.

use std::fs::{File as HostFile, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pagefence_vfs::{Error, FallocateMode, FileSystem as _, Result, WriteMode};

use super::{COLLAPSE, INSERT, PUNCH, runs_of};
use crate::support::{Image, KINDS, Random, create, find, read_all, set_size};

const SPAN: u64 = 400 << 10;

/// A loop mount, taken down when dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// Nothing, which is printed, if that is not to be had here.
    fn new(image: &Path) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        for attempt in 0.. {
            let output = Command::new("mount")
                .args(["-t", "ext4", "-o", "loop,rw"])
                .arg(image)
                .arg(dir.path())
                .output()
                .ok()?;
            if output.status.success() {
                break;
            }
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // Two that look for a free loop device at once may find the same.
            if !said.contains("loop device") || attempt > 10 {
                eprintln!("skipped, for there is no loop mount: {}", said.trim());
                return None;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Some(Self(dir))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let is_done = (0..50).any(|_| {
            let status = Command::new("umount").arg(self.0.path()).status();
            let is_done = status.is_ok_and(|status| status.success());
            if !is_done {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            is_done
        });
        assert!(is_done || std::thread::panicking(), "the mount stays");
    }
}

/// What the kernel's fallocate(2) says, by way of util-linux.
fn kernel_says(
    path: &Path,
    flags: &[&str],
    offset: u64,
    length: u64,
) -> std::result::Result<(), String> {
    let output = Command::new("fallocate")
        .args(flags)
        .args(["-o", &offset.to_string(), "-l", &length.to_string()])
        .arg(path)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Whether both say the same.
fn agree(ours: &Result<()>, kernel: &std::result::Result<(), String>) -> bool {
    match (ours, kernel) {
        (Ok(()), Ok(())) => true,
        (Err(Error::InvalidArgument), Err(said)) => said.contains("Invalid argument"),
        (Err(Error::FileTooLarge), Err(said)) => said.contains("File too large"),
        (Err(Error::Unsupported(_)), Err(said)) => said.contains("not supported"),
        (Err(Error::NotPermitted), Err(said)) => said.contains("not permitted"),
        _ => false,
    }
}

fn compare(image: &Image, copy: &Path, seed: u64) -> Option<()> {
    let mut random = Random::new(seed);
    let mounted = Mounted::new(copy)?;
    let path = mounted.path("file");
    let host: HostFile = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .unwrap();
    let fs = image.open();
    let id = create(&fs, "file");
    let file = fs.open(id, true).unwrap();
    let block = u64::from(fs.stat_fs().unwrap().block_size);
    let mut log = vec![format!("seed {seed}")];
    for _ in 0..120 {
        let what = random.below(100);
        // Now and then what does not begin with a block.
        let unit = if what < 35 || random.below(12) == 0 {
            512
        } else {
            block
        };
        let start = random.below(SPAN / unit) * unit;
        let most = [3, 20, 150][random.below(3) as usize];
        let length = (1 + random.below(most)) * unit;
        let (flags, mode): (&[&str], FallocateMode) = match what {
            0..30 => {
                let byte = 1 + (random.next() % 255) as u8;
                let data = vec![byte; length as usize];
                log.push(format!("write {start} {length}"));
                fs.write(&file, start, &data, WriteMode::empty()).unwrap();
                host.write_all_at(&data, start).unwrap();
                continue;
            }
            30..35 => {
                log.push(format!("truncate {start}"));
                set_size(&fs, id, start).unwrap();
                host.set_len(start).unwrap();
                continue;
            }
            35..42 => (&["-p"], PUNCH),
            42..48 => (&["-n"], FallocateMode::KEEP_SIZE),
            48..75 => (&["-c"], COLLAPSE),
            _ => (&["-i"], INSERT),
        };
        // Where nothing can be, and what would not fit.
        let start = match random.below(40) {
            0 => start + (1 << 45),
            1 => start + (2 << 40),
            _ => start,
        };
        let length = match random.below(40) {
            0 => (16 << 40) - (1 << 30),
            _ => length,
        };
        if flags == ["-n"] && start + length > 1 << 21 {
            continue;
        }
        log.push(format!("{flags:?} {start} {length}"));
        let ours = fs.allocate(&file, start, length, mode);
        let kernel = kernel_says(&path, flags, start, length);
        assert!(
            agree(&ours, &kernel),
            "{ours:?}, {kernel:?}\n{}",
            log.join("\n")
        );
        // Later ones shall fit on the disk.
        let size = fs.attr(id).unwrap().size;
        assert_eq!(size, host.metadata().unwrap().len(), "{}", log.join("\n"));
        if size > 3 * SPAN {
            set_size(&fs, id, SPAN).unwrap();
            host.set_len(SPAN).unwrap();
            log.push(format!("truncate {SPAN}"));
        }
    }
    drop((file, host));
    fs.shut_down().unwrap();
    drop(fs);
    let log = log.join("\n");
    let kernels = std::fs::read(&path).unwrap();
    drop(mounted);
    image.assert_clean(&log);
    let ours = {
        // Our tree, as the kernel reads it.
        let mounted = Mounted::new(&image.path)?;
        std::fs::read(mounted.path("file")).unwrap()
    };
    assert!(ours == kernels, "{log}");
    let look = |image: &Path| {
        let image = Image::of(&std::fs::read(image).unwrap());
        let fs = image.open();
        let id = find(&fs, "file");
        let file = fs.open(id, false).unwrap();
        (read_all(&fs, id), runs_of(&fs, &file))
    };
    let (bytes, runs) = look(&image.path);
    let (kernels_bytes, kernels_runs) = look(copy);
    assert!(bytes == kernels && kernels_bytes == kernels, "{log}");
    assert_eq!(runs, kernels_runs, "{log}");
    Some(())
}

#[test]
fn the_kernel_does_the_same_to_a_copy() {
    let seeds = std::env::var("PAGEFENCE_TRACES").map_or(2, |count| count.parse().unwrap());
    for seed in 0..seeds {
        for kind in KINDS.iter().filter(|kind| kind.has_extents) {
            let image = Image::new(kind.options, "12M");
            let copy = Image::of(&std::fs::read(&image.path).unwrap());
            if compare(&image, &copy.path, seed).is_none() {
                return;
            }
        }
    }
}
