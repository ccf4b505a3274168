//! Rows that real servers refuse for good: the line goes on, the letter is listed with its reason, the cause is repaired, a
//! replay delivers, and the copies equal the source.

use lockstep::demo::compare::Rules;
use lockstep_e2e::child::{Ended, PATIENCE, Pipeline};
use lockstep_e2e::copies::Compare;
use lockstep_e2e::{Setup, topics};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::opensearch::OpenSearch;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::{Redis, Reply};
use lockstep_kit::{require, require_own, unique};
use serde_json::Value;

use crate::support::{cache, end_of_log, events, source};

async fn table(rows: u32) -> Database {
    let database = Postgres::shared(17).await.database("shop").await;
    database
        .execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t SELECT n, 'note ' || n FROM generate_series(1, {rows}) n"
        ))
        .await;
    database
}

async fn assert_equal(setup: &Setup, url: &str) {
    let compare = Compare {
        source: "shop",
        url,
        publication: "lockstep",
        tables: vec!["public.t".into()],
        rules: Rules::default(),
    };
    compare.assert_equal(setup).await;
}

/// `lockstep dead-letters`, of the pipeline when it runs.
async fn letters(setup: &Setup, running: Option<&mut Pipeline>, words: &[&str]) -> Ended {
    let file = setup.file().display().to_string();
    let (verb, rest) = words.split_first().expect("a verb");
    let mut all = vec!["dead-letters", verb, &*file];
    all.extend(rest);
    let url;
    if let Some(pipeline) = running {
        url = pipeline.url().await;
        all.extend(["--url", &*url]);
    }
    setup.lockstep_with(&all, &[]).await
}

/// What `list` tells as JSON: reason and key of each.
pub async fn list(setup: &Setup, running: Option<&mut Pipeline>) -> Vec<(String, String)> {
    let ended = letters(setup, running, &["list", "--format", "json"]).await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let heads: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let heads = heads.as_array().expect("a list").iter();
    heads
        .map(|head| (text(&head["reason"]), text(&head["keys"][0])))
        .collect()
}

fn of(reason: &str, keys: &[&str]) -> Vec<(String, String)> {
    keys.iter()
        .map(|key| (reason.to_owned(), (*key).to_owned()))
        .collect()
}

async fn caught_up(pipeline: &mut Pipeline, database: &Database) {
    pipeline
        .wait_visible("shop", &end_of_log(database).await, PATIENCE)
        .await;
}

#[tokio::test]
async fn a_key_of_another_type_in_redis_is_put_aside_and_replayed_by_the_running_pipeline() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (database, redis) = tokio::join!(table(10), Redis::shared());
    database
        .execute("ALTER TABLE t ADD big text; ALTER TABLE t ALTER big SET STORAGE EXTERNAL; UPDATE t SET big = repeat('x', 9000)")
        .await;
    let name = unique("lettertype");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"]) + &cache(redis.url(), &name) + "value = \"hash\"\n"
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    let (key, aside) = (format!("{name}:t:5"), format!("{name}-aside"));
    let ask = async |words: &[&str]| redis.command(words).await.expect("an answer");
    assert_eq!(
        ask(&["RENAME", &key, &aside]).await,
        Reply::Text("OK".into())
    );
    assert_eq!(ask(&["RPUSH", &key, "not ours"]).await, Reply::Integer(1));
    database
        .execute("UPDATE t SET note = 'new' WHERE id IN (4, 5, 6); DELETE FROM t WHERE id = 1")
        .await;
    caught_up(&mut pipeline, &database).await;
    assert_eq!(
        list(&setup, Some(&mut pipeline)).await,
        of("wrong_type", &["5"])
    );
    pipeline.wait_ready().await;
    assert_eq!(pipeline.status().await["sinks"]["cache"]["dead_letters"], 1);
    let other = ask(&["HGET", &format!("{name}:t:6"), "note"]).await;
    assert_eq!(other, Reply::Text("new".into()));

    // The letter outlives the process, and what comes again after a kill is not kept again.
    pipeline.kill9();
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    let shown = letters(&setup, Some(&mut pipeline), &["show", "1"]).await;
    for word in [
        "WRONGTYPE",
        &key,
        "\"note\": \"new\"",
        "\"unchanged\": true",
    ] {
        assert!(shown.stdout.contains(word), "{word} in {shown:?}");
    }
    let again = letters(&setup, Some(&mut pipeline), &["replay", "--all"]).await;
    assert_eq!(again.code(), Some(1), "{again:?}");
    assert!(again.stdout.contains("1 refused again"), "{again:?}");

    assert_eq!(
        ask(&["RENAME", &aside, &key]).await,
        Reply::Text("OK".into())
    );
    let replayed = letters(&setup, Some(&mut pipeline), &["replay", "1"]).await;
    assert_eq!(replayed.code(), Some(0), "{replayed:?}");
    assert!(
        replayed.stdout.contains("sinks.cache: 1 delivered"),
        "{replayed:?}"
    );
    assert_eq!(list(&setup, Some(&mut pipeline)).await, []);
    assert!(pipeline.terminate(PATIENCE).await.success());
    assert_equal(&setup, database.url()).await;
    let missing = letters(&setup, None, &["show", "1"]).await;
    assert_eq!(missing.code(), Some(2), "{missing:?}");
}

#[tokio::test]
async fn records_that_are_too_large_for_kafka_are_put_aside_and_replayed_with_the_pipeline_stopped()
{
    require!(NeedsPostgres(17), NeedsKafka);
    let (database, kafka) = tokio::join!(table(10), Kafka::shared());
    let name = unique("letterlarge");
    let small = "properties = { \"message.max.bytes\" = 100000 }";
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"]) + &events(kafka.bootstrap(), &name, small)
    });
    let mut pipeline = setup.start_ready().await;
    database
        .execute(
            "INSERT INTO t VALUES (11, 'eleven'), (12, repeat('x', 200000)), (13, 'thirteen'), (14, repeat('y', 300000))",
        )
        .await;
    caught_up(&mut pipeline, &database).await;
    pipeline.kill9();
    let mut pipeline = setup.start_ready().await;
    database
        .execute("INSERT INTO t VALUES (15, 'fifteen')")
        .await;
    caught_up(&mut pipeline, &database).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    assert_eq!(list(&setup, None).await, of("too_large", &["12", "14"]));
    let again = letters(&setup, None, &["replay", "--sink", "events"]).await;
    assert_eq!(again.code(), Some(1), "{again:?}");
    assert!(again.stdout.contains("2 refused again"), "{again:?}");

    setup.change(small, "properties = { \"message.max.bytes\" = 900000 }");
    let replayed = letters(&setup, None, &["replay", "--sink", "events"]).await;
    assert_eq!(replayed.code(), Some(0), "{replayed:?}");
    assert_eq!(list(&setup, None).await, []);
    // The replay has moved no progress: what comes now is written, and nothing else.
    let mut pipeline = setup.start_ready().await;
    database
        .execute("INSERT INTO t VALUES (16, 'sixteen')")
        .await;
    caught_up(&mut pipeline, &database).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    assert_eq!(
        created(kafka, &name).await,
        [11, 13, 15, 12, 14, 16],
        "each once"
    );
}

async fn created(kafka: &Kafka, name: &str) -> Vec<i64> {
    let records = topics::read(kafka.bootstrap(), &format!("{name}.t")).await;
    let created = records.iter().filter(|record| record.op() == "c");
    created
        .map(|record| record.key["id"].as_i64().expect("a number"))
        .collect()
}

#[tokio::test]
async fn of_a_request_that_the_broker_refuses_only_the_large_record_is_put_aside() {
    require!(NeedsPostgres(17));
    require_own!(NeedsKafka);
    let (database, kafka) = tokio::join!(
        table(1),
        Kafka::start(KafkaOptions {
            settings: vec![("message.max.bytes".into(), "200000".into())],
            ..KafkaOptions::default()
        })
    );
    let name = unique("letterbroker");
    let setup = Setup::new(&name, |_| {
        // What the broker measures is the compressed request.
        let plain = "properties = { \"compression.type\" = \"none\" }";
        source(database.url(), &name, &["t"]) + &events(kafka.bootstrap(), &name, plain)
    });
    let mut pipeline = setup.start_ready().await;
    database
        .execute("INSERT INTO t SELECT n, CASE n WHEN 25 THEN repeat('x', 300000) ELSE 'small' END FROM generate_series(11, 40) n")
        .await;
    caught_up(&mut pipeline, &database).await;
    assert_eq!(
        list(&setup, Some(&mut pipeline)).await,
        of("too_large", &["25"])
    );
    assert!(pipeline.terminate(PATIENCE).await.success());
    let expected: Vec<i64> = (11..=40).filter(|id| *id != 25).collect();
    assert_eq!(
        created(&kafka, &name).await,
        expected,
        "each once, in order"
    );
}

#[tokio::test]
async fn letters_go_to_a_topic_when_asked() {
    require!(NeedsPostgres(17), NeedsKafka, NeedsRedis);
    let (database, kafka, redis) = tokio::join!(table(3), Kafka::shared(), Redis::shared());
    let name = unique("lettertopic");
    database.execute("ALTER TABLE t ADD big text; ALTER TABLE t ALTER big SET STORAGE EXTERNAL; UPDATE t SET big = repeat('x', 9000)").await;
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"])
            + &cache(redis.url(), &name)
            + &format!(
                "value = \"hash\"\n[dead_letters]\ntype = \"kafka\"\nbrokers = \"{}\"\ntopic = \"{name}.letters\"\n",
                kafka.bootstrap()
            )
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    let key = format!("{name}:t:2");
    redis.command(&["DEL", &key]).await.expect("an answer");
    redis
        .command(&["RPUSH", &key, "not ours"])
        .await
        .expect("an answer");
    database.execute("UPDATE t SET note = 'new'").await;
    caught_up(&mut pipeline, &database).await;
    let asked = letters(&setup, Some(&mut pipeline), &["list"]).await;
    assert_eq!(asked.code(), Some(2), "{asked:?}");
    assert!(asked.error().contains("go to a queue"), "{asked:?}");
    assert!(pipeline.terminate(PATIENCE).await.success());
    let records = topics::read(kafka.bootstrap(), &format!("{name}.letters")).await;
    let [record] = &records[..] else {
        panic!("{records:?}");
    };
    let text = format!("{record:?}");
    for word in ["sinks.cache/public.t/", "wrong_type", "new"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[tokio::test]
async fn a_row_that_does_not_fit_the_mapping_is_put_aside_and_replayed_after_its_repair() {
    require!(NeedsPostgres(17), NeedsOpenSearch);
    let (database, search) = tokio::join!(table(0), OpenSearch::shared());
    let name = unique("lettermapping");
    let index = format!("{name}-t");
    let ask = async |method: &str, path: &str, body: &str| {
        let (status, answer) = search.request(method, path, body).await.expect("an answer");
        assert_eq!(status, 200, "{answer}");
    };
    let strict = r#"{"mappings":{"properties":{"note":{"type":"keyword"},"id":{"type":"byte"}}}}"#;
    ask("PUT", &format!("/{index}"), strict).await;
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"])
            + &format!(
                "[sinks.search]\ntype = \"opensearch\"\ninputs = [\"shop\"]\nurl = \"{}\"\nindex = \"{name}-{{table}}\"\nlater = \"wait\"\n",
                search.url()
            )
    });
    let mut pipeline = setup.start_ready().await;
    database
        .execute("INSERT INTO t VALUES (1, 'one'), (1000, 'too much for a byte'), (2000, 'this too'), (2, 'two')")
        .await;
    caught_up(&mut pipeline, &database).await;
    assert_eq!(
        list(&setup, Some(&mut pipeline)).await,
        of("mapping", &["1000", "2000"])
    );
    // Later changes wait behind it, also after a kill, and the others go on.
    pipeline.kill9();
    let mut pipeline = setup.start_ready().await;
    database
        .execute("UPDATE t SET note = 'later' WHERE id IN (1, 1000); DELETE FROM t WHERE id = 2000; DELETE FROM t WHERE id = 2")
        .await;
    caught_up(&mut pipeline, &database).await;
    let kept = list(&setup, Some(&mut pipeline)).await;
    assert_eq!(kept.len(), 4, "{kept:?}");
    assert!(
        kept[2..].iter().all(|(reason, _)| reason == "behind"),
        "{kept:?}"
    );

    ask("DELETE", &format!("/{index}"), "").await;
    let wide = strict.replace("byte", "integer");
    ask("PUT", &format!("/{index}"), &wide).await;
    database
        .execute("UPDATE t SET note = 'last' WHERE id = 1")
        .await;
    let replayed = letters(&setup, Some(&mut pipeline), &["replay", "--all"]).await;
    assert_eq!(replayed.code(), Some(0), "{replayed:?}");
    assert!(replayed.stdout.contains("4 delivered"), "{replayed:?}");
    caught_up(&mut pipeline, &database).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    assert_equal(&setup, database.url()).await;
}

/// A database in `SQL_ASCII` holds any bytes: those that are no text are put aside, from the copy and from the stream.
#[tokio::test]
async fn bytes_that_are_no_text_are_put_aside() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (postgres, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = postgres.database("bytes").await;
    let own = database.name();
    postgres.execute(&format!("DROP DATABASE \"{own}\"")).await;
    postgres
        .execute(&format!(
            "CREATE DATABASE \"{own}\" TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
        ))
        .await;
    database
        .execute(
            r"CREATE TABLE t (id int PRIMARY KEY, note text);
              INSERT INTO t VALUES (1, 'plain'), (2, E'\xff\xfe'), (3, E'\xc3\xbc')",
        )
        .await;
    let name = unique("bytes");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"]) + &cache(redis.url(), &name)
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    database
        .execute(r"INSERT INTO t VALUES (4, E'\x80'), (5, 'after'); UPDATE t SET note = E'\xfe' WHERE id = 1")
        .await;
    caught_up(&mut pipeline, &database).await;
    let mut letters = list(&setup, Some(&mut pipeline)).await;
    letters.sort();
    assert_eq!(letters, of("encoding", &["1", "2", "4"]));
    let ask = async |id: u32| {
        let key = format!("{name}:t:{id}");
        redis.command(&["GET", &key]).await.expect("an answer")
    };
    assert_eq!(ask(3).await, Reply::Text(r#"{"id":3,"note":"ü"}"#.into()));
    assert_eq!(
        ask(5).await,
        Reply::Text(r#"{"id":5,"note":"after"}"#.into())
    );
    // A snapshot reads the row again, and once it is text the letter is settled.
    database
        .execute("UPDATE t SET note = 'text' WHERE id IN (1, 2, 4)")
        .await;
    caught_up(&mut pipeline, &database).await;
    for id in [1, 2, 4] {
        let expected = format!(r#"{{"id":{id},"note":"text"}}"#);
        assert_eq!(ask(id).await, Reply::Text(expected));
    }
    assert!(pipeline.terminate(PATIENCE).await.success());
}
