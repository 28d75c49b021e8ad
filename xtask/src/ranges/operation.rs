//! The operations that are done to both file systems, drawn from a seed.

use pagefence_fs_model::files::contents;
use rustix::fs::FallocateFlags;

use crate::random::Random;

/// Files that the operations are about.
pub(crate) const FILES: usize = 4;
/// No file grows beyond.
pub(crate) const MOST_BYTES: u64 = 2 << 20;
/// Most bytes of one range.
const MOST_RANGE: u64 = 256 << 10;
/// Most bytes of one read, write, load or store.
const MOST_DATA: u64 = 32 << 10;
/// One call in so many that change a range is made by the program `pagefence`.
const SPAWN_ONE_IN: u64 = 50;

/// Modes of fallocate(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Allocate,
    AllocateKeepingSize,
    Punch,
    Zero,
    ZeroKeepingSize,
    Collapse,
    Insert,
}

impl Mode {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Allocate,
        Self::AllocateKeepingSize,
        Self::Punch,
        Self::Zero,
        Self::ZeroKeepingSize,
        Self::Collapse,
        Self::Insert,
    ];

    /// As fallocate(2) has it.
    pub(crate) fn flags(self) -> FallocateFlags {
        match self {
            Self::Allocate => FallocateFlags::empty(),
            Self::AllocateKeepingSize => FallocateFlags::KEEP_SIZE,
            Self::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Self::Zero => FallocateFlags::ZERO_RANGE,
            Self::ZeroKeepingSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            Self::Collapse => FallocateFlags::COLLAPSE_RANGE,
            Self::Insert => FallocateFlags::INSERT_RANGE,
        }
    }

    /// As `pagefence fallocate` has it.
    pub(crate) fn options(self) -> &'static [&'static str] {
        match self {
            Self::Allocate => &[],
            Self::AllocateKeepingSize => &["--keep-size"],
            Self::Punch => &["--punch-hole"],
            Self::Zero => &["--zero-range"],
            Self::ZeroKeepingSize => &["--zero-range", "--keep-size"],
            Self::Collapse => &["--collapse-range"],
            Self::Insert => &["--insert-range"],
        }
    }

    /// Whether what follows the range moves.
    pub(crate) fn shifts(self) -> bool {
        matches!(self, Self::Collapse | Self::Insert)
    }

    fn grows(self) -> bool {
        matches!(self, Self::Allocate | Self::Zero | Self::Insert)
    }
}

/// How our mount is asked for a change of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the calls that `pagefence fallocate` makes, in this process.
    Call,
    /// By the program.
    Program,
    /// By the call alone: no sync goes before what moves bytes, the file's maps are dropped instead.
    NoSync,
}

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Writes, through the cache.
    Write,
    /// Writes whole blocks with O_DIRECT.
    WriteDirect,
    /// Stores through the file's map.
    Store,
    /// Loads through the file's map.
    Load,
    /// Reads, through the cache.
    Read,
    /// Sets the size to `offset`.
    Truncate,
    /// Changes the range.
    Change(Mode, Way),
    /// Unmaps the file.
    Unmap,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    /// Tells the bytes that it writes from all others.
    pub(crate) number: u64,
    /// Which file.
    pub(crate) file: usize,
    pub(crate) what: What,
    /// In bytes, as is the length.
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Operation {
    /// What it writes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        contents(self.number, self.offset, self.length as usize)
    }
}

/// What is drawn from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    pub(crate) block_size: u64,
    /// Whether the kernel knows all modes for these files; it knows punch alone for block maps.
    pub(crate) has_extents: bool,
    /// Whether files are mapped.
    pub(crate) has_maps: bool,
}

impl Scope {
    /// The operation after `number - 1` others, on files of these sizes.
    pub(crate) fn draw(&self, random: &mut Random, number: u64, sizes: &[u64; FILES]) -> Operation {
        let file = random.below(FILES as u64) as usize;
        let size = sizes[file];
        let what = match random.below(100) {
            0..18 => What::Write,
            18..24 => What::WriteDirect,
            24..38 if size > 0 && self.has_maps => What::Store,
            38..43 if size > 0 && self.has_maps => What::Load,
            43..52 => What::Read,
            52..59 => What::Truncate,
            59..62 => What::Unmap,
            24..43 => What::Write,
            _ => What::Change(self.mode(random), way(random)),
        };
        let mut operation = Operation {
            number,
            file,
            what,
            offset: 0,
            length: 0,
        };
        (operation.offset, operation.length) = match what {
            What::Write => data(random, MOST_BYTES),
            What::WriteDirect => {
                let (offset, length) = data(random, MOST_BYTES);
                let offset = self.down(offset.min(MOST_BYTES - self.block_size));
                let length = self.down(length).max(self.block_size);
                (offset, length.min(MOST_BYTES - offset))
            }
            What::Store | What::Load => data(random, size),
            What::Read => data(random, MOST_BYTES),
            What::Truncate => {
                let new = random_size(random, size);
                (self.maybe_aligned(random, new), 0)
            }
            What::Unmap => (0, 0),
            What::Change(mode, _) => {
                let (mode, offset, length) = self.range(random, mode, size);
                operation.what = match what {
                    What::Change(_, way) => What::Change(mode, way),
                    other => other,
                };
                (offset, length)
            }
        };
        operation
    }

    fn mode(&self, random: &mut Random) -> Mode {
        if self.has_extents {
            Mode::ALL[random.below(Mode::ALL.len() as u64) as usize]
        } else {
            Mode::Punch
        }
    }

    fn down(&self, offset: u64) -> u64 {
        offset - offset % self.block_size
    }

    /// Half of the time at a block's start.
    fn maybe_aligned(&self, random: &mut Random, offset: u64) -> u64 {
        if random.below(2) == 0 {
            self.down(offset)
        } else {
            offset
        }
    }

    fn range(&self, random: &mut Random, mode: Mode, size: u64) -> (Mode, u64, u64) {
        let offset = random.below(MOST_BYTES);
        let length = any_length(random, MOST_RANGE);
        // Now and then what is refused: not at blocks' starts, past the end, of no length.
        let is_wrong = random.below(20) == 0;
        if !mode.shifts() {
            let offset = self.maybe_aligned(random, offset);
            let length = self.maybe_aligned(random, length);
            let length = if length == 0 && !is_wrong {
                self.block_size
            } else {
                length
            };
            let end = if mode.grows() { MOST_BYTES } else { u64::MAX };
            return (mode, offset, length.min(end - offset));
        }
        if is_wrong {
            return (Mode::Collapse, offset, length);
        }
        let length = self.down(length + self.block_size - 1);
        let is_too_large = size + length > MOST_BYTES;
        let mode = if is_too_large { Mode::Collapse } else { mode };
        (mode, self.down(offset % size.max(1)), length)
    }
}

fn way(random: &mut Random) -> Way {
    match random.below(SPAWN_ONE_IN) {
        0 => Way::Program,
        number if number % 2 == 0 => Way::Call,
        _ => Way::NoSync,
    }
}

/// A length up to `most`, a power of two, short ones more often.
fn any_length(random: &mut Random, most: u64) -> u64 {
    let bits = random.below(u64::from(most.ilog2()) + 1);
    1 + random.below(1 << bits)
}

/// Some bytes below `end`, which is not 0.
fn data(random: &mut Random, end: u64) -> (u64, u64) {
    let offset = random.below(end);
    let length = any_length(random, MOST_DATA);
    (offset, length.min(end - offset))
}

/// Near the size, or any.
fn random_size(random: &mut Random, size: u64) -> u64 {
    let near = size.saturating_sub(random.below(20_000)) + random.below(20_000);
    match random.below(3) {
        0 => random.below(MOST_BYTES),
        _ => near.min(MOST_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sort_is_drawn_and_none_leaves_its_bounds() {
        let (mut random, mut seen) = (Random::new(3), std::collections::BTreeSet::new());
        let scope = Scope {
            block_size: 1024,
            has_extents: true,
            has_maps: true,
        };
        for number in 1..20_000 {
            let sizes = [0, 1, 5000, MOST_BYTES];
            let operation = scope.draw(&mut random, number, &sizes);
            let size = sizes[operation.file];
            let end = operation.offset + operation.length;
            match operation.what {
                What::Load | What::Store => assert!(end <= size, "{operation:?}"),
                What::WriteDirect => assert_eq!((operation.offset | end) % 1024, 0),
                What::Change(Mode::Insert, _) => {
                    assert!(size + operation.length <= MOST_BYTES, "{operation:?}");
                }
                What::Change(mode, _) if mode.grows() => assert!(end <= MOST_BYTES),
                What::Write | What::Truncate => assert!(end <= MOST_BYTES),
                _ => {}
            }
            seen.insert(format!("{:?}", operation.what));
        }
        // Modes in three ways, and what else there is.
        assert_eq!(seen.len(), 7 * 3 + 7, "{seen:?}");
    }

    #[test]
    fn block_maps_are_only_punched() {
        let mut random = Random::new(3);
        let scope = Scope {
            block_size: 4096,
            has_extents: false,
            has_maps: false,
        };
        for number in 1..2000 {
            let operation = scope.draw(&mut random, number, &[9000; FILES]);
            if let What::Change(mode, _) = operation.what {
                assert_eq!(mode, Mode::Punch);
            }
        }
    }
}
