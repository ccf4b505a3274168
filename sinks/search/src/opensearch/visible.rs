//! What readers need to see transactions of several databases as wholes: `gtx_epoch` and `visible_epoch`.
//!
//! Every document carries the number of the transaction that wrote it last. A document beside the positions says, of each source,
//! up to which number everything is searchable, and gives a filter that leaves out what is beyond. It is written when all that it
//! covers has been acknowledged and refreshed on all copies of all shards, and it only ever grows: numbers are places of a log, the
//! same in every replay. What a crash has left half-written is beyond it until the pipeline has been there again: the document has
//! the positions of all sources, from which they are resumed, and a batch counts as durable when the document covers it. So of a
//! transaction beyond it all branches come again, and not the one that a position of its own had not covered.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::Arc;

use lockstep_core::durable::{Delivered, Receipt};
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress as Held;
use lockstep_core::{Error, ErrorKind, Result};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bulk::ID_LIMIT;
use super::client::{Body, Client};
use super::config::Config;
use super::epoch::{Epoch, Number};
use super::index::Indexes;

/// The field of a document that has the number of its transaction.
pub(super) const FIELD: &str = "gtx_epoch";
/// As it begins in a document.
pub(super) const QUOTED_FIELD: &str = "\"gtx_epoch\":";
/// Bytes of index names in the address of one refresh; servers take 4 KiB.
const NAMES: usize = 2_000;

/// Adds the number to the document that `out` ends with. A document of a row has its key at least.
pub(super) fn stamp(number: Number, out: &mut Vec<u8>) {
    if out.pop_if(|last| *last == b'}').is_some() {
        // A write to memory.
        let _ = write!(out, ",{QUOTED_FIELD}{}}}", number.0);
    }
}

/// A document without its number.
pub(super) fn unstamped(document: &str) -> Cow<'_, str> {
    let stamped = document
        .strip_suffix('}')
        .and_then(|rest| rest.rsplit_once(QUOTED_FIELD))
        .filter(|(_, number)| number.bytes().all(|digit| digit.is_ascii_digit()))
        .and_then(|(row, _)| row.strip_suffix(','));
    match stamped {
        Some(row) => Cow::Owned(format!("{row}}}")),
        None => Cow::Borrowed(document),
    }
}

/// What is visible of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Shown {
    /// Everything up to it.
    upto: Option<Number>,
    /// Transactions behind it that are visible as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ahead: Vec<Number>,
    /// Ends of spans behind it of which everything is visible.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    spans: Vec<(Number, Number)>,
}

impl Shown {
    /// Everything that either of the two has.
    fn add(&mut self, other: Shown) {
        self.upto = self.upto.max(other.upto);
        self.ahead.extend(other.ahead);
        self.ahead.retain(|number| Some(*number) > self.upto);
        self.ahead.sort_unstable();
        self.ahead.dedup();
        self.spans.extend(other.spans);
        self.spans.retain(|(_, to)| Some(*to) > self.upto);
        self.spans.sort_unstable();
        self.spans.dedup_by(|next, span| {
            let overlap = next.0 <= span.1;
            if overlap {
                span.1 = span.1.max(next.1);
            }
            overlap
        });
    }

    fn of(epoch: Epoch, held: &Held) -> Self {
        let ahead = held.ahead().iter().chain(held.early());
        Shown {
            upto: Some(epoch.number(held.upto().commit)),
            ahead: ahead.map(|held| epoch.number(held.commit)).collect(),
            spans: held
                .spans()
                .iter()
                .map(|(from, to)| (epoch.number(from.commit), epoch.number(to.commit)))
                .collect(),
        }
    }

    /// The part of a query that only what is visible passes.
    fn clause(&self) -> Value {
        let upto = self.upto.unwrap_or(Number(0));
        let upto = json!({"range": {FIELD: {"lte": upto}}});
        let mut clauses = vec![upto];
        if !self.ahead.is_empty() {
            clauses.push(json!({"terms": {FIELD: self.ahead}}));
        }
        for (from, to) in &self.spans {
            clauses.push(json!({"range": {FIELD: {"gte": from, "lte": to}}}));
        }
        match clauses.len() {
            1 => clauses.remove(0),
            _ => either(clauses),
        }
    }
}

fn either(clauses: Vec<Value>) -> Value {
    json!({"bool": {"should": clauses, "minimum_should_match": 1}})
}

/// By the name of the source.
type View = BTreeMap<String, Shown>;

/// How far a source has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    identity: String,
    held: Held,
}

/// The places of sources, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Places(BTreeMap<String, Place>);

impl Places {
    /// What is visible of a source, of this log of it.
    pub(super) fn of(&self, source: &SourceInfo) -> Option<Held> {
        let place = self.0.get(&*source.name);
        let place = place.filter(|place| place.identity == source.identity.to_string())?;
        Some(place.held.clone())
    }
}

/// What the document says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Told {
    visible_epoch: View,
    positions: Places,
}

/// A batch that is durable, and not visible yet.
type Unseen = (Receipt, Delivered);

/// Tells readers what is visible.
pub(super) struct Visible {
    client: Arc<Client>,
    index: Arc<str>,
    id: Arc<str>,
    every: std::time::Duration,
    due: Instant,
    /// Indexes that have been written since they were refreshed, and the number of the last batch that did; `None` for what an
    /// earlier process may have written.
    touched: HashMap<Arc<str>, Option<u64>>,
    reached: Told,
    shown: Told,
    /// To be answered when they are visible, oldest first.
    unseen: Vec<Unseen>,
    task: JoinSet<Result<()>>,
    showing: Option<Showing>,
}

/// What is being shown.
struct Showing {
    told: Told,
    /// Batches before it were durable when it began.
    oldest: u64,
    /// Becomes visible by it.
    unseen: Vec<Unseen>,
}

#[derive(Deserialize)]
struct Found {
    #[serde(rename = "_source")]
    source: Told,
}

impl Visible {
    /// What was told last.
    ///
    /// # Errors
    /// When the server refuses, or the document is not one of ours.
    pub(super) async fn load(
        client: &Arc<Client>,
        config: &Config,
        (pipeline, name): (&str, &str),
        indexes: &Indexes,
    ) -> Result<Self> {
        let id = format!("visible_epoch:{pipeline}:{name}");
        if id.len() > ID_LIMIT {
            let what =
                format!("the names of pipeline and sink are longer than {ID_LIMIT} bytes together");
            return Err(Error::new(ErrorKind::Config, what).remedy("shorten one of them"));
        }
        let path = [&*config.progress_index, "_doc", &id];
        let reply = client.call(Method::GET, &path, &[], Body::None).await?;
        let shown = match reply.status {
            404 => Told::default(),
            _ => {
                let reply = reply.success("reading what is visible")?;
                let found: Found = reply.json("reading what is visible")?;
                found.source
            }
        };
        Ok(Visible {
            client: Arc::clone(client),
            index: config.progress_index.as_str().into(),
            id: id.into(),
            every: config.visible_every.0,
            due: Instant::now(),
            touched: indexes
                .all()
                .map(|(index, _)| (Arc::clone(index), None))
                .collect(),
            reached: shown.clone(),
            shown,
            unseen: Vec::new(),
            task: JoinSet::new(),
            showing: None,
        })
    }

    /// How far all sources are visible.
    pub(super) fn places(&self) -> &Places {
        &self.shown.positions
    }

    /// A batch is durable: it is answered when it is visible.
    pub(super) fn hold(&mut self, receipt: Receipt, delivered: Delivered) {
        self.unseen.push((receipt, delivered));
    }

    /// Answers the oldest batch that is not visible with an error; gives it back when there is none.
    pub(super) fn fail(&mut self, error: Error) -> Option<Error> {
        let showing = self.showing.as_mut().map(|showing| &mut showing.unseen);
        let oldest = showing.filter(|unseen| !unseen.is_empty());
        let oldest = oldest.unwrap_or(&mut self.unseen);
        if oldest.is_empty() {
            return Some(error);
        }
        oldest.remove(0).0.resolve(Err(error));
        None
    }

    /// An index is written by a batch.
    pub(super) fn touch(&mut self, index: &Arc<str>, batch: u64) {
        match self.touched.get_mut(index) {
            Some(last) => *last = Some(batch),
            None => drop(self.touched.insert(Arc::clone(index), Some(batch))),
        }
    }

    /// So much of a source is durable.
    pub(super) fn reach(&mut self, source: &SourceInfo, epoch: Epoch, held: &Held) {
        let name = source.name.to_string();
        let place = Place {
            identity: source.identity.to_string(),
            held: held.clone(),
        };
        self.reached.positions.0.insert(name.clone(), place);
        let reached = self.reached.visible_epoch.entry(name).or_default();
        reached.add(Shown::of(epoch, held));
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether there may be something to show, and nothing is being shown.
    pub(super) fn may_begin(&self) -> bool {
        self.showing.is_none() && !(self.touched.is_empty() && self.unseen.is_empty())
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.showing.is_some()
    }

    /// Begins to show what has been reached. Batches before `oldest` are durable.
    pub(super) fn begin(&mut self, indexes: &Indexes, oldest: u64) {
        self.due = Instant::now() + self.every;
        let told = self.reached.clone();
        let changed = (told != self.shown).then(|| document(&self.id, &told, indexes));
        let refreshes = addresses(self.touched.keys());
        let (client, index, id) = (
            Arc::clone(&self.client),
            Arc::clone(&self.index),
            Arc::clone(&self.id),
        );
        self.task.spawn(async move {
            for names in refreshes {
                refresh(&client, &names).await?;
            }
            match changed {
                Some(document) => tell(&client, &index, &id, &document).await,
                None => Ok(()),
            }
        });
        self.showing = Some(Showing {
            told,
            oldest,
            unseen: std::mem::take(&mut self.unseen),
        });
    }

    /// The end of what is being shown; pends while nothing is. Cancel-safe.
    pub(super) async fn landed(&mut self) -> Result<()> {
        let Some(ended) = self.task.join_next().await else {
            return std::future::pending().await;
        };
        ended.map_err(|cause| {
            Error::new(ErrorKind::Protocol, "a refresh ended without an answer").source(cause)
        })??;
        if let Some(showing) = self.showing.take() {
            self.shown = showing.told;
            // What batches have written that were not durable then may not have been there to be refreshed.
            self.touched
                .retain(|_, last| last.is_some_and(|last| last >= showing.oldest));
            for (receipt, delivered) in showing.unseen {
                receipt.resolve(Ok(delivered));
            }
        }
        Ok(())
    }
}

/// Index names, as many as one address takes, joined by commas.
fn addresses<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for name in names {
        match all.last_mut() {
            Some(last) if last.len() + name.len() < NAMES => {
                last.push(',');
                last.push_str(name);
            }
            _ => all.push(name.to_string()),
        }
    }
    all
}

async fn refresh(client: &Client, names: &str) -> Result<()> {
    let what = "making what was written visible";
    let path = [names, "_refresh"];
    let reply = client.call(Method::POST, &path, &[], Body::None).await?;
    reply.success(what)?.whole(what).map(drop)
}

/// The document for readers.
fn document(id: &str, told: &Told, indexes: &Indexes) -> Value {
    // What was written before the section said `gtx_epoch`, and rows of copies, have no number.
    let mut clauses = vec![json!({"bool": {"must_not": {"exists": {"field": FIELD}}}})];
    for (source, shown) in &told.visible_epoch {
        let of_source = indexes.all().filter(|(_, owner)| ***owner == **source);
        let mut names: Vec<&str> = of_source.map(|(index, _)| &**index).collect();
        names.sort_unstable();
        if !names.is_empty() {
            let filter = [json!({"terms": {"_index": names}}), shown.clause()];
            clauses.push(json!({"bool": {"filter": filter}}));
        }
    }
    json!({
        "owner": id,
        "visible_epoch": told.visible_epoch,
        "positions": told.positions,
        "filter": either(clauses),
    })
}

async fn tell(client: &Client, index: &str, id: &str, document: &Value) -> Result<()> {
    let (path, body) = ([index, "_doc", id], Body::json(document));
    let reply = client.call(Method::PUT, &path, &[], body).await?;
    reply.success("telling what is visible").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(upto: u64, ahead: &[u64]) -> Shown {
        Shown {
            upto: Some(Number(upto)),
            ahead: ahead.iter().copied().map(Number).collect(),
            spans: Vec::new(),
        }
    }

    fn with_spans(shown: Shown, spans: &[(u64, u64)]) -> Shown {
        let spans = spans.iter();
        Shown {
            spans: spans
                .map(|(from, to)| (Number(*from), Number(*to)))
                .collect(),
            ..shown
        }
    }

    #[test]
    fn spans_grow_together_and_are_in_the_filter() {
        let mut view = with_spans(shown(10, &[]), &[(14, 17)]);
        view.add(with_spans(shown(12, &[15]), &[(16, 20), (30, 31)]));
        assert_eq!(view, with_spans(shown(12, &[15]), &[(14, 20), (30, 31)]));
        view.add(shown(25, &[]));
        assert_eq!(view, with_spans(shown(25, &[]), &[(30, 31)]));
        let clause = view.clause();
        let range = json!({"range": {"gtx_epoch": {"gte": 30, "lte": 31}}});
        assert_eq!(clause["bool"]["should"][1], range);
    }

    #[test]
    fn documents_carry_their_number_and_are_the_same_without() {
        let mut document = br#"{"id":1,"note":"}"}"#.to_vec();
        stamp(Number(42), &mut document);
        let document = String::from_utf8(document).expect("text");
        assert_eq!(document, r#"{"id":1,"note":"}","gtx_epoch":42}"#);
        assert_eq!(unstamped(&document), r#"{"id":1,"note":"}"}"#);
        for other in [r#"{"id":1}"#, r#"{"id":1,"gtx_epoch":"x"}"#, "{}", ""] {
            assert_eq!(unstamped(other), other);
        }
    }

    #[test]
    fn what_was_visible_stays_so() {
        let mut view = shown(10, &[14, 17]);
        view.add(shown(12, &[15]));
        assert_eq!(view, shown(12, &[14, 15, 17]));
        view.add(shown(9, &[11]));
        assert_eq!(view, shown(12, &[14, 15, 17]));
        view.add(shown(20, &[]));
        assert_eq!(view, shown(20, &[]));
        view.add(Shown::default());
        assert_eq!(view, shown(20, &[]));
    }

    #[test]
    fn the_filter_has_what_is_ahead() {
        let range = json!({"range": {"gtx_epoch": {"lte": 10}}});
        assert_eq!(shown(10, &[]).clause(), range);
        let both = shown(10, &[14]).clause();
        assert_eq!(both["bool"]["should"][0], range);
        assert_eq!(
            both["bool"]["should"][1],
            json!({"terms": {"gtx_epoch": [14]}})
        );
    }

    #[test]
    fn addresses_are_short() {
        let names: Vec<Arc<str>> = (0..100).map(|n| format!("{n:0>90}").into()).collect();
        let addresses = addresses(names.iter());
        assert!(addresses.len() > 1 && addresses.iter().all(|one| one.len() <= NAMES));
        let all: Vec<&str> = addresses.iter().flat_map(|one| one.split(',')).collect();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        assert_eq!(all, names);
    }
}
