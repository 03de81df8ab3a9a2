//! An S3 place on lines that break, and on stores that refuse or behave worse.

use super::bed::{PREFIX, SECRET, Server, free_port, told};
use super::proxy::{Fault, Proxy};
use everhold_repository::{Existing, Password, Place, Repository, RepositoryError};
use std::fs;
use std::time::{Duration, Instant};

const BUSY: Fault = Fault::Answer(503, "<Error><Code>SlowDown</Code></Error>");
const UNDER_WAY: Fault =
    Fault::Answer(409, "<Error><Code>ConditionalRequestConflict</Code></Error>");

fn through(server: &Server, faults: &[Fault], rest: Fault) -> (Proxy, Place) {
    let proxy = Proxy::start(server.port, server.root(), faults, rest);
    let place = Place::open(&server.config(proxy.port)).unwrap();
    (proxy, place)
}

#[test]
fn a_put_counts_once_however_its_line_broke() {
    use Fault::{CutAnswer, CutRequest, LoseAnswer, Slow};
    let server = Server::start();
    let content = vec![7; 300_000];
    let cases: [(&[Fault], usize); 9] = [
        (&[], 1),
        (&[CutRequest], 2),
        (&[LoseAnswer], 2),
        (&[CutAnswer], 2),
        (&[Slow], 1),
        (&[BUSY, UNDER_WAY], 3),
        (&[LoseAnswer, BUSY], 3),
        (&[CutRequest, UNDER_WAY, LoseAnswer, CutAnswer], 5),
        (&[BUSY, BUSY, BUSY, LoseAnswer], 5),
    ];
    for (n, (faults, puts)) in cases.into_iter().enumerate() {
        let object = format!("put/{n}");
        let (proxy, place) = through(&server, faults, Fault::None);
        assert!(place.put(&object, &content, Existing::Keep).unwrap(), "{faults:?}");
        let seen = proxy.seen();
        assert_eq!(seen.iter().filter(|it| *it == "PUT").count(), puts, "{faults:?}");
        assert!(fs::read(server.file(&object)).unwrap() == content, "{faults:?}");
        // Another's is still another's, also when an answer was lost on the way.
        for faults in [&[][..], faults] {
            let (_proxy, place) = through(&server, faults, Fault::None);
            let put = place.put(&object, b"another", Existing::Keep);
            assert!(!put.unwrap(), "{faults:?}");
        }
        assert!(fs::read(server.file(&object)).unwrap() == content, "{faults:?}");
    }
    assert_eq!(server.place().list("put/").unwrap().len(), 9);
}

#[test]
fn what_is_read_is_whole() {
    use Fault::{CutAnswer, LoseAnswer, Slow};
    let server = Server::start();
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 253) as u8).collect();
    assert!(server.place().put("a/1", &content, Existing::Keep).unwrap());
    for faults in [&[][..], &[CutAnswer], &[LoseAnswer, CutAnswer], &[Slow], &[BUSY, CutAnswer]] {
        let (_proxy, place) = through(&server, faults, Fault::None);
        assert!(place.get("a/1").unwrap().unwrap() == content, "{faults:?}");
        let (_proxy, place) = through(&server, faults, Fault::None);
        let part = place.read("a/1", 1000, 200_000).unwrap().unwrap();
        assert!(part == content[1000..201_000], "{faults:?}");
        let (_proxy, place) = through(&server, faults, Fault::None);
        assert_eq!(place.list("a/").unwrap().len(), 1, "{faults:?}");
    }
    let (_proxy, place) = through(&server, &[LoseAnswer], Fault::None);
    place.delete("a/1").unwrap();
    assert_eq!(place.get("a/1").unwrap(), None);
}

#[test]
fn attempts_have_an_end() {
    let server = Server::start();
    let broken = [Fault::LoseAnswer, Fault::CutAnswer, BUSY, UNDER_WAY];
    for rest in broken {
        let (proxy, place) = through(&server, &[], rest);
        let error = place.get("a/1").unwrap_err();
        assert!(matches!(error, RepositoryError::Remote { .. }), "{rest:?}: {error}");
        told(&error);
        assert_eq!(proxy.seen().len(), 5, "{rest:?}");
    }
    // A refusal is one, and is not asked for again. Nor is anybody else asked.
    let moved =
        "<Error><Code>PermanentRedirect</Code><Message>See http://x/?X-Amz-Signature=1</Message>";
    for (status, text) in [(403, "<Code>AccessDenied</Code>"), (301, moved), (400, "")] {
        let (proxy, place) = through(&server, &[], Fault::Answer(status, text));
        let text = told(&place.get("a/1").unwrap_err());
        assert!(text.contains(&format!("HTTP {status}")), "{text}");
        assert_eq!(proxy.seen().len(), 1, "{status}");
    }
}

#[test]
fn a_bit_that_changed_on_the_way_is_not_stored() {
    let server = Server::start();
    let (proxy, _) = through(&server, &[], Fault::None);
    let password = Password::new("p");
    let config = server.config(proxy.port);
    drop(Repository::create(&config, &password, "shop").unwrap());
    drop(proxy);
    let (proxy, _) = through(&server, &[], Fault::Flip);
    let damaged = Place::open(&server.config(proxy.port)).unwrap();
    let error = damaged.put("a/0", b"content", Existing::Replace).unwrap_err();
    assert!(told(&error).contains("BadDigest"), "{error}");

    // Once only: what the store kept of it in spite of its answer is written over.
    let proxy = Proxy::start(server.port, server.root(), &[], Fault::None);
    let places = [(server.config(proxy.port), password)];
    let repository = Repository::open(&places, "shop").unwrap();
    proxy.next(&[Fault::Flip]);
    assert_eq!(repository.put("a/1", b"content").unwrap().copies, 1);
    assert_eq!(repository.get("a/1").unwrap(), b"content");
}

#[test]
fn a_store_without_conditional_writes_is_refused() {
    let server = Server::start();
    let (_proxy, place) = through(&server, &[], Fault::Forget);
    let error = place.probe().unwrap_err();
    assert!(matches!(error, RepositoryError::NoConditionalPut { .. }), "{error}");
    assert!(told(&error).contains("it took the second"), "{error}");
    let made = Repository::create(&server.config(_proxy.port), &Password::new("p"), "shop");
    assert!(matches!(made, Err(RepositoryError::NoConditionalPut { .. })));
    assert_eq!(server.place().list("").unwrap(), [], "nothing is left behind");

    // One that says so.
    let unknown = "<Code>NotImplemented</Code><Message>A header is not implemented</Message>";
    let (proxy, place) = through(&server, &[], Fault::Answer(501, unknown));
    let put = place.put("a/1", b"content", Existing::Keep).unwrap_err();
    assert!(matches!(put, RepositoryError::NoConditionalPut { .. }), "{put}");
    assert!(told(&put).contains("A header is not implemented"), "{put}");
    assert_eq!(proxy.seen().len(), 1);

    // The condition is signed: taken away, the store refuses the put instead of writing over.
    let (_proxy, stripped) = through(&server, &[], Fault::Strip);
    assert!(server.place().put("a/2", b"first", Existing::Keep).unwrap());
    let error = stripped.put("a/2", b"second", Existing::Keep).unwrap_err();
    assert!(told(&error).contains("SignatureDoesNotMatch"), "{error}");
    assert_eq!(server.place().get("a/2").unwrap().unwrap(), b"first");
}

#[test]
fn what_does_not_open_is_told_without_secrets() {
    let server = Server::start();
    let gone = "<Error><Code>NoSuchBucket</Code><Message>None of that name</Message></Error>";
    let cases = [
        ("everhold-test", "wrong-secret", Fault::None, "SignatureDoesNotMatch"),
        ("nobody", SECRET, Fault::None, "HTTP 403"),
        ("everhold-test", SECRET, Fault::Answer(404, gone), "NoSuchBucket: None of that name"),
    ];
    for (key, secret, fault, expected) in cases {
        let proxy = Proxy::start(server.port, server.root(), &[], fault);
        let config = server.config_with(proxy.port, "shop", key, secret);
        let place = Place::open(&config).unwrap();
        let errors = [
            place.get("a/1").unwrap_err(),
            place.read("a/1", 0, 1).unwrap_err(),
            place.put("a/1", b"content", Existing::Keep).unwrap_err(),
            place.put("a/1", b"content", Existing::Replace).unwrap_err(),
            place.list("").unwrap_err(),
            place.delete("a/1").unwrap_err(),
            place.probe().unwrap_err(),
            Repository::open(&[(config, Password::new("p"))], "shop").err().unwrap(),
        ];
        for error in &errors {
            let text = told(error);
            assert!(text.contains(expected) && !text.contains("wrong-secret"), "{text}");
        }
    }
    let config = server.config_with(server.port, "none", "everhold-test", SECRET);
    let text = told(&Place::open(&config).unwrap().list("").unwrap_err());
    assert!(text.contains("NoSuchBucket"), "{text}");
    // Whoever can't prove himself is not spoken to.
    let mut config = server.config(server.port);
    config.endpoint = Some(format!("https://127.0.0.1:{}", server.port));
    told(&Place::open(&config).and_then(|place| place.get("a/1")).unwrap_err());
    // Nobody listens.
    let place = Place::open(&server.config(free_port())).unwrap();
    let began = Instant::now();
    assert!(told(&place.get("a/1").unwrap_err()).contains("refused"));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(!server.root().join("shop").join(PREFIX).exists(), "nothing was written");
}
