//! The measures of the lease. They are there before a pipeline runs, so they have a registry of their own, made at each scrape.

use lockstep_core::metrics as names;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_leases::{Figures, Right};
use prometheus::{
    CounterVec, Encoder, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::Maker;

/// The collectors, without a value.
pub(super) struct LeaseMetrics {
    pub held: IntGaugeVec,
    pub token: IntGaugeVec,
    pub left: GaugeVec,
    pub attempts: IntCounterVec,
    pub waited: CounterVec,
    pub lost: IntCounterVec,
    registry: Registry,
}

impl LeaseMetrics {
    pub fn new() -> Result<Self> {
        let make = Maker(Registry::new());
        let waited = names::LEASE_WAIT;
        Ok(LeaseMetrics {
            held: make.gauges(names::LEASE_HELD)?,
            token: make.gauges(names::LEASE_TOKEN)?,
            left: make.float_gauges(names::LEASE_LEFT)?,
            attempts: make.counters(names::LEASE_ATTEMPTS)?,
            waited: make.add(CounterVec::new(
                Opts::new(waited.name, waited.help),
                waited.labels,
            ))?,
            lost: make.counters(names::LEASE_LOST)?,
            registry: make.0,
        })
    }
}

/// The measures as Prometheus reads them.
///
/// # Errors
/// Of kind `Protocol`, when they cannot be written down.
pub(crate) fn lease_text(figures: &Figures, right: Option<&Right>) -> Result<String> {
    let metrics = LeaseMetrics::new()?;
    let none: &[&str] = &[];
    let left = right.and_then(Right::left);
    metrics
        .held
        .with_label_values(none)
        .set(i64::from(left.is_some()));
    if let (Some(right), Some(left)) = (right, left) {
        let token = i64::try_from(right.token().0).unwrap_or(i64::MAX);
        metrics.token.with_label_values(none).set(token);
        metrics.left.with_label_values(none).set(left.as_secs_f64());
    }
    let outcomes = [
        ("acquired", figures.acquired),
        ("refused", figures.refused),
        ("timed_out", figures.timed_out),
        ("given_up", figures.given_up),
        ("failed", figures.failed),
    ];
    for (outcome, count) in outcomes {
        metrics.attempts.with_label_values(&[outcome]).inc_by(count);
    }
    let waited = figures.waited.as_secs_f64();
    metrics.waited.with_label_values(none).inc_by(waited);
    metrics.lost.with_label_values(none).inc_by(figures.lost);
    let mut out = Vec::new();
    TextEncoder::new()
        .encode(&metrics.registry.gather(), &mut out)
        .map_err(|error| {
            Error::new(ErrorKind::Protocol, "cannot encode the metrics").source(error)
        })?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn success_rate_and_average_wait_can_be_computed() {
        let figures = Figures {
            acquired: 2,
            timed_out: 1,
            waited: Duration::from_millis(1500),
            lost: 1,
            ..Figures::default()
        };
        let text = lease_text(&figures, None).expect("encoded");
        for line in [
            "lockstep_lease_held 0",
            "lockstep_lease_attempts_total{outcome=\"acquired\"} 2",
            "lockstep_lease_attempts_total{outcome=\"timed_out\"} 1",
            "lockstep_lease_wait_seconds_total 1.5",
            "lockstep_lease_lost_total 1",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        assert!(!text.contains("lockstep_lease_token "), "{text}");
    }
}
