//! `docs/REQUIREMENTS.md`: a row for each number, and none that says nothing.
//!
//! A row begins with its number, has no empty cell, and names a test, or says that what it asks for
//! holds "by construction: …", or says what is "missing: …".

use std::collections::BTreeSet;

use super::{TextFile, Violation};

const DOCUMENT: &str = "docs/REQUIREMENTS.md";

/// What numbers begin with, and how many there are: requirements source by source, the defects of
/// the last source, later bugs, schedules, and the points at which schedules stop.
const NUMBERS: &[(&str, u32)] = &[
    ("S0.", 14),
    ("S1.", 14),
    ("S2.", 13),
    ("S3.", 18),
    ("S4.", 22),
    ("S4.D", 5),
    ("B", 47),
    ("T", 25),
    ("K", 17),
];

/// One of these shows what becomes of a number.
const EVIDENCE: &[&str] = &["`test: ", "`tests: ", "by construction: ", "missing: "];

/// Checks the document, where it exists.
pub(crate) fn check(files: &[TextFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| file.path == DOCUMENT) {
        check_rows(file, &mut violations);
    }
    violations
}

fn check_rows(file: &TextFile, violations: &mut Vec<Violation>) {
    let mut missing: BTreeSet<String> = numbers().collect();
    let known = missing.clone();
    let mut complain = |line: usize, what: String| {
        violations.push(Violation::new(&file.path, line, what));
    };
    for (line, text) in (1..).zip(file.text.lines()) {
        let Some(cells) = text
            .strip_prefix("| ")
            .and_then(|row| row.strip_suffix(" |"))
        else {
            continue;
        };
        let mut cells = cells.split(" | ").map(str::trim);
        let number = cells.next().unwrap_or_default();
        if number == "number" {
            continue;
        }
        if !known.contains(number) {
            complain(line, format!("there is no number {number}"));
            continue;
        }
        if !missing.remove(number) {
            complain(line, format!("has a second row for {number}"));
        }
        let has_evidence = EVIDENCE.iter().any(|mark| text.contains(mark));
        if !has_evidence || cells.any(str::is_empty) {
            complain(line, format!("says too little of {number}"));
        }
    }
    for number in missing {
        complain(0, format!("has no row for {number}"));
    }
}

fn numbers() -> impl Iterator<Item = String> {
    let of = |(prefix, count): &(&'static str, u32)| {
        let prefix = *prefix;
        (1..=*count).map(move |number| format!("{prefix}{number}"))
    };
    NUMBERS.iter().flat_map(of)
}

#[cfg(test)]
pub(super) fn complete() -> String {
    let rows = numbers().map(|number| format!("| {number} | what | where | missing: all |\n"));
    rows.collect()
}
