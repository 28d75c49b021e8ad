//! The arrows between crates: nothing imports against them.

use super::source::{code_only, find_words, is_word, line_of};
use super::{TextFile, Violation};

/// Every allowed edge, written once: a folder of `crates/`, and the folders it may import.
const ARROWS: &[(&str, &[&str])] = &[
    ("lock-order", &[]),
    ("vfs", &[]),
    ("posix-acl", &[]),
    ("ext4-format", &["posix-acl"]),
    ("host-memory", &["lock-order"]),
    ("block-io", &["lock-order"]),
    ("page-cache", &["host-memory", "lock-order"]),
    ("jbd2", &["block-io", "ext4-format", "lock-order"]),
    (
        "ext4",
        &[
            "vfs",
            "page-cache",
            "jbd2",
            "block-io",
            "ext4-format",
            "lock-order",
        ],
    ),
    ("memfs", &["vfs", "page-cache", "posix-acl", "lock-order"]),
    ("fuse-front", &["vfs", "host-memory", "lock-order"]),
    ("page-mmap", &["page-cache", "host-memory", "lock-order"]),
    (
        "pagefence",
        &["ext4", "page-mmap", "block-io", "vfs", "lock-order"],
    ),
    (
        "cli",
        &["pagefence", "memfs", "fuse-front", "vfs", "lock-order"],
    ),
    // A model knows nothing of what it is a model of, but for the trait that drives it.
    (MODEL, &["vfs", "lock-order"]),
    // Trials of the library, for tests and chores.
    (
        "proofs",
        &["pagefence", "block-io", "ext4-format", MODEL, "lock-order"],
    ),
];

/// The crate of models, which the tests of every crate may import.
const MODEL: &str = "fs-model";

/// What tests of a crate may import that is not below it: they need the kernel's page faults for what
/// they test, and whoever maps pages knows nothing of file systems.
const ARROWS_OF_TESTS: &[(&str, &[&str])] = &[
    ("ext4", &["page-mmap", MODEL]),
    ("page-mmap", &[MODEL]),
    ("pagefence", &["proofs"]),
];

/// Features that leave protections out, or play the hardware: nothing but a test asks for them.
const TEST_FEATURES: [&str; 2] = ["\"mutants\"", "\"simulated\""];

fn allowed(folder: &str) -> Option<&'static [&'static str]> {
    ARROWS
        .iter()
        .find(|(from, _)| *from == folder)
        .map(|(_, to)| *to)
}

/// Whether tests of `from` may import `to`.
fn is_for_tests(from: &str, to: &str) -> bool {
    to == MODEL || is_below(from, to) || is_beside(from, to)
}

fn is_beside(from: &str, to: &str) -> bool {
    let beside = ARROWS_OF_TESTS.iter().find(|(of, _)| *of == from);
    beside.is_some_and(|(_, list)| list.contains(&to))
}

/// Whether `to` can be reached from `from` along the arrows.
fn is_below(from: &str, to: &str) -> bool {
    allowed(from).is_some_and(|next| next.iter().any(|&step| step == to || is_below(step, to)))
}

/// The folder of a package or crate name: `pagefence-block-io`, `pagefence_block_io`.
fn folder_of(name: &str) -> Option<String> {
    let name = name.replace('_', "-");
    if name == "pagefence" {
        return Some(name);
    }
    name.strip_prefix("pagefence-").map(str::to_owned)
}

/// Checks every manifest and every source file below `crates/`.
pub(crate) fn check(files: &[TextFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files {
        let mut parts = file.path.splitn(3, '/');
        let (Some("crates"), Some(folder), Some(rest)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if rest == "Cargo.toml" {
            check_manifest(folder, file, &mut violations);
        } else if rest.starts_with("src/") && has_extension(rest, "rs") {
            check_source(folder, file, &mut violations);
        }
    }
    violations
}

/// Whether the path ends in the extension.
pub(crate) fn has_extension(path: &str, extension: &str) -> bool {
    std::path::Path::new(path)
        .extension()
        .is_some_and(|found| found == extension)
}

fn check_manifest(folder: &str, file: &TextFile, violations: &mut Vec<Violation>) {
    if allowed(folder).is_none() {
        violations.push(Violation::new(
            &file.path,
            0,
            format!("crates/{folder} is not in the table of arrows"),
        ));
        return;
    }
    let mut section = "";
    for (index, line) in file.text.lines().enumerate() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
            continue;
        }
        let is_test_only = section.ends_with("dev-dependencies");
        let of_tests = TEST_FEATURES.iter().find(|name| line.contains(**name));
        if let Some(name) = of_tests.filter(|_| !is_test_only) {
            violations.push(Violation::new(
                &file.path,
                index + 1,
                format!("the feature {name} is for tests"),
            ));
        }
        let key = line
            .split(|character: char| {
                !(character.is_ascii_alphanumeric() || "-_".contains(character))
            })
            .next()
            .unwrap_or_default();
        let Some(to) = folder_of(key) else { continue };
        let is_dependency = section.ends_with("dependencies");
        let is_allowed = to == folder
            || allowed(folder).is_some_and(|list| list.contains(&to.as_str()))
            || (is_test_only && is_for_tests(folder, &to));
        if is_dependency && !is_allowed {
            violations.push(Violation::new(
                &file.path,
                index + 1,
                format!("{folder} must not depend on {to}"),
            ));
        }
    }
}

fn check_source(folder: &str, file: &TextFile, violations: &mut Vec<Violation>) {
    let code = code_only(&file.text);
    for (at, _) in code.match_indices("pagefence") {
        let bytes = code.as_bytes();
        if at > 0 && is_word(bytes[at - 1]) {
            continue;
        }
        let length = bytes[at..]
            .iter()
            .take_while(|&&byte| is_word(byte))
            .count();
        // A crate is named where a path goes on from it, or where it is imported whole.
        let name = &code[at..at + length];
        let names_crate = code[at + length..].starts_with("::")
            || find_words(&code[..at], "use")
                .last()
                .is_some_and(|&import| code[import + 3..at].trim().is_empty());
        let Some(to) = folder_of(name).filter(|_| names_crate) else {
            continue;
        };
        // What only tests depend on, the compiler keeps out of the rest.
        let is_allowed = to == folder || is_below(folder, &to) || is_beside(folder, &to);
        if allowed(&to).is_some() && !is_allowed {
            violations.push(Violation::new(
                &file.path,
                line_of(&code, at),
                format!("{folder} must not import {to}"),
            ));
        }
    }
}
