//! What PostgreSQL says must have arrived.

use std::collections::{BTreeMap, HashMap};

use lockstep_kit::postgres::Database;
use serde_json::Value;

use super::history::{Begin, Event, Op};
use crate::workload::TABLES;

/// Of all tables.
pub(super) struct Expected {
    pub(super) tables: BTreeMap<&'static str, Table>,
    pub(super) changes: u64,
}

/// Of one table.
#[derive(Default)]
pub(super) struct Table {
    /// The rows now, by key.
    pub(super) rows: BTreeMap<i64, Value>,
    /// The changes of each key, in order.
    pub(super) history: BTreeMap<i64, Vec<Event>>,
    /// The rows that changes wrote, by version; large values by their mark.
    pub(super) written: HashMap<i64, Value>,
    pub(super) truncates: u32,
    pub(super) begin: Begin,
}

impl Expected {
    pub(super) async fn read(database: &Database, begin: Begin) -> Result<Self, String> {
        let mut tables = BTreeMap::new();
        let mut changes = 0;
        for name in TABLES {
            let mut table = Table {
                begin,
                ..Table::default()
            };
            table.read_rows(database, name).await?;
            changes += table.read_audit(database, name).await?;
            tables.insert(name, table);
        }
        Ok(Self { tables, changes })
    }
}

impl Table {
    async fn read_rows(&mut self, database: &Database, name: &str) -> Result<(), String> {
        let sql = format!("SELECT id, to_jsonb(t)::text FROM {name} t");
        let rows = database.client().await.query(&sql, &[]).await;
        for row in rows.map_err(|error| error.to_string())? {
            self.rows.insert(row.get(0), json(row.get(1))?);
        }
        Ok(())
    }

    async fn read_audit(&mut self, database: &Database, name: &str) -> Result<u64, String> {
        let sql = "SELECT op, coalesce(id, 0), coalesce(v, 0), row::text FROM audit WHERE tbl = $1 ORDER BY seq";
        let rows = database.client().await.query(sql, &[&name]).await;
        let rows = rows.map_err(|error| error.to_string())?;
        for row in &rows {
            let (op, id, version): (&str, i64, i64) = (row.get(0), row.get(1), row.get(2));
            if op == "t" {
                self.truncates += 1;
                continue;
            }
            let event = Event {
                op: Op::named(op).ok_or_else(|| format!("the audit has op {op}"))?,
                version,
                truncates: self.truncates,
            };
            self.history.entry(id).or_default().push(event);
            if let Some(text) = row.get(3) {
                self.written.insert(version, json(text)?);
            }
        }
        Ok(rows.len() as u64)
    }
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("{error}: {text}"))
}
