//! Files in the memory of the program: real page faults, served from the page cache of this process or, for
//! a file of a mount, from that of the mount's server.

pub(crate) mod atomics;
pub(crate) mod live;
pub(crate) mod options;
pub(crate) mod pages;
pub(crate) mod problem;
pub(crate) mod slice;

use std::ops::{Bound, Range, RangeBounds};
use std::path::PathBuf;
use std::sync::Arc;

use pagefence_ext4::{FileSystem, ShareError, SharedPages};
use pagefence_lock_order::primitives::{self, Mutex, Weak};
use pagefence_page_mmap::{MapError, RawBytes, Region, Service, View};
use pagefence_vfs::{FileSystem as _, WriteMode};

use crate::error::{Error, Result};
use crate::file::{Closed, File};
use live::Listed;
use options::{Advice, MapOptions};
use pages::{Own, Pages};
use problem::Problem;
use slice::MapSlice;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// The largest offset that can be mapped, in bytes: that of lseek(2).
const FURTHEST: u64 = i64::MAX as u64;

/// Threads that serve faults which have to wait, for each processor: most of them wait for the device.
const SERVERS_PER_CPU: usize = 4;

/// A range of a file in memory, from [`File::map`] or [`Mounted::map`]. Dropping it unmaps it.
///
/// Loads and stores go to the pages of the volume's page cache. Whoever reads, writes, maps, punches,
/// truncates, collapses or moves the file's data, through any [`File`] of the volume, sees at once
/// what was stored, and what they do is seen by the next load. The volume is one that this process has
/// opened, or a mount that another process serves: see the end of this page.
///
/// It keeps the file as an open one does: a file that is removed meanwhile lives until it is dropped, and
/// the volume can't be closed before. The [`File`] that it was made from is not needed any more.
///
/// Memory that others change can't be a `&[u8]`, so it is reached by copies ([`Map::read_at`],
/// [`Map::write_at`], [`Map::slice`]) and by atomics ([`Map::load`], [`Map::fetch_add`]); who knows that
/// nobody changes it may ask for more ([`Map::raw`]).
///
/// # SIGBUS
///
/// What an access would meet that can be known before is an error: a place outside the map, or past the
/// end of the file as it is then. What remains ends the process by SIGBUS, as with any map of a file:
///
/// - the file is cut off while the access is under way;
/// - the device can't be read, or the file is damaged there ([`Map::populate`] makes these errors);
/// - a store finds no space for a hole ([`File::allocate`] sees to it before), or the volume has become
///   read-only after an error.
///
/// A page that could not be had is tried again a second later. Until then it is so for every access to
/// it: where a store found no space, loads of that page from this map meet SIGBUS as well.
///
/// # What may be done with its memory
///
/// Children of fork(2) do not have it. A system call that is given [`Map::as_ptr`] fails with EFAULT
/// where a page is not mapped, but for [`MapOptions::faults_of_system_calls`]; this library takes it as
/// data of reads and writes and as values of attributes, not as names. munmap, mremap, mprotect and mlock
/// are not to be called on it.
///
/// A shared map is no place for what the kernel stores to past the page tables: the target of a read with
/// `O_DIRECT`, a fixed buffer of `io_uring`, a page given to vmsplice(2). The kernel holds the page then and
/// stores to it without a fault, which nobody notices, so it may be lost. Copying calls, read(2) among
/// them, are as good as stores of the program.
///
/// # Maps of files on a mount
///
/// [`Mounted::map`] maps a file of a mount: its pages are those of the server's cache, and any number of
/// programs map them at once. All of the above is so for them, and this:
///
/// - Rights are those of open(2). Stores that everybody sees are for processes of the user who serves the
///   mount alone; others have maps that are [`MapOptions::read_only`] or [`MapOptions::private`].
/// - Programs that open the file on the mount while it is mapped read what was stored at once, and what they
///   write is loaded at once. Who had the file open before its first map, or maps it by mmap(2) on the mount,
///   looks at pages that the kernel keeps, and sees a store when it has dropped them: a moment later. What is
///   stored to a map of the kernel comes back by whole pages, over what was stored there by others meanwhile.
/// - The file is open on the mount until the map is dropped, so that the mount can't be unmounted before. As with
///   any descriptor, its end lets go of the locks of fcntl(2) that the process has on the file.
/// - [`Map::flush_range`] makes all of the file durable.
/// - When the mount ends nevertheless (its server is killed, say, or its connection to the kernel aborted),
///   so do the accesses: they are errors ([`std::io::ErrorKind::NotConnected`]), and SIGBUS where one is
///   under way or goes by a pointer. So it is for a program that its server has cut off, as it makes no
///   sense or does not take what it is told. What was stored and not flushed may be lost then, as with the
///   power.
/// - A program with a map may be stopped (SIGSTOP, a debugger): nobody waits for it longer than a second,
///   once. What the kernel stores to its map past the page tables meanwhile, as said above, may be lost.
///
/// [`Mounted::map`]: crate::Mounted::map
pub struct Map {
    pages: Pages,
    _listed: Listed,
    path: PathBuf,
    /// Where in the file it begins, in bytes.
    start: u64,
    /// Where in the view it begins: that begins with a page.
    in_view: usize,
    len: usize,
    is_private: bool,
    is_read_only: bool,
}

/// What of a file is to be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where in the file it begins, in bytes.
    start: u64,
    len: usize,
    /// The pages around it.
    pub(crate) pages: Range<u64>,
    /// Bytes of those.
    pub(crate) view_len: usize,
}

/// The threads that serve faults in one volume's files: as long as one is mapped. Another volume's may
/// have to wait for them, if its image lies in one of these maps.
#[derive(Debug, Default)]
pub(crate) struct FaultService(Mutex<Weak<Service>>);

/// What is done with bytes of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Load,
    Store,
}

impl FaultService {
    pub(crate) fn get(&self) -> primitives::Arc<Service> {
        let mut service = self.0.lock();
        service.upgrade().unwrap_or_else(|| {
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            let new = Service::new(cpus.saturating_mul(SERVERS_PER_CPU));
            *service = primitives::Arc::downgrade(&new);
            new
        })
    }
}

impl File {
    /// Maps a range of the file's bytes into memory.
    ///
    /// The range may begin and end anywhere: the pages around it are mapped, and what is not of it is
    /// out of reach. It may reach past the end of the file: what lies there can't be accessed until
    /// the file has grown over it. Without an end (`..`) it ends where the file does now.
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use pagefence::{MapOptions, OpenOptions, Options, Volume};
    /// let volume = Volume::open(&image, Options::new().write(true))?;
    /// let file = OpenOptions::new().read(true).write(true).open(&volume, "/etc/hostname")?;
    /// let map = file.map(.., MapOptions::shared())?;
    /// let mut word = [0; 4];
    /// map.read_at(4, &mut word)?;
    /// assert_eq!(&word, b"fenc");
    /// map.write_at(0, b"P")?;
    /// assert_eq!(volume.read("/etc/hostname")?, b"Pagefence\n");
    /// map.flush()?; // durable
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    ///
    /// # Errors
    /// - [`std::io::ErrorKind::InvalidInput`] for an empty range;
    /// - [`std::io::ErrorKind::PermissionDenied`] as mmap(2) has them: the file is not open for reading, or
    ///   a shared map that is not [`MapOptions::read_only`] is asked for and it is not open for
    ///   writing, or can't be written to anywhere (immutable, append-only);
    /// - userfaultfd(2) is denied or too old, or the system has no memory: the text says what to set;
    /// - what is dirty of the file, and is written before its first map, could not be.
    pub fn map(&self, range: impl RangeBounds<u64>, options: MapOptions) -> Result<Map> {
        let problem = |problem| Error::of_map(&self.path, problem);
        if !self.rights.read {
            return Err(problem(Problem::NotReadable));
        }
        if options.stores() && !self.rights.write {
            return Err(problem(Problem::NotWritable));
        }
        let fs: &Arc<FileSystem> = &self.fs;
        // Before the file, so that it goes behind it.
        let closed = Closed::new(fs, self.id);
        let file = fs
            .open(self.id, options.stores())
            .map_err(|error| self.fail(error))?;
        let place = Place::of(&range, file.size()).map_err(problem)?;
        // As root, here as everywhere.
        let stores = options.stores().then_some(WriteMode::USE_RESERVE);
        let SharedPages { mapping, memory } =
            fs.share_pages(&file, stores).map_err(|error| match error {
                ShareError::File(error) => self.fail(error),
                ShareError::Memory(error) => problem(MapError::System(error).into()),
                other => problem(MapError::System(std::io::Error::other(other)).into()),
            })?;
        let region = Region::map(
            &mapping,
            &memory,
            (place.pages.start, place.view_len),
            options.kind(),
            options.faults(),
            &self.faults.get(),
        )
        .map_err(|error| problem(error.into()))?;
        let pages = Pages::Own(Box::new(Own {
            region,
            file,
            closed,
        }));
        Map::of_pages(pages, self.path.clone(), &place, options)
    }
}

impl Place {
    /// The bytes of `range`, in a file of `size` bytes.
    ///
    /// # Errors
    /// There are none, or they are too many.
    pub(crate) fn of(
        range: &impl RangeBounds<u64>,
        size: u64,
    ) -> std::result::Result<Self, Problem> {
        let bytes = bytes_of(range, size)?;
        let pages = bytes.start / PAGE..bytes.end.div_ceil(PAGE);
        let len = usize::try_from(bytes.end - bytes.start);
        let view_len = usize::try_from((pages.end - pages.start) * PAGE);
        let (Ok(len), Ok(view_len)) = (len, view_len) else {
            return Err(Problem::TooFar);
        };
        Ok(Self {
            start: bytes.start,
            len,
            pages,
            view_len,
        })
    }
}

/// The bytes of `range` in a file of `size` bytes.
fn bytes_of(range: &impl RangeBounds<u64>, size: u64) -> std::result::Result<Range<u64>, Problem> {
    let after = |at: u64| at.checked_add(1).ok_or(Problem::TooFar);
    let start = match range.start_bound() {
        Bound::Included(&at) => at,
        Bound::Excluded(&at) => after(at)?,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&at) => after(at)?,
        Bound::Excluded(&at) => at,
        Bound::Unbounded => size.max(start),
    };
    if end < start {
        return Err(Problem::Backwards);
    }
    if end == start {
        return Err(Problem::Empty);
    }
    if end > FURTHEST / PAGE * PAGE {
        return Err(Problem::TooFar);
    }
    Ok(start..end)
}

impl Map {
    /// A map of the place that `pages` show.
    pub(crate) fn of_pages(
        pages: Pages,
        path: PathBuf,
        place: &Place,
        options: MapOptions,
    ) -> Result<Self> {
        let map = Self {
            _listed: live::list(pages.view()),
            pages,
            path,
            start: place.start,
            in_view: (place.start % PAGE) as usize,
            len: place.len,
            is_private: options.is_private(),
            is_read_only: options.is_read_only(),
        };
        if options.populate {
            map.populate(..)?;
        }
        Ok(map)
    }

    /// Bytes that are mapped. Never 0.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped: never, as there are no empty maps.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where in the file it begins, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.start
    }

    /// Copies the bytes from `at` on into `buffer`.
    ///
    /// # Errors
    /// [`std::io::ErrorKind::InvalidInput`] if they are not inside the map,
    /// [`std::io::ErrorKind::UnexpectedEof`] if they are not inside the file as it is now,
    /// [`std::io::ErrorKind::NotConnected`] if it is on a mount that has ended. See the type for what
    /// remains.
    pub fn read_at(&self, at: usize, buffer: &mut [u8]) -> Result<()> {
        let at = self.place(at, buffer.len(), Use::Load)?;
        self.view().load(at, buffer);
        Ok(())
    }

    /// Copies `data` to the bytes from `at` on.
    ///
    /// # Errors
    /// As [`Map::read_at`]; [`std::io::ErrorKind::PermissionDenied`] if the map is for reading only. See
    /// the type for what remains.
    pub fn write_at(&self, at: usize, data: &[u8]) -> Result<()> {
        let at = self.place(at, data.len(), Use::Store)?;
        self.view().store(at, data);
        Ok(())
    }

    /// The bytes in `range`, where they are: nothing is copied until they are looked at.
    ///
    /// # Errors
    /// [`std::io::ErrorKind::InvalidInput`] if they are not inside the map.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<MapSlice<'_>> {
        let range = self.range_of(range, self.len)?;
        Ok(MapSlice::new(self, range))
    }

    /// The bytes by their address, and, for who can answer for it, as a `&[u8]`
    /// ([`RawBytes::as_bytes`]).
    ///
    /// ```
    /// # let image = pagefence::doc_image();
    /// use pagefence::{MapOptions, Options, Volume};
    /// let volume = Volume::open(&image, Options::new())?;
    /// let map = volume.open_file("/etc/hostname")?.map(.., MapOptions::shared().read_only())?;
    /// // SAFETY: the volume is read-only, the map inside the file, and the image in nobody else's hands.
    /// let text = unsafe { map.raw().as_bytes() };
    /// assert_eq!(text, b"pagefence\n");
    /// # Ok::<(), pagefence::Error>(())
    /// ```
    #[must_use]
    pub fn raw(&self) -> RawBytes<'_> {
        self.view().raw(self.in_view, self.len)
    }

    /// Where it begins in memory: for who goes by pointers, and takes over what a pointer to memory that
    /// others change takes (volatile or atomic accesses, inside the map and inside the file).
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.raw().as_ptr()
    }

    /// Makes what was stored durable, by whomever it was: msync(2), or fdatasync(2). Does nothing for a
    /// private map, whose stores are nowhere else.
    ///
    /// # Errors
    /// The device failed, now or since the file was mapped: told once. A file of a mount: since it was
    /// opened; [`std::io::ErrorKind::NotConnected`] if the mount has ended.
    pub fn flush(&self) -> Result<()> {
        self.flush_range(..)
    }

    /// As [`Map::flush`], of the pages that `range` touches.
    ///
    /// # Errors
    /// As [`Map::flush`]; [`std::io::ErrorKind::InvalidInput`] if it is not inside the map.
    pub fn flush_range(&self, range: impl RangeBounds<usize>) -> Result<()> {
        let pages = self.pages_of(&self.range_of(range, self.len)?);
        if self.is_private {
            return Ok(());
        }
        self.pages
            .check_served()
            .map_err(|problem| self.fail(problem))?;
        self.pages
            .sync(&pages)
            .map_err(|error| Error::at(&self.path, error))
    }

    /// Reads the pages that `range` touches into the cache, if they are not there, and maps them for
    /// loads, many at a time: so that what can't be read is an error here, and accesses need no fault.
    /// What lies past the end of the file is left out. Pages may be evicted again.
    ///
    /// # Errors
    /// The device fails, or the file is damaged; [`std::io::ErrorKind::InvalidInput`] if the range is not
    /// inside the map; [`std::io::ErrorKind::NotConnected`] if it is on a mount that has ended.
    pub fn populate(&self, range: impl RangeBounds<usize>) -> Result<()> {
        let pages = self.pages_of(&self.range_of(range, self.len)?);
        let pages = self
            .pages
            .inside(pages)
            .map_err(|problem| self.fail(problem))?;
        if pages.is_empty() {
            return Ok(());
        }
        self.pages
            .populate(pages)
            .map_err(|error| Error::at(&self.path, error))
    }

    /// Takes advice on how the map is going to be used. Nothing but speed depends on it.
    pub fn advise(&self, advice: Advice) {
        self.pages.advise(advice, self.pages_of(&(0..self.len)));
    }

    fn view(&self) -> &View {
        self.pages.view()
    }

    fn fail(&self, problem: Problem) -> Error {
        Error::of_map(&self.path, problem)
    }

    /// Where in the view `count` bytes from `at` on are.
    fn place(&self, at: usize, count: usize, how: Use) -> Result<usize> {
        let end = at.checked_add(count).filter(|&end| end <= self.len);
        let Some(end) = end else {
            let len = self.len;
            return Err(self.fail(Problem::Outside { at, count, len }));
        };
        if how == Use::Store && self.is_read_only {
            return Err(self.fail(Problem::ReadOnly));
        }
        if count > 0 {
            let reached = self.pages.reach(self.start + end as u64);
            reached.map_err(|problem| self.fail(problem))?;
        }
        Ok(self.in_view + at)
    }

    /// The bytes of `range`, which lie inside `len` bytes of the map.
    fn range_of(&self, range: impl RangeBounds<usize>, len: usize) -> Result<Range<usize>> {
        let start = match range.start_bound() {
            Bound::Included(&at) => at,
            Bound::Excluded(&at) => at.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&at) => at.saturating_add(1),
            Bound::Excluded(&at) => at,
            Bound::Unbounded => len,
        };
        if start > end || end > len {
            let count = end.saturating_sub(start);
            let at = start;
            return Err(self.fail(Problem::Outside { at, count, len }));
        }
        Ok(start..end)
    }

    /// The pages of the file that `range` of the map touches.
    fn pages_of(&self, range: &Range<usize>) -> Range<u64> {
        let (start, end) = (
            self.start + range.start as u64,
            self.start + range.end as u64,
        );
        start / PAGE..end.div_ceil(PAGE)
    }
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map")
            .field("path", &self.path)
            .field("offset", &self.start)
            .field("len", &self.len)
            .field("kind", &self.view().kind())
            .finish_non_exhaustive()
    }
}
