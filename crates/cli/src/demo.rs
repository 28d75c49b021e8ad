//! `pagefence demo`: makes a small image, mounts it, shows what is in it, and takes all of it
//! away again. Where FUSE is missing it says so, and shows the same through the library.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use clap::Args;
use pagefence::{Image, Options};
use tempfile::TempDir;

use crate::confinement::Confinement;

/// Entries that are listed.
const LISTED_MAX: usize = 24;
/// Bytes of a file that are looked at.
const SHOWN_BYTES: u64 = 4096;
/// Lines of a file that are shown.
const SHOWN_LINES: usize = 8;

/// `pagefence demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArguments {
    /// An image of your own, of which not a byte is changed [default: a small one is made]
    image: Option<PathBuf>,
}

/// What is shown of a file system.
struct Contents {
    /// `ls`-like lines, and how many more there are.
    listing: Vec<String>,
    more: bool,
    /// A file, and how it starts.
    file: Option<(PathBuf, String)>,
    /// Bytes in all, and free.
    size: u64,
    free: u64,
}

/// Runs the demonstration. It is a success if the image was mounted, read and unmounted.
pub(crate) fn run(arguments: &DemoArguments) -> anyhow::Result<()> {
    let directory = tempfile::Builder::new()
        .prefix("pagefence-demo-")
        .tempdir()
        .context("a directory for temporary files can't be made")?;
    let image = match &arguments.image {
        Some(image) => {
            let shown = image.display();
            image
                .canonicalize()
                .with_context(|| format!("{shown} can't be read"))?
        }
        None => {
            let image = directory.path().join("demo.img");
            pagefence::demo_image(&image)?;
            println!("made {}, an ext4 image of 16 MiB", image.display());
            image
        }
    };
    let mountpoint = directory.path().join("mnt");
    fs::create_dir(&mountpoint)?;
    let mounted = match Mounted::new(&image, &mountpoint) {
        Ok(mounted) => mounted,
        Err(error) => {
            println!("It can't be mounted here. The same through the library, without a mount:\n");
            show_without_mount(&image, directory)?;
            println!();
            return Err(error);
        }
    };
    let shown = through_mount(&mountpoint);
    if let Ok(contents) = &shown {
        contents.print(&mountpoint);
    }
    if let Err(error) = mounted.unmount() {
        // What is still mounted must not be swept away with the directory.
        let kept = directory.keep();
        return Err(error.context(format!("{} is left behind", kept.display())));
    }
    shown?;
    directory
        .close()
        .context("the directory for temporary files can't be removed")?;
    println!("unmounted, and everything that was made is removed");
    Ok(())
}

/// This program, run once more.
fn again(arguments: &[&str], paths: &[&Path]) -> anyhow::Result<()> {
    let shown: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    println!("$ pagefence {} {}", arguments.join(" "), shown.join(" "));
    let output = Command::new("/proc/self/exe")
        .arg0("pagefence")
        .args(arguments)
        .args(paths)
        .output()
        .context("this program can't be run again")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim_end();
    bail!("{}", said.strip_prefix("pagefence: ").unwrap_or(said))
}

/// The image, mounted, until it is unmounted or given up.
struct Mounted(Option<PathBuf>);

impl Mounted {
    fn new(image: &Path, mountpoint: &Path) -> anyhow::Result<Self> {
        let mounted = again(&["mount", "-o", "ro,noload"], &[image, mountpoint]);
        match mounted {
            Ok(()) => Ok(Self(Some(mountpoint.to_owned()))),
            Err(error) if fuse_is_missing() => Err(error.context(
                "FUSE is not available: install fuse3 (apt-get install fuse3) and load the \
                 module (modprobe fuse), or in a container give it /dev/fuse",
            )),
            Err(error) => Err(error),
        }
    }

    fn unmount(mut self) -> anyhow::Result<()> {
        match self.0.take() {
            Some(mountpoint) => again(&["umount"], &[&mountpoint]),
            None => Ok(()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mountpoint) = self.0.take()
            && let Err(error) = again(&["umount"], &[&mountpoint])
        {
            eprintln!("pagefence: {error:#}");
        }
    }
}

/// Whether the kernel's side is missing, or fusermount3 where it is needed.
fn fuse_is_missing() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let helper = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join("fusermount3").exists())
    });
    device.is_err() || !(is_root || helper)
}

impl Contents {
    fn new() -> Self {
        Self {
            listing: Vec::new(),
            more: false,
            file: None,
            size: 0,
            free: 0,
        }
    }

    /// Takes an entry; says whether it had room for it.
    fn list(&mut self, entry: &Entry) -> bool {
        if self.listing.len() >= LISTED_MAX {
            self.more = true;
            return false;
        }
        let kind = match entry {
            Entry {
                is_directory: true, ..
            } => 'd',
            Entry {
                target: Some(_), ..
            } => 'l',
            Entry { is_file: true, .. } => '-',
            _ => '?',
        };
        let target = entry.target.as_ref();
        let target = target.map_or_else(String::new, |target| format!(" -> {}", target.display()));
        let (size, path) = (entry.size, entry.path.display());
        self.listing
            .push(format!("{kind} {size:>10} {path}{target}"));
        true
    }

    /// Takes the start of a file, if it is the first that is text.
    fn offer(&mut self, path: &Path, start: Vec<u8>) {
        if self.file.is_some() || start.is_empty() {
            return;
        }
        if let Ok(text) = String::from_utf8(start)
            && !text
                .chars()
                .any(|c| c.is_control() && c != '\n' && c != '\t')
        {
            self.file = Some((path.to_owned(), text));
        }
    }

    fn print(&self, root: &Path) {
        println!("$ find {}", root.display());
        for line in &self.listing {
            println!("{line}");
        }
        if self.more {
            println!("… and more");
        }
        if let Some((path, text)) = &self.file {
            println!("$ cat {}", path.display());
            for line in text.lines().take(SHOWN_LINES) {
                println!("{line}");
            }
        }
        let mib = |bytes: u64| bytes >> 20;
        println!("$ df {}", root.display());
        println!("{} MiB, {} MiB free", mib(self.size), mib(self.free));
    }
}

/// An entry of a directory.
struct Entry {
    path: PathBuf,
    is_directory: bool,
    is_file: bool,
    size: u64,
    target: Option<PathBuf>,
}

/// Lists what is at and below `root`, directory by directory, by name.
fn look(
    root: &Path,
    mut read_dir: impl FnMut(&Path) -> anyhow::Result<Vec<Entry>>,
    mut start: impl FnMut(&Path) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Contents> {
    let mut contents = Contents::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        let mut entries = read_dir(&directory)?;
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        for entry in &entries {
            if !contents.list(entry) {
                return Ok(contents);
            }
            if entry.is_file {
                contents.offer(&entry.path, start(&entry.path)?);
            }
        }
        let directories = entries.into_iter().rev().filter(|entry| entry.is_directory);
        waiting.extend(directories.map(|entry| entry.path));
    }
    Ok(contents)
}

/// Looks at the mount as any program would.
fn through_mount(root: &Path) -> anyhow::Result<Contents> {
    let read_dir = |directory: &Path| {
        let mut entries = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let (path, metadata) = (entry.path(), entry.metadata()?);
            let target = metadata.is_symlink().then(|| fs::read_link(&path));
            entries.push(Entry {
                path,
                is_directory: metadata.is_dir(),
                is_file: metadata.is_file(),
                size: metadata.len(),
                target: target.transpose()?,
            });
        }
        Ok(entries)
    };
    let start = |path: &Path| {
        let mut start = Vec::new();
        File::open(path)?
            .take(SHOWN_BYTES)
            .read_to_end(&mut start)?;
        Ok(start)
    };
    let mut contents = look(root, read_dir, start)?;
    let usage = rustix::fs::statvfs(root)?;
    contents.size = usage.f_blocks.saturating_mul(usage.f_frsize);
    contents.free = usage.f_bfree.saturating_mul(usage.f_frsize);
    Ok(contents)
}

/// Shows the image through the library. What was made is taken away first: once the image is read, nothing
/// can be.
fn show_without_mount(image: &Path, directory: TempDir) -> anyhow::Result<()> {
    let image = Image::open(image, Options::new())?;
    directory
        .close()
        .context("the directory for temporary files can't be removed")?;
    Confinement::of_command().enter()?;
    through_library(image)?.print(Path::new("/"));
    Ok(())
}

/// Looks at the image through the library.
fn through_library(image: Image) -> anyhow::Result<Contents> {
    let volume = image.into_volume()?;
    let read_dir = |directory: &Path| {
        let mut entries = Vec::new();
        for entry in volume.read_dir(directory)? {
            let path = directory.join(entry?.file_name());
            let metadata = volume.symlink_metadata(&path)?;
            let target = metadata.is_symlink().then(|| volume.read_link(&path));
            entries.push(Entry {
                is_directory: metadata.is_dir(),
                is_file: metadata.is_file(),
                size: metadata.len(),
                target: target.transpose()?,
                path,
            });
        }
        Ok(entries)
    };
    let start = |path: &Path| {
        let file = volume.open_file(path)?;
        let length = file.metadata()?.len().min(SHOWN_BYTES);
        let mut start = vec![0; usize::try_from(length)?];
        let read = file.read_at(0, &mut start)?;
        start.truncate(read);
        Ok(start)
    };
    let mut contents = look(Path::new("/"), read_dir, start)?;
    let usage = volume.usage()?;
    (contents.size, contents.free) = (usage.size, usage.free);
    Ok(contents)
}
