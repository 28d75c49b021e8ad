//! Names: inodes made, linked, unlinked.
//!
//! Each operation locks, finds, checks everything, begins a transaction that has all it needs, and
//! only then changes something ([`crate::dir_lock`], [`crate::name_credits`]).

use pagefence_ext4_format::FileBlock;
use pagefence_ext4_format::dir_entry::{EntryName, Role};
use pagefence_ext4_format::features::RoCompat;
use pagefence_ext4_format::inode::{Inode as InodeRecord, InodeFlags, Timestamp};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Credentials, Entry, Error, FileKind, InodeId, New, Result};

use crate::change::Transaction;
use crate::change::change_dir::{Directory, Room};
use crate::clock;
use crate::dir::{Is, Named, Spot, Vacancy, block_no};
use crate::dir_lock::{check_directory, check_removable, checked_name, lock_all};
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::instance::Instance;
use crate::name_credits::{ENTRY, RECORD, Sum};
use crate::new_inode::{Unmade, entry_kind};
use crate::orphans;

/// Names that an inode may have (Linux: `EXT4_LINK_MAX`).
const LINKS_MAX: u16 = 65_000;

/// What has to be durable before the operation is told to have succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Durable(Option<u64>);

/// A name that comes into a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewName<'a> {
    pub(crate) name: EntryName<'a>,
    pub(crate) room: Room,
}

impl FileSystem {
    pub(crate) fn create_entry(
        &self,
        parent: InodeId,
        name: &[u8],
        new: &New<'_>,
        who: &Credentials,
    ) -> Result<Entry> {
        self.instance.live()?;
        if matches!(name, b"." | b"..") {
            return Err(Error::Exists);
        }
        let name = checked_name(name)?;
        let directory = self.dir_inode(parent)?;
        let (inode, durable) =
            self.with_freed_space(|| self.create_locked(&directory, &name, new, who))?;
        let attr = inode.attr(&self.instance);
        self.wait_for(durable)?;
        Ok(Entry { attr })
    }

    /// Tries an operation; if there is no space for it, once more with what was freed and waits for
    /// its commit. Nothing is held.
    pub(crate) fn with_freed_space<T>(
        &self,
        mut operation: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        match operation() {
            Err(Error::NoSpace) => {
                let live = self.instance.live()?;
                match live.allocator.pending_tid() {
                    Some(tid) => live.commit(tid)?,
                    None => return Err(Error::NoSpace),
                }
                operation()
            }
            result => result,
        }
    }

    fn create_locked(
        &self,
        directory: &Inode,
        name: &EntryName<'_>,
        new: &New<'_>,
        who: &Credentials,
    ) -> Result<(Arc<Inode>, Durable)> {
        let instance = &*self.instance;
        let mut held = Held::at_entry();
        let (_entries, mut held) = directory.lock.write(&mut held);
        let disk = directory.disk();
        check_directory(&disk)?;
        let spot = match instance.find_vacancy(directory, name)? {
            Vacancy::Taken(_) => return Err(Error::Exists),
            Vacancy::Free(spot) => spot,
        };
        let now = clock::now();
        let unborn = instance.plan_inode(&disk, new, who, now)?;
        if unborn.is_directory() {
            check_subdirectories(instance, &disk.record)?;
        }
        let new_name = instance.new_name(directory, &disk, *name, spot)?;
        let sum = unborn.takes(Sum::default().change(RECORD)).insert(
            instance,
            &disk.record,
            new_name.room,
        );
        let need = sum.need(who.uid == 0);
        let (mut transaction, _held) = instance.begin_within(&mut held, need, sum.reach())?;
        let made = self.make_inode(&mut transaction, &unborn, name.as_bytes());
        let inode = match made {
            Ok(inode) => inode,
            Err(Unmade::Sound(error)) => {
                transaction.end();
                return Err(error);
            }
            Err(Unmade::HalfDone(error)) => return Err(error),
        };
        let mut changes = Changes::new(directory);
        changes.insert(&mut transaction, &new_name, &inode)?;
        if unborn.is_directory() {
            count_subdirectory(instance, &mut changes.record);
        }
        changes.finish(&mut transaction, now)?;
        let durable = finish(transaction, &[directory, &inode]);
        Ok((inode, durable))
    }

    pub(crate) fn link_entry(
        &self,
        id: InodeId,
        parent: InodeId,
        name: &[u8],
        who: &Credentials,
    ) -> Result<Entry> {
        self.instance.live()?;
        if matches!(name, b"." | b"..") {
            return Err(Error::Exists);
        }
        let name = checked_name(name)?;
        let directory = self.dir_inode(parent)?;
        let inode = self.inode(id)?;
        if inode.core.kind == FileKind::Directory {
            // A name that is taken comes first, as Linux has it.
            return Err(
                match pagefence_vfs::FileSystem::lookup(self, parent, name.as_bytes()) {
                    Ok(_) => Error::Exists,
                    Err(Error::NotFound) => Error::NotPermitted,
                    Err(error) => error,
                },
            );
        }
        let privileged = who.uid == 0;
        let durable =
            self.with_freed_space(|| self.link_locked(&inode, &directory, &name, privileged))?;
        self.wait_for(durable)?;
        Ok(Entry {
            attr: inode.attr(&self.instance),
        })
    }

    fn link_locked(
        &self,
        inode: &Inode,
        directory: &Inode,
        name: &EntryName<'_>,
        privileged: bool,
    ) -> Result<Durable> {
        let instance = &*self.instance;
        let mut held = Held::at_entry();
        let (_locks, mut held) = lock_all(&[directory, inode], &mut held);
        let disk = directory.disk();
        check_directory(&disk)?;
        let record = inode.disk().record.clone();
        if record.links() == 0 {
            return Err(Error::NotFound);
        }
        let fixed = InodeFlags::IMMUTABLE | InodeFlags::APPEND;
        if record.flags().intersects(fixed) {
            return Err(Error::NotPermitted);
        }
        check_project(&disk.record, &record)?;
        if record.links() >= LINKS_MAX {
            return Err(Error::TooManyLinks);
        }
        let spot = match instance.find_vacancy(directory, name)? {
            Vacancy::Taken(_) => return Err(Error::Exists),
            Vacancy::Free(spot) => spot,
        };
        let new_name = instance.new_name(directory, &disk, *name, spot)?;
        let sum = Sum::default()
            .change(2 * RECORD)
            .insert(instance, &disk.record, new_name.room);
        let need = sum.need(privileged);
        let (mut transaction, _held) = instance.begin_within(&mut held, need, sum.reach())?;
        let now = clock::now();
        let mut changes = Changes::new(directory);
        changes.insert(&mut transaction, &new_name, inode)?;
        changes.finish(&mut transaction, now)?;
        inode.core.update(|record| {
            record.set_links(record.links().saturating_add(1));
            record.set_ctime(now);
        });
        inode.core.write(&mut transaction, true)?;
        Ok(finish(transaction, &[directory, inode]))
    }

    pub(crate) fn unlink_entry(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        self.instance.live()?;
        if matches!(name, b"." | b"..") {
            return Err(Error::IsDirectory);
        }
        let name = checked_name(name)?;
        let directory = self.dir_inode(parent)?;
        self.remove_name(&directory, name.as_bytes(), FileKind::Regular)
    }

    pub(crate) fn remove_dir(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        self.instance.live()?;
        match name {
            b"." => return Err(Error::InvalidArgument),
            b".." => return Err(Error::NotEmpty),
            _ => {}
        }
        let name = checked_name(name)?;
        let directory = self.dir_inode(parent)?;
        self.remove_name(&directory, name.as_bytes(), FileKind::Directory)
    }

    /// Takes out a name: of a directory, or of what is none.
    fn remove_name(&self, directory: &Inode, name: &[u8], kind: FileKind) -> Result<()> {
        let instance = &*self.instance;
        let live = instance.live()?;
        let durable = loop {
            let mut held = Held::at_entry();
            let Some(child) = self.find_child(directory, name, &mut held)? else {
                check_directory(&directory.disk())?;
                return Err(Error::NotFound);
            };
            let (_locks, mut held) = lock_all(&[directory, &child.inode], &mut held);
            let disk = directory.disk();
            check_directory(&disk)?;
            let Some(named) = self.still_named(directory, name, &child)? else {
                continue;
            };
            let gone = child.inode.disk();
            check_removable(&disk, &gone)?;
            match (kind, child.is_directory()) {
                (FileKind::Directory, false) => return Err(Error::NotDirectory),
                (FileKind::Directory, true) if !instance.is_empty_dir(&gone)? => {
                    return Err(Error::NotEmpty);
                }
                (FileKind::Directory, true) | (_, false) => {}
                (_, true) => return Err(Error::IsDirectory),
            }
            let sum = Sum::default().change(ENTRY + 2 * RECORD + orphans::CREDITS);
            let (mut transaction, _held) = instance.begin(&mut held, sum.need(true))?;
            let now = clock::now();
            let mut changes = Changes::new(directory);
            changes.remove(&mut transaction, name, &named)?;
            if child.is_directory() {
                uncount_subdirectory(&mut changes.record);
            }
            changes.finish(&mut transaction, now)?;
            let is_last = drop_name(&child.inode, now);
            if is_last {
                live.orphans.add(&mut transaction, &child.inode)?;
            } else {
                child.inode.core.write(&mut transaction, true)?;
            }
            break finish(transaction, &[directory]);
        };
        self.wait_for(durable)?;
        self.delete_due();
        Ok(())
    }

    /// Waits until an operation is durable, if it has to be. Nothing is held.
    pub(crate) fn wait_for(&self, durable: Durable) -> Result<()> {
        match durable.0 {
            Some(tid) => self.instance.live()?.commit(tid),
            None => Ok(()),
        }
    }
}

impl Instance {
    /// Where a name that is not there will go. `spot` is where [`Instance::find_vacancy`] saw room
    /// for it, if no entry of the directory changes before it comes in.
    ///
    /// # Errors
    /// As [`Instance::find_room`].
    pub(crate) fn new_name<'a>(
        &self,
        directory: &Inode,
        disk: &DiskInode,
        name: EntryName<'a>,
        spot: Option<Spot>,
    ) -> Result<NewName<'a>> {
        let room = match spot {
            Some(spot) => Room::Spot(spot),
            None => self.find_room(disk, Some(&directory.names), &name)?,
        };
        Ok(NewName { name, room })
    }

    /// Whether a directory has no entries but its own.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn is_empty_dir(&self, disk: &DiskInode) -> Result<bool> {
        if disk.has_inline_data() {
            return self.with_inline_dir(disk, |dir| match dir.entries().next() {
                None => Ok(true),
                Some(entry) => entry
                    .map(|_| false)
                    .at(&self.damage, Some(disk.number), None),
            });
        }
        for block in (0..self.dir_blocks(disk)?).map(FileBlock) {
            let buffer = self.dir_block(disk, block)?;
            for entry in self.dir_entries(disk, block, &buffer).entries() {
                let at = Some(block_no(&buffer));
                let entry = entry.at(&self.damage, Some(disk.number), at)?;
                if entry.role == Role::Name {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// The changes of one directory within a transaction.
pub(crate) struct Changes<'a> {
    directory: &'a Inode,
    before: Arc<DiskInode>,
    /// The directory's record as it will be.
    pub(crate) record: InodeRecord,
    /// Names that came or went, and the blocks where.
    noted: Vec<(Vec<u8>, Option<FileBlock>, Is)>,
}

impl<'a> Changes<'a> {
    /// Nothing yet. The caller holds the directory's inode lock exclusively.
    pub(crate) fn new(directory: &'a Inode) -> Self {
        let before = directory.disk();
        Self {
            directory,
            record: before.record.clone(),
            before,
            noted: Vec::new(),
        }
    }

    fn edit<'t, 'b>(&'t mut self, transaction: &'t mut Transaction<'b>) -> Directory<'t, 'b> {
        Directory {
            transaction,
            record: &mut self.record,
        }
    }

    /// Puts in a name.
    pub(crate) fn insert(
        &mut self,
        transaction: &mut Transaction<'_>,
        new: &NewName<'_>,
        inode: &Inode,
    ) -> Result<()> {
        let core = &inode.core;
        let kind = Some(entry_kind(core.kind));
        let block = self
            .edit(transaction)
            .insert_at(new.room, &new.name, core.number, kind)?;
        self.noted
            .push((new.name.as_bytes().to_vec(), block, Is::There));
        Ok(())
    }

    /// Takes out a name.
    pub(crate) fn remove(
        &mut self,
        transaction: &mut Transaction<'_>,
        name: &[u8],
        named: &Named,
    ) -> Result<()> {
        self.edit(transaction).remove(named)?;
        self.noted.push((name.to_vec(), named.block, Is::Gone));
        Ok(())
    }

    /// Finds a name again, after others were put in.
    pub(crate) fn find(
        &mut self,
        transaction: &mut Transaction<'_>,
        name: &EntryName<'_>,
    ) -> Result<Option<Named>> {
        self.edit(transaction).find(name)
    }

    /// Lets a name mean another inode.
    pub(crate) fn redirect(
        &mut self,
        transaction: &mut Transaction<'_>,
        named: &Named,
        inode: &Inode,
    ) -> Result<()> {
        let core = &inode.core;
        let kind = Some(entry_kind(core.kind));
        self.edit(transaction).redirect(named, core.number, kind)
    }

    /// Lets ".." mean another directory.
    pub(crate) fn set_parent(
        &mut self,
        transaction: &mut Transaction<'_>,
        parent: &Inode,
    ) -> Result<()> {
        self.edit(transaction).set_parent(parent.core.number)
    }

    /// Writes the directory's inode, with the times of a change of its entries.
    pub(crate) fn finish(
        mut self,
        transaction: &mut Transaction<'_>,
        now: Timestamp,
    ) -> Result<()> {
        self.record.set_mtime(now);
        self.record.set_ctime(now);
        self.record
            .set_version(self.record.version().wrapping_add(1));
        let core = &self.directory.core;
        core.adopt(&self.before.record, &self.record);
        core.set_size(self.record.size());
        self.directory.entries_changed();
        for (name, block, is) in &self.noted {
            transaction
                .instance
                .note_name(self.directory, name, *block, *is);
        }
        core.write(transaction, true)
    }
}

/// Ends a transaction; says what has to be waited for, if one of these inodes asks for it.
pub(crate) fn finish(mut transaction: Transaction<'_>, inodes: &[&Inode]) -> Durable {
    let asks = inodes.iter().any(|inode| {
        let flags = inode.disk().record.flags();
        flags.contains(InodeFlags::SYNC)
            || (inode.core.kind == FileKind::Directory && flags.contains(InodeFlags::DIRSYNC))
    });
    let tid = transaction.tid();
    if asks {
        transaction.sync();
    }
    transaction.end();
    Durable(asks.then_some(tid))
}

/// Takes one name from an inode (a directory's last with its own), in core; says whether it was the
/// last.
pub(crate) fn drop_name(inode: &Inode, now: Timestamp) -> bool {
    inode.core.update(|record| {
        let links = if inode.core.kind == FileKind::Directory {
            0
        } else {
            record.links().saturating_sub(1)
        };
        record.set_links(links);
        record.set_ctime(now);
        links == 0
    })
}

/// Whether a directory may get another subdirectory.
///
/// # Errors
/// `TooManyLinks`.
pub(crate) fn check_subdirectories(instance: &Instance, record: &InodeRecord) -> Result<()> {
    if record.links() >= LINKS_MAX && !counts_no_further(instance, record) {
        return Err(Error::TooManyLinks);
    }
    Ok(())
}

/// Whether a directory with too many subdirectories has a link count of 1 (`dir_nlink`).
fn counts_no_further(instance: &Instance, record: &InodeRecord) -> bool {
    instance.superblock.has_ro_compat(RoCompat::DIR_NLINK)
        && record.flags().contains(InodeFlags::INDEX)
}

/// Counts a subdirectory more.
pub(crate) fn count_subdirectory(instance: &Instance, record: &mut InodeRecord) {
    let links = record.links();
    if links == 1 {
        return;
    }
    let too_many = links >= LINKS_MAX && counts_no_further(instance, record);
    record.set_links(if too_many { 1 } else { links.saturating_add(1) });
}

/// Counts a subdirectory less.
pub(crate) fn uncount_subdirectory(record: &mut InodeRecord) {
    if record.links() > 2 {
        record.set_links(record.links() - 1);
    }
}

/// Whether an inode may get a name in a directory whose contents share a project.
///
/// # Errors
/// `CrossesDevices`: whoever moves files copies then.
pub(crate) fn check_project(directory: &InodeRecord, inode: &InodeRecord) -> Result<()> {
    let projects = (
        directory.project().unwrap_or(0),
        inode.project().unwrap_or(0),
    );
    if directory.flags().contains(InodeFlags::PROJINHERIT) && projects.0 != projects.1 {
        return Err(Error::CrossesDevices);
    }
    Ok(())
}
