//! The programs that Everhold starts: where they are, and of which version.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use everhold_core::spec::{PostgresSpec, Spec};

use super::super::fault::{Code, Fault};
use super::Local;

/// What is run of PostgreSQL: the server, its bootstrap, clones, rejoins and their reports.
pub const POSTGRES_PROGRAMS: [&str; 6] =
    ["postgres", "initdb", "pg_basebackup", "pg_controldata", "pg_rewind", "pg_waldump"];
/// The oldest etcd whose API is known to do: Debian 12's.
const ETCD_MIN: (u32, u32) = (3, 4);

/// Where programs are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// `EVERHOLD_PG_BIN`: the only directory for PostgreSQL, if given.
    pub pg_bin: Option<PathBuf>,
    /// `EVERHOLD_ETCD`: the etcd program, if given.
    pub etcd: Option<PathBuf>,
    /// Where distributions keep PostgreSQL, by major version below.
    pub pg_root: PathBuf,
    pub path: OsString,
}

impl Search {
    pub fn from_env() -> Search {
        let given = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Search {
            pg_bin: given("EVERHOLD_PG_BIN"),
            etcd: given("EVERHOLD_ETCD"),
            pg_root: PathBuf::from("/usr/lib/postgresql"),
            path: env::var_os("PATH").unwrap_or_default(),
        }
    }

    /// The directory with every PostgreSQL program of that major version.
    pub fn postgres(&self, version: u32) -> Result<PathBuf, Fault> {
        let places: Vec<PathBuf> = match &self.pg_bin {
            Some(given) => vec![given.clone()],
            None => {
                let packaged = self.pg_root.join(version.to_string()).join("bin");
                let in_path =
                    env::split_paths(&self.path).find(|it| is_program(&it.join("postgres")));
                std::iter::once(packaged).chain(in_path).collect()
            }
        };
        let lacks = |place: &PathBuf| -> Vec<&str> {
            POSTGRES_PROGRAMS.into_iter().filter(|it| !is_program(&place.join(it))).collect()
        };
        let whole = places.iter().find(|place| lacks(place).is_empty());
        let Some(place) = whole.or_else(|| places.iter().min_by_key(|place| lacks(place).len()))
        else {
            return Err(Fault::of_machine(
                Code::MissingProgram,
                "nowhere to look for PostgreSQL".into(),
            ));
        };
        let lacking = lacks(place);
        if !lacking.is_empty() {
            let message = format!(
                "PostgreSQL {version}: {} not found in {}",
                lacking.join(", "),
                place.display()
            );
            let next = format!(
                "install it (`apt install postgresql-{version}`), or name its place in EVERHOLD_PG_BIN"
            );
            return Err(Fault::of_machine(Code::MissingProgram, message).next(next));
        }
        let program = place.join("postgres");
        match said_version(&program) {
            Some(said) if said.first() == Some(&version) => Ok(place.clone()),
            Some(said) => Err(wrong(&program, &said, &format!("the spec declares {version}"))),
            None => Err(wrong(&program, &[], &format!("the spec declares {version}"))),
        }
    }

    /// A program of that name, if there is one.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        env::split_paths(&self.path).map(|it| it.join(name)).find(|it| is_program(it))
    }

    /// The etcd program.
    pub fn etcd(&self) -> Result<PathBuf, Fault> {
        let given = self.etcd.clone().filter(|it| is_program(it));
        let program = if self.etcd.is_some() { given } else { self.program("etcd") };
        let Some(program) = program else {
            let message = match &self.etcd {
                Some(given) => format!("etcd not found at {} (EVERHOLD_ETCD)", given.display()),
                None => "etcd not found in PATH".into(),
            };
            let next =
                "install it (`apt install etcd-server`), or name the program in EVERHOLD_ETCD";
            return Err(Fault::of_machine(Code::MissingProgram, message).next(next));
        };
        let needs = format!("{}.{} or later is needed", ETCD_MIN.0, ETCD_MIN.1);
        match said_version(&program).as_deref() {
            Some(&[major, minor, ..]) if (major, minor) >= ETCD_MIN => Ok(program),
            Some(said) => Err(wrong(&program, said, &needs)),
            None => Err(wrong(&program, &[], &needs)),
        }
    }

    /// Reports what the spec needs and this machine lacks.
    pub(super) fn check(&self, spec: &Spec, local: &Local<'_>, faults: &mut Vec<Fault>) {
        let here = |it: &&PostgresSpec| it.nodes.iter().any(|node| local.nodes.contains(node));
        let versions: BTreeSet<u32> = spec
            .databases()
            .map(|(_, postgres)| postgres)
            .filter(here)
            .map(|postgres| postgres.version)
            .collect();
        faults.extend(versions.into_iter().filter_map(|version| self.postgres(version).err()));
        if local.store.is_some() {
            faults.extend(self.etcd().err());
        }
    }
}

fn wrong(program: &Path, said: &[u32], needed: &str) -> Fault {
    let is = match said {
        [] => "does not tell its version".to_owned(),
        said => {
            let parts: Vec<String> = said.iter().map(u32::to_string).collect();
            format!("is version {}", parts.join("."))
        }
    };
    Fault::of_machine(Code::WrongProgram, format!("{} {is}, {needed}", program.display()))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

/// The first word of digits and dots that a program says of its version.
fn said_version(program: &Path) -> Option<Vec<u32>> {
    let mut command = Command::new(program);
    let output = command.arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word =
        text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let parts = word.split('.').map(|part| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    });
    Some(parts.map_while(|part| part).collect())
}
