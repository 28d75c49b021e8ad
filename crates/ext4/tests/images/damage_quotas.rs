//! Quota files that say something else than what there is, or nothing that makes sense; and the block of
//! mmp.

use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::mmp::{self, RawMmp};
use pagefence_ext4_format::quota::{LEVELS, ROOT, RawEntry, RawHeader, references};
use std::mem::offset_of;

use crate::common::edit::Kind;
use crate::common::{Image, Recipe};
use crate::damage_list::{Damage, get32};
use crate::exploits::{inode_of, put16, put32};

/// Of blocks of 1 KiB: as large as those of quota files.
pub(crate) fn quotas() -> Image {
    let mut recipe = Recipe::rich("-t ext4 -b 1024 -O quota,project,ea_inode,mmp");
    // Users of several nodes of each level, with more entries than one block has.
    for number in 0..40_u32 {
        let name = format!("of{number}");
        let user = number * 0x0103_0207;
        recipe = recipe
            .file(&name, vec![b'u'; 700 * number as usize])
            .run(format!("set_inode_field {name} uid {user}"))
            .run(format!("set_inode_field {name} gid {}", number % 3))
            .run(format!("set_inode_field {name} projid {}", number % 5));
    }
    recipe
        .run(format!("ea_set of7 user.huge {}", "h".repeat(3000)))
        .run(format!("ea_set of8 user.huge {}", "h".repeat(3000)))
        .make()
}

/// The hidden inode with the quotas of projects, and the first block that ids lead to there.
fn projects(image: &Image) -> (InodeNo, u32) {
    let [_, _, number] = image.superblock.quota_inodes();
    let number = number.expect("it has one");
    (number, leaf_of(image, number))
}

/// The block to which id 0 leads, so many levels below the root.
fn below_root(image: &Image, number: InodeNo, levels: u32) -> u32 {
    let mut block = ROOT;
    for _ in 0..levels {
        let bytes = image.read_block(image.block_of(number, block));
        block = references(&bytes).next().expect("id 0 has something").1;
    }
    block
}

/// The block with the entry of id 0.
fn leaf_of(image: &Image, number: InodeNo) -> u32 {
    below_root(image, number, LEVELS)
}

fn edit(image: &Image, number: InodeNo, block: u32, edit: impl FnOnce(&mut [u8])) {
    image.edit_block(number, image.block_of(number, block), Kind::Plain, edit);
}

/// Changes the header of the users' quotas.
fn edit_header(image: &Image, field: usize, value: u32) {
    edit(image, InodeNo::USER_QUOTA, 0, |bytes| {
        put32(bytes, field, value);
    });
}

/// Where a field of the first entry of a block is.
const fn entry(field: usize) -> usize {
    16 + field
}

/// Changes the block of mmp, checksum mended.
fn edit_mmp(image: &Image, field: usize, value: u32) {
    let block = image.superblock.mmp_block().expect("it has one");
    let mut bytes = image.read_block(block);
    put32(&mut bytes, field, value);
    mmp::update_checksum(&mut bytes, image.superblock.checksum_seed());
    image.write_block(block, &bytes);
}

pub(crate) const QUOTAS: &[Damage] = &[
    ("the magic of mmp", |image| {
        edit_mmp(image, offset_of!(RawMmp, mmp_magic), 7);
    }),
    ("mmp while e2fsck is at work", |image| {
        edit_mmp(image, offset_of!(RawMmp, mmp_seq), 0xE24D_4D50);
    }),
    ("mmp that counts nothing", |image| {
        edit_mmp(image, offset_of!(RawMmp, mmp_seq), u32::MAX);
    }),
    ("the checksum of mmp", |image| {
        let block = image.superblock.mmp_block().expect("it has one");
        let mut bytes = image.read_block(block);
        bytes[offset_of!(RawMmp, mmp_nodename)] ^= 1;
        image.write_block(block, &bytes);
    }),
    ("quotas of another revision", |image| {
        edit_header(image, offset_of!(RawHeader, dqh_version), 2);
    }),
    ("more blocks of quotas than the file has", |image| {
        edit_header(image, offset_of!(RawHeader, dqi_blocks), 1 << 20);
    }),
    ("a free block of quotas past the last", |image| {
        edit_header(image, offset_of!(RawHeader, dqi_free_blk), 1 << 20);
    }),
    ("quotas with room past the last block", |image| {
        edit_header(image, offset_of!(RawHeader, dqi_free_entry), 1 << 20);
    }),
    ("a reference past the last block of quotas", |image| {
        edit(image, InodeNo::USER_QUOTA, ROOT, |bytes| {
            put32(bytes, 8, 1 << 20);
        });
    }),
    ("quotas that nothing leads to", |image| {
        edit(image, InodeNo::GROUP_QUOTA, ROOT, |bytes| bytes.fill(0));
    }),
    ("bytes of a project", |image| {
        let (number, leaf) = projects(image);
        edit(image, number, leaf, |bytes| {
            let field = entry(offset_of!(RawEntry, dqb_curspace));
            put32(bytes, field, get32(bytes, field) + 1024);
        });
    }),
    ("inodes of a group", |image| {
        let leaf = leaf_of(image, InodeNo::GROUP_QUOTA);
        edit(image, InodeNo::GROUP_QUOTA, leaf, |bytes| {
            let field = entry(offset_of!(RawEntry, dqb_curinodes));
            put32(bytes, field, get32(bytes, field) - 1);
        });
    }),
    ("the quota of a project that has nothing", |image| {
        let (number, leaf) = projects(image);
        edit(image, number, leaf, |bytes| {
            put32(bytes, entry(offset_of!(RawEntry, dqb_id)), 77);
        });
    }),
    ("a user who has another's file", |image| {
        image.set_inode(inode_of(image, "of9"), |inode| inode.set_uid(5));
    }),
    ("a group that has another's attributes", |image| {
        image.set_inode(inode_of(image, "of7"), |inode| inode.set_gid(2));
    }),
    ("a project that has another's file", |image| {
        image.set_inode(inode_of(image, "of9"), |inode| {
            assert!(inode.set_project(0));
        });
    }),
    ("a quota file of 4 GiB", |image| {
        image.edit_inode(InodeNo::USER_QUOTA, |record| put32(record, 108, 1));
    }),
    ("quotas in an inode of no kind", |image| {
        image.edit_inode(InodeNo::USER_QUOTA, |record| put16(record, 0, 0));
    }),
    ("quotas in a device", |image| {
        image.edit_inode(InodeNo::USER_QUOTA, |record| put16(record, 0, 0o20600));
    }),
];

/// Of which e2fsck takes no notice: Linux would not know them for quotas, or not find an entry.
pub(crate) const UNSEEN_QUOTAS: &[Damage] = &[
    ("the magic of quotas", |image| {
        edit_header(image, offset_of!(RawHeader, dqh_magic), 0xD9C0_1927);
    }),
    ("how many entries a block has", |image| {
        let leaf = leaf_of(image, InodeNo::USER_QUOTA);
        edit(image, InodeNo::USER_QUOTA, leaf, |bytes| put16(bytes, 8, 3));
    }),
    ("a way to an entry that is not there", |image| {
        let block = below_root(image, InodeNo::USER_QUOTA, LEVELS - 1);
        edit(image, InodeNo::USER_QUOTA, block, |bytes| {
            assert_eq!(get32(bytes, 4 * 99), 0);
            put32(bytes, 4 * 99, get32(bytes, 0));
        });
    }),
    ("quotas without a link", |image| {
        image.set_inode(InodeNo::USER_QUOTA, |inode| inode.set_links(0));
    }),
    ("two nodes of one way", |image| {
        edit(image, InodeNo::USER_QUOTA, ROOT, |bytes| {
            assert_eq!(get32(bytes, 4 * 99), 0);
            put32(bytes, 4 * 99, get32(bytes, 0));
        });
    }),
];
