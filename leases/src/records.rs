//! What whoever takes over has to know, kept in a PostgreSQL database and fenced by the token.
//!
//! Documents of a pipeline, by place and name, in the table `lockstep.record`. The row without a place holds the greatest token: who
//! takes over raises it, and from then on nothing is written with a smaller one, however long it was on its way. A write locks that
//! row for as long as it takes, so the two come one behind the other.
//!
//! The database should be another one than those whose changes the pipeline reads: a server that is restored to an earlier point takes
//! what is kept there along, and nothing is left that would show it.

mod statements;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use lockstep_core::config::Secret;
use lockstep_core::folder::Copies;
use lockstep_core::token::Token;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pg::error::from_sql;
use lockstep_pg::sql;
use lockstep_pg::wire::target::Target;
use tokio::sync::mpsc as tasks;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use statements::{ADOPT, CREATE, PUT, READ, REMOVE};

/// How long a write may take before it counts as one that failed.
const ANSWER: Duration = Duration::from_secs(5);

/// Documents of one place, by name.
pub type Documents = BTreeMap<String, Vec<u8>>;

/// Where documents are kept.
#[derive(Clone, Debug)]
pub struct RecordStore {
    target: Target,
}

/// A pipeline's documents, held by one token.
#[derive(Clone)]
pub struct Records {
    place: Arc<str>,
    orders: tasks::UnboundedSender<Order>,
}

/// A write that somebody waits for.
struct Order {
    place: Arc<str>,
    name: String,
    /// `None`: it is removed.
    content: Option<Vec<u8>>,
    answer: mpsc::SyncSender<Result<()>>,
}

impl RecordStore {
    /// In the database that a URL leads to. No I/O.
    ///
    /// # Errors
    /// Of kind `Config` when the URL cannot be read.
    pub fn new(url: &Secret, password: Option<&Secret>) -> Result<Self> {
        let mut target = Target::parse(url.reveal())?;
        if let Some(password) = password {
            target.password = Some(password.clone());
        }
        Ok(RecordStore { target })
    }

    /// Takes a pipeline's documents over, and gives those of each place. From here on nobody with a smaller token writes any.
    ///
    /// # Errors
    /// `Busy` when somebody with a greater token has done so; the server's.
    pub async fn adopt(
        &self,
        pipeline: &str,
        token: Token,
    ) -> Result<(Records, BTreeMap<String, Documents>)> {
        let number = as_number(token)?;
        let client = sql::connect(&self.target).await?;
        adopt(&client, pipeline, number).await?;
        let places = by_place(
            read(&client, pipeline)
                .await?
                .map_err(|error| from_sql(READING, error))?,
        );
        let (orders, ordered) = tasks::unbounded_channel();
        Writer {
            target: self.target.clone(),
            pipeline: pipeline.to_owned(),
            token: number,
            client: None,
        }
        .start(ordered)?;
        let records = Records {
            place: "".into(),
            orders,
        };
        Ok((records, places))
    }

    /// A pipeline's documents as they are, for one who only looks; none where nobody has kept any.
    ///
    /// # Errors
    /// The server's.
    pub async fn look(&self, pipeline: &str) -> Result<BTreeMap<String, Documents>> {
        let client = sql::connect(&self.target).await?;
        match read(&client, pipeline).await? {
            Ok(rows) => Ok(by_place(rows)),
            Err(error) if is_missing(&error) => Ok(BTreeMap::new()),
            Err(error) => Err(from_sql(READING, error)),
        }
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn label(&self) -> String {
        self.target.label()
    }
}

/// For messages.
const READING: &str = "read what is kept of the pipeline";

async fn read(client: &Client, pipeline: &str) -> Result<Result<Vec<Row>, tokio_postgres::Error>> {
    let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&pipeline, Type::TEXT)];
    sql::in_time_raw(READING, client.query_typed(READ, &parameters)).await
}

fn by_place(rows: Vec<Row>) -> BTreeMap<String, Documents> {
    let mut places: BTreeMap<String, Documents> = BTreeMap::new();
    for row in rows {
        let of_place = places.entry(row.get(0)).or_default();
        of_place.insert(row.get(1), row.get(2));
    }
    places
}

fn as_number(token: Token) -> Result<i64> {
    i64::try_from(token.0).map_err(|_| {
        Error::new(
            ErrorKind::Protocol,
            format!("the token {token} is too great for a table"),
        )
    })
}

/// Raises the token; makes the table when it is missing.
async fn adopt(client: &Client, pipeline: &str, token: i64) -> Result<()> {
    let doing = "take over what is kept of the pipeline";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&pipeline, Type::TEXT), (&token, Type::INT8)];
    let once = || sql::in_time_raw(doing, client.query_typed_opt(ADOPT, &parameters));
    let adopted = match once().await? {
        Err(error) if is_missing(&error) => {
            let made = sql::change(client, "make the table of records", CREATE).await;
            // Somebody else may have made it in the same moment: only if it is still not there does it matter why.
            match once().await? {
                Err(error) if is_missing(&error) => {
                    let error = made.err().unwrap_or_else(|| from_sql(doing, error));
                    return Err(error.remedy(format!(
                        "let somebody who may run: {CREATE} GRANT USAGE ON SCHEMA lockstep TO the_user; \
                         GRANT SELECT, INSERT, UPDATE, DELETE ON lockstep.record TO the_user;"
                    )));
                }
                adopted => adopted,
            }
        }
        adopted => adopted,
    };
    match adopted.map_err(|error| from_sql(doing, error))? {
        Some(_) => Ok(()),
        None => Err(superseded()),
    }
}

fn is_missing(error: &tokio_postgres::Error) -> bool {
    use tokio_postgres::error::SqlState;
    error.code() == Some(&SqlState::UNDEFINED_TABLE)
        || error.code() == Some(&SqlState::INVALID_SCHEMA_NAME)
}

fn superseded() -> Error {
    Error::new(
        ErrorKind::Busy,
        "another one has taken the pipeline over: nothing more is recorded",
    )
    .remedy("nothing is to be done: the other one goes on")
}

impl Records {
    /// The documents of one place.
    #[must_use]
    pub fn of(&self, place: &str) -> Arc<dyn Copies> {
        Arc::new(Records {
            place: place.into(),
            orders: self.orders.clone(),
        })
    }

    fn order(&self, name: &str, content: Option<Vec<u8>>) -> Result<()> {
        let (answer, answered) = mpsc::sync_channel(1);
        let order = Order {
            place: Arc::clone(&self.place),
            name: name.to_owned(),
            content,
            answer,
        };
        let gone = || Error::new(ErrorKind::Stopping, "nothing is recorded any more");
        self.orders.send(order).map_err(|_| gone())?;
        // The writer answers each within its time.
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Copies for Records {
    fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        self.order(name, Some(content.to_owned()))
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.order(name, None)
    }
}

/// Carries writes out, one behind the other.
struct Writer {
    target: Target,
    pipeline: String,
    token: i64,
    /// Missing after anything failed.
    client: Option<Client>,
}

impl Writer {
    /// On a thread and a runtime of its own: whoever waits for it may block a thread of the runtime that it was called on.
    fn start(self, orders: tasks::UnboundedReceiver<Order>) -> Result<()> {
        let failed = |error| {
            Error::new(ErrorKind::Storage, "cannot start the thread for records").source(error)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        std::thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || runtime.block_on(self.run(orders)))
            .map_err(failed)?;
        Ok(())
    }

    async fn run(mut self, mut orders: tasks::UnboundedReceiver<Order>) {
        while let Some(order) = orders.recv().await {
            let written = tokio::time::timeout(ANSWER, self.write(&order)).await;
            let written = written.unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("{} did not answer in time", self.target.label()),
                ))
            });
            if written.is_err() {
                self.client = None;
            }
            // Who asked may have ended.
            let _ = order.answer.send(written);
        }
    }

    /// A connection that broke since the last write is made anew: once.
    async fn write(&mut self, order: &Order) -> Result<()> {
        let known = self
            .client
            .as_ref()
            .is_some_and(|client| !client.is_closed());
        if known {
            match self.write_once(order).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => self.client = None,
                written => return written,
            }
        }
        self.client = Some(sql::connect(&self.target).await?);
        self.write_once(order).await
    }

    async fn write_once(&self, order: &Order) -> Result<()> {
        let Some(client) = &self.client else {
            return Err(Error::new(ErrorKind::Unavailable, "not connected"));
        };
        let doing = "keep a record of the pipeline";
        let place = &*order.place;
        let names: [(&(dyn ToSql + Sync), Type); 4] = [
            (&self.pipeline, Type::TEXT),
            (&self.token, Type::INT8),
            (&place, Type::TEXT),
            (&order.name, Type::TEXT),
        ];
        let written = match &order.content {
            Some(content) => {
                let mut all = names.to_vec();
                all.push((content, Type::BYTEA));
                client.query_typed_opt(PUT, &all).await
            }
            None => client.query_typed_opt(REMOVE, &names).await,
        };
        match written.map_err(|error| from_sql(doing, error))? {
            Some(_) => Ok(()),
            None => Err(superseded()),
        }
    }
}
