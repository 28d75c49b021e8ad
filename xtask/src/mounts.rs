//! Loop devices and mounts that are taken down when their guard is dropped, by their exact path.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::command::{command, output, run};

/// How long a server may take to answer, or to end.
const SERVER_PATIENCE: Duration = Duration::from_secs(120);
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

/// Whether the kernel may write to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The loop device refuses writes, whatever the file system wants.
    ReadOnly,
    /// Writes reach the image: journal replay does too.
    ReadWrite,
}

/// An image behind a loop device.
#[derive(Debug)]
struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    fn attach(image: &Path, access: Access) -> Result<Self> {
        let mut arguments: Vec<OsString> = vec!["--find".into(), "--show".into()];
        if access == Access::ReadOnly {
            arguments.push("--read-only".into());
        }
        arguments.push(image.into());
        let printed = run("losetup", arguments)?;
        Ok(Self {
            path: PathBuf::from(printed.trim_end()),
        })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = run("losetup", [Path::new("--detach"), &self.path]) {
            eprintln!("warning: {error:#}");
        }
    }
}

/// A kernel mount of an image.
#[derive(Debug)]
pub(crate) struct KernelMount {
    directory: PathBuf,
    is_mounted: bool,
    device: LoopDevice,
}

impl KernelMount {
    /// Mounts `image` on `directory`. `options` go to mount(8) as they are.
    pub(crate) fn new(
        image: &Path,
        directory: &Path,
        access: Access,
        options: &str,
    ) -> Result<Self> {
        let device = LoopDevice::attach(image, access)?;
        let arguments: [&std::ffi::OsStr; 6] = [
            "-t".as_ref(),
            "ext4".as_ref(),
            "-o".as_ref(),
            options.as_ref(),
            device.path.as_os_str(),
            directory.as_os_str(),
        ];
        run("mount", arguments)
            .with_context(|| format!("the kernel does not mount {}", image.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
            is_mounted: true,
            device,
        })
    }

    /// The loop device that is mounted.
    pub(crate) fn device(&self) -> &Path {
        &self.device.path
    }

    /// Takes it down; waits a little while it is busy.
    pub(crate) fn unmount(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_mounted) {
            return Ok(());
        }
        unmount_patiently(&self.directory)
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("warning: {error:#}");
        }
    }
}

fn unmount_patiently(directory: &Path) -> Result<()> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        match run("umount", [directory]) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The user-space servers that are mounted and compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// `pagefence mount -f`, by this binary.
    Pagefence(PathBuf),
    /// `fuse2fs -f`.
    Fuse2fs,
    /// [`crate::bench::null_server`].
    Nothing,
}

/// A mount by a user-space server, which runs as our child.
#[derive(Debug)]
pub(crate) struct ServedMount {
    server: Server,
    directory: PathBuf,
    child: Child,
    /// What it printed.
    log: PathBuf,
    is_mounted: bool,
}

impl ServedMount {
    /// Starts the server and returns once the mount answers.
    ///
    /// What it prints is kept in a file beside `directory` and quoted if it fails.
    pub(crate) fn new(
        server: &Server,
        image: &Path,
        directory: &Path,
        options: &str,
    ) -> Result<Self> {
        Self::of(server, &[image.into()], directory, options)
    }

    /// Mounts a file system in memory that holds `mib` MiB, by pagefence.
    pub(crate) fn tmpfs(
        server: &Server,
        mib: u64,
        directory: &Path,
        options: &str,
    ) -> Result<Self> {
        let what = ["--tmpfs".into(), format!("{mib}M").into()];
        Self::of(server, &what, directory, options)
    }

    /// Mounts what answers at once and does nothing.
    pub(crate) fn nothing(directory: &Path) -> Result<Self> {
        Self::of(&Server::Nothing, &[], directory, "")
    }

    fn of(server: &Server, what: &[OsString], directory: &Path, options: &str) -> Result<Self> {
        let log = directory.with_extension("log");
        let log_file =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut arguments: Vec<OsString> = Vec::new();
        let program: OsString = match server {
            Server::Pagefence(binary) => {
                arguments.push("mount".into());
                binary.into()
            }
            Server::Fuse2fs => "fuse2fs".into(),
            Server::Nothing => {
                arguments.push("null-server".into());
                std::env::current_exe()?.into()
            }
        };
        arguments.extend_from_slice(what);
        arguments.push(directory.into());
        if *server != Server::Nothing {
            arguments.extend(["-o".into(), options.into(), "-f".into()]);
        }
        let device_before = device_of(directory)?;
        let child = command(&program, arguments)
            .stdout(Stdio::from(log_file.try_clone()?))
            .stderr(Stdio::from(log_file))
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut mount = Self {
            server: server.clone(),
            directory: directory.to_owned(),
            child,
            log,
            is_mounted: true,
        };
        mount.wait_until_it_answers(device_before)?;
        Ok(mount)
    }

    fn wait_until_it_answers(&mut self, device_before: u64) -> Result<()> {
        let deadline = Instant::now() + SERVER_PATIENCE;
        loop {
            if device_of(&self.directory).is_ok_and(|device| device != device_before) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                self.is_mounted = false;
                bail!("the server ended ({status}): {}", self.printed());
            }
            ensure!(
                Instant::now() < deadline,
                "the server did not answer in {SERVER_PATIENCE:?}: {}",
                self.printed()
            );
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Everything the server printed so far.
    pub(crate) fn printed(&self) -> String {
        std::fs::read_to_string(&self.log)
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    /// The server's process number.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Leaves the server the address space that it has, and no byte more.
    pub(crate) fn take_memory(&self) -> Result<()> {
        let process = self.process();
        let statm = std::fs::read_to_string(format!("/proc/{process}/statm"))
            .context("the server is gone")?;
        let pages: u64 = statm
            .split(' ')
            .next()
            .and_then(|pages| pages.parse().ok())
            .context("/proc has no size of the server")?;
        let bytes = pages * u64::try_from(rustix::param::page_size())?;
        let limit = Rlimit {
            current: Some(bytes),
            maximum: Some(bytes),
        };
        let process = Pid::from_raw(i32::try_from(process)?);
        prlimit(process, Resource::As, limit).context("its memory can't be limited")?;
        Ok(())
    }

    /// Whether the server ended by itself.
    pub(crate) fn is_dead(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Kills the server, which has no time to do anything about it, and detaches what is left of
    /// its mount.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.is_mounted = false;
        self.child.kill().context("cannot kill the server")?;
        self.child.wait()?;
        run("umount", [Path::new("-l"), &self.directory]).map(drop)
    }

    /// Unmounts, waits for the server, and makes sure that it ended well.
    pub(crate) fn unmount(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_mounted) {
            return Ok(());
        }
        match &self.server {
            Server::Pagefence(binary) => {
                let deadline = Instant::now() + BUSY_PATIENCE;
                loop {
                    let output = command(binary, [Path::new("umount"), &self.directory])
                        .output()
                        .context("cannot run pagefence umount")?;
                    if output.status.success() {
                        break;
                    }
                    // Others look at every mount of the machine now and then.
                    let said = String::from_utf8_lossy(&output.stderr);
                    ensure!(
                        said.contains("is in use") && Instant::now() < deadline,
                        "pagefence umount failed ({}): {}",
                        output.status,
                        said.trim()
                    );
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            Server::Fuse2fs | Server::Nothing => unmount_patiently(&self.directory)?,
        }
        let deadline = Instant::now() + SERVER_PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(
                    status.success(),
                    "the server ended with {status}: {}",
                    self.printed()
                );
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the server still runs after its unmount: {}",
                self.printed()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for ServedMount {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("warning: {error:#}");
        }
        // Whatever went wrong, neither a mount without a server nor a server stays behind.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = output("umount", [Path::new("-l"), &self.directory]);
            let _ = self.child.kill();
            let _ = self.child.wait();
        } else if is_dead_mount(&self.directory) {
            let _ = output("umount", [Path::new("-l"), &self.directory]);
        }
    }
}

/// Whether stat fails as it does on a FUSE mount without a server.
fn is_dead_mount(directory: &Path) -> bool {
    std::fs::metadata(directory)
        .is_err_and(|error| error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()))
}

fn device_of(directory: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(directory)
        .with_context(|| format!("cannot stat {}", directory.display()))?;
    Ok(metadata.dev())
}

/// The binary `pagefence`: the one given, or built here by cargo in the release profile.
pub(crate) fn pagefence_binary(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(binary) = given {
        return binary
            .canonicalize()
            .with_context(|| format!("cannot find {}", binary.display()));
    }
    let root = workspace_root()?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = command(&cargo, ["build", "--release", "--package", "pagefence-cli"])
        .current_dir(&root)
        .status()
        .context("cannot run cargo")?;
    ensure!(
        status.success(),
        "cargo build --package pagefence-cli failed"
    );
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), |target| root.join(target));
    Ok(target.join("release/pagefence"))
}

/// The root of this workspace.
pub(crate) fn workspace_root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent directory")?;
    Ok(root.to_owned())
}

/// Writes everything back and drops the kernel's clean caches.
pub(crate) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the kernel's caches")
}
