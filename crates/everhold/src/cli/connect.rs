//! `dsn` and `psql`.

use super::client::{Client, segment};
use super::failure::Failure;
use super::output::{plain, print, print_json};
use crate::code::Code;
use crate::dsn;
use crate::spec::local::Search;
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What libpq would take from the environment although the URL says it, or against it.
const LEFT_OUT: [&str; 5] =
    ["PGPASSWORD", "PGHOSTADDR", "PGSERVICE", "PGSSLMODE", "PGTARGETSESSIONATTRS"];

fn ask(client: &Client, service: &str, read: bool) -> Result<Value, Failure> {
    client.get(&format!("/v1/services/{}/dsn?read={read}", segment(service)))
}

pub fn dsn(client: &Client, service: &str, read: bool, show_password: bool) -> Result<(), Failure> {
    let mut answer = ask(client, service, read)?;
    if show_password {
        answer["dsn"] = with_password(&answer)?.into();
    }
    match client.json {
        true => print_json(&answer),
        false => print(&plain(&answer["dsn"])),
    }
}

/// A URL of the service with the password in it, for a client in this process.
pub fn url(client: &Client, service: &str) -> Result<String, Failure> {
    with_password(&ask(client, service, false)?)
}

/// The password takes the place of the file that holds it.
fn with_password(answer: &Value) -> Result<String, Failure> {
    let path = plain(&answer["passfile"]);
    let unreadable = |why: String| {
        let text = format!("cannot take the password from {path}: {why}");
        Failure::new(Code::PasswordUnreadable, text, Code::PasswordUnreadable.next())
    };
    let text = std::fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
    let line = text.lines().next().ok_or_else(|| unreadable("it is empty".to_string()))?;
    let password = last_field(line);
    Ok(dsn::with_password(&plain(&answer["dsn"]), &password))
}

/// The password of a line of a password file: behind the last colon that isn't escaped.
fn last_field(line: &str) -> String {
    let mut field = String::new();
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => field.extend(letters.next()),
            ':' => field.clear(),
            _ => field.push(letter),
        }
    }
    field
}

/// Becomes psql.
pub fn psql(
    client: &Client,
    service: &str,
    read: bool,
    arguments: &[OsString],
) -> Result<(), Failure> {
    let answer = ask(client, service, read)?;
    let program = find_psql();
    let mut command = Command::new(&program);
    command.arg(plain(&answer["dsn"])).args(arguments);
    LEFT_OUT.iter().for_each(|name| {
        command.env_remove(name);
    });
    let error = command.exec();
    let text = format!("cannot run {}: {error}", program.display());
    Err(Failure::new(Code::NoPsql, text, Code::NoPsql.next()))
}

/// The one of the server's version, if it is there.
fn find_psql() -> PathBuf {
    let search = Search::from_env();
    let version = everhold_core::spec::POSTGRES_VERSION;
    let beside = search.postgres(version).ok().map(|bin| bin.join("psql"));
    beside.filter(|path| path.exists()).unwrap_or_else(|| Path::new("psql").to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_password_takes_the_place_of_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("main.pgpass");
        std::fs::write(&path, "127.0.0.1:6432:*:app:a\\:b\\\\@\n").expect("written");
        let answer = json!({
            "dsn": "postgresql://app@127.0.0.1:6432/app?passfile=/x&target_session_attrs=any",
            "passfile": path,
        });
        assert_eq!(
            with_password(&answer).expect("read"),
            "postgresql://app:a%3Ab%5C%40@127.0.0.1:6432/app?target_session_attrs=any"
        );
    }
}
