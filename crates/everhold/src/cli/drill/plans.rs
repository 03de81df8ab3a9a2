//! The plans: what is done in which order, and how each step is checked.

use super::super::client::Client;
use super::super::connect;
use super::super::course::{Course, wait};
use super::super::failure::Failure;
use super::super::output::{bytes, duration, plain};
use super::super::recover::{self, Recovered};
use super::Plan;
use super::scratch::Scratch;
use super::writer::{Writer, query};
use crate::code::Code;
use everhold_core::ids::Lsn;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Writes flow again within this, or the drill has failed.
const FLOWS_WITHIN: Duration = Duration::from_secs(120);
/// Between what a time is to tell apart.
const APART: Duration = Duration::from_millis(1_500);
/// Rows that a mistake takes away.
const ROWS: usize = 1_000;

/// All plans on a scratch cluster begin with bringing the service back there: that is the first one.
pub fn on_scratch(
    plan: Plan,
    course: &mut Course<'_>,
    scratch: &mut Scratch,
) -> Result<(), Failure> {
    let (client, url) = region_loss(course, scratch)?;
    if plan != Plan::RegionLoss {
        // What the beginning took is no figure of the plan.
        (course.report.rto_ms, course.report.rpo_ms) = (None, None);
    }
    match plan {
        Plan::RegionLoss => Ok(()),
        Plan::NodeLoss => node_loss(course, Some((&client, &url))),
        Plan::Corruption => corruption(course, scratch, &client, &url),
        Plan::OperatorMistake => operator_mistake(course, scratch, &client, &url),
    }
}

fn region_loss(
    course: &mut Course<'_>,
    scratch: &mut Scratch,
) -> Result<(Client, String), Failure> {
    let service = course.service.clone();
    let cluster = course.client;
    // What is acknowledged from here on nobody looks for.
    let (rpo_ms, archived) = course.step("note what the repositories hold", |_| {
        let status = cluster.get("/v1/status")?;
        let backup = &status["services"][&service]["backup"];
        let (rpo_ms, archived) = (backup["rpo_ms"].as_u64(), plain(&backup["log_lsn"]));
        let behind = rpo_ms.map_or("nobody knows how much".to_string(), duration);
        let found = format!("log to {archived}, behind what is acknowledged: {behind}");
        Ok(((rpo_ms, lsn(&archived)), found))
    })?;
    course.step("copy the newest backup and its log", |_| {
        let (info, copied) = scratch.copy()?;
        Ok(((), format!("backup {}, {} copied", info.id, bytes(copied))))
    })?;
    let begun = Instant::now();
    let client = course.step("start new machines", |_| {
        let client = scratch.start()?;
        Ok((client, "three nodes, without data".to_string()))
    })?;
    course.step("see that no empty database is made", |_| {
        scratch.wait(&client, "hold", |status| {
            let holds = status["holds"].as_array().into_iter().flatten();
            let mut why = holds.filter_map(|hold| hold["why"].as_str());
            why.any(|why| why.contains(Code::BackupsHeld.as_str()))
        })?;
        Ok(((), "they wait to be told".to_string()))
    })?;
    course.step("recover the service", |_| {
        let recovered = recovered(scratch, &client, &service, json!({}))?;
        if lsn(&recovered.end) < archived {
            let (end, archived) = (&recovered.end, Lsn(archived));
            let text =
                format!("its log ends at {end}, and {archived} was archived: commits are lost");
            return Err(Failure::plain(text));
        }
        Ok(((), format!("from backup {}, with all log to {}", recovered.backup, recovered.end)))
    })?;
    let url = course.step("write through the gateway", |report| {
        scratch.wait(&client, "leader that serves", |status| serves(status, &service))?;
        let url = connect::url(&client, &service)?;
        takes_writes(&url)?;
        let took = ms(begun.elapsed());
        (report.rto_ms, report.rpo_ms) = (Some(took), rpo_ms);
        Ok((url, format!("{} after the machines were gone", duration(took))))
    })?;
    course.step("see all three nodes in their places", |_| {
        scratch.wait(&client, "whole cluster", |status| whole(status, &service))?;
        Ok(((), "each streams".to_string()))
    })?;
    Ok((client, url))
}

/// On the scratch cluster given, or on the cluster itself.
pub fn node_loss(course: &mut Course<'_>, scratch: Option<(&Client, &str)>) -> Result<(), Failure> {
    let service = course.service.clone();
    let own;
    let (client, url) = match scratch {
        Some(scratch) => scratch,
        None => {
            own = connect::url(course.client, &service)?;
            (course.client, own.as_str())
        }
    };
    let writer = write_all_the_time(course, url)?;
    let (client_of, service_of) = (client, service.clone());
    course.step("kill the leader's node", |_| {
        let status = client_of.get("/v1/status")?;
        let leader = plain(&status["services"][&service_of]["leader"]);
        client_of.post("/v1/faults", &json!({ "kind": "kill-node", "node": leader }))?;
        Ok(((), format!("{leader} is gone")))
    })?;
    course.step("see writes flow again", |_| {
        flows(&writer)?;
        Ok(((), "they do".to_string()))
    })?;
    course.step("see all nodes in their places", |_| {
        let is_whole =
            || client_of.get("/v1/status").is_ok_and(|status| whole(&status, &service_of));
        match wait(FLOWS_WITHIN, is_whole)? {
            true => Ok(((), "the lost one came back".to_string())),
            false => Err(Failure::plain("the node that was lost is not back")),
        }
    })?;
    course.step("look for each acknowledged write", |report| {
        let written = writer.finish()?;
        let gap = ms(written.gap);
        (report.rto_ms, report.lost) = (Some(gap), Some(written.lost));
        report.rpo_ms = (written.lost == 0).then_some(0);
        if written.lost > 0 {
            return Err(Failure::plain(format!("{} acknowledged writes are lost", written.lost)));
        }
        let text =
            format!("{} acknowledged, none lost, gap {}", written.acknowledged, duration(gap));
        Ok(((), text))
    })
}

fn corruption(
    course: &mut Course<'_>,
    scratch: &mut Scratch,
    client: &Client,
    url: &str,
) -> Result<(), Failure> {
    let service = course.service.clone();
    // Without writes there is no checkpoint, and without one no verdict on a page.
    let writer = write_all_the_time(course, url)?;
    let begun = course.step("flip a bit on a standby's disk", |_| {
        let status = client.get("/v1/status")?;
        let leader = plain(&status["services"][&service]["leader"]);
        let flipped = scratch.flip_a_bit(&leader)?;
        let told = format!("in {}", flipped.path.display());
        Ok(((Instant::now(), flipped), told))
    });
    let (begun, flipped) = begun?;
    course.step("see it found, and the copy made anew", |report| {
        // A copy is marked, taken out of the way of clients and replaced within a second or two.
        scratch
            .wait(client, "sound copy", |status| flipped.is_mended() && whole(status, &service))?;
        let took = ms(begun.elapsed());
        report.rto_ms = Some(took);
        Ok(((), format!("whole again {} after the bit was flipped", duration(took))))
    })?;
    course.step("look for each acknowledged write", |report| {
        let written = writer.finish()?;
        report.lost = Some(written.lost);
        if written.lost > 0 {
            return Err(Failure::plain(format!("{} acknowledged writes are lost", written.lost)));
        }
        let text = format!("{} acknowledged, none lost", written.acknowledged);
        Ok(((), text))
    })
}

fn operator_mistake(
    course: &mut Course<'_>,
    scratch: &mut Scratch,
    client: &Client,
    url: &str,
) -> Result<(), Failure> {
    let service = course.service.clone();
    let count = |url: &str| -> Result<usize, Failure> {
        let rows = query(url, "SELECT count(*) FROM everhold_drill_orders")?;
        Ok(rows.first().and_then(|text| text.parse().ok()).unwrap_or(0))
    };
    let before = course.step("write what is going to be deleted", |_| {
        let sql = format!(
            "CREATE TABLE everhold_drill_orders AS SELECT generate_series(1, {ROWS}) AS id"
        );
        query(url, &sql)?;
        std::thread::sleep(APART);
        let at = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', \
                  'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')";
        let at = query(url, at)?.pop().unwrap_or_default();
        std::thread::sleep(APART);
        Ok((at.clone(), format!("{ROWS} rows at {at}")))
    })?;
    let begun = course.step("delete it", |_| {
        query(url, "DELETE FROM everhold_drill_orders")?;
        let place = query(url, "SELECT pg_current_wal_flush_lsn()")?.pop().unwrap_or_default();
        let upto = lsn(&place);
        scratch.wait(client, "archived log", |status| {
            let log = status["services"][&service]["backup"]["log_lsn"].as_str();
            log.is_some_and(|log| lsn(log) >= upto)
        })?;
        Ok((Instant::now(), format!("{} rows are left", count(url)?)))
    })?;
    course.step("put the service back to the moment before", |report| {
        let recovered = recovered(scratch, client, &service, json!({ "time": before }))?;
        scratch.wait(client, "leader that serves", |status| serves(status, &service))?;
        takes_writes(url)?;
        report.rto_ms = Some(ms(begun.elapsed()));
        Ok(((), format!("from backup {}", recovered.backup)))
    })?;
    course.step("look for what was deleted", |report| {
        let rows = count(url)?;
        report.lost = Some((ROWS - rows.min(ROWS)) as u64);
        match rows == ROWS {
            true => Ok(((), format!("all {ROWS} rows are back"))),
            false => Err(Failure::plain(format!("{rows} rows of {ROWS} are back"))),
        }
    })?;
    course.step("see all nodes follow", |_| {
        scratch.wait(client, "whole cluster", |status| whole(status, &service))?;
        Ok(((), "each streams".to_string()))
    })
}

/// Has a service recovered, with the token that the first answer gives.
fn recovered(
    scratch: &mut Scratch,
    client: &Client,
    service: &str,
    mut body: Value,
) -> Result<Recovered, Failure> {
    let path = recover::path(service);
    let answer = match client.post(&path, &body) {
        Err(failure) if failure.get("token").is_some() => {
            body["token"] = failure.get("token").cloned().unwrap_or_default();
            client.post(&path, &body)?
        }
        other => other?,
    };
    scratch.recovered(client, &answer)
}

fn write_all_the_time(course: &mut Course<'_>, url: &str) -> Result<Writer, Failure> {
    course.step("write all the time", |_| {
        let writer = Writer::start(url)?;
        flows(&writer)?;
        Ok((writer, "writes are acknowledged".to_string()))
    })
}

/// Waits until the service does.
fn takes_writes(url: &str) -> Result<(), Failure> {
    let sql = "CREATE TABLE IF NOT EXISTS everhold_drill_back (); \
               DROP TABLE IF EXISTS everhold_drill_back";
    let mut last = None;
    let takes = || query(url, sql).map_err(|failure| last = Some(failure)).is_ok();
    match wait(FLOWS_WITHIN, takes)? {
        true => Ok(()),
        false => Err(last.unwrap_or_else(|| Failure::plain("the service takes no writes"))),
    }
}

fn flows(writer: &Writer) -> Result<(), Failure> {
    match writer.flows(50, FLOWS_WITHIN)? {
        true => Ok(()),
        false => Err(Failure::plain("writes do not flow")),
    }
}

fn serves(status: &Value, service: &str) -> bool {
    status["services"][service]["serving"] == true
}

fn whole(status: &Value, service: &str) -> bool {
    let of = &status["services"][service];
    let instances = of["instances"].as_object();
    let all = instances.is_some_and(|it| it.values().all(|it| it["health"] == "up"));
    of["serving"] == true && of["synchronous"]["changing_to"].is_null() && all
}

fn lsn(text: &str) -> u64 {
    text.parse::<Lsn>().map_or(0, |lsn| lsn.0)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
