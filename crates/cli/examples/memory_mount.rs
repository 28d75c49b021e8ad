//! The whole command on a file system in memory: what the command's tests run, and the shortest
//! look at how a file system of one's own is mounted.
//!
//! An image is a file that says `sample`; one that says `abort` ends the server while it opens it.

#[path = "../../fuse-front/tests/mounted/memory_fs.rs"]
#[expect(dead_code, reason = "the tests of fuse-front use the rest of it")]
mod memory_fs;

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use memory_fs::{MemoryFs, ROOT};
use pagefence_cli::{Confinement, Opened, VolumeOptions};

fn main() -> ExitCode {
    pagefence_cli::run(std::env::args_os().collect(), open)
}

fn open(
    options: &VolumeOptions,
    confinement: &mut Confinement,
) -> anyhow::Result<Opened<MemoryFs>> {
    let image = options.image.display();
    let content = std::fs::read(&options.image)
        .with_context(|| format!("the image {image} can't be read"))?;
    confinement.enter()?;
    let from = usize::try_from(options.offset).unwrap_or(usize::MAX);
    match content.get(from..).map(<[u8]>::trim_ascii) {
        Some(b"sample") => Ok(Opened::without_maps(sample())),
        Some(b"abort") => std::process::abort(),
        _ => bail!("{image} is no file system of this example: it should say `sample`"),
    }
}

fn sample() -> MemoryFs {
    let mut fs = MemoryFs::new();
    fs.bytes(ROOT, "hello", b"hello, world\n");
    let secret = fs.bytes(ROOT, "secret", b"for root\n");
    fs.attr_mut(secret).permissions = 0o600;
    let directory = fs.directory(ROOT, "directory");
    fs.pattern(directory, "pattern", 3 << 20);
    fs.panicking(ROOT, "defect");
    fs
}
