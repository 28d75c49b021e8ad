//! Journals made up block by block in memory: what recovery takes from them, what it refuses, and
//! that no crash during write-back or a single commit shows.

use std::collections::BTreeMap;

use pagefence_block_io::fault_device::{Fault, Times};
use pagefence_block_io::{Device, FaultDevice, MemoryDevice, Operation};
use pagefence_ext4_format::journal::superblock::RawJournalSuperblock;
use pagefence_ext4_format::journal::{
    BlockKind, CommitBlock, DescriptorBuilder, JournalSuperblock, LogFormat, MAGIC_BYTES,
    RawHeader, Sequence, checksum::crc32_be, revoke,
};
use pagefence_ext4_format::{BlockNo, Corruption};
use pagefence_lock_order::primitives::Arc;
use zerocopy::{FromZeros, IntoBytes};

use crate::{
    Emptied, JournalError, JournalLocation, JournalRun, LocationError, Recovery, commit_once,
    recover, set_errno, write_back,
};

mod aborts;
mod crash;
mod handles;
mod recovery;
mod running;
mod running_crash;
#[cfg(shuttle)]
mod shuttle;
mod snapshots;
mod turns;

pub(super) const BLOCK: usize = 1024;
/// Blocks of the device. The journal lies in two runs, out of order.
pub(super) const DEVICE_BLOCKS: u64 = 256;
pub(super) const JOURNAL_BLOCKS: u32 = 32;
pub(super) const RUNS: [JournalRun; 2] = [
    JournalRun {
        logical: 0,
        physical: BlockNo(200),
        count: 10,
    },
    JournalRun {
        logical: 10,
        physical: BlockNo(100),
        count: 22,
    },
];

pub(super) const REVOKE: u32 = 1;
pub(super) const WIDE: u32 = 2;
pub(super) const ASYNC: u32 = 4;
pub(super) const V2: u32 = 8;
pub(super) const V3: u32 = 0x10;

/// Compatible and incompatible features of every kind of journal.
pub(super) const KINDS: [(u32, u32); 8] = [
    (0, REVOKE),
    (1, REVOKE),
    (0, REVOKE | WIDE),
    (1, REVOKE | WIDE | ASYNC),
    (0, REVOKE | V2),
    (0, REVOKE | V2 | WIDE),
    (0, REVOKE | V3),
    (0, REVOKE | V3 | WIDE),
];

pub(super) fn location() -> JournalLocation {
    JournalLocation::new(BLOCK as u32, DEVICE_BLOCKS, RUNS).unwrap()
}

/// What a test writes into one transaction.
#[derive(Clone, Debug, Default)]
pub(super) struct Step {
    pub(super) blocks: Vec<(u64, Vec<u8>)>,
    pub(super) revokes: Vec<u64>,
}

pub(super) fn set(blocks: &[(u64, u8)]) -> Step {
    Step {
        blocks: blocks
            .iter()
            .map(|(block, byte)| (*block, vec![*byte; BLOCK]))
            .collect(),
        revokes: Vec::new(),
    }
}

/// A device with a journal that a test writes by itself.
pub(super) struct Image {
    pub(super) device: MemoryDevice,
    pub(super) format: LogFormat,
    pub(super) location: JournalLocation,
    superblock: JournalSuperblock,
    /// Where the next block of the log goes.
    pub(super) position: u32,
    pub(super) sequence: Sequence,
    seconds: u64,
}

impl Image {
    /// A journal that starts at `start` with transaction `sequence`.
    pub(super) fn new(compat: u32, incompat: u32, start: u32, sequence: u32) -> Self {
        let device = MemoryDevice::new(DEVICE_BLOCKS * BLOCK as u64);
        for block in 0..DEVICE_BLOCKS {
            device
                .write(block * BLOCK as u64, &[0x80 | block as u8; BLOCK])
                .unwrap();
        }
        let mut raw = RawJournalSuperblock::new_zeroed();
        raw.s_header = RawHeader::new(BlockKind::SuperblockV2, Sequence(0));
        raw.s_blocksize = (BLOCK as u32).into();
        raw.s_maxlen = JOURNAL_BLOCKS.into();
        raw.s_first = 1.into();
        raw.s_sequence = sequence.into();
        raw.s_start = start.into();
        raw.s_feature_compat = compat.into();
        raw.s_feature_incompat = incompat.into();
        raw.s_uuid = *b"a journal's uuid";
        raw.s_checksum_type = 4;
        let mut bytes = raw.as_bytes().to_vec();
        // An empty update fills the checksum in.
        pagefence_ext4_format::journal::superblock::SuperblockUpdate::default()
            .apply(&mut bytes)
            .unwrap();
        let location = location();
        device.write(200 * BLOCK as u64, &bytes).unwrap();
        let superblock = JournalSuperblock::parse(&bytes, BLOCK as u32, JOURNAL_BLOCKS).unwrap();
        Self {
            device,
            format: superblock.format,
            location,
            position: start.max(1),
            superblock,
            sequence: Sequence(sequence),
            seconds: 1000,
        }
    }

    pub(super) fn offset(&self, logical: u32) -> u64 {
        self.location.physical(logical).unwrap().0.0 * BLOCK as u64
    }

    /// Puts a block into the log.
    pub(super) fn put(&mut self, bytes: &[u8]) -> u32 {
        let at = self.position;
        self.device.write(self.offset(at), bytes).unwrap();
        self.position = self.superblock.advance(at, 1);
        at
    }

    /// The blocks of a transaction up to its commit block; the crc32 of version 1.
    pub(super) fn open(&mut self, step: &Step) -> u32 {
        let revokes: Vec<BlockNo> = step.revokes.iter().copied().map(BlockNo).collect();
        if !revokes.is_empty() {
            let block = revoke::build(&self.format, self.sequence, &revokes).unwrap();
            self.put(&block);
        }
        let mut crc32 = !0;
        // Small descriptors, so that there are several.
        for some in step.blocks.chunks(5) {
            let mut builder = DescriptorBuilder::new(self.format, self.sequence, [9; 16]);
            let mut data = Vec::new();
            for (block, bytes) in some {
                let mut bytes = bytes.clone();
                assert!(builder.push(BlockNo(*block), &mut bytes).unwrap());
                data.push(bytes);
            }
            for block in std::iter::once(builder.finish()).chain(data) {
                crc32 = crc32_be(crc32, &block);
                self.put(&block);
            }
        }
        crc32
    }

    /// Ends the transaction; where its commit block lies.
    pub(super) fn commit(&mut self, crc32: u32) -> u32 {
        self.seconds += 1;
        let block = CommitBlock::build(&self.format, self.sequence, self.seconds, 0, crc32);
        self.sequence = self.sequence.next();
        self.put(&block)
    }

    /// A whole transaction.
    pub(super) fn transaction(&mut self, step: &Step) -> u32 {
        let crc32 = self.open(step);
        self.commit(crc32)
    }

    pub(super) fn recover(&self) -> Result<Recovery, JournalError> {
        recover(&self.device, &self.location)
    }

    /// Damages one byte of a block of the log.
    pub(super) fn damage(&self, logical: u32, at: u64) {
        let mut byte = [0];
        self.device
            .read(self.offset(logical) + at, &mut byte)
            .unwrap();
        byte[0] ^= 0x10;
        self.device.write(self.offset(logical) + at, &byte).unwrap();
    }
}

/// The bytes of every block outside of the journal.
pub(super) fn home(device: &dyn Device) -> Vec<Vec<u8>> {
    let location = location();
    (0..DEVICE_BLOCKS)
        .filter(|block| location.may_change(BlockNo(*block)))
        .map(|block| {
            let mut bytes = vec![0; BLOCK];
            device.read(block * BLOCK as u64, &mut bytes).unwrap();
            bytes
        })
        .collect()
}

/// What `home` must be after `steps`, by the meaning of the words: a revoked block keeps what it
/// had before the log, unless a later transaction sets it.
pub(super) fn expected(image: &Image, steps: &[Step]) -> Vec<Vec<u8>> {
    let mut contents: BTreeMap<u64, &Vec<u8>> = BTreeMap::new();
    for step in steps {
        for (block, bytes) in &step.blocks {
            contents.insert(*block, bytes);
        }
        for block in &step.revokes {
            contents.remove(block);
        }
    }
    let device = image.device.fork();
    for (block, bytes) in contents {
        device.write(block * BLOCK as u64, bytes).unwrap();
    }
    home(&device)
}

/// Recovers in memory and in place, and checks that both give `expected`.
pub(super) fn check_recovered(image: &Image, expected: &[Vec<u8>], what: &str) -> Recovery {
    let recovery = image.recover().unwrap();
    let before = image.device.to_vec();
    let overlay = recovery.overlay(Arc::new(image.device.fork()));
    assert_eq!(home(&overlay), expected, "{what}: in memory");
    assert_eq!(image.device.to_vec(), before, "{what}: nothing changed");
    let written = image.device.fork();
    write_back(&written, &image.location, &recovery, Emptied::Clean).unwrap();
    assert_eq!(home(&written), expected, "{what}: in place");
    let again = recover(&written, &image.location).unwrap();
    assert!(again.is_clean() && again.replacements().is_empty());
    recovery
}

#[test]
fn locations_are_checked() {
    let run = |logical, physical, count| JournalRun {
        logical,
        physical: BlockNo(physical),
        count,
    };
    let new = |runs: &[JournalRun]| JournalLocation::new(1024, 100, runs.iter().copied());
    let location = new(&[run(4, 10, 6), run(0, 50, 4)]).unwrap();
    assert_eq!(location.length(), 10);
    assert_eq!(location.physical(0), Some((BlockNo(50), 4)));
    assert_eq!(location.physical(3), Some((BlockNo(53), 1)));
    assert_eq!(location.physical(4), Some((BlockNo(10), 6)));
    assert_eq!(location.physical(10), None);
    for (block, may) in [(9, true), (10, false), (15, false), (16, true), (99, true)] {
        assert_eq!(location.may_change(BlockNo(block)), may, "{block}");
    }
    assert!(!location.may_change(BlockNo(100)));
    for (runs, error) in [
        (vec![run(1, 5, 1)], LocationError::Gap { logical: 0 }),
        (
            vec![run(0, 5, 1), run(2, 9, 1)],
            LocationError::Gap { logical: 1 },
        ),
        (
            vec![run(0, 5, 2), run(1, 9, 1)],
            LocationError::Gap { logical: 1 },
        ),
        (vec![run(0, 5, 0)], LocationError::Gap { logical: 0 }),
        (
            vec![run(0, 99, 2)],
            LocationError::Place {
                logical: 0,
                physical: BlockNo(99),
            },
        ),
        (
            vec![run(0, u64::MAX, 2)],
            LocationError::Place {
                logical: 0,
                physical: BlockNo(u64::MAX),
            },
        ),
        (
            vec![run(0, 5, 3), run(3, 7, 1)],
            LocationError::Place {
                logical: 3,
                physical: BlockNo(7),
            },
        ),
    ] {
        assert_eq!(new(&runs), Err(error), "{runs:?}");
    }
    assert!(JournalLocation::new(1000, 100, []).is_err());
    let empty = new(&[]).unwrap();
    assert!(recover(&MemoryDevice::new(4096), &empty).is_err());
}

#[test]
fn errors_of_the_journal_are_told_and_cleared() {
    let image = Image::new(0, REVOKE | V3, 0, 5);
    set_errno(&image.device, &image.location, -5).unwrap();
    assert_eq!(image.recover().unwrap().errno(), -5);
    set_errno(&image.device, &image.location, 0).unwrap();
    assert_eq!(image.recover().unwrap().errno(), 0);
}

#[test]
fn write_back_keeps_the_error_of_the_journal() {
    let mut image = Image::new(0, REVOKE | V3, 1, 5);
    image.transaction(&set(&[(3, 1)]));
    set_errno(&image.device, &image.location, -30).unwrap();
    let recovery = image.recover().unwrap();
    write_back(&image.device, &image.location, &recovery, Emptied::Clean).unwrap();
    assert_eq!(image.recover().unwrap().errno(), -30);
}

#[test]
fn a_device_that_fails_is_told_and_tried_again() {
    let mut image = Image::new(0, REVOKE | V3, 1, 5);
    let steps = [set(&[(3, 1), (4, 2), (9, 3)]), set(&[(4, 5)])];
    for step in &steps {
        image.transaction(step);
    }
    let expected = expected(&image, &steps);
    for operation in [Operation::Read, Operation::Write, Operation::Flush] {
        for call in 0.. {
            let device = FaultDevice::new(&image.device, call);
            device.fail(Fault {
                operation,
                call,
                times: Times::Once,
                errno: 5,
            });
            let outcome = recover(&device, &image.location)
                .and_then(|found| write_back(&device, &image.location, &found, Emptied::Clean));
            if outcome.is_ok() {
                assert!(call > 0, "{operation}");
                break;
            }
            assert!(matches!(outcome, Err(JournalError::Device(_))));
            let found = recover(&device, &image.location).unwrap();
            write_back(&device, &image.location, &found, Emptied::Clean).unwrap();
            assert_eq!(home(&device), expected, "{operation} {call}");
        }
    }
}

#[test]
fn a_superblock_is_refused_with_its_place() {
    let image = Image::new(0, REVOKE | V3, 1, 5);
    image.damage(0, 0x18);
    assert!(matches!(
        image.recover(),
        Err(JournalError::Corrupt {
            block: 0,
            source: Corruption::Checksum { .. }
        })
    ));
}

/// A data block that begins with the journal's magic number.
pub(super) fn escaped(byte: u8) -> Vec<u8> {
    let mut bytes = vec![byte; BLOCK];
    bytes[..4].copy_from_slice(&MAGIC_BYTES);
    bytes
}
