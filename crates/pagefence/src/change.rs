//! Changing what a volume holds, by paths: shaped like `std::fs`.
//!
//! Everything is done as root, and what is made belongs to root until [`Volume::set_owner`] says
//! otherwise: images are built by programs, not by their users.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use pagefence_vfs::{
    Credentials, FileKind, FileSystem as _, InodeId, New, NewKind, Place, RenameMode, SetAttr,
    SetTime, Timestamp,
};

use crate::error::{Error, Result};
use crate::path::{Follow, parent_of, resolve};
use crate::volume::Volume;

/// Who changes a volume.
pub(crate) const ROOT: Credentials = Credentials {
    uid: 0,
    gid: 0,
    groups: Vec::new(),
};

/// What is taken off the permissions of what is made, where none are asked for.
pub(crate) const UMASK: u16 = 0o022;

/// What to make with [`Volume::make_node`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Node {
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A block device: major and minor number.
    BlockDevice(u32, u32),
    /// A character device: major and minor number.
    CharDevice(u32, u32),
}

impl Volume {
    fn change<T>(&self, path: &Path, body: impl FnOnce() -> pagefence_vfs::Result<T>) -> Result<T> {
        body().map_err(|error| Error::at(path, error))
    }

    fn make(&self, path: &Path, kind: NewKind<'_>, permissions: u16) -> Result<()> {
        self.change(path, || {
            let (parent, name) = parent_of(&*self.fs, path).map_err(|error| match error {
                // The root, or what a path that ends in `..` leads to, is there.
                pagefence_vfs::Error::InvalidArgument => pagefence_vfs::Error::Exists,
                error => error,
            })?;
            let new = New {
                kind,
                permissions,
                umask: UMASK,
            };
            self.fs.create(parent, name, &new, &ROOT).map(drop)
        })
    }

    pub(crate) fn set_attr(&self, path: &Path, follow: Follow, change: &SetAttr) -> Result<()> {
        self.change(path, || {
            let attr = resolve(&*self.fs, path, follow)?;
            self.fs.set_attr(attr.id, change, &ROOT).map(drop)
        })
    }

    /// Makes a directory, with permissions 0755.
    ///
    /// # Errors
    /// There already, or its parent is not; no space; the volume is read-only.
    pub fn create_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        self.make(path.as_ref(), NewKind::Directory, 0o777)
    }

    /// Makes a directory and those above it that are not there.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use pagefence::{Options, Volume};
    /// let volume = Volume::open(&image, Options::new().write(true))?;
    /// volume.create_dir_all("/srv/www/html")?;
    /// volume.rename("/srv/www", "/srv/web")?;
    /// assert!(volume.metadata("/srv/web/html")?.is_dir());
    /// volume.remove_dir_all("/srv")?;
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    ///
    /// # Errors
    /// One of them is there and no directory; no space; the volume is read-only.
    pub fn create_dir_all(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match self.metadata(path) {
            Ok(metadata) if metadata.is_dir() => return Ok(()),
            Ok(_) => return Err(Error::at(path, pagefence_vfs::Error::Exists)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if let Some(parent) = path.parent() {
            self.create_dir_all(parent)?;
        }
        match self.create_dir(path) {
            // Another thread made it.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    /// Makes a symbolic link at `path` that says `target`.
    ///
    /// # Errors
    /// There already; an empty target, or one longer than a block; the volume is read-only.
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let target = target.as_ref().as_os_str().as_bytes();
        self.make(path.as_ref(), NewKind::Symlink(target), 0o777)
    }

    /// Makes a pipe, a socket or a device, with permissions 0644.
    ///
    /// # Errors
    /// As [`Volume::create_dir`].
    pub fn make_node(&self, path: impl AsRef<Path>, node: Node) -> Result<()> {
        let kind = match node {
            Node::Fifo => NewKind::Fifo,
            Node::Socket => NewKind::Socket,
            Node::BlockDevice(major, minor) => NewKind::BlockDevice { major, minor },
            Node::CharDevice(major, minor) => NewKind::CharDevice { major, minor },
        };
        self.make(path.as_ref(), kind, 0o666)
    }

    /// Gives what is at `original` itself one more name.
    ///
    /// # Errors
    /// Nothing at `original`, or a directory; something at `link`; too many links; the volume is
    /// read-only.
    pub fn hard_link(&self, original: impl AsRef<Path>, link: impl AsRef<Path>) -> Result<()> {
        let link = link.as_ref();
        let attr = self.resolve(original.as_ref(), Follow::NotLast)?;
        self.change(link, || {
            let (parent, name) = parent_of(&*self.fs, link)?;
            self.fs.link(attr.id, parent, name, &ROOT).map(drop)
        })
    }

    /// Removes what is at `path` itself, if it is no directory. A file that is open lives until it
    /// is closed.
    ///
    /// # Errors
    /// Nothing there, or a directory; the volume is read-only.
    pub fn remove_file(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.change(path, || {
            let (parent, name) = parent_of(&*self.fs, path)?;
            let victim = self.fs.lookup(parent, name)?.attr.id;
            self.fs.unlink(parent, name)?;
            self.fs.forget(victim);
            Ok(())
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Nothing there, no directory, or entries in it; the volume is read-only.
    pub fn remove_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.change(path, || {
            let (parent, name) = parent_of(&*self.fs, path)?;
            let victim = self.fs.lookup(parent, name)?.attr.id;
            self.fs.rmdir(parent, name)?;
            self.fs.forget(victim);
            Ok(())
        })
    }

    /// Removes what is at `path` itself and everything below it.
    ///
    /// # Errors
    /// As [`Volume::remove_file`] and [`Volume::remove_dir`]; some of it may be gone then. A
    /// directory that lies in itself, as only damage makes one.
    pub fn remove_dir_all(&self, path: impl AsRef<Path>) -> Result<()> {
        self.remove_below(path.as_ref(), &mut Vec::new())
    }

    /// `above` are the directories on the way.
    fn remove_below(&self, path: &Path, above: &mut Vec<InodeId>) -> Result<()> {
        let attr = self.symlink_metadata(path)?.0;
        if attr.kind != FileKind::Directory {
            return self.remove_file(path);
        }
        if above.contains(&attr.id) {
            let error = pagefence_vfs::Error::Corrupt {
                what: "a directory that lies in itself".into(),
                place: Place {
                    inode: Some(attr.id.0),
                    block: None,
                },
            };
            return Err(Error::at(path, error));
        }
        above.push(attr.id);
        for entry in self.read_dir(path)? {
            self.remove_below(&entry?.path(), above)?;
        }
        above.pop();
        self.remove_dir(path)
    }

    /// Gives what is at `from` itself the path `to` instead; what is there is replaced in one
    /// step, if it is of the same sort and no directory with entries.
    ///
    /// # Errors
    /// Nothing at `from`; a directory would come into itself; something at `to` that can't be
    /// replaced; no space; the volume is read-only.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        self.rename_as(from.as_ref(), to.as_ref(), RenameMode::empty())
    }

    /// As [`Volume::rename`], but nothing may be at `to`.
    ///
    /// # Errors
    /// As [`Volume::rename`]; [`std::io::ErrorKind::AlreadyExists`].
    pub fn rename_new(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        self.rename_as(from.as_ref(), to.as_ref(), RenameMode::NO_REPLACE)
    }

    /// Lets what is at `one` and what is at `other` change places, in one step.
    ///
    /// # Errors
    /// Nothing at one of them; a directory would come into itself; the volume is read-only.
    pub fn exchange(&self, one: impl AsRef<Path>, other: impl AsRef<Path>) -> Result<()> {
        self.rename_as(one.as_ref(), other.as_ref(), RenameMode::EXCHANGE)
    }

    fn rename_as(&self, from: &Path, to: &Path, mode: RenameMode) -> Result<()> {
        let (old, name) = parent_of(&*self.fs, from).map_err(|error| Error::at(from, error))?;
        self.change(to, || {
            let (new, new_name) = parent_of(&*self.fs, to)?;
            let replaced = self.fs.lookup(new, new_name).ok();
            let how = mode | RenameMode::USE_RESERVE;
            self.fs.rename(old, name, new, new_name, how)?;
            if let Some(replaced) = replaced
                && mode.is_empty()
            {
                self.fs.forget(replaced.attr.id);
            }
            Ok(())
        })
    }

    /// Sets the permissions, set-uid, set-gid and sticky bits: the low 12 bits of the mode.
    /// Follows symbolic links.
    ///
    /// # Errors
    /// Nothing there; the volume is read-only.
    pub fn set_permissions(&self, path: impl AsRef<Path>, permissions: u16) -> Result<()> {
        let change = SetAttr {
            permissions: Some(permissions),
            ..SetAttr::default()
        };
        self.set_attr(path.as_ref(), Follow::Last, &change)
    }

    /// Sets owner and group of what is at `path` itself; nothing for one of them leaves it.
    ///
    /// # Errors
    /// Nothing there; the volume is read-only.
    pub fn set_owner(
        &self,
        path: impl AsRef<Path>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<()> {
        let change = SetAttr {
            uid,
            gid,
            ..SetAttr::default()
        };
        self.set_attr(path.as_ref(), Follow::NotLast, &change)
    }

    /// Sets the times of last access and last change of what is at `path` itself; nothing for one
    /// of them leaves it.
    ///
    /// # Errors
    /// Nothing there; the volume is read-only.
    pub fn set_times(
        &self,
        path: impl AsRef<Path>,
        accessed: Option<SystemTime>,
        modified: Option<SystemTime>,
    ) -> Result<()> {
        let change = SetAttr {
            accessed: accessed.map(|time| SetTime::To(timestamp(time))),
            modified: modified.map(|time| SetTime::To(timestamp(time))),
            ..SetAttr::default()
        };
        self.set_attr(path.as_ref(), Follow::NotLast, &change)
    }

    /// Returns once everything that was done to the volume is durable.
    ///
    /// # Errors
    /// The device failed.
    pub fn sync(&self) -> Result<()> {
        self.change(Path::new("/"), || self.fs.sync())
    }

    /// Returns once the names in the directory at `path` are durable, as fsync(2) of a directory does.
    /// Follows symbolic links.
    ///
    /// # Errors
    /// Nothing there, no directory; the device failed.
    pub fn sync_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let id = self.resolve(path, Follow::Last)?.id;
        self.change(path, || self.fs.sync_dir(&self.fs.open_dir(id)?))
    }

    /// Closes the volume: everything is durable and the image is clean when it returns. Dropping
    /// the last clone does the same, but can't say what went wrong.
    ///
    /// # Errors
    /// The device failed; [`std::io::ErrorKind::ResourceBusy`] if clones, files, maps or iterators
    /// of it are still in use (the volume stays open for them).
    pub fn close(self) -> Result<()> {
        let root = Path::new("/");
        match self.into_file_system() {
            Ok(fs) => fs.shut_down().map_err(|error| Error::at(root, error)),
            Err(_) => Err(Error::at(root, pagefence_vfs::Error::Busy)),
        }
    }
}

/// A time as the file system has it.
fn timestamp(time: SystemTime) -> Timestamp {
    let second = std::time::Duration::from_secs(1);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let fraction = before.subsec_nanos();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            Timestamp {
                seconds: -whole - i64::from(fraction > 0),
                nanoseconds: if fraction > 0 {
                    (second.as_nanos() as u32) - fraction
                } else {
                    0
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::timestamp;

    #[test]
    fn times_before_the_epoch_have_their_nanoseconds_forward() {
        let half = SystemTime::UNIX_EPOCH - Duration::from_millis(1500);
        let time = timestamp(half);
        assert_eq!((time.seconds, time.nanoseconds), (-2, 500_000_000));
        let whole = timestamp(SystemTime::UNIX_EPOCH - Duration::from_secs(3));
        assert_eq!((whole.seconds, whole.nanoseconds), (-3, 0));
        let after = timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
        assert_eq!((after.seconds, after.nanoseconds), (1, 500_000_000));
    }
}
