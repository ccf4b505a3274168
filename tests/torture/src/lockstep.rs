//! The product as a child process.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Names another `lockstep` to torture than the one of the same build.
pub const PROGRAM_VARIABLE: &str = "LOCKSTEP_TEST_PROGRAM";

const ANSWER: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The command under test: [`PROGRAM_VARIABLE`], or beside this program, or beside the folder of this test program.
///
/// # Errors
/// When there is none.
pub fn program() -> io::Result<PathBuf> {
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE) {
        return Ok(program.into());
    }
    let this = std::env::current_exe()?;
    let folders = this.ancestors().skip(1).take(2);
    let found = folders
        .map(|folder| folder.join("lockstep"))
        .find(|program| program.is_file());
    found.ok_or_else(|| io::Error::other("no `lockstep` is there: cargo build -p lockstep"))
}

/// `lockstep run` on a pipeline file, again and again. Killed on drop.
#[derive(Debug)]
pub struct Lockstep {
    program: PathBuf,
    folder: PathBuf,
    runs: u32,
    child: Option<Child>,
    /// How it ended by itself, run by run.
    pub ended: Vec<(u32, ExitStatus)>,
}

impl Lockstep {
    /// In this folder, which holds `pipeline.toml` and gets a log per run. Not started yet.
    pub fn new(program: PathBuf, folder: PathBuf) -> Self {
        Self {
            program,
            folder,
            runs: 0,
            child: None,
            ended: Vec::new(),
        }
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join(format!("lockstep.{}.log", self.runs))
    }

    /// What the current run has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// What all runs have logged.
    pub fn logs(&self) -> String {
        let path = |run| self.folder.join(format!("lockstep.{run}.log"));
        (1..=self.runs)
            .map(|run| {
                String::from_utf8_lossy(&fs::read(path(run)).unwrap_or_default()).into_owned()
            })
            .collect()
    }

    /// Starts another run.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&mut self) {
        self.kill();
        self.runs += 1;
        let log = File::create(self.log_path()).expect("the folder can be written");
        let child = Command::new("setpriv")
            // Nothing outlives the one who tortures.
            .args(["--pdeathsig=KILL", "--"])
            .arg(&self.program)
            .arg("run")
            .arg(self.folder.join("pipeline.toml"))
            .current_dir(&self.folder)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("setpriv (util-linux) and lockstep can be started"));
    }

    /// Whether it runs. One that ended by itself is noted.
    pub fn runs(&mut self) -> bool {
        let Some(child) = &mut self.child else {
            return false;
        };
        match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                self.ended.push((self.runs, status));
                self.child = None;
                false
            }
            Err(_) => false,
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if self.runs()
            && let Some(mut child) = self.child.take()
        {
            // They can only fail for a process that has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP, or SIGCONT.
    pub fn freeze(&mut self, freeze: bool) {
        self.signal(if freeze { Signal::STOP } else { Signal::CONT });
    }

    fn signal(&mut self, signal: Signal) {
        if self.runs()
            && let Some(child) = &self.child
            && let Some(pid) = Pid::from_raw(child.id().cast_signed())
        {
            // It can only fail if it has ended since; it is not reaped, so its number is not another process's.
            let _ = kill_process(pid, signal);
        }
    }

    /// SIGTERM; how it ended, `None` when it did not in time and was killed.
    pub async fn terminate(&mut self, deadline: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let end = Instant::now() + deadline;
        while let Some(child) = &mut self.child {
            if let Ok(Some(status)) = child.try_wait() {
                self.child = None;
                return Some(status);
            }
            if Instant::now() > end {
                self.kill();
                return None;
            }
            sleep(LOOK_AGAIN).await;
        }
        None
    }

    /// Waits until the log says this, or the deadline has passed, or it has ended.
    pub async fn says(&mut self, words: &str, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        while Instant::now() < end && self.runs() {
            if self.log().contains(words) {
                return true;
            }
            sleep(LOOK_AGAIN).await;
        }
        self.log().contains(words)
    }

    /// Waits until every sink holds everything of the source up to `lsn`; else the last answer.
    ///
    /// # Errors
    /// When the time is over.
    pub async fn visible(&mut self, lsn: &str, deadline: Duration) -> Result<(), String> {
        let path = format!("/api/visible?source=shop&lsn={lsn}");
        let end = Instant::now() + deadline;
        let mut seen = "nothing".to_owned();
        while Instant::now() < end {
            if !self.runs() {
                return Err("it has ended".into());
            }
            match self.get(&path).await {
                Ok(body) => match serde_json::from_str::<Value>(&body) {
                    Ok(answer) if answer["visible"] == true => return Ok(()),
                    _ => seen = body,
                },
                Err(error) => seen = error.to_string(),
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(seen)
    }

    /// The body of `GET path`.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> io::Result<String> {
        let address = self.address().ok_or(io::ErrorKind::NotConnected)?;
        timeout(ANSWER, get(address, path)).await?
    }

    fn address(&self) -> Option<SocketAddr> {
        let log = self.log();
        let (_, rest) = log.split_once("admin endpoint address=Some(")?;
        rest.split(')').next()?.parse().ok()
    }

    /// The last lines of the current run's log.
    pub fn tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Where all this lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

async fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(body.to_owned())
}

impl Drop for Lockstep {
    fn drop(&mut self) {
        self.kill();
    }
}
