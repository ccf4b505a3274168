//! The receiver of the README, as it stands there.

mod support;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver as Lines, channel};

use lockstep_core::ErrorKind;
use lockstep_core::sink::SinkFactory;
use lockstep_kit::managers::python;
use lockstep_kit::wait_for;
use lockstep_sink_webhook::Webhook;
use serde_json::{Value, json};
use support::{PATIENCE, config, context, inserts, put, put_ok, source};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

struct Program {
    child: Child,
    url: String,
    lines: Lines<String>,
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    async fn start() -> Self {
        let readme = include_str!("../README.md");
        let block = readme
            .split("```python\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next());
        let program = block.expect("a receiver in the README");
        assert!(program.lines().count() <= 24, "short enough to be read");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let address = port.expect("a free port");
        let mut child = python()
            .args(["-c", program, &address.port().to_string(), SECRET])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Python");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let (told, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Nobody may listen any more.
                let _ = told.send(line);
            }
        });
        wait_for(PATIENCE, "the receiver", async || {
            TcpStream::connect(address).is_ok()
        })
        .await;
        Program {
            child,
            url: format!("http://{address}/{{table}}"),
            lines,
        }
    }

    /// The rows of the next records.
    fn rows(&self, count: usize) -> Vec<String> {
        let row = |_| {
            let line = self.lines.recv_timeout(PATIENCE).expect("a record");
            let record: Value = serde_json::from_str(&line).expect("JSON");
            record["key"]["id"].to_string()
        };
        (0..count).map(row).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_of_the_readme_verifies_and_takes_each_change_once() {
    let program = Program::start().await;
    let source = source("shop");
    let other = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    for section in [
        json!({"secrets": [SECRET]}),
        json!({"secrets": [other, SECRET], "batch": {}}),
    ] {
        // Without the position of the one before: the first rows come again, and are known.
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(&program.url, &section);
        let context = context(&source, folder.path());
        let mut sink = Webhook::open(&config, context).await.expect("opens");
        put_ok(&mut sink, inserts(10, &["1", "2"])).await;
        let id = if section["batch"].is_null() { "3" } else { "4" };
        put_ok(&mut sink, inserts(if id == "3" { 20 } else { 30 }, &[id])).await;
        sink.close().await.expect("closes");
    }
    assert_eq!(program.rows(4), ["1", "2", "3", "4"]);
    for secrets in [json!([]), json!([other])] {
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(&program.url, &json!({"secrets": secrets}));
        let context = context(&source, folder.path());
        let mut sink = Webhook::open(&config, context).await.expect("opens");
        let error = put(&mut sink, inserts(40, &["5"]))
            .await
            .expect_err("unknown");
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    }
    assert!(program.lines.try_recv().is_err(), "nothing else was taken");
}
