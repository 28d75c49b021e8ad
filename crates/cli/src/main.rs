//! The command `pagefence` on ext2, ext3 and ext4 images.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use pagefence::device::MemoryDevice;
use pagefence::{Image, Kind, MapServer, Mkfs, Options, Volume};
use pagefence_cli::{Confinement, Opened, VolumeOptions};
use pagefence_fuse_front::map_door::TICKET_BYTES;
use pagefence_fuse_front::{MapDoor, MapRights};
use pagefence_vfs::{FileSystem, InodeId};

fn main() -> ExitCode {
    pagefence_cli::run(std::env::args_os().collect(), open_volume)
}

fn open_volume(
    options: &VolumeOptions,
    confinement: &mut Confinement,
) -> anyhow::Result<Opened<impl FileSystem + use<>>> {
    let write = !options.read_only && !options.no_load;
    let mut how = Options::new().write(write).offset(options.offset);
    if let Some(bytes) = options.cache_bytes {
        how = how.cache(bytes);
    }
    if let Some(block) = options.superblock {
        how = how.superblock(block);
    }
    if let Some(seconds) = options.commit_seconds {
        how = how.commit_interval(Duration::from_secs(seconds.into()));
    }
    how = how
        .discard(options.discard)
        .access_times(!options.no_access_times);
    let volume = match options.memory_bytes {
        Some(bytes) => {
            confinement.enter()?;
            let device = Arc::new(MemoryDevice::new(bytes));
            Mkfs::new(Kind::Ext4).format_device(&*device)?;
            Volume::open_device(device, how)?
        }
        None => {
            let image = Image::open(&options.image, how)?;
            confinement.enter()?;
            image.into_volume()?
        }
    };
    for note in volume.notes() {
        tracing::warn!("{}: {note}", options.image.display());
    }
    let maps = volume
        .serve_maps()
        .inspect_err(|error| tracing::warn!(%error, "files can't be mapped by other processes"));
    Ok(Opened {
        fs: volume.file_system(),
        maps: maps
            .ok()
            .map(|maps| -> Arc<dyn MapDoor> { Arc::new(Door(maps)) }),
    })
}

/// The way to maps of a volume's files.
struct Door(MapServer);

impl MapDoor for Door {
    fn ticket(&self, inode: InodeId, rights: MapRights) -> Option<[u8; TICKET_BYTES]> {
        self.0.ticket(inode, rights.reads, rights.writes)
    }

    fn is_mapped(&self, inode: InodeId) -> bool {
        self.0.is_stored_to(inode)
    }

    fn close(&self) {
        self.0.close();
    }
}
