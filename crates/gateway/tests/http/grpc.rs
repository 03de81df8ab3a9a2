//! What the gateway itself says to calls of gRPC: no page, but a status of theirs.

use super::fixture::{Fixture, Instance, eventually, nobody};
use super::second::{self, Server, connect, request, run};
use everhold_core::route::RouteTable;
use everhold_gateway::Config;
use std::sync::Arc;

/// Status in HTTP and in gRPC, the message, and whether the answer was over with its head.
fn call(gateway: &Fixture, kind: &str, timeout: &str) -> (u16, Option<u8>, String, bool) {
    let mut asked = request("POST", "/shop.Cart/Add");
    let fields = asked.headers_mut();
    fields.insert("content-type", kind.parse().unwrap());
    fields.insert("te", "trailers".parse().unwrap());
    fields.insert("x-request-id", "named".parse().unwrap());
    if !timeout.is_empty() {
        fields.insert("grpc-timeout", timeout.parse().unwrap());
    }
    run(async {
        let send = connect(gateway.address).await;
        let (answer, mut body) = send.ready().await.unwrap().send_request(asked, false).unwrap();
        body.send_data("hi".into(), true).unwrap();
        let answer = answer.await.unwrap();
        let field = |name: &str| answer.headers().get(name).map(|it| it.to_str().unwrap());
        let status = field("grpc-status").map(|it| it.parse().unwrap());
        let kind = field("content-type").unwrap();
        assert_eq!(kind == "application/grpc", status.is_some(), "{answer:?}");
        assert_eq!(field("x-request-id"), Some("named"));
        let message = field("grpc-message").unwrap_or_default().to_owned();
        (answer.status().as_u16(), status, message, answer.body().is_end_stream())
    })
}

#[test]
fn what_the_gateway_says_to_a_call_is_a_status_of_grpc() {
    let mute = Instance::start(|line| while line.request().is_some() {});
    let breaks = Instance::start(|line| drop(line.request()));
    let refuses = Server::start(100, |_, _asked, mut respond| {
        Box::pin(async move {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            Some(())
        })
    });
    let (none, unreachable) = (&Fixture::start(&[]), &Fixture::start(&[nobody()]));
    let (mute, breaks) = (&Fixture::before(&mute), &Fixture::before(&breaks));
    let refuses = &second::before(&[refuses.address]);
    let unrouted = |config: &mut Config| {
        let mut http = config.table.http.clone();
        http.listeners.get_mut("web").unwrap().routes.clear();
        config.table = Arc::new(RouteTable::default().with_http(http));
    };
    let no_route = &Fixture::set_up(&[nobody()], |_| {}, unrouted);
    #[rustfmt::skip]
    let cases: &[(&Fixture, &str, u8, u16)] = &[
        (mute,        "100m", 4,  504),
        (mute,        "0n",   4,  504),
        (none,        "",     14, 503),
        (unreachable, "",     14, 502),
        (breaks,      "5S",   14, 502),
        (refuses,     "",     14, 503),
        (no_route,    "5S",   12, 404),
    ];
    for (gateway, timeout, status, in_http) in cases {
        for kind in ["application/grpc", "application/grpc+proto", "Application/GRPC; a=b"] {
            let (http, grpc, message, over) = call(gateway, kind, timeout);
            let told = (http, grpc, over);
            assert_eq!(told, (200, Some(*status), true), "{kind}: {in_http} {message:?}");
            assert!(!message.is_empty() && !message.contains('%'), "{message:?}");
        }
        // Others are told in HTTP, those that speak gRPC in another way, too.
        for kind in ["application/grpc-web", "application/grpcx", "application/json"] {
            let (http, grpc, ..) = call(gateway, kind, timeout);
            assert_eq!((http, grpc), (*in_http, None), "{kind}");
        }
    }
}

#[test]
fn what_went_wrong_with_a_call_is_remembered_as_in_http() {
    let gateway = Fixture::start(&[nobody()]);
    let kind = "application/grpc";
    assert_eq!(call(&gateway, kind, "").0, 200);
    eventually("it is written down", || gateway.gateway.request("named").is_some());
    assert_eq!(gateway.gateway.request("named").unwrap().status, 502);
    let sums = gateway.gateway.sums();
    assert_eq!(sums.requests.keys().map(|it| it.status).collect::<Vec<u16>>(), [502]);
}

/// Whoever put the call into HTTP/1 gets it in the same way, and goes on.
#[test]
fn a_call_in_http1_is_told_the_same() {
    let gateway = Fixture::start(&[nobody()]);
    let mut client = gateway.client();
    for method in ["POST", "HEAD", "POST"] {
        client.say(format!(
            "{method} / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n\r\n"
        ));
        let answer = client.answer_to(method);
        assert_eq!((answer.status, answer.values("grpc-status")), (200, vec!["14"]), "{answer:?}");
        assert_eq!((answer.values("content-length"), answer.body.len()), (vec!["0"], 0));
    }
}
