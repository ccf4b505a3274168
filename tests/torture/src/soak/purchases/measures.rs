//! What the runs of lockstep say of themselves at `/metrics`, all together: counters begin at 0 with every run.

use std::collections::BTreeMap;

use super::histogram::Histogram;
use super::violations::Violations;

/// Of all runs.
#[derive(Debug, Default)]
pub struct Measures {
    /// Counters of the runs before, by name and labels.
    before: BTreeMap<String, f64>,
    /// Of this one.
    now: BTreeMap<String, f64>,
    /// The most branches that were in doubt in a source at a time.
    pub most_in_doubt: u64,
    /// What was told as violated.
    told: BTreeMap<String, f64>,
}

const HOLD: &str = "lockstep_stitch_hold_seconds_bucket";
const OUTCOMES: &str = "lockstep_stitch_transactions_total";
const EVALUATIONS: &str = "lockstep_invariant_evaluations_total";
const VIOLATED: &str = "lockstep_invariant_violations";
const IN_DOUBT: &str = "lockstep_source_in_doubt_transactions";

impl Measures {
    /// Takes in an answer of `/metrics`.
    pub fn take(&mut self, text: &str, violations: &Violations) {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        for line in lines {
            let Some((name, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let Ok(value) = value.parse::<f64>() else {
                continue;
            };
            let metric = name.split('{').next().unwrap_or_default();
            match metric {
                HOLD | OUTCOMES | EVALUATIONS => {
                    self.now.insert(name.to_owned(), value);
                }
                VIOLATED if value > 0.0 => self.violated(name, value, violations),
                IN_DOUBT => self.most_in_doubt = self.most_in_doubt.max(value as u64),
                _ => {}
            }
        }
    }

    /// Told once, for as long as it stays the same.
    fn violated(&mut self, name: &str, value: f64, violations: &Violations) {
        if self.told.insert(name.to_owned(), value) != Some(value) {
            violations.add(format!("{name} {value}"));
        }
    }

    /// This run is over.
    pub fn ended(&mut self) {
        for (name, value) in std::mem::take(&mut self.now) {
            *self.before.entry(name).or_default() += value;
        }
    }

    fn counter(&self, name: &str) -> f64 {
        let of = |counters: &BTreeMap<String, f64>| counters.get(name).copied().unwrap_or_default();
        of(&self.before) + of(&self.now)
    }

    fn names(&self, metric: &str) -> Vec<&str> {
        let all = self.before.keys().chain(self.now.keys());
        let mut names: Vec<&str> = all.map(String::as_str).collect();
        names.retain(|name| name.split('{').next() == Some(metric));
        names.sort_unstable();
        names.dedup();
        names
    }

    /// How long branches were held.
    pub fn hold(&self) -> Histogram {
        let mut buckets: Vec<(f64, f64)> = self
            .names(HOLD)
            .into_iter()
            .filter_map(|name| {
                let bound = label(name, "le")?;
                let bound = bound.parse().ok().unwrap_or(f64::INFINITY);
                Some((bound, self.counter(name)))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut histogram = Histogram::default();
        let mut below = 0.0;
        for (bound, count) in buckets {
            let bound = match bound.is_finite() {
                true => (bound * 1e6) as u64,
                false => u64::MAX,
            };
            histogram.add(bound, (count - below) as u64);
            below = count;
        }
        histogram
    }

    /// Transactions of several databases that went on, by what they were.
    pub fn outcomes(&self) -> BTreeMap<String, u64> {
        self.by_outcome(OUTCOMES)
    }

    /// Evaluations of invariants, by what came of them.
    pub fn evaluations(&self) -> BTreeMap<String, u64> {
        self.by_outcome(EVALUATIONS)
    }

    fn by_outcome(&self, metric: &str) -> BTreeMap<String, u64> {
        let mut outcomes = BTreeMap::new();
        for name in self.names(metric) {
            if let Some(outcome) = label(name, "outcome") {
                *outcomes.entry(outcome.to_owned()).or_default() += self.counter(name) as u64;
            }
        }
        outcomes
    }
}

fn label<'a>(name: &'a str, label: &str) -> Option<&'a str> {
    let (_, rest) = name.split_once(&format!("{label}=\""))?;
    rest.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_added_up() {
        let run = |whole: u64, fast: u64, slow: u64| {
            format!(
                "# HELP x y?\n{OUTCOMES}{{outcome=\"whole\",stitch=\"w\"}} {whole}\n\
                 {HOLD}{{stitch=\"w\",le=\"0.001\"}} {fast}\n{HOLD}{{stitch=\"w\",le=\"+Inf\"}} {slow}\n\
                 {VIOLATED}{{invariant=\"sold\"}} 0\n{IN_DOUBT}{{source=\"orders\"}} {whole}\n"
            )
        };
        let violations = Violations::default();
        let mut measures = Measures::default();
        measures.take(&run(2, 2, 4), &violations);
        measures.take(&run(3, 3, 6), &violations);
        measures.ended();
        measures.take(&run(1, 1, 2), &violations);
        assert_eq!(measures.outcomes()["whole"], 4);
        assert_eq!(measures.hold().count(), 8);
        assert_eq!(measures.hold().millis(0.25), Some(0.5));
        assert_eq!((measures.most_in_doubt, violations.count()), (3, 0));
        measures.take(
            &format!("{VIOLATED}{{invariant=\"sold\"}} 1\n"),
            &violations,
        );
        assert_eq!(violations.count(), 1);
    }
}
