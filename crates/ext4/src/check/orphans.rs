//! Inodes that wait to be deleted or cut short: on a list from the superblock on, or in the orphan
//! file. To have some is no damage: whoever mounts the file system deals with them.

use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::features::RoCompat;
use pagefence_ext4_format::inode::Inode;
use pagefence_vfs::Error;

use super::{CheckError, Checker, Step, Stop};
use crate::mount::MountError;
use crate::orphan_file::OrphanFile;
use crate::recovery::of_map;

impl Checker<'_> {
    pub(super) fn check_orphans(&mut self) -> Step {
        self.check_orphan_list()?;
        self.check_orphan_file()?;
        self.summary.orphans = self.orphans.len() as u64;
        Ok(())
    }

    /// The list: each inode names the next in its time of deletion.
    fn check_orphan_list(&mut self) -> Step {
        let mut next = self.instance.superblock.last_orphan();
        while let Some(number) = next {
            if !self.may_be_orphan(number) {
                return self.report.superblock(format_args!(
                    "the orphan list has inode {number}, which is none"
                ));
            }
            if self.orphans.contains(&number) {
                return self
                    .report
                    .superblock(format_args!("the orphan list comes back to inode {number}"));
            }
            let superblock = &self.instance.superblock;
            let record =
                self.with_record(number, |bytes| Inode::parse(bytes, number, superblock))?;
            let Some(Ok(record)) = record else {
                return self.report.superblock(format_args!(
                    "the orphan list goes on with inode {number}, which is damaged"
                ));
            };
            if record.kind().is_none() {
                return self.report.superblock(format_args!(
                    "the orphan list has inode {number}, which is free"
                ));
            }
            self.add_orphan(number)?;
            next = record.orphan_next();
        }
        Ok(())
    }

    fn check_orphan_file(&mut self) -> Step {
        let superblock = &self.instance.superblock;
        let is_present = superblock.has_ro_compat(RoCompat::ORPHAN_PRESENT);
        let Some(number) = superblock.orphan_file_inode() else {
            return if is_present {
                self.report
                    .superblock("it says that the orphan file has entries, and there is none")
            } else {
                Ok(())
            };
        };
        let read =
            OrphanFile::open(&self.instance, number).and_then(|file| file.entries(&self.instance));
        let entries = match read {
            Ok(entries) => entries,
            Err(Error::Corrupt { what, .. }) => return self.report.inode(number, what),
            Err(error) => {
                return match of_map(error) {
                    MountError::Device(error) => Err(error.into()),
                    error => Err(Stop::Failed(CheckError::Open(error))),
                };
            }
        };
        // While it is mounted it is said of any; after a crash it stays.
        if entries.is_empty() && is_present && self.is_closed {
            self.report
                .superblock("it says that the orphan file has entries, and it has none")?;
        }
        if !entries.is_empty() && !is_present {
            self.report.inode(
                number,
                "the orphan file has entries, and the superblock says that it has none",
            )?;
        }
        for entry in entries {
            if !self.may_be_orphan(entry.inode) {
                self.report.inode(
                    number,
                    format_args!("the orphan file has inode {}, which is none", entry.inode),
                )?;
            } else if self.orphans.contains(&entry.inode) {
                self.report.inode(
                    number,
                    format_args!("the orphan file has inode {} twice", entry.inode),
                )?;
            } else {
                self.add_orphan(entry.inode)?;
            }
        }
        Ok(())
    }

    fn may_be_orphan(&self, number: InodeNo) -> bool {
        let superblock = &self.instance.superblock;
        (superblock.first_inode().0..=superblock.inodes_count()).contains(&number.0)
    }

    fn add_orphan(&mut self, number: InodeNo) -> Step {
        self.memory.take(32)?;
        self.orphans.insert(number);
        Ok(())
    }
}
