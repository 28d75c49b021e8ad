//! Directories, names, links and special files.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::fill::Plan;

const MAX_NAME_BYTES: usize = 255;
const NESTED_DIRECTORIES: usize = 40;
const LINKS: usize = 70;

/// Fills in everything that is about names.
pub(crate) fn fill(plan: &mut Plan<'_>) -> Result<()> {
    names_of_all_lengths(plan)?;
    nested_directories(plan)?;
    big_directory(plan)?;
    deleted_entries(plan)?;
    small_directories(plan)?;
    symlinks(plan)?;
    special_files(plan)?;
    hard_links(plan)
}

fn touch(path: &Path) -> Result<()> {
    File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(())
}

/// A name of `length` bytes; every other one has bytes that are no UTF-8.
fn name_of_length(plan: &mut Plan<'_>, length: usize) -> Vec<u8> {
    let mut name = format!("{length:03}-").into_bytes();
    name.truncate(length);
    let is_ascii = length.is_multiple_of(2);
    while name.len() < length {
        let byte = if is_ascii {
            b'a' + plan.random.below(26) as u8
        } else {
            0x80 + plan.random.below(0x80) as u8
        };
        name.push(byte);
    }
    name
}

fn names_of_all_lengths(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("names")?;
    for length in 1..=MAX_NAME_BYTES {
        let name = name_of_length(plan, length);
        touch(&directory.join(OsStr::from_bytes(&name)))?;
    }
    for name in [
        "...",
        " ",
        "-",
        "\\",
        "*",
        "\u{e9}",
        "e\u{301}",
        "\u{1f980}",
        "UPPER",
        "upper",
    ] {
        touch(&directory.join(name))?;
    }
    Ok(())
}

fn nested_directories(plan: &mut Plan<'_>) -> Result<()> {
    let mut path = plan.directory("nested")?;
    for depth in 0..NESTED_DIRECTORIES {
        path.push(format!("depth-{depth}"));
        std::fs::create_dir(&path)?;
        std::fs::write(path.join("file"), format!("{depth}\n"))?;
    }
    Ok(())
}

/// One directory with very many entries, each an inode of its own.
fn big_directory(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("big")?;
    for index in 0..plan.big_directory_entries {
        // Names of two lengths; every seventh has high bytes, which tell signed hashes from
        // unsigned ones.
        let mut name = if index % 3 == 0 {
            format!("entry-{index}").into_bytes()
        } else {
            format!("a-longer-name-of-an-entry-{index:012}").into_bytes()
        };
        if index % 7 == 0 {
            name.extend([0xff, 0x80 + (index % 0x40) as u8]);
        }
        touch(&directory.join(OsStr::from_bytes(&name)))?;
    }
    Ok(())
}

/// Entries deleted in between, so that records have slack; a directory emptied; inodes freed.
fn deleted_entries(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("deleted")?;
    for index in 0..400 {
        std::fs::write(directory.join(format!("file-{index}")), b"contents")?;
    }
    for index in (0..400).filter(|index| index % 3 != 0) {
        std::fs::remove_file(directory.join(format!("file-{index}")))?;
    }
    let emptied = plan.directory("emptied")?;
    for index in 0..400 {
        touch(&emptied.join(format!("gone-{index}")))?;
    }
    for index in 0..400 {
        std::fs::remove_file(emptied.join(format!("gone-{index}")))?;
    }
    Ok(())
}

/// Directories of a few entries, which inline data keeps in the inode.
fn small_directories(plan: &mut Plan<'_>) -> Result<()> {
    let parent = plan.directory("small")?;
    for count in 0..24 {
        let directory = parent.join(format!("with-{count}"));
        std::fs::create_dir(&directory)?;
        for index in 0..count {
            touch(&directory.join(format!("f{index}")))?;
        }
    }
    Ok(())
}

fn symlinks(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("symlinks")?;
    let block = usize::try_from(plan.block_bytes)?;
    for length in [1, 58, 59, 60, 61, 62, 150, 255, 1023, 1024, 4094, 4095] {
        let target: Vec<u8> = (0..length).map(|at| b'a' + (at % 26) as u8).collect();
        let link = directory.join(format!("length-{length}"));
        // A target fills at most one block, less its terminating NUL.
        if length < block {
            symlink(OsStr::from_bytes(&target), &link)?;
        }
    }
    symlink("../names", directory.join("to-a-directory"))?;
    symlink("/nowhere", directory.join("dangling"))?;
    symlink("loop", directory.join("loop"))?;
    symlink(OsStr::from_bytes(b"\xff\xfe"), directory.join("no-utf8"))?;
    Ok(())
}

fn special_files(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("special")?;
    let mode = Mode::from_raw_mode(0o640);
    let make = |name: &str, kind: FileType, major: u32, minor: u32| -> Result<()> {
        mknodat(CWD, directory.join(name), kind, mode, makedev(major, minor))
            .with_context(|| format!("cannot make {name}"))
    };
    make("fifo", FileType::Fifo, 0, 0)?;
    make("socket", FileType::Socket, 0, 0)?;
    make("null", FileType::CharacterDevice, 1, 3)?;
    make("block", FileType::BlockDevice, 7, 0)?;
    // The old encoding has 8 bits for each number; the new one 12 and 20.
    for (major, minor) in [(255, 255), (256, 0), (0, 256), (4095, 1_048_575)] {
        make(
            &format!("char-{major}-{minor}"),
            FileType::CharacterDevice,
            major,
            minor,
        )?;
        make(
            &format!("block-{major}-{minor}"),
            FileType::BlockDevice,
            major,
            minor,
        )?;
    }
    Ok(())
}

fn hard_links(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("links")?;
    let first = directory.join("first");
    std::fs::write(&first, b"one file, many names\n")?;
    for index in 0..LINKS {
        std::fs::hard_link(&first, directory.join(format!("link-{index}")))?;
    }
    symlink("first", directory.join("symlink"))?;
    std::fs::hard_link(directory.join("symlink"), directory.join("link-to-symlink"))?;
    Ok(())
}
