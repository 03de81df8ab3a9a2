//! What this process uses, by the names that Prometheus' own clients give it.

use super::metric;
use super::page::Page;
use std::fs;

/// Adds the metrics of this process. What can't be read is left out.
pub fn put(page: &mut Page) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in brackets, may hold anything.
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let page_size = rustix::param::page_size() as f64;
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / ticks);
    page.maybe(&metric::PROCESS_CPU, &[], cpu);
    page.maybe(&metric::PROCESS_START, &[], field(22).zip(boot()).map(|(at, b)| b + at / ticks));
    page.maybe(&metric::PROCESS_VIRTUAL, &[], field(23));
    page.maybe(&metric::PROCESS_RESIDENT, &[], field(24).map(|pages| pages * page_size));
    let open = fs::read_dir("/proc/self/fd").map(|all| all.count() as f64);
    // One of them is the look itself.
    page.maybe(&metric::PROCESS_FDS, &[], open.ok().map(|count| count - 1.0));
    let max = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    page.maybe(&metric::PROCESS_FDS_MAX, &[], max.map(|max| max as f64));
}

/// When the machine was started, in seconds since 1970.
fn boot() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
