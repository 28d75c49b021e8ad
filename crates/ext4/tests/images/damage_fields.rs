//! Fields that must say, or must not, what they say by the features, the kind of file, or each other.

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_ext4_format::{GroupNo, InodeNo};

use crate::common::edit::Kind;
use crate::common::{Image, Recipe};
use crate::damage_list::{Damage, I_BLOCK, edit_xattrs, get16, get32};
use crate::exploits::{inode_of, put16, put32};

/// Where fields are in an inode's record, and in the superblock.
const I_SIZE: usize = 4;
const I_DTIME: usize = 20;
const I_SIZE_HIGH: usize = 108;
const I_SECTORS: usize = 28;
const I_FADDR: usize = 112;

/// An image of clusters of 4 blocks.
pub(crate) fn clusters() -> Image {
    Recipe::new(8, "-t ext4 -b 1024 -O bigalloc,^resize_inode -C 4096")
        .file("small", vec![b's'; 3000])
        .make()
}

fn set_flag(image: &Image, path: &str, flag: InodeFlags) {
    set_flag_of(image, inode_of(image, path), flag);
}

fn set_flag_of(image: &Image, number: InodeNo, flag: InodeFlags) {
    image.set_inode(number, |inode| inode.set_flags(inode.flags() | flag));
}

/// Of inodes.
pub(crate) const RECORDS: &[Damage] = &[
    ("quotas that nobody keeps have a link", |image| {
        image.set_inode(InodeNo::USER_QUOTA, |inode| inode.set_links(1));
    }),
    ("quotas that nobody keeps have a block", |image| {
        image.edit_inode(InodeNo::GROUP_QUOTA, |record| put32(record, I_BLOCK, 7));
    }),
    ("a reserved inode has sectors", |image| {
        image.edit_inode(InodeNo::BOOT_LOADER, |record| put32(record, I_SECTORS, 8));
    }),
    ("a reserved inode ignores case", |image| {
        set_flag_of(image, InodeNo(10), InodeFlags::CASEFOLD);
    }),
    ("bad blocks have an owner", |image| {
        image.set_inode(InodeNo::BAD_BLOCKS, |inode| inode.set_uid(7));
    }),
    ("the address of a fragment", |image| {
        image.edit_inode(inode_of(image, "small"), |record| put32(record, I_FADDR, 7));
    }),
    ("a device of 4 GiB", |image| {
        image.edit_inode(inode_of(image, "null"), |record| {
            put32(record, I_SIZE_HIGH, 1)
        });
    }),
    ("a link of 4 GiB", |image| {
        image.edit_inode(inode_of(image, "fast"), |record| {
            put32(record, I_SIZE_HIGH, 1)
        });
    }),
    ("an inode of AFS", |image| {
        set_flag(image, "small", InodeFlags::IMAGIC)
    }),
    ("encrypted, nobody knows how", |image| {
        set_flag(image, "small", InodeFlags::ENCRYPT);
    }),
    ("a file that ignores case", |image| {
        set_flag(image, "small", InodeFlags::CASEFOLD);
    }),
    ("a directory that ignores case", |image| {
        set_flag(image, "sub", InodeFlags::CASEFOLD);
    }),
    ("an immutable link", |image| {
        set_flag(image, "fast", InodeFlags::IMMUTABLE)
    }),
    ("a fast link's extents", |image| {
        set_flag(image, "fast", InodeFlags::EXTENTS)
    }),
    ("a fast link past its size", |image| {
        let link = inode_of(image, "fast");
        let len = usize::try_from(image.inode(link).size()).expect("short");
        image.edit_inode(link, |record| record[I_BLOCK + len] = b'x');
    }),
    ("a slow link's end", |image| {
        let link = inode_of(image, "slow");
        let block = image.block_of(link, 0);
        image.edit_block(link, block, Kind::Plain, |bytes| bytes[70] = 0);
    }),
    ("room in a root", |image| {
        image.edit_inode(inode_of(image, "small"), |record| {
            put16(record, I_BLOCK + 4, 1)
        });
    }),
    ("the last block of a deep tree behind the end", |image| {
        image.edit_inode(inode_of(image, "big"), |record| {
            let end = get32(record, I_SIZE).next_multiple_of(2048);
            put32(record, I_SIZE, end - 2048);
        });
    }),
    ("a name without a prefix", |image| {
        edit_xattrs(image, |block| block[32 + 1] = 0);
    }),
    ("the journal waits to be deleted", |image| {
        image.edit_inode(InodeNo::JOURNAL, |record| put32(record, I_DTIME, 30));
    }),
    ("what keeps blocks for descriptors is short", |image| {
        image.edit_inode(InodeNo::RESIZE, |record| put32(record, I_SIZE, 1024));
    }),
    ("a journal with a hole at its end", |image| {
        image.edit_inode(InodeNo::JOURNAL, |record| {
            let size = get32(record, I_SIZE);
            put32(record, I_SIZE, size + 1);
        });
    }),
    ("an encrypted journal", |image| {
        image.set_inode(InodeNo::JOURNAL, |inode| {
            inode.set_flags(inode.flags() | InodeFlags::ENCRYPT);
        });
    }),
    ("an orphan file of half a block more", |image| {
        let number = image.superblock.orphan_file_inode().expect("there is one");
        image.edit_inode(number, |record| {
            let size = get32(record, I_SIZE);
            put32(record, I_SIZE, size + 512);
        });
    }),
    ("a reserved inode in use", |image| {
        image.edit_inode(InodeNo(9), |record| {
            put16(record, 0, 0x81A4);
            put16(record, 26, 1);
        });
    }),
];

/// Of the superblock, the journal's, and descriptors.
pub(crate) const SUPERBLOCKS: &[Damage] = &[
    ("a revision to come", |image| {
        image.edit_superblock(|bytes| put32(bytes, 0x4C, 2));
    }),
    ("a feature that is not known", |image| {
        image.edit_superblock(|bytes| bytes[0x5F] |= 0x40);
    }),
    ("a feature for reading that is not known", |image| {
        image.edit_superblock(|bytes| bytes[0x67] |= 0x40);
    }),
    ("flexible groups of 2^40", |image| {
        image.edit_superblock(|bytes| bytes[0x174] = 40);
    }),
    ("clusters of a group", |image| {
        image.edit_superblock(|bytes| put32(bytes, 0x24, 1024));
    }),
    ("extra fields of 3 bytes", |image| {
        image.edit_superblock(|bytes| put16(bytes, 0x15E, 3));
    }),
    ("quotas in the journal", |image| {
        image.edit_superblock(|bytes| put32(bytes, 0x26C, 8));
    }),
    ("a journal on another device", |image| {
        image.edit_superblock(|bytes| bytes[0xD0] = 1);
    }),
    ("a journal that is nowhere", |image| {
        image.edit_superblock(|bytes| put32(bytes, 0xE0, 0));
    }),
    ("mounted in the year 2106", |image| {
        image.edit_superblock(|bytes| put32(bytes, 0x2C, u32::MAX));
    }),
    ("orphans that are not there", |image| {
        image.edit_superblock(|bytes| bytes[0x66] |= 1);
    }),
    ("checksums of descriptors twice", |image| {
        image.edit_superblock(|bytes| bytes[0x64] |= 0x10);
    }),
    ("users of the journal", |image| {
        let block = image.block_of(InodeNo::JOURNAL, 0);
        image.edit_block(InodeNo::JOURNAL, block, Kind::Plain, |bytes| {
            bytes[0x43] = 2;
        });
    }),
    ("inodes that were never used", |image| {
        image.edit_group(GroupNo(0), |record| {
            let free = get16(record, 0x0E);
            put16(record, 0x1C, free + 1);
        });
    }),
];

/// Of an image without checksums of descriptors, without `large_dir` and without a journal.
pub(crate) const OLD_FIELDS: &[Damage] = &[
    ("ext2: a journal that it has not has extents", |image| {
        set_flag_of(image, InodeNo::JOURNAL, InodeFlags::EXTENTS);
    }),
    ("ext2: a directory of 4 GiB", |image| {
        image.edit_inode(inode_of(image, "sub"), |record| {
            put32(record, I_SIZE_HIGH, 1)
        });
    }),
    ("ext2: sectors of 48 bits", |image| {
        image.edit_inode(inode_of(image, "small"), |record| put16(record, 116, 1));
    }),
    ("ext2: an attribute block of 48 bits", |image| {
        image.edit_inode(inode_of(image, "small"), |record| put16(record, 118, 1));
    }),
    ("ext2: an inode table that is not made", |image| {
        image.edit_group(GroupNo(0), |record| put16(record, 0x12, 1));
    }),
    ("ext2: a journal that is not there", |image| {
        image.edit_superblock(|bytes| put32(bytes, 0xE0, 8));
    }),
];

/// Of an image with clusters.
pub(crate) const CLUSTERS: &[Damage] = &[
    ("a block that nobody keeps for descriptors", |image| {
        image.edit_inode(InodeNo::RESIZE, |record| put32(record, I_BLOCK + 48, 7));
    }),
    ("a block at another place of its cluster", |image| {
        image.edit_inode(inode_of(image, "small"), |record| {
            let start = get32(record, I_BLOCK + 20);
            put32(record, I_BLOCK + 20, start + 1);
        });
    }),
];
