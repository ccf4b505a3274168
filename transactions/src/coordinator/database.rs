//! Where sessions come from.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use lockstep_core::{Error, ErrorKind, Result};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, Socket};

/// A database that transactions have branches in. Any pool fits: hand out what it hands out, as a [`Lent`].
#[async_trait]
pub trait Database: Send + Sync + 'static {
    /// A session that is in no transaction, for one user alone. Cancel-safe if the pool is.
    ///
    /// # Errors
    /// When there is none to be had.
    async fn session(&self) -> Result<Box<dyn Lent>>;
}

/// A session that goes back to where it came from when it is dropped.
pub trait Lent: Send + Sync + 'static {
    /// The session.
    fn client(&self) -> &Client;

    /// Instead of being dropped: a transaction is open in it, or nobody knows what is. It must be closed, and go to nobody else.
    fn discard(self: Box<Self>);
}

/// Sessions that are kept for the next one who asks, at most.
const MOST_IDLE: usize = 16;

/// Connects by itself, and keeps a few sessions for later. As many are open as there are transactions at a time.
pub struct Direct<T> {
    config: Config,
    tls: T,
    idle: Idle,
}

type Idle = Arc<Mutex<Vec<Client>>>;

impl<T> Direct<T> {
    /// By a configuration, with a TLS connector, or `NoTls`.
    pub fn new(config: Config, tls: T) -> Self {
        Direct {
            config,
            tls,
            idle: Idle::default(),
        }
    }
}

#[async_trait]
impl<T> Database for Direct<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    async fn session(&self) -> Result<Box<dyn Lent>> {
        let mut idle = std::iter::from_fn(|| lock(&self.idle).pop());
        let client = match idle.find(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.connect().await?,
        };
        Ok(Box::new(Kept {
            client: Some(client),
            idle: Arc::clone(&self.idle),
        }))
    }
}

impl<T> Direct<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    async fn connect(&self) -> Result<Client> {
        let connected = self.config.connect(self.tls.clone()).await;
        let (client, connection) = connected.map_err(|error| {
            let kind = match error.code().map(|state| &state.code()[..2]) {
                Some("28") => ErrorKind::Authentication,
                Some("3D") => ErrorKind::Setup,
                _ => ErrorKind::Unavailable,
            };
            Error::new(kind, "cannot connect").source(error)
        })?;
        // Ends with the client; its error shows up in the client's next call.
        tokio::spawn(connection);
        Ok(client)
    }
}

struct Kept {
    /// Until it is discarded.
    client: Option<Client>,
    idle: Idle,
}

impl Lent for Kept {
    fn client(&self) -> &Client {
        match &self.client {
            Some(client) => client,
            None => unreachable!("what is discarded is gone"),
        }
    }

    fn discard(mut self: Box<Self>) {
        self.client = None;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else {
            return;
        };
        let mut idle = lock(&self.idle);
        if idle.len() < MOST_IDLE && !client.is_closed() {
            idle.push(client);
        }
    }
}

fn lock(idle: &Idle) -> std::sync::MutexGuard<'_, Vec<Client>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
