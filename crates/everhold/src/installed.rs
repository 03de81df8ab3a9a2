//! The program that is installed now: what Everhold goes on as when it starts anew.

use crate::spec::record;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// The command that it is asked by. One that doesn't know it is older than the question.
const READS: &str = "reads";
/// For an answer that takes a hundredth of it on a machine that is not busy.
const WITHIN: Duration = Duration::from_secs(5);

/// Where it stands: the kernel marks the path of a program whose file was replaced.
pub fn path() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let text = path.as_os_str().as_bytes();
    let text = text.strip_suffix(b" (deleted)").unwrap_or(text);
    Ok(PathBuf::from(OsStr::from_bytes(text)))
}

/// Whether this program reads a copy of the spec.
pub fn reads(copy: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(copy);
    let text = text.map_err(|error| format!("cannot read {}: {error}", copy.display()))?;
    record::from_json(&text).map(drop).map_err(|error| error.to_string())
}

/// Whether the installed program could go on here; else why not. One that can't start, or can't read
/// the spec, would end at once and leave the node to nobody.
pub async fn fits(copy: &Path) -> Result<(), String> {
    let program = path().map_err(|error| format!("nobody knows what is installed: {error}"))?;
    let shown = program.display();
    let mut command = Command::new(&program);
    command.arg(READS).arg(copy).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(WITHIN, command.output()).await;
    let output = output.map_err(|_| format!("{shown} does not answer"))?;
    let output = output.map_err(|error| format!("cannot start {shown}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or_default();
    if !said.contains(&format!("subcommand '{READS}'")) {
        return Err(format!("{shown}: {said}"));
    }
    match std::fs::read_to_string(copy).is_ok_and(|text| record::is_plain(&text)) {
        true => Ok(()),
        false => Err(format!("E104 {shown} is a version from before specs of this form")),
    }
}
