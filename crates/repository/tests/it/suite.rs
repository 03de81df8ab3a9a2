//! What every kind of place does, run for a directory and for an S3 server.

use super::bed::{Server, directory};
use everhold_repository::{Existing, Place};
use std::thread::scope;

macro_rules! for_both {
    ($($case:ident),* $(,)?) => {
        mod in_directory {
            use super::{Place, directory};
            $(#[test]
            fn $case() {
                let dir = tempfile::tempdir().unwrap();
                let place = Place::open(&directory(&dir.path().join("place"))).unwrap();
                place.prepare().unwrap();
                super::$case(&place);
            })*
        }
        mod in_s3 {
            use super::Server;
            $(#[test]
            fn $case() {
                super::$case(&Server::start().place());
            })*
        }
    };
}

for_both!(
    the_first_put_stays_until_it_is_replaced,
    parts_are_read_where_they_are,
    lists_are_whole_and_in_order,
    what_is_deleted_is_gone,
    the_probe_passes_and_leaves_nothing,
);

fn put(place: &Place, object: &str, content: &[u8]) -> bool {
    place.put(object, content, Existing::Keep).unwrap()
}

fn names(place: &Place, prefix: &str) -> Vec<String> {
    place.list(prefix).unwrap().into_iter().map(|object| object.name).collect()
}

fn the_first_put_stays_until_it_is_replaced(place: &Place) {
    assert_eq!(place.get("main/log/1").unwrap(), None);
    assert!(put(place, "main/log/1", b"first"));
    for _ in 0..3 {
        assert!(!put(place, "main/log/1", b"second"));
    }
    assert_eq!(place.get("main/log/1").unwrap().unwrap(), b"first");
    assert!(place.put("main/log/1", b"third", Existing::Replace).unwrap());
    assert_eq!(place.get("main/log/1").unwrap().unwrap(), b"third");
    assert!(put(place, "empty", b""));
    assert_eq!(place.get("empty").unwrap().unwrap(), b"");
    // Larger than what is sent or read at once anywhere.
    let large: Vec<u8> = (0..9_000_001_u32).map(|n| (n % 251) as u8).collect();
    assert!(put(place, "large", &large));
    assert!(place.get("large").unwrap().unwrap() == large);
}

fn parts_are_read_where_they_are(place: &Place) {
    assert!(put(place, "a/1", b"0123456789"));
    assert!(put(place, "a/empty", b""));
    let part = |offset, len| place.read("a/1", offset, len).unwrap().unwrap();
    #[rustfmt::skip]
    let cases: [(u64, usize, &[u8]); 9] = [
        (0, 10, b"0123456789"),
        (0, 1, b"0"),
        (9, 1, b"9"),
        (3, 4, b"3456"),
        (8, 100, b"89"),
        (10, 1, b""),
        (1000, 5, b""),
        (4, 0, b""),
        (1 << 40, 1 << 20, b""),
    ];
    for (offset, len, expected) in cases {
        assert_eq!(part(offset, len), expected, "{len} from {offset}");
    }
    assert_eq!(place.read("a/empty", 0, 5).unwrap().unwrap(), b"");
    for len in [0, 5] {
        assert_eq!(place.read("a/2", 0, len).unwrap(), None, "{len} of what is not there");
    }
}

fn lists_are_whole_and_in_order(place: &Place) {
    assert_eq!(names(place, ""), [""; 0]);
    // An answer of S3 holds a thousand.
    let all: Vec<String> = (0..1203).map(|n| format!("many/{n:05}")).collect();
    scope(|scope| {
        for part in all.chunks(100) {
            scope.spawn(move || part.iter().for_each(|name| assert!(put(place, name, b"content"))));
        }
    });
    assert!(put(place, "many2/1", b"longer content"));
    assert!(put(place, "a b=c&d/ü", b""));
    assert!(names(place, "many/") == all, "{} listed", names(place, "many/").len());
    assert_eq!(names(place, "many/0012"), all[120..130]);
    assert_eq!(names(place, "many/01202"), all[1202..]);
    assert_eq!(names(place, "many").len(), all.len() + 1);
    assert_eq!(names(place, "").len(), all.len() + 2);
    assert_eq!(names(place, "").first().unwrap(), "a b=c&d/ü");
    assert_eq!(names(place, "none/"), [""; 0]);
    let sized = place.list("many2/").unwrap();
    assert_eq!((sized[0].name.as_str(), sized[0].bytes), ("many2/1", 14));
}

fn what_is_deleted_is_gone(place: &Place) {
    place.delete("a/1").unwrap();
    assert!(put(place, "a/1", b"one") && put(place, "a/2", b"two"));
    place.delete("a/1").unwrap();
    place.delete("a/1").unwrap();
    assert_eq!(place.get("a/1").unwrap(), None);
    assert_eq!(names(place, "a/"), ["a/2"]);
    assert!(put(place, "a/1", b"another"));
    assert_eq!(place.get("a/1").unwrap().unwrap(), b"another");
}

fn the_probe_passes_and_leaves_nothing(place: &Place) {
    place.probe().unwrap();
    assert_eq!(names(place, ""), [""; 0]);
}
