//! What is made from the command line's own description, and `everhold install`.

use super::Cli;
use super::failure::Failure;
use super::output::print;
use crate::install;
use clap::CommandFactory;
use std::path::Path;

/// Prints what completes commands in a shell.
pub fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "everhold", &mut text);
    print(String::from_utf8_lossy(&text).trim_end())
}

/// Writes everhold(1) and a page for each command into the directory.
pub fn pages(into: &Path) -> Result<(), Failure> {
    let wrong = |error| Failure::plain(format!("cannot write to {}: {error}", into.display()));
    clap_mangen::generate_to(Cli::command(), into).map_err(wrong)
}

/// Installs, and says what was done and what comes next.
pub fn install(options: &install::Options) -> Result<(), Failure> {
    let told = install::run(options).map_err(|error| Failure::of_text(&format!("{error:#}")))?;
    told.iter().try_for_each(|line| print(line))
}
