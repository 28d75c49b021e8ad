//! The server: the process that stays.

use std::ffi::OsString;
use std::fs::File;

use anyhow::Context as _;
use pagefence_fuse_front::Server;
use pagefence_vfs::FileSystem;

use crate::confinement::Confinement;
use crate::handoff::{Channel, Said};
use crate::keeper::Keeper;
use crate::mount::{NAME, Plan};
use crate::mount_options::VolumeOptions;
use crate::{Opened, log, signals};

/// Serves for a process that mounts: tells it over `channel` how things go.
pub(crate) fn detached<F, O>(
    channel: &Channel,
    argv: &[OsString],
    plan: impl FnOnce() -> anyhow::Result<Plan>,
    open: O,
) -> anyhow::Result<()>
where
    F: FileSystem,
    O: FnOnce(&VolumeOptions, &mut Confinement) -> anyhow::Result<Opened<F>>,
{
    // Errors: it leads a session already. Then it needs no new one.
    let _leads = rustix::process::setsid();
    let _unnamed = rustix::thread::set_name(NAME);
    match prepare(channel, argv, plan, open) {
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
    argv: &[OsString],
    plan: impl FnOnce() -> anyhow::Result<Plan>,
    open: O,
) -> anyhow::Result<Server<F>>
where
    F: FileSystem,
    O: FnOnce(&VolumeOptions, &mut Confinement) -> anyhow::Result<Opened<F>>,
{
    let plan = plan()?;
    log::start(plan.options.log.as_deref(), false, plan.debug)?;
    let keeper = Keeper::start(argv)?;
    let null = File::options().write(true).open("/dev/null")?;
    let Opened { fs, maps } = open_confined(&plan, open)?;
    channel.say(&Said::Ready(fs.read_only_because()))?;
    let device = channel.take()?;
    keeper.watch()?;
    let server = Server::start(fs, device, &plan.serving(), maps)
        .context("the kernel's FUSE can't be agreed with")?;
    signals::watch(keeper)?;
    // It does not keep the user's terminal or pipe.
    rustix::stdio::dup2_stderr(&null)?;
    channel.say(&Said::Serving)?;
    Ok(server)
}

/// Opens what is to be served, and has nothing else from then on.
fn open_confined<F, O>(plan: &Plan, open: O) -> anyhow::Result<Opened<F>>
where
    F: FileSystem,
    O: FnOnce(&VolumeOptions, &mut Confinement) -> anyhow::Result<Opened<F>>,
{
    let mut confinement = Confinement::of_server(!plan.options.unconfined);
    let opened = open(&plan.options.volume, &mut confinement)?;
    confinement.enter()?;
    Ok(opened)
}

/// Opens and serves in this process, until it is unmounted or interrupted; its keeper mounts.
pub(crate) fn foreground<F, O>(argv: &[OsString], plan: &Plan, open: O) -> anyhow::Result<()>
where
    F: FileSystem,
    O: FnOnce(&VolumeOptions, &mut Confinement) -> anyhow::Result<Opened<F>>,
{
    log::start(plan.options.log.as_deref(), true, plan.debug)?;
    // What the user types, and where else output goes, is none of its business; it says what it has to on stderr.
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    let keeper = Keeper::start(argv)?;
    let Opened { fs, maps } = open_confined(plan, open)?;
    let read_only = fs.read_only_because();
    let device = keeper.mount(read_only.is_some())?;
    let server = match Server::start(fs, device, &plan.serving(), maps) {
        Ok(server) => server,
        Err(error) => {
            let _unmounted = keeper.unmount();
            return Err(error).context("the kernel's FUSE can't be agreed with");
        }
    };
    keeper.tune()?;
    signals::watch(keeper)?;
    plan.note(read_only.as_deref());
    Ok(server.run()?)
}
