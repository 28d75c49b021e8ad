//! The library: paths, walks, files, many threads.

mod files;
mod paths;
mod threads;
mod walks;

use pagefence::{Options, Volume};

/// A volume in memory, as made.
fn volume(mkfs: pagefence::Mkfs) -> Volume {
    let device = pagefence::device::MemoryDevice::new(8 << 20);
    mkfs.format_device(&device).expect("it is made");
    Volume::open_device(std::sync::Arc::new(device), Options::new().cache(0)).expect("it opens")
}
