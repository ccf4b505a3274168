//! What `lockstep check` says about a PostgreSQL source. Changes nothing on the server.

use std::path::Path;

use lockstep_core::check::Finding;
use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_pg::sql::{self, quote_ident};
use lockstep_pg::wire::target::Target;
use lockstep_pg::wire::{Connection, Mode};
use tokio_postgres::Client;

use crate::catalog::{Catalog, Published, require_identity};
use crate::config::{OnSlotLost, PostgresConfig, SnapshotMode};
use crate::source::OLDEST_SERVER;
use crate::standing::Standing;
use crate::state::StateFile;
use crate::types::TypeCache;
use crate::{opening, publication, slot, throttle, watch};

/// Looks at everything `run` would need, and at what it remembers in `state`.
pub async fn run(config: &PostgresConfig, name: &str, state: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = look(config, name, state, &mut findings).await {
        findings.push(failed("server", &error));
    }
    findings
}

fn failed(subject: &str, error: &Error) -> Finding {
    let remedy = error.remedy_text().unwrap_or("see the message");
    Finding::fail(subject, error.to_string(), remedy)
}

async fn look(
    config: &PostgresConfig,
    name: &str,
    state: &Path,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let target = config.target()?;
    let client = sql::connect(&target).await?;
    findings.push(Finding::pass(
        "connect",
        format!("{} as {}", target.label(), target.user),
    ));
    let version: i32 = setting(&client, "server_version_num")
        .await?
        .parse()
        .unwrap_or(0);
    let version = u32::try_from(version).unwrap_or(0);
    findings.push(if version >= OLDEST_SERVER {
        Finding::pass("version", format!("PostgreSQL {}", version / 10_000))
    } else {
        Finding::fail(
            "version",
            format!("PostgreSQL {}", version / 10_000),
            "use PostgreSQL 14 or newer",
        )
    });
    wal_level(&client, findings).await?;
    rights(&client, findings).await?;
    match Connection::open(&target, Mode::Replication).await {
        Ok(mut connection) => {
            findings.push(Finding::pass("replication login", "works"));
            let look = Look {
                client: &client,
                config,
                target: &target,
                state,
            };
            look.slot(&mut connection, name, findings).await?;
            // Before the end of it, which the server hears of when it likes.
            senders(&client, 1, findings).await?;
            connection.terminate().await;
        }
        Err(error) => {
            findings.push(failed("replication login", &error));
            // Without it nobody can say how the slot stands, but whether one could be made.
            let ask = "SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
            let slot = config.slot_name(name);
            if sql::query_opt(&client, "look for the slot", ask, &[&&*slot])
                .await?
                .is_none()
            {
                room_for_a_slot(&client, findings).await?;
            }
            senders(&client, 0, findings).await?;
        }
    }
    findings.extend(throttle::sees_load(&client, config).await?);
    tables(client, config, version, name, &target.user, findings).await
}

async fn setting(client: &Client, name: &str) -> Result<String> {
    let ask = "SELECT current_setting($1)";
    let row = sql::query_one(client, "read a setting", ask, &[&name]).await?;
    Ok(row.get(0))
}

async fn wal_level(client: &Client, findings: &mut Vec<Finding>) -> Result<()> {
    let level = setting(client, "wal_level").await?;
    findings.push(if level == "logical" {
        Finding::pass("wal_level", level)
    } else {
        Finding::fail(
            "wal_level",
            level,
            "ALTER SYSTEM SET wal_level = 'logical', then restart the server",
        )
    });
    let keep = setting(client, "max_slot_wal_keep_size").await?;
    findings.push(if keep == "-1" {
        Finding::warn(
            "max_slot_wal_keep_size",
            "unlimited: a stopped pipeline can fill the server's disk",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB' (then a pipeline that is away for longer must copy again)",
        )
    } else {
        Finding::pass("max_slot_wal_keep_size", keep)
    });
    Ok(())
}

async fn rights(client: &Client, findings: &mut Vec<Finding>) -> Result<()> {
    let row = sql::query_one(
        client,
        "read pg_roles",
        "SELECT rolname::text, rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user",
        &[],
    )
    .await?;
    let (role, may): (String, bool) = (row.get(0), row.get(1));
    findings.push(if may {
        Finding::pass("REPLICATION right", role)
    } else {
        let remedy = format!("ALTER ROLE {} REPLICATION", quote_ident(&role));
        Finding::fail(
            "REPLICATION right",
            format!("{role} does not have it"),
            remedy,
        )
    });
    Ok(())
}

/// What the findings about the slot need.
struct Look<'a> {
    client: &'a Client,
    config: &'a PostgresConfig,
    target: &'a Target,
    state: &'a Path,
}

impl Look<'_> {
    /// How the slot, the server and what is remembered go together.
    async fn slot(
        &self,
        connection: &mut Connection,
        name: &str,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let (client, config) = (self.client, self.config);
        let slot_name = config.slot_name(name);
        let subject = format!("slot {slot_name}");
        let looked = match StateFile::new(&self.state.into()).read() {
            Ok(state) => opening::look(config, connection, state.as_ref(), &slot_name).await,
            Err(error) => Err(error),
        };
        match looked {
            Ok((_, Standing::New)) => {
                findings.push(Finding::pass(subject, "will be created"));
                room_for_a_slot(client, findings).await?;
            }
            Ok((_, standing)) => findings.push(stands(config, subject, standing)),
            Err(error) if error.kind() == ErrorKind::Busy => {
                let found = slot::read(connection, &slot_name).await?;
                findings.push(match found.and_then(|slot| slot.active_pid) {
                    Some(pid) => in_use(client, subject, pid, self.target).await?,
                    None => failed(&subject, &error),
                });
            }
            Err(error) => findings.push(failed(&subject, &error)),
        }
        if let Some(warning) = watch::warning(client, &slot_name).await? {
            let subject = format!("log kept by {slot_name}");
            let remedy = "see which sink lags, or raise max_slot_wal_keep_size";
            findings.push(Finding::warn(subject, warning, remedy));
        }
        if config.two_phase && setting(client, "max_prepared_transactions").await? == "0" {
            findings.push(Finding::warn(
                "two_phase",
                "max_prepared_transactions is 0: nothing can be prepared on this server",
                "raise it, and restart the server; or leave `two_phase` out",
            ));
        }
        if config.failover && connection.server_version() >= 170_000 {
            let waits = setting(client, "synchronized_standby_slots").await?;
            findings.push(if waits.is_empty() {
                Finding::warn(
                    "failover",
                    "the stream does not wait for any standby: one that lags when it is promoted is a lost slot",
                    "name the standbys' physical slots in synchronized_standby_slots",
                )
            } else {
                Finding::pass("failover", format!("the stream waits for {waits}"))
            });
        }
        Ok(())
    }
}

fn stands(config: &PostgresConfig, subject: String, standing: Standing) -> Finding {
    match standing {
        Standing::New => Finding::pass(subject, "will be created"),
        Standing::Continues { slot, .. } => {
            Finding::pass(subject, format!("confirmed up to {}", slot.confirmed))
        }
        Standing::Unknown(slot) if config.snapshot == SnapshotMode::Never => {
            Finding::pass(subject, format!("stands at {}", slot.confirmed))
        }
        Standing::Unknown(_) => Finding::warn(
            subject,
            "is there, and nothing is remembered of it here: the copies will be emptied and the tables copied",
            "if it has been read before, bring back the state directory",
        ),
        Standing::Interrupted { .. } => {
            Finding::pass(subject, "the copy was interrupted, and will be made again")
        }
        Standing::Lost(loss) => match config.on_slot_lost() {
            OnSlotLost::Stop => failed(&subject, &loss.error()),
            OnSlotLost::Resync => Finding::warn(
                subject,
                format!(
                    "{}; the copies will be emptied and the tables copied",
                    loss.cause
                ),
                "nothing to do: on_slot_lost is \"resync\"",
            ),
        },
    }
}

async fn room_for_a_slot(client: &Client, findings: &mut Vec<Finding>) -> Result<()> {
    let row = sql::query_one(
        client,
        "count the slots",
        "SELECT current_setting('max_replication_slots')::int8 - \
             (SELECT count(*) FROM pg_catalog.pg_replication_slots), current_setting('max_replication_slots')",
        &[],
    )
    .await?;
    let (free, all): (i64, String) = (row.get(0), row.get(1));
    findings.push(if free > 0 {
        Finding::pass("free slots", format!("{free} of {all}"))
    } else {
        Finding::fail(
            "free slots",
            format!("none of {all}"),
            "drop a slot that nobody reads, or raise max_replication_slots and restart",
        )
    });
    findings.push(match slot::require_no_prepared(client).await {
        Ok(()) => Finding::pass("prepared transactions", "none open"),
        Err(error) => failed("prepared transactions", &error),
    });
    Ok(())
}

/// Of those in use, `ours` are in use for this.
async fn senders(client: &Client, ours: i64, findings: &mut Vec<Finding>) -> Result<()> {
    let row = sql::query_one(
        client,
        "count the senders",
        "SELECT current_setting('max_wal_senders')::int8 - (SELECT count(*) FROM pg_catalog.pg_stat_replication) + $1, \
             current_setting('max_wal_senders')",
        &[&ours],
    )
    .await?;
    let (free, all): (i64, String) = (row.get(0), row.get(1));
    findings.push(if free > 0 {
        Finding::pass("free WAL senders", format!("{free} of {all}"))
    } else {
        Finding::fail(
            "free WAL senders",
            format!("none of {all}"),
            "raise max_wal_senders and restart",
        )
    });
    Ok(())
}

/// A slot in use is as it should be while the pipeline runs: its own name tells a lockstep from a stranger.
async fn in_use(client: &Client, subject: String, pid: i32, target: &Target) -> Result<Finding> {
    let ask = "SELECT application_name FROM pg_catalog.pg_stat_activity WHERE pid = $1";
    let holder = sql::query_opt(client, "read pg_stat_activity", ask, &[&pid]).await?;
    // NULL for sessions of roles that ours may not look at.
    let holder: Option<String> = holder.and_then(|row| row.get(0));
    Ok(if holder.as_deref() == Some(&*target.application_name) {
        Finding::warn(
            subject,
            format!(
                "in use by process {pid}, {}; run waits for it",
                target.application_name
            ),
            "nothing to do if that is this pipeline; another one needs a `slot` of its own",
        )
    } else {
        let holder = holder.unwrap_or_else(|| "a session of another role".to_owned());
        Finding::fail(
            subject,
            format!("in use by process {pid}, {holder}"),
            "stop that process, or choose another name for `slot`",
        )
    })
}

async fn tables(
    client: Client,
    config: &PostgresConfig,
    version: u32,
    name: &str,
    user: &str,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let subject = format!("publication {}", config.publication);
    let published = match publication::read(&client, &config.publication, version).await? {
        Some(found) => match publication::select(&found, &config.publication, &config.tables) {
            Ok(tables) if found.complete => {
                findings.push(Finding::pass(
                    subject,
                    format!("{} tables for us", tables.len()),
                ));
                tables
            }
            Ok(_) => {
                findings.push(Finding::fail(
                    subject,
                    "leaves out some operations",
                    format!(
                        "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')",
                        quote_ident(&config.publication)
                    ),
                ));
                return Ok(());
            }
            Err(error) => {
                findings.push(failed(&subject, &error));
                return Ok(());
            }
        },
        None => match publication::existing(&client, &config.tables).await {
            Ok(tables) => {
                findings.push(may_create(&client, config, &tables).await?);
                tables
            }
            Err(error) => {
                findings.push(failed(&subject, &error));
                return Ok(());
            }
        },
    };
    let catalog = Catalog::new(client, name.into(), TypeCache::default());
    for table in published {
        let subject = format!("table {}", table.id);
        let Some(facts) = catalog.facts(table.relation).await? else {
            continue;
        };
        let identity = require_identity(&table.id, &facts);
        let missing = missing_grant(catalog.client(), &table, user).await?;
        findings.push(match (identity, missing) {
            (Err(error), _) => failed(&subject, &error),
            (Ok(()), Some(grant)) => {
                Finding::fail(subject, "may not be read, so it cannot be copied", grant)
            }
            (Ok(()), None) if facts.primary_key.is_empty() => Finding::warn(
                subject,
                "has no primary key: queues only, state sinks refuse it",
                "ADD PRIMARY KEY",
            ),
            (Ok(()), None) => Finding::pass(
                subject,
                format!(
                    "key ({}), {:?}",
                    facts.primary_key.join(", "),
                    facts.identity
                ),
            ),
        });
    }
    Ok(())
}

/// What has to be granted before the table can be read; USAGE of its schema comes first.
async fn missing_grant(client: &Client, table: &Published, user: &str) -> Result<Option<String>> {
    let ask = "SELECT has_schema_privilege(relnamespace, 'USAGE'), has_table_privilege(oid, 'SELECT') \
               FROM pg_catalog.pg_class WHERE oid = $1";
    let row = sql::query_opt(client, "read the table's rights", ask, &[&table.relation]).await?;
    let (usage, select) = row.map_or((true, true), |row| (row.get(0), row.get(1)));
    let (schema, user) = (quote_ident(&table.id.schema), quote_ident(user));
    let name = quote_ident(&table.id.name);
    let usage = (!usage).then(|| format!("GRANT USAGE ON SCHEMA {schema} TO {user}"));
    let select = (!select).then(|| format!("GRANT SELECT ON {schema}.{name} TO {user}"));
    let grants: Vec<String> = usage.into_iter().chain(select).collect();
    Ok((!grants.is_empty()).then(|| grants.join("; ")))
}

async fn may_create(
    client: &Client,
    config: &PostgresConfig,
    tables: &[Published],
) -> Result<Finding> {
    let names: Vec<String> = tables
        .iter()
        .map(|Published { id, .. }| {
            format!("{}.{}", quote_ident(&id.schema), quote_ident(&id.name))
        })
        .collect();
    let row = sql::query_one(
        client,
        "read the rights",
        "SELECT has_database_privilege(current_database(), 'CREATE') AND \
             (SELECT bool_and(pg_catalog.pg_has_role(c.relowner, 'USAGE')) FROM pg_catalog.pg_class c \
              WHERE c.oid = ANY (SELECT t::regclass FROM unnest($1::text[]) t))",
        &[&names],
    )
    .await?;
    let subject = format!("publication {}", config.publication);
    Ok(if row.get::<_, Option<bool>>(0).unwrap_or(false) {
        Finding::pass(
            subject,
            format!("will be created for {} tables", tables.len()),
        )
    } else {
        Finding::fail(
            subject,
            "is missing and we may not create it",
            format!(
                "let the owner run: {}",
                publication::create_statement(&config.publication, tables)
            ),
        )
    })
}
