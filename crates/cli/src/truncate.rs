//! `pagefence truncate`: gives a file another size, in an image or on a mount.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use clap::Args;
use pagefence::OpenOptions;

use crate::size::parse_size;
use crate::target::Target;

/// `pagefence truncate`.
#[derive(Args, Debug)]
#[command(after_help = "FILE is IMAGE:/path or MOUNTPOINT/path.")]
pub(crate) struct TruncateArguments {
    /// The size to be: bytes, or a number with K, M, G or T
    #[arg(short, long, value_parser = parse_size)]
    size: u64,
    /// The file; what it holds past the size is lost
    file: OsString,
}

impl TruncateArguments {
    fn in_image(&self, image: &Path, path: &Path) -> anyhow::Result<()> {
        let volume = Target::open_image(image)?;
        let file = OpenOptions::new().write(true).open(&volume, path)?;
        file.set_len(self.size)?;
        file.sync_all()?;
        drop(file);
        Ok(volume.close()?)
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &TruncateArguments) -> anyhow::Result<()> {
    let shown = Path::new(&arguments.file).display();
    match Target::parse(&arguments.file)? {
        Target::InImage { image, path } => arguments.in_image(&image, &path),
        Target::Mounted(path) => {
            let opened = File::options().write(true).open(&path);
            let cut = opened.and_then(|file| file.set_len(arguments.size));
            cut.map_err(anyhow::Error::from)
        }
    }
    .with_context(|| format!("the size of {shown} can't be changed"))
}
