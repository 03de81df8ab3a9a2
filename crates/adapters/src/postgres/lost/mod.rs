//! What a tail of the log holds that was kept when its node followed another leader: transactions
//! that committed in it, and the rows they wrote, as far as the log has them.
//!
//! Names and types are asked of this node's own server, which has the new leader's catalogue by now.
//! Of a relation that it doesn't know any more, rows are shown as bytes.

mod changes;
mod jsonb;
mod record;
mod tuple;

use super::config::PgConfig;
use super::error::PgError;
use super::kept::{Commit, KeptWal};
use super::session::{Session, within};
use changes::{Change, Raw, Transaction};
use everhold_core::ids::{Epoch, Lsn, Tli};
use record::Relation;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tuple::Column;

/// Of all tails together, the newest first; all are counted.
const ROWS_MAX: usize = 1_000;
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

/// All tails that are kept of a service on this node, the newest first.
pub async fn tails(config: &PgConfig) -> Result<Vec<Tail>, PgError> {
    let dir = config.kept_dir.clone();
    let found = tokio::task::spawn_blocking(move || read(&dir)).await;
    let found = found.map_err(|error| PgError::Task { said: error.to_string() })??;
    let mut tails = Vec::new();
    let mut catalogue = Catalogue { config, known: BTreeMap::new() };
    let mut room = ROWS_MAX;
    for (kept, read) in found {
        tails.push(told(kept, read, &mut catalogue, &mut room).await);
    }
    Ok(tails)
}

type Read = Result<changes::Changes, String>;

fn read(dir: &Path) -> Result<Vec<(KeptWal, Read)>, PgError> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(PgError::file("list", dir)(error)),
    };
    for place in entries.flatten().map(|entry| entry.path()) {
        let Ok(text) = std::fs::read_to_string(place.join("summary.json")) else { continue };
        let Ok(kept) = serde_json::from_str::<KeptWal>(&text) else { continue };
        let read = match (&kept.note, kept.segments.first()) {
            (Some(note), _) => Err(note.clone()),
            (None, None) => Ok(changes::Changes::default()),
            (None, Some(first)) => {
                let size = place.join(first);
                let size = std::fs::metadata(&size).map_err(PgError::file("look at", &size))?.len();
                let begins = match kept.begins.as_slice() {
                    [] => vec![(kept.tli, kept.fork)],
                    begins => begins.to_vec(),
                };
                changes::read(&place, &begins, kept.end, size)
                    .map_err(|error| format!("its segments can't be read: {error}"))
            }
        };
        found.push((kept, read));
    }
    found.sort_by_key(|(kept, _)| std::cmp::Reverse(kept.epoch));
    Ok(found)
}

async fn told(kept: KeptWal, read: Read, catalogue: &mut Catalogue<'_>, room: &mut usize) -> Tail {
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
        note: None,
    };
    let changes = match read {
        Ok(changes) => changes,
        Err(note) => {
            // What the summary has is left.
            tail.transactions = kept.listed.into_iter().map(without_rows).collect();
            tail.note = Some(note);
            return tail;
        }
    };
    tail.uncommitted = changes.uncommitted;
    tail.note = changes.note;
    for transaction in changes.transactions {
        let Transaction { xid, at, lsn, changes } = transaction;
        let mut lost = Lost { xid, at, lsn, counts: BTreeMap::new(), rows: Vec::new() };
        for change in changes {
            let table = catalogue.table(change.relation).await;
            let counts = lost.counts.entry(table.name.clone()).or_default();
            counts[change.act as usize] += 1;
            if *room == 0 {
                tail.unlisted += 1;
                continue;
            }
            *room -= 1;
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
