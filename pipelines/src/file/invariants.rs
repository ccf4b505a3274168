//! The invariants of a pipeline file: each is looked at by itself and against the sources there are.

use std::collections::BTreeSet;

use lockstep_core::config::Duration;
use lockstep_reconciler::invariants::{Invariant, Rule, Side};

use super::mistake::nearest;
use super::path::KeyPath;
use super::report::Report;
use super::settings::{InvariantSection, Reconciling, is_name};
use super::{Nodes, SHORTEST_RECONCILE};
use crate::registry::SourceComponent;

/// An invariant, and how often it is evaluated.
#[derive(Clone, Debug)]
pub struct DeclaredInvariant {
    /// What must hold.
    pub invariant: Invariant,
    /// From the beginning of one evaluation to the beginning of the next.
    pub every: Duration,
}

/// Those of the section that are right. What is wrong with the others is in the report.
pub(super) fn declared(
    section: Option<&Reconciling>,
    sources: &Nodes<dyn SourceComponent>,
    report: &mut Report,
) -> Vec<DeclaredInvariant> {
    let Some(section) = section else {
        return Vec::new();
    };
    let mut names = BTreeSet::new();
    let mut declared = Vec::new();
    for (index, one) in section.invariants.iter().enumerate() {
        let path = KeyPath::keys(&["reconcile", "invariants"]).index(index);
        if !is_name(&one.name) {
            let message = "a name is made of lower-case letters, digits, `_` and `-`";
            report.mistake(path.key("name"), message);
        } else if !names.insert(&*one.name) {
            let message = format!("another invariant has the name `{}`", one.name);
            report.mistake(path.key("name"), &message);
        }
        let before = report.len();
        key(one, &path, report);
        queries(one, &path, sources, report);
        direction(one, &path, report);
        times(one, &path, report);
        if report.len() > before {
            continue;
        }
        declared.push(DeclaredInvariant {
            every: one.every.unwrap_or(section.every),
            invariant: invariant(one),
        });
    }
    declared
}

fn invariant(one: &InvariantSection) -> Invariant {
    let at = |name: &String| one.queries.keys().position(|source| source == name);
    Invariant {
        name: one.name.as_str().into(),
        rule: one.rule,
        key: one.key.clone(),
        sides: one
            .queries
            .iter()
            .map(|(source, query)| Side {
                source: source.as_str().into(),
                query: query.clone(),
            })
            .collect(),
        for_each: one.for_each.as_ref().and_then(at).unwrap_or(0),
        compare: one.compare.clone(),
        within: one
            .within
            .map_or(std::time::Duration::ZERO, |within| within.0),
        timeout: one.timeout.0,
    }
}

fn key(one: &InvariantSection, path: &KeyPath, report: &mut Report) {
    let distinct: BTreeSet<&String> = one.key.iter().collect();
    if one.key.is_empty() {
        let message = "there is no column to join rows by";
        report.mistake(path.key("key"), message).hint =
            Some("name at least one that every query yields".to_owned());
    } else if distinct.len() < one.key.len() {
        report.mistake(path.key("key"), "a column is named twice");
    }
    match &one.compare {
        Some(_) if !one.rule.compares() => {
            let message = format!("`{}` looks at the key only", one.rule.as_str());
            report.mistake(path.key("compare"), &message);
        }
        Some(columns) if columns.is_empty() => {
            report.mistake(path.key("compare"), "there is no column to compare");
        }
        _ => {}
    }
}

fn queries(
    one: &InvariantSection,
    path: &KeyPath,
    sources: &Nodes<dyn SourceComponent>,
    report: &mut Report,
) {
    let path = path.key("queries");
    let (rule, count) = (one.rule.as_str(), one.queries.len());
    if one.rule.is_of_two() && count != 2 {
        let message = format!("`{rule}` is about two sources, and here is a query of {count}");
        report.mistake(path.clone(), &message).hint = Some(
            "write one query for each; what one database can tell alone is for `non_negative` or `unique`"
                .to_owned(),
        );
    } else if count == 0 {
        report.mistake(path.clone(), "there is no query");
    }
    for source in one.queries.keys() {
        let known = sources.declared.iter().map(|node| &*node.name);
        let Some(at) = known.clone().position(|name| name == source) else {
            let message = format!("there is no source `{source}`");
            report.mistake(path.key(source), &message).nearest = nearest(source, known);
            continue;
        };
        // One that could not be read has been reported as that.
        if let Some(component) = &sources.components[at]
            && let Ok(None) = component.queries()
        {
            let message = "a source of this kind has no database to ask";
            report.mistake(path.key(source), message);
        }
    }
}

fn direction(one: &InvariantSection, path: &KeyPath, report: &mut Report) {
    let path = path.key("for_each");
    let rule = one.rule.as_str();
    match &one.for_each {
        None if one.rule.is_directed() => {
            let message = format!("`{rule}` has to know whose rows are looked at");
            report.mistake(path, &message).hint =
                Some("name the source whose rows must be in the other".to_owned());
        }
        Some(_) if !one.rule.is_directed() => {
            let message = format!("`{rule}` has no direction");
            report.mistake(path, &message);
        }
        Some(source) if !one.queries.contains_key(source) => {
            let message = format!("there is no query of `{source}`");
            let known = one.queries.keys().map(String::as_str);
            report.mistake(path, &message).nearest = nearest(source, known);
        }
        _ => {}
    }
}

fn times(one: &InvariantSection, path: &KeyPath, report: &mut Report) {
    if one.rule == Rule::ExistsWithin && one.within.is_none() {
        let message = "`exists_within` has to know within what time";
        report.mistake(path.key("within"), message).hint = Some("such as 15m".to_owned());
    }
    let every = one.every.map(|every| ("every", every));
    for (key, time) in every.into_iter().chain([("timeout", one.timeout)]) {
        if time < SHORTEST_RECONCILE {
            let message = format!("`{time}` is too short");
            report.mistake(path.key(key), &message).hint =
                Some(format!("{SHORTEST_RECONCILE} or longer"));
        }
    }
}
