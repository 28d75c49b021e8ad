//! What an inode's record says.

use pagefence_ext4_format::checksum::ChecksumSeed;
use pagefence_ext4_format::inode::{self as format, InodeFlags};
use pagefence_ext4_format::{InodeNo, inode::Timestamp as DiskTime};
use pagefence_vfs::{Attr, FileKind, InodeId, Result, Timestamp};

use crate::instance::Instance;

/// What the disk says of one inode.
#[derive(Clone, Debug)]
pub(crate) struct DiskInode {
    pub(crate) number: InodeNo,
    pub(crate) record: format::Inode,
    pub(crate) kind: FileKind,
    /// Seed of the checksums of what belongs to it.
    pub(crate) seed: ChecksumSeed,
}

impl DiskInode {
    /// Reads and checks an inode that is in use.
    ///
    /// # Errors
    /// `Stale` if it is not in use; `Corrupt`, `Io`.
    pub(crate) fn read(instance: &Instance, number: InodeNo) -> Result<Self> {
        let record = instance.read_inode(number)?;
        let kind = match record.kind() {
            Some(kind) if record.links() > 0 => kind_of(kind),
            _ => return Err(pagefence_vfs::Error::Stale),
        };
        let both = InodeFlags::INLINE_DATA | InodeFlags::EXTENTS;
        if record.flags().contains(both) {
            return Err(instance.damaged(number, None, "both inline data and an extent tree"));
        }
        Ok(Self {
            number,
            kind,
            seed: record.checksum_seed(),
            record,
        })
    }

    pub(crate) fn size(&self) -> u64 {
        self.record.size()
    }

    /// The 60 bytes that map its blocks, or hold its data.
    pub(crate) fn i_block(&self) -> &[u8] {
        self.record.block_area()
    }

    fn has(&self, flag: InodeFlags) -> bool {
        self.record.flags().contains(flag)
    }

    pub(crate) fn has_extents(&self) -> bool {
        self.has(InodeFlags::EXTENTS)
    }

    pub(crate) fn has_inline_data(&self) -> bool {
        self.has(InodeFlags::INLINE_DATA)
    }

    pub(crate) fn has_index(&self) -> bool {
        self.has(InodeFlags::INDEX)
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.has(InodeFlags::ENCRYPT)
    }

    pub(crate) fn is_casefolded(&self) -> bool {
        self.has(InodeFlags::CASEFOLD)
    }

    /// Whether it holds the value of an extended attribute.
    pub(crate) fn is_ea_inode(&self) -> bool {
        self.has(InodeFlags::EA_INODE)
    }

    /// What Linux counts for the data of an inline file, so that it does not look like a hole.
    fn inline_sectors(&self) -> u64 {
        if self.has_inline_data() && self.kind == FileKind::Regular {
            self.size().div_ceil(512)
        } else {
            0
        }
    }

    /// Its attributes as stat shows them.
    pub(crate) fn attr(&self, instance: &Instance) -> Attr {
        let record = &self.record;
        let device = record.device();
        Attr {
            id: InodeId(u64::from(self.number.0)),
            generation: record.generation(),
            kind: self.kind,
            permissions: record.mode() & 0o7777,
            links: u32::from(record.links()),
            uid: record.uid(),
            gid: record.gid(),
            size: record.size(),
            blocks_512: record.sectors() + self.inline_sectors(),
            block_size: instance.superblock.block_size(),
            device_major: device.map_or(0, |device| device.major),
            device_minor: device.map_or(0, |device| device.minor),
            accessed: time(record.atime()),
            modified: time(record.mtime()),
            changed: time(record.ctime()),
            created: record.crtime().map(time),
            flags: record.flags().intersection(InodeFlags::USER_VISIBLE).bits(),
        }
    }
}

fn time(time: DiskTime) -> Timestamp {
    Timestamp {
        seconds: time.seconds,
        nanoseconds: time.nanoseconds,
    }
}

pub(crate) fn kind_of(kind: format::FileKind) -> FileKind {
    match kind {
        format::FileKind::Regular => FileKind::Regular,
        format::FileKind::Directory => FileKind::Directory,
        format::FileKind::Symlink => FileKind::Symlink,
        format::FileKind::BlockDevice => FileKind::BlockDevice,
        format::FileKind::CharDevice => FileKind::CharDevice,
        format::FileKind::Fifo => FileKind::Fifo,
        format::FileKind::Socket => FileKind::Socket,
    }
}
