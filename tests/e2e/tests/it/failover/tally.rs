//! What was seen of takeovers, as a row of a table.

use std::time::Duration;

/// How long one took, from the fault on.
#[derive(Clone, Copy, Debug)]
pub struct Takeover {
    /// Until the lease was had.
    pub leased: Duration,
    /// Until all sources and sinks were open.
    pub ready: Duration,
    /// Until a record was durable in Kafka.
    pub wrote: Duration,
}

/// Those of a run with one provider.
#[derive(Debug, Default)]
pub struct Tally {
    pub kills: Vec<Takeover>,
    pub freezes: Vec<Takeover>,
    /// Writes that were refused to those who were frozen and woke up; `None` while nobody has told.
    fenced: Option<u64>,
    /// Changes that arrived more than once.
    pub double: usize,
}

impl Tally {
    /// Above the rows.
    pub const HEAD: &str = "\
| provider | kills | freezes | lease had: p50 | p99 | at most | all open: p50 | p99 | at most | first record: p50 | p99 | at most | fenced writes | double effects |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

    /// Adds what a frozen one told.
    pub fn fenced(&mut self, told: Option<u64>) {
        if let Some(told) = told {
            *self.fenced.get_or_insert(0) += told;
        }
    }

    pub fn all(&self) -> impl Iterator<Item = &Takeover> {
        self.kills.iter().chain(&self.freezes)
    }

    /// In Markdown.
    pub fn row(&self, provider: &str) -> String {
        let times = |of: fn(&Takeover) -> Duration| {
            let mut took: Vec<Duration> = self.all().map(of).collect();
            took.sort_unstable();
            [50, 99, 100]
                .map(|part| format!("{:.1} s", at(&took, part).as_secs_f64()))
                .join(" | ")
        };
        let fenced = self
            .fenced
            .map_or_else(|| "–".into(), |count| count.to_string());
        format!(
            "| {provider} | {} | {} | {} | {} | {} | {fenced} | {} |",
            self.kills.len(),
            self.freezes.len(),
            times(|took| took.leased),
            times(|took| took.ready),
            times(|took| took.wrote),
            self.double,
        )
    }
}

/// The least that so many of a hundred do not exceed.
fn at(sorted: &[Duration], part: usize) -> Duration {
    let rank = (sorted.len() * part).div_ceil(100);
    sorted[rank.max(1) - 1]
}

/// The value of the first sample of a metric with all these labels, as `sink="events"`.
pub fn value(text: &str, metric: &str, labels: &[&str]) -> Option<f64> {
    samples(text, metric)
        .find(|(sample, _)| labels.iter().all(|label| sample.contains(label)))
        .map(|(_, value)| value)
}

/// All samples of a counter together; `None` when there are none.
pub fn sum(text: &str, metric: &str) -> Option<u64> {
    let values = samples(text, metric).map(|(_, value)| value as u64);
    values.reduce(|one, other| one + other)
}

fn samples<'a>(text: &'a str, metric: &str) -> impl Iterator<Item = (&'a str, f64)> {
    let of_metric = move |line: &'a str| {
        let rest = line.strip_prefix(metric)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        let is_it = labels.is_empty() || labels.starts_with('{');
        Some((labels, value.parse().ok()?)).filter(|_| is_it)
    };
    text.lines().filter_map(of_metric)
}

#[test]
fn rows_have_as_many_cells_as_their_head() {
    let took = |seconds| Takeover {
        leased: Duration::from_secs(seconds),
        ready: Duration::from_secs(2 * seconds),
        wrote: Duration::from_secs(3 * seconds),
    };
    let mut tally = Tally::default();
    tally.kills.extend((1..=100).map(took));
    let row = tally.row("Redis");
    assert_eq!(
        row,
        "| Redis | 100 | 0 | 50.0 s | 99.0 s | 100.0 s | 100.0 s | 198.0 s | 200.0 s | 150.0 s | 297.0 s | 300.0 s | – | 0 |"
    );
    for line in Tally::HEAD.lines() {
        assert_eq!(line.matches('|').count(), row.matches('|').count());
    }
    tally.fenced(None);
    tally.fenced(Some(2));
    tally.freezes.push(took(1));
    assert!(tally.row("Redis").ends_with("| 2 | 0 |"), "{tally:?}");
}

#[test]
fn measures_are_found() {
    let text = "# HELP a b\na{outcome=\"written\",sink=\"events\"} 3\na{outcome=\"stale\",sink=\"events\"} 4\naa 1\nb 5\n";
    let written = ["sink=\"events\"", "outcome=\"written\""];
    assert_eq!(value(text, "a", &written), Some(3.0));
    assert_eq!(
        (value(text, "b", &[]), value(text, "c", &[])),
        (Some(5.0), None)
    );
    assert_eq!((sum(text, "a"), sum(text, "c")), (Some(7), None));
}
