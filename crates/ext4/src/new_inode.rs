//! New inodes: what they are like, and how they come into core and into the inode table.

use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::features::{Incompat, RoCompat};
use pagefence_ext4_format::inode::{
    DeviceNo, FileKind as DiskKind, Inode as InodeRecord, InodeFlags, Timestamp,
};
use pagefence_ext4_format::superblock::DefaultMountOptions;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Credentials, Error, FileKind, New, NewKind, Result};

use crate::acl::{self, Inherited};
use crate::alloc::{NewInode, NewNumber};
use crate::change::Transaction;
use crate::change::append_block::append_block;
use crate::change::change_dir::make_directory;
use crate::change::free_inode::free_inode;
use crate::change::inline_dir::{init_map, make_inline};
use crate::change::set_xattr::{Cost, cost_of_initial, set_initial};
use crate::clock;
use crate::disk_inode::{DiskInode, kind_of};
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::instance::Instance;
use crate::name_credits::{self, Sum};

const SET_GROUP_ID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;

/// A new inode, everything about it decided and checked, but its number.
#[derive(Clone, Debug)]
pub(crate) struct Unborn<'a> {
    pub(crate) kind: DiskKind,
    new: NewKind<'a>,
    /// As it will be, but for number, generation, map and contents.
    template: InodeRecord,
    inherited: Inherited,
    /// What its first attributes take, its own record included.
    attributes: Cost,
    directory: InodeNo,
    /// Directories made here have little to do with each other.
    is_top_level: bool,
}

impl Unborn<'_> {
    /// Whether it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        self.kind == DiskKind::Directory
    }

    /// What its making takes, without its name.
    pub(crate) fn takes(&self, sum: Sum) -> Sum {
        let blocks = match self.new {
            NewKind::Directory => 1,
            NewKind::Symlink(target) if !is_fast(target) => 1,
            _ => 0,
        };
        sum.change(name_credits::INODE)
            .add(self.attributes.credits, self.attributes.blocks)
            .take(blocks)
    }
}

/// Whether the target of a symbolic link lies in its inode.
fn is_fast(target: &[u8]) -> bool {
    target.len() < 60
}

impl Instance {
    /// Decides what a new inode in a directory will be like. The caller holds the directory's
    /// inode lock.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty target or one with a NUL, or a device's number that can't be
    /// stored; `NameTooLong` for a target that a block has no room for; `NoSpace`, `Corrupt`, `Io`.
    pub(crate) fn plan_inode<'a>(
        &self,
        directory: &DiskInode,
        new: &New<'a>,
        who: &Credentials,
        now: Timestamp,
    ) -> Result<Unborn<'a>> {
        let kind = match new.kind {
            NewKind::Regular => DiskKind::Regular,
            NewKind::Directory => DiskKind::Directory,
            NewKind::Symlink(target) => {
                self.check_target(target)?;
                DiskKind::Symlink
            }
            NewKind::BlockDevice { .. } => DiskKind::BlockDevice,
            NewKind::CharDevice { .. } => DiskKind::CharDevice,
            NewKind::Fifo => DiskKind::Fifo,
            NewKind::Socket => DiskKind::Socket,
        };
        let parent = &directory.record;
        // The number is not known yet, nor needed.
        let mut record = InodeRecord::create(InodeNo(0), &self.superblock, kind, 0, 0);
        let mut inherited = self.inherit(directory, kind, new)?;
        let lists: Vec<_> = inherited.xattrs().collect();
        let attributes = cost_of_initial(self, kind, &lists)?;
        let by_directory = self
            .superblock
            .default_mount_options()
            .contains(DefaultMountOptions::BSDGROUPS);
        let gid = if parent.mode() & SET_GROUP_ID != 0 {
            if kind == DiskKind::Directory {
                inherited.permissions |= SET_GROUP_ID;
            }
            parent.gid()
        } else if by_directory {
            parent.gid()
        } else {
            who.gid
        };
        let is_member = who.uid == 0 || who.gid == gid || who.groups.contains(&gid);
        let both = SET_GROUP_ID | GROUP_EXECUTE;
        if kind == DiskKind::Regular && inherited.permissions & both == both && !is_member {
            inherited.permissions &= !SET_GROUP_ID;
        }
        record.set_permissions(inherited.permissions);
        record.set_uid(who.uid);
        record.set_gid(gid);
        record.set_flags(parent.flags().inherited_by(kind));
        if self.superblock.has_ro_compat(RoCompat::PROJECT)
            && parent.flags().contains(InodeFlags::PROJINHERIT)
        {
            let stored = record.set_project(parent.project().unwrap_or(0));
            if !stored && parent.project().unwrap_or(0) != 0 {
                return Err(Error::Unsupported("projects in inodes of 128 bytes"));
            }
        }
        record.set_atime(now);
        record.set_mtime(now);
        record.set_ctime(now);
        record.set_crtime(now);
        record.set_links(if kind == DiskKind::Directory { 2 } else { 1 });
        if let NewKind::BlockDevice { major, minor } | NewKind::CharDevice { major, minor } =
            new.kind
            && !record.set_device(DeviceNo { major, minor })
        {
            return Err(Error::InvalidArgument);
        }
        let is_top_level =
            directory.number == InodeNo::ROOT || parent.flags().contains(InodeFlags::TOPDIR);
        Ok(Unborn {
            kind,
            new: new.kind,
            template: record,
            inherited,
            attributes,
            directory: directory.number,
            is_top_level,
        })
    }

    /// The permissions of a new inode and the access lists that it begins with: with a default
    /// list in the directory, the umask does not count.
    fn inherit(&self, directory: &DiskInode, kind: DiskKind, new: &New<'_>) -> Result<Inherited> {
        if kind == DiskKind::Symlink {
            return Ok(acl::inherit(None, false, 0o777, 0));
        }
        let default = self.default_acl(directory)?;
        let is_directory = kind == DiskKind::Directory;
        Ok(acl::inherit(
            default.as_ref(),
            is_directory,
            new.permissions,
            new.umask,
        ))
    }

    fn check_target(&self, target: &[u8]) -> Result<()> {
        if target.is_empty() || target.contains(&0) {
            return Err(Error::InvalidArgument);
        }
        // One block, with room for a NUL.
        if target.len() >= self.superblock.block_size() as usize {
            return Err(Error::NameTooLong);
        }
        Ok(())
    }

    /// The record of a new inode under its number, its contents with it.
    ///
    /// # Errors
    /// `NoSpace`, and then nothing was changed; `Corrupt`, `Io`.
    fn bear(
        &self,
        transaction: &mut Transaction<'_>,
        unborn: &Unborn<'_>,
        number: NewNumber,
    ) -> Result<InodeRecord> {
        let mut record = unborn.template.renumbered(number.number, number.generation);
        let lists: Vec<_> = unborn.inherited.xattrs().collect();
        set_initial(transaction, &mut record, &lists)?;
        // Only damage takes what was reserved.
        let full = |error| match error {
            Error::NoSpace if !lists.is_empty() => {
                Error::Io(std::io::ErrorKind::StorageFull.into())
            }
            error => error,
        };
        match unborn.new {
            NewKind::Regular => init_map(self, &mut record),
            NewKind::Directory => {
                let may_inline = self.superblock.has_incompat(Incompat::INLINE_DATA);
                if !may_inline || !make_inline(self, &mut record, unborn.directory)? {
                    init_map(self, &mut record);
                    make_directory(transaction, &mut record, unborn.directory).map_err(full)?;
                }
            }
            NewKind::Symlink(target) if is_fast(target) => {
                let set = record.set_fast_symlink_target(target);
                debug_assert!(set, "the target was checked");
            }
            NewKind::Symlink(target) => {
                init_map(self, &mut record);
                let (_, block) = append_block(transaction, &mut record).map_err(full)?;
                let mut bytes = vec![0; self.superblock.block_size() as usize];
                if let Some(place) = bytes.get_mut(..target.len()) {
                    place.copy_from_slice(target);
                }
                transaction.set(block, &bytes);
                record.set_size(target.len() as u64);
            }
            NewKind::BlockDevice { .. }
            | NewKind::CharDevice { .. }
            | NewKind::Fifo
            | NewKind::Socket => {}
        }
        Ok(record)
    }
}

/// Why an inode was not made.
#[derive(Debug)]
pub(crate) enum Unmade {
    /// Nothing was changed, or what was is sound by itself: the transaction is to be ended.
    Sound(Error),
    /// The transaction must be dropped.
    HalfDone(Error),
}

impl FileSystem {
    /// Makes an inode: takes a number, writes what belongs to it, and brings it into core without
    /// reading it. It has no name yet.
    ///
    /// # Errors
    /// `NoSpace` if no inode is free; `Corrupt`, `Io`.
    pub(crate) fn make_inode(
        &self,
        transaction: &mut Transaction<'_>,
        unborn: &Unborn<'_>,
        name: &[u8],
    ) -> Result<Arc<Inode>, Unmade> {
        let instance = &self.instance;
        let Some((allocator, handle)) = transaction.allocation() else {
            return Err(Unmade::Sound(Error::ReadOnly));
        };
        let request = NewInode {
            parent: unborn.directory,
            is_directory: unborn.is_directory(),
            is_top_level: unborn.is_top_level,
            name,
        };
        let number = allocator
            .new_inode(instance, handle, request)
            .map_err(Unmade::Sound)?;
        let twice = || {
            let what = "it is in use, and free by its bitmap";
            instance.damaged(number.number, None, what)
        };
        if self.inodes.get(number.number).is_some() {
            // It stays taken, as it should have been.
            return Err(Unmade::Sound(twice()));
        }
        let record = match instance.bear(transaction, unborn, number) {
            Ok(record) => record,
            Err(Error::NoSpace) => {
                let mut record = unborn.template.renumbered(number.number, number.generation);
                free_inode(transaction, &mut record, clock::seconds()).map_err(Unmade::HalfDone)?;
                return Err(Unmade::Sound(Error::NoSpace));
            }
            Err(error) => return Err(Unmade::HalfDone(error)),
        };
        let disk = DiskInode {
            number: number.number,
            kind: kind_of(unborn.kind),
            seed: record.checksum_seed(),
            record,
        };
        // Before it is in the table: whoever loaded it from there would have another object.
        let inode = self
            .inodes
            .get_or_load(number.number, || Ok::<_, Error>(Inode::new(disk.clone())))
            .map_err(Unmade::HalfDone)?;
        if inode.disk().record.generation() != number.generation {
            return Err(Unmade::HalfDone(twice()));
        }
        inode
            .core
            .write(transaction, true)
            .map_err(Unmade::HalfDone)?;
        Ok(inode)
    }
}

/// The kind of an inode as a directory entry records it.
pub(crate) fn entry_kind(kind: FileKind) -> DiskKind {
    match kind {
        FileKind::Regular => DiskKind::Regular,
        FileKind::Directory => DiskKind::Directory,
        FileKind::Symlink => DiskKind::Symlink,
        FileKind::BlockDevice => DiskKind::BlockDevice,
        FileKind::CharDevice => DiskKind::CharDevice,
        FileKind::Fifo => DiskKind::Fifo,
        FileKind::Socket => DiskKind::Socket,
    }
}
