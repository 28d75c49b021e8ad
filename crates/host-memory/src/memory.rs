//! The memory of one mapped file: its cached pages, each at its offset, in a memfd.
//!
//! Users map the memfd ([`crate::View`]); this side never does. It reads, writes and punches holes by
//! system calls, so that no page that is taken away meanwhile can send it a signal.
//!
//! The memfd is as large as one can be from the beginning and sealed at that size: no descriptor of it
//! can cut it, and nobody who maps it is sent SIGBUS for its end. Where the *file* ends is for the
//! handler of faults to say.

mod freeze;
mod hand_out;

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pagefence_lock_order::primitives::Arc;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, SeekFrom, fallocate, fstat, ftruncate, seek,
};
use rustix::io::{Errno, pread, pwrite, pwritev, retry_on_intr};
use rustix::process::{Resource, getrlimit};

use crate::FRAME_SIZE;
use freeze::Freezes;

pub use freeze::Pipe;

const PAGE: u64 = FRAME_SIZE as u64;

/// Most slices that one pwritev(2) takes (IOV_MAX).
const MAX_SLICES: usize = 1024;

/// Bytes of the unit in which fstat(2) counts what is allocated.
const STAT_BLOCK: u64 = 512;

/// The memory of one file: pages of [`FRAME_SIZE`] bytes, each at its offset in the file.
///
/// A page that was never written, or was punched since, is a hole: it reads as zeros, and reading it
/// allocates nothing. Whether there is a page is the page cache's knowledge, and asked here only where that
/// may be wrong: where somebody else has punched a hole ([`FileMemory::has_page`]).
///
/// Writing and punching wait for the memfd's inode lock and for the kernel's page locks, reading for
/// neither but while a page is swapped in; none of them waits for a lock of a process that maps it.
#[derive(Debug)]
pub struct FileMemory {
    fd: OwnedFd,
    freezes: Freezes,
}

impl FileMemory {
    /// Pages that there is room for: one less than 2^51.
    pub const PAGES: u64 = i64::MAX as u64 / PAGE;

    /// Memory of holes.
    ///
    /// # Errors
    /// `Unsupported` if the process may not write files of any size (`ulimit -f`), if pages of the
    /// system are not of [`FRAME_SIZE`] bytes, or if it gives huge pages to memfds; else what
    /// memfd_create(2) and those that follow refuse.
    pub fn new() -> io::Result<Arc<Self>> {
        if getrlimit(Resource::Fsize).current.is_some() {
            // A write past the limit would not only fail: it would end the process by SIGXFSZ.
            return Err(unsupported(
                "mapped files need memory at offsets past the limit of file sizes: \
                 lift it (ulimit -f unlimited)",
            ));
        }
        if rustix::param::page_size() != FRAME_SIZE {
            return Err(unsupported(
                "mapped files need a system whose pages have 4096 bytes",
            ));
        }
        let fd = create()?;
        ftruncate(&fd, Self::PAGES * PAGE)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals)?;
        let memory = Self {
            fd,
            freezes: Freezes::default(),
        };
        memory.probe()?;
        Ok(Arc::new(memory))
    }

    /// Writes one page and looks how many that made. Huge pages can't be refused for one memfd: a
    /// page would take the memory of 512, of which no budget would know.
    fn probe(&self) -> io::Result<()> {
        rustix::io::pwrite(&self.fd, &[0; FRAME_SIZE], 0)?;
        let allocated = self.allocated_pages();
        self.punch(0..1);
        refuse_huge(allocated)
    }

    /// Memories that a process does well to keep while nobody maps them, since each takes a descriptor:
    /// 256, or a quarter of the descriptors that it may have now.
    #[must_use]
    pub fn most_unused() -> usize {
        const MOST: u64 = 256;
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        usize::try_from((descriptors / 4).min(MOST)).expect("few")
    }

    /// The memfd, to be mapped or handed to who maps it.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Copies from byte `offset` of page `page` on into `target`; zeros where there is a hole.
    ///
    /// # Panics
    /// The range reaches past the last page, or the operating system can't read its own memory.
    pub fn read(&self, page: u64, offset: usize, target: &mut [u8]) {
        let start = place(page, offset, target.len());
        self.freezes.read(|| self.read_once(start, target));
    }

    fn read_once(&self, start: u64, target: &mut [u8]) {
        let mut done = 0;
        while done < target.len() {
            let rest = &mut target[done..];
            match retry_on_intr(|| pread(&self.fd, &mut *rest, start + bytes_u64(done))) {
                Ok(0) => panic!("memory of a mapped file ends before its size"),
                Ok(count) => done += count,
                Err(errno) => panic!("memory of a mapped file can't be read: {errno}"),
            }
        }
    }

    /// Copies `source` to byte `offset` of page `page` on; fills holes.
    ///
    /// Who copies part of a page into a hole makes the rest of it zeros.
    ///
    /// Ends the process if there is no memory, as an allocation does.
    ///
    /// # Panics
    /// The range reaches past the last page.
    pub fn write(&self, page: u64, offset: usize, source: &[u8]) {
        let start = place(page, offset, source.len());
        let mut done = 0;
        while done < source.len() {
            let at = start + bytes_u64(done);
            done += written(retry_on_intr(|| pwrite(&self.fd, &source[done..], at)));
        }
    }

    /// Copies `slices`, one after the other, to page `first` and those after it: one system call, if
    /// the operating system takes them all.
    ///
    /// `slices` is used up.
    ///
    /// # Panics
    /// As [`Self::write`].
    pub fn write_pages(&self, first: u64, mut slices: &mut [IoSlice<'_>]) {
        let len = slices.iter().map(|slice| slice.len()).sum();
        let mut at = place(first, 0, len);
        // Empty slices in front would look as if nothing could be written.
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let batch = &slices[..slices.len().min(MAX_SLICES)];
            let count = written(retry_on_intr(|| pwritev(&self.fd, batch, at)));
            IoSlice::advance_slices(&mut slices, count);
            at += bytes_u64(count);
        }
    }

    /// Makes `pages` holes: takes them out of every mapping at once, but for private copies, and
    /// frees them. When it comes back nobody has one mapped. The end may lie past the last page.
    ///
    /// Waits for the kernel's lock of each page and for the lock of each page table that maps one, for
    /// no process's map lock. Ends the process if the operating system refuses: somebody could go on
    /// storing to pages given up.
    pub fn punch(&self, pages: Range<u64>) {
        let end = pages.end.min(Self::PAGES);
        if pages.start >= end {
            return;
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (start, len) = (pages.start * PAGE, (end - pages.start) * PAGE);
        if let Err(errno) = retry_on_intr(|| fallocate(&self.fd, mode, start, len)) {
            end_process("the memory of a mapped file can't be given back", errno);
        }
    }

    /// Whether there is memory at `page`, also one that is swapped out, and no hole. The answer may be old when
    /// it is given, unless nobody fills the page or makes a hole there meanwhile.
    ///
    /// Waits for the memfd's inode lock.
    ///
    /// # Panics
    /// The page lies past the last one, or the operating system can't say.
    #[must_use]
    pub fn has_page(&self, page: u64) -> bool {
        let start = place(page, 0, FRAME_SIZE);
        // Moves the place of a descriptor by which nothing is read or written there.
        match seek(&self.fd, SeekFrom::Data(start)) {
            Ok(data) => data == start,
            // There is none from there on.
            Err(Errno::NXIO) => false,
            Err(errno) => panic!("memory of a mapped file can't be looked at: {errno}"),
        }
    }

    /// The first pages from `page` on that are no holes, up to the next hole; `None` if there are none. The
    /// answer may be old when it is given.
    ///
    /// Waits for the memfd's inode lock.
    ///
    /// # Panics
    /// The operating system can't say.
    #[must_use]
    pub fn next_run(&self, page: u64) -> Option<Range<u64>> {
        if page >= Self::PAGES {
            return None;
        }
        loop {
            let start = match seek(&self.fd, SeekFrom::Data(page * PAGE)) {
                Ok(start) => start,
                Err(Errno::NXIO) => return None,
                Err(errno) => panic!("memory of a mapped file can't be looked at: {errno}"),
            };
            // There is one behind the last page at the latest. If what was found has gone, it may be that at once.
            match seek(&self.fd, SeekFrom::Hole(start)) {
                Ok(end) if end > start => return Some(start / PAGE..end.div_ceil(PAGE)),
                Ok(_) => {}
                Err(errno) => panic!("memory of a mapped file can't be looked at: {errno}"),
            }
        }
    }

    /// Pages that are no holes, in memory or swapped out.
    ///
    /// # Panics
    /// The operating system can't say.
    #[must_use]
    pub fn allocated_pages(&self) -> u64 {
        let stat = fstat(&self.fd).expect("fstat of an open memfd");
        u64::try_from(stat.st_blocks).expect("a count") / (PAGE / STAT_BLOCK)
    }
}

/// An empty memfd that can be sealed, not executable if the kernel knows that (Linux 6.3).
fn create() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let create = |flags| rustix::fs::memfd_create(c"pagefence", flags);
    match create(flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => Ok(create(flags)?),
        made => Ok(made?),
    }
}

/// Refuses memory that grew by more than the one page written.
fn refuse_huge(allocated_pages: u64) -> io::Result<()> {
    if allocated_pages > 1 {
        return Err(unsupported(
            "mapped files need memfds without huge pages: \
             set /sys/kernel/mm/transparent_hugepage/shmem_enabled to advise or never",
        ));
    }
    Ok(())
}

fn unsupported(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}

fn bytes_u64(count: usize) -> u64 {
    u64::try_from(count).expect("usize has 64 bits or less")
}

/// The byte at which `len` bytes from byte `offset` of `page` on begin.
fn place(page: u64, offset: usize, len: usize) -> u64 {
    let start = page
        .checked_mul(PAGE)
        .and_then(|start| start.checked_add(bytes_u64(offset)));
    let end = start.and_then(|start| start.checked_add(bytes_u64(len)));
    let inside = end.is_some_and(|end| end <= FileMemory::PAGES * PAGE);
    assert!(inside, "{len} bytes at {offset} of page {page} of a file");
    start.expect("it is before the end")
}

/// What a write has moved. The callers copy into pages that they have already promised: there is
/// nobody to tell that there is no memory, as when an allocation fails.
fn written(result: Result<usize, Errno>) -> usize {
    match result {
        Ok(count) if count > 0 => count,
        Ok(_) => end_process("the memory of a mapped file takes no bytes", Errno::NOSPC),
        Err(Errno::FBIG) => end_process(
            "a limit of file sizes was set after a file was mapped: its memory can't be written",
            Errno::FBIG,
        ),
        Err(errno) => end_process("there is no memory for a page of a mapped file", errno),
    }
}

/// Ends the process, as one that is refused memory ends: who unwound would leave pages half changed that
/// others see.
fn end_process(what: &str, errno: Errno) -> ! {
    eprintln!("pagefence: {what}: {errno}");
    std::process::abort();
}

impl Drop for FileMemory {
    /// The memory goes now, whoever else still has the descriptor: a child process, for one.
    fn drop(&mut self) {
        let all = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Else it goes with the last descriptor.
        let _ = retry_on_intr(|| fallocate(&self.fd, all, 0, Self::PAGES * PAGE));
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
