//! What `lockstep check` says about the server. It writes no key; the server's script cache may gain our scripts.

use lockstep_core::Error;
use lockstep_core::check::{Finding, Verdict};
use lockstep_redis::preflight::{
    cluster_state, commands, eviction_limit, failed, info, mode, role, version,
};
use lockstep_redis::{Command, Link, Node, Server};

use crate::config::RedisConfig;
use crate::scripts;

/// What a user needs, as an ACL.
const RIGHTS: &str = "ACL SETUSER <user> ~* +get +set +mget +mset +del +exists +hset +hget +hdel +hmget +hgetall +hkeys +hlen \
                      +pexpire +type +scan +eval +evalsha +script|load +info +cluster|slots";

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
    let link = match Link::open(&config.server()).await {
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
    findings.push(scripts_and_commands(&link).await);
    findings.push(scan(&link).await);
    if let Some(channel) = &config.notify {
        findings.push(publishes(&link, channel).await);
    }
    findings
}

/// `PUBLISH` cannot be tried without being heard: the server says whether the user may.
async fn publishes(link: &Link, channel: &str) -> Finding {
    const SUBJECT: &str = "PUBLISH";
    let ask = |words: &[&str]| {
        let mut cmd = redis::cmd("ACL");
        for word in words {
            cmd.arg(*word);
        }
        link.expect_one(Command {
            cmd,
            node: Node::Any,
        })
    };
    let user = match ask(&["WHOAMI"]).await {
        Ok(redis::Value::BulkString(name)) => String::from_utf8_lossy(&name).into_owned(),
        Ok(_) | Err(_) => {
            return Finding::warn(
                SUBJECT,
                "the server does not say whether it is permitted",
                "see that the user may PUBLISH to the channel of `notify`",
            );
        }
    };
    match ask(&["DRYRUN", &user, "PUBLISH", channel, ""]).await {
        Ok(redis::Value::Okay) => Finding::pass(SUBJECT, "permitted"),
        Ok(redis::Value::SimpleString(text)) if text == "OK" => Finding::pass(SUBJECT, "permitted"),
        Ok(redis::Value::BulkString(refused)) => Finding::fail(
            SUBJECT,
            String::from_utf8_lossy(&refused),
            format!("ACL SETUSER <user> +publish &{channel}"),
        ),
        // Before 7.0, or without the right to ask.
        Ok(_) | Err(_) => Finding::warn(
            SUBJECT,
            "the server does not say whether it is permitted",
            "see that the user may PUBLISH to the channel of `notify`",
        ),
    }
}

/// What a user needs to append to streams, as an ACL.
const STREAM_RIGHTS: &str =
    "ACL SETUSER <user> ~* +get +set +mget +mset +xadd +type +eval +evalsha +script|load +info";

/// As [`TRY_COMMANDS`], for streams. `NOMKSTREAM` appends only to what is there.
const TRY_STREAM_COMMANDS: &str = r"
local refused = {}
for _, words in ipairs({
  {'GET', KEYS[1]}, {'MGET', KEYS[1]}, {'SET', KEYS[1], '', 'XX'}, {'TYPE', KEYS[1]},
  {'XADD', KEYS[1], 'NOMKSTREAM', '*', 'f', 'v'},
}) do
  local reply = redis.pcall(unpack(words))
  if type(reply) == 'table' and reply.err then refused[#refused + 1] = words[1] .. ': ' .. reply.err end
end
return refused";

/// Connects and looks, for a sink of streams.
pub(crate) async fn look_at_streams(server: &Server) -> Vec<Finding> {
    let seen = async {
        let link = Link::open(server).await?;
        let info = info(&link).await?;
        Ok::<_, Error>((link, info))
    };
    let (link, info) = match seen.await {
        Ok(seen) => seen,
        Err(error) => return vec![failed("connection", &error)],
    };
    let key = "lockstep:v:{lockstep:preflight}";
    vec![
        Finding::pass("connection", link.place()),
        version(&info),
        mode(&info, false),
        role(&info, false),
        eviction(&info),
        commands(&link, TRY_STREAM_COMMANDS, key, STREAM_RIGHTS).await,
    ]
}

/// A section that cannot be used.
pub(crate) fn wrong_section(error: &Error) -> Finding {
    failed("section", error)
}

/// Eviction may take versions and tombstones away, and with them the proof that a late write is late.
fn eviction(info: &str) -> Finding {
    let (policy, limit, detail) = eviction_limit(info);
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

async fn scripts_and_commands(link: &Link) -> Finding {
    let key = "lockstep:v:{lockstep:preflight}";
    let found = commands(link, TRY_COMMANDS, key, RIGHTS).await;
    if found.verdict != Verdict::Pass {
        return found;
    }
    match scripts::load(link, false).await {
        Ok(()) => found,
        Err(error) => Finding::fail(found.subject, error.to_string(), RIGHTS),
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
    fn eviction_deserves_a_look_where_there_is_a_limit() {
        let info = "maxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\n";
        assert_eq!(eviction(info).verdict, Verdict::Warn);
        assert_eq!(
            eviction("maxmemory:0\r\nmaxmemory_policy:allkeys-lru").verdict,
            Verdict::Pass
        );
    }
}
