//! Files of many pieces, and what they may be while their blocks move.

use std::ops::Range;
use std::process::Command;
use std::time::Duration;

use pagefence_block_io::fault_device::FaultDevice;
use pagefence_block_io::memory_device::MemoryDevice;
use pagefence_ext4::{File, FileSystem, MountOptions};
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{FileSystem as _, Result};

use super::{COLLAPSE, INSERT};
use crate::support::{Image, beside_commits, create, find, set_size, write_all};

/// Bytes of an image.
const SIZE: u64 = 16 << 20;

/// A kind of file system, and how a file is laid out in it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    options: &'static [&'static str],
    pub(crate) has_log: bool,
    /// Blocks of the file, and every how many of them has data.
    blocks: u64,
    every: u64,
}

impl Case {
    pub(crate) fn has_extents(&self) -> bool {
        self.options.contains(&"ext4")
    }

    /// What the device writes as a whole: without a log nothing helps against a block of metadata
    /// that tears.
    pub(crate) fn set_atomic(&self, device: &FaultDevice) {
        if self.has_log {
            return device.set_atomic(1024..2048);
        }
        for at in (1024..SIZE).step_by(1024) {
            device.set_atomic(at..at + 1024);
        }
    }

    /// Runs `operation`, where there is a log with commits at any moment besides, so that a handle
    /// does not get more than it asked for.
    pub(crate) fn beside_commits(&self, fs: &FileSystem, operation: impl FnOnce()) {
        match self.has_log {
            true => beside_commits(fs, Duration::ZERO, operation),
            false => operation(),
        }
    }
}

pub(crate) const CASES: [Case; 5] = [
    Case {
        name: "extents, a small log",
        options: &["-t", "ext4", "-b", "1024", "-J", "size=1"],
        has_log: true,
        blocks: 3000,
        every: 2,
    },
    Case {
        name: "extents of 4k",
        options: &["-t", "ext4", "-b", "4096"],
        has_log: true,
        blocks: 1500,
        every: 2,
    },
    Case {
        name: "pointers",
        options: &["-t", "ext3", "-b", "1024", "-J", "size=1"],
        has_log: true,
        blocks: 3000,
        every: 1,
    },
    Case {
        name: "extents without a log",
        options: &["-t", "ext4", "-b", "1024", "-O", "^has_journal"],
        has_log: false,
        blocks: 1200,
        every: 2,
    },
    Case {
        name: "pointers without a log",
        options: &["-t", "ext2", "-b", "1024"],
        has_log: false,
        blocks: 1200,
        every: 1,
    },
];

pub(crate) fn open(device: Arc<dyn pagefence_block_io::Device>) -> FileSystem {
    let options = MountOptions {
        write: true,
        cache: Some(16 << 20),
        ..MountOptions::default()
    };
    FileSystem::open(device, &options).unwrap()
}

/// An image with a file of which each block is another.
pub(crate) fn with_file(case: &Case) -> (MemoryDevice, Vec<u8>, usize) {
    let image = Image::new(case.options, "16M");
    let fs = image.open();
    let block = fs.stat_fs().unwrap().block_size as usize;
    let file = fs.open(create(&fs, "file"), true).unwrap();
    let mut bytes = vec![0; case.blocks as usize * block];
    for at in (0..case.blocks).step_by(case.every as usize) {
        let from = at as usize * block;
        let number = (at as u32 + 1).to_le_bytes();
        for four in bytes[from..from + block].chunks_mut(4) {
            four.copy_from_slice(&number);
        }
        write_all(&fs, &file, from as u64, &bytes[from..from + block]);
    }
    let size = bytes.len() as u64;
    set_size(&fs, find(&fs, "file"), size).unwrap();
    drop(file);
    fs.shut_down().unwrap();
    drop(fs);
    let device = MemoryDevice::from_bytes(&std::fs::read(&image.path).unwrap());
    (device, bytes, block)
}

/// What a file was and is to be, and between: `low` below some block, `high` behind the hole that
/// comes there.
pub(crate) struct Between {
    low: Vec<u8>,
    high: Vec<u8>,
    gap: Range<usize>,
    block: usize,
    collapses: bool,
    /// Without a log what is in the place of the hole is what was, or what will be.
    has_log: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Before,
    Between,
    After,
}

impl Between {
    /// Of a file of `bytes`, out of which blocks are taken, or into which they are put.
    pub(crate) fn new(
        bytes: &[u8],
        (first, blocks): (usize, usize),
        block: usize,
        collapses: bool,
        has_log: bool,
    ) -> Self {
        let gap = first * block..(first + blocks) * block;
        let mut changed = bytes.to_vec();
        if collapses {
            changed.drain(gap.clone());
        } else {
            changed.splice(gap.start..gap.start, std::iter::repeat_n(0, gap.len()));
        }
        let (low, high) = if collapses {
            (changed, bytes.to_vec())
        } else {
            (bytes.to_vec(), changed)
        };
        Self {
            low,
            high,
            gap,
            block,
            collapses,
            has_log,
        }
    }

    /// Does to a file what this is about.
    pub(crate) fn change(&self, fs: &FileSystem, file: &File) -> Result<()> {
        let mode = if self.collapses { COLLAPSE } else { INSERT };
        fs.allocate(file, self.gap.start as u64, self.gap.len() as u64, mode)
    }

    pub(crate) fn judge(&self, found: &[u8]) -> Option<State> {
        let (before, after) = if self.collapses {
            (&self.high, &self.low)
        } else {
            (&self.low, &self.high)
        };
        if found == &before[..] {
            return Some(State::Before);
        }
        if found == &after[..] {
            return Some(State::After);
        }
        let mut found = found.to_vec();
        if !self.has_log {
            // e2fsck makes a file as long as its blocks are, and no longer.
            found.resize(self.high.len(), 0);
        }
        if found.len() != self.high.len() {
            return None;
        }
        let len = self.gap.len();
        let same = |(a, b): &(&u8, &u8)| a == b;
        let below = found.iter().zip(&self.low).take_while(same).count();
        let above = found.iter().rev().zip(self.high.iter().rev());
        let above = found.len() - above.take_while(same).count();
        let starts = (self.gap.start..=self.low.len()).step_by(self.block);
        let fits = |at: usize| {
            if at > below || at + len < above {
                return false;
            }
            let may_stay = !self.has_log || (self.collapses && at == self.gap.start);
            let may_be = |from: usize, piece: &[u8]| {
                let is = |other: &[u8]| other.get(from..from + piece.len()) == Some(piece);
                let is_hole = piece.iter().all(|byte| *byte == 0);
                is_hole || (may_stay && is(before)) || (!self.has_log && is(after))
            };
            (at..at + len)
                .step_by(self.block)
                .all(|from| may_be(from, &found[from..(from + self.block).min(found.len())]))
        };
        starts.into_iter().any(fits).then_some(State::Between)
    }
}

/// What e2fsck makes of an image.
pub(crate) fn mended(image: &MemoryDevice, what: &str) -> Image {
    let image = Image::of(&image.to_vec());
    let output = Command::new("e2fsck")
        .args(["-f", "-y"])
        .arg(&image.path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let code = output.status.code().unwrap();
    assert!(code < 4, "{what}: {said}");
    image.assert_clean(&format!("{what}, after {said}"));
    image
}
