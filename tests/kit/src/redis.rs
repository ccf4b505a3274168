//! Redis servers.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::component::Component;
use crate::error::{Context, Error};
use crate::port::Port;
use crate::process::{End, Launch, Process};
use crate::scratch::Scratch;

const START_DEADLINE: Duration = Duration::from_secs(60);

/// A test's own server.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// Keep the data over `kill` and `restart`, by an append-only file. Else it is lost, as in a cache.
    pub append_only: bool,
    /// Lines of `redis.conf` without the dashes: `("maxmemory", "10mb")`.
    pub config: Vec<(String, String)>,
}

/// A running server.
#[derive(Debug)]
pub struct Redis {
    url: String,
    /// `127.0.0.1:6379`.
    address: String,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    process: Process,
    _scratch: Scratch,
    port: Port,
    /// The port of the cluster's bus, in a cluster.
    bus: Option<Port>,
}

/// An answer of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`, or a bulk string.
    Text(String),
    /// `:1`
    Integer(i64),
    /// No such key, or no value.
    Nil,
    /// `*2 …`
    List(Vec<Reply>),
    /// `-ERR …`
    Error(String),
}

impl Redis {
    /// The server that all tests of the process share, started at the first call. Isolate by key prefix.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Redis> = OnceCell::const_new();
        SHARED
            .get_or_init(async || match Component::Redis.provided() {
                Some(url) => Self::provided(&url),
                None => Self::start(RedisOptions::default()).await,
            })
            .await
    }

    /// Starts a server of the test's own.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn start(options: RedisOptions) -> Self {
        Self::try_start(options)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Redis::start`].
    ///
    /// # Errors
    /// When it is not installed or does not start, with the end of its log.
    pub async fn try_start(options: RedisOptions) -> Result<Self, Error> {
        Self::try_start_node(&options, false).await
    }

    pub(crate) async fn try_start_node(
        options: &RedisOptions,
        cluster: bool,
    ) -> Result<Self, Error> {
        let mut tries = 3;
        loop {
            match Self::start_once(options, cluster).await {
                Err(error) if error.is_port_taken() && tries > 1 => tries -= 1,
                outcome => return outcome,
            }
        }
    }

    async fn start_once(options: &RedisOptions, cluster: bool) -> Result<Self, Error> {
        if !Component::Redis.is_installed() {
            return Err(Component::Redis.missing());
        }
        let scratch = Scratch::new("redis")?;
        let port = Port::reserve()?;
        let bus = if cluster {
            Some(Port::reserve()?)
        } else {
            None
        };
        let launch = Launch {
            name: "Redis".into(),
            program: "redis-server".into(),
            args: arguments(options, &port, bus.as_ref()),
            dir: scratch.path().into(),
            end: End::Kill,
        };
        let address = format!("127.0.0.1:{}", port.number());
        let process = Process::start(launch)?;
        let server = Self {
            url: format!("redis://{address}"),
            address,
            own: Some(Own {
                process,
                _scratch: scratch,
                port,
                bus,
            }),
        };
        server.ready().await.map(|()| server)
    }

    /// A server that someone else runs, by its URL.
    pub(crate) fn provided(url: &str) -> Self {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let address = rest.split(['/', '?']).next().unwrap_or_default();
        let address = address.rsplit('@').next().unwrap_or_default();
        let port = if address.contains(':') { "" } else { ":6379" };
        Self {
            url: url.into(),
            address: format!("{address}{port}"),
            own: None,
        }
    }

    async fn ready(&self) -> Result<(), Error> {
        let ping = async || match self.command(&["PING"]).await {
            Ok(Reply::Text(_)) => Ok(()),
            // It asks for a password: the test's business.
            Ok(Reply::Error(said)) if said.starts_with("NOAUTH") => Ok(()),
            other => Err(other),
        };
        self.own().process.ready(START_DEADLINE, ping).await
    }

    fn own(&self) -> &Own {
        self.own
            .as_ref()
            .unwrap_or_else(|| panic!("{} is a server that the kit did not start", self.url))
    }

    /// `redis://127.0.0.1:6379`
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `127.0.0.1:6379`
    pub fn address(&self) -> &str {
        &self.address
    }

    /// On 127.0.0.1.
    ///
    /// # Panics
    /// For a server that a variable provides.
    pub fn port(&self) -> u16 {
        self.own().port.number()
    }

    pub(crate) fn bus_port(&self) -> Option<u16> {
        self.own().bus.as_ref().map(Port::number)
    }

    /// Sends one command on a connection of its own.
    ///
    /// # Errors
    /// When the server cannot be reached. Its own errors are a [`Reply::Error`].
    pub async fn command(&self, words: &[&str]) -> io::Result<Reply> {
        let mut stream = BufReader::new(TcpStream::connect(&self.address).await?);
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        stream.write_all(request.as_bytes()).await?;
        read_reply(&mut stream).await
    }

    /// The server's version: `7.0.15`.
    ///
    /// # Errors
    /// When the server cannot be reached or asked.
    pub async fn version(&self) -> Result<String, Error> {
        let reply = self
            .command(&["INFO", "server"])
            .await
            .context(|| format!("asking {}", self.url))?;
        let Reply::Text(text) = reply else {
            return Err(Error::new(format!("{}: {reply:?}", self.url)));
        };
        let version = text
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"));
        Ok(version.unwrap_or("unknown").trim().to_owned())
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.own().process.kill();
    }

    /// `true` stops the process where it is (SIGSTOP), `false` lets it go on.
    pub fn freeze(&self, freeze: bool) {
        self.own().process.freeze(freeze);
    }

    /// SIGTERM, and SIGKILL after 10 s.
    pub async fn stop(&self) {
        self.own()
            .process
            .stop(Signal::TERM, Duration::from_secs(10))
            .await;
    }

    /// Stops it unless it is down, starts it on the same port, and waits until it answers.
    pub async fn restart(&self) {
        self.stop().await;
        self.own()
            .process
            .start_again()
            .unwrap_or_else(|error| panic!("{error}"));
        self.ready().await.unwrap_or_else(|error| panic!("{error}"));
    }
}

fn arguments(options: &RedisOptions, port: &Port, bus: Option<&Port>) -> Vec<OsString> {
    let append_only = if options.append_only { "yes" } else { "no" };
    let mut config: Vec<(String, String)> = vec![
        ("port".into(), port.number().to_string()),
        ("bind".into(), "127.0.0.1".into()),
        ("daemonize".into(), "no".into()),
        ("save".into(), String::new()),
        ("appendonly".into(), append_only.into()),
    ];
    if let Some(bus) = bus {
        config.extend([
            ("cluster-enabled".into(), "yes".into()),
            ("cluster-port".into(), bus.number().to_string()),
            ("cluster-node-timeout".into(), "2000".into()),
        ]);
    }
    config.extend(options.config.iter().cloned());
    config
        .into_iter()
        .flat_map(|(name, value)| [format!("--{name}").into(), value.into()])
        .collect()
}

async fn read_reply(stream: &mut BufReader<TcpStream>) -> io::Result<Reply> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (kind, rest) = line.trim_end().split_at_checked(1).unwrap_or_default();
    let number = || rest.parse::<i64>().map_err(|_| unexpected(&line));
    match kind {
        "+" => Ok(Reply::Text(rest.into())),
        "-" => Ok(Reply::Error(rest.into())),
        ":" => number().map(Reply::Integer),
        "$" => match usize::try_from(number()?) {
            Err(_) => Ok(Reply::Nil),
            Ok(length) => {
                let mut bytes = vec![0; length + 2];
                stream.read_exact(&mut bytes).await?;
                Ok(Reply::Text(
                    String::from_utf8_lossy(&bytes[..length]).into_owned(),
                ))
            }
        },
        "*" => match usize::try_from(number()?) {
            Err(_) => Ok(Reply::Nil),
            Ok(length) => {
                let mut items = Vec::new();
                for _ in 0..length {
                    items.push(Box::pin(read_reply(stream)).await?);
                }
                Ok(Reply::List(items))
            }
        },
        _ => Err(unexpected(&line)),
    }
}

fn unexpected(line: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("not a Redis reply: {line:?}"),
    )
}
