//! Single damages to sound images, checksums mended where they are not the damage.

use pagefence_ext4_format::features::Compat;
use pagefence_ext4_format::group_desc::GroupDesc;
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_ext4_format::{BlockNo, GroupNo, InodeNo, bitmap, xattr};

use crate::common::edit::Kind;
use crate::common::{Image, Recipe};
use crate::exploits::{inode_of, put16, put32};

/// Where fields are in an inode's record.
pub(crate) const I_BLOCK: usize = 40;
/// Behind the first 128 bytes and 32 of extra fields: attributes, and their first entry.
const ENTRIES: usize = 128 + 32 + 4;

/// Its name, and how it is done.
pub(crate) type Damage = (&'static str, fn(&Image));

/// An ext4 image of several groups, with checksums.
pub(crate) fn ext4() -> Image {
    Recipe::rich("-t ext4 -b 1024 -g 2048 -O large_dir,orphan_file").make()
}

pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from(get16(bytes, at)) | u32::from(get16(bytes, at + 2)) << 16
}

fn add32(bytes: &mut [u8], at: usize, more: u32) {
    put32(bytes, at, get32(bytes, at).wrapping_add(more));
}

fn group_desc(image: &Image, group: GroupNo) -> GroupDesc {
    let (block, offset) = image.place_of_group(group);
    GroupDesc::parse(&image.read_block(block)[offset..], group, &image.superblock).expect("sound")
}

/// Changes a block bitmap, checksum mended.
fn edit_block_bitmap(image: &Image, group: GroupNo, edit: impl FnOnce(&mut [u8])) {
    let mut desc = group_desc(image, group);
    let mut bits = image.read_block(desc.block_bitmap());
    edit(&mut bits);
    image.write_block(desc.block_bitmap(), &bits);
    desc.set_block_bitmap_checksum(bitmap::block_bitmap_checksum(&bits, &image.superblock));
    image.edit_group(group, |record| desc.write_to(record).expect("its size"));
}

/// Changes an inode bitmap, checksum mended.
fn edit_inode_bitmap(image: &Image, group: GroupNo, edit: impl FnOnce(&mut [u8])) {
    let mut desc = group_desc(image, group);
    let mut bits = image.read_block(desc.inode_bitmap());
    edit(&mut bits);
    image.write_block(desc.inode_bitmap(), &bits);
    desc.set_inode_bitmap_checksum(bitmap::inode_bitmap_checksum(&bits, &image.superblock));
    image.edit_group(group, |record| desc.write_to(record).expect("its size"));
}

/// The bit of a block in its group's bitmap.
fn bit_of(image: &Image, block: BlockNo) -> (GroupNo, u32) {
    image.superblock.group_of_block(block).expect("a block")
}

/// Where a name's entry starts in the first block of a directory.
fn entry_of(bytes: &[u8], name: &[u8]) -> usize {
    let at = bytes.windows(name.len()).position(|window| window == name);
    at.expect("the name is there") - 8
}

/// Changes the first block of a directory.
fn edit_directory(image: &Image, path: &str, edit: impl FnOnce(&mut [u8])) {
    let number = inode_of(image, path);
    let block = image.block_of(number, 0);
    image.edit_block(number, block, Kind::Directory, edit);
}

pub(crate) fn edit_big(image: &Image, edit: impl FnOnce(&mut [u8])) {
    let big = inode_of(image, "big");
    let leaf = image.extent_block_of(big, 0).expect("a tree of two levels");
    image.edit_block(big, leaf, Kind::ExtentNode, edit);
}

fn edit_index(image: &Image, block: u32, edit: impl FnOnce(&mut [u8])) {
    let deep = inode_of(image, "deep");
    let block = image.block_of(deep, block);
    image.edit_block(deep, block, Kind::Index, edit);
}

pub(crate) fn edit_xattrs(image: &Image, edit: impl FnOnce(&mut [u8])) {
    let small = inode_of(image, "small");
    let block = image
        .inode(small)
        .file_acl()
        .expect("a block of attributes");
    image.edit_block(small, block, Kind::Xattrs, edit);
}

fn free_inode(image: &Image) -> InodeNo {
    InodeNo(image.superblock.inodes_count() - 3)
}

/// Of descriptors, bitmaps and counts.
pub(crate) const GROUPS: &[Damage] = &[
    ("a used block is marked free", |image| {
        let (group, bit) = bit_of(image, image.block_of(inode_of(image, "small"), 0));
        edit_block_bitmap(image, group, |bits| {
            assert_eq!(bitmap::clear_range(bits, bit..bit + 1), 1);
        });
    }),
    ("a free block is marked used", |image| {
        edit_block_bitmap(image, GroupNo(2), |bits| {
            let bit = bitmap::next_zero(bits, 0..2048).expect("a free one");
            bitmap::set_range(bits, bit..bit + 1);
        });
    }),
    ("a used inode is marked free", |image| {
        let small = inode_of(image, "small");
        let place = image.superblock.locate_inode(small).expect("it exists");
        edit_inode_bitmap(image, place.group, |bits| {
            assert_eq!(bitmap::clear_range(bits, place.index..place.index + 1), 1);
        });
    }),
    ("a free inode is marked used", |image| {
        let small = inode_of(image, "small");
        let place = image.superblock.locate_inode(small).expect("it exists");
        edit_inode_bitmap(image, place.group, |bits| {
            let last = image.superblock.inodes_per_group();
            let bit = (0..last).rev().find(|bit| !bitmap::test(bits, *bit));
            let bit = bit.expect("a free one");
            bitmap::set_range(bits, bit..bit + 1);
        });
    }),
    ("a block bitmap's checksum", |image| {
        image.edit_group(GroupNo(0), |record| record[0x18] ^= 1);
    }),
    ("an inode bitmap's checksum", |image| {
        image.edit_group(GroupNo(0), |record| record[0x1A] ^= 1);
    }),
    ("padding of a block bitmap", |image| {
        edit_block_bitmap(image, GroupNo(0), |bits| bits[1000] = 0);
    }),
    ("padding of an inode bitmap", |image| {
        edit_inode_bitmap(image, GroupNo(0), |bits| bits[1000] = 0);
    }),
    ("free blocks of a group", |image| {
        image.edit_group(GroupNo(1), |record| record[0x0C] ^= 1);
    }),
    ("free inodes of a group", |image| {
        image.edit_group(GroupNo(1), |record| record[0x0E] ^= 1);
    }),
    ("directories of a group", |image| {
        image.edit_group(GroupNo(0), |record| record[0x10] += 1);
    }),
    ("free blocks of all", |image| {
        image.edit_superblock(|bytes| add32(bytes, 0x0C, 3));
    }),
    ("free inodes of all", |image| {
        image.edit_superblock(|bytes| add32(bytes, 0x10, 3));
    }),
    ("a descriptor's checksum", |image| {
        let (block, offset) = image.place_of_group(GroupNo(1));
        let mut bytes = image.read_block(block);
        bytes[offset + 0x1E] ^= 1;
        image.write_block(block, &bytes);
    }),
    ("an inode bitmap on the inode table", |image| {
        let table = group_desc(image, GroupNo(0)).inode_table();
        image.edit_group(GroupNo(0), |record| {
            put32(record, 4, u32::try_from(table.0).expect("small"));
        });
    }),
    ("inodes in use past the unused ones", |image| {
        let per_group = image.superblock.inodes_per_group();
        image.edit_group(GroupNo(0), |record| {
            put16(record, 0x1C, u16::try_from(per_group - 12).expect("small"));
        });
    }),
    ("a group's block bitmap said to be unused", |image| {
        let (group, _) = bit_of(image, image.block_of(inode_of(image, "big"), 0));
        image.edit_group(group, |record| record[0x12] |= 2);
    }),
];

/// Of inodes, their maps and attributes.
pub(crate) const INODES: &[Damage] = &[
    ("an inode's checksum", |image| {
        let (block, offset) = image.place_of_inode(inode_of(image, "small"));
        let mut bytes = image.read_block(block);
        bytes[offset + 0x7C] ^= 1;
        image.write_block(block, &bytes);
    }),
    ("a mode of no kind", |image| {
        image.edit_inode(inode_of(image, "small"), |record| put16(record, 0, 0xF1A4));
    }),
    ("a time of deletion", |image| {
        image.edit_inode(inode_of(image, "small"), |record| {
            put32(record, 20, 1 << 30)
        });
    }),
    ("no time of deletion", |image| {
        let free = InodeNo(inode_of(image, "deep").0 + 1);
        let free = (free.0..).map(InodeNo);
        let unused = free
            .clone()
            .find(|number| image.inode(*number).links() == 0);
        // Past the inodes in use, but among those that may be.
        let number = unused.expect("one that is not in use");
        image.edit_inode(number, |record| put16(record, 0, 0x81A4));
        let place = image.superblock.locate_inode(number).expect("it exists");
        image.edit_group(place.group, |record| put16(record, 0x1C, 0));
    }),
    ("too many sectors", |image| {
        image.edit_inode(inode_of(image, "small"), |record| add32(record, 28, 2));
    }),
    ("a size too small", |image| {
        image.edit_inode(inode_of(image, "big"), |record| put32(record, 4, 1024));
    }),
    ("a directory's size", |image| {
        image.edit_inode(inode_of(image, "sub"), |record| put32(record, 4, 4096));
    }),
    ("a directory's size, no whole block", |image| {
        image.edit_inode(inode_of(image, "sub"), |record| put32(record, 4, 1000));
    }),
    ("a link's size", |image| {
        image.edit_inode(inode_of(image, "fast"), |record| put32(record, 4, 20));
    }),
    ("extents that overlap", |image| {
        edit_big(image, |node| {
            let first = get32(node, 12);
            put32(node, 24, first);
        });
    }),
    ("an extent past the end", |image| {
        edit_big(image, |node| put32(node, 12 + 8, u32::MAX));
    }),
    ("an extent of no blocks", |image| {
        edit_big(image, |node| put16(node, 12 + 4, 0));
    }),
    ("the magic of an extent block", |image| {
        edit_big(image, |node| put16(node, 0, 0x1234));
    }),
    ("an extent block's checksum", |image| {
        let big = inode_of(image, "big");
        let leaf = image.extent_block_of(big, 0).expect("a tree of two levels");
        let mut bytes = image.read_block(leaf);
        let last = bytes.len() - 4;
        bytes[last] ^= 1;
        image.write_block(leaf, &bytes);
    }),
    ("more entries than fit in the root", |image| {
        image.edit_inode(inode_of(image, "big"), |record| {
            put16(record, I_BLOCK + 2, 5)
        });
    }),
    ("a tree one level too deep", |image| {
        image.edit_inode(inode_of(image, "big"), |record| {
            put16(record, I_BLOCK + 6, 2)
        });
    }),
    ("a block of two files", |image| {
        let other = image.block_of(inode_of(image, "big"), 0);
        image.edit_inode(inode_of(image, "small"), |record| {
            put32(record, I_BLOCK + 20, u32::try_from(other.0).expect("small"));
        });
    }),
    ("a block of the inode table", |image| {
        let (table, _) = image.place_of_inode(InodeNo::ROOT);
        image.edit_inode(inode_of(image, "small"), |record| {
            put32(record, I_BLOCK + 20, u32::try_from(table.0).expect("small"));
        });
    }),
    ("no extents after all", |image| {
        image.set_inode(inode_of(image, "small"), |inode| {
            inode.set_flags(inode.flags().difference(InodeFlags::EXTENTS));
        });
    }),
    ("a file with an index", |image| {
        image.set_inode(inode_of(image, "small"), |inode| {
            inode.set_flags(inode.flags() | InodeFlags::INDEX);
        });
    }),
    ("users of an attribute block", |image| {
        edit_xattrs(image, |block| put32(block, 4, 2));
    }),
    ("an attribute block's magic", |image| {
        edit_xattrs(image, |block| put32(block, 0, 7));
    }),
    ("an attribute's value past the end", |image| {
        edit_xattrs(image, |block| put16(block, 32 + 2, 1020));
    }),
    ("an attribute's hash", |image| {
        edit_xattrs(image, |block| add32(block, 32 + 12, 1));
    }),
    ("an attribute block's checksum", |image| {
        let block = image.inode(inode_of(image, "small")).file_acl();
        let block = block.expect("a block of attributes");
        let mut bytes = image.read_block(block);
        assert_eq!(get32(&bytes, 0), xattr::XATTR_MAGIC);
        bytes[16] ^= 1;
        image.write_block(block, &bytes);
    }),
    ("a value in an inode past its end", |image| {
        image.edit_inode(inode_of(image, "small"), |record| {
            put16(record, ENTRIES + 2, 200);
        });
    }),
    ("the resize inode", |image| {
        let double = BlockNo(get32(&image.inode(InodeNo::RESIZE).block_area()[..], 13 * 4).into());
        image.edit_block(InodeNo::RESIZE, double, Kind::Plain, |block| {
            let slot = block.chunks(4).position(|slot| slot != [0; 4]);
            add32(block, 4 * slot.expect("blocks are kept"), 1);
        });
    }),
    ("the journal's superblock", |image| {
        let block = image.block_of(InodeNo::JOURNAL, 0);
        image.edit_block(InodeNo::JOURNAL, block, Kind::Plain, |block| block[0] ^= 1);
    }),
    ("the journal's inode", |image| {
        image.edit_inode(InodeNo::JOURNAL, |record| put16(record, 0, 0x41ED));
    }),
];

/// Of directories, links and orphans.
pub(crate) const NAMES: &[Damage] = &[
    ("a file's links", |image| {
        image.set_inode(inode_of(image, "small"), |inode| inode.set_links(2));
    }),
    ("a directory's links", |image| {
        image.set_inode(inode_of(image, "sub"), |inode| inode.set_links(7));
    }),
    ("a wrong ..", |image| {
        edit_directory(image, "sub/inner", |block| put32(block, 12, 2));
    }),
    ("a wrong .", |image| {
        edit_directory(image, "sub", |block| put32(block, 0, 2));
    }),
    ("no .. at all", |image| {
        edit_directory(image, "sub", |block| block[12 + 8] = b'x');
    }),
    ("a name for a free inode", |image| {
        let free = free_inode(image);
        edit_directory(image, "sub/inner", |block| {
            let at = entry_of(block, b"leaf");
            put32(block, at, free.0);
        });
    }),
    ("a name for a reserved inode", |image| {
        edit_directory(image, "sub/inner", |block| {
            let at = entry_of(block, b"leaf");
            put32(block, at, 5);
        });
    }),
    ("a name for an inode past the last", |image| {
        edit_directory(image, "sub/inner", |block| {
            let at = entry_of(block, b"leaf");
            put32(block, at, u32::MAX);
        });
    }),
    ("a wrong kind in an entry", |image| {
        edit_directory(image, "sub/inner", |block| {
            let at = entry_of(block, b"leaf");
            block[at + 7] = 2;
        });
    }),
    ("an entry past its block", |image| {
        edit_directory(image, "sub/inner", |block| {
            let at = entry_of(block, b"leaf");
            put16(block, at + 4, 2000);
        });
    }),
    ("a name with a slash", |image| {
        edit_directory(image, "sub/inner", |block| {
            let at = entry_of(block, b"leaf");
            block[at + 9] = b'/';
        });
    }),
    ("a name with NUL", |image| {
        edit_directory(image, "sub/inner", |block| {
            let at = entry_of(block, b"leaf");
            block[at + 9] = 0;
        });
    }),
    ("a name gone", |image| {
        edit_directory(image, "sub/inner", |block| {
            let at = entry_of(block, b"leaf");
            put32(block, at, 0);
        });
    }),
    ("a directory's name gone", |image| {
        edit_directory(image, "sub", |block| {
            let at = entry_of(block, b"inner");
            put32(block, at, 0);
        });
    }),
    ("a name twice", |image| {
        edit_directory(image, "", |block| {
            let at = entry_of(block, b"slow");
            block[at + 8..at + 12].copy_from_slice(b"fast");
        });
    }),
    ("a directory with two names", |image| {
        let sub = inode_of(image, "sub");
        edit_directory(image, "sub/inner", |block| {
            let at = entry_of(block, b"leaf");
            put32(block, at, sub.0);
            block[at + 7] = 2;
        });
    }),
    ("a directory block's checksum", |image| {
        let block = image.block_of(inode_of(image, "sub"), 0);
        let mut bytes = image.read_block(block);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        image.write_block(block, &bytes);
    }),
    ("a directory with a hole", |image| {
        image.edit_inode(inode_of(image, "sub"), |record| {
            put32(record, I_BLOCK + 12, 1);
            put32(record, 4, 2048);
        });
    }),
    ("an index whose hashes go down", |image| {
        let node = image.block_of(inode_of(image, "deep"), 0);
        let node = get32(&image.read_block(node), 36);
        edit_index(image, node, |block| {
            let (one, other) = (get32(block, 16), get32(block, 24));
            assert!(one < other, "a node of many entries");
            put32(block, 16, other);
            put32(block, 24, one);
        });
    }),
    ("an index with a wrong limit", |image| {
        edit_index(image, 0, |block| put16(block, 32, 9));
    }),
    ("an index that leads to a block twice", |image| {
        edit_index(image, 0, |block| {
            let first = get32(block, 36);
            put32(block, 44, first);
        });
    }),
    ("an index that leads past the end", |image| {
        edit_index(image, 0, |block| put32(block, 44, 100_000));
    }),
    ("an index with a wrong hash", |image| {
        edit_index(image, 0, |block| {
            let hash = get32(block, 40);
            put32(block, 40, hash + 0x0010_0000);
        });
    }),
    ("an index with an unknown hash", |image| {
        edit_index(image, 0, |block| block[28] = 9);
    }),
    ("an index block's checksum", |image| {
        let block = image.block_of(inode_of(image, "deep"), 0);
        let mut bytes = image.read_block(block);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        image.write_block(block, &bytes);
    }),
    ("an orphan list that goes round", |image| {
        let (small, big) = (inode_of(image, "small"), inode_of(image, "big"));
        image.edit_inode(small, |record| put32(record, 20, big.0));
        image.edit_inode(big, |record| put32(record, 20, small.0));
        image.edit_superblock(|bytes| put32(bytes, 0xE8, small.0));
    }),
    ("an orphan file's magic", |image| {
        let number = image.superblock.orphan_file_inode().expect("there is one");
        let block = image.block_of(number, 0);
        image.edit_block(number, block, Kind::Plain, |bytes| {
            let at = bytes.len() - 8;
            put32(bytes, at, 1);
        });
        assert!(image.superblock.has_compat(Compat::ORPHAN_FILE));
    }),
    ("an orphan file's checksum", |image| {
        let number = image.superblock.orphan_file_inode().expect("there is one");
        let block = image.block_of(number, 0);
        image.edit_block(number, block, Kind::Plain, |bytes| {
            let at = bytes.len() - 4;
            add32(bytes, at, 1);
        });
    }),
];

/// Which `e2fsck -n` does not look at: it deals with the orphan list only if it may write.
pub(crate) const UNSEEN: &[Damage] = &[
    ("an orphan list of a free inode", |image| {
        let free = free_inode(image);
        image.edit_superblock(|bytes| put32(bytes, 0xE8, free.0));
    }),
    ("an orphan list past the last inode", |image| {
        image.edit_superblock(|bytes| put32(bytes, 0xE8, u32::MAX));
    }),
];

/// Of an image without extents, checksums and a journal.
pub(crate) const OLD: &[Damage] = &[
    ("ext2: a pointer past the end", |image| {
        image.edit_inode(inode_of(image, "big"), |record| {
            put32(record, I_BLOCK, u32::MAX);
        });
    }),
    (
        "ext2: a pointer in an indirect block past the end",
        |image| {
            let big = inode_of(image, "big");
            let indirect = get32(&image.inode(big).block_area()[..], 48);
            image.edit_block(big, BlockNo(indirect.into()), Kind::Plain, |block| {
                put32(block, 0, u32::MAX);
            });
        },
    ),
    ("ext2: a block of two files", |image| {
        let other = image.block_of(inode_of(image, "small"), 0);
        image.edit_inode(inode_of(image, "big"), |record| {
            put32(record, I_BLOCK, u32::try_from(other.0).expect("small"));
        });
    }),
    ("ext2: an indirect block that leads to itself", |image| {
        let big = inode_of(image, "big");
        let indirect = get32(&image.inode(big).block_area()[..], 48);
        image.edit_block(big, BlockNo(indirect.into()), Kind::Plain, |block| {
            put32(block, 0, indirect);
        });
    }),
    ("ext2: a used block is marked free", |image| {
        let (group, bit) = bit_of(image, image.block_of(inode_of(image, "small"), 0));
        edit_block_bitmap(image, group, |bits| {
            assert_eq!(bitmap::clear_range(bits, bit..bit + 1), 1);
        });
    }),
    ("ext2: links", |image| {
        image.set_inode(inode_of(image, "small"), |inode| inode.set_links(9));
    }),
    ("ext2: free blocks of a group", |image| {
        image.edit_group(GroupNo(0), |record| record[0x0C] ^= 1);
    }),
    ("ext2: a size past what a map reaches", |image| {
        image.edit_inode(inode_of(image, "big"), |record| {
            put32(record, 0x6C, 0x7FFF_0000);
        });
    }),
];
