//! `check` and `apply`.

use super::client::Client;
use super::failure::{Failure, say};
use super::output::{plain, print, print_json, table};
use crate::code;
use crate::layout::Layout;
use crate::spec::{self, Code, Fault, StorePorts};
use crate::{supervisor, up};
use serde_json::{Value, json};
use std::path::Path;

/// Every fault of the document and, if that is true in itself, of this machine.
pub fn check(file: &Path, data: &Path, store: StorePorts, json: bool) -> Result<(), Failure> {
    let checked = spec::load_file(file, store).and_then(|spec| {
        let layout = Layout::new(data).map_err(|error| {
            let text = format!("{}: {error}", data.display());
            vec![Fault::of_machine(Code::DataNotWritable, text)]
        })?;
        match up::check(&spec, &layout, store) {
            Ok(()) => Ok(spec),
            Err(error) => Err(match error.downcast::<supervisor::Faults>() {
                Ok(faults) => faults.0,
                Err(error) => vec![Fault::of_machine(Code::DataForeign, format!("{error:#}"))],
            }),
        }
    });
    match checked {
        // They are what was asked for, so they go to stdout for machines.
        Err(faults) if json => {
            print_json(&json!({ "faults": faults }))?;
            Err(Failure::Told { exit: 2 })
        }
        Err(faults) => Err(Failure::Faults(faults)),
        Ok(_) if json => print_json(&json!({ "faults": [] })),
        Ok(spec) => {
            let (nodes, services) = (spec.nodes.len(), spec.services.len());
            let name = &spec.cluster;
            print(&format!("no fault: cluster {name}, {nodes} nodes, {services} services"))
        }
    }
}

/// Hands the document to the cluster.
pub fn apply(client: &Client, file: &Path, dry_run: bool) -> Result<(), Failure> {
    let shown = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|error| {
        let text = format!("cannot read the spec: {error}");
        Failure::Faults(vec![Fault::of_file(Code::Unreadable, &shown, text)])
    })?;
    let path = if dry_run { "/v1/spec?dry_run=true" } else { "/v1/spec" };
    let answer = client.post_text(path, "application/toml", &text);
    let answer = answer.map_err(|failure| match failure.get("faults") {
        Some(faults) => {
            let faults = faults.as_array().cloned().unwrap_or_default();
            faults.iter().for_each(|fault| tell_fault(client, fault, &shown));
            match failure {
                Failure::Error { error, .. } => Failure::Error { error, exit: 2 },
                other => other,
            }
        }
        None => failure,
    })?;
    if client.json {
        return print_json(&answer);
    }
    let changes = answer["changes"].as_array().cloned().unwrap_or_default();
    if !changes.is_empty() {
        print(&table("", &changes.iter().map(row).collect::<Vec<_>>()))?;
    }
    match (answer["applied"] == true, changes.is_empty(), answer["possible"] == true) {
        (true, ..) => say(&format!("applied as revision {}", plain(&answer["revision"]))),
        (false, true, _) => say("nothing to change: this is the spec in force"),
        (false, false, true) => say("nothing was changed: `everhold apply` without --dry-run does"),
        (false, false, false) => say("a running cluster can't make all of these changes"),
    }
    Ok(())
}

fn tell_fault(client: &Client, fault: &Value, file: &str) {
    if !client.json {
        let place = match (fault["line"].as_u64(), fault["column"].as_u64()) {
            (Some(line), Some(column)) => format!("{file}:{line}:{column}"),
            _ => file.to_string(),
        };
        let [code, message, next] = ["code", "message", "next"].map(|key| plain(&fault[key]));
        say(&code::line(Some(&place), &code, &message, &next));
    }
}

fn row(change: &Value) -> Vec<String> {
    let when = match change["takes_effect"].as_str() {
        Some("at_once") => "at once".to_string(),
        Some("reload") => "after a reload".to_string(),
        Some("restart") => "after a restart, standbys first".to_string(),
        Some("refused") => format!("refused: {}", plain(&change["why"])),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let arrow = format!("{} -> {}", plain(&change["old"]), plain(&change["new"]));
    vec![plain(&change["path"]), arrow, when]
}
