//! Threads that make, move, link and remove names in the same few directories.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use pagefence_lock_order::primitives::Mutex;
use pagefence_vfs::{DirEntry, Error, FileKind, FileSystem, InodeId, NewKind, RenameMode, Result};

use super::{Random, at_once, make, root};

const DIRECTORIES: u64 = 3;
const NAMES: u64 = 4;
const THREADS: u64 = 4;
/// Deeper than anything lies that these threads can make.
const DEPTH_MAX: u32 = 1000;

/// `changes` changes by each of four threads: files and directories made, renamed over each other,
/// exchanged, linked, removed, read. Every operation succeeds or fails in a way that names allow;
/// in the end the tree is one, its link counts are right, and when all is removed nothing is left.
///
/// # Errors
/// What is wrong.
pub fn race_over_names<F: FileSystem>(
    fs: &F,
    seed: u64,
    changes: u64,
) -> std::result::Result<(), String> {
    let text = |error: Error| format!("seed {seed}: {error}");
    let before = fs.stat_fs().map_err(text)?.inodes_free;
    let top = make(fs, fs.root(), b"names", NewKind::Directory).map_err(text)?;
    for number in 0..DIRECTORIES {
        make(fs, top, &directory_name(number), NewKind::Directory).map_err(text)?;
    }
    let made = Mutex::new(Vec::new());
    let play = |thread: u64| {
        let made = &made;
        move || {
            let mut random = Random::new(seed, thread);
            for _ in 0..changes {
                match change(fs, top, &mut random) {
                    Ok(None) => {}
                    Ok(Some(id)) => made.lock().push(id),
                    Err(error) if is_a_names_error(&error) => {}
                    Err(error) => return Err(format!("seed {seed}: {error}")),
                }
            }
            Ok(())
        }
    };
    let parts = (0..THREADS).map(|thread| Box::new(play(thread)) as Box<_>);
    at_once(parts.collect())?;
    // What a name meant may have changed between its lookup and its removal: then nobody has
    // forgotten what was removed.
    made.into_inner().into_iter().for_each(|id| fs.forget(id));
    let mut links = BTreeMap::new();
    walk(fs, top, fs.root(), 0, &mut links)?;
    for (id, (found, expected)) in links {
        if found != expected {
            return Err(format!(
                "seed {seed}: {id} has {found} links, not {expected}"
            ));
        }
    }
    remove_below(fs, top).map_err(text)?;
    fs.rmdir(fs.root(), b"names").map_err(text)?;
    fs.forget(top);
    let after = fs.stat_fs().map_err(text)?.inodes_free;
    if after != before {
        return Err(format!(
            "seed {seed}: {before} inodes were free, {after} are now"
        ));
    }
    Ok(())
}

fn directory_name(number: u64) -> Vec<u8> {
    format!("d{number}").into_bytes()
}

/// Errors of one who comes too late, or asks for what can't be.
fn is_a_names_error(error: &Error) -> bool {
    matches!(
        error,
        Error::NotFound
            | Error::Stale
            | Error::Exists
            | Error::NotEmpty
            | Error::NotDirectory
            | Error::IsDirectory
            | Error::InvalidArgument
            | Error::NotPermitted
    )
}

/// A directory: one of the first, or one that lies in it.
fn some_directory<F: FileSystem>(fs: &F, top: InodeId, random: &mut Random) -> Result<InodeId> {
    let mut at = fs
        .lookup(top, &directory_name(random.below(DIRECTORIES)))?
        .attr
        .id;
    while random.below(2) == 0 {
        match fs.lookup(at, &some_name(random)) {
            Ok(entry) if entry.attr.kind == FileKind::Directory => at = entry.attr.id,
            _ => break,
        }
    }
    Ok(at)
}

fn some_name(random: &mut Random) -> Vec<u8> {
    format!("n{}", random.below(NAMES)).into_bytes()
}

/// Changes something; what was made, if something was.
fn change<F: FileSystem>(fs: &F, top: InodeId, random: &mut Random) -> Result<Option<InodeId>> {
    let parent = some_directory(fs, top, random)?;
    let (name, choice) = (some_name(random), random.below(12));
    match choice {
        0 | 1 => return make(fs, parent, &name, NewKind::Regular).map(Some),
        2 | 3 => return make(fs, parent, &name, NewKind::Directory).map(Some),
        4..8 => {
            let (to, new_name) = (some_directory(fs, top, random)?, some_name(random));
            let mode = match random.below(4) {
                0 => RenameMode::EXCHANGE,
                1 => RenameMode::NO_REPLACE,
                _ => RenameMode::default(),
            };
            let replaced = fs.lookup(to, &new_name);
            let renamed = fs.rename(parent, &name, to, &new_name, mode);
            forget(fs, replaced);
            renamed?;
        }
        8 => {
            let (from, its_name) = (some_directory(fs, top, random)?, some_name(random));
            let found = fs.lookup(from, &its_name)?.attr.id;
            fs.link(found, parent, &name, &root())?;
        }
        9 => {
            let found = fs.lookup(parent, &name);
            let removed = fs.unlink(parent, &name);
            forget(fs, found);
            removed?;
        }
        10 => {
            let found = fs.lookup(parent, &name);
            let removed = fs.rmdir(parent, &name);
            forget(fs, found);
            removed?;
        }
        _ => drop(entries(fs, parent)?),
    }
    Ok(None)
}

/// As somebody does who knew it: without a name it goes.
fn forget<F: FileSystem>(fs: &F, known: Result<pagefence_vfs::Entry>) {
    if let Ok(entry) = known {
        fs.forget(entry.attr.id);
    }
}

/// The entries of a directory but `.`; every one is as its attributes say.
fn entries<F: FileSystem>(fs: &F, id: InodeId) -> Result<Vec<(Vec<u8>, InodeId, FileKind)>> {
    let directory = fs.open_dir(id)?;
    let mut found = Vec::new();
    let mut sink = |entry: &DirEntry<'_>| {
        if entry.name != b"." {
            let kind = entry.kind.unwrap_or(FileKind::Regular);
            found.push((entry.name.to_vec(), entry.id, kind));
        }
        ControlFlow::Continue(())
    };
    fs.read_dir(&directory, 0, true, &mut sink)?;
    Ok(found)
}

type Links = BTreeMap<InodeId, (u32, u32)>;

/// Links found on inodes, and those that they should have.
fn walk<F: FileSystem>(
    fs: &F,
    id: InodeId,
    parent: InodeId,
    depth: u32,
    links: &mut Links,
) -> std::result::Result<(), String> {
    let text = |error: Error| error.to_string();
    if depth > DEPTH_MAX {
        return Err("directories that lie in each other".to_owned());
    }
    let mut subdirectories = 0;
    let mut names: Vec<Vec<u8>> = Vec::new();
    for (name, child, kind) in entries(fs, id).map_err(text)? {
        if name == b".." {
            if child != parent {
                return Err(format!("{id} lies in {parent}, and .. says {child}"));
            }
            continue;
        }
        let attr = fs.lookup(id, &name).map_err(text)?.attr;
        if (attr.id, attr.kind) != (child, kind) || names.contains(&name) {
            return Err(format!("an entry of {id} is not what it says"));
        }
        names.push(name);
        if kind == FileKind::Directory {
            subdirectories += 1;
            if links.contains_key(&child) {
                return Err(format!("the directory {child} has two names"));
            }
            walk(fs, child, id, depth + 1, links)?;
        } else {
            links.entry(child).or_insert((attr.links, 0)).1 += 1;
        }
    }
    let found = fs.attr(id).map_err(text)?.links;
    links.insert(id, (found, 2 + subdirectories));
    Ok(())
}

fn remove_below<F: FileSystem>(fs: &F, id: InodeId) -> Result<()> {
    for (name, child, kind) in entries(fs, id)? {
        if name == b".." {
            continue;
        }
        if kind == FileKind::Directory {
            remove_below(fs, child)?;
            fs.rmdir(id, &name)?;
        } else {
            fs.unlink(id, &name)?;
        }
        fs.forget(child);
    }
    Ok(())
}
