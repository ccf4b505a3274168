//! Requests, made from records.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::Error;
use lockstep_core::batch::Op;
use lockstep_core::position::{Position, SourceInfo};
use lockstep_core::schema::TableId;
use lockstep_encode::envelope::{HEADER_ID, Record, place};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode, utf8_percent_encode};

use crate::address::Target;

/// What is encoded of the parts of an id: what a header or a JSON text cannot have as it is, `:`, which stands between the parts,
/// and `.`, which stands behind the id in what is signed.
const PART: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'%')
    .add(b'.')
    .add(b':')
    .add(b'\\');

/// What a request is about, for refusals and receipts.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// Number of its batch.
    pub(crate) batch: u64,
    pub(crate) source: Arc<SourceInfo>,
    pub(crate) table: TableId,
    pub(crate) position: Position,
    pub(crate) bytes: u64,
}

impl Origin {
    /// The error of an answer, about this change.
    pub(crate) fn of(&self, error: Error) -> Error {
        let id = self.source.change_id(self.position);
        let error = error.at(format!("change {id} of table {}", self.table));
        error.about(&self.source, &self.table, self.position)
    }
}

/// What tells of a request in its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// One record: source, table, and the letter of its operation. Fit for headers.
    One(String, String, &'static str),
    /// An array.
    Many,
}

/// A POST, until it is answered with 2xx.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) target: Arc<Target>,
    pub(crate) id: String,
    pub(crate) head: Head,
    pub(crate) body: Bytes,
    pub(crate) records: Vec<Origin>,
    /// Hashes of the keys. Two keys of one hash only wait for each other.
    pub(crate) keys: HashSet<u64>,
    /// Waits for all before it, and all behind it wait for it.
    pub(crate) is_barrier: bool,
}

/// A record as it is posted.
pub(crate) struct Posted {
    pub(crate) id: String,
    pub(crate) head: Head,
    json: Vec<u8>,
    key: u64,
    pub(crate) is_barrier: bool,
}

impl Posted {
    /// `None` for a tombstone, which has a meaning for compacted topics only.
    pub(crate) fn new(record: &Record<'_>) -> Option<Self> {
        let value = record.json_value()?;
        let table = place(record.schema);
        let op = record.op.letter();
        let mut headers = record.headers.iter();
        let change = headers.find(|(name, _)| *name == HEADER_ID);
        let change = change.map(|(_, id)| id).unwrap_or_default();
        let part = |text: &str| utf8_percent_encode(text, PART).to_string();
        let (source, schema, name) = (
            part(&record.schema.source),
            part(&table.schema),
            part(&table.name),
        );
        let id = format!(
            "{}:{source}:{schema}:{name}:{op}",
            percent_encode(change, PART)
        );
        let mut json = Vec::with_capacity(id.len() + value.len() + 64);
        json.extend_from_slice(b"{\"id\":\"");
        json.extend_from_slice(id.as_bytes());
        json.extend_from_slice(b"\",\"key\":");
        json.extend_from_slice(record.json_key().as_deref().unwrap_or(b"null"));
        json.extend_from_slice(b",\"value\":");
        json.extend_from_slice(&value);
        json.push(b'}');
        let mut hasher = DefaultHasher::new();
        // Without a key: all rows of the table are one to us.
        (
            &*record.schema.source,
            &*table.schema,
            &*table.name,
            record.key,
        )
            .hash(&mut hasher);
        Some(Posted {
            id,
            head: Head::One(source, format!("{schema}.{name}"), op),
            json,
            key: hasher.finish(),
            is_barrier: record.op == Op::Truncate,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.json.len()
    }

    /// The request of this record alone.
    pub(crate) fn alone(self, target: Arc<Target>, origin: Origin) -> Request {
        Request {
            target,
            id: self.id,
            head: self.head,
            body: self.json.into(),
            records: vec![origin],
            keys: HashSet::from([self.key]),
            is_barrier: self.is_barrier,
        }
    }
}

/// An array that records are added to.
pub(crate) struct Bulk {
    pub(crate) target: Arc<Target>,
    first: String,
    last: String,
    body: Vec<u8>,
    records: Vec<Origin>,
    keys: HashSet<u64>,
    is_barrier: bool,
}

impl Bulk {
    pub(crate) fn new(target: Arc<Target>, record: Posted, origin: Origin) -> Self {
        let mut bulk = Bulk {
            target,
            first: record.id.clone(),
            last: String::new(),
            body: Vec::new(),
            records: Vec::new(),
            keys: HashSet::new(),
            is_barrier: record.is_barrier,
        };
        bulk.push(record, origin);
        bulk
    }

    pub(crate) fn push(&mut self, record: Posted, origin: Origin) {
        self.body
            .push(if self.records.is_empty() { b'[' } else { b',' });
        self.body.extend_from_slice(&record.json);
        self.last = record.id;
        self.keys.insert(record.key);
        self.records.push(origin);
    }

    /// Records in it.
    pub(crate) fn records(&self) -> usize {
        self.records.len()
    }

    /// Bytes of the body when it is finished.
    pub(crate) fn bytes(&self) -> usize {
        self.body.len() + 1
    }

    pub(crate) fn finish(mut self) -> Request {
        self.body.push(b']');
        Request {
            target: self.target,
            id: format!("{}:{}:{}", self.records.len(), self.first, self.last),
            head: Head::Many,
            body: self.body.into(),
            records: self.records,
            keys: self.keys,
            is_barrier: self.is_barrier,
        }
    }
}

impl Request {
    /// What it is about, for messages.
    pub(crate) fn shown(&self) -> String {
        match &*self.records {
            [_] => format!("POST {}", self.target.shown),
            all => format!("POST {} of {} records", self.target.shown, all.len()),
        }
    }

    /// The error of its answer: about its change; where there are several and one of them is refused, each may be.
    pub(crate) fn of(&self, error: Error) -> Error {
        let [only] = &*self.records else {
            let about = |origin: &Origin| origin.of(error.clone()).refusals().to_vec();
            let suspects: Vec<_> = self.records.iter().flat_map(about).collect();
            return match suspects.is_empty() {
                true => error,
                false => error.suspecting(suspects),
            };
        };
        only.of(error)
    }
}
