//! Fast commits behind the log of an image, with every tag, as Linux leaves them.

use pagefence::device::{Device as _, MemoryDevice};
use pagefence_ext4_format::checksum::crc32c;
use pagefence_ext4_format::journal::fast_commit::{FastCommitBuilder, FastCommitEntry};
use pagefence_ext4_format::journal::{
    BlockKind, FastCommitTag, Header, JournalSuperblock, Sequence,
};
use pagefence_ext4_format::{BlockNo, FileBlock, GroupNo, InodeNo};

use super::layout::Layout;

/// Bytes of the records that tags hold.
const RECORD: usize = 160;
/// Inodes that are free.
const FREE: [InodeNo; 5] = [
    InodeNo(500),
    InodeNo(501),
    InodeNo(502),
    InodeNo(503),
    InodeNo(504),
];
/// Blocks before the end of the first group: free ones begin there.
const FREE_BLOCKS: u64 = 200;
const ROOT: InodeNo = InodeNo(2);

/// Writes two fast commits behind the log of the image on `device`. `recovered` is the same once its
/// log was brought home, where `small`, `sub` and `big` have these inodes.
pub(super) fn write(
    device: MemoryDevice,
    recovered: MemoryDevice,
    [small, sub, big]: [InodeNo; 3],
) -> Option<MemoryDevice> {
    let home = Layout::of(recovered)?;
    let left = Layout::of(device)?;
    let blocks: Vec<BlockNo> = {
        let inode = left.inode(left.superblock.journal_inode()?)?;
        left.map(&inode).blocks().collect()
    };
    let mut journal = left.read_block(*blocks.first()?)?;
    // As Linux does when it mounts it.
    journal[0x2B] |= 0x20;
    journal[0xFC..0x100].fill(0);
    let checksum = crc32c(!0, &journal[..1024]);
    journal[0xFC..0x100].copy_from_slice(&checksum.to_be_bytes());
    left.device.write(left.offset(blocks[0]), &journal).ok()?;
    let length = u32::try_from(blocks.len()).ok()?;
    let block_size = left.superblock.block_size();
    let superblock = JournalSuperblock::parse(&journal, block_size, length).ok()?;
    let headers = blocks[superblock.first as usize..superblock.end as usize]
        .iter()
        .filter_map(|block| Header::parse(&left.read_block(*block)?));
    let last = headers
        .filter(|header| header.kind == BlockKind::Commit)
        .map(|header| header.sequence.0)
        .max()?;
    let mut builder = FastCommitBuilder::new(block_size, Sequence(last).next());
    let per_group = u64::from(home.superblock.blocks_in_group(GroupNo(0)));
    let free = home.superblock.first_block_of_group(GroupNo(0)).0 + per_group - FREE_BLOCKS;
    first(&mut builder, &home, free, small, sub)?;
    second(&mut builder, &home, free, sub, big)?;
    let area = superblock.fast_commit.start as usize..superblock.fast_commit.end as usize;
    let blocks = &blocks[area];
    assert!(builder.area().len() <= blocks.len() * left.block_size());
    for (bytes, block) in builder.area().chunks(left.block_size()).zip(blocks) {
        left.device.write(left.offset(*block), bytes).ok()?;
    }
    Some(left.device)
}

/// A file in pieces, a name more, a symbolic link.
fn first(
    builder: &mut FastCommitBuilder,
    home: &Layout,
    free: u64,
    small: InodeNo,
    sub: InodeNo,
) -> Option<()> {
    let [unwritten, tiny, .., fast] = FREE;
    builder.push(&inode(unwritten, &new(0o100_644, 1, 20 << 10)));
    builder.push(&range(unwritten, 0, free, 1));
    builder.push(&range(unwritten, 5, free + 10, 0x8000 + 10));
    builder.push(&range(unwritten, 8, free + 13, 2));
    builder.push(&FastCommitTag::Creat(entry(ROOT, unwritten, b"unwritten")));
    builder.push(&FastCommitTag::Link(entry(sub, small, b"other")));
    // All of the record, with its attributes.
    let mut record = home.read(home.inode_offset(small)?, home.superblock.inode_size())?;
    record[26] = 2;
    builder.push(&inode(small, &record));
    builder.push(&inode(tiny, &new(0o100_644, 1, 3000)));
    builder.push(&range(tiny, 0, free + 30, 3));
    builder.push(&FastCommitTag::Creat(entry(ROOT, tiny, b"tiny-at-first")));
    let mut link = new(0o120_777, 1, 5);
    link[32..36].fill(0);
    link[40..45].copy_from_slice(b"small");
    builder.push(&inode(fast, &link));
    builder.push(&FastCommitTag::Creat(entry(ROOT, fast, b"fast")));
    builder.end_commit();
    Some(())
}

/// A file in a new directory, ranges that go and come, a file that goes.
fn second(
    builder: &mut FastCommitBuilder,
    home: &Layout,
    free: u64,
    sub: InodeNo,
    big: InodeNo,
) -> Option<()> {
    let [_, tiny, inner, going, _] = FREE;
    builder.push(&inode(inner, &new(0o040_755, 2, 1024)));
    builder.push(&FastCommitTag::Creat(entry(sub, inner, b"inner")));
    builder.push(&FastCommitTag::Link(entry(inner, tiny, b"leaf")));
    builder.push(&FastCommitTag::Unlink(entry(ROOT, tiny, b"tiny-at-first")));
    builder.push(&inode(tiny, &new(0o100_644, 1, 2500)));
    builder.push(&FastCommitTag::DelRange {
        ino: big,
        first: FileBlock(10),
        count: 5,
    });
    builder.push(&range(big, 12, free + 40, 2));
    builder.push(&inode(big, &record_of(home, big)?));
    builder.push(&inode(going, &new(0o100_644, 1, 1000)));
    builder.push(&range(going, 0, free + 50, 1));
    builder.push(&FastCommitTag::Creat(entry(ROOT, going, b"going")));
    builder.push(&FastCommitTag::Unlink(entry(ROOT, going, b"going")));
    builder.end_commit();
    Some(())
}

/// The record of an empty file with extents.
fn new(mode: u16, links: u16, size: u32) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[0..2].copy_from_slice(&mode.to_le_bytes());
    record[4..8].copy_from_slice(&size.to_le_bytes());
    record[26..28].copy_from_slice(&links.to_le_bytes());
    record[32..36].copy_from_slice(&0x8_0000_u32.to_le_bytes());
    record[128..130].copy_from_slice(&32_u16.to_le_bytes());
    record
}

fn record_of(home: &Layout, inode: InodeNo) -> Option<[u8; RECORD]> {
    let bytes = home.read(home.inode_offset(inode)?, RECORD)?;
    bytes.first_chunk().copied()
}

fn inode(ino: InodeNo, raw: &[u8]) -> FastCommitTag<'_> {
    FastCommitTag::Inode { ino, raw }
}

fn entry(parent: InodeNo, ino: InodeNo, name: &[u8]) -> FastCommitEntry<'_> {
    FastCommitEntry { parent, ino, name }
}

/// A range of few blocks, `length` as extents have it.
fn range(ino: InodeNo, first: u32, start: u64, length: u16) -> FastCommitTag<'static> {
    let mut extent = [0; 12];
    extent[..4].copy_from_slice(&first.to_le_bytes());
    extent[4..6].copy_from_slice(&length.to_le_bytes());
    extent[8..].copy_from_slice(&start.to_le_bytes()[..4]);
    FastCommitTag::AddRange { ino, extent }
}
