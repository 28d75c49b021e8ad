//! Documents that name tests: each test that they name exists.
//!
//! A document names a test as `test: NAME` within backquotes, or several in one pair separated by
//! commas. A name is one of
//! - `path/of/file.rs::function`: that file of this repository holds the test;
//! - `crate::module::function`: a file of that crate holds it;
//! - `function`: some file holds it;
//! - `xtask chore`: that chore of `cargo xtask` exists.

use std::collections::HashMap;

use super::source::{code_only, is_word, line_of};
use super::{TextFile, Violation};

/// The documents that name tests, where they exist.
const DOCUMENTS: &[&str] = &[
    "docs/SEMANTICS.md",
    "docs/LOCKING.md",
    "docs/REQUIREMENTS.md",
    "docs/CRASH.md",
    "docs/MUTANTS.md",
    "docs/FORMAT.md",
];

const MARK: &str = "`test: ";
const MARK_OF_MANY: &str = "`tests: ";

/// Checks the documents against the sources.
pub(crate) fn check(files: &[TextFile]) -> Vec<Violation> {
    let tests = tests_by_name(files);
    let mut violations = Vec::new();
    for file in files
        .iter()
        .filter(|file| DOCUMENTS.contains(&file.path.as_str()))
    {
        for mark in [MARK, MARK_OF_MANY] {
            for (at, _) in file.text.match_indices(mark) {
                let rest = &file.text[at + mark.len()..];
                let names = rest.split('`').next().unwrap_or(rest);
                for name in names.split(',').map(str::trim) {
                    if !exists(name, &tests) {
                        violations.push(Violation::new(
                            &file.path,
                            line_of(&file.text, at),
                            format!("names a test that does not exist: {name}"),
                        ));
                    }
                }
            }
        }
    }
    violations
}

fn exists(name: &str, tests: &HashMap<String, Vec<String>>) -> bool {
    use clap::CommandFactory;

    if let Some(chore) = name.strip_prefix("xtask ") {
        let first = chore.split_whitespace().next().unwrap_or_default();
        return crate::Chore::command().find_subcommand(first).is_some();
    }
    let (place, function) = name.rsplit_once("::").unwrap_or(("", name));
    let Some(paths) = tests.get(function) else {
        return false;
    };
    if place.is_empty() {
        return true;
    }
    let first = place.split("::").next().unwrap_or(place);
    if super::arrows::has_extension(first, "rs") {
        return paths.iter().any(|path| path == first);
    }
    let folder = first
        .strip_prefix("pagefence_")
        .unwrap_or(first)
        .replace('_', "-");
    let folder = folder.strip_prefix("pagefence-").unwrap_or(&folder);
    let below = format!("crates/{folder}/");
    let xtask = format!("{folder}/");
    paths
        .iter()
        .any(|path| path.starts_with(&below) || (folder == "xtask" && path.starts_with(&xtask)))
}

/// Test functions, and the files that hold one of that name. A test is a function behind
/// `#[test]`, in `proptest!` or not.
fn tests_by_name(files: &[TextFile]) -> HashMap<String, Vec<String>> {
    let mut tests: HashMap<String, Vec<String>> = HashMap::new();
    for file in files {
        if !super::arrows::has_extension(&file.path, "rs") {
            continue;
        }
        let code = code_only(&file.text);
        for (at, attribute) in code.match_indices("#[test]") {
            let rest = &code[at + attribute.len()..];
            let Some(start) = rest.find("fn ") else {
                continue;
            };
            let name: String = rest[start + 3..]
                .trim_start()
                .bytes()
                .take_while(|&byte| is_word(byte))
                .map(char::from)
                .collect();
            tests.entry(name).or_default().push(file.path.clone());
        }
    }
    tests
}
