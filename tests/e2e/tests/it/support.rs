//! What several tests need.

use lockstep_e2e::work::TABLES;
use lockstep_kit::postgres::Database;

/// A list of strings in TOML.
pub fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", items.join(", "))
}

/// The tables of the workload.
pub fn tables() -> Vec<String> {
    TABLES.map(str::to_owned).to_vec()
}

/// The section of a source named `shop` with a slot of that name, for tables of the schema `public`.
pub fn source(url: &str, slot: &str, tables: &[&str]) -> String {
    let tables: Vec<String> = tables
        .iter()
        .map(|table| format!("public.{table}"))
        .collect();
    format!(
        "[sources.shop]\ntype = \"postgres\"\nurl = \"{url}\"\nslot = \"{slot}\"\ntables = {}\n",
        list(&tables)
    )
}

/// The section of a sink named `files` that writes a file per table.
pub fn files(folder: &std::path::Path) -> String {
    format!(
        "[sinks.files]\ntype = \"file\"\ninputs = [\"shop\"]\npath = \"{}/{{table}}.jsonl\"\n",
        folder.display()
    )
}

/// The section of a sink named `cache` with keys that begin with `prefix`.
pub fn cache(url: &str, prefix: &str) -> String {
    format!(
        "[sinks.cache]\ntype = \"redis\"\ninputs = [\"shop\"]\nurl = \"{url}\"\nkey = \"{prefix}:{{table}}:{{key}}\"\n"
    )
}

/// The section of a sink named `events` with topics that begin with `prefix`; `more` are further lines of it.
pub fn events(brokers: &str, prefix: &str, more: &str) -> String {
    format!(
        "[sinks.events]\ntype = \"kafka\"\ninputs = [\"shop\"]\nbrokers = \"{brokers}\"\n\
         topic = \"{prefix}.{{table}}\"\nprogress_topic = \"{prefix}.progress\"\n{more}\n"
    )
}

/// The end of the log: everything that has been committed lies before it.
pub async fn end_of_log(database: &Database) -> String {
    database
        .value("SELECT pg_current_wal_flush_lsn()")
        .await
        .expect("an LSN")
}
