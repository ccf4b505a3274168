//! `lockstep dead-letters`: what sinks have refused for good, and what to do about it. A pipeline that runs is asked; the
//! store of one that does not is opened.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::letters::{Head, Letter, Selection};
use lockstep_pipelines::{Offline, Pipeline, Registry, Reports};
use serde_json::{Value, json};

use crate::cli::{Format, load};
use crate::client::{self, Client};
use crate::figures::{Paint, Table, duration, of};
use crate::{Outcome, output};

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLetters {
    /// Those there are, oldest first.
    List {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        which: Which,
    },
    /// One, with its row and what was said about it.
    Show {
        #[command(flatten)]
        at: At,
        /// Its number.
        id: u64,
    },
    /// Write them to their sinks; removes what is durable there. Exit 1 if any is refused again.
    Replay {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        those: Those,
    },
    /// Remove them without writing them anywhere.
    Discard {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        those: Those,
    },
}

/// Which pipeline, and how to reach it.
#[derive(Debug, Args)]
pub struct At {
    /// The pipeline file.
    file: PathBuf,
    /// The admin endpoint of the running pipeline, when the file does not say.
    #[arg(long)]
    url: Option<String>,
    /// Its token, when it asks for one and the file does not say.
    #[arg(long, env = "LOCKSTEP_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// How the answer looks.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// A part of them.
#[derive(Debug, Args)]
pub struct Which {
    /// Only those of this sink.
    #[arg(long)]
    sink: Option<String>,
    /// Only those of this table, `schema.table` or the bare name.
    #[arg(long)]
    table: Option<String>,
    /// Only those refused for this reason.
    #[arg(long)]
    reason: Option<String>,
}

/// A part of them that is named, so that nothing is done to all of them by mistake.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Those {
    /// Their numbers.
    #[arg(required_unless_present_any = ["all", "sink", "table", "reason"], conflicts_with = "all")]
    ids: Vec<u64>,
    #[command(flatten)]
    which: Which,
    /// All of them.
    #[arg(long)]
    all: bool,
}

impl DeadLetters {
    /// How the answer is to look.
    pub fn format(&self) -> Format {
        match self {
            DeadLetters::List { at, .. }
            | DeadLetters::Show { at, .. }
            | DeadLetters::Replay { at, .. }
            | DeadLetters::Discard { at, .. } => at.format,
        }
    }
}

impl Which {
    fn selection(self, ids: Vec<u64>) -> Selection {
        Selection {
            ids,
            sink: self.sink,
            table: self.table,
            reason: self.reason,
        }
    }
}

impl Those {
    fn selection(self) -> Selection {
        self.which.selection(self.ids)
    }
}

/// Where the letters are.
enum Place<'a> {
    Here(Box<Offline<'a>>),
    There(Client<'a>),
}

/// Runs a subcommand.
pub async fn run(command: DeadLetters, registry: &Registry) -> Outcome {
    match command {
        DeadLetters::List { at, which } => list(&at, which.selection(Vec::new()), registry).await,
        DeadLetters::Show { at, id } => show(&at, id, registry).await,
        DeadLetters::Replay { at, those } => replay(&at, those.selection(), registry).await,
        DeadLetters::Discard { at, those } => discard(&at, those.selection(), registry).await,
    }
}

async fn list(at: &At, selection: Selection, registry: &Registry) -> Outcome {
    let pipeline = load(&at.file, registry)?;
    let url = at.url(&pipeline);
    let heads: Vec<Head> = match place(at, &pipeline, url.as_deref())? {
        Place::Here(store) => store.list(selection).await?,
        Place::There(client) => {
            let path = format!("/api/dead-letters{}", query(&selection));
            read(client.get(&path).await?["dead_letters"].take())?
        }
    };
    match at.format {
        Format::Json => output::print(&format!("{:#}\n", json!(heads))),
        Format::Table => output::print(&table(&heads, output::paint())),
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(at: &At, id: u64, registry: &Registry) -> Outcome {
    let pipeline = load(&at.file, registry)?;
    let url = at.url(&pipeline);
    let letter: Letter = match place(at, &pipeline, url.as_deref())? {
        Place::Here(store) => store.show(id).await?,
        Place::There(client) => read(client.get(&format!("/api/dead-letters/{id}")).await?)?,
    };
    match at.format {
        Format::Json => output::print(&format!("{:#}\n", json!(letter))),
        Format::Table => output::print(&details(&letter, output::paint())),
    }
    Ok(ExitCode::SUCCESS)
}

async fn replay(at: &At, selection: Selection, registry: &Registry) -> Outcome {
    let pipeline = load(&at.file, registry)?;
    let url = at.url(&pipeline);
    let reports: Reports = match place(at, &pipeline, url.as_deref())? {
        Place::Here(store) => store.replay(&selection).await?,
        Place::There(client) => {
            let body = asked(&selection);
            read(client.post("/api/dead-letters/replay", &body).await?)?
        }
    };
    match at.format {
        Format::Json => output::print(&format!("{:#}\n", json!(reports))),
        Format::Table => output::print(&outcome(&reports)),
    }
    let left = |report: &lockstep_pipelines::Report| {
        report.refused + report.behind > 0 || report.stopped.is_some()
    };
    Ok(match reports.values().any(left) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

async fn discard(at: &At, selection: Selection, registry: &Registry) -> Outcome {
    let pipeline = load(&at.file, registry)?;
    let url = at.url(&pipeline);
    let discarded = match place(at, &pipeline, url.as_deref())? {
        Place::Here(store) => store.discard(selection).await?,
        Place::There(client) => {
            let body = asked(&selection);
            let answer = client.post("/api/dead-letters/discard", &body).await?;
            answer["discarded"].as_u64().unwrap_or(0)
        }
    };
    match at.format {
        Format::Json => output::print(&format!("{}\n", json!({ "discarded": discarded }))),
        Format::Table => output::print(&format!(
            "{} discarded\n",
            of(discarded, "dead letter", "dead letters")
        )),
    }
    Ok(ExitCode::SUCCESS)
}

impl At {
    /// Where the pipeline listens when it runs.
    fn url(&self, pipeline: &Pipeline) -> Option<String> {
        let listens = pipeline.admin.as_ref().map(client::url);
        self.url.clone().or(listens)
    }
}

/// The store, unless the pipeline runs: it then has the store to itself, and is asked.
fn place<'a>(at: &'a At, pipeline: &'a Pipeline, url: Option<&'a str>) -> Result<Place<'a>, Error> {
    if at.url.is_none() {
        match Offline::open(pipeline) {
            Ok(store) => return Ok(Place::Here(Box::new(store))),
            Err(error) if error.kind() == ErrorKind::Setup && url.is_some() => {}
            Err(error) => {
                return Err(match error.kind() {
                    ErrorKind::Setup => error.remedy(
                        "the pipeline runs: give it an [admin] section, so that it can be asked, or stop it",
                    ),
                    _ => error,
                });
            }
        }
    }
    let admin = pipeline.admin.as_ref();
    let of_file = admin.and_then(|admin| admin.token.as_ref());
    Ok(Place::There(Client {
        url: url.unwrap_or_default(),
        token: at
            .token
            .as_deref()
            .or_else(|| of_file.map(|token| token.reveal())),
    }))
}

fn asked(selection: &Selection) -> Value {
    let mut body = json!(selection);
    body["all"] = (*selection == Selection::default()).into();
    body
}

fn query(selection: &Selection) -> String {
    let parts = [
        ("sink", &selection.sink),
        ("table", &selection.table),
        ("reason", &selection.reason),
    ];
    let mut url = reqwest::Url::parse("http://lockstep").expect("a constant");
    for (name, value) in parts {
        if let Some(value) = value {
            url.query_pairs_mut().append_pair(name, value);
        }
    }
    url.query()
        .map_or_else(String::new, |query| format!("?{query}"))
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|error| {
        Error::new(ErrorKind::Protocol, "the answer is not understood")
            .source(error)
            .remedy("use the command of the version that runs")
    })
}

fn age(micros: i64) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as i64);
    let age = u64::try_from(now - micros).unwrap_or(0);
    duration(Duration::from_micros(age))
}

fn table(heads: &[Head], paint: Paint) -> String {
    if heads.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut table = Table::new(
        7,
        &[
            "id", "place", "reason", "table", "op", "key", "position", "tried", "age",
        ],
    );
    for head in heads {
        table.row(vec![
            head.id.to_string(),
            head.place.clone(),
            head.reason.clone(),
            head.table.clone(),
            head.op.clone(),
            head.keys.join(" → "),
            head.position.to_string(),
            head.attempts.to_string(),
            age(head.kept_micros),
        ]);
    }
    table.render(paint)
}

fn details(letter: &Letter, paint: Paint) -> String {
    let head = &letter.head;
    let mut out = format!(
        "{} {} of {} in {}\n",
        paint.bold(&format!("dead letter {}", head.id)),
        head.op,
        head.table,
        head.source
    );
    let facts = [
        ("put aside by", head.place.clone()),
        ("reason", head.reason.clone()),
        ("message", head.message.clone()),
        ("key", head.keys.join(" → ")),
        ("position", head.position.to_string()),
        ("change", head.change.clone()),
        ("committed", format!("{} ago", age(head.commit_micros))),
        ("put aside", format!("{} ago", age(head.kept_micros))),
        ("refused", of(head.attempts.into(), "time", "times")),
        (
            "passed by",
            head.overtaken.clone().unwrap_or_else(|| "-".to_owned()),
        ),
    ];
    // Writing to a String cannot fail.
    for (name, value) in facts {
        let _ = writeln!(out, "  {name:13} {value}");
    }
    let whole = json!(letter);
    for (name, row) in [("old row", &whole["old"]), ("new row", &whole["new"])] {
        if row.is_object() {
            let _ = writeln!(out, "{}\n{row:#}", paint.bold(name));
        }
    }
    out
}

fn outcome(reports: &Reports) -> String {
    if reports.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut out = String::new();
    // Writing to a String cannot fail.
    for (place, report) in reports {
        let _ = writeln!(
            out,
            "{place}: {} delivered, {} stale (the sink has something newer), {} refused again",
            report.delivered, report.stale, report.refused
        );
        for refused in &report.refusals {
            let _ = writeln!(
                out,
                "  {} {}: {}",
                refused.id, refused.reason, refused.message
            );
        }
        if report.behind > 0 {
            let _ = writeln!(out, "  {} wait behind those", report.behind);
        }
        if report.not_for_a_sink > 0 {
            let _ = writeln!(
                out,
                "  {} put aside by a transform on purpose: show or discard them",
                report.not_for_a_sink
            );
        }
        if let Some(stopped) = &report.stopped {
            let _ = writeln!(out, "  stopped: {stopped}");
        }
    }
    out
}
