//! A session, and a connection in it: one request at a time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use lockstep_core::config::Secret;
use lockstep_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::record::{Reader, Writer};

const CREATE: i32 = 1;
const EXISTS: i32 = 3;
const WRITE: i32 = 5;
const CHILDREN: i32 = 8;
const AUTHENTICATE: i32 = 100;
const END_SESSION: i32 = -11;

/// The number of what is no answer: news of a watched node.
const EVENT: i32 = -1;
const AUTHENTICATED: i32 = -4;

const NO_NODE: i32 = -101;
const NO_RIGHT: i32 = -102;
const NODE_EXISTS: i32 = -110;
const SESSION_EXPIRED: i32 = -112;
const NOT_AUTHENTICATED: i32 = -115;

/// All rights.
const ALL: i32 = 31;
const EPHEMERAL_SEQUENTIAL: i32 = 3;

/// What a server takes at most, by default; answers here are far smaller.
const LONGEST_FRAME: usize = 8 << 20;

const DEFAULT_PORT: u16 = 2181;

/// The ensemble.
#[derive(Clone, Debug)]
pub(super) struct Servers {
    addresses: Vec<String>,
    /// Empty, or a path without a slash at its end.
    pub(super) root: String,
    digest: Option<Secret>,
    /// The time of a session.
    ttl: Duration,
    /// Where to begin: each connection with the next server.
    next: Arc<AtomicUsize>,
}

impl Servers {
    /// # Errors
    /// Of kind `Config`.
    pub(super) fn parse(text: &str, digest: Option<Secret>, ttl: Duration) -> Result<Self> {
        let (addresses, root) = match text.split_once('/') {
            Some((addresses, path)) => (addresses, format!("/{}", path.trim_end_matches('/'))),
            None => (text, String::new()),
        };
        let address = |text: &str| {
            let bare = !text.contains(':') || text.ends_with(']');
            match bare {
                true => format!("{text}:{DEFAULT_PORT}"),
                false => text.to_owned(),
            }
        };
        let servers = Servers {
            addresses: addresses
                .split(',')
                .map(str::trim)
                .filter(|text| !text.is_empty())
                .map(address)
                .collect(),
            root: if root == "/" { String::new() } else { root },
            digest,
            ttl,
            next: Arc::default(),
        };
        if servers.addresses.is_empty() || servers.root.contains("//") {
            return Err(Error::new(
                ErrorKind::Config,
                format!("`{text}` does not name the servers of a ZooKeeper"),
            )
            .remedy("write servers = \"host:2181,host:2181\", with /path behind them if need be"));
        }
        Ok(servers)
    }

    pub(super) fn place(&self) -> String {
        format!("{}{}", self.addresses.join(","), self.root)
    }
}

/// What is left of a session when its connection is gone.
#[derive(Clone)]
pub(super) struct Session {
    id: i64,
    password: Vec<u8>,
    timeout: Duration,
    /// The last transaction it has heard of: a server that has not will not have it.
    seen: i64,
}

impl Session {
    /// For how long a write through the leader is good; see the room's documentation.
    pub(super) fn granted(&self) -> Duration {
        self.timeout * 2 / 3
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password is one.
        write!(f, "session {:#x}", self.id)
    }
}

/// What came of connecting.
pub(super) enum Opened {
    Link(Box<Link>),
    /// The session that was to go on is over.
    Expired,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    /// What has come and was not read: a frame in part, at most.
    buffer: BytesMut,
    session: Session,
    /// The number of the last request.
    last: i32,
    /// A watched node has changed since the watch was set.
    changed: bool,
    /// What is made is its maker's alone.
    authenticated: bool,
}

impl Link {
    /// Connects to one of the servers, in a new session or in one that is there.
    ///
    /// # Errors
    /// `Unavailable` when none can be had; `Authentication`.
    pub(super) async fn open(servers: &Servers, session: Option<Session>) -> Result<Opened> {
        let count = servers.addresses.len();
        let first = servers.next.fetch_add(1, Ordering::Relaxed);
        // All of them get their turn within the time of a lease.
        let patience = servers.ttl / (2 * count as u32);
        let mut failed = None;
        for turn in 0..count {
            let address = &servers.addresses[first.wrapping_add(turn) % count];
            let opening = Self::open_at(address, servers, session.clone());
            match tokio::time::timeout(patience, opening).await {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error)) if error.kind() != ErrorKind::Unavailable => return Err(error),
                Ok(Err(error)) => failed = Some(error),
                Err(_) => {
                    failed = Some(unavailable(format!("{address} did not answer in time")));
                }
            }
        }
        Err(failed.unwrap_or_else(|| unavailable("there are no servers".into())))
    }

    async fn open_at(address: &str, servers: &Servers, session: Option<Session>) -> Result<Opened> {
        let failed = |error| unavailable(format!("cannot connect to {address}")).source(error);
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let known = session.is_some();
        let session = session.unwrap_or_else(|| Session {
            id: 0,
            password: vec![0; 16],
            timeout: servers.ttl,
            seen: 0,
        });
        let mut link = Link {
            stream,
            buffer: BytesMut::with_capacity(4096),
            session,
            last: 0,
            changed: false,
            authenticated: false,
        };
        if !link.begin().await? {
            return match known {
                true => Ok(Opened::Expired),
                false => Err(unavailable(format!("{address} gives no session"))),
            };
        }
        if !known && link.session.timeout > servers.ttl {
            tracing::warn!(
                asked = ?servers.ttl,
                given = ?link.session.timeout,
                "the server's sessions last longer than the lease: who follows a holder that is gone waits for them; \
                 lower its tickTime or raise the ttl"
            );
        }
        if let Some(digest) = &servers.digest {
            link.authenticate(digest).await?;
        }
        Ok(Opened::Link(Box::new(link)))
    }

    /// Asks for the session; `false`: there is none of that number any more.
    async fn begin(&mut self) -> Result<bool> {
        let milliseconds = i32::try_from(self.session.timeout.as_millis()).unwrap_or(i32::MAX);
        let request = Writer::new()
            .int(0)
            .long(self.session.seen)
            .int(milliseconds)
            .long(self.session.id)
            .bytes(&self.session.password)
            // A server without a majority cannot give leases.
            .bool(false);
        self.send(request).await?;
        let frame = self.frame().await?;
        let mut answer = Reader(&frame);
        let _version = answer.int()?;
        let timeout = answer.int()?;
        let id = answer.long()?;
        let password = answer.bytes()?.to_vec();
        if timeout <= 0 || id == 0 {
            return Ok(false);
        }
        self.session = Session {
            id,
            password,
            timeout: Duration::from_millis(timeout.unsigned_abs().into()),
            seen: self.session.seen,
        };
        Ok(true)
    }

    async fn authenticate(&mut self, digest: &Secret) -> Result<()> {
        let request = Writer::new()
            .int(AUTHENTICATED)
            .int(AUTHENTICATE)
            .int(0)
            .text("digest")
            .text(digest.reveal());
        self.send(request).await?;
        self.authenticated = true;
        self.answer(AUTHENTICATED, "authenticate").await.map(drop)
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Makes a node, ephemeral and with a number behind its name if it stands in a queue; its path. One that is there already is
    /// as good as made. `None` when its directory is missing.
    pub(super) async fn create(
        &mut self,
        path: &str,
        data: &str,
        queue: bool,
    ) -> Result<Option<String>> {
        let (scheme, id) = match self.authenticated {
            true => ("auth", ""),
            false => ("world", "anyone"),
        };
        let request = self
            .request(CREATE)
            .text(path)
            .text(data)
            .int(1)
            .int(ALL)
            .text(scheme)
            .text(id)
            .int(if queue { EPHEMERAL_SEQUENTIAL } else { 0 });
        match self.call(request, "make a node").await? {
            Ok(body) => Reader(&body).text().map(Some),
            Err(NODE_EXISTS) => Ok(Some(path.to_owned())),
            Err(NO_NODE) => Ok(None),
            Err(code) => Err(refused("make a node", code)),
        }
    }

    /// The names of the nodes in a directory; `None` when it is missing.
    pub(super) async fn children(&mut self, path: &str) -> Result<Option<Vec<String>>> {
        let request = self.request(CHILDREN).text(path).bool(false);
        match self.call(request, "list a queue").await? {
            Ok(body) => Reader(&body).texts().map(Some),
            Err(NO_NODE) => Ok(None),
            Err(code) => Err(refused("list a queue", code)),
        }
    }

    /// Watches a node: [`Link::event`] tells when it changes or goes. `false` when there is none.
    pub(super) async fn watch(&mut self, path: &str) -> Result<bool> {
        self.changed = false;
        let request = self.request(EXISTS).text(path).bool(true);
        match self.call(request, "watch a node").await? {
            Ok(_) => Ok(true),
            Err(NO_NODE) => Ok(false),
            Err(code) => Err(refused("watch a node", code)),
        }
    }

    /// Writes to a node; the number of the transaction that made it. `None` when there is no such node.
    pub(super) async fn write(&mut self, path: &str, data: &str) -> Result<Option<u64>> {
        let request = self.request(WRITE).text(path).text(data).int(-1);
        match self.call(request, "write to a node").await? {
            Ok(body) => {
                let czxid = Reader(&body).long()?;
                Ok(Some(czxid.unsigned_abs()))
            }
            Err(NO_NODE) => Ok(None),
            Err(code) => Err(refused("write to a node", code)),
        }
    }

    /// Ends the session: its nodes go at once.
    pub(super) async fn end_session(mut self) -> Result<()> {
        let request = self.request(END_SESSION);
        match self.call(request, "end the session").await? {
            Ok(_) | Err(SESSION_EXPIRED) => Ok(()),
            Err(code) => Err(refused("end the session", code)),
        }
    }

    /// Returns when the watched node has changed or gone. Cancel-safe.
    pub(super) async fn event(&mut self) -> Result<()> {
        while !self.changed {
            let frame = self.frame().await?;
            self.note(&frame)?;
        }
        Ok(())
    }

    fn request(&mut self, what: i32) -> Writer {
        self.last = self.last.checked_add(1).unwrap_or(1);
        Writer::new().int(self.last).int(what)
    }

    /// Sends a request made by [`Link::request`] and waits for its answer, or the number of the server's error.
    async fn call(&mut self, request: Writer, doing: &str) -> Result<Result<Vec<u8>, i32>> {
        self.send(request).await?;
        match self.answer(self.last, doing).await? {
            Err(SESSION_EXPIRED) => Err(expired()),
            answer => Ok(answer),
        }
    }

    async fn answer(&mut self, number: i32, doing: &str) -> Result<Result<Vec<u8>, i32>> {
        loop {
            let frame = self.frame().await?;
            let (found, code, body) = self.note(&frame)?;
            if found == EVENT {
                continue;
            }
            if found != number {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    format!("an answer to another request came, while trying to {doing}"),
                ));
            }
            return match code {
                0 => Ok(Ok(body.to_vec())),
                NOT_AUTHENTICATED => Err(refused(doing, code)),
                code => Ok(Err(code)),
            };
        }
    }

    /// The head of a frame: whose answer it is, the error, and the rest.
    fn note<'a>(&mut self, frame: &'a [u8]) -> Result<(i32, i32, &'a [u8])> {
        let mut head = Reader(frame);
        let (number, zxid, code) = (head.int()?, head.long()?, head.int()?);
        self.session.seen = self.session.seen.max(zxid);
        if number == EVENT {
            self.changed = true;
        }
        Ok((number, code, head.0))
    }

    async fn send(&mut self, request: Writer) -> Result<()> {
        let sent = self.stream.write_all(&request.frame()).await;
        sent.map_err(|error| unavailable("cannot write to the server".into()).source(error))
    }

    /// The next frame, without its length. Cancel-safe: what has come stays in the buffer.
    async fn frame(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(head) = self.buffer.first_chunk::<4>() {
                let length = u32::from_be_bytes(*head) as usize;
                if length > LONGEST_FRAME {
                    return Err(Error::new(
                        ErrorKind::Protocol,
                        format!("the server announces {length} bytes"),
                    )
                    .remedy("check that the address leads to a ZooKeeper's client port"));
                }
                if self.buffer.len() >= 4 + length {
                    self.buffer.advance(4);
                    return Ok(self.buffer.split_to(length).to_vec());
                }
            }
            let read = self.stream.read_buf(&mut self.buffer).await;
            match read
                .map_err(|error| unavailable("cannot read from the server".into()).source(error))?
            {
                0 => return Err(unavailable("the server closed the connection".into())),
                _ => continue,
            }
        }
    }
}

fn unavailable(message: String) -> Error {
    Error::new(ErrorKind::Unavailable, message)
        .remedy("start the servers, or correct their addresses")
}

/// The word by which [`is_expired`] knows it.
const EXPIRED: &str = "the session has expired";

fn expired() -> Error {
    Error::new(ErrorKind::Unavailable, EXPIRED)
}

/// Whether the session is over, and with it everything that hung on it.
pub(super) fn is_expired(error: &Error) -> bool {
    error.message() == EXPIRED
}

/// The house error for an error of the server.
fn refused(doing: &str, code: i32) -> Error {
    let error = |kind| {
        Error::new(
            kind,
            format!("cannot {doing}: the server answers with error {code}"),
        )
    };
    match code {
        NO_RIGHT => error(ErrorKind::Permission)
            .remedy("give the digest by which the nodes under /lockstep were made, or remove them"),
        NOT_AUTHENTICATED => {
            error(ErrorKind::Authentication).remedy("correct the digest: user:password")
        }
        // Of the API: a parent that is ephemeral, an access list that is none. Nothing here leads to them.
        -111 | -108 | -113 | -114 => error(ErrorKind::Protocol),
        // Of the system, or a session that has moved: another connection may help.
        _ => error(ErrorKind::Unavailable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Servers> {
        Servers::parse(text, None, Duration::from_secs(10))
    }

    #[test]
    fn servers_are_read() {
        let servers = parse("a, b:1,[::1]/x/y/").expect("valid");
        assert_eq!(servers.addresses, ["a:2181", "b:1", "[::1]:2181"]);
        assert_eq!(servers.root, "/x/y");
        assert_eq!(servers.place(), "a:2181,b:1,[::1]:2181/x/y");
        assert_eq!(parse("a/").expect("valid").root, "");
        for bad in ["", ",", "/x", "a/x//y"] {
            assert_eq!(parse(bad).expect_err(bad).kind(), ErrorKind::Config);
        }
    }

    #[test]
    fn a_session_is_trusted_for_less_than_it_lasts() {
        let session = Session {
            id: 1,
            password: b"secret".to_vec(),
            timeout: Duration::from_secs(9),
            seen: 0,
        };
        assert_eq!(session.granted(), Duration::from_secs(6));
        assert!(!format!("{session:?}").contains("115"), "{session:?}");
    }
}
