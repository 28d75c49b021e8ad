//! How a file is mapped.

use pagefence_page_mmap::{Faults, Hint, Kind};

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
    /// Stores change the file, and everybody sees them at once: `MAP_SHARED`.
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

    /// Whether all of it that is inside the file is read and mapped before [`File::map`] returns, so
    /// that what can't be read is an error there. Default: no.
    ///
    /// [`File::map`]: crate::File::map
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
    pub(super) fn stores(&self) -> bool {
        self.is_shared && !self.read_only
    }

    pub(super) fn kind(&self) -> Kind {
        match (self.read_only, self.is_shared) {
            // Without stores there is nothing to keep private.
            (true, _) => Kind::SharedReadOnly,
            (false, true) => Kind::Shared,
            (false, false) => Kind::Private,
        }
    }

    pub(super) fn faults(&self) -> Faults {
        if self.system_calls {
            Faults::OfSystemCalls
        } else {
            Faults::OfPrograms
        }
    }
}

impl Advice {
    /// What it says of the order of accesses.
    pub(super) fn hint(self) -> Option<Hint> {
        match self {
            Advice::Normal => Some(Hint::Normal),
            Advice::Sequential => Some(Hint::Sequential),
            Advice::Random => Some(Hint::Random),
            Advice::WillNeed => None,
        }
    }
}
