//! Keys go to the partitions that Java producers choose.

use lockstep_kit::kafka::Kafka;
use lockstep_kit::{Component, require, unique};

use crate::support::{Feed, config, insert, open, read};

/// `org.apache.kafka.common.utils.Utils.murmur2`.
fn murmur2(data: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0x9747_b28c ^ data.len() as u32;
    let mut blocks = data.chunks_exact(4);
    for block in &mut blocks {
        let mut k = u32::from_le_bytes([block[0], block[1], block[2], block[3]]).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = blocks.remainder();
    for (index, &byte) in rest.iter().enumerate().rev() {
        h ^= u32::from(byte) << (8 * index);
    }
    if !rest.is_empty() {
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    (h ^ (h >> 15)) as i32
}

#[test]
fn the_vectors_of_kafkas_own_tests_hold() {
    for (text, hash) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        (
            "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
            -58_897_971,
        ),
        ("abc", 479_470_107),
    ] {
        assert_eq!(murmur2(text.as_bytes()), hash, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_go_where_java_puts_them() {
    require!(Component::Kafka);
    let kafka = Kafka::shared().await;
    let prefix = unique("murmur");
    let feed = Feed::new(&prefix);
    let config = config(
        kafka.bootstrap(),
        &prefix,
        &serde_json::json!({"partitions": 7}),
    );
    let mut sink = open(&config, &prefix, &[&feed]).await.expect("opens");
    let events: Vec<_> = (0..500).map(|n| insert(n * 7919, "x")).collect();
    sink.write(feed.batch(1, &events))
        .await
        .expect("taken")
        .await
        .expect("durable");
    sink.close().await.expect("closes");
    let seen = read(kafka.bootstrap(), &feed.topic()).await;
    assert_eq!(seen.len(), 500);
    for record in seen {
        let key = record.key.expect("key");
        assert_eq!(
            record.partition,
            (murmur2(key.as_bytes()) & 0x7fff_ffff) % 7,
            "{key}"
        );
    }
}
