//! A bucket of an S3-compatible store as a place.
//!
//! Objects are put with `If-None-Match: *`; the probe finds out which store doesn't honour it.
//! Requests are signed by rusty-s3, which does no I/O of its own.

use super::{Existing, Object, PlaceConfig, credentials};
use crate::RepositoryError;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest, Md5};
use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};
use ureq::Timeout;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

/// How long a signature holds. A clock may be off by minutes.
const SIGNED: Duration = Duration::from_secs(900);
const CONNECT: Duration = Duration::from_secs(5);
/// For one request, a whole pack over a slow line included. What took so long is not tried again.
const REQUEST: Duration = Duration::from_secs(300);
/// From the last byte sent to the first of the answer: a line that was cut without a word is given
/// up for a new one.
const ANSWER: Duration = Duration::from_secs(20);
/// A store that let requests wait for nothing is not asked for so long, and each time twice as long:
/// whoever has other places to put a pack is not held up for each.
const DEAF: Duration = Duration::from_secs(15);
const DEAF_MAX: Duration = Duration::from_secs(240);
/// Attempts of a request that got no answer in time.
const DEAF_ATTEMPTS: u32 = 2;
/// Attempts of a request that the store was too busy for, or that got no answer.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);
/// Larger than any object of ours.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// A list comes a thousand names at a time; one that goes on beyond ten million has no end.
const LISTS_MAX: usize = 10_000;
/// What requests are signed for where nothing is said.
const REGION: &str = "us-east-1";
/// Where distributions keep the authorities that a machine trusts.
const AUTHORITIES: [&str; 2] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

pub struct S3 {
    name: String,
    bucket: Bucket,
    credentials: Credentials,
    /// Before each object's name.
    prefix: String,
    agent: ureq::Agent,
    deaf: Mutex<Option<Deaf>>,
}

/// A store that does not answer.
struct Deaf {
    since: Instant,
    pause: Duration,
}

/// An answer that was got.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl S3 {
    pub fn open(config: &PlaceConfig, bucket: &str, prefix: &str) -> Result<S3, RepositoryError> {
        let malformed = |said: String| RepositoryError::Malformed {
            what: format!("the repository {}", config.name),
            said,
        };
        let path = config.credentials_file.as_deref();
        let path = path.ok_or_else(|| malformed("it lacks a credentials_file".to_string()))?;
        let (id, secret) = credentials(path)?;
        let region = config.region.as_deref().unwrap_or(REGION);
        let (endpoint, style) = match &config.endpoint {
            Some(endpoint) => (endpoint.clone(), UrlStyle::Path),
            // A dot in the bucket's name would not fit the certificate.
            None if bucket.contains('.') => {
                (format!("https://s3.{region}.amazonaws.com"), UrlStyle::Path)
            }
            None => (format!("https://s3.{region}.amazonaws.com"), UrlStyle::VirtualHost),
        };
        let url = endpoint.parse().map_err(|_| malformed(format!("{endpoint} is no URL")))?;
        let bucket = Bucket::new(url, style, bucket.to_string(), region.to_string());
        Ok(S3 {
            name: config.name.clone(),
            bucket: bucket.map_err(|error| malformed(error.to_string()))?,
            credentials: Credentials::new(id, secret),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            agent: agent(endpoint.starts_with("https")).map_err(malformed)?,
            deaf: Mutex::default(),
        })
    }

    pub fn put(
        &self,
        object: &str,
        content: &[u8],
        existing: Existing,
    ) -> Result<bool, RepositoryError> {
        let key = self.key(object);
        // Both are signed, so that nobody between can take the condition or the check away. Some
        // stores refuse the newer checksums.
        let sum = BASE64_STANDARD.encode(Md5::digest(content));
        let mut headers = vec![("content-md5", sum.as_str())];
        match existing {
            Existing::Keep => headers.push(("if-none-match", "*")),
            Existing::Replace => {}
        }
        let mut attempts = 0;
        let answer = self.ask("store an object", || {
            attempts += 1;
            let mut action = self.bucket.put_object(Some(&self.credentials), &key);
            headers.iter().for_each(|(name, value)| action.headers_mut().insert(*name, *value));
            let request = self.agent.put(action.sign(SIGNED).as_str());
            let request = headers
                .iter()
                .fold(request, |request, (name, value)| request.header(*name, *value));
            request.send(content)
        })?;
        match answer.status {
            200 => Ok(true),
            // What is there may come from an attempt whose answer was lost.
            412 if attempts > 1 => Ok(self.get(object, None)?.is_some_and(|it| it == content)),
            412 => Ok(false),
            501 if existing == Existing::Keep => Err(RepositoryError::NoConditionalPut {
                place: self.name.clone(),
                said: answer.said(),
            }),
            _ => Err(self.failed("store an object", answer.said())),
        }
    }

    pub fn get(
        &self,
        object: &str,
        part: Option<(u64, usize)>,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let key = self.key(object);
        let answer = self.ask("give an object", || {
            let action = self.bucket.get_object(Some(&self.credentials), &key);
            let request = self.agent.get(action.sign(SIGNED).as_str());
            match part {
                Some((from, len)) => {
                    // No range is empty: whoever wants nothing learns from one byte if it is there.
                    let to = from.saturating_add(len.saturating_sub(1) as u64);
                    request.header("Range", format!("bytes={from}-{to}")).call()
                }
                None => request.call(),
            }
        })?;
        match (answer.status, part) {
            (200, None) => Ok(Some(answer.body)),
            (206, Some((_, len))) => {
                let mut body = answer.body;
                body.truncate(len);
                Ok(Some(body))
            }
            // A store that knows no ranges.
            (200, Some((from, len))) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX).min(answer.body.len());
                let to = from.saturating_add(len).min(answer.body.len());
                Ok(Some(answer.body[from..to].to_vec()))
            }
            // It ends before.
            (416, Some(_)) => Ok(Some(Vec::new())),
            (404, _) if !answer.lacks_bucket() => Ok(None),
            (..) => Err(self.failed("give an object", answer.said())),
        }
    }

    pub fn list(&self, prefix: &str) -> Result<Vec<Object>, RepositoryError> {
        let prefix = self.key(prefix);
        let mut objects = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..LISTS_MAX {
            let answer = self.ask("list objects", || {
                let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
                action.with_prefix(prefix.as_str());
                if let Some(token) = &next {
                    action.with_continuation_token(token.as_str());
                }
                self.agent.get(action.sign(SIGNED).as_str()).call()
            })?;
            if answer.status != 200 {
                return Err(self.failed("list objects", answer.said()));
            }
            let listed = ListObjectsV2::parse_response(&answer.text())
                .map_err(|error| self.failed("list objects", error.to_string()))?;
            for object in listed.contents {
                if let Some(name) = object.key.strip_prefix(&self.prefix) {
                    objects
                        .push(Object { name: name.to_string(), bytes: object.size.unwrap_or(0) });
                }
            }
            next = listed.next_continuation_token;
            if next.is_none() {
                return Ok(objects);
            }
        }
        Err(self.failed("list objects", "its list has no end".to_string()))
    }

    pub fn delete(&self, object: &str) -> Result<(), RepositoryError> {
        let key = self.key(object);
        let answer = self.ask("remove an object", || {
            let action = self.bucket.delete_object(Some(&self.credentials), &key);
            self.agent.delete(action.sign(SIGNED).as_str()).call()
        })?;
        match answer.status {
            200 | 204 => Ok(()),
            404 if !answer.lacks_bucket() => Ok(()),
            _ => Err(self.failed("remove an object", answer.said())),
        }
    }

    fn key(&self, object: &str) -> String {
        format!("{}{object}", self.prefix)
    }

    /// Asks until there is an answer that stays the same, within a few attempts.
    fn ask(
        &self,
        what: &str,
        mut request: impl FnMut() -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Answer, RepositoryError> {
        if self.deaf().as_ref().is_some_and(|deaf| deaf.since.elapsed() < deaf.pause) {
            return Err(self.failed(what, "it did not answer a moment ago".to_string()));
        }
        let mut pause = PAUSE;
        for attempt in 1.. {
            let result = request().and_then(|mut response| {
                let status = response.status().as_u16();
                let body =
                    response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
                Ok(Answer { status, body })
            });
            let again = match &result {
                Ok(answer) => answer.is_passing(),
                Err(ureq::Error::Timeout(Timeout::Global)) => false,
                Err(ureq::Error::Timeout(_)) => attempt < DEAF_ATTEMPTS,
                Err(_) => true,
            };
            if again && attempt < ATTEMPTS {
                sleep(pause);
                pause *= 2;
                continue;
            }
            self.heard(!matches!(result, Err(ureq::Error::Timeout(_))));
            return result.map_err(|error| self.failed(what, error.to_string()));
        }
        Err(self.failed(what, "no answer".to_string()))
    }

    fn deaf(&self) -> MutexGuard<'_, Option<Deaf>> {
        self.deaf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self, answered: bool) {
        let mut deaf = self.deaf();
        let before = deaf.take().map(|deaf| deaf.pause);
        if !answered {
            let pause = before.map_or(DEAF, |pause| (pause * 2).min(DEAF_MAX));
            *deaf = Some(Deaf { since: Instant::now(), pause });
        }
    }

    /// Nothing behind a question mark is told: it may be a signature.
    fn failed(&self, what: &str, said: String) -> RepositoryError {
        let said = said.split('?').next().unwrap_or_default().to_string();
        RepositoryError::Remote { place: self.name.clone(), what: what.to_string(), said }
    }
}

impl Answer {
    fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    /// What an error's answer has between these tags.
    fn tag(&self, tag: &str) -> Option<String> {
        let text = self.text();
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        rest.split_once('<').map(|(value, _)| value.to_string())
    }

    /// Whether it is worth asking again. 409: another write of the same object is under way.
    fn is_passing(&self) -> bool {
        match self.status {
            409 | 429 | 500 | 502.. => true,
            // What arrived was not what was sent, or arrived too slowly.
            400 => {
                matches!(self.tag("Code").as_deref(), Some("BadDigest" | "RequestTimeout"))
            }
            _ => false,
        }
    }

    fn lacks_bucket(&self) -> bool {
        self.tag("Code").as_deref() == Some("NoSuchBucket")
    }

    fn said(&self) -> String {
        let said = ["Code", "Message"].iter().filter_map(|tag| self.tag(tag));
        let said = said.collect::<Vec<_>>().join(": ");
        let said = said.chars().filter(|c| !c.is_control()).take(300).collect::<String>();
        format!("HTTP {} {said}", self.status).trim_end().to_string()
    }
}

/// A client that trusts whom the machine trusts.
fn agent(secure: bool) -> Result<ureq::Agent, String> {
    let mut config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(ANSWER))
        .timeout_global(Some(REQUEST))
        // A request is signed for one host.
        .max_redirects(0)
        .https_only(secure);
    if secure {
        let file = AUTHORITIES.iter().map(Path::new).find(|path| path.exists());
        let file = file.ok_or_else(|| {
            format!("this machine trusts no authority: {} is not there", AUTHORITIES[0])
        })?;
        let pem = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let trusted: Vec<Certificate<'static>> = parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::Specific(Arc::new(trusted)))
            .unversioned_rustls_crypto_provider(provider);
        config = config.tls_config(tls.build());
    }
    Ok(config.build().new_agent())
}
