//! Holds copies and loads back: by a rate, and while the server is busy with others.

use std::time::Duration;

use lockstep_core::Result;
use lockstep_core::check::Finding;
use lockstep_pg::sql;
use lockstep_pg::wire::target::Target;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::config::PostgresConfig;

/// How long an answer of the server about its load is good for.
const FRESH: Duration = Duration::from_secs(1);
/// What a rate may be ahead of itself: so much is read at once, and then waited for.
const AHEAD: Duration = Duration::from_millis(100);

/// Sessions at work besides ours, and the WAL in bytes that the physical standby furthest behind has yet to replay.
const LOAD: &str = "SELECT \
    (SELECT count(*) FROM pg_catalog.pg_stat_activity \
        WHERE state = 'active' AND backend_type = 'client backend' AND application_name IS DISTINCT FROM $1), \
    (SELECT max(pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() \
            THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, replay_lsn))::bigint \
        FROM pg_catalog.pg_stat_replication standby WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots slot \
            WHERE slot.active_pid = standby.pid AND slot.slot_type = 'logical'))";

/// Shared by all connections that read rows of a source.
pub struct Throttle {
    /// Bytes per second.
    rate: Option<u64>,
    /// Sessions that may be active besides ours.
    max_load: Option<u32>,
    /// Bytes of WAL that a standby may be behind.
    max_lag: Option<u64>,
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
            max_lag: config.snapshot_max_replica_lag.map(|lag| lag.0),
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
        let asks = self.max_load.is_some() || self.max_lag.is_some();
        if self.rate.is_none() && !asks {
            return Ok(());
        }
        let mut state = self.state.lock().await;
        if asks {
            self.wait_for_calm(&mut state).await?;
        }
        if let Some(rate) = self.rate {
            let now = Instant::now();
            let took = Duration::from_secs_f64(bytes as f64 / rate as f64);
            state.due = state.due.max(now) + took;
            tokio::time::sleep_until(state.due - AHEAD.min(took)).await;
        }
        Ok(())
    }

    async fn wait_for_calm(&self, state: &mut State) -> Result<()> {
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
            let (active, behind): (i64, Option<i64>) = (row.get(0), row.get(1));
            let behind = behind.unwrap_or(0);
            state.client = Some(client);
            if self.is_calm(active, behind) {
                if std::mem::take(&mut state.told) {
                    tracing::info!(active, behind, "reading rows goes on");
                }
                state.looked = Some(Instant::now());
                return Ok(());
            }
            if !std::mem::replace(&mut state.told, true) {
                tracing::info!(
                    active,
                    behind,
                    snapshot_max_load = self.max_load,
                    snapshot_max_replica_lag = self.max_lag,
                    "reading rows pauses while the server, or a standby, has too much to do"
                );
            }
            tokio::time::sleep(FRESH).await;
        }
    }

    /// With so many sessions at work, and the standby furthest behind by so many bytes.
    fn is_calm(&self, active: i64, behind: i64) -> bool {
        let load = self.max_load.is_none_or(|most| active <= i64::from(most));
        let most = |lag: u64| i64::try_from(lag).unwrap_or(i64::MAX);
        load && self.max_lag.is_none_or(|lag| behind <= most(lag))
    }
}

/// Whether the role sees what sessions do, and how far standbys are: without, a limit on them would never hold anything back.
///
/// # Errors
/// When the server cannot be asked.
pub async fn sees_load(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>> {
    let load = config.snapshot_max_load.map(|_| "snapshot_max_load");
    let lag = config.snapshot_max_replica_lag;
    let lag = lag.map(|_| "snapshot_max_replica_lag");
    let limits: Vec<&str> = load.into_iter().chain(lag).collect();
    if limits.is_empty() {
        return Ok(Vec::new());
    }
    let ask = "SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'), current_user::text";
    let row = sql::query_one(client, "look at the rights", ask, &[]).await?;
    let (sees, user): (bool, String) = (row.get(0), row.get(1));
    let finding = |limit: &str| match sees {
        true => Finding::pass(limit, "what other sessions do can be seen"),
        false => Finding::fail(
            limit,
            format!("{user} does not see what other sessions do, so nothing would be held back"),
            format!("GRANT pg_read_all_stats TO {}", sql::quote_ident(&user)),
        ),
    };
    Ok(limits.into_iter().map(finding).collect())
}
