//! Access logs of gateways, read as streams: each request as it was recorded, in the order in which they
//! came, with so much memory and no more.

use everhold_core::http::what_if::{Fate, Order, Recorded, Rule};
use jiff::Timestamp;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Gateways write less than two kilobytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Requests are recorded when they are over: nearly all that came so long before are, by then.
const ORDERED_WITHIN_US: u64 = 120 * 1_000_000;
/// Requests that are held to be put in order: about 200 bytes each.
const HELD_MAX: usize = 1 << 18;
/// Of lines that can't be read the first are named.
const BAD_NAMED: usize = 10;

#[derive(Debug, Error)]
#[error("cannot read the log {}: {source}", path.display())]
pub struct LogError {
    path: PathBuf,
    source: io::Error,
}

/// What was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub gateways: usize,
    pub requests: u64,
    /// Those that no route took.
    pub routeless: u64,
    pub bad: u64,
    /// The first of them, with place and reason.
    pub bad_named: Vec<String>,
    /// When the first and the last one came, in microseconds since 1970.
    pub from_us: Option<u64>,
    pub to_us: Option<u64>,
}

/// Reads logs to their ends. Files whose names differ only in the number at the end, as `access.log` and
/// `access.log.1`, are one gateway's.
pub fn read(paths: &[PathBuf], mut each: impl FnMut(&Recorded)) -> Result<Reading, LogError> {
    let mut tapes = tapes(paths)?;
    let mut reading = Reading { gateways: tapes.len(), ..Reading::default() };
    let mut order = Order::new(HELD_MAX);
    let mut give = |reading: &mut Reading, it: &Recorded| {
        reading.requests += 1;
        reading.from_us = Some(reading.from_us.map_or(it.at_us, |from| from.min(it.at_us)));
        reading.to_us = reading.to_us.max(Some(it.at_us));
        each(it);
    };
    for tape in &mut tapes {
        tape.go_on(&mut reading)?;
    }
    // Of all gateways what ended first.
    while let Some(tape) = tapes.iter_mut().filter(|it| it.head.is_some()).min_by_key(|it| it.ended)
    {
        if let Some(it) = tape.head.take() {
            order.put(it);
        }
        let until_us = tape.ended.saturating_sub(ORDERED_WITHIN_US);
        tape.go_on(&mut reading)?;
        while let Some(it) = order.next(until_us) {
            give(&mut reading, &it);
        }
    }
    while let Some(it) = order.next(u64::MAX) {
        give(&mut reading, &it);
    }
    Ok(reading)
}

/// The log of one gateway, oldest file first.
struct Tape {
    gateway: usize,
    files: VecDeque<(PathBuf, BufReader<File>)>,
    line: u64,
    /// The next request, and when it ended.
    head: Option<Recorded>,
    ended: u64,
}

fn tapes(paths: &[PathBuf]) -> Result<Vec<Tape>, LogError> {
    let mut by_name: BTreeMap<PathBuf, BTreeMap<u64, &PathBuf>> = BTreeMap::new();
    for path in paths {
        let (name, number) = numbered(path);
        by_name.entry(name).or_default().insert(number, path);
    }
    let open = |path: &PathBuf| {
        let file = File::open(path).map_err(|source| LogError { path: path.clone(), source })?;
        Ok((path.clone(), BufReader::new(file)))
    };
    let tape = |(gateway, files): (usize, BTreeMap<u64, &PathBuf>)| {
        let files = files.into_values().rev().map(open).collect::<Result<_, LogError>>()?;
        Ok(Tape { gateway, files, line: 0, head: None, ended: 0 })
    };
    by_name.into_values().enumerate().map(tape).collect()
}

/// `access.log.1` is the first before `access.log`.
fn numbered(path: &Path) -> (PathBuf, u64) {
    let number = path.extension().and_then(|it| it.to_str()?.parse().ok());
    match number {
        Some(number) => (path.with_extension(""), number),
        None => (path.to_path_buf(), 0),
    }
}

impl Tape {
    /// Reads up to the next request.
    fn go_on(&mut self, reading: &mut Reading) -> Result<(), LogError> {
        let mut line = Vec::new();
        while let Some((path, file)) = self.files.front_mut() {
            let failed = |source| LogError { path: path.clone(), source };
            if !next_line(file, &mut line).map_err(failed)? {
                self.files.pop_front();
                self.line = 0;
                continue;
            }
            self.line += 1;
            match recorded(&line, self.gateway) {
                _ if line.is_empty() => {}
                Ok(Some(it)) => {
                    let took_us = match it.fate {
                        Fate::LetIn { took_us, .. } => took_us,
                        Fate::Kept | Fate::Refused(_) => 0,
                    };
                    let ended = it.at_us.saturating_add(it.waited_us).saturating_add(took_us);
                    (self.head, self.ended) = (Some(it), ended);
                    return Ok(());
                }
                Ok(None) => reading.routeless += 1,
                Err(why) => {
                    reading.bad += 1;
                    if reading.bad_named.len() < BAD_NAMED {
                        reading.bad_named.push(format!("{}:{}: {why}", path.display(), self.line));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The next line without its end, of one that is too long no more than shows that; `false`: there is
/// none.
fn next_line(file: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    if file.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.last() != Some(&b'\n') {
        skip_line(file)?;
        return Ok(true);
    }
    line.pop();
    Ok(true)
}

fn skip_line(file: &mut impl BufRead) -> io::Result<()> {
    loop {
        let held = file.fill_buf()?;
        let end = held.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(held.len(), |at| at + 1);
        file.consume(length);
        if end.is_some() || length == 0 {
            return Ok(());
        }
    }
}

/// What of a line is needed.
#[derive(Deserialize)]
struct Line<'l> {
    #[serde(rename = "@timestamp", borrow)]
    at: Cow<'l, str>,
    #[serde(rename = "client.address")]
    client: IpAddr,
    #[serde(rename = "http.route", borrow)]
    route: Cow<'l, str>,
    tries: u32,
    #[serde(rename = "http.response.status_code")]
    status: u16,
    duration_us: u64,
    #[serde(default)]
    waited_us: u64,
    #[serde(borrow)]
    outcome: Cow<'l, str>,
    #[serde(default, borrow)]
    cache: Cow<'l, str>,
}

/// `None`: no route took it.
fn recorded(line: &[u8], gateway: usize) -> Result<Option<Recorded>, String> {
    if line.len() as u64 >= LINE_BYTES_MAX {
        return Err(format!("longer than {LINE_BYTES_MAX} bytes"));
    }
    let line: Line<'_> =
        serde_json::from_slice(line).map_err(|error| format!("no record: {error}"))?;
    let at = line.at.parse::<Timestamp>().map_err(|_| "no time in @timestamp".to_string())?;
    let at_us = u64::try_from(at.as_microsecond()).map_err(|_| "a time before 1970".to_string())?;
    if line.route.is_empty() {
        return Ok(None);
    }
    let fate = fate(&line);
    let route = line.route.into_owned();
    let client = line.client.to_canonical();
    Ok(Some(Recorded { at_us, gateway, client, route, waited_us: line.waited_us, fate }))
}

/// By the words of gateways, which are not tried where they refuse.
fn fate(line: &Line<'_>) -> Fate {
    let let_in = Fate::LetIn {
        took_us: line.duration_us.saturating_sub(line.waited_us),
        tries: line.tries,
        status: line.status,
    };
    if line.tries > 0 {
        return let_in;
    }
    match &*line.outcome {
        "over the route's rate limit" => Fate::Refused(Rule::RateLimit),
        "turned away: as many wait as may" => Fate::Refused(Rule::QueueFull),
        "turned away: its turn would come too late" => Fate::Refused(Rule::TooLate),
        "turned away: the service's breaker is open" => Fate::Refused(Rule::Breaker),
        "client gone" => Fate::Refused(Rule::Other),
        outcome if outcome.starts_with("turned away: ") => Fate::Refused(Rule::Other),
        _ if matches!(&*line.cache, "hit" | "stale" | "stale on error" | "collapsed") => Fate::Kept,
        _ => let_in,
    }
}

#[cfg(test)]
mod tests;
