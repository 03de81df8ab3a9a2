//! Addresses of hosts with names, looked up beside who needs them: a resolver that hangs holds up no
//! failover, one that fails takes nobody's address away.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Between two questions for one name.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone, Default)]
pub struct Names(Arc<Shared>);

#[derive(Default)]
struct Shared {
    known: Mutex<BTreeMap<String, Known>>,
    changed: Notify,
}

#[derive(Default)]
struct Known {
    address: Option<IpAddr>,
    /// It was asked for since the last answer.
    wanted: bool,
    answered: bool,
}

impl Names {
    /// `None`: there was no answer yet. Whoever asks is told when there is another by
    /// [`Names::changed`].
    pub fn find(&self, host: &str, port: u16) -> Option<SocketAddr> {
        if let Ok(address) = host.parse() {
            return Some(SocketAddr::new(address, port));
        }
        let mut known = self.known();
        if !known.contains_key(host) {
            tokio::spawn(self.clone().follow(host.to_string()));
        }
        let known = known.entry(host.to_string()).or_default();
        known.wanted = true;
        known.address.map(|address| SocketAddr::new(address, port))
    }

    /// What was known of a name before, until there is an answer.
    pub fn seed(&self, host: &str, address: IpAddr) {
        self.find(host, 0);
        if let Some(known) = self.known().get_mut(host) {
            known.address.get_or_insert(address);
        }
    }

    /// Waits until another address stands for some name.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Waits until everything that was asked for had an answer, or for that long.
    pub async fn settle(&self, within: Duration) {
        let settled = async {
            while self.known().values().any(|it| !it.answered) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(within, settled).await;
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For as long as somebody asks for it.
    async fn follow(self, host: String) {
        loop {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await;
            let found: Vec<IpAddr> = match found {
                Ok(found) => found.map(|it| it.ip()).collect(),
                Err(error) => {
                    tracing::warn!(host, %error, "no address; the last one stays");
                    Vec::new()
                }
            };
            if !self.answer(&host, &found) {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// False: nobody has asked for it for a while, and it is forgotten.
    fn answer(&self, host: &str, found: &[IpAddr]) -> bool {
        let mut all = self.known();
        let Some(known) = all.get_mut(host) else { return false };
        if !std::mem::take(&mut known.wanted) {
            all.remove(host);
            return false;
        }
        known.answered = true;
        let address = chosen(known.address, found);
        if address != known.address {
            known.address = address;
            self.0.changed.notify_one();
        }
        true
    }
}

/// The one that is in use stays while it is among the answers, in whatever order they come: each
/// other address is another server, whose health is not known.
fn chosen(now: Option<IpAddr>, found: &[IpAddr]) -> Option<IpAddr> {
    match now {
        Some(now) if found.is_empty() || found.contains(&now) => Some(now),
        _ => found.first().copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stays_while_it_can() {
        let [a, b]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|it| it.parse().unwrap());
        assert_eq!(chosen(None, &[]), None);
        assert_eq!(chosen(None, &[a, b]), Some(a));
        assert_eq!(chosen(Some(a), &[b, a]), Some(a));
        assert_eq!(chosen(Some(a), &[]), Some(a));
        assert_eq!(chosen(Some(a), &[b]), Some(b));
    }

    #[tokio::test]
    async fn a_name_is_looked_up_beside_who_asks() {
        let names = Names::default();
        assert_eq!(names.find("127.0.0.1", 5), Some("127.0.0.1:5".parse().unwrap()));
        assert_eq!(names.find("localhost", 5), None);
        names.changed().await;
        assert!(names.find("localhost", 5).is_some_and(|it| it.ip().is_loopback()));
        // Nobody asks for what never had an answer, either.
        assert_eq!(names.find("nobody.invalid", 5), None);
        names.settle(Duration::from_secs(30)).await;
        assert!(names.known().values().all(|it| it.answered));
        names.known().values_mut().for_each(|it| it.wanted = false);
        assert!(!names.answer("localhost", &[]));
        assert!(!names.known().contains_key("localhost"));
    }
}
