//! What is in a database: its tables, and the names that are taken on its server. Changes nothing.

use lockstep_core::Result;
use lockstep_core::schema::{ReplicaIdentity, TableId};
use lockstep_pg::sql::{self, quote_ident};
use lockstep_pg::wire::target::Target;
use tokio_postgres::Row;

/// Tables that could be published, with what tells whether they should be. Sizes are those of the rows and what belongs to them.
const TABLES: &str = "SELECT n.nspname::text, c.relname::text, c.relreplident::text,
      coalesce((SELECT array_agg(a.attname::text ORDER BY k.position)
        FROM pg_catalog.pg_index i
        CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, position)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisprimary AND k.position <= i.indnkeyatts), '{}'),
      CASE c.relkind WHEN 'p' THEN parts.rows ELSE nullif(c.reltuples, -1)::int8 END,
      CASE c.relkind WHEN 'p' THEN coalesce(parts.bytes, 0) ELSE pg_catalog.pg_table_size(c.oid) END,
      pg_catalog.has_schema_privilege(n.oid, 'USAGE'), pg_catalog.has_table_privilege(c.oid, 'SELECT')
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL (SELECT sum(nullif(leaf.reltuples, -1))::int8 AS rows, sum(pg_catalog.pg_table_size(leaf.oid))::int8 AS bytes
      FROM pg_catalog.pg_partition_tree(c.oid) part JOIN pg_catalog.pg_class leaf ON leaf.oid = part.relid
      WHERE part.isleaf) parts ON c.relkind = 'p'
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
      AND n.nspname NOT IN ('information_schema', 'lockstep') AND n.nspname NOT LIKE 'pg\\_%'
      AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY 1, 2";

/// Publications of the database, with their tables.
const PUBLICATIONS: &str = "SELECT p.pubname::text, coalesce(array_agg(t.schemaname || '.' || t.tablename)
      FILTER (WHERE t.tablename IS NOT NULL), '{}')
    FROM pg_catalog.pg_publication p LEFT JOIN pg_catalog.pg_publication_tables t ON t.pubname = p.pubname
    GROUP BY 1";

/// Slots of the server.
const SLOTS: &str = "SELECT slot_name::text FROM pg_catalog.pg_replication_slots";

/// What is there.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// `15`.
    pub version: String,
    /// By name.
    pub tables: Vec<Table>,
    /// Publications, with the tables in them as `schema.table`.
    pub publications: Vec<(String, Vec<String>)>,
    /// Slots of the server, of other databases too.
    pub slots: Vec<String>,
}

/// A table that could be published.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name.
    pub id: TableId,
    /// The columns of its primary key.
    pub key: Vec<String>,
    /// What the log says of a row that is changed.
    pub identity: ReplicaIdentity,
    /// Rows, as the server estimates; `None` where it has not counted yet.
    pub rows: Option<u64>,
    /// Bytes on its disk.
    pub bytes: u64,
    /// What has to be granted before it can be read.
    pub grant: Option<String>,
}

impl Table {
    /// Why it cannot be taken, and what helps; `None` when it can.
    pub fn obstacle(&self) -> Option<(String, String)> {
        let id = &self.id;
        let named = format!("{}.{}", quote_ident(&id.schema), quote_ident(&id.name));
        if id.schema.contains(['.', '*']) || id.name.contains(['.', '*']) {
            let why = "its name has a `.` or `*` in it, which `tables` has no form for";
            return Some((why.to_owned(), format!("ALTER TABLE {named} RENAME TO …")));
        }
        if let Some(grant) = &self.grant {
            return Some(("it may not be read".to_owned(), grant.clone()));
        }
        match self.identity {
            ReplicaIdentity::Nothing => Some((
                "its replica identity is nothing".to_owned(),
                format!("ALTER TABLE {named} REPLICA IDENTITY DEFAULT"),
            )),
            ReplicaIdentity::Default if self.key.is_empty() => Some((
                "it has no primary key".to_owned(),
                format!(
                    "ALTER TABLE {named} ADD PRIMARY KEY (…); for queues only: ALTER TABLE {named} REPLICA IDENTITY FULL"
                ),
            )),
            ReplicaIdentity::Default | ReplicaIdentity::Full | ReplicaIdentity::Index => None,
        }
    }

    /// Whether it is suggested: every kind of sink takes it.
    pub fn is_suggested(&self) -> bool {
        self.obstacle().is_none() && !self.key.is_empty()
    }
}

/// Looks.
///
/// # Errors
/// When the database cannot be reached, or not asked.
pub async fn look(target: &Target) -> Result<Found> {
    let client = sql::connect(target).await?;
    let ask = "SELECT current_setting('server_version_num')::int4 / 10000";
    let version: i32 = sql::query_one(&client, "read the version", ask, &[])
        .await?
        .get(0);
    let tables = sql::query(&client, "list the tables", TABLES, &[]).await?;
    let publications = sql::query(&client, "list the publications", PUBLICATIONS, &[]).await?;
    let slots = sql::query(&client, "list the slots", SLOTS, &[]).await?;
    Ok(Found {
        version: version.to_string(),
        tables: tables.iter().map(|row| table(row, &target.user)).collect(),
        publications: publications
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect(),
        slots: slots.iter().map(|row| row.get(0)).collect(),
    })
}

fn table(row: &Row, user: &str) -> Table {
    let (schema, name, identity): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let (rows, bytes): (Option<i64>, i64) = (row.get(4), row.get(5));
    let (usage, select): (bool, bool) = (row.get(6), row.get(7));
    let user = quote_ident(user);
    let (in_schema, named) = (quote_ident(&schema), quote_ident(&name));
    let usage = (!usage).then(|| format!("GRANT USAGE ON SCHEMA {in_schema} TO {user}"));
    let select = (!select).then(|| format!("GRANT SELECT ON {in_schema}.{named} TO {user}"));
    let grants: Vec<String> = usage.into_iter().chain(select).collect();
    Table {
        id: TableId::new(&schema, &name),
        key: row.get(3),
        identity: match &*identity {
            "n" => ReplicaIdentity::Nothing,
            "f" => ReplicaIdentity::Full,
            "i" => ReplicaIdentity::Index,
            _ => ReplicaIdentity::Default,
        },
        rows: rows.map(i64::unsigned_abs),
        bytes: bytes.unsigned_abs(),
        grant: (!grants.is_empty()).then(|| grants.join("; ")),
    }
}
