//! The replication slot: created when missing, never altered.

use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::position::{Lsn, SourceIdentity};
use tokio_postgres::Client;

use crate::error::{from_sql, protocol};
use crate::sql::{self, quote_ident};
use crate::wire::Connection;

/// A slot as the server shows it.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Output plugin.
    pub plugin: String,
    /// Database.
    pub database: String,
    /// Whether somebody streams from it, and who.
    pub active_pid: Option<i32>,
    /// Up to where the reader confirmed.
    pub confirmed: Lsn,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Whether it decodes PREPARE TRANSACTION.
    pub two_phase: bool,
}

/// Reads a slot; `None` when there is none of that name.
///
/// # Errors
/// When the view cannot be read, or the slot is a physical one.
pub async fn read(client: &Client, name: &str) -> Result<Option<Slot>> {
    let row = sql::query_opt(
        client,
        "read the replication slot",
        "SELECT plugin::text, database::text, active_pid, confirmed_flush_lsn::text, coalesce(wal_status, 'lost'), \
             two_phase FROM pg_catalog.pg_replication_slots WHERE slot_name = $1",
        &[&name],
    )
    .await?;
    let Some(row) = row else { return Ok(None) };
    let plugin: Option<String> = row.get(0);
    let Some(plugin) = plugin else {
        return Err(Error::new(
            ErrorKind::Setup,
            format!("the slot {name} is a physical one"),
        )
        .remedy("choose another name for `slot`"));
    };
    let confirmed: Option<String> = row.get(3);
    Ok(Some(Slot {
        plugin,
        database: row.get::<_, Option<String>>(1).unwrap_or_default(),
        active_pid: row.get(2),
        confirmed: confirmed.map_or(Ok(Lsn::ZERO), |text| text.parse())?,
        wal_status: row.get(4),
        two_phase: row.get(5),
    }))
}

impl Slot {
    /// Refuses a slot that we could not, or must not, read.
    ///
    /// # Errors
    /// `Setup` for another plugin, database or mode; `Lost` when its log is gone; `Busy` when somebody reads it.
    pub fn require_usable(&self, name: &str, database: &str) -> Result<()> {
        let setup = |message: String| {
            Err(Error::new(ErrorKind::Setup, message)
                .remedy("choose another name for `slot`, or drop this slot"))
        };
        if self.plugin != "pgoutput" {
            return setup(format!(
                "the slot {name} uses the plugin {}, not pgoutput",
                self.plugin
            ));
        }
        if self.database != database {
            return setup(format!(
                "the slot {name} belongs to the database {}",
                self.database
            ));
        }
        if self.two_phase {
            return setup(format!(
                "the slot {name} decodes prepared transactions, which this version does not"
            ));
        }
        if self.wal_status == "lost" {
            return Err(lost(
                &format!("the server has removed log that the slot {name} needs"),
                name,
            ));
        }
        if let Some(pid) = self.active_pid {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("the slot {name} is in use by process {pid}"),
            )
            .remedy("stop the other lockstep, or wait: it is tried again"));
        }
        Ok(())
    }
}

/// Changes can no longer be read without a gap.
pub fn lost(message: &str, slot: &str) -> Error {
    Error::new(ErrorKind::Lost, message).remedy(format!(
        "set snapshot = \"when_needed\" to copy the tables again (after SELECT pg_drop_replication_slot('{slot}') when \
         it still exists)"
    ))
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
pub async fn create(connection: &mut Connection, name: &str) -> Result<Created> {
    create_slot(connection, name, "").await
}

/// Creates a slot that lives as long as the connection, for the sake of its snapshot.
///
/// # Errors
/// As for [`create`].
pub async fn create_temporary(connection: &mut Connection, name: &str) -> Result<Created> {
    create_slot(connection, name, "TEMPORARY ").await
}

async fn create_slot(connection: &mut Connection, name: &str, kind: &str) -> Result<Created> {
    let options = if connection.server_version() >= 150_000 {
        "(SNAPSHOT 'export')"
    } else {
        "EXPORT_SNAPSHOT"
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

/// Moves a slot that nobody reads forward to `lsn`: what committed before does not come any more.
///
/// # Errors
/// The server's, by SQLSTATE; `Lost` when the slot did not get there.
pub async fn advance(client: &Client, name: &str, lsn: Lsn) -> Result<()> {
    // Not bounded in time: the server decodes all the way to there.
    let row = client
        .query_one(
            "SELECT end_lsn::text FROM pg_catalog.pg_replication_slot_advance($1::text::name, $2::text::pg_lsn)",
            &[&name, &lsn.to_string()],
        )
        .await
        .map_err(|error| from_sql("move the slot forward", error))?;
    let reached: Lsn = row.get::<_, &str>(0).parse()?;
    if reached < lsn {
        return Err(Error::new(
            ErrorKind::Unavailable,
            format!("the slot {name} moved to {reached} only, not to {lsn}"),
        )
        .remedy("it is tried again"));
    }
    Ok(())
}

/// Asks the server who it is.
///
/// # Errors
/// The server's, by SQLSTATE.
pub async fn identify(connection: &mut Connection) -> Result<SourceIdentity> {
    let rows = connection
        .query("identify the server", "IDENTIFY_SYSTEM")
        .await?;
    // systemid, timeline, xlogpos, dbname
    let identity = rows.first().and_then(|row| {
        let text = |at: usize| row.get(at).and_then(Option::as_deref);
        Some(SourceIdentity {
            system: text(0)?.parse().ok()?,
            timeline: text(1)?.parse().ok()?,
            database: text(3)?.into(),
        })
    });
    identity.ok_or_else(|| protocol("IDENTIFY_SYSTEM answered in an unknown form"))
}
