//! The publication: created when missing. Tables that come later are added to it where that is permitted; nothing else of
//! it is ever altered.

use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::schema::TableId;
use lockstep_pg::sql::{self, quote_ident, quote_literal};
use tokio_postgres::Client;

use crate::catalog::{Published, facts, require_identity};
use crate::state::Known;

/// How a publication stands.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Whether INSERT, UPDATE, DELETE and TRUNCATE are all published.
    pub complete: bool,
    /// The tables in it.
    pub tables: Vec<Published>,
}

/// Reads a publication; `None` when there is none of that name.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn read(client: &Client, name: &str, server_version: u32) -> Result<Option<Publication>> {
    let doing = "read the publication";
    let row = sql::query_opt(
        client,
        doing,
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_catalog.pg_publication \
             WHERE pubname = $1",
        &[&name],
    )
    .await?;
    let Some(row) = row else { return Ok(None) };
    let details = if server_version >= 150_000 {
        "p.attnames::text[], p.rowfilter"
    } else {
        "NULL::text[], NULL::text"
    };
    let tables = sql::query(
        client,
        doing,
        &format!(
            "SELECT p.schemaname::text, p.tablename::text, c.oid, {details} \
                 FROM pg_catalog.pg_publication_tables p \
                 JOIN pg_catalog.pg_namespace n ON n.nspname = p.schemaname \
                 JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename \
                 WHERE p.pubname = $1 ORDER BY 1, 2"
        ),
        &[&name],
    )
    .await?
    .iter()
    .map(|row| Published {
        id: TableId::new(row.get(0), row.get(1)),
        relation: row.get(2),
        columns: row.get(3),
        filter: row.get(4),
    })
    .collect();
    Ok(Some(Publication {
        complete: row.get(0),
        tables,
    }))
}

/// The tables that the patterns name, as they exist in the database. Partitions are left to their root.
///
/// # Errors
/// Of kind `Setup` when a pattern names no table; the message lists tables with the nearest names.
pub async fn existing(client: &Client, patterns: &[String]) -> Result<Vec<Published>> {
    let rows = sql::query(
        client,
        "list the tables",
        "SELECT n.nspname::text, c.relname::text, c.oid FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' \
             AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%' \
             ORDER BY 1, 2",
        &[],
    )
    .await?;
    let all: Vec<Published> = rows
        .iter()
        .map(|row| Published {
            id: TableId::new(row.get(0), row.get(1)),
            relation: row.get(2),
            columns: None,
            filter: None,
        })
        .collect();
    let mut found = Vec::new();
    for pattern in patterns {
        let before = found.len();
        found.extend(
            all.iter()
                .filter(|table| matches(pattern, &table.id))
                .cloned(),
        );
        if found.len() == before {
            let there_are: Vec<String> = all
                .iter()
                .take(20)
                .map(|table| table.id.to_string())
                .collect();
            return Err(
                Error::new(ErrorKind::Setup, format!("there is no table {pattern}"))
                    .remedy(format!(
                        "correct `tables`; the database has {}",
                        there_are.join(", ")
                    ))
                    .at("tables"),
            );
        }
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found.dedup_by(|a, b| a.id == b.id);
    Ok(found)
}

/// Whether `schema.table` or `schema.*` names the table.
#[must_use]
pub fn matches(pattern: &str, id: &TableId) -> bool {
    pattern
        .split_once('.')
        .is_some_and(|(schema, name)| schema == &*id.schema && (name == "*" || name == &*id.name))
}

/// The statement that creates the publication.
#[must_use]
pub fn create_statement(name: &str, tables: &[Published]) -> String {
    let list: Vec<String> = tables.iter().map(|table| qualified(&table.id)).collect();
    // Partitions are one table to everybody downstream.
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)",
        quote_ident(name),
        list.join(", ")
    )
}

fn qualified(id: &TableId) -> String {
    format!("{}.{}", quote_ident(&id.schema), quote_ident(&id.name))
}

/// What a source wants of a publication.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its name.
    pub name: &'a str,
    /// The tables, as the section names them.
    pub patterns: &'a [String],
}

/// The comment on a publication that was created from here: to such a one tables are added that only a pattern names.
const OURS: &str = "created by lockstep";

impl Wanted<'_> {
    /// Tables that are named, were not followed before, and can be added to the publication by this role: any that is
    /// named in full, and those that a pattern names where the publication was created from here. What was followed and
    /// is not in the publication any more was taken out by somebody.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn addable(
        &self,
        client: &Client,
        publication: &Publication,
        known: &Known,
    ) -> Result<Vec<Published>> {
        const LOOK: &str = "\
SELECT n.nspname::text, c.relname::text, c.oid, pg_catalog.obj_description(p.oid, 'pg_publication') IS NOT DISTINCT FROM $2 \
FROM pg_catalog.pg_publication p, pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE p.pubname = $1 AND pg_catalog.pg_has_role(p.pubowner, 'USAGE') AND pg_catalog.pg_has_role(c.relowner, 'USAGE') \
AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' \
AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%' ORDER BY 1, 2";
        let rows = sql::query(client, "look for more tables", LOOK, &[&self.name, &OURS]).await?;
        let mut addable = Vec::new();
        for row in &rows {
            let (id, relation): (_, u32) = (TableId::new(row.get(0), row.get(1)), row.get(2));
            let ours: bool = row.get(3);
            let named = |pattern: &&String| matches(pattern, &id);
            let mut names = self.patterns.iter().filter(named);
            let in_full = names.any(|pattern| !pattern.ends_with(".*"));
            let is_named = in_full || (ours && self.patterns.iter().any(|one| matches(one, &id)));
            let is_published = publication.tables.iter().any(|table| table.id == id);
            let is_known = known
                .get(&id.to_string())
                .is_some_and(|known| known.abs() == i64::from(relation));
            if is_published || !is_named || is_known {
                continue;
            }
            let Some(facts) = facts(client, relation).await? else {
                continue;
            };
            if let Err(error) = require_identity(&id, &facts) {
                tracing::debug!(table = %id, %error, "is not added to the publication");
                continue;
            }
            addable.push(Published {
                id,
                relation,
                columns: None,
                filter: None,
            });
        }
        Ok(addable)
    }

    /// Adds what can be added; whether that was anything.
    async fn extend(
        &self,
        client: &Client,
        publication: &Publication,
        known: &Known,
    ) -> Result<bool> {
        let more = self.addable(client, publication, known).await?;
        for table in &more {
            let statement = format!(
                "ALTER PUBLICATION {} ADD TABLE {}",
                quote_ident(self.name),
                qualified(&table.id)
            );
            sql::change(client, "add a table to the publication", &statement).await?;
            tracing::info!(publication = self.name, table = %table.id, "added to the publication");
        }
        Ok(!more.is_empty())
    }
}

impl Wanted<'_> {
    /// Finds the publication, or creates it, adds tables that have come since those that are `known`, and returns the tables
    /// of it that the patterns name.
    ///
    /// # Errors
    /// `Setup` when it exists and lacks a table or an operation, or when it would be created for a table that has no
    /// identity, with the statement that repairs it; `Permission` when it is missing and may not be created.
    pub async fn ensure(
        &self,
        client: &Client,
        known: Option<&Known>,
        server_version: u32,
    ) -> Result<Vec<Published>> {
        let Wanted { name, patterns } = *self;
        let mut publication = match read(client, name, server_version).await? {
            Some(publication) => publication,
            None => {
                let tables = existing(client, patterns).await?;
                for table in &tables {
                    if let Some(facts) = facts(client, table.relation).await? {
                        require_identity(&table.id, &facts)?;
                    }
                }
                let statement = create_statement(name, &tables);
                let comment = format!(
                    "{statement}; COMMENT ON PUBLICATION {} IS {}",
                    quote_ident(name),
                    quote_literal(OURS)
                );
                let doing = format!("create the publication {name}");
                let created = sql::change(client, &doing, &comment).await;
                created.map_err(|error| match error.kind() {
                    ErrorKind::Permission => {
                        error.remedy(format!("let the owner of the tables run: {statement}"))
                    }
                    _ => error,
                })?;
                tracing::info!(
                    publication = name,
                    tables = tables.len(),
                    "publication created"
                );
                read(client, name, server_version).await?.ok_or_else(|| {
                    Error::new(
                        ErrorKind::Setup,
                        format!("the publication {name} vanished while it was read"),
                    )
                })?
            }
        };
        if !publication.complete {
            return Err(Error::new(
                ErrorKind::Setup,
                format!("the publication {name} leaves out some operations"),
            )
            .remedy(format!(
                "ALTER PUBLICATION {} SET (publish = {})",
                quote_ident(name),
                quote_literal("insert, update, delete, truncate")
            )));
        }
        if let Some(known) = known
            && self.extend(client, &publication, known).await?
        {
            publication = read(client, name, server_version).await?.ok_or_else(|| {
                Error::new(
                    ErrorKind::Unavailable,
                    format!("the publication {name} vanished while it was read"),
                )
            })?;
        }
        select(&publication, name, patterns)
    }
}

/// The tables of a publication that the patterns name.
///
/// # Errors
/// Of kind `Setup` when a pattern names none of them.
pub fn select(
    publication: &Publication,
    name: &str,
    patterns: &[String],
) -> Result<Vec<Published>> {
    for pattern in patterns {
        if !publication
            .tables
            .iter()
            .any(|table| matches(pattern, &table.id))
        {
            let what = pattern.strip_suffix(".*").map_or_else(
                || format!("TABLE {pattern}"),
                |schema| format!("TABLES IN SCHEMA {schema}"),
            );
            return Err(Error::new(
                ErrorKind::Setup,
                format!("the publication {name} does not contain {pattern}"),
            )
            .remedy(format!(
                "ALTER PUBLICATION {} ADD {what} (for a partitioned table also \
                     SET (publish_via_partition_root = true))",
                quote_ident(name)
            ))
            .at("tables"));
        }
    }
    Ok(publication
        .tables
        .iter()
        .filter(|table| patterns.iter().any(|pattern| matches(pattern, &table.id)))
        .cloned()
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let id = TableId::new("public", "orders");
        assert!(matches("public.orders", &id) && matches("public.*", &id));
        assert!(!matches("public.order", &id) && !matches("shop.*", &id));
    }

    #[test]
    fn names_are_quoted() {
        let table = Published {
            id: TableId::new("Odd", "t t"),
            relation: 1,
            columns: None,
            filter: None,
        };
        let statement = create_statement("a\"b", &[table]);
        assert_eq!(
            statement,
            "CREATE PUBLICATION \"a\"\"b\" FOR TABLE \"Odd\".\"t t\" WITH (publish_via_partition_root = true)"
        );
    }
}
