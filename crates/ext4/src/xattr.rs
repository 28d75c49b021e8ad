//! Extended attributes: in the inode, in an attribute block, in inodes of their own; and what an
//! inode keeps inline.

use pagefence_block_io::Buffer;
use pagefence_ext4_format::features::Incompat;
use pagefence_ext4_format::inode::Inode as InodeRecord;
use pagefence_ext4_format::xattr::acl::{self, Caller, Owned};
use pagefence_ext4_format::xattr::name::{self, INLINE_DATA, POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT};
use pagefence_ext4_format::xattr::{self, Value, XattrEntry, XattrLimits, Xattrs};
use pagefence_ext4_format::{BlockNo, FileBlock, InodeNo};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Access, Credentials, Error, FileKind, InodeId, Result, XattrName};

use crate::alloc::BlockOwner;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::filesystem::FileSystem;
use crate::instance::{Instance, checked};
use crate::map_blocks::Target;

/// Largest value, in an inode of its own (Linux: `XATTR_SIZE_MAX`).
pub(crate) const VALUE_MAX: usize = 64 << 10;

/// Bytes of an inode's block area.
const BLOCK_AREA: usize = 60;

impl FileSystem {
    /// Hands an inode to `read`, which may read its attributes wherever they are. Those outside the
    /// inode lie in blocks and inodes that go back with the attribute, to be another inode's next:
    /// the inode lock, shared, keeps them while they are read (Linux: `xattr_sem`). Attributes that
    /// can only lie in the inode are those of one moment without a lock.
    ///
    /// # Errors
    /// Those of `read`, and of reading the inode.
    pub(crate) fn with_xattrs<T>(
        &self,
        number: InodeNo,
        read: impl FnOnce(&DiskInode) -> Result<T>,
    ) -> Result<T> {
        let disk = self.disk_inode(number)?;
        let may_be_outside = disk.record.file_acl().is_some()
            || self.instance.superblock.has_incompat(Incompat::EA_INODE);
        if !may_be_outside || self.instance.live.is_none() {
            return read(&disk);
        }
        let inode = self.inode(InodeId(u64::from(number.0)))?;
        let mut held = Held::at_entry();
        let (_shared, _held) = inode.lock.read(&mut held);
        read(&inode.disk())
    }
}

impl Instance {
    pub(crate) fn xattr_limits(&self) -> XattrLimits {
        XattrLimits::from(&self.superblock)
    }

    fn inode_xattrs<'a>(&self, inode: &'a InodeRecord) -> Result<Option<Xattrs<'a>>> {
        let Some(region) = inode.xattr_region() else {
            return Ok(None);
        };
        Xattrs::in_inode(region, &self.xattr_limits()).at(&self.damage, Some(inode.ino()), None)
    }

    /// The attribute block, its checksum checked once while it is in memory.
    pub(crate) fn xattr_block(
        &self,
        inode: &InodeRecord,
    ) -> Result<Option<(BlockNo, Arc<Buffer>)>> {
        let Some(block) = inode.file_acl() else {
            return Ok(None);
        };
        let buffer = self.read_owned(BlockOwner::Attributes(inode.ino()), block)?;
        if self.checksums && !buffer.verified(checked::XATTR_BLOCK) {
            xattr::verify_checksum(&buffer, block, self.seed).at(
                &self.damage,
                Some(inode.ino()),
                Some(block),
            )?;
            buffer.set_verified(checked::XATTR_BLOCK);
        }
        Ok(Some((block, buffer)))
    }

    /// Hands every attribute of the inode to `each`, those inside the inode first, until it
    /// returns something.
    fn find_xattr<T>(
        &self,
        inode: &DiskInode,
        mut each: impl FnMut(&XattrEntry<'_>) -> Option<Result<T>>,
    ) -> Result<Option<T>> {
        if let Some(xattrs) = self.inode_xattrs(&inode.record)?
            && let Some(found) = xattrs.entries().find_map(|entry| each(&entry))
        {
            return found.map(Some);
        }
        if let Some((block, buffer)) = self.xattr_block(&inode.record)? {
            let xattrs = Xattrs::in_block(&buffer, &self.xattr_limits()).at(
                &self.damage,
                Some(inode.number),
                Some(block),
            )?;
            if let Some(found) = xattrs.entries().find_map(|entry| each(&entry)) {
                return found.map(Some);
            }
        }
        Ok(None)
    }

    pub(crate) fn xattr_value(
        &self,
        inode: &DiskInode,
        index: u8,
        rest: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        self.find_xattr(inode, |entry| {
            (entry.index == index && entry.name == rest).then(|| self.value_of(inode, entry))
        })
    }

    fn value_of(&self, inode: &DiskInode, entry: &XattrEntry<'_>) -> Result<Vec<u8>> {
        match entry.value {
            Value::Bytes(bytes) => Ok(bytes.to_vec()),
            Value::Inode { inode: number, len } => self.ea_inode_value(inode, entry, number, len),
        }
    }

    /// The value in an attribute inode, its hash checked.
    fn ea_inode_value(
        &self,
        inode: &DiskInode,
        entry: &XattrEntry<'_>,
        number: InodeNo,
        len: u32,
    ) -> Result<Vec<u8>> {
        let len = len as usize;
        let holder = match DiskInode::read(self, number) {
            Err(Error::Stale) => {
                return Err(self.damaged(
                    inode.number,
                    None,
                    format_args!("its attribute inode {number} is not in use"),
                ));
            }
            other => other?,
        };
        if len > VALUE_MAX {
            // The format has room for it; no interface carries it, Linux's neither.
            return Err(Error::Unsupported("an attribute of more than 64 KiB"));
        }
        let fits = holder.size() == len as u64;
        if !holder.is_ea_inode() || holder.kind != FileKind::Regular || !fits {
            return Err(self.damaged(number, None, "not an attribute inode of that size"));
        }
        let mut value = vec![0; len];
        let block_size = self.superblock.block_size() as usize;
        for (block, piece) in (0..).zip(value.chunks_mut(block_size)) {
            let Target::Written(start) = self.map_blocks(&holder, FileBlock(block))?.target else {
                return Err(self.damaged(number, None, "an attribute inode with a hole"));
            };
            let buffer = self.read_owned(BlockOwner::Contents(number), start)?;
            piece.copy_from_slice(buffer.get(..piece.len()).unwrap_or(&[]));
        }
        // Lustre's attribute inodes have no hash: they point back to their owner instead.
        let of_lustre = holder.record.mtime().seconds == i64::from(inode.number.0)
            && holder.record.generation() == inode.record.generation();
        if !of_lustre {
            entry
                .verify_ea_inode(&value, holder.record.ea_hash(), self.seed)
                .map_err(pagefence_ext4_format::Corruption::from)
                .at(&self.damage, Some(number), None)?;
        }
        Ok(value)
    }

    /// What an inline file or directory has beyond its block area.
    pub(crate) fn inline_rest(&self, inode: &DiskInode) -> Result<Vec<u8>> {
        let Some(xattrs) = self.inode_xattrs(&inode.record)? else {
            return Ok(Vec::new());
        };
        match xattrs
            .find(name::SYSTEM, INLINE_DATA)
            .map(|entry| entry.value)
        {
            None => Ok(Vec::new()),
            Some(Value::Bytes(bytes)) => Ok(bytes.to_vec()),
            Some(Value::Inode { .. }) => {
                Err(self.damaged(inode.number, None, "inline data in another inode"))
            }
        }
    }

    /// The data that the inode keeps inline, up to its size.
    pub(crate) fn inline_data(&self, inode: &DiskInode) -> Result<Vec<u8>> {
        let size = inode.size();
        let mut data = inode.i_block().to_vec();
        if size > BLOCK_AREA as u64 {
            data.extend(self.inline_rest(inode)?);
        }
        match usize::try_from(size) {
            Ok(size) if size <= data.len() => data.truncate(size),
            _ => {
                return Err(self.damaged(
                    inode.number,
                    None,
                    format_args!("{size} bytes of inline data"),
                ));
            }
        }
        Ok(data)
    }

    /// The value of an attribute by its full name.
    pub(crate) fn xattr(&self, inode: &DiskInode, full: &[u8]) -> Result<Vec<u8>> {
        let (index, rest) = name::split(full)
            .filter(|(index, _)| name::is_exposed(*index))
            .ok_or(Error::Unsupported("extended attributes of that namespace"))?;
        let value = self
            .xattr_value(inode, index, rest)?
            .ok_or(Error::NoAttribute)?;
        if matches!(index, POSIX_ACL_ACCESS | POSIX_ACL_DEFAULT) {
            let acl = self
                .parse_acl(&inode.record, &value)?
                .ok_or(Error::NoAttribute)?;
            return Ok(acl.to_xattr());
        }
        Ok(value)
    }

    /// The full names of the attributes.
    pub(crate) fn xattr_names(&self, inode: &DiskInode) -> Result<Vec<XattrName>> {
        let mut names = Vec::new();
        self.find_xattr(inode, |entry| {
            if name::is_exposed(entry.index)
                && let Some(full) = name::join(entry.index, entry.name)
            {
                names.push(XattrName(full));
            }
            None::<Result<()>>
        })?;
        Ok(names)
    }

    /// Whether `who` may do `access` to the inode, by its mode and access list; root may do all
    /// but execute what nobody may execute.
    pub(crate) fn check_access(
        &self,
        inode: &DiskInode,
        access: Access,
        who: &Credentials,
    ) -> Result<()> {
        let mode = inode.record.mode();
        if who.uid == 0 {
            let refused = access.contains(Access::EXECUTE)
                && inode.kind != FileKind::Directory
                && mode & 0o111 == 0;
            return if refused {
                Err(Error::PermissionDenied)
            } else {
                Ok(())
            };
        }
        let list = self.access_acl(inode)?;
        let caller = Caller {
            uid: who.uid,
            gid: who.gid,
            groups: &who.groups,
        };
        let owned = Owned {
            uid: inode.record.uid(),
            gid: inode.record.gid(),
            mode,
        };
        if acl::permits(list.as_ref(), &caller, &owned, access.bits()) {
            Ok(())
        } else {
            Err(Error::PermissionDenied)
        }
    }
}
