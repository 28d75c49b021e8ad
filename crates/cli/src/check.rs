//! `pagefence check`: tells whether an image is sound, or a mount while it is in use.

use std::fmt::{Display, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use pagefence::check::Event;
use pagefence::{Image, Options};
use pagefence_fuse_front::check::Checked;
use pagefence_vfs::{CheckEvent, CheckSummary};
use rustix::io::Errno;

use crate::confinement::Confinement;
use crate::size::parse_size;
use crate::terminal;

/// Errors are left in the file system, as e2fsck says it.
const LEFT: u8 = 4;
/// The check itself failed, as e2fsck says it.
const FAILED: u8 = 8;
/// The command line is wrong, as e2fsck says it.
pub(crate) const USAGE: u8 = 16;

const HELP: &str = "\
Prints a line for each finding, then a summary. Nothing in the image changes: one that was not
closed properly is looked at as a mount would see it, its journal replayed in memory. Files that
were deleted while open, and wait for the next mount, are no finding.

A mount is checked while it is in use, as of the moment at which the check begins: nobody waits for
it, but for one commit. That is for root, and for who serves the mount; one check at a time. It ends
if more than 256 MiB of metadata change meanwhile.

Exit status: 0 sound, 4 there are findings, 8 it can't be checked, 16 wrong usage.

Not checked: what others than pagefence have mounted; copies of the superblock and of group
descriptors; the journal of a mount, and journals on other devices; limits and free lists of quotas;
access control lists, encryption contexts and verity trees; values that Lustre keeps in inodes; the
order of hashes in directories that ignore case; names twice in different blocks of a directory of
more than 65536 names without an index; metadata on other metadata with bigalloc; after a replay,
the superblock's free counts.";

/// `pagefence check`.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct CheckArguments {
    /// The image, or a block device, that nobody has mounted; or the mount point of a mount
    #[arg(value_name = "IMAGE|MOUNTPOINT")]
    place: PathBuf,
    /// Where the file system starts in the image: bytes, or a number with K, M, G or T
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "0")]
    offset: u64,
}

/// Checks, and tells by the exit status what came of it.
pub(crate) fn run(arguments: &CheckArguments) -> ExitCode {
    let mut output = Output::new();
    let checked = match arguments.place.is_dir() {
        true if arguments.offset > 0 => {
            eprintln!("pagefence: --offset goes with an image");
            return ExitCode::from(USAGE);
        }
        true => check_mount(&arguments.place, &mut output)
            .map_err(|error| format!("{}: {error}", arguments.place.display())),
        false => check_image(arguments, &mut output),
    };
    output.bar.finish_and_clear();
    let failed = match (checked, output.failed.take()) {
        (_, Some(error)) => format!("the findings can't be written: {error}"),
        (Err(error), None) => error,
        (Ok(summary), None) => match writeln!(io::stdout(), "{}", told(&summary)) {
            Ok(()) if summary.findings == 0 && summary.is_complete => return ExitCode::SUCCESS,
            Ok(()) => return ExitCode::from(LEFT),
            Err(error) => format!("the summary can't be written: {error}"),
        },
    };
    eprintln!("pagefence: {failed}");
    ExitCode::from(FAILED)
}

/// Once the image is open, nothing else can be had, but `output`.
fn check_image(arguments: &CheckArguments, output: &mut Output) -> Result<CheckSummary, String> {
    let place = &arguments.place;
    let image = Image::open(place, Options::new().offset(arguments.offset))
        .map_err(|error| error.to_string())?;
    confine(Confinement::of_command())?;
    let checked = image.check(|event| match event {
        Event::Finding(finding) => output.find(finding),
        Event::Progress(now) => output.show(&now.stage, now.done, now.total),
        _ => ControlFlow::Continue(()),
    });
    checked
        .map(CheckSummary::from)
        .map_err(|error| format!("{}: {error}", place.display()))
}

fn confine(mut confinement: Confinement) -> Result<(), String> {
    confinement.enter().map_err(|error| format!("{error:#}"))
}

fn check_mount(mount_point: &Path, output: &mut Output) -> Result<CheckSummary, String> {
    let directory = File::open(mount_point).map_err(|error| error.to_string())?;
    confine(Confinement::of_client())?;
    let checked = pagefence_fuse_front::check::check(&directory, |event| match event {
        CheckEvent::Finding(finding) => output.find(&plain(finding)),
        CheckEvent::Progress(now) => output.show(&plain(now.stage), now.done, now.total),
    });
    match checked {
        Ok(Checked::Ended(summary)) => Ok(summary),
        Ok(Checked::Failed(why)) => Err(plain(&why)),
        Ok(Checked::LeftOff) => Err("the check was left off".to_owned()),
        Err(error) => Err(match Errno::from_io_error(&error) {
            Some(Errno::NOTTY) => "a directory, and no mount point of pagefence".to_owned(),
            Some(Errno::INVAL) => "it is not the mount point itself".to_owned(),
            Some(Errno::BUSY) => "it is being checked already".to_owned(),
            Some(Errno::PERM) => "only root and who serves the mount may check it".to_owned(),
            _ => error.to_string(),
        }),
    }
}

/// What a server says, without what a terminal would obey: it may have been taken over by what it reads.
fn plain(text: &dyn Display) -> String {
    let mut plain = String::new();
    for character in text.to_string().chars() {
        match character.is_control() {
            true => plain.extend(character.escape_default()),
            false => plain.push(character),
        }
    }
    plain
}

/// Findings go to stdout, progress to stderr if that is a terminal.
struct Output {
    bar: ProgressBar,
    stage: String,
    failed: Option<io::Error>,
}

impl Output {
    /// Before rights are given up: afterwards a terminal can be asked nothing.
    fn new() -> Self {
        let style = ProgressStyle::with_template("{msg:<18} {bar:40} {pos}/{len} {eta}");
        let bar = ProgressBar::with_draw_target(None, terminal::progress_target());
        let bar = match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        // What is asked once, whether there are colours say, is asked now.
        bar.tick();
        Self {
            bar,
            stage: String::new(),
            failed: None,
        }
    }

    fn find(&mut self, finding: &dyn Display) -> ControlFlow<()> {
        let written = self.bar.suspend(|| writeln!(io::stdout(), "{finding}"));
        if let Err(error) = written {
            self.failed = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn show(&mut self, stage: &dyn Display, done: u64, total: u64) -> ControlFlow<()> {
        let stage = stage.to_string();
        if self.stage != stage {
            self.bar.set_message(stage.clone());
            self.stage = stage;
            self.bar.reset_eta();
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        ControlFlow::Continue(())
    }
}

/// The summary, one line.
fn told(summary: &CheckSummary) -> String {
    let mut text = match summary.findings {
        0 if summary.is_complete => "sound".to_owned(),
        1 => "not sound: 1 finding".to_owned(),
        findings => format!("not sound: {findings} findings"),
    };
    if !summary.is_complete {
        text.push_str(", and the check did not come to its end");
        return text;
    }
    // Writing to a string can't fail.
    let _ = write!(
        text,
        "; {} inodes in use, {} of them directories; {} blocks in use",
        summary.inodes, summary.directories, summary.blocks
    );
    if summary.orphans > 0 {
        let _ = write!(text, "; {} deleted files to be removed", summary.orphans);
    }
    if summary.was_replayed {
        text.push_str("; its journal was replayed in memory");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn a_server_does_not_speak_to_the_terminal() {
        assert_eq!(plain(&"inode 12: name \"é\""), "inode 12: name \"é\"");
        let told = plain(&"sound\r\x1b[2J\u{9b}31m");
        assert_eq!(told, "sound\\r\\u{1b}[2J\\u{9b}31m");
    }
}
