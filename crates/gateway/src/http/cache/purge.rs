//! What is taken out of the cache at once: by path, by what is below a path, by tag.
//!
//! Nothing is searched. A purge is a mark with a number, and an answer is gone if it was asked for
//! before a mark that is for it was made. So it doesn't matter how much is kept, and an answer that is on
//! its way meanwhile is gone with the others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// Beyond so many the older half is made one, that takes all that was kept before it.
const MARKS_MAX: usize = 16_384;

/// What is purged. Paths are as they are asked for, without the query.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum What {
    All,
    /// `None`: of any host.
    Path {
        host: Option<String>,
        path: String,
    },
    /// The path and what is below it, in whole segments as those of routes.
    Prefix {
        host: Option<String>,
        path: String,
    },
    /// As answers have it in `Surrogate-Key` or `Cache-Tag`.
    Tag(String),
}

/// By what an answer is purged.
pub struct Names {
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
        match what {
            What::All => {
                *marks = Marks { floor: now, ..Marks::default() };
            }
            What::Path { .. } | What::Prefix { .. } | What::Tag(_) => {
                if marks.at.len() >= MARKS_MAX {
                    let mut all: Vec<u64> = marks.at.values().copied().collect();
                    let (_, middle, _) = all.select_nth_unstable(MARKS_MAX / 2);
                    marks.floor = marks.floor.max(*middle);
                    let floor = marks.floor;
                    marks.at.retain(|_, at| *at > floor);
                    marks.prefix_max = marks.at.keys().filter_map(prefix_length).max();
                }
                let what = plain(what);
                marks.prefix_max = marks.prefix_max.max(prefix_length(&what));
                marks.at.insert(what, now);
            }
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
        let after = |what: &What| marks.at.get(what).is_some_and(|at| asked_at < *at);
        let Names { host, path, tags } = names;
        if tags.iter().any(|tag| after(&What::Tag(tag.clone()))) {
            return true;
        }
        [None, Some(host.clone())].into_iter().any(|host| {
            let mut prefix = What::Prefix { host: host.clone(), path: path.clone() };
            let mut is_below = |end| {
                if let What::Prefix { path, .. } = &mut prefix {
                    path.truncate(end);
                }
                after(&prefix)
            };
            after(&What::Path { host, path: path.clone() })
                || ends(path, marks.prefix_max).any(&mut is_below)
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
    match what {
        What::Prefix { path, .. } => Some(path.len()),
        What::All | What::Path { .. } | What::Tag(_) => None,
    }
}

/// As it is looked for.
fn plain(what: What) -> What {
    let small = |host: Option<String>| host.map(|it| it.to_ascii_lowercase());
    match what {
        What::All => What::All,
        What::Path { host, path } => What::Path { host: small(host), path },
        What::Prefix { host, path } => {
            What::Prefix { host: small(host), path: path.trim_end_matches('/').to_string() }
        }
        What::Tag(tag) => What::Tag(tag),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(host: &str, path: &str, tags: &[&str]) -> Names {
        let tags = tags.iter().map(|it| it.to_string()).collect();
        Names { host: host.to_string(), path: path.to_string(), tags }
    }

    #[test]
    fn a_purge_takes_what_it_names_and_nothing_else() {
        let path = |path: &str| What::Path { host: None, path: path.to_string() };
        let prefix = |path: &str| What::Prefix { host: None, path: path.to_string() };
        let of = |host: &str, path: &str| What::Path {
            host: Some(host.to_string()),
            path: path.to_string(),
        };
        let tag = |tag: &str| What::Tag(tag.to_string());
        #[rustfmt::skip]
        let cases = [
            (What::All,         names("a", "/x", &[]),          true),
            (path("/x"),        names("a", "/x", &[]),          true),
            (path("/x"),        names("a", "/x/", &[]),         false),
            (path("/x"),        names("a", "/x/y", &[]),        false),
            (of("A", "/x"),     names("a", "/x", &[]),          true),
            (of("b", "/x"),     names("a", "/x", &[]),          false),
            (prefix("/x"),      names("a", "/x", &[]),          true),
            (prefix("/x"),      names("a", "/x/y/z", &[]),      true),
            (prefix("/x/"),     names("a", "/x/y", &[]),        true),
            (prefix("/x"),      names("a", "/xy", &[]),         false),
            (prefix("/x/y"),    names("a", "/x", &[]),          false),
            (prefix("/"),       names("a", "/any", &[]),        true),
            (tag("t"),          names("a", "/x", &["s", "t"]),  true),
            (tag("t"),          names("a", "/t", &["T"]),       false),
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
        let tag = |index: usize| What::Tag(index.to_string());
        (0..MARKS_MAX * 3).for_each(|index| purges.purge(tag(index)));
        let count = purges.marks.read().expect("whole").at.len();
        assert!(count <= MARKS_MAX, "{count}");
        for index in [0, MARKS_MAX, MARKS_MAX * 3 - 1] {
            assert!(purges.is_gone(before, &names("a", "/", &[&index.to_string()])), "{index}");
        }
        assert!(!purges.is_gone(purges.now(), &names("a", "/", &["0"])));
    }
}
