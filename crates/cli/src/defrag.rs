//! `pagefence defrag`: moves files on a mount to where they lie in fewer pieces.
//!
//! A donor, which has no name, gets blocks for what the file has; if they are fewer pieces than the
//! file's, its data moves there. Others read and write the file meanwhile. What they write at the
//! same time to where there was a hole, or behind the end, stays where it came to lie.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::Args;
use pagefence_fuse_front::ioctl::extents;
use pagefence_fuse_front::move_extents::{donate, move_extents};
use pagefence_vfs::{ExtentInfo, ExtentState};
use rustix::fs::{FallocateFlags, IFlags};
use rustix::io::Errno;

use crate::target::Target;

/// The flag of a file that is mapped by extents (FS_EXTENT_FL).
const EXTENTS: IFlags = IFlags::from_bits_retain(0x8_0000);

/// `pagefence defrag`.
#[derive(Args, Debug)]
#[command(after_help = "\
FILE lies on a mount, in a directory that you may write to: there is room made for a while, as much as
the file takes. It may be read and written meanwhile; its contents and times stay as they are. What has
no space in one piece to move to stays where it is. Files need extents, as ext4 makes them (see
migrate). e4defrag does not work on mounts of FUSE.")]
pub(crate) struct DefragArguments {
    /// Tell in how many pieces each file lies, and move nothing
    #[arg(short, long)]
    check: bool,
    /// The files
    #[arg(value_name = "FILE", required = true)]
    files: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(arguments: &DefragArguments) -> anyhow::Result<()> {
    let mut failed = 0_u32;
    for file in &arguments.files {
        let shown = Path::new(file).display();
        let Target::Mounted(path) = Target::parse(file)? else {
            bail!("{shown} lies in an image: mount it, and name the file on the mount");
        };
        if arguments.check {
            let count = File::open(&path).and_then(|file| Ok(pieces(&data(&file)?)));
            let count = count.with_context(|| format!("{shown} can't be looked at"))?;
            println!("{shown}: {}", told(count));
            continue;
        }
        match defragment(&path) {
            Ok((before, after)) if before == after => {
                println!("{shown}: {}, as before", told(after));
            }
            Ok((before, after)) => println!("{shown}: {}, before {before}", told(after)),
            // The other files are none the worse for it.
            Err(error) => {
                eprintln!("{shown} can't be defragmented: {error:#}");
                failed += 1;
            }
        }
    }
    match failed {
        0 => Ok(()),
        1 => bail!("one file could not be defragmented"),
        _ => bail!("{failed} files could not be defragmented"),
    }
}

fn told(pieces: usize) -> String {
    match pieces {
        1 => "1 piece".to_owned(),
        pieces => format!("{pieces} pieces"),
    }
}

/// Moves a file; returns in how many pieces it was, and is.
fn defragment(path: &Path) -> anyhow::Result<(usize, usize)> {
    let file = File::options().read(true).write(true).open(path)?;
    if !file.metadata()?.is_file() {
        bail!("it is no regular file");
    }
    if !rustix::fs::ioctl_getflags(&file)?.contains(EXTENTS) {
        bail!("it has no extents: `pagefence migrate` gives it some");
    }
    // What has no blocks yet gets them.
    file.sync_all()?;
    let old = data(&file)?;
    let before = pieces(&old);
    if before < 2 {
        return Ok((before, before));
    }
    let directory = path.canonicalize()?;
    let directory = directory.parent().context("it has no directory")?;
    let donor = tempfile::tempfile_in(directory).context("there is no room made beside it")?;
    if donor.metadata()?.dev() != file.metadata()?.dev() {
        bail!("its directory is on another file system");
    }
    let ranges = ranges(&old);
    for range in &ranges {
        let length = range.end - range.start;
        match rustix::fs::fallocate(&donor, FallocateFlags::empty(), range.start, length) {
            Ok(()) => {}
            // There is nowhere to move to.
            Err(Errno::NOSPC) => return Ok((before, before)),
            Err(error) => return Err(error.into()),
        }
    }
    if pieces(&data(&donor)?) >= before {
        return Ok((before, before));
    }
    let named = donate(&donor)?;
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            match move_extents(&file, at, &named, at, range.end - at) {
                Ok(0) => bail!("nothing moves at {at}"),
                Ok(moved) => at += moved,
                // Somebody has cut it off, or there is less than a block left.
                Err(error) if is_past_end(&file, at, &error)? => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    file.sync_all()?;
    Ok((before, pieces(&data(&file)?)))
}

fn is_past_end(file: &File, at: u64, error: &io::Error) -> io::Result<bool> {
    let is_invalid = error.raw_os_error() == Some(Errno::INVAL.raw_os_error());
    Ok(is_invalid && at >= file.metadata()?.len())
}

/// The extents of a file, but for those that begin behind its end. What lies in the inode has no
/// blocks.
fn data(file: &File) -> io::Result<Vec<ExtentInfo>> {
    let size = file.metadata()?.len();
    let mut found = extents(file)?;
    found.retain(|extent| extent.logical < size && extent.state != ExtentState::Inline);
    Ok(found)
}

/// In how many pieces blocks lie on disk.
fn pieces(extents: &[ExtentInfo]) -> usize {
    let follows = |pair: &&[ExtentInfo]| match pair {
        [one, next] => one.physical.saturating_add(one.length) == next.physical,
        _ => false,
    };
    extents.len() - extents.windows(2).filter(follows).count()
}

/// The bytes of a file that have blocks, in as few ranges as there are.
fn ranges(extents: &[ExtentInfo]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for extent in extents {
        let end = extent.logical.saturating_add(extent.length);
        match ranges.last_mut() {
            Some(last) if last.end == extent.logical => last.end = end,
            _ => ranges.push(extent.logical..end),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(logical: u64, physical: u64, length: u64) -> ExtentInfo {
        ExtentInfo {
            logical,
            physical,
            length,
            state: ExtentState::Written,
        }
    }

    #[test]
    fn pieces_are_what_does_not_follow_on_disk() {
        let one = extent(0, 100, 8);
        assert_eq!(pieces(&[]), 0);
        assert_eq!(pieces(&[one]), 1);
        assert_eq!(pieces(&[one, extent(8, 108, 2)]), 1);
        assert_eq!(pieces(&[one, extent(20, 108, 2)]), 1, "a hole is nowhere");
        assert_eq!(pieces(&[one, extent(8, 98, 2), extent(10, 100, 4)]), 2);
    }

    #[test]
    fn ranges_join_what_follows_in_the_file() {
        let found = ranges(&[extent(0, 100, 8), extent(8, 50, 2), extent(12, 60, 4)]);
        assert_eq!(found, [0..10, 12..16]);
    }

    #[test]
    fn numbers_are_told_in_words() {
        assert_eq!(told(1), "1 piece");
        assert_eq!(told(0), "0 pieces");
    }
}
