//! Read-committed consumers see each change once, wherever the sink ends.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lockstep_core::ErrorKind;
use lockstep_core::position::{Lsn, Position};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::registry::Registry;
use lockstep_kit::{Component, require, unique, wait_for};
use lockstep_sink_kafka::KafkaConfig;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::replay::{End, History};
use crate::support::{DEADLINE, Feed, Random, config, insert, open, read};

/// Small transactions and batches larger than one, so that cuts fall everywhere.
fn small(bootstrap: &str, prefix: &str) -> KafkaConfig {
    let more =
        serde_json::json!({"commit_records": 250, "commit_interval": "20ms", "format": "flat"});
    config(bootstrap, prefix, &more)
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_random_cuts_lose_and_double_nothing() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("cuts");
    let config = small(kafka.bootstrap(), &prefix);
    let mut random = Random::new();
    let history = History::new(Feed::new(&prefix), 1500, &mut random);
    let mut confirmed = None;
    let mut dropped = 0;
    for cut in 0..50 {
        let after = Duration::from_micros(random.below(30_000));
        match history
            .run(&config, &prefix, &mut confirmed, Some(after))
            .await
        {
            End::Dropped => dropped += 1,
            End::Complete => println!("complete after {cut} cuts"),
            End::Failed(error) => panic!("cut {cut}: {error}"),
        }
    }
    assert!(dropped > 25, "only {dropped} cuts hit the sink at work");
    let end = history.run(&config, &prefix, &mut confirmed, None).await;
    assert!(matches!(end, End::Complete), "{end:?}");
    history.check(&read(kafka.bootstrap(), &history.feed.topic()).await);
    println!("{} changes, {dropped} cuts", history.changes());
}

const CHILD: &str = "LOCKSTEP_TEST_KAFKA_CHILD";

/// The process that is killed by the test below; it writes the whole history.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test"]
async fn child() {
    let settings = std::env::var(CHILD).expect("started by the test");
    let mut settings = settings.split(' ');
    let mut next = || settings.next().expect("bootstrap and prefix").to_owned();
    let (bootstrap, prefix) = (next(), next());
    let (config, transactions) = match settings.next() {
        None => (small(&bootstrap, &prefix), 3000),
        Some(registry) => (in_avro(&bootstrap, &prefix, registry), IN_AVRO),
    };
    let history = History::new(Feed::new(&prefix), transactions, &mut Random::fixed(7));
    let end = history.run(&config, &prefix, &mut None, None).await;
    assert!(matches!(end, End::Complete), "{end:?}");
}

fn in_avro(bootstrap: &str, prefix: &str, registry: &str) -> KafkaConfig {
    let more = serde_json::json!({
        "commit_records": 250, "commit_interval": "20ms", "format": "flat",
        "encoding": "avro", "registry": {"url": registry},
    });
    config(bootstrap, prefix, &more)
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_and_doubles_nothing() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("kill");
    kill_9(&prefix, 3000, format!("{} {prefix}", kafka.bootstrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_and_doubles_nothing_in_avro() {
    require!(Component::Kafka, Component::Registry);
    let kafka = Kafka::shared().await;
    let registry = Registry::shared().await;
    let prefix = unique("kill");
    let settings = format!("{} {prefix} {}", kafka.bootstrap(), registry.url());
    kill_9(&prefix, IN_AVRO, settings).await;
}

/// Transactions that are written in Avro: the decoder that reads them back takes its time with each record.
const IN_AVRO: u64 = 500;

async fn kill_9(prefix: &str, transactions: u64, settings: String) {
    let kafka = Kafka::shared().await;
    let mut random = Random::new();
    let start = move || {
        Command::new(std::env::current_exe().expect("this test"))
            .args(["exactly_once::child", "--exact", "--ignored", "--nocapture"])
            .env(CHILD, &settings)
            .stdout(Stdio::null())
            .spawn()
            .expect("starts")
    };
    for _ in 0..10 {
        let mut child = start();
        let after = Instant::now() + Duration::from_millis(300 + random.below(700));
        let ended = loop {
            if let Some(status) = child.try_wait().expect("child") {
                break Some(status);
            }
            if Instant::now() > after {
                break None;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        match ended {
            Some(status) => assert!(status.success(), "{status}"),
            None => child
                .kill()
                .and_then(|()| child.wait())
                .map(drop)
                .expect("killed"),
        }
    }
    let status = tokio::task::spawn_blocking(move || start().wait())
        .await
        .expect("joined")
        .expect("child");
    assert!(status.success(), "the last one writes to the end");
    let history = History::new(Feed::new(prefix), transactions, &mut Random::fixed(7));
    history.check(&read(kafka.bootstrap(), &history.feed.topic()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_is_fenced_and_its_records_stay_unseen() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("zombie");
    let feed = Feed::new(&prefix);
    let config = config(
        kafka.bootstrap(),
        &prefix,
        &serde_json::json!({"format": "flat"}),
    );
    let mut zombie = open(&config, &prefix, &[&feed]).await.expect("opens");
    zombie
        .write(feed.batch(1, &[insert(1, "a")]))
        .await
        .expect("taken")
        .await
        .expect("durable");

    let mut heir = open(&config, &prefix, &[&feed]).await.expect("opens");
    let resume = heir
        .resume(&feed.source)
        .await
        .expect("resume")
        .map(|held| held.upto());
    assert_eq!(
        resume,
        Some(Position {
            commit: Lsn(1),
            ordinal: 1
        })
    );

    let durable = zombie
        .write(feed.batch(2, &[insert(1, "undead")]))
        .await
        .expect("taken");
    let error = durable.await.expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(
        error
            .to_string()
            .contains("another lockstep with the same pipeline and sink name"),
        "{error}"
    );
    let error = zombie
        .write(feed.batch(3, &[insert(1, "undead")]))
        .await
        .err()
        .expect("still fenced");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    let error = zombie.close().await.expect_err("still fenced");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");

    heir.write(feed.batch(2, &[insert(1, "heir")]))
        .await
        .expect("taken")
        .await
        .expect("durable");
    heir.close().await.expect("closes");
    let seen = read(kafka.bootstrap(), &feed.topic()).await;
    let ids: Vec<_> = seen.iter().map(|record| record.id().to_owned()).collect();
    assert_eq!(ids, [feed.id(1, 1), feed.id(2, 1)]);
    assert!(!seen.iter().any(|record| {
        record
            .value
            .as_deref()
            .is_some_and(|value| value.contains("undead"))
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_under_load_loses_and_doubles_nothing() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("takeover");
    let config = small(kafka.bootstrap(), &prefix);
    let history = History::new(Feed::new(&prefix), 2000, &mut Random::new());
    let (mut one, mut two) = (None, None);
    let first = history.run(&config, &prefix, &mut one, None);
    let second = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        history.run(&config, &prefix, &mut two, None).await
    };
    let (first, second) = tokio::join!(first, second);
    // On a busy machine the one that began later may take over earlier: the last to take over wins.
    let mut complete = 0;
    for end in [first, second] {
        match end {
            End::Complete => complete += 1,
            End::Failed(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
            End::Dropped => unreachable!(),
        }
    }
    assert!(complete > 0, "one of them holds the transactional id");
    history.check(&read(kafka.bootstrap(), &history.feed.topic()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn anothers_open_transaction_does_not_hide_our_progress() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("held");
    let feed = Feed::new(&prefix);
    let config = config(kafka.bootstrap(), &prefix, &serde_json::json!({}));
    let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");

    let other: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("transactional.id", format!("{prefix}.other"))
        .create()
        .expect("producer");
    let progress = config.progress_topic.clone();
    let other = tokio::task::spawn_blocking(move || {
        other.init_transactions(DEADLINE).expect("init");
        other.begin_transaction().expect("begin");
        other
            .send(
                BaseRecord::to(&progress)
                    .key("another/sink/x")
                    .payload("{}"),
            )
            .expect("send");
        other.flush(DEADLINE).expect("flush");
        other
    });
    let other = other.await.expect("joined");

    // Ours comes after it; a committed read does not show it while the other is open.
    sink.write(feed.batch(1, &[insert(1, "a")]))
        .await
        .expect("taken")
        .await
        .expect("durable");
    sink.close().await.expect("closes");
    let early =
        tokio::time::timeout(Duration::from_secs(2), open(&config, &prefix, &[&feed])).await;
    assert!(
        early.is_err(),
        "opening must wait until the progress can be seen"
    );
    let aborted = tokio::task::spawn_blocking(move || other.abort_transaction(DEADLINE));
    aborted.await.expect("joined").expect("aborted");
    let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
    let resume = sink
        .resume(&feed.source)
        .await
        .expect("resume")
        .map(|held| held.upto());
    assert_eq!(
        resume,
        Some(Position {
            commit: Lsn(1),
            ordinal: 1
        })
    );
    sink.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_sink_leaves_no_transaction_open() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("idle");
    let feed = Feed::new(&prefix);
    // Nothing but idleness can commit here.
    let more = serde_json::json!({"commit_interval": "1h", "commit_records": 1_000_000});
    let config = config(kafka.bootstrap(), &prefix, &more);
    let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
    let durable = sink
        .write(feed.batch(1, &[insert(1, "a")]))
        .await
        .expect("taken");
    // Seen by a consumer before anybody awaits the receipt: the sink needs no prodding.
    wait_for(DEADLINE, "the record", async || {
        read(kafka.bootstrap(), &feed.topic()).await.len() == 1
    })
    .await;
    durable.await.expect("durable");
    sink.close().await.expect("closes");
}
