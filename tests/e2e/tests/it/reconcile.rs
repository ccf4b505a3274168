//! `lockstep reconcile`: what differs is found, told apart and named, while the stream goes on; nothing else is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::work::{self, Work};
use lockstep_e2e::{Pipeline, Random, Setup};
use lockstep_kit::Component::{
    OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres, Redis as NeedsRedis,
};
use lockstep_kit::opensearch::OpenSearch;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::proxy::Proxy;
use lockstep_kit::redis::{Redis, Reply};
use lockstep_kit::{require, unique};
use serde_json::{Value, json};

use crate::support::{cache, end_of_log, files, source};

/// What the command says, and its exit code.
pub async fn reconcile(
    setup: &Setup,
    pipeline: &mut Pipeline,
    more: &[&str],
) -> (Option<i32>, Value) {
    let url = pipeline.url().await;
    let file = setup.file().display().to_string();
    let begin = ["reconcile", &*file, "--url", &*url, "--format", "json"];
    let begun = Instant::now();
    let child = setup.spawn(&[&begin, more].concat(), &[]);
    // It takes as long as the slowest sink is behind, and machines that run tests are slow.
    let ended = child.ends_within(4 * PATIENCE).await;
    let report = serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|_| panic!("{ended:?}\n{}", pipeline.log()));
    println!("{more:?} took {:?}", begun.elapsed());
    (ended.code(), report)
}

/// That nothing differs, and nothing was left out; what the command says besides.
pub async fn equal(setup: &Setup, pipeline: &mut Pipeline, more: &[&str]) -> Value {
    let (code, report) = reconcile(setup, pipeline, more).await;
    let found = (code, told(&report));
    assert_eq!(found, (Some(0), BTreeSet::new()), "{report:#}");
    report
}

/// Every difference that is told: sink, kind and key.
pub fn told(report: &Value) -> BTreeSet<(String, String, String)> {
    let mut told = BTreeSet::new();
    for report in report["reports"].as_array().expect("reports") {
        assert_eq!(
            (&report["state"], &report["problem"]),
            (&json!("done"), &Value::Null),
            "{report}"
        );
        for (name, sink) in report["sinks"].as_object().expect("sinks") {
            assert_eq!(sink["problem"], Value::Null, "{report}");
            for row in sink["drift"].as_array().expect("rows") {
                let text = |value: &Value| value.as_str().expect("a text").to_owned();
                let new = told.insert((name.clone(), text(&row["drift"]), text(&row["held_as"])));
                assert!(new, "{row} twice");
            }
        }
    }
    told
}

pub fn hashes(url: &str, prefix: &str) -> String {
    format!(
        "[sinks.hashes]\ntype = \"redis\"\ninputs = [\"shop\"]\nurl = \"{url}\"\nkey = \"{prefix}:h:{{table}}:{{key}}\"\nvalue = \"hash\"\n"
    )
}

pub fn search(url: &str, prefix: &str) -> String {
    format!(
        "[sinks.search]\ntype = \"opensearch\"\ninputs = [\"shop\"]\nurl = \"{url}\"\nindex = \"{prefix}-{{table}}\"\n"
    )
}

pub fn index(folder: &std::path::Path) -> String {
    let path = folder.join("index");
    format!("[sinks.index]\ntype = \"tantivy\"\ninputs = [\"shop\"]\npath = {path:?}\n")
}

pub async fn caught_up(pipeline: &mut Pipeline, database: &Database) {
    let end = end_of_log(database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_nothing_is_reported_that_is_not_so_and_all_that_is() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsOpenSearch);
    let mut random = Random::from_environment();
    let (postgres, redis, opensearch) =
        tokio::join!(Postgres::shared(17), Redis::shared(), OpenSearch::shared());
    let database = postgres.database("shop").await;
    work::create(&database, 6_000, 900).await;
    let name = unique("reconcile");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["ledger", "counters", "items"])
            + &cache(redis.url(), &name)
            + &hashes(redis.url(), &name)
            + &search(opensearch.url(), &name)
            + &index(folder)
            + &files(folder)
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    let report = equal(&setup, &mut pipeline, &[]).await;
    let ledger = &report["reports"].as_array().expect("reports")[2];
    assert_eq!(ledger["table"], "public.ledger");
    for (sink, compared) in [
        ("cache", 6_000),
        ("hashes", 6_000),
        ("search", 6_000),
        ("index", 6_000),
        ("files", 0),
    ] {
        let told = &ledger["sinks"][sink];
        let expected = (json!(compared), json!(compared == 0), json!(compared > 0));
        let found = (
            told["compared"].clone(),
            told["unreadable"].clone(),
            told["listed"].clone(),
        );
        assert_eq!(found, expected, "{sink}: {told}");
    }

    // So little that every sink keeps up on any machine: a place of the stream is reached when all before it is written.
    let writers = Work::start_at(&database, random.below(1_000), 1.0).await;
    for _ in 0..3 {
        let (code, report) = reconcile(&setup, &mut pipeline, &[]).await;
        assert_eq!(told(&report), BTreeSet::new(), "{report:#}");
        // A row that changed whenever it was read is no difference, and no proof of the contrary.
        assert!(matches!(code, Some(0 | 1)), "{code:?} {report:#}");
    }

    // Behind its back. The ledger is only added to, so what is ruined stays so.
    let mut expected = BTreeSet::new();
    let mut expect = |sink: &str, kind: &str, key: String| {
        expected.insert((sink.to_owned(), kind.to_owned(), key));
    };
    for (at, id) in (0..60).map(|at| (at, 1 + 97 * at)) {
        let key = format!("{name}:ledger:{id}");
        let hash = format!("{name}:h:ledger:{id}");
        let words: &[&str] = match at % 4 {
            0 => &["DEL", &key],
            1 => &["SET", &key, r#"{"id":"ruined"}"#],
            2 => &["DEL", &hash],
            _ => &["HSET", &hash, "id", "ruined"],
        };
        redis.command(words).await.expect("Redis answers");
        match at % 4 {
            0 => expect("cache", "missing", key),
            1 => expect("cache", "different", key),
            2 => expect("hashes", "missing", hash),
            _ => expect("hashes", "different", hash),
        }
    }
    for extra in ["900001", "no number", "1:2"] {
        let key = format!("{name}:ledger:{extra}");
        redis
            .command(&["SET", &key, "{}"])
            .await
            .expect("Redis answers");
        expect("cache", "extra", key);
        let hash = format!("{name}:h:ledger:{extra}");
        redis
            .command(&["HSET", &hash, "id", "1"])
            .await
            .expect("Redis answers");
        expect("hashes", "extra", hash);
    }
    let sent = async |method: &str, what: &str, id: u64, body: Value| {
        let path = format!("/{name}-ledger/{what}/{id}");
        let (status, answer) = opensearch
            .request(method, &path, &body.to_string())
            .await
            .expect("an answer");
        assert!((200..300).contains(&status), "{answer}");
    };
    for id in [11, 12, 13] {
        sent("DELETE", "_doc", id, Value::Null).await;
        expect("search", "missing", format!("{name}-ledger/{id}"));
    }
    for id in [21, 22] {
        let script = "ctx._source.remove('note'); ctx._source.writer = 77";
        sent("POST", "_update", id, json!({ "script": script })).await;
        expect("search", "different", format!("{name}-ledger/{id}"));
    }
    sent("PUT", "_doc", 900_001, json!({"id": 900_001})).await;
    expect("search", "extra", format!("{name}-ledger/900001"));

    let (code, report) = reconcile(&setup, &mut pipeline, &["--table", "ledger"]).await;
    assert_eq!(told(&report), expected, "{report:#}");
    assert_eq!(code, Some(3));
    let text = report.to_string();
    assert!(text.contains(r#""columns":["note","writer"]"#), "{text}");

    // What was told is mended, still under load. A key that no row can have is left to a person.
    let foreign = |key: &str| key.ends_with(":1:2");
    let (code, report) = reconcile(&setup, &mut pipeline, &["--table", "ledger", "--repair"]).await;
    assert_eq!(told(&report), expected, "{report:#}");
    assert_eq!(code, Some(3), "some are left");
    let audit = std::fs::read_to_string(setup.state().join("repairs.jsonl")).expect("a record");
    let at_stage = |stage: &str| -> BTreeSet<(String, String, String)> {
        let lines = audit
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let of_stage =
            lines.filter(|line: &Value| line["stage"] == stage && line["by"].is_string());
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        of_stage
            .map(|line| {
                (
                    text(&line["sink"]),
                    text(&line["drift"]),
                    text(&line["held_as"]),
                )
            })
            .collect()
    };
    expected.retain(|(_, _, key)| !foreign(key));
    assert_eq!(at_stage("planned"), expected);
    assert_eq!(at_stage("mended"), expected);
    let (_, report) = reconcile(&setup, &mut pipeline, &["--table", "ledger"]).await;
    let left = told(&report);
    assert!(
        left.len() == 2 && left.iter().all(|(_, _, key)| foreign(key)),
        "{report:#}"
    );
    for (_, _, key) in left {
        redis.command(&["DEL", &key]).await.expect("Redis answers");
    }
    writers.stop().await;
    caught_up(&mut pipeline, &database).await;
    equal(&setup, &mut pipeline, &[]).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
}

/// Keys of several columns, with everything in them that could be special, and of types that have more than one spelling.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_any_type_are_found_again() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsOpenSearch);
    let (postgres, redis, opensearch) =
        tokio::join!(Postgres::shared(17), Redis::shared(), OpenSearch::shared());
    let database = postgres.database("shop").await;
    database
        .execute(
            r"CREATE TYPE state AS ENUM ('new', 'it''s paid');
            CREATE TABLE pairs (a text, b int, note text, PRIMARY KEY (b, a));
            INSERT INTO pairs SELECT k || n, n, 'x' FROM generate_series(1, 40) n,
                unnest(ARRAY['a:b', '50%', '{c}', 'back\slash', 'quo''te', 'ü ', '%3A', 'tab' || chr(9)]) k;
            CREATE TABLE moments (at timestamptz, amount numeric, kind state, PRIMARY KEY (at, amount, kind));
            INSERT INTO moments SELECT timestamptz '2026-01-01 00:00:00.5+02' + n * interval '1 hour', n::numeric / 4, 'it''s paid'
                FROM generate_series(1, 300) n;
            CREATE TABLE ids (id uuid PRIMARY KEY, n bytea);
            INSERT INTO ids SELECT md5(n::text)::uuid, decode(md5(n::text), 'hex') FROM generate_series(1, 300) n",
        )
        .await;
    let name = unique("keys");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["pairs", "moments", "ids"])
            + &cache(redis.url(), &name)
            + &search(opensearch.url(), &name)
            + &index(folder)
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    let report = equal(&setup, &mut pipeline, &[]).await;
    for report in report["reports"].as_array().expect("reports") {
        let rows = report["rows"].as_u64().expect("a number");
        assert!(rows >= 300, "{report}");
        for sink in ["cache", "search", "index"] {
            assert_eq!(report["sinks"][sink]["compared"], rows, "{report}");
        }
    }

    // The first is gone, the second is another one, and one is too many: in each table.
    let mut ruined = 0;
    for table in ["pairs", "moments", "ids"] {
        let found = redis.command(&["KEYS", &format!("{name}:{table}:*")]).await;
        let Reply::List(keys) = found.expect("Redis answers") else {
            panic!("no list");
        };
        let text = |at: usize| match &keys[at] {
            Reply::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        let extra = text(2) + "9";
        let ruin: [&[&str]; 3] = [
            &["DEL", &text(0)],
            &["SET", &text(1), "{}"],
            &["SET", &extra, "{}"],
        ];
        for words in ruin {
            redis.command(words).await.expect("Redis answers");
            ruined += 1;
        }
    }
    let (code, report) = reconcile(&setup, &mut pipeline, &[]).await;
    assert_eq!((code, told(&report).len()), (Some(3), ruined), "{report:#}");
    let (_, report) = reconcile(
        &setup,
        &mut pipeline,
        &["--table", "pairs", "--where", "b > 10"],
    )
    .await;
    let sink = &report["reports"][0]["sinks"]["cache"];
    assert_eq!(
        (&sink["compared"], &sink["listed"]),
        (&json!(240), &json!(false)),
        "{report:#}"
    );
    let (code, report) = reconcile(
        &setup,
        &mut pipeline,
        &["--table", "pairs", "--where", "no SQL"],
    )
    .await;
    assert_eq!(code, Some(1));
    assert!(
        report["reports"][0]["problem"]
            .to_string()
            .contains("where"),
        "{report:#}"
    );
    let (code, report) = reconcile(&setup, &mut pipeline, &["--repair", "--sink", "cache"]).await;
    assert_eq!((code, told(&report).len()), (Some(0), ruined), "{report:#}");
    equal(&setup, &mut pipeline, &[]).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_compares_and_mends_by_itself() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (postgres, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = postgres.database("shop").await;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t SELECT g, 'x' FROM generate_series(1, 50) g;
             CREATE TABLE without_key (note text); ALTER TABLE without_key REPLICA IDENTITY FULL",
        )
        .await;
    let name = unique("itself");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t", "without_key"])
            + &cache(redis.url(), &name).replace("[\"shop\"]", "[\"shop:public.t\"]")
            + &files(folder)
            + "[reconcile]\nevery = \"1s\"\nrepair = true\n"
    });
    let mut pipeline = setup.start_ready().await;
    let metric = async |pipeline: &mut Pipeline, line: &str| {
        pipeline
            .until(PATIENCE, line.to_owned(), async |pipeline| {
                let (_, text) = pipeline
                    .get("/metrics")
                    .await
                    .map_err(|error| error.to_string())?;
                let found = text.lines().find(|found| found.starts_with(line));
                found.map(str::to_owned).ok_or(text)
            })
            .await
    };
    let labels = "{sink=\"cache\",source=\"shop\",table=\"public.t\"}";
    let verified = format!("lockstep_reconcile_verified_timestamp_seconds{labels} ");
    metric(&mut pipeline, &verified).await;
    for words in [
        ["DEL", "3"].as_slice(),
        &["SET", "4", "{}"],
        &["SET", "99", "{}"],
    ] {
        let key = format!("{name}:t:{}", words[1]);
        let words: Vec<&str> = [words[0], &key]
            .into_iter()
            .chain(words[2..].iter().copied())
            .collect();
        redis.command(&words).await.expect("Redis answers");
    }
    metric(
        &mut pipeline,
        &format!("lockstep_reconcile_repaired_total{labels} 3"),
    )
    .await;
    metric(
        &mut pipeline,
        &format!("lockstep_reconcile_differing_rows{labels} 0"),
    )
    .await;
    let report = equal(&setup, &mut pipeline, &[]).await;
    let other = &report["reports"][1];
    assert_eq!(other["table"], "public.without_key", "{report:#}");
    assert_eq!(other["sinks"]["files"]["unreadable"], true, "{report:#}");
    assert!(pipeline.terminate(PATIENCE).await.success());

    // Rows that are named, and no others: they prove nothing of the rest.
    setup.change("every = \"1s\"\nrepair = true", "every = \"7d\"");
    let mut pipeline = setup.start_ready().await;
    let proven = metric(&mut pipeline, &verified).await;
    for id in [7, 8] {
        let key = format!("{name}:t:{id}");
        redis
            .command(&["SET", &key, "{}"])
            .await
            .expect("Redis answers");
    }
    let named = ["--table", "t", "--key", "7", "--key", "60"];
    let seven = BTreeSet::from([(
        "cache".to_owned(),
        "different".to_owned(),
        format!("{name}:t:7"),
    )]);
    for (more, expected) in [(None, Some(3)), (Some("--repair"), Some(0))] {
        let arguments: Vec<&str> = named.into_iter().chain(more).collect();
        let (code, report) = reconcile(&setup, &mut pipeline, &arguments).await;
        assert_eq!(
            (code, told(&report)),
            (expected, seven.clone()),
            "{report:#}"
        );
        assert_eq!(report["reports"][0]["rows"], 2, "{report:#}");
    }
    let url = pipeline.url().await;
    let file = setup.file().display().to_string();
    for (more, words) in [
        (
            ["--table", "t", "--key", r#"["7","8"]"#].as_slice(),
            "has the key columns id",
        ),
        (&["--key", "7"], "--table"),
    ] {
        let arguments = [&["reconcile", &file, "--url", &url], more].concat();
        let ended = setup.lockstep_with(&arguments, &[]).await;
        assert!(
            ended.code() != Some(0) && ended.stderr.contains(words),
            "{ended:?}"
        );
    }
    assert_eq!(metric(&mut pipeline, &verified).await, proven);
    let (_, report) = reconcile(&setup, &mut pipeline, &["--repair"]).await;
    assert_eq!(told(&report).len(), 1, "{report:#}");
    assert!(pipeline.terminate(PATIENCE).await.success());

    // What has been found is known after a restart, too.
    let mut pipeline = setup.start_ready().await;
    metric(&mut pipeline, &verified).await;
    let (_, text) = pipeline.get("/api/reconcile").await.expect("an answer");
    assert!(text.contains("\"repaired\":3"), "{text}");
    assert!(pipeline.terminate(PATIENCE).await.success());
}

/// What has been compared is not compared again because of a restart, until there is something new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_stands_over_a_restart_until_there_is_something_new() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (postgres, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = postgres.database("shop").await;
    let rows = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 50)";
    database.execute(rows).await;
    let name = unique("stands");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"])
            + &cache(redis.url(), &name)
            + "[reconcile]\nevery = \"7d\"\n"
    });
    // Those that have ended, by their numbers, and the tables of each.
    let ended = async |pipeline: &mut Pipeline, wanted: usize| {
        let awaited = format!("{wanted} comparisons");
        pipeline
            .until(PATIENCE, awaited, async |pipeline| {
                let (_, text) = pipeline
                    .get("/api/reconcile")
                    .await
                    .map_err(|error| error.to_string())?;
                let all: Vec<Value> = serde_json::from_str(&text).expect("JSON");
                let is_done = all.iter().all(|one| one["done"] == true);
                (is_done && all.len() == wanted).then_some(all).ok_or(text)
            })
            .await
    };
    let mut pipeline = setup.start_ready().await;
    ended(&mut pipeline, 1).await;
    assert!(pipeline.terminate(PATIENCE).await.success());

    let mut pipeline = setup.start_ready().await;
    let decided = "all was compared before the start";
    let look = async |pipeline: &mut Pipeline| {
        let log = pipeline.log();
        log.contains(decided).then_some(()).ok_or(log)
    };
    pipeline.until(PATIENCE, decided.to_owned(), look).await;
    ended(&mut pipeline, 1).await;
    assert!(pipeline.terminate(PATIENCE).await.success());

    let table = "CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u SELECT generate_series(1, 50)";
    database.execute(table).await;
    setup.change(
        "tables = [\"public.t\"]",
        "tables = [\"public.t\", \"public.u\"]",
    );
    let mut pipeline = setup.start_ready().await;
    let all = ended(&mut pipeline, 2).await;
    assert_eq!(all[1]["id"], 2, "{all:#?}");
    assert_eq!(all[1]["tables"], 2, "{all:#?}");
    assert!(pipeline.terminate(PATIENCE).await.success());
}

/// The first comparison finds sinks that take their time to open, and waits for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_begins_with_the_pipeline_waits_for_sinks_to_be_open() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (postgres, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = postgres.database("shop").await;
    let rows = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 50)";
    database.execute(rows).await;
    let proxy = Proxy::start(redis.address()).await;
    proxy.latency(Duration::from_millis(500));
    let name = unique("begins");
    let setup = Setup::new(&name, |_| {
        let slow = format!("redis://{}", proxy.address());
        source(database.url(), &name, &["t"])
            + &cache(&slow, &name)
            + "[reconcile]\nevery = \"7d\"\n"
    });
    let mut pipeline = setup.start();
    pipeline
        .until(PATIENCE, "the comparison to wait", async |pipeline| {
            let log = pipeline.log();
            let waits = log.contains("sinks.cache is being opened");
            waits.then_some(()).ok_or(log)
        })
        .await;
    proxy.latency(Duration::ZERO);
    let first = pipeline
        .until(PATIENCE, "a comparison", async |pipeline| {
            let answer = pipeline.get("/api/reconcile").await;
            let (_, text) = answer.map_err(|error| error.to_string())?;
            match serde_json::from_str::<Value>(&text) {
                Ok(runs) if runs[0]["done"] == true => Ok(runs[0].clone()),
                _ => Err(text),
            }
        })
        .await;
    assert_eq!(told(&first), BTreeSet::new());
    assert_eq!(
        first["reports"][0]["sinks"]["cache"]["compared"], 50,
        "{first:#}"
    );
    assert!(pipeline.terminate(PATIENCE).await.success());
}

/// Where transforms do not let it be told what a sink should hold, it is not told; nothing is taken for another table's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_routes_and_filters_nothing_is_guessed() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (postgres, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = postgres.database("shop").await;
    database
        .execute(
            "CREATE TABLE o_1 (id int PRIMARY KEY, region text); CREATE TABLE o_2 (LIKE o_1 INCLUDING ALL);
             CREATE TABLE spread (LIKE o_1 INCLUDING ALL);
             ALTER TABLE spread REPLICA IDENTITY FULL;
             INSERT INTO o_1 SELECT g, 'eu' FROM generate_series(1, 20) g;
             INSERT INTO o_2 SELECT g, 'us' FROM generate_series(101, 120) g;
             INSERT INTO spread SELECT g, CASE g % 2 WHEN 0 THEN 'eu' ELSE 'us' END FROM generate_series(1, 20) g",
        )
        .await;
    let name = unique("guess");
    let setup = Setup::new(&name, |folder| {
        let sink = |sink: &str, input: &str| {
            cache(redis.url(), &format!("{name}:{sink}"))
                .replace("sinks.cache", &format!("sinks.{sink}"))
                .replace("\"shop\"", &format!("\"{input}\""))
        };
        source(database.url(), &name, &["o_1", "o_2", "spread"])
            + "[transforms.one]\ntype = \"route\"\ninputs = [\"shop:public.o_1\", \"shop:public.o_2\"]\nmatch = 'public\\.o_.'\ntable = \"orders\"\n"
            + "[transforms.rows]\ntype = \"route\"\ninputs = [\"shop:public.spread\"]\ntable = \"spread_{region}\"\n"
            + "[transforms.streamed]\ntype = \"filter\"\ninputs = [\"shop:public.o_1\"]\nops = [\"insert\", \"update\", \"delete\"]\n"
            + &sink("one", "one")
            + &sink("rows", "rows")
            + &sink("streamed", "streamed")
            + &index(folder).replace("\"shop\"", "\"one\"")
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    let report = equal(&setup, &mut pipeline, &["--repair"]).await;
    let of =
        |table: usize, sink: &str, key: &str| report["reports"][table]["sinks"][sink][key].clone();
    for (table, sink, compared, listed, unreadable) in [
        (0, "one", 20, false, false),
        (0, "index", 20, false, false),
        (0, "streamed", 0, false, true),
        (1, "one", 20, false, false),
        (2, "rows", 20, false, false),
    ] {
        let found = (
            of(table, sink, "compared"),
            of(table, sink, "listed"),
            of(table, sink, "unreadable"),
        );
        assert_eq!(
            found,
            (json!(compared), json!(listed), json!(unreadable)),
            "{sink} {report:#}"
        );
    }
    // What there is is compared all the same.
    for key in ["one:orders:3", "one:orders:103", "rows:spread_eu:4"] {
        redis
            .command(&["DEL", &format!("{name}:{key}")])
            .await
            .expect("Redis answers");
    }
    let (code, report) = reconcile(&setup, &mut pipeline, &["--repair"]).await;
    assert_eq!((code, told(&report).len()), (Some(0), 3), "{report:#}");
    equal(&setup, &mut pipeline, &[]).await;
    // The fences of comparisons hold no position back.
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
}

/// What the running pipeline says of the comparison that was begun last.
async fn latest(pipeline: &mut Pipeline) -> Result<Value, String> {
    let answer = pipeline.get("/api/reconcile").await;
    let (_, text) = answer.map_err(|error| error.to_string())?;
    let all: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let last = all.as_array().and_then(|all| all.last()).cloned();
    last.ok_or(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_that_is_killed_goes_on_where_it_was() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (postgres, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = postgres.database("shop").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 90000) g")
        .await;
    let name = unique("goeson");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"])
            + "snapshot_rate = \"1MiB\"\n"
            + &cache(redis.url(), &name)
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    let mut ruined = BTreeSet::new();
    for (at, id) in (0..90).map(|at| (at, 1 + 997 * at)) {
        let key = format!("{name}:t:{id}");
        let extra = format!("{name}:t:{}", 100_000 + at);
        let (kind, words): (_, &[&str]) = match at % 3 {
            0 => ("missing", &["DEL", &key]),
            1 => ("different", &["SET", &key, "{}"]),
            _ => ("extra", &["SET", &extra, "{}"]),
        };
        redis.command(words).await.expect("Redis answers");
        ruined.insert(("cache".to_owned(), kind.to_owned(), words[1].to_owned()));
    }
    let url = pipeline.url().await;
    let file = setup.file().display().to_string();
    let asking = setup.spawn(&["reconcile", &file, "--repair", "--url", &url], &[]);
    for least in [20_000, 40_000, 80_000] {
        let far_enough = async |pipeline: &mut Pipeline| {
            let one = latest(pipeline).await?;
            assert_ne!(one["done"], true, "too early: {one}");
            let rows = one["reports"][0]["rows"].as_u64().unwrap_or(0);
            if rows >= least {
                Ok(())
            } else {
                Err(one.to_string())
            }
        };
        pipeline
            .until(PATIENCE, format!("{least} rows"), far_enough)
            .await;
        pipeline.kill9();
        pipeline = setup.start();
    }
    let report = pipeline
        .until(PATIENCE, "the end", async |pipeline| {
            let one = latest(pipeline).await?;
            if one["done"] == true {
                Ok(one)
            } else {
                Err(one.to_string())
            }
        })
        .await;
    drop(asking);
    assert!(pipeline.log().contains("goes on where it was interrupted"));
    assert_eq!(report["id"], 1, "{report}");
    let sink = &report["reports"][0]["sinks"]["cache"];
    assert_eq!(
        (&report["reports"][0]["rows"], &sink["compared"]),
        (&json!(90_000), &json!(90_000)),
        "{report}"
    );
    assert_eq!(told(&report), ruined);
    assert_eq!(sink["repaired"], 90, "{report}");
    let audit = std::fs::read_to_string(setup.state().join("repairs.jsonl")).expect("a record");
    for stage in ["planned", "mended"] {
        let lines = audit
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of_stage = lines.filter(|line| line["stage"] == stage);
        let keys: BTreeSet<String> = of_stage.map(|line| line["held_as"].to_string()).collect();
        assert_eq!(keys.len(), 90, "{stage}: {audit}");
    }
    equal(&setup, &mut pipeline, &[]).await;

    // A part of the rows, others each time.
    let mut sizes = BTreeSet::new();
    for _ in 0..2 {
        let (code, report) = reconcile(&setup, &mut pipeline, &["--sample", "1%"]).await;
        let rows = report["reports"][0]["rows"].as_u64().expect("a number");
        assert!(code == Some(0) && (600..1_200).contains(&rows), "{report}");
        sizes.insert(rows);
    }
    assert!(pipeline.terminate(PATIENCE).await.success());

    // Without a process that runs the pipeline, wherever one is said to be.
    let elsewhere = [("LOCKSTEP_ADMIN_URL", "http://127.0.0.1:1")];
    let key = format!("{name}:t:17");
    redis.command(&["DEL", &key]).await.expect("Redis answers");
    let once = ["reconcile", &file, "--once", "--format", "json"];
    for (more, expected) in [
        (None, Some(3)),
        (Some("--repair"), Some(0)),
        (None, Some(0)),
    ] {
        let arguments: Vec<&str> = once.into_iter().chain(more).collect();
        let ended = setup.lockstep_with(&arguments, &elsewhere).await;
        assert_eq!(ended.code(), expected, "{more:?} {ended:?}");
    }
}
