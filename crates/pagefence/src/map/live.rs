//! Where maps of this process are, so that no file operation touches one with a lock held.
//!
//! A fault in a map takes locks of the file system that its file is in. A write whose source lies in a
//! map, or a read whose target does, would touch it below such locks, or in a system call, and wait for
//! itself for ever: so its bytes go through a buffer, with no lock held (RACES T21).
//!
//! Maps of files on mounts are listed as well. Their faults wait for another process, which may be stopped,
//! or wait for this one in turn (its image can be a file of a volume that is served here): not with a
//! lock of a volume held. And a device that is given their memory by a system call fails with EFAULT.

use std::ops::Range;

use pagefence_lock_order::primitives::RwLock;
use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_page_mmap::View;

/// The most that goes through a buffer at a time.
const STEP: usize = 1 << 20;

/// Where the maps of a process are.
#[derive(Debug)]
pub(crate) struct Maps {
    /// How many there are. Who has memory of a map got it after the map was counted, from a thread that
    /// knew: a relaxed load sees that.
    count: AtomicUsize,
    /// Their addresses, in no order.
    ranges: RwLock<Vec<Range<usize>>>,
}

/// A map that is on the list until this is dropped.
#[derive(Debug)]
pub(crate) struct Listed {
    range: Range<usize>,
}

static MAPS: Maps = Maps {
    count: AtomicUsize::new(0),
    ranges: RwLock::new(Vec::new()),
};

/// Puts a map on the list.
pub(crate) fn list(view: &View) -> Listed {
    let start = view.as_ptr().addr();
    let range = start..start + view.len();
    MAPS.ranges.write().push(range.clone());
    MAPS.count.fetch_add(1, Ordering::Relaxed);
    Listed { range }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut ranges = MAPS.ranges.write();
        if let Some(at) = ranges.iter().position(|range| *range == self.range) {
            ranges.swap_remove(at);
            MAPS.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Whether some of `buffer` lies in a map.
fn is_mapped(buffer: &[u8]) -> bool {
    if MAPS.count.load(Ordering::Relaxed) == 0 || buffer.is_empty() {
        return false;
    }
    let bytes = buffer.as_ptr_range();
    let ranges = MAPS.ranges.read();
    let overlaps =
        |range: &Range<usize>| bytes.start.addr() < range.end && range.start < bytes.end.addr();
    ranges.iter().any(overlaps)
}

/// A copy of `source` that lies in no map, unless it does not anyway.
pub(crate) fn outside_maps(source: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    if is_mapped(source) {
        source.to_vec().into()
    } else {
        source.into()
    }
}

/// Has `fill` fill `target`, from the front, through a buffer where it lies in a map: `fill` is given
/// where in `target` its buffer belongs, and says how many bytes there were. Fewer than there is room for
/// are the last.
///
/// # Errors
/// Those of `fill`, of whichever part.
pub(crate) fn fill_outside_maps<E>(
    target: &mut [u8],
    mut fill: impl FnMut(usize, &mut [u8]) -> Result<usize, E>,
) -> Result<usize, E> {
    if !is_mapped(target) {
        return fill(0, target);
    }
    let mut buffer = vec![0; STEP.min(target.len())];
    let mut done = 0;
    for part in target.chunks_mut(STEP) {
        let buffer = &mut buffer[..part.len()];
        let count = fill(done, buffer)?;
        part[..count].copy_from_slice(&buffer[..count]);
        done += count;
        if count < part.len() {
            break;
        }
    }
    Ok(done)
}
