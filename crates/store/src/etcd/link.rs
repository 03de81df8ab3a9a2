//! The connection to one of the endpoints at a time, and what its failures mean.
//!
//! A call that gets no answer in time gives its connection up for a new one, to the next endpoint
//! if there are several: a frozen server or a lost machine leaves a connection that looks alive.
//! There is no timeout for connecting: an attempt that waits on a frozen server is done the moment
//! it thaws.

use std::error::Error as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, ConnectError};

use super::{EtcdConfig, TlsFiles};
use crate::StoreError;
use crate::error::NoAnswer;

/// etcd ends connections that are pinged more often than each 5 s, or while nothing runs on them.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Between two attempts of one call. A member that restarts is back within some 100 ms.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// An attempt with less time left than this could end in doubt only because it began too late.
const ATTEMPT_MIN: Duration = Duration::from_millis(200);

/// Whether a call may be made again when it is unknown if the first one was done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Or what does no harm when done twice.
    Read,
    Write,
}

pub(super) struct Link {
    tls: Option<TlsFiles>,
    deadline: Duration,
    current: Mutex<Current>,
}

struct Current {
    /// Most wanted first.
    endpoints: Vec<String>,
    /// Counts connections, so that of all calls that fail on one only the first replaces it.
    generation: u64,
    /// The one that `client` calls.
    endpoint: String,
    client: Client,
}

/// What a failed call says about whether it was done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It never left.
    NotSent,
    /// The server read it and did not do it.
    Declined,
    /// It may have been done.
    Broken,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("whom", &self.whom()).finish_non_exhaustive()
    }
}

impl Link {
    pub async fn new(config: EtcdConfig) -> Result<Self, StoreError> {
        let Some(first) = config.endpoints.first().cloned() else {
            return Err(StoreError::Config { why: "no endpoints".to_owned(), source: None });
        };
        let client = prepare(&first, config.tls.as_ref()).await?;
        let endpoints = config.endpoints;
        let current = Mutex::new(Current { endpoints, generation: 0, endpoint: first, client });
        Ok(Link { tls: config.tls, deadline: config.deadline, current })
    }

    pub fn whom(&self) -> String {
        format!("etcd at {}", self.current().endpoints.join(", "))
    }

    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    pub fn nearest(&self) -> String {
        self.current().endpoint.clone()
    }

    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to use now, and its generation for [`Link::replace`].
    pub fn client(&self) -> (u64, Client) {
        let current = self.current();
        (current.generation, current.client.clone())
    }

    pub fn set_endpoints(&self, endpoints: Vec<String>) {
        if !endpoints.is_empty() {
            self.current().endpoints = endpoints;
        }
    }

    /// Gives up the connection of this generation for one to the next endpoint, unless that has been
    /// done. The certificate is read anew: it may have been renewed meanwhile.
    pub async fn replace(&self, generation: u64) {
        let next = {
            let current = self.current();
            if current.generation != generation {
                return;
            }
            let at = current.endpoints.iter().position(|it| *it == current.endpoint);
            let next = at.map_or(0, |at| (at + 1) % current.endpoints.len());
            current.endpoints[next].clone()
        };
        let client = match prepare(&next, self.tls.as_ref()).await {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!(%error, endpoint = next, "cannot prepare a connection to etcd");
                return;
            }
        };
        let mut current = self.current();
        if current.generation == generation {
            (current.generation, current.endpoint, current.client) = (generation + 1, next, client);
        }
    }

    /// Makes a call until it succeeds, is declined, must not be made again, or the deadline is
    /// over. `what` completes "cannot …".
    pub async fn call<T, F>(
        &self,
        what: &'static str,
        kind: Kind,
        call: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + self.deadline;
        // A read that may be made again leaves time to ask the other endpoints.
        let endpoints = u32::try_from(self.current().endpoints.len()).unwrap_or(u32::MAX);
        let attempt = match kind {
            Kind::Read => self.deadline / endpoints,
            Kind::Write => self.deadline,
        };
        loop {
            let (generation, client) = self.client();
            let until = deadline.min(Instant::now() + attempt);
            let (fault, error) = match timeout_at(until, call(client)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => (fault(&error), error.into()),
                Err(_) => (Fault::Broken, NoAnswer(attempt).into()),
            };
            if fault == Fault::Declined {
                return Err(StoreError::Refused { what, whom: self.whom(), source: error });
            }
            self.replace(generation).await;
            if fault == Fault::Broken && kind == Kind::Write {
                return Err(StoreError::Unknown { what, whom: self.whom(), source: error });
            }
            if Instant::now() + RETRY_AFTER + ATTEMPT_MIN >= deadline {
                return Err(StoreError::Unavailable { what, whom: self.whom(), source: error });
            }
            sleep(RETRY_AFTER).await;
        }
    }
}

/// A client that connects with its first call.
async fn prepare(endpoint: &str, files: Option<&TlsFiles>) -> Result<Client, StoreError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|source| StoreError::Config {
            why: format!("cannot read {}", path.display()),
            source: Some(source.into()),
        })
    };
    let mut options = ConnectOptions::new()
        .with_keep_alive(PING_EVERY, PING_ANSWER_WITHIN)
        .with_keep_alive_while_idle(false)
        .with_require_leader(true);
    if let Some(files) = files {
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(read(&files.ca)?))
            .identity(Identity::from_pem(read(&files.cert)?, read(&files.key)?));
        options = options.with_tls(tls);
    }
    let connected = Client::connect([endpoint], Some(options)).await;
    connected.map_err(|source| StoreError::Config {
        why: format!("cannot prepare a connection to {endpoint}"),
        source: Some(source.into()),
    })
}

/// Whether the server said that what was asked for does not exist.
pub(super) fn is_not_found(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let error = error.downcast_ref::<Error>();
    matches!(error, Some(Error::GRpcStatus(status)) if status.code() == Code::NotFound)
}

fn fault(error: &Error) -> Fault {
    let Error::GRpcStatus(status) = error else { return Fault::Broken };
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return Fault::NotSent;
        }
        cause = error.source();
    }
    // A status with a cause was made on this side, whatever its code.
    let answered = status.source().is_none();
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated
            if answered =>
        {
            Fault::Declined
        }
        // etcd also answers "unavailable" to what it has already passed to its log.
        _ => Fault::Broken,
    }
}
