//! The section `[transactions]`, looked at against the sources and the managers there are.

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_core::config;
use lockstep_transactions::gid::MANAGERS;
use lockstep_transactions::resolve::Policy;

use super::Nodes;
use super::mistake::nearest;
use super::path::KeyPath;
use super::report::Report;
use super::settings::TwoPhase;
use crate::registry::SourceComponent;

/// The shortest time between two looks: each opens a connection to every database.
const SHORTEST_EVERY: config::Duration = config::Duration(Duration::from_secs(1));

/// What becomes of two-phase commits that a coordinator has left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolving {
    /// The source whose database has the decision log; `None`: it is looked for in all.
    pub log: Option<String>,
    /// Whom `lockstep transactions resolve` may act for, and how old a branch must be.
    pub policy: Policy,
    /// Whom the running pipeline acts for by itself.
    pub automatic: BTreeSet<String>,
    /// How often it looks; `None`: never.
    pub every: Option<Duration>,
}

impl Resolving {
    /// Whom the running pipeline may act for, and how old a branch must be.
    #[must_use]
    pub fn by_itself(&self) -> Policy {
        Policy {
            resolve: self.automatic.clone(),
            ..self.policy.clone()
        }
    }
}

/// What the section says. What is wrong with it is in the report.
pub(super) fn resolving(
    section: Option<&TwoPhase>,
    sources: &Nodes<dyn SourceComponent>,
    report: &mut Report,
) -> Resolving {
    let Some(section) = section else {
        return Resolving::default();
    };
    let path = KeyPath::keys(&["transactions"]);
    if let Some(log) = &section.log {
        let known = sources.declared.iter().map(|node| &*node.name);
        if !known.clone().any(|name| name == log) {
            let message = format!("there is no source `{log}`");
            report.mistake(path.key("log"), &message).nearest = nearest(log, known);
        }
    }
    for (key, managers) in [
        ("resolve", &section.resolve),
        ("automatic", &section.automatic),
    ] {
        for (index, manager) in managers.iter().enumerate() {
            is_manager(manager, path.key(key).index(index), report);
        }
    }
    if section.every < SHORTEST_EVERY {
        let message = format!("`{}` is too often", section.every);
        report.mistake(path.key("every"), &message).hint =
            Some(format!("{SHORTEST_EVERY} or longer"));
    }
    for manager in section.safety_intervals.keys() {
        is_manager(manager, path.key("safety_intervals").key(manager), report);
    }
    let intervals = section.safety_intervals.iter();
    Resolving {
        log: section.log.clone(),
        policy: Policy {
            resolve: section.resolve.iter().cloned().collect::<BTreeSet<_>>(),
            safety_interval: section.safety_interval.0,
            safety_intervals: intervals
                .map(|(manager, interval)| (manager.clone(), interval.0))
                .collect(),
        },
        automatic: section.automatic.iter().cloned().collect(),
        every: Some(section.every.0),
    }
}

fn is_manager(name: &str, path: KeyPath, report: &mut Report) {
    if !MANAGERS.contains(&name) {
        let message = format!("`{name}` is no manager whose names are known");
        report.mistake(path, &message).nearest = nearest(name, MANAGERS.iter().copied());
    }
}
