//! A connection that can be ended at once.

use std::fmt::Display;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_rs::Tokio;
use async_rs::traits::Reactor;
use futures_util::Stream;
use lapin::options::ConfirmSelectOptions;
use lapin::tcp::RustlsConnector;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, Event};
use lockstep_core::error::Policy;
use lockstep_core::{Error, ErrorKind, Result};

use crate::config::RabbitmqConfig;
use crate::error::{self, UNREACHABLE};
use crate::tls;

/// How long an orderly end may take. The broker takes nothing while it is out of memory or disk, not even a good-bye.
const GOODBYE: Duration = Duration::from_secs(5);
/// `200 OK`, as connections and channels end.
pub(crate) const OK: (u16, &str) = (200, "OK");

/// What a connection tells.
pub(crate) type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

type Socket = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// A broker, and how to get in.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) uri: AMQPUri,
    /// As messages name it, without credentials.
    pub(crate) place: String,
}

/// Ends a connection where it is: nothing that was not sent is sent after it.
#[derive(Debug)]
pub(crate) struct Plug(TcpStream);

impl Plug {
    pub(crate) fn pull(&self) {
        // It can only fail for one that has ended.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// A connection. Dropping it ends it at once.
pub(crate) struct Link {
    connection: Connection,
    pub(crate) plug: Arc<Plug>,
    /// As messages name the broker.
    pub(crate) place: String,
    /// As it was agreed on.
    pub(crate) heartbeat: Duration,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.plug.pull();
    }
}

impl Link {
    /// Connects to the first broker that can be reached. `name` is what operators see in their list of connections.
    pub(crate) async fn open(config: &RabbitmqConfig, name: &str) -> Result<Self> {
        let mut last = None;
        for endpoint in config.endpoints()? {
            match Self::open_one(config, &endpoint, name).await {
                Ok(link) => return Ok(link),
                // What a person has to mend is the same at each of them.
                Err(error) if error.kind().policy() == Policy::Stop => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(ErrorKind::Config, "there is no URL")))
    }

    async fn open_one(config: &RabbitmqConfig, endpoint: &Endpoint, name: &str) -> Result<Self> {
        let limit = config.connect_timeout.0;
        let in_time = tokio::time::timeout(limit, dial(config, endpoint)).await;
        let (socket, plug) = in_time.map_err(|_| silent(endpoint, limit))??;
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property("product".into(), "lockstep".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let given = Mutex::new(Some(socket));
        let connecting = Connection::connector(
            endpoint.uri.clone(),
            lapin::runtime::default_runtime().map_err(|error| of(endpoint, &error))?,
            async move |_, _| {
                let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
                let socket = given.take();
                // One is all that there is: who wants another has lost this one.
                socket.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into())
            },
            properties,
        );
        match tokio::time::timeout(limit, connecting).await {
            Ok(Ok(connection)) => Ok(Link {
                plug: Arc::new(plug),
                place: endpoint.place.clone(),
                heartbeat: Duration::from_secs(connection.configuration().heartbeat().into()),
                connection,
            }),
            Ok(Err(error)) => {
                plug.pull();
                Err(of(endpoint, &error))
            }
            Err(_) => {
                plug.pull();
                Err(silent(endpoint, limit))
            }
        }
    }

    /// What is told of the connection: that it is blocked, that it has failed.
    pub(crate) fn events(&self) -> Events {
        Box::pin(self.connection.events_listener())
    }

    pub(crate) async fn channel(&self) -> Result<Channel> {
        let channel = self.connection.create_channel().await;
        channel.map_err(|error| self.failed("a channel cannot be opened", &error))
    }

    /// A channel whose messages are confirmed.
    pub(crate) async fn confirming(&self) -> Result<Channel> {
        let channel = self.channel().await?;
        let selected = channel
            .confirm_select(ConfirmSelectOptions::default())
            .await;
        selected.map_err(|error| self.failed("confirms cannot be had", &error))?;
        Ok(channel)
    }

    pub(crate) fn failed(&self, what: impl Display, error: &lapin::Error) -> Error {
        error::of(what, error).at(&*self.place)
    }

    /// Ends in order, or at once when that takes too long.
    pub(crate) async fn close(self) {
        let (code, text) = OK;
        let closing = self.connection.close(code, text.into());
        if !matches!(tokio::time::timeout(GOODBYE, closing).await, Ok(Ok(()))) {
            tracing::debug!(
                broker = self.place,
                "the connection is ended without a good-bye"
            );
        }
    }
}

fn of(endpoint: &Endpoint, error: &lapin::Error) -> Error {
    error::of("the broker does not let us in", error).at(&*endpoint.place)
}

fn silent(endpoint: &Endpoint, limit: Duration) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("the broker has not answered within {limit:?}"),
    )
    .remedy(UNREACHABLE)
    .at(&*endpoint.place)
}

/// A socket to the broker, encrypted where the URL says so, and the means to end it.
async fn dial(config: &RabbitmqConfig, endpoint: &Endpoint) -> Result<(Socket, Plug)> {
    let authority = &endpoint.uri.authority;
    let unreachable = |cause: io::Error| {
        Error::new(ErrorKind::Unavailable, "the broker cannot be reached")
            .source(cause)
            .remedy(UNREACHABLE)
            .at(&*endpoint.place)
    };
    let addresses = tokio::net::lookup_host((&*authority.host, authority.port)).await;
    let addresses: Vec<_> = addresses.map_err(unreachable)?.collect();
    let runtime = lapin::runtime::default_runtime().map_err(|error| of(endpoint, &error))?;
    let socket = Socket::connect(&runtime, addresses)
        .await
        .map_err(unreachable)?;
    let AsyncTcpStream::Plain(plain) = &socket else {
        return Err(unreachable(io::ErrorKind::Unsupported.into()));
    };
    let tcp = plain.get_ref();
    tcp.set_nodelay(true).map_err(unreachable)?;
    let twin = tcp.as_fd().try_clone_to_owned().map_err(unreachable)?;
    let plug = Plug(TcpStream::from(twin));
    if endpoint.uri.scheme == AMQPScheme::AMQP {
        return Ok((socket, plug));
    }
    let tls = tls::client_config(&config.tls.clone().unwrap_or_default())?;
    let connector = RustlsConnector::from(tls);
    let socket = socket.into_rustls(&connector, &authority.host).await;
    let socket = socket.map_err(|cause| {
        // A certificate that does not verify will not verify next time either.
        let kind = match cause.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => ErrorKind::Setup,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, "the TLS handshake failed")
            .source(cause)
            .remedy("check that `tls.ca` has the authority of the broker's certificate, that this names the host in the URL, and that the broker trusts `tls.cert`, where it asks for one")
            .at(&*endpoint.place)
    })?;
    Ok((socket, plug))
}

/// Who answers there: product and version, as the broker tells everybody who connects.
pub(crate) async fn greeting(config: &RabbitmqConfig, endpoint: &Endpoint) -> Result<String> {
    use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
    let limit = config.connect_timeout.0;
    let ask = async {
        let (mut socket, _plug) = dial(config, endpoint).await?;
        let mut frame = vec![0; 7];
        let read = async {
            socket.write_all(b"AMQP\x00\x00\x09\x01").await?;
            socket.flush().await?;
            socket.read_exact(&mut frame).await?;
            let size = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]);
            // Properties are a few hundred bytes; something else may be listening there.
            frame.resize((size as usize).min(64 * 1024), 0);
            socket.read_exact(&mut frame).await
        };
        let read: io::Result<()> = read.await;
        read.map_err(|cause| {
            Error::new(ErrorKind::Unavailable, "the broker does not greet")
                .source(cause)
                .remedy("check that the port is that of AMQP 0.9.1, and with TLS where the URL has amqps://")
                .at(&*endpoint.place)
        })?;
        Ok(product(&frame).unwrap_or_else(|| "a broker that does not say its name".to_owned()))
    };
    let answer = tokio::time::timeout(limit, ask).await;
    answer.map_err(|_| silent(endpoint, limit))?
}

/// Of a `connection.start`: class, method, two bytes of a version, and properties.
fn product(frame: &[u8]) -> Option<String> {
    let table = frame.strip_prefix(&[0, 10, 0, 10])?.get(2..)?;
    let (_, properties) = lapin::types::parsing::parse_field_table(table).ok()?;
    let text = |name: &str| {
        let value = properties.inner().get(name)?;
        Some(value.as_long_string()?.to_string())
    };
    Some(format!("{} {}", text("product")?, text("version")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read() {
        let mut frame = vec![0, 10, 0, 10, 0, 9];
        let mut table = Vec::new();
        for (name, value) in [("product", "RabbitMQ"), ("version", "3.10.8")] {
            table.push(name.len() as u8);
            table.extend_from_slice(name.as_bytes());
            table.push(b'S');
            table.extend_from_slice(&(value.len() as u32).to_be_bytes());
            table.extend_from_slice(value.as_bytes());
        }
        frame.extend_from_slice(&(table.len() as u32).to_be_bytes());
        frame.extend_from_slice(&table);
        frame.extend_from_slice(&5_u32.to_be_bytes());
        frame.extend_from_slice(b"PLAIN");
        assert_eq!(product(&frame).as_deref(), Some("RabbitMQ 3.10.8"));
        assert_eq!(product(b"HTTP/1.1 400"), None);
    }
}
