//! The connection: one server, or the nodes of a cluster.

use std::path::Path;

use futures_util::future::try_join_all;
use lockstep_core::error::At;
use lockstep_core::{Error, ErrorKind, Result};
use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, Slot, SlotAddr};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo,
    TlsCertificates, Value,
};

use crate::errors;
use crate::server::{Server, TlsConfig};

/// Retries of the cluster's client (redirections, reconnects) may take this many times the response timeout in all.
const CLUSTER_PATIENCE: u32 = 3;

/// A connection that can be shared. Commands of one caller to one node are executed in the order they are sent, unless
/// the cluster's client has to send one again.
#[derive(Clone)]
pub struct Link {
    connection: Connection,
    place: String,
}

#[derive(Clone)]
enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// A command and where it goes in a cluster.
pub struct Command {
    /// The command.
    pub cmd: Cmd,
    /// Where it goes.
    pub node: Node,
}

/// A node of a cluster; a single server is all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// Whichever.
    Any,
    /// The primary that serves a hash slot.
    Serving(Slot),
    /// Every primary; the replies must agree in being no error.
    Primaries,
}

impl Node {
    /// The node that serves a key.
    pub fn of_key(key: impl AsRef<[u8]>) -> Self {
        Node::Serving(Slot::for_key(key))
    }
}

impl Command {
    /// A command whose first argument is the key that decides where it goes.
    pub fn on_key(name: &str, key: impl AsRef<[u8]>) -> Self {
        let mut cmd = redis::cmd(name);
        cmd.arg(key.as_ref());
        Command {
            cmd,
            node: Node::of_key(key),
        }
    }
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// By kind, naming the server.
    pub async fn open(server: &Server) -> Result<Self> {
        let place = server.place();
        let connection = connect(server).await.at(place.clone())?;
        Ok(Link { connection, place })
    }

    /// Whether it is a cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        matches!(self.connection, Connection::Cluster(_))
    }

    /// The server, for messages.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Sends the commands at once and returns a reply for each, in order. An error reply is returned as a value.
    ///
    /// # Errors
    /// When the connection fails or a reply stays out.
    pub async fn ask(&self, commands: Vec<Command>) -> Result<Vec<Value>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let expected = commands.len();
        let replies = match &self.connection {
            Connection::Single(connection) => ask_one(connection.clone(), commands).await,
            Connection::Cluster(connection) => ask_cluster(connection, commands).await,
        };
        let replies = replies.map_err(|cause| self.client_error(cause))?;
        if replies.len() != expected {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!("{} replies to {expected} commands", replies.len()),
            )
            .at(&*self.place));
        }
        Ok(replies)
    }

    /// As [`Link::ask`]; the first error reply is the error.
    ///
    /// # Errors
    /// Those, and what [`Link::ask`] says.
    pub async fn expect(&self, commands: Vec<Command>) -> Result<Vec<Value>> {
        let replies = self.ask(commands).await?;
        replies.iter().try_for_each(|reply| self.check(reply))?;
        Ok(replies)
    }

    /// One command, one reply that is no error.
    ///
    /// # Errors
    /// As for [`Link::expect`].
    pub async fn expect_one(&self, command: Command) -> Result<Value> {
        let mut replies = self.expect(vec![command]).await?;
        Ok(replies.pop().expect("ask returns a reply for each command"))
    }

    /// Turns an error reply into the error it is, at any depth: scripts and transactions nest them.
    ///
    /// # Errors
    /// That error, by kind, naming the server.
    pub fn check(&self, reply: &Value) -> Result<()> {
        match reply {
            Value::ServerError(error) => Err(errors::of_reply(
                error.code(),
                error.details().unwrap_or_default(),
                self.is_cluster(),
            )
            .at(&*self.place)),
            Value::Array(items) | Value::Set(items) => {
                items.iter().try_for_each(|item| self.check(item))
            }
            Value::Map(pairs) => pairs
                .iter()
                .try_for_each(|(name, value)| self.check(name).and_then(|()| self.check(value))),
            _ => Ok(()),
        }
    }

    /// The error for a reply of another shape than the command has.
    #[must_use]
    pub fn unexpected(&self, command: &str, reply: &Value) -> Error {
        errors::unexpected(command, reply).at(&*self.place)
    }

    fn client_error(&self, cause: redis::RedisError) -> Error {
        errors::of_client(cause, self.is_cluster()).at(&*self.place)
    }
}

async fn ask_one(
    mut connection: MultiplexedConnection,
    commands: Vec<Command>,
) -> redis::RedisResult<Vec<Value>> {
    let mut pipeline = redis::Pipeline::with_capacity(commands.len());
    let count = commands.len();
    for command in commands {
        pipeline.add_command(command.cmd);
    }
    connection.send_packed_commands(&pipeline, 0, count).await
}

async fn ask_cluster(
    connection: &ClusterConnection,
    commands: Vec<Command>,
) -> redis::RedisResult<Vec<Value>> {
    let replies = commands.into_iter().map(|command| {
        let mut connection = connection.clone();
        async move {
            let routing = match command.node {
                Node::Any => RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary),
                Node::Serving(slot) => RoutingInfo::SingleNode(
                    SingleNodeRoutingInfo::SpecificNode(Route::with_slot(slot, SlotAddr::Master)),
                ),
                Node::Primaries => {
                    let everywhere = redis::cluster_routing::MultipleNodeRoutingInfo::AllMasters;
                    let policy = redis::cluster_routing::ResponsePolicy::AllSucceeded;
                    RoutingInfo::MultiNode((everywhere, Some(policy)))
                }
            };
            match connection.route_command(command.cmd, routing).await {
                Ok(reply) => Ok(reply),
                // What the server said is a reply like any other; the caller decides.
                Err(error) => match error.clone().into_server_errors().as_deref() {
                    Some([(_, said), ..]) => Ok(Value::ServerError(said.clone())),
                    _ => Err(error),
                },
            }
        }
    });
    try_join_all(replies).await
}

async fn connect(server: &Server) -> Result<Connection> {
    let endpoints = server.endpoints()?;
    let secure = endpoints
        .iter()
        .any(|endpoint| matches!(endpoint.addr(), ConnectionAddr::TcpTls { .. }));
    if secure {
        // Fails only when the process has a provider already, which is then the one to use.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let certificates = match &server.tls {
        Some(tls) => Some(certificates(tls).await?),
        None => None,
    };
    if server.cluster {
        let client = cluster_client(server, endpoints, certificates);
        let client = client.map_err(|cause| errors::of_client(cause, true))?;
        let connection = client.get_async_connection().await;
        return connection
            .map(Connection::Cluster)
            .map_err(|cause| errors::of_client(cause, true));
    }
    let endpoint = endpoints.into_iter().next().ok_or_else(|| {
        Error::new(ErrorKind::Config, "`url` is missing")
            .remedy("write url = \"redis://127.0.0.1:6379\"")
    })?;
    let client = match certificates {
        Some(certificates) => Client::build_with_tls(endpoint, certificates),
        None => Client::open(endpoint),
    }
    .map_err(|cause| errors::of_client(cause, false))?;
    let options = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(server.connect_timeout.0))
        .set_response_timeout(Some(server.response_timeout.0));
    client
        .get_multiplexed_async_connection_with_config(&options)
        .await
        .map(Connection::Single)
        .map_err(|cause| errors::of_client(cause, false))
}

fn cluster_client(
    server: &Server,
    endpoints: Vec<ConnectionInfo>,
    certificates: Option<TlsCertificates>,
) -> redis::RedisResult<ClusterClient> {
    let tcp = endpoints[0].tcp_settings().clone();
    let builder = ClusterClientBuilder::new(endpoints)
        .tcp_settings(tcp)
        .connection_timeout(server.connect_timeout.0)
        .response_timeout(server.response_timeout.0)
        .overall_response_timeout(Some(server.response_timeout.0 * CLUSTER_PATIENCE));
    match certificates {
        Some(certificates) => builder.certs(certificates).build(),
        None => builder.build(),
    }
}

async fn certificates(tls: &TlsConfig) -> Result<TlsCertificates> {
    let client_tls = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Some(ClientTlsConfig {
            client_cert: read(cert, "tls.cert").await?,
            client_key: read(key, "tls.key").await?,
        }),
        _ => None,
    };
    let root_cert = match &tls.ca {
        Some(ca) => Some(read(ca, "tls.ca").await?),
        None => None,
    };
    Ok(TlsCertificates {
        client_tls,
        root_cert,
    })
}

async fn read(path: &Path, field: &str) -> Result<Vec<u8>> {
    tokio::fs::read(path).await.map_err(|cause| {
        Error::new(
            ErrorKind::Config,
            format!("`{field}`: cannot read {}", path.display()),
        )
        .source(cause)
        .remedy("name a PEM file that this user may read")
    })
}
