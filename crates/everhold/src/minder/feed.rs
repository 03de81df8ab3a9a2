//! The agent's side of the minder: it tells it until when PostgreSQL may run, and sees to it that
//! every postmaster has one.

use super::place::{self, Holder};
use everhold_adapters::proc::started;
use everhold_core::ids::Time;
use everhold_core::minder::{Order, Postmaster, Right, VERSION, found};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks whether the minder lives.
const LOOK: Duration = Duration::from_millis(200);
/// Between two tries to tell it something, until it listens.
const TRY: Duration = Duration::from_millis(10);
/// A minder that begins listens by then, and one that takes in nothing for so long is frozen.
const DEAF: Duration = Duration::from_secs(2);
/// Between two starts of one that ends at once.
const START: Duration = Duration::from_millis(500);

/// Where a minder works, and how it is started.
#[derive(Clone, Debug)]
pub struct Office {
    /// The directory of the service on this node.
    pub dir: PathBuf,
    /// Where PostgreSQL's socket is.
    pub run_dir: PathBuf,
    pub port: u16,
    pub program: PathBuf,
    pub now: fn() -> Time,
}

/// Where an agent tells the minder until when PostgreSQL may run. Nothing here waits.
#[derive(Clone)]
pub struct Feed {
    shared: Arc<Shared>,
    wake: SyncSender<()>,
}

struct Shared {
    office: Office,
    /// `None`: no socket could be made, which is tried again.
    socket: Mutex<Option<UnixDatagram>>,
    told: Mutex<Told>,
}

/// What the minder has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    pid: Option<i32>,
    postmaster: Option<Postmaster>,
    primary: bool,
    /// What it is to go by. A new agent has nothing to say at first: the minder that it finds knows
    /// more than it does.
    word: Option<Option<Right>>,
    /// The minder doesn't know it yet.
    unsent: bool,
}

impl Feed {
    /// Begins to see to it. `note` is given what a minder left word of, and what happens to it.
    pub fn start(office: Office, note: impl Fn(String) + Send + 'static) -> std::io::Result<Feed> {
        let (wake, woken) = sync_channel(1);
        let shared = Arc::new(Shared { office, socket: Mutex::default(), told: Mutex::default() });
        let tender = Tender {
            shared: shared.clone(),
            minder: None,
            child: None,
            started_at: None,
            deaf_since: None,
            note: Box::new(note),
        };
        std::thread::Builder::new().name("minder".into()).spawn(move || tender.run(&woken))?;
        Ok(Feed { shared, wake })
    }

    /// The postmaster that runs now, and whether it is known to be a primary's.
    pub fn tend(&self, pid: Option<i32>, primary: bool) {
        let (changed, surprise) = {
            let mut told = self.shared.told();
            let changed = told.pid != pid;
            if changed {
                *told = Told { pid, postmaster: pid.and_then(identify), ..Told::default() };
            }
            told.primary = primary;
            (changed, primary && told.word == Some(None))
        };
        if changed {
            let _ = self.wake.try_send(());
        }
        // A promotion that a former agent began took effect after the first look.
        if surprise {
            self.tell(Some(found((self.shared.office.now)())));
        }
    }

    /// Until when it may run.
    pub fn feed(&self, right: Right) {
        self.tell(Some(right));
    }

    /// It is no primary.
    pub fn rest(&self) {
        if self.shared.told().word != Some(None) {
            self.tell(None);
        }
    }

    fn tell(&self, right: Option<Right>) {
        self.shared.told().word = Some(right);
        if !self.shared.send() {
            let _ = self.wake.try_send(());
        }
    }
}

fn identify(pid: i32) -> Option<Postmaster> {
    Some(Postmaster { pid, started: started(pid)? })
}

impl Shared {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the minder what there is to say, at once or not at all.
    fn send(&self) -> bool {
        let mut told = self.told();
        let (Some(postmaster), Some(right)) = (told.postmaster, told.word.clone()) else {
            return true;
        };
        let order = Order { postmaster, right };
        let sent = serde_json::to_vec(&order).map_err(std::io::Error::from);
        let sent = sent.and_then(|text| {
            let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
            let socket = match &mut *socket {
                Some(socket) => socket,
                none => {
                    let made = UnixDatagram::unbound()?;
                    made.set_nonblocking(true)?;
                    none.insert(made)
                }
            };
            socket.send_to(&text, place::socket(&self.office.dir))
        });
        told.unsent = sent.is_err();
        sent.is_ok()
    }
}

/// Sees to it that the postmaster has a minder that listens.
struct Tender {
    shared: Arc<Shared>,
    minder: Option<Holder>,
    /// The minder, if this process started it: to be waited for.
    child: Option<Child>,
    started_at: Option<Instant>,
    deaf_since: Option<Instant>,
    note: Box<dyn Fn(String) + Send>,
}

impl Tender {
    fn run(mut self, woken: &Receiver<()>) {
        loop {
            self.read_note();
            self.look();
            let pause = if self.shared.told().unsent { TRY } else { LOOK };
            match woken.recv_timeout(pause) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look(&mut self) {
        if let Some(child) = &mut self.child
            && !matches!(child.try_wait(), Ok(None))
        {
            self.child = None;
        }
        let Some(postmaster) = self.shared.told().postmaster else { return };
        let fits = |holder: &Holder| {
            let Holder { record, .. } = holder;
            record.postmaster == postmaster && record.version == VERSION && !holder.ended()
        };
        if !self.minder.as_ref().is_some_and(fits) {
            self.minder = place::holder(&self.shared.office.dir).filter(fits);
            match self.minder {
                Some(_) => self.shared.told().unsent = true,
                None => self.begin(postmaster),
            }
        }
        if self.shared.told().unsent && self.minder.is_some() {
            self.reach();
        }
    }

    /// Starts a minder, unless one was just started or there is nothing to mind any more.
    fn begin(&mut self, postmaster: Postmaster) {
        if identify(postmaster.pid) != Some(postmaster) {
            let mut told = self.shared.told();
            if told.postmaster == Some(postmaster) {
                told.postmaster = told.pid.and_then(identify);
            }
            return;
        }
        if self.started_at.is_some_and(|at| at.elapsed() < START) {
            return;
        }
        self.started_at = Some(Instant::now());
        let Office { dir, run_dir, port, program, now } = &self.shared.office;
        let mut command = Command::new(program);
        command.arg0("everhold").arg("minder").arg("--dir").arg(dir);
        command.arg("--run-dir").arg(run_dir).arg("--port").arg(port.to_string());
        command.arg("--pid").arg(postmaster.pid.to_string());
        command.arg("--started").arg(postmaster.started.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
        match command.spawn() {
            Ok(child) => self.child = Some(child),
            Err(error) => (self.note)(format!("the minder can't be started: {error}")),
        }
        let mut told = self.shared.told();
        told.unsent = true;
        if told.primary && told.word.is_none() {
            told.word = Some(Some(found(now())));
        }
    }

    /// Tells it again; one that takes in nothing is replaced.
    fn reach(&mut self) {
        if self.shared.send() {
            self.deaf_since = None;
            return;
        }
        let since = *self.deaf_since.get_or_insert_with(Instant::now);
        if since.elapsed() > DEAF
            && let Some(minder) = self.minder.take()
        {
            (self.note)(format!(
                "the minder, process {}, is deaf: replacing it",
                minder.record.pid
            ));
            minder.end();
            self.deaf_since = None;
        }
    }

    /// Hands on why a minder stopped a server.
    fn read_note(&self) {
        let path = place::note(&self.shared.office.dir);
        if let Ok(text) = std::fs::read_to_string(&path) {
            (self.note)(text);
            let _ = std::fs::remove_file(&path);
        }
    }
}
