//! What is made durable when, and the end of a mount.
//!
//! A file is durable when its data is with the device, the transaction that maps it is committed,
//! and a flush began after both. The flush of a commit that is still to come will do; where there
//! is none, as after overwriting in place, the device is flushed for its own sake.
//!
//! Times are kept in core: they go to the inode table with the next change of the inode, with
//! fsync or sync, with the last dirty data that is written back, or when the file is closed.

use std::ops::Range;

use pagefence_lock_order::levels::{self, Level};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::{After, Held};
use pagefence_page_cache::WaitFor;
use pagefence_vfs::{Error, Result};

use crate::filesystem::{File, FileSystem};
use crate::inode::{Inode, InodeCore};
use crate::instance::Instance;
use crate::live::{Live, Need, journal_error};
use crate::read_dir::Directory;

impl FileSystem {
    /// See [`pagefence_vfs::FileSystem::sync_file`].
    pub(crate) fn fsync(&self, file: &File, data_only: bool) -> Result<()> {
        self.fsync_range(file, 0..u64::MAX, data_only)
    }

    /// Makes `bytes` of a file durable, and what is needed to find them (msync(2)).
    ///
    /// # Errors
    /// As [`pagefence_vfs::FileSystem::sync_file`].
    pub fn sync_range(&self, file: &File, bytes: Range<u64>) -> Result<()> {
        self.fsync_range(file, bytes, true)
    }

    fn fsync_range(&self, file: &File, bytes: Range<u64>, data_only: bool) -> Result<()> {
        if self.instance.live.is_none() {
            return Ok(());
        }
        let mut held = Held::at_entry();
        // What failed is told by the cursor: it may be somebody else's failure, too.
        let _ = file.mapping.write_back(&mut held, bytes, WaitFor::All);
        let told = file.mapping.check_errors(&file.errors);
        // Whoever is told that data is lost is not left with its space taken as well.
        file.mapping.give_back_unwritten(&mut held);
        told?;
        self.sync_inode(&mut held, &file.inode, data_only)
    }

    /// See [`pagefence_vfs::FileSystem::sync_dir`].
    pub(crate) fn fsync_dir(&self, dir: &Directory) -> Result<()> {
        if self.instance.live.is_none() {
            return Ok(());
        }
        self.sync_inode(&mut Held::at_entry(), &dir.inode, false)
    }

    /// Makes an inode durable, its data having been written.
    fn sync_inode(
        &self,
        held: &mut Held<'_, levels::Entry>,
        inode: &Inode,
        data_only: bool,
    ) -> Result<()> {
        let live = self.instance.live()?;
        if !data_only && inode.core.is_dirty_after_writing() {
            self.instance.write_inode(held, &inode.core)?;
        }
        live.sync(inode.core.sync_tid(data_only))
    }

    /// See [`pagefence_vfs::FileSystem::sync`].
    pub(crate) fn sync_all(&self) -> Result<()> {
        if self.instance.live.is_none() {
            return Ok(());
        }
        let live = self.instance.live()?;
        let mut held = Held::at_entry();
        self.cache.sync_all(&mut held);
        let mut records = Ok(());
        for inode in self.inodes.all() {
            if inode.core.is_dirty_after_writing() {
                records = records.and(self.instance.write_inode(&mut held, &inode.core));
            }
        }
        // Who has an inode for a moment, as this loop had all of them, keeps it from being deleted.
        self.delete_due();
        live.commit(live.journal.running().0)?;
        live.journal.flush_data().map_err(journal_error)?;
        records?;
        // Whenever it was, and whoever wrote: those who had the file open may be gone.
        if self.cache.has_failed_since(&self.errors) {
            let what = "data of files could not be written since the last sync";
            return Err(Error::Io(std::io::Error::other(what)));
        }
        Ok(())
    }

    /// Ends the mount: everything is written, inodes without names are deleted, the journal is
    /// emptied, and the superblock says so. Does nothing the second time.
    ///
    /// # Errors
    /// `Io`, `ReadOnly` after an abort: the file system is then left to recovery.
    pub(crate) fn unmount(&self) -> Result<()> {
        let Some(live) = self.instance.live.as_ref().filter(|live| !live.is_closed()) else {
            return Ok(());
        };
        self.delete_orphans();
        let synced = self.sync_all();
        if synced.is_ok() {
            let mut held = Held::at_entry();
            for inode in self.inodes.all() {
                inode.core.block_map.read(&mut held).0.assert_settled();
            }
        }
        let closed = live.close();
        synced.and(closed)
    }
}

impl FileSystem {
    /// Writes back the data of a file that takes the name of another, so that a crash leaves one
    /// of the two, whole (Linux: `auto_da_alloc`). What fails is told to who syncs the file.
    pub(crate) fn write_before_rename(&self, inode: &Inode, held: &mut Held<'_, levels::Inode>) {
        if let Some(mapping) = inode.existing_mapping()
            && !mapping.is_idle()
        {
            let _ = mapping.write_back(held, 0..u64::MAX, WaitFor::All);
        }
    }
}

impl Live {
    /// Makes durable what transaction `tid` changed and what was written to the device before.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn sync(&self, tid: u64) -> Result<()> {
        // The flush of a transaction that still runs begins after this moment.
        let will_flush = self.journal.running().0 == tid;
        if tid > self.journal.committed_tid().0 {
            self.commit(tid)?;
        }
        if will_flush {
            return Ok(());
        }
        self.journal.flush_data().map_err(journal_error)
    }
}

impl Instance {
    /// Writes an inode's record into the inode table.
    ///
    /// # Errors
    /// `ReadOnly`, `Corrupt`, `Io`.
    pub(crate) fn write_inode<P: Level>(
        &self,
        held: &mut Held<'_, P>,
        core: &Arc<InodeCore>,
    ) -> Result<()>
    where
        levels::Handle: After<P>,
    {
        let (mut transaction, _held) = self.begin(held, Need::RECORD)?;
        core.write(&mut transaction, false)?;
        transaction.end();
        Ok(())
    }
}

impl File {
    /// The last moment of an open file. What was written after the file was cut to nothing is
    /// written back (Linux: `auto_da_alloc`); times that wait in core go to the inode table.
    pub(crate) fn close(&self) {
        let instance = &self.mapping.backing().instance;
        if instance.live().is_err() {
            return;
        }
        let core = &self.inode.core;
        let mut held = Held::at_entry();
        let flushes = self.is_writer && {
            let (mut delayed, _held) = core.block_map.write(&mut held);
            delayed.take_flush_on_close()
        };
        if flushes {
            // What fails is told to who syncs the file next.
            let _ = self
                .mapping
                .write_back(&mut held, 0..u64::MAX, WaitFor::Own);
        }
        if core.is_dirty()
            && let Err(error) = instance.write_inode(&mut held, core)
        {
            tracing::debug!(%error, number = %core.number, "its times could not be written");
        }
    }
}
