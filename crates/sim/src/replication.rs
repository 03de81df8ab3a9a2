//! What servers do by themselves: start, stream, replay, reload, acknowledge, die.

use crate::say;
use crate::server::{Names, Proc, Receiver, Row, Waiting, Who};
use crate::wal::{Dir, Rec};
use crate::world::{Event, ForAgent, ForServer, MS, S, World};
use everhold_core::agent::Input;
use everhold_core::durable::Data;
use std::rc::Rc;

/// wal_retrieve_retry_interval
const RETRY: u64 = 50 * MS;
/// wal_sender_timeout and wal_receiver_timeout
const TIMEOUT: u64 = 5 * S;

impl World {
    pub fn for_server(&mut self, n: usize, what: ForServer) {
        match what {
            ForServer::Started { at_recovery } => self.started(n, at_recovery),
            ForServer::Reload { conn } => {
                let shown = self.nodes[n].server.shown.clone();
                if let Some(row) = self.nodes[n].server.row(conn) {
                    row.priority = shown.priority(&row.name);
                    row.names = shown;
                    self.release_by(n, conn);
                }
            }
            ForServer::ReloadCheckpointer => self.reload_checkpointer(n),
            ForServer::TakeSource => self.take_source(n),
            ForServer::Retry => self.startup_wants(n),
            ForServer::Connect { conn } => self.connect(n, conn),
            ForServer::Flush { conn, upto, replaced } => self.receive(n, conn, upto, replaced),
            ForServer::Reply { conn, flush } => self.replied(n, conn, flush),
            ForServer::ReceiverLost { conn } => self.receiver_lost(n, conn),
            ForServer::RowGone { conn } => {
                self.nodes[n].server.rows.retain(|row| row.conn != conn);
            }
            ForServer::Replay => self.replay(n),
            ForServer::ChildrenEnd { stuck } => {
                self.drop_connections(n);
                let server = &mut self.nodes[n].server;
                server.children = false;
                if !stuck {
                    self.end_server(n);
                }
            }
            ForServer::Commit { who } => self.commit(n, who),
        }
    }

    /// An event for a server that is gone: a client gets an error.
    pub fn server_gone_for(&mut self, what: ForServer) {
        if let ForServer::Commit { who: Who::Client { writer, attempt } } = what {
            self.after(MS, Event::ClientAnswer { writer, attempt, acked: false });
        }
    }

    /// All processes are gone at once.
    pub fn end_server(&mut self, n: usize) {
        self.drop_connections(n);
        let server = &mut self.nodes[n].server;
        server.life += 1;
        server.proc = Proc::Down;
        server.recovery = true;
        server.frozen = false;
        server.closing = false;
        server.children = false;
        server.source = None;
        server.taken = None;
        server.conflict_until = 0;
        server.released = 0;
        say!(self, "{n} PostgreSQL is down");
    }

    fn drop_connections(&mut self, n: usize) {
        self.cut_receiver(n);
        let server = &mut self.nodes[n].server;
        let rows = std::mem::take(&mut server.rows);
        let waiting = std::mem::take(&mut server.waiting);
        for row in rows.into_iter().filter(|row| row.live) {
            if !self.net.servers[n][row.standby] {
                let delay = self.rng.between(200, MS);
                self.tell_server(row.standby, delay, ForServer::ReceiverLost { conn: row.conn });
            }
        }
        for commit in waiting {
            self.server_gone_for(ForServer::Commit { who: commit.who });
        }
    }

    /// kill -9 of the postmaster. Its children notice a moment later, but for one that may not.
    pub fn kill_postmaster(&mut self, n: usize) {
        let server = &mut self.nodes[n].server;
        if !matches!(server.proc, Proc::Running | Proc::Starting) {
            return;
        }
        say!(self, "{n} postmaster killed");
        server.proc = Proc::Remains;
        server.children = true;
        let delay = self.rng.spread(MS, 300 * MS);
        let stuck = self.rng.chance(300);
        self.tell_server(n, delay, ForServer::ChildrenEnd { stuck });
        let delay = self.rng.between(MS, 5 * MS);
        self.tell_agent(n, delay, ForAgent::Input(Box::new(Input::PgDied)));
    }

    fn started(&mut self, n: usize, at_recovery: bool) {
        let node = &mut self.nodes[n];
        if node.server.proc != Proc::Starting {
            return;
        }
        if node.dir.garbage {
            self.violated(format!("{n} starts on rubbish"));
            return;
        }
        if self.lacks_history(n) {
            self.tell_server(n, RETRY, ForServer::Started { at_recovery });
            return;
        }
        let node = &mut self.nodes[n];
        node.server.proc = Proc::Running;
        node.server.recovery = at_recovery;
        node.dir.replayed = node.dir.wal.len();
        node.dir.partial = 0;
        say!(self, "{n} PostgreSQL runs, at {:X} on {}", node.dir.end(), node.dir.tli);
        self.tell_server(n, MS, ForServer::TakeSource);
    }

    /// A copy that isn't whole is consistent once it has what its source wrote meanwhile.
    fn lacks_history(&self, n: usize) -> bool {
        let (disk, server) = (&self.nodes[n].disk, &self.nodes[n].server);
        if !matches!(disk.data, Data::CatchUp { .. }) {
            return false;
        }
        let named = |name: &str| self.nodes.iter().position(|node| node.name == name);
        let source = server.source.as_ref().and_then(|source| named(&source.member.node));
        !source.is_some_and(|from| {
            let other = &self.nodes[from];
            let cut = self.net.servers[n][from] || self.net.servers[from][n];
            let leads = other.server.proc == Proc::Running && !other.server.recovery;
            let same = disk.line.last().is_some_and(|branch| branch.tli == other.dir.tli);
            leads && same && !cut && !other.server.frozen
        })
    }

    /// The startup process reads its configuration, unless it waits for a session to end.
    fn take_source(&mut self, n: usize) {
        let server = &mut self.nodes[n].server;
        if server.conflict_until > self.now {
            let delay = server.conflict_until - self.now;
            self.tell_server(n, delay, ForServer::TakeSource);
            return;
        }
        if server.taken != server.source {
            server.taken = server.source.clone();
            self.cut_receiver(n);
        }
        self.startup_wants(n);
    }

    /// The standby's end of its connection goes; the walsender may outlive it.
    pub fn cut_receiver(&mut self, n: usize) {
        let receiver = std::mem::replace(&mut self.nodes[n].server.receiver, Receiver::None);
        let Receiver::Streaming { conn, from } = receiver else { return };
        let quick = !self.net.servers[n][from] && !self.rng.chance(self.net.lingers);
        let delay =
            if quick { self.rng.between(MS, 5 * MS) } else { self.rng.spread(50 * MS, TIMEOUT) };
        if let Some(row) = self.nodes[from].server.row(conn) {
            row.live = false;
            self.tell_server(from, delay, ForServer::RowGone { conn });
        }
    }

    /// The startup process begins to connect if it has a source and nothing to stream.
    fn startup_wants(&mut self, n: usize) {
        let server = &self.nodes[n].server;
        if !server.runs_as_standby() || server.taken.is_none() || server.receiver != Receiver::None
        {
            return;
        }
        if server.conflict_until > self.now {
            let delay = server.conflict_until - self.now;
            self.tell_server(n, delay, ForServer::Retry);
            return;
        }
        let conn = self.ghost.next_conn();
        self.nodes[n].server.receiver = Receiver::Connecting { conn };
        let delay = self.rng.spread(MS, self.net.connect);
        self.tell_server(n, delay, ForServer::Connect { conn });
    }

    fn connect(&mut self, n: usize, conn: u64) {
        if self.nodes[n].server.receiver != (Receiver::Connecting { conn }) {
            return;
        }
        match self.accepts(n) {
            Ok(from) => self.stream(n, from, conn),
            Err((why, wait)) => {
                say!(self, "{n} can't stream: {why}");
                self.nodes[n].server.receiver = Receiver::None;
                self.tell_server(n, wait, ForServer::Retry);
            }
        }
    }

    /// What PostgreSQL itself checks: process, slot, timeline numbers and switch points. It doesn't
    /// know who wrote a timeline.
    fn accepts(&self, n: usize) -> Result<usize, (&'static str, u64)> {
        let Some(source) = &self.nodes[n].server.taken else { return Err(("no source", RETRY)) };
        let from = self.nodes.iter().position(|node| node.name == source.member.node);
        let from = from.filter(|from| *from != n).ok_or(("unknown host", RETRY))?;
        let (server, dir) = (&self.nodes[from].server, &self.nodes[from].dir);
        if self.net.servers[n][from] || self.net.servers[from][n] || self.nodes[from].frozen {
            return Err(("no route", S));
        }
        if server.frozen {
            return Err(("no answer", S));
        }
        if server.proc != Proc::Running || server.closing {
            return Err(("connection refused", RETRY));
        }
        if !source.slot.is_empty() {
            if !dir.slots.contains(&source.slot) {
                return Err(("no such slot", RETRY));
            }
            if server.rows.iter().any(|row| row.name == source.slot && row.owns_slot) {
                return Err(("the slot is active", RETRY));
            }
        }
        let own = &self.nodes[n].dir;
        let line = dir.line(dir.tli);
        let until = line.iter().find(|(tli, _)| *tli == own.tli).map(|(_, until)| *until);
        let limit = until.ok_or(("its timeline is not in the leader's history", RETRY))?;
        let end = if server.recovery { dir.replayed_to() } else { dir.end() };
        if own.end() > limit.min(end) {
            return Err(("it is ahead of the leader", RETRY));
        }
        Ok(from)
    }

    fn stream(&mut self, n: usize, from: usize, conn: u64) {
        let source = self.nodes[n].server.taken.clone();
        let slot = source.map(|source| source.slot).unwrap_or_default();
        if !self.nodes[n].dir.is_prefix_of(&self.nodes[from].dir) {
            self.violated(format!("{n} streams from {from}, whose history is another"));
            return;
        }
        say!(self, "{n} streams from {from} as {slot}");
        let member = self.nodes[n].disk.member(&self.nodes[n].name).slot();
        let name = if slot.is_empty() { member } else { slot.clone() };
        let history = self.nodes[from].dir.history.clone();
        let line = self.nodes[from].dir.line(self.nodes[from].dir.tli);
        let dir = &mut self.nodes[n].dir;
        dir.history.extend(history);
        dir.partial = 0;
        let end = dir.end();
        // At a switch point it is on the next timeline already.
        dir.tli = line.iter().find(|(_, until)| end < *until).map_or(dir.tli, |(tli, _)| *tli);
        let sent = dir.wal.len();
        let names = self.nodes[from].server.shown.clone();
        self.nodes[from].server.rows.push(Row {
            conn,
            standby: n,
            priority: names.priority(&name),
            name,
            names,
            flush: end,
            streaming: false,
            live: true,
            owns_slot: !slot.is_empty(),
            sent,
            sending: false,
        });
        self.nodes[n].server.receiver = Receiver::Streaming { conn, from };
        self.nodes[n].server.message = self.now;
        self.reply(n, from, conn);
        self.pump(from, conn);
    }

    /// Sends what a connection has not been sent yet.
    fn pump(&mut self, from: usize, conn: u64) {
        let server = &self.nodes[from].server;
        let dir = &self.nodes[from].dir;
        let upto = if server.recovery { dir.replayed } else { dir.wal.len() };
        let Some(row) = self.nodes[from].server.row(conn) else { return };
        if !row.live || row.sending || row.sent >= upto {
            return;
        }
        let to = row.standby;
        if self.net.servers[from][to] {
            return;
        }
        if let Some(row) = self.nodes[from].server.row(conn) {
            row.sending = true;
            row.sent = upto;
        }
        let delay = self.delay(from, to) + self.flush_delay(to);
        let replaced = self.nodes[from].replaced;
        self.tell_server(to, delay, ForServer::Flush { conn, upto, replaced });
    }

    pub fn pump_all(&mut self, n: usize) {
        for at in 0..self.nodes[n].server.rows.len() {
            let conn = self.nodes[n].server.rows[at].conn;
            self.pump(n, conn);
        }
    }

    /// What was sent is on the standby's disk.
    fn receive(&mut self, n: usize, conn: u64, upto: usize, replaced: u32) {
        let Receiver::Streaming { conn: own, from } = self.nodes[n].server.receiver else { return };
        if own != conn {
            return;
        }
        if self.nodes[n].full || self.nodes[from].replaced != replaced {
            self.receiver_lost(n, conn);
            return;
        }
        let have = self.nodes[n].dir.wal.len();
        let sent: Vec<Rec> = match self.nodes[from].dir.wal.get(have..upto) {
            Some(sent) => sent.to_vec(),
            None => Vec::new(),
        };
        self.check_quiet(n);
        if sent.last().is_some_and(|last| last.tli != self.nodes[n].dir.tli) {
            // It fetches the history files of a timeline before it goes along.
            let history = self.nodes[from].dir.history.clone();
            self.nodes[n].dir.history.extend(history);
        }
        let node = &mut self.nodes[n];
        node.server.message = self.now;
        if let Some(last) = sent.last() {
            node.dir.tli = last.tli;
        }
        node.dir.wal.extend(sent);
        let delay = self.rng.between(50, 1_000);
        self.tell_server(n, delay, ForServer::Replay);
        self.reply(n, from, conn);
        self.pump_all(n);
    }

    fn reply(&mut self, n: usize, from: usize, conn: u64) {
        if self.net.servers[n][from] {
            return;
        }
        let flush = self.nodes[n].dir.end();
        let delay = self.delay(n, from);
        self.tell_server(from, delay, ForServer::Reply { conn, flush });
    }

    fn replied(&mut self, n: usize, conn: u64, flush: u64) {
        let end = self.nodes[n].dir.end();
        let Some(row) = self.nodes[n].server.row(conn) else { return };
        row.flush = row.flush.max(flush);
        row.sending = false;
        // Caught up, or nearly: it streams.
        row.streaming |= flush + (1 << 16) >= end;
        self.release_by(n, conn);
        self.pump(n, conn);
    }

    fn release_by(&mut self, n: usize, conn: u64) {
        if self.nodes[n].server.recovery {
            return;
        }
        let Some(upto) = self.nodes[n].server.releases(conn) else { return };
        if upto > self.nodes[n].server.released {
            self.nodes[n].server.released = upto;
            self.release(n, |commit| commit.end <= upto);
        }
    }

    fn release(&mut self, n: usize, ready: impl Fn(&Waiting) -> bool) {
        let waiting = &mut self.nodes[n].server.waiting;
        let done: Vec<Waiting> = waiting.extract_if(.., |commit| ready(commit)).collect();
        for commit in done {
            self.acknowledge(n, commit);
        }
    }

    fn reload_checkpointer(&mut self, n: usize) {
        let server = &mut self.nodes[n].server;
        server.defined = !server.shown.is_empty();
        if !server.defined && server.is_primary() {
            self.release(n, |_| true);
        }
    }

    fn replay(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if !node.server.recovery {
            return;
        }
        if node.server.conflict_until > self.now {
            let delay = node.server.conflict_until - self.now;
            self.tell_server(n, delay, ForServer::Replay);
            return;
        }
        node.dir.replayed = node.dir.wal.len();
        self.pump_all(n);
    }

    pub fn receiver_lost(&mut self, n: usize, conn: u64) {
        let own = match self.nodes[n].server.receiver {
            Receiver::Streaming { conn, .. } | Receiver::Connecting { conn } => conn,
            Receiver::None => return,
        };
        if own == conn {
            self.cut_receiver(n);
            self.tell_server(n, RETRY, ForServer::Retry);
        }
    }

    /// A commit reaches the server's disk, and is acknowledged at once or waits.
    fn commit(&mut self, n: usize, who: Who) {
        let server = &self.nodes[n].server;
        if !server.is_primary() || server.closing {
            self.server_gone_for(ForServer::Commit { who });
            return;
        }
        let Some(end) = self.append(n, who) else {
            self.server_gone_for(ForServer::Commit { who });
            return;
        };
        let Some(rec) = self.nodes[n].dir.wal.last().copied() else { return };
        let commit = Waiting { end, uid: rec.uid, who };
        let server = &mut self.nodes[n].server;
        if !server.defined || end <= server.released {
            self.acknowledge(n, commit);
        } else {
            server.waiting.push(commit);
        }
    }

    /// Writes and flushes a record; its end. `None`: the disk is full, and the server is down.
    pub fn append(&mut self, n: usize, who: Who) -> Option<u64> {
        if self.nodes[n].full {
            say!(self, "{n} PANIC: no space left on device");
            self.kill_postmaster(n);
            return None;
        }
        let size = match who {
            // One that nobody counts writes in bulk.
            Who::Client { attempt: 0, .. } => self.rng.between(2 << 20, 16 << 20),
            Who::Client { .. } => self.rng.spread(120, 8_000),
            Who::Barrier { .. } | Who::Nobody => 80,
        };
        let uid = self.ghost.next_uid();
        let node = &mut self.nodes[n];
        let (tli, epoch, end) = (node.dir.tli, node.server.epoch, node.dir.end() + size);
        node.dir.wal.push(Rec { uid, tli, epoch, end });
        node.dir.replayed = node.dir.wal.len();
        self.pump_all(n);
        Some(end)
    }

    /// The configuration file changes; each process reads it in its own time.
    pub fn reload_names(&mut self, n: usize, text: &str) {
        say!(self, "{n} names {text:?}");
        let shown = Rc::new(Names::parse(text));
        self.nodes[n].server.shown = shown;
        let most = self.net.reload;
        let conns: Vec<u64> = self.nodes[n].server.rows.iter().map(|row| row.conn).collect();
        for conn in conns {
            // Some at once, some as late as they can be.
            let late = self.rng.chance(400);
            let delay =
                if late { self.rng.between(most / 2, most) } else { self.rng.spread(200, most) };
            self.tell_server(n, delay, ForServer::Reload { conn });
        }
        // It may be busy with a checkpoint.
        let delay = self.rng.between(most / 2, most * 8);
        self.tell_server(n, delay, ForServer::ReloadCheckpointer);
    }

    /// Once a second: timeouts, keepalives, what a healed link has to catch up.
    pub fn sweep(&mut self) {
        for n in 0..self.nodes.len() {
            if self.nodes[n].frozen || self.nodes[n].server.frozen {
                continue;
            }
            if let Receiver::Streaming { conn, from } = self.nodes[n].server.receiver {
                self.keep(n, from, conn);
            }
            let rows = &self.nodes[n].server.rows;
            let conns: Vec<(u64, usize, bool)> =
                rows.iter().map(|row| (row.conn, row.standby, row.live)).collect();
            for (conn, standby, live) in conns {
                if !live || !self.net.servers[n][standby] {
                    self.pump(n, conn);
                }
            }
        }
    }

    fn keep(&mut self, n: usize, from: usize, conn: u64) {
        let cut = self.net.servers[from][n];
        let silent = self.nodes[from].frozen || self.nodes[from].server.frozen;
        let known = self.nodes[from].server.row(conn).is_some();
        if !cut && known && !silent {
            self.nodes[n].server.message = self.now;
        }
        if (!cut && !known && !silent) || self.now - self.nodes[n].server.message > TIMEOUT {
            self.receiver_lost(n, conn);
        } else {
            self.reply(n, from, conn);
        }
    }

    /// The data directory is gone, with everything the node knew.
    pub fn wipe(&mut self, n: usize) {
        say!(self, "{n} is wiped");
        self.kill_agent(n);
        self.end_server(n);
        self.nodes[n].dir = Dir { garbage: true, ..Dir::default() };
        (self.nodes[n].restored, self.nodes[n].stands) = (None, None);
        self.nodes[n].replaced += 1;
        self.nodes[n].disk = Default::default();
        self.nodes[n].minder = None;
        self.copied(n, false);
    }
}
