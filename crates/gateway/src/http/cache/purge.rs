//! What is taken out of the cache at once: by path, by what is below a path, by tag.
//!
//! Nothing is searched. A purge is a mark with a number, and an answer is gone if it was asked for
//! before a mark that is for it was made. So it doesn't matter how much is kept, and an answer that is on
//! its way meanwhile is gone with the others.

use everhold_core::http::cache::purge::{Of, What};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// Beyond so many the older half is made one, that takes all that was kept before it.
const MARKS_MAX: usize = 16_384;

/// By what an answer is purged.
pub struct Names {
    pub route: Arc<str>,
    pub host: String,
    pub path: String,
    pub tags: Vec<String>,
}

/// The marks of one cache.
#[derive(Default)]
pub struct Purges {
    /// Rises with each.
    last: AtomicU64,
    marks: RwLock<Marks>,
}

#[derive(Default)]
struct Marks {
    /// All of before that are gone.
    floor: u64,
    at: HashMap<What, u64>,
    /// How long the longest prefix is; `None`: there is none.
    prefix_max: Option<usize>,
}

impl Purges {
    /// The number of the last one: what is asked for from now on is not touched by it.
    pub fn now(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    pub fn purge(&self, what: What) {
        let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        let now = self.last.load(Ordering::Relaxed) + 1;
        let what = plain(what);
        if what == What::ALL {
            *marks = Marks { floor: now, ..Marks::default() };
        } else {
            if marks.at.len() >= MARKS_MAX {
                let mut all: Vec<u64> = marks.at.values().copied().collect();
                let (_, middle, _) = all.select_nth_unstable(MARKS_MAX / 2);
                marks.floor = marks.floor.max(*middle);
                let floor = marks.floor;
                marks.at.retain(|_, at| *at > floor);
                marks.prefix_max = marks.at.keys().filter_map(prefix_length).max();
            }
            marks.prefix_max = marks.prefix_max.max(prefix_length(&what));
            marks.at.insert(what, now);
        }
        // Whoever sees the number finds the mark.
        self.last.store(now, Ordering::Release);
    }

    /// Whether what was asked for at that number is gone.
    pub fn is_gone(&self, asked_at: u64, names: &Names) -> bool {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        if asked_at < marks.floor {
            return true;
        }
        let Names { route, host, path, tags } = names;
        let mut names: Vec<Of> = vec![Of::All, Of::Path(path.clone())];
        let ends = ends(path, marks.prefix_max);
        names.extend(ends.map(|end| Of::Prefix(path[..end].to_string())));
        names.extend(tags.iter().cloned().map(Of::Tag));
        let mut what = What::ALL;
        [None, Some(route.to_string())].into_iter().any(|route| {
            what.route = route;
            [None, Some(host.clone())].into_iter().any(|host| {
                what.host = host;
                names.iter_mut().any(|name| {
                    std::mem::swap(&mut what.of, name);
                    let after = marks.at.get(&what).is_some_and(|at| asked_at < *at);
                    std::mem::swap(&mut what.of, name);
                    after
                })
            })
        })
    }
}

/// Where prefixes of a path end that may be purged, the longest first: none is longer than `most`.
fn ends(path: &str, most: Option<usize>) -> impl Iterator<Item = usize> {
    let bytes = path.as_bytes();
    let most = most.map_or(0, |most| most.min(bytes.len()) + 1);
    (0..most).rev().filter(|at| bytes.get(*at).is_none_or(|it| *it == b'/'))
}

fn prefix_length(what: &What) -> Option<usize> {
    match &what.of {
        Of::Prefix(path) => Some(path.len()),
        Of::All | Of::Path(_) | Of::Tag(_) => None,
    }
}

/// As it is looked for.
fn plain(what: What) -> What {
    let host = what.host.map(|it| it.to_ascii_lowercase());
    let of = match what.of {
        Of::Prefix(path) => Of::Prefix(path.trim_end_matches('/').to_string()),
        of @ (Of::All | Of::Path(_) | Of::Tag(_)) => of,
    };
    What { route: what.route, host, of }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(host: &str, path: &str, tags: &[&str]) -> Names {
        let tags = tags.iter().map(|it| it.to_string()).collect();
        Names { route: Arc::from("r"), host: host.to_string(), path: path.to_string(), tags }
    }

    #[test]
    fn a_purge_takes_what_it_names_and_nothing_else() {
        let all = |of| What { of, ..What::ALL };
        let path = |path: &str| all(Of::Path(path.to_string()));
        let prefix = |path: &str| all(Of::Prefix(path.to_string()));
        let tag = |tag: &str| all(Of::Tag(tag.to_string()));
        let host = |host: &str, what: What| What { host: Some(host.to_string()), ..what };
        let route = |route: &str, what: What| What { route: Some(route.to_string()), ..what };
        #[rustfmt::skip]
        let cases = [
            (What::ALL,                      names("a", "/x", &[]),          true),
            (host("a", What::ALL),           names("a", "/x", &[]),          true),
            (host("b", What::ALL),           names("a", "/x", &[]),          false),
            (route("r", What::ALL),          names("a", "/x", &[]),          true),
            (route("s", What::ALL),          names("a", "/x", &[]),          false),
            (path("/x"),                     names("a", "/x", &[]),          true),
            (path("/x"),                     names("a", "/x/", &[]),         false),
            (path("/x"),                     names("a", "/x/y", &[]),        false),
            (host("A", path("/x")),          names("a", "/x", &[]),          true),
            (host("b", path("/x")),          names("a", "/x", &[]),          false),
            (route("r", path("/x")),         names("a", "/x", &[]),          true),
            (route("s", path("/x")),         names("a", "/x", &[]),          false),
            (prefix("/x"),                   names("a", "/x", &[]),          true),
            (prefix("/x"),                   names("a", "/x/y/z", &[]),      true),
            (prefix("/x/"),                  names("a", "/x/y", &[]),        true),
            (prefix("/x"),                   names("a", "/xy", &[]),         false),
            (prefix("/x/y"),                 names("a", "/x", &[]),          false),
            (prefix("/"),                    names("a", "/any", &[]),        true),
            (tag("t"),                       names("a", "/x", &["s", "t"]),  true),
            (tag("t"),                       names("a", "/t", &["T"]),       false),
            (host("a", route("r", tag("t"))), names("a", "/x", &["t"]),      true),
            (host("a", route("s", tag("t"))), names("a", "/x", &["t"]),      false),
        ];
        for (what, names, expected) in cases {
            let purges = Purges::default();
            let before = purges.now();
            purges.purge(what.clone());
            assert_eq!(purges.is_gone(before, &names), expected, "{what:?} {}", names.path);
            assert!(!purges.is_gone(purges.now(), &names), "what came after {what:?} stays");
        }
    }

    #[test]
    fn a_path_is_looked_through_as_deep_as_one_was_purged() {
        #[rustfmt::skip]
        let cases: [(&str, Option<usize>, &[usize]); 7] = [
            ("/a/b",        None,       &[]),
            ("/a/b",        Some(0),    &[0]),
            ("/a/b",        Some(2),    &[2, 0]),
            ("/a/b",        Some(3),    &[2, 0]),
            ("/a/b",        Some(4),    &[4, 2, 0]),
            ("/a/b",        Some(9),    &[4, 2, 0]),
            ("////////",    Some(2),    &[2, 1, 0]),
        ];
        for (path, most, expected) in cases {
            assert_eq!(ends(path, most).collect::<Vec<_>>(), expected, "{path} {most:?}");
        }
    }

    #[test]
    fn marks_are_so_many_and_never_give_back_what_they_took() {
        let purges = Purges::default();
        let before = purges.now();
        let tag = |index: usize| What { of: Of::Tag(index.to_string()), ..What::ALL };
        (0..MARKS_MAX * 3).for_each(|index| purges.purge(tag(index)));
        let count = purges.marks.read().expect("whole").at.len();
        assert!(count <= MARKS_MAX, "{count}");
        for index in [0, MARKS_MAX, MARKS_MAX * 3 - 1] {
            assert!(purges.is_gone(before, &names("a", "/", &[&index.to_string()])), "{index}");
        }
        assert!(!purges.is_gone(purges.now(), &names("a", "/", &["0"])));
    }
}
