//! One place of the log, at its own pace: a thread that opens it, puts what it is handed, and copies
//! what it lacks from another place. It waits for nobody, and nobody waits for it.

use super::Order;
use crate::backup;
use everhold_repository::log::{Mark, Piece};
use everhold_repository::{Log, Repository, RepositoryError, Sealed};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// Pieces that are put at once.
pub const IN_FLIGHT: usize = 4;
/// Tasks that are handed over and not done yet: pieces as [`super::ship`] bounds them, and one more.
pub const TASKS_MAX: usize = 64;
/// Between two tries to open it: each costs a tenth of a second of a core.
const REOPEN: Duration = Duration::from_secs(3);

/// A piece and its bytes, the same for every place.
pub struct Parcel {
    pub piece: Piece,
    pub sealed: Sealed,
}

pub enum Task {
    Put(Arc<Parcel>),
    /// Leave word of how far the log is.
    Mark(Mark),
    /// Copy what only one of the two has: this place and another, as one repository.
    Level(Repository),
}

/// What a lane says of its place.
pub enum Said {
    /// It is open and has these pieces.
    Opened(Arc<Repository>, Vec<Piece>),
    Unopened(RepositoryError),
    Put(Piece, Result<(), RepositoryError>),
    /// Not begun: the place is opened anew first.
    Back(Task),
    Leveled(Result<Vec<Piece>, RepositoryError>),
}

/// Starts the thread of a place; it ends when `tasks` is dropped.
pub fn start(
    order: Arc<Order>,
    name: String,
    said: UnboundedSender<(String, Said)>,
) -> std::io::Result<SyncSender<Task>> {
    let (tasks, todo) = sync_channel(TASKS_MAX);
    let lane = Lane { order, name: name.clone(), said, probed: Cell::new(false) };
    thread::Builder::new().name(name).spawn(move || lane.run(&todo))?;
    Ok(tasks)
}

struct Lane {
    order: Arc<Order>,
    name: String,
    said: UnboundedSender<(String, Said)>,
    /// The place has proven that it tells a second write of an object from the first.
    probed: Cell<bool>,
}

impl Lane {
    fn say(&self, said: Said) -> bool {
        self.said.send((self.name.clone(), said)).is_ok()
    }

    fn run(&self, todo: &Receiver<Task>) {
        loop {
            let opened = self.open().and_then(|it| {
                let contested = self.log(&it).settle()?;
                let pieces = self.log(&it).pieces(1)?;
                Ok((Arc::new(it), pieces, contested))
            });
            let (repository, pieces, contested) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    if !self.say(Said::Unopened(error)) || !self.give_back(None, todo) {
                        return;
                    }
                    thread::sleep(REOPEN);
                    continue;
                }
            };
            let goes_on = self.say(Said::Opened(repository.clone(), pieces))
                && match contested.is_empty() {
                    true => self.work(&repository, todo),
                    false => self.await_end(&repository, todo),
                };
            if !goes_on {
                return;
            }
        }
    }

    /// What was handed over and is not begun: it may be done elsewhere meanwhile.
    fn give_back(&self, next: Option<Task>, todo: &Receiver<Task>) -> bool {
        let all = next.into_iter().chain(todo.try_iter().take(TASKS_MAX));
        all.map(Said::Back).all(|said| self.say(said))
    }

    fn prefix(&self) -> String {
        Log::prefix(&self.order.service, self.order.lead.sysid)
    }

    fn log<'r>(&self, repository: &'r Repository) -> Log<'r> {
        Log::new(repository, &self.order.service, self.order.lead.sysid)
    }

    /// Opens it, and says whose line it is before the first piece. Nothing is put before the place has
    /// proven, once in this process, that an old leader could not write over it.
    fn open(&self) -> Result<Repository, RepositoryError> {
        let place = self.order.places.get(&self.name).cloned();
        let places = BTreeMap::from_iter(place.map(|place| (self.name.clone(), place)));
        let repository = backup::open_places(&places, &self.order.cluster)?;
        if !self.probed.get() {
            repository.probe()?;
            self.probed.set(true);
        }
        let lead = &self.order.lead;
        self.log(&repository).put_line(lead.epoch, &lead.line)?;
        Ok(repository)
    }

    /// Does tasks; true: a put failed, so it is to be opened anew.
    fn work(&self, repository: &Repository, todo: &Receiver<Task>) -> bool {
        let mut next = None;
        loop {
            let Some(task) = next.take().or_else(|| todo.recv().ok()) else { return false };
            let mut parcels = match task {
                Task::Put(parcel) => vec![parcel],
                Task::Level(both) => {
                    let level = both.level(&self.prefix());
                    let pieces = level.and_then(|_| self.log(repository).pieces(1));
                    if !self.say(Said::Leveled(pieces)) {
                        return false;
                    }
                    continue;
                }
                Task::Mark(mark) => {
                    if let Err(error) = self.log(repository).put_mark(&mark) {
                        tracing::warn!(error = crate::keeper::chain(&error), "no mark was left");
                    }
                    continue;
                }
            };
            while parcels.len() < IN_FLIGHT
                && let Ok(task) = todo.try_recv()
            {
                match task {
                    Task::Put(parcel) => parcels.push(parcel),
                    Task::Level(_) | Task::Mark(_) => {
                        next = Some(task);
                        break;
                    }
                }
            }
            let Some(all_put) = self.put(repository, &parcels) else { return false };
            if !all_put {
                return self.give_back(next, todo);
            }
        }
    }

    /// Puts pieces, all at once, and says whether all are there; `None`: nobody hears any more.
    fn put(&self, repository: &Repository, parcels: &[Arc<Parcel>]) -> Option<bool> {
        let mut all_put = true;
        let told = thread::scope(|scope| {
            let running = parcels.iter().map(|parcel| {
                let thread = scope.spawn(|| repository.put_object(&parcel.sealed).map(drop));
                (parcel, thread)
            });
            let running: Vec<_> = running.collect();
            running.into_iter().all(|(parcel, thread)| {
                let result = thread.join().unwrap_or(Err(RepositoryError::Stopped));
                all_put &= result.is_ok();
                // It counts nowhere until it is this leader's: also whoever comes after this process
                // is to know.
                if matches!(result, Err(RepositoryError::Conflict { .. }))
                    && let Err(error) = self.log(repository).contest(&parcel.piece)
                {
                    tracing::warn!(error = crate::keeper::chain(&error), "a conflict is not noted");
                }
                self.say(Said::Put(parcel.piece, result))
            })
        });
        told.then_some(all_put)
    }

    /// Puts nothing more while another's content stands in a piece's place. True: that is gone, and the
    /// place is to be opened anew.
    fn await_end(&self, repository: &Repository, todo: &Receiver<Task>) -> bool {
        let log = self.log(repository);
        while let Ok(left) = log.settle()
            && let Some(piece) = left.first()
        {
            let name = format!("{}{}", self.prefix(), piece.name());
            let conflict = RepositoryError::Conflict { name };
            if !self.say(Said::Put(*piece, Err(conflict))) || !self.give_back(None, todo) {
                return false;
            }
            thread::sleep(REOPEN);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::Lead;
    use super::*;
    use everhold_core::ids::Lsn;
    use everhold_core::spec::RepositorySpec;
    use everhold_core::term::{Branch, BranchId};
    use everhold_repository::{Password, PlaceConfig};
    use std::fs;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn hear(said: &mut UnboundedReceiver<(String, Said)>) -> Said {
        let until = Instant::now() + PATIENCE;
        loop {
            match said.try_recv() {
                Ok((_, said)) => return said,
                Err(_) => assert!(Instant::now() < until, "the lane says nothing"),
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn order(dir: &Path, spec: RepositorySpec) -> Arc<Order> {
        let root = Branch { tli: 1, epoch: 1, parent: 0, fork: Lsn(0) };
        Arc::new(Order {
            cluster: "shop".to_string(),
            service: "main".to_string(),
            data_dir: dir.into(),
            run_dir: dir.into(),
            port: 1,
            places: BTreeMap::from([("vault".to_string(), spec)]),
            copies: 1,
            lead: Lead { sysid: 7, epoch: 1, line: vec![root] },
        })
    }

    fn key(dir: &Path) -> String {
        let key = dir.join("key");
        fs::write(&key, "a password").expect("written");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("set");
        key.display().to_string()
    }

    /// As much of an S3 store as a lane asks for; one that honours the condition of a put, or not.
    struct Store {
        honest: AtomicBool,
        objects: Mutex<BTreeMap<String, Vec<u8>>>,
    }

    impl Store {
        fn start() -> (Arc<Store>, u16) {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let port = listener.local_addr().expect("its address").port();
            let store =
                Arc::new(Store { honest: AtomicBool::new(true), objects: Mutex::default() });
            let serves = store.clone();
            thread::spawn(move || {
                listener.incoming().flatten().for_each(|client| serves.answer(client));
            });
            (store, port)
        }

        fn answer(&self, mut client: TcpStream) {
            let mut lines = BufReader::new(client.try_clone().expect("a line"));
            let (mut head, mut body) = (String::new(), Vec::new());
            while !head.ends_with("\r\n\r\n") && lines.read_line(&mut head).is_ok_and(|it| it > 0) {
            }
            let lower = head.to_lowercase();
            let length = lower.split("content-length: ").nth(1).and_then(|it| it.lines().next());
            let length = length.map_or(0, |it| it.parse().expect("a length"));
            lines.take(length).read_to_end(&mut body).expect("a body");
            let mut words = head.split([' ', '?']);
            let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let name = path.trim_start_matches("/shop").trim_start_matches('/').to_string();
            let mut objects = self.objects.lock().expect("the objects");
            let (status, content) = match method {
                "PUT"
                    if lower.contains("if-none-match")
                        && objects.contains_key(&name)
                        && self.honest.load(Ordering::Relaxed) =>
                {
                    (412, Vec::new())
                }
                "PUT" => {
                    objects.insert(name, body);
                    (200, Vec::new())
                }
                "DELETE" => {
                    objects.remove(&name);
                    (204, Vec::new())
                }
                _ if name.is_empty() => {
                    let prefix = head.split("prefix=").nth(1).unwrap_or("");
                    let prefix = prefix.split(['&', ' ']).next().unwrap_or("").replace("%2F", "/");
                    let names = objects.keys().filter(|name| name.starts_with(&prefix));
                    let one = |name: &String| {
                        format!(
                            "<Contents><Key>{name}</Key><Size>1</Size><ETag>e</ETag>\
                             <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                        )
                    };
                    let all = names.map(one).collect::<String>();
                    let root = "ListBucketResult";
                    let xmlns = "http://s3.amazonaws.com/doc/2006-03-01/";
                    (200, format!("<{root} xmlns=\"{xmlns}\">{all}</{root}>").into_bytes())
                }
                _ => objects.get(&name).map_or((404, Vec::new()), |it| (200, it.clone())),
            };
            let length = content.len();
            let said = format!("Content-Length: {length}\r\nConnection: close");
            let head = format!("HTTP/1.1 {status} Told\r\n{said}\r\n\r\n");
            let _ = client.write_all(&[head.as_bytes(), &content].concat());
        }
    }

    #[test]
    fn a_store_that_forgot_conditions_since_is_not_archived_into() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, port) = Store::start();
        let credentials = dir.path().join("credentials");
        fs::write(&credentials, "access_key_id = a\nsecret_access_key = b\n").expect("written");
        let spec = RepositorySpec {
            url: "s3://shop".parse().expect("a url"),
            region: None,
            endpoint: Some(format!("http://127.0.0.1:{port}")),
            credentials_file: Some(credentials.display().to_string()),
            key_file: key(dir.path()),
        };
        let place = PlaceConfig::new("vault", &spec);
        Repository::create(&place, &Password::new("a password"), "shop").expect("made");
        let before = store.objects.lock().expect("the objects").clone();
        // Its settings were changed, or a proxy was put before it.
        store.honest.store(false, Ordering::Relaxed);
        let (tell, mut said) = unbounded_channel();
        let tasks = start(order(dir.path(), spec.clone()), "vault".to_string(), tell);
        let tasks = tasks.expect("a thread");
        for _ in 0..2 {
            let Said::Unopened(error) = hear(&mut said) else { panic!("it was opened") };
            assert!(matches!(error, RepositoryError::NoConditionalPut { .. }), "{error}");
        }
        assert!(*store.objects.lock().expect("the objects") == before, "nothing was put there");
        // It is heard as soon as it does.
        store.honest.store(true, Ordering::Relaxed);
        while !matches!(hear(&mut said), Said::Opened(..)) {}
        drop(tasks);
    }

    /// A new repository in a directory.
    fn vault(dir: &Path) -> (PathBuf, RepositorySpec, Repository) {
        let vault = dir.join("vault");
        let spec = RepositorySpec {
            url: format!("file://{}", vault.display()).parse().expect("a url"),
            region: None,
            endpoint: None,
            credentials_file: None,
            key_file: key(dir),
        };
        let place = PlaceConfig::new("vault", &spec);
        let repository = Repository::create(&place, &Password::new("a password"), "shop");
        (vault, spec, repository.expect("made"))
    }

    #[test]
    fn a_place_whose_put_failed_is_opened_anew_by_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let (vault, spec, repository) = vault(dir.path());
        let (tell, mut said) = unbounded_channel();
        let tasks = start(order(dir.path(), spec), "vault".to_string(), tell).expect("a thread");
        assert!(matches!(hear(&mut said), Said::Opened(..)));
        let piece = |n: u64| {
            let branch = BranchId { epoch: 1, tli: 1 };
            let piece = Piece { branch, start: Lsn(n * 8), end: Lsn(n * 8 + 8), epoch: 1 };
            let log = Log::new(&repository, "main", 7);
            let sealed = log.seal_piece(&piece, &[n as u8; 8]).expect("sealed");
            Task::Put(Arc::new(Parcel { piece, sealed }))
        };
        tasks.send(piece(0)).expect("sent");
        assert!(matches!(hear(&mut said), Said::Put(_, Ok(()))));

        // It goes away, with as much handed over as there is room for.
        let away = dir.path().join("away");
        fs::rename(&vault, &away).expect("moved");
        let mark =
            Mark { at_ms: 1, archived_ms: 1, branch: BranchId { epoch: 1, tli: 1 }, lsn: Lsn(8) };
        tasks.send(piece(1)).expect("sent");
        while tasks.try_send(Task::Mark(mark)).is_ok() {}
        let mut unopened = false;
        while !unopened {
            match hear(&mut said) {
                Said::Put(_, result) => assert!(result.is_err()),
                Said::Unopened(_) => unopened = true,
                Said::Back(_) => {}
                Said::Opened(..) | Said::Leveled(_) => panic!("it is not there"),
            }
        }
        // What it can't do meanwhile is handed back.
        tasks.send(piece(2)).expect("sent");
        while !matches!(hear(&mut said), Said::Back(Task::Put(_))) {}
        fs::rename(&away, &vault).expect("back");
        let pieces = loop {
            if let Said::Opened(_, pieces) = hear(&mut said) {
                break pieces;
            }
        };
        assert_eq!(pieces.len(), 1);
        tasks.send(piece(1)).expect("sent");
        assert!(matches!(hear(&mut said), Said::Put(_, Ok(()))));
        assert_eq!(Log::new(&repository, "main", 7).pieces(1).expect("listed").len(), 2);
    }

    #[test]
    fn a_piece_that_another_wrote_counts_nowhere_until_that_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let (vault, spec, repository) = vault(dir.path());
        let log = Log::new(&repository, "main", 7);
        let branch = BranchId { epoch: 1, tli: 1 };
        let piece = Piece { branch, start: Lsn(0), end: Lsn(8), epoch: 1 };
        log.put_piece(&piece, b"another!").expect("put");
        let of = |piece: Piece| {
            let sealed = log.seal_piece(&piece, b"our own.").expect("sealed");
            Task::Put(Arc::new(Parcel { piece, sealed }))
        };
        // The second comes after the first has ended, and says so by itself: another place may have it.
        for comes_first in [true, false] {
            let (tell, mut said) = unbounded_channel();
            let tasks = start(order(dir.path(), spec.clone()), "vault".to_string(), tell);
            let tasks = tasks.expect("a thread");
            while !matches!(hear(&mut said), Said::Opened(..)) {}
            if comes_first {
                tasks.send(of(piece)).expect("sent");
            }
            let Said::Put(put, Err(error)) = hear(&mut said) else { panic!("it was put") };
            assert_eq!(put, piece);
            assert!(matches!(error, RepositoryError::Conflict { .. }), "{error}");
            assert!(log.pieces(1).expect("listed").is_empty(), "it counts nowhere");
            // What is handed over meanwhile is not put.
            let next = Piece { start: Lsn(8), end: Lsn(16), ..piece };
            tasks.send(of(next)).expect("sent");
            while !matches!(hear(&mut said), Said::Back(Task::Put(_))) {}
        }
        let file = vault.join(format!("{}{}", Log::prefix("main", 7), piece.name()));
        assert_eq!(repository.get(&file_name(&vault, &file)).expect("got"), b"another!");
        // An operator takes it away.
        let (tell, mut said) = unbounded_channel();
        let tasks = start(order(dir.path(), spec), "vault".to_string(), tell).expect("a thread");
        while !matches!(hear(&mut said), Said::Put(_, Err(_))) {}
        fs::remove_file(&file).expect("removed");
        while !matches!(hear(&mut said), Said::Opened(..)) {}
        assert!(log.contested().expect("listed").is_empty());
        tasks.send(of(piece)).expect("sent");
        while !matches!(hear(&mut said), Said::Put(_, Ok(()))) {}
        assert_eq!(log.pieces(1).expect("listed"), [piece]);
        assert_eq!(repository.get(&file_name(&vault, &file)).expect("got"), b"our own.");
    }

    fn file_name(root: &Path, file: &Path) -> String {
        file.strip_prefix(root).expect("below it").display().to_string()
    }
}
