//! Threads that fill a file system to the last byte.

use std::ops::ControlFlow;

use pagefence_vfs::{DirEntry, Error, FileSystem, InodeId, NewKind, WriteMode};

use super::{Random, at_once, make};
use crate::files::contents;

/// Bytes of a write, at most.
const MOST: u64 = 3 << 20;

/// `threads` threads append to a file each, in pieces of any size, until not a byte more is taken;
/// then all that was taken is there; then they empty the files and fill them again, `rounds`
/// times. When the files are gone, so is what they took.
///
/// # Errors
/// What is lost; space that is left over or does not come back; an error other than `NoSpace`.
pub fn fill_to_the_last_byte<F: FileSystem>(
    fs: &F,
    threads: u64,
    rounds: u64,
) -> Result<(), String> {
    let empty = fs.stat_fs().map_err(text)?;
    for round in 0..rounds {
        let fill = |thread: u64| move || fill_one(fs, round, thread);
        let parts = (0..threads).map(|thread| Box::new(fill(thread)) as Box<_>);
        at_once(parts.collect())?;
        let full = fs.stat_fs().map_err(text)?;
        if full.blocks_free != 0 {
            return Err(format!(
                "{} blocks are free when it is full",
                full.blocks_free
            ));
        }
        let check = |thread: u64| move || check_one(fs, round, thread);
        let parts = (0..threads).map(|thread| Box::new(check(thread)) as Box<_>);
        at_once(parts.collect())?;
    }
    remove_all(fs, fs.root()).map_err(text)?;
    let left = fs.stat_fs().map_err(text)?;
    if left != empty {
        return Err(format!("{empty:?} when it was empty, {left:?} now"));
    }
    Ok(())
}

fn text(error: Error) -> String {
    error.to_string()
}

fn name(round: u64, thread: u64) -> Vec<u8> {
    format!("full-{}-{thread}", round % 2).into_bytes()
}

fn tag(round: u64, thread: u64) -> u64 {
    (round + 1) << 32 | (thread + 1)
}

fn fill_one<F: FileSystem>(fs: &F, round: u64, thread: u64) -> Result<(), String> {
    // The file of the round before goes while others write already.
    if round > 0 {
        let old = fs
            .lookup(fs.root(), &name(round - 1, thread))
            .map_err(text)?;
        fs.unlink(fs.root(), &name(round - 1, thread))
            .map_err(text)?;
        fs.forget(old.attr.id);
    }
    let id = make(fs, fs.root(), &name(round, thread), NewKind::Regular).map_err(text)?;
    let file = fs.open(id, true).map_err(text)?;
    let mut random = Random::new(round, thread);
    let (mut size, mut most) = (0, MOST);
    loop {
        let length = 1 + random.below(most);
        let data = contents(tag(round, thread), size, length as usize);
        match fs.write(&file, size, &data, WriteMode::APPEND) {
            Ok(written) => size += written as u64,
            // As little as it can be, before it counts as full.
            Err(Error::NoSpace) if most > 1 => most = 1,
            Err(Error::NoSpace) => break,
            Err(error) => return Err(text(error)),
        }
    }
    let found = fs.attr(id).map_err(text)?.size;
    if found != size {
        return Err(format!("{size} bytes were taken, and {found} are there"));
    }
    Ok(())
}

fn check_one<F: FileSystem>(fs: &F, round: u64, thread: u64) -> Result<(), String> {
    let found = fs.lookup(fs.root(), &name(round, thread)).map_err(text)?;
    let file = fs.open(found.attr.id, false).map_err(text)?;
    let mut bytes = vec![0; MOST as usize];
    let mut at = 0;
    while at < found.attr.size {
        let count = fs.read(&file, at, &mut bytes).map_err(text)?;
        if count == 0 || bytes[..count] != contents(tag(round, thread), at, count)[..] {
            return Err(format!("other bytes in the piece from {at} on"));
        }
        at += count as u64;
    }
    Ok(())
}

/// Removes the files of a directory.
fn remove_all<F: FileSystem>(fs: &F, id: InodeId) -> pagefence_vfs::Result<()> {
    let directory = fs.open_dir(id)?;
    let mut files = Vec::new();
    let mut sink = |entry: &DirEntry<'_>| {
        if !matches!(entry.name, b"." | b"..") {
            files.push((entry.name.to_vec(), entry.id));
        }
        ControlFlow::Continue(())
    };
    fs.read_dir(&directory, 0, false, &mut sink)?;
    for (name, file) in files {
        fs.unlink(id, &name)?;
        fs.forget(file);
    }
    Ok(())
}
