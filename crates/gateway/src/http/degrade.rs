//! The degraded modes of a route as all threads see them, and what becomes of requests in one. The judge's
//! thread says which are on; `everhold_core::http::degrade` decides.

use super::exchange::{Client, say};
use super::ledger::Met;
use super::request::Method;
use super::serve::{ANSWER_WITHIN, After, refuse};
use super::switch::Passage;
use super::world::{Route, World};
use everhold_core::http::degrade::{Cause, Change, Degraded, Mode, On, Page, Verdict, Watch};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Those of one route.
pub struct Modes {
    service: String,
    spec: Degraded,
    /// [`On`]; 0: it is served as ever.
    on: AtomicU32,
    /// The judge's own.
    judged: Mutex<[Watch; Mode::ALL.len()]>,
}

/// A mode that a route may be served in, for who looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeState {
    pub mode: Mode,
    pub service: String,
    /// What it is on for, and since when; `None`: it is off.
    pub on: Option<(Cause, Duration)>,
}

impl Modes {
    pub fn new(service: &str, spec: &Degraded) -> Arc<Modes> {
        Arc::new(Modes {
            service: service.to_owned(),
            spec: spec.clone(),
            on: AtomicU32::new(0),
            judged: Mutex::default(),
        })
    }

    pub fn is(&self, service: &str, spec: &Degraded) -> bool {
        self.service == service && self.spec == *spec
    }

    pub fn service(&self) -> &str {
        &self.service
    }

    /// `None`: it is served as ever.
    fn on(&self) -> Option<On> {
        let word = self.on.load(Relaxed);
        (word != 0).then(|| On::of(word))
    }

    fn judged(&self) -> MutexGuard<'_, [Watch; Mode::ALL.len()]> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn step(&self, route: &str, now_ms: u64, wrong: impl Fn(Cause) -> bool) {
        let mut judged = self.judged();
        let mut on = On::of(self.on.load(Relaxed));
        for (mode, rule) in &self.spec.modes {
            match judged[*mode as usize].step(now_ms, rule, &wrong) {
                None => continue,
                Some(Change::Entered(cause)) => {
                    tracing::warn!(route, mode = mode.word(), cause = cause.word(), "degraded");
                    on.set(*mode, Some(cause));
                }
                Some(Change::Left) => {
                    tracing::info!(route, mode = mode.word(), "no longer degraded");
                    on.set(*mode, None);
                }
            }
        }
        self.on.store(on.to_word(), Relaxed);
    }

    pub fn state(&self, now_ms: u64) -> Vec<ModeState> {
        let (judged, on) = (self.judged(), On::of(self.on.load(Relaxed)));
        let state = |mode: &Mode| {
            let for_ms = judged[*mode as usize].since_ms().map(|it| now_ms.saturating_sub(it));
            let on = on.cause(*mode).zip(for_ms.map(Duration::from_millis));
            ModeState { mode: *mode, service: self.service.clone(), on }
        };
        self.spec.modes.keys().map(state).collect()
    }
}

/// Has the answer to a request say in which modes its route is served.
pub fn tell(client: &mut Client, route: &Route) {
    let Some(on) = route.modes.as_ref().and_then(|it| it.on()) else { return };
    let added = &mut client.response.added;
    added.extend_from_slice(b"Everhold-Degraded: ");
    let mut before = "";
    for mode in Mode::ALL.into_iter().filter(|mode| on.cause(*mode).is_some()) {
        added.extend_from_slice(before.as_bytes());
        added.extend_from_slice(mode.word().as_bytes());
        before = ", ";
    }
    added.extend_from_slice(b"\r\n");
}

/// What is kept is given, though it is stale.
pub fn gives_stale(route: &Route) -> bool {
    let on = route.modes.as_ref().and_then(|it| it.on());
    on.is_some_and(|on| on.cause(Mode::Stale).is_some())
}

/// What a request is told in place of what an instance would say.
pub enum StandIn<'r> {
    Page { page: &'r Page, again_after_s: u64 },
    Refusal { mode: Mode, cause: Cause, again_after_s: u64 },
}

/// `None`: it goes on to an instance.
pub fn stand_in<'r>(client: &Client, route: &'r Route) -> Option<StandIn<'r>> {
    let modes = route.modes.as_ref()?;
    let on = modes.on()?;
    let is_safe = match client.request.method {
        Method::Get | Method::Head | Method::Options => true,
        Method::Post | Method::Put | Method::Delete | Method::Patch | Method::Other => false,
    };
    match modes.spec.judge(on, is_safe) {
        Verdict::GoesOn => None,
        Verdict::Page(page) => {
            let again_after_s = modes.spec.again_after_s(Mode::Static);
            Some(StandIn::Page { page, again_after_s })
        }
        Verdict::Refused(mode, cause) => {
            let again_after_s = modes.spec.again_after_s(mode);
            Some(StandIn::Refusal { mode, cause, again_after_s })
        }
    }
}

/// The same before anything is asked: the one that is to find out whether the service is back goes on,
/// or it would never be known.
pub fn instead<'r>(client: &Client, route: &'r Route, world: &World) -> Option<StandIn<'r>> {
    let stand_in = stand_in(client, route)?;
    let probes = route.service.switch.as_ref().is_some_and(|switch| {
        let passage = switch.look(world.shared.guards.ms(Instant::now()));
        matches!(passage, Passage::Probe { .. })
    });
    let refused = matches!(stand_in, StandIn::Refusal { mode: Mode::ReadOnly, .. });
    (refused || !probes).then_some(stand_in)
}

/// Tells the client that.
pub async fn give(client: &mut Client, stand_in: StandIn<'_>) -> After {
    client.trail.met = Some(Met::Degraded);
    match stand_in {
        StandIn::Page { page, again_after_s } => {
            client.trail.outcome = "degraded: the route's static answer";
            client.response.again_after_s = (page.status == 503).then_some(again_after_s);
            let body = client.response.page(page, &client.request);
            match say(client, page.status, body, Instant::now() + ANSWER_WITHIN).await {
                true if client.request.keep_alive => After::Next,
                true => After::Close,
                false => After::Drop,
            }
        }
        StandIn::Refusal { mode, cause, again_after_s } => {
            let what;
            (client.trail.outcome, what) = match mode {
                Mode::ReadOnly => ("degraded: the route is read-only", "this is read-only for now"),
                Mode::Shed => ("degraded: the route is shed", "this is not served for now"),
                Mode::Static | Mode::Stale => {
                    ("degraded: nothing is changed", "nothing can be changed here for now")
                }
            };
            client.response.again_after_s = Some(again_after_s);
            refuse(client, 503, &format!("{what}: {}", cause.says())).await
        }
    }
}
