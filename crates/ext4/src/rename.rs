//! Names that change.
//!
//! A directory that moves into another one must not move below itself: whether it would is looked
//! at with the file system's rename lock held, so that no other directory moves meanwhile. All
//! other renames do without that lock. The inode locks are those of both directories, of what is
//! renamed and of what is replaced ([`crate::dir_lock`]).

use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::dir_entry::EntryName;
use pagefence_ext4_format::inode::Timestamp;
use pagefence_lock_order::levels::{self, Level};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::{After, Held};
use pagefence_vfs::{Error, FileKind, InodeId, RenameMode, Result};

use crate::change::Transaction;
use crate::change::change_dir::Room;
use crate::clock;
use crate::dir_lock::{Child, check_directory, check_removable, checked_name, lock_all};
use crate::filesystem::FileSystem;
use crate::inode::Inode;
use crate::name_credits::{ENTRY, RECORD, Sum};
use crate::namespace::{
    Changes, Durable, check_project, check_subdirectories, count_subdirectory, drop_name, finish,
    uncount_subdirectory,
};
use crate::orphans;

/// Directories on the way from one to the root, at most: a longer way leads in circles.
const DEPTH_MAX: u32 = 1 << 20;

/// A place for a name.
#[derive(Clone, Copy)]
struct Spot<'a> {
    directory: &'a Arc<Inode>,
    name: EntryName<'a>,
}

/// What is renamed to what.
struct Rename<'a> {
    from: Spot<'a>,
    to: Spot<'a>,
    mode: RenameMode,
    source: Child,
    /// What bears the new name.
    target: Option<Child>,
}

impl Rename<'_> {
    fn exchanges(&self) -> bool {
        self.mode.contains(RenameMode::EXCHANGE)
    }

    fn crosses(&self) -> bool {
        !Arc::ptr_eq(self.from.directory, self.to.directory)
    }

    /// Whether a directory gives its name to something.
    fn replaces_directory(&self) -> bool {
        self.target.as_ref().is_some_and(Child::is_directory)
    }

    /// Whether a directory gets another parent.
    fn moves_directory(&self) -> bool {
        let target = self.target.as_ref().filter(|_| self.exchanges());
        self.crosses() && (self.source.is_directory() || target.is_some_and(Child::is_directory))
    }
}

impl FileSystem {
    pub(crate) fn rename_entry(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        self.instance.live()?;
        if mode.contains(RenameMode::NO_REPLACE | RenameMode::EXCHANGE) {
            return Err(Error::InvalidArgument);
        }
        let is_dots = |name: &[u8]| matches!(name, b"." | b"..");
        if is_dots(name) || is_dots(new_name) {
            return Err(Error::Busy);
        }
        let (old, new) = (self.dir_inode(parent)?, self.dir_inode(new_parent)?);
        let from = Spot {
            directory: &old,
            name: checked_name(name)?,
        };
        let to = Spot {
            directory: &new,
            name: checked_name(new_name).or_else(|error| {
                // What is not there comes first, as Linux has it.
                pagefence_vfs::FileSystem::lookup(self, parent, name)?;
                Err(error)
            })?,
        };
        let durable = self.with_freed_space(|| self.rename_spots(from, to, mode))?;
        self.wait_for(durable)?;
        self.delete_due();
        Ok(())
    }

    fn rename_spots(&self, from: Spot<'_>, to: Spot<'_>, mode: RenameMode) -> Result<Durable> {
        let live = self.instance.live()?;
        loop {
            let mut held = Held::at_entry();
            let found = self.look_up(from, to, mode, &mut held)?;
            let done = if found.moves_directory() || found.replaces_directory() {
                let (_alone, mut held) = live.renames.write(&mut held);
                self.check_loop(&found, &mut held)?;
                self.rename_found(&found, &mut held)?
            } else {
                self.rename_found(&found, &mut held)?
            };
            // Else a name meant something else meanwhile.
            if let Some(durable) = done {
                return Ok(durable);
            }
        }
    }

    fn look_up<'a, P: Level>(
        &self,
        from: Spot<'a>,
        to: Spot<'a>,
        mode: RenameMode,
        held: &mut Held<'_, P>,
    ) -> Result<Rename<'a>>
    where
        levels::Inode: After<P>,
    {
        let source = self.find_child(from.directory, from.name.as_bytes(), held)?;
        let source = source.ok_or(Error::NotFound)?;
        let target = self.find_child(to.directory, to.name.as_bytes(), held)?;
        if target.is_none() && mode.contains(RenameMode::EXCHANGE) {
            return Err(Error::NotFound);
        }
        if target.is_some() && mode.contains(RenameMode::NO_REPLACE) {
            return Err(Error::Exists);
        }
        Ok(Rename {
            from,
            to,
            mode,
            source,
            target,
        })
    }

    /// Makes sure that no directory moves below itself, nor is replaced by what lies in it.
    ///
    /// # Errors
    /// `InvalidArgument`, `NotEmpty`.
    fn check_loop(&self, rename: &Rename<'_>, held: &mut Held<'_, levels::Rename>) -> Result<()> {
        if rename.source.is_directory()
            && self.lies_below(rename.to.directory, rename.source.named.inode, held)?
        {
            return Err(Error::InvalidArgument);
        }
        if let Some(target) = &rename.target
            && target.is_directory()
            && self.lies_below(rename.from.directory, target.named.inode, held)?
        {
            return Err(if rename.exchanges() {
                Error::InvalidArgument
            } else {
                Error::NotEmpty
            });
        }
        Ok(())
    }

    /// Whether a directory is `ancestor`, or lies in it, however deep.
    fn lies_below(
        &self,
        directory: &Arc<Inode>,
        ancestor: InodeNo,
        held: &mut Held<'_, levels::Rename>,
    ) -> Result<bool> {
        let mut at = Arc::clone(directory);
        for _ in 0..DEPTH_MAX {
            let number = at.core.number;
            if number == ancestor {
                return Ok(true);
            }
            if number == InodeNo::ROOT {
                return Ok(false);
            }
            let parent = {
                let (_entries, _held) = at.lock.read(held);
                self.instance.dot_dot(&at.disk())?
            };
            if parent == number {
                break;
            }
            at = self.dir_inode(InodeId(u64::from(parent.0)))?;
        }
        let what = "directories that lie in each other";
        Err(self.instance.damaged(directory.core.number, None, what))
    }

    /// Locks everything and renames; nothing if a name does not mean what it meant.
    fn rename_found<P: Level>(
        &self,
        rename: &Rename<'_>,
        held: &mut Held<'_, P>,
    ) -> Result<Option<Durable>>
    where
        levels::Inode: After<P>,
    {
        let (from, to) = (rename.from, rename.to);
        let mut inodes: Vec<&Inode> = vec![from.directory, to.directory, &rename.source.inode];
        inodes.extend(rename.target.as_ref().map(|target| &*target.inode));
        let (_locks, mut held) = lock_all(&inodes, held);
        let (old, new) = (from.directory.disk(), to.directory.disk());
        check_directory(&old)?;
        check_directory(&new)?;
        let Some(source) =
            self.still_named(from.directory, from.name.as_bytes(), &rename.source)?
        else {
            return Ok(None);
        };
        let target = match &rename.target {
            Some(target) => match self.still_named(to.directory, to.name.as_bytes(), target)? {
                Some(named) => Some((target, named)),
                None => return Ok(None),
            },
            None => {
                let name = to.name.as_bytes();
                if self.instance.find_named(to.directory, name)?.is_some() {
                    return Ok(None);
                }
                None
            }
        };
        let moving = rename.source.at(source);
        let replaced = target.map(|(child, named)| child.at(named));
        if let Some(replaced) = &replaced
            && Arc::ptr_eq(&replaced.inode, &moving.inode)
        {
            // Two names of one inode: nothing is to be done.
            return Ok(Some(Durable::default()));
        }
        let work = Work {
            fs: self,
            rename,
            moving,
            replaced,
        };
        work.check()?;
        work.run(&mut held).map(Some)
    }
}

/// A rename with everything locked and found.
struct Work<'a> {
    fs: &'a FileSystem,
    rename: &'a Rename<'a>,
    moving: Child,
    replaced: Option<Child>,
}

impl Work<'_> {
    /// Whether a directory loses or gets a parent's link.
    fn changes_parent(&self, child: &Child) -> bool {
        self.rename.crosses() && child.is_directory()
    }

    /// Makes sure that nothing speaks against it.
    fn check(&self) -> Result<()> {
        let instance = &self.fs.instance;
        let (from, to) = (self.rename.from.directory, self.rename.to.directory);
        let (old, new) = (from.disk(), to.disk());
        let moving = self.moving.inode.disk();
        check_removable(&old, &moving)?;
        check_project(&new.record, &moving.record)?;
        // What changes second, and last: damage has to show before anything changed.
        instance.check_entry_changeable(&old, &self.moving.named)?;
        let goes_back = self.replaced.as_ref().filter(|_| self.rename.exchanges());
        for child in [Some(&self.moving), goes_back].into_iter().flatten() {
            if self.changes_parent(child) {
                instance.check_parent_changeable(&child.inode.disk())?;
            }
        }
        let moves_in = self.changes_parent(&self.moving);
        let Some(replaced) = &self.replaced else {
            if moves_in {
                check_subdirectories(instance, &new.record)?;
            }
            return Ok(());
        };
        let gone = replaced.inode.disk();
        check_removable(&new, &gone)?;
        if self.rename.exchanges() {
            check_project(&old.record, &gone.record)?;
            let moves_out = self.changes_parent(replaced);
            if moves_in && !moves_out {
                check_subdirectories(instance, &new.record)?;
            }
            if moves_out && !moves_in {
                check_subdirectories(instance, &old.record)?;
            }
            return Ok(());
        }
        match (self.moving.is_directory(), replaced.is_directory()) {
            (true, false) => return Err(Error::NotDirectory),
            (false, true) => return Err(Error::IsDirectory),
            (true, true) if !instance.is_empty_dir(&gone)? => return Err(Error::NotEmpty),
            _ => {}
        }
        Ok(())
    }

    fn run(&self, held: &mut Held<'_, levels::Inode>) -> Result<Durable> {
        if self.replaced.is_some()
            && !self.rename.exchanges()
            && self.moving.inode.core.kind == FileKind::Regular
        {
            self.fs.write_before_rename(&self.moving.inode, held);
        }
        let instance = &self.fs.instance;
        let (from, to) = (self.rename.from, self.rename.to);
        let new = to.directory.disk();
        let new_name = match self.replaced {
            None => Some(instance.new_name(to.directory, &new, to.name, None)?),
            Some(_) => None,
        };
        // The directories, what moves and what is replaced, both entries, both "..".
        let mut sum = Sum::default().change(4 * RECORD + 2 * ENTRY + 2 * ENTRY + orphans::CREDITS);
        if let Some(new_name) = &new_name {
            sum = sum.insert(instance, &new.record, new_name.room);
        }
        let privileged = self.rename.mode.contains(RenameMode::USE_RESERVE);
        let need = sum.need(privileged);
        let (mut transaction, _held) = instance.begin_within(held, need, sum.reach())?;
        let tx = &mut transaction;
        let now = clock::now();
        let mut source = Changes::new(from.directory);
        // In one directory, both changes are of one record.
        let mut other = self.rename.crosses().then(|| Changes::new(to.directory));
        let (moving, name) = (&self.moving, from.name);
        let target = other.as_mut().unwrap_or(&mut source);
        let mut old = moving.named;
        match (&self.replaced, &new_name) {
            (Some(replaced), _) => target.redirect(tx, &replaced.named, &moving.inode)?,
            (None, Some(new_name)) => {
                target.insert(tx, new_name, &moving.inode)?;
                let moved = matches!(
                    new_name.room,
                    Room::LeaveInode | Room::MakeIndex | Room::Split
                );
                if moved && !self.rename.crosses() {
                    let found = source.find(tx, &name)?;
                    old = found.ok_or_else(|| self.lost())?;
                }
            }
            (None, None) => {}
        }
        match self.replaced.as_ref().filter(|_| self.rename.exchanges()) {
            Some(replaced) => source.redirect(tx, &old, &replaced.inode)?,
            None => source.remove(tx, name.as_bytes(), &old)?,
        }
        self.count_subdirectories(&mut source, other.as_mut());
        source.finish(tx, now)?;
        if let Some(other) = other {
            other.finish(tx, now)?;
        }
        self.finish_children(tx, now)?;
        Ok(finish(transaction, &[from.directory, to.directory]))
    }

    fn lost(&self) -> Error {
        let inode = self.rename.from.directory.core.number;
        let what = "a name that was found and is not there";
        self.fs.instance.damaged(inode, None, what)
    }

    /// Keeps the link counts of the directories right.
    fn count_subdirectories(&self, source: &mut Changes<'_>, target: Option<&mut Changes<'_>>) {
        let instance = &self.fs.instance;
        let moves = self.moving.is_directory();
        let replaces = self.replaced.as_ref().is_some_and(Child::is_directory);
        match (target, self.rename.exchanges()) {
            (None, true) => {}
            // In place of an empty directory: one less.
            (None, false) => {
                if moves && replaces {
                    uncount_subdirectory(&mut source.record);
                }
            }
            (Some(target), exchanges) => {
                if moves && !(exchanges && replaces) {
                    uncount_subdirectory(&mut source.record);
                }
                if moves && !replaces {
                    count_subdirectory(instance, &mut target.record);
                }
                if exchanges && replaces && !moves {
                    uncount_subdirectory(&mut target.record);
                    count_subdirectory(instance, &mut source.record);
                }
            }
        }
    }

    /// Writes what was renamed and what was replaced.
    fn finish_children(&self, transaction: &mut Transaction<'_>, now: Timestamp) -> Result<()> {
        let live = self.fs.instance.live()?;
        self.moved(transaction, &self.moving, self.rename.to.directory, now)?;
        let Some(replaced) = &self.replaced else {
            return Ok(());
        };
        if self.rename.exchanges() {
            return self.moved(transaction, replaced, self.rename.from.directory, now);
        }
        if drop_name(&replaced.inode, now) {
            live.orphans.add(transaction, &replaced.inode)
        } else {
            replaced.inode.core.write(transaction, true)
        }
    }

    /// Writes an inode that was given another name, in directory `parent`.
    fn moved(
        &self,
        transaction: &mut Transaction<'_>,
        child: &Child,
        parent: &Inode,
        now: Timestamp,
    ) -> Result<()> {
        if self.changes_parent(child) {
            let before = child.inode.disk();
            let mut changes = Changes::new(&child.inode);
            changes.set_parent(transaction, parent)?;
            child.inode.core.adopt(&before.record, &changes.record);
            child.inode.entries_changed();
        }
        child.inode.core.update(|record| record.set_ctime(now));
        child.inode.core.write(transaction, true)
    }
}
