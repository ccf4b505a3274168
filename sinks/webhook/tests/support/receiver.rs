//! A receiver that does as the documentation tells receivers to: it takes each record once by its id. What it answers beside that
//! is up to the test.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub path: String,
    /// By lower-case names.
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// What is in the body.
    pub records: Vec<Record>,
    /// How many requests with the same `Idempotency-Key` came before.
    pub before: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The column `id` of the only record.
    pub fn row(&self) -> String {
        let [record] = &*self.records else {
            panic!("{} records", self.records.len());
        };
        record.row()
    }
}

/// A record.
#[derive(Clone, Debug)]
pub struct Record {
    pub path: String,
    pub id: String,
    pub key: Value,
    pub value: Value,
}

impl Record {
    /// The column `id` of its key.
    pub fn row(&self) -> String {
        self.key["id"].to_string()
    }

    /// What tells the rows of tables apart.
    fn of(&self) -> String {
        format!("{} {}", self.path, self.key)
    }
}

/// What becomes of a request.
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
    /// Waited for before it is taken.
    first: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// The work is done, and the connection ends without an answer.
    is_lost: bool,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Reply {
            status,
            headers: Vec::new(),
            body: String::new(),
            first: None,
            is_lost: false,
        }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }

    pub fn after(mut self, first: impl Future<Output = ()> + Send + 'static) -> Self {
        self.first = Some(Box::pin(first));
        self
    }

    pub fn later(self, delay: Duration) -> Self {
        self.after(tokio::time::sleep(delay))
    }

    pub fn lost(mut self) -> Self {
        self.is_lost = true;
        self
    }
}

type Answers = dyn Fn(&Asked) -> Reply + Send + Sync;

struct Shared {
    answer: Box<Answers>,
    tls: Option<TlsAcceptor>,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    asked: Vec<Asked>,
    tries: HashMap<String, usize>,
    seen: HashSet<String>,
    taken: Vec<Record>,
    /// Requests under way, by key.
    under_way: HashMap<String, usize>,
    most_of_a_key: usize,
    most: usize,
}

/// Ends with its value.
pub struct Receiver {
    pub url: String,
    address: SocketAddr,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

impl Receiver {
    /// Takes everything.
    pub async fn willing() -> Self {
        Self::start(|_| Reply::status(204)).await
    }

    pub async fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, answer).await
    }

    /// Over TLS, when there is an acceptor.
    pub async fn listen(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            answer: Box::new(answer),
            tls,
            log: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        Receiver {
            url: format!("{scheme}://{address}"),
            address,
            server: Some(tokio::spawn(accept(listener, Arc::clone(&shared)))),
            shared,
        }
    }

    /// Goes, with all connections. What it has taken it remembers.
    pub async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
    }

    /// Comes back where it was.
    pub async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port");
        self.server = Some(tokio::spawn(accept(listener, Arc::clone(&self.shared))));
    }

    /// All that was asked.
    pub fn asked(&self) -> Vec<Asked> {
        self.log().asked.clone()
    }

    /// All that was taken, in the order in which it was.
    pub fn taken(&self) -> Vec<Record> {
        self.log().taken.clone()
    }

    /// The rows of what was taken.
    pub fn rows(&self) -> Vec<String> {
        self.log().taken.iter().map(Record::row).collect()
    }

    /// The most requests that were under way at a time: of one key, and at all.
    pub fn most(&self) -> (usize, usize) {
        let log = self.log();
        (log.most_of_a_key, log.most)
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.shared.log.lock().expect("not poisoned")
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // A client that goes away ends its connection; that is its business.
            let _ = match &shared.tls {
                None => serve(stream, &shared).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, &shared).await,
                    Err(error) => Err(error),
                },
            };
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(asked) = read(&mut stream, shared).await? {
        let mut reply = (shared.answer)(&asked);
        let keys: HashSet<String> = asked.records.iter().map(Record::of).collect();
        let under_way = UnderWay::new(shared, keys);
        if let Some(first) = reply.first.take() {
            first.await;
        }
        if (200..300).contains(&reply.status) {
            let mut log = shared.log.lock().expect("not poisoned");
            for record in asked.records {
                if log.seen.insert(record.id.clone()) {
                    log.taken.push(record);
                }
            }
        }
        drop(under_way);
        if reply.is_lost {
            return Ok(());
        }
        let headers = reply.headers.iter();
        let headers: String = headers
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let length = match reply.status {
            204 => String::new(),
            _ => format!("content-length: {}\r\n", reply.body.len()),
        };
        let head = format!("HTTP/1.1 {} -\r\n{headers}{length}\r\n", reply.status);
        stream.write_all((head + &reply.body).as_bytes()).await?;
    }
    Ok(())
}

async fn read(
    stream: &mut BufReader<impl AsyncRead + AsyncWrite + Unpin>,
    shared: &Shared,
) -> std::io::Result<Option<Asked>> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let headers: BTreeMap<String, String> = head
        .iter()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").map_or("0", String::as_str);
    let mut body = vec![0; length.parse().expect("a length")];
    stream.read_exact(&mut body).await?;
    let body = String::from_utf8(body).expect("UTF-8");
    let mut words = head[0].split(' ').map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let parsed: Value = serde_json::from_str(&body).unwrap_or_default();
    let all = match parsed {
        Value::Array(all) => all,
        Value::Null => Vec::new(),
        one => vec![one],
    };
    let record = |json: &Value| Record {
        path: path.clone(),
        id: json["id"].as_str().expect("an id").to_owned(),
        key: json["key"].clone(),
        value: json["value"].clone(),
    };
    let mut log = shared.log.lock().expect("not poisoned");
    let key = headers.get("idempotency-key").cloned().unwrap_or_default();
    let tries = log.tries.entry(key).or_default();
    let asked = Asked {
        records: all.iter().map(record).collect(),
        before: std::mem::replace(tries, *tries + 1),
        method,
        path,
        headers,
        body,
    };
    log.asked.push(asked.clone());
    Ok(Some(asked))
}

/// A request under way, until it is dropped.
struct UnderWay<'a>(&'a Shared, HashSet<String>);

impl<'a> UnderWay<'a> {
    fn new(shared: &'a Shared, keys: HashSet<String>) -> Self {
        let mut log = shared.log.lock().expect("not poisoned");
        for key in &keys {
            let count = log.under_way.entry(key.clone()).or_default();
            *count += 1;
            let count = *count;
            log.most_of_a_key = log.most_of_a_key.max(count);
        }
        log.most = log.most.max(log.under_way.values().sum());
        drop(log);
        UnderWay(shared, keys)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut log = self.0.log.lock().expect("not poisoned");
        for key in &self.1 {
            if let Some(count) = log.under_way.get_mut(key) {
                *count -= 1;
            }
        }
    }
}
