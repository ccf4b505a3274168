//! From changes to records.

use std::fmt::Write as _;
use std::sync::Arc;

use lockstep_core::batch::{Batch, CellRef, Change, Op, Row};
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::refusal::Refusals;
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};

use super::clock::{Clock, Now};
use super::cloud::Cloud;
use super::{
    Format, HEADER_BRANCHES, HEADER_GLOBAL, HEADER_NEW_KEY, HEADER_OLD_KEY, Headers, Record,
    debezium, event, flat,
};
use crate::avro::{self, Ids, Schemas};
use crate::errors::{absent, no_image};
use crate::key::{KeyJson, key_changed};
use crate::plans::Plans;
use crate::value::text::write_string;

/// Encodes changes to records. Keeps a plan per schema version and its buffers: one per sink, or one per thread.
#[derive(Debug)]
pub struct Encoder {
    format: Format,
    coding: Coding,
    tables: Plans<Table>,
    id: Id,
    /// How many branches the transaction at hand has.
    branches: String,
    clock: Clock,
    key: Vec<u8>,
    old_key: Vec<u8>,
    value: Vec<u8>,
    whole: Vec<u8>,
}

/// How records become bytes.
#[derive(Debug)]
enum Coding {
    Json,
    /// By what a registry calls the schemas of each version.
    Avro(Plans<Ids>),
}

/// What is fixed for one schema version.
#[derive(Debug)]
struct Table {
    source: Arc<SourceInfo>,
    key: Key,
    body: Body,
    /// What is put around the body.
    cloud: Option<Cloud>,
}

#[derive(Debug)]
enum Body {
    Debezium(Box<debezium::Body>),
    Flat(flat::Body),
    Avro(avro::Body),
}

#[derive(Debug)]
enum Key {
    Json(KeyJson),
    Avro(avro::Key),
}

impl Key {
    fn write(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<bool> {
        self.write_or(row, row, out)
    }

    fn write_or(&self, row: Row<'_>, old: Row<'_>, out: &mut Vec<u8>) -> Result<bool> {
        match self {
            Key::Json(key) => key.write_or(row, old, out),
            Key::Avro(key) => key.write_or(row, old, out),
        }
    }
}

/// What a record says.
#[derive(Clone, Copy)]
pub(crate) struct Event<'a> {
    /// The letter both formats use.
    pub(crate) op: u8,
    /// The old image, when it is to be shown.
    pub(crate) before: Option<Row<'a>>,
    /// The new row.
    pub(crate) after: Option<Row<'a>>,
    /// The record's key.
    pub(crate) key: Option<&'a [u8]>,
    /// The key the row had before a key change (on the create) or has after it (on the delete).
    pub(crate) other_key: Option<&'a [u8]>,
}

/// What a record is made from.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) batch: &'a Batch,
    pub(crate) change: &'a Change,
    pub(crate) now: &'a Now,
}

impl Body {
    fn write(&self, context: Context<'_>, event: Event<'_>, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        match self {
            Body::Debezium(body) => body.write(context, event, out),
            Body::Flat(body) => body.write(context, event, out),
            Body::Avro(body) => body.write(context, event, out),
        }
    }

    /// `json` is the JSON of `prefix`.
    fn write_message(
        &self,
        context: Context<'_>,
        (prefix, json): (&[u8], &[u8]),
        content: &[u8],
        out: &mut Vec<u8>,
    ) {
        out.clear();
        match self {
            Body::Debezium(body) => body.write_message(context, json, content, out),
            Body::Flat(body) => body.write_message(context, json, content, out),
            Body::Avro(body) => body.write_message(context, prefix, content, out),
        }
    }

    fn is_debezium(&self) -> bool {
        matches!(
            self,
            Body::Debezium(_) | Body::Avro(avro::Body::Debezium(_))
        )
    }
}

impl Encoder {
    /// An encoder of `format`, as JSON.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self::with(format, Coding::Json)
    }

    /// An encoder of `format` in Avro: before a change is encoded, the schemas of its table have to be
    /// [registered](Encoder::register).
    ///
    /// # Errors
    /// Kind `Config`, for a format that is JSON by definition.
    pub fn avro(format: Format) -> Result<Self> {
        match format {
            Format::Debezium(_) | Format::Flat => {
                Ok(Self::with(format, Coding::Avro(Plans::new())))
            }
            Format::CloudEvents(_) => Err(Error::new(
                ErrorKind::Config,
                "a CloudEvent is JSON, and has no form in Avro",
            )
            .remedy("choose `debezium` or `flat` for `format`, or leave `encoding` out")),
        }
    }

    /// The schemas of a table that have to be registered before its changes can be encoded; `None` when they are, or when there are
    /// none.
    ///
    /// # Errors
    /// Kind `Setup`, when the names of two columns clash in Avro.
    pub fn unregistered(&self, schema: &Arc<TableSchema>) -> Result<Option<Schemas>> {
        match &self.coding {
            Coding::Avro(ids) if ids.known(schema).is_none() => Schemas::of(self.format, schema),
            Coding::Avro(_) | Coding::Json => Ok(None),
        }
    }

    /// What the registry calls the schemas of this version of a table.
    pub fn register(&mut self, schema: &Arc<TableSchema>, ids: Ids) {
        if let Coding::Avro(known) = &mut self.coding {
            *known.get(schema, |_| ids) = ids;
        }
    }

    fn with(format: Format, coding: Coding) -> Self {
        Encoder {
            format,
            coding,
            tables: Plans::new(),
            id: Id::default(),
            branches: String::new(),
            clock: Clock::default(),
            key: Vec::new(),
            old_key: Vec::new(),
            value: Vec::new(),
            whole: Vec::new(),
        }
    }

    /// Calls `emit` for each record of `change`, in order: a delete gives the event and, where the table has a key, a
    /// tombstone; an update that changes the key gives delete, tombstone, create; anything else one record.
    ///
    /// # Errors
    /// What `emit` returns; kind `Refused`, naming the change, table and column, for a value that its type cannot have or a
    /// row without its key. Records emitted before stay emitted. What `emit` refuses without naming a change is taken to be
    /// about this one.
    pub fn encode(
        &mut self,
        batch: &Batch,
        change: &Change,
        emit: &mut dyn FnMut(Record<'_>) -> Result<()>,
    ) -> Result<()> {
        let schema = batch.schema(change);
        let format = self.format;
        let coding = &self.coding;
        let table = self.tables.get_or_try(schema, |schema| {
            Table::new(format, coding, schema, &batch.source)
        })?;
        if !Arc::ptr_eq(&table.source, &batch.source) && table.source != batch.source {
            *table = Table::new(format, coding, schema, &batch.source)?;
        }
        match &mut table.body {
            Body::Debezium(body) => body.begin(batch.phase, batch.transaction(change)),
            Body::Avro(avro::Body::Debezium(body)) => {
                body.begin(batch.phase, batch.transaction(change));
            }
            Body::Flat(_) | Body::Avro(avro::Body::Flat(_)) => {}
        }
        let id = self.id.of(batch, change);
        let source = batch.source.name.as_bytes();
        let mut headers = Headers::new(id, source, change.duplicate);
        if let Some(global) = &batch.transaction(change).global {
            self.branches.clear();
            // A `String` takes everything.
            let _ = write!(self.branches, "{}", global.branches);
            headers.add(HEADER_GLOBAL, global.id.as_bytes());
            headers.add(HEADER_BRANCHES, self.branches.as_bytes());
        }
        let work = Work {
            table,
            schema,
            context: Context {
                batch,
                change,
                now: self.clock.now(batch.received),
            },
            headers,
            whole: &mut self.whole,
            emit,
        };
        work.run(&mut self.key, &mut self.old_key, &mut self.value)
            .map_err(|error| error.about(&batch.source, &schema.id, batch.position(change)))
    }

    /// After a refusal: looks through the changes that follow, so that all that are refused are known at once. Gives the
    /// refusal back with those found added.
    pub fn survey(
        &mut self,
        batch: &Batch,
        rest: &[Change],
        refused: Error,
        emit: &mut dyn FnMut(Record<'_>) -> Result<()>,
    ) -> Error {
        if refused.refusals().is_empty() || refused.is_suspicion() {
            return refused;
        }
        let mut refusals = Refusals::default();
        for change in rest {
            if let Err(other) = refusals.take(self.encode(batch, change, emit)) {
                return other;
            }
        }
        match refusals.finish() {
            Ok(()) => refused,
            Err(more) => {
                let all = [refused.refusals(), more.refusals()].concat();
                refused.refusing(all)
            }
        }
    }
}

impl Table {
    fn new(
        format: Format,
        coding: &Coding,
        schema: &Arc<TableSchema>,
        source: &Arc<SourceInfo>,
    ) -> Result<Self> {
        let mapping = format.mapping();
        let omitted = format.omitted(schema);
        if !omitted.is_empty() {
            tracing::warn!(
                source = &*schema.source,
                table = %schema.id,
                columns = omitted.join(", "),
                "columns are left out: the format has no form for their types"
            );
        }
        // An event is what the application wrote, however records are encoded.
        if let Coding::Avro(known) = coding
            && schema.destination().is_none()
        {
            let ids = *known.known(schema).ok_or_else(|| unregistered(schema))?;
            return Ok(Table {
                source: Arc::clone(source),
                key: Key::Avro(avro::Key::new(format, schema, ids)?),
                body: Body::Avro(avro::Body::new(format, schema, source, ids)?),
                cloud: None,
            });
        }
        Ok(Table {
            source: Arc::clone(source),
            key: Key::Json(KeyJson::with(schema, mapping)),
            body: match format {
                Format::Debezium(_) => {
                    Body::Debezium(Box::new(debezium::Body::new(schema, mapping, source)))
                }
                Format::Flat | Format::CloudEvents(_) => {
                    Body::Flat(flat::Body::new(schema, source))
                }
            },
            cloud: match format {
                Format::CloudEvents(content) => Some(Cloud::new(content, schema, source)),
                Format::Debezium(_) | Format::Flat => None,
            },
        })
    }
}

#[cold]
fn unregistered(schema: &TableSchema) -> Error {
    Error::new(
        ErrorKind::Protocol,
        "the schema of a change was not registered",
    )
    .remedy("report this: the sink must register schemas before it encodes")
    .at(format!("table {}", schema.origin))
}

/// One change on its way.
struct Work<'a, 'e> {
    table: &'a Table,
    schema: &'a Arc<TableSchema>,
    context: Context<'a>,
    headers: Headers<'a>,
    /// Kept for its room.
    whole: &'e mut Vec<u8>,
    emit: &'e mut dyn FnMut(Record<'_>) -> Result<()>,
}

impl<'a> Work<'a, '_> {
    fn run(mut self, key: &mut Vec<u8>, old_key: &mut Vec<u8>, value: &mut Vec<u8>) -> Result<()> {
        let Context { batch, change, .. } = self.context;
        let (old, new) = (batch.old_row(change), batch.new_row(change));
        let need = |row: Option<Row<'a>>| row.ok_or_else(|| no_image(self.schema));
        match change.op {
            Op::Read => self.row(b'r', None, need(new)?, key, value),
            Op::Insert => self.row(b'c', None, need(new)?, key, value),
            Op::Update => {
                let new = need(new)?;
                match old.filter(|old| key_changed(self.schema, *old, new)) {
                    Some(old) => self.key_change(old, new, key, old_key, value),
                    None => self.row(b'u', old, new, key, value),
                }
            }
            Op::Delete => self.delete(need(old)?, None, key, value),
            Op::Truncate => {
                let event = Event {
                    op: b't',
                    before: None,
                    after: None,
                    key: None,
                    other_key: None,
                };
                self.table.body.write(self.context, event, value)?;
                self.send(Op::Truncate, None, Some(value), self.headers)
            }
            Op::Message => self.message(need(new)?, key, value),
            Op::Event => self.event(need(new)?),
        }
    }

    fn send(
        &mut self,
        op: Op,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: Headers<'_>,
    ) -> Result<()> {
        if let (Some(cloud), Some(data), true) = (&self.table.cloud, value, op != Op::Event) {
            let attributes = cloud.attributes(self.context, op, self.headers);
            let more = attributes.headers();
            return (self.emit)(Record {
                schema: self.schema,
                key,
                value: Some(attributes.around(data, self.whole)),
                headers: Headers {
                    more: &more,
                    ..headers
                },
                op,
            });
        }
        (self.emit)(Record {
            schema: self.schema,
            key,
            value,
            headers,
            op,
        })
    }

    /// A record with a new row.
    fn row(
        &mut self,
        op: u8,
        before: Option<Row<'_>>,
        after: Row<'_>,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<()> {
        key.clear();
        let has_key = self
            .table
            .key
            .write_or(after, before.unwrap_or(after), key)?;
        let key = has_key.then_some(&**key);
        let event = Event {
            op,
            before,
            after: Some(after),
            key,
            other_key: None,
        };
        self.table.body.write(self.context, event, value)?;
        self.send(self.context.change.op, key, Some(value), self.headers)
    }

    /// A delete and its tombstone; `new_key` when the row lives on under another key.
    fn delete(
        &mut self,
        old: Row<'_>,
        new_key: Option<&[u8]>,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<()> {
        key.clear();
        let has_key = self.table.key.write(old, key)?;
        let key = has_key.then_some(&**key);
        let event = Event {
            op: b'd',
            before: Some(old),
            after: None,
            key,
            other_key: new_key,
        };
        self.table.body.write(self.context, event, value)?;
        let headers = self.linked(HEADER_NEW_KEY, new_key);
        self.send(Op::Delete, key, Some(value), headers)?;
        if has_key {
            self.send(Op::Delete, key, None, headers)?;
        }
        Ok(())
    }

    fn key_change(
        &mut self,
        old: Row<'_>,
        new: Row<'_>,
        key: &mut Vec<u8>,
        old_key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<()> {
        key.clear();
        self.table.key.write_or(new, old, key)?;
        self.delete(old, Some(key), old_key, value)?;
        let event = Event {
            op: b'c',
            before: None,
            after: Some(new),
            key: Some(key),
            other_key: Some(old_key),
        };
        self.table.body.write(self.context, event, value)?;
        let headers = self.linked(HEADER_OLD_KEY, Some(old_key));
        self.send(Op::Insert, Some(key), Some(value), headers)
    }

    /// Only the `debezium` format links the parts of a key change by headers; `flat` has them in the value.
    fn linked<'h>(&self, name: &'static str, key: Option<&'h [u8]>) -> Headers<'h>
    where
        'a: 'h,
    {
        match key {
            Some(key) if self.table.body.is_debezium() => self.headers.with(name, key),
            _ => self.headers,
        }
    }

    fn event(&mut self, row: Row<'_>) -> Result<()> {
        let said = event::said(self.schema, row)?;
        let more: Vec<_> = said
            .headers
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        let headers = Headers {
            more: &more,
            ..self.headers
        };
        self.send(
            Op::Event,
            said.key.as_deref(),
            said.payload.as_deref(),
            headers,
        )
    }

    fn message(&mut self, row: Row<'_>, key: &mut Vec<u8>, value: &mut Vec<u8>) -> Result<()> {
        let bytes = |index: usize| {
            let column = &self.schema.columns[index];
            match row.get(column) {
                CellRef::Text(bytes) | CellRef::Binary(bytes) => Ok(bytes),
                CellRef::Null | CellRef::Unchanged => Err(absent(self.schema, column)),
            }
        };
        let (prefix, content) = (bytes(0)?, bytes(1)?);
        let mut json = Vec::new();
        write_string(prefix, &mut json)
            .map_err(|bad| bad.of(self.schema, &self.schema.columns[0]))?;
        key.clear();
        match &self.table.key {
            Key::Avro(avro) => avro.write_message(prefix, key),
            Key::Json(_) => {
                key.extend_from_slice(br#"{"prefix":"#);
                key.extend_from_slice(&json);
                key.push(b'}');
            }
        }
        self.table
            .body
            .write_message(self.context, (prefix, &*json), content, value);
        self.send(Op::Message, Some(key), Some(value), self.headers)
    }
}

/// The text of [`SourceInfo::change_id`], rebuilt from the last part that changed.
#[derive(Debug, Default)]
struct Id {
    source: Option<Arc<SourceInfo>>,
    text: Vec<u8>,
    /// Length of `system/timeline/db/`.
    stem: usize,
    /// Whose digits follow the stem.
    commit: Option<Lsn>,
}

impl Id {
    fn of(&mut self, batch: &Batch, change: &Change) -> &[u8] {
        let known = self
            .source
            .as_ref()
            .is_some_and(|source| Arc::ptr_eq(source, &batch.source));
        if !known {
            self.text = format!("{}/", batch.source.identity).into_bytes();
            self.stem = self.text.len();
            self.source = Some(Arc::clone(&batch.source));
            self.commit = None;
        }
        let position = batch.position(change);
        if self.commit == Some(position.commit) {
            self.text.truncate(self.stem + 17);
        } else {
            self.text.truncate(self.stem);
            write_hex16(position.commit.0, &mut self.text);
            self.text.push(b'/');
            self.commit = Some(position.commit);
        }
        self.text
            .extend_from_slice(itoa::Buffer::new().format(position.ordinal).as_bytes());
        &self.text
    }
}

/// Appends sixteen lower-case hex digits.
pub(crate) fn write_hex16(value: u64, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 16];
    for (index, byte) in value.to_be_bytes().into_iter().enumerate() {
        text[index * 2] = DIGITS[usize::from(byte >> 4)];
        text[index * 2 + 1] = DIGITS[usize::from(byte & 15)];
    }
    out.extend_from_slice(&text);
}
