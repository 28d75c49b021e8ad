//! Copies and fingerprints of sparse files that read only what is there.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Zeros are left out in units of this many bytes.
const UNIT_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 1 << 20;

/// The ranges of `file` that lseek calls data, in order, up to `length`.
pub(crate) fn data_ranges(file: &File, length: u64) -> Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut position = 0;
    while position < length {
        let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error).context("lseek(SEEK_DATA)"),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).context("lseek(SEEK_HOLE)")?;
        anyhow::ensure!(
            end > start && start >= position,
            "lseek went backwards: data at {start}, hole at {end}, asked from {position}"
        );
        ranges.push((start, end.min(length)));
        position = end;
    }
    Ok(ranges)
}

/// Calls `each` with the offset and the bytes of every unit of `file` that is not all zero.
fn for_each_unit(file: &File, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<u64> {
    let length = file.metadata()?.len();
    let mut chunk = vec![0; CHUNK_BYTES];
    for (start, end) in data_ranges(file, length)? {
        // Units keep their places whatever the file's holes are.
        let mut offset = start - start % UNIT_BYTES as u64;
        while offset < end {
            let wanted = CHUNK_BYTES.min(usize::try_from(length - offset)?);
            file.read_exact_at(&mut chunk[..wanted], offset)?;
            for (index, unit) in chunk[..wanted].chunks(UNIT_BYTES).enumerate() {
                let unit_offset = offset + (index * UNIT_BYTES) as u64;
                if unit_offset < end && unit.iter().any(|&byte| byte != 0) {
                    each(unit_offset, unit)?;
                }
            }
            offset += wanted as u64;
        }
    }
    Ok(length)
}

/// Copies a file; runs of zeros become holes. An existing target is replaced.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let target = File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    let length = for_each_unit(&source, |offset, unit| {
        target
            .write_all_at(unit, offset)
            .context("cannot write the copy")
    })
    .with_context(|| format!("cannot copy {}", from.display()))?;
    target.set_len(length)?;
    Ok(())
}

/// What tells two versions of a file apart: its length and a hash of its bytes. Where its holes
/// are makes no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    length: u64,
    hash: u64,
}

/// Reads the whole file.
pub(crate) fn fingerprint(path: &Path) -> Result<Fingerprint> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = DefaultHasher::new();
    let length = for_each_unit(&file, |offset, unit| {
        hasher.write_u64(offset);
        hasher.write(unit);
        Ok(())
    })
    .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Fingerprint {
        length,
        hash: hasher.finish(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::{copy, fingerprint};
    use crate::scratch::Scratch;

    #[test]
    fn a_copy_has_the_same_bytes_and_stays_sparse() {
        let scratch = Scratch::new().unwrap();
        let (from, to) = (scratch.join("from"), scratch.join("to"));
        let file = File::create(&from).unwrap();
        file.set_len((64 << 20) + 13).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        file.write_all_at(b"across", (1 << 20) - 3).unwrap();
        file.write_all_at(b"end", (64 << 20) + 10).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fingerprint(&from).unwrap(), fingerprint(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        let mut tail = [0; 3];
        File::open(&to)
            .unwrap()
            .read_exact_at(&mut tail, (64 << 20) + 10)
            .unwrap();
        assert_eq!(&tail, b"end");
    }

    #[test]
    fn a_changed_byte_and_a_changed_length_show_but_a_filled_hole_does_not() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.join("file");
        let file = File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let empty = fingerprint(&path).unwrap();
        file.write_all_at(&[0; 8192], 4096).unwrap();
        assert_eq!(fingerprint(&path).unwrap(), empty);
        file.write_all_at(&[1], 70_000).unwrap();
        let changed = fingerprint(&path).unwrap();
        assert_ne!(changed, empty);
        file.write_all_at(&[0], 70_000).unwrap();
        file.write_all_at(&[1], 80_000).unwrap();
        assert_ne!(fingerprint(&path).unwrap(), changed);
        file.write_all_at(&[0], 80_000).unwrap();
        file.set_len((1 << 20) + 1).unwrap();
        assert_ne!(fingerprint(&path).unwrap(), empty);
    }
}
