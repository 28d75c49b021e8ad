//! SIGINT, SIGTERM and SIGHUP unmount.

use std::path::PathBuf;

use pagefence_fuse_front::{UnmountError, unmount};
use pagefence_lock_order::primitives::thread;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::mountinfo;

/// From now on the first of these signals unmounts what this process serves at `mountpoint`: if it
/// is in use it disappears from there and the server goes on until the last user is gone. A
/// second signal ends the process at once.
///
/// # Errors
/// Signals can't be caught, or the table of mounts can't be read.
pub(crate) fn watch(mountpoint: PathBuf) -> anyhow::Result<()> {
    let device = mountinfo::on_top(&mountpoint)?.map(|mount| mount.device);
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn("pagefence-signals", move || {
        let mut asked = false;
        for signal in signals.forever() {
            if asked {
                tracing::warn!("a second signal: the server ends, with the file system in use");
                std::process::exit(1);
            }
            asked = true;
            tracing::debug!(signal, "unmounting");
            // Not what someone else has mounted there since.
            let on_top = mountinfo::on_top(&mountpoint).ok().flatten();
            if on_top.map(|mount| mount.device) != device {
                tracing::warn!("it is not on top at the mount point any more; signal again to end");
                continue;
            }
            match unmount(&mountpoint, false) {
                Err(UnmountError::Busy) => {
                    tracing::warn!(
                        "in use: the server ends with the last user, or a second signal"
                    );
                    if let Err(error) = unmount(&mountpoint, true) {
                        tracing::error!(%error, "can't unmount");
                    }
                }
                Err(error) => tracing::error!(%error, "can't unmount"),
                Ok(()) => {}
            }
        }
    })?;
    Ok(())
}
