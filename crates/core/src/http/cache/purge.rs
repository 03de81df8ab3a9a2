//! What is purged of the answers that gateways keep, and up to where each gateway has.
//!
//! The newest purges of a cluster are one record in the store, numbered. A gateway that finds the last one
//! that it carried out among them carries out those behind it; else it can't know what it missed, and
//! purges all.

use serde::{Deserialize, Serialize};

/// Purges that a gateway may have missed before it purges all.
const PURGES_MAX: usize = 128;
/// Of all names together: each purge writes the record anew.
const BYTES_MAX: usize = 64 << 10;
/// What one purge may name, and the bytes of a name.
pub const NAMES_MAX: usize = 64;
pub const NAME_BYTES_MAX: usize = 1024;

/// What is purged.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct What {
    /// `None`: of any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// `None`: of any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub of: Of,
}

/// By what answers are purged. Paths are as they are asked for, without the query.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Of {
    All,
    Path(String),
    /// The path and what is below it, in whole segments as those of routes.
    Prefix(String),
    /// As answers have it in `Surrogate-Key` or `Cache-Tag`.
    Tag(String),
}

impl What {
    pub const ALL: What = What { route: None, host: None, of: Of::All };

    /// What is wrong with it, so that it would never be found.
    pub fn fault(&self) -> Option<String> {
        let name = match &self.of {
            Of::All => return self.host.as_deref().and_then(host_fault),
            Of::Path(it) | Of::Prefix(it) | Of::Tag(it) => it,
        };
        if name.len() > NAME_BYTES_MAX {
            return Some(format!("a name has at most {NAME_BYTES_MAX} bytes"));
        }
        let odd = |it: &str| it.is_empty() || it.trim() != it || it.contains(char::is_control);
        let fault = match &self.of {
            Of::All => None,
            Of::Path(it) | Of::Prefix(it) if !it.starts_with('/') => {
                Some(format!("{it:?} is no path: it has to begin with /, without scheme and host"))
            }
            Of::Path(it) | Of::Prefix(it) if it.contains(['?', '#', ' ']) => {
                Some(format!("{it:?}: a path is without the query, with %20 for a space"))
            }
            Of::Tag(it) if odd(it) => Some(format!("{it:?} is no tag")),
            Of::Path(it) | Of::Prefix(it) if odd(it) => Some(format!("{it:?} is no path")),
            Of::Path(_) | Of::Prefix(_) | Of::Tag(_) => None,
        };
        fault.or_else(|| self.host.as_deref().and_then(host_fault))
    }

    fn bytes(&self) -> usize {
        let of = match &self.of {
            Of::All => 0,
            Of::Path(it) | Of::Prefix(it) | Of::Tag(it) => it.len(),
        };
        let length = |it: &Option<String>| it.as_ref().map_or(0, String::len);
        of + length(&self.route) + length(&self.host)
    }
}

fn host_fault(host: &str) -> Option<String> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "/?#@".contains(c);
    let port = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    let is_odd = host.is_empty() || host.len() > NAME_BYTES_MAX || host.contains(odd);
    (is_odd || port).then(|| format!("{host:?} is no host; it is without a port"))
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.of {
            Of::All => f.write_str("all")?,
            Of::Path(it) => write!(f, "path {it}")?,
            Of::Prefix(it) => write!(f, "prefix {it}")?,
            Of::Tag(it) => write!(f, "tag {it}")?,
        }
        if let Some(host) = &self.host {
            write!(f, " of host {host}")?;
        }
        match &self.route {
            Some(route) => write!(f, " of route {route}"),
            None => Ok(()),
        }
    }
}

/// One purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    #[serde(flatten)]
    pub purged: Purged,
    pub at: String,
    pub by: String,
    pub what: Vec<What>,
}

/// Up to which purge all are carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// Rises by one; 0: there was none.
    pub number: u64,
    /// No other has it. A store that was brought back from a copy may give numbers again.
    pub id: String,
}

/// The newest purges, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purges(Vec<Purge>);

/// What a gateway has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Due<'p> {
    Nothing,
    These(&'p [Purge]),
    /// It can't be known what it missed.
    All,
}

impl Purges {
    /// Adds one; old ones go where there are too many. `id`: that nobody has had.
    pub fn add(&mut self, id: String, (by, at): (String, String), what: Vec<What>) -> Purged {
        let purged = Purged { number: self.last().number + 1, id };
        self.0.push(Purge { purged: purged.clone(), at, by, what });
        let bytes = |it: &Purge| it.what.iter().map(What::bytes).sum::<usize>();
        let (mut count, mut total) = (0, 0);
        for purge in self.0.iter().rev().take(PURGES_MAX) {
            total += bytes(purge);
            if count > 0 && total > BYTES_MAX {
                break;
            }
            count += 1;
        }
        self.0.drain(..self.0.len() - count);
        purged
    }

    pub fn last(&self) -> Purged {
        self.0.last().map(|it| it.purged.clone()).unwrap_or_default()
    }

    /// What is left to do for who has `done` so much. `None`: it doesn't know what it has done.
    pub fn after(&self, done: Option<&Purged>) -> Due<'_> {
        let Some(done) = done else { return Due::All };
        if *done == self.last() {
            return Due::Nothing;
        }
        if done.number == 0 && self.0.first().is_some_and(|it| it.purged.number == 1) {
            return Due::These(&self.0);
        }
        match self.0.iter().position(|it| it.purged == *done) {
            Some(at) => Due::These(&self.0[at + 1..]),
            None => Due::All,
        }
    }

    /// Whether who has `done` so much has carried out that one.
    pub fn includes(&self, done: &Purged, wanted: &Purged) -> bool {
        done.number >= wanted.number && self.0.iter().any(|it| it.purged == *done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(count: usize, name: &str) -> Purges {
        let mut purges = Purges::default();
        for index in 1..=count {
            let what = What { route: None, host: None, of: Of::Tag(name.to_string()) };
            purges.add(format!("i{index}"), ("me".to_string(), String::new()), vec![what]);
        }
        purges
    }

    #[test]
    fn who_missed_some_does_those_and_who_can_t_know_purges_all() {
        let max = PURGES_MAX as u64;
        #[rustfmt::skip]
        let cases = [
            // purges  done              due
            (0,        None,                  "all"),
            (3,        None,                  "all"),
            (0,        Some((0, "")),         "nothing"),
            (2,        Some((0, "")),         "1 2"),
            (3,        Some((3, "i3")),       "nothing"),
            (3,        Some((1, "i1")),       "2 3"),
            // The store has an older or another history.
            (3,        Some((1, "other")),    "all"),
            (3,        Some((3, "other")),    "all"),
            (3,        Some((4, "i4")),       "all"),
            (0,        Some((4, "i4")),       "all"),
            // Those that it missed are gone.
            (max + 2,  Some((2, "i2")),       "all"),
            (max + 2,  Some((0, "")),         "all"),
            (max + 2,  Some((max, "")),       "all"),
        ];
        for (count, done, expected) in cases {
            let purges = log(count as usize, "t");
            let done = done.map(|(number, id)| Purged { number, id: id.to_string() });
            let due = match purges.after(done.as_ref()) {
                Due::Nothing => "nothing".to_string(),
                Due::All => "all".to_string(),
                Due::These(some) => {
                    let numbers: Vec<_> =
                        some.iter().map(|it| it.purged.number.to_string()).collect();
                    numbers.join(" ")
                }
            };
            assert_eq!(due, expected, "{count} {done:?}");
        }
        let (purges, of) = (log(3, "t"), |number, id: &str| Purged { number, id: id.to_string() });
        let includes = |done| purges.includes(&done, &of(2, "i2"));
        assert!(includes(of(2, "i2")) && includes(of(3, "i3")));
        assert!(!includes(of(1, "i1")) && !includes(of(3, "other")) && !includes(of(9, "i9")));
    }

    #[test]
    fn the_record_is_bounded_and_keeps_the_newest() {
        let purges = log(PURGES_MAX * 2, "t");
        assert_eq!((purges.0.len(), purges.last().number), (PURGES_MAX, PURGES_MAX as u64 * 2));
        let purges = log(PURGES_MAX, &"x".repeat(BYTES_MAX / 4));
        assert_eq!((purges.0.len(), purges.last().number), (4, PURGES_MAX as u64));
        assert_eq!(log(2, &"x".repeat(BYTES_MAX + 1)).0.len(), 1);
    }

    #[test]
    fn what_would_never_be_found_is_refused() {
        let path = |it: &str| Of::Path(it.to_string());
        let tag = |it: &str| Of::Tag(it.to_string());
        #[rustfmt::skip]
        let cases = [
            (None,          Of::All,                                   true),
            (Some("a.b"),   Of::All,                                   true),
            (Some("[::1]"), path("/"),                                 true),
            (Some("a:80"),  path("/"),                                 false),
            (Some(""),      Of::All,                                   false),
            (Some("a/b"),   Of::All,                                   false),
            (None,          path("/a/%20b"),                           true),
            (None,          Of::Prefix("/a/".to_string()),             true),
            (None,          path("a"),                                 false),
            (None,          path(""),                                  false),
            (None,          path("http://a/b"),                        false),
            (None,          path("/a?b"),                              false),
            (None,          path("/a b"),                              false),
            (None,          path("/a\n"),                              false),
            (None,          Of::Prefix("/a?".to_string()),             false),
            (None,          tag("product-7"),                          true),
            (None,          tag("two words"),                          true),
            (None,          tag(""),                                   false),
            (None,          tag(" a"),                                 false),
            (None,          tag(&"x".repeat(NAME_BYTES_MAX + 1)),      false),
        ];
        for (host, of, good) in cases {
            let what = What { route: None, host: host.map(str::to_string), of };
            assert_eq!(what.fault().is_none(), good, "{what}: {:?}", what.fault());
        }
    }
}
