//! What recovery reads from the superblock and writes into it. The superblock is one unit: a
//! crash leaves it as it was or as it became (`docs/CRASH.md`).

use pagefence_block_io::Device;
use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::superblock::{
    ErrorRecord, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, State, Superblock,
};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Error, Result};

use crate::clock;
use crate::instance::Instance;
use crate::mount::MountError;
use crate::recovery::{Recovered, of_map};

/// Memory for group descriptors while they are summed, in bytes.
const SUM_CACHE_BYTES: u64 = 1 << 20;

/// Linux's code of "Filesystem is corrupted" in the record of an error.
const ERROR_CODE_CORRUPTED: u8 = 13;

/// The superblock as it is on `device` (or on a view of it).
///
/// # Errors
/// The device failed, or what the journal brought makes no sense.
pub(super) fn read(device: &dyn Device) -> std::result::Result<Superblock, MountError> {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    device.read(SUPERBLOCK_OFFSET, &mut bytes)?;
    Superblock::parse(&bytes, Some(device.size())).map_err(|what| MountError::Superblock {
        what,
        advice: "the journal holds it like this; run e2fsck on a copy of the image".to_owned(),
    })
}

/// Writes the superblock and makes it durable.
pub(crate) fn write(
    device: &dyn Device,
    superblock: &mut Superblock,
) -> std::result::Result<(), MountError> {
    superblock.set_write_time(clock::seconds().into());
    superblock.update_checksum();
    device.write(SUPERBLOCK_OFFSET, superblock.as_bytes())?;
    device.flush()?;
    Ok(())
}

/// Keeps what `before`, the superblock as it was read before the replay, says of errors: Linux
/// writes that past the journal, so a replay would bring back an older word.
pub(super) fn keep_errors(before: &Superblock, after: &mut Superblock) -> bool {
    let newer = before.raw().s_error_count.get() > after.raw().s_error_count.get();
    if newer {
        let (from, to) = (before.raw(), after.raw_mut());
        to.s_error_count = from.s_error_count;
        to.s_first_error_time = from.s_first_error_time;
        to.s_first_error_time_hi = from.s_first_error_time_hi;
        to.s_first_error_ino = from.s_first_error_ino;
        to.s_first_error_block = from.s_first_error_block;
        to.s_first_error_func = from.s_first_error_func;
        to.s_first_error_line = from.s_first_error_line;
        to.s_first_error_errcode = from.s_first_error_errcode;
        to.s_last_error_time = from.s_last_error_time;
        to.s_last_error_time_hi = from.s_last_error_time_hi;
        to.s_last_error_ino = from.s_last_error_ino;
        to.s_last_error_block = from.s_last_error_block;
        to.s_last_error_func = from.s_last_error_func;
        to.s_last_error_line = from.s_last_error_line;
        to.s_last_error_errcode = from.s_last_error_errcode;
    }
    let marked = before.state().contains(State::ERROR) && !after.state().contains(State::ERROR);
    if marked {
        after.set_state(after.state() | State::ERROR);
    }
    newer || marked
}

/// Marks the file system as having errors, which `function` of recovery met at an inode (or 0).
pub(crate) fn mark_error(superblock: &mut Superblock, function: &str, inode: u32) {
    superblock.set_state(superblock.state() | State::ERROR);
    superblock.record_error(&ErrorRecord {
        time_seconds: clock::seconds().into(),
        ino: inode,
        block: 0,
        function: function.to_owned(),
        line: 0,
        code: ERROR_CODE_CORRUPTED,
    });
}

/// The last step of a recovery on disk: right free counts, and no more asking for recovery.
pub(super) fn finish(recovered: &mut Recovered) -> std::result::Result<(), MountError> {
    let superblock = &mut recovered.superblock;
    let instance = Instance::new(
        superblock.clone(),
        Arc::clone(&recovered.device),
        SUM_CACHE_BYTES,
    );
    let free = match instance.map(|instance| free_counts(&instance)) {
        Some(Ok(free)) => free,
        Some(Err(error @ Error::Io(_))) => return Err(of_map(error)),
        // The counts are a hint, so damaged descriptors keep nobody from opening.
        Some(Err(_)) | None => None,
    };
    if let Some((blocks, inodes)) = free {
        superblock.set_free_blocks_count(blocks);
        superblock.set_free_inodes_count(inodes);
    }
    let mut features = superblock.features();
    features.incompat.remove(Incompat::RECOVER);
    superblock.set_features(features);
    write(&*recovered.device, superblock)
}

/// Free blocks and inodes of all groups, as their descriptors say; nothing if they make no sum.
fn free_counts(instance: &Instance) -> Result<Option<(u64, u32)>> {
    let superblock = &instance.superblock;
    let mut clusters = 0_u64;
    let mut inodes = Some(0_u32);
    for group in superblock.groups() {
        let desc = instance.group_desc(group)?;
        clusters = clusters.saturating_add(u64::from(desc.free_clusters()));
        inodes = inodes.and_then(|inodes| inodes.checked_add(desc.free_inodes()));
    }
    let blocks = clusters.saturating_mul(u64::from(superblock.blocks_per_cluster()));
    Ok(inodes
        .filter(|inodes| {
            blocks <= superblock.blocks_count() && *inodes <= superblock.inodes_count()
        })
        .map(|inodes| (blocks, inodes)))
}
