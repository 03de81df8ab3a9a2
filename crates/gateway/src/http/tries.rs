//! One try of a request, at one instance, and what comes of it for the instance and its service.

use super::admit::Pass;
use super::backend::{Active, Backend, Conn, Need};
use super::exchange::{Client, Failure, ask, hear};
use super::hedge::Runner;
use super::ledger::{End, TRIES_MAX, Try};
use super::world::{Picked, Route, Service, World};
use everhold_core::http::retry::Body;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// One attempt to connect: see `Limits::connect_max`.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// Where a request was tried.
#[derive(Default)]
pub struct Tried {
    indices: [usize; TRIES_MAX],
    places: usize,
    /// Of all that count; a connection that had closed does not.
    pub tries: u32,
}

impl Tried {
    pub fn indices(&self) -> &[usize] {
        &self.indices[..self.places]
    }

    pub fn has_room(&self) -> bool {
        self.places < TRIES_MAX
    }

    fn add(&mut self, index: usize) -> usize {
        self.indices[self.places] = index;
        self.places += 1;
        self.places - 1
    }

    /// Nothing was tried there, after all.
    pub fn forget(&mut self, place: usize) {
        self.indices[place] = usize::MAX;
    }
}

/// One try: where, why there, and how long it may take.
pub struct Plan<'b> {
    pub picked: Picked,
    pub backend: &'b Backend,
    /// Among those tried.
    pub place: usize,
    pub began: Instant,
    pub until: Instant,
    /// What the service gives a try.
    bears: Duration,
    /// Another one is still on its way.
    pub is_second: bool,
}

impl<'b> Plan<'b> {
    pub fn new(
        (client, route, picked): (&Client, &'b Route, Picked),
        tried: &mut Tried,
        (now, deadline): (Instant, Instant),
        now_ms: u64,
    ) -> Plan<'b> {
        let service = &route.service;
        let place = tried.add(picked.index);
        let per_try = service.spec.try_timeout_ms.map(Duration::from_millis);
        let bears = per_try.unwrap_or(route.timeout);
        let bears = impatience(client, service, tried, now_ms)
            .map_or(bears, |patience| patience.min(bears));
        Plan {
            backend: &service.backends[picked.index],
            picked,
            place,
            began: now,
            until: deadline.min(now + bears),
            bears,
            is_second: false,
        }
    }

    /// Anybody may give an instance so little time that it can't answer; who gives it most of what the
    /// service does says something of it.
    fn is_hurried(&self) -> bool {
        (self.until - self.began) * 2 < self.bears
    }

    pub fn opens_until(&self) -> Instant {
        self.until.min(self.began + CONNECT_WITHIN)
    }

    pub fn told(&self, begun: Instant, ended: Instant, end: End, outcome: &'static str) -> Try {
        Try {
            backend: self.backend.name.clone(),
            why: self.picked.why,
            after_us: (self.began - begun).as_micros() as u64,
            took_us: (ended - self.began).as_micros() as u64,
            end,
            outcome,
        }
    }

    /// The head of an answer came.
    pub fn answered(&self, world: &World, pass: &Pass<'_>, status: u16, ended: Instant) {
        let took = ended - self.began;
        let hurried = self.is_hurried();
        // What it can't do says something of it; what the client did wrong doesn't.
        match status {
            // It was told for how long it is waited for, and says that this was too short.
            504 if hurried => {}
            500.. => alarm(world, self.backend.live.fail(true)),
            _ => self.backend.live.succeed(),
        }
        if !(hurried && status == 504) {
            pass.answered(world, status, took);
        }
        self.took(pass.service(), took, world.ms(ended));
    }

    /// It came to nothing, and not since an idle connection was closed.
    pub fn failed(&self, world: &World, pass: &Pass<'_>, failure: &Failure, ended: Instant) {
        let took = ended - self.began;
        let hurried = self.is_hurried();
        // That this process may open no more files says nothing of the instance, nor does a client that
        // is in a hurry.
        if failure.is_late() {
            match hurried {
                true => self.backend.took(took, world.ms(ended)),
                false => self.took(pass.service(), took, world.ms(ended)),
            }
        }
        if !(failure.is_ours() || hurried && failure.is_late()) {
            alarm(world, self.backend.live.fail(failure.has_reached()));
            pass.failed(world, failure);
        }
    }

    /// Another one was sooner. It took that long at least, and nobody knows what would have become of it.
    pub fn left(&self, world: &World, pass: &Pass<'_>, ended: Instant) {
        if !self.is_second {
            self.took(pass.service(), ended - self.began, world.ms(ended));
        }
    }

    /// Second tries are made of slow requests alone, and would say that the service is slower, or
    /// quicker, than it is.
    fn took(&self, service: &Service, took: Duration, now_ms: u64) {
        self.backend.took(took, now_ms);
        if let Some(latency) = service.latency.as_ref().filter(|_| !self.is_second) {
            latency.took(took);
        }
    }
}

/// How long a try is waited for because another one may follow it, elsewhere.
fn impatience(client: &Client, service: &Service, tried: &Tried, now_ms: u64) -> Option<Duration> {
    let latency = service.latency.as_ref().filter(|_| service.spec.try_timeout_auto)?;
    let patience = latency.patience()?;
    let may = may_follow(client, service, tried)
        && service.has_others(tried.indices())
        && service.budget.borrow_mut().is_left(now_ms);
    may.then_some(patience)
}

/// Whether another try may be made, for all that the request is.
fn may_follow(client: &Client, service: &Service, tried: &Tried) -> bool {
    tried.tries < service.spec.retries
        && client.request.method.is_idempotent()
        && client.body() == Body::None
}

/// From when on another one is made beside a try.
pub fn slow_at(
    client: &Client,
    service: &Service,
    tried: &Tried,
    plan: &Plan<'_>,
) -> Option<Instant> {
    let slow_after = service.latency.as_ref()?.slow_after()?;
    let may = may_follow(client, service, tried)
        && client.trail.hedge.is_none()
        // What goes on in another protocol would begin there twice.
        && !client.request.upgrade;
    may.then(|| plan.began + slow_after).filter(|at| *at < plan.until)
}

fn alarm(world: &World, is_due: bool) {
    if is_due {
        world.shared.alarm.notify_one();
    }
}

/// A try that came to nothing.
pub struct NoAnswer {
    pub failure: Failure,
    /// Over a connection that had been idle and broke without a word, or was ended for what others did,
    /// or takes no more.
    pub stale: bool,
}

impl NoAnswer {
    pub fn on(conn: &Conn, failure: Failure) -> NoAnswer {
        let stale = match failure {
            Failure::Broken(_) => conn.is_stale(),
            // It goes on over another one.
            Failure::Refused { leaving } => leaving,
            Failure::Connect(_)
            | Failure::Bad(_)
            | Failure::Timeout
            | Failure::Client { .. }
            | Failure::Slow => false,
        };
        NoAnswer { failure, stale }
    }

    pub fn since_the_client_left() -> NoAnswer {
        NoAnswer { failure: Failure::Client { malformed: None }, stale: false }
    }

    pub fn connect(error: io::Error) -> NoAnswer {
        NoAnswer { failure: Failure::Connect(error), stale: false }
    }
}

/// What comes back of a try is the connection on which it is answered. From beginning to end it is seen
/// to be on its way.
pub type Ending<'b> = Result<(Conn, Active<'b>), NoAnswer>;

pub type Opening<'b> = Pin<Box<dyn Future<Output = io::Result<Conn>> + 'b>>;

/// How far a try has come of which nothing is heard.
pub enum Stage<'b> {
    Opening(Opening<'b>),
    Asked(Conn),
}

pub enum Course<'b> {
    Ended(Plan<'b>, Ending<'b>),
    /// It is slow.
    Slow(Box<Runner<'b>>),
}

/// Sends the request to one instance; `slow_at`: if nothing came till then, it is to be told.
pub async fn one_try<'b>(
    client: &mut Client,
    plan: Plan<'b>,
    anew: bool,
    slow_at: Option<Instant>,
    begun: Instant,
) -> Course<'b> {
    let active = Active::new(&plan.backend.live);
    let need = match client.request.method.is_idempotent() {
        _ if anew => Need::New,
        true => Need::Good,
        false => Need::Fresh,
    };
    let slow_at = slow_at.unwrap_or(plan.until);
    let mut conn = match plan.backend.reuse(need, plan.began) {
        Some(conn) => conn,
        None => {
            let mut opening: Opening<'_> = Box::pin(plan.backend.connect(need));
            let until = plan.opens_until();
            match timeout_at(slow_at.min(until), &mut opening).await {
                Ok(Ok(conn)) => conn,
                Ok(Err(error)) => return Course::Ended(plan, Err(NoAnswer::connect(error))),
                Err(_) if slow_at < until => {
                    return Course::Slow(Runner::new(
                        plan,
                        active,
                        Stage::Opening(opening),
                        client,
                    ));
                }
                Err(_) => {
                    let late = NoAnswer::connect(ErrorKind::TimedOut.into());
                    return Course::Ended(plan, Err(late));
                }
            }
        }
    };
    let asked = Instant::now();
    client.request.give(plan.until.saturating_duration_since(asked), asked - begun);
    let mut asking = ask(client, &mut conn, slow_at).await;
    if slow_at < plan.until && matches!(asking, Err(Failure::Timeout | Failure::Slow)) {
        // Of what has begun to answer no other is asked.
        if client.response.status == 0 && conn.buf.is_empty() && client.up.is_over() {
            return Course::Slow(Runner::new(plan, active, Stage::Asked(conn), client));
        }
        asking = hear(client, &mut conn, plan.until, false).await;
    }
    let ending = match asking {
        Ok(()) => Ok((conn, active)),
        Err(failure) => Err(NoAnswer::on(&conn, failure)),
    };
    Course::Ended(plan, ending)
}
