//! What every sink promises, of this one, before a broker of the test.

use std::sync::{Arc, Mutex};

use acme_sink::{Acme, AcmeConfig};
use async_trait::async_trait;
use lockstep_conformance::sink::{Event, Held, Progress, SinkUnderTest, row_of};
use lockstep_core::Result;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What has been put, in order: subject, id, key, value.
type Log = Arc<Mutex<Vec<(String, String, Value, Value)>>>;

struct Broker {
    address: String,
    log: Log,
}

impl Broker {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let log = Log::default();
        let shared = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Broker { address, log }
    }
}

async fn serve(mut stream: TcpStream, log: Log) {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.is_empty() {
            if write.write_all(b"OK\n").await.is_err() {
                return;
            }
            continue;
        }
        let parts: Vec<&str> = line.splitn(4, '\t').collect();
        let [subject, id, key, value] = parts[..] else {
            panic!("{line}");
        };
        let json = |text: &str| serde_json::from_str(if text.is_empty() { "null" } else { text });
        let (key, value) = (json(key).expect("JSON"), json(value).expect("JSON"));
        let put = (subject.to_owned(), id.to_owned(), key, value);
        log.lock().expect("not poisoned").push(put);
    }
}

#[async_trait]
impl SinkUnderTest for Broker {
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let section = serde_json::json!({"broker": self.address});
        let config: AcmeConfig = serde_json::from_value(section).expect("a section");
        Acme::open(&config, context).await
    }

    async fn held(&self, table: &Arc<TableSchema>) -> Held {
        let log = self.log.lock().expect("not poisoned");
        let ours = log
            .iter()
            .filter(|(subject, ..)| *subject == table.id.to_string());
        let event = |(_, id, key, value): &(String, String, Value, Value)| Event {
            id: id.clone(),
            op: value["op"]
                .as_str()
                .and_then(|op| op.chars().next())
                .expect("an op"),
            key: key
                .as_object()
                .map_or_else(Default::default, |_| row_of(key)),
            row: value["row"].is_object().then(|| row_of(&value["row"])),
        };
        Held::Events(ours.map(event).collect())
    }

    fn progress(&self) -> Progress {
        Progress::Behind
    }
}

async fn broker() -> Option<Broker> {
    Some(Broker::start().await)
}

lockstep_conformance::sink_suite!(broker);
