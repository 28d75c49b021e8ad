//! The program, run as a user runs it in a directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory, and the program in it.
pub(crate) struct Bench(tempfile::TempDir);

impl Bench {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory can be made"))
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pagefence"));
        command
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .env("TMPDIR", self.0.path())
            .env_remove("SOURCE_DATE_EPOCH");
        command
    }

    pub(crate) fn run(&self, line: &str) -> String {
        let output = self.command(line).output().expect("the program can be run");
        assert!(output.status.success(), "{line}: {}", said(&output));
        String::from_utf8(output.stdout).expect("it prints text")
    }

    /// Runs what must fail, and returns what it says.
    pub(crate) fn fail(&self, line: &str) -> String {
        let output = self.command(line).output().expect("the program can be run");
        assert_eq!(output.status.code(), Some(1), "{line}");
        said(&output)
    }
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether this machine can mount; says so if not.
pub(crate) fn can_mount() -> bool {
    let can = Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root();
    if !can {
        eprintln!("skipped: this test mounts, which needs root and /dev/fuse");
    }
    can
}
