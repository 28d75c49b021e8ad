//! `cargo xtask prove-memory`: the server's memory stays within `cache=` and 64 MiB, whatever is
//! read: sparse files, written ones, and very many inodes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::bench::{fill_files, format, write_data};
use crate::command::{Needs, require, run as run_program};
use crate::mounts::{Access, KernelMount, ServedMount, Server, drop_caches, pagefence_binary};
use crate::scratch::Scratch;

/// What the server may use beyond its cache, in KiB.
const ALLOWANCE_KIB: u64 = 64 * 1024;

/// Arguments of `prove-memory`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server's cache, in MiB.
    #[arg(long, default_value_t = 256)]
    cache_mib: u64,
    /// Sparse bytes to read, in GiB.
    #[arg(long, default_value_t = 100)]
    sparse_gib: u64,
    /// Written bytes to read, in GiB; the image takes as much room.
    #[arg(long, default_value_t = 20)]
    written_gib: u64,
    /// Inodes to walk over.
    #[arg(long, default_value_t = 1_000_000)]
    inodes: u64,
    /// Where the image goes while it runs; `TMPDIR` unless given.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// The binary to try; built in the release profile unless given.
    #[arg(long)]
    binary: Option<PathBuf>,
}

impl Arguments {
    /// Several times what the cache may take, and no more.
    pub(crate) fn short() -> Self {
        Self {
            cache_mib: 64,
            sparse_gib: 4,
            written_gib: 1,
            inodes: 50_000,
            directory: None,
            binary: None,
        }
    }
}

/// Runs the chore; `true` if the server stayed within its budget all the time.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    require(&Needs {
        programs: &["mke2fs", "losetup", "mount", "umount", "find"],
        fuse: true,
    })?;
    let server = Server::Pagefence(pagefence_binary(arguments.binary.as_deref())?);
    let scratch = match &arguments.directory {
        Some(directory) => Scratch::within(directory)?,
        None => Scratch::new()?,
    };
    let image = scratch.join("memory.img");
    let directory = scratch.directory("mnt")?;
    prepare(&image, &directory, arguments)?;
    drop_caches()?;

    let options = format!("ro,cache={}M", arguments.cache_mib);
    let mount = ServedMount::new(&server, &image, &directory, &options)?;
    let process = mount.process();
    let budget_kib = arguments.cache_mib * 1024 + ALLOWANCE_KIB;
    let mut is_within = true;
    let steps: [(&str, &dyn Fn() -> Result<()>); 3] = [
        ("sparse data", &|| read_to_end(&directory.join("sparse"))),
        ("written data", &|| read_to_end(&directory.join("written"))),
        ("inodes", &|| walk(&directory)),
    ];
    for (what, step) in steps {
        let start = Instant::now();
        let stepped = step().with_context(|| what.to_owned());
        let peak_kib = peak_kib(process)?;
        stepped?;
        println!(
            "after {what} ({:.1} s): peak {peak_kib} KiB of {budget_kib} KiB",
            start.elapsed().as_secs_f64()
        );
        is_within &= peak_kib <= budget_kib;
    }
    mount.unmount()?;
    println!(
        "prove-memory: sparse {} GiB, written {} GiB, inodes {}: {}",
        arguments.sparse_gib,
        arguments.written_gib,
        arguments.inodes,
        if is_within {
            "within budget"
        } else {
            "OVER BUDGET"
        }
    );
    Ok(is_within)
}

fn prepare(image: &Path, directory: &Path, arguments: &Arguments) -> Result<()> {
    let file = File::create(image).with_context(|| format!("cannot make {}", image.display()))?;
    // Each inode takes 256 bytes of table and a block of data.
    let size = (arguments.written_gib << 30) + arguments.inodes * 5120 + (2 << 30);
    file.set_len(size)?;
    drop(file);
    let inodes = arguments.inodes + arguments.inodes / 1000 + 4096;
    format(image, &["-N", &inodes.to_string()])?;
    let mount = KernelMount::new(image, directory, Access::ReadWrite, "rw")?;
    let filled = (|| {
        File::create(directory.join("sparse"))?.set_len(arguments.sparse_gib << 30)?;
        write_data(&directory.join("written"), arguments.written_gib << 10)?;
        fill_files(directory, arguments.inodes)
    })();
    mount.unmount()?;
    filled
}

fn read_to_end(path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    let mut chunk = vec![0; 1 << 20];
    while file.read(&mut chunk)? > 0 {}
    Ok(())
}

/// Every inode is looked up and its attributes read.
fn walk(directory: &Path) -> Result<()> {
    run_program(
        "find",
        [directory.as_os_str(), "-size".as_ref(), "+1000G".as_ref()],
    )?;
    Ok(())
}

/// The most memory that a process held at once.
fn peak_kib(process: u32) -> Result<u64> {
    let status =
        std::fs::read_to_string(format!("/proc/{process}/status")).context("the server is gone")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
        .context("/proc has no VmHWM")
}
