//! Tests that can't run under a sanitizer, each with its reason.

use super::Sanitizer;

/// Tests of a package that are left out.
pub(crate) struct LeftOut {
    package: &'static str,
    /// The whole name, or the beginning of several with `*` behind it.
    tests: &'static str,
    /// `None` for each of them.
    sanitizer: Option<Sanitizer>,
    reason: &'static str,
}

/// All of them.
const LEFT_OUT: &[LeftOut] = &[
    LeftOut {
        package: "host-memory",
        tests: "userfault::tests::poison::a_waiting_thread_meets_the_poison",
        sanitizer: Some(Sanitizer::Thread),
        reason: SIGNAL_IN_ATOMIC,
    },
    LeftOut {
        package: "host-memory",
        tests: "userfault::tests::poison::poison_takes_the_place_of_a_protected_page_and_of_its_mark",
        sanitizer: Some(Sanitizer::Thread),
        reason: SIGNAL_IN_ATOMIC,
    },
];

/// The sanitizer stores in place of the program, under a lock of its own, which the handler of the signal
/// that the kernel answers with wants too.
const SIGNAL_IN_ATOMIC: &str =
    "it dies of SIGBUS in an ordered store, where the sanitizer waits for itself";

/// Why `test` of `package` is left out, if it is.
pub(crate) fn reason(package: &str, test: &str, sanitizer: Sanitizer) -> Option<&'static str> {
    let is_meant = |one: &&LeftOut| {
        one.package == package
            && one.sanitizer.is_none_or(|one| one == sanitizer)
            && match one.tests.strip_suffix('*') {
                Some(beginning) => test.starts_with(beginning),
                None => test == one.tests,
            }
    };
    LEFT_OUT.iter().find(is_meant).map(|one| one.reason)
}
