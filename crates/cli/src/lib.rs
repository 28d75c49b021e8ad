//! The command `pagefence`, but for the file system that it mounts.
//!
//! A file a command: `mount` and `umount` with what they are made of, `mkfs`, `info`, `check`,
//! `fallocate`, `truncate`, `demo`, `completions` and `man`; `tmpfs` is the one file system that needs no image.
//! Which file system is behind a mount is the caller's: [`run`] takes a
//! function that opens it, so that the command is tested with a file system in memory.
//!
//! How a mount comes to be:
//!
//! ```text
//! pagefence mount IMAGE DIR          the same program, same arguments, PAGEFENCE_SERVER=1
//! ─────────────────────────          ─────────────────────────────────────────────────────
//! check DIR, start the server ─────► own session, start the keeper, open IMAGE,
//!                                      confine itself, read IMAGE
//!                             ◄───── ready, or one sentence that says why not
//! mount on DIR, hand over    ─────►  answer the kernel
//!   the /dev/fuse descriptor  ◄───── serving
//! statfs(DIR), exit 0                serve until unmounted
//! ```
//!
//! If either side dies, the other's socket ends and it gives up; if the server dies later, the
//! kernel answers ENOTCONN in its place. The keeper is the same program once more, for what the server
//! gave up the right to: it unmounts when the server gets a signal, and ends with it. With `-f` one
//! process does all of it in turn, but for the keeper, which then mounts, too.

mod arguments;
mod check;
mod completions;
mod confinement;
mod defrag;
mod demo;
mod fallocate;
mod handoff;
mod info;
mod keeper;
mod log;
mod man;
mod migrate;
mod mkfs;
mod mount;
mod mount_options;
mod mountinfo;
mod mountpoint;
mod server;
mod signals;
mod size;
mod target;
mod terminal;
mod tmpfs;
mod truncate;
mod umount;

use std::ffi::OsString;
use std::process::ExitCode;

use pagefence_fuse_front::MapDoor;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::FileSystem;

pub use confinement::Confinement;
pub use mount_options::VolumeOptions;

use arguments::Command;

/// What is mounted.
pub struct Opened<F> {
    /// The file system.
    pub fs: Arc<F>,
    /// The way to maps of its files in other processes; `None` if it has no maps. It is closed before
    /// the file system is shut down.
    pub maps: Option<Arc<dyn MapDoor>>,
}

impl<F: FileSystem> Opened<F> {
    /// A file system without maps.
    pub fn without_maps(fs: F) -> Self {
        Self {
            fs: Arc::new(fs),
            maps: None,
        }
    }
}

/// Runs the command with arguments `argv`, the program's name first.
///
/// `open` opens the image that the options name, enters the confinement ([`Confinement::enter`]), and
/// checks the image: its error is what the user is told, one sentence that says what is wrong and
/// what to do.
///
/// The exit status is 0, or 1 after one sentence on stderr; that of `check` is e2fsck's.
pub fn run<F, O>(argv: Vec<OsString>, open: O) -> ExitCode
where
    F: FileSystem,
    O: FnOnce(&VolumeOptions, &mut Confinement) -> anyhow::Result<Opened<F>>,
{
    let command = match arguments::parse(&argv) {
        Ok(command) => command,
        Err(error) => {
            // Also help and version, which are no failures and go to stdout.
            let failed = error.use_stderr();
            if error.print().is_err() || failed {
                if argv.get(1).is_some_and(|command| command == "check") {
                    return ExitCode::from(check::USAGE);
                }
                return ExitCode::FAILURE;
            }
            return ExitCode::SUCCESS;
        }
    };
    let done = match command {
        Command::Mount(arguments) => match arguments.tmpfs {
            Some(bytes) => mount::run(&argv, &arguments, |options, confinement| {
                confinement.enter()?;
                tmpfs::open(bytes, options)
            }),
            None => mount::run(&argv, &arguments, open),
        },
        Command::Umount { mountpoint } => umount::run(&mountpoint),
        Command::Mkfs(arguments) => mkfs::run(&arguments),
        Command::Info(arguments) => info::run(&arguments),
        Command::Check(arguments) => return check::run(&arguments),
        Command::Fallocate(arguments) => fallocate::run(&arguments),
        Command::Truncate(arguments) => truncate::run(&arguments),
        Command::Migrate(arguments) => migrate::run(&arguments),
        Command::Defrag(arguments) => defrag::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Completions { shell } => completions::run(shell),
        Command::Man { directory } => man::run(&directory),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pagefence: {error:#}");
            ExitCode::FAILURE
        }
    }
}
