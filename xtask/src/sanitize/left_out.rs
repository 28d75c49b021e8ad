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
const LEFT_OUT: &[LeftOut] = &[];

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
