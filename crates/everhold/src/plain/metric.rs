//! Every metric there is. `docs/metrics.md` has the same table; a test compares them.

/// One metric.
pub struct Metric {
    pub name: &'static str,
    pub kind: &'static str,
    /// Beside `cluster` and `node` (`gateway` for those of a gateway).
    #[cfg_attr(not(test), allow(dead_code))]
    pub labels: &'static str,
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident $kind:ident $name:literal $labels:literal $help:literal;)*) => {
        $(pub static $id: Metric =
            Metric { name: $name, kind: stringify!($kind), labels: $labels, help: $help };)*
        #[cfg(test)]
        pub const ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    BUILD gauge "everhold_build_info" "role, version"
        "Always 1: what runs here.";
    PID gauge "everhold_pid" ""
        "The number of this process.";
    CERTIFICATE_EXPIRY gauge "everhold_certificate_expiry_timestamp_seconds" "certificate"
        "When a certificate of this machine ends, in seconds since 1970.";
    JOURNAL_ENTRIES counter "everhold_journal_entries_total" ""
        "Entries that the node's journal ever had.";
    HOLDS gauge "everhold_holds" "service, rule, operator"
        "What the node waits for. operator is true if only a person ends it.";
    PEER_SILENCE gauge "everhold_peer_silence_seconds" "peer"
        "Since another node was last heard; absent if it never was.";
    NODE_LOST gauge "everhold_node_lost" "peer"
        "1 for a node whose instances of HTTP services others run, as the spec says; 0 for the others.";
    STORE_REACHABLE gauge "everhold_store_reachable" "service"
        "1 if the store answers this agent.";
    STORE_REVISION gauge "everhold_store_revision" "service"
        "The newest revision of the store among the records that this agent has read.";
    DECISIONS counter "everhold_decisions_total" "service, rule"
        "How often a rule became the verdict of its controller, since the agent's start.";
    REFUSALS counter "everhold_checker_refusals_total" "service"
        "Acts that the checker of invariants refused, since the agent's start: 0, or a rule is broken.";
    SERVICE_EPOCH gauge "everhold_service_epoch" "service"
        "Epoch of the newest term that this agent has read.";
    SERVICE_OPEN gauge "everhold_service_open" "service"
        "1 if that term was opened to clients.";
    SERVICE_LEADER gauge "everhold_service_leader" "service, leader"
        "1 for the leader of that term.";
    SERVICE_MAINTENANCE gauge "everhold_service_maintenance" "service"
        "1 if nothing is done by itself.";
    SYNC_NUMBER gauge "everhold_service_synchronous_number" "service"
        "So many standbys have a commit on disk before it is acknowledged.";
    SYNC_WANTED gauge "everhold_service_synchronous_wanted" "service"
        "The same as the spec wants it.";
    SYNC_MEMBER gauge "everhold_service_synchronous_member" "service, member"
        "1 for each node of the synchronous set.";
    TOLERATES gauge "everhold_service_tolerated_losses" "service"
        "Nodes that may be lost, one after the other, without stopping writes for good.";
    FAILOVER_EPOCH gauge "everhold_last_failover_epoch" "service, kind"
        "Epoch of the last change of leader. kind: bootstrap, switchover, failover.";
    FAILOVER_AT gauge "everhold_last_failover_timestamp_seconds" "service"
        "When that was, in seconds since 1970.";
    FAILOVER_OUTAGE gauge "everhold_last_failover_outage_seconds" "service"
        "How long nobody led then, as the agents' reports show it; absent if nobody watched.";
    INSTANCE_UP gauge "everhold_instance_up" "service"
        "1 if the node's instance does its part: it serves, or it streams.";
    INSTANCE_SERVING gauge "everhold_instance_serving" "service"
        "1 if clients may write here: what /primary answers.";
    INSTANCE_IN_ROUTE gauge "everhold_instance_in_route" "service"
        "1 if gateways send clients here.";
    INSTANCE_RIGHT gauge "everhold_instance_right_seconds" "service"
        "For so long it may go on leading without further news; absent on a standby.";
    INSTANCE_ROLE gauge "everhold_instance_role" "service, role"
        "1 for the role it has: primary, standby or none.";
    INSTANCE_STATE gauge "everhold_instance_state" "service, state"
        "1 for the state it is in, 0 for the others.";
    INSTANCE_DATA gauge "everhold_instance_data" "service, data"
        "1 for what its data directory is: empty, ok, being_replaced or catching_up.";
    INSTANCE_LAG_BYTES gauge "everhold_instance_lag_bytes" "service"
        "What it has not replayed of what the leader had; absent if that can't be known.";
    INSTANCE_LAG_SECONDS gauge "everhold_instance_lag_seconds" "service"
        "The same in time; absent if that can't be known.";
    INSTANCE_LSN gauge "everhold_instance_lsn_bytes" "service"
        "Its place in the WAL: flushed (primary) or replayed (standby).";
    INSTANCE_TIMELINE gauge "everhold_instance_timeline" "service"
        "Its timeline; 0 while it doesn't run.";
    INSTANCE_PROMISE gauge "everhold_instance_promise" "service"
        "The highest epoch it has promised.";
    INSTANCE_INCARNATION gauge "everhold_instance_incarnation" "service"
        "How often its data began anew.";
    INSTANCE_PID gauge "everhold_instance_pid" "service"
        "The number of its postmaster; absent while it doesn't run.";
    INSTANCE_OVERRIDES gauge "everhold_instance_overrides" "service"
        "Settings in force that weaken a guarantee.";
    INSTANCE_FULL gauge "everhold_instance_disk_full" "service"
        "1 if its disk has no room for more WAL.";
    MINDER gauge "everhold_minder_up" "service"
        "1 if a minder watches over its postmaster; absent while there is none to watch over.";
    LOG_ARCHIVED gauge "everhold_log_archived_lsn_bytes" "service"
        "All of the log up to there is in as many repositories as are asked for; absent unless it leads.";
    LOG_BEHIND gauge "everhold_log_behind_seconds" "service"
        "Since the oldest of the log came to disk that is not; absent unless it leads.";
    BACKUP_COUNT gauge "everhold_backup_count" "service"
        "Backups that the repositories hold, as the coordinator last read them.";
    BACKUP_NEWEST_AT gauge "everhold_backup_newest_timestamp_seconds" "service"
        "When the newest sound one ended, in seconds since 1970.";
    BACKUP_SIZE gauge "everhold_backup_size_bytes" "service"
        "Of all files of the newest sound one.";
    BACKUP_ADDED gauge "everhold_backup_added_bytes" "service"
        "What it added to each repository.";
    BACKUP_COPIES gauge "everhold_backup_copies" "service"
        "Repositories that hold the newest one.";
    BACKUP_PROVEN_AT gauge "everhold_backup_proven_timestamp_seconds" "service"
        "When a proof last ended well, in seconds since 1970; absent if none did.";
    BACKUP_RTO gauge "everhold_backup_rto_seconds" "service"
        "How long its restore took, from the first byte read to the first write taken.";
    BACKUP_UNPROVEN gauge "everhold_backup_unproven" "service"
        "Backups that nobody has looked at yet.";
    BACKUP_FAILED gauge "everhold_backup_failed" "service"
        "Backups that failed their proof.";
    BACKUP_OVERDUE gauge "everhold_backup_overdue" "service"
        "How many of a full backup, an incremental one and a round of proofs should have been by now.";
    BACKUP_RUNNING gauge "everhold_backup_running" "service, what"
        "1 while this node makes a backup (backup) or proves one (proof).";
    BAD_PAGES gauge "everhold_bad_pages" "service"
        "Pages of its data that are not as they were written.";
    SCRUBBED_AT gauge "everhold_scrub_timestamp_seconds" "service"
        "When all pages of its data had last been read; absent before the first time.";
    SCRUB_TOOK gauge "everhold_scrub_duration_seconds" "service"
        "How long that took; absent before the first time.";
    GATEWAY_REVISION gauge "everhold_gateway_table_revision" ""
        "Revision of the route table in force.";
    LISTENER_OPEN gauge "everhold_gateway_listener_open" "listener, service, role"
        "1 if new connections are carried at once, 0 if they wait for a backend.";
    LISTENER_EPOCH gauge "everhold_gateway_listener_epoch" "listener"
        "Epoch of the route in force.";
    LISTENER_CONNECTIONS gauge "everhold_gateway_connections" "listener"
        "Connections that are with a backend.";
    LISTENER_WAITING gauge "everhold_gateway_connections_waiting" "listener"
        "Connections that wait for one.";
    LISTENER_ACCEPTED counter "everhold_gateway_connections_total" "listener"
        "Connections accepted.";
    LISTENER_REFUSED counter "everhold_gateway_connections_refused_total" "listener"
        "Connections refused: no backend in time, or too many waiting.";
    LISTENER_CUT counter "everhold_gateway_connections_cut_total" "listener"
        "Connections cut since their backend left the route.";
    LISTENER_IN counter "everhold_gateway_received_bytes_total" "listener"
        "Bytes carried from clients to backends.";
    LISTENER_OUT counter "everhold_gateway_sent_bytes_total" "listener"
        "Bytes carried from backends to clients.";
    LISTENER_BACKEND gauge "everhold_gateway_listener_backend" "listener, backend"
        "1 for each instance that new connections go to.";
    BACKEND_CONNECTIONS gauge "everhold_gateway_backend_connections" "backend"
        "Connections that are with the routed instances of a node, or on their way there.";
    HTTP_SERVER histogram "http_server_request_duration_seconds" "http_route, http_request_method, http_response_status_code"
        "Requests and how long they took. http_route is empty if there is none, the status 0 if the client was gone. A thread tells 2,000 combinations apart; all others are `(rest)`, with the status rounded down to hundreds.";
    HTTP_CLIENT histogram "http_client_request_duration_seconds" "service, backend, outcome"
        "Tries at an instance, until the head of its answer. outcome: ok, failed, left (it was one of two at once, and the other one's answer was taken). backend is `(rest)` behind the 2,000th combination.";
    HTTP_WAITED histogram "everhold_gateway_request_wait_seconds" "http_route, met"
        "Requests that did not go on at once, and how long they waited. met: queue (it got its turn, or its client left), queue_full, too_late, breaker, cpu (these were turned away), degraded (a mode of its route answered).";
    HTTP_HEDGED counter "everhold_gateway_hedged_requests_total" "service, answered"
        "Requests that two instances were asked for at once, since the first was slow. answered: first, second, neither.";
    HTTP_CACHED counter "everhold_gateway_cache_requests_total" "http_route, cache"
        "Requests of routes that keep answers, by what the cache did for them.";
    CACHE_ANSWERS gauge "everhold_gateway_cache_answers" ""
        "Answers that are kept.";
    CACHE_BYTES gauge "everhold_gateway_cache_bytes" ""
        "Memory that they take.";
    CACHE_BYTES_MAX gauge "everhold_gateway_cache_bytes_max" ""
        "Memory that they may take.";
    HTTP_REFUSED counter "everhold_gateway_http_connections_refused_total" "reason"
        "Connections of HTTP that were not let in. reason: denied (its listener's list), struck (it had to be stopped too often), too_many (of one client), crowded (what is left is for known clients).";
    PLACES_MAX gauge "everhold_gateway_places_max" "service, http_route"
        "Requests that may be at a service at once, of a route alone where http_route is not empty.";
    PLACES_TAKEN gauge "everhold_gateway_places_taken" "service, http_route"
        "Requests that are there.";
    PLACES_WAITING gauge "everhold_gateway_places_waiting" "service, http_route"
        "Requests that wait for a place.";
    BREAKER_OPEN gauge "everhold_gateway_breaker_open" "service"
        "1 if the service is asked no more but for probes.";
    DEGRADED gauge "everhold_gateway_degraded" "http_route, mode"
        "1 while a route is served in that mode, 0 while it isn't. mode: stale, static, shed, read_only.";
    THREAD_BUSY gauge "everhold_gateway_thread_busy_ratio" "thread"
        "Of the time of a thread that carries requests the part in which it was at work.";
    THREAD_WAIT gauge "everhold_gateway_thread_wait_seconds" "thread"
        "How long what was due waited for it.";
    THREAD_REFUSED gauge "everhold_gateway_thread_refused_ratio" "thread"
        "Of its requests the part that it refuses because it has no time for them.";
    BACKEND_HEALTHY gauge "everhold_gateway_instance_healthy" "service, backend"
        "1 if its checks find it healthy, 0 if not; absent before the first ones.";
    BACKEND_EJECTED gauge "everhold_gateway_instance_ejected" "service, backend"
        "1 if requests to it failed too often.";
    BACKEND_USED gauge "everhold_gateway_instance_used" "service, backend"
        "1 if it gets requests.";
    ACCESS_LOST counter "everhold_gateway_access_log_lost_lines_total" ""
        "Lines of the access log that the disk was too slow for, or did not take.";
    PROCESS_CPU counter "process_cpu_seconds_total" ""
        "Processor time of this process.";
    PROCESS_RESIDENT gauge "process_resident_memory_bytes" ""
        "Memory it occupies.";
    PROCESS_VIRTUAL gauge "process_virtual_memory_bytes" ""
        "Memory it could address.";
    PROCESS_FDS gauge "process_open_fds" ""
        "Files it has open.";
    PROCESS_FDS_MAX gauge "process_max_fds" ""
        "Files it may have open.";
    PROCESS_START gauge "process_start_time_seconds" ""
        "When it was started, in seconds since 1970.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn read(path: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn the_page_of_metrics_and_the_code_agree() {
        let page = read("docs/metrics.md");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        let row = |metric: &&Metric| {
            let Metric { name, kind, labels, help } = metric;
            let labels: Vec<String> = labels.split(", ").map(|it| format!("`{it}`")).collect();
            let labels = if labels == ["``"] { String::new() } else { labels.join(", ") };
            format!("| `{name}` | {kind} | {labels} | {help} |").replace("|  |", "| |")
        };
        let expected: Vec<String> = ALL.iter().map(row).collect();
        assert_eq!(rows, expected);
    }

    #[test]
    fn names_follow_the_convention() {
        let names: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len(), "a name is given twice");
        for Metric { name, kind, .. } in ALL {
            let known = ["everhold_", "process_", "http_"];
            assert!(known.iter().any(|it| name.starts_with(it)), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
            assert!(!name.contains("_ms") && !name.contains("milli"), "{name}");
        }
    }

    /// The words of the rules that look like metrics of ours are metrics.
    #[test]
    fn the_alerts_speak_of_metrics_that_exist() {
        let rules = read("deploy/prometheus/alerts.yml");
        let words = rules.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let named: BTreeSet<&str> = words.filter(|word| word.starts_with("everhold_")).collect();
        assert!(named.len() > 5, "{named:?}");
        for name in named {
            assert!(ALL.iter().any(|metric| metric.name == name), "{name}");
        }
        let words = rules.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for word in words.filter(|word| word.starts_with("http_")) {
            let name = word.strip_suffix("_count").unwrap_or(word);
            let known = ALL
                .iter()
                .any(|it| it.name == name || it.labels.split(", ").any(|label| label == word));
            assert!(known, "{word}");
        }
    }
}
