//! What is left when a device fails in the middle of something: the space that is counted, the
//! data that was promised, and who is told.

mod damage;
pub(crate) mod device;
mod exchange;
mod extents;
mod fences;
mod holes;
mod immutable;
mod mapped;
pub(crate) mod maps;
mod reuse;
mod shift;
mod space;
mod stores;
mod sync;
mod trim;
mod truncate;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pagefence_block_io::{Device, MemoryDevice};
use pagefence_ext4_format::InodeNo;
use pagefence_lock_order::primitives::{Arc, Mutex};
use pagefence_vfs::{
    Credentials, Error, ExtentInfo, FallocateMode, FileSystem as _, InodeId, New, NewKind, Result,
    SetAttr, WriteMode,
};

use crate::filesystem::{File, FileSystem};
use crate::inode::Inode;
use crate::mkfs::{Contents, Kind, Parameters, Tree, format};
use crate::mount::MountOptions;
pub(crate) use device::TestDevice;

/// Bytes of a block in these file systems.
pub(crate) const BLOCK: u64 = 4096;

/// A new file system of blocks of 4 KiB.
pub(crate) fn formatted() -> Arc<TestDevice> {
    formatted_with("")
}

/// The same, with some features more or less.
pub(crate) fn formatted_with(features: &str) -> Arc<TestDevice> {
    formatted_as(Kind::Ext4, 4096, features)
}

pub(crate) fn formatted_as(kind: Kind, block_size: u32, features: &str) -> Arc<TestDevice> {
    let device = MemoryDevice::new(64 << 20);
    let mut parameters = Parameters::new(kind);
    parameters.features.edit(features).expect("known features");
    parameters.block_size = Some(block_size);
    parameters.contents = Contents::Zeros;
    format(&device, &parameters, &Tree::new()).expect("a new file system");
    Arc::new(TestDevice::new(device))
}

pub(crate) fn open(device: &Arc<TestDevice>) -> FileSystem {
    open_with(device, &options())
}

/// Written to, and committed only where somebody waits for it.
fn options() -> MountOptions {
    MountOptions {
        write: true,
        cache: Some(16 << 20),
        commit_interval: Some(Duration::from_secs(3600)),
        ..MountOptions::default()
    }
}

fn open_with(device: &Arc<TestDevice>, options: &MountOptions) -> FileSystem {
    let device: Arc<dyn Device> = Arc::<TestDevice>::clone(device);
    FileSystem::open(device, options).expect("it opens")
}

pub(crate) fn root() -> Credentials {
    Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    }
}

pub(crate) fn create(fs: &FileSystem, name: &str) -> InodeId {
    let new = New {
        kind: NewKind::Regular,
        permissions: 0o644,
        umask: 0,
    };
    let made = fs.create(fs.root(), name.as_bytes(), &new, &root());
    made.expect("it is made").attr.id
}

pub(crate) fn find(fs: &FileSystem, name: &str) -> InodeId {
    let found = fs.lookup(fs.root(), name.as_bytes());
    found.expect("it is there").attr.id
}

pub(crate) fn inode(fs: &FileSystem, id: InodeId) -> Arc<Inode> {
    fs.inode(id).expect("it is in core")
}

fn number(id: InodeId) -> InodeNo {
    InodeNo(u32::try_from(id.0).expect("a number"))
}

/// Blocks that are free and promised to nobody.
pub(crate) fn unreserved(fs: &FileSystem) -> u64 {
    let live = fs.instance.live().expect("it is written to");
    live.allocator.counts().blocks_unreserved
}

pub(crate) fn write(fs: &FileSystem, file: &File, offset: u64, data: &[u8]) {
    let written = fs.write(file, offset, data, WriteMode::empty());
    assert_eq!(written.expect("it is written"), data.len());
}

pub(crate) fn read(fs: &FileSystem, file: &File, range: Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = vec![0xEE; usize::try_from(range.end - range.start).expect("small")];
    let read = fs.read(file, range.start, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

pub(crate) fn set_size(fs: &FileSystem, id: InodeId, size: u64) -> Result<()> {
    let change = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    fs.set_attr(id, &change, &root()).map(drop)
}

pub(crate) fn punch(fs: &FileSystem, file: &File, range: Range<u64>) -> Result<()> {
    let mode = FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE;
    fs.allocate(file, range.start, range.end - range.start, mode)
}

pub(crate) fn extents(fs: &FileSystem, id: InodeId) -> Vec<ExtentInfo> {
    let found = fs.extents(id, 0, u64::MAX, usize::MAX);
    found.expect("it can be read")
}

/// Where on the device the block is that holds byte `offset`.
pub(crate) fn place(fs: &FileSystem, id: InodeId, offset: u64) -> Range<u64> {
    let within =
        |extent: &&ExtentInfo| (extent.logical..extent.logical + extent.length).contains(&offset);
    let found = extents(fs, id);
    let extent = found.iter().find(within).expect("it has a block");
    let start = extent.physical + (offset - extent.logical) / BLOCK * BLOCK;
    start..start + BLOCK
}

/// What a power cut leaves now, opened: all that was written to the device.
fn after_power_cut(device: &TestDevice) -> FileSystem {
    open(&Arc::new(TestDevice::new(device.memory().fork())))
}

/// Takes every block that is left.
fn fill(fs: &FileSystem) {
    let file = fs.open(create(fs, "filler"), true).expect("it opens");
    let data = vec![0xF1; 256 << 10];
    let mut offset = 0;
    loop {
        match fs.write(&file, offset, &data, WriteMode::empty()) {
            Ok(written) => offset += written as u64,
            Err(Error::NoSpace) => return,
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Takes the pages of a file out of the cache, which are clean: also those that whoever wrote them
/// has a reference to, which are spared as long as there are others.
pub(crate) fn drop_cache(fs: &FileSystem) {
    // Reclaim passes over pages that somebody has in hand: who wrote them a moment ago lets go of them soon.
    for _ in 0..500 {
        while fs.cache.shrink(u64::MAX) > 0 {}
        let usage = fs.cache.usage();
        if usage.used_bytes == 0 || usage.dirty_bytes > 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for what another thread is about to do.
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A thread that another one waits for to stand in line.
#[derive(Debug, Default)]
pub(crate) struct Comer(Mutex<Option<PathBuf>>);

impl Comer {
    /// Says that it is the calling thread, which is about to wait.
    pub(crate) fn comes(&self) {
        let thread = std::fs::read_link("/proc/thread-self").expect("it is known");
        *self.0.lock() = Some(thread);
    }

    /// Waits until it sleeps at each of several looks: there is nothing for it to wait for long but
    /// what it is meant to.
    pub(crate) fn wait_asleep(&self) {
        let sleeps = |thread: &PathBuf| {
            let status = Path::new("/proc").join(thread).join("status");
            let status = std::fs::read_to_string(status).expect("it runs");
            status.contains("\nState:\tS")
        };
        let mut looks = 0;
        wait_for("it stands in line", || {
            let is_asleep = self.0.lock().as_ref().is_some_and(sleeps);
            looks = if is_asleep { looks + 1 } else { 0 };
            looks == 5
        });
    }
}
