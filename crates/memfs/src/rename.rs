//! Names that change.
//!
//! A directory that moves into another one must not move below itself: whether it would is looked
//! at with the rename lock held, so that no other directory moves meanwhile. All other renames do
//! without that lock. The inode locks are those of both directories, of what is renamed and of
//! what is replaced.

use pagefence_lock_order::levels::{self, Level};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::{After, Held};
use pagefence_vfs::{Error, InodeId, RenameMode, Result};

use crate::clock;
use crate::filesystem::MemFs;
use crate::inode::{Inode, lock_all};
use crate::namespace::{add_link, check_alive, check_name, remove_subdirectory};

/// A place for a name.
#[derive(Clone, Copy)]
struct Spot<'a> {
    directory: &'a Arc<Inode>,
    name: &'a [u8],
}

/// What is renamed to what.
struct Rename<'a> {
    from: Spot<'a>,
    to: Spot<'a>,
    exchanges: bool,
    source: Arc<Inode>,
    /// What bears the new name.
    target: Option<Arc<Inode>>,
}

impl Rename<'_> {
    fn crosses(&self) -> bool {
        !Arc::ptr_eq(self.from.directory, self.to.directory)
    }

    /// Whether a directory gets another parent, or gives its name to something.
    fn needs_rename_lock(&self) -> bool {
        let target = self.target.as_ref();
        let replaces = target.is_some_and(|target| target.is_directory());
        replaces || (self.crosses() && self.source.is_directory())
    }
}

impl MemFs {
    pub(crate) fn rename_entry(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        if mode.contains(RenameMode::NO_REPLACE | RenameMode::EXCHANGE) {
            return Err(Error::InvalidArgument);
        }
        let is_dots = |name: &[u8]| matches!(name, b"." | b"..");
        if is_dots(name) || is_dots(new_name) {
            return Err(Error::Busy);
        }
        check_name(name)?;
        let (old, new) = (self.directory(parent)?, self.directory(new_parent)?);
        if let Err(error) = check_name(new_name) {
            // What is not there comes first, as Linux has it.
            self.find_child(&old, name)?.ok_or(Error::NotFound)?;
            return Err(error);
        }
        let from = Spot {
            directory: &old,
            name,
        };
        let to = Spot {
            directory: &new,
            name: new_name,
        };
        loop {
            let rename = self.look_up(from, to, mode)?;
            let mut held = Held::at_entry();
            let is_done = if rename.needs_rename_lock() {
                let (_alone, mut held) = self.core.renames.write(&mut held);
                self.check_loop(&rename)?;
                rename_found(&rename, &mut held)?
            } else {
                rename_found(&rename, &mut held)?
            };
            // Else a name meant something else meanwhile.
            if is_done {
                return Ok(());
            }
        }
    }

    fn look_up<'a>(&self, from: Spot<'a>, to: Spot<'a>, mode: RenameMode) -> Result<Rename<'a>> {
        let source = self.find_child(from.directory, from.name)?;
        let source = source.ok_or(Error::NotFound)?;
        let target = self.find_child(to.directory, to.name)?;
        let exchanges = mode.contains(RenameMode::EXCHANGE);
        if target.is_none() && exchanges {
            return Err(Error::NotFound);
        }
        if target.is_some() && mode.contains(RenameMode::NO_REPLACE) {
            return Err(Error::Exists);
        }
        Ok(Rename {
            from,
            to,
            exchanges,
            source,
            target,
        })
    }

    /// Makes sure that no directory moves below itself, nor is replaced by what lies in it. With
    /// the rename lock held.
    ///
    /// # Errors
    /// `InvalidArgument`, `NotEmpty`.
    fn check_loop(&self, rename: &Rename<'_>) -> Result<()> {
        if rename.source.is_directory() && self.lies_below(rename.to.directory, &rename.source)? {
            return Err(Error::InvalidArgument);
        }
        if let Some(target) = &rename.target
            && target.is_directory()
            && self.lies_below(rename.from.directory, target)?
        {
            return Err(if rename.exchanges {
                Error::InvalidArgument
            } else {
                Error::NotEmpty
            });
        }
        Ok(())
    }

    /// Whether a directory is `ancestor`, or lies in it, however deep. With the rename lock held.
    fn lies_below(&self, directory: &Arc<Inode>, ancestor: &Inode) -> Result<bool> {
        let mut at = Arc::clone(directory);
        loop {
            if at.number == ancestor.number {
                return Ok(true);
            }
            let parent = at.directory()?.parent();
            if parent == at.number {
                return Ok(false);
            }
            at = match self.core.inodes.get(InodeId(parent)) {
                Ok(parent) => parent,
                // A removed directory, whose parent is gone as well: it lies nowhere.
                Err(Error::Stale) => return Ok(false),
                Err(error) => return Err(error),
            };
        }
    }
}

/// Locks everything and renames; false if a name does not mean what it meant.
fn rename_found<P: Level>(rename: &Rename<'_>, held: &mut Held<'_, P>) -> Result<bool>
where
    levels::Inode: After<P>,
{
    let (from, to) = (rename.from, rename.to);
    let mut inodes: Vec<&Inode> = vec![from.directory, to.directory, &rename.source];
    inodes.extend(rename.target.as_deref());
    let (_alone, _held) = lock_all(&inodes, held);
    check_alive(from.directory)?;
    check_alive(to.directory)?;
    if !MemFs::still_means(from.directory, from.name, &rename.source)? {
        return Ok(false);
    }
    let is_target_same = match &rename.target {
        Some(target) => MemFs::still_means(to.directory, to.name, target)?,
        None => to.directory.directory()?.find(to.name).is_none(),
    };
    if !is_target_same {
        return Ok(false);
    }
    match &rename.target {
        // Two names of one inode: nothing is to be done.
        Some(target) if Arc::ptr_eq(target, &rename.source) => {}
        Some(target) if rename.exchanges => exchange(rename, target)?,
        target => replace(rename, target.as_deref())?,
    }
    Ok(true)
}

/// Gives the source the new name, and takes that of the target.
fn replace(rename: &Rename<'_>, target: Option<&Inode>) -> Result<()> {
    let (source, from, to) = (&rename.source, rename.from, rename.to);
    if let Some(target) = target {
        match (source.is_directory(), target.is_directory()) {
            (true, false) => return Err(Error::NotDirectory),
            (false, true) => return Err(Error::IsDirectory),
            (true, true) if !target.directory()?.is_empty() => return Err(Error::NotEmpty),
            _ => {}
        }
    }
    let (old, new) = (from.directory.directory()?, to.directory.directory()?);
    let now = clock::now();
    if source.is_directory() && rename.crosses() {
        if target.is_none() {
            add_link(to.directory)?;
        }
        remove_subdirectory(from.directory);
        source.directory()?.set_parent(to.directory);
    } else if source.is_directory() && target.is_some() {
        remove_subdirectory(from.directory);
    }
    match target {
        Some(target) => {
            new.redirect(to.name, source);
            target.drop_name(now);
        }
        None => new.insert(to.name, source),
    }
    old.remove(from.name);
    touch_all(rename, now);
    Ok(())
}

/// Lets the two names change places.
fn exchange(rename: &Rename<'_>, target: &Arc<Inode>) -> Result<()> {
    let (source, from, to) = (&rename.source, rename.from, rename.to);
    if rename.crosses() {
        match (source.is_directory(), target.is_directory()) {
            (true, false) => {
                add_link(to.directory)?;
                remove_subdirectory(from.directory);
            }
            (false, true) => {
                add_link(from.directory)?;
                remove_subdirectory(to.directory);
            }
            _ => {}
        }
        for (inode, parent) in [(source, to.directory), (target, from.directory)] {
            if inode.is_directory() {
                inode.directory()?.set_parent(parent);
            }
        }
    }
    from.directory.directory()?.redirect(from.name, target);
    to.directory.directory()?.redirect(to.name, source);
    let now = clock::now();
    target.record.write().changed = now;
    touch_all(rename, now);
    Ok(())
}

fn touch_all(rename: &Rename<'_>, now: pagefence_vfs::Timestamp) {
    rename.from.directory.touch(now);
    rename.to.directory.touch(now);
    rename.source.record.write().changed = now;
}
