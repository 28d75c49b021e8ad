//! The session: what is agreed with the kernel, the threads, the end.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;

use fuser::{Config, InitFlags, KernelConfig, Session, SessionACL};
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_vfs::FileSystem;

use crate::attributes::Overrides;
use crate::check::Checks;
use crate::dispatch::{Dispatch, Outcome};
use crate::files::ReadBuffers;
use crate::handles::Handles;
use crate::invalidate::Notices;
use crate::lookups::Lookups;
use crate::map_door::MapDoor;
use crate::nodes::Nodes;
use crate::stale_pages::StalePages;

/// The longest request: 256 pages.
pub(crate) const REQUEST_BYTES: usize = 1 << 20;

/// How many readahead and direct requests may wait at once.
const BACKGROUND_REQUESTS: u16 = 64;

/// How a file system is served.
///
/// Who may do what is the kernel's to check, by owner, mode and ACL as they are shown
/// ([`MountRequest::default_permissions`](crate::MountRequest::default_permissions)). Where it is
/// not asked to, whoever may reach the mount may read everything: entries stay in the kernel's
/// cache, so checks of our own could not be relied on. So leave that out only where none but who
/// mounted can reach it (without `allow_other`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServeOptions {
    /// Owner of everything, instead of what the inodes say.
    pub uid: Option<u32>,
    /// Group of everything, instead of what the inodes say.
    pub gid: Option<u32>,
    /// Everything has permissions `0777 & !umask`, instead of what the inodes say.
    pub umask: Option<u16>,
    /// Let the kernel apply ACLs. Makes it check permissions even if the mount did not ask for
    /// that, so set it only with `default_permissions`. Ignored if owners are overridden.
    pub posix_acl: bool,
    /// Whoever asks counts as root: what is made belongs to root, and may be given to anybody.
    pub fakeroot: bool,
    /// Let the kernel keep dirty pages and write them when it likes (`docs/adr/0009`): small
    /// writes cost less, and what they come to is known at fsync.
    pub writeback: bool,
    /// Threads that serve, at least 1; `None` for twice the processors.
    pub threads: Option<NonZeroUsize>,
}

/// Why serving ended in failure.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection to the kernel failed.
    #[error("the connection to the kernel failed: {0}")]
    Connection(#[from] io::Error),
    /// The file system could not be shut down cleanly.
    #[error("the file system could not be shut down cleanly: {0}")]
    ShutDown(#[from] pagefence_vfs::Error),
}

/// A file system that is connected to the kernel.
pub struct Server<F: FileSystem> {
    session: Session<Dispatch<F>>,
    outcome: Outcome,
}

impl<F: FileSystem> Server<F> {
    /// Connects `fs` to the kernel over `fd`, an open /dev/fuse that has been mounted, and
    /// answers the kernel's INIT. The first request is served by [`run`](Self::run). By `door` other
    /// processes get maps of its files; it is closed before `fs` is shut down.
    ///
    /// # Errors
    /// `NotConnected` if the mount is gone already; `Unsupported` for a kernel that is too old.
    pub fn start(
        fs: Arc<F>,
        fd: OwnedFd,
        options: &ServeOptions,
        door: Option<Arc<dyn MapDoor>>,
    ) -> io::Result<Self> {
        let overrides = Overrides {
            uid: options.uid,
            gid: options.gid,
            umask: options.umask,
        };
        let outcome: Outcome = Arc::new(Mutex::new(None));
        let notices = Arc::new(Notices::default());
        let stale_pages = Arc::new(StalePages::default());
        let dispatch = Dispatch {
            nodes: Nodes::new(fs.root()),
            overrides,
            posix_acl: options.posix_acl && !overrides.any(),
            fakeroot: options.fakeroot,
            read_only: fs.read_only_because().is_some(),
            writeback: options.writeback,
            agreed: Agreed::default(),
            lookups: Lookups::new(),
            files: Handles::new(),
            directories: Handles::new(),
            checks: Checks::default(),
            read_buffers: ReadBuffers::default(),
            notices: Arc::clone(&notices),
            stale_pages: Arc::clone(&stale_pages),
            outcome: Arc::clone(&outcome),
            fs,
            door,
        };
        let mut config = Config::default();
        config.n_threads = Some(threads(options.threads));
        // A queue of its own for each thread needs /dev/fuse to be opened once more, which a
        // sandboxed server may not be able to do; one queue for all works too.
        config.clone_fd = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .is_ok();
        // `All`: who may enter is checked by the kernel (allow_other).
        let session = Session::from_fd(dispatch, fd, SessionACL::All, config)?;
        notices.connect(session.notifier());
        stale_pages.connect(session.notifier())?;
        Ok(Self { session, outcome })
    }

    /// Serves until the file system is unmounted everywhere, then shuts it down.
    ///
    /// # Errors
    /// The connection breaks, or the file system can't be shut down.
    pub fn run(self) -> Result<(), ServeError> {
        match self.session.run() {
            // What a thread gets that was being handed a request (a RELEASE, say) when the last
            // mount went; the others get ENODEV. All have ended by now.
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::CONNABORTED.raw_os_error()) => {}
            ended => ended?,
        }
        match self.outcome.lock().take() {
            Some(result) => Ok(result?),
            None => Err(io::Error::other("the session ended without shutting down").into()),
        }
    }
}

/// Two threads a processor: one can compute while one waits for the image. At least sixteen: a
/// thread that waits for a commit serves nobody else, and those who wait together share one.
fn threads(asked: Option<NonZeroUsize>) -> usize {
    asked.map_or_else(
        || {
            let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
            processors.saturating_mul(2).clamp(16, 64)
        },
        NonZeroUsize::get,
    )
}

/// What the mount wants of the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) posix_acl: bool,
    pub(crate) writeback: bool,
}

/// What the kernel agreed to, where it matters later.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Agreed {
    /// It leaves it to us to apply the umask.
    pub(crate) umask_is_ours: bool,
    /// It keeps dirty pages, and with them size and time of modification.
    pub(crate) writeback: bool,
}

/// What is asked of the kernel in INIT; what it does not offer is left out.
pub(crate) fn negotiate(config: &mut KernelConfig, asked: Asked) -> Agreed {
    // Left out on purpose:
    // - NO_OPEN_SUPPORT: opening would cost no request, but what is open is where the file system
    //   keeps its readahead state, and together with ATOMIC_O_TRUNC it loses truncation.
    // - NO_OPENDIR_SUPPORT: see `directories`.
    // - READDIRPLUS_AUTO: gives attributes with the first buffer full of a directory only, unless
    //   something was looked up while it was being read; who reads all names first and stats them
    //   then (find, ls, tar) would ask for each.
    // - ASYNC_DIO: the kernel neither drops what was read again during an asynchronous direct write
    //   from its cache, nor asks for the fsync that O_DSYNC is owed, when such a write is done.
    // - AUTO_INVAL_DATA: drops cached pages whenever a time changes; nobody else writes.
    // - ATOMIC_O_TRUNC: a file that is cut off when it is opened is cut off by a SETATTR, like any.
    // - SETXATTR_EXT, SECURITY_CTX, CREATE_SUPP_GROUP, OVER_IO_URING: fuser accepts them and does
    //   not honour them.
    let mut wanted = InitFlags::FUSE_ASYNC_READ
        | InitFlags::FUSE_BIG_WRITES
        | InitFlags::FUSE_MAX_PAGES
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_EXPLICIT_INVAL_DATA
        | InitFlags::FUSE_EXPORT_SUPPORT
        | InitFlags::FUSE_HAS_IOCTL_DIR
        | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
        // Set-uid and set-group-id bits are ours to take off: see `privileges`. Without it each
        // small write is preceded by a GETXATTR.
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2;
    if asked.posix_acl {
        // A directory's default ACL overrules the umask, which the kernel therefore leaves to us.
        wanted |= InitFlags::FUSE_POSIX_ACL | InitFlags::FUSE_DONT_MASK;
    }
    if asked.writeback {
        wanted |= InitFlags::FUSE_WRITEBACK_CACHE;
    }
    let offered = wanted & config.capabilities();
    let refused = config.add_capabilities(offered).err();
    debug_assert!(refused.is_none(), "only what is offered is asked for");
    tracing::debug!(?offered, missing = ?(wanted & !offered), "agreed with the kernel");

    // fuser derives the number of pages of a request from the longer of these two. A kernel
    // whose longest readahead is shorter answers with it.
    let bytes = REQUEST_BYTES as u32;
    if config.set_max_write(bytes).is_err() {
        tracing::debug!("the length of requests stays as the kernel offers");
    }
    if let Err(longest) = config.set_max_readahead(bytes) {
        tracing::debug!(longest, "the kernel's readahead is shorter than a request");
    }
    if config.set_max_background(BACKGROUND_REQUESTS).is_err() {
        tracing::debug!("the number of waiting requests stays as the kernel offers");
    }
    Agreed {
        umask_is_ours: offered.contains(InitFlags::FUSE_DONT_MASK),
        writeback: offered.contains(InitFlags::FUSE_WRITEBACK_CACHE),
    }
}
