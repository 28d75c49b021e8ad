//! What the tests share: mounts in both modes, and programs run as somebody else.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pagefence_fuse_front::ServeOptions;

use crate::common::{Mounted, mount_with};
use crate::memory_fs::MemoryFs;

/// Runs `test` on a mount that writes through, and on one with the writeback cache; the flag says
/// whether it is that one.
pub(crate) fn in_both_modes(test: impl Fn(&Mounted, bool)) {
    for writeback in [false, true] {
        let options = ServeOptions {
            posix_acl: true,
            writeback,
            ..ServeOptions::default()
        };
        let Some(mounted) = mount_with(MemoryFs::new(), &options, |_| {}) else {
            return;
        };
        test(&mounted, writeback);
    }
}

/// Runs a line of shell in the mount as user and group 65534; whether it succeeded and what it
/// printed. `None`, with a word, if programs can't be run as somebody else here.
pub(crate) fn as_nobody(directory: &Path, line: &str) -> Option<(bool, String)> {
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .args(["sh", "-c", line])
        .current_dir(directory)
        .output();
    match output {
        Ok(output) => Some((
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )),
        Err(error) => {
            eprintln!("skipped in part: setpriv can't be run: {error}");
            None
        }
    }
}

/// Runs a line of shell in the mount; whether it succeeded.
pub(crate) fn shell(directory: &Path, line: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(directory);
    command.status().expect("there is a shell").success()
}

/// Calls an ioctl on `path` from perl, which safe code can't, with `bytes` as its argument; what
/// they became (perl makes them at least 256), or the error number. `None`, with a word, if there is no perl.
pub(crate) fn ioctl(path: &Path, number: u32, bytes: &[u8]) -> Option<Result<Vec<u8>, i32>> {
    let script = r"
        open(my $file, '<', $ARGV[0]) or opendir($file, $ARGV[0]) or die;
        my $bytes = pack('H*', $ARGV[2]);
        if (!ioctl($file, $ARGV[1] + 0, $bytes)) { print 'e', $! + 0; exit 0 }
        print 'b', unpack('H*', $bytes);";
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let output = Command::new("perl")
        .args(["-e", script])
        .arg(path)
        .args([number.to_string(), hex])
        .output();
    let Ok(output) = output else {
        eprintln!("skipped in part: there is no perl to call ioctls");
        return None;
    };
    let text = String::from_utf8(output.stdout).expect("digits");
    let (kind, rest) = text.split_at(1);
    if kind == "e" {
        return Some(Err(rest.parse().expect("a number")));
    }
    let pairs = rest.as_bytes().chunks(2);
    let answer = pairs.take(bytes.len()).map(|pair| {
        let pair = std::str::from_utf8(pair).expect("digits");
        u8::from_str_radix(pair, 16).expect("digits")
    });
    Some(Ok(answer.collect()))
}

/// Has the kernel drop entries and inodes that nobody uses.
pub(crate) fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "2").expect("root may drop caches");
}

/// Waits until `done`, at most a minute, having the kernel drop its caches meanwhile.
pub(crate) fn dropping_caches_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        drop_caches();
        std::thread::sleep(Duration::from_millis(50));
    }
}
