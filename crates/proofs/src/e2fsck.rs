//! e2fsck, whose output is read: a wrong count is only told there, and exits 0.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use pagefence::device::{Device as _, MemoryDevice};

/// Bytes that are copied, or left a hole, together.
const STEP: usize = 64 << 10;

/// Whether there is one.
#[must_use]
pub fn is_there() -> bool {
    Command::new("e2fsck").arg("-V").output().is_ok()
}

/// A file with what is on the device.
pub fn file_of(device: &MemoryDevice) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let size = device.size();
    let zeros = vec![0; STEP];
    let mut bytes = vec![0; STEP];
    for offset in (0..size).step_by(STEP) {
        let count = STEP.min((size - offset) as usize);
        device.read(offset, &mut bytes[..count]).expect("in range");
        if bytes[..count] != zeros[..count] {
            file.seek(SeekFrom::Start(offset)).expect("a place");
            file.write_all(&bytes[..count]).expect("it is written");
        }
    }
    file.as_file().set_len(size).expect("its length");
    file
}

/// What `e2fsck -fn` has to say about the device: nothing if it is sound.
pub fn check(device: &MemoryDevice) -> Result<(), String> {
    check_file(file_of(device).path())
}

/// As [`check`], of a file.
pub fn check_file(path: &Path) -> Result<(), String> {
    run(path, Duration::from_secs(60)).map_or_else(Err, judged)
}

/// As [`check`], of a device that is damaged in any way: nothing if e2fsck dies of that, or takes longer
/// than a case may.
pub fn check_to_its_end(device: &MemoryDevice) -> Option<Result<(), String>> {
    let output = run(file_of(device).path(), Duration::from_secs(15)).ok()?;
    // 1 to 128 by the bits of its own; `timeout` says 124.
    let ended = output.status.code().is_some_and(|code| code != 124);
    ended.then(|| judged(output))
}

fn run(path: &Path, limit: Duration) -> Result<Output, String> {
    let mut command = Command::new("timeout");
    command.arg(limit.as_secs().to_string());
    command.args(["e2fsck", "-fn"]).arg(path);
    let output = command.env("LC_ALL", "C").output();
    output.map_err(|error| format!("e2fsck: {error}"))
}

fn judged(output: Output) -> Result<(), String> {
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let printed = said(&output.stdout) + &said(&output.stderr);
    let complaints: Vec<&str> = complaints(&printed).collect();
    if output.status.success() && complaints.is_empty() {
        return Ok(());
    }
    let (status, complaints) = (output.status, complaints.join("\n"));
    Err(format!("e2fsck -fn, {status}:\n{complaints}"))
}

/// Whether the line only says that the map of a file that shrank could take less space. The
/// kernel's files get that, too.
fn is_advice(line: &str) -> bool {
    line.contains(" extent tree (at level ")
        && (line.ends_with(" could be shorter.  Optimize? no")
            || line.ends_with(" could be narrower.  Optimize? no"))
}

/// Every line but the headings of passes, the usage and advice.
fn complaints(printed: &str) -> impl Iterator<Item = &str> {
    // It begins with the name of the image, or its label.
    let is_usage = |line: &str| {
        line.contains(" files (")
            && line.contains("% non-contiguous), ")
            && line.ends_with(" blocks")
    };
    printed.lines().map(str::trim).filter(move |line| {
        let is_heading = line.starts_with("Pass ")
            || line.starts_with("e2fsck 1.")
            || line.starts_with("MMP interval is ");
        !line.is_empty() && !is_heading && !is_usage(line) && !is_advice(line)
    })
}

#[test]
fn a_wrong_count_is_a_complaint() {
    let printed = "Pass 5: Checking group summary information\n\
        Free blocks count wrong (1, counted=2).\nFix? no\n\n\
        a.img: 1/2 files (0.0% non-contiguous), 3/4 blocks\n";
    assert_eq!(complaints(printed).count(), 2);
    assert_eq!(complaints(&printed[..43]).count(), 0);
}
