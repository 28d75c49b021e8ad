//! Who else uses an image: the kernel through a loop device, a mount of a block device, or a
//! process that has it open for writing.
//!
//! All of it is told by sysfs and procfs at one moment; nothing is held. What lies in other
//! mount namespaces is seen only through `/sys/fs/ext4`, and processes of other users are seen
//! only by root.

use std::fs;
use std::io::Result;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A loop device whose backing file is the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopUse {
    /// Name of the device: `loop0`.
    pub device: String,
    /// The loop device can't write to the image.
    pub read_only: bool,
    /// First byte of the image that the loop device shows.
    pub offset_bytes: u64,
    /// Where the loop device, or a partition of it, is mounted.
    pub mounted: Option<Mounted>,
}

/// A mount that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// At this path.
    At(PathBuf),
    /// By the kernel's ext4, where this process can't see it (in another mount namespace).
    OutOfSight,
}

/// A process that has the image open for writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Its number.
    pub process: u32,
    /// Its name, as far as the kernel keeps it (15 bytes), or empty.
    pub name: String,
}

/// Loop devices over the file at `path`.
///
/// # Errors
/// The file can't be examined. Where sysfs is missing the answer is that there are none.
pub fn used_by_loop(path: &Path) -> Result<Vec<LoopUse>> {
    System::default().used_by_loop(path)
}

/// The mount of the block device at `path`, or of a partition of it; none for a file.
///
/// # Errors
/// The device can't be examined.
pub fn mounted_block_device(path: &Path) -> Result<Option<Mounted>> {
    System::default().mounted_block_device(path)
}

/// Processes other than this one that have the file at `path` open for writing. Looks at every
/// open file of every process that this process may see.
///
/// # Errors
/// The file can't be examined. Where procfs is missing the answer is that there are none.
pub fn writers(path: &Path) -> Result<Vec<Writer>> {
    System::default().writers(path)
}

/// Where the kernel tells about itself.
#[derive(Debug)]
struct System {
    sys: PathBuf,
    proc: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self {
            sys: PathBuf::from("/sys"),
            proc: PathBuf::from("/proc"),
        }
    }
}

impl System {
    fn used_by_loop(&self, path: &Path) -> Result<Vec<LoopUse>> {
        let image = fs::metadata(path)?;
        let absolute = fs::canonicalize(path)?;
        let mut uses = Vec::new();
        for name in names(&self.sys.join("block")) {
            if !name.starts_with("loop") {
                continue;
            }
            let device = self.sys.join("block").join(&name);
            let Ok(line) = fs::read(device.join("loop/backing_file")) else {
                continue;
            };
            let line = line.strip_suffix(b"\n").unwrap_or(&line).to_vec();
            let backing = PathBuf::from(std::ffi::OsString::from_vec(line));
            // The path is as the kernel sees it, and may name another file here by now: the
            // file's identity decides where there is one, else the path.
            let same = match fs::metadata(&backing) {
                Ok(other) => (other.dev(), other.ino()) == (image.dev(), image.ino()),
                Err(_) => backing == absolute,
            };
            if !same {
                continue;
            }
            uses.push(LoopUse {
                read_only: number(&device.join("ro")).is_some_and(|ro| ro != 0),
                offset_bytes: number(&device.join("loop/offset")).unwrap_or(0),
                mounted: self.mount_of(&name),
                device: name,
            });
        }
        uses.sort_by(|a, b| a.device.cmp(&b.device));
        Ok(uses)
    }

    fn mounted_block_device(&self, path: &Path) -> Result<Option<Mounted>> {
        let metadata = fs::metadata(path)?;
        if !metadata.file_type().is_block_device() {
            return Ok(None);
        }
        let device = metadata.rdev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let link = self.sys.join("dev/block").join(format!("{major}:{minor}"));
        let Some(name) = fs::canonicalize(link)
            .ok()
            .and_then(|target| Some(target.file_name()?.to_string_lossy().into_owned()))
        else {
            return Ok(self.mount_point(&[format!("{major}:{minor}")]));
        };
        Ok(self.mount_of(&name))
    }

    /// The mount of the block device `name` or of one of its partitions.
    fn mount_of(&self, name: &str) -> Option<Mounted> {
        let device = self.sys.join("class/block").join(name);
        let mut devices: Vec<String> = vec![name.to_owned()];
        devices.extend(
            names(&device)
                .into_iter()
                .filter(|part| part.starts_with(name) && device.join(part).join("dev").exists()),
        );
        let numbers: Vec<String> = devices
            .iter()
            .filter_map(|name| {
                let text =
                    fs::read_to_string(self.sys.join("class/block").join(name).join("dev")).ok()?;
                Some(text.trim().to_owned())
            })
            .collect();
        self.mount_point(&numbers).or_else(|| {
            devices
                .iter()
                .any(|name| self.sys.join("fs/ext4").join(name).is_dir())
                .then_some(Mounted::OutOfSight)
        })
    }

    /// Where one of the devices `numbers` ("major:minor") is mounted.
    fn mount_point(&self, numbers: &[String]) -> Option<Mounted> {
        let table = fs::read(self.proc.join("self/mountinfo")).ok()?;
        table.split(|byte| *byte == b'\n').find_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let device = fields.nth(2)?;
            let point = fields.nth(1)?;
            numbers
                .iter()
                .any(|number| number.as_bytes() == device)
                .then(|| Mounted::At(unescape(point)))
        })
    }

    fn writers(&self, path: &Path) -> Result<Vec<Writer>> {
        let image = fs::metadata(path)?;
        let mut found = Vec::new();
        for name in names(&self.proc) {
            let Ok(process) = name.parse::<u32>() else {
                continue;
            };
            if process == std::process::id() {
                continue;
            }
            let process_dir = self.proc.join(&name);
            let writes = names(&process_dir.join("fd")).into_iter().any(|fd| {
                fs::metadata(process_dir.join("fd").join(&fd))
                    .is_ok_and(|other| (other.dev(), other.ino()) == (image.dev(), image.ino()))
                    && opened_for_writing(&process_dir.join("fdinfo").join(&fd))
            });
            if writes {
                found.push(Writer {
                    process,
                    name: fs::read_to_string(process_dir.join("comm"))
                        .map(|name| name.trim_end().to_owned())
                        .unwrap_or_default(),
                });
            }
        }
        found.sort_by_key(|writer| writer.process);
        Ok(found)
    }
}

/// Whether the `flags` line of an fdinfo file has write access.
fn opened_for_writing(fdinfo: &Path) -> bool {
    let Ok(text) = fs::read_to_string(fdinfo) else {
        return false;
    };
    text.lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        // O_ACCMODE: 0 is O_RDONLY.
        .is_some_and(|flags| flags & 3 != 0)
}

/// Names of the entries of a directory; none if it can't be read.
fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .map(|entries| {
            entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_default()
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Undoes the kernel's `\040` escapes.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(|code| {
            let code = std::str::from_utf8(code).ok()?;
            u8::from_str_radix(code, 8).ok()
        });
        if let Some(byte) = code {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests;
