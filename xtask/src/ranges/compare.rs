//! What has to be equal: bytes, sizes, and where SEEK_DATA and SEEK_HOLE find data.

use std::path::Path;

use anyhow::Result;
use pagefence::{ExtentState, Options, Volume};

use super::operation::FILES;
use super::side::Side;
use crate::sparse::data_ranges;

/// The first difference between two files' sizes and bytes, in words.
pub(crate) fn contents(one: &Side, other: &Side) -> Result<Option<String>> {
    for file in 0..FILES {
        let (ours, kernels) = (one.contents(file)?, other.contents(file)?);
        if let Some(difference) = first_difference(&ours, &kernels) {
            return Ok(Some(format!("file {file}: {difference}")));
        }
    }
    Ok(None)
}

/// The first difference between what is ours and what is the kernel's.
pub(crate) fn first_difference(ours: &[u8], kernels: &[u8]) -> Option<String> {
    let same = ours.iter().zip(kernels).take_while(|(a, b)| a == b).count();
    if same < ours.len().min(kernels.len()) {
        let end = (same + 16).min(ours.len()).min(kernels.len());
        return Some(format!(
            "byte {same} is the first that differs: {:02x?} here, {:02x?} there",
            &ours[same..end],
            &kernels[same..end]
        ));
    }
    let (here, there) = (ours.len(), kernels.len());
    (here != there).then(|| format!("{here} bytes here, {there} there"))
}

/// Where lseek finds data in each file.
pub(crate) type Maps = Vec<Vec<(u64, u64)>>;

/// Where lseek finds data now.
pub(crate) fn maps(side: &Side) -> Result<Maps> {
    (0..FILES)
        .map(|file| data_ranges(side.file(file), side.size(file)?))
        .collect()
}

/// The first file for which two maps are not the same, in words.
pub(crate) fn different_map(ours: &Maps, kernels: &Maps) -> Option<String> {
    let file = (0..FILES).find(|&file| ours[file] != kernels[file])?;
    let (ours, kernels) = (&ours[file], &kernels[file]);
    let same = ours.iter().zip(kernels).take_while(|(a, b)| a == b).count();
    Some(format!(
        "file {file}: data range {same} of {} is {:?} here; of {}, {:?} there",
        ours.len(),
        ours.get(same),
        kernels.len(),
        kernels.get(same)
    ))
}

/// What a block of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Hole,
    Unwritten,
    /// Written.
    Zeros,
    /// Written, with a byte that is not 0.
    Data,
}

/// The states of all blocks of each file of an image, up to the last one that has space.
fn states(image: &Path, block_size: u64) -> Result<Vec<Vec<State>>> {
    let volume = Volume::open(image, Options::new())?;
    let mut all = Vec::new();
    for number in 0..FILES {
        let file = volume.open_file(format!("/file-{number}"))?;
        let bytes = file.read_all()?;
        let mut states = Vec::new();
        for extent in file.extents() {
            let extent = extent?;
            let blocks = extent.logical / block_size..(extent.logical + extent.length) / block_size;
            for block in blocks {
                states.resize(block as usize, State::Hole);
                let start = bytes.len().min((block * block_size) as usize);
                let end = bytes.len().min(((block + 1) * block_size) as usize);
                let is_zeros = bytes[start..end].iter().all(|&byte| byte == 0);
                states.push(match extent.state {
                    ExtentState::Unwritten => State::Unwritten,
                    _ if is_zeros => State::Zeros,
                    _ => State::Data,
                });
            }
        }
        all.push(states);
    }
    Ok(all)
}

/// The maps of two images, by the library: which blocks have space, and which of them are written.
/// Those that differ as they may, file and block; or the first one that may not, in words.
///
/// Some may differ only if stores went through maps (`has_maps`): the FUSE client writes a page that
/// was stored to as a whole, ext4 gives its whole folio blocks, which may be of many pages. What
/// either adds that way is zeros where the other has none; it reads the same.
pub(crate) fn states_apart(
    ours: &Path,
    kernels: &Path,
    block_size: u64,
    has_maps: bool,
) -> Result<std::result::Result<Vec<(usize, u64)>, String>> {
    let (ours, kernels) = (states(ours, block_size)?, states(kernels, block_size)?);
    let mut apart = Vec::new();
    for (file, (ours, kernels)) in ours.iter().zip(&kernels).enumerate() {
        for block in 0..ours.len().max(kernels.len()) {
            let state = |of: &[State]| of.get(block).copied().unwrap_or(State::Hole);
            match (state(ours), state(kernels)) {
                (here, there) if here == there => {}
                (State::Zeros, State::Hole | State::Unwritten)
                | (State::Hole | State::Unwritten, State::Zeros)
                    if has_maps =>
                {
                    apart.push((file, block as u64));
                }
                (here, there) => {
                    return Ok(Err(format!(
                        "block {block} of file {file} is {here:?} here, {there:?} there"
                    )));
                }
            }
        }
    }
    Ok(Ok(apart))
}

/// The maps with these blocks (of the size) as data, up to the files' sizes.
pub(crate) fn with_data(maps: &Maps, blocks: &[(usize, u64)], size: u64, ends: &[u64]) -> Maps {
    let mut maps = maps.clone();
    for (file, map) in maps.iter_mut().enumerate() {
        let of_file = blocks.iter().filter(|(of, _)| *of == file);
        map.extend(of_file.map(|(_, block)| (block * size, (block + 1) * size)));
        map.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for &(start, end) in map.iter() {
            let end = end.min(ends[file]);
            match merged.last_mut() {
                _ if start >= end => {}
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        *map = merged;
    }
    maps
}

#[cfg(test)]
mod tests {
    use super::{first_difference, with_data};

    #[test]
    fn the_first_byte_and_the_length_are_told() {
        assert_eq!(first_difference(b"abc", b"abc"), None);
        let told = first_difference(b"abc", b"axc").expect("they differ");
        assert!(told.starts_with("byte 1 "), "{told}");
        let told = first_difference(b"abc", b"ab").expect("they differ");
        assert_eq!(told, "3 bytes here, 2 there");
    }

    #[test]
    fn blocks_that_may_be_data_join_their_neighbours() {
        let maps = vec![vec![(1024, 2048), (5000, 6000)], Vec::new()];
        let blocks = [(0, 0), (0, 3), (1, 9), (1, 10)];
        let found = with_data(&maps, &blocks, 1024, &[7000, 9500]);
        let first = vec![(0, 2048), (3072, 4096), (5000, 6000)];
        assert_eq!(found, [first, vec![(9216, 9500)]]);
    }
}
