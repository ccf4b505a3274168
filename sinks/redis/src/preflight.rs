//! What `lockstep check` says about the server. It writes no key; the server's script cache may gain our scripts.

use lockstep_core::check::Finding;
use lockstep_core::{Error, ErrorKind};
use redis::Value;

use crate::config::RedisConfig;
use crate::link::{Command, Link, Node};
use crate::scripts;

/// The oldest server that has all that the scripts use.
const OLDEST: (u32, u32) = (6, 2);
/// What a user needs, as an ACL.
const RIGHTS: &str = "ACL SETUSER <user> ~* +get +set +mget +mset +del +exists +hset +hget +hdel +hmget +hgetall +hlen \
                      +pexpire +scan +eval +evalsha +script|load +info +cluster|slots";

/// Tries each command that rows need on a key that does not exist, in ways that change nothing, and returns the
/// errors. `SET … XX` writes only what is there.
const TRY_COMMANDS: &str = r"
local refused = {}
for _, words in ipairs({
  {'GET', KEYS[1]}, {'MGET', KEYS[1]}, {'SET', KEYS[1], '', 'XX'}, {'DEL', KEYS[1]}, {'EXISTS', KEYS[1]},
  {'HGET', KEYS[1], 'f'}, {'HDEL', KEYS[1], 'f'}, {'HLEN', KEYS[1]}, {'PEXPIRE', KEYS[1], 1000},
}) do
  local reply = redis.pcall(unpack(words))
  if type(reply) == 'table' and reply.err then refused[#refused + 1] = words[1] .. ': ' .. reply.err end
end
return refused";

/// Connects and looks.
pub(crate) async fn look(config: &RedisConfig) -> Vec<Finding> {
    if let Err(error) = config.validate() {
        return vec![failed("section", &error)];
    }
    let link = match Link::open(config).await {
        Ok(link) => link,
        Err(error) => return vec![failed("connection", &error)],
    };
    let info = match info(&link).await {
        Ok(info) => info,
        Err(error) => return vec![failed("connection", &error)],
    };
    let mut findings = vec![
        Finding::pass("connection", link.place()),
        version(&info),
        mode(&info, config.cluster),
        role(&info, config.cluster),
        eviction(&info),
    ];
    if config.cluster {
        findings.push(cluster_state(&link).await);
    }
    findings.push(commands(&link).await);
    findings.push(scan(&link).await);
    findings
}

fn failed(subject: &str, error: &Error) -> Finding {
    let remedy = error.remedy_text().unwrap_or_else(|| match error.kind() {
        ErrorKind::Unavailable => "start the server, or correct the URL",
        _ => "see the message",
    });
    Finding::fail(subject, error.to_string(), remedy)
}

/// `INFO` of one node, as a text of `name:value` lines.
async fn info(link: &Link) -> lockstep_core::Result<String> {
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

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

fn version(info: &str) -> Finding {
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

fn mode(info: &str, cluster: bool) -> Finding {
    match (field(info, "cluster_enabled") == Some("1"), cluster) {
        (true, false) => Finding::fail(
            "mode",
            "the server is a node of a cluster",
            "write cluster = true in the sink's section",
        ),
        (false, true) => Finding::fail(
            "mode",
            "the server is not a cluster",
            "remove cluster = true from the sink's section",
        ),
        (true, true) => Finding::pass("mode", "cluster"),
        (false, false) => Finding::pass("mode", "single server"),
    }
}

fn role(info: &str, cluster: bool) -> Finding {
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

/// Eviction may take versions and tombstones away, and with them the proof that a late write is late.
fn eviction(info: &str) -> Finding {
    let limit = field(info, "maxmemory")
        .and_then(|bytes| bytes.parse::<u64>().ok())
        .unwrap_or(0);
    let policy = field(info, "maxmemory_policy").unwrap_or("unknown");
    let detail = match limit {
        0 => format!("{policy}, no limit"),
        limit => format!("{policy} at {limit} bytes"),
    };
    if limit == 0 || policy == "noeviction" {
        return Finding::pass("maxmemory-policy", detail);
    }
    let what = if policy.starts_with("allkeys-") {
        "may evict rows, their versions and the sink's progress"
    } else {
        "may evict tombstones, and rows that have a ttl"
    };
    Finding::warn(
        "maxmemory-policy",
        format!("{detail}: {what}"),
        "CONFIG SET maxmemory-policy noeviction: a full server then makes the sink wait instead of forgetting",
    )
}

async fn cluster_state(link: &Link) -> Finding {
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

async fn commands(link: &Link) -> Finding {
    const SUBJECT: &str = "scripts and commands";
    let key = "lockstep:v:{lockstep:preflight}";
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(TRY_COMMANDS).arg(1).arg(key);
    let node = Node::of_key(key);
    match link.expect_one(Command { cmd, node }).await {
        Ok(Value::Array(refused)) if refused.is_empty() => match scripts::load(link).await {
            Ok(()) => Finding::pass(SUBJECT, "permitted"),
            Err(error) => Finding::fail(SUBJECT, error.to_string(), RIGHTS),
        },
        Ok(Value::Array(refused)) => {
            let refused: Vec<_> = refused
                .iter()
                .map(|reply| match reply {
                    Value::BulkString(text) => String::from_utf8_lossy(text).into_owned(),
                    other => format!("{other:?}"),
                })
                .collect();
            Finding::fail(SUBJECT, format!("refused: {}", refused.join("; ")), RIGHTS)
        }
        Ok(other) => failed(SUBJECT, &link.unexpected("EVAL", &other)),
        Err(error) => Finding::fail(SUBJECT, error.to_string(), RIGHTS),
    }
}

/// `SCAN` finds the rows of a table that is truncated.
async fn scan(link: &Link) -> Finding {
    let mut cmd = redis::cmd("SCAN");
    cmd.arg(0).arg("COUNT").arg(1);
    match link
        .expect_one(Command {
            cmd,
            node: Node::Any,
        })
        .await
    {
        Ok(_) => Finding::pass("SCAN", "permitted"),
        Err(error) => Finding::fail("SCAN", error.to_string(), RIGHTS),
    }
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
        assert_eq!(eviction(info).verdict, Verdict::Warn);
        assert_eq!(
            eviction("maxmemory:0\r\nmaxmemory_policy:allkeys-lru").verdict,
            Verdict::Pass
        );
        assert_eq!(role(info, false).verdict, Verdict::Fail);
        assert_eq!(mode(info, false).verdict, Verdict::Fail);
        assert_eq!(mode(info, true).verdict, Verdict::Pass);
    }
}
