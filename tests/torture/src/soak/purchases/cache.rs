//! Looks into Redis, as a program that reads a purchase's two keys at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::topic::lock;
use super::violations::Violations;
use super::whole::Whole;

/// For an answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Purchases looked at in one look, at most.
const AT_ONCE: usize = 2_000;
/// How long the last purchases may take to come, once all that was committed is durable.
const MAY_TAKE: Duration = Duration::from_secs(60);

/// A buyer's purchases have numbers one behind the other: so many are looked for before they have come to the topic …
const NEXT: u64 = 2;
/// … for so long, as not each is made.
const MAY_COME: Duration = Duration::from_secs(5);

/// Two keys of a purchase, as they were seen at one moment.
const HALF: usize = 1;
const WHOLE: usize = 2;

/// A client that looks until it is told to end.
#[derive(Debug)]
pub struct Cache {
    ends: watch::Sender<bool>,
    looking: JoinHandle<Result<Seen, String>>,
}

/// What it has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Looks at a purchase.
    pub looks: u64,
    /// Of those, at half of one.
    pub halves: u64,
    /// Purchases that were seen as a whole.
    pub purchases: u64,
}

/// Keys: `{prefix}:{table}:{number}`.
pub fn key(prefix: &str, table: &str, number: u64) -> String {
    format!("{prefix}:{table}:{number}")
}

impl Cache {
    /// Begins to look for the purchases that are in the topic, and at all articles.
    pub fn watch(
        url: &str,
        prefix: &str,
        articles: u64,
        whole: Arc<Mutex<Whole>>,
        violations: &Violations,
    ) -> Self {
        let (ends, told) = watch::channel(false);
        let looker = Looker {
            url: url.to_owned(),
            prefix: prefix.to_owned(),
            articles,
            whole,
            violations: violations.clone(),
            taken: 0,
            awaited: BTreeMap::new(),
            versions: HashMap::new(),
            seen: Seen::default(),
        };
        Cache {
            ends,
            looking: tokio::spawn(looker.run(told)),
        }
    }

    /// Ends when all purchases that are in the topic have been seen, or the time is over.
    ///
    /// # Errors
    /// When it could not look.
    pub async fn end(self) -> Result<Seen, String> {
        // Whoever looks may have ended by itself.
        let _ = self.ends.send(true);
        self.looking.await.map_err(|error| error.to_string())?
    }
}

struct Awaited {
    /// It is in the topic; else it is the next one of its buyer, if that makes it, and may be here before.
    is_bought: bool,
    since: Instant,
}

impl Awaited {
    fn now(is_bought: bool) -> Self {
        Awaited {
            is_bought,
            since: Instant::now(),
        }
    }
}

struct Looker {
    url: String,
    prefix: String,
    articles: u64,
    whole: Arc<Mutex<Whole>>,
    violations: Violations,
    /// So many of the topic's purchases are looked for, or have been.
    taken: usize,
    /// Those that were not seen as a whole yet.
    awaited: BTreeMap<u64, Awaited>,
    versions: HashMap<u64, u64>,
    seen: Seen,
}

impl Looker {
    async fn run(mut self, ends: watch::Receiver<bool>) -> Result<Seen, String> {
        let told = |error: RedisError| format!("Redis: {error}");
        let mut connection = connect(&self.url).await.map_err(told)?;
        let mut last = None;
        loop {
            let is_last = *ends.borrow();
            self.take_more();
            self.look(&mut connection).await.map_err(told)?;
            self.look_at_stock(&mut connection).await.map_err(told)?;
            if is_last {
                let since = *last.get_or_insert_with(Instant::now);
                self.awaited.retain(|_, one| one.is_bought);
                if self.awaited.is_empty() {
                    return Ok(self.seen);
                }
                if since.elapsed() > MAY_TAKE {
                    for number in self.awaited.keys() {
                        let what = format!("cache: purchase {number} is not there as a whole");
                        self.violations.add(what);
                    }
                    return Ok(self.seen);
                }
            }
            sleep(LOOK).await;
        }
    }

    fn take_more(&mut self) {
        let room = AT_ONCE.saturating_sub(self.awaited.len());
        {
            let whole = lock(&self.whole);
            for &number in whole.bought_from(self.taken).iter().take(room) {
                let one = self.awaited.entry(number);
                one.or_insert_with(|| Awaited::now(true)).is_bought = true;
                // Where it may be seen while it is written.
                for next in number + 1..=number + NEXT {
                    let next = self.awaited.entry(next);
                    next.or_insert_with(|| Awaited::now(false));
                }
                self.taken += 1;
            }
        }
        let is_awaited = |one: &Awaited| one.is_bought || one.since.elapsed() < MAY_COME;
        self.awaited.retain(|_, one| is_awaited(one));
    }

    async fn look(&mut self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        if self.awaited.is_empty() {
            return Ok(());
        }
        let numbers: Vec<u64> = self.awaited.keys().copied().collect();
        let mut pipe = redis::pipe();
        for &number in &numbers {
            // One command sees both at one moment.
            pipe.cmd("EXISTS")
                .arg(key(&self.prefix, "orders", number))
                .arg(key(&self.prefix, "reservations", number));
        }
        let there: Vec<usize> = pipe.query_async(connection).await?;
        for (number, there) in numbers.into_iter().zip(there) {
            self.seen.looks += 1;
            let Some(one) = self.awaited.get(&number) else {
                continue;
            };
            match there {
                WHOLE => {
                    self.seen.purchases += u64::from(one.is_bought);
                    self.awaited.remove(&number);
                }
                HALF => {
                    self.seen.halves += 1;
                    self.violations
                        .add(format!("cache: half of purchase {number}"));
                    self.awaited.remove(&number);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What has changed once more does not become what it was.
    async fn look_at_stock(
        &mut self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), RedisError> {
        for (article, version) in versions(connection, &self.prefix, self.articles).await? {
            let before = self.versions.insert(article, version).unwrap_or_default();
            if version < before {
                self.violations.add(format!(
                    "cache: article {article} goes from its change {before} back to {version}"
                ));
            }
        }
        Ok(())
    }
}

async fn connect(url: &str) -> Result<MultiplexedConnection, RedisError> {
    // On a machine that is busy with all this an answer takes its time.
    let patient = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER))
        .set_response_timeout(Some(ANSWER));
    let client = Client::open(url)?;
    client
        .get_multiplexed_async_connection_with_config(&patient)
        .await
}

async fn versions(
    connection: &mut MultiplexedConnection,
    prefix: &str,
    articles: u64,
) -> Result<Vec<(u64, u64)>, RedisError> {
    let mut ask = redis::cmd("MGET");
    for article in 1..=articles {
        ask.arg(key(prefix, "stock", article));
    }
    let texts: Vec<Option<String>> = ask.query_async(connection).await?;
    let version = |text: Option<String>| {
        let row: Value = serde_json::from_str(&text?).ok()?;
        row["version"].as_u64()
    };
    let versions = (1..).zip(texts);
    Ok(versions
        .filter_map(|(article, text)| Some((article, version(text)?)))
        .collect())
}

/// All that is there in the end.
#[derive(Debug)]
pub struct Kept {
    /// Numbers of orders, reservations and visits.
    pub numbers: [HashSet<u64>; 3],
    /// How often each article has changed.
    pub versions: HashMap<u64, u64>,
}

/// Reads everything.
///
/// # Errors
/// When Redis does not answer, or a key has another form.
pub async fn read(url: &str, prefix: &str, articles: u64) -> Result<Kept, String> {
    let told = |error: RedisError| format!("Redis: {error}");
    let mut connection = connect(url).await.map_err(told)?;
    let mut numbers: [HashSet<u64>; 3] = Default::default();
    for (table, numbers) in ["orders", "reservations", "visits"]
        .iter()
        .zip(&mut numbers)
    {
        let begin = format!("{prefix}:{table}:");
        let mut cursor = 0_u64;
        loop {
            let (next, some): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(format!("{begin}*"))
                .arg("COUNT")
                .arg(5_000)
                .query_async(&mut connection)
                .await
                .map_err(told)?;
            for key in some {
                let number = key[begin.len()..].parse();
                numbers.insert(number.map_err(|_| format!("Redis: the key {key}"))?);
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    let versions = versions(&mut connection, prefix, articles).await;
    Ok(Kept {
        numbers,
        versions: versions.map_err(told)?.into_iter().collect(),
    })
}
