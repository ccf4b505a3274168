//! A command under test as a child process, which is broken and started again.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Started again and again, with a log per run. Killed on drop.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    words: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    folder: PathBuf,
    runs: u32,
    child: Option<Child>,
    /// How it ended by itself, run by run.
    pub ended: Vec<(u32, ExitStatus)>,
}

impl Program {
    /// A command with its arguments and its own variables, run in this folder, which gets the logs. Not started yet.
    pub fn new(name: &'static str, command: &Command, folder: PathBuf) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let variables = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        Self {
            name,
            words: words.map(OsString::from).collect(),
            variables: variables.collect(),
            folder,
            runs: 0,
            child: None,
            ended: Vec::new(),
        }
    }

    fn log_path(&self, run: u32) -> PathBuf {
        self.folder.join(format!("{}.{run}.log", self.name))
    }

    /// What the current run has logged.
    pub fn log(&self) -> String {
        read(&self.log_path(self.runs))
    }

    /// What all runs have logged.
    pub fn logs(&self) -> String {
        (1..=self.runs)
            .map(|run| read(&self.log_path(run)))
            .collect()
    }

    /// Starts another run.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&mut self) {
        self.kill();
        self.runs += 1;
        let log = File::create(self.log_path(self.runs)).expect("the folder can be written");
        let also = log.try_clone().expect("a file can be opened twice");
        let child = Command::new("setpriv")
            // Nothing outlives the one who tortures.
            .args(["--pdeathsig=KILL", "--"])
            .args(&self.words)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .env("NO_COLOR", "1")
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(also)
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("setpriv (util-linux) and the command can be started"));
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

    /// The last lines of the current run's log.
    pub fn tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Memory that it has now, in KiB.
    pub fn resident_kib(&self) -> Option<u64> {
        let child = self.child.as_ref()?;
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Where all this lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}
