//! What a new inode takes from its directory's default access list. Source: acl(5), "Object
//! creation and default ACLs".

use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::inode::Inode as InodeRecord;
use pagefence_ext4_format::xattr::{self, NewValue, XattrLimits, XattrSet};
use pagefence_vfs::{Error, FileKind, Result};

use crate::acl;
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
        let default = self.default_acl(directory)?;
        let is_directory = kind == FileKind::Directory;
        let taken = acl::inherit(default.as_ref(), is_directory, permissions, umask);
        let mut inherited = plain(taken.permissions);
        if default.is_none() {
            return Ok(inherited);
        }
        let limits = XattrLimits::from(&self.superblock);
        inherited.in_inode = template
            .xattr_region()
            .map(|region| XattrSet::of_inode(region, &limits))
            .transpose()
            .at(&self.damage, Some(directory.number), None)?
            .flatten();
        for (index, rest, value) in taken.xattrs() {
            let value = NewValue::Bytes(value);
            if let Some(set) = &mut inherited.in_inode
                && set.set(index, rest, value).is_ok()
            {
                continue;
            }
            let block_size = self.superblock.block_size() as usize;
            inherited
                .in_block
                .get_or_insert_with(|| XattrSet::new_block(block_size, &limits))
                .set(index, rest, value)
                .map_err(|_| Error::NoSpace)?;
        }
        Ok(inherited)
    }
}
