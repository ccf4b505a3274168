//! A Prometheus with the shipped rules, in a hurry, and the dashboards' queries.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use lockstep_e2e::Pipeline;
use lockstep_kit::prometheus::{Alert, Prometheus, PrometheusOptions, Target};
use lockstep_monitoring::dashboards;
use lockstep_monitoring::picture::{Series, draw};
use lockstep_monitoring::rules::Rules;
use regex::{Captures, Regex};

/// For an alert to fire, and for a panel to have data, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Thresholds that a test can come to. Of all others the shipped ones are taken.
const THRESHOLDS: [(&str, &str, &str); 11] = [
    ("LockstepLeaseUnsteady", "> 4", "> 1"),
    ("LockstepSourceStalled", "> 2^20", "> 2^16"),
    ("LockstepSourceStalled", "> 300", "> 2"),
    ("LockstepSourceLag", "> 2^30", "> 2^16"),
    ("LockstepSlotRetention", "> 10 * 2^30", "> 2^25"),
    ("LockstepSinkErrors", "> 3", "> 1"),
    ("LockstepSinkLag", "> 300", "> 3"),
    ("LockstepInDoubt", "> 600", "> 3"),
    ("LockstepInDoubtRetention", "> 5 * 2^30", "> 2^16"),
    ("LockstepNotVerified", "> 3600", "> 12"),
    ("LockstepInvariantNotVerified", "> 3600", "> 12"),
];

/// The shipped rules, a minute of theirs in a second, and nothing pending for longer than two.
fn in_a_hurry(rules: &Rules) -> String {
    let mut text = rules.text.clone();
    for (alert, from, to) in THRESHOLDS {
        let begin = text.find(&format!("alert: {alert}\n")).expect(alert);
        let end = text[begin..].find("labels:").expect("labels") + begin;
        let rule = &text[begin..end];
        assert_eq!(rule.matches(from).count(), 1, "{from} in {rule}");
        let rule = rule.replace(from, to);
        text.replace_range(begin..end, &rule);
    }
    let pending = Regex::new(r"for: \d+m").expect("a pattern");
    let text = pending.replace_all(&text, "for: 2s");
    let times = Regex::new(r"(\[|:|offset )(\d+)(m|h)\b").expect("a pattern");
    let shorter = |found: &Captures<'_>| {
        let count: u64 = found[2].parse().expect("a number");
        let seconds = if &found[3] == "h" { count * 60 } else { count };
        format!("{}{seconds}s", &found[1])
    };
    times.replace_all(&text, shorter).into_owned()
}

/// A query of a dashboard as Grafana would send it, with all chosen that can be, and this pipeline.
pub fn filled_in(expr: &str, pipeline: &str) -> String {
    let expr = expr.replace("$pipeline", pipeline);
    let expr = expr.replace("$job", ".*").replace("$instance", ".*");
    expr.replace("$__rate_interval", "15s")
}

/// One query that has not had a result yet.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Of the dashboard and the panel.
    pub panel: String,
    /// Whether the panel may be empty in a healthy pipeline.
    pub may_be_empty: bool,
}

/// See the module's page.
pub struct Lab {
    prometheus: Prometheus,
    pipeline: String,
    targets: Vec<Target>,
    /// Of the dashboards, by query.
    pub wanted: BTreeMap<String, Wanted>,
    fired: Vec<String>,
}

impl Lab {
    pub async fn start(pipeline: &str) -> Self {
        let rules = Rules::shipped();
        let options = PrometheusOptions {
            rules: vec![in_a_hurry(&rules)],
            ..PrometheusOptions::default()
        };
        let mut wanted = BTreeMap::new();
        for (_, dashboard) in dashboards(&rules) {
            for panel in dashboard.panels() {
                for query in &panel.queries {
                    let one = Wanted {
                        panel: format!("{}: {}", dashboard.title, panel.title),
                        may_be_empty: panel.may_be_empty,
                    };
                    wanted.insert(filled_in(&query.expr, pipeline), one);
                }
            }
        }
        Lab {
            prometheus: Prometheus::start(options).await,
            pipeline: pipeline.into(),
            targets: Vec::new(),
            wanted,
            fired: Vec::new(),
        }
    }

    /// Scrapes one process more.
    pub async fn scrape(&mut self, process: &mut Pipeline) {
        self.targets.push(Target {
            address: process.address().await,
            labels: vec![("pipeline".into(), self.pipeline.clone())],
        });
        self.prometheus.scrape(&self.targets);
    }

    /// Does not scrape what was scraped first any more: its process is gone, as its pod would be.
    pub fn forget(&mut self, process: std::net::SocketAddr) {
        self.targets.retain(|target| target.address != process);
        self.prometheus.scrape(&self.targets);
    }

    /// Asks each query that had no result yet.
    pub async fn look(&mut self) {
        let mut got = Vec::new();
        for expr in self.wanted.keys() {
            let samples = self.prometheus.query(expr).await;
            let samples = samples.unwrap_or_else(|error| panic!("{error}"));
            if samples.iter().any(|sample| !sample.value.is_nan()) {
                got.push(expr.clone());
            }
        }
        for expr in got {
            self.wanted.remove(&expr);
        }
    }

    /// Looks until a query of each panel has had a result but of those that may be empty, or for which it is said that they are.
    pub async fn fills(&mut self, what: &str, is_left: impl Fn(&str, &Wanted) -> bool) {
        let began = Instant::now();
        loop {
            self.look().await;
            let missing: Vec<_> = self
                .wanted
                .iter()
                .filter(|(expr, wanted)| !is_left(expr, wanted))
                .collect();
            if missing.is_empty() {
                println!("{what}: {:?}", began.elapsed());
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{what}: empty: {missing:#?}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Waits until all of these fire, each with a label of this value, and looks at the dashboards meanwhile.
    pub async fn fire(&mut self, expected: &[(&str, &str, &str)]) {
        let began = Instant::now();
        let mut left = expected.to_vec();
        while !left.is_empty() {
            let alerts = self.alerts().await;
            let is_there = |(name, label, value): &(&str, &str, &str)| {
                let found = alerts.iter().find(|alert| {
                    let labelled = alert.labels.get(*label).map(String::as_str);
                    alert.fires && alert.name() == *name && labelled == Some(*value)
                });
                found.inspect(|alert| self.is_rendered(alert)).is_some()
            };
            let (there, not): (Vec<_>, Vec<_>) = left.into_iter().partition(is_there);
            for (name, ..) in there {
                println!("{name} after {:?}", began.elapsed());
                self.fired.push(name.into());
            }
            left = not;
            self.look().await;
            assert!(
                began.elapsed() < PATIENCE,
                "in vain for {left:?}; there are {:#?}",
                alerts
                    .iter()
                    .map(|alert| (alert.fires, &alert.labels))
                    .collect::<Vec<_>>()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until none of these is pending or fires.
    pub async fn end(&self, names: &[&str]) {
        let began = Instant::now();
        loop {
            let alerts = self.alerts().await;
            let left: Vec<_> = alerts
                .iter()
                .filter(|alert| names.contains(&alert.name()))
                .collect();
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "they go on: {left:#?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until none is pending or fires.
    pub async fn calm(&self) {
        let began = Instant::now();
        loop {
            let alerts = self.alerts().await;
            if alerts.is_empty() {
                println!("calm after {:?}", began.elapsed());
                return;
            }
            assert!(began.elapsed() < PATIENCE, "no calm: {alerts:#?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Draws all dashboards, of the time since then.
    pub async fn draw(&self, folder: &Path, since: SystemTime) {
        let time = [since, SystemTime::now()];
        for (file, dashboard) in dashboards(&Rules::shipped()) {
            let mut answers = BTreeMap::new();
            for query in dashboard.panels().flat_map(|panel| &panel.queries) {
                let expr = filled_in(&query.expr, &self.pipeline);
                let ranges = self.prometheus.range(&expr, time).await;
                let ranges = ranges.unwrap_or_else(|error| panic!("{error}"));
                let series = ranges.into_iter().map(|range| Series {
                    labels: range.labels,
                    points: range.points,
                });
                answers.insert(query.expr.clone(), series.collect::<Vec<_>>());
            }
            let picture = draw(&dashboard, |query| answers[&query.expr].clone());
            let path = folder.join(file).with_extension("svg");
            std::fs::write(&path, picture).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        }
    }

    /// Waits until a condition has a result.
    pub async fn sees(&self, condition: &str) {
        let began = Instant::now();
        while self.value(condition).await.is_none() {
            assert!(began.elapsed() < PATIENCE, "in vain for {condition}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The value of a query with one result.
    pub async fn value(&self, expr: &str) -> Option<f64> {
        let samples = self.prometheus.query(expr).await;
        let samples = samples.unwrap_or_else(|error| panic!("{error}"));
        samples.first().map(|sample| sample.value)
    }

    /// All that was waited for, once each and in order.
    pub fn fired(mut self) -> Vec<String> {
        self.fired.sort();
        self.fired.dedup();
        self.fired
    }

    async fn alerts(&self) -> Vec<Alert> {
        let alerts = self.prometheus.alerts().await;
        alerts.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What people read has all its values.
    fn is_rendered(&self, alert: &Alert) {
        let said: Vec<&str> = alert.annotations.values().map(String::as_str).collect();
        let said = said.join("\n");
        assert!(said.contains(&self.pipeline), "{alert:#?}");
        for wrong in ["<no value>", "<error", "{{"] {
            assert!(!said.contains(wrong), "{wrong} in {alert:#?}");
        }
    }
}
