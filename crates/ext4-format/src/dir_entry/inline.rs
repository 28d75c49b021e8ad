//! A directory inside its inode (feature `inline_data`): `i_block` holds the parent's number and
//! entries, the value of the attribute `system.data` holds more entries. Source: the kernel's
//! `Documentation/filesystems/ext4/inlinedata.rst`.

use std::iter::Chain;

use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::{DirCorruption, DirEntry, DirFormat, Entries, Walk, find};
use crate::extent::ROOT_BYTES;
use crate::{Corruption, InodeNo};

/// Bytes of the parent's number.
pub(super) const PARENT: usize = size_of::<U32>();

/// A directory inside its inode.
#[derive(Clone, Copy, Debug)]
pub struct InlineDir<'a> {
    parent: InodeNo,
    in_inode: &'a [u8],
    in_attribute: &'a [u8],
    format: DirFormat,
}

impl<'a> InlineDir<'a> {
    /// A view of the 60 bytes of `i_block` and of the value of `system.data` (empty if there is
    /// none). Entries are checked as they are met.
    ///
    /// # Errors
    ///
    /// [`Corruption::Truncated`] if `i_block` is shorter, [`DirCorruption::Inode`] if the parent
    /// cannot exist.
    pub fn parse(
        i_block: &'a [u8],
        attribute: &'a [u8],
        format: &DirFormat,
    ) -> Result<Self, Corruption> {
        let truncated = || Corruption::Truncated {
            what: "inline directory",
            needed: ROOT_BYTES,
            have: i_block.len(),
        };
        let whole = i_block.get(..ROOT_BYTES).ok_or_else(truncated)?;
        let (parent, in_inode) = U32::ref_from_prefix(whole).map_err(|_| truncated())?;
        let parent = parent.get();
        if parent == 0 || parent > format.last_inode.0 {
            return Err(DirCorruption::Inode {
                offset: 0,
                inode: parent,
                last: format.last_inode.0,
            }
            .into());
        }
        Ok(Self {
            parent: InodeNo(parent),
            in_inode,
            in_attribute: attribute,
            format: *format,
        })
    }

    /// The directory that this one lies in. There is no entry for it, nor one for `.`.
    #[must_use]
    pub fn parent(&self) -> InodeNo {
        self.parent
    }

    /// The entries in use, in the order of the bytes. Errors are as those of
    /// [`DirBlock::entries`](super::DirBlock::entries), for each of the two parts.
    pub fn entries(&self) -> Chain<Entries<'a>, Entries<'a>> {
        self.part(self.in_inode, PARENT)
            .chain(self.part(self.in_attribute, ROOT_BYTES))
    }

    /// The entry of `name`, by looking at each.
    ///
    /// # Errors
    ///
    /// A corruption met before the name.
    pub fn find(&self, name: &[u8]) -> Result<Option<DirEntry<'a>>, Corruption> {
        find(self.entries(), name)
    }

    fn part(&self, area: &'a [u8], base: usize) -> Entries<'a> {
        // No checksum of its own: the inode's covers it.
        let format = DirFormat {
            checksums: false,
            ..self.format
        };
        Entries {
            walk: Walk::new(area, &format),
            format,
            base,
            dots: false,
            met: 0,
        }
    }
}
