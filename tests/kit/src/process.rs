//! One server process: started without privileges, ended with this process, its output in a file.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Context, Error};
use crate::wait::{Outcome, Value, poll_until};

/// The user that servers run as when this process is root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// `nobody` when this process is root, since PostgreSQL refuses to run as root; else `None`: as ourselves.
pub(crate) fn run_as() -> Option<User> {
    static NOBODY: OnceLock<User> = OnceLock::new();
    let is_root = rustix::process::geteuid().is_root();
    is_root.then(|| *NOBODY.get_or_init(find_nobody))
}

fn find_nobody() -> User {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ids = users.lines().find_map(|line| {
        let mut fields = line.strip_prefix("nobody:")?.split(':').skip(1);
        Some(User {
            uid: fields.next()?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
        })
    });
    ids.unwrap_or(User {
        uid: 65_534,
        gid: 65_534,
    })
}

/// How to start a server, again and again.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// For messages: `PostgreSQL 16`.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Working directory and `HOME`.
    pub(crate) dir: PathBuf,
    /// What it gets when this process dies, and on drop.
    pub(crate) end: End,
}

/// The last signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Kill,
    /// What PostgreSQL takes for an immediate shutdown.
    Quit,
}

impl Launch {
    /// Where standard output and error go.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The command through setpriv(1), which drops root and arms the signal that comes when the starting thread ends.
    fn command(&self, args: &[OsString]) -> Command {
        let mut command = Command::new("setpriv");
        command.arg(match self.end {
            End::Kill => "--pdeathsig=KILL",
            End::Quit => "--pdeathsig=QUIT",
        });
        if let Some(user) = run_as() {
            command
                .arg(format!("--reuid={}", user.uid))
                .arg(format!("--regid={}", user.gid))
                .arg("--clear-groups");
        }
        command
            .arg("--")
            .arg(&self.program)
            .args(args)
            .current_dir(&self.dir);
        // Nothing of the caller's environment (PGHOST, JAVA_TOOL_OPTIONS, LC_ALL …) changes what a server does.
        let path =
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin:/usr/sbin:/sbin".into());
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", &self.dir)
            .env("LANG", "C.UTF-8");
        // In a process group of its own: a Ctrl-C on the terminal is for the tests, which then end the server.
        command.process_group(0).stdin(Stdio::null());
        command
    }

    /// Runs `program` of the same kind to its end and fails with its output.
    pub(crate) async fn run_to_end(&self, program: &Path, args: &[&OsStr]) -> Result<(), Error> {
        let args: Vec<OsString> = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut command = Self {
            program: program.into(),
            ..self.clone()
        }
        .command(&args);
        let shown = program.display().to_string();
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output
            .await
            .context(|| shown.clone())?
            .context(|| shown.clone())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        Err(Error::new(format!(
            "{shown} failed ({}): {said}",
            output.status
        )))
    }
}

/// A server process that can be ended and started again.
#[derive(Debug)]
pub(crate) struct Process {
    launch: Launch,
    child: Mutex<Option<Child>>,
}

impl Process {
    /// Starts it; it is not ready yet: [`Process::ready`].
    pub(crate) fn start(launch: Launch) -> Result<Self, Error> {
        let process = Self {
            launch,
            child: Mutex::new(None),
        };
        process.start_again()?;
        Ok(process)
    }

    /// Starts it after its end; a new log begins.
    pub(crate) fn start_again(&self) -> Result<(), Error> {
        let log = File::create(self.launch.log())
            .context(|| format!("making {}", self.launch.log().display()))?;
        let mut command = self.launch.command(&self.launch.args);
        command
            .stderr(log.try_clone().context(|| "dup".into())?)
            .stdout(log);
        let child = spawn(command)
            .context(|| format!("starting setpriv {}", self.launch.program.display()))?;
        *self.child() = Some(child);
        Ok(())
    }

    /// Polls `check` until it answers, the process ends, or `deadline` passes.
    pub(crate) async fn ready<F: Future<Output: Outcome>>(
        &self,
        deadline: Duration,
        mut check: impl FnMut() -> F,
    ) -> Result<Value<F>, Error> {
        let outcome = poll_until(deadline, || {
            let exited = self.exited();
            let look = exited.is_none().then(&mut check);
            async move {
                match (exited, look) {
                    (None, Some(look)) => look.await.outcome().map(Ok),
                    (status, _) => Ok(Err(format!(
                        "it ended at once ({})",
                        status.unwrap_or_default()
                    ))),
                }
            }
        });
        match outcome.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(cause)) => Err(self.failure(&cause)),
            Err(seen) => Err(self.failure(&format!("not ready after {deadline:?}: {seen}"))),
        }
    }

    fn failure(&self, cause: &str) -> Error {
        let log = fs::read(self.launch.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        let text = format!(
            "{} did not start: {cause}; the end of its log:\n{tail}",
            self.launch.name
        );
        if log.contains("ddress already in use") {
            Error::port_taken(text)
        } else {
            Error::new(text)
        }
    }

    /// How it ended; `None` while it runs.
    pub(crate) fn exited(&self) -> Option<ExitStatus> {
        self.child()
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten())
    }

    pub(crate) fn id(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// SIGKILL; returns when the process is gone.
    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            // It can only fail for a process that has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGKILL to it and to all its children; returns when it is gone. It cannot start another meanwhile.
    pub(crate) fn kill_family(&self) {
        self.freeze(true);
        if let Some(id) = self.id() {
            for child in children(id) {
                // It can only fail for one that has ended.
                let _ = kill_process(child, Signal::KILL);
            }
        }
        self.kill();
    }

    /// SIGSTOP or SIGCONT, to it and to its children.
    pub(crate) fn freeze_family(&self, freeze: bool) {
        let signal = if freeze { Signal::STOP } else { Signal::CONT };
        // The parent first: it starts no child that would be left out.
        self.signal(signal);
        for child in self.id().into_iter().flat_map(children) {
            let _ = kill_process(child, signal);
        }
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn freeze(&self, freeze: bool) {
        self.signal(if freeze { Signal::STOP } else { Signal::CONT });
    }

    /// Asks it to end and waits; after `deadline` it is killed, and `false` returned.
    pub(crate) async fn stop(&self, signal: Signal, deadline: Duration) -> bool {
        self.signal(signal);
        // One that is stopped would never hear of it.
        self.signal(Signal::CONT);
        let ended = poll_until(deadline, async || {
            self.exited().is_some() || self.id().is_none()
        })
        .await
        .is_ok();
        self.kill();
        ended
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let running = self
            .child()
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        if let Some(pid) = self
            .id()
            .filter(|_| running)
            .and_then(|id| Pid::from_raw(id.cast_signed()))
        {
            // It can only fail if it has ended since; it is not reaped, so its number is not another process's.
            let _ = kill_process(pid, signal);
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.launch.end == End::Quit {
            self.signal(Signal::QUIT);
            self.freeze_family(false);
            let end = Instant::now() + Duration::from_secs(5);
            while self.id().is_some() && self.exited().is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.kill();
    }
}

/// The processes that `parent` has started and that are not yet reaped.
fn children(parent: u32) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |id: &i32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // The name before it may hold spaces and parentheses.
        let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
        let of = after_name.and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        of == Some(parent)
    };
    ids.filter(is_child).filter_map(Pid::from_raw).collect()
}

type Order = (Command, SyncSender<io::Result<Child>>);

/// Starts a process from a thread that lives as long as this process: the signal that setpriv(1) arms comes at the end of
/// the starting *thread*, and a test's thread ends with the test.
fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Sender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, received) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in received {
                // The one who asked may be gone; then the child is too, since nobody holds it.
                if let Err(unsent) = answer.send(command.spawn())
                    && let Ok(mut child) = unsent.0
                {
                    let _ = child.kill();
                }
            }
        });
        orders
    });
    let (answer, answered) = sync_channel(1);
    starter.send((command, answer)).map_err(io::Error::other)?;
    answered.recv().map_err(io::Error::other)?
}
