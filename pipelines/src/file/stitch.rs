//! The `stitch` of a pipeline file: it stands directly behind whole sources, and everything that reads them reads it.

use std::sync::Arc;

use lockstep_core::transform::Stitching;

use super::Nodes;
use super::mistake::nearest;
use super::path::KeyPath;
use super::report::Report;
use crate::plan::{Consumer, Plan, Producer};
use crate::registry::{SinkComponent, SourceComponent, TransformComponent};

/// Sources whose transactions go on together.
#[derive(Clone, Debug)]
pub struct Stitched {
    /// Name of the transform.
    pub name: Arc<str>,
    /// Indices of the sources, ascending.
    pub sources: Vec<usize>,
    /// How.
    pub stitching: Stitching,
}

/// The stitch that is declared. What is wrong with it is in the report.
pub(super) fn declared(
    plan: &Plan,
    components: &Nodes<dyn SourceComponent>,
    transforms: &[Arc<dyn TransformComponent>],
    sinks: &Nodes<dyn SinkComponent>,
    report: &mut Report,
) -> Option<Stitched> {
    let declared = plan.transforms.iter().zip(transforms);
    let mut declared = declared.filter_map(|(node, component)| Some((node, component.stitches()?)));
    let (node, stitching) = declared.next()?;
    for (other, _) in declared {
        let message = format!(
            "`{}` stitches already; one does it for all sources",
            node.name
        );
        report.mistake(KeyPath::keys(&["transforms", &other.name]), &message);
    }
    let mut sources = Vec::new();
    for (index, input) in node.inputs.iter().enumerate() {
        match input.from {
            Producer::Source(source) if input.selector.is_all() => sources.push(source),
            _ => {
                let path = KeyPath::keys(&["transforms", &node.name, "inputs"]).index(index);
                let message = "a `stitch` reads sources, and all of them: what goes on together is known directly behind them";
                let hint = "name the source alone, and filter behind the `stitch`";
                report.mistake(path, message).hint = Some(hint.to_owned());
            }
        }
    }
    sources.sort_unstable();
    let names: Vec<&str> = sources
        .iter()
        .map(|source| &*plan.sources[*source])
        .collect();
    are_told_of(&node.name, &names, &stitching.one_phase, components, report);
    if stitching.hold_max.is_some() {
        can_go_early(plan, &node.name, transforms, sinks, report);
    }
    let others = plan.transforms.iter().map(|node| ("transforms", node));
    let others = others.chain(plan.sinks.iter().map(|node| ("sinks", node)));
    let is_other = |(_, other): &(&str, &Consumer)| !std::ptr::eq(*other, node);
    for (section, other) in others.filter(is_other) {
        passes_by(section, other, &node.name, &sources, report);
    }
    Some(Stitched {
        name: Arc::clone(&node.name),
        sources,
        stitching,
    })
}

/// Without a word of what is prepared, branches would come one by one when each commits, and go on so: silently.
fn are_told_of(
    stitch: &str,
    sources: &[&str],
    one_phase: &[String],
    components: &Nodes<dyn SourceComponent>,
    report: &mut Report,
) {
    let path = KeyPath::keys(&["transforms", stitch, "one_phase"]);
    for (index, name) in one_phase.iter().enumerate() {
        if !sources.contains(&&**name) {
            let message = format!("`{stitch}` reads no source `{name}`");
            report.mistake(path.index(index), &message).nearest =
                nearest(name, sources.iter().copied());
        }
    }
    if !sources.is_empty()
        && sources
            .iter()
            .all(|name| one_phase.iter().any(|one| one == name))
    {
        let message = "nothing is prepared in any of its sources, so nothing can be put together";
        let hint = "name those alone whose commit decides, behind the PREPARE of the others";
        report.mistake(path, message).hint = Some(hint.to_owned());
        return;
    }
    for name in sources
        .iter()
        .filter(|name| !one_phase.iter().any(|one| one == *name))
    {
        let declared = components.declared.iter();
        let mut both = declared.zip(&components.components);
        let source = both.find(|(node, _)| node.name == **name);
        // Of one whose section is wrong that has been told.
        let Some((_, Some(source))) = source else {
            continue;
        };
        if !source.tells_of_branches() {
            let path = KeyPath::keys(&["sources", name, "two_phase"]);
            let message = format!(
                "`{stitch}` puts transactions of several databases together, and without `two_phase` this source does not tell of \
                 their branches"
            );
            let hint = format!(
                "set `two_phase = true`; or, where nothing is ever prepared in this database and its commits say what they belong to, \
                 `one_phase = [\"{name}\"]` in `[transforms.{stitch}]`"
            );
            report.mistake(path, &message).hint = Some(hint);
        }
    }
}

/// What goes on before it commits comes again under another place when it has. Whoever would take it for something else then cannot be behind it.
fn can_go_early(
    plan: &Plan,
    stitch: &str,
    transforms: &[Arc<dyn TransformComponent>],
    sinks: &Nodes<dyn SinkComponent>,
    report: &mut Report,
) {
    let hint = format!(
        "leave `mode` and `hold_max` of `[transforms.{stitch}]` out: transactions wait until all of their branches have committed"
    );
    for (node, component) in plan.transforms.iter().zip(transforms) {
        if component.remembers_places() {
            let path = KeyPath::keys(&["transforms", &node.name]);
            let message = format!(
                "`{stitch}` lets branches go on before they commit, and this would take them for repeats when they come again with their commit"
            );
            report.mistake(path, &message).hint = Some(hint.clone());
        }
    }
    let declared = sinks.declared.iter().zip(&sinks.components);
    for (node, sink) in declared {
        let Some(sink) = sink else { continue };
        if !sink.keeps_rows() && !sink.is_exact() {
            let path = KeyPath::keys(&["sinks", &node.name]);
            let message = format!(
                "`{stitch}` lets branches go on before they commit, and this sink, which keeps every change, could not tell that it has them when \
                 they come again with their commit"
            );
            report.mistake(path, &message).hint = Some(hint.clone());
        }
    }
}

fn passes_by(section: &str, node: &Consumer, stitch: &str, sources: &[usize], report: &mut Report) {
    for (index, input) in node.inputs.iter().enumerate() {
        if matches!(input.from, Producer::Source(source) if sources.contains(&source)) {
            let path = KeyPath::keys(&[section, &node.name, "inputs"]).index(index);
            let message = format!("this passes by `{stitch}`, which the source goes through");
            let hint = format!(
                "read `{stitch}`, and choose behind a colon what of it: `{stitch}:source.schema.table`"
            );
            report.mistake(path, &message).hint = Some(hint);
        }
    }
}
