//! The log of a database: pieces of what PostgreSQL wrote ahead, and which line of history each
//! leader was on; and marks, which say how far that was at which time.
//!
//! ```text
//! SERVICE/log/SYSID/TLI.EPOCH/START-END.EPOCH   bytes of a branch, and the epoch of who wrote them
//! SERVICE/log/SYSID/lines/EPOCH                 that leader's line, put before its first piece
//! SERVICE/log/SYSID/marks/TIME.EPOCH            how far that leader was at that time
//! SERVICE/log/SYSID/dropped/LSN                 before it only single backups' log is kept
//! SERVICE/log/SYSID/contested/PIECE             two have written that piece: it counts nowhere
//! ```

mod coverage;
mod mark;

pub use mark::{Mark, MarkName, is_on};

pub use coverage::{PIECE_BYTES_MAX, Piece, at_least, cover, coverage, extents, missing};

use crate::backup::{Watch, announced};
use crate::{Put, Repository, RepositoryError, Sealed};
pub(crate) use coverage::is_unbroken;
use coverage::{doubled, gathered, gatherings, plan, unneeded};
use everhold_core::backup::keep;
use everhold_core::ids::{Epoch, Lsn, Tli};
use everhold_core::term::{Branch, line_to};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Pieces read at once: 64 MB in memory at most.
const READ_AHEAD: usize = 4;
/// How often pieces that went while they were listed or read are looked for anew, gathered in larger
/// ones.
pub(crate) const ANEW_MAX: u32 = 3;
/// Pieces that are dropped between two looks whether a backup is under way.
const DROPPED_AT_ONCE: usize = 64;
/// Rounds of gathering in one go; the next one comes soon.
const GATHERINGS_MAX: usize = 32;

/// Of the marks of pieces that two have written: each place's own.
const CONTESTED: &str = "contested/";

/// The log of one database in a repository.
pub struct Log<'r> {
    repository: &'r Repository,
    service: String,
    prefix: String,
}

/// What was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    pub pieces: usize,
    /// Backups under way: a standby's may begin with log that no other needs any more.
    pub waiting_for: Vec<String>,
}

/// Segment files as they were written for PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    /// The timeline of the last byte.
    pub tli: Tli,
    pub files: Vec<PathBuf>,
}

impl<'r> Log<'r> {
    /// Of the service's database with this system identifier.
    pub fn new(repository: &'r Repository, service: &str, sysid: u64) -> Log<'r> {
        let prefix = Log::prefix(service, sysid);
        Log { repository, service: service.to_string(), prefix }
    }

    /// How the names of all its objects begin.
    pub fn prefix(service: &str, sysid: u64) -> String {
        format!("{service}/log/{sysid}/")
    }

    fn name(&self, piece: &Piece) -> String {
        format!("{}{}", self.prefix, piece.name())
    }

    fn line_name(&self, epoch: Epoch) -> String {
        format!("{}lines/{epoch:016X}", self.prefix)
    }

    /// Puts the line of the leader of `epoch`, before its first piece.
    pub fn put_line(&self, epoch: Epoch, line: &[Branch]) -> Result<Put, RepositoryError> {
        // Numbers only.
        let text = serde_json::to_vec(line).expect("plain data");
        self.repository.put(&self.line_name(epoch), &text)
    }

    pub fn put_piece(&self, piece: &Piece, bytes: &[u8]) -> Result<Put, RepositoryError> {
        self.repository.put_object(&self.seal_piece(piece, bytes)?)
    }

    /// A piece as [`Repository::put_object`] puts it, into each of several places by itself.
    pub fn seal_piece(&self, piece: &Piece, bytes: &[u8]) -> Result<Sealed, RepositoryError> {
        let name = self.name(piece);
        if piece.bytes() != bytes.len() as u64 || bytes.is_empty() {
            let said = format!("{} bytes for a piece of {}", bytes.len(), piece.bytes());
            return Err(RepositoryError::Malformed { what: name, said });
        }
        self.repository.seal(&name, bytes)
    }

    /// The pieces that at least `copies` places have, in order of branch and place.
    ///
    /// While a place is listed, pieces may go that were gathered in one it had passed by then: where a
    /// hole is seen it is listed anew.
    pub fn pieces(&self, copies: usize) -> Result<Vec<Piece>, RepositoryError> {
        let mut pieces = self.listed(copies)?;
        for _ in 0..ANEW_MAX {
            if is_unbroken(&pieces) {
                break;
            }
            pieces = self.listed(copies)?;
        }
        Ok(pieces)
    }

    /// Without those that two have written: which of the two is right nobody can tell.
    fn listed(&self, copies: usize) -> Result<Vec<Piece>, RepositoryError> {
        let listed = self.repository.list(&self.prefix)?;
        let enough = listed.iter().filter(|(_, has)| **has >= copies);
        let named = |name: &String| Piece::parse(name.strip_prefix(&self.prefix)?);
        let pieces = enough.filter_map(|(name, _)| named(name));
        Ok(pieces.filter(|piece| !listed.contains_key(&self.contested_name(piece))).collect())
    }

    fn contested_name(&self, piece: &Piece) -> String {
        format!("{}{CONTESTED}{}", self.prefix, piece.name())
    }

    /// Says of a piece that two have written it.
    pub fn contest(&self, piece: &Piece) -> Result<(), RepositoryError> {
        self.repository.put(&self.contested_name(piece), b"").map(drop)
    }

    /// Forgets of those that two have written whose content was taken away since; the others.
    pub fn settle(&self) -> Result<BTreeSet<Piece>, RepositoryError> {
        let all = self.contested()?;
        if all.is_empty() {
            return Ok(all);
        }
        let listed = self.repository.list(&self.prefix)?;
        let is_there = |piece: &Piece| listed.contains_key(&self.name(piece));
        let (left, gone): (BTreeSet<Piece>, BTreeSet<Piece>) = all.into_iter().partition(is_there);
        for piece in &gone {
            self.repository.delete(&self.contested_name(piece))?;
        }
        Ok(left)
    }

    pub fn contested(&self) -> Result<BTreeSet<Piece>, RepositoryError> {
        let prefix = format!("{}{CONTESTED}", self.prefix);
        let listed = self.repository.list(&prefix)?.into_keys();
        Ok(listed.filter_map(|name| Piece::parse(name.strip_prefix(&prefix)?)).collect())
    }

    fn epochs(&self) -> Result<BTreeSet<Epoch>, RepositoryError> {
        let prefix = format!("{}lines/", self.prefix);
        let listed = self.repository.list(&prefix)?.into_keys();
        let epoch = |name: String| Epoch::from_str_radix(name.strip_prefix(&prefix)?, 16).ok();
        Ok(listed.filter_map(epoch).collect())
    }

    /// The line of the last leader that shipped anything.
    pub fn newest_line(&self) -> Result<Option<(Epoch, Vec<Branch>)>, RepositoryError> {
        let Some(epoch) = self.epochs()?.pop_last() else { return Ok(None) };
        Ok(Some((epoch, self.line(epoch)?)))
    }

    /// The line of some leader, the newest that can say it, up to the end of that timeline.
    pub fn line_to(&self, tli: Tli) -> Result<Option<Vec<Branch>>, RepositoryError> {
        for epoch in self.epochs()?.into_iter().rev() {
            let line = line_to(&self.line(epoch)?, tli);
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    fn line(&self, epoch: Epoch) -> Result<Vec<Branch>, RepositoryError> {
        let name = self.line_name(epoch);
        serde_json::from_slice(&self.repository.get(&name)?)
            .map_err(|error| RepositoryError::Malformed { what: name, said: error.to_string() })
    }

    /// The names of all objects that are needed from a place on.
    pub fn from(&self, start: Lsn) -> Result<Vec<String>, RepositoryError> {
        let lines = self.repository.list(&format!("{}lines/", self.prefix))?.into_keys();
        let pieces = self.pieces(1)?;
        let pieces = pieces.iter().filter(|piece| piece.end > start);
        Ok(lines.chain(pieces.map(|piece| self.name(piece))).collect())
    }

    /// The highest epoch and the highest timeline of which there is a piece or a line.
    pub fn highest(&self) -> Result<(Epoch, Tli), RepositoryError> {
        let (mut epoch, mut tli) = (0, 0);
        for piece in self.pieces(1)? {
            epoch = epoch.max(piece.epoch).max(piece.branch.epoch);
            tli = tli.max(piece.branch.tli);
        }
        if let Some((newest, line)) = self.newest_line()? {
            epoch = epoch.max(newest);
            tli = line.iter().map(|branch| branch.tli).fold(tli, Tli::max);
        }
        Ok((epoch, tli))
    }

    /// Gives the bytes of `line` in `wanted` to `take`, in order.
    pub fn read(
        &self,
        line: &[Branch],
        wanted: Range<Lsn>,
        mut take: impl FnMut(Lsn, &[u8]) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        let mut at = wanted.start;
        for anew in 0.. {
            let pieces = self.pieces(1)?;
            let plan = plan(&pieces, line, at..wanted.end)
                .map_err(|gap| RepositoryError::NotArchived { from: gap.start, to: gap.end })?;
            let mut gone = None;
            for ahead in plan.chunks(READ_AHEAD) {
                for ((_, part), bytes) in ahead.iter().zip(self.fetch(ahead)) {
                    match bytes {
                        Ok(bytes) if gone.is_none() => {
                            take(part.start, &bytes)?;
                            at = part.end;
                        }
                        Ok(_) => {}
                        Err(error @ RepositoryError::Missing { .. }) if anew < ANEW_MAX => {
                            gone = Some(error);
                        }
                        Err(error) => return Err(error),
                    }
                }
                if gone.is_some() {
                    break;
                }
            }
            if gone.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// The wanted part of each.
    fn fetch(&self, of: &[(Piece, Range<Lsn>)]) -> Vec<Result<Vec<u8>, RepositoryError>> {
        let one = |piece: &Piece, part: &Range<Lsn>| {
            let name = self.name(piece);
            let mut bytes = self.repository.get(&name)?;
            if bytes.len() as u64 != piece.bytes() {
                let said = format!("{} bytes", bytes.len());
                return Err(RepositoryError::Malformed { what: name, said });
            }
            bytes.truncate((part.end.0 - piece.start.0) as usize);
            bytes.drain(..(part.start.0 - piece.start.0) as usize);
            Ok(bytes)
        };
        std::thread::scope(|scope| {
            let asked: Vec<_> =
                of.iter().map(|(piece, part)| scope.spawn(move || one(piece, part))).collect();
            let ended = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|_| {
                    let said = "its thread ended".to_string();
                    Err(RepositoryError::Unreachable { said })
                })
            };
            asked.into_iter().map(ended).collect()
        })
    }

    /// Writes `line` from the segment of `wanted.start` to `wanted.end` into `dir`, as the files that
    /// PostgreSQL reads: each under the newest timeline that has bytes in it, the last one filled
    /// with zeros, and the histories of all timelines. What is there under such a name is replaced.
    pub fn segments(
        &self,
        line: &[Branch],
        wanted: Range<Lsn>,
        segment_bytes: u64,
        dir: &Path,
    ) -> Result<Segments, RepositoryError> {
        // A branch that begins where the wanted part ends has none of it.
        let root = |branch: &Branch| branch.parent == 0;
        let reached = line.iter().take_while(|it| root(it) || it.fork < wanted.end).count();
        let line = &line[..reached];
        let Some(tip) = line.last().filter(|_| segment_bytes.is_power_of_two()) else {
            let what = "what is to be restored".to_string();
            let said = format!("{reached} branches, segments of {segment_bytes} bytes");
            return Err(RepositoryError::Malformed { what, said });
        };
        let begin = Lsn(wanted.start.0 - wanted.start.0 % segment_bytes);
        let mut into = Files { dir, line, segment_bytes, open: None, files: Vec::new() };
        into.histories()?;
        self.read(line, begin..wanted.end, |at, bytes| into.take(at, bytes))?;
        into.finish()?;
        Ok(Segments { tli: tip.tli, files: into.files })
    }

    /// Makes many small pieces into few large ones. The large one is there before the small ones go,
    /// and nothing goes while a place is away: so nothing is ever lost, only doubled for a while.
    /// Returns how many went.
    pub fn compact(&self) -> Result<usize, RepositoryError> {
        if !self.repository.absent().is_empty() {
            return Ok(0);
        }
        let all = self.repository.places().count();
        let pieces = self.pieces(all)?;
        let mut gone = doubled(&pieces);
        let pieces: Vec<Piece> = pieces.into_iter().filter(|it| !gone.contains(it)).collect();
        for group in gatherings(&pieces).into_iter().take(GATHERINGS_MAX) {
            let Some(whole) = gathered(&group) else { continue };
            let parts: Vec<_> = group.iter().map(|it| (*it, it.start..it.end)).collect();
            let mut bytes = Vec::with_capacity(whole.bytes() as usize);
            for ahead in parts.chunks(READ_AHEAD) {
                for part in self.fetch(ahead) {
                    bytes.extend_from_slice(&part?);
                }
            }
            let put = self.put_piece(&whole, &bytes)?;
            if put.copies == all {
                gone.extend(group);
            }
        }
        for piece in &gone {
            self.repository.delete(&self.name(piece))?;
        }
        Ok(gone.len())
    }

    /// What nothing kept needs: pieces, and the bytes in them.
    pub fn unneeded(
        &self,
        needed: &keep::Log,
        segment_bytes: u64,
    ) -> Result<(usize, u64), RepositoryError> {
        let unneeded = unneeded(&self.pieces(1)?, needed, segment_bytes);
        Ok((unneeded.len(), unneeded.iter().map(Piece::bytes).sum()))
    }

    /// Up to where log was ever dropped, but for what single backups need. Without this word a hole
    /// that retention left, and one that was lost, would look alike once the rules have changed.
    pub fn dropped_before(&self) -> Result<Lsn, RepositoryError> {
        let prefix = format!("{}dropped/", self.prefix);
        let listed = self.repository.list(&prefix)?.into_keys();
        let lsn = |name: String| u64::from_str_radix(name.strip_prefix(&prefix)?, 16).ok();
        Ok(Lsn(listed.filter_map(lsn).max().unwrap_or(0)))
    }

    /// To be said before anything is dropped. The highest word counts, and lower ones go.
    fn say_dropped(&self, before: Lsn) -> Result<(), RepositoryError> {
        let known = self.dropped_before()?;
        if known >= before {
            return Ok(());
        }
        let name = |lsn: Lsn| format!("{}dropped/{:016X}", self.prefix, lsn.0);
        self.repository.put(&name(before), b"")?;
        match known {
            Lsn(0) => Ok(()),
            known => self.repository.delete(&name(known)),
        }
    }

    /// Removes what nothing kept needs, and the lines of leaders of which no piece is left but the
    /// newest. Nothing more goes once a backup is under way. Refused while a place is away: what it has
    /// would come back with it.
    pub fn drop_before(
        &self,
        needed: &keep::Log,
        segment_bytes: u64,
        watch: &Watch<'_>,
    ) -> Result<Dropped, RepositoryError> {
        self.repository.all_there()?;
        let mut epochs = self.epochs()?;
        let pieces = self.pieces(1)?;
        let unneeded = unneeded(&pieces, needed, segment_bytes);
        let names: Vec<String> = unneeded.iter().map(|piece| self.name(piece)).collect();
        if let (Some(from), false) = (needed.from, names.is_empty()) {
            self.say_dropped(from)?;
        }
        let mut dropped = Dropped::default();
        for some in names.chunks(DROPPED_AT_ONCE) {
            dropped.waiting_for = announced(self.repository, &self.service)?;
            if !dropped.waiting_for.is_empty() {
                return Ok(dropped);
            }
            self.repository.delete_all(some, watch)?;
            dropped.pieces += some.len();
        }
        epochs.pop_last();
        let gone: BTreeSet<&Piece> = unneeded.iter().collect();
        let used: BTreeSet<Epoch> =
            pieces.iter().filter(|it| !gone.contains(it)).map(|it| it.epoch).collect();
        for epoch in epochs.difference(&used) {
            self.repository.delete(&self.line_name(*epoch))?;
        }
        Ok(dropped)
    }
}

/// Which object two have written, where this is the word of it: that one and the word of it stay in the
/// place where they are.
pub(crate) fn contested(name: &str) -> Option<String> {
    let words: Vec<&str> = name.splitn(5, '/').collect();
    let [service, "log", sysid, "contested", piece] = words[..] else { return None };
    Some(format!("{service}/log/{sysid}/{piece}"))
}

/// Segment files under way.
struct Files<'f> {
    dir: &'f Path,
    line: &'f [Branch],
    segment_bytes: u64,
    /// The one being written, where it begins, and how many bytes it has.
    open: Option<(File, Lsn, u64)>,
    files: Vec<PathBuf>,
}

impl Files<'_> {
    fn take(&mut self, at: Lsn, mut bytes: &[u8]) -> Result<(), RepositoryError> {
        let mut at = at.0;
        while !bytes.is_empty() {
            let (begin, offset) = (at - at % self.segment_bytes, at % self.segment_bytes);
            if self.open.as_ref().is_none_or(|(_, open, _)| open.0 != begin) {
                self.finish()?;
                self.begin(Lsn(begin))?;
            }
            let room = (self.segment_bytes - offset).min(bytes.len() as u64);
            let (part, rest) = bytes.split_at(room as usize);
            if let Some((file, _, has)) = &mut self.open {
                let path = self.files.last().map(PathBuf::as_path).unwrap_or(self.dir);
                file.write_all(part).map_err(RepositoryError::file("write", path))?;
                *has += room;
            }
            (at, bytes) = (at + room, rest);
        }
        Ok(())
    }

    /// The newest timeline that begins before the segment ends: its file has what came before too.
    fn begin(&mut self, at: Lsn) -> Result<(), RepositoryError> {
        let end = at.0 + self.segment_bytes;
        let newest = self.line.iter().rev().find(|it| it.fork.0 < end || it.parent == 0);
        let per_id = (1_u64 << 32) / self.segment_bytes;
        let number = at.0 / self.segment_bytes;
        let tli = newest.map_or(0, |branch| branch.tli);
        let name = format!("{tli:08X}{:08X}{:08X}", number / per_id, number % per_id);
        let path = self.dir.join(name);
        self.open = Some((create(&path)?, at, 0));
        self.files.push(path);
        Ok(())
    }

    /// Fills the last segment, and has it on disk.
    fn finish(&mut self) -> Result<(), RepositoryError> {
        let Some((file, ..)) = self.open.take() else { return Ok(()) };
        let path = self.files.last().map(PathBuf::as_path).unwrap_or(self.dir);
        let done = file.set_len(self.segment_bytes).and_then(|()| file.sync_all());
        done.map_err(RepositoryError::file("write", path))
    }

    /// For each timeline but the first: whence it came.
    fn histories(&mut self) -> Result<(), RepositoryError> {
        let mut text = String::new();
        for pair in self.line.windows(2) {
            let [parent, branch] = pair else { continue };
            let Branch { tli, epoch, fork, .. } = branch;
            text += &format!("{}\t{fork}\tepoch {epoch}\n", parent.tli);
            let path = self.dir.join(format!("{tli:08X}.history"));
            let mut file = create(&path)?;
            let done = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
            done.map_err(RepositoryError::file("write", &path))?;
        }
        Ok(())
    }
}

fn create(path: &Path) -> Result<File, RepositoryError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(RepositoryError::file("replace", path)(error));
        }
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.map_err(RepositoryError::file("make", path))
}

#[cfg(test)]
mod tests;
