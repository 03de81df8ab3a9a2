//! The client of the API.

use super::failure::Failure;
use crate::code::Code;
use crate::context::Context;
use crate::secrets;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// The API is on this machine.
const CONNECT: Duration = Duration::from_secs(2);
/// A forced failover takes longest; the API itself gives up before this.
const ANSWER: Duration = Duration::from_secs(50);
/// Answers are a status or a page of the journal.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// The running cluster, as a command sees it.
pub struct Client {
    pub context: Context,
    /// Answers go out as JSON.
    pub json: bool,
    token: String,
    who: String,
    agent: ureq::Agent,
}

impl Client {
    /// The cluster of `data`, or the one that was started last.
    pub fn find(data: Option<&Path>, json: bool) -> Result<Client, Failure> {
        let context = Context::find(data).map_err(not_found)?;
        let token = secrets::read(&context.token_file).map_err(|error| {
            let text = format!(
                "cannot read the token of cluster {}, {}: {error}",
                context.cluster,
                context.token_file.display()
            );
            Failure::new(Code::TokenUnreadable, text, Code::TokenUnreadable.next())
        })?;
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(ANSWER))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None);
        let agent = config.build().new_agent();
        Ok(Client { context, json, token, who: who(), agent })
    }

    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        let request = self.agent.get(self.url(path));
        let request = request.header("authorization", format!("Bearer {}", self.token));
        self.answer(request.call())
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.post_text(path, "application/json", &body.to_string())
    }

    pub fn post_text(&self, path: &str, kind: &str, body: &str) -> Result<Value, Failure> {
        let request = self
            .agent
            .post(self.url(path))
            .header("authorization", format!("Bearer {}", self.token))
            .header("everhold-user", &self.who)
            .header("content-type", kind);
        self.answer(request.send(body))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.context.api)
    }

    fn answer(
        &self,
        called: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, Failure> {
        let mut response = called.map_err(|error| self.unreached(&error))?;
        let status = response.status();
        let text = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_string()
            .map_err(|error| self.unreached(&error))?;
        let not_ours = || {
            let text = format!(
                "what answers at {} is not the API of an Everhold: {status}",
                self.context.api
            );
            Failure::new(Code::NotOurApi, text, Code::NotOurApi.next())
        };
        let value: Value = serde_json::from_str(&text).map_err(|_| not_ours())?;
        if status.is_success() {
            return Ok(value);
        }
        match value.get("error") {
            Some(error) if error.is_object() => Err(Failure::of_answer(error)),
            Some(_) | None => Err(not_ours()),
        }
    }

    fn unreached(&self, error: &ureq::Error) -> Failure {
        let Context { cluster, api, data, .. } = &self.context;
        let text = match error {
            ureq::Error::Timeout(_) => {
                format!("the API of cluster {cluster} at {api} does not answer in time")
            }
            other => format!("cannot reach the API of cluster {cluster} at {api}: {other}"),
        };
        let next = format!(
            "`everhold up --data {}` starts it again; clients of the database may still be \
             served meanwhile",
            data.display()
        );
        Failure::new(Code::NoAnswer, text, next)
    }
}

fn not_found(error: anyhow::Error) -> Failure {
    Failure::of_text(&format!("{error:#}"))
}

/// For the journal: the person behind the command, as far as the environment tells.
fn who() -> String {
    let told = ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|it| !it.is_empty() && it.is_ascii()));
    told.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// A name as a part of a path or query.
pub fn segment(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
