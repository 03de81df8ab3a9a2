//! Why a command failed, for people and as JSON, and the exit code.

use crate::code::{self, Code};
use crate::spec::Fault;
use crate::{log, supervisor};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// Of a role that whoever supervises it need not start again: it would end the same way.
const NOT_AGAIN: u8 = 3;

/// What went wrong.
#[derive(Debug)]
pub enum Failure {
    /// With code, what was tried on whom, and next step.
    Error { error: Map<String, Value>, exit: u8 },
    /// Faults of a spec or of the machine.
    Faults(Vec<Fault>),
    /// Everything was said on stdout.
    Told { exit: u8 },
    /// Nobody reads what is written any more, as after `| head`: no fault of anybody.
    NobodyReads,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>, next: impl Into<String>) -> Failure {
        let error = json!({ "code": code, "message": message.into(), "next": next.into() });
        Failure::of_answer(&error)
    }

    pub fn plain(message: impl Into<String>) -> Failure {
        Failure::of_answer(&json!({ "message": message.into() }))
    }

    /// From an error's text, `CODE what was tried; next step: what to do`.
    pub fn of_text(text: &str) -> Failure {
        let Some((code, rest)) = code::split(text) else { return Failure::plain(text) };
        let (what, next) = rest.split_once("; next step: ").unwrap_or((rest, code.next()));
        Failure::new(code, what, next)
    }

    /// The same of another process, with that code if the text has none.
    pub fn of_text_or(text: &str, code: Code) -> Failure {
        match code::split(text) {
            Some(_) => Failure::of_text(text),
            None => Failure::new(code, text, code.next()),
        }
    }

    /// The error object of the API's answer.
    pub fn of_answer(error: &Value) -> Failure {
        Failure::Error { error: error.as_object().cloned().unwrap_or_default(), exit: 1 }
    }

    /// What ended a role that should go on.
    pub fn of_role(error: anyhow::Error) -> Failure {
        match error.downcast::<supervisor::Faults>() {
            Ok(faults) => Failure::Faults(faults.0),
            Err(error) => match Failure::of_text(&format!("{error:#}")) {
                Failure::Error { error, .. } if error.get("code") == Some(&json!(Code::NoNode)) => {
                    Failure::Error { error, exit: NOT_AGAIN }
                }
                other => other,
            },
        }
    }

    /// The value of a key beside code, message and next step.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Failure::Error { error, .. } => error.get(key),
            Failure::Faults(_) | Failure::Told { .. } | Failure::NobodyReads => None,
        }
    }

    /// Says it on stderr.
    pub fn report(self, json: bool) -> ExitCode {
        match self {
            Failure::NobodyReads => ExitCode::SUCCESS,
            Failure::Told { exit } => ExitCode::from(exit),
            Failure::Faults(faults) => {
                if json {
                    say(&json!({ "faults": faults }).to_string());
                } else {
                    faults.iter().for_each(|fault| say(&fault.to_string()));
                }
                ExitCode::from(2)
            }
            Failure::Error { error, exit } => {
                say(&if json { json!({ "error": error }).to_string() } else { text(&error) });
                ExitCode::from(exit)
            }
        }
    }
}

fn text(error: &Map<String, Value>) -> String {
    let get = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    let message = error.get("message").and_then(Value::as_str).unwrap_or("no reason was given");
    code::line(None, get("code"), message, get("next"))
}

/// To stderr; that nobody reads it is no reason to fail.
pub fn say(text: &str) {
    use std::io::Write;
    if log::format() == log::Format::Json {
        return tracing::error!("{text}");
    }
    let _ = writeln!(std::io::stderr(), "{text}");
}
