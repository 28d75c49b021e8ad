//! `pagefence mount`: the process that the user waits for.

use std::ffi::{CStr, OsStr, OsString};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context as _, anyhow, bail};
use pagefence_fuse_front::{MountRequest, ServeOptions, close_on_exec_from, tune, unmount};
use pagefence_vfs::FileSystem;

use crate::arguments::MountArguments;
use crate::confinement::Confinement;
use crate::handoff::{self, Channel, Role, Said};
use crate::mount_options::{MountOptions, VolumeOptions};
use crate::{Opened, keeper, mountpoint, server};

/// The program's name, as ps and top show it.
pub(crate) const NAME: &CStr = c"pagefence";

/// A mount, ready to be made.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What was asked for.
    pub(crate) options: MountOptions,
    /// Where, absolute.
    pub(crate) mountpoint: PathBuf,
    /// What mount(8) shows as source.
    source: OsString,
    /// One thread.
    single_thread: bool,
    /// Log everything.
    pub(crate) debug: bool,
}

/// Mounts; as the server, serves.
pub(crate) fn run<F, O>(
    argv: &[OsString],
    arguments: &MountArguments,
    open: O,
) -> anyhow::Result<()>
where
    F: FileSystem,
    O: FnOnce(&VolumeOptions, &mut Confinement) -> anyhow::Result<Opened<F>>,
{
    if let Some(socket) = Role::Keeper.socket()? {
        return keeper::run(&socket, Plan::make(arguments)?);
    }
    if let Some(channel) = Channel::of_server()? {
        return server::detached(&channel, argv, || Plan::make(arguments), open);
    }
    let plan = Plan::make(arguments)?;
    // What whoever called this left open is not for the server, nor for its keeper. A kernel that can't do it
    // has no landlock either, and is served on all the same.
    let _older_kernel = close_on_exec_from(3);
    if arguments.foreground || plan.debug {
        if std::env::var_os(handoff::VARIABLE).is_none_or(|role| role != handoff::FOREGROUND) {
            let mut anew = same_program(argv);
            let error = anew.env(handoff::VARIABLE, handoff::FOREGROUND).exec();
            return Err(error).context("the server can't be started");
        }
        return server::foreground(argv, &plan, open);
    }
    in_background(argv, &plan)
}

impl Plan {
    /// Understands the options and checks the mount point.
    fn make(arguments: &MountArguments) -> anyhow::Result<Self> {
        let (image, mountpoint) = arguments.places()?;
        let mut options = MountOptions::parse(image, &arguments.options)?;
        options.volume.memory_bytes = arguments.memory;
        let mountpoint = mountpoint::check(mountpoint, options.non_empty)?;
        let absolute = || image.canonicalize().unwrap_or_else(|_| image.to_owned());
        let source = options
            .fsname
            .clone()
            .unwrap_or_else(|| absolute().into_os_string());
        Ok(Self {
            debug: arguments.debug || options.debug,
            single_thread: arguments.single_thread,
            options,
            mountpoint,
            source,
        })
    }

    /// How it is served.
    pub(crate) fn serving(&self) -> ServeOptions {
        ServeOptions {
            uid: self.options.uid,
            gid: self.options.gid,
            umask: self.options.umask,
            posix_acl: self.options.applies_acls(),
            fakeroot: self.options.is_fakeroot(),
            writeback: self.options.writeback,
            threads: self.single_thread.then_some(NonZeroUsize::MIN),
        }
    }

    /// Mounts.
    pub(crate) fn mount(&self, read_only: bool) -> anyhow::Result<OwnedFd> {
        let request = MountRequest {
            source: &self.source,
            subtype: self.options.subtype.as_deref().unwrap_or("pagefence"),
            mountpoint: &self.mountpoint,
            read_only: read_only || self.options.is_read_only(),
            suid: self.options.suid,
            dev: self.options.dev,
            exec: !self.options.no_exec,
            allow_other: self.options.allow_other,
            default_permissions: self.options.checks_permissions(),
        };
        Ok(pagefence_fuse_front::mount(&request)?)
    }

    /// What the user should know about a mount that worked.
    pub(crate) fn note(&self, read_only: Option<&str>) {
        let volume = &self.options.volume;
        if let Some(why) = read_only
            && !volume.read_only
            && !volume.no_load
        {
            let image = volume.image.display();
            eprintln!("pagefence: {image} is mounted read-only, because {why}");
        }
    }
}

/// Starts the server, mounts once it is ready, and returns once the mount answers.
fn in_background(argv: &[OsString], plan: &Plan) -> anyhow::Result<()> {
    let (channel, input) = handoff::pair().context("a socket to the server can't be made")?;
    let mut server = start(argv, input).context("the server can't be started")?;
    let done = hand_over(&channel, &mut server, plan);
    if done.is_err() {
        // Whatever it is doing, it serves nobody.
        drop(channel);
        let _gone = server.kill();
        let _status = server.wait();
    }
    done
}

/// The arenas of glibc's malloc, which makes one for each thread up to eight a processor. What one
/// thread took and another gave back stays with the arena that it came from: the server's many
/// threads would keep a fifth more memory than they use, past the budget of `cache=`.
const ARENAS: &str = "MALLOC_ARENA_MAX";

/// The same program with the same arguments, so that ps shows what is mounted where.
pub(crate) fn same_program(argv: &[OsString]) -> std::process::Command {
    let (name, arguments) = match argv {
        [name, arguments @ ..] => (name.as_os_str(), arguments),
        [] => (OsStr::new("pagefence"), argv),
    };
    // Not by its path, where a newer version may have been installed meanwhile.
    let mut program = std::process::Command::new("/proc/self/exe");
    program.arg0(name).args(arguments);
    if std::env::var_os(ARENAS).is_none() {
        let processors = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
        program.env(ARENAS, processors.max(2).to_string());
    }
    program
}

fn start(argv: &[OsString], input: OwnedFd) -> std::io::Result<Child> {
    same_program(argv)
        .env(handoff::VARIABLE, Role::Server.value())
        .stdin(Stdio::from(input))
        .stdout(Stdio::null())
        .spawn()
}

fn hand_over(channel: &Channel, server: &mut Child, plan: &Plan) -> anyhow::Result<()> {
    let read_only = match hear(channel, server)? {
        Said::Ready(read_only) => read_only,
        said => bail!("the server said {said:?} out of turn"),
    };
    let device = plan.mount(read_only.is_some())?;
    let served = serve_and_try(channel, server, device, &plan.mountpoint);
    match served {
        Ok(()) => plan.note(read_only.as_deref()),
        Err(_) => {
            if let Err(error) = unmount(&plan.mountpoint, true) {
                let path = plan.mountpoint.display();
                eprintln!(
                    "pagefence: {path} stays mounted ({error}): run `pagefence umount {path}`"
                );
            }
        }
    }
    served
}

/// Hands the mounted device over, and waits for the mount to answer.
fn serve_and_try(
    channel: &Channel,
    server: &mut Child,
    device: OwnedFd,
    mountpoint: &Path,
) -> anyhow::Result<()> {
    channel.give(device.as_fd()).context("the server is gone")?;
    // From here on the server alone keeps the mount alive: if it dies, nobody waits for it.
    drop(device);
    match hear(channel, server)? {
        Said::Serving => {}
        said => bail!("the server said {said:?} out of turn"),
    }
    rustix::fs::statvfs(mountpoint).context("the mount does not answer")?;
    tune(mountpoint);
    Ok(())
}

/// Waits for the server to say something; that it failed or is gone is an error.
fn hear(channel: &Channel, server: &mut Child) -> anyhow::Result<Said> {
    match channel.hear().context("the server can't be understood")? {
        Said::Failed(why) => Err(anyhow!(why)),
        Said::Nothing => {
            let status = server.wait().context("the server is gone")?;
            match status.signal() {
                Some(signal) => bail!("the server was ended by signal {signal}"),
                None => bail!("the server ended without saying why ({status})"),
            }
        }
        said => Ok(said),
    }
}
