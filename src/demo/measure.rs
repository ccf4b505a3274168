//! Reads figures off the pipeline's own metrics and off the operating system.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_core::metrics::{
    CHANGES, END_TO_END_LATENCY, Metric, SINK_BYTES, STITCH_HOLD, STITCH_TRANSACTIONS,
};
use lockstep_pipelines::Handle;
use prometheus::proto::{Histogram, LabelPair, MetricFamily};

use super::summary::{Latency, TableSummary};

/// All metrics at one moment.
pub struct Gathered(Vec<MetricFamily>);

impl Gathered {
    /// As they are now.
    pub fn now(handle: &Handle) -> Self {
        Gathered(handle.metrics().registry().gather())
    }

    fn family(&self, metric: &Metric) -> Option<&MetricFamily> {
        self.0.iter().find(|family| family.name() == metric.name)
    }

    /// From commit to durable, by sink; sinks that have made nothing durable yet are missing.
    pub fn latencies(&self) -> BTreeMap<String, Latency> {
        let metrics = self
            .family(&END_TO_END_LATENCY)
            .map(MetricFamily::get_metric)
            .unwrap_or_default();
        metrics
            .iter()
            .filter_map(|metric| {
                let latency = latency(metric.get_histogram())?;
                Some((label(metric.get_label(), "sink"), latency))
            })
            .collect()
    }

    /// How long the branches of purchases were held back for each other, if there were any.
    pub fn hold(&self) -> Option<Latency> {
        let metrics = self.family(&STITCH_HOLD)?.get_metric();
        latency(metrics.first()?.get_histogram())
    }

    /// Transactions of both databases that went on: how many, and how many of them were not whole.
    pub fn stitched(&self) -> [u64; 2] {
        let metrics = self
            .family(&STITCH_TRANSACTIONS)
            .map(MetricFamily::get_metric)
            .unwrap_or_default();
        let mut stitched = [0, 0];
        for metric in metrics {
            let count = metric.get_counter().get_value() as u64;
            match label(metric.get_label(), "outcome").as_str() {
                "whole" => stitched[0] += count,
                // Of one that was too large to go on at once, it is told besides what else it was.
                "cut" => stitched[1] += count,
                _ => stitched = [stitched[0] + count, stitched[1] + count],
            }
        }
        stitched
    }

    /// Payload bytes by sink.
    pub fn bytes(&self) -> BTreeMap<String, u64> {
        let metrics = self
            .family(&SINK_BYTES)
            .map(MetricFamily::get_metric)
            .unwrap_or_default();
        metrics
            .iter()
            .map(|metric| {
                (
                    label(metric.get_label(), "sink"),
                    metric.get_counter().get_value() as u64,
                )
            })
            .collect()
    }

    /// Changes by source and table.
    pub fn tables(&self) -> Vec<TableSummary> {
        let mut tables: BTreeMap<(String, String), TableSummary> = BTreeMap::new();
        for metric in self
            .family(&CHANGES)
            .map(MetricFamily::get_metric)
            .unwrap_or_default()
        {
            let labels = metric.get_label();
            // What a branch says that it belongs to is no row.
            if label(labels, "op") == "message" {
                continue;
            }
            let (source, table) = (label(labels, "source"), label(labels, "table"));
            let count = metric.get_counter().get_value() as u64;
            let entry = tables
                .entry((source.clone(), table.clone()))
                .or_insert_with(|| TableSummary {
                    source,
                    table: table.rsplit('.').next().unwrap_or_default().to_owned(),
                    ..TableSummary::default()
                });
            match label(labels, "op").as_str() {
                "read" => entry.reads += count,
                "insert" => entry.inserts += count,
                "update" => entry.updates += count,
                "delete" => entry.deletes += count,
                _ => {}
            }
        }
        tables.into_values().collect()
    }
}

fn label(labels: &[LabelPair], name: &str) -> String {
    labels
        .iter()
        .find(|label| label.name() == name)
        .map(|label| label.value().to_owned())
        .unwrap_or_default()
}

fn latency(histogram: &Histogram) -> Option<Latency> {
    Some(Latency {
        p50: quantile(histogram, 0.50)?,
        p99: quantile(histogram, 0.99)?,
    })
}

/// A quantile from a histogram's buckets, by linear interpolation as Prometheus does it; `None` without observations.
fn quantile(histogram: &Histogram, q: f64) -> Option<Duration> {
    let total = histogram.get_sample_count();
    if total == 0 {
        return None;
    }
    let rank = q * total as f64;
    let (mut below, mut lower) = (0.0, 0.0);
    for bucket in histogram.get_bucket() {
        let (count, upper) = (bucket.cumulative_count() as f64, bucket.upper_bound());
        if count >= rank {
            let upper = if upper.is_finite() { upper } else { lower };
            let share = if count > below {
                (rank - below) / (count - below)
            } else {
                1.0
            };
            return Duration::try_from_secs_f64(lower + (upper - lower) * share).ok();
        }
        (below, lower) = (count, upper);
    }
    // Above the last bound: the bound is all that is known.
    Duration::try_from_secs_f64(lower).ok()
}

/// A field of `/proc/self/status` in bytes.
fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Resident memory of this process now.
pub fn resident() -> Option<u64> {
    status_bytes("VmRSS")
}

/// The most resident memory this process ever had.
pub fn peak_resident() -> Option<u64> {
    status_bytes("VmHWM")
}
