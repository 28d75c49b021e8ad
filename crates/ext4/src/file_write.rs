//! Writing to files: into the page cache, with space reserved, and no block is allocated here; or past
//! it ([`crate::direct`]).

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_ext4_format::xattr::name::SECURITY;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels;
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{PAGE_SIZE, WaitFor};
use pagefence_vfs::{
    Copy, Error, FileSystem as _, Result, WriteMode, copy_in_pieces, without_privileges,
};

use crate::change::set_xattr::XattrChange;
use crate::clock;
use crate::filesystem::{File, FileSystem};
use crate::inode::Inode;
use crate::setattr::Attributes;

/// The attribute that gives a program capabilities.
const CAPABILITY: &[u8] = b"security.capability";

impl FileSystem {
    /// See [`pagefence_vfs::FileSystem::write`]. Takes the inode lock exclusively, but for a direct
    /// write inside the file shared, and below it what the cache takes.
    pub(crate) fn write_file(
        &self,
        file: &File,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<usize> {
        self.instance.live()?;
        let inode = &file.inode;
        let overwritten = if mode.contains(WriteMode::DIRECT) {
            self.overwrite_direct(file, offset, data, mode)?
        } else {
            None
        };
        let written = if let Some(written) = overwritten {
            written
        } else {
            let mut entry = Held::at_entry();
            let (_alone, mut held) = inode.lock.write(&mut entry);
            let size = inode.core.size();
            let offset = if mode.contains(WriteMode::APPEND) {
                size
            } else {
                offset
            };
            check_flags(inode, mode)?;
            let room = self.instance.max_file_size(&inode.disk());
            let room = room.saturating_sub(offset);
            if room == 0 && !data.is_empty() {
                return Err(Error::FileTooLarge);
            }
            let most = usize::try_from(room).unwrap_or(usize::MAX);
            let data = data.get(..most).unwrap_or(data);
            if data.is_empty() {
                return Ok(0);
            }
            if self.loses_privileges(inode, mode) {
                self.kill_privileges(&mut held, inode, mode)?;
            }
            note_rights(&mut held, inode, mode);
            let end = offset + data.len() as u64;
            self.make_inline_fit(&mut held, inode, size.max(end))?;
            if offset > size {
                self.zero_tail(&mut held, inode)?;
            }
            if !mode.contains(WriteMode::WRITEBACK) {
                note_change(inode);
            }
            let is_direct = mode.contains(WriteMode::DIRECT);
            let goes_past = is_direct && self.goes_direct(inode, offset, data.len());
            let written = if goes_past {
                file.mapping.write_direct(&mut held, offset, data)?
            } else {
                file.mapping.write(&mut held, offset, data)?
            };
            let bytes = offset..offset + written as u64;
            #[cfg(debug_assertions)]
            self.assert_covered(&mut held, inode, bytes.clone());
            if inode.disk().has_inline_data() {
                let all = 0..PAGE_SIZE as u64;
                file.mapping.write_back(&mut held, all, WaitFor::All)?;
            } else if is_direct && !goes_past {
                // What could not go past the cache goes through it.
                file.mapping.write_back(&mut held, bytes, WaitFor::All)?;
            }
            written
        };
        let is_sync = inode.disk().record.flags().contains(InodeFlags::SYNC);
        if is_sync || mode.intersects(WriteMode::SYNC | WriteMode::DATA_SYNC) {
            self.fsync(file, !is_sync && !mode.contains(WriteMode::SYNC))?;
        }
        Ok(written)
    }

    /// Asserts that no block in `range` is dirty without space. The caller holds the inode lock
    /// exclusively, so that nobody takes blocks away: what was dirty stays covered.
    #[cfg(debug_assertions)]
    fn assert_covered(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
        range: std::ops::Range<u64>,
    ) {
        use crate::map_blocks::Target;
        use pagefence_ext4_format::FileBlock;
        let bits = self.instance.superblock.block_size_bits();
        let Some(mapping) = inode.existing_mapping() else {
            return;
        };
        let mut at = range.start;
        while let Some(dirty) = mapping.next_dirty(at).filter(|run| run.start < range.end) {
            at = dirty.end;
            let (delayed, _held) = inode.core.block_map.read(held);
            let disk = inode.disk();
            let blocks = dirty.start >> bits..dirty.end.min(range.end).div_ceil(1 << bits);
            for block in blocks.filter_map(|block| u32::try_from(block).ok().map(FileBlock)) {
                let is_covered = disk.has_inline_data()
                    || self
                        .instance
                        .map_blocks(&disk, block)
                        .is_ok_and(|run| match run.target {
                            Target::Written(_) => true,
                            Target::Hole => delayed.hole_at(block).0,
                            Target::Unwritten(_) => delayed.unwritten_at(block).0,
                        });
                assert!(is_covered, "block {block} is dirty without space");
            }
        }
    }

    /// Whether a file has set-uid, set-group-id or capabilities that it loses by such a write. The caller
    /// holds the inode lock.
    pub(crate) fn loses_privileges(&self, inode: &Inode, mode: WriteMode) -> bool {
        if !mode.intersects(WriteMode::KILL_PRIVILEGES | WriteMode::KILL_CAPABILITIES) {
            return false;
        }
        let disk = inode.disk();
        let permissions = disk.record.mode() & 0o7777;
        kept(permissions, mode) != permissions || self.instance.xattr(&disk, CAPABILITY).is_ok()
    }

    /// Takes off what [`FileSystem::loses_privileges`] tells of. The caller holds the inode lock
    /// exclusively.
    fn kill_privileges(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        mode: WriteMode,
    ) -> Result<()> {
        let disk = inode.disk();
        let permissions = disk.record.mode() & 0o7777;
        let kept = kept(permissions, mode);
        let mut record = disk.record.clone();
        record.ensure_extra();
        let mut xattrs = XattrChange::of(&self.instance, &record)?;
        xattrs.remove(SECURITY, b"capability")?;
        let now = clock::now();
        let attributes = Attributes {
            permissions: (kept != permissions).then_some(kept),
            changed: Some(now),
            ..Attributes::default()
        };
        self.apply_attributes(held, inode, &attributes, Some(xattrs), true)
    }

    /// See [`pagefence_vfs::FileSystem::copy_range`]: through the cache, a piece at a time, so that
    /// no two locks are held at once.
    pub(crate) fn copy_file_range(
        &self,
        (from, from_offset): (&File, u64),
        (to, to_offset): (&File, u64),
        length: u64,
        mode: WriteMode,
    ) -> Result<u64> {
        self.instance.live()?;
        let copy = Copy {
            offsets: [from_offset, to_offset],
            length,
            size: from.inode.core.size(),
            is_same: Arc::ptr_eq(&from.inode, &to.inode),
        };
        copy_in_pieces(
            &copy,
            |at, buffer| self.read(from, at, buffer),
            |at, data| self.write_file(to, at, data, mode),
        )
    }
}

/// What a write leaves of a file's permissions.
fn kept(permissions: u16, mode: WriteMode) -> u16 {
    if mode.contains(WriteMode::KILL_PRIVILEGES) {
        without_privileges(permissions)
    } else {
        permissions
    }
}

/// Whether [`note_rights`] would change nothing. The caller holds the inode lock, so that it stays so.
pub(crate) fn has_rights(
    held: &mut Held<'_, levels::Inode>,
    inode: &Inode,
    mode: WriteMode,
) -> bool {
    let (delayed, _held) = inode.core.block_map.read(held);
    delayed.uses_reserve() == mode.contains(WriteMode::USE_RESERVE)
}

/// Says whether the space that this writer needs may come out of what is kept back for root. The
/// caller holds the inode lock exclusively, so that no other writer reserves meanwhile.
pub(crate) fn note_rights(held: &mut Held<'_, levels::Inode>, inode: &Inode, mode: WriteMode) {
    if !has_rights(held, inode, mode) {
        let (mut delayed, _held) = inode.core.block_map.write(held);
        delayed.use_reserve(mode.contains(WriteMode::USE_RESERVE));
    }
}

/// Whether the file can be written to at all.
pub(crate) fn check_flags(inode: &Inode, mode: WriteMode) -> Result<()> {
    let flags = inode.disk().record.flags();
    let fixed = InodeFlags::IMMUTABLE | InodeFlags::VERITY;
    // What comes from the kernel's cache was checked when the file was opened.
    let appends = mode.intersects(WriteMode::APPEND | WriteMode::WRITEBACK);
    if flags.intersects(fixed) || (flags.contains(InodeFlags::APPEND) && !appends) {
        return Err(Error::NotPermitted);
    }
    Ok(())
}

/// The data changes now. Written with whatever writes the inode next.
pub(crate) fn note_change(inode: &Inode) {
    let now = clock::now();
    inode.core.update(|record| {
        record.set_mtime(now);
        record.set_ctime(now);
    });
}
