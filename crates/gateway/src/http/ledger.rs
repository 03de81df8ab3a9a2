//! What became of requests: counted for metrics, the last ones kept for who asks about one, and a line
//! each for the access log. A thread writes its own; whoever reads, reads all threads'.

use super::access::{Batch, Lines};
use super::id::{RequestId, Short};
use super::request::Method;
use super::sample::Sample;
use everhold_core::spec::RETRIES_MAX;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Upper bounds in seconds: OpenTelemetry's for `http.server.request.duration`.
pub const BOUNDS_S: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Combinations of route, method and status that are told apart; an instance that makes up statuses
/// can't fill the memory. All others are counted under [`REST`], which no spec can name.
const SERIES_MAX: usize = 2_000;
const REST: &str = "(rest)";
/// The last requests of a thread, and the last that went wrong: half a kilobyte each.
const RECENT_MAX: usize = 4_096;
const WRONG_MAX: usize = 512;
/// Tries of one request: the first, further ones, and one over a new connection instead of an idle one.
pub const TRIES_MAX: usize = RETRIES_MAX as usize + 2;

/// How long things took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// By [`BOUNDS_S`], and what is above; not added up.
    pub buckets: [u64; BOUNDS_S.len() + 1],
    pub sum_us: u64,
    pub count: u64,
}

impl Histogram {
    fn add(&mut self, took_us: u64) {
        let took_s = took_us as f64 / 1e6;
        self.buckets[BOUNDS_S.partition_point(|bound| *bound < took_s)] += 1;
        self.sum_us += took_us;
        self.count += 1;
    }

    fn merge(&mut self, other: &Histogram) {
        for (mine, others) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += others;
        }
        self.sum_us += other.sum_us;
        self.count += other.count;
    }
}

/// By which requests are told apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// Empty: no route.
    pub route: Arc<str>,
    pub method: Method,
    pub status: u16,
}

/// By which tries are told apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Of {
    pub service: Arc<str>,
    pub backend: Arc<str>,
    pub end: End,
}

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Answered,
    Failed,
    /// It was one of two at once, and the other one's answer was taken.
    Left,
}

/// Who answered a request that was tried twice at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hedge {
    First,
    Second,
    Neither,
}

/// What a request met before it was tried anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Met {
    /// It had to wait, till its turn had come or its client was gone.
    Queue,
    QueueFull,
    TooLate,
    Breaker,
    /// A degraded mode of its route answered.
    Degraded,
    /// The thread had no time for it.
    Cpu,
}

impl Met {
    /// As metrics have it.
    pub fn word(self) -> &'static str {
        match self {
            Met::Queue => "queue",
            Met::QueueFull => "queue_full",
            Met::TooLate => "too_late",
            Met::Breaker => "breaker",
            Met::Degraded => "degraded",
            Met::Cpu => "cpu",
        }
    }
}

/// By which those that met something are told apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turned {
    pub route: Arc<str>,
    pub met: Met,
}

/// One try of a request.
#[derive(Debug, Clone)]
pub struct Try {
    pub backend: Arc<str>,
    /// Why that one.
    pub why: &'static str,
    /// Since the request came.
    pub after_us: u64,
    /// Until the head of the answer, or the failure.
    pub took_us: u64,
    pub end: End,
    /// `answered`, or why not.
    pub outcome: &'static str,
}

/// The tries of one request. Nearly all have one, for which nothing is allocated.
#[derive(Debug, Clone, Default)]
pub struct Tries {
    first: Option<Try>,
    more: Vec<Try>,
}

impl Tries {
    fn push(&mut self, one: Try) {
        match self.first {
            None => self.first = Some(one),
            Some(_) if self.more.len() + 1 < TRIES_MAX => self.more.push(one),
            Some(_) => {}
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Try> {
        self.first.iter().chain(&self.more)
    }

    pub fn count(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }
}

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct Record {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub id: RequestId,
    pub peer: IpAddr,
    pub listener: Arc<str>,
    pub method: Method,
    pub host: Short<64>,
    pub path: Short<128>,
    /// Empty: no route.
    pub route: Arc<str>,
    pub service: Arc<str>,
    pub tries: Tries,
    /// 0: the client was gone.
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub took_us: u64,
    pub outcome: &'static str,
    pub met: Option<Met>,
    /// Before it was let in or turned away; a part of `took_us`.
    pub waited_us: u64,
    /// Two instances were asked at once.
    pub hedge: Option<Hedge>,
    /// What the cache did for it; empty: its route keeps no answers.
    pub cache: &'static str,
}

/// Of one thread.
#[derive(Default)]
pub struct Ledger(Mutex<Books>);

#[derive(Default)]
struct Books {
    requests: Histograms<Series>,
    tries: Histograms<Of>,
    turned: Histograms<Turned>,
    /// By service.
    hedged: BTreeMap<(Arc<str>, Hedge), u64>,
    /// By route and what the cache did.
    cached: BTreeMap<(Arc<str>, &'static str), u64>,
    recent: VecDeque<Record>,
    wrong: VecDeque<Record>,
    sample: Sample,
    lines: Option<Lines>,
    lines_lost: Arc<AtomicU64>,
}

/// Histograms by what they are of; the last one is found without a search.
struct Histograms<K> {
    by: BTreeMap<K, usize>,
    all: Vec<Histogram>,
    last: Option<(K, usize)>,
}

impl<K> Default for Histograms<K> {
    fn default() -> Histograms<K> {
        Histograms { by: BTreeMap::new(), all: Vec::new(), last: None }
    }
}

impl<K: Ord + Clone> Histograms<K> {
    /// `is`: whether a key is the one; `key`: makes it; `rest`: of which few it is where there are too
    /// many.
    fn add(
        &mut self,
        is: impl Fn(&K) -> bool,
        key: impl FnOnce() -> K,
        rest: impl FnOnce(&K) -> K,
        took_us: u64,
    ) {
        let index = match &self.last {
            Some((last, index)) if is(last) => *index,
            _ => {
                let key = key();
                let counted = match self.by.contains_key(&key) || self.all.len() < SERIES_MAX {
                    true => key.clone(),
                    false => rest(&key),
                };
                let next = self.all.len();
                let index = *self.by.entry(counted).or_insert(next);
                if index == next {
                    self.all.push(Histogram::default());
                }
                self.last = Some((key, index));
                index
            }
        };
        self.all[index].add(took_us);
    }

    fn iter(&self) -> impl Iterator<Item = (&K, &Histogram)> {
        self.by.iter().map(|(key, index)| (key, &self.all[*index]))
    }
}

/// Of all threads.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    pub requests: BTreeMap<Series, Histogram>,
    pub tries: BTreeMap<Of, Histogram>,
    /// How long those waited that did not go on at once.
    pub turned: BTreeMap<Turned, Histogram>,
    /// Requests that were tried twice at once, by service.
    pub hedged: BTreeMap<(Arc<str>, Hedge), u64>,
    /// Requests by route and what the cache did for them.
    pub cached: BTreeMap<(Arc<str>, &'static str), u64>,
    /// Lines of the access log that the disk was too slow for, or did not take.
    pub lines_lost: u64,
}

impl Ledger {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self, record: Record) {
        let mut books = self.books();
        let Books { requests, tries, turned, hedged, cached, .. } = &mut *books;
        let Record { route, method, status, .. } = &record;
        let is = |it: &Series| {
            Arc::ptr_eq(&it.route, route) && it.method == *method && it.status == *status
        };
        let series = || Series { route: route.clone(), method: *method, status: *status };
        let rest = |it: &Series| Series {
            route: Arc::from(REST),
            method: it.method,
            status: it.status / 100 * 100,
        };
        requests.add(is, series, rest, record.took_us);
        for one in record.tries.iter() {
            let is = |it: &Of| Arc::ptr_eq(&it.backend, &one.backend) && it.end == one.end;
            let (service, backend) = (&record.service, &one.backend);
            let of = || Of { service: service.clone(), backend: backend.clone(), end: one.end };
            let rest = |it: &Of| Of { backend: Arc::from(REST), ..it.clone() };
            tries.add(is, of, rest, one.took_us);
        }
        if let Some(met) = record.met {
            let is = |it: &Turned| Arc::ptr_eq(&it.route, &record.route) && it.met == met;
            let key = || Turned { route: record.route.clone(), met };
            let rest = |it: &Turned| Turned { route: Arc::from(REST), ..it.clone() };
            turned.add(is, key, rest, record.waited_us);
        }
        if let Some(hedge) = record.hedge {
            *hedged.entry((record.service.clone(), hedge)).or_default() += 1;
        }
        if !record.cache.is_empty() {
            let mut of = (record.route.clone(), record.cache);
            if cached.len() >= SERIES_MAX && !cached.contains_key(&of) {
                of.0 = Arc::from(REST);
            }
            *cached.entry(of).or_default() += 1;
        }
        if let Some(lines) = &mut books.lines {
            lines.add(&record);
        }
        let failed = record.tries.iter().any(|it| it.end == End::Failed);
        let went_wrong = record.status >= 500 || record.status == 0 || failed;
        let Books { recent, wrong, sample, .. } = &mut *books;
        sample.take(&record, went_wrong);
        let (kept, most) = if went_wrong { (wrong, WRONG_MAX) } else { (recent, RECENT_MAX) };
        if kept.len() >= most {
            kept.pop_front();
        }
        kept.push_back(record);
    }

    /// Goes on with another access log, or with none; the one it had gets what is its own.
    pub fn turn_log(&self, to: Option<SyncSender<Batch>>) {
        let mut books = self.books();
        let lines = to.map(|to| Lines::new(to, books.lines_lost.clone()));
        if let Some(mut last) = std::mem::replace(&mut books.lines, lines) {
            last.flush();
        }
    }

    /// Hands on what the access log was not told yet.
    pub fn flush(&self) {
        if let Some(lines) = &mut self.books().lines {
            lines.flush();
        }
    }

    /// The newest request of that name that is remembered.
    pub fn find(&self, id: &[u8]) -> Option<Record> {
        let books = self.books();
        let all = books.sample.iter().chain(&books.recent).chain(&books.wrong);
        all.filter(|record| record.id.as_bytes() == id).max_by_key(|it| it.at_ms).cloned()
    }

    pub fn add_to(&self, sums: &mut Sums) {
        let books = self.books();
        for (series, histogram) in books.requests.iter() {
            sums.requests.entry(series.clone()).or_default().merge(histogram);
        }
        for (of, histogram) in books.tries.iter() {
            sums.tries.entry(of.clone()).or_default().merge(histogram);
        }
        for (turned, histogram) in books.turned.iter() {
            sums.turned.entry(turned.clone()).or_default().merge(histogram);
        }
        for (of, count) in &books.hedged {
            *sums.hedged.entry(of.clone()).or_default() += count;
        }
        for (of, count) in &books.cached {
            *sums.cached.entry(of.clone()).or_default() += count;
        }
        sums.lines_lost += books.lines_lost.load(Relaxed);
    }
}

/// What a request has gone through so far.
pub struct Trail {
    pub route: Arc<str>,
    pub service: Arc<str>,
    pub tries: Tries,
    pub outcome: &'static str,
    pub met: Option<Met>,
    pub waited_us: u64,
    pub hedge: Option<Hedge>,
    pub cache: &'static str,
}

impl Default for Trail {
    fn default() -> Trail {
        let nothing: Arc<str> = Arc::from("");
        Trail {
            route: nothing.clone(),
            service: nothing,
            tries: Tries::default(),
            outcome: "",
            met: None,
            waited_us: 0,
            hedge: None,
            cache: "",
        }
    }
}

impl Trail {
    pub fn begin(&mut self, nothing: &Arc<str>) {
        (self.route, self.service) = (nothing.clone(), nothing.clone());
        (self.outcome, self.cache) = ("", "");
        self.tries = Tries::default();
        (self.met, self.waited_us, self.hedge) = (None, 0, None);
    }

    /// One try, or two at once.
    pub fn tried(&mut self, mut tries: [Option<Try>; 2]) {
        tries.sort_by_key(|one| one.as_ref().map_or(u64::MAX, |one| one.after_us));
        tries.into_iter().flatten().for_each(|one| self.tries.push(one));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &[u8], status: u16, took_us: u64) -> Record {
        let name: Arc<str> = Arc::from("r");
        Record {
            at_ms: 7,
            id: RequestId::of(id),
            peer: IpAddr::from([127, 0, 0, 1]),
            listener: name.clone(),
            method: Method::Get,
            host: Short::of(b"h"),
            path: Short::of(b"/p"),
            route: name.clone(),
            service: name.clone(),
            tries: Tries {
                first: Some(Try {
                    backend: name,
                    why: "its turn",
                    after_us: 1,
                    took_us,
                    end: if status < 500 { End::Answered } else { End::Failed },
                    outcome: "answered",
                }),
                more: Vec::new(),
            },
            status,
            bytes_in: 0,
            bytes_out: 1,
            took_us,
            outcome: "",
            met: None,
            waited_us: 0,
            hedge: None,
            cache: "",
        }
    }

    #[test]
    fn requests_are_counted_and_the_last_ones_remembered() {
        let ledger = Ledger::default();
        for (status, took_us) in [(200, 5_000), (200, 5_001), (200, 20_000_000), (502, 1)] {
            ledger.write(record(b"first", status, took_us));
        }
        for _ in 0..RECENT_MAX {
            ledger.write(record(b"later", 200, 0));
        }
        let mut sums = Sums::default();
        ledger.add_to(&mut sums);
        let of = |status| {
            let (_, histogram) =
                sums.requests.iter().find(|(series, _)| series.status == status).expect("counted");
            let Histogram { buckets, count, .. } = histogram;
            (buckets[0], buckets[1], buckets[14], *count)
        };
        assert_eq!(of(200), (1 + RECENT_MAX as u64, 1, 1, 3 + RECENT_MAX as u64));
        assert_eq!(of(502), (1, 0, 0, 1));
        assert_eq!(ledger.find(b"first").expect("it went wrong").status, 502);
        assert_eq!(ledger.find(b"later").expect("it is recent").status, 200);
        assert!(ledger.find(b"never").is_none());
    }

    /// A minute of failures and slow ones, then an hour of others at any rate.
    #[test]
    fn some_of_each_minute_are_remembered_for_an_hour() {
        let ledger = Ledger::default();
        let at = |minute: u64, id: &str, status: u16, took_us: u64| {
            let at_ms = minute * 60_000;
            ledger.write(Record { at_ms, ..record(id.as_bytes(), status, took_us) });
        };
        let found = |id: &str| ledger.find(id.as_bytes()).is_some();
        at(100, "failed", 502, 1);
        at(100, "slow", 200, 9_000_000);
        for minute in 100..160 {
            for index in 0..RECENT_MAX as u64 {
                at(minute, "plain", 200, index % 1_000);
            }
            for _ in 0..WRONG_MAX {
                at(minute, "broken", 502, 1);
            }
            assert!(found("failed") && found("slow"), "{minute}");
        }
        at(160, "plain", 200, 1);
        assert!(!found("failed") && !found("slow"));
        assert!(ledger.books().sample.iter().count() <= 60 * 9);
        // The clock was ahead for a moment.
        at(9_000, "ahead", 502, 1);
        for minute in 161..163 {
            for index in 0..2 * WRONG_MAX {
                at(minute, if index == 0 { "after" } else { "broken" }, 502, 1);
            }
            assert!(found("after") && !found("ahead"), "{minute}");
        }
    }

    #[test]
    fn what_can_not_be_told_apart_any_more_is_counted_all_the_same() {
        let ledger = Ledger::default();
        let add = |route: usize, status| {
            let route: Arc<str> = Arc::from(format!("r{route}"));
            let mut record = record(b"x", status, 1);
            if let Some(first) = &mut record.tries.first {
                first.backend = route.clone();
            }
            ledger.write(Record { route, ..record });
        };
        (0..SERIES_MAX).for_each(|route| add(route, 200));
        for _ in 0..3 {
            (0..5).for_each(|route| add(route, 200));
            [502, 503].iter().for_each(|status| add(7, *status));
        }
        add(SERIES_MAX, 204);
        let mut sums = Sums::default();
        ledger.add_to(&mut sums);
        let rest = sums.requests.iter().filter(|(it, _)| &*it.route == REST);
        let rest: Vec<_> = rest.map(|(it, sum)| (it.status, sum.count)).collect();
        assert_eq!(rest, [(200, 1), (500, 6)]);
        let rest = sums.tries.iter().filter(|(it, _)| &*it.backend == REST);
        let rest: Vec<_> = rest.map(|(it, sum)| (it.end, sum.count)).collect();
        assert_eq!(rest, [(End::Answered, 1), (End::Failed, 6)]);
        let count = |sums: &mut dyn Iterator<Item = &Histogram>| sums.map(|it| it.count).sum();
        let all: u64 = count(&mut sums.requests.values());
        assert_eq!(all, SERIES_MAX as u64 + 22);
    }
}
