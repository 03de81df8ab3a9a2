//! PostgreSQL's own programs, run as its user.

use super::config::PgConfig;
use super::control::Control;
use super::error::PgError;
use std::process::{Output, Stdio};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How much of a program's words goes into an error.
const SAID_LINES_MAX: usize = 12;

/// A program with the server's user and a clean environment: variables that libpq or the server
/// would listen to are left out, all others passed on. `through`: a program and its arguments that
/// run it.
pub fn command(config: &PgConfig, program: &str, through: &[&str]) -> Command {
    let path = config.bin_dir.join(program);
    let mut command = match through {
        [outer, arguments @ ..] => {
            let mut command = Command::new(outer);
            command.args(arguments).arg(path);
            command
        }
        [] => Command::new(path),
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PG") || name == "LC_ALL") {
            command.env_remove(name);
        }
    }
    // Messages are parsed, and a user's locale may not be there for the server's user.
    command.env("LC_ALL", "C").current_dir("/");
    if let Some((uid, gid)) = config.run_as {
        command.uid(uid).gid(gid);
    }
    command
}

/// Runs a program to its end; it is killed when the caller gives up.
pub async fn run(
    tool: &'static str,
    mut command: Command,
    input: Option<&str>,
) -> Result<Output, PgError> {
    let failed = |status: String, said: String| PgError::Tool { tool, status, said };
    let not_run = |error: std::io::Error| failed("no start".into(), error.to_string());
    command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().map_err(not_run)?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // One that ends early says why on its stderr.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(not_run)?;
    if output.status.success() {
        return Ok(output);
    }
    Err(failed(output.status.to_string(), tail(&String::from_utf8_lossy(&output.stderr))))
}

/// What matters of a program's last words: errors, if there are any.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> =
        text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect();
    // Faults in a configuration file are only logged; what follows names the file alone.
    let telling = [
        "FATAL:",
        "PANIC:",
        "ERROR:",
        "error:",
        "HINT:",
        "DETAIL:",
        "could not",
        "hint:",
        "syntax error",
        "unrecognized configuration",
        "invalid value for parameter",
        "terminated by signal",
    ];
    let matters = |line: &&str| telling.iter().any(|word| line.contains(word));
    let chosen: Vec<&str> = lines.iter().copied().filter(matters).collect();
    let chosen = if chosen.is_empty() { lines } else { chosen };
    chosen[chosen.len().saturating_sub(SAID_LINES_MAX)..].join("; ")
}

/// The control file of the data directory.
pub async fn control(config: &PgConfig) -> Result<Control, PgError> {
    let mut command = command(config, "pg_controldata", &[]);
    command.arg("-D").arg(&config.data_dir);
    let output = run("pg_controldata", command, None).await?;
    Ok(Control::parse(&String::from_utf8_lossy(&output.stdout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_prefers_errors() {
        let text = "LOG: a\nFATAL:  could not bind\nHINT:  another one?\nLOG: b\n";
        assert_eq!(tail(text), "FATAL:  could not bind; HINT:  another one?");
        let text = "FATAL:  starting up\nLOG:  process 7 was terminated by signal 9\nLOG: b\n";
        assert!(tail(text).ends_with("terminated by signal 9"));
        assert_eq!(tail("10/20 kB\r20/20 kB\r"), "10/20 kB; 20/20 kB");
        assert_eq!(tail(""), "");
    }
}
