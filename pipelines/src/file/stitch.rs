//! The `stitch` of a pipeline file: it stands directly behind whole sources, and everything that reads them reads it.

use std::sync::Arc;

use lockstep_core::transform::Stitching;

use super::path::KeyPath;
use super::report::Report;
use crate::plan::{Consumer, Plan, Producer};
use crate::registry::TransformComponent;

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
    transforms: &[Arc<dyn TransformComponent>],
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
