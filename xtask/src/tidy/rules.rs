//! The rules that one file keeps or breaks by itself.

use super::arrows::has_extension;
use super::source::{code_only, find_words, line_of};
use super::{TextFile, Violation};

/// Longest file, in lines.
const MAX_LINES: usize = 600;

/// The one file that names locks, atomics and threads.
const PRIMITIVES: &str = "crates/lock-order/src/primitives.rs";

/// The one crate with unsafe code.
const UNSAFE_CRATE: &str = "crates/host-memory/";

/// Tests of what programs do that go by pointers into maps: nothing safe can.
const UNSAFE_TESTS: [&str; 3] = [
    "crates/pagefence/tests/maps/pointers.rs",
    "crates/pagefence/tests/maps/children.rs",
    "crates/cli/tests/maps/pointers.rs",
];

/// Programs as users write them, with the threads that they have.
const EXAMPLES: &str = "crates/pagefence/examples/";

/// Words of work left undone; taken apart, so that this file does not hold them.
const UNDONE: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

/// Code of work left undone, or of a test that does not run.
const UNDONE_CODE: &[&str] = &[
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
    concat!("#[ig", "nore"),
];

/// First components of absolute paths that exist on one machine alone.
const PRIVATE_PATHS: &[&str] = &["Users", "tmp", "work", "workspace"];

/// What `std::sync` has and only the primitives may name.
const SYNC: &[&str] = &[
    "atomic", "Mutex", "RwLock", "Condvar", "Barrier", "Once", "OnceLock", "LazyLock", "mpsc",
];

/// What `std::thread` has and only the primitives may name.
const THREAD: &[&str] = &[
    "spawn",
    "scope",
    "Builder",
    "JoinHandle",
    "park",
    "yield_now",
];

/// Checks one file.
pub(crate) fn check(file: &TextFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    if has_extension(&file.path, "rs") {
        check_source(file, &mut violations);
    }
    let is_text = ["rs", "md", "toml", "sh"]
        .iter()
        .any(|extension| has_extension(&file.path, extension))
        || file.path.starts_with(".ci/");
    if is_text {
        check_text(file, &mut violations);
    }
    violations
}

fn check_text(file: &TextFile, violations: &mut Vec<Violation>) {
    for word in UNDONE {
        for at in find_words(&file.text, word) {
            let line = line_of(&file.text, at);
            violations.push(Violation::new(&file.path, line, format!("{word} is left")));
        }
    }
    for first in PRIVATE_PATHS {
        let path = format!("/{first}/");
        for (at, _) in file.text.match_indices(&path) {
            let starts_path = file.text[..at]
                .chars()
                .next_back()
                .is_none_or(|before| before.is_whitespace() || "\"'`(=:[<".contains(before));
            if starts_path {
                violations.push(Violation::new(
                    &file.path,
                    line_of(&file.text, at),
                    format!("{path} is a path of one machine"),
                ));
            }
        }
    }
}

fn check_source(file: &TextFile, violations: &mut Vec<Violation>) {
    let path = file.path.as_str();
    if !file.text.starts_with("//!") {
        violations.push(Violation::new(path, 1, "does not open with //!"));
    }
    let lines = file.text.lines().count();
    if lines > MAX_LINES {
        violations.push(Violation::new(
            path,
            lines,
            format!("{lines} lines; {MAX_LINES} are allowed"),
        ));
    }
    let code = code_only(&file.text);
    for pattern in UNDONE_CODE {
        for (at, _) in code.match_indices(pattern) {
            violations.push(Violation::new(
                path,
                line_of(&code, at),
                format!("{pattern} is left"),
            ));
        }
    }
    if !path.starts_with(UNSAFE_CRATE) && !UNSAFE_TESTS.contains(&path) {
        for at in find_words(&code, "unsafe") {
            violations.push(Violation::new(
                path,
                line_of(&code, at),
                "unsafe outside host-memory",
            ));
        }
    }
    if path != PRIMITIVES && !path.starts_with(EXAMPLES) {
        check_primitives(path, &code, violations);
    }
}

fn check_primitives(path: &str, code: &str, violations: &mut Vec<Violation>) {
    let mut report = |at: usize, what: &str| {
        violations.push(Violation::new(
            path,
            line_of(code, at),
            format!("{what} comes from pagefence_lock_order::primitives"),
        ));
    };
    for at in find_words(code, "parking_lot") {
        report(at, "a lock");
    }
    for (module, forbidden) in [("std::sync", SYNC), ("std::thread", THREAD)] {
        for at in find_words(code, module) {
            let rest = &code[at + module.len()..];
            let Some(path) = rest.strip_prefix("::") else {
                // The module itself is imported: anything may follow from it.
                report(at, module);
                continue;
            };
            let named = if path.starts_with('{') {
                path.split(';').next().unwrap_or(path)
            } else {
                path.split(|character: char| !(character.is_alphanumeric() || character == '_'))
                    .next()
                    .unwrap_or(path)
            };
            for item in forbidden {
                if !find_words(named, item).is_empty() {
                    report(at, &format!("{module}::{item}"));
                }
            }
        }
    }
}
