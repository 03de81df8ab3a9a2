//! The status of an instance, from the view.

use crate::decide::campaign;
use crate::durable::Data;
use crate::ids::Time;
use crate::postgres::{PgAction, Process};
use crate::status::{Call, State, Status};
use crate::view::View;

/// What the others are told.
pub(super) fn status(view: &View, now: Time, running: Option<&PgAction>) -> Status {
    let serving = view.led_term().filter(|term| {
        term.open
            || view.leading.barrier == Some(term.epoch)
            || !view.has(crate::view::Guard::Barrier)
    });
    let streaming = view.is_standby() && view.pg.receiver.as_ref().is_some_and(|r| r.streaming);
    let missed = campaign::misses(view, now);
    Status {
        member: view.member(),
        host: view.host.clone(),
        port: view.port,
        pid: view.pg.pid,
        state: state(view, running, streaming, serving.is_some()),
        data: view.durable.data,
        promise: view.durable.promise,
        sysid: view.durable.sysid,
        term: view.term().map_or(0, |term| term.epoch),
        report: view.report(),
        misses: view.term().filter(|_| missed).map(|term| term.epoch),
        fell: campaign::fell(view),
        primary: view.is_primary().then_some(view.pg.tli),
        serving: serving.map(|term| term.epoch),
        checkpoint: view.pg.checkpoint_tli,
        lsn: view.pg.lsn,
        tli: view.pg.tli,
        seen_tli: view.seen_tli,
        streaming,
        lag_ms: lag(view, streaming),
        call: view.campaign.as_ref().map(|campaign| Call {
            epoch: campaign.epoch,
            summons: campaign.summons,
            fast_forward: campaign.fast_forward.clone(),
        }),
        overrides: view.pg.overrides.clone(),
        full: view.pg.full,
        bad_pages: view.bad_pages().map_or(0, |bad| bad.pages),
        log_from: view.pg.log_from.filter(|_| view.is_primary()),
    }
}

/// The change is one that others act on. Positions alone go with the next heartbeat.
pub(super) fn matters(old: &Status, new: &Status) -> bool {
    // Each field is named, so that a new one is thought about here.
    let Status {
        member,
        host,
        port,
        pid,
        state,
        data,
        promise,
        sysid,
        term,
        report,
        misses,
        fell,
        primary,
        serving,
        checkpoint,
        lsn: _,
        tli: _,
        seen_tli,
        streaming,
        lag_ms,
        call,
        overrides,
        full,
        bad_pages,
        log_from,
    } = old;
    *promise != new.promise
        || *state != new.state
        || *serving != new.serving
        || *term != new.term
        || *misses != new.misses
        || *fell != new.fell
        || *primary != new.primary
        || *streaming != new.streaming
        || *data != new.data
        || *seen_tli != new.seen_tli
        || *checkpoint != new.checkpoint
        || lag_ms.is_some() != new.lag_ms.is_some()
        || (*pid, *sysid, *port) != (new.pid, new.sysid, new.port)
        || *report != new.report
        || *call != new.call
        || *member != new.member
        || *host != new.host
        || *overrides != new.overrides
        || *full != new.full
        || *bad_pages != new.bad_pages
        || log_from.is_some() != new.log_from.is_some()
}

/// A cut-off standby's lag is unknown, not 0: only a fresh message of the leader vouches for it.
fn lag(view: &View, streaming: bool) -> Option<u64> {
    if view.is_primary() {
        return Some(0);
    }
    let message = view.pg.receiver.as_ref()?.message_ms_ago?;
    streaming.then_some(view.pg.replay_lag_ms?.max(message.saturating_sub(QUIET_MS)))
}

/// A leader with nothing to send speaks at least this often.
const QUIET_MS: u64 = 3_000;

fn state(view: &View, running: Option<&PgAction>, streaming: bool, serving: bool) -> State {
    match running {
        Some(PgAction::Bootstrap) => return State::Bootstrapping,
        Some(PgAction::Rewind { .. }) => return State::Rewinding,
        Some(PgAction::Clone { .. } | PgAction::PutBack { .. }) => return State::Cloning,
        Some(PgAction::Promote { .. }) => return State::Promoting,
        Some(PgAction::Start { .. }) => return State::Starting,
        Some(_) | None => {}
    }
    match view.pg.process {
        Process::Unknown => State::Unknown,
        Process::Down if view.durable.data == Data::Empty => State::Empty,
        Process::Down | Process::Remains => State::Stopped,
        Process::Starting => State::Starting,
        Process::Running => match view.pg.in_recovery {
            None => State::Frozen,
            Some(false) if serving => State::Open,
            Some(false) => State::Closed,
            Some(true) if view.pg.source.is_none() && view.parked.is_some() => State::Sealed,
            Some(true) if view.pg.source.is_none() => State::Parking,
            Some(true) if view.durable.data != Data::Ok => State::CatchingUp,
            Some(true) if streaming => State::Streaming,
            Some(true) => State::Connecting,
        },
    }
}
