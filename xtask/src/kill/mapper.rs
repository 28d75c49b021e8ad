//! A process that stores stamps to a map of a file of the mount and flushes it, and whether they are there
//! after the end of the server.
//!
//! A stamp fills a page, word by word, and is of one page and one version of it. Before a page gets the next
//! one, the last was flushed: so a page holds the version that was promised last, or the next, or, if it was
//! cut off while it was stored, words of both.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use pagefence::{Map, MapOptions, Volume};

use super::Found;
use crate::random::Random;

const PAGE: usize = 4096;
const PAGES: usize = 64;
const WORD: usize = 8;
/// The file.
const NAME: &str = "stamps";

/// What each word of a page is; before the first stamp it is 0.
fn word(seed: u64, page: usize, version: u64) -> [u8; WORD] {
    let of_page = seed ^ (page as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let stamp = match version {
        0 => 0,
        version => Random::new(of_page ^ version.wrapping_mul(0xd1b5_4a32_d192_ed03)).next() | 1,
    };
    stamp.to_le_bytes()
}

/// Stores, flushes and promises, until the server is gone; what it loads meanwhile is what it has stored.
///
/// # Errors
/// Something else happened than that the server is gone.
pub(super) fn store_until_it_ends(directory: &Path, log: &Path, seed: u64) -> Result<()> {
    match store_until_it_fails(directory, log, seed) {
        Err(error) if is_end(&error) => Ok(()),
        other => other,
    }
}

/// Whether this is what the end of a server looks like.
fn is_end(error: &anyhow::Error) -> bool {
    let ends = [ErrorKind::NotConnected, ErrorKind::ConnectionAborted];
    let of_map = |error: &anyhow::Error| Some(error.downcast_ref::<pagefence::Error>()?.kind());
    let of_file = |error: &anyhow::Error| Some(error.downcast_ref::<std::io::Error>()?.kind());
    of_map(error)
        .or_else(|| of_file(error))
        .is_some_and(|kind| ends.contains(&kind))
}

fn store_until_it_fails(directory: &Path, log: &Path, seed: u64) -> Result<()> {
    let mut log = OpenOptions::new().append(true).open(log)?;
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true);
    let file = options.open(directory.join(NAME))?;
    file.set_len((PAGES * PAGE) as u64)?;
    file.sync_all()?;
    let map = Volume::connect(directory)?.map_file(&file, .., MapOptions::shared())?;
    let mut random = Random::new(seed);
    let mut versions = [0; PAGES];
    loop {
        let first = random.below(PAGES as u64) as usize;
        let stored = first..PAGES.min(first + 1 + random.below(4) as usize);
        for page in stored.clone() {
            versions[page] += 1;
            map.write_at(
                page * PAGE,
                &word(seed, page, versions[page]).repeat(PAGE / WORD),
            )?;
        }
        let page = random.below(PAGES as u64) as usize;
        load(&map, seed, page, versions[page])?;
        map.flush_range(stored.start * PAGE..stored.end * PAGE)?;
        for page in stored {
            log.write_all(format!("{page} {}\n", versions[page]).as_bytes())?;
        }
    }
}

fn load(map: &Map, seed: u64, page: usize, version: u64) -> Result<()> {
    let mut bytes = vec![0; PAGE];
    map.read_at(page * PAGE, &mut bytes)?;
    let due = word(seed, page, version);
    let wrong = bytes.chunks_exact(WORD).find(|found| **found != due);
    if let Some(wrong) = wrong {
        bail!("page {page}: {wrong:02x?} was loaded, {due:02x?} stored (version {version})");
    }
    Ok(())
}

/// Holds a file against the log of who stored to it.
pub(super) fn verify(directory: &Path, log: &Path, seed: u64, found: &mut Found) -> Result<()> {
    let log = std::fs::read_to_string(log)?;
    let mut promised = [0; PAGES];
    // Nobody ends a process between a flush and its line: every line is whole.
    for line in log.lines() {
        let (page, version) = line.split_once(' ').context("a line of two numbers")?;
        let page: usize = page.parse().context("a page")?;
        let promised = promised.get_mut(page).context("a page of the file")?;
        *promised = version.parse().context("a version")?;
        found.stamps += 1;
    }
    if log.is_empty() {
        return Ok(());
    }
    let bytes = std::fs::read(directory.join(NAME)).context("the stamps")?;
    ensure!(bytes.len() == PAGES * PAGE, "{} bytes", bytes.len());
    for (page, (bytes, version)) in bytes.chunks_exact(PAGE).zip(promised).enumerate() {
        let may_be = [version, version + 1].map(|version| word(seed, page, version));
        let wrong = bytes
            .chunks_exact(WORD)
            .position(|found| may_be.iter().all(|word| found != word));
        if let Some(at) = wrong {
            bail!("page {page}: word {at} is not of version {version}, nor of the next");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    /// A stamp that is lost, old or another page's is told.
    #[test]
    fn what_is_not_the_promised_stamp_is_found() {
        let scratch = Scratch::new().unwrap();
        let directory = scratch.directory("of-a-mapper").unwrap();
        let (log, seed) = (scratch.join("log"), 5);
        std::fs::write(&log, "3 1\n4 1\n3 2\n").unwrap();
        let stamp = |page, version| word(seed, page, version).repeat(PAGE / WORD);
        let is_fine = |at: usize, bytes: &[u8]| {
            let mut all = vec![0; PAGES * PAGE];
            for (page, version) in [(3, 2), (4, 1)] {
                all[page * PAGE..][..PAGE].copy_from_slice(&stamp(page, version));
            }
            all[at..at + bytes.len()].copy_from_slice(bytes);
            std::fs::write(directory.join(NAME), all).unwrap();
            verify(&directory, &log, seed, &mut Found::default()).is_ok()
        };
        assert!(is_fine(0, &[]));
        assert!(is_fine(3 * PAGE, &stamp(3, 3)), "not yet promised");
        assert!(is_fine(3 * PAGE, &stamp(3, 3)[..2000]), "half stored");
        assert!(!is_fine(3 * PAGE, &stamp(3, 1)), "old");
        assert!(!is_fine(3 * PAGE, &stamp(3, 4)), "never stored");
        assert!(!is_fine(3 * PAGE, &stamp(4, 2)), "another page's");
        assert!(!is_fine(4 * PAGE, &[0; WORD]), "zeros");
        assert!(!is_fine(7 * PAGE, &[1]), "foreign");
        std::fs::remove_file(directory.join(NAME)).unwrap();
        assert!(verify(&directory, &log, seed, &mut Found::default()).is_err());
    }
}
