//! The `lockstep` command as a child process.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lockstep_kit::disk::SmallDisk;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::http;

/// How long a pipeline may take to say where its admin endpoint listens, on a busy machine.
const START: Duration = Duration::from_secs(30);
/// How long anything else may take that is not expected to take long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of the log that a failing test shows.
const SHOWN: usize = 40;

/// Names another `lockstep` to test than the one of the same build.
pub const PROGRAM_VARIABLE: &str = "LOCKSTEP_TEST_PROGRAM";

/// The command under test: [`PROGRAM_VARIABLE`], or next to the folder of the test program.
///
/// # Panics
/// When it has not been built.
pub fn program() -> PathBuf {
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE) {
        return program.into();
    }
    let test = std::env::current_exe().expect("the test program has a path");
    let folder = test
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps");
    let program = folder.join("lockstep");
    assert!(
        program.is_file(),
        "{} is missing: cargo build -p lockstep",
        program.display()
    );
    program
}

/// A folder with a pipeline file, the pipeline's state, and the logs of its runs.
#[derive(Debug)]
pub struct Setup {
    folder: TempDir,
    /// Holds the state, when it is not in the folder.
    disk: Option<SmallDisk>,
    runs: AtomicU32,
}

impl Setup {
    /// Writes the pipeline file. `body` is TOML, given the folder; an `[admin]` section on a free port is added unless
    /// it has one, and a `[state]` section.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn new(name: &str, body: impl FnOnce(&Path) -> String) -> Self {
        Self::with(name, None, body)
    }

    /// As [`Setup::new`], with the state on a disk that can be full.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn on_disk(name: &str, disk: SmallDisk, body: impl FnOnce(&Path) -> String) -> Self {
        Self::with(name, Some(disk), body)
    }

    /// The disk of [`Setup::on_disk`].
    ///
    /// # Panics
    /// When there is none.
    pub fn disk(&self) -> &SmallDisk {
        self.disk.as_ref().expect("a disk")
    }

    fn with(name: &str, disk: Option<SmallDisk>, body: impl FnOnce(&Path) -> String) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("lockstep-e2e-")
            .tempdir()
            .expect("a temporary folder");
        let body = body(folder.path());
        let admin = if body.contains("[admin]") {
            ""
        } else {
            "[admin]\nlisten = \"127.0.0.1:0\"\n"
        };
        let home = disk.as_ref().map_or_else(|| folder.path(), SmallDisk::path);
        let state = home.join("state");
        let text = format!(
            "name = \"{name}\"\n{body}\n{admin}\n[state]\ndir = \"{}\"\n",
            state.display()
        );
        let setup = Setup {
            folder,
            disk,
            runs: AtomicU32::new(0),
        };
        setup.write(&text);
        setup
    }

    /// Replaces the pipeline file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, text: &str) {
        std::fs::write(self.file(), text).expect("the folder can be written");
    }

    /// Replaces a part of the pipeline file that occurs once.
    ///
    /// # Panics
    /// When it does not.
    pub fn change(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.file()).expect("the pipeline file");
        assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
        self.write(&text.replace(from, to));
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The pipeline file.
    pub fn file(&self) -> PathBuf {
        self.folder().join("pipeline.toml")
    }

    /// Where the pipeline keeps its state.
    pub fn state(&self) -> PathBuf {
        let home = self
            .disk
            .as_ref()
            .map_or_else(|| self.folder(), SmallDisk::path);
        home.join("state")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // The signal comes should the test process die: nothing outlives it.
        let mut command = match &self.disk {
            Some(disk) => disk.inside("setpriv"),
            None => Command::new("setpriv"),
        };
        command
            .args(["--pdeathsig=KILL", "--"])
            .arg(program())
            .args(arguments);
        command.current_dir(self.folder()).stdin(Stdio::null());
        as_expected(&mut command);
        command
    }

    fn log(&self) -> (PathBuf, File) {
        let path = self
            .folder()
            .join(format!("log.{}", self.runs.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&path).expect("the folder can be written");
        (path, file)
    }

    /// `lockstep run`, in the background.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(&self) -> Pipeline {
        let (path, log) = self.log();
        let file = self.file();
        let mut command = self.command(&["run", &file.display().to_string()]);
        command.stdout(Stdio::null()).stderr(log);
        let child = command
            .spawn()
            .expect("setpriv (util-linux) and lockstep can be started");
        Pipeline {
            child,
            log: path,
            output: None,
            address: None,
        }
    }

    /// Starts `lockstep run` and waits until `/readyz` is green.
    ///
    /// # Panics
    /// When it does not become so.
    pub async fn start_ready(&self) -> Pipeline {
        let mut pipeline = self.start();
        pipeline.wait_ready().await;
        pipeline
    }

    /// Runs a subcommand, with the pipeline file as its argument, to its end.
    ///
    /// # Panics
    /// When it does not end within a minute.
    pub async fn lockstep(&self, subcommand: &str, arguments: &[&str]) -> Ended {
        let file = self.file().display().to_string();
        let mut all = vec![subcommand, &*file];
        all.extend(arguments);
        self.lockstep_with(&all, &[]).await
    }

    /// Runs any command line, with more environment variables, to its end.
    ///
    /// # Panics
    /// When it does not end within a minute.
    pub async fn lockstep_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
        let child = self.spawn(arguments, environment);
        child.ends_within(PATIENCE).await
    }

    /// Starts any command line, with more environment variables.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Pipeline {
        let (log, stderr) = self.log();
        let (output, stdout) = self.log();
        let mut command = self.command(arguments);
        command
            .envs(environment.iter().copied())
            .stdout(stdout)
            .stderr(stderr);
        let child = command
            .spawn()
            .expect("setpriv (util-linux) and lockstep can be started");
        Pipeline {
            child,
            log,
            output: Some(output),
            address: None,
        }
    }

    /// Starts any command line on a terminal of its own; [`Pipeline::log`] is all that the terminal got to show, and
    /// [`Pipeline::press_ctrl_c`] presses a key on it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn_on_terminal(&self, arguments: &[&str]) -> Pipeline {
        let (log, _) = self.log();
        let program = program().display().to_string();
        let words = std::iter::once(&*program).chain(arguments.iter().copied());
        let words: Vec<String> = words.map(in_shell).collect();
        let line = format!("stty rows 50 columns 150; exec {}", words.join(" "));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--", "script", "-qefc", &line]);
        command.arg(&log).current_dir(self.folder());
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        as_expected(&mut command);
        let child = command
            .spawn()
            .expect("setpriv (util-linux) and script (bsdutils) can be started");
        Pipeline {
            child,
            log,
            output: None,
            address: None,
        }
    }
}

/// Whatever runs the tests: lines for people, by the letters that tests look for.
fn as_expected(command: &mut Command) {
    command
        .env("LOCKSTEP_LOG_FORMAT", "text")
        .env_remove("LOCKSTEP_LOG");
    command.env("NO_COLOR", "1").env_remove("CLICOLOR_FORCE");
    command.env("LC_ALL", "C.UTF-8");
}

/// One word for a shell.
fn in_shell(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// How a command has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The status itself.
    pub status: ExitStatus,
    /// All of standard output.
    pub stdout: String,
    /// All of standard error, which is where the log goes.
    pub stderr: String,
}

impl Ended {
    /// The exit code; `None` after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The last line of standard error that tells the error.
    ///
    /// # Panics
    /// When there is none.
    pub fn error(&self) -> &str {
        let line = self
            .stderr
            .lines()
            .rfind(|line| line.starts_with("error: "));
        line.unwrap_or_else(|| panic!("no error was told: {self:?}"))
    }
}

/// A running `lockstep run`. Killed on drop.
#[derive(Debug)]
pub struct Pipeline {
    child: Child,
    log: PathBuf,
    /// Where its standard output goes, when it is kept.
    output: Option<PathBuf>,
    address: Option<SocketAddr>,
}

impl Pipeline {
    /// Everything that it has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What it has printed so far.
    ///
    /// # Panics
    /// When that is not kept.
    pub fn output(&self) -> String {
        let path = self.output.as_ref().expect("its output is kept");
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it has ended; `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Where its admin endpoint listens, as its log says.
    ///
    /// # Panics
    /// When it does not say so in time, or ends.
    pub async fn address(&mut self) -> SocketAddr {
        if let Some(address) = self.address {
            return address;
        }
        let address = self
            .until(START, "the admin endpoint", async |pipeline| {
                pipeline.logged_address()
            })
            .await;
        self.address = Some(address);
        address
    }

    fn logged_address(&self) -> Result<SocketAddr, String> {
        let log = self.log();
        let found = log
            .split_once("admin endpoint address=")
            .and_then(|(_, rest)| rest.split_whitespace().next());
        found.and_then(|address| address.parse().ok()).ok_or(log)
    }

    /// Its admin endpoint's URL.
    pub async fn url(&mut self) -> String {
        format!("http://{}", self.address().await)
    }

    /// GET without a token.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&mut self, path: &str) -> std::io::Result<(u16, String)> {
        let address = self.address().await;
        http::get(address, path, None).await
    }

    /// `/api/status`.
    ///
    /// # Panics
    /// When that is not answered.
    pub async fn status(&mut self) -> Value {
        let (code, body) = self.get("/api/status").await.expect("/api/status answers");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// Polls until `look` answers `Ok`.
    ///
    /// # Panics
    /// When it does not in time, or the pipeline ends, with the end of its log.
    pub async fn until<T>(
        &mut self,
        deadline: Duration,
        what: impl Display,
        mut look: impl AsyncFnMut(&mut Self) -> Result<T, String>,
    ) -> T {
        let end = tokio::time::Instant::now() + deadline;
        let mut pause = Duration::from_millis(2);
        loop {
            let seen = match look(self).await {
                Ok(value) => return value,
                Err(seen) => seen,
            };
            if let Some(status) = self.exited() {
                panic!(
                    "waiting for {what}, and it ended with {status}:\n{}",
                    self.tail()
                );
            }
            let late = tokio::time::Instant::now() > end;
            assert!(
                !late,
                "waited {deadline:?} in vain for {what}; seen: {seen}\n{}",
                self.tail()
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn wait_ready(&mut self) {
        self.until(
            PATIENCE,
            "/readyz to be green",
            async |pipeline| match pipeline.get("/readyz").await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            },
        )
        .await;
    }

    /// Waits until `/readyz` answers 503 with all of `words` in it, and returns the body.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn wait_unready(&mut self, words: &[&str]) -> String {
        self.until(
            PATIENCE,
            format!("/readyz to say {words:?}"),
            async |pipeline| match pipeline.get("/readyz").await {
                Ok((503, body)) if words.iter().all(|word| body.contains(word)) => Ok(body),
                other => Err(format!("{other:?}")),
            },
        )
        .await
    }

    /// Waits until `/readyz` names every one of `words` and not `part`, which works meanwhile.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn wait_unready_but(&mut self, words: &[&str], part: &str) {
        self.until(
            PATIENCE,
            format!("/readyz to say {words:?} and not {part}"),
            async |pipeline| match pipeline.get("/readyz").await {
                Ok((503, body))
                    if words.iter().all(|word| body.contains(word)) && !body.contains(part) =>
                {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            },
        )
        .await;
    }

    /// Waits until a source streams, that is until its initial copy has been read.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn wait_streaming(&mut self, source: &str) {
        self.until(
            PATIENCE,
            format!("{source} to stream"),
            async |pipeline| match pipeline.status().await["sources"][source]["phase"].as_str() {
                Some("streaming") => Ok(()),
                other => Err(format!("{other:?}")),
            },
        )
        .await;
    }

    /// Waits until every sink holds everything of the source up to `lsn`.
    ///
    /// # Panics
    /// When they do not in time.
    pub async fn wait_visible(&mut self, source: &str, lsn: &str, deadline: Duration) {
        let path = format!("/api/visible?source={source}&lsn={lsn}");
        self.until(
            deadline,
            format!("{source} {lsn} in every sink"),
            async |pipeline| {
                let (code, body) = pipeline
                    .get(&path)
                    .await
                    .map_err(|error| error.to_string())?;
                let answer: Value = serde_json::from_str(&body)
                    .map_err(|error| format!("{code} {error}: {body}"))?;
                (answer["visible"] == true).then_some(()).ok_or(body)
            },
        )
        .await;
    }

    /// SIGKILL; returns when the process is gone.
    ///
    /// # Panics
    /// When it had ended before.
    pub fn kill9(mut self) {
        assert_eq!(self.exited(), None, "it ended by itself:\n{}", self.tail());
        self.kill();
    }

    fn kill(&mut self) {
        // They can only fail for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        assert_eq!(self.exited(), None, "it ended by itself:\n{}", self.tail());
        let id = Pid::from_raw(self.child.id().cast_signed()).expect("an id is not 0");
        kill_process(id, signal).expect("a child may be signalled");
    }

    /// Presses Ctrl-C on the terminal of [`Setup::spawn_on_terminal`].
    ///
    /// # Panics
    /// When there is none, or it is gone.
    pub fn press_ctrl_c(&mut self) {
        let keyboard = self.child.stdin.as_mut().expect("a terminal");
        keyboard.write_all(b"\x03").expect("the terminal is there");
        keyboard.flush().expect("the terminal is there");
    }

    /// Types on the terminal that it was started on.
    ///
    /// # Panics
    /// When there is none, or it is gone.
    pub fn types(&mut self, text: &str) {
        let keyboard = self.child.stdin.as_mut().expect("a terminal");
        let typed = keyboard.write_all(text.as_bytes());
        typed
            .and_then(|()| keyboard.flush())
            .expect("the terminal is there");
    }

    /// SIGTERM; returns how it ended.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn terminate(mut self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit(deadline).await
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When that does not come in time.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "it has not ended after {deadline:?}\n{}",
                self.tail()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for its end, and returns all about it.
    ///
    /// # Panics
    /// When that does not come within a minute.
    pub async fn ends(self) -> Ended {
        self.ends_within(PATIENCE).await
    }

    /// As [`Pipeline::ends`], with another deadline.
    ///
    /// # Panics
    /// When that is missed.
    pub async fn ends_within(mut self, deadline: Duration) -> Ended {
        let status = self.wait_exit(deadline).await;
        Ended {
            status,
            stdout: self
                .output
                .as_ref()
                .map_or_else(String::new, |_| self.output()),
            stderr: self.log(),
        }
    }

    /// The most resident memory it had so far, in bytes.
    pub fn peak_resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| {
            rest.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()
        });
        kib.unwrap_or(0) * 1024
    }

    fn tail(&self) -> String {
        tail(&self.log())
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody may listen.
            let _ = writeln!(
                std::io::stderr(),
                "the end of lockstep's log:\n{}",
                self.tail()
            );
        }
        self.kill();
    }
}
