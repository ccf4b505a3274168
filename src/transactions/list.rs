//! `lockstep transactions list`: what is prepared, and neither committed nor rolled back.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use lockstep_core::query::InDoubt;
use lockstep_pipelines::Registry;
use lockstep_transactions::gid;
use serde_json::{Value, json};

use super::{age, ask, databases, now_micros};
use crate::cli::{Format, load};
use crate::figures::Table;
use crate::{Outcome, output};

/// Runs it.
pub async fn list(file: &Path, format: Format, registry: &Registry) -> Outcome {
    let pipeline = load(file, registry)?;
    let found = group(ask(&databases(&pipeline)?).await?);
    output::print(&match format {
        Format::Json => format!("{}\n", json(&found)),
        Format::Table => table(&found, now_micros()),
    });
    Ok(ExitCode::SUCCESS)
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
fn group(sources: Vec<(Arc<str>, Vec<InDoubt>)>) -> Vec<Found> {
    let mut all: Vec<(String, InDoubt)> = Vec::new();
    for (source, in_doubt) in sources {
        all.extend(in_doubt.into_iter().map(|one| (source.to_string(), one)));
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
            table.row(vec![
                first(&one.global),
                first(one.dialect),
                source.clone(),
                branch.gid.clone(),
                branch.owner.clone(),
                age(branch, now_micros),
            ]);
        }
    }
    table.render(output::paint())
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
                "orders".into(),
                vec![one("131077_AQ==_Ag==", 20), one("x", 30)],
            ),
            ("inventory".into(), vec![one("131077_AQ==_Aw==", 10)]),
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
