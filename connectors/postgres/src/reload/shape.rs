//! The shape in which a table is read: as it is now, whether or not a row has passed in the stream since it changed.

use std::sync::Arc;

use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pg::sql::{self, quote_literal};
use lockstep_pg::wire::Connection;
use lockstep_pg::wire::target::Target;

use crate::catalog::{Catalog, Published};
use crate::publication;
use crate::types::TypeCache;

/// See the module's page.
pub(super) struct Shape {
    pub(super) schema: Arc<TableSchema>,
    /// Of the publication, as it is now.
    pub(super) filter: Option<String>,
    publication: String,
    columns: Columns,
}

/// Name, type and modifier of each column, as the server prints them; then, from PostgreSQL 15 on, which of them the publication
/// has, and of which rows.
type Columns = Vec<Vec<Option<String>>>;

impl Shape {
    /// Asks for it. `known` are schemas of the table to use instead of an equal one.
    ///
    /// # Errors
    /// Of kind `Setup` when the table is not in the publication any more; when the catalog cannot be read.
    pub(super) async fn ask(
        connection: &mut Connection,
        target: &Target,
        publication: &str,
        published: &Published,
        known: &[Arc<TableSchema>],
    ) -> Result<Self> {
        // Before the rest: a change in between is seen by `is_still`.
        let columns = columns(connection, publication, published.relation).await?;
        let client = sql::connect(target).await?;
        let source = known
            .first()
            .map_or_else(|| "".into(), |schema| Arc::clone(&schema.source));
        let mut catalog = Catalog::new(client, source, TypeCache::default());
        let version = connection.server_version();
        let all = publication::read(catalog.client(), publication, version).await?;
        let now = all.and_then(|all| {
            let mut tables = all.tables.into_iter();
            tables.find(|table| table.relation == published.relation)
        });
        let gone = || {
            Error::new(ErrorKind::Setup, "is not in the publication any more")
                .remedy("see what `lockstep status` and the log say of the table")
        };
        let now = now.ok_or_else(gone)?;
        let facts = catalog.facts(now.relation).await?.ok_or_else(gone)?;
        let described = catalog.described(&now, &facts, version);
        let mut schema = catalog.schema(&described).await?;
        let same = known
            .iter()
            .find(|known| known.columns == schema.columns && known.key == schema.key);
        let schema = match same {
            Some(same) => Arc::clone(same),
            None => {
                let latest = known.iter().map(|known| known.version).max();
                schema.version = latest.unwrap_or(0) + 1;
                Arc::new(schema)
            }
        };
        Ok(Shape {
            schema,
            filter: now.filter,
            publication: publication.to_owned(),
            columns,
        })
    }

    /// Whether a table that cannot change for now has it.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub(super) async fn is_still(&self, connection: &mut Connection) -> Result<bool> {
        let now = columns(connection, &self.publication, self.schema.relation).await?;
        Ok(now == self.columns)
    }
}

async fn columns(connection: &mut Connection, publication: &str, relation: u32) -> Result<Columns> {
    let ask = format!(
        "SELECT attname, atttypid, atttypmod FROM pg_catalog.pg_attribute \
         WHERE attrelid = {relation} AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    );
    let mut columns = connection.query("look at the columns", &ask).await?;
    if connection.server_version() >= 150_000 {
        let ask = format!(
            "SELECT pg_catalog.pg_get_expr(r.prqual, r.prrelid), r.prattrs \
             FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
             WHERE r.prrelid = {relation} AND p.pubname = {}",
            quote_literal(publication)
        );
        let published = connection.query("look at the publication", &ask).await?;
        columns.extend(published);
    }
    Ok(columns)
}
