//! The pipeline file, as one would write it by hand.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use super::sinks::{Sink, Surroundings};
use super::source::Source;
use super::tables::Choice;
use crate::figures::{bytes, count};
use crate::quoted::{literal, string};

/// Where comments begin, behind keys that are not longer.
const COMMENTS: usize = 40;
/// The transform that puts the sources together.
const STITCH: &str = "whole";

/// The variable that the file takes the admin endpoint's token from.
pub const TOKEN_VARIABLE: &str = "LOCKSTEP_ADMIN_TOKEN";

/// Whether others reach an address, so that the file asks for a token.
pub fn needs_token(listen: &str) -> bool {
    let address = listen.parse::<SocketAddr>();
    !address.is_ok_and(|address| address.ip().is_loopback())
}

/// What the file is made of.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Name of the pipeline.
    pub name: &'a str,
    /// Where the admin endpoint listens.
    pub listen: &'a str,
    /// At least one, each with tables.
    pub sources: &'a [Source],
    /// Transactions of the sources go on together.
    pub stitch: bool,
    /// At least one.
    pub sinks: &'a [Sink],
}

impl Plan<'_> {
    /// The text, which is to be in `file`.
    pub fn text(&self, file: &Path) -> String {
        let mut out = self.heading(file);
        for source in self.sources {
            out += &self.source(source);
        }
        if self.stitch {
            let inputs = self.sources.iter().map(|source| source.name().to_owned());
            out += &format!(
                "\n[transforms.{STITCH}]\n{}inputs = {}\n",
                line(
                    "type = \"stitch\"",
                    "a purchase over the databases arrives as a whole, or not yet"
                ),
                list(inputs)
            );
        }
        let schemas: BTreeSet<&str> = self
            .sources
            .iter()
            .flat_map(Source::taken)
            .map(|table| &*table.id.schema)
            .collect();
        let around = Surroundings {
            several_schemas: schemas.len() > 1,
        };
        for sink in self.sinks {
            out += &format!(
                "\n[sinks.{}]\ntype = {}\ninputs = {}\n{}",
                sink.name,
                string(sink.kind),
                list(self.inputs(sink)),
                sink.section(around)
            );
        }
        out + REST
    }

    fn heading(&self, file: &Path) -> String {
        let sources: Vec<&str> = self.sources.iter().map(Source::name).collect();
        let sinks: Vec<&str> = self.sinks.iter().map(|sink| sink.kind).collect();
        let file = file.display();
        let mut out = format!(
            "# {} into {}.\n#\n#   lockstep check {file}\n#   lockstep run {file}\n#\n\
             # Every key is described in docs/pipeline-file.md; `lockstep schema` prints what editors complete keys by.\n\n",
            sources.join(" and "),
            sinks.join(" and "),
        );
        let name = format!("name = {}", string(self.name));
        out += &line(&name, "progress belongs to this name: keep it");
        out += &format!("\n{}", line("[admin]", "/metrics /healthz /readyz /api/*"));
        let listen = format!("listen = {}", string(self.listen));
        let token = format!("token = \"${{{TOKEN_VARIABLE}}}\"\n");
        if needs_token(self.listen) {
            out += &line(&listen, "which other machines reach, with a token:");
        } else {
            out += &line(&listen, "other machines need a token:");
            out += "# ";
        }
        out += &token;
        out
    }

    fn source(&self, source: &Source) -> String {
        let database = &source.database;
        let mut out = format!(
            "\n[sources.{}]\ntype = \"postgres\"\nurl = {}\n",
            source.name(),
            string(&database.written)
        );
        if let Some(password) = &database.password {
            let key = format!("password = \"${{{}}}\"", password.variable);
            out += &line(&key, "from the environment; or \"${file:/run/secrets/…}\"");
        }
        let slot = format!("slot = {}", string(&source.slot(self.name)));
        out += &line(&slot, "created when missing");
        let publication = format!("publication = {}", string(&source.publication(self.name)));
        out += &line(
            &publication,
            "created for `tables` when missing and permitted",
        );
        out += "tables = [\n";
        for choice in &source.chosen {
            let entry = format!("  {},", string(&literal(&choice.pattern())));
            out += &line(&entry, &about(source, choice));
        }
        out += "]\n";
        for table in source
            .found
            .tables
            .iter()
            .filter(|table| !source.takes(table))
        {
            let why = table
                .obstacle()
                .map_or_else(String::new, |(why, _)| format!(": {why}"));
            let _ = writeln!(out, "# not taken: {}{why}", one_line(&table.id.to_string()));
        }
        if self.stitch {
            out += &line(
                "two_phase = true",
                "transactions come with the names of their coordinator",
            );
        }
        out += &line(
            "snapshot = \"initial\"",
            "existing rows first; or never, when_needed",
        );
        out
    }

    /// What a sink reads: everything, or the tables that have a key.
    fn inputs(&self, sink: &Sink) -> Vec<String> {
        let is_keyless = |source: &Source| source.taken().any(|table| table.key.is_empty());
        let leaves_out = sink.needs_keys() && self.sources.iter().any(is_keyless);
        if !leaves_out {
            return match self.stitch {
                true => vec![STITCH.to_owned()],
                false => self
                    .sources
                    .iter()
                    .map(|source| source.name().to_owned())
                    .collect(),
            };
        }
        let tables = self.sources.iter().flat_map(|source| {
            let keyed = source.taken().filter(|table| !table.key.is_empty());
            keyed.map(move |table| match self.stitch {
                true => literal(&format!("{STITCH}:{}.{}", source.name(), table.id)),
                false => literal(&format!("{}:{}", source.name(), table.id)),
            })
        });
        tables.collect()
    }
}

/// What may be wanted next.
const REST: &str = r#"
[reconcile]                             # every copy is read back and compared with its source, while both change
every = "15m"
repair = false                          # true: what differs is mended

# More than one process may stand ready for the pipeline; one runs it at a time:
# [lease]
# type = "postgres"
# url = "postgres://lockstep@127.0.0.1:5432/leases"

# A request that is sent twice is not taken twice; sinks read "once" then:
# [transforms.once]
# type = "dedupe"
# inputs = ["…"]
# key = ["idempotency_key"]
# window = "24h"
"#;

fn about(source: &Source, choice: &Choice) -> String {
    let Choice::Table(name) = choice else {
        return "all tables of the schema, those too that come later".to_owned();
    };
    let table = source.taken().find(|table| table.id.to_string() == *name);
    table.map_or_else(String::new, |table| {
        let key = match table.key.is_empty() {
            true => "no key: queues and files only".to_owned(),
            false => format!("key {}", one_line(&table.key.join(", "))),
        };
        let rows = match table.rows {
            Some(rows) => format!(", about {} rows, {}", count(rows), bytes(table.bytes)),
            None => format!(", {}", bytes(table.bytes)),
        };
        key + &rows
    })
}

/// A line with a comment, aligned with others.
pub fn line(text: &str, comment: &str) -> String {
    let width = COMMENTS.saturating_sub(1);
    format!("{text:<width$} # {comment}\n")
}

fn list(values: impl IntoIterator<Item = String>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| string(&value)).collect();
    format!("[{}]", values.join(", "))
}

/// A name in a comment, which must not end before it does.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use lockstep_core::schema::{ReplicaIdentity, TableId};
    use lockstep_pipelines::file::{Variables, load_with};

    use super::super::address::Database;
    use super::super::look::{Found, Table};
    use super::super::sinks;
    use super::*;

    fn source(url: &str, tables: &[(&str, &[&str])]) -> Source {
        let tables = tables.iter().map(|(name, key)| Table {
            id: TableId::new("public", name),
            key: key.iter().map(|&column| column.to_owned()).collect(),
            identity: match key.is_empty() {
                true => ReplicaIdentity::Full,
                false => ReplicaIdentity::Default,
            },
            rows: Some(20_000),
            bytes: 4_200_000,
            grant: None,
        });
        let found = Found {
            tables: tables.collect(),
            ..Found::default()
        };
        let database = Database::parse(url, &Variables::new()).expect("a URL");
        let mut source = Source::new(database, found);
        let names = source.found.tables.iter().map(|table| table.id.to_string());
        source.chosen = names.map(Choice::Table).collect();
        source
    }

    /// The text is a pipeline file, as far as can be told without servers.
    fn written(plan: &Plan<'_>) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("shop.toml");
        let text = plan.text(Path::new("shop.toml"));
        std::fs::write(&path, &text).expect("it is written");
        let passwords = ["ORDERS_PASSWORD", "CACHE_PASSWORD", "SEARCH_PASSWORD"];
        let variables = passwords.map(|name| (name.to_owned(), "s3cret".to_owned()));
        let pipeline = load_with(&path, &crate::builtin(), &Variables::from(variables));
        if let Err(mistakes) = pipeline {
            panic!("{mistakes}\n{text}");
        }
        text
    }

    #[test]
    fn every_kind_of_sink_behind_two_databases_is_a_valid_file() {
        let sources = [
            source(
                "orders=postgres://me:s3cret@h/x",
                &[("orders", &["id"]), ("odd \"name\"", &["a\nb"])],
            ),
            source(
                "inventory=postgres://me@h/y",
                &[("stock", &["sku", "warehouse"])],
            ),
        ];
        let words = [
            "kafka",
            "redis=redis://:s3cret@h",
            "opensearch=https://a:s3cret@h:9200",
            "elasticsearch",
            "file",
        ];
        let mut words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        if cfg!(feature = "search-embedded") {
            words.push("tantivy".to_owned());
        }
        let sinks = sinks::parse(&words, &crate::builtin()).expect("sinks");
        for stitch in [false, true] {
            let text = written(&Plan {
                name: "shop",
                listen: "127.0.0.1:9187",
                sources: &sources,
                stitch,
                sinks: &sinks,
            });
            assert!(!text.contains("s3cret"), "{text}");
            assert!(text.contains("password = \"${ORDERS_PASSWORD}\""), "{text}");
            assert!(
                text.contains("# key id, about 20,000 rows, 4.2 MB\n"),
                "{text}"
            );
            assert_eq!(text.contains("two_phase = true"), stitch, "{text}");
            assert_eq!(text.contains("inputs = [\"whole\"]"), stitch, "{text}");
        }
    }

    #[test]
    fn tables_without_a_key_go_where_they_can() {
        let sources = [source(
            "orders=postgres://a@h/x",
            &[("log", &[]), ("orders", &["id"])],
        )];
        let words = ["kafka".to_owned(), "redis".to_owned()];
        let sinks = sinks::parse(&words, &crate::builtin()).expect("sinks");
        let text = written(&Plan {
            name: "shop",
            listen: "127.0.0.1:9187",
            sources: &sources,
            stitch: false,
            sinks: &sinks,
        });
        assert!(text.contains("inputs = [\"orders\"]"), "{text}");
        assert!(
            text.contains("inputs = [\"orders:public.orders\"]"),
            "{text}"
        );
        assert!(text.contains("no key: queues and files only"), "{text}");
    }
}
