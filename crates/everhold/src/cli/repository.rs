//! `repository`: made, checked, and opened by other passwords, by the machine that runs the command.

use super::client::Client;
use super::failure::{Failure, say};
use super::output::{print, print_json};
use crate::code::Code;
use crate::{backup, key_file};
use clap::Subcommand;
use everhold_core::spec::{Location, Spec};
use everhold_repository::{Kit, PlaceConfig, Repository, RepositoryError};
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A kit is a line.
const KIT_BYTES_MAX: u64 = 64 * 1024;

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make the declared repositories that are empty places still, and print the recovery kit
    Init {
        /// All of them, if none is named
        name: Option<String>,
    },
    /// Open each of them and try what backups hang on
    Check,
    /// Try a recovery kit, read from stdin: it opens a repository without any password
    Kit {
        name: String,
        /// Print it instead, by the password of this machine
        #[arg(long)]
        print: bool,
    },
    /// Print the spec that a repository holds, with nothing but the repository at hand
    Spec {
        /// Where it lies, as in s3://BUCKET/PREFIX, or its name in the running cluster's spec
        #[arg(value_name = "URL|NAME")]
        place: String,
        /// A file with a password that opens it, mode 0600
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// Open it by the recovery kit, read from stdin
        #[arg(long, conflicts_with = "key_file")]
        kit: bool,
        /// What the cluster's store held instead, by key
        #[arg(long)]
        store: bool,
        #[arg(long)]
        region: Option<String>,
        #[arg(long)]
        endpoint: Option<String>,
        #[arg(long, value_name = "FILE")]
        credentials_file: Option<PathBuf>,
    },
    /// Let another password open a repository
    AddPassword {
        name: String,
        /// A file that holds it, mode 0600
        file: PathBuf,
    },
    /// No longer let a password open a repository
    RemovePassword {
        name: String,
        /// A file that holds it, mode 0600
        file: PathBuf,
    },
}

pub fn run(client: &Client, command: &Command) -> Result<(), Failure> {
    let spec = spec(client)?;
    match command {
        Command::Init { name } => init(client, &spec, name.as_deref()),
        Command::Check => check(client, &spec),
        Command::Kit { name, print: false } => kit(client, &spec, name),
        Command::Kit { name, print: true } => {
            let text = one(&spec, name)?.kit().text();
            match client.json {
                true => print_json(&json!({ "repository": name, "kit": text })),
                false => print(&text),
            }
        }
        Command::Spec { .. } => Ok(()),
        Command::AddPassword { name, file } => {
            let password = key_file::read(file).map_err(|error| failed(error.told()))?;
            let repository = one(&spec, name)?;
            repository.add_password(name, &password).map_err(backup::told).map_err(failed)?;
            done(client, name, "another password opens it; key_file names the one that is used")
        }
        Command::RemovePassword { name, file } => {
            let password = key_file::read(file).map_err(|error| failed(error.told()))?;
            let repository = one(&spec, name)?;
            repository.remove_password(name, &password).map_err(backup::told).map_err(failed)?;
            done(client, name, "this password opens it no longer")
        }
    }
}

fn failed(error: anyhow::Error) -> Failure {
    Failure::of_text(&format!("{error:#}"))
}

pub fn spec(client: &Client) -> Result<Spec, Failure> {
    let answer = client.get("/v1/spec")?;
    serde_json::from_value(answer["spec"].clone()).map_err(|error| failed(error.into()))
}

fn one(spec: &Spec, name: &str) -> Result<Repository, Failure> {
    backup::open(spec, &[name.to_string()]).map_err(failed)
}

fn done(client: &Client, name: &str, what: &str) -> Result<(), Failure> {
    match client.json {
        true => print_json(&json!({ "repository": name, "done": what })),
        false => print(&format!("{name}: {what}")),
    }
}

/// Makes what is missing. All places of a cluster are one repository, so that what is damaged in one
/// is healed from another.
fn init(client: &Client, spec: &Spec, name: Option<&str>) -> Result<(), Failure> {
    let all: Vec<String> = spec.repositories.keys().cloned().collect();
    if all.is_empty() || name.is_some_and(|name| !spec.repositories.contains_key(name)) {
        let text = match name {
            Some(name) => format!("no repository {name} is declared"),
            None => "no repository is declared".to_string(),
        };
        let next = "declare it under [repository] and `everhold apply`";
        return Err(Failure::new(Code::UnknownReference, text, next));
    }
    let wanted = |it: &str| name.is_none_or(|name| name == it);
    let (mut made, mut there, mut absent) = (Vec::new(), Vec::new(), Vec::new());
    let (mut empty, mut others) = (Vec::new(), Vec::new());
    for name in &all {
        let place = backup::place(spec, name).map_err(failed)?;
        match Repository::open(std::slice::from_ref(&place), &spec.cluster) {
            Ok(_) => there.push((name.clone(), place)),
            Err(RepositoryError::NoRepository { .. }) if wanted(name) => {
                empty.push((name.clone(), place));
            }
            Err(RepositoryError::NoRepository { .. }) => others.push(name.clone()),
            Err(error) if wanted(name) => return Err(failed(backup::told(error))),
            Err(_) => absent.push(name.clone()),
        }
    }
    if there.is_empty() && !absent.is_empty() {
        let text = format!("{} may be the same repository and does not answer", absent.join(", "));
        let next = "make it reachable, or `everhold repository init` without a name";
        return Err(Failure::new(Code::RepositoryAway, text, next));
    }
    if there.is_empty() && !others.is_empty() {
        let text = format!(
            "no place is a repository yet, and {} may be one that is not mounted: all places of a \
             cluster are one repository",
            others.join(", ")
        );
        let next = "`everhold repository init` without a name makes all of them; mount what was \
                    made before";
        return Err(Failure::new(Code::RepositoryMissing, text, next));
    }
    let created = there.is_empty();
    let places: Vec<_> = there.iter().map(|(_, place)| place.clone()).collect();
    let mut repository = match created {
        true => None,
        false => {
            let opened = Repository::open(&places, &spec.cluster);
            Some(opened.map_err(backup::told).map_err(failed)?)
        }
    };
    for (name, (config, password)) in empty {
        let result = match &mut repository {
            Some(repository) => repository.extend(&config, &password),
            None => Repository::create(&config, &password, &spec.cluster)
                .map(|created| repository = Some(created)),
        };
        result.map_err(backup::told).map_err(failed)?;
        made.push(name);
    }
    let there: Vec<String> = there.into_iter().map(|(name, _)| name).collect();
    let Some(repository) = repository else { return Ok(()) };
    let kit = (created && !made.is_empty()).then(|| repository.kit().text());
    if client.json {
        return print_json(&json!({
            "id": repository.identity().id, "made": made, "there": there, "absent": absent,
            "kit": kit,
        }));
    }
    for name in &made {
        say(&format!("{name}: made"));
    }
    for name in there.iter().filter(|name| wanted(name)) {
        say(&format!("{name}: was there already"));
    }
    let Some(kit) = kit else { return Ok(()) };
    say("");
    say(
        "The recovery kit below opens every repository of this cluster without a password. Print it,",
    );
    say(
        "lock it away from the machines, and try it: `everhold repository kit NAME`. Whoever has a",
    );
    say("password can print it again: `everhold repository kit NAME --print`.");
    say("");
    print(&kit)
}

/// Opens each and proves that two writes of an object can be told apart.
fn check(client: &Client, spec: &Spec) -> Result<(), Failure> {
    let mut results = Vec::new();
    let mut bad = None;
    for name in spec.repositories.keys() {
        let result = one(spec, name).and_then(|repository| {
            repository.probe().map_err(backup::told).map_err(failed)?;
            Ok(repository.identity().clone())
        });
        match result {
            Ok(identity) => {
                results.push(json!({ "repository": name, "id": identity.id, "ok": true }));
                if !client.json {
                    say(&format!("{name}: repository {} of {}", identity.id, identity.cluster));
                }
            }
            Err(failure) => {
                results.push(json!({ "repository": name, "ok": false }));
                if let Some(earlier) = bad.replace(failure) {
                    earlier.report(client.json);
                }
            }
        }
    }
    if client.json {
        print_json(&json!({ "repositories": results }))?;
    }
    bad.map_or(Ok(()), Err)
}

/// What `repository spec` goes by.
struct Whence<'c> {
    place: &'c str,
    key_file: Option<&'c Path>,
    kit: bool,
    region: Option<&'c str>,
    endpoint: Option<&'c str>,
    credentials_file: Option<&'c Path>,
}

/// Prints the newest spec of a repository, with a cluster at hand or without.
pub fn print_spec(command: &Command, data: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let Command::Spec { place, key_file, kit, store, region, endpoint, credentials_file } = command
    else {
        return Ok(());
    };
    let whence = Whence {
        place,
        key_file: key_file.as_deref(),
        kit: *kit,
        region: region.as_deref(),
        endpoint: endpoint.as_deref(),
        credentials_file: credentials_file.as_deref(),
    };
    let repository = reached(&whence, data, as_json)?;
    if *store {
        let content = backup::copies::newest_content(&repository).map_err(failed)?;
        return print_json(&json!(content));
    }
    let (text, since_s) = backup::copies::newest_spec(&repository).map_err(failed)?;
    let since = backup::shown::time(since_s);
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
    if as_json {
        return print_json(&json!({ "since": since, "spec": value }));
    }
    say(&format!("The spec of cluster {} since {since}.", repository.identity().cluster));
    print_json(&value)
}

fn reached(whence: &Whence<'_>, data: Option<&Path>, as_json: bool) -> Result<Repository, Failure> {
    let (config, declared_key) = if whence.place.contains("://") {
        let url = whence.place.parse::<Location>().map_err(|error| {
            let text = format!("{}: {error}", whence.place);
            Failure::new(Code::Malformed, text, "write file:///PATH or s3://BUCKET/PREFIX")
        })?;
        let config = PlaceConfig {
            name: whence.place.to_string(),
            location: url,
            region: whence.region.map(str::to_string),
            endpoint: whence.endpoint.map(str::to_string),
            credentials_file: whence.credentials_file.map(Path::to_path_buf),
        };
        (config, None)
    } else {
        let spec = spec(&Client::find(data, as_json)?)?;
        let declared = backup::declared(&spec, whence.place).map_err(failed)?;
        (PlaceConfig::new(whence.place, declared), Some(PathBuf::from(&declared.key_file)))
    };
    let opened = if whence.kit {
        Repository::open_with_kit(&config, &read_kit()?)
    } else {
        let file = whence.key_file.map(Path::to_path_buf).or(declared_key).ok_or_else(|| {
            let next = "name the file with its password with --key-file, or give the recovery kit \
                        with --kit";
            Failure::new(Code::RepositoryKey, "no password is given".to_string(), next)
        })?;
        let password = key_file::read(&file).map_err(|error| failed(error.told()))?;
        Repository::open_any(&config, &password)
    };
    opened.map_err(backup::told).map_err(failed)
}

fn read_kit() -> Result<Kit, Failure> {
    let mut text = String::new();
    say("Type the recovery kit, then Ctrl-D.");
    let read = std::io::stdin().take(KIT_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| Failure::plain(format!("cannot read it: {error}")))?;
    Kit::parse(&text).map_err(backup::told).map_err(failed)
}

fn kit(client: &Client, spec: &Spec, name: &str) -> Result<(), Failure> {
    let kit = read_kit()?;
    // No password is needed for it.
    let config = PlaceConfig::new(name, backup::declared(spec, name).map_err(failed)?);
    let opened = Repository::open_with_kit(&config, &kit).and_then(|it| it.prove().map(|()| it));
    let repository = opened.map_err(backup::told).map_err(failed)?;
    let id = &repository.identity().id;
    done(client, name, &format!("the kit opens repository {id}"))
}
