//! The images that are measured, made by mke2fs and filled by the kernel.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::command::run;
use crate::mounts::{Access, KernelMount};
use crate::random::Random;
use crate::scratch::Scratch;

/// The file that fio reads.
pub(crate) const DATA_FILE: &str = "data";
const FILES_PER_DIRECTORY: u64 = 1000;

/// A sparse ext4 image of mke2fs's defaults.
pub(crate) fn huge(image: &Path, gib: u64) -> Result<()> {
    let file = File::create(image).with_context(|| format!("cannot make {}", image.display()))?;
    file.set_len(gib << 30)?;
    format(image, &[])
}

/// An empty file system of so many MiB in a new sparse file.
pub(crate) fn empty(image: &Path, mib: u64) -> Result<()> {
    make_sparse(image, mib)?;
    format(image, &[])
}

/// As [`empty`], with so many inodes.
pub(crate) fn empty_with_inodes(image: &Path, mib: u64, inodes: u64) -> Result<()> {
    make_sparse(image, mib)?;
    format(image, &["-N", &inodes.to_string()])
}

fn make_sparse(image: &Path, mib: u64) -> Result<()> {
    let file = File::create(image).with_context(|| format!("cannot make {}", image.display()))?;
    Ok(file.set_len(mib << 20)?)
}

/// Runs mke2fs with its defaults for ext4 and these arguments.
pub(crate) fn format(image: &Path, arguments: &[&str]) -> Result<()> {
    let mut all = vec!["-q", "-F", "-t", "ext4", "-b", "4096"];
    all.extend(["-E", "lazy_itable_init=1,lazy_journal_init=1"]);
    all.extend(arguments);
    let all = all.into_iter().map(AsRef::as_ref);
    run("mke2fs", all.chain([image.as_os_str()]))?;
    Ok(())
}

/// An image with `files` small files in directories of a thousand, and one file of `data_mib`.
pub(crate) fn filled(image: &Path, scratch: &Scratch, files: u64, data_mib: u64) -> Result<()> {
    let file = File::create(image).with_context(|| format!("cannot make {}", image.display()))?;
    file.set_len((data_mib << 20) + (files * 8192) + (512 << 20))?;
    drop(file);
    format(image, &["-N", &(files + files / 100 + 4096).to_string()])?;
    let directory = scratch.directory("fill-mnt")?;
    let mount = KernelMount::new(image, &directory, Access::ReadWrite, "rw")?;
    let filled = fill_files(&directory, files)
        .and_then(|()| write_data(&directory.join(DATA_FILE), data_mib));
    mount.unmount()?;
    filled
}

/// Small files in directories of a thousand.
pub(crate) fn fill_files(directory: &Path, files: u64) -> Result<()> {
    let mut inner = directory.to_owned();
    for index in 0..files {
        if index % FILES_PER_DIRECTORY == 0 {
            inner = directory.join(format!("directory-{}", index / FILES_PER_DIRECTORY));
            std::fs::create_dir(&inner)?;
        }
        std::fs::write(inner.join(format!("file-{index}")), b"a small file\n")?;
    }
    Ok(())
}

/// Writes a file of bytes that no layer can leave out or compress.
pub(crate) fn write_data(path: &Path, mib: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut random = Random::new(mib);
    let mut chunk = random.bytes(1 << 20);
    for index in 0..mib {
        chunk[..8].copy_from_slice(&index.to_le_bytes());
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    Ok(())
}
