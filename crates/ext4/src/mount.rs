//! Opening a file system: checks, recovery, caches.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pagefence_block_io::file_device::{Lock, Locked, OpenError, OpenOptions};
use pagefence_block_io::image_users::{self, Mounted};
use pagefence_block_io::{Device, DeviceError, FileDevice};
use pagefence_ext4_format::Corruption;
use pagefence_ext4_format::superblock::{
    RawSuperblock, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock,
};
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{Config, PageCache};

use crate::filesystem::{FileSystem, READ_ONLY};
use crate::instance::Instance;
use crate::live::Live;
use crate::memory;
use crate::recovery::{self, Recovered};
use crate::support;

/// The least that the caches are given, in bytes.
const CACHE_MIN: u64 = 16 << 20;

/// Bytes of the metadata budget for each inode in core that nobody uses.
const INODE_BYTES: u64 = 8 << 10;

/// How a file system is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// The image may be changed: an unclean one is recovered on disk. Otherwise not a byte
    /// changes, and the journal is applied in memory.
    pub write: bool,
    /// First byte of the file system in the image.
    pub offset: u64,
    /// Bytes for cached pages and metadata; a quarter of memory by default, 16 MiB at least.
    pub cache: Option<u64>,
    /// Use the backup superblock at this block, in units of 1 KiB. The file system is then
    /// read-only.
    pub superblock: Option<u64>,
    /// Read ahead of sequential readers.
    pub read_ahead: bool,
    /// How long a change may wait until it is durable; 5 seconds by default.
    pub commit_interval: Option<Duration>,
    /// Tell the device of space that became free.
    pub discard: bool,
    /// Keep the time of access, as `relatime` does.
    pub access_times: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            write: false,
            offset: 0,
            cache: None,
            superblock: None,
            read_ahead: true,
            commit_interval: None,
            discard: false,
            access_times: true,
        }
    }
}

/// Why a file system can't be opened. Each text is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The image can't be opened.
    #[error("{reason}")]
    Image {
        /// What the system said, as a sentence.
        reason: String,
        /// The kind of failure.
        kind: io::ErrorKind,
    },
    /// The image is in use by somebody else.
    #[error("the image is in use by {user}: {advice}")]
    InUse {
        /// Who.
        user: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// There is no file system of these types.
    #[error(
        "no ext2, ext3 or ext4 file system found at byte {offset}: check that this is the right \
         image, and give offset= if it lies in a partition"
    )]
    NotExt {
        /// Where it was looked for.
        offset: u64,
    },
    /// This is the journal of another file system.
    #[error("this is an external journal, not a file system: open the file system that uses it")]
    JournalDevice,
    /// The image ends before the file system does.
    #[error(
        "the image is cut off: the file system has {needed} bytes, the image {have}; copy it again"
    )]
    CutOff {
        /// Bytes of the file system.
        needed: u64,
        /// Bytes of the image.
        have: u64,
    },
    /// The superblock does not make sense.
    #[error("the superblock is damaged ({what}): {advice}")]
    Superblock {
        /// What is wrong with it.
        what: Corruption,
        /// What to do.
        advice: String,
    },
    /// Features that are not served.
    #[error("the file system uses {}, which pagefence does not support", .0.join(", "))]
    Unsupported(Vec<String>),
    /// The root directory or what leads to it is damaged.
    #[error("the file system is too damaged to be opened ({0}): run e2fsck on a copy of the image")]
    Damaged(String),
    /// The journal can't be replayed.
    #[error("the journal can't be replayed ({reason}): {advice}")]
    Journal {
        /// Why.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The image is to be written, and can't be.
    #[error("the image can't be written, because {0}: open it read-only")]
    ReadOnly(String),
    /// The device failed.
    #[error("the image can't be read: {0}")]
    Device(#[from] DeviceError),
    /// Memory for the caches.
    #[error("no memory for a cache of {bytes} bytes: give a smaller cache=")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
    },
}

impl MountError {
    /// The kind of the error, as `std::io` sorts them.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Image { kind, .. } => *kind,
            Self::InUse { .. } => io::ErrorKind::ResourceBusy,
            Self::NotExt { .. }
            | Self::CutOff { .. }
            | Self::Superblock { .. }
            | Self::Damaged(_)
            | Self::Journal { .. } => io::ErrorKind::InvalidData,
            Self::JournalDevice | Self::Unsupported(_) => io::ErrorKind::Unsupported,
            Self::ReadOnly(_) => io::ErrorKind::ReadOnlyFilesystem,
            Self::Device(error) => error.source.kind(),
            Self::Memory { .. } => io::ErrorKind::OutOfMemory,
        }
    }
}

impl FileSystem {
    /// Opens the image file or block device at `path`.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn open_image(path: &Path, options: &MountOptions) -> Result<Self, MountError> {
        Self::open(Arc::new(open_device(path, options)?), options)
    }

    /// Opens the image file or block device at `path`, and makes sure that nobody writes to it meanwhile: what
    /// [`FileSystem::open`] takes. Nothing of it is interpreted.
    ///
    /// # Errors
    /// [`MountError::Image`], [`MountError::InUse`].
    pub fn open_device(path: &Path, options: &MountOptions) -> Result<FileDevice, MountError> {
        open_device(path, options)
    }

    /// Opens the file system on `device`, whose first byte is the file system's
    /// ([`MountOptions::offset`] is the caller's matter).
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn open(device: Arc<dyn Device>, options: &MountOptions) -> Result<Self, MountError> {
        let superblock = read_superblock(&*device, options)?;
        let unreadable = support::unreadable(&superblock);
        if !unreadable.is_empty() {
            return Err(MountError::Unsupported(unreadable));
        }
        let write =
            options.write && options.superblock.is_none() && !device.capabilities().read_only;
        let mut notes = Vec::new();
        let write = match support::read_only_because(&superblock) {
            Some(reason) if write => {
                notes.push(format!("{READ_ONLY}{reason}"));
                false
            }
            _ => write,
        };
        let Recovered {
            device,
            superblock,
            notes: from_recovery,
            read_only,
        } = recovery::recover(device, superblock, write, options)?;
        notes.extend(from_recovery);
        let write = match read_only.or_else(|| support::unwritable_because(&superblock)) {
            Some(reason) if write => {
                notes.push(format!("{READ_ONLY}{reason}"));
                false
            }
            _ => write,
        };
        let bytes = options
            .cache
            .unwrap_or_else(memory::default_cache)
            .max(CACHE_MIN);
        let metadata = bytes / 4;
        let damaged = || MountError::Damaged("blocks of an impossible size".to_owned());
        let mut instance = Instance::new(superblock, device, metadata / 2).ok_or_else(damaged)?;
        if let Some(offset) = options.superblock.and_then(|at| at.checked_mul(1024)) {
            instance.use_backup(offset);
        }
        instance.guard_metadata();
        instance.access_times = options.access_times;
        instance
            .check_root()
            .map_err(|error| MountError::Damaged(error.to_string()))?;
        if write {
            let journal = recovery::journal_of(&instance)?;
            instance.live = Some(Live::start(
                &instance,
                journal,
                options.commit_interval,
                options.discard,
            )?);
        }
        let mut config = Config::new(bytes - metadata);
        if !options.read_ahead {
            config.readahead_max_bytes = 0;
        }
        let cache = PageCache::new(config).map_err(|_| MountError::Memory { bytes })?;
        let inodes = usize::try_from(metadata / INODE_BYTES).unwrap_or(usize::MAX);
        Ok(Self::new(instance, cache, inodes, notes))
    }
}

/// Opens the image and makes sure that nobody writes to it meanwhile.
pub(crate) fn open_device(path: &Path, options: &MountOptions) -> Result<FileDevice, MountError> {
    // Before anybody is asked who uses it: everybody has the null device open.
    check_kind(path)?;
    check_users(path, options)?;
    let device = open_file(path, options)?;
    let lock = if options.write {
        Lock::Exclusive
    } else {
        Lock::Shared
    };
    match device.lock(lock) {
        // Some hosts' file systems have no locks; the users that can be seen were looked at.
        Ok(Locked::Yes) | Err(_) => Ok(device),
        Ok(Locked::HeldElsewhere) => Err(in_use(
            "another program that has locked it",
            "close it there, or mount both read-only",
        )),
    }
}

/// Opens the image, whoever else uses it.
pub(crate) fn open_file(path: &Path, options: &MountOptions) -> Result<FileDevice, MountError> {
    // To open a pipe would be to wait for who writes to it.
    check_kind(path)?;
    let open = OpenOptions {
        write: options.write,
        // Pages and metadata are cached here: once is enough.
        direct: true,
        offset_bytes: options.offset,
        length_bytes: None,
    };
    FileDevice::open(path, open).map_err(|error| match error {
        OpenError::Open { source, .. } => image_error(&source),
        OpenError::NotABlockDevice { .. } => no_image(),
        OpenError::Busy { .. } => in_use("the kernel", "unmount it first"),
        OpenError::Range { size_bytes, .. } => MountError::Image {
            reason: format!("offset= lies past its end: it has {size_bytes} bytes"),
            kind: io::ErrorKind::InvalidInput,
        },
        other => MountError::Image {
            reason: other.to_string(),
            kind: io::ErrorKind::Other,
        },
    })
}

/// Makes sure that it is a file or a block device.
fn check_kind(path: &Path) -> Result<(), MountError> {
    let metadata = std::fs::metadata(path).map_err(|error| image_error(&error))?;
    if metadata.is_dir() {
        return Err(MountError::Image {
            reason: "it is a directory: give an image file or a block device".to_owned(),
            kind: io::ErrorKind::IsADirectory,
        });
    }
    if metadata.is_file() || metadata.file_type().is_block_device() {
        Ok(())
    } else {
        Err(no_image())
    }
}

fn no_image() -> MountError {
    MountError::Image {
        reason: "it is neither a file nor a block device".to_owned(),
        kind: io::ErrorKind::InvalidInput,
    }
}

fn in_use(user: &str, advice: &'static str) -> MountError {
    MountError::InUse {
        user: user.to_owned(),
        advice,
    }
}

fn check_users(path: &Path, options: &MountOptions) -> Result<(), MountError> {
    for user in image_users::used_by_loop(path).map_err(|error| image_error(&error))? {
        // Two readers do not disturb each other.
        if user.read_only && !options.write {
            continue;
        }
        return Err(match user.mounted {
            Some(Mounted::At(place)) => MountError::InUse {
                user: format!(
                    "the kernel, mounted at {} through {}",
                    place.display(),
                    user.device
                ),
                advice: "unmount it first",
            },
            _ => MountError::InUse {
                user: format!("the loop device {}", user.device),
                advice: "detach it first (losetup -d)",
            },
        });
    }
    if let Some(place) =
        image_users::mounted_block_device(path).map_err(|error| image_error(&error))?
    {
        let place = match place {
            Mounted::At(place) => place,
            Mounted::OutOfSight => PathBuf::from("a place out of sight"),
        };
        return Err(MountError::InUse {
            user: format!("the kernel, mounted at {}", place.display()),
            advice: "unmount it first",
        });
    }
    let writers = image_users::writers(path).map_err(|error| image_error(&error))?;
    match writers.first() {
        Some(writer) => Err(MountError::InUse {
            user: format!(
                "process {} ({}), which has it open for writing",
                writer.process, writer.name
            ),
            advice: "close it there first",
        }),
        None => Ok(()),
    }
}

pub(crate) fn image_error(error: &io::Error) -> MountError {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "there is no such image".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied: ask for the right to read it, or mount it ro if it may not be \
             written"
                .to_owned()
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "it lies on a read-only file system: mount it ro".to_owned()
        }
        _ => format!("it can't be opened: {error}"),
    };
    MountError::Image {
        reason,
        kind: error.kind(),
    }
}

/// Reads and checks the superblock.
pub(crate) fn read_superblock(
    device: &dyn Device,
    options: &MountOptions,
) -> Result<Superblock, MountError> {
    let not_ext = || MountError::NotExt {
        offset: options.offset,
    };
    let at = options
        .superblock
        .map_or(Some(SUPERBLOCK_OFFSET), |block| block.checked_mul(1024))
        .ok_or_else(not_ext)?;
    if at
        .checked_add(SUPERBLOCK_BYTES as u64)
        .is_none_or(|end| end > device.size())
    {
        return Err(not_ext());
    }
    let mut bytes = [0; SUPERBLOCK_BYTES];
    device.read(at, &mut bytes)?;
    // It has a superblock in which little more than this is filled in.
    if RawSuperblock::read(&bytes).is_ok_and(|raw| raw.is_journal_dev()) {
        return Err(MountError::JournalDevice);
    }
    match Superblock::parse(&bytes, Some(device.size())) {
        Ok(superblock) => Ok(superblock),
        Err(Corruption::NotExt { .. }) => backup_of(device, options).map_or_else(
            || Err(not_ext()),
            |backup| {
                Err(damaged_superblock(
                    Corruption::NotExt { magic: 0 },
                    Some(backup),
                ))
            },
        ),
        Err(Corruption::ImageTruncated {
            needed_bytes,
            device_bytes,
        }) => Err(MountError::CutOff {
            needed: needed_bytes,
            have: device_bytes,
        }),
        Err(what) => Err(damaged_superblock(what, backup_of(device, options))),
    }
}

fn damaged_superblock(what: Corruption, backup: Option<u64>) -> MountError {
    MountError::Superblock {
        what,
        advice: match backup {
            Some(block) => format!(
                "a backup at {block} KiB looks sound; mount it with sb={block} to read, and run \
                 e2fsck on a copy to repair"
            ),
            None => "no backup was found; run e2fsck on a copy of the image".to_owned(),
        },
    }
}

/// The place, in KiB, of a backup superblock that makes sense.
fn backup_of(device: &dyn Device, options: &MountOptions) -> Option<u64> {
    if options.superblock.is_some() {
        return None;
    }
    let places = [1024_u32, 2048, 4096]
        .into_iter()
        .flat_map(pagefence_ext4_format::superblock::backup_superblocks);
    for offset in places {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        let inside = offset
            .checked_add(SUPERBLOCK_BYTES as u64)
            .is_some_and(|end| end <= device.size());
        if inside
            && device.read(offset, &mut bytes).is_ok()
            && Superblock::parse(&bytes, Some(device.size())).is_ok()
        {
            return Some(offset / 1024);
        }
    }
    None
}
