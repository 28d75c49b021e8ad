//! Maps of files of a mount, which another process serves.
//!
//! ```text
//! map ── open(2), ticket by ioctl ──► the kernel ── FUSE ──► the mount's server
//!  │                                                              │
//!  └─► Guard ◄── the file's memory, then packets ── a socket ◄────┘
//! ```
//!
//! The kernel checks at open(2) what may be done with the file; the ticket that the server gives out for the
//! open file is what it knows its holder by at its socket.

use std::ops::RangeBounds;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use pagefence_page_mmap::fuse_ioctl;
use pagefence_page_mmap::remote::{Guard, GuardError, Open, Ticket, Wire};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fgetxattr, fstat, fstatfs, openat2};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::error::{Error, Result};
use crate::map::options::MapOptions;
use crate::map::pages::{OfMount, Pages, size_of};
use crate::map::problem::Problem;
use crate::map::{Map, Place};
use crate::map_server::MapServer;
use crate::volume::Volume;

/// What fstatfs(2) says of a file system in user space.
const FUSE_MAGIC: u64 = 0x6573_5546;

/// Bytes of a ticket as the server answers it: the ticket, the length of a name, a socket's name.
const ANSWER_BYTES: usize = MapServer::TICKET_BYTES;
const TICKET_BYTES: usize = 16;

/// The ioctl that asks for a ticket: `_IOR(0xF7, 5, 64 bytes)`.
const MAP_TICKET: u32 = 2 << 30 | (ANSWER_BYTES as u32) << 16 | 0xf7 << 8 | 5;

/// An attribute of the roots of mounts of pagefence.
const SERVER: &str = "system.pagefence.server";

/// A directory of a mount that `pagefence mount` serves, to map files below it: from
/// [`Volume::connect`].
///
/// Everything else about the files is done by `std::fs`, on the mount, which can't be unmounted as long as this
/// is there. [`Map`] says how a map of such a
/// file differs from one of a [`Volume`] that this process has opened.
#[derive(Debug)]
pub struct Mounted {
    root: OwnedFd,
    path: PathBuf,
    /// The kernel's number of the mounted file system.
    device: u64,
}

impl Volume {
    /// The directory `mountpoint` of a mount that `pagefence mount` serves, to map files below it. Needs
    /// no rights but those to the files.
    ///
    /// ```no_run
    /// use std::sync::atomic::Ordering;
    /// use pagefence::{MapOptions, Volume};
    /// let mounted = Volume::connect("/mnt")?; // pagefence mount disk.img /mnt
    /// let map = mounted.map("counter", ..8, MapOptions::shared())?;
    /// map.fetch_add(0, 1_u64, Ordering::Relaxed)?; // beside other programs that do the same
    /// assert!(std::fs::read("/mnt/counter")?[..8] != [0; 8]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The text says what to do:
    /// - it can't be opened, or is no directory;
    /// - [`std::io::ErrorKind::Unsupported`]: it is on no mount of pagefence, or on one without maps: a
    ///   file system in memory (`--tmpfs`), or mounted with `-o writeback`;
    /// - [`std::io::ErrorKind::PermissionDenied`]: another user has mounted it, and lets nobody in;
    /// - [`std::io::ErrorKind::NotConnected`]: its server has ended.
    pub fn connect(mountpoint: impl AsRef<Path>) -> Result<Mounted> {
        Mounted::open(mountpoint.as_ref())
    }
}

impl Mounted {
    fn open(path: &Path) -> Result<Self> {
        let of_map = |problem| Error::of_map(path, problem);
        let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, how, Mode::empty());
        let root = root.map_err(|errno| of_map(of_open(errno)))?;
        let kind = fstatfs(&root).map_err(|errno| of_map(Problem::of_mount(errno)))?;
        if u64::try_from(kind.f_type).ok() != Some(FUSE_MAGIC) {
            return Err(of_map(Problem::NotPagefence));
        }
        let device = match fstat(&root) {
            Ok(stat) => stat.st_dev,
            // Of a directory that is open this is asked by nobody but FUSE.
            Err(Errno::ACCESS) => return Err(of_map(Problem::OfAnotherUser)),
            Err(errno) => return Err(of_map(Problem::of_mount(errno))),
        };
        check_maps(&root).map_err(of_map)?;
        let path = path.to_path_buf();
        Ok(Self { root, path, device })
    }

    /// The directory, as [`Volume::connect`] was given it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Maps a range of the bytes of the file at `path`, which is opened for it: for reading, and for
    /// writing if it is to be mapped shared for stores. The path starts at this directory, with or
    /// without a leading `/`; symbolic links resolve inside it.
    ///
    /// The range is as that of [`File::map`](crate::File::map).
    ///
    /// # Errors
    /// As [`Mounted::map_file`]; and what open(2) says.
    pub fn map(
        &self,
        path: impl AsRef<Path>,
        range: impl RangeBounds<u64>,
        options: MapOptions,
    ) -> Result<Map> {
        let path = path.as_ref();
        let access = if options.stores() {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        // A pipe or a device at this place must not hold up the program: it is refused below.
        let flags = access | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let shown = self.path.join(path.strip_prefix("/").unwrap_or(path));
        let file = openat2(&self.root, path, flags, Mode::empty(), resolve)
            .map_err(|errno| Error::of_map(&shown, of_open(errno)))?;
        self.map_opened(file.into(), shown, &range, options)
    }

    /// Maps a range of the bytes of `file`, an open file of the mount.
    ///
    /// The map has a descriptor of the open file of its own, as of dup(2).
    ///
    /// # Errors
    /// The text says what to do:
    /// - [`std::io::ErrorKind::InvalidInput`] for an empty range, or no regular file;
    /// - [`std::io::ErrorKind::CrossesDevices`]: the file is not on this mount;
    /// - [`std::io::ErrorKind::PermissionDenied`]: the file is not open for reading; or a shared map is
    ///   asked for that is not [`MapOptions::read_only`], and the file is not open for writing or can't be
    ///   written to anywhere, or this process is not of the user who serves the mount;
    /// - [`std::io::ErrorKind::ReadOnlyFilesystem`] if such a map is asked for of a read-only mount;
    /// - [`std::io::ErrorKind::Unsupported`] and [`std::io::ErrorKind::NotConnected`] as
    ///   [`Volume::connect`];
    /// - [`std::io::ErrorKind::ResourceBusy`]: there are as many maps as the server can have;
    /// - userfaultfd(2) is denied or too old, or the system has no memory.
    pub fn map_file(
        &self,
        file: &std::fs::File,
        range: impl RangeBounds<u64>,
        options: MapOptions,
    ) -> Result<Map> {
        let shown = path_of(file).unwrap_or_else(|| self.path.clone());
        let file = file.try_clone();
        let file = file.map_err(|error| Error::of_map(&shown, Problem::Mount(error)))?;
        self.map_opened(file, shown, &range, options)
    }

    fn map_opened(
        &self,
        file: std::fs::File,
        shown: PathBuf,
        range: &impl RangeBounds<u64>,
        options: MapOptions,
    ) -> Result<Map> {
        let guarded = self.check(&file, options).and_then(|()| {
            let place = Place::of(range, size_of(&file)?)?;
            Ok((guard(&file, &place, options)?, place))
        });
        let (guard, place) = guarded.map_err(|problem| Error::of_map(&shown, problem))?;
        let pages = Pages::Mounted(Box::new(OfMount { guard, file }));
        Map::of_pages(pages, shown, &place, options)
    }

    /// Checks what can be known of `file` without its server.
    fn check(&self, file: &std::fs::File, options: MapOptions) -> std::result::Result<(), Problem> {
        let stat = fstat(file).map_err(Problem::of_mount)?;
        if stat.st_dev != self.device {
            let mount = self.path.display().to_string();
            return Err(Problem::OtherMount { mount });
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Problem::NotRegular);
        }
        let flags = rustix::fs::fcntl_getfl(file).map_err(Problem::of_mount)?;
        let access = flags & OFlags::ACCMODE;
        if access == OFlags::WRONLY || flags.contains(OFlags::PATH) {
            return Err(Problem::NotReadable);
        }
        if options.stores() && access != OFlags::RDWR {
            return Err(Problem::NotWritable);
        }
        Ok(())
    }
}

/// What the server of a mount answers, and the user whom it belongs to if it says no.
type Answer<T> = std::result::Result<T, (GuardError, Option<u32>)>;

/// A guard of `place` of `file`.
fn guard(
    file: &std::fs::File,
    place: &Place,
    options: MapOptions,
) -> std::result::Result<Guard, Problem> {
    once_more_if_late(|| ask(file, place, options))
}

/// What `ask` gets with a ticket; with another one if the server does not know the first any more, and only
/// then, as the program may have been held up on its way: a file that is gone has no ticket the next time.
fn once_more_if_late<T>(
    mut ask: impl FnMut() -> std::result::Result<Answer<T>, Problem>,
) -> std::result::Result<T, Problem> {
    let answer = match ask()? {
        Err((GuardError::Refused(Errno::STALE), _)) => ask()?,
        answer => answer,
    };
    answer.map_err(|(error, server)| Problem::of_guard(error, server))
}

/// Shows a ticket for a map of `file`, once.
fn ask(
    file: &std::fs::File,
    place: &Place,
    options: MapOptions,
) -> std::result::Result<Answer<Guard>, Problem> {
    let (ticket, name) = ticket(file)?;
    let (socket, server) = call(&name).map_err(|errno| Problem::Unreachable(errno.into()))?;
    let open = Open {
        ticket,
        first: place.pages.start,
        end: place.pages.end,
        kind: options.remote_kind(),
    };
    let guard = Guard::open(Wire::from(socket), &open, place.view_len, options.faults());
    Ok(guard.map_err(|error| (error, server)))
}

/// A ticket for a map of `file`, and the name of the socket where it is shown.
fn ticket(file: impl AsFd) -> std::result::Result<(Ticket, Vec<u8>), Problem> {
    let mut answer = [0; ANSWER_BYTES];
    fuse_ioctl(file, MAP_TICKET, &mut answer).map_err(|error| Problem::of_ticket(&error))?;
    let (ticket, rest) = answer
        .split_first_chunk::<TICKET_BYTES>()
        .ok_or(Problem::Nonsense)?;
    let (&length, rest) = rest.split_first().ok_or(Problem::Nonsense)?;
    let name = rest.get(..usize::from(length)).ok_or(Problem::Nonsense)?;
    if name.is_empty() {
        return Err(Problem::Nonsense);
    }
    Ok((Ticket(*ticket), name.to_vec()))
}

/// Connects to the socket of an abstract name; tells whose it is, too.
fn call(name: &[u8]) -> rustix::io::Result<(OwnedFd, Option<u32>)> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let address = SocketAddrUnix::new_abstract_name(name)?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    // Who listens there.
    let server = sockopt::socket_peercred(&socket).ok();
    Ok((socket, server.map(|server| server.uid.as_raw())))
}

/// Checks that the server of the mount whose directory `root` is serves maps.
fn check_maps(root: &OwnedFd) -> std::result::Result<(), Problem> {
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(root, ".", how, Mode::empty()) {
        Ok(directory) => directory,
        // It can't be read, only searched: each map finds out.
        Err(Errno::ACCESS) => return Ok(()),
        Err(errno) => return Err(Problem::of_mount(errno)),
    };
    let mut answer = [0; ANSWER_BYTES];
    let Err(error) = fuse_ioctl(&directory, MAP_TICKET, &mut answer) else {
        return Err(Problem::NotPagefence);
    };
    match Errno::from_io_error(&error) {
        // There are none for directories, but there are some.
        Some(Errno::BADF) => Ok(()),
        Some(Errno::OPNOTSUPP) => Err(Problem::Writeback),
        Some(errno @ (Errno::NOTCONN | Errno::CONNABORTED)) => Err(Problem::of_mount(errno)),
        _ => Err(without_maps(&directory)),
    }
}

/// Why a mount has no maps: it is one of pagefence, or not.
fn without_maps(directory: &OwnedFd) -> Problem {
    let mut value = [0; 64];
    match fgetxattr(directory, SERVER, &mut value[..]) {
        Ok(_) => Problem::NoMaps,
        Err(_) => Problem::NotPagefence,
    }
}

/// Why something of a mount can't be opened.
fn of_open(errno: Errno) -> Problem {
    match Problem::of_mount(errno) {
        Problem::Mount(error) => Problem::Open(error),
        problem => problem,
    }
}

/// The path of an open file, as the kernel has it.
fn path_of(file: &std::fs::File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a map comes of it that the server refuses by `answers`, one after the other; and how often it
    /// was asked.
    fn ask_of(answers: &[Option<Errno>]) -> (std::result::Result<(), std::io::ErrorKind>, usize) {
        let mut asked = 0;
        let answered = once_more_if_late(|| {
            let answer = answers[asked];
            asked += 1;
            Ok(answer.map_or(Ok(()), |errno| Err((GuardError::Refused(errno), None))))
        });
        (answered.map_err(|problem| problem.kind()), asked)
    }

    #[test]
    fn a_ticket_that_comes_too_late_is_asked_for_again_once() {
        let (late, full) = (Some(Errno::STALE), Some(Errno::AGAIN));
        assert_eq!(ask_of(&[None]), (Ok(()), 1));
        assert_eq!(ask_of(&[late, None]), (Ok(()), 2));
        let busy = Err(std::io::ErrorKind::ResourceBusy);
        assert_eq!(ask_of(&[late, full]), (busy, 2));
        assert_eq!(ask_of(&[full, None]), (busy, 1), "it was not late");
        let stale = Err(std::io::ErrorKind::StaleNetworkFileHandle);
        assert_eq!(ask_of(&[late, late, None]), (stale, 2));
        let mut asked = 0;
        let without = once_more_if_late::<()>(|| {
            asked += 1;
            Err(Problem::NoMaps)
        });
        assert!(matches!(without, Err(Problem::NoMaps)));
        assert_eq!(asked, 1, "there is no ticket");
    }
}
