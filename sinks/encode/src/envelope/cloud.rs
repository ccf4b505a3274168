//! CloudEvents 1.0 around the `flat` format, as the bindings for Kafka have it.
//!
//! | attribute | value |
//! |---|---|
//! | `id` | `lockstep.id`, a dot, and the letter of the operation: a change of the key is two events |
//! | `source` | `/lockstep/` and the name of the source |
//! | `type` | `lockstep.row.` and `read`, `created`, `updated`, `deleted`, `truncated`; `lockstep.message` |
//! | `subject` | `schema.table`; of a message none |
//! | `time` | commit time, UTC |
//! | `datacontenttype` | `application/json` |

use lockstep_core::batch::Op;
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;

use super::encoder::Context;
use super::{Content, Headers};
use crate::value::temporal::write_micros_iso;
use crate::value::text::write_string;

const SPEC: &str = "1.0";
const DATA: &str = "application/json";
const STRUCTURED: &str = "application/cloudevents+json; charset=UTF-8";

/// What is fixed for one schema version.
#[derive(Debug)]
pub(super) struct Cloud {
    content: Content,
    source: String,
    subject: Option<String>,
}

/// The attributes of one event.
pub(super) struct Attributes<'a> {
    cloud: &'a Cloud,
    id: Vec<u8>,
    kind: &'static str,
    time: String,
}

impl Cloud {
    pub(super) fn new(content: Content, schema: &TableSchema, source: &SourceInfo) -> Self {
        Cloud {
            content,
            source: format!("/lockstep/{}", source.name),
            subject: (!schema.origin.name.is_empty()).then(|| schema.origin.to_string()),
        }
    }

    pub(super) fn attributes(
        &self,
        context: Context<'_>,
        op: Op,
        headers: Headers<'_>,
    ) -> Attributes<'_> {
        let (letter, kind) = match op {
            Op::Read => (b'r', "lockstep.row.read"),
            Op::Insert => (b'c', "lockstep.row.created"),
            Op::Update => (b'u', "lockstep.row.updated"),
            Op::Delete => (b'd', "lockstep.row.deleted"),
            Op::Truncate => (b't', "lockstep.row.truncated"),
            Op::Message | Op::Event => (b'm', "lockstep.message"),
        };
        let mut id = headers.id().to_vec();
        id.extend_from_slice(&[b'.', letter]);
        let mut time = Vec::new();
        let transaction = context.batch.transaction(context.change);
        write_micros_iso(transaction.commit_micros, &mut time);
        let time = String::from_utf8_lossy(&time).trim_matches('"').to_owned();
        Attributes {
            cloud: self,
            id,
            kind,
            time,
        }
    }
}

impl Attributes<'_> {
    fn texts(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let cloud = self.cloud;
        let subject = cloud.subject.as_ref();
        [
            ("ce_specversion", SPEC.as_bytes()),
            ("ce_id", &self.id),
            ("ce_source", cloud.source.as_bytes()),
            ("ce_type", self.kind.as_bytes()),
            ("ce_time", self.time.as_bytes()),
        ]
        .into_iter()
        .chain(subject.map(|subject| ("ce_subject", subject.as_bytes())))
    }

    pub(super) fn headers(&self) -> Vec<(&str, &[u8])> {
        match self.cloud.content {
            Content::Structured => vec![("content-type", STRUCTURED.as_bytes())],
            Content::Binary => {
                let texts = self.texts();
                texts.chain([("content-type", DATA.as_bytes())]).collect()
            }
        }
    }

    /// The value of the record.
    pub(super) fn around<'b>(&self, data: &'b [u8], out: &'b mut Vec<u8>) -> &'b [u8] {
        if self.cloud.content == Content::Binary {
            return data;
        }
        out.clear();
        for (at, (name, text)) in self.texts().enumerate() {
            out.push(if at == 0 { b'{' } else { b',' });
            let name = name.trim_start_matches("ce_");
            write_text(name.as_bytes(), out);
            out.push(b':');
            write_text(text, out);
        }
        out.extend_from_slice(b",\"datacontenttype\":");
        write_text(DATA.as_bytes(), out);
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(data);
        out.push(b'}');
        out
    }
}

/// The name of a database may be of other bytes than UTF-8 in the id; then its place is taken by what can be shown.
fn write_text(text: &[u8], out: &mut Vec<u8>) {
    let before = out.len();
    if write_string(text, out).is_err() {
        out.truncate(before);
        let shown = String::from_utf8_lossy(text);
        let _ = write_string(shown.as_bytes(), out);
    }
}
