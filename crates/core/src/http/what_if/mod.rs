//! Recorded requests under given limits: who would have been let in, who would have waited, who would
//! have been refused, and by which rule.
//!
//! What decides is what decides at gateways: [`rate`](super::rate), [`queue`](super::queue),
//! [`limit`](super::limit) and [`breaker`](super::breaker). Time is that of the records. As there, rates
//! are of all gateways together, places and breakers of each.
//!
//! What no record says is taken to be: what was never tried takes as long as half of the requests of its
//! route did till then, and comes to what the last one that was tried came to. Instances take as long
//! as they did, however many they are asked at once. Nobody leaves while it waits.

mod order;
mod places;
mod tally;

#[cfg(test)]
mod tests;

pub use order::Order;
pub use tally::{Tally, Waits, Worst};

use super::breaker::{BreakerSpec, Said};
use super::hash::hash;
use super::queue::{Bulkhead, Denied, Priority};
use super::rate::{Rate, RateKey, RateLimit, Table};
use crate::spec::{ServiceSpec, Spec, masked};
use places::{Entry, Passage, Places, Switch, Waiter};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

/// As often as gateways do.
const STEP_US: u64 = 100_000;
/// Clients of one limit that are counted at once, as at gateways.
const CLIENTS_MAX: usize = 1 << 20;
/// What takes longer, as a stream of events does, holds its place for so long here.
const TOOK_US_MAX: u64 = 24 * 3_600 * 1_000_000;

/// A request as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// When it came, in microseconds since 1970.
    pub at_us: u64,
    /// Whose record it is.
    pub gateway: usize,
    pub client: IpAddr,
    pub route: String,
    /// Before it was let in or turned away.
    pub waited_us: u64,
    pub fate: Fate,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It took so long after it was let in. `status`: 0, if its client was gone.
    LetIn {
        took_us: u64,
        tries: u32,
        status: u16,
    },
    /// The gateway had its answer.
    Kept,
    Refused(Rule),
}

/// Why a request was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    RateLimit,
    QueueFull,
    TooLate,
    Breaker,
    /// It was by something that is not told here, or its client left while it waited.
    Other,
}

impl Rule {
    pub const ALL: [Rule; 5] =
        [Rule::RateLimit, Rule::QueueFull, Rule::TooLate, Rule::Breaker, Rule::Other];

    pub fn name(self) -> &'static str {
        match self {
            Rule::RateLimit => "rate_limit",
            Rule::QueueFull => "queue_full",
            Rule::TooLate => "too_late",
            Rule::Breaker => "breaker",
            Rule::Other => "other",
        }
    }
}

impl From<Denied> for Rule {
    fn from(denied: Denied) -> Rule {
        match denied {
            Denied::Full => Rule::QueueFull,
            Denied::Late => Rule::TooLate,
        }
    }
}

/// The limits of a spec, by the names of routes and services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    pub routes: BTreeMap<String, RouteLimits>,
    pub services: BTreeMap<String, ServiceLimits>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteLimits {
    pub service: String,
    pub timeout_ms: u64,
    pub priority: Priority,
    pub rate: Option<RateLimit>,
    pub places: Option<Bulkhead>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceLimits {
    pub places: Option<Bulkhead>,
    pub breaker: Option<BreakerSpec>,
}

impl Limits {
    pub fn of(spec: &Spec) -> Limits {
        let mut limits = Limits::default();
        for (name, service) in &spec.services {
            let ServiceSpec::Http(http) = service else { continue };
            let (places, breaker) = (http.concurrency.clone(), http.breaker.clone());
            limits.services.insert(name.clone(), ServiceLimits { places, breaker });
            for (name, route) in spec.routes.iter().filter(|(_, route)| route.service == *name) {
                let route = RouteLimits {
                    service: route.service.clone(),
                    timeout_ms: route.timeout_ms.unwrap_or(http.timeout_ms),
                    priority: route.priority,
                    rate: route.rate_limit.clone(),
                    places: route.concurrency.clone(),
                };
                limits.routes.insert(name.clone(), route);
            }
        }
        limits
    }
}

/// What would have become of all requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// By route.
    pub tallies: BTreeMap<String, Tally>,
    /// Requests of routes that these limits don't know: they are in no tally.
    pub unrouted: u64,
    /// Those of which it was not recorded how long they would have taken.
    pub estimated: u64,
    /// Those that were put in later than they came.
    pub late: u64,
    /// Routes whose clients were told apart by their addresses: what else they are by is in no record.
    pub by_address: BTreeSet<String>,
}

impl Told {
    /// What did become of a request.
    pub fn record(&mut self, it: &Recorded) {
        let tally = self.tallies.entry(it.route.clone()).or_default();
        tally.requests += 1;
        match it.fate {
            Fate::LetIn { .. } => tally.admit(it.waited_us),
            Fate::Kept => tally.kept += 1,
            Fate::Refused(rule) => tally.refuse(rule, it.client),
        }
    }
}

/// Replays requests under limits.
#[derive(Debug)]
pub struct Replay {
    limits: Arc<Limits>,
    now_us: u64,
    rates: BTreeMap<String, Table>,
    gateways: BTreeMap<usize, Gateway>,
    /// How long requests of each route took.
    took: BTreeMap<String, Waits>,
    under_way: BTreeMap<u64, UnderWay>,
    numbers: u64,
    agenda: BinaryHeap<Reverse<(u64, Due)>>,
    /// [`Due::Step`] is on the agenda.
    steps: bool,
    /// Where somebody may have a turn.
    freed: Vec<(usize, Of)>,
    told: Told,
}

/// What one gateway has of its own.
#[derive(Debug, Default)]
struct Gateway {
    places: BTreeMap<Of, Places>,
    switches: BTreeMap<String, Switch>,
    /// What the last try of each service came to.
    last: BTreeMap<String, u16>,
}

/// Whose places they are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Route(String),
    Service(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The answer of a request is over.
    Done(u64),
    /// Its turn has not come in time.
    Late(u64),
    Step,
}

/// A request that waits, or is with its service.
#[derive(Debug)]
struct UnderWay {
    gateway: usize,
    client: IpAddr,
    route: String,
    came_us: u64,
    deadline_us: u64,
    took_us: u64,
    tries: u32,
    status: u16,
    /// The places that it has, and since when.
    held: Vec<(Of, u64)>,
    waits: Option<(Of, Waiter)>,
    /// The places that it has to get.
    next: VecDeque<Of>,
    probe: bool,
}

impl Replay {
    pub fn new(limits: Limits) -> Replay {
        Replay {
            limits: Arc::new(limits),
            now_us: 0,
            rates: BTreeMap::new(),
            gateways: BTreeMap::new(),
            took: BTreeMap::new(),
            under_way: BTreeMap::new(),
            numbers: 0,
            agenda: BinaryHeap::new(),
            steps: false,
            freed: Vec::new(),
            told: Told::default(),
        }
    }

    /// The next request, in the order in which they came.
    pub fn request(&mut self, it: &Recorded) {
        self.told.late += u64::from(it.at_us < self.now_us);
        self.go_to(it.at_us.max(self.now_us));
        let limits = self.limits.clone();
        let Some(route) = limits.routes.get(&it.route) else {
            self.told.unrouted += 1;
            return;
        };
        self.told.tallies.entry(it.route.clone()).or_default().requests += 1;
        let gateway = self.gateways.entry(it.gateway).or_default();
        if let Fate::LetIn { took_us, tries, status } = it.fate {
            self.took.entry(it.route.clone()).or_default().add(took_us);
            if tries > 0 && status > 0 {
                gateway.last.insert(route.service.clone(), status);
            }
        }
        if !self.is_within_rate(it, route) {
            return self.refuse(&it.route, it.client, Rule::RateLimit);
        }
        let (took_us, tries, status) = match it.fate {
            Fate::LetIn { took_us, tries, status } => (took_us, tries, status),
            Fate::Kept => {
                self.told.tallies.entry(it.route.clone()).or_default().kept += 1;
                return;
            }
            Fate::Refused(_) => {
                self.told.estimated += 1;
                let last =
                    self.gateways.get(&it.gateway).and_then(|it| it.last.get(&route.service));
                let median = self.took.get(&it.route).and_then(|it| it.percentile_us(50));
                (median.unwrap_or(0), 1, last.copied().unwrap_or(200))
            }
        };
        self.begin_steps();
        if let Some(Passage::Nobody) = self.switch(it.gateway, &route.service, |it, ms| it.look(ms))
        {
            return self.refuse(&it.route, it.client, Rule::Breaker);
        }
        self.numbers += 1;
        let one = UnderWay {
            gateway: it.gateway,
            client: it.client,
            route: it.route.clone(),
            came_us: self.now_us,
            deadline_us: self.now_us.saturating_add(route.timeout_ms.saturating_mul(1_000)),
            took_us: took_us.min(TOOK_US_MAX),
            tries,
            status,
            held: Vec::new(),
            waits: None,
            next: [Of::Route(it.route.clone()), Of::Service(route.service.clone())].into(),
            probe: false,
        };
        self.under_way.insert(self.numbers, one);
        self.go_on(self.numbers);
        self.call();
    }

    /// What came of them, when the last one is over.
    pub fn end(mut self) -> Told {
        self.go_to(u64::MAX);
        self.told
    }

    /// Lets happen what is due until then.
    fn go_to(&mut self, until_us: u64) {
        while let Some(Reverse((at_us, due))) = self.agenda.peek().copied() {
            if at_us > until_us {
                break;
            }
            self.agenda.pop();
            self.now_us = at_us;
            match due {
                Due::Done(number) => self.done(number),
                Due::Late(number) => self.too_late(number),
                Due::Step => self.step(),
            }
            self.call();
        }
        if until_us < u64::MAX {
            self.now_us = until_us;
        }
    }

    fn is_within_rate(&mut self, it: &Recorded, route: &RouteLimits) -> bool {
        let Some(limit) = &route.rate else { return true };
        let by = match &limit.by {
            RateKey::ClientIp { v4_bits, v6_bits } => (*v4_bits, *v6_bits),
            RateKey::Header(_) | RateKey::Cookie(_) | RateKey::Token => {
                if !self.told.by_address.contains(&it.route) {
                    self.told.by_address.insert(it.route.clone());
                }
                (32, 64)
            }
        };
        let new = || Table::new(Rate::new(limit), CLIENTS_MAX);
        let table = self.rates.entry(it.route.clone()).or_insert_with(new);
        let key = match network(it.client, by) {
            IpAddr::V4(ip) => hash(&ip.octets()),
            IpAddr::V6(ip) => hash(&ip.octets()),
        };
        table.ask(key, self.now_us.saturating_mul(1_000)).admitted
    }

    fn refuse(&mut self, route: &str, client: IpAddr, rule: Rule) {
        self.told.tallies.entry(route.to_owned()).or_default().refuse(rule, client);
    }

    /// The places of a gateway, if there is a bound to them.
    fn places(&mut self, gateway: usize, of: &Of) -> Option<&mut Places> {
        let spec = match of {
            Of::Route(name) => self.limits.routes.get(name)?.places.as_ref()?,
            Of::Service(name) => self.limits.services.get(name)?.places.as_ref()?,
        };
        let all = &mut self.gateways.entry(gateway).or_default().places;
        Some(all.entry(of.clone()).or_insert_with(|| Places::new(spec, self.now_us)))
    }

    fn switch<T>(
        &mut self,
        gateway: usize,
        service: &str,
        then: impl FnOnce(&mut Switch, u64) -> T,
    ) -> Option<T> {
        let spec = self.limits.services.get(service)?.breaker.as_ref()?;
        let all = &mut self.gateways.entry(gateway).or_default().switches;
        let switch = all.entry(service.to_owned()).or_insert_with(|| Switch::new(spec));
        Some(then(switch, self.now_us / 1_000))
    }

    /// Gets a request the places that it lacks, and with all of them to its service.
    fn go_on(&mut self, number: u64) {
        let now_us = self.now_us;
        while let Some(one) = self.under_way.get_mut(&number) {
            let Some(of) = one.next.pop_front() else { return self.let_in(number) };
            let (gateway, deadline_us) = (one.gateway, one.deadline_us);
            let class = self.limits.routes.get(&one.route).map(|it| it.priority);
            let Some(places) = self.places(gateway, &of) else { continue };
            match places.enter(class.unwrap_or_default(), now_us, deadline_us, number) {
                Entry::In => self.has(number, of),
                Entry::Denied(denied) => return self.give_up(number, denied.into()),
                Entry::Waits { waiter, out } => {
                    self.agenda.push(Reverse((waiter.until_us, Due::Late(number))));
                    if let Some(one) = self.under_way.get_mut(&number) {
                        one.waits = Some((of.clone(), waiter));
                    }
                    if let Some(out) = out {
                        self.give_up(out, Rule::QueueFull);
                    }
                    return;
                }
            }
        }
    }

    fn has(&mut self, number: u64, of: Of) {
        let now_us = self.now_us;
        if let Some(one) = self.under_way.get_mut(&number) {
            one.waits = None;
            one.held.push((of, now_us));
        }
    }

    fn let_in(&mut self, number: u64) {
        let Some(one) = self.under_way.get(&number) else { return };
        let (gateway, route, took_us) = (one.gateway, one.route.clone(), one.took_us);
        let waited_us = self.now_us - one.came_us;
        let service = self.limits.routes.get(&route).map(|it| it.service.clone());
        let passage = self.switch(gateway, &service.unwrap_or_default(), |it, ms| it.pass(ms));
        match passage {
            Some(Passage::Nobody) => return self.give_up(number, Rule::Breaker),
            Some(Passage::Probe) => {
                if let Some(one) = self.under_way.get_mut(&number) {
                    one.probe = true;
                }
            }
            Some(Passage::All) | None => {}
        }
        self.told.tallies.entry(route).or_default().admit(waited_us);
        self.agenda.push(Reverse((self.now_us.saturating_add(took_us), Due::Done(number))));
    }

    fn give_up(&mut self, number: u64, rule: Rule) {
        let Some(one) = self.under_way.remove(&number) else { return };
        self.refuse(&one.route, one.client, rule);
        self.free(&one);
    }

    /// The places of who has gone are free.
    fn free(&mut self, one: &UnderWay) {
        let now_us = self.now_us;
        for (of, since_us) in &one.held {
            if let Some(places) = self.places(one.gateway, of) {
                places.free(now_us - since_us);
                self.freed.push((one.gateway, of.clone()));
            }
        }
    }

    /// Calls those whose turn it is, and those whose turn it is by what becomes of these.
    fn call(&mut self) {
        let now_us = self.now_us;
        while let Some((gateway, of)) = self.freed.pop() {
            while let Some((number, told)) =
                self.places(gateway, &of).and_then(|it| it.next(now_us))
            {
                match told {
                    Ok(()) => {
                        self.has(number, of.clone());
                        self.go_on(number);
                    }
                    Err(denied) => self.give_up(number, denied.into()),
                }
            }
        }
    }

    fn too_late(&mut self, number: u64) {
        let Some(one) = self.under_way.get_mut(&number) else { return };
        let due = one.waits.take_if(|(_, waiter)| waiter.until_us <= self.now_us);
        let (gateway, Some((of, waiter))) = (one.gateway, due) else { return };
        if let Some(places) = self.places(gateway, &of) {
            places.leave(waiter);
        }
        self.give_up(number, Rule::TooLate);
    }

    fn done(&mut self, number: u64) {
        let Some(one) = self.under_way.remove(&number) else { return };
        if one.tries > 0 && one.status > 0 {
            for (of, _) in &one.held {
                if let Some(places) = self.places(one.gateway, of) {
                    places.answered(one.status, one.took_us);
                }
            }
            let service = self.limits.routes.get(&one.route).map(|it| it.service.clone());
            let said = Said::by(one.status);
            self.switch(one.gateway, &service.unwrap_or_default(), |it, now_ms| {
                // All but the last one came to nothing.
                for _ in 1..one.tries.min(crate::spec::RETRIES_MAX + 1) {
                    it.count(Said::Failure, false);
                }
                it.count(said, one.probe);
                if one.probe {
                    it.step(now_ms);
                }
            });
        }
        self.free(&one);
    }

    /// Limits that find themselves and breakers are judged while there are requests.
    fn begin_steps(&mut self) {
        if !self.steps {
            self.steps = true;
            self.judge();
            self.agenda.push(Reverse((self.now_us.saturating_add(STEP_US), Due::Step)));
        }
    }

    fn step(&mut self) {
        self.judge();
        self.steps = !self.under_way.is_empty();
        if self.steps {
            self.agenda.push(Reverse((self.now_us.saturating_add(STEP_US), Due::Step)));
        }
    }

    fn judge(&mut self) {
        let now_ms = self.now_us / 1_000;
        for (number, gateway) in &mut self.gateways {
            gateway.switches.values_mut().for_each(|it| it.step(now_ms));
            for (of, places) in &mut gateway.places {
                if places.step(now_ms) {
                    self.freed.push((*number, of.clone()));
                }
            }
        }
    }
}

/// The part of an address of which so many bits count.
fn network(ip: IpAddr, (v4_bits, v6_bits): (u8, u8)) -> IpAddr {
    masked(ip, if ip.is_ipv4() { v4_bits } else { v6_bits }).unwrap_or(ip)
}
