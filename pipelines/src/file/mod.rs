//! Reads a pipeline file: TOML, YAML or JSON by its extension, overrides and secrets from the environment, every
//! mistake with its place and the nearest valid name. See [`load`].

mod environment;
mod fingerprint;
mod invariants;
mod lease;
mod lines;
mod mistake;
mod path;
mod report;
mod scan;
mod settings;
mod shape;
mod shown;
mod stitch;
mod transactions;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::{FileFormat, Source as _};
use lockstep_core::config::{ByteSize, Duration};
use serde_json::{Map, Value};

pub use environment::{Variables, process_variables, replace};
pub use mistake::{Mistake, Mistakes, nearest};
pub use path::{KeyPath, PathPart};
pub use settings::{
    Admin, DEFAULT_ADMIN_LISTEN, DEFAULT_MAX_LETTER_BYTES, DEFAULT_MAX_LETTERS, DEFAULT_MEMORY,
    DEFAULT_RESOLVE_EVERY, DEFAULT_SHUTDOWN_TIMEOUT, EmbeddedLetters, InvariantSection, Later,
    OnError, Reconciling, Section, Settings, SinkPolicy, State, TwoPhase, is_name,
};
pub use transactions::Resolving;

pub use self::fingerprint::Fingerprint;
pub use self::invariants::DeclaredInvariant;
pub use self::lease::{HandedOn, Leasing};
use self::lines::Lines;
use self::report::Report;
pub use self::stitch::Stitched;
use crate::examples::Test;
use crate::letters::Limits;
use crate::plan::{Declared, Plan, PlanError};
use crate::registry::{
    Kinds, Registry, SectionError, SinkComponent, SourceComponent, TransformComponent, path_part,
};

/// A checked pipeline: settings, graph, and the components in the order of the graph.
#[derive(Clone)]
pub struct Pipeline {
    /// Its name.
    pub name: Arc<str>,
    /// The admin endpoint, when there is one.
    pub admin: Option<Admin>,
    /// The directory for state that must survive a restart.
    pub state: PathBuf,
    /// Who runs it, where a lease decides.
    pub lease: Option<Leasing>,
    /// Comparisons that it makes by itself.
    pub reconcile: Option<Reconciling>,
    /// What must hold between the sources' databases.
    pub invariants: Vec<DeclaredInvariant>,
    /// What becomes of two-phase commits that a coordinator has left behind.
    pub resolving: Resolving,
    /// Bytes that batches may hold.
    pub memory: ByteSize,
    /// How long a drain may take.
    pub shutdown_timeout: Duration,
    /// Sources whose transactions go on together.
    pub stitch: Option<Stitched>,
    /// The graph.
    pub plan: Plan,
    /// One per [`Plan::sources`].
    pub sources: Vec<Arc<dyn SourceComponent>>,
    /// One per [`Plan::transforms`].
    pub transforms: Vec<Arc<dyn TransformComponent>>,
    /// One per [`Plan::sinks`].
    pub sinks: Vec<Arc<dyn SinkComponent>>,
    /// One per [`Plan::sinks`]: what becomes of rows that it refuses.
    pub policies: Vec<SinkPolicy>,
    /// Where they go.
    pub dead_letters: DeadLettersTo,
    /// Examples of what must come of rows.
    pub tests: Vec<Test>,
    /// What to compare another reading of the file with.
    pub fingerprint: Fingerprint,
    /// The file as it may be shown: without secrets, its variables not replaced.
    pub shown: Value,
}

/// Where dead letters go.
#[derive(Clone)]
pub enum DeadLettersTo {
    /// To the store in the state directory.
    Embedded(Limits),
    /// To a sink.
    Queue(Arc<dyn SinkComponent>),
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline")
            .field("name", &self.name)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

/// Reads and checks a pipeline file with the environment of this process. Reads `${file:…}` files, and does no other I/O.
///
/// # Errors
/// Every mistake that could be found.
pub fn load(path: &Path, registry: &Registry) -> Result<Pipeline, Mistakes> {
    load_with(path, registry, &process_variables())
}

/// As [`load`], with the environment given.
///
/// # Errors
/// Every mistake that could be found.
pub fn load_with(
    path: &Path,
    registry: &Registry,
    variables: &Variables,
) -> Result<Pipeline, Mistakes> {
    let mut report = Report::new(path.display().to_string());
    let pipeline = check(path, registry, variables, &mut report);
    match (pipeline, report.finish()) {
        (Some(pipeline), None) => Ok(pipeline),
        (_, Some(mistakes)) => Err(mistakes),
        (None, None) => unreachable!("a file that was not read has left a mistake"),
    }
}

fn check(
    path: &Path,
    registry: &Registry,
    variables: &Variables,
    report: &mut Report,
) -> Option<Pipeline> {
    let mut root = parse(path, report)?;
    environment::apply_overrides(&mut root, variables, report);
    let shown = shown::shown(&root, registry);
    environment::substitute(&mut root, &KeyPath::root(), variables, report);
    let fingerprint = Fingerprint::of(&root);
    let settings: Settings = settings(root, report)?;
    let sections = [
        ("sources", &settings.sources),
        ("transforms", &settings.transforms),
        ("sinks", &settings.sinks),
    ];
    for (section, nodes) in sections {
        for name in nodes.keys().filter(|name| !is_name(name)) {
            let message = "a name is made of lower-case letters, digits, `_` and `-`";
            report.mistake(KeyPath::keys(&[section, name]), message);
        }
    }
    let sources = nodes("sources", &settings.sources, registry.sources(), report);
    let transforms = nodes(
        "transforms",
        &settings.transforms,
        registry.transforms(),
        report,
    );
    let sinks = nodes("sinks", &settings.sinks, registry.sinks(), report);
    let dead_letters = dead_letters(settings.dead_letters, registry.sinks(), report);
    let invariants = invariants::declared(settings.reconcile.as_ref(), &sources, report);
    let mut resolving = transactions::resolving(settings.transactions.as_ref(), &sources, report);
    let plan = match Plan::build(&sources.declared, &transforms.declared, &sinks.declared) {
        Ok(plan) => plan,
        Err(errors) => {
            errors
                .into_iter()
                .for_each(|error| plan_mistake(error, report));
            return None;
        }
    };
    let components = transforms.in_order(plan.transforms.iter().map(|node| &node.name))?;
    let stitch = stitch::declared(&plan, &sources, &components, &sinks, report);
    if stitch.is_some() {
        // Where branches are waited for, whoever operates it has to see what becomes of them.
        resolving.every.get_or_insert(DEFAULT_RESOLVE_EVERY.0);
    }
    let local = local(&plan, &components, &sinks, dead_letters.as_ref());
    let lease = lease::declared(
        &settings.name,
        settings.lease,
        &settings.state,
        &local,
        report,
    );
    let name: Arc<str> = settings.name.into();
    let state = settings
        .state
        .dir
        .map_or_else(|| PathBuf::from(".lockstep").join(&*name), PathBuf::from);
    Some(Pipeline {
        sources: sources.in_order(plan.sources.iter())?,
        transforms: components,
        stitch,
        policies: {
            let policies = sinks.policies(plan.sinks.iter().map(|node| &node.name));
            waiting_needs_the_store(&plan, &policies, dead_letters.as_ref()?, report);
            policies
        },
        sinks: sinks.in_order(plan.sinks.iter().map(|node| &node.name))?,
        dead_letters: dead_letters?,
        name,
        admin: settings.admin,
        lease,
        state,
        reconcile: settings.reconcile,
        invariants,
        resolving,
        memory: settings.memory,
        shutdown_timeout: settings.shutdown_timeout,
        tests: settings.tests,
        plan,
        fingerprint,
        shown,
    })
}

/// The file as a tree, its lines noted in the report.
fn parse(path: &Path, report: &mut Report) -> Option<Value> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let format = match extension {
        Some("toml") => FileFormat::Toml,
        Some("yaml" | "yml") => FileFormat::Yaml,
        Some("json") => FileFormat::Json,
        _ => {
            let message = "the file's name must end in .toml, .yaml, .yml or .json".to_owned();
            report.place(KeyPath::root(), message, None);
            return None;
        }
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            report.place(
                KeyPath::root(),
                format!("cannot read the file: {error}"),
                None,
            );
            return None;
        }
    };
    report.lines = lines(format, &text, report)?;
    match config::File::from_str(&text, format).collect() {
        Ok(table) => Some(Value::Object(
            table
                .into_iter()
                .map(|(key, value)| (key, tree(value)))
                .collect(),
        )),
        Err(error) => {
            let message = error.to_string();
            let place = yaml_place(&message);
            report.place(KeyPath::root(), message, place);
            None
        }
    }
}

fn lines(format: FileFormat, text: &str, report: &mut Report) -> Option<Lines> {
    match format {
        FileFormat::Toml => match Lines::of_toml(text) {
            Ok(lines) => Some(lines),
            Err((message, place)) => {
                report.place(KeyPath::root(), message, place);
                None
            }
        },
        FileFormat::Json => match serde_json::from_str::<Value>(text) {
            Ok(_) => {
                let (lines, twice) = Lines::of_json(text);
                for (path, place) in twice {
                    report.place(path, "duplicate key".to_owned(), Some(place));
                }
                Some(lines)
            }
            Err(error) => {
                let message = error.to_string();
                let message = message
                    .split(" at line ")
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                let place = (error.line(), error.column().max(1));
                report.place(KeyPath::root(), message, Some(place));
                None
            }
        },
        _ => Some(Lines::of_yaml(text)),
    }
}

/// The place in a message of the YAML parser: `… at byte 12 line 3 column 4`.
fn yaml_place(message: &str) -> Option<(usize, usize)> {
    let number = |word: &str| -> Option<usize> {
        let (_, rest) = message.split_once(word)?;
        let digits = rest.trim_start_matches([' ', ':']);
        let end = digits
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(digits.len());
        digits[..end].parse().ok()
    };
    Some((
        number("line")?,
        number("column").map_or(1, |column| column + 1),
    ))
}

fn tree(value: config::Value) -> Value {
    use config::ValueKind;
    match value.kind {
        ValueKind::Nil => Value::Null,
        ValueKind::Boolean(value) => value.into(),
        ValueKind::I64(value) => value.into(),
        ValueKind::I128(value) => {
            i64::try_from(value).map_or_else(|_| value.to_string().into(), Into::into)
        }
        ValueKind::U64(value) => value.into(),
        ValueKind::U128(value) => {
            u64::try_from(value).map_or_else(|_| value.to_string().into(), Into::into)
        }
        ValueKind::Float(value) => value.into(),
        ValueKind::String(value) => value.into(),
        ValueKind::Table(table) => Value::Object(
            table
                .into_iter()
                .map(|(key, value)| (key, tree(value)))
                .collect::<Map<_, _>>(),
        ),
        ValueKind::Array(elements) => elements.into_iter().map(tree).collect(),
    }
}

/// Comparisons one behind the other, and hardly a pause.
const SHORTEST_RECONCILE: Duration = Duration(std::time::Duration::from_secs(1));

/// The file's own keys. The sections pass through as they are.
fn settings(root: Value, report: &mut Report) -> Option<Settings> {
    let before = report.len();
    let settings: Option<Settings> = shape::read(root.clone(), &KeyPath::root(), report, |value| {
        serde_path_to_error::deserialize(value).map_err(|error| SectionError::Shape {
            path: error.path().iter().filter_map(path_part).collect(),
            message: error.inner().to_string(),
        })
    });
    let settings = match settings {
        Some(settings) => settings,
        // Look into the sections as well, so that all mistakes are reported at once.
        None => sections_only(root)?,
    };
    if report.len() == before && !is_name(&settings.name) {
        let message = format!(
            "`{}` is not a name; use lower-case letters, digits, `_` and `-`",
            settings.name
        );
        report.mistake(KeyPath::keys(&["name"]), &message);
    }
    if let Some(reconcile) = &settings.reconcile
        && reconcile.every < SHORTEST_RECONCILE
    {
        let message = format!("`{}` is too often", reconcile.every);
        report
            .mistake(KeyPath::keys(&["reconcile", "every"]), &message)
            .hint = Some(format!("{SHORTEST_RECONCILE} or longer"));
    }
    if let Some(admin) = &settings.admin
        && let Some((key, message, remedy)) = admin.refusal()
    {
        report
            .mistake(KeyPath::keys(&["admin", key]), &message)
            .hint = Some(remedy.to_owned());
    }
    Some(settings)
}

/// Settings with nothing but the sections, taken from a file whose other keys are wrong.
fn sections_only(root: Value) -> Option<Settings> {
    let Value::Object(mut root) = root else {
        return None;
    };
    let mut kept = Map::new();
    kept.insert("name".to_owned(), "unknown".into());
    for section in ["sources", "transforms", "sinks"] {
        let Some(Value::Object(nodes)) = root.remove(section) else {
            continue;
        };
        let nodes = nodes
            .into_iter()
            .filter(|(_, node)| node.is_object())
            .collect();
        kept.insert(section.to_owned(), Value::Object(nodes));
    }
    serde_json::from_value(Value::Object(kept)).ok()
}

/// The nodes of one section: what the graph needs, and the components that could be read.
struct Nodes<C: ?Sized> {
    declared: Vec<Declared>,
    components: Vec<Option<Arc<C>>>,
    /// Of sinks.
    policies: Vec<SinkPolicy>,
}

impl<C: ?Sized> Nodes<C> {
    /// The components in the order of `names`; `None` when one is missing.
    fn in_order<'a>(&self, names: impl Iterator<Item = &'a Arc<str>>) -> Option<Vec<Arc<C>>> {
        names
            .map(|name| {
                let index = self.declared.iter().position(|node| *node.name == **name)?;
                self.components[index].clone()
            })
            .collect()
    }
}

impl<C: ?Sized> Nodes<C> {
    /// The policies in the order of `names`.
    fn policies<'a>(&'a self, names: impl Iterator<Item = &'a Arc<str>>) -> Vec<SinkPolicy> {
        names
            .map(|name| {
                let index = self.declared.iter().position(|node| *node.name == **name);
                index.map_or_else(SinkPolicy::default, |index| self.policies[index])
            })
            .collect()
    }
}

/// The section `[dead_letters]`; `None` when it is wrong.
fn dead_letters(
    mut keys: Section,
    kinds: &Kinds<dyn SinkComponent>,
    report: &mut Report,
) -> Option<DeadLettersTo> {
    let path = KeyPath::keys(&["dead_letters"]);
    let kind = keys.get("type").and_then(Value::as_str).map(str::to_owned);
    if kind.as_deref() == Some("embedded") || !keys.contains_key("type") {
        keys.shift_remove("type");
        let limits: EmbeddedLetters = shape::read(Value::Object(keys), &path, report, |value| {
            serde_path_to_error::deserialize(value).map_err(|error| SectionError::Shape {
                path: error.path().iter().filter_map(path_part).collect(),
                message: error.inner().to_string(),
            })
        })?;
        return Some(DeadLettersTo::Embedded(Limits {
            rows: limits.max,
            bytes: limits.max_bytes.0,
        }));
    }
    if kind.as_deref() == Some("kafka") {
        // Letters have an identity of their own to tell repeats by, and no progress to keep.
        for (key, value) in [("format", "flat".into()), ("exactly_once", false.into())] {
            keys.entry(key).or_insert(value);
        }
    }
    component(keys, &path, kinds, report).map(DeadLettersTo::Queue)
}

/// What keeps something in the state directory that nobody else can go on without.
fn local(
    plan: &Plan,
    transforms: &[Arc<dyn TransformComponent>],
    sinks: &Nodes<dyn SinkComponent>,
    dead_letters: Option<&DeadLettersTo>,
) -> lease::Local {
    let transforms = plan.transforms.iter().zip(transforms);
    let transforms = transforms
        .filter(|(_, component)| component.keeps_here())
        .map(|(node, _)| KeyPath::keys(&["transforms", &node.name]));
    let sinks = plan.sinks.iter().filter_map(|node| {
        let index = sinks
            .declared
            .iter()
            .position(|sink| *sink.name == *node.name)?;
        let here = sinks.components[index].as_ref()?.keeps_here();
        here.then(|| KeyPath::keys(&["sinks", &node.name]))
    });
    let letters = matches!(dead_letters, Some(DeadLettersTo::Embedded(_)));
    let letters = letters.then(|| KeyPath::keys(&["dead_letters"]));
    lease::Local(transforms.chain(sinks).chain(letters).collect())
}

/// Later changes can only wait behind what can be looked up.
fn waiting_needs_the_store(
    plan: &Plan,
    policies: &[SinkPolicy],
    to: &DeadLettersTo,
    report: &mut Report,
) {
    if matches!(to, DeadLettersTo::Embedded(_)) {
        return;
    }
    let waits = |(_, policy): &(_, &SinkPolicy)| policy.later == Later::Wait;
    for (sink, _) in plan.sinks.iter().zip(policies).filter(waits) {
        let path = KeyPath::keys(&["sinks", &sink.name, "later"]);
        let message = "`later = \"wait\"` needs `[dead_letters] type = \"embedded\"`";
        report.mistake(path, message);
    }
}

fn nodes<C: ?Sized>(
    section: &'static str,
    nodes: &std::collections::BTreeMap<String, Section>,
    kinds: &Kinds<C>,
    report: &mut Report,
) -> Nodes<C> {
    let mut read = Nodes {
        declared: Vec::new(),
        components: Vec::new(),
        policies: Vec::new(),
    };
    for (name, keys) in nodes {
        let path = KeyPath::keys(&[section, name]);
        let mut keys = keys.clone();
        let inputs = if section == "sources" {
            Vec::new()
        } else {
            inputs(&mut keys, &path, report)
        };
        read.declared.push(Declared {
            name: name.clone(),
            inputs,
        });
        read.policies.push(match section {
            "sinks" => policy(&mut keys, &path, report),
            _ => SinkPolicy::default(),
        });
        read.components.push(component(keys, &path, kinds, report));
    }
    read
}

fn component<C: ?Sized>(
    mut keys: Section,
    path: &KeyPath,
    kinds: &Kinds<C>,
    report: &mut Report,
) -> Option<Arc<C>> {
    let known = || kinds.keys().copied().collect::<Vec<_>>().join(", ");
    let kind = match keys.shift_remove("type") {
        Some(Value::String(kind)) => kind,
        Some(_) => {
            report.mistake(path.key("type"), "expected a text").hint =
                Some(format!("the types here are {}", known()));
            return None;
        }
        None => {
            report
                .mistake(path.key("type"), "this key is required and missing")
                .hint = Some(format!("the types here are {}", known()));
            return None;
        }
    };
    let Some(entry) = kinds.get(kind.as_str()) else {
        let mistake = report.mistake(
            path.key("type"),
            &format!("there is no type `{kind}`; there are {}", known()),
        );
        mistake.nearest = nearest(&kind, kinds.keys().copied());
        return None;
    };
    shape::read(Value::Object(keys), path, report, |value| {
        entry.parse(value)
    })
}

/// Takes the keys that every sink has.
fn policy(keys: &mut Section, path: &KeyPath, report: &mut Report) -> SinkPolicy {
    let mut own = Section::new();
    for key in ["on_error", "later"] {
        own.extend(keys.shift_remove(key).map(|value| (key.to_owned(), value)));
    }
    let read = shape::read(Value::Object(own), path, report, |value| {
        serde_path_to_error::deserialize(value).map_err(|error| SectionError::Shape {
            path: error.path().iter().filter_map(path_part).collect(),
            message: error.inner().to_string(),
        })
    });
    read.unwrap_or_default()
}

fn inputs(keys: &mut Section, path: &KeyPath, report: &mut Report) -> Vec<String> {
    let path = path.key("inputs");
    match keys.shift_remove("inputs") {
        // The plan reports a node that reads nothing.
        None => Vec::new(),
        Some(value) => shape::read(value, &path, report, |value| {
            serde_path_to_error::deserialize(value).map_err(|error| SectionError::Shape {
                path: error.path().iter().filter_map(path_part).collect(),
                message: error.inner().to_string(),
            })
        })
        .unwrap_or_default(),
    }
}

fn plan_mistake(error: PlanError, report: &mut Report) {
    let mut path = KeyPath::root();
    // A section that is misspelt or misshapen, and inputs that could not be read, have been reported as that.
    if error.node.is_empty() && report.speaks_of(error.section)
        || error.input.is_none()
            && report.speaks_at(&KeyPath::keys(&[error.section, &error.node, "inputs"]))
    {
        return;
    }
    for part in [error.section, &error.node] {
        if !part.is_empty() {
            path = path.key(part);
        }
    }
    if let Some(index) = error.input {
        path = path.key("inputs").index(index);
    }
    report.mistake(path, &error.message).nearest = error.nearest;
}
