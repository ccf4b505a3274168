//! `lockstep run FILE`.

use std::io::IsTerminal;
use std::process::ExitCode;

use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::{Handle, Pipeline, Standby};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::Outcome;
use crate::admin::{self, Seat};
use crate::progress::Bars;

/// Exit code of a process that was told twice to stop.
const IMPATIENT: i32 = 130;

/// Runs until a signal, then drains; or until an error that only a person can mend, or the lease is lost. With a `[lease]` it waits first
/// until it is its turn. `reread` reads the file anew.
pub async fn run(
    pipeline: &Pipeline,
    bars: &Bars,
    reread: impl Fn() -> Result<Pipeline, Error>,
) -> Outcome {
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone())?;
    // Before anything else: an address in use must not be found out after the copy.
    let listener = match &pipeline.admin {
        Some(section) => Some(admin::bind(section).await?),
        None => None,
    };
    tracing::info!(
        pipeline = &*pipeline.name,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    let standby = Standby::new(pipeline, &holder())?;
    let seat = Seat::new(standby.clone());
    let serve = || listener.map(|listener| tokio::spawn(listener.serve(seat.clone())));
    let (server, running) = match &standby {
        // Who asks meanwhile waits for as long as the start takes.
        None => {
            let running = lockstep_pipelines::start(pipeline, shutdown.clone()).await?;
            seat.taken(running.handle());
            (serve(), running)
        }
        Some(standby) => {
            let server = serve();
            let held = tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    tracing::info!(pipeline = &*pipeline.name, "stopped before it was this one's turn");
                    return Ok(ExitCode::SUCCESS);
                }
                held = standby.turn() => held?,
            };
            let running =
                lockstep_pipelines::start_holding(pipeline, held, shutdown.clone()).await?;
            seat.taken(running.handle());
            (server, running)
        }
    };
    let handle = running.handle();
    // Where a terminal is, its end is what the signal says, and the process goes with it.
    let hangup = match std::io::stderr().is_terminal() {
        true => None,
        false => Some(hear(SignalKind::hangup())?),
    };
    let span = tracing::error_span!("pipeline", pipeline = %pipeline.name);
    let ended = tokio::select! {
        ended = running.wait() => ended,
        () = bars.follow(handle.clone()) => Ok(()),
        () = adopt(&handle, hangup, reread).instrument(span) => Ok(()),
    };
    if let Some(server) = server {
        server.abort();
    }
    ended?;
    let status = handle.status();
    let behind: Vec<&str> = status
        .sinks
        .iter()
        .filter(|(_, sink)| sink.in_flight > 0)
        .map(|(name, _)| &**name)
        .collect();
    if behind.is_empty() {
        tracing::info!(
            pipeline = &*pipeline.name,
            "drained; everything received is durable in every sink"
        );
    } else {
        tracing::warn!(
            pipeline = &*pipeline.name,
            sinks = behind.join(", "),
            "stopped before everything was durable; what is not comes again at the next start"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// This process, for people who look who has the lease: a pod's host name is its own.
pub fn holder() -> String {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().into_owned();
    format!("{host} pid {}", std::process::id())
}

/// At each SIGHUP the file is read again, and what has changed of its sources is carried out. Never ends.
async fn adopt(
    handle: &Handle,
    hangup: Option<Signal>,
    reread: impl Fn() -> Result<Pipeline, Error>,
) {
    let Some(mut hangup) = hangup else {
        return std::future::pending().await;
    };
    while hangup.recv().await.is_some() {
        match reread().and_then(|pipeline| handle.adopt(&pipeline)) {
            Ok(changed) if changed.is_empty() => {
                tracing::info!("the file is read again; nothing has changed");
            }
            Ok(changed) => {
                tracing::info!(changed = changed.join(", "), "the file is read again");
            }
            Err(error) => {
                tracing::error!(%error, "the file is read again, and is not carried out");
            }
        }
    }
    std::future::pending().await
}

fn hear(kind: SignalKind) -> Result<Signal, Error> {
    signal(kind)
        .map_err(|error| Error::new(ErrorKind::Storage, "cannot hear signals").source(error))
}

/// The first SIGTERM or SIGINT asks for a drain, the second ends the process at once.
pub fn stop_on_signals(shutdown: CancellationToken) -> Result<(), Error> {
    let (mut terminate, mut interrupt) = (
        hear(SignalKind::terminate())?,
        hear(SignalKind::interrupt())?,
    );
    tokio::spawn(async move {
        for times in 1.. {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if times == 1 {
                tracing::info!(signal = name, "draining; once more ends at once");
                shutdown.cancel();
            } else {
                tracing::warn!(
                    signal = name,
                    "ending at once; what is not durable comes again at the next start"
                );
                std::process::exit(IMPATIENT);
            }
        }
    });
    Ok(())
}
