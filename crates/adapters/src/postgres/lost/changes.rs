//! From records to the changes of rows that committed (`heapam_xlog.h`, `xact.h`).

use super::record::{
    Block, HEAP, HEAP2, Image, Record, Records, Relation, XACT, XLOG, u16_at, u32_at, u64_at,
};
use super::tuple::{Tuple, timestamp};
use everhold_core::ids::{Lsn, Tli};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Pages and rows remembered, so that a later change of one can be told whole.
const PAGES_MAX: usize = 4_096;
/// Of transactions that have not ended, so many rows are held at a time: one may yet be undone.
const HELD_MAX: usize = 20_000;
/// Transactions that have not ended, and relations of one, that are told apart.
const OPEN_MAX: usize = 10_000;
const RELATIONS_MAX: usize = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Insert = 0,
    Update = 1,
    Delete = 2,
}

impl Act {
    pub fn word(self) -> &'static str {
        match self {
            Act::Insert => "insert",
            Act::Update => "update",
            Act::Delete => "delete",
        }
    }
}

#[derive(Clone, Debug)]
pub enum Raw {
    Whole(Tuple),
    /// Both ends are those of the old row, which is not in the tail.
    Middle(Tuple),
    Missing(&'static str),
}

#[derive(Clone, Debug)]
pub struct Change {
    pub act: Act,
    pub relation: Relation,
    pub raw: Raw,
}

#[derive(Clone, Debug)]
pub struct Transaction {
    pub xid: u32,
    pub at: String,
    pub lsn: Lsn,
    pub counts: BTreeMap<Relation, [u64; 3]>,
    /// The first rows of it.
    pub changes: Vec<Change>,
}

/// How much of a tail is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub transactions: usize,
    pub rows: usize,
}

#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The first that committed.
    pub transactions: Vec<Transaction>,
    /// Rows and transactions beyond those.
    pub unlisted: u64,
    pub untold: u64,
    pub uncommitted: u64,
    pub note: Option<String>,
}

/// Reads the stretches of a tail, each a timeline and where its own records begin.
pub fn read(
    dir: &Path,
    begins: &[(Tli, Lsn)],
    end: Lsn,
    segment_bytes: u64,
    room: Room,
) -> io::Result<Changes> {
    let mut reader = Reader { room, ..Reader::default() };
    let mut reached = Lsn(0);
    for (at, (tli, begin)) in begins.iter().enumerate() {
        let until = begins.get(at + 1).map_or(end, |(_, begin)| *begin);
        let mut records = Records::from(dir, *tli, segment_bytes, *begin);
        while let Some(record) = records.next()? {
            if record.at >= until {
                break;
            }
            reached = record.end;
            reader.take(record);
        }
    }
    let mut changes = reader.changes;
    changes.uncommitted += reader.open.values().map(Open::rows).sum::<u64>();
    if reader.full {
        let why = "more transactions at a time, or relations of one, than are told apart";
        changes.note = Some(why.to_string());
    } else if reached < end {
        changes.note = Some(format!("read up to {reached}, where the log is torn"));
    }
    Ok(changes)
}

impl Default for Room {
    fn default() -> Room {
        Room { transactions: usize::MAX, rows: usize::MAX }
    }
}

/// What a transaction that has not ended yet has done.
#[derive(Default)]
struct Open {
    counts: BTreeMap<Relation, [u64; 3]>,
    changes: Vec<Change>,
}

impl Open {
    fn rows(&self) -> u64 {
        self.counts.values().flatten().sum()
    }
}

#[derive(Default)]
struct Reader {
    changes: Changes,
    room: Room,
    /// Of transactions that have not ended yet.
    open: BTreeMap<u32, Open>,
    held: usize,
    full: bool,
    pages: BTreeMap<(Relation, u32), Page>,
}

/// What the tail has of a page.
#[derive(Default)]
struct Page {
    image: Option<Vec<u8>>,
    newer: BTreeMap<u16, Tuple>,
}

impl Page {
    fn get(&self, number: u16) -> Option<Tuple> {
        let newer = self.newer.get(&number).cloned();
        newer.or_else(|| Tuple::from_page(self.image.as_deref()?, number))
    }
}

impl Reader {
    fn take(&mut self, record: Record) {
        match record.manager {
            XACT => self.end(&record),
            HEAP => self.heap(record),
            HEAP2 => {
                if record.info & 0x70 == 0x50 {
                    self.multi_insert(&record);
                } else {
                    self.remember(&record);
                }
            }
            XLOG => self.remember(&record),
            _ => {}
        }
    }

    fn end(&mut self, record: &Record) {
        let what = record.info & 0x70;
        let Some((time, mut ended)) = ended(record) else { return };
        match what {
            // A prepared transaction has its own number in the record.
            0x00 | 0x30 => {
                ended.sort_unstable();
                let mut transaction = Transaction {
                    xid: *ended.first().unwrap_or(&record.xid),
                    at: format!("{} UTC", timestamp(time)),
                    lsn: record.at,
                    counts: BTreeMap::new(),
                    changes: Vec::new(),
                };
                for part in ended.iter().filter_map(|xid| self.open.remove(xid)) {
                    self.held -= part.changes.len();
                    for (relation, counts) in part.counts {
                        let all = transaction.counts.entry(relation).or_default();
                        all.iter_mut().zip(counts).for_each(|(all, more)| *all += more);
                    }
                    transaction.changes.extend(part.changes);
                }
                self.committed(transaction);
            }
            0x20 | 0x40 => {
                for xid in ended {
                    let gone = self.open.remove(&xid).unwrap_or_default();
                    self.held -= gone.changes.len();
                    self.changes.uncommitted += gone.rows();
                }
            }
            _ => {}
        }
    }

    /// Lists it as far as there is room; all is counted.
    fn committed(&mut self, mut transaction: Transaction) {
        transaction.changes.truncate(self.room.rows);
        let listed = transaction.changes.len();
        let rows: u64 = transaction.counts.values().flatten().sum();
        if self.room.transactions == 0 {
            self.changes.untold += 1;
            self.changes.unlisted += rows;
            return;
        }
        self.room.transactions -= 1;
        self.room.rows -= listed;
        self.changes.unlisted += rows.saturating_sub(listed as u64);
        self.changes.transactions.push(transaction);
    }

    fn heap(&mut self, record: Record) {
        let (main, what) = (&record.main, record.info & 0x70);
        let number = |at| u16_at(main, at);
        // The old row is looked for before the record's images take its place.
        match what {
            0x00 => {
                self.remember(&record);
                let (Some(block), Some(number)) = (record.blocks.first(), number(0)) else {
                    return;
                };
                let raw = self.whole(block, number, Tuple::from_record(&block.data));
                self.push(record.xid, Act::Insert, block.relation, raw);
            }
            0x10 => {
                let (Some(block), Some(number)) = (record.blocks.first(), number(4)) else {
                    return;
                };
                let flags = main.get(7).copied().unwrap_or(0);
                // With `REPLICA IDENTITY` the log has the row, or its key alone.
                let logged = main.get(8..).filter(|_| flags & 0x06 != 0);
                let before = self.row(block, number).or_else(|| {
                    self.remember(&record);
                    self.row(block, number)
                });
                self.remember(&record);
                let raw = match before.or_else(|| logged.and_then(Tuple::from_record)) {
                    Some(tuple) => Raw::Whole(tuple),
                    None => Raw::Missing("the log names only its place"),
                };
                self.push(record.xid, Act::Delete, block.relation, raw);
            }
            0x20 | 0x40 => self.update(&record),
            _ => self.remember(&record),
        }
    }

    fn update(&mut self, record: &Record) {
        let main = &record.main;
        let (Some(old_number), Some(new_number)) = (u16_at(main, 4), u16_at(main, 12)) else {
            return;
        };
        let flags = main.get(7).copied().unwrap_or(0);
        let Some(block) = record.blocks.first() else { return };
        let old_block = record.blocks.get(1).unwrap_or(block);
        let old = self.row(old_block, old_number);
        self.remember(record);
        let old = old.or_else(|| self.row(old_block, old_number));
        let mut data = block.data.as_slice();
        let mut length = |is: bool| match (is, data.split_at_checked(2)) {
            (true, Some((bytes, rest))) => {
                data = rest;
                usize::from(u16_at(bytes, 0).unwrap_or(0))
            }
            _ => 0,
        };
        let (prefix, suffix) = match block.data.is_empty() {
            true => (0, 0),
            false => (length(flags & 0x20 != 0), length(flags & 0x40 != 0)),
        };
        let logged = Tuple::from_record(data);
        let raw = match (logged, prefix + suffix, old) {
            (Some(middle), 1.., Some(old)) => {
                match middle.clone().with_ends_of(&old, prefix, suffix) {
                    Some(whole) => self.whole(block, new_number, Some(whole)),
                    None => Raw::Middle(middle),
                }
            }
            (Some(middle), 1.., None) => Raw::Middle(middle),
            (logged, _, _) => self.whole(block, new_number, logged),
        };
        self.push(record.xid, Act::Update, block.relation, raw);
    }

    fn multi_insert(&mut self, record: &Record) {
        self.remember(record);
        let Some(block) = record.blocks.first() else { return };
        let main = &record.main;
        let count = u16_at(main, 2).unwrap_or(0);
        let fresh = record.info & 0x80 != 0;
        let mut at = 0;
        for nth in 0..count {
            // On a page that it makes anew the rows are numbered through.
            let number = match fresh {
                true => Some(nth + 1),
                false => u16_at(main, 4 + 2 * usize::from(nth)),
            };
            let Some(number) = number else { return };
            at = usize::next_multiple_of(at, 2);
            let length = u16_at(&block.data, at).map(usize::from);
            let tuple = length.and_then(|length| {
                // The rest of the header is as in a single one.
                let bytes = block.data.get(at + 2..at + 7 + length)?;
                at += 7 + length;
                Tuple::from_record(bytes)
            });
            let raw = self.whole(block, number, tuple);
            self.push(record.xid, Act::Insert, block.relation, raw);
        }
    }

    /// A row that the record has, or the page does; remembered for what follows.
    fn whole(&mut self, block: &Block, number: u16, logged: Option<Tuple>) -> Raw {
        match logged.or_else(|| self.row(block, number)) {
            Some(tuple) => {
                if let Some(page) = self.page(block) {
                    page.newer.insert(number, tuple.clone());
                }
                Raw::Whole(tuple)
            }
            None => Raw::Missing("its page is compressed in a way that is not read"),
        }
    }

    fn row(&self, block: &Block, number: u16) -> Option<Tuple> {
        self.pages.get(&(block.relation, block.number))?.get(number)
    }

    fn page(&mut self, block: &Block) -> Option<&mut Page> {
        let key = (block.relation, block.number);
        if self.pages.len() >= PAGES_MAX && !self.pages.contains_key(&key) {
            return None;
        }
        Some(self.pages.entry(key).or_default())
    }

    /// Pages that the record has whole.
    fn remember(&mut self, record: &Record) {
        for block in record.blocks.iter().filter(|block| block.fork == 0) {
            if let Some(Image::Page(image)) = &block.image
                && let Some(page) = self.page(block)
            {
                *page = Page { image: Some(image.clone()), newer: BTreeMap::new() };
            }
        }
    }

    fn push(&mut self, xid: u32, act: Act, relation: Relation, raw: Raw) {
        if self.open.len() >= OPEN_MAX && !self.open.contains_key(&xid) {
            self.full = true;
            return;
        }
        let holds = self.held < HELD_MAX && self.room.rows > 0 && self.room.transactions > 0;
        let open = self.open.entry(xid).or_default();
        if open.counts.len() >= RELATIONS_MAX && !open.counts.contains_key(&relation) {
            self.full = true;
            return;
        }
        open.counts.entry(relation).or_default()[act as usize] += 1;
        if holds && open.changes.len() < self.room.rows {
            self.held += 1;
            open.changes.push(Change { act, relation, raw });
        }
    }
}

/// When a transaction ended, and the numbers of it and its parts.
fn ended(record: &Record) -> Option<(i64, Vec<u32>)> {
    let main = &record.main;
    let time = u64_at(main, 0)? as i64;
    let mut xids = vec![record.xid];
    if record.info & 0x80 == 0 {
        return Some((time, xids));
    }
    let info = u32_at(main, 8)?;
    let mut at = 12;
    // Database and tablespace.
    at += if info & 0x01 != 0 { 8 } else { 0 };
    let mut list = |flag: u32, size: usize| -> Option<(usize, usize)> {
        if info & flag == 0 {
            return Some((at, 0));
        }
        let count = u32_at(main, at)? as usize;
        let begin = at + 4;
        at = begin.checked_add(count.checked_mul(size)?)?;
        (at <= main.len()).then_some((begin, count))
    };
    let (begin, count) = list(0x02, 4)?;
    for nth in 0..count {
        xids.push(u32_at(main, begin + 4 * nth)?);
    }
    // Relations and statistics that are dropped, invalidations.
    list(0x04, 12)?;
    list(0x100, 12)?;
    if matches!(record.info & 0x70, 0x00 | 0x30) {
        list(0x08, 16)?;
    }
    if info & 0x10 != 0 {
        xids.push(u32_at(main, at)?);
        xids.remove(0);
    }
    Some((time, xids))
}
