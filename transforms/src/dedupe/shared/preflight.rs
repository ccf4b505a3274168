//! What `lockstep check` says about a store in Redis. It writes no key.

use lockstep_core::check::Finding;
use lockstep_redis::preflight::{
    cluster_state, commands, eviction_limit, failed, field, info, mode, role, version,
};
use lockstep_redis::{Command, Link};
use redis::Value;

use super::super::config::RedisStore;
use super::wire::{Keys, number};

/// What a user needs, as an ACL.
const RIGHTS: &str = "ACL SETUSER <user> ~lockstep:dedupe:* +hget +hmget +hgetall +hset +hdel +hincrby +hlen +hscan \
                      +exists +del +eval +evalsha +info +memory|usage +cluster|slots";

/// Tries the commands on keys that do not exist, in ways that change nothing, and returns the errors. Those that could only
/// be tried by writing are not tried.
const TRY_COMMANDS: &str = r"
local refused = {}
for _, words in ipairs({
  {'HGET', KEYS[1], 'f'}, {'HMGET', KEYS[1], 'f'}, {'HGETALL', KEYS[1]}, {'HDEL', KEYS[1], 'f'}, {'HLEN', KEYS[1]},
  {'HSCAN', KEYS[1], 0}, {'EXISTS', KEYS[1]}, {'DEL', KEYS[1]},
}) do
  local reply = redis.pcall(unpack(words))
  if type(reply) == 'table' and reply.err then refused[#refused + 1] = words[1] .. ': ' .. reply.err end
end
return refused";

/// Connects and looks.
pub(in crate::dedupe) async fn look(
    config: &RedisStore,
    pipeline: &str,
    name: &str,
) -> Vec<Finding> {
    let server = config.server();
    let link = match Link::open(&server).await {
        Ok(link) => link,
        Err(error) => return vec![failed("store", &error)],
    };
    let info = match info(&link).await {
        Ok(info) => info,
        Err(error) => return vec![failed("store", &error)],
    };
    let keys = Keys::new(pipeline, name);
    let mut findings = vec![
        Finding::pass("store", link.place()),
        version(&info),
        mode(&info, server.cluster),
        role(&info, server.cluster),
        eviction(&info),
        persistence(&info),
    ];
    if server.cluster {
        findings.push(cluster_state(&link).await);
    }
    let key = format!("{}:preflight", keys.meta());
    findings.push(commands(&link, TRY_COMMANDS, &key, RIGHTS).await);
    findings.push(keys_held(&link, &keys).await);
    findings
}

/// An eviction would take all keys at once, since they lie in one hash.
fn eviction(info: &str) -> Finding {
    let (policy, limit, detail) = eviction_limit(info);
    if !policy.starts_with("allkeys-") {
        // `volatile-…` takes keys with a TTL, and these have none.
        return Finding::pass("maxmemory-policy", detail);
    }
    let remedy = "CONFIG SET maxmemory-policy noeviction (or volatile-lru, beside a cache): a full server then makes the \
                  pipeline wait instead of forgetting";
    if limit == 0 {
        let detail = format!("{detail}: with a limit, it would evict all idempotency keys at once");
        return Finding::warn("maxmemory-policy", detail, remedy);
    }
    let detail =
        format!("{detail}: may evict all idempotency keys at once, which stops the pipeline");
    Finding::fail("maxmemory-policy", detail, remedy)
}

/// Without an append-only file, a restart goes back to the last snapshot, or to nothing.
fn persistence(info: &str) -> Finding {
    if field(info, "aof_enabled") == Some("1") {
        return Finding::pass("persistence", "append-only file");
    }
    Finding::warn(
        "persistence",
        "no append-only file: a restart of the server forgets keys, which stops the pipeline",
        "CONFIG SET appendonly yes, and the same in redis.conf",
    )
}

async fn keys_held(link: &Link, keys: &Keys) -> Finding {
    const SUBJECT: &str = "keys";
    let asked = keys.histories().map(|key| Command::on_key("HLEN", key));
    match link.expect(asked.into()).await {
        Ok(counts) => {
            let counts: Vec<u64> = counts.iter().filter_map(number).collect();
            match counts[..] {
                [keys, held] => {
                    Finding::pass(SUBJECT, format!("{keys} remembered, {held} rows held back"))
                }
                _ => failed(SUBJECT, &link.unexpected("HLEN", &Value::Nil)),
            }
        }
        Err(error) => failed(SUBJECT, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::check::Verdict;

    #[test]
    fn what_would_drop_keys_is_found() {
        let verdict = |policy: &str, limit: u64| {
            eviction(&format!(
                "maxmemory:{limit}\r\nmaxmemory_policy:{policy}\r\n"
            ))
            .verdict
        };
        assert_eq!(verdict("allkeys-lru", 100), Verdict::Fail);
        assert_eq!(verdict("allkeys-random", 100), Verdict::Fail);
        assert_eq!(verdict("allkeys-lru", 0), Verdict::Warn);
        assert_eq!(verdict("volatile-ttl", 100), Verdict::Pass);
        assert_eq!(verdict("noeviction", 100), Verdict::Pass);
        assert_eq!(persistence("aof_enabled:0\r\n").verdict, Verdict::Warn);
        assert_eq!(persistence("aof_enabled:1\r\n").verdict, Verdict::Pass);
    }
}
