//! The replication slot: created when missing, never altered.

use std::time::{Duration, Instant};

use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::position::Lsn;
use lockstep_pg::error::protocol;
use lockstep_pg::sql::{self, quote_ident, quote_literal};
use lockstep_pg::wire::target::Target;
use lockstep_pg::wire::{Connection, Mode};
use tokio_postgres::Client;

/// The first version with slots that follow a failover.
const FAILOVER_SINCE: u32 = 170_000;
/// The first version whose pgoutput sends transactions when they are prepared.
const TWO_PHASE_SINCE: u32 = 150_000;
/// The first version that can switch a slot by ALTER_REPLICATION_SLOT, and the first whose standbys know where it was switched.
const TWO_PHASE_ALTERED_SINCE: u32 = 180_000;

/// A slot as the server shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Database.
    pub database: String,
    /// Who streams from it.
    pub active_pid: Option<i32>,
    /// Up to where its reader confirmed.
    pub confirmed: Lsn,
    /// Whether the server has given it up, and why.
    pub invalid: Option<String>,
    /// Whether it decodes PREPARE TRANSACTION. A server that does not send it counts as one that does not.
    pub two_phase: bool,
    /// Whether somebody can have switched that without a stream.
    pub may_be_altered: bool,
    /// Whether it goes when its session ends.
    pub temporary: bool,
    /// Whether standbys are to have it, too.
    pub failover: bool,
    /// Whether this server has it from its primary.
    pub synced: bool,
}

/// Reads a slot, on the connection whose server's log is to be read; `None` when there is none of that name.
///
/// # Errors
/// When the view cannot be read.
pub async fn read(connection: &mut Connection, name: &str) -> Result<Option<Slot>> {
    // Columns that came with later versions are read by way of JSON, where a missing one is NULL.
    let sql = format!(
        "SELECT s.plugin, s.database, s.active_pid, s.confirmed_flush_lsn, s.wal_status, s.two_phase, s.temporary, \
             j->>'invalidation_reason', j->>'conflicting', j->>'failover', j->>'synced', \
             s.two_phase AND j->'two_phase_at' = 'null' \
         FROM pg_catalog.pg_replication_slots s, LATERAL pg_catalog.to_jsonb(s) j WHERE s.slot_name = {}",
        quote_literal(name)
    );
    let rows = connection.query("read the replication slot", &sql).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let text = |at: usize| row.get(at).and_then(Option::as_deref);
    let is = |at: usize| matches!(text(at), Some("t" | "true"));
    let reason = text(7)
        .map(reason)
        .or_else(|| is(8).then(|| reason("rows_removed")));
    let reason = reason.or_else(|| is(11).then_some(ALTERED));
    // A slot without a place in the log has none to give.
    let lost = matches!(text(4), None | Some("lost")).then(|| reason_of_lost(reason));
    Ok(Some(Slot {
        plugin: text(0).map(str::to_owned),
        database: text(1).unwrap_or_default().to_owned(),
        active_pid: text(2).and_then(|pid| pid.parse().ok()),
        confirmed: text(3).map_or(Ok(Lsn::ZERO), str::parse)?,
        invalid: lost.or(reason).map(str::to_owned),
        two_phase: is(5) && connection.server_version() >= TWO_PHASE_SINCE,
        may_be_altered: connection.server_version() >= TWO_PHASE_ALTERED_SINCE,
        temporary: is(6),
        failover: is(9),
        synced: is(10),
    }))
}

/// What the server's reason for giving a slot up means.
fn reason(name: &str) -> &'static str {
    match name {
        "rows_removed" => "rows_removed: rows of the catalog that decoding needs were removed",
        "wal_level_insufficient" => {
            "wal_level_insufficient: the server, or its primary, ran with another wal_level than logical"
        }
        "idle_timeout" => {
            "idle_timeout: nobody had read it for longer than idle_replication_slot_timeout"
        }
        _ => WAL_REMOVED,
    }
}

const WAL_REMOVED: &str = "wal_removed: log that it needs was removed, by max_slot_wal_keep_size";

/// PostgreSQL 18 notes with each slot from which place on it decodes prepared transactions, unless it was switched by this command.
/// Then it takes all that were prepared before for sent, and sends nothing of them but their COMMIT PREPARED.
pub const ALTERED: &str = "two_phase was switched on by ALTER_REPLICATION_SLOT: what was prepared before is not sent; lockstep \
    switches it by itself";

fn reason_of_lost(reason: Option<&'static str>) -> &'static str {
    reason.unwrap_or(WAL_REMOVED)
}

impl Slot {
    /// Refuses a slot that cannot be ours.
    ///
    /// # Errors
    /// `Setup`: another kind, plugin, database or mode; not for failover although it should be.
    pub fn require_ours(&self, name: &str, database: &str, failover: bool) -> Result<()> {
        let setup = |message: String| {
            Err(Error::new(ErrorKind::Setup, message)
                .remedy("choose another name for `slot`, or drop this slot"))
        };
        let Some(plugin) = &self.plugin else {
            return setup(format!("the slot {name} is a physical one"));
        };
        if plugin != "pgoutput" {
            return setup(format!(
                "the slot {name} uses the plugin {plugin}, not pgoutput"
            ));
        }
        if self.database != database {
            return setup(format!(
                "the slot {name} belongs to the database {}",
                self.database
            ));
        }
        if self.temporary {
            return setup(format!(
                "the slot {name} is a temporary one of another session"
            ));
        }
        if failover && !self.failover && self.invalid.is_none() {
            return Err(Error::new(
                ErrorKind::Setup,
                format!("the slot {name} does not follow a failover, and `failover = true` asks for it"),
            )
            .remedy(format!(
                "on a connection with replication=database: ALTER_REPLICATION_SLOT {} (FAILOVER true); or leave \
                 `failover` out",
                quote_ident(name)
            )));
        }
        Ok(())
    }

    /// Refuses a slot that somebody reads.
    ///
    /// # Errors
    /// `Busy`, naming the process.
    pub fn require_free(&self, name: &str) -> Result<()> {
        match self.active_pid {
            Some(pid) => Err(Error::new(
                ErrorKind::Busy,
                format!("the slot {name} is in use by process {pid}"),
            )
            .remedy("stop the other lockstep, or wait: it is tried again")),
            None => Ok(()),
        }
    }
}

/// How long the session of a predecessor may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Ends the session that reads a slot, for one who alone may read it: its reader may be frozen, or cut off, and the server would
/// keep the slot for it until `wal_sender_timeout`. Where that is not permitted, or takes long, the slot stays in use.
///
/// # Errors
/// When the server cannot be asked.
pub async fn take_over(client: &Client, name: &str) -> Result<()> {
    const END: &str = "SELECT active_pid, pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots \
        WHERE slot_name = $1::text::name AND active_pid IS NOT NULL";
    let doing = "end the session of who read the slot before";
    let deadline = Instant::now() + ENDS_WITHIN;
    let mut told = false;
    while Instant::now() < deadline {
        let reading = match sql::query(client, doing, END, &[&name]).await {
            Ok(reading) => reading,
            Err(error) if error.kind() == ErrorKind::Permission => {
                tracing::warn!(slot = name, %error, "whoever read it before keeps it until the server sees that it is gone");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let Some(pid) = reading.first().map(|row| row.get::<_, i32>(0)) else {
            return Ok(());
        };
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(slot = name, pid, "ending the session of who read it before");
        }
        // Told once, a session that waits for a frozen reader was seen to stay for seconds.
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// Between two looks at whether a session has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Refuses `failover = true` where the server does not have it.
///
/// # Errors
/// Of kind `Setup`.
pub fn require_failover(server_version: u32) -> Result<()> {
    if server_version >= FAILOVER_SINCE {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Setup,
        format!(
            "`failover = true` needs PostgreSQL 17, and the server is PostgreSQL {}",
            server_version / 10_000
        ),
    )
    .remedy("leave `failover` out; after a failover the tables are then copied again, see `on_slot_lost`"))
}

/// Refuses `two_phase = true` where the server does not have it.
///
/// # Errors
/// Of kind `Setup`.
pub fn require_two_phase(server_version: u32, failover: bool) -> Result<()> {
    if failover && server_version < TWO_PHASE_ALTERED_SINCE {
        return Err(Error::new(
            ErrorKind::Setup,
            format!(
                "`two_phase = true` with `failover = true` needs PostgreSQL 18, and the server is PostgreSQL {}: a standby of it \
                 does not know from where on the slot sends transactions when they are prepared",
                server_version / 10_000
            ),
        )
        .remedy("leave one of the two out"));
    }
    if server_version >= TWO_PHASE_SINCE {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Setup,
        format!(
            "`two_phase = true` needs PostgreSQL 15, and the server is PostgreSQL {}: its pgoutput does not send transactions \
             when they are prepared",
            server_version / 10_000
        ),
    )
    .remedy("leave `two_phase` out; prepared transactions then arrive when they are committed, without their names"))
}

/// Refuses to create a slot while prepared transactions are open: the server would wait for them, for as long as it
/// takes, without a word.
///
/// # Errors
/// `Busy`, naming the gids.
pub async fn require_no_prepared(client: &Client) -> Result<()> {
    let rows = sql::query(
        client,
        "read pg_prepared_xacts",
        "SELECT gid, database::text, extract(epoch FROM now() - prepared)::int8 FROM pg_catalog.pg_prepared_xacts \
             ORDER BY prepared LIMIT 10",
        &[],
    )
    .await?;
    if rows.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = rows
        .iter()
        .map(|row| {
            format!(
                "'{}' in {} ({} s)",
                row.get::<_, &str>(0),
                row.get::<_, &str>(1),
                row.get::<_, i64>(2)
            )
        })
        .collect();
    Err(Error::new(
        ErrorKind::Busy,
        format!(
            "prepared transactions keep the slot from being created: {}",
            list.join(", ")
        ),
    )
    .remedy("COMMIT PREPARED or ROLLBACK PREPARED them; it is tried again"))
}

/// A slot just created.
#[derive(Debug)]
pub struct Created {
    /// Where its stream begins; every row its snapshot shows was committed before.
    pub consistent_point: Lsn,
    /// Name of the exported snapshot, valid until the connection's next command.
    pub snapshot: String,
}

/// Creates the slot and exports its snapshot. Waits for transactions that are running, as the server does.
///
/// # Errors
/// The server's, by SQLSTATE: 55000 `wal_level`, 53400 no slot is free, 42501 no REPLICATION right.
pub async fn create(connection: &mut Connection, name: &str, failover: bool) -> Result<Created> {
    create_slot(connection, name, "", failover).await
}

/// Creates a slot that lives as long as the connection, for the sake of its snapshot.
///
/// # Errors
/// As for [`create`].
pub async fn create_temporary(connection: &mut Connection, name: &str) -> Result<Created> {
    create_slot(connection, name, "TEMPORARY ", false).await
}

async fn create_slot(
    connection: &mut Connection,
    name: &str,
    kind: &str,
    failover: bool,
) -> Result<Created> {
    let options = match connection.server_version() {
        _ if failover => "(SNAPSHOT 'export', FAILOVER)",
        150_000.. => "(SNAPSHOT 'export')",
        _ => "EXPORT_SNAPSHOT",
    };
    let sql = format!(
        "CREATE_REPLICATION_SLOT {} {kind}LOGICAL pgoutput {options}",
        quote_ident(name)
    );
    let rows = connection
        .query(&format!("create the replication slot {name}"), &sql)
        .await?;
    // slot_name, consistent_point, snapshot_name, output_plugin
    let [row] = rows.as_slice() else {
        return Err(protocol("CREATE_REPLICATION_SLOT answered with no row"));
    };
    match row.as_slice() {
        [_, Some(point), Some(snapshot), ..] => Ok(Created {
            consistent_point: point.parse()?,
            snapshot: snapshot.clone(),
        }),
        _ => Err(protocol(
            "CREATE_REPLICATION_SLOT answered without a snapshot",
        )),
    }
}

/// Drops a slot that cannot be read on.
///
/// # Errors
/// The server's, by SQLSTATE.
pub async fn drop(client: &Client, name: &str) -> Result<()> {
    let sql = "SELECT pg_catalog.pg_drop_replication_slot($1::text::name)";
    sql::query(client, "drop the replication slot", sql, &[&name]).await?;
    Ok(())
}

/// Moves a slot that nobody reads forward to `lsn`: what committed before does not come any more. Takes as long as the server
/// needs to decode all the way to there, or waits for a standby (`synchronized_standby_slots`), on a connection of its own:
/// one that has gone silent is noticed there.
///
/// # Errors
/// The server's, by SQLSTATE; `Unavailable` when the slot did not get there.
pub async fn advance(target: &Target, name: &str, lsn: Lsn) -> Result<()> {
    let mut connection = Connection::open(target, Mode::Sql).await?;
    let sql = format!(
        "SELECT end_lsn::text FROM pg_catalog.pg_replication_slot_advance({}, '{lsn}')",
        quote_literal(name)
    );
    let rows = connection.query("move the slot forward", &sql).await?;
    connection.terminate().await;
    let reached = rows.into_iter().flatten().next().flatten();
    let reached = reached.ok_or_else(|| protocol("the slot moved to nowhere"))?;
    let reached: Lsn = reached.parse()?;
    if reached < lsn {
        return Err(Error::new(
            ErrorKind::Unavailable,
            format!("the slot {name} moved to {reached} only, not to {lsn}"),
        )
        .remedy("it is tried again"));
    }
    Ok(())
}
