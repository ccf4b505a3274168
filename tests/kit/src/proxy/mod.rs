//! A TCP proxy that misbehaves on demand.

mod line;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use line::{Connection, End};
use line::{Faults, forward};

use crate::port::Port;

/// Listens on a loopback port and forwards to a server, until told to do worse. Lives on the runtime that made it.
///
/// What is said to the proxy holds for all connections, also for those to come; what is said to one of
/// [`Proxy::connections`] for that one. `cut` and `half_close` happen once, to connections that are there.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    orders: watch::Sender<Orders>,
    lines: Lines,
    listening: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

#[derive(Clone, Debug)]
struct Orders {
    target: String,
    refuse: bool,
}

/// The connections that are there, and what new ones begin with.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    begin_with: Faults,
    open: Vec<Connection>,
    accepted: u64,
}

impl Lines {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Connection {
        let mut board = self.board();
        board.accepted += 1;
        let line = Connection::new(board.accepted, board.begin_with.clone());
        board.open.push(line.clone());
        line
    }

    fn close(&self, line: &Connection) {
        self.board()
            .open
            .retain(|one| one.number() != line.number());
    }

    /// From now on, for everyone.
    fn set(&self, change: impl Fn(&mut Faults)) {
        let mut board = self.board();
        change(&mut board.begin_with);
        for line in &board.open {
            line.change(&change);
        }
    }

    fn each(&self, happens: impl Fn(&Connection)) {
        self.board().open.iter().for_each(happens);
    }
}

impl Proxy {
    /// A proxy to `target`, as `127.0.0.1:9092`, which need not listen yet.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(target: impl Into<String>) -> Self {
        let orders = Orders {
            target: target.into(),
            refuse: false,
        };
        let port = Port::reserve().unwrap_or_else(|error| panic!("{error}"));
        let (orders, watched) = watch::channel(orders);
        let (report, listening) = watch::channel(false);
        let lines = Lines::default();
        let task = tokio::spawn(serve(port.number(), watched, lines.clone(), report));
        let proxy = Self {
            port,
            orders,
            lines,
            listening,
            task,
        };
        proxy.listens(true).await;
        proxy
    }

    /// Where it listens: `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// On 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Forwards new connections to another server.
    pub fn forward_to(&self, target: impl Into<String>) {
        self.orders
            .send_modify(|orders| orders.target = target.into());
    }

    /// The connections that are open, the oldest first.
    pub fn connections(&self) -> Vec<Connection> {
        self.lines.board().open.clone()
    }

    /// Ends all connections at once, with a reset. New ones are accepted.
    pub fn cut(&self) {
        self.lines.each(Connection::cut);
    }

    /// As [`Connection::half_close`], for all that are open.
    pub fn half_close(&self, end: End) {
        self.lines.each(|line| line.half_close(end));
    }

    /// `true` stops listening: new connections are refused, existing ones go on. Returns when that is so.
    pub async fn refuse(&self, refuse: bool) {
        self.orders.send_modify(|orders| orders.refuse = refuse);
        self.listens(!refuse).await;
    }

    /// Refuses and cuts: what a crash of the server looks like. `refuse(false)` ends it.
    pub async fn down(&self) {
        self.refuse(true).await;
        self.cut();
    }

    /// `true` holds all bytes back, both ways: connections stay open and silent. `false` lets them go on.
    pub fn pause(&self, pause: bool) {
        self.lines.set(|faults| faults.pause = pause);
    }

    /// `true` accepts connections, takes all bytes and never answers; the server hears nothing, not even an end. `false`
    /// lets new connections through, while one that has lost bytes stays silent until a side gives up, or a cut.
    pub fn black_hole(&self, black_hole: bool) {
        self.lines.set(|faults| faults.black_hole = black_hole);
    }

    /// Holds each piece of data back for this long, both ways: a round trip takes twice as much more.
    pub fn latency(&self, latency: Duration) {
        self.lines.set(|faults| faults.latency = latency);
    }

    /// Lets so many bytes per second through in each direction of each connection; `None`: as many as come.
    pub fn bandwidth(&self, bandwidth: Option<NonZeroU64>) {
        self.lines.set(|faults| faults.bandwidth = bandwidth);
    }

    async fn listens(&self, wanted: bool) {
        let mut listening = self.listening.clone();
        let changed = listening.wait_for(|&now| now == wanted).await;
        assert!(
            changed.is_ok(),
            "the proxy on {} has ended: its port was taken",
            self.address()
        );
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    port: u16,
    mut orders: watch::Receiver<Orders>,
    lines: Lines,
    listening: watch::Sender<bool>,
) {
    // Dropped with this task: its connections end too.
    let mut connections = JoinSet::new();
    loop {
        if orders.wait_for(|orders| !orders.refuse).await.is_err() {
            return;
        }
        let Ok(listener) = listen_again(port).await else {
            return;
        };
        listening.send_replace(true);
        let given = orders.clone();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((client, _)) = accepted {
                        let target = given.borrow().target.clone();
                        let (line, lines) = (lines.open(), lines.clone());
                        connections.spawn(async move {
                            forward(client, &target, &line).await;
                            lines.close(&line);
                        });
                    }
                }
                Some(_) = connections.join_next() => {}
                refused = orders.wait_for(|orders| orders.refuse) => match refused {
                    Ok(_) => break,
                    Err(_) => return,
                }
            }
        }
        drop(listener);
        listening.send_replace(false);
    }
}

/// A process that is just being started by another thread has all sockets of this one for a moment, the former listener too.
async fn listen_again(port: u16) -> io::Result<TcpListener> {
    let end = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        match listen(port) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && tokio::time::Instant::now() < end =>
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            listener => return listener,
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    socket.listen(1024)
}
