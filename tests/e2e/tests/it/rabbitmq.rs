//! `kill -9` under load before RabbitMQ: everything is there, per key in order, and each change once for whoever remembers
//! `message_id` and `type`.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::options::BasicGetOptions;
use lapin::{Connection, ConnectionProperties};
use lockstep_e2e::topics::Record;
use lockstep_e2e::work::{self, Arrived, Work};
use lockstep_e2e::{Random, Setup};
use lockstep_kit::Component::{Postgres as NeedsPostgres, Rabbitmq as NeedsRabbitmq};
use lockstep_kit::postgres::Postgres;
use lockstep_kit::rabbitmq::Rabbitmq;
use lockstep_kit::{require, unique};
use serde_json::Value;

use crate::support::source;

const CATCH_UP: Duration = Duration::from_secs(120);
const KILLS: usize = 8;

/// All messages of a queue, each once, and how many came again.
async fn read(connection: &Connection, queue: &str) -> (Vec<Record>, usize) {
    let channel = connection.create_channel().await.expect("a channel");
    let (mut records, mut known, mut again) = (Vec::new(), BTreeSet::new(), 0);
    let options = BasicGetOptions { no_ack: true };
    while let Some(message) = channel
        .basic_get(queue.into(), options)
        .await
        .expect("the queue")
    {
        let text = |text: &Option<lapin::types::ShortString>| {
            text.as_ref().map(ToString::to_string).expect("a property")
        };
        let id = text(message.properties.message_id());
        if !known.insert((id.clone(), text(message.properties.kind()))) {
            again += 1;
            continue;
        }
        let headers = message.properties.headers().as_ref().expect("headers");
        let key = headers.inner().get("lockstep.key");
        let key = key.and_then(lapin::types::AMQPValue::as_long_string);
        let json = |bytes: &[u8]| serde_json::from_slice(bytes).expect("JSON");
        records.push(Record {
            partition: 0,
            offset: records.len() as i64,
            key: key.map_or(Value::Null, |key| json(key.as_bytes())),
            value: json(&message.data),
            id,
            global: None,
        });
    }
    (records, again)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_leave_every_change_in_rabbitmq_in_order() {
    require!(NeedsPostgres(17), NeedsRabbitmq);
    let mut random = Random::from_environment();
    let (shop, rabbitmq) = tokio::join!(
        async { Postgres::shared(17).await.database("shop").await },
        Rabbitmq::shared(),
    );
    work::create(&shop, 2_000, 200).await;
    let name = unique("rabbits");
    let setup = Setup::new(&name, |_| {
        source(shop.url(), &name, &["ledger", "counters", "items"])
            + &format!(
                r#"
[sinks.events]
type = "rabbitmq"
inputs = ["shop"]
url = "{url}"
exchange = ""
routing_key = "{name}.{{table}}"
heartbeat = "2s"
declare = {{ queues = [{{ name = "{name}.{{table}}" }}] }}
"#,
                url = rabbitmq.url(),
            )
    });
    let mut pipeline = setup.start();
    pipeline.wait_streaming("shop").await;
    let begin = work::look(&shop).await;
    let writers = Work::start(&shop, random.below(1_000)).await;
    for _ in 0..KILLS {
        tokio::time::sleep(random.millis(100, 1_800)).await;
        pipeline.kill9();
        pipeline = setup.start();
    }
    writers.stop().await;
    let end = work::look(&shop).await;
    pipeline.wait_visible("shop", &end.lsn, CATCH_UP).await;
    assert!(pipeline.terminate(CATCH_UP).await.success());

    let connection = Connection::connect(rabbitmq.url(), ConnectionProperties::default()).await;
    let connection = connection.expect("connects");
    let queue = |table: &str| format!("{name}.{table}");
    let (ledger, one) = read(&connection, &queue("ledger")).await;
    let (counters, two) = read(&connection, &queue("counters")).await;
    let (items, three) = read(&connection, &queue("items")).await;
    let all = ledger.len() + counters.len() + items.len();
    println!("{all} messages, and {} that came again", one + two + three);
    let arrived = Arrived {
        ledger,
        counters,
        items,
    };
    arrived.assert_exactly_once(&begin, &end);
}
