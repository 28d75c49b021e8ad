//! Where the server's log goes, a line an event.
//!
//! To the file of `log=FILE`; else, in the foreground, to stderr; else to syslog, if there is a
//! socket /dev/log; else nowhere. Never to the stderr of who mounted: a shell that waits for the
//! end of `$(pagefence mount …)` would wait for the server. What is logged is chosen by the
//! environment variable `PAGEFENCE_LOG` (a filter like `debug` or `pagefence_ext4=trace`), else
//! warnings and errors; with `-d` everything.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging, and has panics logged.
///
/// # Errors
/// The file can't be opened.
pub(crate) fn start(file: Option<&Path>, foreground: bool, debug: bool) -> anyhow::Result<()> {
    let filter = || {
        let usual = EnvFilter::new(if debug { "debug" } else { "warn" });
        EnvFilter::try_from_env("PAGEFENCE_LOG").unwrap_or(usual)
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_ansi(false);
    let started = if let Some(path) = file {
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("the log {} can't be opened", path.display()))?;
        builder
            .with_writer(pagefence_lock_order::primitives::Arc::new(file))
            .try_init()
    } else if foreground {
        builder.with_writer(io::stderr).try_init()
    } else if let Some(syslog) = Syslog::connect(Path::new(SYSLOG)) {
        // syslog has times and levels of its own.
        builder
            .without_time()
            .with_level(false)
            .with_writer(syslog)
            .try_init()
    } else {
        return Ok(());
    };
    if let Err(error) = started {
        anyhow::bail!("logging can't be started: {error}");
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(())
}

/// Where the system's log listens.
const SYSLOG: &str = "/dev/log";

/// The system's log. It is connected once, before the server gives up the right to: one that comes to listen
/// at another socket later hears nothing.
pub(crate) struct Syslog(UnixDatagram);

impl Syslog {
    /// A connection to who listens at `path`.
    pub(crate) fn connect(path: &Path) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(path).ok()?;
        // A log that is not read must not hold up the file system.
        socket.set_nonblocking(true).ok()?;
        Some(Self(socket))
    }
}

/// One event for syslog, with the priority of its level.
pub(crate) struct SyslogLine<'a> {
    socket: &'a UnixDatagram,
    priority: u8,
}

impl Write for SyslogLine<'_> {
    /// The formatter hands over a whole event at once.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut line =
            format!("<{}>pagefence[{}]: ", self.priority, std::process::id()).into_bytes();
        line.extend_from_slice(event.trim_ascii_end());
        // Lost if syslog is full or gone: there is nowhere to say so.
        let _lost = self.socket.send(&line).is_err();
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Facility "daemon", and syslog's number of a level.
fn priority(level: tracing::Level) -> u8 {
    const DAEMON: u8 = 3 << 3;
    DAEMON
        | match level {
            tracing::Level::ERROR => 3,
            tracing::Level::WARN => 4,
            tracing::Level::INFO => 6,
            _ => 7,
        }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = SyslogLine<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        SyslogLine {
            socket: &self.0,
            priority: priority(tracing::Level::INFO),
        }
    }

    fn make_writer_for(&'a self, event: &tracing::Metadata<'_>) -> Self::Writer {
        SyslogLine {
            socket: &self.0,
            priority: priority(*event.level()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_datagram_with_its_priority() {
        let (here, there) = UnixDatagram::pair().expect("sockets can be made");
        let syslog = Syslog(here);
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_level(false)
            .with_ansi(false)
            .with_writer(syslog)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(inode = 12, "damaged");
            tracing::warn!("odd");
        });
        let mut buffer = [0; 500];
        let mut next = || {
            let length = there.recv(&mut buffer).expect("a datagram");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        let first = next();
        let head = format!("<27>pagefence[{}]: ", std::process::id());
        assert!(first.starts_with(&head), "{first}");
        assert!(
            first.contains("damaged inode=12") && !first.ends_with('\n'),
            "{first}"
        );
        assert!(next().starts_with("<28>"));
    }
}
