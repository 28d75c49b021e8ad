//! `pagefence man DIR`: the manual pages, made from the command tree.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory;

use crate::arguments::Cli;

/// Writes `pagefence.1` and a page for each command to `directory`.
pub(crate) fn run(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .with_context(|| {
            format!(
                "the manual pages can't be written to {}",
                directory.display()
            )
        })
}
