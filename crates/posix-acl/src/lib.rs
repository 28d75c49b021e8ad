//! POSIX access control lists: as ext4 stores them (version 1), as the kernel's interface carries
//! them (version 2), and what they permit. Sources: the withdrawn POSIX.1e draft 17, acl(5), and
//! the kernel's `include/uapi/linux/posix_acl_xattr.h`.

mod error;
#[cfg(test)]
mod tests;

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32};

pub use error::AclError;

/// Permission to execute or search.
pub const EXECUTE: u8 = 1;
/// Permission to write.
pub const WRITE: u8 = 2;
/// Permission to read.
pub const READ: u8 = 4;

const DISK_VERSION: u32 = 1;
const XATTR_VERSION: u32 = 2;
/// The id of an entry that has none, in the kernel's form.
const NO_ID: u32 = u32::MAX;

/// Whom an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AclTag {
    /// The owner.
    UserObj,
    /// This user.
    User(u32),
    /// The owning group.
    GroupObj,
    /// This group.
    Group(u32),
    /// The most that the others but the owner and the rest of the world get.
    Mask,
    /// The rest of the world.
    Other,
}

impl AclTag {
    fn new(tag: u16, id: u32) -> Result<Self, AclError> {
        Ok(match tag {
            0x01 => Self::UserObj,
            0x02 => Self::User(id),
            0x04 => Self::GroupObj,
            0x08 => Self::Group(id),
            0x10 => Self::Mask,
            0x20 => Self::Other,
            _ => return Err(AclError::Tag { tag }),
        })
    }

    fn number(self) -> u16 {
        match self {
            Self::UserObj => 0x01,
            Self::User(_) => 0x02,
            Self::GroupObj => 0x04,
            Self::Group(_) => 0x08,
            Self::Mask => 0x10,
            Self::Other => 0x20,
        }
    }

    fn id(self) -> Option<u32> {
        match self {
            Self::User(id) | Self::Group(id) => Some(id),
            Self::UserObj | Self::GroupObj | Self::Mask | Self::Other => None,
        }
    }
}

/// An entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AclEntry {
    /// Whom it is for.
    pub tag: AclTag,
    /// Of [`READ`], [`WRITE`] and [`EXECUTE`].
    pub perm: u8,
}

/// A list that is valid: one owner, named users, one owning group, named groups, one mask if
/// anyone is named, one other, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<AclEntry>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The other groups.
    pub groups: &'a [u32],
}

impl Caller<'_> {
    fn is_in(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }
}

/// What is asked for, without its list.
#[derive(Clone, Copy, Debug)]
pub struct Owned {
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// `i_mode`, of which the lower nine bits count.
    pub mode: u16,
}

impl Acl {
    /// Checks entries.
    ///
    /// # Errors
    ///
    /// [`AclError::Order`], [`AclError::Id`], [`AclError::Perm`].
    pub fn new(entries: Vec<AclEntry>) -> Result<Self, AclError> {
        // The least rank that the next entry may have.
        let mut due = 0_u8;
        let mut named = false;
        let mut masked = false;
        for (at, entry) in entries.iter().enumerate() {
            let rank = match entry.tag {
                AclTag::UserObj => 0,
                AclTag::User(_) => 1,
                AclTag::GroupObj => 2,
                AclTag::Group(_) => 3,
                AclTag::Mask => 4,
                AclTag::Other => 5,
            };
            named |= entry.tag.id().is_some();
            masked |= entry.tag == AclTag::Mask;
            // The owner, the owning group and the other must not be passed over.
            let skips = (due == 0 && rank > 0) || (due <= 2 && rank > 2);
            let unmasked = entry.tag == AclTag::Other && named && !masked;
            if rank < due || skips || unmasked {
                return Err(AclError::Order { at });
            }
            due = match entry.tag {
                AclTag::User(_) | AclTag::Group(_) => rank,
                _ => rank.saturating_add(1),
            };
            if entry.tag.id() == Some(NO_ID) {
                return Err(AclError::Id { at });
            }
            if entry.perm & !(READ | WRITE | EXECUTE) != 0 {
                return Err(AclError::Perm {
                    perm: entry.perm.into(),
                });
            }
        }
        if due != 6 {
            return Err(AclError::Order { at: entries.len() });
        }
        Ok(Self { entries })
    }

    /// Reads the form that ext4 stores. Nothing if it has no entries.
    ///
    /// # Errors
    ///
    /// One of [`AclError`].
    pub fn from_disk(bytes: &[u8]) -> Result<Option<Self>, AclError> {
        let size = bytes.len();
        let short = AclError::Size { size };
        let mut rest = version(bytes, DISK_VERSION)?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let ([tag, perm], after) = <[U16; 2]>::read_from_prefix(rest).map_err(|_| short)?;
            rest = after;
            let mut id = NO_ID;
            if AclTag::new(tag.get(), id)?.id().is_some() {
                let (stored, after) = U32::read_from_prefix(rest).map_err(|_| short)?;
                id = stored.get();
                rest = after;
            }
            entries.push(entry(tag.get(), perm.get(), id)?);
        }
        Self::unless_empty(entries)
    }

    /// Reads the form that the kernel's interface carries. Nothing if it has no entries, which
    /// asks for the list to be removed.
    ///
    /// # Errors
    ///
    /// One of [`AclError`].
    pub fn from_xattr(bytes: &[u8]) -> Result<Option<Self>, AclError> {
        let size = bytes.len();
        let mut rest = version(bytes, XATTR_VERSION)?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (([tag, perm], id), after) = <[U16; 2]>::read_from_prefix(rest)
                .ok()
                .and_then(|(head, rest)| {
                    let (id, rest) = U32::read_from_prefix(rest).ok()?;
                    Some(((head, id), rest))
                })
                .ok_or(AclError::Size { size })?;
            rest = after;
            entries.push(entry(tag.get(), perm.get(), id.get())?);
        }
        Self::unless_empty(entries)
    }

    /// The form that ext4 stores.
    #[must_use]
    pub fn to_disk(&self) -> Vec<u8> {
        let mut bytes = DISK_VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend(entry.tag.number().to_le_bytes());
            bytes.extend(u16::from(entry.perm).to_le_bytes());
            if let Some(id) = entry.tag.id() {
                bytes.extend(id.to_le_bytes());
            }
        }
        bytes
    }

    /// The form that the kernel's interface carries.
    #[must_use]
    pub fn to_xattr(&self) -> Vec<u8> {
        let mut bytes = XATTR_VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend(entry.tag.number().to_le_bytes());
            bytes.extend(u16::from(entry.perm).to_le_bytes());
            bytes.extend(entry.tag.id().unwrap_or(NO_ID).to_le_bytes());
        }
        bytes
    }

    /// The entries, in the order of the format.
    #[must_use]
    pub fn entries(&self) -> &[AclEntry] {
        &self.entries
    }

    /// The permissions that this access list gives the file: the low nine bits of its mode.
    #[must_use]
    pub fn permissions(&self) -> u16 {
        let mut mode = 0_u16;
        let mut mask = None;
        for AclEntry { tag, perm } in &self.entries {
            let perm = u16::from(*perm);
            match tag {
                AclTag::UserObj => mode |= perm << 6,
                AclTag::GroupObj => mode |= perm << 3,
                AclTag::Other => mode |= perm,
                AclTag::Mask => mask = Some(perm << 3),
                AclTag::User(_) | AclTag::Group(_) => {}
            }
        }
        mask.map_or(mode, |mask| (mode & !0o070) | mask)
    }

    /// Whether the list says no more than a mode does: it has neither names nor a mask.
    #[must_use]
    pub fn is_mode_only(&self) -> bool {
        let more = |entry: &AclEntry| entry.tag.id().is_some() || entry.tag == AclTag::Mask;
        !self.entries.iter().any(more)
    }

    /// The access list of a file whose mode becomes `mode`: owner and other are the mode's, its
    /// group is the mask if there is one, else the owning group.
    #[must_use]
    pub fn with_mode(&self, mode: u16) -> Self {
        self.mapped(|_, of_mode| of_mode, mode)
    }

    /// The access list of a new file made with `mode` where this is the default list: no more than
    /// either of them gives.
    #[must_use]
    pub fn inherited(&self, mode: u16) -> Self {
        self.mapped(|perm, of_mode| perm & of_mode, mode)
    }

    /// Combines each entry that stands for a part of the mode with that part.
    fn mapped(&self, combine: impl Fn(u8, u8) -> u8, mode: u16) -> Self {
        let masked = self.entries.iter().any(|entry| entry.tag == AclTag::Mask);
        let part = |shift: u16| {
            let [low, _] = (mode >> shift).to_le_bytes();
            low & (READ | WRITE | EXECUTE)
        };
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            let of_mode = match entry.tag {
                AclTag::UserObj => part(6),
                AclTag::Mask => part(3),
                AclTag::GroupObj if !masked => part(3),
                AclTag::Other => part(0),
                AclTag::User(_) | AclTag::GroupObj | AclTag::Group(_) => continue,
            };
            entry.perm = combine(entry.perm, of_mode);
        }
        Self { entries }
    }

    fn unless_empty(entries: Vec<AclEntry>) -> Result<Option<Self>, AclError> {
        if entries.is_empty() {
            Ok(None)
        } else {
            Self::new(entries).map(Some)
        }
    }

    /// POSIX.1e's algorithm, for a caller other than the owner.
    fn permits(&self, who: &Caller<'_>, group: u32, want: u8) -> bool {
        let grants = |perm: u8| perm & want == want;
        let mask = self.entries.iter().find(|entry| entry.tag == AclTag::Mask);
        let masked = mask.is_none_or(|mask| grants(mask.perm));
        let mut in_a_group = false;
        for AclEntry { tag, perm } in self.entries.iter().copied() {
            let group = match tag {
                AclTag::User(uid) if uid == who.uid => return grants(perm) && masked,
                AclTag::GroupObj => group,
                AclTag::Group(gid) => gid,
                AclTag::Other => return !in_a_group && grants(perm),
                AclTag::UserObj | AclTag::User(_) | AclTag::Mask => continue,
            };
            if who.is_in(group) {
                in_a_group = true;
                if grants(perm) {
                    return masked;
                }
            }
        }
        false
    }
}

/// Whether `who` may do `want` (of [`READ`], [`WRITE`] and [`EXECUTE`]) to a file with those
/// owners and that mode, and that access list if it has one. Capabilities are for the caller.
///
/// As in Linux, the mode decides for the owner, and for everybody if its group bits are all
/// clear: the list's mask is then empty, so that no name in it gets anything from the list.
#[must_use]
pub fn permits(acl: Option<&Acl>, who: &Caller<'_>, file: &Owned, want: u8) -> bool {
    let want = want & (READ | WRITE | EXECUTE);
    let grants = |shift: u16| (file.mode >> shift) & u16::from(want) == u16::from(want);
    if who.uid == file.uid {
        return grants(6);
    }
    match acl {
        Some(acl) if file.mode & 0o070 != 0 => acl.permits(who, file.gid, want),
        _ if who.is_in(file.gid) => grants(3),
        _ => grants(0),
    }
}

fn version(bytes: &[u8], due: u32) -> Result<&[u8], AclError> {
    let (version, rest) =
        U32::ref_from_prefix(bytes).map_err(|_| AclError::Size { size: bytes.len() })?;
    let version = version.get();
    if version != due {
        return Err(AclError::Version { version });
    }
    Ok(rest)
}

fn entry(tag: u16, perm: u16, id: u32) -> Result<AclEntry, AclError> {
    Ok(AclEntry {
        tag: AclTag::new(tag, id)?,
        perm: u8::try_from(perm).map_err(|_| AclError::Perm { perm })?,
    })
}
