//! The terminal that progress is drawn on, by a command that may ask it nothing any more: what it is, and how
//! wide, is known from before. What is written to it are bytes.

use std::io::{self, IsTerminal as _, Write as _};

use indicatif::{ProgressDrawTarget, TermLike};

/// Draws a second.
const REFRESH_HZ: u8 = 20;
/// Of a terminal that does not say how wide it is.
const COLUMNS: u16 = 80;
const ROWS: u16 = 24;

/// Standard error, a terminal.
#[derive(Debug)]
struct Terminal {
    columns: u16,
    rows: u16,
}

/// Where progress goes: to standard error if that is a terminal that understands more than lines, or nowhere.
pub(crate) fn progress_target() -> ProgressDrawTarget {
    let stderr = io::stderr();
    let is_plain = std::env::var_os("TERM").is_none_or(|kind| kind == "dumb");
    if is_plain || !stderr.is_terminal() {
        return ProgressDrawTarget::hidden();
    }
    let size = rustix::termios::tcgetwinsize(&stderr).ok();
    let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
    let terminal = Terminal {
        columns: size.map_or(COLUMNS, |size| size.ws_col),
        rows: size.map_or(ROWS, |size| size.ws_row),
    };
    ProgressDrawTarget::term_like_with_hz(Box::new(terminal), REFRESH_HZ)
}

/// Moves the cursor `count` times, as `letter` says.
fn move_cursor(count: usize, letter: char) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    write!(io::stderr(), "\x1b[{count}{letter}")
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        self.columns
    }

    fn height(&self) -> u16 {
        self.rows
    }

    fn move_cursor_up(&self, count: usize) -> io::Result<()> {
        move_cursor(count, 'A')
    }

    fn move_cursor_down(&self, count: usize) -> io::Result<()> {
        move_cursor(count, 'B')
    }

    fn move_cursor_right(&self, count: usize) -> io::Result<()> {
        move_cursor(count, 'C')
    }

    fn move_cursor_left(&self, count: usize) -> io::Result<()> {
        move_cursor(count, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        writeln!(io::stderr(), "{text}")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        write!(io::stderr(), "{text}")
    }

    fn clear_line(&self) -> io::Result<()> {
        write!(io::stderr(), "\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        io::stderr().flush()
    }
}
