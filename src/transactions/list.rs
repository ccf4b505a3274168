//! `lockstep transactions`: two-phase commits that are not decided.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use lockstep_core::Result;
use lockstep_core::error::At;
use lockstep_core::query::InDoubt;
use lockstep_pipelines::{Pipeline, Registry};
use lockstep_transactions::gid;
use serde_json::{Value, json};

use crate::cli::{Format, load};
use crate::figures::{Paint, Table, duration};
use crate::{Outcome, output};

/// What to do about them.
#[derive(Debug, Subcommand)]
pub enum Transactions {
    /// List the transactions that are prepared in the sources of a pipeline, and neither committed nor rolled back; the branches of one
    /// together. Asks the databases: no pipeline has to run.
    List {
        /// The pipeline file.
        file: PathBuf,
        /// How the answer looks.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

/// Runs it.
pub async fn run(command: Transactions, registry: &Registry) -> Outcome {
    let Transactions::List { file, format } = command;
    let pipeline = load(&file, registry)?;
    let found = group(ask(&pipeline).await?);
    output::print(&match format {
        Format::Json => format!("{}\n", json(&found)),
        Format::Table => table(&found, now_micros()),
    });
    Ok(ExitCode::SUCCESS)
}

/// What is prepared in each source, by its name.
///
/// # Errors
/// When a database cannot be asked: a list without it would say that nothing is left there.
async fn ask(pipeline: &Pipeline) -> Result<Vec<(String, Vec<InDoubt>)>> {
    let mut all = Vec::new();
    for (name, component) in pipeline.plan.sources.iter().zip(&pipeline.sources) {
        let place = format!("sources.{name}");
        let Some(queries) = component.queries().at(&place)? else {
            continue;
        };
        let in_doubt = queries.in_doubt().await.at(&place)?;
        all.push((name.to_string(), in_doubt));
    }
    Ok(all)
}

/// A transaction, as far as its branches are prepared.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    global: String,
    dialect: &'static str,
    /// With the names of their sources, the oldest first.
    branches: Vec<(String, String, InDoubt)>,
}

/// Puts branches together, the oldest transaction first.
fn group(sources: Vec<(String, Vec<InDoubt>)>) -> Vec<Found> {
    let mut all: Vec<(String, InDoubt)> = Vec::new();
    for (source, in_doubt) in sources {
        all.extend(in_doubt.into_iter().map(|one| (source.clone(), one)));
    }
    all.sort_by_key(|(_, one)| one.prepared_micros);
    let mut found: Vec<Found> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (source, one) in all {
        let branch = gid::Branch::parse(&one.gid);
        let place = *places.entry(branch.key(&source)).or_insert_with(|| {
            found.push(Found {
                global: branch.global().to_owned(),
                dialect: branch.dialect().as_str(),
                branches: Vec::new(),
            });
            found.len() - 1
        });
        let qualifier = branch.qualifier().to_owned();
        found[place].branches.push((source, qualifier, one));
    }
    found
}

fn json(found: &[Found]) -> Value {
    let branch = |(source, qualifier, one): &(String, String, InDoubt)| {
        json!({
            "source": source,
            "gid": one.gid,
            "branch": qualifier,
            "xid": one.xid,
            "prepared_ms": one.prepared_micros / 1000,
            "owner": one.owner,
        })
    };
    let one = |found: &Found| {
        json!({
            "transaction": found.global,
            "dialect": found.dialect,
            "branches": found.branches.iter().map(branch).collect::<Vec<_>>(),
        })
    };
    found.iter().map(one).collect()
}

fn table(found: &[Found], now_micros: i64) -> String {
    if found.is_empty() {
        return "nothing is in doubt\n".to_owned();
    }
    let heading = ["transaction", "named by", "source", "gid", "owner", "for"];
    let mut table = Table::new(5, &heading);
    for one in found {
        for (at, (source, _, branch)) in one.branches.iter().enumerate() {
            let first = |text: &str| {
                if at == 0 {
                    text.to_owned()
                } else {
                    String::new()
                }
            };
            let micros = now_micros.saturating_sub(branch.prepared_micros);
            let age = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
            table.row(vec![
                first(&one.global),
                first(one.dialect),
                source.clone(),
                branch.gid.clone(),
                branch.owner.clone(),
                duration(age),
            ]);
        }
    }
    table.render(Paint {
        color: output::colours(),
    })
}

fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(gid: &str, prepared_micros: i64) -> InDoubt {
        InDoubt {
            gid: gid.to_owned(),
            xid: 7,
            prepared_micros,
            owner: "shop".to_owned(),
        }
    }

    #[test]
    fn branches_of_one_stand_together_and_the_oldest_first() {
        let found = group(vec![
            (
                "orders".to_owned(),
                vec![one("131077_AQ==_Ag==", 20), one("x", 30)],
            ),
            ("inventory".to_owned(), vec![one("131077_AQ==_Aw==", 10)]),
        ]);
        let sources = |found: &Found| -> Vec<String> {
            let branches = found.branches.iter();
            branches.map(|(source, ..)| source.clone()).collect()
        };
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].dialect, found[1].dialect), ("narayana", "plain"));
        assert_eq!(sources(&found[0]), ["inventory", "orders"]);
        let text = table(&found, 1_000_010);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines[1].contains("131077_AQ==  narayana") && lines[1].ends_with("1.00 s"),
            "{text}"
        );
        assert!(!lines[2].contains("narayana"), "{text}");
        let value = json(&found);
        assert_eq!(value[0]["branches"][1]["branch"], "Ag==");
        assert_eq!(table(&[], 0), "nothing is in doubt\n");
    }
}
