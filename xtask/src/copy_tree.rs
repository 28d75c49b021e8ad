//! `cargo xtask copy-tree DIR`: a tree copied into fresh images, through pagefence's mount and
//! through the kernel's, and read back through the other one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::{Needs, require, run as run_program};
use crate::diff_walk::report::Report;
use crate::diff_walk::{Scope, check, tree};
use crate::mounts::{Access, KernelMount, ServedMount, Server, pagefence_binary};
use crate::scratch::Scratch;

/// Arguments of `copy-tree`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The tree: the root of an installed system, say.
    directory: PathBuf,
    /// The binary to try; built in the release profile unless given.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Types of file system, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "ext2,ext3,ext4")]
    types: Vec<String>,
    /// Block sizes, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1024,4096")]
    block_sizes: Vec<u32>,
    /// Size of the images, in MiB.
    #[arg(long, default_value_t = 8192)]
    image_mib: u64,
    /// Where the images go while it runs; `TMPDIR` unless given.
    #[arg(long)]
    scratch: Option<PathBuf>,
}

/// What is compared in a copy.
const COPY: Scope = Scope {
    free_counts: false,
    recovery_began: None,
    is_copy: true,
};

/// Runs the chore; `true` if every copy is equal and every image sound.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    require(&Needs {
        programs: &["mke2fs", "e2fsck", "losetup", "mount", "umount", "cp"],
        fuse: true,
    })?;
    let server = Server::Pagefence(pagefence_binary(arguments.binary.as_deref())?);
    let scratch = match &arguments.scratch {
        Some(directory) => Scratch::within(directory)?,
        None => Scratch::new()?,
    };
    let places = Places {
        server,
        source: arguments.directory.clone(),
        ours: scratch.directory("mnt-pagefence")?,
        kernels: scratch.directory("mnt-kernel")?,
    };
    let mut report = Report::default();
    for kind in &arguments.types {
        for block_size in &arguments.block_sizes {
            let image = scratch.join(&format!("{kind}-{block_size}.img"));
            for writer in ["pagefence", "kernel"] {
                make(&image, kind, *block_size, arguments.image_mib)?;
                report.start_image(&image);
                report.start_pass(&format!("written by {writer}"));
                let done = if writer == "pagefence" {
                    places.in_by_us(&image, &mut report)
                } else {
                    places.in_by_the_kernel(&image, &mut report)
                };
                if let Err(error) = done {
                    report.mismatch(Path::new("/"), &format!("{error:#}"));
                }
                if let Some(complaints) = check::complaints(&image)? {
                    report.mismatch(Path::new("/"), &format!("e2fsck: {complaints}"));
                }
                report.end_image();
                std::fs::remove_file(&image)?;
            }
        }
    }
    println!("{}", report.summary());
    Ok(report.mismatches() == 0)
}

fn make(image: &Path, kind: &str, block_size: u32, mib: u64) -> Result<()> {
    std::fs::File::create(image)?.set_len(mib << 20)?;
    let block_size = block_size.to_string();
    let arguments = ["-q", "-F", "-t", kind, "-b", &block_size, "-i", "8192"];
    let all = arguments.into_iter().map(AsRef::as_ref);
    run_program("mke2fs", all.chain([image.as_os_str()])).map(drop)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let everything = from.join(".");
    run_program(
        "cp",
        [
            "-a".as_ref(),
            "--sparse=auto".as_ref(),
            everything.as_os_str(),
            to.as_os_str(),
        ],
    )
    .map(drop)
    .context("copying")
}

/// Where things are.
struct Places {
    server: Server,
    source: PathBuf,
    ours: PathBuf,
    kernels: PathBuf,
}

impl Places {
    fn in_by_us(&self, image: &Path, report: &mut Report) -> Result<()> {
        let mount = ServedMount::new(&self.server, image, &self.ours, "rw")?;
        let copied = copy(&self.source, &self.ours);
        mount.unmount()?;
        copied?;
        if let Some(complaints) = check::complaints(image)? {
            report.mismatch(Path::new("/"), &format!("e2fsck: {complaints}"));
        }
        let mount = KernelMount::new(image, &self.kernels, Access::ReadOnly, "ro")?;
        let compared = entry_by_entry(&self.source, &self.kernels, report);
        mount.unmount()?;
        compared
    }

    fn in_by_the_kernel(&self, image: &Path, report: &mut Report) -> Result<()> {
        let mount = KernelMount::new(image, &self.kernels, Access::ReadWrite, "rw")?;
        let copied = copy(&self.source, &self.kernels);
        mount.unmount()?;
        copied?;
        let mount = ServedMount::new(&self.server, image, &self.ours, "rw")?;
        let compared = entry_by_entry(&self.source, &self.ours, report);
        mount.unmount()?;
        compared
    }
}

/// Compares the copy with what was copied, but for the root itself: the copy has a `lost+found`.
fn entry_by_entry(source: &Path, copy: &Path, report: &mut Report) -> Result<()> {
    let mut compared = 0;
    for entry in std::fs::read_dir(source)? {
        let name = entry?.file_name();
        if name == "lost+found" {
            continue;
        }
        compared += 1;
        tree::compare(&source.join(&name), &copy.join(&name), COPY, report)?;
    }
    ensure!(compared > 0, "{} is empty", source.display());
    Ok(())
}
