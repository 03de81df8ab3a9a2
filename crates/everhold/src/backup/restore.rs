//! Restores a service's database into a directory of its own, beside whatever runs: the files of a
//! backup, the log up to a point, and a recovery that shows that both fit.

use super::named::Named;
use super::{away, list, open, room, shown, told};
use crate::spec::local::{RunAs, Search};
use anyhow::{Context, anyhow, bail};
use everhold_adapters::postgres::{Aside, AsideConfig, LOG_ENDS, PgError, Target};
use everhold_core::ids::{Lsn, Tli};
use everhold_core::spec::Spec;
use everhold_core::term::Branch;
use everhold_repository::backup::{Info, Lines, MARKER, Progress, Restore, THREADS, Watch};
use everhold_repository::log::{Log, Mark, coverage, is_on, missing};
use everhold_repository::{Repository, RepositoryError, backup};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Marks that can't be read: so many are looked at.
const MARKS_MAX: usize = 8;
/// A time is written in seconds, and a commit reaches the log a moment after its own time.
const SURELY_MS: u64 = 2_000;

/// What to restore, and where.
#[derive(Clone, Debug)]
pub struct Order {
    pub service: String,
    pub to: PathBuf,
    pub aim: Aim,
    /// Of that database and along that line of its history; else along the newest one.
    pub along: Option<(u64, Vec<Branch>)>,
    /// From a backup older than that one, of the same database.
    pub before: Option<String>,
    /// Over the files of a stopped server: what is as it should be stays.
    pub over: bool,
    /// It may be thrown away after a crash.
    pub throwaway: bool,
}

/// Which state to restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aim {
    pub until: Until,
    /// The history ends with it; the one in force, if none is named.
    #[serde(default)]
    pub timeline: Option<Tli>,
    /// The newest that serves, if none is named.
    pub backup: Option<String>,
}

impl std::fmt::Display for Aim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.until)?;
        if let Some(tli) = self.timeline {
            write!(f, " on timeline {tli}")?;
        }
        match &self.backup {
            Some(id) => write!(f, " from backup {id}"),
            None => Ok(()),
        }
    }
}

/// The point to restore to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    Latest,
    /// Seconds since 1970, and as it was written.
    Time(i64, String),
    Lsn(Lsn),
    Name(String),
}

impl Until {
    /// From what was asked for; at most one of them.
    pub fn parse(
        time: Option<&str>,
        lsn: Option<&str>,
        name: Option<&str>,
    ) -> Result<Until, String> {
        match (time, lsn, name) {
            (Some(text), None, None) => {
                let time = text.parse::<jiff::Timestamp>();
                let time = time.map_err(|error| format!("{text}: {error}"))?;
                // As PostgreSQL reads it before it has read names of zones.
                let text = time.strftime("%Y-%m-%d %H:%M:%S%.f+00").to_string();
                Ok(Until::Time(time.as_second(), text))
            }
            (None, Some(text), None) => {
                text.parse().map(Until::Lsn).map_err(|error| format!("{text}: {error}"))
            }
            (None, None, Some(name)) => Ok(Until::Name(name.to_string())),
            (None, None, None) => Ok(Until::Latest),
            _ => Err("a time, a place and a name are three points: name one".to_string()),
        }
    }

    /// As PostgreSQL is told.
    fn target(&self) -> Target {
        match self {
            Until::Latest => Target::End,
            Until::Time(_, text) => Target::Time(text.clone()),
            Until::Lsn(lsn) => Target::Lsn(*lsn),
            Until::Name(name) => Target::Name(name.clone()),
        }
    }
}

impl std::fmt::Display for Until {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Until::Latest => f.write_str("latest"),
            Until::Time(_, text) => f.write_str(text),
            Until::Lsn(lsn) => write!(f, "{lsn}"),
            Until::Name(name) => f.write_str(name),
        }
    }
}

/// A restored server that runs.
pub struct Standing {
    pub server: Aside,
    pub backup: Info,
    /// Where the log ended that was there.
    pub log_end: Lsn,
    pub bytes_written: u64,
    /// From the first byte read to the first write taken, in milliseconds.
    pub took_ms: u64,
}

impl Standing {
    /// For people and scripts.
    pub fn report(&self, order: &Order) -> Value {
        json!({
            "service": order.service, "to": order.to, "backup": self.backup.id,
            "backup_ended_at": shown::time(self.backup.about.ended_s),
            "log_end": self.log_end.to_string(), "bytes_written": self.bytes_written,
            "took_ms": self.took_ms,
        })
    }
}

/// Restores, recovers and leaves the server running. `say` hears what goes on.
pub async fn restore(
    spec: &Spec,
    order: &Order,
    say: impl Fn(&str) + Send + Sync + 'static,
) -> anyhow::Result<Standing> {
    let begun = Instant::now();
    let declared = spec.postgres(&order.service);
    let service = declared.with_context(|| format!("E306 no service {}", order.service))?;
    let names = match &service.backup {
        Some(backup) => backup.repositories.clone(),
        None => bail!("E286 no backups of {} are declared", order.service),
    };
    let fault = |fault: crate::spec::Fault| anyhow!("{fault}");
    let run_as = RunAs::discover().map_err(fault)?;
    let bin_dir = Search::from_env().postgres(service.version).map_err(fault)?;
    let to = std::path::absolute(&order.to)?;
    let mut run_dir = to.clone().into_os_string();
    run_dir.push(".run");
    let aside = AsideConfig {
        bin_dir,
        data_dir: to.clone(),
        run_dir: run_dir.into(),
        run_as: run_as.is_other().then(|| (run_as.uid, run_as.gids[0])),
        tli: 1,
        throwaway: order.throwaway,
    };
    let of = spec.clone();
    let opened = tokio::task::spawn_blocking(move || open(&of, &names));
    let (repository, say) = (Arc::new(opened.await??), Arc::new(say));
    let write = async |order: &Order| {
        let (repository, say) = (repository.clone(), say.clone());
        let (order, to, aside) = (order.clone(), to.clone(), aside.clone());
        let write = move || files(&repository, &order, &to, &aside, "recovery.signal", &*say);
        tokio::task::spawn_blocking(write).await?
    };
    let recover = async |files: &Files, target: &Target| {
        Aside::recover(&AsideConfig { tli: files.tli, ..aside.clone() }, target).await
    };
    let (server, files) = reach(order, write, recover, |text| say(text)).await?;
    let Files { backup, log_end, bytes_written, .. } = files;
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Standing { server, backup, log_end, bytes_written, took_ms })
}

/// Writes the files and has a server recover there to the point. Where PostgreSQL says that the backup
/// was not whole yet at that time, an older one follows: the time of a commit is the primary's, that of
/// a backup's end another machine's, and it is told in seconds.
pub(super) async fn reach<S>(
    order: &Order,
    write: impl AsyncFn(&Order) -> anyhow::Result<Files>,
    recover: impl AsyncFn(&Files, &Target) -> Result<S, PgError>,
    say: impl Fn(&str),
) -> anyhow::Result<(S, Files)> {
    let (mut order, until) = (order.clone(), &order.aim.until);
    loop {
        let files = write(&order).await?;
        let mut recovered = recover(&files, &files.target).await;
        if recovered.as_ref().is_err_and(is_end_of_log) && files.has_all_until(until) {
            recovered = recover(&files, &Target::End).await;
        }
        match recovered {
            Ok(server) => return Ok((server, files)),
            Err(error) if is_early(&error) && files.has_older => {
                say(&format!("backup {} was not whole yet then", files.backup.id));
                (order.before, order.over) = (Some(files.backup.id), true);
            }
            Err(error) => return Err(files.not_reached(&error, until)),
        }
    }
}

/// A backup's files with the log after it, not started yet.
pub(super) struct Files {
    pub backup: Info,
    /// There is an older backup of that database that may serve.
    has_older: bool,
    /// As PostgreSQL is told.
    target: Target,
    pub line: Vec<Branch>,
    pub tli: Tli,
    pub log_end: Lsn,
    pub bytes_written: u64,
    /// A leader said so late that all before was written, and that is in the log: milliseconds since
    /// 1970.
    pub known_ms: Option<u64>,
    /// Where else the point may be, in words.
    pub elsewhere: String,
}

impl Files {
    /// The time lies behind the last commit of the log, and nothing was committed after it up to then:
    /// PostgreSQL finds no commit to stop before, and the log's end is what was asked for.
    pub fn has_all_until(&self, until: &Until) -> bool {
        let Until::Time(at_s, _) = until else { return false };
        let at_ms = u64::try_from(*at_s).unwrap_or(0).saturating_mul(1_000);
        self.known_ms.is_some_and(|known| known >= at_ms + SURELY_MS)
    }

    /// Why a recovery did not come to that point.
    pub fn not_reached(&self, error: &PgError, until: &Until) -> anyhow::Error {
        let Files { backup, log_end, elsewhere, .. } = self;
        let whole =
            format!("backup {}, which ended {}", backup.id, shown::time(backup.about.ended_s));
        let early = is_early(error);
        match until {
            Until::Name(name) if early || is_end_of_log(error) => anyhow!(
                "E287 no point {name} lies between {whole}, and the end of the log at {log_end}; \
                 next step: without `--backup` it is looked for behind all{elsewhere}"
            ),
            _ if early => anyhow!(
                "E287 that point lies before {whole}; next step: `everhold backup list` shows \
                 whether there is an older one"
            ),
            _ if is_end_of_log(error) => anyhow!(
                "E287 the log ends at {log_end}, before the point that was asked for was \
                 reached{elsewhere}"
            ),
            _ => anyhow!("E287 the restored server does not recover: {error}{elsewhere}"),
        }
    }
}

/// The point lies before the backup was whole: so says PostgreSQL.
fn is_early(error: &PgError) -> bool {
    error.to_string().contains("before consistent recovery point")
}

/// The log ended before the point that was asked for: so says PostgreSQL, or who held it there.
fn is_end_of_log(error: &PgError) -> bool {
    let text = error.to_string();
    let words = ["recovery ended before configured recovery target was reached", LOG_ENDS];
    words.iter().any(|words| text.contains(words))
}

/// Writes them. `signal`: the file that says how a server starts there.
pub(super) fn files(
    repository: &Repository,
    order: &Order,
    to: &Path,
    aside: &AsideConfig,
    signal: &str,
    say: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<Files> {
    for (name, error) in repository.absent() {
        say(&format!("{name} does not answer: {error}"));
    }
    let mut backups = list(repository, &order.service)?;
    if let Some((sysid, _)) = order.along {
        backups.retain(|it| it.about.sysid == sysid);
    }
    if let Some(before) = &order.before {
        let sysid = backups.iter().find(|it| it.id == *before).map(|it| it.about.sysid);
        backups.retain(|it| it.id < *before && Some(it.about.sysid) == sysid);
    }
    let Choice { backup: chosen, has_older, target, course } =
        choose(repository, order, &backups, say)?;
    let Course { line, end: log_end, known_ms, elsewhere } = course;
    if order.over {
        same_database(to, chosen.about.sysid)?;
    }
    room(to, chosen, log_end)?;
    say(&format!(
        "backup {} of {}, then the log to {log_end}",
        chosen.id,
        shown::time(chosen.about.ended_s)
    ));
    let stop = AtomicBool::new(false);
    let told_percent = std::sync::Mutex::new(0);
    let progress = |progress: Progress| {
        let percent = progress.done * 100 / progress.total.max(1);
        if let Ok(mut told) = told_percent.lock()
            && percent >= *told + 10
        {
            *told = percent;
            say(&format!("{percent} %"));
        }
    };
    // Without the settings of a recovery, which come on its command line, no server starts with it.
    let files: [(&str, &[u8]); 1] = [(signal, b"")];
    let how = Restore {
        over: order.over,
        owner: aside.run_as,
        threads: THREADS,
        files: &files,
        log: Some((&line, log_end)),
    };
    let watch = Watch { progress: &progress, stop: &stop };
    let restored = backup::restore(repository, &order.service, &chosen.id, to, &how, &watch);
    let restored = restored.map_err(|error| cut_short(error, repository, to))?;
    Ok(Files {
        backup: chosen.clone(),
        has_older,
        target,
        line,
        tli: restored.tli,
        log_end,
        bytes_written: restored.bytes_written,
        known_ms,
        elsewhere,
    })
}

/// Why a restore ended in the middle: by its own disk, by a place that went away, or by what is stored.
fn cut_short(error: RepositoryError, repository: &Repository, to: &Path) -> anyhow::Error {
    if let RepositoryError::File { path, source, .. } = &error
        && path.starts_with(to)
    {
        return anyhow!(
            "E288 {error}: {source}; next step: make room, or choose another disk or node"
        );
    }
    match away(repository) {
        Some(away) => anyhow!("E280 {error}; {away}"),
        None => told(error),
    }
}

/// What is followed from a backup on.
struct Course {
    line: Vec<Branch>,
    /// Where the log on it ends.
    end: Lsn,
    known_ms: Option<u64>,
    elsewhere: String,
}

/// The backup to begin with, and what is followed from there up to where.
struct Choice<'b> {
    backup: &'b Info,
    has_older: bool,
    target: Target,
    course: Course,
}

fn choose<'b>(
    repository: &Repository,
    order: &Order,
    backups: &'b [Info],
    say: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<Choice<'b>> {
    let (service, Aim { until, timeline, backup: named }) = (&order.service, &order.aim);
    let lines = match (order.along.clone(), timeline) {
        (Some(along), _) => Ok(Lines::from([along])),
        (None, Some(tli)) => backup::lines_to(repository, service, backups, *tli),
        (None, None) => backup::lines(repository, service, backups),
    };
    let lines = lines.map_err(told)?;
    let fit = |it: &&Info| match until {
        _ if named.is_some() => named.as_ref() == Some(&it.id),
        Until::Time(at_s, _) => i64::try_from(it.about.ended_s).is_ok_and(|ended| ended <= *at_s),
        Until::Lsn(lsn) => it.about.stop <= *lsn,
        Until::Latest | Until::Name(_) => true,
    };
    // What a recovery gave up is restored only when it is named, or its timeline is.
    let leads = |it: &&Info| match timeline {
        Some(_) => lines.contains_key(&it.about.sysid) && it.about.is_current(&lines),
        None => named.is_some() || it.about.is_current(&lines),
    };
    // One that is whole nowhere is tried only when it is named.
    let there = |it: &&Info| named.is_some() || it.copies > 0;
    // With a backup that was named it is PostgreSQL's: the first of that name after it.
    let mut search = match until {
        Until::Name(name) if named.is_none() => Some(Named::new(repository, name, say)),
        Until::Name(_) | Until::Latest | Until::Time(..) | Until::Lsn(_) => None,
    };
    let mut why = None;
    let mut fits = backups.iter().rev().filter(fit).filter(leads).filter(there);
    while let Some(backup) = fits.next() {
        let course = match followed(repository, order, backup, &lines) {
            Ok(course) => course,
            Err(error) => {
                why = Some(why.unwrap_or(error));
                continue;
            }
        };
        let target = match &mut search {
            None => until.target(),
            Some(search) => match search.behind(backup, &course.line, course.end)? {
                Some(point) => Target::Lsn(point.at),
                None => {
                    why = Some(search.nowhere(&course.elsewhere));
                    continue;
                }
            },
        };
        let has_older = fits.any(|it| it.about.sysid == backup.about.sysid);
        return Ok(Choice { backup, has_older, target, course });
    }
    let none = match (timeline, named) {
        (Some(tli), _) if lines.is_empty() => anyhow!("E287 {service} has had no timeline {tli}"),
        (Some(tli), Some(id)) => {
            anyhow!("E286 no backup {id} of {service} leads to timeline {tli}")
        }
        (Some(tli), None) => {
            anyhow!(
                "E286 no backup of {service} that leads to timeline {tli} ended before that point"
            )
        }
        (None, Some(id)) => anyhow!("E286 no backup {id} of {service}"),
        (None, None) => anyhow!("E286 no backup of {service} ended before that point"),
    };
    Err(why.unwrap_or(none))
}

/// The backup that is restored where nothing else is asked for.
pub fn latest(repository: &Repository, service: &str) -> anyhow::Result<String> {
    let order = Order {
        service: service.to_string(),
        to: PathBuf::new(),
        aim: Aim { until: Until::Latest, timeline: None, backup: None },
        along: None,
        before: None,
        over: false,
        throwaway: false,
    };
    let backups = list(repository, service)?;
    choose(repository, &order, &backups, &|_| {}).map(|choice| choice.backup.id.clone())
}

/// How far the log goes on from a backup, on the newest line if that leads through it.
fn followed(
    repository: &Repository,
    order: &Order,
    backup: &Info,
    lines: &Lines,
) -> anyhow::Result<Course> {
    let (about, Aim { until, timeline, .. }) = (&backup.about, &order.aim);
    let log = Log::new(repository, &order.service, about.sysid);
    let line = about.line_onwards(lines);
    let pieces = log.pieces(1).map_err(told)?;
    let end = match missing(&coverage(&pieces, &line), about.start, Lsn(u64::MAX)) {
        Some(hole) => hole.start,
        None => Lsn(u64::MAX),
    };
    if end < about.stop {
        bail!(
            "E287 the log of backup {} ends at {end}, and it is whole from {} on",
            backup.id,
            about.stop
        );
    }
    let off = pieces.iter().filter(|piece| !is_on(&line, piece.branch, piece.end));
    let off: BTreeSet<Tli> = off.map(|piece| piece.branch.tli).collect();
    let elsewhere = match timeline {
        None if !off.is_empty() => {
            let off: Vec<String> = off.iter().map(Tli::to_string).collect();
            format!(
                "; next step: of other histories there is log on timeline {}: `--timeline N` goes \
                 there",
                off.join(", ")
            )
        }
        None | Some(_) => String::new(),
    };
    match until {
        Until::Lsn(lsn) if *lsn > end => {
            bail!("E287 the log ends at {end}, before {lsn}{elsewhere}")
        }
        Until::Time(at_s, text) if timeline.is_none() => {
            if let Some(mark) = last_mark(&log, *at_s).filter(|it| !is_on(&line, it.branch, it.lsn))
            {
                let tip = line.last().map_or(1, |branch| branch.tli);
                bail!(
                    "E287 at {text} the service was on timeline {}, in a part that was given up \
                     since; next step: `--timeline {}` goes there, `--timeline {tip}` keeps to the \
                     history that is followed else",
                    mark.branch.tli,
                    mark.branch.tli
                );
            }
        }
        Until::Latest | Until::Time(..) | Until::Lsn(_) | Until::Name(_) => {}
    }
    let marks = log.marks().unwrap_or_default();
    let mut newest = marks.iter().rev().take(MARKS_MAX).filter_map(|name| log.mark(*name).ok());
    let known = newest.find(|mark| mark.lsn <= end && is_on(&line, mark.branch, mark.lsn));
    Ok(Course { line, end, known_ms: known.map(|mark| mark.at_ms), elsewhere })
}

/// The last word of a leader before that time that can be read. What can't be is no reason to refuse.
fn last_mark(log: &Log<'_>, at_s: i64) -> Option<Mark> {
    // All of that second: what may be of a history that was given up is asked about.
    let at_ms = u64::try_from(at_s).ok()?.saturating_mul(1_000).saturating_add(999);
    let marks = log.marks().unwrap_or_default();
    let before = marks.iter().rev().filter(|name| name.at_ms <= at_ms).take(MARKS_MAX);
    before.filter_map(|name| log.mark(*name).ok()).next()
}

/// Whether the disk has room for it. What is there is written over.
/// All else in the directory is removed: it has to hold this very database, or what a restore left.
fn same_database(to: &Path, sysid: u64) -> anyhow::Result<()> {
    let empty = std::fs::read_dir(to).map_or(true, |mut entries| entries.next().is_none());
    if empty || to.join(MARKER).exists() {
        return Ok(());
    }
    let mut id = [0; 8];
    let control = to.join("global/pg_control");
    let read = std::fs::File::open(&control).and_then(|mut file| file.read_exact(&mut id));
    let said = match read.map(|()| u64::from_ne_bytes(id)) {
        Ok(found) if found == sysid => return Ok(()),
        Ok(found) => format!("it holds database {found}, and the backup is of {sysid}"),
        Err(error) => format!("it holds no database: {}: {error}", control.display()),
    };
    bail!(
        "E288 {}: {said}; next step: name the directory of this database, or an empty one",
        to.display()
    )
}

fn room(to: &Path, backup: &Info, log_end: Lsn) -> anyhow::Result<()> {
    let empty = std::fs::read_dir(to).map_or(true, |mut entries| entries.next().is_none());
    let log = log_end.0.saturating_sub(backup.about.start.0);
    match empty {
        true => room::require(to, backup.bytes + log).map_err(|error| {
            anyhow!("E288 {error:#}; next step: make room, or choose another disk or node")
        }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const EARLY: &str = "FATAL:  requested recovery stop point is before consistent recovery point";
    const ENDS: &str = "FATAL:  recovery ended before configured recovery target was reached";

    /// Of backups 3, 2 and 1, of which PostgreSQL says those words in turn, `-`: nothing is wrong.
    /// What was tried, and what came of it.
    async fn course(until: Until, known_ms: Option<u64>, said: &[&str]) -> (String, String) {
        let (tried, said) = (RefCell::new(Vec::new()), RefCell::new(said.to_vec()));
        let order = Order {
            service: "main".to_string(),
            to: PathBuf::from("/to"),
            aim: Aim { until: until.clone(), timeline: None, backup: None },
            along: None,
            before: None,
            over: false,
            throwaway: false,
        };
        let write = async |order: &Order| {
            let before = order.before.as_ref().map_or(4, |id| id.parse::<u32>().expect("one"));
            assert_eq!(order.over, before < 4, "over what the one before left");
            Ok(Files {
                backup: Info { id: (before - 1).to_string(), ..Info::default() },
                has_older: before > 2,
                target: until.target(),
                line: Vec::new(),
                tli: 1,
                log_end: Lsn(1),
                bytes_written: 0,
                known_ms,
                elsewhere: String::new(),
            })
        };
        let recover = async |files: &Files, target: &Target| {
            let end = if *target == Target::End { "end " } else { "" };
            tried.borrow_mut().push(format!("{end}{}", files.backup.id));
            match said.borrow_mut().remove(0) {
                "-" => Ok(()),
                said => Err(PgError::DidNotStart { said: said.to_string() }),
            }
        };
        let ended = match reach(&order, write, recover, |_| ()).await {
            Ok(((), files)) => files.backup.id,
            Err(error) => error.to_string(),
        };
        (tried.into_inner().join(", "), ended)
    }

    #[tokio::test]
    async fn an_older_backup_follows_one_that_was_not_whole_yet() {
        let at = |text: &str| Until::parse(Some(text), None, None).expect("a time");
        let then = || at("1970-01-01T00:01:40.5Z");
        #[rustfmt::skip]
        let cases = [
            // point          known until  PostgreSQL says                   tried          ended
            (then(),          None,        vec!["-"],                        "3",           "3"),
            (then(),          None,        vec![EARLY, "-"],                 "3, 2",        "2"),
            (then(),          None,        vec![EARLY, EARLY, "-"],          "3, 2, 1",     "1"),
            (then(),          None,        vec![EARLY, EARLY, EARLY],        "3, 2, 1",     "E287 that point lies before backup 1"),
            (then(),          Some(102_000), vec![EARLY, ENDS, "-"],         "3, 2, end 2", "2"),
            (then(),          Some(101_999), vec![ENDS],                     "3",           "E287 the log ends at 0/1"),
            // Whatever else it says is no reason to try another.
            (then(),          None,        vec!["PANIC:  disk"],             "3",           "E287 the restored server does not recover"),
            (Until::Latest,   None,        vec![ENDS],                       "end 3",       "E287 the log ends at 0/1"),
        ];
        for (until, known_ms, said, tried, ended) in cases {
            let told = course(until, known_ms, &said).await;
            assert_eq!(told.0, tried, "{said:?}");
            assert!(told.1.starts_with(ended), "{said:?}: {}", told.1);
        }
    }
}
