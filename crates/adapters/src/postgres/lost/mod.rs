//! What a tail of the log holds that was kept when its node followed another leader: transactions
//! that committed in it, and the rows they wrote, as far as the log has them.
//!
//! Names and types are asked of this node's own server, which has the new leader's catalogue by now.
//! Of a relation that it doesn't know any more, rows are shown as bytes.

mod changes;
mod jsonb;
pub(super) mod record;
mod tuple;

use super::config::PgConfig;
use super::error::PgError;
use super::kept::{Commit, KeptWal};
use super::session::{Session, within};
use changes::{Change, Changes, Raw, Room, Transaction};
use everhold_core::ids::{Epoch, Lsn, Tli};
use record::Relation;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tuple::Column;

/// Of all tails together, the newest first. What is beyond is counted, and once nothing more is listed
/// older tails are told as their summaries have them.
const ROOM: Room = Room { transactions: 1_000, rows: 1_000 };
/// The catalogue answers in milliseconds.
const CATALOGUE_MS_MAX: u64 = 10_000;

/// One kept tail.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tail {
    pub node: String,
    /// Of the term whose leader's history took its place.
    pub epoch: Epoch,
    pub tli: Tli,
    pub fork: Lsn,
    pub end: Lsn,
    pub bytes: u64,
    pub commits: u64,
    /// Committed in it, in this order; those of Everhold itself included.
    pub transactions: Vec<Lost>,
    /// Changes of transactions that did not commit in it.
    pub uncommitted: u64,
    /// Rows beyond the most that are listed.
    pub unlisted: u64,
    /// Transactions beyond the most that are listed.
    #[serde(default)]
    pub untold: u64,
    /// What of it can't be told, and why.
    pub note: Option<String>,
}

/// A transaction that only the tail has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lost {
    pub xid: u32,
    pub at: String,
    pub lsn: Lsn,
    /// By relation: inserts, updates, deletes.
    pub counts: BTreeMap<String, [u64; 3]>,
    pub rows: Vec<Row>,
}

/// One changed row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub act: String,
    pub relation: String,
    /// After the change; of a delete, before it. `None`: the log doesn't have it.
    pub row: Option<Value>,
    /// Why it is shown as bytes, or not at all.
    pub note: Option<String>,
}

/// All tails that are kept of a service on this node, the newest first. Reads up to gigabytes: for a
/// process of its own.
pub async fn tails(config: &PgConfig) -> Result<Vec<Tail>, PgError> {
    let mut tails = Vec::new();
    let mut catalogue = Catalogue { config, known: BTreeMap::new() };
    let mut room = ROOM;
    for (place, kept) in kept(&config.kept_dir)? {
        let read = match room.rows.min(room.transactions) {
            0 => Err("enough is listed of newer ones".to_string()),
            _ => read(&place, &kept, room),
        };
        tails.push(told(kept, read, &mut catalogue, &mut room).await);
    }
    Ok(tails)
}

/// The places and summaries of what is kept, the newest first.
fn kept(dir: &Path) -> Result<Vec<(PathBuf, KeptWal)>, PgError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(PgError::file("list", dir)(error)),
    };
    let summary = |place: PathBuf| {
        let text = std::fs::read_to_string(place.join("summary.json")).ok()?;
        Some((place, serde_json::from_str::<KeptWal>(&text).ok()?))
    };
    let mut found: Vec<_> = entries.flatten().filter_map(|entry| summary(entry.path())).collect();
    found.sort_by_key(|(_, kept)| std::cmp::Reverse(kept.epoch));
    Ok(found)
}

fn read(place: &Path, kept: &KeptWal, room: Room) -> Result<Changes, String> {
    let first = match (&kept.note, kept.segments.first()) {
        (Some(note), _) => return Err(note.clone()),
        (None, None) => return Ok(Changes::default()),
        (None, Some(first)) => first,
    };
    let begins = match kept.begins.as_slice() {
        [] => vec![(kept.tli, kept.fork)],
        begins => begins.to_vec(),
    };
    let size = std::fs::metadata(place.join(first)).map(|it| it.len());
    size.and_then(|size| changes::read(place, &begins, kept.end, size, room))
        .map_err(|error| format!("its segments can't be read: {error}"))
}

async fn told(
    kept: KeptWal,
    read: Result<Changes, String>,
    catalogue: &mut Catalogue<'_>,
    room: &mut Room,
) -> Tail {
    let mut tail = Tail {
        node: kept.node,
        epoch: kept.epoch,
        tli: kept.tli,
        fork: kept.fork,
        end: kept.end,
        bytes: kept.bytes,
        commits: kept.commits,
        transactions: Vec::new(),
        uncommitted: 0,
        unlisted: 0,
        untold: 0,
        note: None,
    };
    let changes = match read {
        Ok(changes) => changes,
        Err(note) => {
            // What the summary has is left.
            let listed = kept.listed.into_iter().take(room.transactions);
            tail.transactions = listed.map(without_rows).collect();
            room.transactions -= tail.transactions.len();
            tail.untold = kept.commits.saturating_sub(tail.transactions.len() as u64);
            tail.note = Some(note);
            return tail;
        }
    };
    tail.uncommitted = changes.uncommitted;
    (tail.unlisted, tail.untold) = (changes.unlisted, changes.untold);
    tail.note = changes.note;
    for transaction in changes.transactions {
        let Transaction { xid, at, lsn, counts, changes } = transaction;
        let mut lost = Lost { xid, at, lsn, counts: BTreeMap::new(), rows: Vec::new() };
        for (relation, counts) in counts {
            // Two files of one table, as when it was written anew.
            let all = lost.counts.entry(catalogue.table(relation).await.name.clone()).or_default();
            all.iter_mut().zip(counts).for_each(|(all, more)| *all += more);
        }
        room.transactions = room.transactions.saturating_sub(1);
        room.rows = room.rows.saturating_sub(changes.len());
        for change in changes {
            let table = catalogue.table(change.relation).await;
            lost.rows.push(row(change, table));
        }
        tail.transactions.push(lost);
    }
    tail
}

fn without_rows(commit: Commit) -> Lost {
    let Commit { xid, at, lsn } = commit;
    Lost { xid, at, lsn, counts: BTreeMap::new(), rows: Vec::new() }
}

fn row(change: Change, table: &Table) -> Row {
    let (row, note) = match change.raw {
        Raw::Whole(tuple) => match tuple.row(&table.columns) {
            Some(row) if !table.columns.is_empty() => (Some(Value::Object(row)), None),
            Some(_) | None => {
                let why = "its columns are not known any more: its bytes";
                (Some(Value::String(format!("\\x{}", tuple.hex()))), Some(why.to_string()))
            }
        },
        Raw::Middle(tuple) => {
            let why = "the log has only what changed of it: these bytes";
            (Some(Value::String(format!("\\x{}", tuple.hex()))), Some(why.to_string()))
        }
        Raw::Missing(why) => (None, Some(why.to_string())),
    };
    Row { act: change.act.word().to_string(), relation: table.name.clone(), row, note }
}

/// Names and columns by file, each asked once.
struct Catalogue<'a> {
    config: &'a PgConfig,
    known: BTreeMap<Relation, Table>,
}

struct Table {
    name: String,
    columns: Vec<Column>,
}

impl Catalogue<'_> {
    async fn table(&mut self, relation: Relation) -> &Table {
        if !self.known.contains_key(&relation) {
            let unknown = || Table {
                name: format!("file {} of database {}", relation.file, relation.database),
                columns: Vec::new(),
            };
            let table = self.ask(relation).await.ok().flatten().unwrap_or_else(unknown);
            self.known.insert(relation, table);
        }
        // It was put there just now.
        &self.known[&relation]
    }

    async fn ask(&self, relation: Relation) -> Result<Option<Table>, PgError> {
        let Relation { tablespace, database, file } = relation;
        let doing = "look into the catalogue";
        let name = match database {
            0 => Some("postgres".to_string()),
            oid => {
                let session = Session::open(self.config, "losses", "").await?;
                let sql = format!("SELECT datname FROM pg_database WHERE oid = {oid}");
                session.value(doing, &sql).await?
            }
        };
        let Some(name) = name else { return Ok(None) };
        let session = Session::open_in(self.config, &name, "losses", "").await?;
        let of = format!("pg_filenode_relation({tablespace}, {file})");
        let sql = format!(
            "SELECT {of}::regclass; SELECT attname, CASE WHEN t.typtype = 'd' THEN t.typbasetype \
             ELSE t.oid END, attlen, attalign, attisdropped FROM pg_attribute a \
             LEFT JOIN pg_type t ON t.oid = a.atttypid WHERE attrelid = {of} AND attnum > 0 \
             ORDER BY attnum"
        );
        let answers = within(doing, CATALOGUE_MS_MAX, session.ask(doing, &sql)).await?;
        let [named, columns] = answers.as_slice() else { return Ok(None) };
        let Some(relation) = named.first().and_then(|row| row.first()?.clone()) else {
            return Ok(None);
        };
        let columns: Option<Vec<Column>> = columns.iter().map(|row| column(row)).collect();
        Ok(Some(Table {
            name: format!("{relation} of {name}"),
            columns: columns.unwrap_or_default(),
        }))
    }
}

fn column(row: &[Option<String>]) -> Option<Column> {
    let [name, type_oid, length, align, dropped] = row else { return None };
    Some(Column {
        name: name.clone()?,
        // A dropped column has no type left, but its length and place.
        type_oid: type_oid.as_deref().and_then(|oid| oid.parse().ok()).unwrap_or(0),
        length: length.as_deref()?.parse().ok()?,
        align: *align.as_deref()?.as_bytes().first()?,
        dropped: dropped.as_deref() == Some("t"),
    })
}
