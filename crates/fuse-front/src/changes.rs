//! Requests that change names and attributes.

use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileHandle, INodeNo, RenameFlags, Request, TimeOrNow};
use pagefence_vfs::{
    Credentials, Error, FileSystem, New, NewKind, RenameMode, SetAttr, SetTime, Timestamp,
};

use crate::dispatch::Dispatch;
use crate::errno::errno;
use crate::namespace::Found;
use crate::nodes::Nodes;

/// The file type in a mode.
const S_IFMT: u32 = 0o170_000;

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
    /// all groups.
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

    /// Makes an inode.
    pub(crate) fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &[u8],
        kind: NewKind<'_>,
        wanted: Wanted,
    ) -> Result<Found, Errno> {
        let parent = self.nodes.inode(parent)?;
        // Without the flag the kernel has applied it.
        let umask = if self.applies_umask() {
            wanted.umask
        } else {
            0
        };
        let new = New {
            kind,
            permissions: low_bits(wanted.mode),
            umask: low_bits(umask),
        };
        let who = self.credentials(request);
        let entry = self
            .fs
            .create(parent, name, &new, &who)
            .map_err(|error| errno(&error))?;
        self.found(&entry.attr)
    }

    /// Makes a regular file and opens it; one that is there already is opened, unless `flags` say
    /// O_EXCL.
    pub(crate) fn create_file(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &[u8],
        wanted: Wanted,
        flags: i32,
    ) -> Result<(Found, FileHandle), Errno> {
        let has = |flag: rustix::fs::OFlags| flags & flag.bits().cast_signed() != 0;
        let found = match self.make(request, parent, name, NewKind::Regular, wanted) {
            Err(error) if error == Errno::EEXIST && !has(rustix::fs::OFlags::EXCL) => {
                let found = self.find(parent, name)?;
                if has(rustix::fs::OFlags::TRUNC) {
                    let cut = Asked {
                        size: Some(0),
                        ..Asked::default()
                    };
                    self.set_attributes(request, found.node, &cut)
                        .inspect_err(|_| self.forget_node(found.node, 1))?;
                }
                found
            }
            made => made?,
        };
        match self.open_file(found.node, fuser::OpenFlags(flags)) {
            Ok(handle) => Ok((found, handle)),
            Err(error) => {
                // The kernel never hears of it.
                self.forget_node(found.node, 1);
                Err(error)
            }
        }
    }

    /// One more name for an inode.
    pub(crate) fn add_name(
        &self,
        node: INodeNo,
        parent: INodeNo,
        name: &[u8],
    ) -> Result<Found, Errno> {
        let (id, parent) = (self.nodes.inode(node)?, self.nodes.inode(parent)?);
        let entry = self
            .fs
            .link(id, parent, name)
            .map_err(|error| errno(&error))?;
        self.found(&entry.attr)
    }

    /// Removes a name of what is no directory.
    pub(crate) fn remove_name(&self, parent: INodeNo, name: &[u8]) -> Result<(), Errno> {
        let parent = self.nodes.inode(parent)?;
        self.fs.unlink(parent, name).map_err(|error| errno(&error))
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&self, parent: INodeNo, name: &[u8]) -> Result<(), Errno> {
        let parent = self.nodes.inode(parent)?;
        self.fs.rmdir(parent, name).map_err(|error| errno(&error))
    }

    /// Renames.
    pub(crate) fn move_name(
        &self,
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
        self.fs
            .rename(old, from.1, new, to.1, mode)
            .map_err(|error| errno(&error))
    }

    /// Sets attributes.
    ///
    /// Where the mount shows an owner or permissions of its own, setting others is refused: it
    /// would not show, and what is on disk is somebody else's.
    pub(crate) fn set_attributes(
        &self,
        request: &Request,
        node: INodeNo,
        asked: &Asked,
    ) -> Result<FileAttr, Errno> {
        let id = self.nodes.inode(node)?;
        let shown = &self.overrides;
        let differs = |asked: Option<u32>, shown: Option<u32>| {
            asked.is_some_and(|asked| shown.is_some_and(|shown| asked != shown))
        };
        let permissions = shown.umask.map(|umask| u32::from(0o777 & !umask));
        if differs(asked.uid, shown.uid)
            || differs(asked.gid, shown.gid)
            || differs(asked.mode.map(|mode| mode & 0o7777), permissions)
        {
            return Err(Errno::EPERM);
        }
        let change = SetAttr {
            permissions: asked.mode.filter(|_| shown.umask.is_none()).map(low_bits),
            uid: asked.uid.filter(|_| shown.uid.is_none()),
            gid: asked.gid.filter(|_| shown.gid.is_none()),
            size: asked.size,
            accessed: asked.accessed.map(set_time),
            modified: asked.modified.map(set_time),
            changed: asked.changed.map(timestamp),
        };
        let who = self.credentials(request);
        match self.fs.set_attr(id, &change, &who) {
            Ok(attr) => Ok(self.overrides.show(Nodes::shown(id), &attr)),
            Err(Error::ReadOnly) => Err(Errno::EROFS),
            Err(error) => Err(errno(&error)),
        }
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

fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => Timestamp {
                    seconds: -whole,
                    nanoseconds: 0,
                },
                part => Timestamp {
                    seconds: -whole - 1,
                    nanoseconds: 1_000_000_000 - part,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn times_before_the_epoch() {
        let time = timestamp(UNIX_EPOCH - Duration::from_millis(1200));
        assert_eq!((time.seconds, time.nanoseconds), (-2, 800_000_000));
        let time = timestamp(UNIX_EPOCH - Duration::from_secs(7));
        assert_eq!((time.seconds, time.nanoseconds), (-7, 0));
    }
}
