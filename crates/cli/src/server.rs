//! The server: the process that stays.

use std::fs::File;

use anyhow::Context as _;
use pagefence_fuse_front::{Server, tune, unmount};
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::FileSystem;

use crate::handoff::{Channel, Said};
use crate::mount::{NAME, Plan};
use crate::mount_options::VolumeOptions;
use crate::{Opened, log, signals};

/// Serves for a process that mounts: tells it over `channel` how things go.
pub(crate) fn detached<F, O>(
    channel: &Channel,
    plan: impl FnOnce() -> anyhow::Result<Plan>,
    open: O,
) -> anyhow::Result<()>
where
    F: FileSystem,
    O: FnOnce(&VolumeOptions) -> anyhow::Result<Opened<F>>,
{
    // Errors: it leads a session already. Then it needs no new one.
    let _leads = rustix::process::setsid();
    let _unnamed = rustix::thread::set_name(NAME);
    match prepare(channel, plan, open) {
        // Nobody listens any more but the log.
        Ok(server) => Ok(server
            .run()
            .inspect_err(|error| tracing::error!(%error, "the server ends"))?),
        Err(error) => {
            // The other side prints it, if it is still there.
            let _gone = channel.say(&Said::Failed(format!("{error:#}")));
            std::process::exit(1);
        }
    }
}

/// Everything up to serving.
fn prepare<F, O>(
    channel: &Channel,
    plan: impl FnOnce() -> anyhow::Result<Plan>,
    open: O,
) -> anyhow::Result<Server<F>>
where
    F: FileSystem,
    O: FnOnce(&VolumeOptions) -> anyhow::Result<Opened<F>>,
{
    let plan = plan()?;
    log::start(plan.options.log.as_deref(), false, plan.debug)?;
    let Opened { fs, maps } = open(&plan.options.volume)?;
    channel.say(&Said::Ready(fs.read_only_because()))?;
    let device = channel.take()?;
    let server = Server::start(fs, device, &plan.serving(), maps)
        .context("the kernel's FUSE can't be agreed with")?;
    signals::watch(plan.mountpoint)?;
    // It keeps neither the user's directory nor the user's terminal or pipe.
    rustix::process::chdir("/")?;
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stderr(&null)?;
    channel.say(&Said::Serving)?;
    Ok(server)
}

/// Opens, mounts and serves in this process, until it is unmounted or interrupted.
pub(crate) fn foreground<F, O>(plan: &Plan, open: O) -> anyhow::Result<()>
where
    F: FileSystem,
    O: FnOnce(&VolumeOptions) -> anyhow::Result<Opened<F>>,
{
    log::start(plan.options.log.as_deref(), true, plan.debug)?;
    let Opened { fs, maps } = open(&plan.options.volume)?;
    let read_only = fs.read_only_because();
    let device = plan.mount(read_only.is_some())?;
    let started = Server::start(fs, device, &plan.serving(), maps)
        .context("the kernel's FUSE can't be agreed with")
        .and_then(|server| {
            signals::watch(plan.mountpoint.clone())?;
            // Asks the mount, so it can't be done before it is served.
            let mountpoint = plan.mountpoint.clone();
            thread::spawn("pagefence-tune", move || tune(&mountpoint))?;
            Ok(server)
        });
    match started {
        Ok(server) => {
            plan.note(read_only.as_deref());
            Ok(server.run()?)
        }
        Err(error) => {
            let _unmounted = unmount(&plan.mountpoint, true);
            Err(error)
        }
    }
}
