//! Flags of inodes and projects (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR). Rules: Linux's
//! `fileattr_set_prepare` and `ext4_fileattr_set`.

use pagefence_ext4_format::features::RoCompat;
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_lock_order::Held;
use pagefence_lock_order::levels;
use pagefence_lock_order::primitives::Arc;
use pagefence_page_cache::WaitFor;
use pagefence_vfs::{Credentials, Error, FileKind, Fsxattr, InodeId, MapFormat, Result};

use super::Attributes;
use crate::clock;
use crate::disk_inode::DiskInode;
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::migrate::Holder;

/// Flags of FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR (FS_XFLAG_*), as inode flags.
pub(crate) const XFLAGS: [(u32, InodeFlags); 7] = [
    (0x8, InodeFlags::IMMUTABLE),
    (0x10, InodeFlags::APPEND),
    (0x20, InodeFlags::SYNC),
    (0x40, InodeFlags::NOATIME),
    (0x80, InodeFlags::NODUMP),
    (0x200, InodeFlags::PROJINHERIT),
    (0x8000, InodeFlags::DAX),
];

/// What a change of flags or of the project asks for.
struct Wanted {
    /// All flags that users see, as they become.
    flags: InodeFlags,
    project: Option<u32>,
}

impl FileSystem {
    /// Sets the flags that users may set; those that they only see are passed over, as they come
    /// back from whoever read them. Takes the inode lock and a transaction.
    pub(crate) fn change_flags(&self, id: InodeId, flags: u32, who: &Credentials) -> Result<()> {
        let flags = InodeFlags::from_bits_retain(flags);
        self.change_extra(id, who, |_| {
            Ok(Wanted {
                flags,
                project: None,
            })
        })
    }

    /// Sets the flags that FS_IOC_FSSETXATTR knows, and the project.
    pub(crate) fn change_fsxattr(
        &self,
        id: InodeId,
        attributes: &Fsxattr,
        who: &Credentials,
    ) -> Result<()> {
        let known = XFLAGS.iter().fold(0, |known, (bit, _)| known | bit);
        if attributes.xflags & !known != 0 || attributes.extent_size != 0 {
            return Err(Error::Unsupported("attributes that ext4 does not have"));
        }
        self.change_extra(id, who, |disk| {
            let mut flags = disk.record.flags() & InodeFlags::USER_VISIBLE;
            for (bit, flag) in XFLAGS {
                flags.set(flag, attributes.xflags & bit != 0);
            }
            Ok(Wanted {
                flags,
                project: Some(attributes.project),
            })
        })
    }

    /// A change of the form of the block map ([`FileSystem::migrate_inode`]) is part of it.
    fn change_extra(
        &self,
        id: InodeId,
        who: &Credentials,
        wanted: impl FnOnce(&DiskInode) -> Result<Wanted>,
    ) -> Result<()> {
        let inode = self.changeable_inode(id)?;
        let mut holder = None;
        let changed = {
            let mut held = Held::at_entry();
            let (_exclusive, mut held) = inode.lock.write(&mut held);
            self.change_extra_locked(&mut held, &inode, who, wanted, &mut holder)
        };
        self.let_go(holder);
        changed
    }

    /// [`Self::change_extra`], with the inode lock; a migration leaves `holder` to
    /// [`Self::let_go`]. What becomes immutable is written first, and so write-protected wherever it is
    /// mapped.
    fn change_extra_locked(
        &self,
        held: &mut Held<'_, levels::Inode>,
        inode: &Arc<Inode>,
        who: &Credentials,
        wanted: impl FnOnce(&DiskInode) -> Result<Wanted>,
        holder: &mut Option<Holder>,
    ) -> Result<()> {
        let disk = inode.disk();
        let wanted = wanted(&disk)?;
        let flags = new_flags(&disk, wanted.flags, who)?;
        let project = match wanted.project {
            Some(project) => self.new_project(&disk, project)?,
            None => None,
        };
        let stays_immutable = (flags & disk.record.flags()).contains(InodeFlags::IMMUTABLE);
        if stays_immutable && (flags != disk.record.flags() || project.is_some()) {
            return Err(Error::NotPermitted);
        }
        // First: a file that can't be migrated now keeps its other flags, too.
        let changed = flags ^ disk.record.flags();
        if changed.contains(InodeFlags::EXTENTS) {
            let to = match flags.contains(InodeFlags::EXTENTS) {
                true => MapFormat::Extents,
                false => MapFormat::Blocks,
            };
            self.migrate_locked(held, inode, to, who.uid == 0, holder)?;
        }
        let disk = inode.disk();
        let xattrs = match project {
            Some(_) => {
                let mut record = disk.record.clone();
                record.ensure_extra();
                let mut xattrs = self.xattr_change(&disk)?;
                xattrs.grow_extra(&record)?;
                Some(xattrs)
            }
            None => None,
        };
        let attributes = Attributes {
            changed: Some(clock::now()),
            flags: Some(flags),
            project,
            ..Attributes::default()
        };
        let is_root = who.uid == 0;
        let stops_stores = (changed & flags).contains(InodeFlags::IMMUTABLE);
        match inode.existing_mapping().filter(|_| stops_stores) {
            None => self.apply_attributes(held, inode, &attributes, xattrs, is_root),
            Some(mapping) => {
                // Most of it while others go on.
                mapping.write_back(held, 0..u64::MAX, WaitFor::All)?;
                // Who stores through a map asks for that (`FileData::reserve`) inside the lock, as long
                // as its page is not dirty. What is written is stored to no longer: so nobody stores
                // between this and the flag.
                let (_fence, mut held) = mapping.fence(held, 0..0);
                mapping.write_back(&mut held, 0..u64::MAX, WaitFor::All)?;
                self.apply_attributes(&mut held, inode, &attributes, xattrs, is_root)
            }
        }
    }

    /// The project to be set, if it is another.
    fn new_project(&self, disk: &DiskInode, project: u32) -> Result<Option<u32>> {
        if !self.instance.superblock.has_ro_compat(RoCompat::PROJECT) {
            return match project {
                0 => Ok(None),
                _ => Err(Error::Unsupported(
                    "projects without the feature of that name",
                )),
            };
        }
        if project == u32::MAX {
            return Err(Error::InvalidArgument);
        }
        // A record without the field is of project 0.
        let is_new = disk.record.project().unwrap_or(0) != project;
        Ok(is_new.then_some(project))
    }
}

/// All flags as they become, if `wanted` may be asked for.
fn new_flags(disk: &DiskInode, wanted: InodeFlags, who: &Credentials) -> Result<InodeFlags> {
    let old = disk.record.flags();
    if !InodeFlags::USER_VISIBLE.contains(wanted) {
        return Err(Error::Unsupported("flags that nobody may set"));
    }
    let wanted = wanted & InodeFlags::USER_MODIFIABLE;
    let kind = match disk.record.kind() {
        Some(kind) => wanted.allowed_for(kind) == wanted,
        None => false,
    };
    if !kind {
        return Err(Error::Unsupported(
            "flags that files of that kind can't have",
        ));
    }
    let changed = (wanted ^ old) & InodeFlags::USER_MODIFIABLE;
    if changed.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) && who.uid != 0 {
        return Err(Error::NotPermitted);
    }
    if changed.contains(InodeFlags::JOURNAL_DATA) {
        return Err(Error::Unsupported("a file's data in the journal"));
    }
    if changed.intersects(InodeFlags::CASEFOLD | InodeFlags::EOFBLOCKS) {
        return Err(Error::Unsupported("that flag"));
    }
    if changed.contains(InodeFlags::DAX) {
        let holds_data = matches!(disk.kind, FileKind::Regular | FileKind::Directory);
        if wanted.contains(InodeFlags::DAX) && !holds_data {
            return Err(Error::InvalidArgument);
        }
        let excludes = InodeFlags::VERITY
            | InodeFlags::ENCRYPT
            | InodeFlags::JOURNAL_DATA
            | InodeFlags::INLINE_DATA;
        if old.intersects(excludes) {
            return Err(Error::Unsupported("direct access to such a file"));
        }
    }
    Ok(old.difference(InodeFlags::USER_MODIFIABLE) | wanted)
}
