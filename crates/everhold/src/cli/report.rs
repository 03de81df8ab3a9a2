//! What became of a plan, as JSON and as a page.

use super::failure::Failure;
use super::output::duration;
use crate::clock;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// One step of it.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub what: String,
    pub ok: bool,
    pub took_ms: u64,
    pub found: String,
    /// Its entry in the cluster's journal.
    pub journal: Option<String>,
}

/// All of it. What was not measured is `None`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `None`: a recovery that was needed.
    pub drill: Option<String>,
    pub service: String,
    pub version: String,
    pub began_at: String,
    /// On a scratch cluster made from the repositories, not on the cluster itself.
    pub scratch: bool,
    pub steps: Vec<Step>,
    /// From the loss to the first write that was taken.
    pub rto_ms: Option<u64>,
    /// Of what was acknowledged, how much time is missing.
    pub rpo_ms: Option<u64>,
    /// Acknowledged writes that are missing.
    pub lost: Option<u64>,
    pub failed: Option<String>,
}

impl Report {
    pub fn new(drill: Option<&str>, service: &str, scratch: bool) -> Report {
        Report {
            drill: drill.map(str::to_string),
            service: service.to_string(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            began_at: clock::wall(),
            scratch,
            steps: Vec::new(),
            rto_ms: None,
            rpo_ms: None,
            lost: None,
            failed: None,
        }
    }

    /// What it is of: `drill NAME`, `recovery`.
    pub fn title(&self) -> String {
        self.drill.as_ref().map_or("recovery".to_string(), |drill| format!("drill {drill}"))
    }

    /// Where it goes when nobody says.
    pub fn file_name(&self) -> PathBuf {
        let at: String = self.began_at.chars().filter(char::is_ascii_alphanumeric).collect();
        PathBuf::from(format!("{}-{at}", self.title().replace(' ', "-")))
    }

    /// Writes FILE.json and FILE.html; their names.
    pub fn write(&self, file: &Path) -> Result<Vec<String>, Failure> {
        let json = format!("{:#}\n", self.json());
        let mut names = Vec::new();
        for (ending, text) in [("json", json), ("html", self.html())] {
            let mut name = file.as_os_str().to_owned();
            name.push(format!(".{ending}"));
            let path = PathBuf::from(name);
            let mut options = std::fs::OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o640).open(&path);
            let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
            written.map_err(|error| {
                Failure::plain(format!("cannot write the report {}: {error}", path.display()))
            })?;
            names.push(path.display().to_string());
        }
        Ok(names)
    }

    pub fn json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn figures(&self) -> [(&'static str, Option<String>); 3] {
        [
            ("back after (RTO)", self.rto_ms.map(duration)),
            ("missing (RPO)", self.rpo_ms.map(duration)),
            ("acknowledged writes lost", self.lost.map(|lost| lost.to_string())),
        ]
    }

    /// A line of it.
    pub fn summary(&self) -> String {
        let how = if self.failed.is_some() { "FAILED" } else { "passed" };
        let figures = self
            .figures()
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name} {}", value?)));
        let figures: String = figures.map(|figure| format!(", {figure}")).collect();
        format!("{} of {}: {how}{figures}", self.title(), self.service)
    }

    fn html(&self) -> String {
        let mut rows = String::new();
        for (at, step) in self.steps.iter().enumerate() {
            let class = if step.ok { "ok" } else { "bad" };
            let _ = write!(
                rows,
                "<tr class={class}><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
                at + 1,
                escaped(&step.what),
                if step.ok { "done" } else { "failed" },
                duration(step.took_ms),
                escaped(&step.found),
                escaped(step.journal.as_deref().unwrap_or("")),
            );
        }
        let mut figures = String::new();
        for (name, value) in self.figures() {
            let value = value.unwrap_or_else(|| "not measured".to_string());
            let _ = write!(figures, "<dt>{name}<dd>{}", escaped(&value));
        }
        let verdict = match &self.failed {
            Some(why) => format!("<p class=bad>Failed: {}", escaped(why)),
            None => "<p class=ok>Passed.".to_string(),
        };
        let (title, service) = (escaped(&self.title()), escaped(&self.service));
        let place = if self.scratch { "a scratch cluster" } else { "the cluster itself" };
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8>\
             <meta name=color-scheme content=\"light dark\"><title>Everhold: {title}</title><style>\
             body{{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}\
             table{{border-collapse:collapse}}td,th{{padding:.3rem .6rem;text-align:left;\
             border-bottom:1px solid #8884;vertical-align:top}}.bad{{color:#c33}}.ok td:nth-child(3)\
             {{color:#2a2}}dt{{float:left;clear:left;width:14rem}}</style>\
             <h1>Everhold: {title} of {service}</h1>{verdict}\
             <p>Began {}, on {place}, Everhold {}.<dl>{figures}</dl>\
             <table><tr><th><th>step<th><th>took<th>found<th>journal{rows}</table></html>\n",
            escaped(&self.began_at),
            escaped(&self.version),
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
