//! `outbox`: what an application writes into a table of events, or says in logical messages, as records of their own.
//!
//! Of rows nothing is copied: an event is the cells of the row under another schema ([`TableSchema::event`]). Messages are
//! taken apart, and their values put beside the batch.

mod config;
mod said;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Change, Op, Rewrite, Row};
use lockstep_core::schema::{Column, TableSchema};
use lockstep_core::template::{Part, Template};
use lockstep_core::transform::{
    Comparable, DeadLetters, Transform, TransformContext, TransformFactory,
};
use lockstep_core::{Error, ErrorKind, Result};

pub use self::config::{
    Copied, DEFAULT_ID, DEFAULT_KEY, DEFAULT_PAYLOAD, DEFAULT_TOPIC, OutboxConfig, Updated,
};
use crate::plans::Plans;
use crate::tables::{Applies, column, is_message};
use crate::text::{Value, value};

/// Why an UPDATE is put aside.
pub const UPDATED: &str = "outbox_update";
/// Why an event is put aside that does not say where it goes, or cannot be read.
pub const UNREADABLE: &str = "outbox_event";

/// Destinations remembered per table version; more are made again.
const MAX_DESTINATIONS: usize = 4096;

/// Builds `outbox`.
pub struct Outbox;

impl TransformFactory for Outbox {
    const KIND: &'static str = "outbox";
    type Config = OutboxConfig;

    fn validate(config: &OutboxConfig) -> Result<()> {
        config.check()
    }

    fn open(config: &OutboxConfig, context: TransformContext) -> Result<Box<dyn Transform>> {
        config.check()?;
        Ok(Box::new(Emitting {
            settings: Settings {
                applies: Applies::new(&config.tables),
                topic: config.template()?,
                config: config.clone(),
            },
            place: format!("transforms.{}", context.name),
            dead_letters: context.dead_letters,
            plans: Plans::new(),
        }))
    }
}

struct Emitting {
    settings: Settings,
    place: String,
    dead_letters: Arc<dyn DeadLetters>,
    plans: Plans<Arc<Plan>>,
}

struct Settings {
    applies: Applies,
    topic: Template,
    config: OutboxConfig,
}

enum Plan {
    Pass,
    Rows(Events),
    Messages(Events),
}

/// How events are made of what has one shape.
struct Events {
    origin: Arc<TableSchema>,
    /// Of the event.
    columns: Vec<Column>,
    width: u16,
    topic: Vec<Piece>,
    destinations: Mutex<HashMap<String, Arc<TableSchema>>>,
}

/// A part of a topic.
enum Piece {
    Literal(String),
    Field(Column),
}

#[async_trait]
impl Transform for Emitting {
    fn bind(&mut self, schema: &Arc<TableSchema>) -> Result<()> {
        self.settings.applies.note(schema);
        self.plans
            .bind(schema, |schema| self.settings.plan(schema))
            .map(drop)
    }

    fn complete(&mut self) -> Result<()> {
        self.settings.applies.check()
    }

    fn comparable(&self, schema: &Arc<TableSchema>) -> Comparable {
        match self.settings.plan(schema).as_deref() {
            Ok(Plan::Rows(_)) => Comparable::Not,
            _ => Comparable::Fully,
        }
    }

    fn output(&self, schema: &Arc<TableSchema>) -> Option<Arc<TableSchema>> {
        match self.settings.plan(schema).as_deref() {
            Ok(Plan::Rows(_)) => None,
            _ => Some(Arc::clone(schema)),
        }
    }

    async fn apply(&mut self, batch: Arc<Batch>) -> Result<Arc<Batch>> {
        let plans = self.plans.of(&batch, |schema| self.settings.plan(schema))?;
        if plans.iter().all(|plan| matches!(**plan, Plan::Pass)) {
            return Ok(batch);
        }
        let mut rewrite = batch.rewrite();
        let mut kept = Vec::with_capacity(batch.changes().len());
        for (index, change) in batch.changes().iter().enumerate() {
            let fate = match &*plans[usize::from(change.schema)] {
                Plan::Pass => Fate::Passes,
                Plan::Rows(events) => self.row(events, &batch, change, index, &mut rewrite)?,
                Plan::Messages(events) => {
                    self.message(events, &batch, change, index, &mut rewrite)?
                }
            };
            if let Fate::Letter(reason) = fate {
                let row = batch.new_row(change);
                self.dead_letters
                    .keep(&self.place, reason, &batch, change, row)?;
            }
            kept.push(matches!(fate, Fate::Passes));
        }
        rewrite.retain(|index| kept[index]);
        Ok(Arc::new(rewrite.finish()))
    }
}

/// What becomes of a change.
enum Fate {
    /// It goes on, as an event or as it is.
    Passes,
    /// It says nothing.
    Ends,
    Letter(&'static str),
}

impl Emitting {
    fn row(
        &self,
        events: &Events,
        batch: &Batch,
        change: &Change,
        index: usize,
        rewrite: &mut Rewrite,
    ) -> Result<Fate> {
        let config = &self.settings.config;
        match change.op {
            Op::Read if config.copied == Copied::Skip => return Ok(Fate::Ends),
            Op::Read | Op::Insert => {}
            Op::Update => {
                return Ok(match config.updated {
                    Updated::Letter => Fate::Letter(UPDATED),
                    Updated::Skip => Fate::Ends,
                });
            }
            Op::Delete | Op::Truncate => return Ok(Fate::Ends),
            Op::Message | Op::Event => return Ok(Fate::Passes),
        }
        let Some(row) = batch.new_row(change) else {
            return Ok(Fate::Letter(UNREADABLE));
        };
        match events.topic_of_row(row) {
            Some(topic) => {
                let schema = schema_index(rewrite, &events.destination(topic))?;
                rewrite.become_event(index, schema);
                Ok(Fate::Passes)
            }
            None => Ok(Fate::Letter(UNREADABLE)),
        }
    }

    fn message(
        &self,
        events: &Events,
        batch: &Batch,
        change: &Change,
        index: usize,
        rewrite: &mut Rewrite,
    ) -> Result<Fate> {
        let Some(message) = batch.new_row(change).and_then(said::message) else {
            return Ok(Fate::Passes);
        };
        let prefixes = &self.settings.config.messages;
        if !prefixes
            .iter()
            .any(|prefix| prefix.as_bytes() == message.prefix)
        {
            return Ok(Fate::Passes);
        }
        let Some(fields) = said::Fields::read(message.content) else {
            return Ok(Fate::Letter(UNREADABLE));
        };
        let Some(topic) = events.topic_of_fields(&fields) else {
            return Ok(Fate::Letter(UNREADABLE));
        };
        let named = self.settings.names();
        let values: Vec<_> = named.map(|(_, field)| fields.get(field)).collect();
        let values: Vec<_> = values.iter().map(Option::as_deref).collect();
        let schema = schema_index(rewrite, &events.destination(topic))?;
        rewrite.become_event_of(index, schema, &values);
        Ok(Fate::Passes)
    }
}

fn schema_index(rewrite: &mut Rewrite, schema: &Arc<TableSchema>) -> Result<u16> {
    if rewrite.batch().schemas().len() >= usize::from(u16::MAX) {
        return Err(Error::new(
            ErrorKind::Setup,
            "the events of one batch go to more than 65000 topics",
        )
        .remedy("name topics by a column with fewer values"));
    }
    Ok(rewrite.add_schema(Arc::clone(schema)))
}

impl Settings {
    /// The event's columns, and the row's that they are: `id`, `key`, `payload`, and one per header.
    fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        let config = &self.config;
        let own = [
            ("id", config.id.as_str()),
            ("key", config.key.as_str()),
            ("payload", config.payload.as_str()),
        ];
        let headers = config.headers.iter();
        own.into_iter()
            .chain(headers.map(|(name, column)| (name.as_str(), column.as_str())))
    }

    fn plan(&self, schema: &Arc<TableSchema>) -> Result<Arc<Plan>> {
        let plan = if is_message(schema) {
            match self.config.messages.is_empty() {
                true => Plan::Pass,
                false => Plan::Messages(self.events_of_messages(schema)),
            }
        } else if !self.config.tables.0.is_empty() && self.applies.to(schema) {
            Plan::Rows(self.events_of_rows(schema)?)
        } else {
            Plan::Pass
        };
        Ok(Arc::new(plan))
    }

    fn events_of_rows(&self, schema: &Arc<TableSchema>) -> Result<Events> {
        let taken = |name: &str| column(schema, name).map(|(_, column)| column.clone());
        let columns = self.names().map(|(name, from)| {
            Ok(Column {
                name: name.into(),
                ..taken(from)?
            })
        });
        let piece = |part: &Part| match part {
            Part::Literal(text) => Ok(Piece::Literal(text.clone())),
            Part::Field(name) => taken(name).map(Piece::Field),
        };
        Ok(Events {
            columns: columns.collect::<Result<_>>()?,
            topic: self
                .topic
                .parts()
                .iter()
                .map(piece)
                .collect::<Result<_>>()?,
            width: schema.width,
            origin: Arc::clone(schema),
            destinations: Mutex::default(),
        })
    }

    fn events_of_messages(&self, schema: &Arc<TableSchema>) -> Events {
        let text = &schema.columns[0];
        let column = |(slot, name): (usize, &str)| Column {
            name: name.into(),
            slot: slot as u16,
            not_null: false,
            ..text.clone()
        };
        let columns: Vec<_> = self
            .names()
            .map(|(name, _)| name)
            .enumerate()
            .map(column)
            .collect();
        let piece = |part: &Part| match part {
            Part::Literal(text) => Piece::Literal(text.clone()),
            Part::Field(name) => Piece::Field(column((0, name))),
        };
        Events {
            width: columns.len() as u16,
            columns,
            topic: self.topic.parts().iter().map(piece).collect(),
            origin: Arc::clone(schema),
            destinations: Mutex::default(),
        }
    }
}

impl Events {
    /// `None` where a field of it has no text.
    fn topic_of_row(&self, row: Row<'_>) -> Option<String> {
        self.render(|column, out| match value(&column.ty, row.get(column)) {
            Value::Text(text) => {
                out.push_str(std::str::from_utf8(&text).ok()?);
                Some(())
            }
            Value::Null | Value::Unchanged | Value::Opaque(_) => None,
        })
    }

    fn topic_of_fields(&self, fields: &said::Fields<'_>) -> Option<String> {
        self.render(|column, out| {
            let value = fields.get(&column.name)?;
            out.push_str(std::str::from_utf8(&value).ok()?);
            Some(())
        })
    }

    fn render(&self, mut fill: impl FnMut(&Column, &mut String) -> Option<()>) -> Option<String> {
        let mut topic = String::new();
        for piece in &self.topic {
            match piece {
                Piece::Literal(text) => topic.push_str(text),
                Piece::Field(column) => {
                    let before = topic.len();
                    fill(column, &mut topic)?;
                    if topic.len() == before {
                        return None;
                    }
                }
            }
        }
        (!topic.is_empty()).then_some(topic)
    }

    fn destination(&self, topic: String) -> Arc<TableSchema> {
        let mut known = self
            .destinations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(schema) = known.get(&topic) {
            return Arc::clone(schema);
        }
        if known.len() >= MAX_DESTINATIONS {
            known.clear();
        }
        let columns = self.columns.clone();
        let schema = TableSchema::event(&self.origin, &topic, columns, self.width);
        let schema = Arc::new(schema);
        known.insert(topic, Arc::clone(&schema));
        schema
    }
}
