//! Regular files whose data lies in their inodes: in the block area, and in the value of an
//! attribute behind it.
//!
//! Invariant: pages of such a file are dirty only while its inode lock is held, so that no
//! attribute takes the room that they need. Whoever writes such a file writes it back at once.

use pagefence_ext4_format::FileBlock;
use pagefence_ext4_format::inode::Inode as InodeRecord;
use pagefence_ext4_format::xattr::name::{INLINE_DATA, SYSTEM};
use pagefence_ext4_format::xattr::{NewValue, XattrLimits, XattrSet};
use pagefence_lock_order::Held;
use pagefence_lock_order::levels::{self, Writepages};
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::{Evict, PAGE_SIZE, WriteBatch};
use pagefence_vfs::{Error, Result};

use crate::alloc::{BlockOwner, Claim};
use crate::change::inline_dir::forget_inline;
use crate::change::insert_blocks::{NewRun, insert_blocks};
use crate::error::{At, device};
use crate::filesystem::FileSystem;
use crate::inode::{Inode, InodeCore};
use crate::instance::Instance;
use crate::live::Need;

/// What moving the data to a block takes: the inode, bitmap, descriptor, superblock.
const MOVE: Need = Need {
    credits: 6,
    blocks: 0,
    privileged: true,
};

/// Makes `data` what the inode holds, and its size that of `data`.
///
/// # Errors
/// `NoSpace` if the inode has no room for it, and then nothing changed; `Corrupt`.
fn store(instance: &Instance, record: &mut InodeRecord, data: &[u8]) -> Result<()> {
    let area = record.block_area().len();
    let (front, rest) = data.split_at(data.len().min(area));
    let limits = XattrLimits::from(&instance.superblock);
    let number = record.ino();
    let log = &instance.damage;
    if let Some(region) = record.xattr_region_mut()
        && let Some(mut xattrs) = XattrSet::of_inode(region, &limits).at(log, Some(number), None)?
    {
        xattrs
            .set(SYSTEM, INLINE_DATA, NewValue::Bytes(rest))
            .map_err(|_| Error::NoSpace)?;
        xattrs.write_to(region).at(log, Some(number), None)?;
    } else if !rest.is_empty() {
        return Err(Error::NoSpace);
    }
    let area = record.block_area_mut();
    area.fill(0);
    for (to, from) in area.iter_mut().zip(front) {
        *to = *from;
    }
    record.set_size(data.len() as u64);
    Ok(())
}

/// Whether an inode has room for `size` bytes of data.
///
/// # Errors
/// `Corrupt`.
pub(crate) fn fits(instance: &Instance, record: &InodeRecord, size: u64) -> Result<bool> {
    if size > PAGE_SIZE as u64 {
        return Ok(false);
    }
    let zeros = vec![0; usize::try_from(size).unwrap_or(PAGE_SIZE)];
    match store(instance, &mut record.clone(), &zeros) {
        Ok(()) => Ok(true),
        Err(Error::NoSpace) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes the pages of a file back into its inode.
///
/// # Errors
/// `NoSpace` if it has no room, which whoever made the pages dirty has seen to; `Corrupt`, `Io`.
pub(crate) fn write_inline(
    instance: &Instance,
    core: &InodeCore,
    held: &mut Held<'_, Writepages>,
    batch: &WriteBatch<'_>,
) -> Result<()> {
    let size = batch.size().min(PAGE_SIZE as u64);
    if batch.range().start > 0 {
        return Ok(());
    }
    set_contents(instance, core, held, batch.bytes(0..size))
}

fn set_contents<P: levels::Level>(
    instance: &Instance,
    core: &InodeCore,
    held: &mut Held<'_, P>,
    data: &[u8],
) -> Result<()>
where
    levels::Handle: pagefence_lock_order::After<P>,
{
    let (mut transaction, mut held) = instance.begin(held, Need::RECORD)?;
    let (_map, _held) = core.block_map.write(&mut held);
    let before = core.disk();
    let mut record = before.record.clone();
    store(instance, &mut record, data)?;
    core.adopt(&before.record, &record);
    core.write(&mut transaction, true)?;
    transaction.end();
    Ok(())
}

impl FileSystem {
    /// Gives a file with inline data another size, for which its inode has room.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `ReadOnly`.
    pub(crate) fn resize_inline(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
        size: u64,
    ) -> Result<()> {
        let mapping = inode.mapping(&self.instance, &self.cache);
        let (mut fence, mut held) = mapping.fence(held, 0..PAGE_SIZE as u64);
        let _evicted = fence.evict(&mut held, Evict::WriteFirst)?;
        let mut data = self.instance.inline_data(&inode.disk())?;
        data.resize(usize::try_from(size).unwrap_or(PAGE_SIZE), 0);
        set_contents(&self.instance, &inode.core, &mut held, &data)?;
        inode.core.set_size(size);
        Ok(())
    }

    /// Moves a file's data out of its inode, into a block. The caller holds the inode lock
    /// exclusively.
    ///
    /// # Errors
    /// `NoSpace`, and nothing changed; `Corrupt`, `Io`, `ReadOnly`.
    pub(crate) fn leave_inode(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Inode,
    ) -> Result<()> {
        let instance = &self.instance;
        let live = instance.live()?;
        let mapping = inode.mapping(instance, &self.cache);
        let (mut fence, mut held) = mapping.fence(held, 0..PAGE_SIZE as u64);
        let _evicted = fence.evict(&mut held, Evict::WriteFirst)?;
        let disk = inode.disk();
        let mut data = instance.inline_data(&disk)?;
        let mut run = None;
        if !data.is_empty() {
            let mut space = live.allocator.reserve(1, Claim::Everybody)?;
            let goal = live.allocator.data_goal(disk.number, false);
            let block = live.allocator.allocate(instance, goal, 1, &mut space)?;
            let block_size = u64::from(instance.superblock.block_size());
            data.resize(block_size as usize, 0);
            let at = block.start().0 * block_size;
            instance.device().write(at, &data).map_err(device)?;
            run = Some(block);
        }
        let (mut transaction, mut held) = instance.begin(&mut held, MOVE)?;
        let (_map, _held) = inode.core.block_map.write(&mut held);
        let before = inode.disk();
        let mut record = before.record.clone();
        forget_inline(instance, &before, &mut record)?;
        record.set_size(before.size());
        if let Some(run) = run {
            let new = NewRun {
                first: FileBlock(0),
                start: run.start(),
                len: run.len(),
                unwritten: false,
            };
            insert_blocks(&mut transaction, &mut record, &new)?;
            if let Some((allocator, handle)) = transaction.allocation() {
                allocator.use_run(handle, BlockOwner::Contents(inode.core.number), run);
            }
        }
        inode.core.adopt(&before.record, &record);
        inode.core.write(&mut transaction, true)?;
        transaction.end();
        Ok(())
    }

    /// As [`Self::leave_inode`], if the file's data is inline and would not fit with `size` bytes.
    ///
    /// # Errors
    /// As [`Self::leave_inode`], when all was tried to find space.
    pub(crate) fn make_inline_fit(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        size: u64,
    ) -> Result<()> {
        let disk = inode.disk();
        if !disk.has_inline_data() || fits(&self.instance, &disk.record, size)? {
            return Ok(());
        }
        match self.leave_inode(held, inode) {
            Err(Error::NoSpace) => {
                let mapping = inode.mapping(&self.instance, &self.cache);
                mapping.backing().find_space(held);
                self.leave_inode(held, inode)
            }
            other => other,
        }
    }
}
