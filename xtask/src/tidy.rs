//! `cargo xtask tidy`: what the compiler can't check about the layout of the source.
//!
//! The rules: [`arrows`] between crates, [`rules`] for each source file, [`documents`] that name
//! tests, [`requirements`] that are all answered.

mod arrows;
mod documents;
mod requirements;
mod rules;
mod source;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::command::run as run_program;
use crate::mounts::workspace_root;

/// Arguments of `tidy`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The root of the tree to check; this workspace unless given.
    root: Option<PathBuf>,
}

/// A file of the tree.
#[derive(Clone, Debug)]
pub(crate) struct TextFile {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    path: String,
    /// From 1; 0 if the whole file is meant.
    line: usize,
    what: String,
}

impl Violation {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            what: what.into(),
        }
    }
}

/// Runs the chore; `true` if nothing was found.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let root = arguments.root.clone().map_or_else(workspace_root, Ok)?;
    let files = read_tree(&root)?;
    let violations = check(&files);
    for violation in &violations {
        println!("{}:{}: {}", violation.path, violation.line, violation.what);
    }
    println!(
        "tidy: files {}, violations {}",
        files.len(),
        violations.len()
    );
    Ok(violations.is_empty())
}

/// Every violation of every rule, sorted by place.
fn check(files: &[TextFile]) -> Vec<Violation> {
    let mut violations = arrows::check(files);
    for file in files {
        violations.extend(rules::check(file));
    }
    violations.extend(documents::check(files));
    violations.extend(requirements::check(files));
    violations.sort();
    violations
}

/// The text files that git tracks or would track.
fn read_tree(root: &std::path::Path) -> Result<Vec<TextFile>> {
    let listing = run_program(
        "git",
        [
            "-C".as_ref(),
            root.as_os_str(),
            "ls-files".as_ref(),
            "-z".as_ref(),
            "--cached".as_ref(),
            "--others".as_ref(),
            "--exclude-standard".as_ref(),
        ],
    )
    .context("tidy asks git for the list of files")?;
    let mut files = Vec::new();
    for path in listing.split('\0').filter(|path| !path.is_empty()) {
        let full = root.join(path);
        // A tracked file may have been deleted; a binary file has no lines to check.
        if let Ok(bytes) = std::fs::read(&full)
            && let Ok(text) = String::from_utf8(bytes)
        {
            files.push(TextFile {
                path: path.to_owned(),
                text,
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.dedup_by(|a, b| a.path == b.path);
    Ok(files)
}
