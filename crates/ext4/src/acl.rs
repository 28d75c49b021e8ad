//! POSIX access control lists of files: what a new file takes of its directory, and what a change
//! of mode makes of a list. Sources: acl(5), the withdrawn POSIX.1e draft 17 (23.3), Linux.

use pagefence_ext4_format::Corruption;
use pagefence_ext4_format::inode::Inode as InodeRecord;
use pagefence_ext4_format::xattr::acl::Acl;
use pagefence_ext4_format::xattr::name::{POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT};
use pagefence_vfs::Result;

use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::instance::Instance;

/// What a new file takes of its directory and of whoever makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inherited {
    /// The low twelve bits of its mode.
    pub(crate) permissions: u16,
    /// Its access list as it is stored; nothing if the mode says it all.
    pub(crate) access: Option<Vec<u8>>,
    /// Its default list as it is stored.
    pub(crate) default: Option<Vec<u8>>,
}

impl Inherited {
    /// The lists as attributes: prefix, rest of the name, value.
    pub(crate) fn xattrs(&self) -> impl Iterator<Item = (u8, &'static [u8], &[u8])> {
        let lists = [
            (POSIX_ACL_ACCESS, &self.access),
            (POSIX_ACL_DEFAULT, &self.default),
        ];
        lists.into_iter().filter_map(|(index, list)| {
            let no_rest: &[u8] = &[];
            Some((index, no_rest, list.as_ref()?.as_slice()))
        })
    }
}

/// What a file made with `permissions` (twelve bits) in a directory with that default list takes;
/// without a list, `umask` decides. Not for symbolic links, which take nothing.
pub(crate) fn inherit(
    default: Option<&Acl>,
    is_directory: bool,
    permissions: u16,
    umask: u16,
) -> Inherited {
    let Some(default) = default else {
        return Inherited {
            permissions: permissions & 0o7777 & !(umask & 0o777),
            access: None,
            default: None,
        };
    };
    let access = default.inherited(permissions);
    Inherited {
        permissions: (permissions & 0o7000) | access.permissions(),
        access: (!access.is_mode_only()).then(|| access.to_disk()),
        default: is_directory.then(|| default.to_disk()),
    }
}

/// The access list, as it is stored, of a file with that list whose mode becomes `mode`; nothing
/// if the mode then says it all.
pub(crate) fn chmod(access: &Acl, mode: u16) -> Option<Vec<u8>> {
    let access = access.with_mode(mode);
    (!access.is_mode_only()).then(|| access.to_disk())
}

impl Instance {
    /// A list as it is stored. Nothing if it has no entries.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn parse_acl(&self, inode: &InodeRecord, value: &[u8]) -> Result<Option<Acl>> {
        Acl::from_disk(value)
            .map_err(Corruption::from)
            .at(&self.damage, Some(inode.ino()), None)
    }

    /// The list that says who may do what to a file besides its mode.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn access_acl(&self, inode: &DiskInode) -> Result<Option<Acl>> {
        self.stored_acl(inode, POSIX_ACL_ACCESS)
    }

    /// The list that what is made in a directory takes.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn default_acl(&self, dir: &DiskInode) -> Result<Option<Acl>> {
        self.stored_acl(dir, POSIX_ACL_DEFAULT)
    }

    fn stored_acl(&self, inode: &DiskInode, index: u8) -> Result<Option<Acl>> {
        match self.xattr_value(inode, index, &[])? {
            Some(value) => self.parse_acl(&inode.record, &value),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use pagefence_ext4_format::xattr::acl::{AclEntry, AclTag};

    use super::*;

    fn list(entries: &[(AclTag, u8)]) -> Acl {
        let entries = entries.iter().map(|(tag, perm)| AclEntry {
            tag: *tag,
            perm: *perm,
        });
        Acl::new(entries.collect()).expect("a list in order")
    }

    fn three(user: u8, group: u8, other: u8) -> Acl {
        list(&[
            (AclTag::UserObj, user),
            (AclTag::GroupObj, group),
            (AclTag::Other, other),
        ])
    }

    fn masked(group: u8, mask: u8) -> Acl {
        list(&[
            (AclTag::UserObj, 7),
            (AclTag::User(1000), 6),
            (AclTag::GroupObj, group),
            (AclTag::Mask, mask),
            (AclTag::Other, 5),
        ])
    }

    #[test]
    fn without_a_default_list_the_umask_decides() {
        let new = inherit(None, true, 0o2777, 0o7022);
        assert_eq!(new.permissions, 0o2755, "the umask has nine bits");
        assert_eq!(new.xattrs().count(), 0);
    }

    /// With a default list the umask has no say: rows of (list, mode asked for, mode).
    #[test]
    fn a_default_list_takes_the_place_of_the_umask() {
        let table = [
            (three(7, 7, 7), 0o666, 0o666),
            (three(7, 5, 0), 0o666, 0o640),
            (three(7, 5, 0), 0o4777, 0o4750),
            (three(0, 0, 0), 0o777, 0),
            (masked(7, 7), 0o644, 0o644),
            (masked(7, 5), 0o666, 0o644),
            (masked(0, 6), 0o770, 0o760),
        ];
        for (default, asked, due) in table {
            for is_directory in [false, true] {
                let new = inherit(Some(&default), is_directory, asked, 0o777);
                assert_eq!(new.permissions, due, "{default:?} {asked:o}");
                let kept = is_directory.then(|| default.to_disk());
                assert_eq!(new.default, kept, "passed on as it is");
                let access = new.access.map(|value| {
                    let list = Acl::from_disk(&value).expect("sound");
                    list.expect("entries")
                });
                assert_eq!(access.is_some(), !default.is_mode_only());
                if let Some(access) = access {
                    assert_eq!(access.permissions(), due & 0o777);
                    assert_eq!(access, default.inherited(asked));
                }
            }
        }
    }

    #[test]
    fn a_list_follows_the_mode_and_goes_if_the_mode_says_it_all() {
        assert_eq!(chmod(&three(7, 5, 5), 0o100_600), None);
        let value = chmod(&masked(7, 7), 0o100_640).expect("it has a name");
        let due = list(&[
            (AclTag::UserObj, 6),
            (AclTag::User(1000), 6),
            (AclTag::GroupObj, 7),
            (AclTag::Mask, 4),
            (AclTag::Other, 0),
        ]);
        assert_eq!(value, due.to_disk());
    }

    #[test]
    fn a_directory_passes_both_lists_on() {
        let default = masked(7, 7);
        let new = inherit(Some(&default), true, 0o777, 0);
        let both: Vec<_> = new.xattrs().collect();
        let access = default.inherited(0o777).to_disk();
        let default = default.to_disk();
        assert_eq!(
            both,
            [
                (POSIX_ACL_ACCESS, &[][..], access.as_slice()),
                (POSIX_ACL_DEFAULT, &[][..], default.as_slice()),
            ]
        );
    }
}
