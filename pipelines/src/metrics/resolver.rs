//! The measures of what becomes of branches in doubt.

use std::collections::BTreeMap;

use lockstep_core::Result;
use lockstep_core::metrics as names;
use lockstep_transactions::resolve::Decision;
use prometheus::core::Collector as _;
use prometheus::{IntCounterVec, IntGaugeVec};

use super::Maker;

/// See the module's page.
#[derive(Clone)]
pub(crate) struct ResolverMetrics {
    /// What was done, by manager, rule, action and outcome.
    pub actions: IntCounterVec,
    pub(super) branches: IntGaugeVec,
    pub(super) looks: IntCounterVec,
}

impl ResolverMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        Ok(ResolverMetrics {
            actions: make.counters(names::RESOLVER_ACTIONS)?,
            branches: make.gauges(names::RESOLVER_BRANCHES)?,
            looks: make.counters(names::RESOLVER_LOOKS)?,
        })
    }

    /// A look has found these, and could ask all databases or not.
    pub fn looked(&self, decisions: &[Decision], is_all: bool) {
        let outcome = if is_all { "complete" } else { "incomplete" };
        self.looks.with_label_values(&[outcome]).inc();
        let mut counts: BTreeMap<[&str; 3], i64> = BTreeMap::new();
        for decision in decisions {
            let (branch, judged) = (&decision.doubt.branch, &decision.judged);
            let labels = [
                branch.dialect().as_str(),
                judged.rule.as_str(),
                judged.verdict.as_str(),
            ];
            *counts.entry(labels).or_default() += 1;
        }
        // One by one: a scrape in between must not find nothing.
        for labels in self.told() {
            if !counts.contains_key(&labels.each_ref().map(|label| &**label)) {
                // It is there: it was told.
                let _ = self.branches.remove_label_values(&labels);
            }
        }
        for (labels, count) in counts {
            self.branches.with_label_values(&labels).set(count);
        }
    }

    /// What is told now: managers, rules and actions.
    fn told(&self) -> Vec<[String; 3]> {
        let families = self.branches.collect();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        let told = metrics.map(|metric| {
            let of = |name: &str| {
                let mut labels = metric.get_label().iter();
                let label = labels.find(|label| label.name() == name);
                label.map_or_else(String::new, |label| label.value().to_owned())
            };
            ["manager", "rule", "action"].map(of)
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::query::InDoubt;
    use lockstep_transactions::resolve::{Doubt, Judged, Rule, Verdict};
    use prometheus::Registry;

    use super::*;

    fn decision(gid: &str, verdict: Verdict, rule: Rule) -> Decision {
        let in_doubt = InDoubt {
            gid: gid.to_owned(),
            xid: 7,
            prepared_micros: 0,
            owner: "shop".to_owned(),
        };
        Decision {
            doubt: Doubt::new("orders".into(), in_doubt),
            judged: Judged {
                verdict,
                rule,
                why: String::new(),
            },
            held: None,
        }
    }

    #[test]
    fn what_is_not_in_doubt_any_more_is_not_told() {
        let metrics = ResolverMetrics::new(&Maker(Registry::new())).expect("valid");
        let undecided = |gid| decision(gid, Verdict::LeaveAlone, Rule::None);
        let known = decision("131077_AQ==_Ag==", Verdict::Commit, Rule::Evidence);
        metrics.looked(&[undecided("a"), undecided("b"), known.clone()], true);
        let count = |labels: &[&str; 3]| metrics.branches.with_label_values(labels).get();
        assert_eq!(count(&["plain", "none", "leave alone"]), 2);
        assert_eq!(count(&["narayana", "evidence", "commit"]), 1);
        metrics.looked(&[known], false);
        let told = metrics.told();
        assert_eq!(
            told,
            [["narayana", "evidence", "commit"].map(str::to_owned)]
        );
        metrics.looked(&[], true);
        assert!(metrics.told().is_empty());
        let looks = |outcome| metrics.looks.with_label_values(&[outcome]).get();
        assert_eq!((looks("complete"), looks("incomplete")), (2, 1));
    }
}
