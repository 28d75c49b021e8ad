//! File systems that are full, or about to be: what was taken stays, whatever has to be written for it;
//! what is given up can be had again; and every count is exact.

mod full;
mod short;

use pagefence::device::MemoryDevice;
use pagefence::{Usage, Volume};
use pagefence_lock_order::primitives::Arc;

use crate::beliefs::Shown;
use crate::crash::history::options;
use crate::crash::names;

pub use full::prove_full;
pub use short::prove_short;

/// Opens the volume.
fn open(device: &Arc<MemoryDevice>) -> Result<Volume, String> {
    let device = Arc::clone(device) as _;
    Volume::open_device(device, options()).map_err(|error| format!("opening: {error}"))
}

/// What it shows when it is opened again.
fn show(device: &Arc<MemoryDevice>) -> Result<Shown, String> {
    let volume = open(device)?;
    let shown = names::of_volume(&volume).map_err(text)?;
    volume.close().map_err(text)?;
    Ok(shown)
}

fn text(error: pagefence::Error) -> String {
    error.to_string()
}

/// What is free, and how much of what is not the root directory has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Free {
    bytes: u64,
    inodes: u64,
    root_bytes: u64,
}

impl Free {
    fn of(volume: &Volume) -> Result<Self, String> {
        let Usage {
            free, inodes_free, ..
        } = volume.usage().map_err(text)?;
        let root = volume.metadata("").map_err(text)?;
        Ok(Self {
            bytes: free,
            inodes: inodes_free,
            root_bytes: root.blocks() * 512,
        })
    }

    /// Whether all is back that was free in the beginning, but for what the root has grown by.
    fn is_back(self, empty: Self) -> Result<(), String> {
        let all = |free: Self| free.bytes + free.root_bytes;
        if all(self) == all(empty) && self.inodes == empty.inodes {
            return Ok(());
        }
        Err(format!(
            "{empty:?} when it was empty, {self:?} with all removed"
        ))
    }
}

/// Removes everything but `lost+found`.
fn remove_all(volume: &Volume) -> Result<(), String> {
    let mut names = Vec::new();
    for entry in volume.read_dir("").map_err(text)? {
        let entry = entry.map_err(text)?;
        let metadata = entry.metadata().map_err(text)?;
        names.push((entry.path().to_path_buf(), metadata.is_dir()));
    }
    for (path, is_dir) in names {
        if path.ends_with("lost+found") {
            continue;
        }
        let removed = if is_dir {
            volume.remove_dir_all(&path)
        } else {
            volume.remove_file(&path)
        };
        removed.map_err(|error| format!("it can't be removed: {error}"))?;
    }
    volume.sync().map_err(text)
}

/// Writes until not a byte more is taken; how much was.
fn fill(volume: &Volume, path: &str) -> Result<u64, String> {
    const PIECE: usize = 64 << 10;
    let file = volume.create(path).map_err(text)?;
    let (mut size, mut most) = (0, PIECE);
    loop {
        let data = pagefence_fs_model::files::contents(FILLER_TAG, size, most);
        match file.write_at(size, &data) {
            Ok(written) => size += written as u64,
            Err(error) if error.kind() != std::io::ErrorKind::StorageFull => {
                return Err(text(error));
            }
            Err(_) if most > 1 => most /= 2,
            Err(_) => return Ok(size),
        }
    }
}

/// Of no workload's writes.
const FILLER_TAG: u64 = 1 << 40;
