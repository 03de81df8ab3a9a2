//! A second try beside a slow one, at another instance ("The Tail at Scale", Dean and Barroso, 2013): who
//! says something first goes on, and the other is left at once, which says nothing of it.
//!
//! It never makes things worse. It is a further try like any other: of what may be done twice, out of the
//! same budget, at somebody who was not tried. It takes places of its own where there are any to be taken,
//! so that there is none where others wait, and what the first one says is never passed over.

use super::admit::{Beside, Pass};
use super::backend::{Active, Need};
use super::body::Framing;
use super::buf::Buf;
use super::exchange::{Client, Failure, Leaving, head, hear, send};
use super::flow::Flow;
use super::io::Io;
use super::ledger::{End, Hedge, Try};
use super::request::Request;
use super::response::Response;
use super::tries::{Ending, NoAnswer, Plan, Stage, Tried};
use super::world::{Picked, World};
use std::future::{poll_fn, ready};
use std::io::ErrorKind;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// One of them.
pub struct Runner<'b> {
    plan: Plan<'b>,
    active: Active<'b>,
    stage: Stage<'b>,
    up: Flow,
}

/// What became of the one that does not go on.
pub struct Other<'b> {
    plan: Plan<'b>,
    ended: Instant,
    fate: Fate,
}

enum Fate {
    Left,
    Failed(NoAnswer),
    /// The answer of a second one that is worse than what the first may say.
    NotTaken(u16),
}

/// Who goes on, or came to nothing last, and what became of the other, if there was one.
pub struct Raced<'b> {
    pub plan: Plan<'b>,
    pub ending: Ending<'b>,
    pub other: Option<Other<'b>>,
}

impl<'b> Runner<'b> {
    pub fn new(
        plan: Plan<'b>,
        active: Active<'b>,
        stage: Stage<'b>,
        client: &mut Client,
    ) -> Box<Runner<'b>> {
        Box::new(Runner { plan, active, stage, up: std::mem::take(&mut client.up) })
    }

    /// When it is waited for no longer.
    fn until(&self) -> Instant {
        match &self.stage {
            Stage::Opening(_) => self.plan.opens_until(),
            Stage::Asked(_) => self.plan.until,
        }
    }

    fn late(&self) -> NoAnswer {
        match &self.stage {
            Stage::Opening(_) => NoAnswer::connect(ErrorKind::TimedOut.into()),
            Stage::Asked(conn) => NoAnswer::on(conn, Failure::Timeout),
        }
    }

    /// Ready with a head, which may be an interim one.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (request, response): (&mut Request, &mut Response),
        begun: Instant,
    ) -> Poll<Result<(), NoAnswer>> {
        if let Stage::Opening(opening) = &mut self.stage {
            let mut conn = ready!(opening.as_mut().poll(cx)).map_err(NoAnswer::connect)?;
            let now = Instant::now();
            request.give(self.plan.until.saturating_duration_since(now), now - begun);
            send(request, &mut conn, &mut self.up, Framing::None)
                .map_err(|failure| NoAnswer::on(&conn, failure))?;
            self.stage = Stage::Asked(conn);
        }
        let Stage::Asked(conn) = &mut self.stage else { return Poll::Pending };
        let nothing = (&mut Io::Nobody, &mut Buf::default());
        if !self.up.is_over()
            && let Poll::Ready(Err(_)) = self.up.poll(cx, nothing, &mut conn.io)
        {
            // It may have answered before it closed; if not, that is what is read.
            self.up.clear();
        }
        let heard = ready!(head(cx, conn, request, response));
        Poll::Ready(heard.map_err(|failure| NoAnswer::on(conn, failure)))
    }
}

/// Goes on with a slow try, and with another one beside it if that may be.
pub async fn go_on<'b>(
    client: &mut Client,
    first: Runner<'b>,
    tried: &mut Tried,
    (pass, world): (&Pass<'b>, &World),
    (begun, deadline): (Instant, Instant),
) -> Raced<'b> {
    match second(client, tried, pass, world, deadline) {
        Some((second, beside)) => {
            client.trail.hedge = Some(Hedge::Neither);
            race(client, [Some(first), Some(second)], Some(beside), begun).await
        }
        None => race(client, [Some(first), None], None, begun).await,
    }
}

fn second<'b>(
    client: &mut Client,
    tried: &mut Tried,
    pass: &Pass<'b>,
    world: &World,
    deadline: Instant,
) -> Option<(Runner<'b>, Beside)> {
    let (now, route) = (Instant::now(), pass.route());
    let service = &route.service;
    let now_ms = world.ms(now);
    if now >= deadline || !tried.has_room() || !service.budget.borrow_mut().is_left(now_ms) {
        return None;
    }
    let beside = pass.beside(world, now)?;
    let picked = service.pick(world, &client.request, tried.indices(), now_ms)?;
    if !service.budget.borrow_mut().take(now_ms) {
        return None;
    }
    tried.tries += 1;
    let picked = Picked { why: "another one was slow", ..picked };
    let mut plan = Plan::new((client, route, picked), tried, (now, deadline), now_ms);
    plan.is_second = true;
    let active = Active::new(&plan.backend.live);
    let stage = Stage::Opening(match plan.backend.reuse(Need::Good, now) {
        Some(conn) => Box::pin(ready(Ok(conn))),
        None => Box::pin(plan.backend.connect(Need::Good)),
    });
    Some((Runner { plan, active, stage, up: Flow::default() }, beside))
}

/// Until one of them says something or all have come to nothing; then one goes on alone. `beside` is held
/// for as long as two may be on their way.
async fn race<'b>(
    client: &mut Client,
    mut running: [Option<Runner<'b>>; 2],
    mut beside: Option<Beside>,
    begun: Instant,
) -> Raced<'b> {
    let (mut other, mut leaving) = (None, Leaving::default());
    let Client { io, buf, request, response, timer, .. } = client;
    let (runner, said) = poll_fn(|cx| {
        loop {
            let gone = leaving.look(cx, io, buf);
            let now = Instant::now();
            let mut until = gone;
            for index in [0, 1] {
                let Some(mut runner) = running[index].take() else { continue };
                let said = match gone.is_some_and(|gone| gone <= now) {
                    true => Poll::Ready(Err(NoAnswer::since_the_client_left())),
                    false => runner.poll(cx, (request, response), begun),
                };
                let is_alone = running[1 - index].is_none();
                let fate = match said {
                    Poll::Ready(Ok(()))
                        if is_alone || index == 0 || is_as_good(response.status) =>
                    {
                        return Poll::Ready((runner, Ok(())));
                    }
                    Poll::Ready(Ok(())) => Fate::NotTaken(std::mem::take(&mut response.status)),
                    Poll::Ready(Err(failed)) => Fate::Failed(failed),
                    Poll::Pending if runner.until() <= now => Fate::Failed(runner.late()),
                    Poll::Pending => {
                        until = until.into_iter().chain([runner.until()]).min();
                        running[index] = Some(runner);
                        continue;
                    }
                };
                match fate {
                    Fate::Failed(failed) if is_alone => {
                        return Poll::Ready((runner, Err(failed)));
                    }
                    fate => other = Some(Other { plan: runner.plan, ended: now, fate }),
                }
                beside = None;
            }
            // Somebody is there: who is alone ends this with whatever comes of it.
            let Some(until) = until else { return Poll::Pending };
            ready!(timer.poll(cx, until));
        }
    })
    .await;
    // At once: its connection closes, or its stream is reset.
    if let Some(Runner { plan, .. }) = running.into_iter().flatten().next() {
        other = Some(Other { plan, ended: Instant::now(), fate: Fate::Left });
    }
    drop(beside);
    let Runner { plan, active, stage, up } = runner;
    client.up = up;
    let ending = match (said, stage) {
        (Ok(()), Stage::Asked(mut conn)) => match hear(client, &mut conn, plan.until, true).await {
            Ok(()) => Ok((conn, active)),
            Err(failure) => Err(NoAnswer::on(&conn, failure)),
        },
        // Nobody says anything who was not asked.
        (Ok(()), Stage::Opening(_)) => Err(NoAnswer::connect(ErrorKind::NotConnected.into())),
        (Err(failed), _) => Err(failed),
    };
    if other.is_some() && ending.is_ok() {
        client.trail.hedge = Some(if plan.is_second { Hedge::Second } else { Hedge::First });
    }
    Raced { plan, ending, other }
}

impl Other<'_> {
    /// Counts it, and says what became of it.
    pub fn count(&self, world: &World, pass: &Pass<'_>, begun: Instant) -> Try {
        let Other { plan, ended, fate } = self;
        let (end, outcome) = match fate {
            Fate::Left => {
                plan.left(world, pass, *ended);
                (End::Left, "left: another one was sooner")
            }
            Fate::Failed(NoAnswer { failure, stale }) => {
                if !(*stale || failure.is_of_client()) {
                    plan.failed(world, pass, failure, *ended);
                }
                (End::Failed, failure.word())
            }
            Fate::NotTaken(status) => {
                plan.answered(world, pass, *status, *ended);
                (End::Left, "an error: the other one may do better")
            }
        };
        plan.told(begun, *ended, end, outcome)
    }
}

/// A failure of a second try is no reason not to wait for the first.
fn is_as_good(status: u16) -> bool {
    status < 500 && status != 429 && status != 101
}
