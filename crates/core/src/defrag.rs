//! Which server of the store is to give its free space back next, as a pure decision.
//!
//! Deleted and compacted records leave free pages in etcd's file; only defragmentation gives them
//! back, and a server applies nothing while it does so. So: one at a time, the leader last, only for
//! a gain worth it, and never while a loss could cost the quorum. A file at its quota is different:
//! nothing can be written until it has room, so nothing else is waited for.

/// Free space worth a defragmentation: below this the file is small anyway.
pub const FREE_BYTES_MIN: u64 = 64 << 20;
/// Between the beginnings of two rounds. What fills the store filled it by mistake, and once is enough.
pub const INTERVAL_MS: u64 = 3_600_000;

/// One server of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub id: u64,
    /// `None`: it does not answer.
    pub size: Option<Size>,
    pub leads: bool,
    /// It copies and doesn't vote yet.
    pub learner: bool,
    /// Its file has reached the quota, and nobody has said that this is over.
    pub full: bool,
    /// It had its turn in this round.
    pub done: bool,
}

/// The server's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub bytes: u64,
    /// Of that, not free.
    pub used: u64,
}

impl Size {
    fn free(self) -> u64 {
        self.bytes.saturating_sub(self.used)
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Defragment {
        id: u64,
    },
    /// Every file has room again: writes may go on.
    Disarm,
    /// What is in use fills the files: a person has to look.
    Full,
}

/// The next step; `None`: nothing is to be done now.
pub fn next(servers: &[Server], quota: u64) -> Option<Step> {
    let full = servers.iter().any(|server| server.full);
    let whole = servers.iter().all(|server| server.size.is_some() && !server.learner);
    if !full && !whole {
        return None;
    }
    let worth = |server: &&Server| {
        !server.done
            && server.size.is_some_and(|size| match full {
                // What was just compacted counts as free only after the next write, and there is none.
                true => true,
                false => size.free() >= FREE_BYTES_MIN && size.free() >= size.used,
            })
    };
    let most = |server: &&Server| (!server.leads, server.size.map_or(0, Size::free), server.id);
    if let Some(server) = servers.iter().filter(worth).max_by_key(most) {
        return Some(Step::Defragment { id: server.id });
    }
    let crowded = |server: &Server| server.size.is_none_or(|it| it.used >= quota / 10 * 9);
    let crowded = servers.iter().any(|server| server.full && crowded(server));
    full.then_some(if crowded { Step::Full } else { Step::Disarm })
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA_MB: u64 = 1_000;

    /// Servers as words: name, then used of all MB. `*` leads, `?` learns, `!` is full, `-` had its
    /// turn; without sizes: it does not answer.
    fn servers(text: &str) -> Vec<Server> {
        let server = |(id, word): (u64, &str)| {
            let size = word.trim_end_matches(['*', '?', '!', '-']).split_once(':');
            let size = size.and_then(|(_, size)| size.split_once('/')).map(|(used, bytes)| Size {
                bytes: bytes.parse::<u64>().expect("a number") << 20,
                used: used.parse::<u64>().expect("a number") << 20,
            });
            let has = |sign| word.contains(sign);
            Server { id, size, leads: has('*'), learner: has('?'), full: has('!'), done: has('-') }
        };
        (1..).zip(text.split_whitespace()).map(server).collect()
    }

    #[test]
    fn one_at_a_time_and_only_when_it_is_worth_it() {
        let defragment = |id| Some(Step::Defragment { id });
        for (text, expected) in [
            ("a:3/9* b:3/9 c:3/9", None),
            ("a:3/99* b:60/99 c:9/70", defragment(1)),
            ("a:3/99* b:3/99 c:3/199", defragment(3)),
            ("a:3/99* b:3/99 c:3/199-", defragment(2)),
            ("a:3/99* b:3/99- c:3/99-", defragment(1)),
            ("a:3/99*- b:3/99- c:3/99-", None),
            ("a:3/99*", defragment(1)),
            // Much is free, but more is in use.
            ("a:300/400* b:300/400 c:300/400", None),
            // A loss would cost the quorum.
            ("a:3/99* b:3/99 c", None),
            ("a:3/99* b:3/99 c:3/99?", None),
            // Nothing can be written: nothing else is waited for.
            ("a:3/990* b:3/990! c", defragment(2)),
            ("a:3/990*- b:3/4!- c", Some(Step::Disarm)),
            ("a:4/4*! b:4/4 c:4/4", defragment(3)),
            ("a:4/4*-! b:4/4- c:4/4-", Some(Step::Disarm)),
            ("a:4/4*- b!", Some(Step::Full)),
            ("a:950/990*-! b:950/990-! c:950/990-!", Some(Step::Full)),
        ] {
            let found = next(&servers(text), QUOTA_MB << 20);
            assert_eq!(found, expected, "{text}");
        }
    }
}
