//! What is purged over all gateways: this one hears of it from the store, and says up to where it has.
//!
//! After each time that it was cut off it looks at the whole record. A process that begins, or can't find
//! where it was, purges all: nothing that was purged is given again by a gateway that is back.

use everhold_core::http::cache::purge::{Due, Purged, Purges, What};
use everhold_core::kv::Change;
use everhold_core::records::decode;
use everhold_gateway::Gateway;
use everhold_store::{Store, WatchEvent};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Between two tries to reach the store.
const AGAIN: Duration = Duration::from_millis(200);

/// The record of the newest purges.
pub fn key(cluster: &str) -> String {
    format!("/everhold/{cluster}/purge")
}

/// Carries out purges until the process ends. `done`: up to where it has; `None`: it can't say.
pub async fn follow(
    cluster: String,
    store: impl Store,
    gateway: Arc<Gateway>,
    done: watch::Sender<Option<Purged>>,
) {
    let key = key(&cluster);
    loop {
        let mut watch = store.watch(&key, 0);
        while let Some(event) = watch.next().await {
            match event {
                WatchEvent::Reset(snapshot) => {
                    let text = snapshot.get(&key).map(|kv| kv.value.as_str());
                    take(&gateway, &done, text);
                }
                WatchEvent::Changed(changes) => {
                    for change in changes.changes.iter().filter(|it| it.key() == key) {
                        let text = match change {
                            Change::Put(kv) => Some(kv.value.as_str()),
                            Change::Deleted { .. } => None,
                        };
                        take(&gateway, &done, text);
                    }
                }
                WatchEvent::Progress => {}
                // It may come back with another history: what follows in it would not tell.
                WatchEvent::Lost(_) | WatchEvent::Ended(_) => break,
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Carries out what the record has more than was done. `None`: there is no record.
fn take(gateway: &Gateway, done: &watch::Sender<Option<Purged>>, text: Option<&str>) {
    let known = done.borrow().clone();
    let purges = match text.map(decode::<Purges>).transpose() {
        Ok(purges) => Some(purges.unwrap_or_default()),
        Err(why) => {
            tracing::error!(%why, "what is purged can't be read; all is");
            None
        }
    };
    match purges.as_ref().map_or(Due::All, |it| it.after(known.as_ref())) {
        Due::Nothing => {}
        Due::These(some) => {
            for purge in some {
                tracing::info!(number = purge.purged.number, by = purge.by, "purged");
                purge.what.iter().for_each(|what| gateway.purge(what.clone()));
            }
        }
        Due::All => gateway.purge(What::ALL),
    }
    done.send_replace(purges.map(|it| it.last()));
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::web;
    use everhold_core::http::cache::purge::Of;
    use everhold_core::kv::Txn;
    use everhold_core::records::encode;
    use everhold_core::route::RouteTable;
    use everhold_core::spec::Address;
    use everhold_gateway::Config;
    use everhold_store::MemoryStore;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    const WITHIN: Duration = Duration::from_secs(60);

    /// A gateway that keeps what an instance answers, which is something else each time.
    pub struct Keeper {
        pub gateway: Arc<Gateway>,
        done: watch::Sender<Option<Purged>>,
        pub purged: watch::Receiver<Option<Purged>>,
        follows: Option<JoinHandle<()>>,
    }

    impl Keeper {
        pub fn start() -> Keeper {
            let at = instance();
            let text = format!(
                "schema = 1\ncluster = \"local\"\n\
                 [node]\na = {{ address = \"127.0.0.1\", ports = \"15400-15499\" }}\n\
                 [service.web]\nkind = \"http\"\naddresses = [\"{at}\"]\n\
                 [listener]\nweb = {{ bind = \"127.0.0.1:8080\", protocol = \"http\" }}\n\
                 [route.web]\nlistener = \"web\"\nservice = \"web\"\ncache = {{ ttl = \"1h\" }}\n"
            );
            let spec = crate::spec::load_with(&text, "test", Default::default()).expect("a spec");
            let resolve = |address: &Address, port| {
                let Address::Ip(ip) = address else { return None };
                Some(SocketAddr::new(*ip, port))
            };
            let mut http = web::table(&spec, &web::Told::new(), "a", resolve);
            http.listeners.values_mut().for_each(|it| it.bind.set_port(0));
            let table = Arc::new(RouteTable::default().with_http(http));
            let gateway = Arc::new(Gateway::start(Config::new(table)).expect("a gateway"));
            let (done, purged) = watch::channel(None);
            Keeper { gateway, done, purged, follows: None }
        }

        pub fn follow(&mut self, store: &MemoryStore) {
            let (gateway, done) = (self.gateway.clone(), self.done.clone());
            let follows = follow("local".to_string(), store.clone(), gateway, done);
            self.follows = Some(tokio::spawn(follows));
        }

        /// It hears nothing any more, as when its machine is cut off.
        pub fn cut_off(&mut self) {
            if let Some(follows) = self.follows.take() {
                follows.abort();
            }
        }

        pub fn ask(&self, path: &str) -> String {
            let at = self.gateway.snapshot().listeners["web"].bind;
            let mut client = TcpStream::connect(at).expect("connected");
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            client.write_all(request.as_bytes()).expect("sent");
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            answer.rsplit("\r\n").next().unwrap_or_default().to_string()
        }

        async fn until(&self, number: Option<u64>) {
            let mut purged = self.purged.clone();
            let is_it = |it: &Option<Purged>| it.as_ref().map(|it| it.number) == number;
            let told = tokio::time::timeout(WITHIN, purged.wait_for(is_it)).await;
            told.expect("in time").expect("it lives");
        }
    }

    /// Where each request is answered with its number.
    fn instance() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("bound");
        let count = Arc::new(std::sync::atomic::AtomicU64::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let count = count.clone();
                std::thread::spawn(move || {
                    let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
                    let mut stream = stream;
                    while let Some(Ok(line)) = lines.next() {
                        if !line.is_empty() {
                            continue;
                        }
                        let body = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        let body = body.to_string();
                        let length = body.len();
                        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                        if stream.write_all([head, body].concat().as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        at
    }

    /// Adds a purge of a path to what the store has.
    async fn purge(store: &MemoryStore, path: &str) {
        let key = key("local");
        let snapshot = store.get_prefix(&key).await.expect("read");
        let mut purges: Purges =
            snapshot.get(&key).map_or_else(Purges::default, |kv| decode(&kv.value).expect("whole"));
        let what = What { of: Of::Path(path.to_string()), ..What::ALL };
        let id = format!("id {}", purges.last().number + 1);
        purges.add(id, (String::new(), String::new()), vec![what]);
        store.txn(&Txn::new().put(&key, encode(&purges))).await.expect("written");
    }

    #[tokio::test]
    async fn what_was_purged_is_not_given_again_by_a_gateway_that_is_back() {
        let store = MemoryStore::new();
        let mut keeper = Keeper::start();
        let given = |keeper: &Keeper| ["/a", "/b"].map(|path| keeper.ask(path));
        // What came before it had heard from the store may have been purged.
        let first = given(&keeper);
        assert_eq!(given(&keeper), first);
        keeper.follow(&store);
        keeper.until(Some(0)).await;
        let first = {
            let next = given(&keeper);
            assert!(next[0] != first[0] && next[1] != first[1], "{next:?}");
            next
        };
        purge(&store, "/a").await;
        keeper.until(Some(1)).await;
        let next = given(&keeper);
        assert!(next[0] != first[0] && next[1] == first[1], "{next:?}");
        assert_eq!(given(&keeper), next);

        // The store can't be reached, and goes on meanwhile.
        store.stall(true);
        let writes = tokio::spawn({
            let store = store.clone();
            async move {
                purge(&store, "/x").await;
                purge(&store, "/a").await;
            }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(given(&keeper), next);
        store.stall(false);
        writes.await.expect("written");
        keeper.until(Some(3)).await;
        let last = given(&keeper);
        assert!(last[0] != next[0] && last[1] == next[1], "{last:?}");

        // Nor can it be watched from where it was.
        keeper.cut_off();
        purge(&store, "/a").await;
        let rev = store.get_prefix("").await.expect("read").rev;
        store.compact(rev);
        keeper.follow(&store);
        keeper.until(Some(4)).await;
        let back = given(&keeper);
        assert!(back[0] != last[0] && back[1] == last[1], "{back:?}");
    }

    #[tokio::test]
    async fn a_record_of_another_history_or_that_can_not_be_read_purges_all() {
        let store = MemoryStore::new();
        let mut keeper = Keeper::start();
        purge(&store, "/x").await;
        keeper.follow(&store);
        keeper.until(Some(1)).await;
        let put = async |text: &str| {
            store.txn(&Txn::new().put(key("local"), text)).await.expect("written");
        };
        let mut last = keeper.ask("/a");
        let mut others = Purges::default();
        others.add("another".to_string(), Default::default(), Vec::new());
        others.add("and another".to_string(), Default::default(), Vec::new());
        for (text, number) in [("torn".to_string(), None), (encode(&others), Some(2))] {
            put(&text).await;
            keeper.until(number).await;
            let next = keeper.ask("/a");
            assert_ne!(next, last, "{text}");
            last = next;
        }
        store.txn(&Txn::new().delete(key("local"))).await.expect("written");
        keeper.until(Some(0)).await;
        assert_ne!(keeper.ask("/a"), last);
    }
}
