//! A file that a command works on: in an image, which is opened for that, or on a mount.
//!
//! `IMAGE:/path` is the file `/path` in `IMAGE`; anything else is a path of this machine, which
//! has to lie on a mount of pagefence. Both names may contain colons.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use pagefence::{Image, Options, Volume};

use crate::confinement::Confinement;
use crate::mountinfo::{self, Mount};

/// What parts image and path.
const SEPARATOR: &[u8] = b":/";

/// A file that a command works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// One in an image.
    InImage {
        /// The image, or a block device.
        image: PathBuf,
        /// The file in it: an absolute path.
        path: PathBuf,
    },
    /// One on a mount.
    Mounted(PathBuf),
}

impl Target {
    /// Understands `IMAGE:/path` and `MOUNTPOINT/path`. What exists on a mount of ours is meant
    /// so, whatever its name. Otherwise the last `:/` parts image and path; or the last one that
    /// has a file (which a directory is not) before it, should the path contain one.
    ///
    /// # Errors
    /// The argument is neither, or what is mounted can't be told: a sentence that says so.
    pub(crate) fn parse(argument: &OsStr) -> anyhow::Result<Self> {
        let path = Path::new(argument);
        let found = std::fs::metadata(path);
        if let Ok(metadata) = &found
            && is_ours(&mountinfo::mounts()?, metadata.dev())
        {
            return Ok(Self::Mounted(path.to_path_buf()));
        }
        let is_image = |image: &Path| image.exists() && !image.is_dir();
        if let Some((image, path)) = split(argument, is_image) {
            return Ok(Self::InImage { image, path });
        }
        found.with_context(|| format!("{} can't be found", path.display()))?;
        bail!(
            "{} does not lie on a mount of pagefence; for a file in an image say IMAGE:/path",
            path.display()
        )
    }

    /// Opens the image of [`Self::InImage`] for writing. From then on this process has nothing else.
    ///
    /// # Errors
    /// It can't be opened, or not be written; the process can't confine itself.
    pub(crate) fn open_image(image: &Path) -> anyhow::Result<Volume> {
        let opened = Image::open(image, Options::new().write(true))?;
        Confinement::of_command().enter()?;
        let volume = opened.into_volume()?;
        for note in volume.notes() {
            tracing::warn!("{}: {note}", image.display());
        }
        Ok(volume)
    }
}

/// Whether a mount of ours is on device `device`, a number as stat gives it.
fn is_ours(mounts: &[Mount], device: u64) -> bool {
    let number = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    mounts
        .iter()
        .any(|mount| mount.device == number && mount.kind == mountinfo::TYPE)
}

/// Image and path, parted at the last separator that `is_image` likes, or else at the last one.
/// Nothing if there is none with something before it.
fn split(argument: &OsStr, is_image: impl Fn(&Path) -> bool) -> Option<(PathBuf, PathBuf)> {
    let bytes = argument.as_bytes();
    let parts: Vec<_> = bytes
        .windows(SEPARATOR.len())
        .enumerate()
        .filter(|(at, window)| *at > 0 && *window == SEPARATOR)
        .map(|(at, _)| {
            let (image, rest) = bytes.split_at(at);
            (path_of(image), path_of(rest.get(1..).unwrap_or_default()))
        })
        .collect();
    parts
        .iter()
        .rev()
        .find(|(image, _)| is_image(image))
        .or_else(|| parts.last())
        .cloned()
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn parted(argument: &str, images: &[&str]) -> Option<(String, String)> {
        let is_image = |image: &Path| images.iter().any(|known| image == Path::new(known));
        let (image, path) = split(OsStr::new(argument), is_image)?;
        Some((image.display().to_string(), path.display().to_string()))
    }

    fn both(image: &str, path: &str) -> Option<(String, String)> {
        Some((image.to_owned(), path.to_owned()))
    }

    #[test]
    fn the_last_separator_parts_image_and_path() {
        assert_eq!(parted("disk.img:/a/b", &[]), both("disk.img", "/a/b"));
        assert_eq!(parted("/x:y/disk:/:/a", &[]), both("/x:y/disk:/", "/a"));
        assert_eq!(parted("disk.img:/", &[]), both("disk.img", "/"));
        assert_eq!(parted("/mnt/file", &[]), None);
        assert_eq!(parted("disk.img:file", &[]), None);
        assert_eq!(parted(":/file", &[]), None, "an image without a name");
    }

    #[test]
    fn an_image_that_exists_parts_earlier() {
        let images = ["disk", "disk:/a"];
        assert_eq!(parted("disk:/x:/y", &images), both("disk", "/x:/y"));
        assert_eq!(parted("disk:/a:/y", &images), both("disk:/a", "/y"));
        assert_eq!(parted("other:/a:/y", &images), both("other:/a", "/y"));
    }

    #[test]
    fn mounts_are_told_by_their_device() {
        let mount = |device: &str, kind: &str| Mount {
            device: device.to_owned(),
            path: PathBuf::from("/mnt"),
            kind: kind.to_owned(),
            source: OsString::from("/image"),
        };
        let mounts = [mount("8:1", "ext4"), mount("0:45", mountinfo::TYPE)];
        assert!(is_ours(&mounts, rustix::fs::makedev(0, 45)));
        assert!(!is_ours(&mounts, rustix::fs::makedev(8, 1)));
        assert!(!is_ours(&mounts, rustix::fs::makedev(0, 46)));
    }

    #[test]
    fn what_is_neither_is_told_so() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let told = Target::parse(file.path().as_os_str()).expect_err("it is on no mount of ours");
        assert!(told.to_string().contains("IMAGE:/path"), "{told}");
        let told = Target::parse(OsStr::new("/no/such/file")).expect_err("there is none");
        assert!(told.to_string().contains("can't be found"), "{told}");
        let mut argument = file.path().as_os_str().to_owned();
        argument.push(":/a/file");
        let expected = Target::InImage {
            image: file.path().to_path_buf(),
            path: PathBuf::from("/a/file"),
        };
        assert_eq!(Target::parse(&argument).expect("an image"), expected);
    }
}
