//! One connection: startup, simple queries, COPY out, and the raw bytes of the replication stream.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use lockstep_core::error::{Error, ErrorKind, Result};
use postgres_protocol::message::backend::{DataRowBody, ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::attended::{Attended, GRACE, SILENCE};
use super::stream::Stream;
use super::target::{SslMode, Target};
use super::{auth, frame, tls};
use crate::error::{ServerError, from_io, from_server, protocol};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Plain SQL.
    Sql,
    /// `replication=database`: SQL by the simple protocol, and the replication commands.
    Replication,
}

/// A connection after startup. Not cancel-safe between a request and its reply; [`Connection::fill`] is.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    buffer: BytesMut,
    label: String,
    pub(super) end_point: Option<Vec<u8>>,
    pub(super) channel_bound: bool,
    server_version: u32,
    /// The database says nothing about its bytes: `SQL_ASCII`.
    unencoded: bool,
    /// Whether a silence means anything is found out by this; nothing is while it is missing.
    attended: Option<Box<Attended>>,
}

/// A row of a simple query: text values.
pub type TextRow = Vec<Option<String>>;

impl Connection {
    /// Connects and logs in. Whoever waits for the server later is told when it does not work for us any more, until a stream
    /// begins: that has questions of its own.
    ///
    /// # Errors
    /// By kind: `Unavailable` when nobody answers, `Authentication`, `Permission`, `Setup` by the server's SQLSTATE.
    pub async fn open(target: &Target, mode: Mode) -> Result<Self> {
        let mut connection = Self::open_unattended(target, mode).await?;
        let asked = Attended::of(&mut connection, target);
        let attended = tokio::time::timeout(target.connect_timeout, asked).await;
        connection.attended = Some(Box::new(attended.unwrap_or_else(|_| Err(late(target)))?));
        Ok(connection)
    }

    /// As [`Connection::open`]; a server that is not heard of any more is waited for without end.
    pub(super) async fn open_unattended(target: &Target, mode: Mode) -> Result<Self> {
        let attempt = |tls: Tls| async move {
            let (stream, end_point) = connect(target, tls).await?;
            let mut connection = Connection {
                stream,
                buffer: BytesMut::with_capacity(16 * 1024),
                label: target.label(),
                end_point,
                channel_bound: false,
                server_version: 0,
                unencoded: false,
                attended: None,
            };
            auth::startup(&mut connection, target, mode == Mode::Replication).await?;
            if connection.unencoded {
                connection.take_bytes_as_they_are().await?;
            }
            Ok::<Connection, Error>(connection)
        };
        let work = async {
            match target.sslmode {
                SslMode::Disable => attempt(Tls::No).await,
                // A server that refuses plain connections does so by pg_hba.conf, as 28000.
                SslMode::Allow => match attempt(Tls::No).await {
                    Err(error) if error.kind() == ErrorKind::Authentication => {
                        attempt(Tls::Must).await
                    }
                    other => other,
                },
                SslMode::Prefer => match attempt(Tls::IfOffered).await {
                    Err(error) if error.kind() == ErrorKind::Authentication => {
                        attempt(Tls::No).await.map_err(|_| error)
                    }
                    other => other,
                },
                SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                    attempt(Tls::Must).await
                }
            }
        };
        tokio::time::timeout(target.connect_timeout, work)
            .await
            .unwrap_or_else(|_| Err(late(target)))
    }

    /// A stream for `tokio-postgres`, after TLS and before startup, and the end point that its login is bound to.
    ///
    /// # Errors
    /// As for [`Connection::open`].
    pub async fn open_raw(target: &Target) -> Result<(Stream, Option<Vec<u8>>)> {
        let tls = match target.sslmode {
            SslMode::Disable | SslMode::Allow => Tls::No,
            SslMode::Prefer => Tls::IfOffered,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Tls::Must,
        };
        tokio::time::timeout(target.connect_timeout, connect(target, tls))
            .await
            .unwrap_or_else(|_| Err(late(target)))
    }

    /// `server_version_num`, 150004 for 15.4.
    #[must_use]
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// A server that is to send UTF-8 refuses what is none, and with it all that comes behind (22021). It is told that
    /// anything goes: which values are no text is found when they are encoded, row by row.
    async fn take_bytes_as_they_are(&mut self) -> Result<()> {
        let set = "SET client_encoding = 'SQL_ASCII'";
        self.query("set the encoding", set).await.map(drop)
    }

    pub(super) fn parameter(&mut self, name: &str, value: &str) {
        if name == "server_encoding" {
            self.unencoded = value == "SQL_ASCII";
        }
        if name == "server_version" {
            let mut numbers = value
                .split(|c: char| !c.is_ascii_digit())
                .map(|part| part.parse().unwrap_or(0));
            self.server_version =
                numbers.next().unwrap_or(0) * 10_000 + numbers.next().unwrap_or(0);
        }
    }

    pub(super) fn server_error(&self, doing: &str, body: &ErrorResponseBody) -> Error {
        from_server(doing, server_error(body))
    }

    /// Writes bytes to the server. Not cancel-safe: a part of them may be written.
    ///
    /// # Errors
    /// `Unavailable` when the connection ended.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        write
            .await
            .map_err(|error| from_io(&format!("write to {}", self.label), error))
    }

    /// The next message. Not for the replication stream, whose frames are read in place.
    pub(super) async fn receive(&mut self) -> Result<Message> {
        loop {
            if let Some(found) = frame::next(&self.buffer, 0)? {
                if found.tag == b'W' {
                    return Err(protocol("the server began a stream nobody asked for"));
                }
                let parsed = Message::parse(&mut self.buffer).map_err(|error| {
                    protocol(format!("a message of type {:?}", char::from(found.tag))).source(error)
                })?;
                if let Some(message) = parsed {
                    return Ok(message);
                }
            }
            self.fill_buffer().await?;
        }
    }

    async fn fill_buffer(&mut self) -> Result<()> {
        let reader = (&mut self.stream, self.attended.as_deref(), &*self.label);
        read(reader, &mut self.buffer).await.map(drop)
    }

    /// Runs one statement by the simple protocol and returns its rows.
    ///
    /// # Errors
    /// The server's, by SQLSTATE; `doing` completes "cannot …".
    pub async fn query(&mut self, doing: &str, sql: &str) -> Result<Vec<TextRow>> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            match self
                .receive()
                .await
                .map_err(|error| error.at(format!("while trying to {doing}")))?
            {
                Message::DataRow(body) => rows.push(text_row(&body)?),
                Message::ErrorResponse(body) => failed = Some(self.server_error(doing, &body)),
                Message::ReadyForQuery(_) => break,
                Message::ParameterStatus(_)
                | Message::NoticeResponse(_)
                | Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::EmptyQueryResponse => {}
                _ => {
                    return Err(protocol(format!(
                        "unexpected message while trying to {doing}"
                    )));
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(rows),
        }
    }

    async fn send_query(&mut self, sql: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(|error| from_io("write a query", error))?;
        self.send(&out).await
    }

    /// Sends a `COPY … TO STDOUT` and waits for its beginning; the rows follow as `d` frames, then `c`, `C`, `Z`.
    ///
    /// # Errors
    /// The server's, by SQLSTATE.
    pub async fn begin_copy_out(&mut self, doing: &str, sql: &str) -> Result<()> {
        self.send_query(sql).await?;
        loop {
            match self.receive().await? {
                Message::CopyOutResponse(_) => return Ok(()),
                Message::ErrorResponse(body) => {
                    let error = self.server_error(doing, &body);
                    self.until_ready().await?;
                    return Err(error);
                }
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => {
                    return Err(protocol(format!(
                        "unexpected message while trying to {doing}"
                    )));
                }
            }
        }
    }

    /// The error that ends a copy whose bytes were given back with [`Connection::give_back`].
    pub async fn copy_failed(&mut self, doing: &str) -> Error {
        match self.receive().await {
            Ok(Message::ErrorResponse(body)) => self.server_error(doing, &body),
            Ok(_) => protocol(format!(
                "no error where one was expected while trying to {doing}"
            )),
            Err(error) => error,
        }
    }

    async fn until_ready(&mut self) -> Result<()> {
        loop {
            if let Message::ReadyForQuery(_) = self.receive().await? {
                return Ok(());
            }
        }
    }

    /// Sends `START_REPLICATION` and waits for the stream to begin.
    ///
    /// # Errors
    /// The server's, by SQLSTATE: 55006 the slot is in use, 55000 or 58P01 its log is gone.
    pub async fn begin_stream(&mut self, command: &str) -> Result<()> {
        self.send_query(command).await?;
        loop {
            match frame::next(&self.buffer, 0)? {
                Some(found) if found.tag == b'W' => {
                    let _ = self.buffer.split_to(found.end);
                    self.attended = None;
                    return Ok(());
                }
                Some(_) => match self.receive().await? {
                    Message::ErrorResponse(body) => {
                        return Err(self.server_error("start the stream", &body));
                    }
                    Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                    _ => return Err(protocol("unexpected message before the stream")),
                },
                None => self.fill_buffer().await?,
            }
        }
    }

    /// Takes what was read beyond the last message, for the in-place readers. Call once, before [`Connection::fill`].
    pub fn take_buffered(&mut self) -> Vec<u8> {
        self.buffer.split().to_vec()
    }

    /// Gives back bytes that in-place reading did not use, so that queries can follow.
    pub fn give_back(&mut self, rest: &[u8]) {
        self.buffer.extend_from_slice(rest);
    }

    /// Reads more bytes to the end of `block`, as many as are there and fit its capacity; makes room for at least
    /// `room`. Cancel-safe: bytes are either in `block` or still in the socket.
    ///
    /// # Errors
    /// `Unavailable` when the connection ended.
    pub async fn fill(&mut self, block: &mut Vec<u8>, room: usize) -> Result<usize> {
        if block.capacity() - block.len() < room {
            block.reserve(room);
        }
        let reader = (&mut self.stream, self.attended.as_deref(), &*self.label);
        read(reader, block).await
    }

    /// Says goodbye.
    pub async fn terminate(mut self) {
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        // The connection ends either way.
        if self.send(&out).await.is_ok() {
            let _ = self.stream.shutdown().await;
        }
    }
}

/// Reads what is there; cancel-safe. With somebody to ask, it fails when the server works on nothing that would come.
async fn read(
    (stream, attended, label): (&mut Stream, Option<&Attended>, &str),
    block: &mut impl BufMut,
) -> Result<usize> {
    let mut patience = SILENCE;
    loop {
        let reading = stream.read_buf(block);
        let read = match attended {
            None => reading.await,
            Some(attended) => match tokio::time::timeout(patience, reading).await {
                Ok(read) => read,
                Err(_) if patience == GRACE => return Err(lost(label)),
                Err(_) => {
                    // Boxed: asking is done on a connection, too.
                    let lost = Box::pin(attended.is_lost()).await;
                    patience = if lost { GRACE } else { SILENCE };
                    continue;
                }
            },
        };
        return match read.map_err(|error| from_io(&format!("read from {label}"), error))? {
            0 => Err(closed(label)),
            count => Ok(count),
        };
    }
}

fn lost(label: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "nothing has come from {label} for {} s, and it is at work on nothing that would",
            SILENCE.as_secs()
        ),
    )
    .remedy("look at what is between; the connection is made anew")
}

fn late(target: &Target) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("{} did not answer in time", target.label()),
    )
    .remedy("check the address, the network and connect_timeout")
}

fn closed(label: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("{label} closed the connection"),
    )
}

/// The fields of an ErrorResponse (PostgreSQL documentation, §55.8).
#[must_use]
pub fn server_error(body: &ErrorResponseBody) -> ServerError {
    use fallible_iterator::FallibleIterator;
    let mut error = ServerError::default();
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => error.code = text(),
            b'M' => error.message = text(),
            b'D' => error.detail = Some(text()),
            b'H' => error.hint = Some(text()),
            _ => {}
        }
    }
    error
}

fn text_row(body: &DataRowBody) -> Result<TextRow> {
    use fallible_iterator::FallibleIterator;
    let mut row = Vec::new();
    let mut ranges = body.ranges();
    loop {
        match ranges.next() {
            Ok(Some(range)) => {
                row.push(
                    range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned()),
                );
            }
            Ok(None) => return Ok(row),
            Err(error) => return Err(protocol("a row cannot be read").source(error)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tls {
    No,
    IfOffered,
    Must,
}

/// Keepalive that notices a dead server in about half a minute, also behind firewalls that drop idle connections.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// The same half a minute for data that is not acknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

async fn connect(target: &Target, tls: Tls) -> Result<(Stream, Option<Vec<u8>>)> {
    let doing = format!("connect to {}", target.label());
    let failed = |error| {
        from_io(&doing, error).remedy("start the server, or correct host and port in the URL")
    };
    if target.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", target.host, target.port);
        return Ok((
            Stream::Unix(UnixStream::connect(path).await.map_err(failed)?),
            None,
        ));
    }
    let mut tcp = TcpStream::connect((target.host.as_str(), target.port))
        .await
        .map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    rustix::net::sockopt::set_socket_keepalive(&tcp, true).map_err(|error| failed(error.into()))?;
    rustix::net::sockopt::set_tcp_keepidle(&tcp, KEEPALIVE_IDLE)
        .map_err(|error| failed(error.into()))?;
    rustix::net::sockopt::set_tcp_keepintvl(&tcp, Duration::from_secs(5))
        .map_err(|error| failed(error.into()))?;
    rustix::net::sockopt::set_tcp_keepcnt(&tcp, 3).map_err(|error| failed(error.into()))?;
    // While something that we sent is not acknowledged the kernel sends no keepalives, and tries for a quarter of an hour.
    rustix::net::sockopt::set_tcp_user_timeout(&tcp, USER_TIMEOUT.as_millis() as u32)
        .map_err(|error| failed(error.into()))?;
    if tls == Tls::No {
        return Ok((Stream::Tcp(tcp), None));
    }
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    tcp.write_all(&out).await.map_err(failed)?;
    // One byte and no more: anything sent behind it in the clear must not be taken for the encrypted stream.
    let mut answer = [0];
    tcp.read_exact(&mut answer).await.map_err(failed)?;
    match (answer[0], tls) {
        (b'S', _) => {}
        (_, Tls::IfOffered) => return Ok((Stream::Tcp(tcp), None)),
        _ => {
            return Err(Error::new(
                ErrorKind::Setup,
                format!("{} does not offer TLS", target.label()),
            )
            .remedy("set ssl = on on the server, or sslmode=prefer or disable in the URL"));
        }
    }
    let config = tls::client_config(target)?;
    let name = ServerName::try_from(target.host.clone()).map_err(|error| {
        Error::new(
            ErrorKind::Config,
            format!("`{}` is not a host name TLS can use", target.host),
        )
        .source(error)
    })?;
    let stream = tokio_rustls::TlsConnector::from(Arc::clone(&config))
        .connect(name, tcp)
        .await
        .map_err(|error| {
            // A certificate that does not verify will not verify next time either.
            let kind = if error.kind() == std::io::ErrorKind::InvalidData {
                ErrorKind::Setup
            } else {
                ErrorKind::Unavailable
            };
            Error::new(
                kind,
                format!("the TLS handshake with {} failed", target.label()),
            )
            .source(error)
            .remedy(
                "check sslmode, sslrootcert, sslcert and sslkey against the server's certificate",
            )
        })?;
    let end_point = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|certificate| tls::server_end_point(certificate));
    Ok((Stream::Tls(Box::new(stream)), end_point))
}
