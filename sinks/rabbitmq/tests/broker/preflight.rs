//! What `lockstep check` says of a broker.

use lockstep_core::check::{Finding, Verdict};
use lockstep_core::sink::SinkFactory;
use lockstep_kit::rabbitmq::Rabbitmq;
use lockstep_kit::{Component, require, unique};
use lockstep_sink_rabbitmq::RabbitmqSinkFactory;
use serde_json::{Value, json};

use crate::support::{Shop, Tap, config};

async fn findings(url: &str, name: &str, more: &Value) -> Vec<Finding> {
    RabbitmqSinkFactory::preflight(&config(url, more), name, "sink").await
}

fn verdict(findings: &[Finding], subject: &str) -> Verdict {
    let found = findings.iter().find(|finding| finding.subject == subject);
    found
        .unwrap_or_else(|| panic!("nothing of {subject}: {findings:?}"))
        .verdict
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_looked_at_and_left_as_it_was() {
    require!(Component::Rabbitmq);
    let url = Rabbitmq::shared().await.url();
    let (tap, name, shop) = (Tap::new(url).await, unique("check"), Shop::new());
    let exchange = format!("exchange {name}");
    let missing = findings(url, &name, &json!({"exchange": name})).await;
    assert_eq!(verdict(&missing, &exchange), Verdict::Fail);
    assert_eq!(verdict(&missing, "own queues"), Verdict::Pass);
    assert_eq!(verdict(&missing, "alarms"), Verdict::Pass);
    let broker = missing.iter().find(|finding| finding.subject == "broker");
    let broker = &broker.expect("looked at").detail;
    assert!(
        broker.starts_with("RabbitMQ ") && broker.contains('.'),
        "{broker}"
    );

    let made = json!({"exchange": name, "declare": {"exchange": "topic"}});
    let will_be = findings(url, &name, &made).await;
    assert_eq!(verdict(&will_be, &exchange), Verdict::Pass);

    tap.exchange(&name).await;
    tap.queue(&name, &[], Some((&name, "#"))).await;
    let there = findings(url, &name, &json!({"exchange": name})).await;
    assert_eq!(verdict(&there, &exchange), Verdict::Pass);
    assert!(
        tap.take(&name).await.is_empty(),
        "no queue has got anything"
    );

    let default = json!({"exchange": "", "routing_key": "nobody.has.it"});
    let nobody = findings(url, &name, &default).await;
    assert_eq!(verdict(&nobody, "queue nobody.has.it"), Verdict::Fail);
    let default = json!({"exchange": "", "routing_key": name});
    let queue = findings(url, &name, &default).await;
    assert_eq!(verdict(&queue, &format!("queue {name}")), Verdict::Pass);

    // It does not get in the way of one that runs.
    let running = config(url, &json!({"exchange": name}));
    let mut sink = shop.open(&running, &name).await.expect("opens");
    let there = findings(url, &name, &json!({"exchange": name})).await;
    assert!(
        there.iter().all(|finding| finding.verdict == Verdict::Pass),
        "{there:?}"
    );
    let durable = sink.write(shop.items(10, [1])).await.expect("taken");
    durable.await.expect("durable");
    sink.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_at_the_address_is_a_finding() {
    let findings = findings(
        "amqp://guest:hunter2@127.0.0.1:1",
        "p",
        &json!({"connect_timeout": "2s"}),
    )
    .await;
    assert_eq!(verdict(&findings, "broker"), Verdict::Fail);
    assert!(!format!("{findings:?}").contains("hunter2"));
}
