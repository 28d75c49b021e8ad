//! The INODE tag: an inode's record as it was when the fast commit was made.

use std::ops::Range;

use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::extent::{EXTENT_MAGIC, ExtentNodeMut};
use pagefence_ext4_format::inode::{FileKind, Inode as InodeRecord, InodeFlags};
use pagefence_vfs::Result;

use super::{Replay, is_for_users};
use crate::error::At;

/// The 60 bytes that map the file's blocks, in a record.
const BLOCK_AREA: Range<usize> = 40..100;

impl Replay<'_, '_> {
    /// Replaces a record. What maps the file's blocks stays as it is: ranges say how that changed.
    pub(super) fn inode(&mut self, inode: InodeNo, raw: &[u8]) -> Result<()> {
        let instance = self.instance();
        let superblock = &instance.superblock;
        let size = superblock.inode_size();
        let refuse = |what: &str| Err(instance.damaged(inode, None, what));
        let read = |bytes: &[u8]| {
            InodeRecord::read(bytes, inode, superblock).at(&instance.damage, Some(inode), None)
        };
        if !is_for_users(instance, inode) || raw.len() > size {
            return refuse("a fast commit holds a record that it can't have");
        }
        let (block, offset) = instance.inode_block(inode)?;
        let buffer = instance.read_block(block)?;
        let Some(before) = buffer.get(offset..offset + size) else {
            return refuse("its record is outside the inode table");
        };
        let mut bytes = raw.to_vec();
        bytes.resize(size, 0);
        let mut record = read(&bytes)?;
        // The record of another file, or of none, has nothing that this one could go on with. One whose
        // generation differs is of the same file (`chattr -v`): of what was deleted, a tag before this
        // one takes the last name.
        let old = if instance.is_inode_in_use(inode)? {
            InodeRecord::parse(before, inode, superblock)
                .ok()
                .filter(|old| old.links() > 0 && old.kind() == record.kind())
        } else {
            None
        };
        if let Some(old) = &old {
            // Attributes do not change by fast commits.
            for (to, from) in bytes.iter_mut().zip(before).skip(raw.len()) {
                *to = *from;
            }
            if keeps_map(&record, old) {
                for (to, from) in bytes[BLOCK_AREA].iter_mut().zip(old.block_area()) {
                    *to = *from;
                }
            }
            record = read(&bytes)?;
        }
        if record.flags().contains(InodeFlags::EXTENTS) {
            let magic = record.block_area().first_chunk().copied();
            let is_tree = magic.map(u16::from_le_bytes) == Some(EXTENT_MAGIC);
            if old.is_none() || !is_tree {
                // The ranges that follow fill it.
                let _ = ExtentNodeMut::init(record.block_area_mut(), 0);
            }
        }
        record.update_checksum();
        record
            .write_to(&mut bytes)
            .at(&instance.damage, Some(inode), None)?;
        // With all the other checks of a record.
        let mut record = InodeRecord::parse(&bytes, inode, superblock).at(
            &instance.damage,
            Some(inode),
            None,
        )?;
        if record.kind().is_none() {
            return refuse("a fast commit holds a record of no kind");
        }
        if record.links() == 0 {
            // Its last name went.
            return match old {
                Some(old) => self.delete(old),
                None => Ok(()),
            };
        }
        self.touched.insert(inode);
        let is_directory = record.kind() == Some(FileKind::Directory);
        self.transaction.use_inode(inode, is_directory)?;
        self.transaction.write_inode(&mut record)
    }
}

/// Whether what the old record says of the file's blocks holds for the new one: it does for
/// everything but data in the inode, short links and devices, which a record holds whole.
fn keeps_map(new: &InodeRecord, old: &InodeRecord) -> bool {
    let in_record = |record: &InodeRecord| {
        let has_map = matches!(
            record.kind(),
            Some(FileKind::Regular | FileKind::Directory | FileKind::Symlink)
        );
        !has_map || record.flags().contains(InodeFlags::INLINE_DATA) || record.is_fast_symlink()
    };
    let maps_alike =
        new.flags().contains(InodeFlags::EXTENTS) == old.flags().contains(InodeFlags::EXTENTS);
    maps_alike && !in_record(new) && !in_record(old)
}
