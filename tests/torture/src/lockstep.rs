//! The product as a contestant.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lockstep_kit::clock::Clock;
use lockstep_kit::disk::SmallDisk;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::http;
use crate::program::{LOOK_AGAIN, Program};

/// Names another `lockstep` to torture than the one of the same build.
pub const PROGRAM_VARIABLE: &str = "LOCKSTEP_TEST_PROGRAM";

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

/// `lockstep run` on a pipeline file.
#[derive(Debug)]
pub struct Lockstep {
    /// The process.
    pub program: Program,
}

impl Lockstep {
    /// In this folder, which holds `pipeline.toml`; with a disk and a clock of its own where they are to be broken.
    pub fn new(
        program: &Path,
        folder: PathBuf,
        disk: Option<&SmallDisk>,
        clock: Option<&Clock>,
    ) -> Self {
        let mut command = match disk {
            Some(disk) => {
                let mut command = disk.inside("setpriv");
                // The one who enters the disk's namespace forgets whose end is its own.
                command.args(["--pdeathsig=KILL", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.arg("run").arg(folder.join("pipeline.toml"));
        // Its log is read here, and by people.
        command.env("LOCKSTEP_LOG_FORMAT", "text");
        if let Some(clock) = clock {
            command.envs(clock.variables());
        }
        Self {
            program: Program::new("lockstep", &command, folder),
        }
    }

    /// Waits until every sink holds everything of a source up to `lsn`; else the last answer.
    ///
    /// # Errors
    /// When the time is over.
    pub async fn visible(
        &mut self,
        source: &str,
        lsn: &str,
        deadline: Duration,
    ) -> Result<(), String> {
        let path = format!("/api/visible?source={source}&lsn={lsn}");
        let end = Instant::now() + deadline;
        let mut seen = "nothing".to_owned();
        while Instant::now() < end {
            if !self.program.runs() {
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
        http::get(address, path).await
    }

    fn address(&self) -> Option<SocketAddr> {
        let log = self.program.log();
        let (_, rest) = log.split_once("admin endpoint address=")?;
        rest.split_whitespace().next()?.parse().ok()
    }
}
