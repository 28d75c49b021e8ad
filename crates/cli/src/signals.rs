//! SIGINT, SIGTERM and SIGHUP unmount.

use pagefence_lock_order::primitives::thread;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::keeper::Keeper;

/// From now on the first of these signals has `keeper` unmount what this process serves: if it
/// is in use it disappears from there and the server goes on until the last user is gone. A
/// second signal ends the process at once.
///
/// # Errors
/// Signals can't be caught.
pub(crate) fn watch(keeper: Keeper) -> anyhow::Result<()> {
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
            match keeper.unmount() {
                Ok(()) => tracing::debug!(
                    "unmounted; if it is in use the server ends with the last user, or a second signal"
                ),
                Err(error) => {
                    tracing::error!(%error, "can't unmount; a second signal ends the server");
                }
            }
        }
    })?;
    Ok(())
}
