//! `pagefence fallocate`: gives a range of a file its space, or takes it away, in an image or on a
//! mount.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use clap::Args;
use pagefence::OpenOptions;
use pagefence_fuse_front::ioctl;
use rustix::fs::FallocateFlags;

use crate::size::parse_size;
use crate::target::Target;

/// `pagefence fallocate`.
#[derive(Args, Debug)]
#[command(after_help = "\
FILE is IMAGE:/path or MOUNTPOINT/path. The options are those of fallocate(1). Unlike with that one,
ranges can be collapsed and inserted on a mount (without the option writeback), and in files of ext2
and ext3; what programs keep in memory maps of the file meanwhile is not moved along.")]
pub(crate) struct FallocateArguments {
    /// Make the range a hole; implies --keep-size
    #[arg(short = 'p', long, group = "mode")]
    punch_hole: bool,
    /// Have the range read as zeros, of blocks that are kept
    #[arg(short = 'z', long, group = "mode")]
    zero_range: bool,
    /// Take the range out: what follows moves down
    #[arg(short = 'c', long, group = "mode", conflicts_with = "keep_size")]
    collapse_range: bool,
    /// Put a hole in: what follows moves up
    #[arg(short = 'i', long, group = "mode", conflicts_with = "keep_size")]
    insert_range: bool,
    /// Leave the size as it is
    #[arg(short = 'n', long)]
    keep_size: bool,
    /// Where the range begins: bytes, or a number with K, M, G or T
    #[arg(short, long, value_name = "OFFSET", default_value = "0", value_parser = parse_size)]
    offset: u64,
    /// How long it is
    #[arg(short, long, value_name = "LENGTH", value_parser = parse_size)]
    length: u64,
    /// The file
    file: OsString,
}

impl FallocateArguments {
    fn flags(&self) -> FallocateFlags {
        let mut flags = FallocateFlags::empty();
        flags.set(FallocateFlags::PUNCH_HOLE, self.punch_hole);
        flags.set(FallocateFlags::ZERO_RANGE, self.zero_range);
        flags.set(FallocateFlags::COLLAPSE_RANGE, self.collapse_range);
        flags.set(FallocateFlags::INSERT_RANGE, self.insert_range);
        flags.set(FallocateFlags::KEEP_SIZE, self.keep_size || self.punch_hole);
        flags
    }

    fn in_image(&self, image: &Path, path: &Path) -> anyhow::Result<()> {
        let volume = Target::open_image(image)?;
        let file = OpenOptions::new().write(true).open(&volume, path)?;
        let (offset, length) = (self.offset, self.length);
        match () {
            () if self.punch_hole => file.punch_hole(offset, length),
            () if self.zero_range && self.keep_size => file.zero_range_keeping_size(offset, length),
            () if self.zero_range => file.zero_range(offset, length),
            () if self.collapse_range => file.collapse_range(offset, length),
            () if self.insert_range => file.insert_range(offset, length),
            () if self.keep_size => file.allocate_keeping_size(offset, length),
            () => file.allocate(offset, length),
        }?;
        file.sync_all()?;
        drop(file);
        Ok(volume.close()?)
    }

    fn on_mount(&self, path: &Path) -> std::io::Result<()> {
        let open = || File::options().read(true).write(true).open(path);
        let file = open()?;
        let flags = self.flags();
        if !(self.collapse_range || self.insert_range) {
            return Ok(rustix::fs::fallocate(
                &file,
                flags,
                self.offset,
                self.length,
            )?);
        }
        // What was stored through maps goes to where it belongs before that moves; and who reads
        // after this has ended finds no page of before.
        file.sync_all()?;
        ioctl::fallocate(&file, flags.bits(), self.offset, self.length)?;
        open().map(drop)
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &FallocateArguments) -> anyhow::Result<()> {
    let shown = Path::new(&arguments.file).display();
    match Target::parse(&arguments.file)? {
        Target::InImage { image, path } => arguments.in_image(&image, &path),
        Target::Mounted(path) => arguments.on_mount(&path).map_err(anyhow::Error::from),
    }
    .with_context(|| format!("the range of {shown} can't be changed"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        arguments: FallocateArguments,
    }

    fn flags(line: &str) -> Option<u32> {
        let words = std::iter::once("fallocate").chain(line.split_whitespace());
        let parsed = Only::try_parse_from(words).ok()?;
        Some(parsed.arguments.flags().bits())
    }

    #[test]
    fn options_are_those_of_fallocate() {
        assert_eq!(flags("-l 1M f"), Some(0));
        assert_eq!(flags("-n -l 1M f"), Some(1));
        assert_eq!(flags("--punch-hole -o 4K -l 1M f"), Some(3));
        assert_eq!(flags("-p --keep-size -l 1M f"), Some(3));
        assert_eq!(flags("-z -l 1M f"), Some(0x10));
        assert_eq!(flags("--zero-range --keep-size -l 1M f"), Some(0x11));
        assert_eq!(flags("-c -l 1M f"), Some(8));
        assert_eq!(flags("--insert-range -l 1M f"), Some(0x20));
        for wrong in ["f", "-l 1 -p -z f", "-l 1 -c -n f", "-l 1 -i -c f", "-l 1"] {
            assert_eq!(flags(wrong), None, "{wrong}");
        }
    }
}
