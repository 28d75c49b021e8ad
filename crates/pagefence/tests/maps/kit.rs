//! Images to map files of, and an end to what hangs.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagefence::device::{Device as _, MemoryDevice};
use pagefence::{File, Kind, Map, Mkfs, OpenOptions, Options, Volume};
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{self, thread};

use pagefence_proofs::e2fsck;

/// Extents and block maps, in blocks of a page and of less.
pub(crate) const FORMATS: [(Kind, u32); 4] = [
    (Kind::Ext4, 4096),
    (Kind::Ext4, 1024),
    (Kind::Ext3, 4096),
    (Kind::Ext3, 1024),
];

/// Longer than any test takes, however slow the machine.
const HANGS: Duration = Duration::from_secs(240);

/// An image in memory.
pub(crate) struct Image(Arc<MemoryDevice>);

impl Image {
    pub(crate) fn new((kind, block_size): (Kind, u32)) -> Self {
        Self::made(Mkfs::new(kind).block_size(block_size), 24)
    }

    pub(crate) fn made(mkfs: Mkfs, mib: u64) -> Self {
        let device = MemoryDevice::new(mib << 20);
        mkfs.format_device(&device).expect("it is made");
        Self(Arc::new(device))
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self(Arc::new(MemoryDevice::from_bytes(bytes)))
    }

    /// One that `mke2fs -t ext4` makes with `options`, and fills with what is in `tree`; none, if there is no
    /// such program.
    pub(crate) fn of_mke2fs(options: &[&str], tree: &Path) -> Option<Self> {
        Command::new("mke2fs").arg("-V").output().ok()?;
        let image = tempfile::NamedTempFile::new().expect("a file");
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4"])
            .args(options)
            .arg("-d")
            .args([tree, image.path()])
            .arg("24M")
            .output()
            .expect("it runs");
        assert!(made.status.success(), "{made:?}");
        let bytes = std::fs::read(image.path()).expect("it is there");
        Some(Self::of_bytes(&bytes))
    }

    pub(crate) fn open(&self) -> Volume {
        self.open_with(Options::new().write(true))
    }

    pub(crate) fn open_with(&self, options: Options) -> Volume {
        let device = Arc::<MemoryDevice>::clone(&self.0);
        Volume::open_device(device, options.cache(0)).expect("it opens")
    }

    /// What a power cut leaves, if the device keeps all that it was given.
    pub(crate) fn cut(&self) -> Self {
        Self::of_bytes(&self.bytes())
    }

    pub(crate) fn device(&self) -> &MemoryDevice {
        &self.0
    }

    /// Whether both have the same bytes.
    pub(crate) fn has_same_bytes(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.0.size()).expect("it is small")];
        self.0.read(0, &mut bytes).expect("it is memory");
        bytes
    }

    /// Fails if e2fsck, where there is one, has anything to say.
    pub(crate) fn check(&self) {
        if e2fsck::is_there() {
            e2fsck::check(&self.0).expect("a sound file system");
        }
    }
}

/// A file for everything, with `contents`.
pub(crate) fn file(volume: &Volume, path: impl AsRef<Path>, contents: &[u8]) -> File {
    let options = OpenOptions::new().read(true).write(true).create(true);
    let file = options.open(volume, path).expect("it opens");
    file.write_all_at(0, contents).expect("it is written");
    file
}

/// Bytes of which each tells its place.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..(len as u64).div_ceil(8))
        .flat_map(|word| ((seed << 40) | (word * 8 + 1)).to_le_bytes())
        .take(len)
        .collect()
}

/// What of a map is inside its file of `size` bytes.
pub(crate) fn loaded(map: &Map, size: u64) -> Vec<u8> {
    let len = usize::try_from(size.saturating_sub(map.offset())).expect("it is small");
    let mut bytes = vec![0; len.min(map.len())];
    map.read_at(0, &mut bytes).expect("it is inside");
    bytes
}

/// A sequence of numbers that looks random.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end.max(1)
    }
}

/// Ends the process if a test hangs: a thread that does can't be stopped.
pub(crate) struct Watchdog(primitives::Arc<AtomicBool>);

impl Watchdog {
    pub(crate) fn new(test: &'static str) -> Self {
        let over = primitives::Arc::new(AtomicBool::new(false));
        let watched = primitives::Arc::clone(&over);
        thread::spawn("watchdog", move || {
            let begin = Instant::now();
            while !watched.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                if begin.elapsed() > HANGS && !watched.load(Ordering::Relaxed) {
                    eprintln!("{test} hangs");
                    std::process::abort();
                }
            }
        })
        .expect("a thread");
        Self(over)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
