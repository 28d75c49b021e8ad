//! The options of a mount: what `-o` may hold.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// What opening a volume depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeOptions {
    /// The image or block device, as given.
    pub image: PathBuf,
    /// Where in it the file system starts, in bytes.
    pub offset: u64,
    /// Most bytes of memory for cached data and metadata; `None`: the library's default.
    pub cache_bytes: Option<u64>,
    /// Whether nothing may be written, not even to replay the journal.
    pub no_load: bool,
    /// Whether the user asked for a read-only mount.
    pub read_only: bool,
    /// A fresh file system of this many bytes, in memory; `image` is then only a name.
    pub memory_bytes: Option<u64>,
    /// Inodes of a file system that has no image at all; `None`: as many as fit its size.
    pub inodes: Option<u64>,
    /// Seconds after which changes are committed; `None`: the library's default.
    pub commit_seconds: Option<u32>,
    /// Whether the device is told of space that became free.
    pub discard: bool,
    /// Whether reading leaves the time of access alone.
    pub no_access_times: bool,
    /// Where the backup superblock to use is, in KiB; `None`: the superblock itself is used.
    pub superblock: Option<u64>,
}

/// Every option, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// For the volume.
    pub(crate) volume: VolumeOptions,
    /// `allow_other`.
    pub(crate) allow_other: bool,
    /// `default_permissions` was asked for.
    default_permissions: bool,
    /// `uid=`.
    pub(crate) uid: Option<u32>,
    /// `gid=`.
    pub(crate) gid: Option<u32>,
    /// `umask=`.
    pub(crate) umask: Option<u16>,
    /// `fakeroot`.
    fakeroot: bool,
    /// `writeback`.
    pub(crate) writeback: bool,
    /// `noacl`.
    no_acl: bool,
    /// `suid`.
    pub(crate) suid: bool,
    /// `dev`.
    pub(crate) dev: bool,
    /// `noexec`.
    pub(crate) no_exec: bool,
    /// `nonempty`.
    pub(crate) non_empty: bool,
    /// `unconfined`.
    pub(crate) unconfined: bool,
    /// `fuse2fs_debug`, `debug`.
    pub(crate) debug: bool,
    /// `log=`.
    pub(crate) log: Option<PathBuf>,
    /// `fsname=`.
    pub(crate) fsname: Option<OsString>,
    /// `subtype=`.
    pub(crate) subtype: Option<String>,
}

/// Taken, and without effect here.
///
/// Some are mount(8)'s own, which it passes on. Times of access are not kept by a read-only mount.
/// The others tell fuse2fs what is always so here, or what a read-only mount has no use for.
const IGNORED: &[&str] = &[
    "auto",
    "noauto",
    "defaults",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "async",
    "sync",
    "dirsync",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "big_writes",
    "use_ino",
    "readdir_ino",
    "kernel_cache",
    "acl",
    "user_xattr",
    "nouser_xattr",
    "block_validity",
    "noblock_validity",
    "delalloc",
    "nodelalloc",
    "minixdf",
    "bsddf",
    "no_default_opts",
    "errors=continue",
    "errors=remount-ro",
    "errors=panic",
];

/// Names, up to `=`, that are ignored with any value.
const IGNORED_WITH_VALUE: &[&str] = &["comment", "user", "uhelper", "helper"];

impl MountOptions {
    /// Whether nothing is to be written.
    pub(crate) fn is_read_only(&self) -> bool {
        self.volume.read_only || self.volume.no_load
    }

    /// Whether whoever asks counts as root.
    pub(crate) fn is_fakeroot(&self) -> bool {
        self.fakeroot
    }

    /// Understands `image` and the lists given by `-o`, in order; the last word on something
    /// holds.
    ///
    /// # Errors
    /// One sentence that names the option.
    pub(crate) fn parse(image: &Path, lists: &[OsString]) -> anyhow::Result<Self> {
        let mut options = Self::default();
        options.volume.image = image.to_owned();
        for list in lists {
            for option in split(list) {
                options.take(&option)?;
            }
        }
        Ok(options)
    }

    fn take(&mut self, option: &OsStr) -> anyhow::Result<()> {
        let bytes = option.as_bytes();
        let (name, value) = match bytes.iter().position(|&byte| byte == b'=') {
            Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]))),
            None => (bytes, None),
        };
        let shown = option.display();
        let name = std::str::from_utf8(name)
            .with_context(|| format!("the mount option {shown} is unknown"))?;
        match (name, value) {
            ("", None) => {}
            ("ro", None) => self.volume.read_only = true,
            ("rw", None) => self.volume.read_only = false,
            ("noload" | "norecovery", None) => self.volume.no_load = true,
            ("load", None) => self.volume.no_load = false,
            ("offset", Some(value)) => self.volume.offset = number(name, value)?,
            ("sb", Some(value)) => self.volume.superblock = Some(number(name, value)?),
            ("cache" | "cache_size", Some(value)) => {
                self.volume.cache_bytes = Some(size(name, value)?);
            }
            ("nr_inodes", Some(value)) => self.volume.inodes = Some(number(name, value)?),
            ("commit", Some(value)) => self.volume.commit_seconds = Some(number(name, value)?),
            ("atime", None) => self.volume.no_access_times = false,
            ("noatime", None) => self.volume.no_access_times = true,
            ("discard", None) => self.volume.discard = true,
            ("nodiscard", None) => self.volume.discard = false,
            ("allow_other", None) => self.allow_other = true,
            ("default_permissions", None) => self.default_permissions = true,
            ("uid", Some(value)) => self.uid = Some(number(name, value)?),
            ("gid", Some(value)) => self.gid = Some(number(name, value)?),
            ("umask", Some(value)) => self.umask = Some(umask(value)?),
            ("fakeroot", None) => self.fakeroot = true,
            ("writeback", None) => self.writeback = true,
            ("nowriteback", None) => self.writeback = false,
            ("noacl", None) => self.no_acl = true,
            ("suid", None) => self.suid = true,
            ("nosuid", None) => self.suid = false,
            ("dev", None) => self.dev = true,
            ("nodev", None) => self.dev = false,
            ("exec", None) => self.no_exec = false,
            ("noexec", None) => self.no_exec = true,
            ("nonempty", None) => self.non_empty = true,
            ("unconfined", None) => self.unconfined = true,
            ("fuse2fs_debug" | "debug", None) => self.debug = true,
            // As fuse2fs: what a mount by the kernel would be like.
            ("kernel", None) => {
                (self.allow_other, self.default_permissions) = (true, true);
                (self.suid, self.dev) = (true, true);
            }
            ("log", Some(value)) if !value.is_empty() => self.log = Some(value.into()),
            ("fsname", Some(value)) if !value.is_empty() => self.fsname = Some(value.into()),
            ("subtype", Some(value)) if !value.is_empty() => {
                let subtype = value
                    .to_str()
                    .context("the mount option subtype= is no text")?;
                self.subtype = Some(subtype.to_owned());
            }
            (name, Some(_)) if IGNORED_WITH_VALUE.contains(&name) => {}
            _ if option
                .to_str()
                .is_some_and(|option| IGNORED.contains(&option)) => {}
            (name, _) if name.starts_with("x-") || name.starts_with("X-") => {}
            _ => bail!("the mount option {shown} is unknown; `pagefence mount --help` lists them"),
        }
        Ok(())
    }

    /// Whether the kernel checks permissions.
    ///
    /// It does, unless owners or permissions are not those of the image, or the user asked for no
    /// checks. `allow_other` always has it check: without, any user could read any file.
    pub(crate) fn checks_permissions(&self) -> bool {
        let free = self.fakeroot || self.uid.is_some() || self.gid.is_some();
        self.default_permissions || self.allow_other || !free
    }

    /// Whether the kernel applies ACLs.
    pub(crate) fn applies_acls(&self) -> bool {
        self.checks_permissions() && !self.fakeroot && !self.no_acl
    }
}

/// The words of a list: separated by commas; a backslash takes the next byte as it is.
fn split(list: &OsStr) -> Vec<OsString> {
    let mut words = vec![Vec::new()];
    let mut bytes = list.as_bytes().iter();
    while let Some(&byte) = bytes.next() {
        let byte = match byte {
            b',' => {
                words.push(Vec::new());
                continue;
            }
            b'\\' => bytes.next().copied().unwrap_or(byte),
            _ => byte,
        };
        if let Some(word) = words.last_mut() {
            word.push(byte);
        }
    }
    words.into_iter().map(OsString::from_vec).collect()
}

/// A decimal number, or one in hexadecimal after `0x`.
fn number<N: TryFrom<u64>>(name: &str, value: &OsStr) -> anyhow::Result<N> {
    let parsed = value
        .to_str()
        .and_then(|text| match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        });
    parsed
        .and_then(|number| N::try_from(number).ok())
        .with_context(|| {
            format!(
                "the mount option {name}={} needs a whole number",
                value.display()
            )
        })
}

/// A size: bytes, or a number with K, M, G or T, or a part of memory with %.
fn size(name: &str, value: &OsStr) -> anyhow::Result<u64> {
    let wrong = || {
        let value = value.display();
        format!("the mount option {name}={value} needs a size like 512M, 2G or 25%")
    };
    let text = value.to_str().with_context(wrong)?;
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let count: u64 = digits.parse().ok().with_context(wrong)?;
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        "%" if (1..=100).contains(&count) => {
            let system = rustix::system::sysinfo();
            let total = u128::from(system.totalram) * u128::from(system.mem_unit);
            return u64::try_from(total * u128::from(count) / 100)
                .ok()
                .with_context(wrong);
        }
        _ => bail!(wrong()),
    };
    match count.checked_mul(unit) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => bail!(wrong()),
    }
}

fn umask(value: &OsStr) -> anyhow::Result<u16> {
    let mask = value
        .to_str()
        .and_then(|text| u16::from_str_radix(text, 8).ok());
    mask.filter(|mask| *mask <= 0o777).with_context(|| {
        format!(
            "the mount option umask={} needs an octal number up to 777",
            value.display()
        )
    })
}

#[cfg(test)]
mod tests;
