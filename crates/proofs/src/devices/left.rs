//! What a failing device left is opened again, and held against what was durable.

use std::process::Command;
use std::sync::Arc;

use pagefence::Volume;
use pagefence::device::MemoryDevice;
use pagefence_block_io::fault_device::random::Random;

use super::Tried;
use super::session::Left;
use crate::beliefs::Shown;
use crate::crash::check::mend;
use crate::crash::history::options;
use crate::crash::names;
use crate::e2fsck;
use crate::image::Setup;

/// One image in so many is shown to e2fsck.
const E2FSCK_ONE_IN: u64 = 6;
/// One in so many loses what was not flushed, too.
const POWER_CUT_ONE_IN: u64 = 3;

/// Opens it again.
///
/// # Errors
/// What is lost, or not sound.
pub(super) fn check(setup: &Setup, left: Left, random: &mut Random) -> Result<Tried, String> {
    let mut tried = left.tried;
    let image = if random.one_in(POWER_CUT_ONE_IN) {
        tried.after_power_cut += 1;
        left.device.crash(random.next_u64())
    } else {
        left.device.live()
    };
    let beliefs = &left.beliefs;
    if left.is_closed {
        let again = Arc::new(image.fork());
        let shown = show(&again).map_err(|error| format!("opening what was closed: {error}"))?;
        beliefs
            .check_now(&shown)
            .map_err(|error| format!("it was closed, and {error}"))?;
        if random.one_in(E2FSCK_ONE_IN) {
            tried.by_e2fsck += 1;
            // An inode without names that could not be deleted is left to the next mount.
            e2fsck::check(&again).map_err(|error| format!("it was closed: {error}"))?;
        }
        return Ok(tried);
    }
    if !setup.has_journal() {
        tried.by_e2fsck += 1;
        let mended = mend(&image, &["-fy"])?;
        let shown =
            show(&Arc::new(mended)).map_err(|error| format!("what e2fsck mended: {error}"))?;
        beliefs
            .check_mended(&shown, setup.block_size.into())
            .map_err(|error| format!("mended by e2fsck: {error}"))?;
        return Ok(tried);
    }
    let recovered = Arc::new(image.fork());
    let shown = show(&recovered).map_err(|error| format!("our recovery: {error}"))?;
    beliefs
        .check_recovered(&shown)
        .map_err(|error| format!("recovered: {error}"))?;
    if random.one_in(E2FSCK_ONE_IN) {
        tried.by_e2fsck += 1;
        let sound = without_error(&recovered).and_then(|image| {
            show(&image).map_err(|error| error.to_string())?;
            e2fsck::check(&image)
        });
        sound.map_err(|error| format!("recovered: {error}"))?;
    }
    Ok(tried)
}

/// A copy that does not say that there was an error: what a volume with one leaves to e2fsck, the next
/// mount does, too. All else has to be sound.
fn without_error(device: &MemoryDevice) -> Result<Arc<MemoryDevice>, String> {
    let file = e2fsck::file_of(device);
    let output = Command::new("debugfs")
        .args(["-w", "-R", "set_super_value state 1"])
        .arg(file.path())
        .output()
        .map_err(|error| format!("debugfs: {error}"))?;
    if !output.status.success() {
        return Err(format!("debugfs: {output:?}"));
    }
    let bytes = std::fs::read(file.path()).map_err(|error| error.to_string())?;
    Ok(Arc::new(MemoryDevice::from_bytes(&bytes)))
}

/// Opens the volume, which recovers it, looks at everything, and closes it.
fn show(device: &Arc<MemoryDevice>) -> Result<Shown, pagefence::Error> {
    let volume = Volume::open_device(Arc::clone(device) as _, options())?;
    let shown = names::of_volume(&volume)?;
    volume.close()?;
    Ok(shown)
}
