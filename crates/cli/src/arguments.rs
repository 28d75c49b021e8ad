//! The command line, in its three dresses: `pagefence COMMAND …`, `pagefence IMAGE MOUNTPOINT …`
//! (what mount(8) makes of type `fuse.pagefence`), and fuse2fs's.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

use crate::check::CheckArguments;
use crate::defrag::DefragArguments;
use crate::demo::DemoArguments;
use crate::fallocate::FallocateArguments;
use crate::info::InfoArguments;
use crate::migrate::MigrateArguments;
use crate::mkfs::MkfsArguments;
use crate::truncate::TruncateArguments;

/// ext2, ext3 and ext4 file systems in user space.
#[derive(Debug, Parser)]
#[command(name = "pagefence", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Mount a file system; returns once it can be used
    Mount(MountArguments),
    /// Unmount; returns once everything is on disk and the server is gone
    Umount {
        /// The directory that it is mounted on
        mountpoint: PathBuf,
    },
    /// Make a file system
    Mkfs(MkfsArguments),
    /// Tell what an image is: type, features, journal, usage
    Info(InfoArguments),
    /// Tell whether an image or a mount in use is sound, all of it, and change nothing
    Check(CheckArguments),
    /// Give a range of a file space, or take it away: punch, zero, collapse, insert
    Fallocate(FallocateArguments),
    /// Give a file another size
    Truncate(TruncateArguments),
    /// Give a file's blocks another kind of map: extents, or blocks as in ext2 and ext3
    Migrate(MigrateArguments),
    /// Move files on a mount to where they lie in one piece
    Defrag(DefragArguments),
    /// Make a small image, mount it, show it, and clean up
    Demo(DemoArguments),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// Where to
        directory: PathBuf,
    },
}

/// `pagefence mount`.
#[derive(Args, Debug)]
#[command(after_help = OPTIONS_HELP)]
pub(crate) struct MountArguments {
    /// The image, or a block device; left out with --memory and --tmpfs
    #[arg(value_name = "IMAGE", required = true)]
    first: PathBuf,
    /// An empty directory
    #[arg(value_name = "MOUNTPOINT", required_unless_present_any = ["memory", "tmpfs"])]
    second: Option<PathBuf>,
    /// Mount a fresh ext4 file system of this size that is kept in memory, and gone with the mount
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_size)]
    pub(crate) memory: Option<u64>,
    /// Mount a file system in memory that holds up to so much, and takes memory as it is used
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = crate::size::parse_size,
        conflicts_with = "memory"
    )]
    pub(crate) tmpfs: Option<u64>,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS", action = ArgAction::Append)]
    pub(crate) options: Vec<OsString>,
    /// Stay in the foreground; interrupt to unmount
    #[arg(short = 'f', long)]
    pub(crate) foreground: bool,
    /// Stay in the foreground and log every request
    #[arg(short = 'd', long)]
    pub(crate) debug: bool,
    /// Serve with one thread
    #[arg(short = 's', long)]
    pub(crate) single_thread: bool,
}

impl MountArguments {
    /// The image (a name for what is in memory) and the mount point.
    ///
    /// # Errors
    /// An image was given along with --memory or --tmpfs.
    pub(crate) fn places(&self) -> anyhow::Result<(&Path, &Path)> {
        match (&self.second, self.memory, self.tmpfs) {
            (Some(mountpoint), None, None) => Ok((&self.first, mountpoint)),
            (None, Some(_), None) => Ok((Path::new("memory"), &self.first)),
            (None, None, Some(_)) => Ok((Path::new("tmpfs"), &self.first)),
            _ => anyhow::bail!(
                "with --memory or --tmpfs give the mount point alone, without an image"
            ),
        }
    }
}

const OPTIONS_HELP: &str = "\
Mount options:
  ro, rw               read only, or not (the default, where the image can be written)
  offset=BYTES         the file system starts there in the image
  sb=N                 use the backup superblock N KiB from the start; read-only
  cache=SIZE           memory for cached data: bytes, K, M, G, T, or % of memory
  commit=SECONDS       make changes durable after so long at the latest (5)
  noatime              do not keep the time of access (relatime is what is kept)
  nr_inodes=N          inodes of --tmpfs (one for each 4 KiB of its size)
  discard              tell the device of space that became free
  noload, norecovery   do not change the image, not even to replay its journal
  allow_other          let other users in, and have permissions checked, also with fakeroot
  default_permissions  have permissions checked (the default, but with uid, gid, fakeroot)
  uid=N, gid=N         show this owner, this group
  umask=OCTAL          show permissions 0777 without these
  fakeroot             no permission checks for whoever mounts, who counts as root
  writeback            let the kernel keep dirty pages (small writes cost less)
  suid, dev            honour set-uid bits, device nodes (root only)
  noexec               run no programs
  noacl                do not apply ACLs
  nonempty             mount on a directory that is not empty
  unconfined           let the server keep all rights of whoever mounts (for debugging)
  log=FILE             append the server's log to a file (else to syslog, with -f to stderr)
  fsname=, subtype=    what mount(8) shows";

/// The command line of fuse2fs and of a mount helper.
#[derive(Debug, Parser)]
#[command(name = "pagefence", version, disable_version_flag = true, after_help = OPTIONS_HELP)]
struct Compatible {
    /// The image, or a block device
    image: PathBuf,
    /// An empty directory
    mountpoint: PathBuf,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS", action = ArgAction::Append)]
    options: Vec<OsString>,
    /// Stay in the foreground
    #[arg(short = 'f')]
    foreground: bool,
    /// Stay in the foreground and log every request
    #[arg(short = 'd')]
    debug: bool,
    /// Serve with one thread
    #[arg(short = 's')]
    single_thread: bool,
    /// Taken and ignored
    #[arg(short = 'v')]
    verbose: bool,
    /// Taken and ignored
    #[arg(short = 'n')]
    no_table: bool,
    /// Taken and ignored
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<OsString>,
    /// Print version
    #[arg(short = 'V', long = "version", action = ArgAction::Version)]
    version: Option<bool>,
}

/// Understands a command line, the program's name first.
///
/// # Errors
/// What clap says, which may be help or the version.
pub(crate) fn parse(argv: &[OsString]) -> Result<Command, clap::Error> {
    let name = argv
        .first()
        .map(|name| Path::new(name).file_name().unwrap_or(name));
    let dressed = name.is_some_and(|name| name == "fuse2fs" || name == "mount.fuse.pagefence");
    if dressed || argv.get(1).is_some_and(|first| is_no_command(first)) {
        let compatible = Compatible::try_parse_from(argv)?;
        return Ok(Command::Mount(MountArguments {
            first: compatible.image,
            second: Some(compatible.mountpoint),
            memory: None,
            tmpfs: None,
            options: compatible.options,
            foreground: compatible.foreground,
            debug: compatible.debug,
            single_thread: compatible.single_thread,
        }));
    }
    Cli::try_parse_from(argv).map(|cli| cli.command)
}

/// Whether the first argument is an image rather than a command or an option.
fn is_no_command(first: &OsStr) -> bool {
    let cli = Cli::command();
    let known = |name: &str| name == "help" || cli.find_subcommand(name).is_some();
    match first.to_str() {
        // Close to a command: a slip of the hand, for clap to point out.
        Some(first) => {
            let path = first.contains('/') || Path::new(first).exists();
            !first.starts_with('-') && !known(first) && path
        }
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Result<Command, clap::Error> {
        let argv: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse(&argv)
    }

    fn mount(line: &str) -> MountArguments {
        match arguments(line) {
            Ok(Command::Mount(arguments)) => arguments,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
        Compatible::command().debug_assert();
    }

    #[test]
    fn mounts_are_understood_in_every_dress() {
        for line in [
            "pagefence mount /i /m -o ro,cache=1G -o offset=5 -f",
            "pagefence mount -f -o ro,cache=1G /i -o offset=5 /m",
            "/usr/bin/pagefence /i /m -o ro,cache=1G -o offset=5 -f",
            "fuse2fs -o ro,cache=1G -f -o offset=5 /i /m",
            "/sbin/mount.fuse.pagefence /i /m -n -v -o ro,cache=1G -t x -o offset=5 -f",
        ] {
            let got = mount(line);
            let places = got.places().expect("an image and a mount point");
            assert_eq!(places, (Path::new("/i"), Path::new("/m")), "{line}");
            assert_eq!(got.options, ["ro,cache=1G", "offset=5"], "{line}");
            assert!(got.foreground && !got.debug && !got.single_thread, "{line}");
        }
        assert!(mount("fuse2fs -s -d /i /m").single_thread);
    }

    #[test]
    fn what_is_in_memory_has_no_image() {
        for (line, name) in [
            ("pagefence mount --tmpfs 1G /m", "tmpfs"),
            ("pagefence mount /m --memory 1G", "memory"),
        ] {
            let got = mount(line);
            let places = got.places().expect("a mount point");
            assert_eq!(places, (Path::new(name), Path::new("/m")), "{line}");
        }
        assert_eq!(mount("pagefence mount --tmpfs 1G /m").tmpfs, Some(1 << 30));
        assert!(mount("pagefence mount --tmpfs 1G /i /m").places().is_err());
        assert!(arguments("pagefence mount --tmpfs 1G --memory 1G /m").is_err());
    }

    #[test]
    fn commands_and_slips_are_not_images() {
        assert!(matches!(
            arguments("pagefence umount /m"),
            Ok(Command::Umount { .. })
        ));
        let slip = arguments("pagefence unmount /m").expect_err("no such command");
        assert_eq!(slip.kind(), clap::error::ErrorKind::InvalidSubcommand);
        let version = arguments("fuse2fs -V").expect_err("version is an early end");
        assert!(!version.use_stderr());
        assert!(arguments("pagefence mount /i").is_err());
    }
}
