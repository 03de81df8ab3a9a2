//! Whether an answer that is kept is given: RFC 9111 section 4 and 5.2.1, RFC 5861.

use super::control::Control;
use super::keep::Life;
use crate::http::degrade::STALE_MS_MAX;

/// What is done with an answer that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Fresh,
    /// It is stale, and the client bears that.
    Borne,
    /// It is stale and good while it is asked for anew.
    Meanwhile,
    /// Not before it was asked whether it is still so.
    Ask,
}

impl Life {
    /// `since_ms`: since it came.
    pub fn now(&self, asked: &Control, since_ms: u64) -> Use {
        let age_ms = self.age_ms + since_ms;
        if self.no_cache || asked.no_cache {
            return Use::Ask;
        }
        let of = |seconds: Option<u64>| seconds.map(|it| it * 1_000);
        // A fresh one may be too old for a client all the same.
        let most_ms = of(asked.max_age).unwrap_or(u64::MAX).min(self.fresh_ms);
        let wanted_ms = age_ms + of(asked.min_fresh).unwrap_or(0);
        if wanted_ms < most_ms {
            return Use::Fresh;
        }
        let over_ms = age_ms.saturating_sub(self.fresh_ms);
        let bears = of(asked.max_stale).is_some_and(|it| wanted_ms - most_ms <= it);
        if bears && !self.strict {
            return Use::Borne;
        }
        match asked.max_age.is_none() && asked.min_fresh.is_none() && over_ms < self.meanwhile_ms {
            true => Use::Meanwhile,
            false => Use::Ask,
        }
    }

    /// Whether it is given while its route is degraded, whatever the client would rather have: RFC 9111
    /// section 4.2.4 leaves that to whoever says so, but for what the service itself rules out.
    pub fn serves_degraded(&self, since_ms: u64) -> bool {
        let over_ms = (self.age_ms + since_ms).saturating_sub(self.fresh_ms);
        !self.no_cache && !self.strict && over_ms < STALE_MS_MAX
    }

    /// Whether it is given where nobody can say whether it is still so.
    pub fn serves_on_error(&self, asked: &Control, since_ms: u64) -> bool {
        let age_ms = self.age_ms + since_ms;
        let wanted = !self.no_cache && !asked.no_cache;
        let asked_ms = asked.stale_if_error.unwrap_or(0) * 1_000;
        let allowed_ms =
            if self.strict { self.on_error_ms } else { self.on_error_ms.max(asked_ms) };
        wanted && (age_ms < self.fresh_ms || age_ms - self.fresh_ms < allowed_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_while_it_is_good() {
        let fresh = Life { fresh_ms: 10_000, ..Life::default() };
        let aged = Life { age_ms: 4_000, ..fresh };
        let no_cache = Life { no_cache: true, ..fresh };
        let strict = Life { strict: true, ..fresh };
        let meanwhile = Life { meanwhile_ms: 5_000, ..fresh };
        let granted = Life { strict: true, ..meanwhile };
        #[rustfmt::skip]
        let cases = [
            // Life, what the request says, for how long it is here, what is done.
            (fresh,     "",                         0,      Use::Fresh),
            (fresh,     "",                         9_999,  Use::Fresh),
            (fresh,     "",                         10_000, Use::Ask),
            (aged,      "",                         5_999,  Use::Fresh),
            (aged,      "",                         6_000,  Use::Ask),
            (no_cache,  "",                         0,      Use::Ask),
            (no_cache,  "max-stale",                0,      Use::Ask),
            (fresh,     "no-cache",                 0,      Use::Ask),
            (fresh,     "max-age=3",                2_999,  Use::Fresh),
            (fresh,     "max-age=3",                3_000,  Use::Ask),
            (fresh,     "max-age=0",                0,      Use::Ask),
            (fresh,     "max-age=3, max-stale=2",   5_000,  Use::Borne),
            (fresh,     "max-age=3, max-stale=2",   5_001,  Use::Ask),
            (fresh,     "min-fresh=3",              6_999,  Use::Fresh),
            (fresh,     "min-fresh=3",              7_000,  Use::Ask),
            (fresh,     "max-stale",                99_999, Use::Borne),
            (fresh,     "max-stale=2",              12_000, Use::Borne),
            (fresh,     "max-stale=2",              12_001, Use::Ask),
            (strict,    "max-stale",                10_000, Use::Ask),
            (strict,    "",                         9_999,  Use::Fresh),
            (meanwhile, "",                         9_999,  Use::Fresh),
            (meanwhile, "",                         10_000, Use::Meanwhile),
            (meanwhile, "",                         14_999, Use::Meanwhile),
            (meanwhile, "",                         15_000, Use::Ask),
            (meanwhile, "max-age=5",                12_000, Use::Ask),
            (granted,   "",                         12_000, Use::Meanwhile),
            (granted,   "max-stale",                16_000, Use::Ask),
        ];
        for (life, asked, since_ms, expected) in cases {
            let mut control = Control::default();
            control.read(asked.as_bytes());
            assert_eq!(life.now(&control, since_ms), expected, "{life:?} {asked:?} {since_ms}");
        }
    }

    #[test]
    fn a_stale_answer_is_given_for_a_day_while_its_route_is_degraded() {
        let plain = Life { age_ms: 1_000, fresh_ms: 10_000, ..Life::default() };
        let day_ms = STALE_MS_MAX;
        #[rustfmt::skip]
        let cases = [
            (plain,                                0,              true),
            (plain,                                9_000 + day_ms - 1, true),
            (plain,                                9_000 + day_ms, false),
            (Life { strict: true, ..plain },       20_000,         false),
            (Life { no_cache: true, ..plain },     20_000,         false),
        ];
        for (life, since_ms, expected) in cases {
            assert_eq!(life.serves_degraded(since_ms), expected, "{life:?} {since_ms}");
        }
    }

    #[test]
    fn a_stale_answer_is_given_on_an_error_only_where_it_may_be() {
        let plain = Life { fresh_ms: 10_000, ..Life::default() };
        let borne = Life { on_error_ms: 5_000, ..plain };
        let strict = Life { strict: true, ..plain };
        #[rustfmt::skip]
        let cases = [
            (plain,                                 "",                  10_000, false),
            (plain,                                 "max-age=0",         9_999,  true),
            (plain,                                 "stale-if-error=2",  11_999, true),
            (plain,                                 "stale-if-error=2",  12_000, false),
            (strict,                                "stale-if-error=2",  11_000, false),
            (borne,                                 "",                  14_999, true),
            (borne,                                 "",                  15_000, false),
            (borne,                                 "no-cache",          1_000,  false),
            (Life { no_cache: true, ..borne },      "",                  1_000,  false),
        ];
        for (life, asked, since_ms, expected) in cases {
            let mut control = Control::default();
            control.read(asked.as_bytes());
            let serves = life.serves_on_error(&control, since_ms);
            assert_eq!(serves, expected, "{life:?} {asked:?} {since_ms}");
        }
    }
}
