//! The connection to one of the endpoints at a time, and what its failures mean.
//!
//! A call that gets no answer in time gives its connection up for a new one, to the next endpoint
//! if there are several: a frozen server or a lost machine leaves a connection that looks alive.
//! There is no timeout for connecting: an attempt that waits on a frozen server is done the moment
//! it thaws.
//!
//! Whoever was led away comes home: the first endpoint is this machine's own member where it has
//! one, and the loss of another machine then costs this one nothing.

use std::error::Error as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, GetOptions, Identity, TlsOptions};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
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
/// How often who is away looks whether the first endpoint is back, so that one that comes and goes
/// costs a move in so long.
const HOME_EVERY: Duration = Duration::from_secs(5);
/// One that answers no read within this is not worth the move.
const PROOF_WITHIN: Duration = Duration::from_millis(500);

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
    current: watch::Sender<Current>,
}

struct Current {
    /// Most wanted first.
    endpoints: Vec<String>,
    /// Counts connections, so that of all calls that fail on one only the first replaces it.
    generation: u64,
    /// The generation that last came home; a later one is where a fault led.
    home: u64,
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
    pub async fn start(config: EtcdConfig) -> Result<Arc<Self>, StoreError> {
        let Some(first) = config.endpoints.first().cloned() else {
            return Err(StoreError::Config { why: "no endpoints".to_owned(), source: None });
        };
        let client = prepare(&first, config.tls.as_ref()).await?;
        let endpoints = config.endpoints;
        let current = Current { endpoints, generation: 0, home: 0, endpoint: first, client };
        let current = watch::Sender::new(current);
        let link = Arc::new(Link { tls: config.tls, deadline: config.deadline, current });
        tokio::spawn(come_home(Arc::downgrade(&link)));
        Ok(link)
    }

    pub fn whom(&self) -> String {
        format!("etcd at {}", self.current.borrow().endpoints.join(", "))
    }

    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    pub fn nearest(&self) -> String {
        self.current.borrow().endpoint.clone()
    }

    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// The connection to use now, and its generation for [`Link::replace`].
    pub fn client(&self) -> (u64, Client) {
        let current = self.current.borrow();
        (current.generation, current.client.clone())
    }

    pub fn set_endpoints(&self, endpoints: Vec<String>) {
        if !endpoints.is_empty() {
            self.current.send_modify(|current| current.endpoints = endpoints);
        }
    }

    /// Gives up the connection of this generation for one to the next endpoint, unless that has been
    /// done. The certificate is read anew: it may have been renewed meanwhile.
    pub async fn replace(&self, generation: u64) {
        let next = {
            let current = self.current.borrow();
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
        self.swap(generation, next, client, false);
    }

    /// Takes a connection to the first endpoint if a fault led away from it, or if it is another
    /// one now. A read has to go through it first. What runs on the old connection ends there.
    async fn come_home(&self) {
        let (generation, first) = {
            let current = self.current.borrow();
            let first = &current.endpoints[0];
            if current.generation == current.home && current.endpoint == *first {
                return;
            }
            (current.generation, first.clone())
        };
        // What keeps it from that was told when the connection before was given up.
        let Ok(mut client) = prepare(&first, self.tls.as_ref()).await else { return };
        let read = client.get("home", Some(GetOptions::new().with_count_only()));
        if matches!(timeout(PROOF_WITHIN, read).await, Ok(Ok(_))) {
            self.swap(generation, first, client, true);
        }
    }

    /// Puts another connection in the place of this generation's, if that is still the one.
    fn swap(&self, generation: u64, endpoint: String, client: Client, home: bool) {
        self.current.send_if_modified(|current| {
            if current.generation != generation {
                return false;
            }
            (current.generation, current.endpoint, current.client) =
                (generation + 1, endpoint, client);
            if home {
                current.home = current.generation;
            }
            true
        });
    }

    /// Returns when a connection later than this generation has come home. One that a fault led to
    /// is no reason to leave a stream that works: nobody knows whether that one does.
    pub async fn came_home(&self, generation: u64) {
        let mut current = self.current.subscribe();
        // The sender is here, so there is no error.
        let _home = current.wait_for(|current| current.home > generation).await;
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
        let endpoints = u32::try_from(self.current.borrow().endpoints.len()).unwrap_or(u32::MAX);
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

/// Looks as long as there is a link.
async fn come_home(link: Weak<Link>) {
    loop {
        sleep(HOME_EVERY).await;
        let Some(link) = link.upgrade() else { return };
        link.come_home().await;
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
