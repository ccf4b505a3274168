//! What is in the log.

/// A kind of load, in a table and a publication of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Inserts, 1000 to a transaction.
    Batches,
    /// Inserts, one to a transaction.
    Singles,
    /// Inserts, all in one transaction.
    Giant,
    /// A table to be copied.
    Table,
}

impl Workload {
    pub const ALL: [Workload; 4] = [
        Workload::Batches,
        Workload::Singles,
        Workload::Giant,
        Workload::Table,
    ];

    /// In the output, and for `--only`.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Batches => "1000/tx",
            Workload::Singles => "1/tx",
            Workload::Giant => "one-tx",
            Workload::Table => "copy",
        }
    }

    /// Of table, publication and slot.
    pub fn table(self) -> &'static str {
        match self {
            Workload::Batches => "batches",
            Workload::Singles => "singles",
            Workload::Giant => "giant",
            Workload::Table => "copied",
        }
    }

    /// How many rows.
    pub fn rows(self, quick: bool) -> u64 {
        let rows = match self {
            Workload::Singles => 300_000,
            Workload::Batches | Workload::Giant | Workload::Table => 1_000_000,
        };
        if quick { rows / 10 } else { rows }
    }

    /// Nine columns, about 267 bytes a row on the wire with 30 of framing.
    pub fn create(self) -> String {
        format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, customer_id bigint NOT NULL, reference uuid NOT NULL, \
             status text NOT NULL, quantity integer NOT NULL, total numeric(12,2) NOT NULL, \
             created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL, note text); \
             CREATE PUBLICATION {table} FOR TABLE {table}",
            table = self.table()
        )
    }

    /// Puts `rows` rows into the table.
    pub fn fill(self, rows: u64) -> String {
        let insert = |from: &str, to: &str| {
            format!(
                "INSERT INTO {table} SELECT i, i % 90000 + 10000, md5(i::text)::uuid, \
                 (ARRAY['pending','shipped','returned','delivered'])[i % 4 + 1], i % 90 + 10, (i % 1000000) / 100.0 + 1000, \
                 '2026-11-22 10:11:12.123456+00'::timestamptz + i * interval '1.000001 s', \
                 '2026-11-22 11:12:13.654321+00'::timestamptz + i * interval '1.000001 s', \
                 left(md5(i::text) || md5((-i)::text), 60) FROM generate_series({from}, {to}) i",
                table = self.table()
            )
        };
        match self {
            Workload::Giant | Workload::Table => insert("1", &format!("{rows}::bigint")),
            Workload::Batches | Workload::Singles => {
                let step = if self == Workload::Singles { 1 } else { 1000 };
                let statement = insert("first", &format!("first + {step} - 1"));
                format!(
                    "DO $$ DECLARE first bigint := 1; BEGIN WHILE first <= {rows} LOOP {statement}; COMMIT; \
                     first := first + {step}; END LOOP; END $$"
                )
            }
        }
    }
}
