//! Walks over the keys that match a pattern, on every primary.

use lockstep_core::{Error, ErrorKind, Result};
use lockstep_redis::{Command, Link, Node};
use redis::Value;
use redis::cluster_routing::Slot;
use tokio::task::JoinHandle;

/// Keys the server looks at per step; it bounds how long a step blocks it.
const STEP: usize = 1000;

/// A walk in steps. Keys that are there from beginning to end come at least once; some may come twice.
pub(crate) struct Scan {
    link: Link,
    pattern: Vec<u8>,
    primaries: Vec<Primary>,
    at: usize,
    /// The step that is under way.
    ahead: Option<Step>,
}

/// A step that the server has been asked for. It changes nothing, so it may go to waste.
type Step = JoinHandle<Result<Value>>;

/// A primary of a cluster: its id, and a slot that it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Primary {
    id: Vec<u8>,
    node: Node,
}

impl Scan {
    /// Begins a walk over the keys that match the glob `pattern`.
    pub(crate) async fn begin(link: &Link, pattern: Vec<u8>) -> Result<Self> {
        Ok(Scan {
            link: link.clone(),
            pattern,
            primaries: primaries(link).await?,
            at: 0,
            ahead: None,
        })
    }

    /// The next keys, perhaps none; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Vec<u8>>>> {
        let Some(primary) = self.primaries.get(self.at) else {
            // Slots that moved meanwhile may have taken their keys past the walk: then it begins again.
            let now = primaries(&self.link).await?;
            if now == self.primaries {
                return Ok(None);
            }
            self.primaries = now;
            self.at = 0;
            return Ok(Some(Vec::new()));
        };
        let node = primary.node;
        let step = self.ahead.take();
        let step = step.unwrap_or_else(|| self.step(b"0", node));
        let failed = |cause| Error::new(ErrorKind::Protocol, "a step was not made").source(cause);
        let (cursor, keys) = match parse(step.await.map_err(failed)??) {
            Ok(step) => step,
            Err(reply) => return Err(self.link.unexpected("SCAN", &reply)),
        };
        if cursor == b"0" {
            self.at += 1;
        } else {
            // While the keys of this one are looked at. It is on its way only when others have had a turn on this thread.
            self.ahead = Some(self.step(&cursor, node));
            tokio::task::yield_now().await;
        }
        Ok(Some(keys))
    }

    fn step(&self, cursor: &[u8], node: Node) -> Step {
        let mut cmd = redis::cmd("SCAN");
        cmd.arg(cursor)
            .arg("MATCH")
            .arg(&self.pattern)
            .arg("COUNT")
            .arg(STEP);
        let link = self.link.clone();
        let asked = async move { link.expect_one(Command { cmd, node }).await };
        tokio::spawn(asked)
    }
}

fn parse(reply: Value) -> Result<(Vec<u8>, Vec<Vec<u8>>), Value> {
    let mut items = match reply {
        Value::Array(items) if items.len() == 2 => items,
        other => return Err(other),
    };
    let (keys, cursor) = (items.pop(), items.pop());
    match (cursor, keys) {
        (Some(Value::BulkString(cursor)), Some(Value::Array(keys))) => keys
            .into_iter()
            .map(|key| match key {
                Value::BulkString(key) => Ok(key),
                other => Err(other),
            })
            .collect::<Result<_, _>>()
            .map(|keys| (cursor, keys)),
        (_, keys) => Err(keys.unwrap_or_default()),
    }
}

/// Every primary that serves slots, ordered by its first slot; a single server stands for itself.
async fn primaries(link: &Link) -> Result<Vec<Primary>> {
    if !link.is_cluster() {
        let itself = Primary {
            id: Vec::new(),
            node: Node::Any,
        };
        return Ok(vec![itself]);
    }
    let mut cmd = redis::cmd("CLUSTER");
    cmd.arg("SLOTS");
    let reply = link
        .expect_one(Command {
            cmd,
            node: Node::Any,
        })
        .await?;
    let unexpected = || link.unexpected("CLUSTER SLOTS", &reply);
    let Value::Array(ranges) = &reply else {
        return Err(unexpected());
    };
    let mut found: Vec<(u16, Primary)> = Vec::new();
    for range in ranges {
        // Each is [first slot, last slot, [host, port, id, …] of the primary, replicas …].
        let (first, id) = slot_range(range).ok_or_else(unexpected)?;
        let slot = Slot::new(first).ok_or_else(unexpected)?;
        let primary = Primary {
            id: id.to_vec(),
            node: Node::Serving(slot),
        };
        match found.iter_mut().find(|(_, known)| known.id == primary.id) {
            Some(known) if known.0 > first => *known = (first, primary),
            Some(_) => {}
            None => found.push((first, primary)),
        }
    }
    found.sort_by_key(|(first, _)| *first);
    Ok(found.into_iter().map(|(_, primary)| primary).collect())
}

fn slot_range(range: &Value) -> Option<(u16, &[u8])> {
    let Value::Array(fields) = range else {
        return None;
    };
    let Some(Value::Int(first)) = fields.first() else {
        return None;
    };
    let Some(Value::Array(primary)) = fields.get(2) else {
        return None;
    };
    let Some(Value::BulkString(id)) = primary.get(2) else {
        return None;
    };
    Some((u16::try_from(*first).ok()?, id))
}
