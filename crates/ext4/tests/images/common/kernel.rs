//! The kernel's own mount of an image, where this process may make one.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop mount, taken down when dropped.
pub(crate) struct KernelMount {
    dir: tempfile::TempDir,
}

impl KernelMount {
    /// Mounts an image; nothing if that is not to be had here, which is printed.
    pub(crate) fn new(image: &Path, options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let output = Command::new("mount")
            .args(["-t", "ext4", "-o", &format!("loop,{options}")])
            .arg(image)
            .arg(dir.path())
            .output()
            .expect("mount runs");
        if output.status.success() {
            return Some(Self { dir });
        }
        let said = String::from_utf8_lossy(&output.stderr);
        eprintln!("skipped, for there is no loop mount: {}", said.trim());
        None
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.dir.path()).status();
        assert!(
            unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(),
            "the mount stays"
        );
    }
}

/// Runs a command and returns what it printed; panics unless it succeeds.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
