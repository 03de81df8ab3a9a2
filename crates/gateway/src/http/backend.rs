//! One instance as a thread of the gateway sees it: its idle connections.

use super::buf::Buf;
use super::io::Io;
use super::link::Links;
use super::live::Live;
use super::stream::Stream;
use crate::socket;
use everhold_core::http::ewma::PeakEwma;
use everhold_core::spec::Version;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Idle connections to one instance, of one thread.
const IDLE_MAX: usize = 256;
/// Instances that close idle connections commonly do so after 5 s or more.
pub const IDLE_FOR: Duration = Duration::from_secs(4);
/// A request that must not be sent twice goes over a connection that was used within this: one that the
/// instance is closing at this moment would lose it.
pub const FRESH: Duration = Duration::from_secs(1);

/// How good a connection has to be for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Whatever is there.
    Good,
    /// It must not be sent twice.
    Fresh,
    /// One that had been idle has just broken.
    New,
}

/// A connection to an instance, or a stream on one.
pub struct Conn {
    pub io: Io,
    pub buf: Buf,
    /// It has carried a request before, and nobody has heard of it since then.
    pub reused: bool,
}

impl Conn {
    fn on(stream: Stream) -> Conn {
        let reused = stream.was_in_doubt();
        Conn { io: Io::Stream(Box::new(stream)), buf: Buf::default(), reused }
    }

    /// That it broke without an answer says nothing of the instance.
    pub fn is_stale(&self) -> bool {
        self.reused || matches!(&self.io, Io::Stream(stream) if stream.is_calmed())
    }
}

pub struct Backend {
    pub name: Arc<str>,
    pub live: Arc<Live>,
    /// How long it takes to answer, as this thread sees it.
    pub cost: Cell<PeakEwma>,
    idle: RefCell<Vec<(Conn, Instant)>>,
    /// `None`: it speaks HTTP/1.
    links: Option<Rc<Links>>,
}

impl Backend {
    pub fn new(name: &str, live: Arc<Live>, version: Version, cost: PeakEwma) -> Backend {
        let cost = Cell::new(cost);
        let links = match version {
            Version::Http1 => None,
            Version::Http2 => Some(Links::new(live.address)),
        };
        Backend { name: Arc::from(name), live, cost, idle: RefCell::default(), links }
    }

    /// Whether it is that instance, spoken to in that way.
    pub fn is(&self, live: &Arc<Live>, version: Version) -> bool {
        let speaks = if self.links.is_some() { Version::Http2 } else { Version::Http1 };
        Arc::ptr_eq(&self.live, live) && speaks == version
    }

    /// A connection that is there and as good as that. Of idle ones the one used last, so that the
    /// others may be closed.
    pub fn reuse(&self, need: Need, now: Instant) -> Option<Conn> {
        if let Some(links) = &self.links {
            return links.reuse(need, now).map(Conn::on);
        }
        let must_be_fresh = match need {
            Need::Good => false,
            Need::Fresh => true,
            Need::New => return None,
        };
        let mut idle = self.idle.borrow_mut();
        while let Some((conn, since)) = idle.pop() {
            let age = now.saturating_duration_since(since);
            if age > if must_be_fresh { FRESH } else { IDLE_FOR } {
                // All below it are older.
                if must_be_fresh && age <= IDLE_FOR {
                    idle.push((conn, since));
                    return None;
                }
                idle.clear();
                return None;
            }
            if !conn.io.has_spoken(must_be_fresh) {
                return Some(conn);
            }
        }
        None
    }

    /// An answer came after `took`.
    pub fn took(&self, took: Duration, now_ms: u64) {
        let mut cost = self.cost.get();
        cost.observe(took.as_secs_f64() * 1e6, now_ms);
        self.cost.set(cost);
    }

    pub async fn connect(&self, need: Need) -> io::Result<Conn> {
        if let Some(links) = &self.links {
            return links.connect(need).await.map(Conn::on);
        }
        let io = Io::Plain(socket::connect(self.live.address).await?);
        Ok(Conn { io, buf: Buf::default(), reused: false })
    }

    /// Keeps it for the next request. A stream is over with its request.
    pub fn keep(&self, mut conn: Conn, now: Instant) {
        if self.links.is_some() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            conn.reused = true;
            idle.push((conn, now));
        }
    }

    /// Closes those that were idle for too long, or lead nowhere.
    pub fn close_idle(&self, now: Instant) {
        let fresh =
            |(_, since): &(Conn, Instant)| now.saturating_duration_since(*since) <= IDLE_FOR;
        self.idle.borrow_mut().retain(fresh);
        if let Some(links) = &self.links {
            links.sweep(now);
        }
    }
}

/// A request on its way to an instance, for as long as this lives.
pub struct Active<'b>(&'b Live);

impl Active<'_> {
    pub fn new(live: &Live) -> Active<'_> {
        live.active.fetch_add(1, Ordering::Relaxed);
        Active(live)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
