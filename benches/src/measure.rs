//! One process from its start to its end: time, CPU, memory, and what the server spent on it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use wait4::Wait4;

use crate::{Result, machine};

/// How often the server's processes are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(8);

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub rows: u64,
    /// From the start of the process to its end.
    pub wall: Duration,
    /// User and system time of the process, all threads.
    pub own: Duration,
    /// CPU time of the server's processes that worked for it.
    pub server: Duration,
    /// Highest resident set, KiB.
    pub peak_kib: u64,
    /// Cores that everything else on the machine kept busy meanwhile; a broker counts among them.
    pub others: f64,
}

impl Sample {
    pub fn rate(&self) -> f64 {
        self.rows as f64 / self.wall.as_secs_f64()
    }

    pub fn own_micros(&self) -> f64 {
        self.own.as_secs_f64() * 1e6 / self.rows as f64
    }

    pub fn server_micros(&self) -> f64 {
        self.server.as_secs_f64() * 1e6 / self.rows as f64
    }

    pub fn peak_mb(&self) -> f64 {
        self.peak_kib as f64 * 1024.0 / 1e6
    }
}

/// Runs `command` to its end and returns what it printed. Blocks.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run(mut command: Command, rows: u64, postmaster: u32) -> Result<(Sample, String)> {
    let mut watched = Watched::new(postmaster);
    let busy = machine::busy_micros();
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    let pid = child.id();
    let output = child.stdout.take();
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let text = output.map_or_else(|| Ok(String::new()), std::io::read_to_string);
        let used = wait(child);
        // The receiver waits for exactly this.
        let _ = done.send((Instant::now(), text, used));
    });
    let mut peak_kib = 0;
    let (ended, text, used) = loop {
        watched.look();
        peak_kib = high_water_kib(&pid.to_string()).unwrap_or(peak_kib);
        match ended.recv_timeout(LOOK_EVERY) {
            Ok(end) => break end,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(error) => return Err(error.into()),
        }
    };
    watched.look();
    let (own, success) = used?;
    if !success {
        return Err(format!("{} failed", command.get_program().display()).into());
    }
    let wall = ended - started;
    let server = watched.spent();
    let busy = Duration::from_micros(machine::busy_micros().saturating_sub(busy));
    let others = busy.saturating_sub(own + server).as_secs_f64() / wall.as_secs_f64();
    let sample = Sample {
        rows,
        wall,
        own,
        server,
        peak_kib,
        others,
    };
    Ok((sample, text?))
}

fn wait(child: Child) -> std::io::Result<(Duration, bool)> {
    let used = child.wait4()?;
    Ok((used.rusage.utime + used.rusage.stime, used.status.success()))
}

/// `VmHWM` of `/proc/<process>/status`; `None` when the process is gone. Unlike `ru_maxrss` it does not begin with what
/// the parent had.
pub fn high_water_kib(process: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The server's processes that were not there before.
struct Watched {
    postmaster: u32,
    before: HashSet<u32>,
    spent: HashMap<u32, Duration>,
}

impl Watched {
    fn new(postmaster: u32) -> Self {
        Watched {
            postmaster,
            before: children(postmaster).into_iter().collect(),
            spent: HashMap::new(),
        }
    }

    fn look(&mut self) {
        for pid in children(self.postmaster) {
            if !self.before.contains(&pid)
                && let Some(spent) = on_cpu(pid)
            {
                self.spent.insert(pid, spent);
            }
        }
    }

    fn spent(&self) -> Duration {
        self.spent.values().sum()
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Time on a CPU, the first number of `/proc/PID/schedstat`, nanoseconds.
fn on_cpu(pid: u32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    let nanos = text.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}
