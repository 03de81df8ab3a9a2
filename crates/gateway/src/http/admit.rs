//! Whether a request goes on to its service, when, and what it holds while it does: a place of its
//! route's and one of its service's, and the leave of the breaker.

use super::exchange::{Client, Failure, Leaving};
use super::gate::{Entry, Gate, Permit};
use super::ledger::Met;
use super::switch::{Passage, Switch};
use super::world::{Route, Service, World};
use everhold_core::http::breaker::Said;
use everhold_core::http::queue::Denied;
use std::cell::Cell;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// Who is turned away by a queue may come back then: what is crowded now may not be in a second, and
/// less can't be said in HTTP.
pub const AGAIN_AFTER_S: u64 = 1;

/// What a request holds until its answer is over, or it goes on as a tunnel: tunnels are no work, as
/// they aren't for balancing, and would hold their places for days.
pub struct Pass<'r> {
    /// When it was let in.
    pub at: Instant,
    route: &'r Route,
    /// It is the breaker's probe, that was put off to then.
    probe: Option<u64>,
    /// Something was counted of it.
    counted: Cell<bool>,
    places: (Option<Permit>, Option<Permit>),
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let (Some(until_ms), false) = (self.probe, self.counted.get())
            && let Some(switch) = &self.route.service.switch
        {
            switch.give_back(until_ms);
        }
    }
}

/// It goes nowhere.
pub enum Halt {
    Turned {
        why: &'static str,
        again_after_s: u64,
    },
    /// Its client waits no longer.
    Gone,
}

/// Lets a request in, at once or when its turn has come. `deadline`: when its answer has to be there.
pub async fn admit<'r>(
    client: &mut Client,
    route: &'r Route,
    world: &World,
    (begun, deadline): (Instant, Instant),
) -> Result<Pass<'r>, Halt> {
    let service = &route.service;
    let places = (None, None);
    let mut pass = Pass { at: begun, route, probe: None, counted: Cell::new(false), places };
    let Some(switch) = &service.switch else {
        take_places(client, &mut pass, deadline).await?;
        return Ok(pass);
    };
    let ms = |at| world.shared.guards.ms(at);
    // Of who is in a hurry nothing may be learned: it is no probe.
    let hurried = deadline.saturating_duration_since(begun) * 2 < route.timeout;
    // Nobody waits for what is closed.
    match switch.look(ms(begun)) {
        Passage::Probe { .. } if hurried => return Err(broken(client, 0)),
        Passage::Nobody { for_ms } => return Err(broken(client, for_ms)),
        Passage::All | Passage::Probe { .. } => {}
    }
    take_places(client, &mut pass, deadline).await?;
    match switch.pass(ms(pass.at)) {
        Passage::All => {}
        Passage::Probe { until_ms } => pass.probe = Some(until_ms),
        Passage::Nobody { for_ms } => return Err(broken(client, for_ms)),
    }
    Ok(pass)
}

async fn take_places(
    client: &mut Client,
    pass: &mut Pass<'_>,
    deadline: Instant,
) -> Result<(), Halt> {
    let route = pass.route;
    if let Some(gate) = &route.gate {
        pass.places.0 = Some(place(client, gate, pass, deadline, "the route is overloaded").await?);
    }
    if let Some(gate) = &route.service.gate {
        pass.places.1 =
            Some(place(client, gate, pass, deadline, "the service is overloaded").await?);
    }
    Ok(())
}

async fn place(
    client: &mut Client,
    gate: &Arc<Gate>,
    pass: &mut Pass<'_>,
    deadline: Instant,
    why: &'static str,
) -> Result<Permit, Halt> {
    let came = pass.at;
    let turned = |client: &mut Client, denied| {
        client.trail.met = Some(match denied {
            Denied::Full => Met::QueueFull,
            Denied::Late => Met::TooLate,
        });
        client.trail.outcome = match denied {
            Denied::Full => "turned away: as many wait as may",
            Denied::Late => "turned away: its turn would come too late",
        };
        Halt::Turned { why, again_after_s: AGAIN_AFTER_S }
    };
    let mut waiting = match gate.enter(pass.route.priority, came, deadline) {
        Entry::In(permit) => return Ok(permit),
        Entry::Denied(denied) => return Err(turned(client, denied)),
        Entry::Waits(waiting) => waiting,
    };
    let until = waiting.until;
    let told = wait(client, until, |cx| waiting.poll(cx)).await;
    pass.at = Instant::now();
    client.trail.waited_us += (pass.at - came).as_micros() as u64;
    match told {
        Waited::Told(Ok(permit)) => {
            client.trail.met = Some(Met::Queue);
            Ok(permit)
        }
        Waited::Told(Err(denied)) => Err(turned(client, denied)),
        Waited::Late => Err(turned(client, Denied::Late)),
        Waited::Gone => {
            client.trail.met = Some(Met::Queue);
            Err(Halt::Gone)
        }
    }
}

/// What came of it that a client waited.
pub enum Waited<T> {
    Told(T),
    Late,
    /// Its client waits no longer.
    Gone,
}

/// Has a client wait until then for what it is told by that.
pub async fn wait<T>(
    client: &mut Client,
    until: Instant,
    mut told: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Waited<T> {
    let Client { io, buf, timer, .. } = client;
    let mut leaving = Leaving::default();
    poll_fn(|cx| {
        if let Poll::Ready(told) = told(cx) {
            return Poll::Ready(Waited::Told(told));
        }
        let gone = leaving.look(cx, io, buf).filter(|gone| *gone < until);
        timer.poll(cx, gone.unwrap_or(until)).map(|()| match gone {
            Some(_) => Waited::Gone,
            None => Waited::Late,
        })
    })
    .await
}

fn broken(client: &mut Client, for_ms: u64) -> Halt {
    client.trail.met = Some(Met::Breaker);
    client.trail.outcome = "turned away: the service's breaker is open";
    Halt::Turned {
        why: "the service does not answer",
        again_after_s: for_ms.div_ceil(1_000).max(1),
    }
}

/// The places of a second try.
pub type Beside = (Option<Permit>, Option<Permit>);

impl<'r> Pass<'r> {
    pub fn route(&self) -> &'r Route {
        self.route
    }

    pub fn service(&self) -> &'r Service {
        &self.route.service
    }

    /// Places for a second try while the first goes on, if nobody else would want them. The only one
    /// that a breaker lets through has none.
    pub fn beside(&self, world: &World, now: Instant) -> Option<Beside> {
        let service = self.service();
        let now_ms = world.shared.guards.ms(now);
        if service.switch.as_ref().is_some_and(|switch| switch.look(now_ms) != Passage::All) {
            return None;
        }
        let spare = |gate: &Option<Arc<Gate>>| match gate {
            Some(gate) => gate.spare().map(Some),
            None => Some(None),
        };
        Some((spare(&self.route.gate)?, spare(&service.gate)?))
    }

    fn gates(&self) -> impl Iterator<Item = &Arc<Gate>> {
        self.route.gate.iter().chain(&self.route.service.gate)
    }

    /// An answer begins. What is found of how much a service bears is found by how long that takes, so
    /// that is for how long such places are held: what goes on for hours would take them all.
    pub fn begun(&mut self) {
        let (of_route, of_service) = &mut self.places;
        of_route.take_if(|it| it.is_found());
        of_service.take_if(|it| it.is_found());
    }

    fn count(&self, world: &World, said: Said) {
        self.counted.set(true);
        let count = |switch: &Arc<Switch>| switch.count(said, self.probe.is_some());
        if self.route.service.switch.as_ref().is_some_and(count) {
            world.shared.alarm.notify_one();
        }
    }

    /// A try was answered.
    pub fn answered(&self, world: &World, status: u16, took: Duration) {
        self.count(world, Said::by(status));
        self.gates().for_each(|gate| match status {
            // By these an instance says that it is too much.
            429 | 503 => gate.dropped(),
            // What fails is over sooner, or later, than what is done.
            500.. => {}
            _ => gate.answered(took),
        });
    }

    /// A try came to nothing.
    pub fn failed(&self, world: &World, failure: &Failure) {
        self.count(world, Said::Failure);
        if failure.is_late() || matches!(failure, Failure::Refused { .. }) {
            self.gates().for_each(|gate| gate.dropped());
        }
    }
}
