//! The first words of a connection, on the daemon's side.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::source::poll_in;
use super::wire::Found;
use super::{Open, Opened, Wire};

impl Wire {
    /// What the client at the other end wants, if it says so before `most` is over.
    ///
    /// # Errors
    /// `TimedOut`; `NotConnected` if it has gone; `InvalidData` if it is no client.
    pub fn greeting(&self, most: Duration) -> io::Result<Open> {
        let deadline = Instant::now() + most;
        loop {
            match self.receive(false)? {
                Found::Packet(open, _) => return Ok(open),
                Found::Over => return Err(io::ErrorKind::NotConnected.into()),
                Found::Nothing => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            poll_in(&[self.as_fd()], Some(left))?;
        }
    }

    /// Tells the client that it gets no map, and why.
    pub fn refuse(&self, why: Errno) {
        let errno = why.raw_os_error();
        // It may have gone.
        let _ = self.send(&Opened::Refused { errno }, None, false);
    }
}
