//! `cache purge`.

use super::client::Client;
use super::failure::Failure;
use super::output::{duration, plain, print, print_json};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};

#[derive(Clone, Debug, Subcommand)]
pub enum Cache {
    /// Take answers out of all gateways, so that they are asked for anew
    Purge(Purge),
}

#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).multiple(true)))]
pub struct Purge {
    /// Without one: of all routes
    route: Option<String>,
    /// Of that host only
    #[arg(long)]
    host: Option<String>,
    /// An answer's path as it is asked for; all queries of it
    #[arg(long, group = "what")]
    path: Vec<String>,
    /// A path and all below it, in whole segments
    #[arg(long, group = "what", value_name = "PATH")]
    prefix: Vec<String>,
    /// As answers have it in Surrogate-Key or Cache-Tag
    #[arg(long, group = "what")]
    tag: Vec<String>,
    /// All that is kept
    #[arg(long, group = "what", conflicts_with_all = ["path", "prefix", "tag"])]
    all: bool,
}

pub fn run(client: &Client, Cache::Purge(purge): &Cache) -> Result<(), Failure> {
    let Purge { route, host, path, prefix, tag, all } = purge;
    let body = json!({
        "route": route, "host": host, "paths": path, "prefixes": prefix, "tags": tag, "all": all,
    });
    let answer = client.post("/v1/cache/purge", &body)?;
    if client.json { print_json(&answer) } else { print(&text(&answer)) }
}

fn text(answer: &Value) -> String {
    let gateways = answer["gateways"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<String> = gateways.iter().map(plain).collect();
    let took = duration(answer["took_ms"].as_u64().unwrap_or_default());
    format!("purged by {} in {took} (purge {})", names.join(", "), plain(&answer["purge"]))
}
