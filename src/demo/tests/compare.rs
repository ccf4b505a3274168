//! The comparison, against a sink that lives in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use lockstep_core::Result;
use lockstep_core::batch::{Batch, CellRef};
use lockstep_core::config::Secret;
use lockstep_core::position::{SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::sink::{Held, HeldVersion, Inspect};
use lockstep_kit::Component;
use lockstep_kit::postgres::{Database, Postgres};

use super::MAJOR;
use crate::demo::compare::{Compared, Copy, compare};
use crate::demo::pipeline;

const TABLES: &str = "
    CREATE TABLE payments (id int PRIMARY KEY, \"Amount\" numeric, at timestamptz, idempotency_key text, note text);
    INSERT INTO payments SELECT i, i / 8.0, '2026-01-01 00:00:00+05:30', 'key ' || i, repeat('x', i % 50)
        FROM generate_series(1, 2500) i;
    INSERT INTO payments VALUES (3001, 1, NULL, 'key 1', NULL), (3002, 2, NULL, 'key 2', NULL), (3003, 2, NULL, 'key 2', ''),
        (3004, 4, NULL, NULL, NULL), (3005, 5, NULL, NULL, NULL);
    CREATE TABLE plain (a text, b int, v float8, raw bytea, PRIMARY KEY (b, a));
    INSERT INTO plain VALUES ('one', 1, 0.1, '\\x00ff'), ('two', 2, 1e300, ''), ('', 3, NULL, NULL);
    CREATE TABLE empty (id int PRIMARY KEY);";

/// Rows by table and key.
type Store = Arc<Mutex<BTreeMap<(String, String), String>>>;

/// Holds rows; while it learns, it says that each is missing and keeps it.
struct Memory {
    rows: Store,
    learns: bool,
}

#[async_trait]
impl Inspect for Memory {
    async fn compare(&mut self, batch: &Batch) -> Result<Vec<Held>> {
        let mut rows = self.rows.lock().expect("no panic");
        let mut answers = Vec::new();
        for change in batch.changes() {
            let schema = batch.schema(change);
            let row = batch.new_row(change).expect("a row that was read");
            let shown = |column: &Column| match row.get(column) {
                CellRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                other => format!("{other:?}"),
            };
            let key = schema
                .key_columns()
                .map(shown)
                .collect::<Vec<_>>()
                .join(":");
            let expected = schema
                .columns
                .iter()
                .map(shown)
                .collect::<Vec<_>>()
                .join("|");
            let place = (schema.origin.name.to_string(), key.clone());
            if self.learns {
                rows.insert(place.clone(), expected.clone());
                answers.push(Held::Missing { key });
                continue;
            }
            answers.push(match rows.get(&place) {
                None => Held::Missing { key },
                Some(actual) if *actual == expected => Held::Same,
                Some(actual) => Held::Different {
                    key,
                    expected,
                    actual: actual.clone(),
                    version: HeldVersion::Unknown,
                },
            });
        }
        Ok(answers)
    }

    async fn count(&mut self, table: &TableSchema) -> Result<u64> {
        let rows = self.rows.lock().expect("no panic");
        Ok(rows
            .keys()
            .filter(|(name, _)| **name == *table.origin.name)
            .count() as u64)
    }
}

struct Scene {
    database: Database,
    source: Arc<SourceInfo>,
    tables: Vec<Arc<TableSchema>>,
    store: Store,
}

impl Scene {
    async fn new() -> Self {
        let database = Postgres::shared(MAJOR).await.database("compare").await;
        database.execute(TABLES).await;
        let mut tables = Vec::new();
        for (name, key) in [
            ("payments", vec![0]),
            ("plain", vec![1, 0]),
            ("empty", vec![0]),
        ] {
            tables.push(Arc::new(table(&database, name, key).await));
        }
        let source = Arc::new(SourceInfo {
            name: "orders".into(),
            identity: SourceIdentity {
                system: 1,
                timeline: 1,
                incarnation: 0,
                database: database.name().into(),
            },
        });
        let scene = Scene {
            database,
            source,
            tables,
            store: Store::default(),
        };
        scene.compare(true).await.expect("learns");
        // What dedupe keeps out: of one pair the later row, of the group of three two that are not the last.
        for id in ["3001", "2", "3002"] {
            assert!(scene.forget("payments", id), "{id}");
        }
        scene
    }

    fn forget(&self, table: &str, key: &str) -> bool {
        let mut rows = self.store.lock().expect("no panic");
        rows.remove(&(table.to_owned(), key.to_owned())).is_some()
    }

    fn put(&self, table: &str, key: &str, row: &str) {
        let mut rows = self.store.lock().expect("no panic");
        rows.insert((table.to_owned(), key.to_owned()), row.to_owned());
    }

    async fn compare(&self, learns: bool) -> Result<Vec<Compared>> {
        let memory = Memory {
            rows: Arc::clone(&self.store),
            learns,
        };
        let mut copies = [Copy {
            name: "cache".into(),
            inspect: Box::new(memory),
        }];
        let rules = pipeline::rules();
        let url = Secret::new(self.database.url());
        compare(&url, &self.source, &self.tables, &rules, &mut copies).await
    }
}

/// The columns as the database has them; types do not matter here.
async fn table(database: &Database, name: &str, key: Vec<u16>) -> TableSchema {
    let client = database.client().await;
    let sql = format!(
        "SELECT attrelid, attname::text, atttypid FROM pg_attribute
         WHERE attrelid = '{name}'::regclass AND attnum > 0 ORDER BY attnum"
    );
    let rows = client.query(&sql, &[]).await.expect("columns");
    let column = |(slot, row): (usize, &tokio_postgres::Row)| Column {
        name: row.get::<_, &str>(1).into(),
        ty: ColumnType {
            oid: row.get(2),
            typmod: -1,
            name: "any".into(),
            kind: TypeKind::Base,
        },
        slot: slot as u16,
        not_null: false,
    };
    TableSchema {
        source: "orders".into(),
        id: TableId::new("public", name),
        origin: TableId::new("public", name),
        relation: rows[0].get(0),
        version: 1,
        columns: rows.iter().enumerate().map(column).collect(),
        key,
        identity: ReplicaIdentity::Default,
        width: rows.len() as u16,
    }
}

#[tokio::test]
async fn equal_copies_are_equal() {
    lockstep_kit::require!(Component::Postgres(MAJOR));
    let scene = Scene::new().await;
    let results = scene.compare(false).await.expect("compares");
    assert!(results.iter().all(Compared::is_equal), "{results:?}");
    let payments = &results[0];
    assert_eq!((payments.rows, payments.suppressed), (2_502, 3));
    assert_eq!((results[1].rows, results[2].rows), (3, 0));
    // The session's odd defaults have no say in how values look.
    let rows = scene.store.lock().expect("no panic");
    let row = |table: &str, key: &str| rows[&(table.to_owned(), key.to_owned())].clone();
    assert_eq!(
        row("payments", "4"),
        "4|0.50000000000000000000|2025-12-31 18:30:00+00|key 4|xxxx"
    );
    assert_eq!(row("plain", "1:one"), "one|1|0.1|\\x00ff");
    assert_eq!(row("plain", "3:"), "|3|Null|Null");
}

#[tokio::test]
async fn every_difference_is_found() {
    lockstep_kit::require!(Component::Postgres(MAJOR));
    let scene = Scene::new().await;
    assert!(scene.forget("payments", "77"));
    scene.put("payments", "3001", "back again");
    scene.put("plain", "2:two", "two|2|1e+301|\\x");
    scene.put("plain", "9:nine", "nine|9||");
    let results = scene.compare(false).await.expect("compares");
    let numbers = |r: &Compared| (r.rows, r.same, r.missing, r.different, r.extra);
    assert_eq!(numbers(&results[0]), (2_502, 2_501, 1, 0, 1), "{results:?}");
    assert_eq!(numbers(&results[1]), (3, 2, 0, 1, 1), "{results:?}");
    assert!(!results[0].is_equal() && !results[1].is_equal() && results[2].is_equal());
    assert!(
        results[1].examples[0].contains("should hold two|2|1e+300|"),
        "{results:?}"
    );
}

#[tokio::test]
async fn a_schema_that_lags_behind_is_refused() {
    lockstep_kit::require!(Component::Postgres(MAJOR));
    let scene = Scene::new().await;
    scene
        .database
        .execute("ALTER TABLE plain ADD COLUMN more int")
        .await;
    let error = scene
        .compare(false)
        .await
        .expect_err("another shape")
        .to_string();
    assert!(
        error.contains("public.plain") && error.contains("more"),
        "{error}"
    );
}
