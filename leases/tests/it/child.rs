//! A holder in a process of its own, to be killed and frozen.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use lockstep_kit::unique;
use lockstep_leases::Token;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};

use crate::ground::config;

const SECTION: &str = "LOCKSTEP_LEASES_TEST_SECTION";
const NAME: &str = "LOCKSTEP_LEASES_TEST_NAME";

/// Before each word of the process: its output is the test program's as well.
const MARK: &str = "#holder ";

fn say(word: &str) {
    let mut out = std::io::stdout();
    // The parent may be gone.
    let _ = writeln!(out, "\n{MARK}{word}");
    let _ = out.flush();
}

/// What runs in the process: acquires, and then says for each line that it is sent whether it still holds the lease. Looking
/// is the first thing it does when it is woken by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder() {
    let (Ok(section), Ok(name)) = (std::env::var(SECTION), std::env::var(NAME)) else {
        return;
    };
    let section: Value = serde_json::from_str(&section).expect("JSON");
    let leases = config(section).open().expect("leases");
    let held = leases.acquire(&name, &unique("child")).await.expect("held");
    say(&format!("held {}", held.token()));
    tokio::task::block_in_place(|| {
        for _ in std::io::stdin().lines().map_while(Result::ok) {
            say(if held.is_valid_now() { "valid" } else { "lost" });
        }
    });
}

/// The process, seen from outside. It is killed when this is dropped.
pub struct Holder {
    process: tokio::process::Child,
    stdin: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    /// Starts it; it begins to acquire the lease.
    pub fn start(section: &Value, name: &str, environment: &[(&str, &Path)]) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["child::holder", "--exact", "--nocapture"])
            .env(SECTION, section.to_string())
            .env(NAME, name)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let stdin = process.stdin.take().expect("piped");
        let stdout = process.stdout.take().expect("piped");
        Holder {
            process,
            stdin,
            said: BufReader::new(stdout).lines(),
        }
    }

    /// The next word it says.
    async fn word(&mut self) -> String {
        while let Some(line) = self.said.next_line().await.expect("its output") {
            if let Some(word) = line.strip_prefix(MARK) {
                return word.to_owned();
            }
        }
        panic!("the process has ended");
    }

    /// Waits until it holds the lease.
    pub async fn token(&mut self) -> Token {
        let word = self.word().await;
        let number = word
            .strip_prefix("held ")
            .and_then(|number| number.parse().ok());
        Token(number.unwrap_or_else(|| panic!("it says {word}")))
    }

    /// Sends a line, which it answers.
    pub async fn ask(&mut self) {
        self.stdin.write_all(b"?\n").await.expect("its input");
    }

    /// What it says when asked.
    pub async fn thinks_it_is_valid(&mut self) -> bool {
        match self.word().await.as_str() {
            "valid" => true,
            "lost" => false,
            other => panic!("it says {other}"),
        }
    }

    fn signal(&self, signal: Signal) {
        let id = self.process.id().expect("it runs").cast_signed();
        kill_process(Pid::from_raw(id).expect("a process"), signal).expect("a signal");
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// SIGSTOP or SIGCONT.
    pub fn freeze(&self, freeze: bool) {
        self.signal(if freeze { Signal::STOP } else { Signal::CONT });
    }
}
