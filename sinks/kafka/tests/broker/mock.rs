//! Errors that a real broker gives only when its rights are set up for it, injected into librdkafka's mock of one.

use lockstep_core::ErrorKind;
use lockstep_kit::unique;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::{Feed, config, insert, open};

fn cluster(
    feed: &Feed,
    prefix: &str,
) -> MockCluster<'static, rdkafka::producer::DefaultProducerContext> {
    let mock = MockCluster::new(1).expect("mock");
    mock.create_topic(&feed.topic(), 4, 1).expect("topic");
    mock.create_topic(&format!("{prefix}.progress"), 1, 1)
        .expect("topic");
    mock
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_a_produce_have_the_right_kind() {
    use RDKafkaRespErr as E;
    for exactly_once in [true, false] {
        for (error, kind) in [
            (
                E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
                ErrorKind::Permission,
            ),
            (E::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, ErrorKind::Refused),
            // Of a record with a key it is its time.
            (E::RD_KAFKA_RESP_ERR_INVALID_RECORD, ErrorKind::Unavailable),
        ] {
            let prefix = unique("mock");
            let feed = Feed::new(&prefix);
            let mock = cluster(&feed, &prefix);
            let config = config(
                &mock.bootstrap_servers(),
                &prefix,
                &serde_json::json!({"exactly_once": exactly_once}),
            );
            let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
            mock.request_errors(RDKafkaApiKey::Produce, &[error; 3]);
            let durable = sink
                .write(feed.batch(1, &[insert(1, "a")]))
                .await
                .expect("taken");
            let failure = durable.await.expect_err("injected");
            assert_eq!(
                failure.kind(),
                kind,
                "exactly_once = {exactly_once}: {failure}"
            );
        }
    }
}

/// The client ends the transaction before it reports the record, so that a record that is handed over in between fails with
/// nothing but the state of the client.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_refused_while_others_are_handed_over_is_named() {
    use RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE as TOO_LARGE;
    let events: Vec<_> = (0..20_000).map(|id| insert(id, "a")).collect();
    for _ in 0..5 {
        let prefix = unique("mock");
        let feed = Feed::new(&prefix);
        let mock = cluster(&feed, &prefix);
        let more = serde_json::json!({"exactly_once": true});
        let config = config(&mock.bootstrap_servers(), &prefix, &more);
        let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
        mock.request_errors(RDKafkaApiKey::Produce, &[TOO_LARGE; 3]);
        let durable = sink.write(feed.batch(1, &events)).await.expect("taken");
        let failure = durable.await.expect_err("injected");
        assert_eq!(failure.kind(), ErrorKind::Refused, "{failure}");
        assert!(!failure.refusals().is_empty(), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_transactional_id_is_a_missing_permission() {
    let prefix = unique("mock");
    let feed = Feed::new(&prefix);
    let mock = cluster(&feed, &prefix);
    let config = config(&mock.bootstrap_servers(), &prefix, &serde_json::json!({}));
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED;
    mock.request_errors(RDKafkaApiKey::InitProducerId, &[denied; 3]);
    let Err(error) = open(&config, &prefix, &[&feed]).await else {
        panic!("it was denied");
    };
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    assert!(
        error.to_string().contains("exactly_once = false"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_for_a_while_is_tried_again() {
    let prefix = unique("mock");
    let feed = Feed::new(&prefix);
    let mock = cluster(&feed, &prefix);
    let config = config(&mock.bootstrap_servers(), &prefix, &serde_json::json!({}));
    let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
    let moving = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR;
    mock.request_errors(RDKafkaApiKey::EndTxn, &[moving; 2]);
    sink.write(feed.batch(1, &[insert(1, "a")]))
        .await
        .expect("taken")
        .await
        .expect("durable in the end");
    sink.close().await.expect("closes");
}
