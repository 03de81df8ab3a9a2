//! The real etcd, started, found again, killed, frozen.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::*;
use crate::pki::{Authority, Host, Usage};

/// A member's surroundings. Whatever still runs on its directory ends with it.
struct Scratch {
    config: EtcdConfig,
    _dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::create(&dir.path().join("pki")).unwrap();
        let certs = ca.issue("e", &[Host::Ip(Ipv4Addr::LOCALHOST.into())], Usage::Both).unwrap();
        let (client_addr, peer_addr) = (free_addr(), free_addr());
        let data_dir = dir.path().join("etcd");
        let name = "e".to_owned();
        let config = EtcdConfig {
            name,
            data_dir,
            client_addr,
            peer_addr,
            certs,
            binary: None,
            beginning: Beginning::Alone,
            quota_bytes: QUOTA_BYTES,
        };
        Scratch { config, _dir: dir }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Ok(data_dir) = self.config.data_dir.canonicalize() else { return };
        let wanted = data_dir_argument(&data_dir);
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            if flags_of(&entry.path(), &wanted).is_some() {
                let pid = entry.file_name().to_str().and_then(|n| n.parse().ok()).unwrap();
                let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
        }
    }
}

fn free_addr() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_second_start_takes_it_over() {
    let scratch = Scratch::new();
    let first = Etcd::start(&scratch.config).await.unwrap();
    let pid = first.pid();
    assert!(!first.adopted());
    let session = rustix::process::getsid(Pid::from_raw(pid)).unwrap();
    assert_eq!(session.as_raw_nonzero().get(), pid, "it has a session of its own");
    drop(first);

    let mut second = Etcd::start(&scratch.config).await.unwrap();
    assert_eq!((second.pid(), second.adopted()), (pid, true));
    second.process.signal(Signal::KILL).unwrap();
    let before = Instant::now();
    second.wait_exit().await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());

    let third = Etcd::start(&scratch.config).await.unwrap();
    assert!(third.pid() != pid && !third.adopted());
    third.stop(Duration::ZERO).await.unwrap();
    TcpListener::bind(scratch.config.client_addr).expect("without grace it is killed");
}

#[tokio::test]
async fn other_flags_replace_it() {
    let mut scratch = Scratch::new();
    let first = Etcd::start(&scratch.config).await.unwrap();
    let old = (first.pid(), scratch.config.client_addr);
    drop(first);
    scratch.config.client_addr = free_addr();
    let second = Etcd::start(&scratch.config).await.unwrap();
    assert!(second.pid() != old.0 && !second.adopted());
    TcpListener::bind(old.1).expect("the old one is gone");
    second.stop(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn a_frozen_one_can_be_stopped() {
    let scratch = Scratch::new();
    let etcd = Etcd::start(&scratch.config).await.unwrap();
    etcd.process.signal(Signal::STOP).unwrap();
    etcd.stop(Duration::from_secs(5)).await.unwrap();
    TcpListener::bind(scratch.config.client_addr).expect("its port is free");
}

#[tokio::test]
async fn why_it_does_not_start() {
    let scratch = Scratch::new();
    let holder = TcpListener::bind(scratch.config.peer_addr).unwrap();
    let verdict = Etcd::start(&scratch.config).await;
    assert!(
        matches!(verdict, Err(EtcdError::PortTaken { addr, .. }) if addr == scratch.config.peer_addr)
    );
    drop(holder);

    let mut absent = scratch.config.clone();
    absent.binary = Some("/nonexistent/etcd".into());
    let text = Etcd::start(&absent).await.unwrap_err().to_string();
    assert!(text.contains("/nonexistent/etcd") && text.contains("apt-get install etcd-server"));

    fs::write(&scratch.config.certs.cert, "torn").unwrap();
    match Etcd::start(&scratch.config).await {
        Err(EtcdError::Ended { tail, .. }) => assert!(tail.contains("PEM"), "{tail}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_log_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("etcd.log");
    bound_log(&log).unwrap();
    let mut writer = OpenOptions::new().append(true).create(true).open(&log).unwrap();
    for round in 0..3 {
        std::io::copy(&mut io::Read::take(io::repeat(b'x'), LOG_BYTES_MAX + 1), &mut writer)
            .unwrap();
        bound_log(&log).unwrap();
        assert_eq!(fs::metadata(&log).unwrap().len(), 0, "round {round}");
        assert_eq!(fs::metadata(dir.path().join("etcd.log.1")).unwrap().len(), LOG_BYTES_MAX + 1);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}
