//! O_DIRECT: what the host asks of addresses, positions and lengths, and how requests that don't
//! comply are bounced.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Result};

use pagefence_lock_order::primitives::Mutex;
use rustix::fs::{AtFlags, OFlags, StatxFlags};

use super::transfer;
use crate::aligned::AlignedBytes;

/// Bytes bounced at a time, at most.
const BOUNCE_BYTES_MAX: usize = 1 << 20;
/// Alignments tried where the host does not tell.
const TRIALS: [usize; 4] = [512, 1024, 2048, 4096];
/// An alignment that every host takes for addresses.
const MEMORY_FALLBACK: usize = 4096;

/// What the host asks for, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Addresses of buffers.
    pub(super) memory: usize,
    /// Positions and lengths.
    pub(super) offset: usize,
}

impl Alignment {
    /// One number that satisfies both.
    pub(super) fn capability(self) -> u32 {
        self.memory.max(self.offset) as u32
    }

    fn position_fits(self, position: u64, length: usize) -> bool {
        position.is_multiple_of(self.offset as u64) && length.is_multiple_of(self.offset)
    }

    fn memory_fits(self, bytes: &[u8]) -> bool {
        bytes.as_ptr().addr().is_multiple_of(self.memory) && bytes.len().is_multiple_of(self.offset)
    }
}

/// Turns O_DIRECT on for `file` of `size` bytes, if the host can and no request could touch a
/// part of an alignment unit that the file ends in.
pub(super) fn enable(file: &File, size: u64) -> Option<Alignment> {
    let flags = rustix::fs::fcntl_getfl(file).ok()?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).ok()?;
    let alignment = ask(file)
        .or_else(|| try_out(file, size))
        .filter(|alignment| size.is_multiple_of(alignment.offset as u64));
    if alignment.is_none() {
        // Leaving the flag on would fail requests; there is nothing to do if the host refuses.
        rustix::fs::fcntl_setfl(file, flags).ok()?;
    }
    alignment
}

/// What statx says (Linux 6.1 and later, some file systems).
fn ask(file: &File) -> Option<Alignment> {
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    let memory = usize::try_from(stat.stx_dio_mem_align).ok()?;
    let offset = usize::try_from(stat.stx_dio_offset_align).ok()?;
    // Zero means that direct I/O is not supported on this file.
    (memory.is_power_of_two() && offset.is_power_of_two()).then_some(Alignment { memory, offset })
}

/// The smallest length that the host reads.
fn try_out(file: &File, size: u64) -> Option<Alignment> {
    TRIALS
        .into_iter()
        .filter(|offset| *offset as u64 <= size)
        .find(|offset| {
            let mut bytes = AlignedBytes::zeroed(*offset, MEMORY_FALLBACK);
            transfer::read_full(file, 0, &mut [IoSliceMut::new(&mut bytes)]).is_ok()
        })
        .map(|offset| Alignment {
            memory: MEMORY_FALLBACK,
            offset,
        })
}

/// Fills `buffers` from `position` on.
pub(super) fn read(
    file: &File,
    alignment: Alignment,
    position: u64,
    buffers: &mut [IoSliceMut<'_>],
) -> Result<()> {
    let length: usize = buffers.iter().map(|buffer| buffer.len()).sum();
    if alignment.position_fits(position, length)
        && buffers.iter().all(|buffer| alignment.memory_fits(buffer))
    {
        return transfer::read_full(file, position, buffers);
    }
    let mut at = 0;
    while at < length {
        let piece = Piece::new(alignment, position + at as u64, length - at);
        let mut bounce = AlignedBytes::zeroed(piece.outer_length, alignment.memory);
        transfer::read_full(
            file,
            piece.outer_position,
            &mut [IoSliceMut::new(&mut bounce)],
        )?;
        scatter(
            &bounce[piece.skip..piece.skip + piece.inner_length],
            buffers,
            at,
        );
        at += piece.inner_length;
    }
    Ok(())
}

/// Writes `buffers` from `position` on. Takes `edges` while it changes a part of a unit.
pub(super) fn write(
    file: &File,
    alignment: Alignment,
    edges: &Mutex<()>,
    position: u64,
    buffers: &[IoSlice<'_>],
) -> Result<()> {
    let length: usize = buffers.iter().map(|buffer| buffer.len()).sum();
    let aligned = alignment.position_fits(position, length);
    if aligned && buffers.iter().all(|buffer| alignment.memory_fits(buffer)) {
        return transfer::write_full(file, position, buffers);
    }
    // Whole units need no lock: a writer that shares one with this request overlaps it.
    let _edges = (!aligned).then(|| edges.lock());
    let mut at = 0;
    while at < length {
        let piece = Piece::new(alignment, position + at as u64, length - at);
        let mut bounce = AlignedBytes::zeroed(piece.outer_length, alignment.memory);
        let unit = alignment.offset;
        let last = piece.outer_length - unit;
        let tail_is_partial = piece.skip + piece.inner_length < piece.outer_length;
        if piece.skip > 0 || (last == 0 && tail_is_partial) {
            let mut first = [IoSliceMut::new(&mut bounce[..unit])];
            transfer::read_full(file, piece.outer_position, &mut first)?;
        }
        if last > 0 && tail_is_partial {
            let mut tail = AlignedBytes::zeroed(unit, alignment.memory);
            let tail_position = piece.outer_position + last as u64;
            transfer::read_full(file, tail_position, &mut [IoSliceMut::new(&mut tail)])?;
            bounce[last..].copy_from_slice(&tail);
        }
        gather(
            buffers,
            at,
            &mut bounce[piece.skip..piece.skip + piece.inner_length],
        );
        transfer::write_full(file, piece.outer_position, &[IoSlice::new(&bounce)])?;
        at += piece.inner_length;
    }
    Ok(())
}

/// A part of a request and the whole units around it.
#[derive(Debug)]
struct Piece {
    outer_position: u64,
    outer_length: usize,
    /// Bytes of the first unit before the part.
    skip: usize,
    inner_length: usize,
}

impl Piece {
    fn new(alignment: Alignment, position: u64, rest: usize) -> Self {
        let unit = alignment.offset;
        let skip = (position % unit as u64) as usize;
        let outer_length = (skip + rest)
            .next_multiple_of(unit)
            .min(BOUNCE_BYTES_MAX.max(unit));
        Self {
            outer_position: position - skip as u64,
            outer_length,
            skip,
            inner_length: rest.min(outer_length - skip),
        }
    }
}

/// Copies `source` into the bytes of `buffers` from `at` on.
fn scatter(mut source: &[u8], buffers: &mut [IoSliceMut<'_>], mut at: usize) {
    for buffer in buffers {
        if at >= buffer.len() {
            at -= buffer.len();
            continue;
        }
        let count = source.len().min(buffer.len() - at);
        buffer[at..at + count].copy_from_slice(&source[..count]);
        source = &source[count..];
        at = 0;
        if source.is_empty() {
            break;
        }
    }
}

/// Fills `target` with the bytes of `buffers` from `at` on.
fn gather(buffers: &[IoSlice<'_>], mut at: usize, mut target: &mut [u8]) {
    for buffer in buffers {
        if at >= buffer.len() {
            at -= buffer.len();
            continue;
        }
        let count = target.len().min(buffer.len() - at);
        let (now, later) = target.split_at_mut(count);
        now.copy_from_slice(&buffer[at..at + count]);
        target = later;
        at = 0;
        if target.is_empty() {
            break;
        }
    }
}
