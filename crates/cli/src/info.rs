//! `pagefence info`: tells what an image is.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;

use crate::confinement::Confinement;
use crate::size::parse_size;

/// `pagefence info`.
#[derive(Args, Debug)]
pub(crate) struct InfoArguments {
    /// The image, or a block device; nothing in it changes
    image: PathBuf,
    /// Where the file system starts in the image: bytes, or a number with K, M, G or T
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "0")]
    offset: u64,
}

/// Prints a line for each fact.
pub(crate) fn run(arguments: &InfoArguments) -> anyhow::Result<()> {
    let look = pagefence::Look::at(&arguments.image, arguments.offset)?;
    Confinement::of_command().enter()?;
    let info = look.info()?;
    io::stdout().write_all(info.to_string().as_bytes())?;
    Ok(())
}
