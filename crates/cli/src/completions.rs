//! `pagefence completions SHELL`.

use std::io::{self, Write};

use clap::CommandFactory;

use crate::arguments::Cli;

/// Prints the completions for `shell`.
pub(crate) fn run(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pagefence", &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}
