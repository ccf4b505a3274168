//! A bulk request being put together.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::position::{Position, SourceInfo};
use lockstep_core::refusal::reason;
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};

use super::epoch::Version;
use super::index::Target;

/// Longest id of a document, in bytes of UTF-8.
pub(super) const ID_LIMIT: usize = 512;

/// The hash of an index and an id. Two keys with one hash only make a write wait that need not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KeyHash(u64);

impl KeyHash {
    pub(super) fn of(index: &str, id: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (index, id).hash(&mut hasher);
        KeyHash(hasher.finish())
    }
}

/// One item of a bulk request.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) index: Arc<str>,
    pub(super) id: String,
    /// Number of the batch it belongs to.
    pub(super) batch: u64,
    /// `None` for what is not a change of a row: the documents that a TRUNCATE finds.
    origin: Option<Origin>,
    /// Its lines in the body.
    pub(super) lines: Range<usize>,
    /// A later item of the same bulk writes the same key.
    superseded: bool,
}

/// The change that an item comes from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) source: Arc<SourceInfo>,
    pub(super) schema: Arc<TableSchema>,
    pub(super) position: Position,
}

impl Origin {
    /// The error is about this change.
    pub(super) fn of(&self, error: Error) -> Error {
        error.about(&self.source, &self.schema.id, self.position)
    }
}

impl Item {
    /// The error is about the change that the item comes from.
    pub(super) fn of(&self, error: Error) -> Error {
        match &self.origin {
            Some(origin) => origin.of(error),
            None => error,
        }
    }
}

/// Appends a document to a body.
pub(super) type WriteDocument<'a> = &'a mut (dyn FnMut(&mut Vec<u8>) -> Result<()> + Send);

/// Items, and the body that holds their lines.
#[derive(Default)]
pub(super) struct Bulk {
    body: Vec<u8>,
    items: Vec<Item>,
    latest: HashMap<KeyHash, usize>,
    /// Some key of it is under way: it must wait for what is.
    pub(super) must_wait: bool,
}

impl Bulk {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.body.len()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn has(&self, key: KeyHash) -> bool {
        self.latest.contains_key(&key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = KeyHash> {
        self.latest.keys().copied()
    }

    /// Adds the document that `write` appends, or the deletion of the key when there is no `write`. An item of the same key
    /// that it replaces has its answer when this one has: if this one is refused, the other is still to be written.
    ///
    /// # Errors
    /// When the id is no legal id, and the errors of `write`; nothing is added then.
    pub(super) fn add(
        &mut self,
        target: &Target,
        key: KeyHash,
        id: &str,
        version: Version,
        (batch, origin): (u64, Option<Origin>),
        write: Option<WriteDocument<'_>>,
    ) -> Result<()> {
        check(target, id)?;
        let start = self.body.len();
        self.action(target, id, version, write.is_none());
        if let Some(write) = write {
            if let Err(error) = write(&mut self.body) {
                self.body.truncate(start);
                return Err(error
                    .at(format!("document {id}"))
                    .at(format!("index {}", target.index)));
            }
            self.body.push(b'\n');
        }
        let number = self.items.len();
        self.items.push(Item {
            index: Arc::clone(&target.index),
            id: id.to_owned(),
            batch,
            origin,
            lines: start..self.body.len(),
            superseded: false,
        });
        let earlier = self
            .latest
            .insert(key, number)
            .map(|earlier| &mut self.items[earlier])
            .filter(|earlier| earlier.id == id && *earlier.index == *target.index);
        if let Some(earlier) = earlier {
            earlier.superseded = true;
        }
        Ok(())
    }

    fn action(&mut self, target: &Target, id: &str, version: Version, delete: bool) {
        let action = if delete {
            &target.delete_action
        } else {
            &target.index_action
        };
        self.body.extend_from_slice(action.as_bytes());
        let id = crate::document::json_text(id);
        let tail = format!("{id},\"version\":{version},\"version_type\":\"external_gte\"}}}}\n");
        self.body.extend_from_slice(tail.as_bytes());
    }

    /// The request: a body of exactly the items returned with it, in order.
    pub(super) fn finish(self) -> Request {
        let replaced = self.items.iter().filter(|item| item.superseded);
        let request = Request {
            replaced: replaced.map(|item| item.batch).collect(),
            body: self.body.into(),
            items: self.items,
        };
        if request.replaced.is_empty() {
            return request;
        }
        request.part(|item| !item.superseded)
    }
}

/// A bulk request.
pub(super) struct Request {
    pub(super) body: Bytes,
    pub(super) items: Vec<Item>,
    /// Batches of items that others took the place of, one entry for each.
    pub(super) replaced: Vec<u64>,
}

impl Request {
    /// The request with only the items that `keep` says.
    pub(super) fn part(&self, mut keep: impl FnMut(&Item) -> bool) -> Request {
        let mut body = Vec::new();
        let mut items = Vec::new();
        for item in &self.items {
            if keep(item) {
                let start = body.len();
                body.extend_from_slice(&self.body[item.lines.clone()]);
                items.push(Item {
                    lines: start..body.len(),
                    ..item.clone()
                });
            }
        }
        Request {
            body: body.into(),
            items,
            replaced: self.replaced.clone(),
        }
    }
}

fn check(target: &Target, id: &str) -> Result<()> {
    let wrong = |what: String, remedy: &str| {
        Err(Error::new(ErrorKind::Refused, what)
            .because(reason::KEY)
            .remedy(remedy)
            .at(format!("index {}", target.index)))
    };
    if id.is_empty() || id.len() > ID_LIMIT {
        let shown: String = id.chars().take(64).collect();
        return wrong(
            format!(
                "the key `{shown}` has {} bytes as an id, and ids have 1 to {ID_LIMIT}",
                id.len()
            ),
            "leave the row out with a `filter`, or give the table a shorter key",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Documents;
    use lockstep_core::position::SourceIdentity;

    fn target() -> Target {
        let schema = Arc::new(TableSchema::message("orders".into()));
        Target {
            index: "x".into(),
            documents: Documents::new(&schema),
            index_action: r#"{"index":{"_index":"x","_id":"#.into(),
            delete_action: r#"{"delete":{"_index":"x","_id":"#.into(),
        }
    }

    fn origin() -> Origin {
        Origin {
            source: Arc::new(SourceInfo {
                name: "orders".into(),
                identity: SourceIdentity {
                    system: 1,
                    timeline: 1,
                    incarnation: 0,
                    database: "shop".into(),
                },
            }),
            schema: Arc::new(TableSchema::message("orders".into())),
            position: Position::default(),
        }
    }

    fn add(bulk: &mut Bulk, id: &str, version: u64, batch: u64, doc: Option<&str>) {
        let mut write = |out: &mut Vec<u8>| {
            out.extend_from_slice(doc.unwrap_or_default().as_bytes());
            Ok(())
        };
        let write: Option<WriteDocument<'_>> = match doc {
            Some(_) => Some(&mut write),
            None => None,
        };
        bulk.add(
            &target(),
            KeyHash::of("x", id),
            id,
            Version(version),
            (batch, Some(origin())),
            write,
        )
        .expect("legal")
    }

    #[test]
    fn the_last_write_of_a_key_stays() {
        let mut bulk = Bulk::default();
        add(&mut bulk, "1", 10, 7, Some("{}"));
        add(&mut bulk, "a\"b", 11, 7, Some("{\"n\":1}"));
        add(&mut bulk, "1", 12, 8, None);
        let request = bulk.finish();
        assert_eq!(request.replaced, [7]);
        assert_eq!(
            std::str::from_utf8(&request.body).expect("text"),
            concat!(
                r#"{"index":{"_index":"x","_id":"a\"b","version":11,"version_type":"external_gte"}}"#,
                "\n{\"n\":1}\n",
                r#"{"delete":{"_index":"x","_id":"1","version":12,"version_type":"external_gte"}}"#,
                "\n"
            )
        );
        assert_eq!(request.items.len(), 2);
        let rest = request.part(|item| item.id == "1");
        assert!(rest.body.starts_with(b"{\"delete\""));
        assert_eq!(rest.replaced, [7], "it waits for the other");
    }

    #[test]
    fn ids_have_a_limit() {
        let mut bulk = Bulk::default();
        let error = bulk
            .add(
                &target(),
                KeyHash::of("x", "k"),
                &"k".repeat(513),
                Version(1),
                (0, Some(origin())),
                None,
            )
            .expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("index x"), "{error}");
        assert!(bulk.is_empty());
    }
}
