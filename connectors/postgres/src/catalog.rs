//! What the catalog says about tables: columns, keys, replica identity, size.

mod key;

use std::collections::HashMap;
use std::sync::Arc;

use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::schema::{Column, ReplicaIdentity, TableId, TableSchema};
use lockstep_pg::sql;
use tokio_postgres::Client;

use crate::types::TypeCache;
use crate::visible::Visible;

/// A table of the publication.
#[derive(Clone, Debug)]
pub struct Published {
    /// Schema and name.
    pub id: TableId,
    /// Oid; of the root for a table published by its root.
    pub relation: u32,
    /// Published columns, in table order; all when `None` (before PostgreSQL 15).
    pub columns: Option<Vec<String>>,
    /// Row filter, an SQL expression.
    pub filter: Option<String>,
}

/// What the catalog adds to a relation's description on the wire.
#[derive(Clone, Debug)]
pub struct TableFacts {
    /// Columns in table order.
    pub columns: Vec<ColumnFacts>,
    /// Primary key columns in key order.
    pub primary_key: Vec<String>,
    /// Columns of the replica-identity index, in index order.
    pub identity_index: Vec<String>,
    /// Replica identity.
    pub identity: ReplicaIdentity,
    /// Whether the primary key can be checked at the end of a transaction, which replica identity cannot use.
    pub deferrable_key: bool,
}

/// See [`TableFacts`].
#[derive(Clone, Debug)]
pub struct ColumnFacts {
    /// Name.
    pub name: String,
    /// Type oid; a domain's own.
    pub type_oid: u32,
    /// Type modifier.
    pub typmod: i32,
    /// NOT NULL.
    pub not_null: bool,
    /// GENERATED ALWAYS AS, stored or virtual.
    pub generated: bool,
}

/// The catalog of one database, with a cache of types.
pub struct Catalog {
    client: Client,
    source: Arc<str>,
    types: TypeCache,
    versions: HashMap<u32, u32>,
}

/// A relation as the wire describes it: what [`Catalog::schema`] builds on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Oid.
    pub relation: u32,
    /// Schema and name.
    pub id: TableId,
    /// Replica identity.
    pub identity: ReplicaIdentity,
    /// Name, type oid, typmod, part of the identity.
    pub columns: Vec<(String, u32, i32, bool)>,
}

impl Catalog {
    /// A catalog read through `client`.
    pub fn new(client: Client, source: Arc<str>, types: TypeCache) -> Self {
        Catalog {
            client,
            source,
            types,
            versions: HashMap::new(),
        }
    }

    /// The client, for other SQL.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The client, when the catalog has served its purpose.
    pub fn into_client(self) -> Client {
        self.client
    }

    /// The types known so far, for another connection.
    pub fn types(&self) -> TypeCache {
        self.types.clone()
    }

    /// As [`facts`].
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn facts(&self, relation: u32) -> Result<Option<TableFacts>> {
        facts(&self.client, relation).await
    }

    /// Whether what a committed transaction has done shows by now.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn sees(&self, xid: u32) -> Result<bool> {
        let ask = "SELECT pg_catalog.pg_current_snapshot()::text";
        let row = sql::query_one(&self.client, "take a snapshot", ask, &[]).await?;
        Ok(Visible::parse(row.get(0))?.sees(xid))
    }

    /// The name that a table has now; `None` when it was dropped.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn name(&self, relation: u32) -> Result<Option<TableId>> {
        let row = sql::query_opt(
            &self.client,
            "read the catalog",
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
            &[&relation],
        )
        .await?;
        Ok(row.map(|row| TableId::new(row.get(0), row.get(1))))
    }

    /// The description that the stream would send for a published table, from the catalog.
    ///
    /// # Errors
    /// When the table was dropped.
    pub fn described(
        &self,
        table: &Published,
        facts: &TableFacts,
        server_version: u32,
    ) -> Described {
        let published = |column: &&ColumnFacts| {
            let listed = table
                .columns
                .as_ref()
                .is_none_or(|list| list.contains(&column.name));
            // Before 18 generated columns are never sent, though some versions list them.
            listed && (server_version >= 180_000 || !column.generated)
        };
        let columns = facts
            .columns
            .iter()
            .filter(published)
            .filter(|column| !column.generated || table.columns.is_some())
            .map(|column| {
                let identity = match facts.identity {
                    ReplicaIdentity::Default => facts.primary_key.contains(&column.name),
                    ReplicaIdentity::Full => true,
                    ReplicaIdentity::Index => facts.identity_index.contains(&column.name),
                    ReplicaIdentity::Nothing => false,
                };
                (
                    column.name.clone(),
                    column.type_oid,
                    column.typmod,
                    identity,
                )
            })
            .collect();
        Described {
            relation: table.relation,
            id: table.id.clone(),
            identity: facts.identity,
            columns,
        }
    }

    /// The schema for a described relation. Names, types and order are the description's (what the rows behind it
    /// have); key order and NOT NULL are the catalog's, as far as it still knows these columns.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn schema(&mut self, described: &Described) -> Result<TableSchema> {
        let facts = self.facts(described.relation).await?;
        let mut columns = Vec::with_capacity(described.columns.len());
        for (slot, (name, oid, typmod, _)) in described.columns.iter().enumerate() {
            let ty = self.types.resolve(&self.client, *oid, *typmod).await?;
            let not_null = facts
                .as_ref()
                .and_then(|facts| facts.columns.iter().find(|column| column.name == *name))
                .is_some_and(|column| column.not_null);
            columns.push(Column {
                name: name.as_str().into(),
                ty,
                slot: slot as u16,
                not_null,
            });
        }
        let key = key::of(described, facts.as_ref());
        let version = self.versions.entry(described.relation).or_insert(0);
        *version += 1;
        Ok(TableSchema {
            source: Arc::clone(&self.source),
            id: described.id.clone(),
            origin: described.id.clone(),
            relation: described.relation,
            version: *version,
            width: columns.len() as u16,
            columns,
            key,
            identity: described.identity,
        })
    }
}

/// Reads the facts of a table; `None` when it was dropped.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn facts(client: &Client, relation: u32) -> Result<Option<TableFacts>> {
    let doing = "read the catalog";
    let identity = sql::query_opt(
        client,
        doing,
        "SELECT relreplident::text FROM pg_catalog.pg_class WHERE oid = $1",
        &[&relation],
    )
    .await?;
    let Some(identity) = identity else {
        return Ok(None);
    };
    let identity: String = identity.get(0);
    let columns = sql::query(
        client,
        doing,
        "SELECT a.attname::text, a.atttypid, a.atttypmod, a.attnotnull, a.attgenerated <> '' \
             FROM pg_catalog.pg_attribute a \
             WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        &[&relation],
    )
    .await?
    .iter()
    .map(|row| ColumnFacts {
        name: row.get(0),
        type_oid: row.get(1),
        typmod: row.get(2),
        not_null: row.get(3),
        generated: row.get(4),
    })
    .collect();
    let indexes = sql::query(
        client,
        doing,
        "SELECT i.indisprimary, i.indisreplident, NOT i.indimmediate, \
             (SELECT array_agg(a.attname::text ORDER BY k.n) \
              FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, n) \
              JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
              WHERE k.n <= i.indnkeyatts) \
             FROM pg_catalog.pg_index i WHERE i.indrelid = $1 AND (i.indisprimary OR i.indisreplident)",
        &[&relation],
    )
    .await?;
    let mut facts = TableFacts {
        columns,
        primary_key: Vec::new(),
        identity_index: Vec::new(),
        identity: identity_of(identity.bytes().next().unwrap_or(b'd')),
        deferrable_key: false,
    };
    for index in indexes {
        let names: Vec<String> = index.get::<_, Option<_>>(3).unwrap_or_default();
        if index.get(0) {
            facts.deferrable_key = index.get(2);
            facts.primary_key.clone_from(&names);
        }
        if index.get(1) {
            facts.identity_index = names;
        }
    }
    Ok(Some(facts))
}

/// The replica identity for `pg_class.relreplident`.
#[must_use]
pub fn identity_of(byte: u8) -> ReplicaIdentity {
    match byte {
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        _ => ReplicaIdentity::Default,
    }
}

/// Refuses tables whose changes could not be identified, before they are published: PostgreSQL itself would refuse
/// their UPDATEs and DELETEs from then on.
///
/// # Errors
/// Of kind `Setup`, with the statement that repairs it.
pub fn require_identity(id: &TableId, facts: &TableFacts) -> Result<()> {
    let table = format!(
        "{}.{}",
        sql::quote_ident(&id.schema),
        sql::quote_ident(&id.name)
    );
    let refuse = |message: &str, remedy: String| {
        Err(Error::new(ErrorKind::Setup, message)
            .remedy(remedy)
            .at(format!("table {id}")))
    };
    match facts.identity {
        ReplicaIdentity::Default if facts.primary_key.is_empty() => refuse(
            "has no primary key, so an UPDATE or DELETE would be refused by the server once it is published",
            format!(
                "ALTER TABLE {table} ADD PRIMARY KEY (…), or ALTER TABLE {table} REPLICA IDENTITY FULL (queues only), \
                 or leave it out of `tables`"
            ),
        ),
        ReplicaIdentity::Default if facts.deferrable_key => refuse(
            "has a deferrable primary key, which replica identity cannot use",
            format!("ALTER TABLE {table} REPLICA IDENTITY FULL, or make the key NOT DEFERRABLE"),
        ),
        ReplicaIdentity::Nothing => refuse(
            "has REPLICA IDENTITY NOTHING, so an UPDATE or DELETE would be refused by the server once it is published",
            format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT"),
        ),
        ReplicaIdentity::Index if facts.identity_index.is_empty() => refuse(
            "has lost the index of its replica identity",
            format!(
                "ALTER TABLE {table} REPLICA IDENTITY DEFAULT, or USING INDEX another unique index"
            ),
        ),
        _ => Ok(()),
    }
}
