//! Bringing a file system that was not closed properly to a sound state.

use pagefence_block_io::Device;
use pagefence_ext4_format::superblock::Superblock;
use pagefence_lock_order::primitives::Arc;

use crate::mount::{MountError, MountOptions};

/// What recovery leaves to open.
pub(crate) struct Recovered {
    /// The device, or a view of it with the journal applied.
    pub(crate) device: Arc<dyn Device>,
    /// The superblock as it is now.
    pub(crate) superblock: Superblock,
}

pub(crate) fn recover(
    device: Arc<dyn Device>,
    superblock: Superblock,
    _write: bool,
    _options: &MountOptions,
) -> Result<Recovered, MountError> {
    Ok(Recovered { device, superblock })
}
