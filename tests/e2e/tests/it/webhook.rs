//! Webhooks: `kill -9` under load, then the receiver has had every change, those of each key in order, and each once by its id.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::topics::Record;
use lockstep_e2e::work::{self, Arrived, Work};
use lockstep_e2e::{Random, Setup};
use lockstep_kit::Component::Postgres as NeedsPostgres;
use lockstep_kit::postgres::Postgres;
use lockstep_kit::{require, unique};
use serde_json::Value;

use crate::resume::loaded;
use crate::support::source;

/// Times that lockstep is killed.
const KILLS: u64 = 6;

/// What has come.
#[derive(Debug, Default)]
struct Log {
    ids: HashSet<String>,
    /// Table and record, each once by its id, in the order in which they came.
    records: Vec<(String, Record)>,
    requests: usize,
}

#[derive(Clone, Debug)]
struct Receiver {
    log: Arc<Mutex<Log>>,
    random: Arc<Mutex<Random>>,
}

impl Receiver {
    fn ids(&self) -> usize {
        self.log.lock().expect("not poisoned").ids.len()
    }
}

async fn take(
    State(receiver): State<Receiver>,
    Path(table): Path<String>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    let (what, delay) = {
        let mut random = receiver.random.lock().expect("not poisoned");
        (random.below(40), random.millis(0, 4))
    };
    if what == 0 {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    {
        let mut log = receiver.log.lock().expect("not poisoned");
        log.requests += 1;
        let json: Value = serde_json::from_str(&body).expect("JSON");
        let id = headers["idempotency-key"].to_str().expect("a text");
        assert_eq!(json["id"], id);
        if log.ids.insert(id.to_owned()) {
            let (change, _) = id.split_once(':').expect("parts");
            let record = Record {
                partition: 0,
                offset: log.records.len() as i64,
                key: json["key"].clone(),
                value: json["value"].clone(),
                id: change.to_owned(),
                global: None,
            };
            log.records.push((table, record));
        }
    }
    tokio::time::sleep(delay).await;
    match what {
        // The work is done, and the answer says that it is not.
        1 => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::NO_CONTENT,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_leave_a_receiver_with_every_change_once_by_its_id() {
    require!(NeedsPostgres(17));
    let mut random = Random::from_environment();
    let database = Postgres::shared(17).await.database("shop").await;
    work::create(&database, 300, 60).await;
    let receiver = Receiver {
        log: Arc::default(),
        random: Arc::new(Mutex::new(random.fork())),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("an address");
    let router = Router::new().route("/changes/{table}", post(take));
    let router = router.with_state(receiver.clone());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });

    let name = unique("hook");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["ledger", "counters", "items"])
            + &format!(
                "[sinks.hook]\ntype = \"webhook\"\ninputs = [\"shop\"]\nconcurrency = 8\n\
                 url = \"http://{address}/changes/{{table}}\"\n"
            )
    });
    let mut pipeline = setup.start();
    work::slot_exists(&database, &name).await;
    let begin = work::look(&database).await;
    let writers = Work::start(&database, random.below(1_000)).await;
    for _ in 0..KILLS {
        let seen = receiver.ids();
        pipeline
            .until(PATIENCE, "more to arrive", async |_| {
                let now = receiver.ids();
                (now > seen + 50)
                    .then_some(())
                    .ok_or_else(|| now.to_string())
            })
            .await;
        tokio::time::sleep(random.millis(0, 900)).await;
        pipeline.kill9();
        pipeline = setup.start();
    }
    writers.stop().await;
    let end = work::look(&database).await;
    // A copy that was interrupted goes on beside the stream.
    pipeline.wait_ready().await;
    loaded(&mut pipeline, &database).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    server.abort();

    let log = receiver.log.lock().expect("not poisoned");
    let of = |wanted: &str| {
        let ours = log.records.iter().filter(|(table, _)| table == wanted);
        ours.map(|(_, record)| record.clone()).collect()
    };
    let arrived = Arrived {
        ledger: of("ledger"),
        counters: of("counters"),
        items: of("items"),
    };
    arrived.assert_exactly_once(&begin, &end);
    let (changes, requests) = (log.records.len(), log.requests);
    println!("{KILLS} kills: {changes} records by {requests} requests");
    assert!(requests > changes, "nothing came twice");
}
