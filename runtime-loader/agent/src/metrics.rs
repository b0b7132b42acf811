//! What is counted and measured, in the text format of Prometheus.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the histograms' buckets, in microseconds.
const BOUNDS: [u64; 14] = [
    1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000,
    10_000_000, 30_000_000,
];

/// A number that is set or counted.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Sets it.
    pub fn set(&self, to: usize) {
        self.0.store(to as u64, Ordering::Relaxed);
    }

    /// Counts one.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something took.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    micros: AtomicU64,
    count: AtomicU64,
}

impl Histogram {
    /// Adds one.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BOUNDS.iter().zip(&self.buckets).find(|(bound, _)| micros <= **bound) {
            bucket.1.fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str) {
        let mut sum = 0;
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            sum += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {sum}", *bound as f64 / 1e6);
        }
        let count = self.count.load(Ordering::Relaxed);
        let seconds = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ =
            writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {seconds}\n{name}_count {count}");
    }
}

/// Everything that is measured.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each one's text for Prometheus is below")]
pub struct Metrics {
    pub programming: Histogram,
    pub compile: Histogram,
    pub policies: Number,
    pub pods: Number,
    pub classes: Number,
    pub local_pods: Number,
    pub uncompilable: Number,
    pub unreadable: Number,
    pub compile_errors: Number,
    pub compile_failed: Number,
    pub loader_up: Number,
    pub loader_errors: Number,
    pub bundles: Number,
    pub rebinds: Number,
    pub watch_errors: Number,
    pub lists_complete: Number,
    pub cni_waiting: Number,
}

impl Metrics {
    /// Whether what is known is in force.
    pub fn is_ready(&self) -> bool {
        self.lists_complete.get() == 1 && self.loader_up.get() == 1 && self.compile_failed.get() == 0
    }

    /// All of them as text.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let histograms = [
            ("programming_seconds", "From what was told to rules in force.", &self.programming),
            ("compile_seconds", "From objects to a proven bundle.", &self.compile),
        ];
        for (name, help, histogram) in histograms {
            let name = format!("netpolc_agent_{name}");
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
            histogram.write(&mut out, &name);
        }
        let numbers = [
            ("policies", "gauge", "Policies that are known.", &self.policies),
            (
                "pods",
                "gauge",
                "Pods of the cluster that are known, without those of the host's network.",
                &self.pods,
            ),
            ("classes", "gauge", "Kinds of pods that the rules of this node tell apart.", &self.classes),
            ("local_pods", "gauge", "Pods of this node whose addresses are in force.", &self.local_pods),
            (
                "uncompilable_policies",
                "gauge",
                "Policies that could not be read; the pods they select are isolated.",
                &self.uncompilable,
            ),
            (
                "unreadable_objects_total",
                "counter",
                "Pods, namespaces and nodes that could not be read.",
                &self.unreadable,
            ),
            ("compile_errors_total", "counter", "Compilations without a bundle.", &self.compile_errors),
            (
                "compile_failed",
                "gauge",
                "Whether there is no bundle of what is known, so that an earlier one is in force.",
                &self.compile_failed,
            ),
            ("loader_up", "gauge", "Whether the loader has done all that it was told.", &self.loader_up),
            (
                "loader_errors_total",
                "counter",
                "Requests that the loader refused or could not be given.",
                &self.loader_errors,
            ),
            ("bundles_total", "counter", "Bundles that were brought into force.", &self.bundles),
            (
                "rebinds_total",
                "counter",
                "Times that addresses came and went without a bundle.",
                &self.rebinds,
            ),
            ("watch_errors_total", "counter", "Lists and watches that failed.", &self.watch_errors),
            ("lists_complete", "gauge", "Whether every list was complete once.", &self.lists_complete),
            ("cni_waiting", "gauge", "Requests of the CNI plugin that wait.", &self.cni_waiting),
        ];
        for (name, kind, help, number) in numbers {
            let name = format!("netpolc_agent_{name}");
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {}", number.get());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_everything_below_them() {
        let metrics = Metrics::default();
        for millis in [1, 4, 4, 60_000] {
            metrics.compile.observe(Duration::from_millis(millis));
        }
        let text = metrics.render();
        for line in [
            "netpolc_agent_compile_seconds_bucket{le=\"0.001\"} 1",
            "netpolc_agent_compile_seconds_bucket{le=\"0.005\"} 3",
            "netpolc_agent_compile_seconds_bucket{le=\"30\"} 3",
            "netpolc_agent_compile_seconds_bucket{le=\"+Inf\"} 4",
            "netpolc_agent_compile_seconds_count 4",
            "netpolc_agent_loader_up 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
