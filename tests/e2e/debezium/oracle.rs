//! Debezium itself, run by `Oracle.java`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lockstep_kit::postgres::Database;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_postgres::config::{Config, Host};

use crate::record::{Fields, Record};

/// Two cores shared with other tests: start-up alone has taken ten seconds.
const DEADLINE: Duration = Duration::from_secs(120);

/// A running Debezium. It ends when this is dropped.
pub struct Oracle {
    // Kept for its end: `kill_on_drop`.
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

#[derive(serde::Deserialize)]
struct Line {
    topic: String,
    key: Box<RawValue>,
    value: Box<RawValue>,
    headers: Fields,
}

impl Oracle {
    /// Starts the connector on a database: snapshot, then the stream, into topics `<name>.<schema>.<table>`.
    pub fn start(database: &Database, name: &str, decimals: &str) -> Self {
        let url: Config = database.url().parse().expect("a URL");
        let Some(Host::Tcp(host)) = url.get_hosts().first() else {
            panic!("no host in {}", database.url());
        };
        let port = url.get_ports().first().copied().unwrap_or(5432);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("debezium");
        let mut properties = vec![
            format!("database.hostname={host}"),
            format!("database.port={port}"),
            format!("database.user={}", url.get_user().unwrap_or("postgres")),
            format!("database.dbname={}", database.name()),
            format!("topic.prefix={name}"),
            format!(
                "slot.name=oracle_{}",
                database.name().to_ascii_lowercase().replace('-', "_")
            ),
            format!("decimal.handling.mode={decimals}"),
            "publication.name=oracle".to_owned(),
            "publication.autocreate.mode=all_tables".to_owned(),
            "skipped.operations=none".to_owned(),
            "poll.interval.ms=50".to_owned(),
            // A value it cannot read must end it, not make it start over for ever.
            "errors.max.retries=0".to_owned(),
        ];
        if let Some(password) = url.get_password() {
            properties.push(format!(
                "database.password={}",
                String::from_utf8_lossy(password)
            ));
        } else {
            properties.push("database.password=unused".to_owned());
        }
        let mut child = Command::new("java")
            .args([
                "-Xmx256m",
                "-XX:+UseSerialGC",
                "-XX:-UsePerfData",
                "-Duser.timezone=UTC",
            ])
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=error")
            .arg("-cp")
            .arg(lockstep_kit::dir().join("debezium/libs/*"))
            .arg(folder.join("Oracle.java"))
            .args(&properties)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("java starts");
        let out = child.stdout.take().expect("stdout is piped");
        Oracle {
            _child: child,
            lines: BufReader::new(out).lines(),
        }
    }

    /// Reads on until a record for which `last` says so, that one included.
    pub async fn read_until(&mut self, last: impl Fn(&Record) -> bool) -> Vec<Record> {
        let mut records = Vec::new();
        loop {
            let line = tokio::time::timeout(DEADLINE, self.lines.next_line())
                .await
                .unwrap_or_else(|_| panic!("Debezium went silent after {:?}", records.last()))
                .expect("its output can be read")
                .unwrap_or_else(|| panic!("Debezium ended after {:?}", records.last()));
            let line: Line =
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let headers = line
                .headers
                .0
                .into_iter()
                .filter(|(name, _)| !name.starts_with("__debezium.context."))
                .map(|(name, value)| (name, value.get().to_owned()))
                .collect();
            let record = Record {
                topic: line.topic,
                key: line.key.get().to_owned(),
                value: line.value.get().to_owned(),
                headers,
            };
            let done = last(&record);
            records.push(record);
            if done {
                return records;
            }
        }
    }
}
