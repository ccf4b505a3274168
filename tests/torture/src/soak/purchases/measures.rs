//! What the runs of lockstep say of themselves at `/metrics`, all together: counters begin at 0 with every run.

use std::collections::BTreeMap;

use super::histogram::Histogram;
use super::violations::Violations;

/// Times of one kind, of all runs.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// By length.
    pub histogram: Histogram,
    /// The mean in milliseconds; `None` of nothing.
    pub mean: Option<f64>,
}

/// Branches that are named by one manager, as lockstep has read them.
#[derive(Clone, Debug, Default)]
pub struct OfManager {
    /// Those that were committed.
    pub committed: u64,
    /// Those that were rolled back.
    pub rolled_back: u64,
    /// From PREPARE to COMMIT PREPARED.
    pub prepared: Times,
    /// From COMMIT PREPARED to durable, in all sinks.
    pub visible: Times,
}

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

const HOLD: &str = "lockstep_stitch_hold_seconds";
const DECIDED: &str = "lockstep_stitch_decided_seconds";
const BRANCHES: &str = "lockstep_two_phase_branches_total";
const PREPARED: &str = "lockstep_two_phase_prepared_seconds";
const VISIBLE: &str = "lockstep_two_phase_visible_seconds";
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
                OUTCOMES | EVALUATIONS | BRANCHES => {
                    self.now.insert(name.to_owned(), value);
                }
                VIOLATED if value > 0.0 => self.violated(name, value, violations),
                IN_DOUBT => self.most_in_doubt = self.most_in_doubt.max(value as u64),
                _ if is_of_times(metric) => {
                    self.now.insert(name.to_owned(), value);
                }
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
    pub fn hold(&self) -> Times {
        self.times(HOLD, "")
    }

    /// How long they would have been, had all gone on as soon as their branches were known.
    pub fn decided(&self) -> Times {
        self.times(DECIDED, "")
    }

    /// Branches by who has named them.
    pub fn managers(&self) -> BTreeMap<String, OfManager> {
        let mut managers: BTreeMap<String, OfManager> = BTreeMap::new();
        for name in self.names(BRANCHES) {
            let Some(manager) = label(name, "manager") else {
                continue;
            };
            let of = managers.entry(manager.to_owned()).or_default();
            let count = self.counter(name) as u64;
            match label(name, "outcome") {
                Some("committed") => of.committed += count,
                Some("rolled_back") => of.rolled_back += count,
                _ => {}
            }
        }
        for (manager, of) in &mut managers {
            let of_it = format!("manager=\"{manager}\"");
            of.prepared = self.times(PREPARED, &of_it);
            of.visible = self.times(VISIBLE, &of_it);
        }
        managers
    }

    /// Those of a metric that have this among their labels, together.
    fn times(&self, metric: &str, with: &str) -> Times {
        let of = |part: &str| {
            let names = self.names(&format!("{metric}{part}")).into_iter();
            names.filter(|name| name.contains(with))
        };
        let mut until: BTreeMap<u64, f64> = BTreeMap::new();
        for name in of("_bucket") {
            let Some(bound) = label(name, "le") else {
                continue;
            };
            let micros = bound.parse::<f64>().ok().filter(|bound| bound.is_finite());
            let micros = micros.map_or(u64::MAX, |bound| (bound * 1e6) as u64);
            *until.entry(micros).or_default() += self.counter(name);
        }
        let mut histogram = Histogram::default();
        let mut below = 0.0;
        for (bound, count) in until {
            histogram.add(bound, (count - below) as u64);
            below = count;
        }
        let seconds: f64 = of("_sum").map(|name| self.counter(name)).sum();
        let mean = (below > 0.0).then_some(seconds * 1e3 / below);
        Times { histogram, mean }
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

/// Whether it is a part of a histogram that is looked at.
fn is_of_times(metric: &str) -> bool {
    let parts = ["_bucket", "_sum"];
    let base = parts.iter().find_map(|part| metric.strip_suffix(part));
    base.is_some_and(|base| [HOLD, DECIDED, PREPARED, VISIBLE].contains(&base))
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
                 {HOLD}_bucket{{stitch=\"w\",le=\"0.001\"}} {fast}\n{HOLD}_bucket{{stitch=\"w\",le=\"+Inf\"}} {slow}\n\
                 {HOLD}_sum{{stitch=\"w\"}} 0.{slow}\n\
                 {BRANCHES}{{manager=\"xa\",outcome=\"committed\",source=\"orders\"}} {whole}\n\
                 {BRANCHES}{{manager=\"xa\",outcome=\"committed\",source=\"inventory\"}} {whole}\n\
                 {BRANCHES}{{manager=\"lockstep\",outcome=\"rolled_back\",source=\"inventory\"}} 1\n\
                 {PREPARED}_bucket{{manager=\"xa\",source=\"orders\",le=\"0.001\"}} {fast}\n\
                 {PREPARED}_bucket{{manager=\"xa\",source=\"inventory\",le=\"0.001\"}} {fast}\n\
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
        let hold = measures.hold();
        assert_eq!(hold.histogram.count(), 8);
        assert_eq!(hold.histogram.millis(0.25), Some(0.5));
        // 0.6 s and 0.2 s in the two runs.
        assert_eq!(hold.mean.map(f64::round), Some(100.0));
        assert_eq!(measures.decided().mean, None);
        let managers = measures.managers();
        let xa = &managers["xa"];
        assert_eq!((xa.committed, xa.rolled_back), (8, 0));
        assert_eq!(xa.prepared.histogram.count(), 8);
        assert_eq!(managers["lockstep"].rolled_back, 2);
        assert_eq!((measures.most_in_doubt, violations.count()), (3, 0));
        measures.take(
            &format!("{VIOLATED}{{invariant=\"sold\"}} 1\n"),
            &violations,
        );
        assert_eq!(violations.count(), 1);
    }
}
