//! Holds copies and loads back: by a rate, and while the server is busy with others.

use std::time::Duration;

use lockstep_core::Result;
use lockstep_core::check::Finding;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::config::PostgresConfig;
use crate::sql;
use crate::wire::target::Target;

/// How long an answer of the server about its load is good for.
const FRESH: Duration = Duration::from_secs(1);
/// What a rate may be ahead of itself: so much is read at once, and then waited for.
const AHEAD: Duration = Duration::from_millis(100);

const LOAD: &str = "SELECT count(*) FROM pg_catalog.pg_stat_activity \
    WHERE state = 'active' AND backend_type = 'client backend' AND application_name IS DISTINCT FROM $1";

/// Shared by all connections that read rows of a source.
pub struct Throttle {
    /// Bytes per second.
    rate: Option<u64>,
    /// Sessions that may be active besides ours.
    max_load: Option<u32>,
    target: Target,
    state: Mutex<State>,
}

struct State {
    /// When what has been read would have been read at the rate.
    due: Instant,
    client: Option<Client>,
    looked: Option<Instant>,
    /// The pause has been told.
    told: bool,
}

impl Throttle {
    /// By the source's section.
    pub fn new(config: &PostgresConfig, target: &Target) -> Self {
        Throttle {
            rate: config.snapshot_rate.map(|rate| rate.0),
            max_load: config.snapshot_max_load,
            target: target.clone(),
            state: Mutex::new(State {
                due: Instant::now(),
                client: None,
                looked: None,
                told: false,
            }),
        }
    }

    /// Waits before so many bytes go on. In turn, where several wait. Cancel-safe.
    ///
    /// # Errors
    /// When the server cannot be asked how busy it is.
    pub async fn pass(&self, bytes: usize) -> Result<()> {
        if self.rate.is_none() && self.max_load.is_none() {
            return Ok(());
        }
        let mut state = self.state.lock().await;
        if let Some(most) = self.max_load {
            self.wait_for_calm(&mut state, most).await?;
        }
        if let Some(rate) = self.rate {
            let now = Instant::now();
            let took = Duration::from_secs_f64(bytes as f64 / rate as f64);
            state.due = state.due.max(now) + took;
            tokio::time::sleep_until(state.due - AHEAD.min(took)).await;
        }
        Ok(())
    }

    async fn wait_for_calm(&self, state: &mut State, most: u32) -> Result<()> {
        loop {
            if state.looked.is_some_and(|looked| looked.elapsed() < FRESH) {
                return Ok(());
            }
            let client = match state.client.take().filter(|client| !client.is_closed()) {
                Some(client) => client,
                None => sql::connect(&self.target).await?,
            };
            let ours: &str = &self.target.application_name;
            let doing = "look how busy the server is";
            let row = sql::query_one(&client, doing, LOAD, &[&ours]).await?;
            let active: i64 = row.get(0);
            state.client = Some(client);
            if active <= i64::from(most) {
                if std::mem::take(&mut state.told) {
                    tracing::info!(active, "reading rows goes on");
                }
                state.looked = Some(Instant::now());
                return Ok(());
            }
            if !std::mem::replace(&mut state.told, true) {
                tracing::info!(
                    active,
                    snapshot_max_load = most,
                    "reading rows pauses while the server is busy"
                );
            }
            tokio::time::sleep(FRESH).await;
        }
    }
}

/// Whether the role sees what sessions do: without, a limit on them would never hold anything back.
///
/// # Errors
/// When the server cannot be asked.
pub async fn sees_load(client: &Client, config: &PostgresConfig) -> Result<Option<Finding>> {
    if config.snapshot_max_load.is_none() {
        return Ok(None);
    }
    let ask = "SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'), current_user::text";
    let row = sql::query_one(client, "look at the rights", ask, &[]).await?;
    let (sees, user): (bool, String) = (row.get(0), row.get(1));
    Ok(Some(if sees {
        Finding::pass("snapshot_max_load", "sessions can be seen")
    } else {
        Finding::fail(
            "snapshot_max_load",
            format!("{user} does not see what other sessions do, so nothing would be held back"),
            format!("GRANT pg_read_all_stats TO {}", sql::quote_ident(&user)),
        )
    }))
}
