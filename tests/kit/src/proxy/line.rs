//! One connection through the proxy.

use std::io;
use std::num::NonZeroU64;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;

const BUFFER: usize = 64 * 1024;
/// A limited line passes its bytes on in this many pieces a second.
const PIECES: u64 = 20;

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that connected.
    Client,
    /// The one that the proxy forwards to.
    Server,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    pub(super) pause: bool,
    pub(super) black_hole: bool,
    pub(super) latency: Duration,
    pub(super) bandwidth: Option<NonZeroU64>,
    cut: bool,
    client_ended: bool,
    server_ended: bool,
}

impl Faults {
    fn ended(&self, end: End) -> bool {
        match end {
            End::Client => self.client_ended,
            End::Server => self.server_ended,
        }
    }
}

/// One connection, to be misused alone.
#[derive(Clone, Debug)]
pub struct Connection {
    number: u64,
    faults: watch::Sender<Faults>,
}

impl Connection {
    pub(super) fn new(number: u64, faults: Faults) -> Self {
        Self {
            number,
            faults: watch::channel(faults).0,
        }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Faults)) {
        self.faults.send_modify(change);
    }

    /// The proxy counts what it accepts, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Ends it with a reset, at both ends.
    pub fn cut(&self) {
        self.change(|faults| faults.cut = true);
    }

    /// `end` seems to have said all it has to say: the other end reads an end of file, and gets nothing more. The other
    /// direction stays as it is.
    pub fn half_close(&self, end: End) {
        self.change(|faults| match end {
            End::Client => faults.client_ended = true,
            End::Server => faults.server_ended = true,
        });
    }

    /// As [`Proxy::pause`](super::Proxy::pause), for this one.
    pub fn pause(&self, pause: bool) {
        self.change(|faults| faults.pause = pause);
    }

    /// As [`Proxy::black_hole`](super::Proxy::black_hole), for this one.
    pub fn black_hole(&self, black_hole: bool) {
        self.change(|faults| faults.black_hole = black_hole);
    }

    /// As [`Proxy::latency`](super::Proxy::latency), for this one.
    pub fn latency(&self, latency: Duration) {
        self.change(|faults| faults.latency = latency);
    }

    /// As [`Proxy::bandwidth`](super::Proxy::bandwidth), for this one.
    pub fn bandwidth(&self, bandwidth: Option<NonZeroU64>) {
        self.change(|faults| faults.bandwidth = bandwidth);
    }
}

/// Runs a connection to its end. An end of one direction is passed on; an error of either, or a cut, ends both.
pub(super) async fn forward(mut client: TcpStream, target: &str, line: &Connection) {
    let mut faults = line.faults.subscribe();
    if faults.borrow().black_hole {
        let (mut from, _to) = client.split();
        tokio::select! {
            () = swallow(&mut from) => {}
            () = until(&mut faults, |faults| faults.cut) => {}
        }
        return;
    }
    // A server that is down looks like one that hangs up.
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    let watched = faults.clone();
    let was_cut = tokio::select! {
        () = pump_both(&mut client, &mut server, watched) => false,
        () = until(&mut faults, |faults| faults.cut) => true,
    };
    if was_cut {
        // Then the drop is a reset. It can only fail for a socket that is closed already.
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}

async fn pump_both(
    client: &mut TcpStream,
    server: &mut TcpStream,
    mut faults: watch::Receiver<Faults>,
) {
    let pumps = async {
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::try_join!(
            pump(End::Client, from_client, to_server, faults.clone()),
            pump(End::Server, from_server, to_client, faults.clone()),
        )
    };
    // An error is the end of the connection, which both ends see.
    let _: io::Result<_> = pumps.await;
    // The news of an end does not leave a black hole.
    until(&mut faults, |faults| !faults.black_hole).await;
}

async fn pump(
    end: End,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut faults: watch::Receiver<Faults>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let limit = faults.borrow().bandwidth.map(NonZeroU64::get);
        let piece = limit.map_or(BUFFER, |limit| {
            usize::try_from(limit / PIECES)
                .unwrap_or(BUFFER)
                .clamp(1, BUFFER)
        });
        let read = tokio::select! {
            biased;
            () = until(&mut faults, |faults| faults.ended(end)) => None,
            length = from.read(&mut buffer[..piece]) => Some(length?),
        };
        let Some(length) = read else {
            to.shutdown().await?;
            swallow(&mut from).await;
            return Ok(());
        };
        let now = faults
            .wait_for(|faults| !faults.pause)
            .await
            .map_err(io::Error::other)?
            .clone();
        if now.black_hole {
            // A stream with a hole in it cannot go on. When this end gives up, the other one is told, after the hole.
            swallow(&mut from).await;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        tokio::time::sleep(now.latency).await;
        if length == 0 {
            return to.shutdown().await;
        }
        if let Some(limit) = now.bandwidth {
            tokio::time::sleep(Duration::from_secs(1) * length as u32 / limit_of(limit)).await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}

/// Returns when it holds, or when nobody can order anything any more.
async fn until(faults: &mut watch::Receiver<Faults>, holds: impl FnMut(&Faults) -> bool) {
    let _ = faults.wait_for(holds).await;
}

/// A limit above this is none.
fn limit_of(limit: NonZeroU64) -> u32 {
    u32::try_from(limit.get()).unwrap_or(u32::MAX)
}

/// Takes everything until the end.
async fn swallow(from: &mut ReadHalf<'_>) {
    let mut buffer = vec![0; BUFFER];
    while matches!(from.read(&mut buffer).await, Ok(1..)) {}
}
