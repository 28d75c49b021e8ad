//! Whole transfers to and from a host file: short ones go on, interrupted ones start again.

use std::fs::File;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};

use rustix::io::{preadv, pwritev, retry_on_intr};

/// Buffers that the host takes in one call (IOV_MAX).
const BUFFERS_MAX: usize = 1024;

/// Fills `buffers` from `position` on.
pub(super) fn read_full(
    file: &File,
    mut position: u64,
    buffers: &mut [IoSliceMut<'_>],
) -> Result<()> {
    let mut rest = buffers;
    // Empty buffers at the front would make a read of nothing look like the end of the file.
    IoSliceMut::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let batch = rest.len().min(BUFFERS_MAX);
        let done = {
            let batch = &mut rest[..batch];
            retry_on_intr(|| preadv(file, batch, position))?
        };
        // The first buffer is never empty here.
        if done == 0 {
            // The file was cut since it was opened.
            return Err(Error::new(ErrorKind::UnexpectedEof, "the file ends here"));
        }
        position += done as u64;
        IoSliceMut::advance_slices(&mut rest, done);
    }
    Ok(())
}

/// Writes `buffers` from `position` on.
pub(super) fn write_full(file: &File, mut position: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
    for batch in buffers.chunks(BUFFERS_MAX) {
        let length: usize = batch.iter().map(|buffer| buffer.len()).sum();
        let mut done = write_once(file, position, batch)?;
        if done < length {
            let mut owned = batch.to_vec();
            let mut rest = owned.as_mut_slice();
            IoSlice::advance_slices(&mut rest, done);
            while !rest.is_empty() {
                let more = write_once(file, position + done as u64, rest)?;
                done += more;
                IoSlice::advance_slices(&mut rest, more);
            }
        }
        position += length as u64;
    }
    Ok(())
}

fn write_once(file: &File, position: u64, buffers: &[IoSlice<'_>]) -> Result<usize> {
    if buffers.iter().all(|buffer| buffer.is_empty()) {
        return Ok(0);
    }
    match retry_on_intr(|| pwritev(file, buffers, position))? {
        0 => Err(Error::new(
            ErrorKind::WriteZero,
            "the host wrote nothing and gave no reason",
        )),
        done => Ok(done),
    }
}
