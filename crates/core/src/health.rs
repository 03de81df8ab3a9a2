//! What load balancers ask a node: may clients be sent to its instance? With Patroni's paths and
//! codes, so that what was set up for Patroni goes on working.

use crate::decide::upkeep;
use crate::durable::Data;
use crate::ids::{Epoch, Lsn, Time};
use crate::policy;
use crate::status::{State, Status};
use crate::view::View;
use std::sync::Arc;

/// Facts older than this say nothing about now: a gateway doesn't read from such a standby either.
pub const STILL_MS: u64 = 2_000;
/// Behind by more, a standby isn't ready, unless the query names another bound: Patroni's default
/// of `maximum_lag_on_failover`.
pub const READY_LAG_BYTES: u64 = 1 << 20;

/// What is known of an instance, as its own agent sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub status: Arc<Status>,
    /// When they were put together.
    pub at: Time,
    /// Until when it may lead without further news, if it leads.
    pub until: Option<Time>,
    /// Of the newest term that anybody is known to know.
    pub newest: Epoch,
    /// Where the leader was when it was last heard, if that was lately.
    pub lead: Option<Lsn>,
    /// Received by the standby, replayed or not.
    pub received: Option<Lsn>,
    /// It is one of those that acknowledge; `None`: no term was ever read.
    pub synchronous: Option<bool>,
    pub maintenance: bool,
    /// Nobody is to read from it.
    pub drained: bool,
    /// When something was last read in the store.
    pub store_seen: Option<Time>,
}

impl Facts {
    pub fn of(view: &View, status: Arc<Status>, now: Time) -> Facts {
        let told = view.peers.values().filter_map(|peer| peer.status.as_ref()).map(|it| it.term);
        let newest = told.chain([status.term]).max().unwrap_or_default();
        let until = view.led_term().and_then(|term| upkeep::right(view, term)).map(|it| it.until);
        let lead = match view.is_primary() {
            true => Some(view.pg.lsn),
            false => view.term().and_then(|term| {
                let peer = view.peers.get(&term.leader.node)?;
                let heard = peer.detector.last().filter(|at| now.since(*at) <= STILL_MS);
                let leader = peer.status.as_deref().filter(|_| heard.is_some())?;
                (leader.member == term.leader && leader.primary.is_some()).then_some(leader.lsn)
            }),
        };
        let store = &view.store;
        let seen = [
            store.epoch.as_ref().map(|record| record.seen),
            store.term.as_ref().map(|record| record.seen),
            store.campaign.as_ref().map(|record| record.seen),
            store.lease.as_ref().map(|record| record.seen),
        ];
        Facts {
            at: now,
            until,
            newest,
            lead,
            received: view.pg.receiver.as_ref().map(|receiver| receiver.flushed),
            synchronous: view.term().map(|term| {
                !term.target.is_alone() && term.target.members.contains(&view.member())
            }),
            maintenance: store.maintenance,
            drained: !view.policy.duty(&view.me).is_active(),
            store_seen: seen.into_iter().flatten().max(),
            status,
        }
    }

    /// Clients may write here: it serves the newest term there is, and its right hasn't ended.
    pub fn leads(&self, now: Time) -> bool {
        self.is_fresh(now)
            && self.status.serving.is_some_and(|epoch| epoch >= self.newest)
            && self.until.is_some_and(|until| now < until)
    }

    /// A standby that answers queries from the cluster's own history.
    pub fn follows(&self, now: Time) -> bool {
        self.is_fresh(now) && self.is_standby() && self.status.data == Data::Ok
    }

    /// PostgreSQL runs and answers.
    pub fn runs(&self, now: Time) -> bool {
        let primary = matches!(self.status.state, State::Open | State::Closed);
        self.is_fresh(now) && (primary || self.is_standby())
    }

    /// What the standby lacks of what the leader had, replayed (or received); `None`: unknown.
    pub fn lag(&self, received: bool) -> Option<u64> {
        let own = if received { self.received? } else { self.status.lsn };
        Some(self.lead?.0.saturating_sub(own.0))
    }

    fn is_fresh(&self, now: Time) -> bool {
        now.since(self.at) <= STILL_MS
    }

    fn is_standby(&self) -> bool {
        match self.status.state {
            State::Parking
            | State::Sealed
            | State::Connecting
            | State::CatchingUp
            | State::Streaming => true,
            State::Unknown
            | State::Empty
            | State::Bootstrapping
            | State::Stopped
            | State::Starting
            | State::Rewinding
            | State::Cloning
            | State::Promoting
            | State::Closed
            | State::Open
            | State::Frozen => false,
        }
    }

    /// A standby within the bound. A lag that can't be known is beyond every bound.
    fn replica(&self, query: &Query, now: Time) -> bool {
        let lag = self.lag(query.received);
        let within = query.lag_max.is_none_or(|max| lag.is_some_and(|lag| lag <= max));
        self.follows(now) && within && !query.tagged && !self.drained && self.is_sound()
    }

    /// Nobody is to read from a copy with bad pages.
    fn is_sound(&self) -> bool {
        self.status.bad_pages == 0
    }

    fn is_live(&self, now: Time) -> bool {
        // A standby's agent may stand still for longer: nobody is served by it.
        let wait = policy::LEASE_MS * if self.status.primary.is_some() { 1 } else { 2 };
        self.maintenance || now.since(self.at) < wait
    }

    fn is_ready(&self, query: &Query, now: Time) -> bool {
        let max = query.lag_max.unwrap_or(READY_LAG_BYTES);
        let within = self.lag(query.received).is_some_and(|lag| lag <= max);
        let follows = self.follows(now) && self.status.streaming && self.is_sound();
        self.leads(now) || (follows && within)
    }
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Primary,
    Replica,
    ReadOnly,
    Synchronous,
    ReadOnlySynchronous,
    Asynchronous,
    StandbyLeader,
    Health,
    Liveness,
    Readiness,
    /// What is known, whatever it is.
    Status,
}

impl Check {
    /// The check of a path's last part.
    pub fn named(name: &str) -> Option<Check> {
        Some(match name {
            "" | "primary" | "master" | "read-write" | "leader" => Check::Primary,
            "replica" => Check::Replica,
            "read-only" => Check::ReadOnly,
            "sync" | "synchronous" | "quorum" => Check::Synchronous,
            "read-only-sync" | "read-only-synchronous" | "read-only-quorum" => {
                Check::ReadOnlySynchronous
            }
            "async" | "asynchronous" => Check::Asynchronous,
            "standby" => Check::Replica,
            "standby-leader" | "standby_leader" => Check::StandbyLeader,
            "health" => Check::Health,
            "liveness" => Check::Liveness,
            "readiness" => Check::Readiness,
            "patroni" => Check::Status,
            _ => return None,
        })
    }
}

/// What a query asks beside its path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pub lag_max: Option<u64>,
    /// The lag counts from what was received, not from what was replayed.
    pub received: bool,
    /// Of a tag: no instance has any.
    pub tagged: bool,
}

impl Query {
    /// From the text after `?`. Of a key given twice the first counts; keys that aren't known are
    /// left out, as balancers add their own.
    pub fn parse(text: &str) -> Result<Query, String> {
        let mut query = Query::default();
        for pair in text.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "lag" if query.lag_max.is_none() => query.lag_max = Some(bytes(value)?),
                "mode" => query.received |= value == "write",
                _ => query.tagged |= key.starts_with("tag_"),
            }
        }
        Ok(query)
    }
}

/// `1048576`, `16kB`, `10MB`, `1GB`: PostgreSQL's units.
fn bytes(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => 0,
    };
    let number: Option<u64> = number.parse().ok().filter(|_| scale > 0);
    let value = number.and_then(|number| number.checked_mul(scale));
    value.ok_or_else(|| format!("`{text}` is no number of bytes, as 1048576, 16kB, 10MB, 1GB"))
}

/// Whether the answer is 200; else it is 503.
pub fn passes(facts: &Facts, check: Check, query: &Query, now: Time) -> bool {
    let replica = || facts.replica(query, now);
    let synchronous = facts.synchronous;
    match check {
        Check::Primary => facts.leads(now),
        Check::Replica => replica(),
        Check::ReadOnly => (facts.leads(now) && !query.tagged) || replica(),
        Check::Synchronous => synchronous == Some(true) && replica(),
        Check::ReadOnlySynchronous => {
            (facts.leads(now) && !query.tagged) || (synchronous == Some(true) && replica())
        }
        Check::Asynchronous => synchronous == Some(false) && replica(),
        // There are no standby clusters.
        Check::StandbyLeader => false,
        Check::Health => facts.runs(now) && !query.tagged,
        Check::Liveness => facts.is_live(now),
        Check::Readiness => facts.is_ready(query, now),
        Check::Status => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Member;

    const NOW: Time = Time(100_000);

    /// `STATE KEY=VALUE…`: serving, term, newest, until, at (ms from now), lead, lsn, received, sync,
    /// data, maintenance, drained, bad (pages).
    fn facts(text: &str) -> Facts {
        let mut words = text.split_whitespace();
        let state: State =
            serde_json::from_value(words.next().expect("a state").into()).expect("a state");
        let mut status = Status {
            member: Member::new("a", 1),
            host: String::new(),
            port: 1,
            pid: None,
            state,
            data: Data::Ok,
            promise: 1,
            sysid: None,
            term: 1,
            report: None,
            misses: None,
            fell: None,
            primary: matches!(state, State::Open | State::Closed).then_some(1),
            serving: None,
            checkpoint: 1,
            lsn: Lsn(1_000),
            tli: 1,
            seen_tli: 0,
            streaming: state == State::Streaming,
            lag_ms: None,
            call: None,
            overrides: Vec::new(),
            full: false,
            bad_pages: 0,
            log_from: None,
        };
        let mut facts = Facts {
            status: Arc::new(status.clone()),
            at: NOW,
            until: None,
            newest: 1,
            lead: None,
            received: None,
            synchronous: None,
            maintenance: false,
            drained: false,
            store_seen: None,
        };
        for word in words {
            let (key, value) = word.split_once('=').expect("KEY=VALUE");
            let number = || value.parse::<i64>().expect("a number");
            let time = || Time(NOW.0.saturating_add_signed(number()));
            match key {
                "serving" => status.serving = value.parse().ok(),
                "newest" => facts.newest = number().unsigned_abs(),
                "until" => facts.until = Some(time()),
                "at" => facts.at = time(),
                "lead" => facts.lead = Some(Lsn(number().unsigned_abs())),
                "received" => facts.received = Some(Lsn(number().unsigned_abs())),
                "sync" => facts.synchronous = Some(value == "yes"),
                "data" => status.data = Data::CatchUp { until: Lsn(1) },
                "maintenance" => facts.maintenance = true,
                "drained" => facts.drained = true,
                "bad" => status.bad_pages = number().unsigned_abs(),
                other => panic!("{other}"),
            }
        }
        Facts { status: Arc::new(status), ..facts }
    }

    fn code(facts: &Facts, path: &str) -> &'static str {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let Some(check) = Check::named(path) else { return "404" };
        match Query::parse(query) {
            Ok(query) if passes(facts, check, &query, NOW) => "200",
            Ok(_) => "503",
            Err(_) => "400",
        }
    }

    #[test]
    fn codes() {
        let primary = "primary master read-write leader";
        let every = "primary replica read-only sync read-only-sync async health readiness";
        #[rustfmt::skip]
        let cases = [
            // facts                                            paths                                   code
            // A leader that serves, and one that may not any more.
            ("open serving=1 until=1",                          primary,                                "200"),
            ("open serving=1 until=1",                          "read-only read-only-sync health liveness readiness patroni", "200"),
            ("open serving=1 until=1",                          "replica standby sync async standby-leader standby_leader", "503"),
            ("open serving=1 until=1",                          "primary?tag_x=y leader?lag=0",         "200"),
            ("open serving=1 until=1",                          "read-only?tag_x=y read-only-sync?tag_x=y health?tag_x=y", "503"),
            ("open serving=1 until=0",                          primary,                                "503"),
            ("open serving=1 until=0",                          "read-only read-only-sync readiness",   "503"),
            ("open serving=1 until=0",                          "health liveness",                      "200"),
            ("open serving=1",                                  primary,                                "503"),
            ("open serving=1 until=4000 newest=2",              primary,                                "503"),
            ("open serving=3 until=4000 newest=2",              primary,                                "200"),
            ("closed until=4000",                               primary,                                "503"),
            ("closed until=4000",                               "health",                               "200"),
            // Facts that are old.
            ("open serving=1 until=4000 at=-2000",              primary,                                "200"),
            ("open serving=1 until=4000 at=-2001",              every,                                  "503"),
            ("open at=-4999",                                   "liveness",                             "200"),
            ("open at=-5000",                                   "liveness",                             "503"),
            ("streaming at=-5000",                              "liveness",                             "200"),
            ("streaming at=-10000",                             "liveness",                             "503"),
            ("streaming lead=1000 drained=yes",                 "replica read-only sync async",         "503"),
            ("streaming lead=1000 drained=yes",                 "health liveness",                      "200"),
            ("streaming at=-90000 maintenance=yes",             "liveness",                             "200"),
            // Standbys.
            ("streaming lead=1000 sync=yes",                    "replica standby read-only sync synchronous quorum read-only-sync health readiness", "200"),
            ("streaming lead=1000 sync=yes",                    "primary async",                        "503"),
            ("streaming lead=1000 sync=no",                     "replica async asynchronous read-only", "200"),
            ("streaming lead=1000 sync=no",                     "sync read-only-sync read-only-quorum", "503"),
            ("streaming lead=1000",                             "sync async",                           "503"),
            ("streaming sync=yes",                              "replica?tag_x=y sync?tag_x=y",         "503"),
            ("sealed sync=yes",                                 "replica sync health",                  "200"),
            ("sealed sync=yes",                                 "readiness replica?lag=1GB",            "503"),
            ("connecting lead=1000 sync=no",                    "replica replica?lag=0 async",          "200"),
            ("connecting lead=1000 sync=no",                    "readiness",                            "503"),
            ("catching_up lead=1000 data=catch_up",             "health",                               "200"),
            ("catching_up lead=1000 data=catch_up",             "replica read-only readiness",          "503"),
            // Bad pages: nobody reads there.
            ("streaming lead=1000 sync=yes bad=1",              "replica read-only sync readiness",     "503"),
            ("streaming lead=1000 sync=yes bad=1",              "health liveness",                      "200"),
            ("open serving=1 until=1 bad=1",                    "primary read-only readiness",          "200"),
            // Lag.
            ("streaming lead=3048 received=3000 sync=no",       "replica?lag=2048 async?lag=2kB read-only?lag=2kB", "200"),
            ("streaming lead=3048 received=3000 sync=no",       "replica?lag=2047 async?lag=1kB read-only?lag=1kB replica?lag=0 readiness?lag=1kB", "503"),
            ("streaming lead=3048 received=3000 sync=no",       "readiness?lag=48&mode=write readiness readiness?lag=2kB&mode=apply", "200"),
            ("streaming lead=1049576",                          "readiness",                            "200"),
            ("streaming lead=1049577",                          "readiness",                            "503"),
            ("streaming lead=1049577",                          "readiness?lag=2MB replica?lag=1GB replica?lag=1TB", "200"),
            ("streaming lead=900",                              "replica?lag=0",                        "200"),
            ("streaming",                                       "replica?lag=1GB readiness",            "503"),
            ("streaming",                                       "replica?other=1 replica?",             "200"),
            ("streaming lead=1000",                             "replica?lag= replica?lag=x replica?lag=1mb replica?lag=-1 replica?lag=99999999999TB", "400"),
            // Nobody.
            ("stopped",                                         every,                                  "503"),
            ("frozen",                                          every,                                  "503"),
            ("cloning",                                         every,                                  "503"),
            ("promoting serving=1",                             every,                                  "503"),
            ("stopped",                                         "liveness patroni",                     "200"),
            ("stopped",                                         "Primary primary/ standby_leader2",     "404"),
        ];
        for (given, paths, expected) in cases {
            let facts = facts(given);
            for path in paths.split_whitespace() {
                assert_eq!(code(&facts, path), expected, "{given}: {path}");
            }
        }
    }
}
