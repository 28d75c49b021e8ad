//! Requests that change names and attributes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileHandle, INodeNo, RenameFlags, Request, TimeOrNow};
use pagefence_vfs::{
    Attr, Credentials, Error, FileSystem, InodeId, New, NewKind, RenameMode, SetAttr, SetTime,
    Timestamp,
};

use crate::dispatch::Dispatch;
use crate::errno::errno;
use crate::namespace::Found;
use crate::nodes::Nodes;

/// The file type in a mode.
const S_IFMT: u32 = 0o170_000;
/// The set-group-id bit of a mode.
const SET_GROUP_ID: u16 = 0o2000;

/// What SETATTR may bring.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) accessed: Option<TimeOrNow>,
    pub(crate) modified: Option<TimeOrNow>,
    pub(crate) changed: Option<SystemTime>,
}

/// What a new inode gets from a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) mode: u32,
    pub(crate) umask: u32,
}

impl<F: FileSystem> Dispatch<F> {
    /// Who asks.
    ///
    /// The kernel tells one group only; whether somebody may do something it checks itself, with
    /// all groups. It also takes off set-group-id bits that the caller's groups do not allow, so
    /// where such a bit is left the caller counts as one of that group ([`Self::member`]).
    pub(crate) fn credentials(&self, request: &Request) -> Credentials {
        let (uid, gid) = if self.fakeroot {
            (0, 0)
        } else {
            (request.uid(), request.gid())
        };
        Credentials {
            uid,
            gid,
            groups: Vec::new(),
        }
    }

    /// Who asks, with the group of an inode.
    pub(crate) fn member(
        &self,
        request: &Request,
        id: InodeId,
    ) -> pagefence_vfs::Result<Credentials> {
        let gid = self.fs.attr(id)?.gid;
        Ok(Credentials {
            groups: vec![gid],
            ..self.credentials(request)
        })
    }

    /// Makes an inode of any kind but a symbolic link.
    pub(crate) fn make_node(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &[u8],
        wanted: Wanted,
        device: u32,
    ) -> Result<Found, Errno> {
        let kind = node_kind(wanted.mode, device).ok_or(Errno::EINVAL)?;
        self.make(request, parent, name, kind, wanted)
    }

    /// Makes an inode, and hands it out.
    pub(crate) fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &[u8],
        kind: NewKind<'_>,
        wanted: Wanted,
    ) -> Result<Found, Errno> {
        let directory = self.nodes.inode(parent)?;
        let made = self.make_in(request, directory, name, kind, wanted);
        let made = made.map_err(|error| errno(&error))?;
        self.attributes_changed(parent);
        self.found(&made)
    }

    fn make_in(
        &self,
        request: &Request,
        parent: InodeId,
        name: &[u8],
        kind: NewKind<'_>,
        wanted: Wanted,
    ) -> pagefence_vfs::Result<Attr> {
        // Without the flag the kernel has applied it.
        let umask = if self.agreed.umask_is_ours {
            wanted.umask
        } else {
            0
        };
        let new = New {
            kind,
            permissions: low_bits(wanted.mode),
            umask: low_bits(umask),
        };
        let who = if new.permissions & SET_GROUP_ID == 0 {
            self.credentials(request)
        } else {
            self.member(request, parent)?
        };
        Ok(self.fs.create(parent, name, &new, &who)?.attr)
    }

    /// Makes a regular file and opens it (CREATE), as open(2) with O_CREAT has it where the kernel
    /// knows of no such name.
    ///
    /// If the name is there after all, O_EXCL fails. Else the answer is ESTALE: it has the kernel
    /// look the name up anew, and then check permissions of, open and truncate (O_TRUNC) what it
    /// finds like any other file. What CREATE gives it, it takes as new, and checks nothing.
    pub(crate) fn create_file(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &[u8],
        wanted: Wanted,
        flags: i32,
    ) -> Result<(Found, FileHandle), Errno> {
        let node = parent;
        let parent = self.nodes.inode(node)?;
        let exclusive = flags & rustix::fs::OFlags::EXCL.bits().cast_signed() != 0;
        let made = match self.make_in(request, parent, name, NewKind::Regular, wanted) {
            Err(Error::Exists) if !exclusive => return Err(Errno::ESTALE),
            made => made.map_err(|error| errno(&error))?,
        };
        self.attributes_changed(node);
        let opened = self
            .open_inode(made.id, fuser::OpenFlags(flags))
            .and_then(|handle| Ok((self.found(&made)?, handle)));
        if opened.is_err() {
            self.unmake(parent, name, made.id);
        }
        opened
    }

    /// A new file could not be opened. The kernel will take it for missing, so it must be.
    fn unmake(&self, parent: InodeId, name: &[u8], id: InodeId) {
        if let Err(error) = self.fs.unlink(parent, name) {
            tracing::warn!(%id, %error, "a new file that could not be opened stays");
        }
        self.fs.forget(id);
    }

    /// One more name for an inode.
    pub(crate) fn add_name(
        &self,
        request: &Request,
        node: INodeNo,
        parent: INodeNo,
        name: &[u8],
    ) -> Result<Found, Errno> {
        let (id, directory) = (self.nodes.inode(node)?, self.nodes.inode(parent)?);
        let entry = self
            .fs
            .link(id, directory, name, &self.credentials(request))
            .map_err(|error| errno(&error))?;
        self.attributes_changed(parent);
        self.found(&entry.attr)
    }

    /// Removes a name of what is no directory.
    pub(crate) fn remove_name(&self, parent: INodeNo, name: &[u8]) -> Result<(), Errno> {
        let directory = self.nodes.inode(parent)?;
        let removed = self.fs.unlink(directory, name);
        removed.map_err(|error| errno(&error))?;
        self.attributes_changed(parent);
        Ok(())
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&self, parent: INodeNo, name: &[u8]) -> Result<(), Errno> {
        let directory = self.nodes.inode(parent)?;
        let removed = self.fs.rmdir(directory, name);
        removed.map_err(|error| errno(&error))?;
        self.attributes_changed(parent);
        Ok(())
    }

    /// Renames.
    pub(crate) fn move_name(
        &self,
        request: &Request,
        from: (INodeNo, &[u8]),
        to: (INodeNo, &[u8]),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let mode = if flags.is_empty() {
            RenameMode::empty()
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NO_REPLACE
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::EXCHANGE
        } else {
            return Err(Errno::EINVAL);
        };
        let (old, new) = (self.nodes.inode(from.0)?, self.nodes.inode(to.0)?);
        let mut how = mode;
        how.set(RenameMode::USE_RESERVE, self.is_root(request));
        self.fs
            .rename(old, from.1, new, to.1, how)
            .map_err(|error| errno(&error))?;
        self.attributes_changed(from.0);
        if to.0 != from.0 {
            self.attributes_changed(to.0);
        }
        // The kernel has both directories locked until it is answered: these are what moved.
        if let Ok(moved) = self.fs.lookup(new, to.1) {
            self.inode_changed(moved.attr.id);
        }
        if mode == RenameMode::EXCHANGE
            && let Ok(other) = self.fs.lookup(old, from.1)
        {
            self.inode_changed(other.attr.id);
        }
        Ok(())
    }

    /// Sets attributes; returns them as they are then, and how long they hold.
    ///
    /// Where the mount shows an owner or permissions of its own, setting just those is done
    /// already. Setting others is refused: they would not show, and what is on disk is somebody
    /// else's; but root may give away what others own, on disk.
    pub(crate) fn set_attributes(
        &self,
        request: &Request,
        node: INodeNo,
        asked: &Asked,
    ) -> Result<(FileAttr, Duration), Errno> {
        let id = self.nodes.inode(node)?;
        let who = self.credentials(request);
        let change = SetAttr {
            permissions: asked.mode.map(low_bits),
            uid: asked.uid,
            gid: asked.gid,
            size: asked.size,
            accessed: asked.accessed.map(set_time),
            modified: asked.modified.map(set_time),
            changed: asked.changed.map(timestamp),
        };
        let attr = self
            .permitted(id, change, &who)
            .and_then(|change| {
                let mut member = self.member(request, id)?;
                member.groups.extend(change.gid);
                Ok((change, member))
            })
            .and_then(|(change, who)| {
                if change == SetAttr::default() {
                    self.fs.attr(id)
                } else {
                    self.fs.set_attr(id, &change, &who)
                }
            })
            .map_err(|error| errno(&error))?;
        let shown = self.overrides.show(Nodes::shown(id), &attr);
        Ok((shown, self.lifetime(&attr)))
    }

    /// What is left to do of a change, given what the mount shows.
    fn permitted(
        &self,
        id: InodeId,
        mut change: SetAttr,
        who: &Credentials,
    ) -> pagefence_vfs::Result<SetAttr> {
        let shown = &self.overrides;
        if let Some(umask) = shown.umask {
            change.permissions = change.permissions.filter(|&bits| bits != 0o777 & !umask);
            if change.permissions.is_some() {
                return Err(Error::NotPermitted);
            }
        }
        let chown = change.uid.is_some() || change.gid.is_some();
        if chown && (shown.uid.is_some() || shown.gid.is_some()) {
            let attr = self.fs.attr(id)?;
            let (uid, gid) = (shown.uid.unwrap_or(attr.uid), shown.gid.unwrap_or(attr.gid));
            change.uid = change.uid.filter(|&asked| asked != uid);
            change.gid = change.gid.filter(|&asked| asked != gid);
            if (change.uid.is_some() || change.gid.is_some()) && who.uid != 0 {
                return Err(Error::NotPermitted);
            }
        }
        Ok(change)
    }
}

/// The low 12 bits of a mode.
fn low_bits(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

/// What mknod(2) asks for.
fn node_kind(mode: u32, device: u32) -> Option<NewKind<'static>> {
    // As the kernel encodes it: see `attributes::device_number`.
    let major = (device >> 8) & 0xfff;
    let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
    Some(match mode & S_IFMT {
        0 | 0o100_000 => NewKind::Regular,
        0o040_000 => NewKind::Directory,
        0o060_000 => NewKind::BlockDevice { major, minor },
        0o020_000 => NewKind::CharDevice { major, minor },
        0o010_000 => NewKind::Fifo,
        0o140_000 => NewKind::Socket,
        _ => return None,
    })
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::To(timestamp(time)),
    }
}

/// The moment that fuser made of what the kernel sent.
///
/// Where seconds are below 0 fuser takes the nanoseconds off, too, though they count up. This
/// undoes it.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        },
        Err(error) => {
            let before = error.duration();
            Timestamp {
                seconds: 0i64.saturating_sub_unsigned(before.as_secs()),
                nanoseconds: before.subsec_nanos(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_decoded_as_the_kernel_encodes_them() {
        let device = 0x78 | 0x123 << 8 | 0x456 << 20;
        assert_eq!(
            node_kind(0o020_644, device),
            Some(NewKind::CharDevice {
                major: 0x123,
                minor: 0x4_5678
            })
        );
        assert_eq!(
            node_kind(0o120_777, 0),
            None,
            "links have a request of their own"
        );
        assert_eq!(node_kind(0o644, 0), Some(NewKind::Regular));
    }

    #[test]
    fn times_before_the_epoch_are_what_the_kernel_sent() {
        // 200 ms after second -1, as fuser makes it.
        let time = timestamp(UNIX_EPOCH - Duration::from_millis(1200));
        assert_eq!((time.seconds, time.nanoseconds), (-1, 200_000_000));
        let time = timestamp(UNIX_EPOCH - Duration::from_secs(7));
        assert_eq!((time.seconds, time.nanoseconds), (-7, 0));
        let first = UNIX_EPOCH.checked_sub(Duration::from_secs(1 << 63));
        let first = first.map(|first| timestamp(first).seconds);
        assert_eq!(first, Some(i64::MIN));
        let time = timestamp(UNIX_EPOCH + Duration::new(1 << 33, 5));
        assert_eq!((time.seconds, time.nanoseconds), (1 << 33, 5));
    }
}
