//! Tests whose subject is a signal, a limit of the process, or a sanitizer's report: they run themselves in a
//! child.

use std::process::{Command, ExitStatus};

/// Names the test that a child shall run.
const VARIABLE: &str = "PAGEFENCE_TEST_IN_CHILD";

/// With what a child ends that came to the end of its test; no test harness does.
pub(crate) const DONE: i32 = 77;

/// Runs `body` in a child, a process that runs the test `name` alone, and says how the child ended.
/// `name` is that of the caller, with its modules.
pub(crate) fn in_child(name: &str, body: impl FnOnce()) -> ExitStatus {
    child(name, body).status().expect("a child")
}

/// In a child, runs `body` and ends; else gives the command that starts this child, a process that runs the
/// test `name` alone.
pub(crate) fn child(name: &str, body: impl FnOnce()) -> Command {
    if std::env::var(VARIABLE).as_deref() == Ok(name) {
        body();
        std::process::exit(DONE);
    }
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args([name, "--exact", "--nocapture"])
        .env(VARIABLE, name);
    command
}
