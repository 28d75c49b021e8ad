//! What stat shows: the file system's attributes, and the overrides of the mount.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use pagefence_vfs::{Attr, FileKind, Timestamp};

/// How long the kernel may keep entries, missing entries and attributes that are at rest without
/// asking again (see `invalidate`).
///
/// Nobody but this server changes the file system, so there is nothing to ask again for.
pub(crate) const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the mount shows instead of what the inode says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// Owner of everything.
    pub(crate) uid: Option<u32>,
    /// Group of everything.
    pub(crate) gid: Option<u32>,
    /// Permissions of everything are `0777 & !umask` (as libfuse's option `umask`).
    pub(crate) umask: Option<u16>,
}

impl Overrides {
    /// Whether owners or permissions shown differ from those on disk.
    pub(crate) fn any(&self) -> bool {
        self.uid.is_some() || self.gid.is_some() || self.umask.is_some()
    }

    /// The attributes of an inode for the kernel, under number `shown`.
    pub(crate) fn show(&self, shown: INodeNo, attr: &Attr) -> FileAttr {
        FileAttr {
            ino: shown,
            size: attr.size,
            blocks: attr.blocks_512,
            atime: system_time(attr.accessed),
            mtime: system_time(attr.modified),
            ctime: system_time(attr.changed),
            crtime: system_time(attr.created.unwrap_or_default()),
            kind: file_type(attr.kind),
            perm: match self.umask {
                Some(umask) => 0o777 & !umask,
                None => attr.permissions & 0o7777,
            },
            nlink: attr.links,
            uid: self.uid.unwrap_or(attr.uid),
            gid: self.gid.unwrap_or(attr.gid),
            rdev: device_number(attr.device_major, attr.device_minor),
            blksize: attr.block_size,
            flags: 0,
        }
    }
}

/// Attributes that the kernel refuses, under number `shown`: a size past `i64::MAX`.
///
/// READDIRPLUS marks "no attributes for this entry" by node 0, but fuser gives an entry the same
/// number as node and as `d_ino`, and an entry whose `d_ino` is 0 disappears from listings. The
/// kernel shows an entry with refused attributes by name, number and kind, makes no inode of it,
/// and forgets the one lookup: the very meaning of node 0.
pub(crate) fn refused(shown: INodeNo, kind: FileKind) -> FileAttr {
    FileAttr {
        size: u64::MAX,
        ..bare(shown, kind)
    }
}

/// Attributes for `.` and `..` in READDIRPLUS, of which the kernel takes number and kind only.
pub(crate) fn bare(shown: INodeNo, kind: FileKind) -> FileAttr {
    FileAttr {
        ino: shown,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The attributes that make an entry reply mean "there is no such name, and you may remember it":
/// node 0.
pub(crate) fn absent() -> FileAttr {
    bare(INodeNo(0), FileKind::Regular)
}

/// The kind in fuser's words.
pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// A device number as the kernel decodes it from FUSE: 12 bits of major, 20 of minor.
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// Seconds before the epoch count down, nanoseconds always up.
pub(crate) fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanoseconds.into())))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use pagefence_vfs::InodeId;

    use super::*;

    fn attr() -> Attr {
        Attr {
            id: InodeId(12),
            generation: 7,
            kind: FileKind::CharDevice,
            permissions: 0o4751,
            links: 3,
            uid: 1000,
            gid: 1001,
            size: 5,
            blocks_512: 8,
            block_size: 4096,
            device_major: 0x123,
            device_minor: 0x4_5678,
            accessed: Timestamp {
                seconds: -2,
                nanoseconds: 800_000_000,
            },
            modified: Timestamp {
                seconds: 1 << 33,
                nanoseconds: 999_999_999,
            },
            changed: Timestamp::default(),
            created: None,
            flags: 0,
        }
    }

    #[test]
    fn times_before_1970_and_past_2038_survive() {
        let shown = Overrides::default().show(INodeNo(12), &attr());
        assert_eq!(
            UNIX_EPOCH.duration_since(shown.atime).ok(),
            Some(Duration::from_millis(1200))
        );
        assert_eq!(
            shown.mtime.duration_since(UNIX_EPOCH).ok(),
            Some(Duration::new(1 << 33, 999_999_999))
        );
    }

    #[test]
    fn the_furthest_times_do_not_panic() {
        for seconds in [i64::MIN, i64::MAX] {
            system_time(Timestamp {
                seconds,
                nanoseconds: 999_999_999,
            });
        }
    }

    #[test]
    fn a_device_number_is_encoded_as_the_kernel_decodes_it() {
        let shown = Overrides::default().show(INodeNo(12), &attr());
        assert_eq!(shown.rdev & 0xff, 0x78);
        assert_eq!((shown.rdev >> 8) & 0xfff, 0x123);
        assert_eq!(shown.rdev >> 20, 0x456);
    }

    #[test]
    fn overrides_replace_owner_group_and_permissions() {
        let overrides = Overrides {
            uid: Some(1),
            gid: Some(2),
            umask: Some(0o027),
        };
        let shown = overrides.show(INodeNo(12), &attr());
        assert_eq!((shown.uid, shown.gid, shown.perm), (1, 2, 0o750));
        assert!(overrides.any());
        let plain = Overrides::default().show(INodeNo(12), &attr());
        assert_eq!((plain.uid, plain.gid, plain.perm), (1000, 1001, 0o4751));
    }
}
