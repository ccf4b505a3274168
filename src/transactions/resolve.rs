//! `lockstep transactions resolve`: ends what coordinators have left behind, where it is known how.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pipelines::file::nearest;
use lockstep_pipelines::{Pipeline, Registry};
use lockstep_transactions::gid::MANAGERS;
use lockstep_transactions::resolve::{
    Consulted, Decision, Doubt, Journal, Known, Outcome as Done, Policy, Rule, Verdict, act,
    consult, decide,
};
use serde_json::{Value, json};

use super::evidence::{self, Logs};
use super::{Databases, age, ask, databases, now_micros};
use crate::cli::{Format, load};
use crate::figures::Table;
use crate::reconcile::asker;
use crate::{Outcome, output};

/// What to resolve, and how.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The pipeline file.
    file: PathBuf,
    /// Do it. Without it, what would be done is only told.
    #[arg(long)]
    apply: bool,
    /// Act for this manager too, besides those of the file's `transactions.resolve`; may be repeated.
    #[arg(long = "manager", value_name = "MANAGER")]
    managers: Vec<String>,
    /// Decide about this branch by hand, whatever its age and manager. Not against what is known to be decided.
    #[arg(long, value_name = "GID", requires = "decision")]
    gid: Option<String>,
    #[command(flatten)]
    by_hand: ByHand,
    /// The admin endpoint of the running pipeline, where it is not the one that the file says: it is asked what it has read of other
    /// branches.
    #[arg(long, env = "LOCKSTEP_ADMIN_URL")]
    url: Option<String>,
    /// How the answer looks.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl Arguments {
    /// How the answer is to look.
    pub fn format(&self) -> Format {
        self.format
    }
}

/// A decision by hand.
#[derive(Debug, Args)]
#[group(id = "decision", multiple = false, requires = "gid")]
struct ByHand {
    /// Commit the branch that --gid names.
    #[arg(long)]
    commit: bool,
    /// Roll back the branch that --gid names.
    #[arg(long)]
    rollback: bool,
}

/// A decision, and what came of it; `None`: nothing was done.
type Told = (Decision, Option<Result<Done>>);

/// Runs it.
pub async fn resolve(arguments: Arguments, registry: &Registry) -> Outcome {
    let pipeline = load(&arguments.file, registry)?;
    let policy = policy(&pipeline, &arguments.managers)?;
    let databases = databases(&pipeline)?;
    let now = now_micros();
    let doubts = doubts(&databases).await?;
    let log = pipeline.resolving.log.as_deref();
    let mut consulted = consult(&databases, log, &doubts).await?;
    // Behind the questions to the databases: whatever they told of had been written by then.
    let evidence = match doubts.is_empty() {
        true => Logs::default(),
        false => evidence::ask(&pipeline, arguments.url.as_deref()).await,
    };
    consulted.notes.extend(evidence.note.clone());
    let known = Known {
        logs: &consulted.logs,
        evidence: &evidence,
        managers: &consulted.managers,
    };
    let mut decisions = decide(&doubts, &known, &policy, now);
    if let Some(gid) = &arguments.gid {
        decisions = by_hand(decisions, gid, &arguments.by_hand)?;
    }
    let told = match arguments.apply {
        true => apply(decisions, &databases, &pipeline).await?,
        false => decisions.into_iter().map(|one| (one, None)).collect(),
    };
    output::print(&match arguments.format {
        Format::Json => format!("{}\n", json(&told, &consulted)),
        Format::Table => table(&told, &consulted, now, arguments.apply),
    });
    let is_well = |(_, done): &Told| match done {
        None => true,
        Some(done) => done.as_ref().is_ok_and(|done| done.is_well()),
    };
    Ok(match told.iter().all(is_well) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// The file's, and the managers of the command line.
fn policy(pipeline: &Pipeline, managers: &[String]) -> Result<Policy> {
    let mut policy = pipeline.resolving.policy.clone();
    for manager in managers {
        if !MANAGERS.contains(&&**manager) {
            let message = format!("`{manager}` is no manager whose names are known");
            let remedy = match nearest(manager, MANAGERS) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("name one of {}", MANAGERS.join(", ")),
            };
            return Err(Error::new(ErrorKind::Invalid, message)
                .remedy(remedy)
                .at("--manager"));
        }
        policy.resolve.insert(manager.clone());
    }
    Ok(policy)
}

async fn doubts(databases: &Databases) -> Result<Vec<Doubt>> {
    let mut doubts = Vec::new();
    for (source, all) in ask(databases).await? {
        doubts.extend(
            all.into_iter()
                .map(|in_doubt| Doubt::new(Arc::clone(&source), in_doubt)),
        );
    }
    // Branches of one together.
    doubts.sort_by(|a, b| a.branch.global().cmp(b.branch.global()));
    Ok(doubts)
}

/// A person's decision in place of the rules', about the branch of this name, wherever it is prepared.
///
/// # Errors
/// `Invalid` when there is none, or when it is known to be decided otherwise.
fn by_hand(decisions: Vec<Decision>, gid: &str, by_hand: &ByHand) -> Result<Vec<Decision>> {
    let verdict = match by_hand.commit {
        true => Verdict::Commit,
        false => Verdict::RollBack,
    };
    let named = decisions
        .into_iter()
        .filter(|one| one.doubt.in_doubt.gid == gid);
    let named: Vec<Decision> = named.collect();
    if named.is_empty() {
        let message = format!("no transaction is prepared as `{gid}`");
        return Err(Error::new(ErrorKind::Invalid, message)
            .remedy("see `lockstep transactions list`")
            .at("--gid"));
    }
    let against = named.iter().find(|one| {
        let known = one.judged.verdict;
        known != Verdict::LeaveAlone && known != verdict
    });
    if let Some(one) = against {
        let message = format!(
            "it is known that it is to {}: {}",
            one.judged.verdict.as_str(),
            one.judged.why
        );
        return Err(Error::new(ErrorKind::Invalid, message)
            .remedy("leave the decision to the rules: databases would disagree")
            .at("--gid"));
    }
    let mine = named
        .into_iter()
        .map(|one| Decision::by_person(one.doubt, verdict));
    Ok(mine.collect())
}

async fn apply(
    decisions: Vec<Decision>,
    databases: &Databases,
    pipeline: &Pipeline,
) -> Result<Vec<Told>> {
    let mut told = Vec::with_capacity(decisions.len());
    let mut journal = None;
    for decision in decisions {
        let queries = databases
            .iter()
            .find(|(name, _)| *name == decision.doubt.source);
        let done = match queries {
            Some((_, queries)) if decision.acts() => {
                let journal = match &mut journal {
                    Some(journal) => journal,
                    None => journal.insert(Journal::open(&pipeline.state, &asker())?),
                };
                Some(act(&decision, &**queries, journal).await)
            }
            _ => None,
        };
        told.push((decision, done));
    }
    Ok(told)
}

fn json(told: &[Told], consulted: &Consulted) -> Value {
    let one = |(decision, done): &Told| {
        let (doubt, judged) = (&decision.doubt, &decision.judged);
        json!({
            "transaction": doubt.branch.global(),
            "manager": doubt.branch.dialect().as_str(),
            "source": doubt.source,
            "gid": doubt.in_doubt.gid,
            "xid": doubt.in_doubt.xid,
            "prepared_ms": doubt.in_doubt.prepared_micros / 1000,
            "owner": doubt.in_doubt.owner,
            "action": judged.verdict.as_str(),
            "rule": judged.rule.as_str(),
            "why": judged.why,
            "held": decision.held,
            "outcome": done.as_ref().map(outcome),
        })
    };
    json!({
        "branches": told.iter().map(one).collect::<Vec<_>>(),
        "notes": consulted.notes,
    })
}

fn outcome(done: &Result<Done>) -> String {
    match done {
        Ok(done) => done.as_str().to_owned(),
        Err(error) => error.to_string(),
    }
}

fn table(told: &[Told], consulted: &Consulted, now_micros: i64, applied: bool) -> String {
    if told.is_empty() {
        return "nothing is in doubt\n".to_owned();
    }
    let mut table = Table::new(
        7,
        &["source", "gid", "manager", "for", "action", "rule", "why"],
    );
    for (decision, done) in told {
        let (doubt, judged) = (&decision.doubt, &decision.judged);
        let action = judged.verdict.as_str();
        let (action, why) = match (done, &decision.held) {
            (Some(done), _) => (format!("{action}: {}", outcome(done)), judged.why.clone()),
            (None, Some(held)) => (format!("({action})"), format!("{}; {held}", judged.why)),
            (None, None) => (action.to_owned(), judged.why.clone()),
        };
        let rule = match judged.rule {
            Rule::None => "",
            rule => rule.as_str(),
        };
        let cells = vec![
            doubt.source.to_string(),
            doubt.in_doubt.gid.clone(),
            doubt.branch.dialect().as_str().to_owned(),
            age(&doubt.in_doubt, now_micros),
            action,
            rule.to_owned(),
            why,
        ];
        let is_well = done
            .as_ref()
            .is_none_or(|done| done.as_ref().is_ok_and(|done| done.is_well()));
        match is_well {
            true => table.row(cells),
            false => table.bad_row(cells),
        }
    }
    let mut text = table.render(output::paint());
    for note in &consulted.notes {
        text += &format!("{note}\n");
    }
    if !applied && told.iter().any(|(decision, _)| decision.acts()) {
        text += "nothing was done; --apply does it\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use lockstep_core::query::InDoubt;
    use lockstep_transactions::gid::Branch;
    use lockstep_transactions::resolve::Judged;

    use super::*;

    fn decision(gid: &str, verdict: Verdict, rule: Rule, held: Option<&str>) -> Decision {
        Decision {
            doubt: Doubt {
                source: "inventory".into(),
                branch: Branch::parse(gid),
                in_doubt: InDoubt {
                    gid: gid.to_owned(),
                    xid: 7,
                    prepared_micros: 0,
                    owner: "shop".to_owned(),
                },
            },
            judged: Judged {
                verdict,
                rule,
                why: "a reason".to_owned(),
            },
            held: held.map(str::to_owned),
        }
    }

    fn hand(commit: bool) -> ByHand {
        ByHand {
            commit,
            rollback: !commit,
        }
    }

    #[test]
    fn what_would_be_done_is_told_and_why_nothing_is() {
        let told: Vec<Told> = vec![
            (decision("a", Verdict::Commit, Rule::Log, None), None),
            (
                decision("b", Verdict::RollBack, Rule::Epoch, Some("too young")),
                None,
            ),
            (decision("c", Verdict::LeaveAlone, Rule::None, None), None),
            (
                decision("d", Verdict::Commit, Rule::Log, None),
                Some(Ok(Done::Otherwise)),
            ),
        ];
        let consulted = Consulted::default();
        let text = table(&told, &consulted, 61_000_000, false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].contains("1 min 01 s  commit") && lines[1].ends_with("log    a reason"),
            "{text}"
        );
        assert!(
            lines[2].contains("(rollback)") && lines[2].ends_with("a reason; too young"),
            "{text}"
        );
        assert!(
            lines[3].contains("leave alone") && !lines[3].contains("none"),
            "{text}"
        );
        assert!(
            lines[4].contains("commit: somebody else has done the opposite"),
            "{text}"
        );
        assert_eq!(lines[5], "nothing was done; --apply does it");
        assert_eq!(table(&[], &consulted, 0, false), "nothing is in doubt\n");
        let value = json(&told, &consulted);
        assert_eq!(value["branches"][1]["held"], "too young");
        assert_eq!(value["branches"][0]["outcome"], Value::Null);
    }

    #[test]
    fn a_person_decides_what_nobody_knows_and_nothing_else() {
        let all = || {
            vec![
                decision("open", Verdict::LeaveAlone, Rule::None, None),
                decision("decided", Verdict::Commit, Rule::Log, Some("too young")),
            ]
        };
        let mine = by_hand(all(), "open", &hand(false)).expect("decides");
        assert_eq!(mine.len(), 1);
        assert!(mine[0].acts());
        assert_eq!(
            (mine[0].judged.verdict, mine[0].judged.rule),
            (Verdict::RollBack, Rule::Person)
        );
        assert!(by_hand(all(), "decided", &hand(true)).is_ok());
        for (gid, commit, word) in [
            ("decided", false, "a reason"),
            ("nobody's", true, "nobody's"),
        ] {
            let error = by_hand(all(), gid, &hand(commit)).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
