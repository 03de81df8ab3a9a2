//! `repository`: made, checked, and opened by other passwords, by the machine that runs the command.

use super::client::Client;
use super::failure::{Failure, say};
use super::output::{print, print_json};
use super::rekey::{self, Onto};
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
        #[command(flatten)]
        whence: Whence,
        /// What the cluster's store held instead, by key
        #[arg(long)]
        store: bool,
    },
    /// Let another password open a repository; by the recovery kit, if all are lost
    AddPassword {
        #[command(flatten)]
        whence: Whence,
        /// A file that holds the new one, mode 0600
        file: PathBuf,
    },
    /// No longer let a password open a repository
    RemovePassword {
        name: String,
        /// A file that holds it, mode 0600
        file: PathBuf,
    },
    /// Copy a repository into a new place under a new master key; run again, it goes on
    Copy {
        #[command(flatten)]
        whence: Whence,
        #[command(flatten)]
        onto: Onto,
    },
}

/// A repository, with a cluster at hand or without, and what opens it.
#[derive(Clone, Debug, clap::Args)]
pub struct Whence {
    /// Where it lies, as in s3://BUCKET/PREFIX, or its name in the running cluster's spec
    #[arg(value_name = "URL|NAME")]
    place: String,
    /// A file with a password that opens it, mode 0600
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Open it by the recovery kit, read from stdin
    #[arg(long, conflicts_with = "key_file")]
    kit: bool,
    #[arg(long)]
    region: Option<String>,
    #[arg(long)]
    endpoint: Option<String>,
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
}

pub fn run(command: &Command, data: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let running = || spec(&Client::find(data, as_json)?);
    match command {
        Command::Init { name } => init(&running()?, name.as_deref(), as_json),
        Command::Check => check(&running()?, as_json),
        Command::Kit { name, print: false } => kit(&running()?, name, as_json),
        Command::Kit { name, print: true } => {
            let spec = running()?;
            let text = one(&spec, name)?.kit().text();
            if as_json {
                return print_json(&json!({ "repository": name, "kit": text }));
            }
            say_use(&spec);
            print(&text)
        }
        Command::Spec { whence, store } => print_spec(&reached(whence, running)?, *store, as_json),
        Command::AddPassword { whence, file } => {
            let password = key_file::read(file).map_err(|error| failed(error.told()))?;
            let repository = reached(whence, running)?;
            repository
                .add_password(&whence.place, &password)
                .map_err(backup::told)
                .map_err(failed)?;
            let what = "another password opens it; key_file names the one that is used";
            done(&whence.place, what, as_json)
        }
        Command::RemovePassword { name, file } => {
            let password = key_file::read(file).map_err(|error| failed(error.told()))?;
            let repository = one(&running()?, name)?;
            repository.remove_password(name, &password).map_err(backup::told).map_err(failed)?;
            done(name, "this password opens it no longer", as_json)
        }
        Command::Copy { whence, onto } => rekey::run(&reached(whence, running)?, onto, as_json),
    }
}

pub fn failed(error: anyhow::Error) -> Failure {
    Failure::of_text(&format!("{error:#}"))
}

pub fn spec(client: &Client) -> Result<Spec, Failure> {
    let answer = client.get("/v1/spec")?;
    serde_json::from_value(answer["spec"].clone()).map_err(|error| failed(error.into()))
}

fn one(spec: &Spec, name: &str) -> Result<Repository, Failure> {
    backup::open(spec, &[name.to_string()]).map_err(failed)
}

fn done(name: &str, what: &str, as_json: bool) -> Result<(), Failure> {
    match as_json {
        true => print_json(&json!({ "repository": name, "done": what })),
        false => print(&format!("{name}: {what}")),
    }
}

/// Makes what is missing. All places of a cluster are one repository, so that what is damaged in one
/// is healed from another.
fn init(spec: &Spec, name: Option<&str>, as_json: bool) -> Result<(), Failure> {
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
    if as_json {
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
    say_use(spec);
    print(&kit)
}

/// What the kit is for and how it is used, to be printed with it.
fn say_use(spec: &Spec) {
    say("The recovery kit below opens every repository of this cluster without a password: a line");
    say(
        "that starts with everhold-kit-1. Print all of this, lock it away from the machines, and try",
    );
    say("the kit: `everhold repository kit NAME`. Whoever has a password can print it again:");
    say("`everhold repository kit NAME --print`.");
    say("");
    say(
        "With machines and passwords lost, write a new password to the key file of each place (mode",
    );
    say(
        "600), and run on a new machine what follows; what ends in --kit reads the kit from stdin:",
    );
    let lines: Vec<_> = spec
        .repositories
        .iter()
        .map(|(name, declared)| {
            let place = place_words(&PlaceConfig::new(name, declared));
            (format!("{place} {} --kit", declared.key_file), place)
        })
        .collect();
    if let Some((_, place)) = lines.first() {
        say(&format!("  everhold repository spec {place} --kit > spec.json"));
    }
    for (words, _) in &lines {
        say(&format!("  everhold repository add-password {words}"));
    }
    say("  everhold restore SERVICE --to DIR --spec spec.json");
    say(
        "To have the cluster itself back: the key files on each new machine, the cluster started by",
    );
    say("its spec, then `everhold recover SERVICE`.");
    say("");
}

/// A place as an argument, with what else it takes to get there.
fn place_words(place: &PlaceConfig) -> String {
    let file = place.credentials_file.as_ref().map(|file| file.display().to_string());
    let more =
        [("region", &place.region), ("endpoint", &place.endpoint), ("credentials-file", &file)];
    let more =
        more.iter().filter_map(|(flag, value)| Some(format!(" --{flag} {}", value.as_ref()?)));
    format!("{}{}", place.location, more.collect::<String>())
}

/// Opens each and proves that two writes of an object can be told apart.
fn check(spec: &Spec, as_json: bool) -> Result<(), Failure> {
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
                if !as_json {
                    say(&format!("{name}: repository {} of {}", identity.id, identity.cluster));
                }
            }
            Err(failure) => {
                results.push(json!({ "repository": name, "ok": false }));
                if let Some(earlier) = bad.replace(failure) {
                    earlier.report(as_json);
                }
            }
        }
    }
    if as_json {
        print_json(&json!({ "repositories": results }))?;
    }
    bad.map_or(Ok(()), Err)
}

/// Prints the newest spec of a repository, or what the store held.
fn print_spec(repository: &Repository, store: bool, as_json: bool) -> Result<(), Failure> {
    if store {
        let content = backup::copies::newest_content(repository).map_err(failed)?;
        return print_json(&json!(content));
    }
    let (text, since_s) = backup::copies::newest_spec(repository).map_err(failed)?;
    let since = backup::shown::time(since_s);
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
    if as_json {
        return print_json(&json!({ "since": since, "spec": value }));
    }
    say(&format!("The spec of cluster {} since {since}.", repository.identity().cluster));
    print_json(&value)
}

pub fn location(url: &str) -> Result<Location, Failure> {
    url.parse().map_err(|error| {
        let text = format!("{url}: {error}");
        Failure::new(Code::Malformed, text, "write file:///PATH or s3://BUCKET/PREFIX")
    })
}

fn reached(
    whence: &Whence,
    running: impl FnOnce() -> Result<Spec, Failure>,
) -> Result<Repository, Failure> {
    let (config, declared_key) = if whence.place.contains("://") {
        let config = PlaceConfig {
            name: whence.place.clone(),
            location: location(&whence.place)?,
            region: whence.region.clone(),
            endpoint: whence.endpoint.clone(),
            credentials_file: whence.credentials_file.clone(),
        };
        (config, None)
    } else {
        let spec = running()?;
        let declared = backup::declared(&spec, &whence.place).map_err(failed)?;
        (PlaceConfig::new(&whence.place, declared), Some(PathBuf::from(&declared.key_file)))
    };
    if whence.kit {
        return by_kit(&config);
    }
    let file = whence.key_file.clone().or(declared_key).ok_or_else(|| {
        let next = "name the file with its password with --key-file, or give the recovery kit with \
                    --kit";
        Failure::new(Code::RepositoryKey, "no password is given".to_string(), next)
    })?;
    let password = key_file::read(&file).map_err(|error| failed(error.told()))?;
    Repository::open_any(&config, &password).map_err(backup::told).map_err(failed)
}

/// Opens a place by the kit on stdin.
fn by_kit(config: &PlaceConfig) -> Result<Repository, Failure> {
    let mut text = String::new();
    say("Type the recovery kit, then Ctrl-D.");
    let read = std::io::stdin().take(KIT_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| Failure::plain(format!("cannot read it: {error}")))?;
    let kit = Kit::parse(&text).map_err(|error| {
        let next = "type it as it was printed, all five words";
        Failure::new(Code::RepositoryKey, error.to_string(), next)
    })?;
    Repository::open_with_kit(config, &kit).map_err(|error| {
        let next = "use the kit of the repository that lies there: its third word is the id in \
                    everhold.json. A new master key is a new repository with a new kit";
        if let RepositoryError::Foreign { .. } = error {
            return Failure::new(Code::RepositoryForeign, error.to_string(), next);
        }
        if let RepositoryError::WrongKit { .. } = error {
            return Failure::new(Code::RepositoryKey, error.to_string(), next);
        }
        failed(backup::told(error))
    })
}

fn kit(spec: &Spec, name: &str, as_json: bool) -> Result<(), Failure> {
    // No password is needed for it.
    let config = PlaceConfig::new(name, backup::declared(spec, name).map_err(failed)?);
    let repository = by_kit(&config)?;
    let id = &repository.identity().id;
    done(name, &format!("the kit opens repository {id}"), as_json)
}
