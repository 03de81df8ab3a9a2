//! Links: certificates that are renewed, frames of other versions, how often is told.

use super::*;
use everhold_adapters::pki::{Authority, Host, Usage};

#[tokio::test]
async fn a_renewed_certificate_is_taken_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::create(&dir.path().join("pki")).expect("an authority");
    let host = |name: &str| Host::Dns(name.to_string());
    let pair = authority.issue("a", &[host("a")], Usage::Both).expect("a certificate");
    let tls = Tls::follow(&pair.ca, &pair.cert, &pair.key).expect("read");
    let old = tls.client();
    std::fs::write(&pair.cert, "torn").expect("written");
    tokio::time::sleep(RENEWED_WITHIN * 2).await;
    assert!(Arc::ptr_eq(&old, &tls.client()), "a torn one changes nothing");
    std::fs::remove_file(&pair.cert).expect("removed");
    authority.issue("a", &[host("b")], Usage::Both).expect("a certificate");
    for _ in 0..60 {
        if !Arc::ptr_eq(&old, &tls.client()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("the old certificate is still used");
}

/// Of older versions and of newer ones.
#[tokio::test]
async fn frames_of_other_versions_end_no_link() {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (_tell, reports) = watch::channel(Arc::new(Report::default()));
    let (questions, mut asked) = mpsc::channel(1);
    let (read, write) = tokio::io::split(ours);
    tokio::spawn(speak(read, write, reports, questions));
    let (_read, mut write) = tokio::io::split(theirs);
    for frame in [
        serde_json::json!({ "Hear": { "every_ms": 100, "unheard": "of" } }),
        serde_json::json!({ "Unheard": { "of": 1 } }),
        serde_json::json!({ "Ask": { "id": 1, "question": "how", "why": "so" } }),
    ] {
        send(&mut write, &frame).await.expect("the link is there");
    }
    let question = tokio::time::timeout(SILENCE * 5, asked.recv()).await;
    assert_eq!(question.expect("in time").expect("the link is there").body, "how");
    // What was told before there were holds and backups.
    let old = r#"{"Report":{"node":"a","pid":1,"version":"0.1.0","services":{},"store":7,"journal_head":"a-1"}}"#;
    assert!(
        matches!(serde_json::from_str(old), Ok(Frame::Report(report)) if report.holds.is_empty())
    );
}

/// So often as the dialler asked, and at once when there is news.
#[tokio::test]
async fn who_only_shows_hears_less_often_and_changes_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::create(&dir.path().join("pki")).expect("an authority");
    let pair = authority.issue("a", &[Host::Dns("a".to_string())], Usage::Both);
    let pair = pair.expect("a certificate");
    let tls = Tls::load(&pair.ca, &pair.cert, &pair.key).expect("read");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = free.local_addr().expect("its address");
    drop(free);
    let (tell, reports) = watch::channel(Arc::new(Report::default()));
    tell.send_modify(|report| Arc::make_mut(report).node = "a".to_string());
    let (questions, _asked) = mpsc::channel(1);
    serve(addr, tls.clone(), reports, questions).await.expect("it listens");
    let hear = |every| {
        let (told, heard) = mpsc::channel(64);
        (dial("a".to_string(), addr.to_string(), every, tls.clone(), told), heard)
    };
    let (_judge, mut judges) = hear(JUDGE_EVERY);
    let (_show, mut shows) = hear(show_every(10));
    let next = async |heard: &mut mpsc::Receiver<_>| heard.recv().await.expect("a report");
    for _ in 0..3 {
        next(&mut judges).await;
        next(&mut shows).await;
    }
    let count = async |heard: &mut mpsc::Receiver<(String, Arc<Report>)>| {
        let end = tokio::time::Instant::now() + Duration::from_secs(3);
        let mut count = 0;
        while tokio::time::timeout_at(end, heard.recv()).await.is_ok() {
            count += 1;
        }
        count
    };
    let (often, seldom) = tokio::join!(count(&mut judges), count(&mut shows));
    // On a busy machine both hear less often, but never the one more than the other.
    assert!(seldom > 0 && often > seldom, "{often} and {seldom} in 3 s");
    assert_eq!((show_every(3), show_every(1_000)), (JUDGE_EVERY, EVERY_MAX));
    // Each change is told, not only the newest at the next beat.
    let from = tokio::time::Instant::now();
    for pid in 1..=30 {
        tell.send_modify(|report| Arc::make_mut(report).pid = pid);
        while next(&mut shows).await.1.pid != pid {}
    }
    assert!(from.elapsed() < show_every(10) * 20, "at once, not with the beat");
}
