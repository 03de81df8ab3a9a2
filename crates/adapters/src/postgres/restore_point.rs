//! Points that pg_create_restore_point() named, found in a log that nobody replays: bytes in order,
//! as PostgreSQL 15 lays them out (`xlogrecord.h`, `xlog_internal.h`).
//!
//! Such a record always has the same length, and its checksum tells it from everything else. So it is
//! found from any place on, also behind a record that was never finished.

use super::lost::record::{LONG_HEADER, RECORD_HEADER, SHORT_HEADER, XLOG, checksum, u32_at};
use everhold_core::ids::Lsn;
use everhold_core::page::PAGE;

/// In `xl_info`.
const RESTORE_POINT: u8 = 0x70;
/// A short head of the record's own data: what it is, and its length.
const DATA_HEAD: [u8; 2] = [255, (TIME_BYTES + NAME_BYTES) as u8];
const TIME_BYTES: usize = 8;
/// With the zero at its end.
const NAME_BYTES: usize = 64;
const NAME_AT: usize = RECORD_HEADER + DATA_HEAD.len() + TIME_BYTES;
const RECORD_BYTES: usize = NAME_AT + NAME_BYTES;
/// 2000-01-01, from which PostgreSQL counts, since 1970.
const EPOCH_S: i64 = 946_684_800;

/// A point of the wanted name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestorePoint {
    /// Where its record begins. A recovery to this place ends just behind the record.
    pub at: Lsn,
    pub end: Lsn,
    /// By the clock of the primary, since 1970.
    pub at_s: i64,
}

/// Looks through a log for points of one name.
pub struct RestorePoints {
    name: Vec<u8>,
    segment_bytes: u64,
    /// From `begin` on, what may be the beginning of a record.
    bytes: Vec<u8>,
    begin: u64,
    found: Vec<RestorePoint>,
}

impl RestorePoints {
    /// From a place where no record goes on that began before.
    pub fn from(start: Lsn, name: &str, segment_bytes: u64) -> RestorePoints {
        let mut name = name.as_bytes().to_vec();
        name.push(0);
        let (bytes, found) = (Vec::new(), Vec::new());
        RestorePoints { name, segment_bytes, bytes, begin: start.0, found }
    }

    /// The bytes that follow.
    pub fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let end = self.begin + self.bytes.len() as u64;
        let mut at = self.begin.next_multiple_of(8);
        while at + 4 <= end {
            // The beginning of a record is never on two pages.
            if u32_at(&self.bytes, (at - self.begin) as usize) == Some(RECORD_BYTES as u32) {
                let Some((record, end)) = self.record(at) else { break };
                self.found.extend(self.point(&record, at, end));
            }
            at += 8;
        }
        self.bytes.drain(..(at.min(end) - self.begin) as usize);
        self.begin = at.min(end);
    }

    /// In the order of the log.
    pub fn found(self) -> Vec<RestorePoint> {
        self.found
    }

    /// The bytes of a record that begins there, without the heads of pages, and where it ends.
    /// `None`: they are not all here yet.
    fn record(&self, at: u64) -> Option<([u8; RECORD_BYTES], u64)> {
        let mut record = [0; RECORD_BYTES];
        let (mut place, mut has) = (at, 0);
        while has < RECORD_BYTES {
            if place.is_multiple_of(PAGE as u64) {
                let long = place.is_multiple_of(self.segment_bytes.max(1));
                place += if long { LONG_HEADER } else { SHORT_HEADER };
            }
            let room = (PAGE - place as usize % PAGE).min(RECORD_BYTES - has);
            let from = (place - self.begin) as usize;
            record[has..has + room].copy_from_slice(self.bytes.get(from..from + room)?);
            (place, has) = (place + room as u64, has + room);
        }
        Some((record, place.next_multiple_of(8)))
    }

    fn point(&self, record: &[u8; RECORD_BYTES], at: u64, end: u64) -> Option<RestorePoint> {
        let (info, manager) = (record[16], record[17]);
        let is_one = (manager, info & 0xF0) == (XLOG, RESTORE_POINT)
            && record[RECORD_HEADER..].starts_with(&DATA_HEAD)
            && record[NAME_AT..].starts_with(&self.name)
            && checksum(record) == u32_at(record, 20);
        let time = record[NAME_AT - TIME_BYTES..].first_chunk::<TIME_BYTES>()?;
        let at_s = i64::from_le_bytes(*time).div_euclid(1_000_000) + EPOCH_S;
        is_one.then_some(RestorePoint { at: Lsn(at), end: Lsn(end), at_s })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::lost::record::crc;

    const SEGMENT: u64 = 16 << 20;

    /// A record as PostgreSQL writes it.
    fn record(name: &str, manager: u8, time_us: i64) -> Vec<u8> {
        let mut record = vec![0; RECORD_BYTES];
        record[..4].copy_from_slice(&(RECORD_BYTES as u32).to_le_bytes());
        (record[16], record[17]) = (RESTORE_POINT, manager);
        record[24..26].copy_from_slice(&DATA_HEAD);
        record[26..34].copy_from_slice(&time_us.to_le_bytes());
        record[NAME_AT..].fill(b'z');
        record[NAME_AT..NAME_AT + name.len()].copy_from_slice(name.as_bytes());
        record[NAME_AT + name.len()] = 0;
        let sum = crc(&[&record[24..], &record[..20]]);
        record[20..24].copy_from_slice(&sum.to_le_bytes());
        record
    }

    /// A log from `start` on with that record at a place, over the heads of pages.
    fn log(start: u64, at: u64, record: &[u8]) -> Vec<u8> {
        let mut log = vec![b'.'; 3 * PAGE];
        let mut place = at;
        for byte in record {
            if place.is_multiple_of(PAGE as u64) {
                place += if place.is_multiple_of(SEGMENT) { LONG_HEADER } else { SHORT_HEADER };
            }
            log[(place - start) as usize] = *byte;
            place += 1;
        }
        log
    }

    fn found(start: u64, log: &[u8], name: &str, chunk: usize) -> Vec<(u64, u64, i64)> {
        let mut points = RestorePoints::from(Lsn(start), name, SEGMENT);
        log.chunks(chunk).for_each(|bytes| points.take(bytes));
        points.found().iter().map(|it| (it.at.0, it.end.0, it.at_s)).collect()
    }

    #[test]
    fn a_point_is_found_wherever_it_lies() {
        let page = PAGE as u64;
        // 2000-01-02 and a half second.
        let point = record("before", XLOG, 86_400_500_000);
        #[rustfmt::skip]
        let cases = [
            // start            at                      end
            (page * 5,          page * 5 + 24,          page * 5 + 24 + 104),
            (page * 5 + 1_000,  page * 5 + 1_000,       page * 5 + 1_104),
            (page * 5 + 1_000,  page * 6 - 104,         page * 6),
            // Over the head of a page, and of a segment.
            (page * 5,          page * 6 - 8,           page * 6 + 24 + 96),
            (page * 5,          page * 6 - 96,          page * 6 + 24 + 8),
            (SEGMENT - page,    SEGMENT - 48,           SEGMENT + 40 + 56),
        ];
        for (start, at, end) in cases {
            let log = log(start, at, &point);
            for chunk in [1, 7, 100, 5_000, log.len()] {
                let told = found(start, &log, "before", chunk);
                assert_eq!(told, [(at, end, EPOCH_S + 86_400)], "{at} by {chunk}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_one_is_none() {
        let place = PAGE as u64 * 5;
        let none = |record: &[u8], name: &str| {
            let log = log(place, place + 64, record);
            assert_eq!(found(place, &log, name, 999), [], "{name}");
        };
        let point = record("before", XLOG, 0);
        none(&point, "befor");
        none(&point, "before2");
        none(&point, &"n".repeat(64));
        none(&record("before", 10, 0), "before");
        // A bit of it is another, or it is not whole.
        for bit in [16 * 8, NAME_AT * 8 + 70, RECORD_BYTES * 8 - 1] {
            let mut torn = point.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            none(&torn, "before");
        }
        none(&point[..90], "before");
        // The longest there may be.
        let long = "n".repeat(63);
        let log = log(place, place + 64, &record(&long, XLOG, 0));
        assert_eq!(found(place, &log, &long, 999).len(), 1);
    }
}
