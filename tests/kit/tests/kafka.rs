//! Apache Kafka as the kit gives it to tests. What clients do with it is tested where there is a client.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::time::Instant;

use lockstep_kit::Component::Kafka as NeedsKafka;
use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::require_own;

#[tokio::test]
async fn a_broker_starts_answers_restarts_and_goes() {
    require_own!(NeedsKafka);
    let began = Instant::now();
    let broker = Kafka::start(KafkaOptions {
        proxy: true,
        ..KafkaOptions::default()
    })
    .await;
    println!("Kafka after {:?}", began.elapsed());
    assert!(
        broker.log().contains("Kafka Server started"),
        "{}",
        broker.log()
    );
    assert_ne!(broker.bootstrap(), broker.proxied_bootstrap());
    let began = Instant::now();
    broker.kill();
    broker.restart().await;
    println!("Kafka again after {:?}", began.elapsed());
    let address = broker.bootstrap().to_owned();
    drop(broker);
    assert!(std::net::TcpStream::connect(address).is_err());
}
