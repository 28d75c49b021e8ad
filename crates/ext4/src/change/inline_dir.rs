//! Directories inside their inodes: entries in the block area behind the parent's number, and in
//! the value of an attribute. One that has no room there for a name moves into a block.

use pagefence_ext4_format::dir_entry::{self, DirFormat, EntryName, FileKind};
use pagefence_ext4_format::extent::ExtentNodeMut;
use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::inode::{Inode as InodeRecord, InodeFlags};
use pagefence_ext4_format::xattr::name::{INLINE_DATA, SYSTEM};
use pagefence_ext4_format::xattr::{NewValue, XattrLimits, XattrSet};
use pagefence_ext4_format::{Corruption, InodeNo};
use pagefence_vfs::Result;

use crate::change::append_block::append_block;
use crate::change::change_dir::Directory;
use crate::change::shorten_inline::inline_value_mut;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::Instance;

/// Bytes of the parent's number that open an inline directory.
const PARENT: usize = 4;

/// Makes the inode of a new directory hold its entries itself; false, and nothing changed, if it
/// has no room for the attribute that says so.
///
/// # Errors
/// `Corrupt` if its attributes are damaged.
pub(crate) fn make_inline(
    instance: &Instance,
    record: &mut InodeRecord,
    parent: InodeNo,
) -> Result<bool> {
    let limits = XattrLimits::from(&instance.superblock);
    let number = record.ino();
    let Some(region) = record.xattr_region_mut() else {
        return Ok(false);
    };
    let Some(mut xattrs) =
        XattrSet::of_inode(region, &limits).at(&instance.damage, Some(number), None)?
    else {
        return Ok(false);
    };
    if xattrs
        .set(SYSTEM, INLINE_DATA, NewValue::Bytes(&[]))
        .is_err()
    {
        return Ok(false);
    }
    xattrs
        .write_to(region)
        .at(&instance.damage, Some(number), None)?;
    let made = dir_entry::init_inline(record.block_area_mut(), parent);
    debug_assert!(made, "the block area has its size");
    record.set_size(record.block_area().len() as u64);
    let flags = record.flags().difference(InodeFlags::EXTENTS);
    record.set_flags(flags | InodeFlags::INLINE_DATA);
    Ok(true)
}

/// Whether there is room for an entry of `needed` bytes. With more than there can be, looks at all
/// entries.
///
/// # Errors
/// `Corrupt`.
pub(crate) fn has_room(instance: &Instance, record: &InodeRecord, needed: usize) -> Result<bool> {
    let mut record = record.clone();
    let mut room = Ok(false);
    visit(instance, &mut record, |_, bytes, format| {
        room = dir_entry::largest_gap(bytes, format).map(|gap| gap >= needed);
        room != Ok(false)
    });
    room.at(&instance.damage, Some(record.ino()), None)
}

/// Puts in a name for which there is room.
pub(super) fn insert(
    directory: &mut Directory<'_, '_>,
    name: &EntryName<'_>,
    inode: InodeNo,
    kind: Option<FileKind>,
) -> Result<()> {
    let mut put = Ok(None);
    edit(directory, |_, bytes, format| {
        put = dir_entry::insert(bytes, format, inode, name, kind);
        put != Ok(None)
    });
    let put = in_directory(directory, put)?;
    debug_assert!(put.is_some(), "room was found");
    Ok(())
}

/// Takes out the entry at `offset`, as the directory's view counts.
pub(super) fn remove(directory: &mut Directory<'_, '_>, offset: usize) -> Result<()> {
    let mut removed = Ok(false);
    edit(directory, |base, bytes, format| {
        if let Some(offset) = offset.checked_sub(base)
            && offset < bytes.len()
        {
            removed = dir_entry::remove(bytes, format, offset);
        }
        removed != Ok(false)
    });
    in_directory(directory, removed).map(|_| ())
}

/// Points the entry at `offset` to another inode.
pub(super) fn redirect(
    directory: &mut Directory<'_, '_>,
    offset: usize,
    inode: InodeNo,
    kind: Option<FileKind>,
) -> Result<()> {
    let mut found = Ok(false);
    edit(directory, |base, bytes, format| {
        if let Some(offset) = offset.checked_sub(base)
            && offset < bytes.len()
        {
            found = dir_entry::set_inode(bytes, format, offset, inode, kind);
        }
        found != Ok(false)
    });
    in_directory(directory, found).map(|_| ())
}

/// Sets the directory that it lies in.
pub(super) fn set_parent(record: &mut InodeRecord, parent: InodeNo) {
    if let Some(place) = record.block_area_mut().first_chunk_mut() {
        *place = parent.0.to_le_bytes();
    }
}

/// Moves the entries into a block.
///
/// # Errors
/// As [`append_block`].
pub(super) fn leave_inode(directory: &mut Directory<'_, '_>) -> Result<()> {
    let instance = directory.transaction.instance;
    let disk = directory.disk()?;
    let mut bytes = vec![0; instance.superblock.block_size() as usize];
    instance.with_inline_dir(&disk, |dir| {
        let format = &instance.dir_format;
        let mut fits = dir_entry::init_first_block(&mut bytes, format, disk.number, dir.parent());
        for entry in dir.entries() {
            let entry = entry.at(&instance.damage, Some(disk.number), None)?;
            let put = EntryName::new(entry.name)
                .map(|name| dir_entry::insert(&mut bytes, format, entry.inode, &name, entry.kind));
            fits &= matches!(put, Some(Ok(Some(_))));
        }
        if fits {
            Ok(())
        } else {
            Err(instance.damaged(disk.number, None, "more entries than an inode has room for"))
        }
    })?;
    forget_inline(instance, &disk, directory.record)?;
    let (_, block) = append_block(directory.transaction, directory.record)?;
    directory.set_entries(block, &mut bytes)
}

/// Makes the inode one of an empty file whose blocks are mapped.
pub(crate) fn forget_inline(
    instance: &Instance,
    disk: &DiskInode,
    record: &mut InodeRecord,
) -> Result<()> {
    let limits = XattrLimits::from(&instance.superblock);
    if let Some(region) = record.xattr_region_mut()
        && let Some(mut xattrs) =
            XattrSet::of_inode(region, &limits).at(&instance.damage, Some(disk.number), None)?
        && xattrs.remove(SYSTEM, INLINE_DATA)
    {
        xattrs
            .write_to(region)
            .at(&instance.damage, Some(disk.number), None)?;
    }
    let flags = record.flags().difference(InodeFlags::INLINE_DATA);
    record.set_flags(flags);
    init_map(instance, record);
    record.set_size(0);
    Ok(())
}

/// Makes the block area an empty map, of the kind that the file system's new files have.
pub(crate) fn init_map(instance: &Instance, record: &mut InodeRecord) {
    record.block_area_mut().fill(0);
    if instance.superblock.has_incompat(Incompat::EXTENTS) {
        let made = ExtentNodeMut::init(record.block_area_mut(), 0).is_some();
        debug_assert!(made, "the block area has room for a root");
        record.set_flags(record.flags() | InodeFlags::EXTENTS);
    }
}

/// Names the directory in which damage was found.
fn in_directory<T>(
    directory: &Directory<'_, '_>,
    result: std::result::Result<T, Corruption>,
) -> Result<T> {
    result.at(
        &directory.transaction.instance.damage,
        Some(directory.record.ino()),
        None,
    )
}

fn edit(directory: &mut Directory<'_, '_>, edit: impl FnMut(usize, &mut [u8], &DirFormat) -> bool) {
    visit(directory.transaction.instance, directory.record, edit);
}

/// Shows the parts of an inline directory, and with each the offset at which its entries begin,
/// until `edit` is done.
fn visit(
    instance: &Instance,
    record: &mut InodeRecord,
    mut edit: impl FnMut(usize, &mut [u8], &DirFormat) -> bool,
) {
    let format = DirFormat {
        checksums: false,
        ..instance.dir_format
    };
    let area = record.block_area_mut();
    let length = area.len();
    if let Some(entries) = area.get_mut(PARENT..)
        && edit(PARENT, entries, &format)
    {
        return;
    }
    let limits = XattrLimits::from(&instance.superblock);
    if let Some(rest) = inline_value_mut(&limits, record)
        && !rest.is_empty()
    {
        edit(length, rest, &format);
    }
}
