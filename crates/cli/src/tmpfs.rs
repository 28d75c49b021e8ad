//! `pagefence mount --tmpfs`: the file system in memory.

use anyhow::Context as _;
use pagefence_memfs::{MemFs, Options};

use crate::Opened;
use crate::mount_options::VolumeOptions;

/// Makes an empty one of `bytes`, whose root belongs to whoever mounts.
pub(crate) fn open(bytes: u64, options: &VolumeOptions) -> anyhow::Result<Opened<MemFs>> {
    let mut how = Options::new(bytes);
    how.inodes = options.inodes.unwrap_or(how.inodes);
    how.uid = rustix::process::geteuid().as_raw();
    how.gid = rustix::process::getegid().as_raw();
    how.no_access_times = options.no_access_times;
    let fs = MemFs::new(&how).with_context(|| format!("{bytes} bytes of memory can't be had"))?;
    Ok(Opened::without_maps(fs))
}
