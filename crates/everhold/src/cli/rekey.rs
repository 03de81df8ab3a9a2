//! `repository copy`: a repository in a new place under a new master key, by the machine that runs
//! the command.

use super::failure::{Failure, say};
use super::output::{bytes, print, print_json};
use super::repository::{failed, location};
use crate::code::Code;
use crate::{backup, clock, key_file};
use everhold_repository::backup::{Progress, Watch};
use everhold_repository::{PlaceConfig, Rekey, Repository};
use serde_json::json;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const TELL_EVERY_MS: u64 = 5_000;
/// So many damaged objects are named.
const NAMED_MAX: usize = 20;

/// The new place.
#[derive(Clone, Debug, clap::Args)]
pub struct Onto {
    /// Where the copy is to lie, as in file:///PATH: nothing, or what an earlier run left
    #[arg(long, value_name = "URL")]
    to: String,
    /// A file with a password for it, mode 0600, that opens the old one nowhere
    #[arg(long, value_name = "FILE")]
    to_key_file: PathBuf,
    #[arg(long, value_name = "REGION")]
    to_region: Option<String>,
    #[arg(long, value_name = "ENDPOINT")]
    to_endpoint: Option<String>,
    #[arg(long, value_name = "FILE")]
    to_credentials_file: Option<PathBuf>,
    /// Make it whole without what is damaged in the old one, and the backups that need it
    #[arg(long)]
    without_damaged: bool,
}

pub fn run(from: &Repository, onto: &Onto, as_json: bool) -> Result<(), Failure> {
    let password = key_file::read(&onto.to_key_file).map_err(|error| failed(error.told()))?;
    let config = PlaceConfig {
        name: onto.to.clone(),
        location: location(&onto.to)?,
        region: onto.to_region.clone(),
        endpoint: onto.to_endpoint.clone(),
        credentials_file: onto.to_credentials_file.clone(),
    };
    let told = |error| failed(backup::told(error));
    let rekey = Rekey::begin(from, &config, &password).map_err(told)?;
    let (of, id) = (from.identity().id.clone(), rekey.identity().id.clone());
    say(&format!("{} becomes repository {id}, a copy of {of}", onto.to));
    let last = AtomicU64::new(clock::now().0);
    let progress = |Progress { done, total }: Progress| {
        let (now, before) = (clock::now().0, last.load(Ordering::Relaxed));
        let swap = || last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed);
        if now >= before + TELL_EVERY_MS && swap().is_ok() {
            say(&format!("{} of {} are copied", bytes(done), bytes(total)));
        }
    };
    let watch = Watch { progress: &progress, stop: &AtomicBool::new(false) };
    let done = rekey.run(onto.without_damaged, &watch).map_err(told)?;
    if as_json {
        print_json(&json!({
            "id": id, "of": of, "whole": done.whole, "objects": done.objects,
            "bytes": done.bytes, "damaged": done.damaged,
        }))?;
    }
    for name in done.damaged.iter().take(NAMED_MAX) {
        say(&format!("left out: {name} is damaged, or needs what is"));
    }
    if !done.damaged.is_empty() && !onto.without_damaged {
        let text = format!(
            "{} objects of {of} are damaged, and {} is {}",
            done.damaged.len(),
            onto.to,
            if done.whole { "a repository without them" } else { "no repository yet" },
        );
        let next = "where another repository has them whole, `everhold backup prove SERVICE ID` \
                    heals them, then run the same command again; or go without them with \
                    --without-damaged";
        return Err(Failure::new(Code::CopyNotWhole, text, next));
    }
    if as_json {
        return Ok(());
    }
    print(&format!(
        "{}: repository {id} is whole: {} objects came, {}",
        onto.to,
        done.objects,
        bytes(done.bytes)
    ))?;
    say_switch(onto);
    Ok(())
}

/// How the cluster goes over to it, with no hole in the log.
fn say_switch(onto: &Onto) {
    say("The old master key, its kit and its passwords open nothing in it. To go over to it:");
    say(&format!(
        "  1. in the spec declare it under [repository] by a name of its own (url = \"{}\", \
         key_file = …,",
        onto.to
    ));
    say(
        "     on every machine), name it in `repositories` of each [service.SERVICE.backup] in place",
    );
    say("     of the old one, which stays declared till then, and `everhold apply`");
    say("  2. run this command once more: what the old one got until then comes along");
    say(
        "  3. `everhold repository kit NAME --print`, lock it away; `everhold backup now SERVICE`,",
    );
    say("     which stores everything anew; further places with `everhold repository init NAME`");
    say("  4. destroy the old place and its passwords: who has its key can read what is there");
}
