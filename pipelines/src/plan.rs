//! The graph of a pipeline: which node reads which, in which order, and which source reaches which sink. No I/O.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::file::nearest;
use crate::selector::{self, Selector};

/// A node as the file declares it.
#[derive(Clone, Debug)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Its inputs as written; none for sources.
    pub inputs: Vec<String>,
}

/// Who an input reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Producer {
    /// Index into [`Plan::sources`].
    Source(usize),
    /// Index into [`Plan::transforms`].
    Transform(usize),
}

/// One input of a transform or sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Who it reads.
    pub from: Producer,
    /// Which part of it.
    pub selector: Selector,
}

/// A transform or sink.
#[derive(Clone, Debug)]
pub struct Consumer {
    /// Name in the pipeline file.
    pub name: Arc<str>,
    /// What it reads, in the order of the file. A change that comes by several inputs is taken from the first.
    pub inputs: Vec<Input>,
}

/// The checked graph.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Sources, by name.
    pub sources: Vec<Arc<str>>,
    /// Transforms in topological order: every one comes after all that it reads.
    pub transforms: Vec<Consumer>,
    /// Sinks, by name.
    pub sinks: Vec<Consumer>,
    /// For each transform, the sources that reach it.
    transform_sources: Vec<BTreeSet<usize>>,
    /// For each sink, the sources that reach it.
    sink_sources: Vec<BTreeSet<usize>>,
}

/// What is wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanError {
    /// `sources`, `transforms` or `sinks`; empty for the file as a whole.
    pub section: &'static str,
    /// The node; empty for the section as a whole.
    pub node: String,
    /// Which of its inputs.
    pub input: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// The nearest valid name.
    pub nearest: Option<String>,
}

const SOURCES: &str = "sources";
const TRANSFORMS: &str = "transforms";
const SINKS: &str = "sinks";

impl Plan {
    /// Builds the graph, or says everything that is wrong with it.
    ///
    /// # Errors
    /// Names used twice, inputs that do not exist, cycles, nodes that nobody reads, nodes that read nobody.
    pub fn build(
        sources: &[Declared],
        transforms: &[Declared],
        sinks: &[Declared],
    ) -> Result<Plan, Vec<PlanError>> {
        let mut builder = Builder {
            sources,
            transforms,
            sinks,
            errors: Vec::new(),
            producers: HashMap::new(),
        };
        let plan = builder.build();
        match plan {
            Some(plan) if builder.errors.is_empty() => Ok(plan),
            _ => Err(builder.errors),
        }
    }

    /// The sources whose changes reach a sink.
    #[must_use]
    pub fn sources_of(&self, sink: usize) -> &BTreeSet<usize> {
        &self.sink_sources[sink]
    }

    /// The sources whose changes reach a transform.
    #[must_use]
    pub fn sources_of_transform(&self, transform: usize) -> &BTreeSet<usize> {
        &self.transform_sources[transform]
    }

    /// The sinks that a source reaches.
    pub fn sinks_of(&self, source: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.sinks.len()).filter(move |&sink| self.sink_sources[sink].contains(&source))
    }

    /// The transforms that a source reaches, in topological order.
    pub fn transforms_of(&self, source: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.transforms.len())
            .filter(move |&transform| self.transform_sources[transform].contains(&source))
    }
}

struct Builder<'a> {
    sources: &'a [Declared],
    transforms: &'a [Declared],
    sinks: &'a [Declared],
    errors: Vec<PlanError>,
    producers: HashMap<&'a str, Producer>,
}

impl Builder<'_> {
    fn build(&mut self) -> Option<Plan> {
        self.name_producers();
        for (section, nodes) in [(SOURCES, self.sources), (SINKS, self.sinks)] {
            if nodes.is_empty() {
                self.error(section, "", None, format!("there are no {section}"), None);
            }
        }
        let transforms: Vec<Vec<Input>> = self
            .transforms
            .iter()
            .map(|node| self.inputs(TRANSFORMS, node))
            .collect();
        let sinks: Vec<Vec<Input>> = self
            .sinks
            .iter()
            .map(|node| self.inputs(SINKS, node))
            .collect();
        self.unread(&transforms, &sinks);
        let order = self.order(&transforms)?;
        let plan = self.assemble(&order, transforms, sinks);
        if self.errors.is_empty() {
            self.unreachable(&plan);
        }
        Some(plan)
    }

    fn error(
        &mut self,
        section: &'static str,
        node: &str,
        input: Option<usize>,
        message: String,
        nearest: Option<String>,
    ) {
        self.errors.push(PlanError {
            section,
            node: node.to_owned(),
            input,
            message,
            nearest,
        });
    }

    fn name_producers(&mut self) {
        for (index, node) in self.sources.iter().enumerate() {
            self.producers.insert(&node.name, Producer::Source(index));
        }
        for (index, node) in self.transforms.iter().enumerate() {
            if self
                .producers
                .insert(&node.name, Producer::Transform(index))
                .is_some()
            {
                let message = format!(
                    "the name `{}` is also a source's; inputs could not tell them apart",
                    node.name
                );
                self.error(TRANSFORMS, &node.name, None, message, None);
            }
        }
    }

    fn inputs(&mut self, section: &'static str, node: &Declared) -> Vec<Input> {
        if node.inputs.is_empty() {
            let message = format!("`{}` reads nothing; name its `inputs`", node.name);
            self.error(section, &node.name, None, message, None);
        }
        let mut inputs = Vec::new();
        for (index, text) in node.inputs.iter().enumerate() {
            if node.inputs[..index].contains(text) {
                let message = format!("`{text}` is listed twice");
                self.error(section, &node.name, Some(index), message, None);
                continue;
            }
            match self.input(text) {
                Ok(input) => inputs.push(input),
                Err((message, nearest)) => {
                    self.error(section, &node.name, Some(index), message, nearest);
                }
            }
        }
        inputs
    }

    fn input(&self, text: &str) -> Result<Input, (String, Option<String>)> {
        let (name, selector) = selector::parse(text).map_err(|message| (message, None))?;
        let Some(&from) = self.producers.get(name) else {
            let message = if self.sinks.iter().any(|sink| sink.name == name) {
                format!("`{name}` is a sink; only sources and transforms can be read")
            } else {
                format!("there is no source or transform `{name}`")
            };
            return Err((message, nearest(name, self.producers.keys().copied())));
        };
        let source = selector.source.as_str();
        if !self
            .sources
            .iter()
            .any(|node| selector.source.matches(&node.name))
        {
            let names = self.sources.iter().map(|node| node.name.as_str());
            let message = format!("there is no source `{source}` in `{text}`");
            return Err((message, nearest(source, names)));
        }
        Ok(Input { from, selector })
    }

    /// Reports sources and transforms that no input names.
    fn unread(&mut self, transforms: &[Vec<Input>], sinks: &[Vec<Input>]) {
        // A misspelt input would make its target look unread as well: one mistake, one report.
        if !self.errors.is_empty() {
            return;
        }
        let read: BTreeSet<Producer> = transforms
            .iter()
            .chain(sinks)
            .flatten()
            .map(|input| input.from)
            .collect();
        for (index, node) in self.sources.iter().enumerate() {
            if !read.contains(&Producer::Source(index)) {
                let message = format!("nothing reads the source `{}`", node.name);
                self.error(SOURCES, &node.name, None, message, None);
            }
        }
        for (index, node) in self.transforms.iter().enumerate() {
            if !read.contains(&Producer::Transform(index)) {
                let message = format!("nothing reads the transform `{}`", node.name);
                self.error(TRANSFORMS, &node.name, None, message, None);
            }
        }
    }

    /// Topological order of the transforms, as indices of the declaration; `None` when there is a cycle.
    fn order(&mut self, inputs: &[Vec<Input>]) -> Option<Vec<usize>> {
        let mut order = Vec::new();
        let mut state = vec![Mark::New; inputs.len()];
        let mut path = Vec::new();
        for start in 0..inputs.len() {
            if let Err(cycle) = visit(start, inputs, &mut state, &mut path, &mut order) {
                let names: Vec<&str> = cycle
                    .iter()
                    .map(|&index| self.transforms[index].name.as_str())
                    .collect();
                let message = format!("the inputs go round in a circle: {}", names.join(" → "));
                let node = names[0].to_owned();
                self.error(TRANSFORMS, &node, None, message, None);
                return None;
            }
        }
        Some(order)
    }

    fn assemble(
        &self,
        order: &[usize],
        transforms: Vec<Vec<Input>>,
        sinks: Vec<Vec<Input>>,
    ) -> Plan {
        let mut place = vec![0; order.len()];
        for (to, &from) in order.iter().enumerate() {
            place[from] = to;
        }
        let moved = |inputs: &[Input]| -> Vec<Input> {
            inputs
                .iter()
                .map(|input| Input {
                    from: match input.from {
                        Producer::Source(index) => Producer::Source(index),
                        Producer::Transform(index) => Producer::Transform(place[index]),
                    },
                    selector: input.selector.clone(),
                })
                .collect()
        };
        let consumer = |node: &Declared, inputs: &[Input]| Consumer {
            name: node.name.as_str().into(),
            inputs: moved(inputs),
        };
        let mut plan = Plan {
            sources: self
                .sources
                .iter()
                .map(|node| node.name.as_str().into())
                .collect(),
            transforms: order
                .iter()
                .map(|&index| consumer(&self.transforms[index], &transforms[index]))
                .collect(),
            sinks: self
                .sinks
                .iter()
                .zip(&sinks)
                .map(|(node, inputs)| consumer(node, inputs))
                .collect(),
            ..Plan::default()
        };
        for transform in &plan.transforms {
            let reach = reach(&plan.sources, &plan.transform_sources, &transform.inputs);
            plan.transform_sources.push(reach);
        }
        plan.sink_sources = plan
            .sinks
            .iter()
            .map(|sink| reach(&plan.sources, &plan.transform_sources, &sink.inputs))
            .collect();
        plan
    }

    /// Reports nodes that are read, yet by inputs that leave nothing of them for any sink.
    fn unreachable(&mut self, plan: &Plan) {
        for (index, name) in plan.sources.iter().enumerate() {
            if plan.sinks_of(index).next().is_none() {
                let message = format!("what the source `{name}` sends reaches no sink");
                self.error(SOURCES, name, None, message, None);
            }
        }
        for (section, nodes, sources) in [
            (TRANSFORMS, &plan.transforms, &plan.transform_sources),
            (SINKS, &plan.sinks, &plan.sink_sources),
        ] {
            for (node, sources) in nodes.iter().zip(sources) {
                if sources.is_empty() {
                    let message = format!("no source reaches `{}` through its inputs", node.name);
                    self.error(section, &node.name, None, message, None);
                }
            }
        }
        let useful = useful(plan);
        for (index, node) in plan.transforms.iter().enumerate() {
            if !useful.contains(&index) && !plan.transform_sources[index].is_empty() {
                let message = format!("what the transform `{}` makes reaches no sink", node.name);
                self.error(TRANSFORMS, &node.name, None, message, None);
            }
        }
    }
}

/// The sources that come through any of the inputs.
fn reach(names: &[Arc<str>], transforms: &[BTreeSet<usize>], inputs: &[Input]) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    for input in inputs {
        let passes = |&source: &usize| input.selector.source.matches(&names[source]);
        match input.from {
            Producer::Source(source) => reached.extend(Some(source).filter(passes)),
            Producer::Transform(index) => {
                reached.extend(transforms[index].iter().copied().filter(passes));
            }
        }
    }
    reached
}

/// Transforms with a way to a sink.
fn useful(plan: &Plan) -> BTreeSet<usize> {
    let mut useful = BTreeSet::new();
    let mark = |inputs: &[Input], useful: &mut BTreeSet<usize>| {
        for input in inputs {
            if let Producer::Transform(index) = input.from {
                useful.insert(index);
            }
        }
    };
    for sink in &plan.sinks {
        mark(&sink.inputs, &mut useful);
    }
    for (index, transform) in plan.transforms.iter().enumerate().rev() {
        if useful.contains(&index) {
            mark(&transform.inputs, &mut useful);
        }
    }
    useful
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    Open,
    Done,
}

/// Depth first; the error is a cycle, its first node repeated at the end, in the direction of the data.
fn visit(
    node: usize,
    inputs: &[Vec<Input>],
    state: &mut [Mark],
    path: &mut Vec<usize>,
    order: &mut Vec<usize>,
) -> Result<(), Vec<usize>> {
    match state[node] {
        Mark::Done => return Ok(()),
        Mark::Open => {
            let start = path.iter().position(|&open| open == node).unwrap_or(0);
            let mut cycle = path[start..].to_vec();
            cycle.push(node);
            // The path goes against the data, from reader to read.
            cycle.reverse();
            return Err(cycle);
        }
        Mark::New => {}
    }
    state[node] = Mark::Open;
    path.push(node);
    for input in &inputs[node] {
        if let Producer::Transform(from) = input.from {
            visit(from, inputs, state, path, order)?;
        }
    }
    path.pop();
    state[node] = Mark::Done;
    order.push(node);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, inputs: &[&str]) -> Declared {
        Declared {
            name: name.to_owned(),
            inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
        }
    }

    fn messages(result: Result<Plan, Vec<PlanError>>) -> Vec<String> {
        result
            .expect_err("a bad graph")
            .into_iter()
            .map(|error| error.message)
            .collect()
    }

    #[test]
    fn orders_transforms_and_knows_who_reaches_whom() {
        let plan = Plan::build(
            &[node("a", &[]), node("b", &[])],
            &[node("late", &["early"]), node("early", &["a", "b"])],
            &[
                node("all", &["late"]),
                node("part", &["late:b.public.*"]),
                node("direct", &["a"]),
            ],
        )
        .expect("a good graph");
        let names: Vec<&str> = plan.transforms.iter().map(|node| &*node.name).collect();
        assert_eq!(names, ["early", "late"]);
        assert_eq!(plan.transforms[1].inputs[0].from, Producer::Transform(0));
        assert_eq!(plan.sinks_of(0).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(plan.sinks_of(1).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(plan.transforms_of(1).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(plan.sources_of(1).iter().copied().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_cycle_is_printed() {
        let result = Plan::build(
            &[node("a", &[])],
            &[node("x", &["a", "z"]), node("y", &["x"]), node("z", &["y"])],
            &[node("s", &["z"])],
        );
        assert_eq!(
            messages(result),
            ["the inputs go round in a circle: x → y → z → x"]
        );
    }

    #[test]
    fn unreachable_nodes_are_reported() {
        let result = Plan::build(
            &[node("a", &[]), node("b", &[])],
            &[node("t", &["b"])],
            &[node("s", &["a"])],
        );
        assert_eq!(messages(result), ["nothing reads the transform `t`"]);
        let result = Plan::build(
            &[node("a", &[]), node("b", &[])],
            &[node("t", &["a", "b"])],
            &[node("s", &["t:a.*.*"])],
        );
        assert_eq!(
            messages(result),
            ["what the source `b` sends reaches no sink"]
        );
        let result = Plan::build(
            &[node("a", &[])],
            &[node("t", &[])],
            &[node("s", &["a", "t"])],
        );
        assert_eq!(messages(result), ["`t` reads nothing; name its `inputs`"]);
    }

    #[test]
    fn unknown_inputs_come_with_the_nearest_name() {
        let result = Plan::build(
            &[node("orders", &[])],
            &[],
            &[node("s", &["ordres", "orders:order.public.*", "s"])],
        );
        let errors = result.expect_err("a bad graph");
        assert_eq!(errors[0].nearest.as_deref(), Some("orders"));
        assert_eq!(errors[1].nearest.as_deref(), Some("orders"));
        assert_eq!(
            errors[2].message,
            "`s` is a sink; only sources and transforms can be read"
        );
        assert_eq!(errors[2].input, Some(2));
    }
}
