//! `cargo xtask images DIR`: the matrix of test images.
//!
//! mke2fs makes each image, the running kernel fills it through a loop device. What this kernel
//! or this mke2fs can't do is skipped, printed with the reason, and counted. `MANIFEST.jsonl` in
//! `DIR` has a line for each image.

mod attributes;
mod contents;
mod dirty;
mod dirty_work;
mod fill;
mod journal_state;
mod make;
mod matrix;
mod names;

pub(crate) use journal_state::pending;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::{Needs, require};

/// Arguments of `images`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where the images go; made if it is not there.
    directory: PathBuf,
    /// One image of each sort instead of the whole matrix.
    #[arg(long)]
    quick: bool,
    /// Where pseudo-random contents start from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only the images whose names contain this.
    #[arg(long)]
    only: Option<String>,
}

/// What happened to one image.
enum Outcome {
    /// It is there; `skipped` lists what could not be put into it.
    Made { skipped: Vec<String> },
    /// It could not be made at all.
    Skipped { reason: String },
}

/// Runs the chore; `true` if nothing failed. What is skipped is no failure.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    require(&Needs {
        programs: &[
            "mke2fs", "e2fsck", "debugfs", "tune2fs", "dumpe2fs", "chattr", "losetup", "mount",
        ],
        fuse: false,
    })?;
    std::fs::create_dir_all(&arguments.directory)
        .with_context(|| format!("cannot make {}", arguments.directory.display()))?;
    let wanted = |name: &str| {
        arguments
            .only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    };
    let mut manifest = Manifest::default();
    for variant in matrix::variants(arguments.quick) {
        if wanted(&variant.name) {
            let outcome = make::clean(&variant, &arguments.directory, arguments.seed);
            manifest.record(&variant, "clean", outcome, arguments.seed);
        }
    }
    for case in dirty::cases(arguments.quick) {
        if wanted(&case.variant.name) {
            let outcome = dirty::make(&case, &arguments.directory, arguments.seed);
            manifest.record(&case.variant, "dirty", outcome, arguments.seed);
        }
    }
    manifest.write(&arguments.directory)?;
    println!(
        "images: made {}, skipped {}, parts skipped {}, failed {}",
        manifest.made, manifest.skipped, manifest.parts_skipped, manifest.failed
    );
    Ok(manifest.failed == 0)
}

/// The path of an image.
fn image_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.img"))
}

#[derive(Default)]
struct Manifest {
    lines: String,
    made: usize,
    skipped: usize,
    parts_skipped: usize,
    failed: usize,
}

impl Manifest {
    /// Prints and notes what became of an image. One that failed does not stop the others.
    fn record(
        &mut self,
        variant: &matrix::Variant,
        state: &str,
        outcome: Result<Outcome>,
        seed: u64,
    ) {
        let (made, notes) = match outcome {
            Err(error) => {
                println!("FAILED  {} ({state}): {error:#}", variant.name);
                self.failed += 1;
                (false, vec![format!("{error:#}")])
            }
            Ok(Outcome::Made { skipped }) => {
                println!("made    {} ({state})", variant.name);
                for part in &skipped {
                    println!("          without {part}");
                }
                self.made += 1;
                self.parts_skipped += skipped.len();
                (true, skipped)
            }
            Ok(Outcome::Skipped { reason }) => {
                println!("skipped {} ({state}): {reason}", variant.name);
                self.skipped += 1;
                (false, vec![reason])
            }
        };
        let notes: Vec<String> = notes.iter().map(|note| quote(note)).collect();
        let _ = writeln!(
            self.lines,
            "{{\"image\":{},\"made\":{made},\"state\":{},\"type\":{},\"block_bytes\":{},\
             \"features\":{},\"seed\":{seed},\"skipped\":[{}]}}",
            quote(&format!("{}.img", variant.name)),
            quote(state),
            quote(variant.kind),
            variant.block_bytes,
            quote(&variant.features),
            notes.join(","),
        );
    }

    fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join("MANIFEST.jsonl");
        std::fs::write(&path, &self.lines)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A JSON string.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            control if control < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn quotes_what_json_wants_quoted() {
        assert_eq!(quote("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }
}
