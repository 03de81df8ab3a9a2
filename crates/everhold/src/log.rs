//! Logs: lines for people, or JSON in the fields of the Elastic Common Schema for whoever collects
//! them.

use serde_json::{Map, Value, json};
use std::fmt;
use std::sync::OnceLock;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The variable by which what is started hears of the form.
pub const VARIABLE: &str = "EVERHOLD_LOG_FORMAT";
/// The version of the schema whose names are used.
const ECS_VERSION: &str = "8.11.0";

/// The form of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

impl Format {
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Json => "json",
        }
    }
}

static FORMAT: OnceLock<Format> = OnceLock::new();
/// Which of the cluster's processes this is.
static NODE: OnceLock<String> = OnceLock::new();

/// Begins the log of a process that goes on until it is ended.
pub fn begin(format: Format) {
    let _ = FORMAT.set(format);
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false);
    // A line that a full disk doesn't take is no reason to end.
    let log = log.log_internal_errors(false);
    match format {
        Format::Text => log.init(),
        Format::Json => {
            log.event_format(Ecs).init();
            std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        }
    }
}

/// The form, as it was asked for.
pub fn format() -> Format {
    FORMAT.get().copied().unwrap_or_default()
}

/// A line of a process that has no log but stderr: the minder.
pub fn line(text: &str) {
    use std::io::Write;
    match format() {
        Format::Text => drop(writeln!(std::io::stderr(), "{text}")),
        Format::Json => tracing::warn!("{text}"),
    }
}

/// Names this process in its log.
pub fn name(node: &str) {
    let _ = NODE.set(node.to_string());
}

/// The message of a line of such a log; a line for people is one as it is.
pub fn message(line: &str) -> String {
    let read: Option<Value> = serde_json::from_str(line).ok();
    let message = read.as_ref().and_then(|line| line.get("message")?.as_str());
    message.unwrap_or(line).to_string()
}

/// One object in a line for each event.
struct Ecs;

impl<S, N> FormatEvent<S, N> for Ecs
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let meta = event.metadata();
        let mut line = json!({
            "@timestamp": crate::clock::wall(),
            "log.level": meta.level().as_str().to_lowercase(),
            "message": fields.message,
            "ecs.version": ECS_VERSION,
            "service.name": "everhold",
            "log.logger": meta.target(),
            "process.pid": std::process::id(),
        });
        if let (Some(node), Some(line)) = (NODE.get(), line.as_object_mut()) {
            line.insert("service.node.name".to_string(), json!(node));
        }
        if let Some(line) = line.as_object_mut() {
            line.append(&mut fields.others);
        }
        writeln!(writer, "{line}")
    }
}

/// The fields of an event, by the schema's names where it has one.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn take(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value.as_str().map_or(value.to_string(), str::to_string),
            "error" => drop(self.others.insert("error.message".to_string(), value)),
            other => drop(self.others.insert(format!("everhold.{other}"), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, json!(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.take(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, json!(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.take(field, json!(value.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_with_the_schema_s_names() {
        let kept = Kept::default();
        let writer = kept.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).event_format(Ecs);
        tracing::subscriber::with_default(log.finish(), || {
            let error = io::Error::other("the disk \"x\"\nis full");
            tracing::warn!(%error, revision = 7u64, whole = true, "a new\ntable");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        let expected = [
            ("log.level", json!("warn")),
            ("message", json!("a new\ntable")),
            ("error.message", json!("the disk \"x\"\nis full")),
            ("everhold.revision", json!(7)),
            ("everhold.whole", json!(true)),
            ("service.name", json!("everhold")),
            ("ecs.version", json!(ECS_VERSION)),
        ];
        for (name, value) in expected {
            assert_eq!(line[name], value, "{name} in {text}");
        }
        let at: Result<jiff::Timestamp, _> = line["@timestamp"].as_str().unwrap().parse();
        assert!(at.is_ok(), "{text}");
        assert_eq!(message(&text), "a new\ntable");
        assert_eq!(message("E210 cannot use b.pem"), "E210 cannot use b.pem");
    }
}
