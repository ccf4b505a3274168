//! Starts the kit's servers once for many test programs, or for a person.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to its terminal"
)]

mod fleet;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use lockstep_kit::component::{NOT_RUN_VARIABLE, is_required};
use lockstep_kit::{Component, unique};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::fleet::Server;

const USAGE: &str = "\
lockstep-kit run [--with NAMES] -- COMMAND…   start servers, run COMMAND with LOCKSTEP_TEST_… set, stop them
lockstep-kit up [--with NAMES]                start servers, print `export` lines and `ready`, stay until Ctrl-C

NAMES, separated by commas: pg14 pg15 pg16 pg17 pg18 redis redis-cluster kafka rabbitmq opensearch
elasticsearch zookeeper registry kubernetes.
Without --with: all that tests/kit/install has installed; with CI=true one that is not installed is an error.
A server that its LOCKSTEP_TEST_… variable names already is not started.";

enum Order {
    Run {
        servers: Vec<Component>,
        command: Vec<String>,
    },
    Up {
        servers: Vec<Component>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match parse(&arguments) {
        Ok(Order::Run { servers, command }) => run(&servers, &command).await,
        Ok(Order::Up { servers }) => up(&servers).await,
        Err(mistake) => {
            eprintln!("{mistake}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("lockstep-kit: {error}");
        ExitCode::FAILURE
    })
}

fn parse(arguments: &[String]) -> Result<Order, String> {
    let (verb, mut rest) = arguments.split_first().ok_or("no subcommand")?;
    let mut servers = None;
    while let [option, names, after @ ..] = rest
        && option == "--with"
    {
        servers = Some(
            names
                .split(',')
                .map(component)
                .collect::<Result<Vec<_>, _>>()?,
        );
        rest = after;
    }
    let servers = servers.map_or_else(installed, Ok)?;
    match (verb.as_str(), rest) {
        ("run", [dashes, command @ ..]) if dashes == "--" && !command.is_empty() => {
            Ok(Order::Run {
                servers,
                command: command.to_vec(),
            })
        }
        ("run", _) => Err("no `-- COMMAND`".into()),
        ("up", []) => Ok(Order::Up { servers }),
        ("up", [unknown, ..]) => Err(format!("unknown argument {unknown:?}")),
        _ => Err(format!("unknown subcommand {verb:?}")),
    }
}

fn component(name: &str) -> Result<Component, String> {
    let found = fleet::all()
        .into_iter()
        .find(|&component| fleet::name(component) == name);
    found.ok_or_else(|| format!("unknown server {name:?}"))
}

/// All that can be had, with loud words about the others.
fn installed() -> Result<Vec<Component>, String> {
    let (available, missing): (Vec<_>, Vec<_>) = fleet::all()
        .into_iter()
        .partition(|component| component.is_available());
    for component in &missing {
        let name = component.install_name();
        eprintln!(
            "NOT INSTALLED: {component}: tests that need it are not run: run tests/kit/install {name}"
        );
    }
    if is_required() && missing.iter().any(|component| !component.is_optional()) {
        return Err("all servers are required here".into());
    }
    Ok(available)
}

async fn start(components: &[Component]) -> Result<Vec<Server>, lockstep_kit::Error> {
    let began = Instant::now();
    let servers = fleet::start(components).await?;
    eprintln!(
        "\n{}all ready after {:.1} s\n",
        fleet::table(&servers),
        began.elapsed().as_secs_f32()
    );
    Ok(servers)
}

type Done = Result<ExitCode, Box<dyn std::error::Error>>;

async fn run(components: &[Component], command: &[String]) -> Done {
    // Before the start: a signal in the middle of it must not leave a half behind.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let servers = tokio::select! {
        started = start(components) => started?,
        _ = interrupt.recv() => return Ok(ExitCode::from(130)),
        _ = terminate.recv() => return Ok(ExitCode::from(143)),
    };
    let not_run: PathBuf = std::env::temp_dir().join(unique("lockstep-kit-not-run"));
    let mut child = Command::new(&command[0]);
    for name in of_a_package(std::env::vars_os().map(|(name, _)| name)) {
        child.env_remove(name);
    }
    let mut child = child
        .args(&command[1..])
        .envs(
            servers
                .iter()
                .filter_map(|server| Some((server.component.variable()?, &server.value))),
        )
        .env(NOT_RUN_VARIABLE, &not_run)
        .spawn()
        .map_err(|cause| format!("{}: {cause}", command[0]))?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            // The terminal sends it to the command as well.
            _ = interrupt.recv() => {}
            _ = terminate.recv() => pass_on_termination(&child),
        }
    };
    drop(servers);
    if let Ok(lines) = std::fs::read_to_string(&not_run) {
        eprintln!(
            "\n{} test(s) were NOT RUN, for want of servers:\n{lines}",
            lines.lines().count()
        );
        std::fs::remove_file(&not_run)?;
    }
    // A command that a signal ended has no code.
    Ok(status.code().map_or(ExitCode::FAILURE, |code| {
        ExitCode::from(code.clamp(0, 255) as u8)
    }))
}

fn pass_on_termination(child: &Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        // It can only fail for a process that has ended, which the next `wait` tells.
        let _ = kill_process(pid, Signal::TERM);
    }
}

async fn up(components: &[Component]) -> Done {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let work = async {
        let servers = start(components).await?;
        for server in &servers {
            if let Some(variable) = server.component.variable() {
                println!("export {variable}='{}'", server.value);
            }
        }
        println!("ready");
        std::future::pending::<Result<Vec<Server>, lockstep_kit::Error>>().await
    };
    tokio::select! {
        failed = work => failed.map(|_| ExitCode::SUCCESS).map_err(Into::into),
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
    }
}

/// What `cargo run` tells a program of its own package. Cargo run by that program would take it for a change of what some packages
/// are built from, and build everything on top of them again.
fn of_a_package(names: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    const OF_A_PACKAGE: [&str; 4] = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_CRATE_",
        "CARGO_BIN_",
    ];
    names.filter(|name| {
        let name = name.to_string_lossy();
        OF_A_PACKAGE.iter().any(|begins| name.starts_with(begins))
    })
}
