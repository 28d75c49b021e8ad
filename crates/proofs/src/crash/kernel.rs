//! The kernel recovers a journal: by a mount of the image through a loop device. Needs root.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pagefence::device::MemoryDevice;

use crate::e2fsck;

/// How long a mount, or a loop device, may be busy.
const BUSY: Duration = Duration::from_secs(5);

/// What the kernel makes of the image: mounted for writing, and unmounted.
///
/// # Errors
/// It can't be mounted, in the words of mount(8).
pub(crate) fn recover(device: &MemoryDevice) -> Result<MemoryDevice, String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (image, point) = (directory.path().join("image"), directory.path().join("mnt"));
    std::fs::create_dir(&point).map_err(|error| error.to_string())?;
    let file = e2fsck::file_of(device);
    std::fs::copy(file.path(), &image).map_err(|error| error.to_string())?;
    let options = ["-t", "ext4", "-o", "loop,noatime"].map(Path::new);
    run("mount", &[&options[..], &[&image, &point]].concat())?;
    if !until(|| run("umount", &[&point]).is_ok()) {
        // What is mounted is not deleted with the directory.
        let kept = directory.keep();
        return Err(format!("{} stays busy", kept.display()));
    }
    // It lives on in mount namespaces that were copied from ours meanwhile.
    let is_free = || {
        let output = Command::new("losetup").arg("-j").arg(&image).output();
        output.is_ok_and(|output| output.stdout.is_empty())
    };
    if !until(is_free) {
        return Err("a loop device has the image after it was unmounted".to_owned());
    }
    let bytes = std::fs::read(&image).map_err(|error| error.to_string())?;
    Ok(MemoryDevice::from_bytes(&bytes))
}

/// Tries for a while.
fn until(mut is_done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + BUSY;
    loop {
        if is_done() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}", said.trim()))
}
