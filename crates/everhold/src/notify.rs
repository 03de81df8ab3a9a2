//! Word to the service manager that started this process: sd_notify(3), one datagram per message.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// What only the process that was started may use; children that spoke there would be taken for it.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Everything runs.
pub fn ready() {
    tell("READY=1\nSTATUS=running");
}

/// It was asked to end and does.
pub fn stopping() {
    tell("STOPPING=1\nSTATUS=stopping");
}

/// Shows for as long as this task gets its turn that the process is not stuck. Returns at once where
/// nobody watches.
pub async fn live() {
    let Some(within) = interval(|name| std::env::var(name).ok()) else { return };
    loop {
        tell("WATCHDOG=1");
        tokio::time::sleep(within / 3).await;
    }
}

/// After how long without a word the manager ends this process.
fn interval(get: impl Fn(&str) -> Option<String>) -> Option<Duration> {
    if get("WATCHDOG_PID").is_some_and(|pid| pid != std::process::id().to_string()) {
        return None;
    }
    let micros: u64 = get("WATCHDOG_USEC")?.parse().ok()?;
    (micros > 0).then(|| Duration::from_micros(micros))
}

fn tell(text: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(socket.as_encoded_bytes(), text) {
        tracing::warn!(%error, "the service manager does not hear this process");
    }
}

/// A path, or with `@` in front a name in the abstract namespace.
fn send(socket: &[u8], text: &str) -> std::io::Result<()> {
    let to = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(String::from_utf8_lossy(socket).as_ref())?,
    };
    // A manager that is busy is not waited for.
    let from = UnixDatagram::unbound()?;
    from.set_nonblocking(true)?;
    from.send_to_addr(text.as_bytes(), &to).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_a_path_and_an_abstract_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let name = format!("everhold-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).expect("a name");
        let cases = [
            (UnixDatagram::bind(&path), path.display().to_string()),
            (UnixDatagram::bind_addr(&abstract_name), format!("@{name}")),
        ];
        for (manager, socket) in cases {
            let manager = manager.expect("bound");
            send(socket.as_bytes(), "READY=1").expect("sent");
            let mut heard = [0; 64];
            let length = manager.recv(&mut heard).expect("heard");
            assert_eq!(&heard[..length], b"READY=1");
        }
        assert!(send(b"/nowhere/notify", "READY=1").is_err());
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let check = |pid: Option<u32>, micros: Option<&str>, expected: Option<u64>| {
            let get = |name: &str| match name {
                "WATCHDOG_PID" => pid.map(|pid| pid.to_string()),
                _ => micros.map(str::to_string),
            };
            assert_eq!(interval(get), expected.map(Duration::from_secs), "{pid:?} {micros:?}");
        };
        let me = std::process::id();
        check(Some(me), Some("30000000"), Some(30));
        check(None, Some("30000000"), Some(30));
        check(Some(me + 1), Some("30000000"), None);
        check(Some(me), Some("0"), None);
        check(Some(me), None, None);
    }
}
