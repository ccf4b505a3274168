//! What `lockstep check` can say about any Redis. Changes nothing on it.

use lockstep_core::check::Finding;
use lockstep_core::{Error, ErrorKind, Result};
use redis::Value;

use crate::link::{Command, Link, Node};

/// The oldest server that has all that scripts use.
const OLDEST: (u32, u32) = (6, 2);

/// A finding for an error.
#[must_use]
pub fn failed(subject: &str, error: &Error) -> Finding {
    let remedy = error.remedy_text().unwrap_or_else(|| match error.kind() {
        ErrorKind::Unavailable => "start the server, or correct the URL",
        _ => "see the message",
    });
    Finding::fail(subject, error.to_string(), remedy)
}

/// `INFO` of one node, as a text of `name:value` lines.
///
/// # Errors
/// By kind, naming the server.
pub async fn info(link: &Link) -> Result<String> {
    let command = Command {
        cmd: redis::cmd("INFO"),
        node: Node::Any,
    };
    match link.expect_one(command).await? {
        Value::BulkString(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Value::VerbatimString { text, .. } => Ok(text),
        other => Err(link.unexpected("INFO", &other)),
    }
}

/// A field of what [`info`] gave.
#[must_use]
pub fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// Whether the server has all that scripts use.
#[must_use]
pub fn version(info: &str) -> Finding {
    let text = field(info, "redis_version").unwrap_or("unknown");
    let mut numbers = text.split('.').map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST => Finding::pass("version", text),
        _ => Finding::fail(
            "version",
            text,
            format!("upgrade the server to {}.{} or later", OLDEST.0, OLDEST.1),
        ),
    }
}

/// Whether it is a cluster exactly when the section says so.
#[must_use]
pub fn mode(info: &str, cluster: bool) -> Finding {
    match (field(info, "cluster_enabled") == Some("1"), cluster) {
        (true, false) => Finding::fail(
            "mode",
            "the server is a node of a cluster",
            "write cluster = true beside its URL",
        ),
        (false, true) => Finding::fail(
            "mode",
            "the server is not a cluster",
            "remove cluster = true",
        ),
        (true, true) => Finding::pass("mode", "cluster"),
        (false, false) => Finding::pass("mode", "single server"),
    }
}

/// Whether it takes writes.
#[must_use]
pub fn role(info: &str, cluster: bool) -> Finding {
    match field(info, "role") {
        Some("slave") if !cluster => Finding::fail(
            "role",
            "the server is a replica and takes no writes",
            "use the primary's address in the URL",
        ),
        _ if cluster => Finding::pass("role", "primaries are found through the cluster"),
        role => Finding::pass(
            "role",
            if role == Some("master") {
                "primary"
            } else {
                "unknown"
            },
        ),
    }
}

/// Whether commands may be used: `script` tries them on `key` and returns the errors. `rights` grants them.
pub async fn commands(link: &Link, script: &str, key: &str, rights: &str) -> Finding {
    const SUBJECT: &str = "scripts and commands";
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(script).arg(1).arg(key);
    let node = Node::of_key(key);
    match link.expect_one(Command { cmd, node }).await {
        Ok(Value::Array(refused)) if refused.is_empty() => Finding::pass(SUBJECT, "permitted"),
        Ok(Value::Array(refused)) => {
            let refused: Vec<_> = refused
                .iter()
                .map(|reply| match reply {
                    Value::BulkString(text) => String::from_utf8_lossy(text).into_owned(),
                    other => format!("{other:?}"),
                })
                .collect();
            Finding::fail(SUBJECT, format!("refused: {}", refused.join("; ")), rights)
        }
        Ok(other) => failed(SUBJECT, &link.unexpected("EVAL", &other)),
        Err(error) => Finding::fail(SUBJECT, error.to_string(), rights),
    }
}

/// Whether the cluster is whole.
pub async fn cluster_state(link: &Link) -> Finding {
    let mut cmd = redis::cmd("CLUSTER");
    cmd.arg("INFO");
    let state = match link
        .expect_one(Command {
            cmd,
            node: Node::Any,
        })
        .await
    {
        Ok(Value::BulkString(text)) => String::from_utf8_lossy(&text).into_owned(),
        Ok(Value::VerbatimString { text, .. }) => text,
        Ok(other) => return failed("cluster", &link.unexpected("CLUSTER INFO", &other)),
        Err(error) => return failed("cluster", &error),
    };
    let count = field(&state, "cluster_size").unwrap_or("?");
    match field(&state, "cluster_state") {
        Some("ok") => Finding::pass("cluster", format!("ok, {count} primaries")),
        other => Finding::fail(
            "cluster",
            format!("state is {}", other.unwrap_or("unknown")),
            "redis-cli --cluster check HOST:PORT names what is wrong, --cluster fix repairs it",
        ),
    }
}

/// The eviction policy, the limit of memory in bytes (0 for none), and both in words.
#[must_use]
pub fn eviction_limit(info: &str) -> (&str, u64, String) {
    let limit = field(info, "maxmemory")
        .and_then(|bytes| bytes.parse::<u64>().ok())
        .unwrap_or(0);
    let policy = field(info, "maxmemory_policy").unwrap_or("unknown");
    let detail = match limit {
        0 => format!("{policy}, no limit"),
        limit => format!("{policy} at {limit} bytes"),
    };
    (policy, limit, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::check::Verdict;

    #[test]
    fn info_is_read() {
        let info = "# Server\r\nredis_version:7.0.15\r\nmaxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\nrole:slave\r\ncluster_enabled:1\r\n";
        assert_eq!(version(info).verdict, Verdict::Pass);
        assert_eq!(version("redis_version:6.0.16\r\n").verdict, Verdict::Fail);
        assert_eq!(version("").verdict, Verdict::Fail);
        assert_eq!(eviction_limit(info).1, 100);
        assert_eq!(role(info, false).verdict, Verdict::Fail);
        assert_eq!(mode(info, false).verdict, Verdict::Fail);
        assert_eq!(mode(info, true).verdict, Verdict::Pass);
    }
}
