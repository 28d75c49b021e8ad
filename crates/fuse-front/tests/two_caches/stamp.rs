//! Stamps: every 16 bytes of a file say which file they belong to, where, and which store made
//! them. Zeros are a hole.

/// What one store writes at least, and what belongs to one writer alone.
pub(crate) const SECTOR: u64 = 512;

/// Bytes of one stamp. Sizes that a file is cut to are multiples of it, so that none is cut in two.
pub(crate) const UNIT: u64 = 16;

/// Stamps of a sector.
pub(crate) const UNITS: usize = (SECTOR / UNIT) as usize;

/// Marks a stamp; also in `storer.py`.
const MAGIC: u64 = 0x5EED << 48;

/// What 16 bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// A hole.
    Zero,
    /// Made by the store with that sequence number, at the right place.
    Store(u64),
    /// Half a stamp at the right place: the copy ran beside a store or a punch.
    Torn,
    /// The stamp of another place or file, or no stamp at all.
    Misplaced,
}

fn tag(file: u16, offset: u64) -> u64 {
    MAGIC | (u64::from(file) << 32) | (offset / UNIT)
}

/// Stamps `bytes`, which are to lie at `offset` of `file`.
pub(crate) fn fill(file: u16, offset: u64, sequence: u64, bytes: &mut [u8]) {
    assert!(offset.is_multiple_of(UNIT) && (bytes.len() as u64).is_multiple_of(UNIT));
    for (unit, at) in bytes
        .chunks_exact_mut(UNIT as usize)
        .zip((offset..).step_by(UNIT as usize))
    {
        unit[..8].copy_from_slice(&tag(file, at).to_le_bytes());
        unit[8..].copy_from_slice(&sequence.to_le_bytes());
    }
}

/// Reads the stamps of `bytes`, found at `offset` of `file`: offset and meaning of each.
///
pub(crate) fn read(file: u16, offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, Stamp)> {
    let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    bytes
        .chunks_exact(UNIT as usize)
        .zip((offset..).step_by(UNIT as usize))
        .map(move |(unit, at)| {
            let stamp = match (half(&unit[..8]), half(&unit[8..])) {
                (0, 0) => Stamp::Zero,
                (0, _) => Stamp::Torn,
                (found, 0) if found == tag(file, at) => Stamp::Torn,
                (found, sequence) if found == tag(file, at) => Stamp::Store(sequence),
                _ => Stamp::Misplaced,
            };
            (at, stamp)
        })
}

#[test]
fn a_stamp_is_known_where_it_belongs_and_nowhere_else() {
    let mut bytes = [0; 64];
    fill(3, 4096, 9, &mut bytes[16..48]);
    let found: Vec<_> = read(3, 4080, &bytes).map(|(_, stamp)| stamp).collect();
    let there = Stamp::Store(9);
    assert_eq!(found, [Stamp::Zero, there, there, Stamp::Zero]);
    for (file, offset) in [(3, 4096), (2, 4080), (3, 0)] {
        let found: Vec<_> = read(file, offset, &bytes).map(|(_, stamp)| stamp).collect();
        assert_eq!(found[1..3], [Stamp::Misplaced; 2]);
    }
}
