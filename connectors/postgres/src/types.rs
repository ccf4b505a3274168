//! Types by oid: the catalog's answer, with domains resolved, kept for the life of a connection.

use std::collections::HashMap;
use std::sync::Arc;

use lockstep_core::error::Result;
use lockstep_core::schema::{ColumnType, TypeKind};
use lockstep_pg::sql;
use tokio_postgres::Client;

/// A type with its domain resolved: what it is made of, and the typmod that the domain sets.
#[derive(Clone, Debug)]
struct Resolved {
    ty: ColumnType,
}

/// Types that have been looked up. Oids of types never change their meaning.
#[derive(Clone, Debug, Default)]
pub struct TypeCache(HashMap<u32, Resolved>);

const LOOK_UP: &str = "\
SELECT t.typname::text, t.typtype::text, t.typelem, t.typcategory::text, t.typbasetype, t.typtypmod \
FROM pg_catalog.pg_type t WHERE t.oid = $1";

impl TypeCache {
    /// The type of a column.
    ///
    /// # Errors
    /// When the catalog cannot be read. A type that was dropped meanwhile is not an error: it is carried as `unknown`.
    pub async fn resolve(&mut self, client: &Client, oid: u32, typmod: i32) -> Result<ColumnType> {
        if let Some(known) = self.0.get(&oid) {
            return Ok(with_typmod(&known.ty, typmod));
        }
        let ty = Box::pin(self.look_up(client, oid)).await?;
        self.0.insert(oid, Resolved { ty: ty.clone() });
        Ok(with_typmod(&ty, typmod))
    }

    async fn look_up(&mut self, client: &Client, oid: u32) -> Result<ColumnType> {
        let row = sql::query_opt(client, "read pg_type", LOOK_UP, &[&oid]).await?;
        let Some(row) = row else {
            return Ok(ColumnType {
                oid,
                typmod: -1,
                name: "unknown".into(),
                kind: TypeKind::Base,
            });
        };
        let (name, kind): (String, String) = (row.get(0), row.get(1));
        let (element, category): (u32, String) = (row.get(2), row.get(3));
        let (base, base_typmod): (u32, i32) = (row.get(4), row.get(5));
        let kind = match kind.as_str() {
            "d" => return self.resolve(client, base, base_typmod).await,
            "e" => TypeKind::Enum,
            "r" => TypeKind::Range,
            "m" => TypeKind::Multirange,
            "c" => TypeKind::Composite,
            // The two old vector types are printed as `1 2 3`, not as `{1,2,3}`.
            _ if category == "A" && element != 0 && name != "int2vector" && name != "oidvector" => {
                TypeKind::Array(Arc::new(self.resolve(client, element, -1).await?))
            }
            _ => TypeKind::Base,
        };
        Ok(ColumnType {
            oid,
            typmod: -1,
            name: name.into(),
            kind,
        })
    }
}

/// A column's own typmod wins over a domain's; an array's elements have the column's.
fn with_typmod(ty: &ColumnType, typmod: i32) -> ColumnType {
    if typmod == -1 {
        return ty.clone();
    }
    let kind = match &ty.kind {
        TypeKind::Array(element) => TypeKind::Array(Arc::new(with_typmod(element, typmod))),
        other => other.clone(),
    };
    ColumnType {
        typmod,
        kind,
        ..ty.clone()
    }
}
