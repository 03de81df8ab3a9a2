//! What may be tried again, and how often.

/// Retries are at most this part of the requests of the last 10 s, as with linkerd and Envoy: a
/// service in trouble must not get a multiple of its load.
const BUDGET_PERCENT: u64 = 20;
/// And as many a second are allowed in any case, or a service that is seldom asked had none.
const PER_SECOND_MIN: u64 = 3;
const BUCKETS: usize = 10;
const BUCKET_MS: u64 = 1_000;

/// How many retries a service may have; of one thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Budget {
    /// Requests and retries of the last seconds, by the second modulo their number.
    buckets: [(u64, u64); BUCKETS],
    /// Their sums.
    requests: u64,
    retries: u64,
    second: u64,
}

impl Budget {
    /// A request came; not one that is tried again.
    pub fn request(&mut self, now_ms: u64) {
        self.bucket(now_ms).0 += 1;
        self.requests += 1;
    }

    /// Whether a retry is left.
    pub fn is_left(&mut self, now_ms: u64) -> bool {
        self.bucket(now_ms);
        let allowed = (self.requests * BUDGET_PERCENT / 100).max(PER_SECOND_MIN * BUCKETS as u64);
        self.retries < allowed
    }

    /// Takes a retry if one is left.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let left = self.is_left(now_ms);
        if left {
            self.bucket(now_ms).1 += 1;
            self.retries += 1;
        }
        left
    }

    /// The bucket of now, after those too old have been emptied.
    fn bucket(&mut self, now_ms: u64) -> &mut (u64, u64) {
        let second = (now_ms / BUCKET_MS).max(self.second);
        for old in (self.second..second).take(BUCKETS) {
            let bucket = &mut self.buckets[(old + 1) as usize % BUCKETS];
            (self.requests, self.retries) = (self.requests - bucket.0, self.retries - bucket.1);
            *bucket = (0, 0);
        }
        self.second = second;
        &mut self.buckets[second as usize % BUCKETS]
    }
}

/// How far a try that failed had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// No byte of the request, or the other side says that it did nothing with it (HTTP/2's
    /// REFUSED_STREAM, and streams beyond the last of a GOAWAY).
    Nothing,
    /// Something of the request, and no byte of a response came.
    Request,
    /// A byte of a response came.
    Response,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    None,
    /// All that was read of it from the client is still there.
    Held,
    /// Some of it is gone.
    Consumed,
}

/// A try that failed.
#[derive(Debug, Clone, Copy)]
pub struct Failed<'a> {
    pub method: &'a str,
    pub sent: Sent,
    pub body: Body,
    /// Over an idle connection, which the other side had closed, and not so before: one more try over a
    /// new one takes none of those allowed and nothing from the budget, as with nginx, HAProxy and
    /// Envoy.
    pub stale: bool,
    /// Tries made, this one too; not a stale one.
    pub tries: u32,
    /// Tries allowed beyond the first.
    pub retries: u32,
    /// Of the time that all tries may take.
    pub remaining_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Again,
    No(Why),
}

/// Why a request is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The client may have seen of the response already.
    Answered,
    BodyGone,
    /// It may have been done, and doing it twice is not the same as once.
    Method,
    Tries,
    Deadline,
    Budget,
}

/// Whether a request is tried once more; takes it from the budget if so, and if it is to be paid for.
pub fn may_retry(failed: &Failed<'_>, budget: &mut Budget, now_ms: u64) -> Verdict {
    let refused = match (failed.sent, failed.body) {
        (Sent::Response, _) => Some(Why::Answered),
        (_, Body::Consumed) => Some(Why::BodyGone),
        (Sent::Request, _) if !idempotent(failed.method) => Some(Why::Method),
        (Sent::Request | Sent::Nothing, Body::None | Body::Held) => None,
    };
    let why = refused
        .or_else(|| (!failed.stale && failed.tries > failed.retries).then_some(Why::Tries))
        .or_else(|| (failed.remaining_ms == 0).then_some(Why::Deadline))
        .or_else(|| (!failed.stale && !budget.take(now_ms)).then_some(Why::Budget));
    why.map_or(Verdict::Again, Verdict::No)
}

/// RFC 9110, section 9.2.2. Methods are case-sensitive, and an unknown one is not.
pub fn idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::chance::Chance;
    use std::collections::VecDeque;

    #[test]
    fn only_what_is_harmless_is_tried_again() {
        use {Body::Consumed, Body::Held, Sent::Nothing, Sent::Request, Sent::Response};
        let no = Verdict::No;
        #[rustfmt::skip]
        let cases = [
            // Nothing was sent: any method.
            ("POST",    Nothing,  Body::None, Verdict::Again),
            ("POST",    Nothing,  Held,       Verdict::Again),
            ("POST",    Nothing,  Consumed,   no(Why::BodyGone)),
            ("BREW",    Nothing,  Held,       Verdict::Again),
            // Sent, not answered: what may be done twice.
            ("GET",     Request,  Body::None, Verdict::Again),
            ("HEAD",    Request,  Body::None, Verdict::Again),
            ("OPTIONS", Request,  Body::None, Verdict::Again),
            ("TRACE",   Request,  Body::None, Verdict::Again),
            ("PUT",     Request,  Held,       Verdict::Again),
            ("DELETE",  Request,  Body::None, Verdict::Again),
            ("PUT",     Request,  Consumed,   no(Why::BodyGone)),
            ("POST",    Request,  Body::None, no(Why::Method)),
            ("PATCH",   Request,  Held,       no(Why::Method)),
            ("CONNECT", Request,  Body::None, no(Why::Method)),
            ("get",     Request,  Body::None, no(Why::Method)),
            // Answered: never.
            ("GET",     Response, Body::None, no(Why::Answered)),
            ("PUT",     Response, Held,       no(Why::Answered)),
        ];
        for (method, sent, body, expected) in cases {
            for stale in [false, true] {
                let (tries, retries, remaining_ms) = (1, 2, 100);
                let failed = Failed { method, sent, body, stale, tries, retries, remaining_ms };
                let verdict = may_retry(&failed, &mut Budget::default(), 0);
                assert_eq!(verdict, expected, "{method} {sent:?} {body:?} {stale}");
            }
        }
        #[rustfmt::skip]
        let cases = [
            // stale, tries, retries, remaining
            (false, 1, 0, 100, no(Why::Tries)),
            (false, 2, 2, 100, Verdict::Again),
            (false, 3, 2, 100, no(Why::Tries)),
            (false, 1, 2,   0, no(Why::Deadline)),
            (true,  0, 0, 100, Verdict::Again),
            (true,  1, 0, 100, Verdict::Again),
            (true,  0, 0,   0, no(Why::Deadline)),
        ];
        for (stale, tries, retries, remaining_ms, expected) in cases {
            let (method, sent, body) = ("GET", Request, Body::None);
            let failed = Failed { method, sent, body, stale, tries, retries, remaining_ms };
            let verdict = may_retry(&failed, &mut Budget::default(), 0);
            assert_eq!(verdict, expected, "{stale}, {tries} of {retries}, {remaining_ms}");
        }
    }

    #[test]
    fn an_idle_connection_that_was_closed_takes_nothing_from_the_budget() {
        let mut budget = Budget::default();
        while budget.take(0) {}
        let (method, sent, body) = ("GET", Sent::Request, Body::None);
        let (tries, retries, remaining_ms) = (0, 0, 100);
        let failed = Failed { method, sent, body, stale: true, tries, retries, remaining_ms };
        let before = budget.clone();
        assert_eq!(may_retry(&failed, &mut budget, 0), Verdict::Again);
        assert_eq!(budget, before);
    }

    #[test]
    fn what_is_refused_costs_nothing() {
        let mut budget = Budget::default();
        let failed = Failed {
            method: "POST",
            sent: Sent::Request,
            body: Body::None,
            stale: false,
            tries: 1,
            retries: 2,
            remaining_ms: 100,
        };
        for _ in 0..100 {
            assert_eq!(may_retry(&failed, &mut budget, 0), Verdict::No(Why::Method));
        }
        assert_eq!(budget, Budget::default());
    }

    #[test]
    fn a_fifth_of_ten_seconds_may_be_retried() {
        // Requests at seconds, then how many retries there are at a second.
        type Case = (&'static [(u64, u32)], u64, usize);
        #[rustfmt::skip]
        let cases: &[Case] = &[
            (&[],                       0,      30),
            (&[(0, 100)],               0,      30),
            (&[(0, 1_000)],             0,     200),
            (&[(0, 1_000)],             9,     200),
            (&[(0, 1_000)],            10,      30),
            (&[(0, 500), (5, 500)],     9,     200),
            (&[(0, 500), (5, 500)],    10,     100),
            (&[(0, 1_000), (99, 10)],  99,      30),
            (&[(99, 1_000)],           50,     200),
        ];
        for (requests, second, expected) in cases {
            let mut budget = Budget::default();
            for (at, n) in *requests {
                (0..*n).for_each(|_| budget.request(at * 1_000));
            }
            let taken = (0..100_000).take_while(|_| budget.take(second * 1_000 + 999)).count();
            assert_eq!(taken, *expected, "{requests:?} at {second}");
        }
    }

    #[test]
    fn whatever_is_asked_retries_stay_within_the_budget() {
        let mut chance = Chance(8);
        for _ in 0..50 {
            let mut budget = Budget::default();
            let mut seconds: VecDeque<(u64, u64, u64)> = VecDeque::new();
            let mut now_ms = 0;
            for _ in 0..5_000 {
                now_ms += chance.below(40) as u64 * chance.below(2) as u64;
                if chance.below(2_000) == 0 {
                    now_ms += chance.below(20_000) as u64;
                }
                let second = now_ms / 1_000;
                if seconds.back().is_none_or(|last| last.0 != second) {
                    seconds.push_back((second, 0, 0));
                }
                seconds.retain(|(at, ..)| at + 10 > second);
                let now = seconds.back_mut().unwrap();
                let taken = if chance.below(3) == 0 {
                    budget.request(now_ms);
                    now.1 += 1;
                    false
                } else {
                    budget.take(now_ms)
                };
                now.2 += u64::from(taken);
                let requests: u64 = seconds.iter().map(|second| second.1).sum();
                let retries: u64 = seconds.iter().map(|second| second.2).sum();
                assert_eq!((budget.requests, budget.retries), (requests, retries));
                assert!(!taken || retries <= (requests / 5).max(30), "{retries} of {requests}");
            }
        }
    }
}
