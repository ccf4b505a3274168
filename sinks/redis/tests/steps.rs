//! Steps of a single server: what is there is what the position says, wherever the server's memory ends and whoever comes late.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockstep_conformance::feed::{Feed, V, lsn, position};
use lockstep_conformance::history::{Random, Row, Step, cut, history, items, model};
use lockstep_conformance::sink::row_of;
use lockstep_core::batch::Batch;
use lockstep_core::durable::Durable;
use lockstep_core::error::Policy;
use lockstep_core::position::{Position, SourceInfo};
use lockstep_core::progress::Progress;
use lockstep_core::refusal::reason;
use lockstep_core::sink::Sink;
use lockstep_core::{Error, ErrorKind};
use lockstep_kit::Component::Redis;
use lockstep_kit::proxy::Proxy;
use lockstep_kit::redis::{Redis as Server, RedisOptions, Reply};
use lockstep_kit::wait_for;
use redis::Value;
use serde_json::json;
use support::{Lab, Null, PATIENCE, Same, T, counts, deliver, orders, source};

/// Transactions of two sources.
const PAIRS: u64 = 4;
/// Where they begin, behind the history.
const PAIRS_FROM: u64 = 1_000_000;
/// A transaction of more changes than a step has, behind them.
const LARGE: u64 = 1_300;
const LARGE_AT: u64 = 2_000_000;

async fn all_durable(durables: Vec<Durable>) {
    for durable in durables {
        let answer = tokio::time::timeout(PATIENCE, durable).await;
        answer.expect("in time").expect("durable");
    }
}

async fn resumed(sink: &mut Box<dyn Sink>, source: &SourceInfo) -> Option<Position> {
    let held = sink.resume(source).await.expect("asked");
    held.map(|held| held.upto())
}

/// A history, pairs, and a large transaction, by several sinks, one of which is dropped in the middle.
async fn write_all(lab: &Lab, stock: &Arc<SourceInfo>, history: &[(u64, Step)]) {
    let (table, mut random) = (items("shop", "items"), Random(7));
    let mut sink = lab.open().await;
    for last in [false, true] {
        let after = resumed(&mut sink, &lab.source).await;
        let mut batches = cut(history, &lab.source, &table, &mut random, after);
        if !last {
            batches.truncate(batches.len() / 2);
        }
        let mut durables = Vec::new();
        for batch in batches {
            durables.push(sink.write(batch).await.expect("taken"));
            if random.below(2) == 0 {
                all_durable(std::mem::take(&mut durables)).await;
            }
        }
        if !last {
            drop(sink);
            sink = lab.open().await;
            continue;
        }
        all_durable(durables).await;
    }
    let (order, shelf, bulk) = (
        items("shop", "pairs"),
        items("stock", "pairs"),
        items("shop", "bulk"),
    );
    for round in 1..=PAIRS {
        let id = round.to_string();
        let row = [V::Text(&id), "new".into(), "gift".into()];
        let part = |source, table| {
            Feed::new(source)
                .begin(PAIRS_FROM + round)
                .insert(table, &row)
                .finish()
        };
        let parts = vec![part(&lab.source, &order), part(stock, &shelf)];
        all_durable(sink.write_together(parts).await.expect("taken")).await;
    }
    let mut feed = Feed::new(&lab.source);
    feed.begin(LARGE_AT);
    for id in 1..=LARGE {
        let id = id.to_string();
        feed.insert(&bulk, &[V::Text(&id), "new".into(), "gift".into()]);
    }
    deliver(&mut sink, feed.finish()).await.expect("durable");
    sink.close().await.expect("closes");
}

/// What a server holds: rows by the key without the lab's prefix, and how far sources are, by name.
struct Memory {
    rows: BTreeMap<String, Row>,
    progress: BTreeMap<String, Progress>,
}

/// All keys of a pattern with their values; a hash as JSON.
const LOOK: &str = r"
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local value
  if redis.call('TYPE', key).ok == 'hash' then
    local fields, words = {}, redis.call('HGETALL', key)
    for i = 1, #words, 2 do fields[words[i]] = words[i + 1] end
    value = cjson.encode(fields)
  else
    value = redis.call('GET', key)
  end
  found[#found + 1] = key
  found[#found + 1] = value
end
return found";

async fn look(server: &Server, pattern: &str) -> Vec<(String, String)> {
    let reply = server.command(&["EVAL", LOOK, "0", pattern]).await;
    let Reply::List(words) = reply.expect("reached") else {
        panic!("EVAL");
    };
    let texts = words.into_iter().map(|word| match word {
        Reply::Text(text) => text,
        other => panic!("{other:?}"),
    });
    let texts: Vec<String> = texts.collect();
    let pairs = texts.chunks(2);
    pairs
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect()
}

impl Memory {
    async fn of(server: &Server, prefix: &str) -> Self {
        let rows = look(server, &format!("{prefix}:*")).await.into_iter();
        let rows = rows.map(|(key, value)| {
            let json = serde_json::from_str(&value).expect("JSON");
            (key[prefix.len() + 1..].to_owned(), row_of(&json))
        });
        let named = format!("lockstep:progress:{prefix}:cache:");
        let progress = look(server, &format!("{named}*")).await.into_iter();
        let progress = progress.map(|(key, value)| {
            let (source, _) = key[named.len()..].split_once(':').expect("an identity");
            let held = Progress::parse_hex(&value).expect("progress");
            (source.to_owned(), held)
        });
        Memory {
            rows: rows.collect(),
            progress: progress.collect(),
        }
    }

    fn upto(&self, source: &str) -> Position {
        let held = self.progress.get(source);
        held.map(Progress::upto).unwrap_or_default()
    }

    fn of_table(&self, table: &str) -> BTreeMap<String, Row> {
        let rows = self.rows.iter().filter_map(|(key, row)| {
            let id = key.strip_prefix(table)?.strip_prefix(':')?;
            Some((id.to_owned(), row.clone()))
        });
        rows.collect()
    }

    fn ids(&self, table: &str) -> BTreeSet<u64> {
        let ids = self.of_table(table).into_keys();
        ids.map(|id| id.parse().expect("a number")).collect()
    }

    /// Every row that the position has, as it was there, and no other.
    fn assert_exact(&self, history: &[(u64, Step)], place: &str) {
        let (shop, stock) = (self.upto("shop"), self.upto("stock"));
        let expected = model(history, Some(shop));
        assert_eq!(self.of_table("shop:items"), expected, "{place}, at {shop}");
        for (name, upto) in [("shop", shop), ("stock", stock)] {
            let all = 1..=PAIRS;
            let there = all.filter(|round| position(PAIRS_FROM + round, 1) <= upto);
            let held = self.ids(&format!("{name}:pairs"));
            assert_eq!(held, there.collect(), "{place}: pairs of {name}, at {upto}");
        }
        assert_eq!(
            self.ids("shop:pairs"),
            self.ids("stock:pairs"),
            "{place}: one branch without the other"
        );
        let large = match shop.commit == lsn(LARGE_AT) {
            true => shop.ordinal,
            false => 0,
        };
        let held = self.ids("shop:bulk");
        assert_eq!(held, (1..=large).collect(), "{place}: the large one");
    }
}

/// The file that commands are appended to.
async fn log_of(server: &Server) -> PathBuf {
    let reply = server.command(&["CONFIG", "GET", "dir"]).await;
    let Reply::List(words) = reply.expect("reached") else {
        panic!("CONFIG");
    };
    let Some(Reply::Text(folder)) = words.last() else {
        panic!("{words:?}");
    };
    let files = std::fs::read_dir(Path::new(folder).join("appendonlydir")).expect("append-only");
    let mut paths = files.map(|file| file.expect("listed").path());
    let is_log = |path: &PathBuf| path.to_string_lossy().ends_with(".incr.aof");
    paths.find(is_log).expect("a log of commands")
}

/// Where the commands of a log end, and their names.
fn commands(log: &[u8]) -> Vec<(usize, String)> {
    fn number(log: &[u8], at: &mut usize, mark: u8) -> usize {
        assert_eq!(log[*at], mark, "at {at}");
        let end = log[*at..].iter().position(|byte| *byte == b'\r');
        let end = *at + end.expect("a line");
        let text = std::str::from_utf8(&log[*at + 1..end]).expect("digits");
        *at = end + 2;
        text.parse().expect("a number")
    }
    let (mut at, mut ends) = (0, Vec::new());
    while at < log.len() {
        let mut name = None;
        for _ in 0..number(log, &mut at, b'*') {
            let length = number(log, &mut at, b'$');
            let word = &log[at..at + length];
            name.get_or_insert_with(|| String::from_utf8_lossy(word).into_owned());
            at += length + 2;
        }
        ends.push((at, name.unwrap_or_default()));
    }
    ends
}

/// A server writes what a sink sends it, and is started again with its log cut behind each of its commands: what a crash, or a
/// failover, that loses the last of them leaves.
async fn wherever_the_log_ends(value: &str) {
    lockstep_kit::require!(Redis);
    let server = Server::start(RedisOptions {
        append_only: true,
        config: vec![("auto-aof-rewrite-percentage".into(), "0".into())],
    })
    .await;
    let lab = Lab::single(server.url(), json!({ "value": value })).await;
    let steps = history(&mut Random(42), 120).into_iter();
    let steps: Vec<_> = steps
        .filter(|(_, step)| !matches!(step, Step::Truncate))
        .collect();
    let stock = source("stock", &lab.prefix);
    write_all(&lab, &stock, &steps).await;
    let path = log_of(&server).await;
    server.stop().await;
    let log = std::fs::read(&path).expect("read");
    let commands = commands(&log);
    let (mut seen, mut inside, mut depth) = (BTreeSet::new(), 0, None);
    for (end, name) in &commands {
        match (name.as_str(), &mut depth) {
            ("MULTI", _) => depth = Some(0),
            ("EXEC", _) => depth = None,
            (_, Some(depth)) => *depth += 1,
            (_, None) => {}
        }
        // Of the large ones, whose commands are all alike, some are enough.
        if depth.is_some_and(|depth| depth > 20 && depth % 100 > 0) {
            continue;
        }
        inside += usize::from(depth.is_some());
        server.stop().await;
        std::fs::write(&path, &log[..*end]).expect("written");
        server.restart().await;
        let memory = Memory::of(&server, &lab.prefix).await;
        memory.assert_exact(&steps, &format!("cut at {end}, behind a {name}"));
        seen.insert(memory.upto("shop"));
    }
    // It was cut in the middle of steps, and between many of them.
    assert!(inside > 50 && seen.len() > 10, "{inside}, {}", seen.len());
    let last = seen.last().copied();
    assert_eq!(last, Some(position(LARGE_AT, LARGE)), "all was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_are_as_the_position_says_wherever_the_log_ends() {
    wherever_the_log_ends("json").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashes_are_as_the_position_says_wherever_the_log_ends() {
    wherever_the_log_ends("hash").await;
}

fn row(lab: &Lab, commit: u64) -> Arc<Batch> {
    let id = commit.to_string();
    lab.make()
        .commit(commit)
        .insert(&lab.orders(), &[T(&id), T("x"), Null, Null])
        .stream()
}

async fn error_of(sink: &mut Box<dyn Sink>, batch: Arc<Batch>) -> Error {
    deliver(sink, batch).await.expect_err("refused")
}

/// Without a lease, too: who has opened it last goes on, and the other one is told.
#[tokio::test(flavor = "multi_thread")]
async fn who_opens_it_takes_it_over() {
    lockstep_kit::require!(Redis);
    let lab = Lab::single(Server::shared().await.url(), json!({})).await;
    let mut first = lab.open().await;
    assert_eq!(counts(&mut first, row(&lab, 1)).await, (1, 0));
    let mut second = lab.open().await;
    let error = error_of(&mut first, row(&lab, 2)).await;
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert_eq!(error.reason(), Some(reason::FENCED), "{error}");
    assert!(lab.row("2").await.is_none());
    assert_eq!(
        resumed(&mut second, &lab.source).await.map(|at| at.commit),
        Some(lockstep_core::position::Lsn(1))
    );
    assert_eq!(counts(&mut second, row(&lab, 2)).await, (1, 0));
    drop(first);
    let mut third = lab.open().await;
    assert_eq!(counts(&mut third, row(&lab, 3)).await, (1, 0));
    assert_eq!(
        error_of(&mut second, row(&lab, 4)).await.kind(),
        ErrorKind::Busy
    );
}

async fn calls(lab: &Lab) -> u64 {
    let Value::BulkString(info) = lab.ask(&["INFO", "commandstats"]).await else {
        panic!("INFO");
    };
    let info = String::from_utf8_lossy(&info).into_owned();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    line.and_then(|line| line.split(',').next()?.parse().ok())
        .unwrap_or_default()
}

/// What a sink that is gone has left on its way comes when the next one has been asked where it stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_comes_late_is_not_carried_out() {
    lockstep_kit::require!(Redis);
    let server = Server::start(RedisOptions::default()).await;
    let proxy = Proxy::start(server.address()).await;
    let lab = Lab::single(server.url(), json!({})).await;
    let url = format!("redis://{}", proxy.address());
    let through = lab.with(json!({ "url": url, "response_timeout": "300ms" }));
    let mut former = through.open().await;
    assert_eq!(counts(&mut former, row(&lab, 1)).await, (1, 0));
    proxy.pause(true);
    let error = error_of(&mut former, row(&lab, 2)).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    drop(former);
    let mut next = lab.open().await;
    let before = resumed(&mut next, &lab.source).await;
    let called = calls(&lab).await;
    proxy.pause(false);
    wait_for(PATIENCE, "the late step", async || {
        match calls(&lab).await > called {
            true => Ok(()),
            false => Err("it has not come"),
        }
    })
    .await;
    assert!(lab.row("2").await.is_none(), "it was carried out");
    assert_eq!(resumed(&mut next, &lab.source).await, before);
    assert_eq!(counts(&mut next, row(&lab, 2)).await, (1, 0));
}

/// Done, and the answer is lost: whoever opens it next knows, and goes on behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_whose_answer_is_lost_is_known_to_be_done() {
    lockstep_kit::require!(Redis);
    let server = Server::start(RedisOptions::default()).await;
    let proxy = Proxy::start(server.address()).await;
    let lab = Lab::single(server.url(), json!({})).await;
    let url = format!("redis://{}", proxy.address());
    let through = lab.with(json!({ "url": url }));
    for round in 1..=20 {
        let mut sink = through.open().await;
        let at = resumed(&mut sink, &lab.source).await;
        assert_eq!(at.map_or(0, |at| at.commit.0), round - 1);
        // What comes back is slow, so that the line is cut between the work and the answer.
        let durable = sink.write(row(&lab, round)).await.expect("taken");
        for line in proxy.connections() {
            line.latency(Duration::from_millis(200));
        }
        wait_for(PATIENCE, "the row", async || {
            match lab.row(&round.to_string()).await {
                Some(_) => Ok(()),
                None => Err("it is not there"),
            }
        })
        .await;
        proxy.cut();
        // It may have come all the same.
        if let Err(error) = durable.await {
            assert_eq!(error.kind().policy(), Policy::Retry, "{error}");
        }
    }
}

/// Steps are on their way behind one that is refused: none of them is carried out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_passes_a_step_that_is_refused() {
    lockstep_kit::require!(Redis);
    let server = Server::start(RedisOptions::default()).await;
    let lab = Lab::single(server.url(), json!({ "value": "hash" })).await;
    let (mut sink, table) = (lab.open().await, lab.orders());
    lab.ask(&["LPUSH", &lab.key("1"), "no hash"]).await;
    let poison = lab
        .make()
        .commit(100)
        .update(&table, &[T("1"), T("uno"), Same, Null])
        .stream();
    let mut batches = vec![poison];
    // Each is a step of its own.
    for commit in 200..204 {
        let mut maker = lab.make().commit(commit);
        for id in 0..510 {
            let id = (1000 * commit + id).to_string();
            maker = maker.insert(&table, &[T(&id), T("x"), Null, Null]);
        }
        batches.push(maker.stream());
    }
    // None is answered before all have come.
    lab.ask(&["CLIENT", "PAUSE", "30000", "WRITE"]).await;
    let mut durables = Vec::new();
    for batch in batches {
        durables.push(sink.write(batch).await.expect("taken"));
    }
    wait_for(PATIENCE, "steps behind the first", async || {
        let Value::BulkString(list) = lab.ask(&["CLIENT", "LIST"]).await else {
            panic!("CLIENT LIST");
        };
        let list = String::from_utf8_lossy(&list).into_owned();
        let waiting = list
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("qbuf="));
        let most = waiting.filter_map(|bytes| bytes.parse::<u64>().ok()).max();
        match most {
            Some(bytes) if bytes > 100_000 => Ok(()),
            other => Err(format!("{other:?} bytes")),
        }
    })
    .await;
    lab.ask(&["CLIENT", "UNPAUSE"]).await;
    for (at, durable) in durables.into_iter().enumerate() {
        let error = durable.await.expect_err("refused, or behind it");
        let kind = match at {
            0 => ErrorKind::Refused,
            _ => ErrorKind::Abandoned,
        };
        assert_eq!(error.kind(), kind, "{error}");
    }
    let mut sink = lab.open().await;
    assert_eq!(resumed(&mut sink, &lab.source).await, None);
    let pattern = format!("{}:shop:orders:*", lab.prefix);
    let Value::Array(keys) = lab.ask(&["KEYS", &pattern]).await else {
        panic!("KEYS");
    };
    assert_eq!(keys.len(), 1, "the list alone");
}

/// A server forgets its scripts while steps are on their way: those are sent once more, in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_on_their_way_outlive_the_scripts() {
    lockstep_kit::require!(Redis);
    let server = Server::start(RedisOptions::default()).await;
    let lab = Lab::single(server.url(), json!({})).await;
    let (mut sink, table) = (lab.open().await, lab.orders());
    let mut durables = Vec::new();
    for commit in 1..=200 {
        let mut maker = lab.make().commit(commit);
        for id in 0..300 {
            let (id, name) = (id.to_string(), commit.to_string());
            maker = maker.insert(&table, &[T(&id), T(&name), Null, Null]);
        }
        durables.push(sink.write(maker.stream()).await.expect("taken"));
        if commit % 9 == 0 {
            lab.ask(&["SCRIPT", "FLUSH"]).await;
        }
    }
    all_durable(durables).await;
    let at = resumed(&mut sink, &lab.source).await.expect("written");
    assert_eq!(at.commit.0, 200);
}

/// A server that is emptied under a sink does not go on as if all were there.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_emptied_is_seen() {
    lockstep_kit::require!(Redis);
    let server = Server::start(RedisOptions::default()).await;
    let lab = Lab::single(server.url(), json!({})).await;
    let mut sink = lab.open().await;
    assert_eq!(counts(&mut sink, row(&lab, 1)).await, (1, 0));
    lab.ask(&["FLUSHALL"]).await;
    let error = error_of(&mut sink, row(&lab, 2)).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("emptied"), "{error}");
    drop(sink);
    let mut sink = lab.open().await;
    assert_eq!(resumed(&mut sink, &lab.source).await, None);
    assert_eq!(counts(&mut sink, row(&lab, 2)).await, (1, 0));
}

/// Branches that are too much for one step come one behind the other, each as steps of its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_a_step_is_written_in_several() {
    lockstep_kit::require!(Redis);
    let lab = Lab::single(Server::shared().await.url(), json!({})).await;
    let stock = source("stock", &lab.prefix);
    let (mut sink, table, shelf) = (lab.open().await, lab.orders(), orders("stock"));
    let mut order = lab.make().commit(100);
    for id in 0..45_000 {
        order = order.insert(&table, &[T(&id.to_string()), T("x"), Null, Null]);
    }
    let shelved = support::Maker::new(&stock)
        .commit(100)
        .insert(&shelf, &[T("1"), T("x"), Null, Null]);
    let parts = vec![order.stream(), shelved.stream()];
    let mut written = Vec::new();
    for durable in sink.write_together(parts).await.expect("taken") {
        let done = tokio::time::timeout(PATIENCE, durable).await;
        written.push(done.expect("in time").expect("durable").written);
    }
    assert_eq!(written, [45_000, 1]);
    for (source, ordinal) in [(&lab.source, 45_000), (&stock, 1)] {
        let at = resumed(&mut sink, source).await.expect("written");
        assert_eq!((at.commit.0, at.ordinal), (100, ordinal));
    }
    let shelf_key = format!("{}:stock:orders:1", lab.prefix);
    assert!(lab.get(&shelf_key).await.is_some());
    sink.close().await.expect("closes");
}
