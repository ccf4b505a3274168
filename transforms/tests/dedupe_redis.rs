//! `dedupe` over Redis: servers that die, forget, are full, or are written by two replicas at once.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::*;
use lockstep_core::check::{Finding, Verdict};
use lockstep_core::error::Policy;
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use lockstep_core::transform::{Transform, TransformFactory};
use lockstep_core::{Error, ErrorKind};
use lockstep_kit::Component::{Redis as NeedsRedis, RedisCluster as NeedsCluster};
use lockstep_kit::redis::{Redis, RedisOptions, Reply};
use lockstep_kit::redis_cluster::RedisCluster;
use lockstep_kit::require;
use lockstep_kit::require_own;
use lockstep_transforms::Dedupe;
use serde_json::{Value as Json, json};

const HOUR: i64 = 3600;

fn payments(source: &str) -> Arc<TableSchema> {
    table_of(
        source,
        "public.payments",
        &["id int8", "idempotency_key text"],
        &["id"],
        ReplicaIdentity::Default,
    )
}

fn section() -> Json {
    json!({"key": ["idempotency_key"]})
}

fn server(append_only: bool, config: &[(&str, &str)]) -> Redis {
    block_on(Redis::start(RedisOptions {
        append_only,
        config: config
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
    }))
}

fn ask(server: &Redis, words: &[&str]) -> Reply {
    match block_on(server.command(words)).unwrap() {
        Reply::Error(said) => panic!("{words:?}: {said}"),
        reply => reply,
    }
}

fn key(place: &Place, part: &str) -> String {
    format!("lockstep:dedupe:{{{}/here}}:{part}", place.pipeline)
}

fn open(place: &Place, table: &Arc<TableSchema>) -> Box<dyn Transform> {
    place.open(section(), &[table], &Arc::default())
}

/// Rows in a transaction of their own, each with its key.
fn rows(table: &Arc<TableSchema>, commit: u64, seconds: i64, rows: &[(&str, &str)]) -> Feed {
    let feed = Feed::of(&table.source).begin(commit, seconds);
    rows.iter()
        .fold(feed, |feed, (id, key)| feed.insert(table, &[id, key]))
}

/// How many of them come out.
fn passed(dedupe: &mut Box<dyn Transform>, feed: Feed) -> usize {
    dedupe.apply_now(feed.finish()).unwrap().changes().len()
}

fn refused(dedupe: &mut Box<dyn Transform>, feed: Feed) -> Error {
    dedupe.apply_now(feed.finish()).unwrap_err()
}

#[test]
fn a_server_that_keeps_its_data_is_waited_for() {
    require_own!(NeedsRedis);
    let server = server(true, &[]);
    let (place, table) = (Place::redis_at(server.url(), json!({})), payments("shop"));
    let mut dedupe = open(&place, &table);
    assert_eq!(passed(&mut dedupe, rows(&table, 10, 1, &[("1", "k")])), 1);
    server.kill();
    for _ in 0..2 {
        let error = refused(&mut dedupe, rows(&table, 20, 2, &[("2", "k")]));
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert_eq!(error.kind().policy(), Policy::Retry);
        assert!(error.to_string().contains(server.url()), "{error}");
    }
    block_on(server.restart());
    assert_eq!(passed(&mut dedupe, rows(&table, 20, 2, &[("2", "k")])), 0);
    assert_eq!(passed(&mut dedupe, rows(&table, 30, 3, &[("3", "l")])), 1);
}

#[test]
fn a_server_that_has_forgotten_stops_the_pipeline() {
    require_own!(NeedsRedis);
    let server = server(false, &[]);
    let (place, table) = (Place::redis_at(server.url(), json!({})), payments("shop"));
    let mut dedupe = open(&place, &table);
    assert_eq!(passed(&mut dedupe, rows(&table, 10, 1, &[("1", "k")])), 1);
    dedupe.persist().unwrap();
    block_on(server.restart());
    let repeat = || rows(&table, 20, 2, &[("2", "k")]);
    // The connection of before may be what it meets first.
    let lost = |dedupe: &mut Box<dyn Transform>| {
        let first = refused(dedupe, repeat());
        match first.kind() {
            ErrorKind::Unavailable => refused(dedupe, repeat()),
            _ => first,
        }
    };
    let error = lost(&mut dedupe);
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert_eq!(error.kind().policy(), Policy::Stop);
    let text = error.to_string();
    assert!(
        text.contains("it is empty") && text.contains("on_lost"),
        "{text}"
    );
    drop(dedupe);
    // A new start knows it by its record.
    let mut dedupe = open(&place, &table);
    let error = block_on(dedupe.ready()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    drop(dedupe);
    // Whoever is told to goes on.
    let mut told = place.section(section());
    told["store"]["on_lost"] = "continue".into();
    let mut dedupe = place.open_as(told, &[&table], &Arc::default());
    assert_eq!(passed(&mut dedupe, repeat()), 1, "as said");
    assert_eq!(passed(&mut dedupe, rows(&table, 30, 3, &[("3", "k")])), 0);
    dedupe.persist().unwrap();
    drop(dedupe);
    let mut dedupe = open(&place, &table);
    assert_eq!(passed(&mut dedupe, rows(&table, 40, 4, &[("4", "k")])), 0);
}

/// With `on_lost = "continue"`, a loss in the middle of a run is one failed attempt.
#[test]
fn a_loss_is_gone_on_from_when_that_is_wanted() {
    require_own!(NeedsRedis);
    let server = server(false, &[]);
    let place = Place::redis_at(server.url(), json!({"on_lost": "continue"}));
    let table = payments("shop");
    let mut dedupe = open(&place, &table);
    assert_eq!(passed(&mut dedupe, rows(&table, 10, 1, &[("1", "k")])), 1);
    ask(&server, &["FLUSHALL"]);
    let error = refused(&mut dedupe, rows(&table, 20, 2, &[("2", "k")]));
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(passed(&mut dedupe, rows(&table, 20, 2, &[("2", "k")])), 1);
    assert_eq!(passed(&mut dedupe, rows(&table, 30, 3, &[("3", "k")])), 0);
}

#[test]
fn whatever_is_missing_is_seen() {
    require_own!(NeedsRedis);
    let server = server(false, &[]);
    let table = payments("shop");
    type Damage<'a> = (&'a str, Box<dyn Fn(&Place) + 'a>);
    let damages: [Damage<'_>; 5] = [
        (
            "a part of it is missing",
            Box::new(|place| drop(ask(&server, &["DEL", &key(place, "claims")]))),
        ),
        (
            "a part of it is missing",
            Box::new(|place| drop(ask(&server, &["DEL", &key(place, "rows")]))),
        ),
        (
            "it is empty",
            Box::new(|place| drop(ask(&server, &["DEL", &key(place, "meta")]))),
        ),
        (
            "it has gone back to an earlier state",
            Box::new(|place| {
                for part in ["meta", "claims", "rows"] {
                    let saved = format!("{}:saved", key(place, part));
                    ask(&server, &["COPY", &saved, &key(place, part), "REPLACE"]);
                }
            }),
        ),
        (
            "it is not the one that was used before",
            Box::new(|place| {
                let meta = key(place, "meta");
                ask(&server, &["HSET", &meta, "generation", "another"]);
            }),
        ),
    ];
    for (why, damage) in damages {
        let place = Place::redis_at(server.url(), json!({}));
        let mut dedupe = open(&place, &table);
        let first = [("1", "k"), ("2", "k")];
        assert_eq!(passed(&mut dedupe, rows(&table, 10, 1, &first)), 1);
        for part in ["meta", "claims", "rows"] {
            let saved = format!("{}:saved", key(&place, part));
            ask(&server, &["COPY", &key(&place, part), &saved]);
        }
        assert_eq!(passed(&mut dedupe, rows(&table, 20, 2, &[("3", "l")])), 1);
        damage(&place);
        let error = refused(&mut dedupe, rows(&table, 30, 3, &[("4", "m")]));
        assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
        assert!(error.to_string().contains(why), "{why}: {error}");
    }
}

#[test]
fn a_full_server_is_waited_for_and_makes_room() {
    require_own!(NeedsRedis);
    let server = server(false, &[("maxmemory-policy", "noeviction")]);
    let (place, table) = (Place::redis_at(server.url(), json!({})), payments("shop"));
    let mut dedupe = place.open(
        json!({"key": ["idempotency_key"], "window": "1h"}),
        &[&table],
        &Arc::default(),
    );
    let many = |commit: u64, hours: i64, count: usize| {
        let names: Vec<String> = (0..count).map(|row| format!("{commit}-{row}")).collect();
        let named: Vec<(&str, &str)> = names.iter().map(|name| (&**name, &**name)).collect();
        rows(&table, commit, hours * HOUR, &named)
    };
    let full = |full: bool| {
        let limit = if full { "1" } else { "0" };
        ask(&server, &["CONFIG", "SET", "maxmemory", limit]);
    };
    assert_eq!(passed(&mut dedupe, many(1, 0, 5)), 5);
    assert_eq!(passed(&mut dedupe, many(2, 24, 3000)), 3000);
    full(true);
    // Everything is in its window: it waits, for as long as the server is full.
    for _ in 0..3 {
        let error = refused(&mut dedupe, many(3, 24, 50));
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
        assert_eq!(error.kind().policy(), Policy::Retry);
    }
    full(false);
    assert_eq!(passed(&mut dedupe, many(3, 24, 50)), 50);
    // Time goes on, and the server is full again: what has left the window goes, though nothing can be written, and
    // though most that the sweeper meets must stay.
    assert_eq!(passed(&mut dedupe, many(4, 26, 1)), 1);
    full(true);
    for _ in 0..40 {
        refused(&mut dedupe, many(5, 26, 50));
    }
    let length = ask(&server, &["HLEN", &key(&place, "claims")]);
    assert_eq!(length, Reply::Integer(3051));
}

/// Two sources in two replicas, which share the keys: of two rows with one key one passes, whoever is first.
#[test]
fn replicas_that_claim_at_once_do_not_both_win() {
    require!(NeedsRedis);
    let place = Place::redis();
    let names = ["shop", "inventory"];
    let tables = names.map(payments);
    let replicas = [0, 1].map(|_| {
        place.next();
        let section = json!({"key": ["idempotency_key"], "scope": "all"});
        place.open(section, &[&tables[0], &tables[1]], &Arc::default())
    });
    const BATCHES: u64 = 60;
    let run = |mut dedupe: Box<dyn Transform>, table: &Arc<TableSchema>| {
        let mut passed: Vec<String> = Vec::new();
        for commit in 1..=BATCHES {
            let keys: Vec<String> = (0..10).map(|key| format!("{commit}-{key}")).collect();
            let named: Vec<(&str, &str)> = keys.iter().map(|key| (&**key, &**key)).collect();
            let batch = rows(table, commit, 1, &named).finish();
            let out = loop {
                let again = rows(table, commit, 1, &named).finish();
                match dedupe.apply_now(again) {
                    Ok(out) => break out,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
                }
            };
            drop(batch);
            passed.extend(lines(&out));
        }
        passed
    };
    let out: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = replicas
            .into_iter()
            .zip(&tables)
            .map(|(dedupe, table)| scope.spawn(move || run(dedupe, table)))
            .collect();
        let outs = runs.into_iter().map(|run| run.join().unwrap());
        outs.flatten().collect()
    });
    let mut counts: HashMap<&str, u32> = HashMap::new();
    for line in &out {
        *counts.entry(line.rsplit('=').next().unwrap()).or_default() += 1;
    }
    assert_eq!(counts.len() as u64, BATCHES * 10, "none is lost");
    assert!(counts.values().all(|count| *count == 1), "none is doubled");
}

/// A replica that was thought dead works on beside the one that has taken over, on the same log. Both judge alike, and
/// neither takes away what the other has found out.
#[test]
fn a_replica_that_was_thought_dead_does_no_harm() {
    require!(NeedsRedis);
    let place = Place::redis();
    let table = payments("shop");
    let section = || json!({"key": ["idempotency_key"], "window": "10s"});
    let replicas = [0, 1].map(|_| {
        place.next();
        place.open(section(), &[&table], &Arc::default())
    });
    const COMMITS: u64 = 300;
    // Every key comes three times: first, as a repeat, and again after its window.
    let seconds = |commit: u64| commit as i64 * 4;
    let of = |commit: u64| format!("k{}", commit % 7);
    let run = |mut dedupe: Box<dyn Transform>, per_batch: u64| {
        let mut passed: Vec<String> = Vec::new();
        let mut commit = 1;
        while commit <= COMMITS {
            let end = (commit + per_batch).min(COMMITS + 1);
            let feed = || {
                (commit..end).fold(Feed::new(), |feed, commit| {
                    let id = commit.to_string();
                    let feed = feed.begin(commit, seconds(commit));
                    let feed = feed.insert(&table, &[&id, &of(commit)]);
                    feed.insert(&table, &[&format!("{id}00"), &of(commit + 2)])
                })
            };
            match dedupe.apply_now(feed().finish()) {
                Ok(out) => passed.extend(lines(&out)),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
                    continue;
                }
            }
            commit = end;
        }
        passed
    };
    let outs: Vec<Vec<String>> = std::thread::scope(|scope| {
        let runs: Vec<_> = replicas
            .into_iter()
            .zip([1, 5])
            .map(|(dedupe, per_batch)| scope.spawn(move || run(dedupe, per_batch)))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(outs[0], outs[1]);
    let mut alone = Place::embedded().open(section(), &[&table], &Arc::default());
    let feed = (1..=COMMITS).fold(Feed::new(), |feed, commit| {
        let id = commit.to_string();
        let feed = feed.begin(commit, seconds(commit));
        let feed = feed.insert(&table, &[&id, &of(commit)]);
        feed.insert(&table, &[&format!("{id}00"), &of(commit + 2)])
    });
    let expected = lines(&alone.apply_now(feed.finish()).unwrap());
    assert!(expected.len() > 200 && expected.len() < 400);
    assert_eq!(outs[0], expected);
}

#[test]
fn what_has_left_the_window_is_removed() {
    require!(NeedsRedis);
    let table = payments("shop");
    for (section, live) in [
        (
            json!({"key": ["idempotency_key"], "window": "1h"}),
            26 * 100,
        ),
        (
            json!({"key": ["idempotency_key"], "window": "1000d", "max_keys": 500}),
            10_600,
        ),
    ] {
        let place = Place::redis();
        let mut dedupe = place.open(section, &[&table], &Arc::default());
        let mut most = 0;
        for hour in 1..=200 {
            let names: Vec<String> = (0..100).map(|row| format!("{hour}-{row}")).collect();
            let mut named: Vec<(&str, &str)> =
                names.iter().map(|name| (&**name, &**name)).collect();
            named.push(("held", &names[0]));
            let feed = rows(&table, hour, hour as i64 * HOUR, &named);
            assert_eq!(passed(&mut dedupe, feed), 100);
            most = most.max(dedupe.size().unwrap().keys);
        }
        assert!(most >= live - 100, "{most} of {live}");
        assert!(most <= live * 8 / 5, "{most} of {live}");
        let size = dedupe.size().unwrap();
        assert_eq!(size.held, 1, "held for as long as it exists");
        assert!(size.bytes.is_some_and(|bytes| bytes > 0), "{size:?}");
    }
}

#[test]
fn what_a_log_that_was_given_up_knew_is_removed() {
    require!(NeedsRedis);
    let (place, table) = (Place::redis(), payments("shop"));
    let mut dedupe = open(&place, &table);
    let names: Vec<String> = (0..3000).map(|row| row.to_string()).collect();
    let named: Vec<(&str, &str)> = names.iter().map(|name| (&**name, &**name)).collect();
    assert_eq!(passed(&mut dedupe, rows(&table, 10, 1, &named)), 3000);
    let mut other = lockstep_core::position::SourceInfo::clone(&source("shop"));
    other.identity.incarnation = 1;
    let other = Arc::new(other);
    for commit in 1..=40 {
        let feed = Feed::from(Arc::clone(&other)).begin(commit, 2);
        let feed = (0..100).fold(feed, |feed, row| {
            let name = format!("{commit}-{row}");
            feed.insert(&table, &[&name, &name])
        });
        assert_eq!(passed(&mut dedupe, feed), 100);
    }
    assert_eq!(dedupe.size().unwrap().keys, 4000);
}

#[test]
fn it_lies_in_one_slot_of_a_cluster() {
    require!(NeedsCluster);
    let cluster = block_on(RedisCluster::shared());
    let urls = cluster.urls();
    let place = Place::redis_at("", json!({"url": null, "urls": urls, "cluster": true}));
    let table = payments("shop");
    let mut dedupe = open(&place, &table);
    let first = [("1", "k"), ("2", "k"), ("3", "l")];
    assert_eq!(passed(&mut dedupe, rows(&table, 10, 1, &first)), 2);
    drop(dedupe);
    place.next();
    let mut dedupe = open(&place, &table);
    assert_eq!(passed(&mut dedupe, rows(&table, 10, 1, &first)), 2);
    assert_eq!(passed(&mut dedupe, rows(&table, 20, 2, &[("4", "l")])), 0);
    // One node serves the slot, the others send elsewhere.
    let alone = urls.iter().filter_map(|url| {
        let mut other = Place::redis_at(url, json!({}));
        other.pipeline.clone_from(&place.pipeline);
        let mut dedupe = open(&other, &table);
        dedupe.apply_now(rows(&table, 10, 1, &first).finish()).err()
    });
    let errors: Vec<Error> = alone.collect();
    assert_eq!(errors.len(), urls.len() - 1);
    let setup = |error: &Error| error.kind() == ErrorKind::Setup;
    assert!(errors.iter().all(setup), "{errors:?}");
}

#[test]
fn a_server_that_asks_for_a_password() {
    require_own!(NeedsRedis);
    let server = server(false, &[("requirepass", "hunter2")]);
    let table = payments("shop");
    let address = server.address();
    let wrong = Place::redis_at(&format!("redis://:hunter3@{address}"), json!({}));
    let error = refused(&mut open(&wrong, &table), rows(&table, 1, 1, &[("1", "k")]));
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    assert!(!error.to_string().contains("hunter"), "{error}");
    let right = Place::redis_at(&format!("redis://:hunter2@{address}"), json!({}));
    let mut dedupe = open(&right, &table);
    assert_eq!(passed(&mut dedupe, rows(&table, 1, 1, &[("1", "k")])), 1);
    let config: lockstep_transforms::dedupe::DedupeConfig = config(right.section(section()));
    assert!(!format!("{config:?}").contains("hunter"));
}

#[test]
fn what_a_check_finds() {
    require_own!(NeedsRedis);
    let server = server(true, &[]);
    let look = |url: &str| -> Vec<Finding> {
        let place = Place::redis_at(url, json!({}));
        block_on(Dedupe::preflight(
            &config(place.section(section())),
            "p",
            "here",
        ))
    };
    let all = |findings: &[Finding]| findings.iter().all(|found| found.verdict == Verdict::Pass);
    let worst = |findings: &[Finding], subject: &str| {
        let of = findings.iter().find(|found| found.subject == subject);
        of.unwrap_or_else(|| panic!("{findings:?}")).verdict
    };
    let good = look(server.url());
    assert!(all(&good), "{good:?}");
    assert_eq!(
        ask(&server, &["DBSIZE"]),
        Reply::Integer(0),
        "it changes nothing"
    );
    ask(
        &server,
        &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"],
    );
    ask(&server, &["CONFIG", "SET", "maxmemory", "100mb"]);
    ask(&server, &["CONFIG", "SET", "appendonly", "no"]);
    let bad = look(server.url());
    assert_eq!(worst(&bad, "maxmemory-policy"), Verdict::Fail, "{bad:?}");
    assert_eq!(worst(&bad, "persistence"), Verdict::Warn, "{bad:?}");
    ask(
        &server,
        &[
            "ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", "-hscan",
        ],
    );
    let weak = look(&format!("redis://weak:pw@{}", server.address()));
    assert_eq!(
        worst(&weak, "scripts and commands"),
        Verdict::Fail,
        "{weak:?}"
    );
    // What the remedy grants is enough.
    let rights = weak
        .iter()
        .find(|found| found.subject == "scripts and commands");
    let rights = rights.unwrap().remedy.clone().unwrap();
    let words = rights.split(' ').skip(3).filter(|word| !word.is_empty());
    let grant: Vec<&str> = ["ACL", "SETUSER", "enough", "on", ">pw"]
        .into_iter()
        .chain(words)
        .collect();
    ask(&server, &grant);
    let url = format!("redis://enough:pw@{}", server.address());
    let place = Place::redis_at(&url, json!({}));
    let table = payments("shop");
    let mut dedupe = open(&place, &table);
    let first = [("1", "k"), ("2", "k")];
    assert_eq!(passed(&mut dedupe, rows(&table, 1, 1, &first)), 1);
    let enough = look(&url);
    assert_eq!(
        worst(&enough, "scripts and commands"),
        Verdict::Pass,
        "{enough:?}"
    );
    server.kill();
    let gone = look(server.url());
    assert_eq!(worst(&gone, "store"), Verdict::Fail, "{gone:?}");
}
