//! Whether a request goes on to its service, when, and what it holds while it does: a place of its
//! route's and one of its service's, and the leave of the breaker.

use super::exchange::{Client, Failure, HALF_CLOSED_FOR};
use super::gate::{Entry, Gate, Permit, Waiting};
use super::io::Io;
use super::ledger::Met;
use super::switch::{Passage, Switch};
use super::world::{Route, World};
use everhold_core::http::breaker::Said;
use everhold_core::http::queue::Denied;
use std::cell::Cell;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// Who is turned away by a queue may come back then: what is crowded now may not be in a second, and
/// less can't be said in HTTP.
const AGAIN_AFTER_S: u64 = 1;

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
    let waiting = match gate.enter(pass.route.priority, came, deadline) {
        Entry::In(permit) => return Ok(permit),
        Entry::Denied(denied) => return Err(turned(client, denied)),
        Entry::Waits(waiting) => waiting,
    };
    let told = wait(client, waiting).await;
    pass.at = Instant::now();
    client.trail.waited_us += (pass.at - came).as_micros() as u64;
    match told {
        Some(Ok(permit)) => {
            client.trail.met = Some(Met::Queue);
            Ok(permit)
        }
        Some(Err(denied)) => Err(turned(client, denied)),
        None => {
            client.trail.met = Some(Met::Queue);
            Err(Halt::Gone)
        }
    }
}

/// `None`: the client is gone.
async fn wait(client: &mut Client, mut waiting: Waiting) -> Option<Result<Permit, Denied>> {
    let Client { io, buf, timer, .. } = client;
    let mut left = None;
    poll_fn(|cx| {
        if let Poll::Ready(told) = waiting.poll(cx) {
            return Poll::Ready(Some(told));
        }
        if let Io::Stream(stream) = io {
            if stream.poll_given_up(cx).is_ready() {
                return Poll::Ready(None);
            }
        } else if left.is_none() {
            left = match io.poll_left(cx, buf) {
                Poll::Pending => None,
                Poll::Ready(Ok(())) => Some(Instant::now() + HALF_CLOSED_FOR),
                Poll::Ready(Err(_)) => return Poll::Ready(None),
            };
        }
        let gone = left.filter(|left| *left < waiting.until);
        timer.poll(cx, gone.unwrap_or(waiting.until)).map(|()| match gone {
            Some(_) => None,
            None => Some(Err(Denied::Late)),
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

impl Pass<'_> {
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
