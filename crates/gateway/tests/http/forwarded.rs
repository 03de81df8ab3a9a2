//! Whom a request is from: what a known proxy says of it, and what anybody else says.

use super::fixture::{FINE, Fixture, Instance, eventually};
use super::second::{ask, connect, request, run};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use std::net::IpAddr;
use std::sync::Arc;

const TOLD: [&str; 5] =
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "forwarded"];

/// A gateway that knows these as proxies.
fn knows(instance: &Instance, known: &[&str]) -> Fixture {
    let known = known.iter().map(|it| it.parse().unwrap()).collect();
    Fixture::set_up(
        &[instance.address],
        |_| {},
        |config| {
            let mut table = (*config.table).clone();
            table.http.listeners.get_mut("web").unwrap().trusted_proxies = known;
            config.table = Arc::new(table);
        },
    )
}

/// What the instance is told, and whom the gateway remembers as the client, in HTTP/1 and HTTP/2.
fn told(
    gateway: &Fixture,
    instance: &Instance,
    fields: &str,
    index: usize,
) -> [(Vec<String>, IpAddr); 2] {
    let port = gateway.address.port().to_string();
    ["1", "2"].map(|version| {
        let id = format!("{version}-{index}");
        let fields = format!("{fields}x-request-id: {id}\r\n");
        let status = match version {
            "1" => {
                let request = format!("GET / HTTP/1.1\r\nHost: a:{port}\r\n{fields}\r\n");
                gateway.ask(&request).status
            }
            _ => run(async {
                let mut asked = request("GET", "/");
                *asked.uri_mut() = format!("http://a:{port}/").parse().unwrap();
                for line in fields.lines() {
                    let (name, value) = line.split_once(": ").unwrap();
                    let name: HeaderName = name.parse().unwrap();
                    asked
                        .headers_mut()
                        .append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
                }
                ask(&connect(gateway.address).await, asked, &[], HeaderMap::new())
                    .await
                    .unwrap()
                    .status
            }),
        };
        assert_eq!(status, 200, "{fields:?}");
        let seen = instance.seen().pop().unwrap();
        let said = TOLD.map(|name| match seen.values(name)[..] {
            [value] => value.replace(&port, "PORT"),
            ref other => panic!("{name}: {other:?}"),
        });
        eventually("it is remembered", || gateway.gateway.request(&id).is_some());
        (said.to_vec(), gateway.gateway.request(&id).unwrap().peer)
    })
}

/// Whoever isn't known may say what he likes.
#[test]
fn what_a_client_says_of_itself_is_dropped() {
    let instance = Instance::says(FINE);
    for known in [&[][..], &["10.0.0.0/8"], &["127.0.0.2"], &["::/0"]] {
        let gateway = knows(&instance, known);
        let cases = [
            "",
            "x-forwarded-for: 1.2.3.4\r\nforwarded: for=1.2.3.4;proto=https;host=b\r\n",
            "x-forwarded-for: 10.0.0.1\r\nx-forwarded-for: 10.0.0.2\r\n",
            "x-forwarded-proto: https\r\nx-forwarded-host: b\r\nx-forwarded-port: 1\r\n",
            "x_forwarded_for: 1.2.3.4\r\nx-forwarded-server: b\r\nx-forwarded-ssl: on\r\n",
        ];
        for (index, fields) in cases.iter().enumerate() {
            for (said, client) in told(&gateway, &instance, fields, index) {
                let expected = ["127.0.0.1", "http", "a:PORT", "PORT", "for=127.0.0.1;proto=http"];
                assert_eq!(said, expected, "{fields:?}");
                assert_eq!(client.to_string(), "127.0.0.1", "{fields:?}");
            }
        }
    }
    assert_eq!(instance.faults(), [] as [&str; 0]);
}

#[test]
fn what_a_known_proxy_says_is_believed_and_goes_on() {
    let instance = Instance::says(FINE);
    let gateway = knows(&instance, &["127.0.0.0/8", "10.0.0.0/8", "fd00::/8"]);
    #[rustfmt::skip]
    let cases = [
        // It says nothing.
        ("", ["127.0.0.1", "http", "a:PORT", "PORT", "for=127.0.0.1;proto=http"]),
        ("x-forwarded-for: 1.2.3.4\r\n",
            ["1.2.3.4, 127.0.0.1", "http", "a:PORT", "PORT", "for=1.2.3.4;proto=http, for=127.0.0.1;proto=http"]),
        ("x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\n",
            ["1.2.3.4, 127.0.0.1", "https", "a:PORT", "443", "for=1.2.3.4;proto=https, for=127.0.0.1;proto=http"]),
        ("x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\nx-forwarded-host: shop.org:8443\r\n",
            ["1.2.3.4, 127.0.0.1", "https", "shop.org:8443", "8443", "for=1.2.3.4;proto=https, for=127.0.0.1;proto=http"]),
        ("x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\nx-forwarded-host: shop.org\r\nx-forwarded-port: 444\r\n",
            ["1.2.3.4, 127.0.0.1", "https", "shop.org", "444", "for=1.2.3.4;proto=https, for=127.0.0.1;proto=http"]),
        // What the client said to the first of them stays behind.
        ("x-forwarded-for: 6.6.6.6, 10.0.0.66, 1.2.3.4, 10.0.0.1\r\nx-forwarded-for: fd00::1\r\n",
            ["1.2.3.4, 10.0.0.1, fd00::1, 127.0.0.1", "http", "a:PORT", "PORT", "for=1.2.3.4;proto=http, for=10.0.0.1, for=\"[fd00::1]\", for=127.0.0.1;proto=http"]),
        ("x-forwarded-for: [2001:db8::1]:443\r\n",
            ["2001:db8::1, 127.0.0.1", "http", "a:PORT", "PORT", "for=\"[2001:db8::1]\";proto=http, for=127.0.0.1;proto=http"]),
        ("x-forwarded-for: 6.6.6.6, unknown, 10.0.0.1\r\n",
            ["10.0.0.1, 127.0.0.1", "http", "a:PORT", "PORT", "for=10.0.0.1;proto=http, for=127.0.0.1;proto=http"]),
        ("forwarded: for=6.6.6.6, for=\"[2001:db8::1]:47011\";proto=https;host=b.org\r\n",
            ["2001:db8::1, 127.0.0.1", "https", "b.org", "443", "for=\"[2001:db8::1]\";proto=https, for=127.0.0.1;proto=http"]),
        ("forwarded: for=6.6.6.6, for=unknown;proto=https\r\n",
            ["127.0.0.1", "https", "a:PORT", "443", "for=127.0.0.1;proto=https"]),
        ("forwarded: for=\"6.6.6.6, for=1.2.3.4\r\n",
            ["127.0.0.1", "http", "a:PORT", "PORT", "for=127.0.0.1;proto=http"]),
        // The field that is appended to by all is the one that counts.
        ("x-forwarded-for: 1.2.3.4\r\nforwarded: for=6.6.6.6;proto=https;host=b\r\n",
            ["1.2.3.4, 127.0.0.1", "http", "a:PORT", "PORT", "for=1.2.3.4;proto=http, for=127.0.0.1;proto=http"]),
        ("x-forwarded-host: a b\r\nx-forwarded-port: x\r\nx-forwarded-proto: gopher\r\n",
            ["127.0.0.1", "http", "a:PORT", "PORT", "for=127.0.0.1;proto=http"]),
        // Nor does a proxy's word come by another name.
        ("x_forwarded_for: 6.6.6.6\r\n",
            ["127.0.0.1", "http", "a:PORT", "PORT", "for=127.0.0.1;proto=http"]),
    ];
    for (index, (fields, expected)) in cases.into_iter().enumerate() {
        for (said, client) in told(&gateway, &instance, fields, index) {
            assert_eq!(said, expected, "{fields:?}");
            let first = expected[0].split(',').next().unwrap();
            assert_eq!(client.to_string(), first, "{fields:?}");
        }
    }
    assert_eq!(instance.faults(), [] as [&str; 0]);
}

/// A connection that is kept notices.
#[test]
fn who_is_known_changes_with_the_table() {
    let instance = Instance::says(FINE);
    let gateway = knows(&instance, &[]);
    let mut client = gateway.client();
    let mut ask = || {
        client.say("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n");
        assert_eq!(client.answer().status, 200);
        instance.seen().pop().unwrap().values("x-forwarded-for").join("; ")
    };
    assert_eq!(ask(), "127.0.0.1");
    let mut table = (*gateway.config.table).clone();
    let known = vec!["127.0.0.0/8".parse().unwrap()];
    table.http.listeners.get_mut("web").unwrap().trusted_proxies = known;
    gateway.gateway.set_table(Arc::new(table)).unwrap();
    eventually("it is known", || ask() == "1.2.3.4, 127.0.0.1");
    gateway.gateway.set_table(gateway.config.table.clone()).unwrap();
    eventually("it is unknown", || ask() == "127.0.0.1");
}
