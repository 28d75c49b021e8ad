//! Tests that can't run under a sanitizer, each with its reason.

use super::Sanitizer;
use super::programs::Program;

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
    LeftOut {
        package: "memfs",
        tests: "memory_is_taken_as_it_is_used_and_given_back",
        sanitizer: Some(Sanitizer::Thread),
        reason: "it measures the process's memory, of which the sanitizer takes some for each page",
    },
    LeftOut {
        package: "cli",
        tests: "confinement::tests::*",
        sanitizer: None,
        reason: CONFINED,
    },
    LeftOut {
        package: "cli",
        tests: "every_thread_of_a_server_is_confined_and_serves",
        sanitizer: None,
        reason: CONFINED,
    },
    LeftOut {
        package: "cli",
        tests: "what_is_in_memory_is_served_by_confined_threads",
        sanitizer: None,
        reason: CONFINED,
    },
    LeftOut {
        package: "cli",
        tests: "who_serves_in_the_foreground_is_confined",
        sanitizer: None,
        reason: CONFINED,
    },
    LeftOut {
        package: "cli",
        tests: "who_looks_at_an_image_is_confined",
        sanitizer: None,
        reason: CONFINED,
    },
    LeftOut {
        package: "cli",
        tests: "who_checks_a_mount_is_confined",
        sanitizer: None,
        reason: CONFINED,
    },
    LeftOut {
        package: "cli",
        tests: "who_changes_an_image_is_confined",
        sanitizer: None,
        reason: CONFINED,
    },
    LeftOut {
        package: "cli",
        tests: "who_shows_an_image_without_a_mount_is_confined",
        sanitizer: None,
        reason: CONFINED,
    },
    LeftOut {
        package: "cli",
        tests: "a_block_device_is_served_and_told_what_is_free",
        sanitizer: None,
        reason: CONFINED,
    },
];

/// The sanitizer stores in place of the program, under a lock of its own, which the handler of the signal
/// that the kernel answers with wants too.
const SIGNAL_IN_ATOMIC: &str =
    "it dies of SIGBUS in an ordered store, where the sanitizer waits for itself";

/// Builds for a sanitizer confine nothing.
const CONFINED: &str = "a process that is confined can neither write a report nor start what names the functions in it";

/// Programs whose tests start servers, and read what they print to its end.
const SERVERS: &str = "cli, test ";

const SERVERS_HANG: &str = "a server of its own starts what names functions for the suppressions, which \
    keeps its output open; fuse-front's tests have servers of the same threads";

impl LeftOut {
    fn is_of(&self, package: &str, sanitizer: Sanitizer) -> bool {
        self.package == package && self.sanitizer.is_none_or(|one| one == sanitizer)
    }

    fn is_meant(&self, test: &str) -> bool {
        match self.tests.strip_suffix('*') {
            Some(beginning) => test.starts_with(beginning),
            None => test == self.tests,
        }
    }
}

/// Why `test` of `program` is left out, if it is.
pub(crate) fn reason(program: &Program, test: &str, sanitizer: Sanitizer) -> Option<&'static str> {
    if sanitizer == Sanitizer::Thread && program.name.starts_with(SERVERS) {
        return Some(SERVERS_HANG);
    }
    let package = &program.package;
    let mut of_package = LEFT_OUT.iter().filter(|one| one.is_of(package, sanitizer));
    of_package
        .find(|one| one.is_meant(test))
        .map(|one| one.reason)
}

/// What is listed for `package`, of which these tests were left out, and left out none of them.
pub(crate) fn unused(
    package: &str,
    left_out: &[String],
    sanitizer: Sanitizer,
) -> Vec<&'static str> {
    let of_package = LEFT_OUT.iter().filter(|one| one.is_of(package, sanitizer));
    of_package
        .filter(|one| !left_out.iter().any(|test| one.is_meant(test)))
        .map(|one| one.tests)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_left_out_where_it_is_meant() {
        let one = LeftOut {
            package: "cli",
            tests: "confinement::*",
            sanitizer: Some(Sanitizer::Thread),
            reason: "",
        };
        assert!(one.is_meant("confinement::a") && !one.is_meant("a::confinement::a"));
        assert!(one.is_of("cli", Sanitizer::Thread));
        assert!(!one.is_of("cli", Sanitizer::Address) && !one.is_of("ext4", Sanitizer::Thread));
    }

    #[test]
    fn what_leaves_nothing_out_is_told() {
        let listed = |left_out: &[String]| unused("host-memory", left_out, Sanitizer::Thread);
        assert_eq!(listed(&[]).len(), 2);
        assert_eq!(listed(&[LEFT_OUT[0].tests.to_owned()]), [LEFT_OUT[1].tests]);
    }
}
