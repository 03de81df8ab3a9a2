//! Which answers are kept, and for how long: RFC 9111 sections 3 and 4.2, as a cache that many share.
//!
//! An answer is kept for less than the RFC allows where what is in it could be of one client, or of one
//! request that is not like the others: with `Set-Cookie`, of statuses that a malformed request brings
//! about, of a request with a cookie where the answer says nothing of how long it lasts.

use super::CacheSpec;
use super::asked::Asked;
use super::control::{Control, seconds};
use super::date;

/// Of a date long ago it can't be told when it changes next: RFC 9111 section 4.2.2 asks for a warning
/// after that.
const HEURISTIC_S_MAX: u64 = 86_400;
/// Request fields that one answer may depend on.
const VARY_MAX: usize = 8;

/// An answer as the cache looks at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said<'h> {
    pub status: u16,
    /// Of `CDN-Cache-Control` where there is one, and then nothing else counts.
    control: Control,
    targeted: bool,
    /// What is said of it that is no date is one that is over.
    expires: Option<Option<i64>>,
    pub date: Option<i64>,
    pub last_modified: Option<i64>,
    age: u64,
    pub etag: Option<&'h [u8]>,
    sets_cookie: bool,
    /// It names a site that it is for.
    for_origin: bool,
    varies_by_all: bool,
    /// What it varies by, in small letters.
    pub vary: Vec<String>,
}

/// For how long an answer is good, from when it came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Life {
    /// How old it was then.
    pub age_ms: u64,
    /// Fresh while it is not older than that.
    pub fresh_ms: u64,
    /// And so much longer while it is asked for anew, and while that fails.
    pub meanwhile_ms: u64,
    pub on_error_ms: u64,
    /// Never without asking whether it is still so.
    pub no_cache: bool,
    /// Nobody's wish makes it good for longer.
    pub strict: bool,
}

/// Why an answer is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The client, or the instance, wants it so.
    NoStore,
    Private,
    Authorized,
    /// It says nothing of how long it lasts, and may be of who sent the cookie.
    Cookie,
    SetsCookie,
    VariesByAll,
    /// It names a site without saying that it varies by that.
    ForOrigin,
    /// A status that is not kept, or not of such a request.
    Status,
    /// It says nothing of how long it lasts.
    NoLife,
    /// It is stale as it comes, and nothing says that it could be asked for again.
    Stale,
}

impl Why {
    /// It is so whoever asks: with it goes what is kept for all. Else it is of this one request.
    pub fn is_for_all(self) -> bool {
        match self {
            Why::NoStore | Why::Private | Why::SetsCookie | Why::VariesByAll => true,
            Why::NoLife | Why::Stale => true,
            Why::Authorized | Why::Cookie | Why::ForOrigin | Why::Status => false,
        }
    }
}

impl<'h> Said<'h> {
    pub fn of(
        status: u16,
        fields: impl Iterator<Item = (&'h [u8], &'h [u8])>,
        unix_s: i64,
    ) -> Said<'h> {
        let mut said = Said { status, ..Said::default() };
        let (mut target, mut targeted, mut sound) = (Control::default(), false, true);
        for (name, value) in fields {
            let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
            let date = || date::parse(value, unix_s);
            match name.len() {
                3 if is("age") => said.age = said.age.max(seconds(value).unwrap_or(0)),
                4 if is("etag") => said.etag = Some(value),
                4 if is("date") => said.date = date(),
                4 if is("vary") => said.varies_by(value),
                7 if is("expires") => {
                    let known = said.expires.unwrap_or(Some(i64::MAX));
                    said.expires = Some(known.min(date()));
                }
                10 if is("set-cookie") => said.sets_cookie = true,
                13 if is("last-modified") => said.last_modified = date(),
                13 if is("cache-control") => said.control.read(value),
                17 if is("cdn-cache-control") => {
                    targeted = true;
                    sound &= target.read_targeted(value);
                }
                27 if is("access-control-allow-origin") => said.for_origin = value != b"*",
                _ => {}
            }
        }
        if targeted && sound {
            (said.control, said.targeted, said.expires) = (target, true, None);
        }
        said
    }

    fn varies_by(&mut self, names: &[u8]) {
        let names = names.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        for name in names.filter(|it| !it.is_empty()) {
            match std::str::from_utf8(name) {
                Ok(name) if name != "*" && self.vary.len() < VARY_MAX => {
                    self.vary.push(name.to_ascii_lowercase());
                }
                _ => self.varies_by_all = true,
            }
        }
    }

    /// Whether it is kept. `delay_ms`: between asking and the answer's head; `unix_s`: now.
    pub fn life(
        &self,
        asked: &Asked<'_>,
        spec: &CacheSpec,
        delay_ms: u64,
        unix_s: i64,
    ) -> Result<Life, Why> {
        let control = &self.control;
        // Before what it says: an error that is not to be kept says nothing of what is.
        if !is_kept(self.status, asked) {
            return Err(Why::Status);
        }
        if asked.control.no_store || control.no_store {
            return Err(Why::NoStore);
        }
        if control.private {
            return Err(Why::Private);
        }
        let shared = control.public || control.must_revalidate || control.s_maxage.is_some();
        if asked.authorized && !shared {
            return Err(Why::Authorized);
        }
        if self.sets_cookie {
            return Err(Why::SetsCookie);
        }
        if self.varies_by_all {
            return Err(Why::VariesByAll);
        }
        if self.for_origin && asked.origin && !self.vary.iter().any(|it| it == "origin") {
            return Err(Why::ForOrigin);
        }
        let fresh_s = match self.explicit_s(unix_s) {
            Some(fresh_s) => fresh_s,
            None if control.no_cache => 0,
            None => match self.implied_s(spec, unix_s).ok_or(Why::NoLife)? {
                _ if asked.cookie || asked.authorized => return Err(Why::Cookie),
                fresh_s => fresh_s,
            },
        };
        let asks = control.must_revalidate || control.proxy_revalidate || control.no_cache;
        let stale_ms = |said: Option<u64>, spec_ms: u64| match said {
            _ if asks => 0,
            Some(seconds) => seconds * 1_000,
            // Of who names a time for such caches no other is made up.
            None if control.s_maxage.is_some() => 0,
            None => spec_ms,
        };
        let life = Life {
            age_ms: self.age_ms(delay_ms, unix_s),
            fresh_ms: fresh_s * 1_000,
            meanwhile_ms: stale_ms(control.stale_while_revalidate, spec.stale_while_revalidate_ms),
            on_error_ms: stale_ms(control.stale_if_error, spec.stale_if_error_ms),
            no_cache: control.no_cache,
            strict: asks || control.s_maxage.is_some(),
        };
        let lasts = life.age_ms < life.fresh_ms && !life.no_cache;
        let again = self.etag.is_some() || self.last_modified.is_some();
        let stale = life.meanwhile_ms.max(life.on_error_ms) > 0;
        if !lasts && !again && !stale { Err(Why::Stale) } else { Ok(life) }
    }

    /// As it says itself: RFC 9111 section 4.2.1.
    fn explicit_s(&self, unix_s: i64) -> Option<u64> {
        let expires = self.expires.map(|at| {
            let after = at.unwrap_or(i64::MIN).saturating_sub(self.date.unwrap_or(unix_s));
            u64::try_from(after).unwrap_or(0)
        });
        self.control.s_maxage.or(self.control.max_age).or(expires)
    }

    /// As may be taken for granted: RFC 9111 section 4.2.2. What a cookie has to do with the answer nobody
    /// knows who isn't told.
    fn implied_s(&self, spec: &CacheSpec, unix_s: i64) -> Option<u64> {
        let usual = matches!(self.status, 200 | 203 | 204 | 300 | 301 | 308 | 404 | 410);
        if self.targeted || !usual {
            return None;
        }
        if let Some(ttl_ms) = spec.ttl_ms {
            return Some(ttl_ms / 1_000);
        }
        let since = self.date.unwrap_or(unix_s).checked_sub(self.last_modified?)?;
        Some((u64::try_from(since).ok()? / 10).min(HEURISTIC_S_MAX))
    }

    /// How old it was as it came: RFC 9111 section 4.2.3.
    fn age_ms(&self, delay_ms: u64, unix_s: i64) -> u64 {
        let apparent = unix_s.saturating_sub(self.date.unwrap_or(unix_s));
        let apparent_ms = u64::try_from(apparent).unwrap_or(0).saturating_mul(1_000);
        apparent_ms.max(self.age * 1_000 + delay_ms)
    }
}

/// Which statuses are kept at all. What a request has brought about by being malformed, too large or
/// conditional is not: others that are kept under the same key are not like it.
fn is_kept(status: u16, asked: &Asked<'_>) -> bool {
    match status {
        200 => true,
        203 | 204 | 300 | 301 | 302 | 303 | 307 | 308 | 404 | 410 | 451 => !asked.is_conditional(),
        _ => false,
    }
}
