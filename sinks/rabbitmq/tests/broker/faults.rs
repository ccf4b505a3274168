//! Brokers that die, that have no memory left, that refuse what is too large.

use std::time::Duration;

use lockstep_core::error::Policy;
use lockstep_core::refusal::reason;
use lockstep_core::sink::{Sink, SinkFactory};
use lockstep_core::{Error, ErrorKind};
use lockstep_kit::rabbitmq::{Rabbitmq, RabbitmqOptions};
use lockstep_kit::{Component, require_own, unique, wait_for};
use lockstep_sink_rabbitmq::{RabbitmqConfig, RabbitmqSinkFactory};
use serde_json::json;

use crate::support::{DEADLINE, Shop, Tap, config, counted, once};

/// How long a broker may take to come back.
const COMES_BACK: Duration = Duration::from_secs(180);

/// Opens it as the runtime does: again and again.
async fn open_at_last(shop: &Shop, config: &RabbitmqConfig, name: &str) -> Box<dyn Sink> {
    wait_for(COMES_BACK, "the sink to open", async || {
        let opened = shop.open(config, name).await;
        if let Err(error) = &opened {
            assert_eq!(error.kind().policy(), Policy::Retry, "{error}");
        }
        opened.map_err(|error| error.to_string())
    })
    .await
}

/// Writes transactions of one row, from behind what is there, until one fails.
async fn write_from(
    sink: &mut Box<dyn Sink>,
    shop: &Shop,
    from: u64,
    to: u64,
) -> Result<(), Error> {
    let mut waiting = std::collections::VecDeque::new();
    for number in from + 1..=to {
        match sink.write(shop.items(number * 10, [number])).await {
            Ok(durable) => waiting.push_back(durable),
            Err(error) => return Err(error),
        }
        while waiting.len() > 50 || number == to && !waiting.is_empty() {
            waiting.pop_front().expect("some").await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_loses_nothing_and_keeps_the_order() {
    require_own!(Component::Rabbitmq);
    const ROWS: u64 = 6_000;
    let broker = Rabbitmq::start(RabbitmqOptions::default()).await;
    let (name, shop) = (unique("killed"), Shop::new());
    let config = config(
        broker.url(),
        &json!({
            "exchange": "",
            "routing_key": name,
            "heartbeat": "2s",
            "declare": {"queues": [{"name": name}]},
        }),
    );
    let write = async {
        let mut failures = 0;
        loop {
            let mut sink = open_at_last(&shop, &config, &name).await;
            let held = sink.resume(&shop.source).await.expect("resume");
            let held = held.map_or(0, |held| {
                let first = shop.items(10, [1]);
                held.upto().commit.0 / first.transactions()[0].commit.0
            });
            match write_from(&mut sink, &shop, held, ROWS).await {
                Ok(()) => {
                    sink.close().await.expect("closes");
                    return failures;
                }
                Err(error) => {
                    assert_eq!(error.kind().policy(), Policy::Retry, "{error}");
                    failures += 1;
                }
            }
        }
    };
    let kill = async {
        for round in 1..=2_u64 {
            // Somewhere in the middle.
            let queue = format!("{name} has grown {round}");
            wait_for(DEADLINE, queue, async || {
                let tap = Tap::new(broker.url()).await;
                tap.depth(&name).await.filter(|depth| *depth > 800 * round)
            })
            .await;
            broker.kill();
            broker.restart().await;
        }
    };
    let (failures, ()) = tokio::join!(write, kill);
    assert!(
        failures >= 2,
        "it was killed {failures} times while it was written to"
    );
    let seen = Tap::new(broker.url()).await.take(&name).await;
    let counts = counted(&seen);
    let missing: Vec<u64> = (1..=ROWS).filter(|id| !counts.contains_key(id)).collect();
    assert!(missing.is_empty(), "lost: {missing:?}");
    let order: Vec<u64> = once(seen).iter().map(|seen| seen.row_id()).collect();
    assert!(order.is_sorted(), "out of order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_out_of_memory_holds_up_and_what_is_too_large_is_named() {
    require_own!(Component::Rabbitmq);
    let broker = Rabbitmq::start(RabbitmqOptions {
        config: vec![("max_message_size".into(), "20000".into())],
        ..RabbitmqOptions::default()
    })
    .await;
    let (name, shop) = (unique("blocked"), Shop::new());
    let config = config(
        broker.url(),
        &json!({
            "exchange": "",
            "routing_key": name,
            "heartbeat": "2s",
            "declare": {"queues": [{"name": name}]},
        }),
    );
    let context = shop.context(&name);
    let trouble = context.trouble.clone();
    let mut sink = RabbitmqSinkFactory::open(&config, context)
        .await
        .expect("opens");
    let durable = sink.write(shop.items(10, [1])).await.expect("taken");
    durable.await.expect("durable");
    assert_eq!(trouble.get(), None);
    broker
        .ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"])
        .await;
    let mut waits = sink.write(shop.items(20, [2])).await.expect("taken");
    wait_for(DEADLINE, "the trouble to be told", async || {
        trouble
            .get()
            .filter(|told| told.contains("takes no messages"))
    })
    .await;
    // Longer than heartbeats that nobody hears of would last.
    let early = tokio::time::timeout(Duration::from_secs(9), &mut waits).await;
    assert!(early.is_err(), "nothing is taken: {early:?}");
    let finding = RabbitmqSinkFactory::preflight(&config, &name, "other").await;
    let alarm = finding.iter().find(|finding| finding.subject == "alarms");
    let alarm = alarm.expect("looked at");
    assert!(alarm.detail.contains("takes no messages"), "{alarm:?}");
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    let written = tokio::time::timeout(DEADLINE, waits).await;
    written
        .expect("in time")
        .expect("the same connection goes on");
    wait_for(DEADLINE, "the trouble to be over", async || {
        trouble.get().is_none()
    })
    .await;

    let large = "x".repeat(30_000);
    let batch = |with_large: bool| {
        let mut feed = shop.feed();
        feed.begin(30);
        feed.insert(&shop.items, &["3".into(), "small".into()]);
        match with_large {
            true => feed.insert(&shop.items, &["4".into(), (&*large).into()]),
            false => feed.continued(30, 2),
        };
        feed.insert(&shop.items, &["5".into(), "small".into()]);
        feed.finish()
    };
    let refused = sink.write(batch(true)).await.expect("taken").await;
    let error = refused.expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert_eq!(error.reason(), Some(reason::TOO_LARGE), "{error}");
    let ordinals: Vec<u64> = error
        .refusals()
        .iter()
        .map(|refusal| refusal.position.ordinal)
        .collect();
    assert_eq!(ordinals, [2], "{error}");
    drop(sink);
    let mut sink = shop.open(&config, &name).await.expect("opens");
    let written = sink.write(batch(false)).await.expect("taken").await;
    written.expect("the others are written");
    sink.close().await.expect("closes");
    let seen = once(Tap::new(broker.url()).await.take(&name).await);
    let ids: Vec<u64> = seen.iter().map(|seen| seen.row_id()).collect();
    assert_eq!(ids, [1, 2, 3, 5]);
}
