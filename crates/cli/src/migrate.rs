//! `pagefence migrate`: gives a file's blocks another kind of map, in an image or on a mount.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use pagefence::MapFormat;
use rustix::fs::IFlags;

use crate::target::Target;

/// The flag of a file that is mapped by extents (FS_EXTENT_FL).
const EXTENTS: IFlags = IFlags::from_bits_retain(0x8_0000);

/// How often it is tried while others' data gets blocks of the file.
const TRIES: u32 = 6;

/// How long is waited before the second time; from then on, twice as long each time.
const WAIT: Duration = Duration::from_millis(20);

/// `pagefence migrate`.
#[derive(Args, Debug)]
#[command(after_help = "\
FILE is IMAGE:/path or MOUNTPOINT/path. The file's data stays where it is, and may be read and written
meanwhile; if writing keeps getting in the way, migrating is tried a few times. On a mount this is
what chattr +e and chattr -e do.")]
pub(crate) struct MigrateArguments {
    /// The kind of map
    #[arg(long, value_name = "FORMAT", default_value = "extents")]
    to: Format,
    /// The file
    file: OsString,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// An extent tree, as ext4 makes
    Extents,
    /// Direct and indirect blocks, as in ext2 and ext3
    Blocks,
}

impl From<Format> for MapFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Extents => Self::Extents,
            Format::Blocks => Self::Blocks,
        }
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &MigrateArguments) -> anyhow::Result<()> {
    let shown = Path::new(&arguments.file).display();
    let migrated = match Target::parse(&arguments.file)? {
        Target::InImage { image, path } => in_image(&image, &path, arguments.to),
        Target::Mounted(path) => on_mount(&path, arguments.to).map_err(anyhow::Error::from),
    };
    migrated.with_context(|| format!("{shown} can't be migrated"))
}

fn in_image(image: &Path, path: &Path, to: Format) -> anyhow::Result<()> {
    let volume = Target::open_image(image)?;
    let file = volume.open_file(path)?;
    again(|| file.migrate(to.into()).map_err(io::Error::from))?;
    drop(file);
    Ok(volume.close()?)
}

fn on_mount(path: &Path, to: Format) -> io::Result<()> {
    let file = File::open(path)?;
    again(|| {
        let before = rustix::fs::ioctl_getflags(&file)?;
        let mut flags = before;
        flags.set(EXTENTS, to == Format::Extents);
        if flags == before {
            return Ok(());
        }
        Ok(rustix::fs::ioctl_setflags(&file, flags)?)
    })
}

/// Tries until it is not said to try again, a few times.
fn again(mut try_once: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut wait = WAIT;
    for _ in 1..TRIES {
        match try_once() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(wait),
            done => return done,
        }
        wait *= 2;
    }
    try_once()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_for_a_moment_is_waited_for() {
        let tried = |succeeds_at: u32| {
            let mut tries = 0;
            let done = again(|| {
                tries += 1;
                match tries {
                    tries if tries < succeeds_at => Err(ErrorKind::WouldBlock.into()),
                    _ => Ok(()),
                }
            });
            (tries, done.is_ok())
        };
        assert_eq!(tried(1), (1, true));
        assert_eq!(tried(3), (3, true));
        assert_eq!(tried(TRIES), (TRIES, true));
        assert_eq!(tried(TRIES + 1), (TRIES, false));
    }

    #[test]
    fn other_failures_are_told_at_once() {
        let mut tries = 0;
        let told = again(|| {
            tries += 1;
            Err(ErrorKind::Unsupported.into())
        });
        assert_eq!(told.expect_err("it failed").kind(), ErrorKind::Unsupported);
        assert_eq!(tries, 1);
    }
}
