//! A TCP proxy that misbehaves on demand.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::port::Port;

/// Listens on a loopback port and forwards to a server, until told to do worse. Lives on the runtime that made it.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    orders: watch::Sender<Orders>,
    listening: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

#[derive(Clone, Debug)]
struct Orders {
    target: String,
    refuse: bool,
    pause: bool,
    latency: Duration,
    /// How often `cut` was called: a connection lives while this stays what it was at its start.
    cuts: u64,
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
            pause: false,
            latency: Duration::ZERO,
            cuts: 0,
        };
        let port = Port::reserve().unwrap_or_else(|error| panic!("{error}"));
        let (orders, watched) = watch::channel(orders);
        let (report, listening) = watch::channel(false);
        let task = tokio::spawn(serve(port.number(), watched, report));
        let proxy = Self {
            port,
            orders,
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

    /// Ends all connections at once, with a reset. New ones are accepted.
    pub fn cut(&self) {
        self.orders.send_modify(|orders| orders.cuts += 1);
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
        self.orders.send_modify(|orders| orders.pause = pause);
    }

    /// Holds each piece of data back for this long, both ways: a round trip takes twice as much more.
    pub fn latency(&self, latency: Duration) {
        self.orders.send_modify(|orders| orders.latency = latency);
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

async fn serve(port: u16, mut orders: watch::Receiver<Orders>, listening: watch::Sender<bool>) {
    // Dropped with this task: its connections end too.
    let mut connections = JoinSet::new();
    loop {
        if orders.wait_for(|orders| !orders.refuse).await.is_err() {
            return;
        }
        let Ok(listener) = listen(port) else { return };
        listening.send_replace(true);
        let given = orders.clone();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((client, _)) = accepted {
                        connections.spawn(forward(client, given.clone()));
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

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    socket.listen(1024)
}

/// One connection. An end of one direction is passed on; an error of either, or a cut, ends both.
async fn forward(mut client: TcpStream, mut orders: watch::Receiver<Orders>) {
    let (target, cuts) = {
        let now = orders.borrow();
        (now.target.clone(), now.cuts)
    };
    // A server that is down looks like one that hangs up.
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    let pumped = orders.clone();
    let was_cut = tokio::select! {
        _ = pump_both(&mut client, &mut server, &pumped) => false,
        _ = orders.wait_for(|orders| orders.cuts != cuts) => true,
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
    orders: &watch::Receiver<Orders>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(
        pump(from_client, to_server, orders.clone()),
        pump(from_server, to_client, orders.clone()),
    )?;
    Ok(())
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut orders: watch::Receiver<Orders>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        let latency = {
            let now = orders
                .wait_for(|orders| !orders.pause)
                .await
                .map_err(io::Error::other)?;
            now.latency
        };
        tokio::time::sleep(latency).await;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}
