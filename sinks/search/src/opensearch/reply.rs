//! Answers of the cluster, and what their errors mean.

use std::borrow::Cow;

use bytes::Bytes;
use lockstep_core::refusal::reason;
use lockstep_core::{Error, ErrorKind, Result};
use serde::Deserialize;

/// An answer.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

/// The cause that the server names, for a request or for an item of a bulk.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Cause {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    caused_by: Option<Box<Cause>>,
}

impl Cause {
    pub(super) fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or_default()
    }

    /// `type: reason: deeper reason`.
    pub(super) fn text(&self) -> String {
        let mut text = self.kind.clone();
        let mut cause = Some(self);
        while let Some(this) = cause {
            if let Some(reason) = this
                .reason
                .as_deref()
                .filter(|reason| !text.contains(reason))
            {
                text.push_str(": ");
                text.push_str(reason);
            }
            cause = this.caused_by.as_deref();
        }
        text
    }

    fn mentions(&self, part: &str) -> bool {
        self.reason
            .as_deref()
            .is_some_and(|reason| reason.contains(part))
    }
}

impl Reply {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// `Protocol` when it is not what was expected.
    pub(super) fn json<'a, T: Deserialize<'a>>(&'a self, what: &str) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Error::new(
                ErrorKind::Protocol,
                format!("the answer to {what} is not understood"),
            )
            .source(error)
            .remedy("see that `url` leads to OpenSearch or Elasticsearch, version 7 or later")
        })
    }

    /// The reply if it is a success, else the error it stands for. `what` names the request.
    ///
    /// # Errors
    /// By status and cause.
    pub(super) fn success(self, what: &str) -> Result<Self> {
        if self.is_success() {
            Ok(self)
        } else {
            Err(self.error(what))
        }
    }

    /// The reply, unless some shards have not answered: a search, a count or a refresh is then about part of the index,
    /// and the status is 200 all the same.
    pub(super) fn whole(self, what: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Answered {
            #[serde(rename = "_shards", default)]
            shards: Shards,
        }
        #[derive(Default, Deserialize)]
        struct Shards {
            #[serde(default)]
            failed: u64,
        }
        let shards = self.json::<Answered>(what)?.shards;
        if shards.failed == 0 {
            return Ok(self);
        }
        let message = format!("{what} was answered without {} shards", shards.failed);
        Err(Error::new(ErrorKind::Unavailable, message).remedy(
            "look at the cluster's health: a shard has no node that serves it, or its node fails",
        ))
    }

    /// The cause in the body, or the beginning of the body where there is none.
    pub(super) fn cause(&self) -> Cause {
        #[derive(Deserialize)]
        struct Wrapper<'a> {
            #[serde(borrow)]
            error: Either<'a>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<'a> {
            Cause(Cause),
            Text(#[serde(borrow)] Cow<'a, str>),
        }
        match serde_json::from_slice::<Wrapper<'_>>(&self.body) {
            Ok(Wrapper {
                error: Either::Cause(cause),
            }) => cause,
            Ok(Wrapper {
                error: Either::Text(text),
            }) => Cause {
                kind: text.into_owned(),
                ..Cause::default()
            },
            Err(_) => {
                let text = String::from_utf8_lossy(&self.body);
                let start: String = text.trim().chars().take(200).collect();
                Cause {
                    kind: start,
                    ..Cause::default()
                }
            }
        }
    }

    /// The error that an unsuccessful reply stands for.
    pub(super) fn error(&self, what: &str) -> Error {
        let cause = self.cause();
        let (kind, remedy) = meaning(self.status, &cause);
        let error = Error::new(
            kind,
            format!("{what} was answered with status {}", self.status),
        )
        .source(cause.text())
        .remedy(remedy);
        match reason_of(self.status) {
            Some(reason) => error.because(reason),
            None => error,
        }
    }
}

/// The word for what a status refuses.
pub(super) fn reason_of(status: u16) -> Option<&'static str> {
    match status {
        413 => Some(reason::TOO_LARGE),
        400 => Some(reason::MAPPING),
        _ => None,
    }
}

/// What a status and a cause mean, and what to do about it.
pub(super) fn meaning(status: u16, cause: &Cause) -> (ErrorKind, &'static str) {
    if cause.kind == "cluster_block_exception" {
        return block(cause);
    }
    if cause.kind == "index_not_found_exception" {
        return (
            ErrorKind::Setup,
            "the index was deleted while lockstep was writing: restart lockstep to create it, then load its table again",
        );
    }
    if cause.kind == "index_closed_exception" {
        return (ErrorKind::Setup, "open the index: POST /<index>/_open");
    }
    match status {
        401 => (
            ErrorKind::Authentication,
            "set `user` and `password` (or `api_key`) to what the cluster accepts",
        ),
        403 => (
            ErrorKind::Permission,
            "grant the user create_index, index, delete, read and view_index_metadata on the indexes of this sink and on its `progress_index`",
        ),
        413 => (
            ErrorKind::Refused,
            "lower `bulk_bytes`, or raise http.max_content_length on the server or the limit of the proxy before it",
        ),
        429 => (
            ErrorKind::Overloaded,
            "the cluster is over its limits; lower `bulk_bytes` or `concurrency`, or give it more memory",
        ),
        408 | 500..=599 => (
            ErrorKind::Unavailable,
            "see the cluster's health (GET /_cluster/health) and its log",
        ),
        400 => (
            ErrorKind::Refused,
            "compare the row with the mapping of the index (GET /<index>/_mapping). Where a column has changed its type: stop lockstep, delete the index, start lockstep, which creates it for the columns as they are, load it with `lockstep snapshot FILE --table T`, and discard the letters; or change the column with a transform",
        ),
        _ => (
            ErrorKind::Protocol,
            "see that `url` leads to OpenSearch or Elasticsearch, version 7 or later",
        ),
    }
}

/// Blocks: number 12 is set by the server when its disk fills up, and lifted by it when there is room; the others are
/// set by people.
fn block(cause: &Cause) -> (ErrorKind, &'static str) {
    if cause.mentions("/12/") {
        (
            ErrorKind::Overloaded,
            "the disk of the cluster is full (flood-stage watermark): free or add disk space; the block is lifted by itself",
        )
    } else if cause.mentions("state not recovered")
        || cause.mentions("no master")
        || cause.mentions("no cluster manager")
    {
        (
            ErrorKind::Unavailable,
            "wait for the cluster to elect a cluster manager; see GET /_cluster/health",
        )
    } else {
        (
            ErrorKind::Setup,
            "lift the block: PUT /<index>/_settings {\"index.blocks.write\":null,\"index.blocks.read_only\":null}",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &'static str) -> Reply {
        Reply {
            status,
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn errors_mean_something() {
        let flood = reply(
            403,
            r#"{"error":{"type":"cluster_block_exception","reason":"index [x] blocked by: [FORBIDDEN/12/index read-only / allow delete (api)];"},"status":403}"#,
        );
        assert_eq!(flood.error("a bulk").kind(), ErrorKind::Overloaded);
        let by_hand = reply(
            403,
            r#"{"error":{"type":"cluster_block_exception","reason":"index [x] blocked by: [FORBIDDEN/8/index write (api)];"}}"#,
        );
        assert_eq!(by_hand.error("a bulk").kind(), ErrorKind::Setup);
        assert_eq!(reply(401, "").error("x").kind(), ErrorKind::Authentication);
        assert_eq!(
            reply(403, r#"{"error":"no"}"#).error("x").kind(),
            ErrorKind::Permission
        );
        assert_eq!(
            reply(502, "<html>").error("x").kind(),
            ErrorKind::Unavailable
        );
        let nested = reply(
            400,
            r#"{"error":{"type":"mapper_parsing_exception","reason":"failed to parse field [n]","caused_by":{"type":"illegal_argument_exception","reason":"For input string: \"x\""}}}"#,
        );
        assert_eq!(
            nested.cause().text(),
            "mapper_parsing_exception: failed to parse field [n]: For input string: \"x\""
        );
    }
}
