//! A mount of a file system in memory, made and taken down by a test.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use pagefence_fuse_front::{MapDoor, MountRequest, ServeError, ServeOptions, Server};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::thread::{self, JoinHandle};

use crate::memory_fs::{Counters, MemoryFs};

/// A live mount; dropping it unmounts.
pub(crate) struct Mounted {
    directory: tempfile::TempDir,
    /// What reached the file system.
    pub(crate) counters: Arc<Counters>,
    server: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Mounted {
    /// The root of the mount.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Waits for the server, once something has unmounted it.
    pub(crate) fn finish(mut self) -> Result<(), ServeError> {
        let server = self.server.take().expect("finished once");
        server.join().expect("the server does not panic")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            if let Err(error) = pagefence_fuse_front::unmount(self.path(), true) {
                eprintln!("{} stays mounted: {error}", self.path().display());
            } else if !std::thread::panicking() {
                let ended = server.join().expect("the server does not panic");
                ended.expect("the server ends well");
            }
        }
    }
}

/// Mounts `fs`; `None`, with a word on stderr, where that is impossible.
pub(crate) fn mount(fs: MemoryFs) -> Option<Mounted> {
    mount_with(
        fs,
        &ServeOptions {
            posix_acl: true,
            ..ServeOptions::default()
        },
        |_| {},
    )
}

/// Mounts `fs` served as `options` say, mounted as `change` says.
pub(crate) fn mount_with(
    fs: MemoryFs,
    options: &ServeOptions,
    change: impl FnOnce(&mut MountRequest<'_>),
) -> Option<Mounted> {
    mount_behind(Arc::new(fs), None, options, change)
}

/// As [`mount_with`], with what lets others to maps of its files.
pub(crate) fn mount_behind(
    fs: Arc<MemoryFs>,
    door: Option<Arc<dyn MapDoor>>,
    options: &ServeOptions,
    change: impl FnOnce(&mut MountRequest<'_>),
) -> Option<Mounted> {
    if !Path::new("/dev/fuse").exists() || !rustix::process::geteuid().is_root() {
        eprintln!("skipped: this test mounts, which needs root and /dev/fuse");
        return None;
    }
    let directory = tempfile::tempdir().expect("a directory can be made");
    // Not read-only, so that what writes gets to the server.
    let mut request = MountRequest {
        source: OsStr::new("memory"),
        subtype: "pagefence",
        mountpoint: directory.path(),
        read_only: false,
        suid: false,
        dev: false,
        exec: true,
        allow_other: true,
        default_permissions: true,
    };
    change(&mut request);
    let fd = if request.allow_other && !request.default_permissions {
        mount_unchecked(&request)
    } else {
        pagefence_fuse_front::mount(&request).expect("root can mount")
    };
    let counters = fs.counters();
    let server = Server::start(fs, fd, options, door).expect("the kernel greets");
    let server = thread::spawn("server", move || server.run()).expect("a thread");
    Some(Mounted {
        directory,
        counters,
        server: Some(server),
    })
}

/// Lets everybody in with nobody checked, which is refused otherwise: so that others than root get as far
/// as the server's own checks.
fn mount_unchecked(request: &MountRequest<'_>) -> OwnedFd {
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let device = OwnedFd::from(device.expect("root can open it"));
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    let data = CString::new(data).expect("no NUL");
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    let (source, place) = (request.source, request.mountpoint);
    rustix::mount::mount(source, place, "fuse.pagefence", flags, data.as_c_str())
        .expect("root can mount");
    device
}
