//! What a new inode takes from its directory's default access list. Source: acl(5), "Object
//! creation and default ACLs".

use pagefence_ext4_format::inode::Inode as InodeRecord;
use pagefence_ext4_format::xattr::acl::Acl;
use pagefence_ext4_format::xattr::name::{POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT};
use pagefence_ext4_format::xattr::{self, NewValue, XattrLimits, XattrSet};
use pagefence_ext4_format::{BlockNo, Corruption};
use pagefence_vfs::{Error, FileKind, Result};

use crate::change::Transaction;
use crate::change::append_block::count_block;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::Instance;

/// The permissions of a new inode, and the attributes that it begins with.
#[derive(Clone, Debug)]
pub(crate) struct Inherited {
    /// The low twelve bits of the mode.
    pub(crate) permissions: u16,
    in_inode: Option<XattrSet>,
    in_block: Option<XattrSet>,
}

impl Inherited {
    /// Blocks that [`Self::write`] takes.
    pub(crate) fn blocks(&self) -> u32 {
        self.in_block.is_some().into()
    }

    /// Gives a new inode its attributes. `record` changes along; the caller writes it.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `NoSpace` if the transaction has no block.
    pub(crate) fn write(
        &self,
        transaction: &mut Transaction<'_>,
        record: &mut InodeRecord,
        goal: BlockNo,
    ) -> Result<()> {
        let instance = transaction.instance;
        let number = record.ino();
        if let Some(set) = &self.in_inode
            && let Some(region) = record.xattr_region_mut()
        {
            set.write_to(region)
                .at(&instance.damage, Some(number), None)?;
        }
        let Some(set) = &self.in_block else {
            return Ok(());
        };
        let block = transaction.allocate(number, goal)?;
        let mut bytes = vec![0; instance.superblock.block_size() as usize];
        set.write_to(&mut bytes)
            .and_then(|()| match instance.checksums {
                true => xattr::update_checksum(&mut bytes, block, instance.seed),
                false => Ok(()),
            })
            .at(&instance.damage, Some(number), Some(block))?;
        transaction.set(block, &bytes);
        record.set_file_acl(Some(block));
        count_block(transaction, record)
    }
}

impl Instance {
    /// What an inode made in a directory inherits: with a default access list there, the
    /// permissions asked for are the most that list gives, and the umask does not count.
    /// `template` is a record as the new inode's will be.
    ///
    /// # Errors
    /// `NoSpace` if there is no room for the lists; `Corrupt`, `Io`.
    pub(crate) fn inherit(
        &self,
        directory: &DiskInode,
        kind: FileKind,
        (permissions, umask): (u16, u16),
        template: &InodeRecord,
    ) -> Result<Inherited> {
        let plain = |permissions| Inherited {
            permissions,
            in_inode: None,
            in_block: None,
        };
        if kind == FileKind::Symlink {
            return Ok(plain(0o777));
        }
        let Some(default) = self.default_acl(directory)? else {
            return Ok(plain(permissions & !(umask & 0o777)));
        };
        let access = default.inherited(permissions);
        let mut inherited = plain(permissions & !0o777 | access.permissions());
        let mut lists = Vec::new();
        if kind == FileKind::Directory {
            lists.push((POSIX_ACL_DEFAULT, default.to_disk()));
        }
        if !access.is_mode_only() {
            lists.push((POSIX_ACL_ACCESS, access.to_disk()));
        }
        let limits = XattrLimits::from(&self.superblock);
        inherited.in_inode = template
            .xattr_region()
            .map(|region| XattrSet::of_inode(region, &limits))
            .transpose()
            .at(&self.damage, Some(directory.number), None)?
            .flatten();
        for (index, value) in &lists {
            let value = NewValue::Bytes(value);
            if let Some(set) = &mut inherited.in_inode
                && set.set(*index, &[], value).is_ok()
            {
                continue;
            }
            let block_size = self.superblock.block_size() as usize;
            inherited
                .in_block
                .get_or_insert_with(|| XattrSet::new_block(block_size, &limits))
                .set(*index, &[], value)
                .map_err(|_| Error::NoSpace)?;
        }
        Ok(inherited)
    }

    /// The default access list of a directory, if it has one.
    fn default_acl(&self, directory: &DiskInode) -> Result<Option<Acl>> {
        match self.xattr(directory, b"system.posix_acl_default") {
            Ok(value) => Acl::from_xattr(&value).map_err(Corruption::from).at(
                &self.damage,
                Some(directory.number),
                None,
            ),
            Err(Error::NoAttribute) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
