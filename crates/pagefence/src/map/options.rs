//! How a file is mapped.

use pagefence_page_mmap::remote::RemoteKind;
use pagefence_page_mmap::{Faults, Kind};

/// How a file is mapped into memory: whose the stores are, and what is done before the first access.
///
/// ```
/// # let image = pagefence::doc_image();
/// use pagefence::{MapOptions, Options, Volume};
/// let volume = Volume::open(&image, Options::new())?;
/// let file = volume.open_file("/etc/hostname")?;
/// let map = file.map(.., MapOptions::shared().read_only().populate(true))?;
/// assert!(map.slice(..)? == b"pagefence\n"[..]);
/// # Ok::<(), pagefence::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct MapOptions {
    is_shared: bool,
    read_only: bool,
    pub(super) populate: bool,
    system_calls: bool,
}

/// How a map is going to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Advice {
    /// Nothing is known: pages are read ahead where accesses look sequential.
    Normal,
    /// From front to back.
    Sequential,
    /// Here and there: nothing is read or mapped along with a page.
    Random,
    /// All of it, soon: it is read and mapped in the background, as far as it can be.
    WillNeed,
}

impl MapOptions {
    /// Stores change the file, and everybody sees them at once: `MAP_SHARED`. On a mount, for processes of
    /// the user who serves it.
    pub fn shared() -> Self {
        Self {
            is_shared: true,
            read_only: false,
            populate: false,
            system_calls: false,
        }
    }

    /// Stores stay with the map: `MAP_PRIVATE`. A page is the file's, with whatever changes there,
    /// until the map's first store to it; from then on it is the map's own copy.
    pub fn private() -> Self {
        Self {
            is_shared: false,
            ..Self::shared()
        }
    }

    /// For reading only: needs no file that is open for writing.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Whether all of it that is inside the file is read and mapped before the map is there, so
    /// that what can't be read is an error there. Default: no.
    pub fn populate(mut self, populate: bool) -> Self {
        self.populate = populate;
        self
    }

    /// Whether system calls may be given the map's memory ([`Map::as_ptr`]) without more ado. Otherwise
    /// one that meets a page which is not mapped at that moment fails with `EFAULT`. It takes root, access
    /// to `/dev/userfaultfd`, or the sysctl `vm.unprivileged_userfaultfd`. Default: no. What the kernel
    /// stores to by direct I/O stays out of it either way: see [`Map`](crate::Map).
    ///
    /// [`File::read_at`] and [`File::write_at`] take such memory without it.
    ///
    /// [`Map::as_ptr`]: crate::Map::as_ptr
    /// [`File::read_at`]: crate::File::read_at
    /// [`File::write_at`]: crate::File::write_at
    pub fn faults_of_system_calls(mut self, faults: bool) -> Self {
        self.system_calls = faults;
        self
    }

    /// Whether stores change the file.
    pub(crate) fn stores(&self) -> bool {
        self.is_shared && !self.read_only
    }

    /// Whether there are no stores. Then there is nothing to keep private, either.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether stores stay with the map.
    pub(super) fn is_private(&self) -> bool {
        !self.is_shared && !self.read_only
    }

    pub(super) fn kind(&self) -> Kind {
        match (self.read_only, self.is_shared) {
            (true, _) => Kind::SharedReadOnly,
            (false, true) => Kind::Shared,
            (false, false) => Kind::Private,
        }
    }

    /// The kind of a map of another process's pages.
    pub(crate) fn remote_kind(&self) -> RemoteKind {
        match (self.read_only, self.is_shared) {
            (true, _) => RemoteKind::ReadOnly,
            (false, true) => RemoteKind::Shared,
            (false, false) => RemoteKind::Private,
        }
    }

    pub(crate) fn faults(&self) -> Faults {
        if self.system_calls {
            Faults::OfSystemCalls
        } else {
            Faults::OfPrograms
        }
    }
}
