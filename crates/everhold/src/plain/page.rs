//! A page of metrics in Prometheus' text format 0.0.4.

use super::metric::Metric;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Samples, gathered by metric: a page names each metric once.
pub struct Page {
    /// Labels of every sample but those of the process.
    base: Vec<(&'static str, String)>,
    metrics: BTreeMap<&'static str, (&'static Metric, String)>,
}

impl Page {
    pub fn new(base: &[(&'static str, &str)]) -> Page {
        let base = base.iter().map(|(name, value)| (*name, value.to_string())).collect();
        Page { base, metrics: BTreeMap::new() }
    }

    /// Adds a sample. Its labels are the ones that the metric's row names, in that order.
    pub fn put(&mut self, metric: &'static Metric, labels: &[(&str, &str)], value: f64) {
        self.sample(metric, "", labels, value);
    }

    /// Adds a histogram. `buckets` are not added up, and one more than `bounds`: what is above.
    pub fn histogram(
        &mut self,
        metric: &'static Metric,
        labels: &[(&str, &str)],
        bounds: &[f64],
        buckets: &[u64],
        sum: f64,
    ) {
        let bounds = bounds.iter().map(f64::to_string).chain(["+Inf".to_string()]);
        let mut count = 0;
        for (bound, bucket) in bounds.zip(buckets) {
            count += bucket;
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(metric, "_bucket", &labels, count as f64);
        }
        self.sample(metric, "_sum", labels, sum);
        self.sample(metric, "_count", labels, count as f64);
    }

    fn sample(
        &mut self,
        metric: &'static Metric,
        suffix: &str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        let base = self.base.iter().map(|(name, value)| (*name, value.as_str()));
        let base: Vec<_> = base.filter(|_| !metric.name.starts_with("process_")).collect();
        let (_, lines) = self.metrics.entry(metric.name).or_insert((metric, String::new()));
        let _ = write!(lines, "{}{suffix}", metric.name);
        for (i, (name, value)) in base.iter().chain(labels).enumerate() {
            let before = if i == 0 { '{' } else { ',' };
            let _ = write!(lines, "{before}{name}=\"{}\"", escape(value, true));
        }
        let end = if base.is_empty() && labels.is_empty() { "" } else { "}" };
        let _ = writeln!(lines, "{end} {value}");
    }

    /// The same, if there is a value.
    pub fn maybe(&mut self, metric: &'static Metric, labels: &[(&str, &str)], value: Option<f64>) {
        if let Some(value) = value {
            self.put(metric, labels, value);
        }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, (metric, lines)) in &self.metrics {
            let help = escape(metric.help, false);
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {}", metric.kind);
            text += lines;
        }
        text
    }
}

fn escape(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ONE: Metric =
        Metric { name: "everhold_b", kind: "gauge", labels: "rule", help: "a \\ and\na line" };
    static TWO: Metric =
        Metric { name: "process_a", kind: "counter", labels: "", help: "of the process" };

    #[test]
    fn samples_are_gathered_by_metric_and_escaped() {
        let mut page = Page::new(&[("node", "a")]);
        page.put(&ONE, &[("rule", "a\"b\\c\nd")], 1.5);
        page.put(&TWO, &[], 1e12);
        page.put(&ONE, &[("rule", "")], 0.0);
        page.maybe(&ONE, &[("rule", "none")], None);
        let expected = "# HELP everhold_b a \\\\ and\\na line\n# TYPE everhold_b gauge\n\
                        everhold_b{node=\"a\",rule=\"a\\\"b\\\\c\\nd\"} 1.5\n\
                        everhold_b{node=\"a\",rule=\"\"} 0\n\
                        # HELP process_a of the process\n# TYPE process_a counter\n\
                        process_a 1000000000000\n";
        assert_eq!(page.text(), expected);
    }

    #[test]
    fn buckets_of_a_histogram_are_added_up() {
        static TOOK: Metric =
            Metric { name: "http_took_seconds", kind: "histogram", labels: "route", help: "it" };
        let mut page = Page::new(&[("gateway", "g")]);
        page.histogram(&TOOK, &[("route", "r")], &[0.005, 1.0], &[2, 0, 1], 20.5);
        let expected = "# HELP http_took_seconds it\n# TYPE http_took_seconds histogram\n\
                        http_took_seconds_bucket{gateway=\"g\",route=\"r\",le=\"0.005\"} 2\n\
                        http_took_seconds_bucket{gateway=\"g\",route=\"r\",le=\"1\"} 2\n\
                        http_took_seconds_bucket{gateway=\"g\",route=\"r\",le=\"+Inf\"} 3\n\
                        http_took_seconds_sum{gateway=\"g\",route=\"r\"} 20.5\n\
                        http_took_seconds_count{gateway=\"g\",route=\"r\"} 3\n";
        assert_eq!(page.text(), expected);
    }
}
