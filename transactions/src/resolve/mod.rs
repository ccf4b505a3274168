//! What is to become of branches that are prepared and that nobody ends.
//!
//! The rules, in their order; the first that says something counts:
//!
//! 1. [`Rule::Log`]: lockstep's own decision log holds it. Commit.
//! 2. [`Rule::Evidence`]: a sibling has committed: commit. One was rolled back, none has committed, and there are no more: roll back.
//! 3. [`Rule::Manager`]: the coordinator's own tables say it.
//! 4. [`Rule::Epoch`]: it is lockstep's own, of an epoch that is closed, and not in the log. Roll back.
//! 5. Else it is left alone. A person may decide: [`Rule::Person`].
//!
//! Silence decides nothing, and neither does age: it only keeps hands off what is young ([`Policy::safety_interval`]). And nothing is
//! done about managers that are not named ([`Policy::resolve`]).
//!
//! [`decide`] is pure. [`consult`] asks the databases what it needs, [`act`] does what it says.

mod act;
mod journal;
mod managers;
mod own;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::query::InDoubt;

pub use act::{Outcome, act};
pub use journal::Journal;
pub use managers::{Consulted, consult};
pub use own::{Epoch, OwnLog};

use crate::gid::{Branch, Dialect, Manager, Own};

/// How old a branch must be before anything is done about it, when nobody says: longer than a coordinator that is alive takes,
/// restarts of a server included.
pub const DEFAULT_SAFETY_INTERVAL: Duration = Duration::from_secs(60);

/// A branch in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The source whose database it is prepared in.
    pub source: Arc<str>,
    /// What its name says.
    pub branch: Branch,
    /// What its server says.
    pub in_doubt: InDoubt,
}

impl Doubt {
    /// Of what the server of a source says.
    #[must_use]
    pub fn new(source: Arc<str>, in_doubt: InDoubt) -> Self {
        Doubt {
            source,
            branch: Branch::parse(&in_doubt.gid),
            in_doubt,
        }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// COMMIT PREPARED.
    Commit,
    /// ROLLBACK PREPARED.
    RollBack,
    /// Nothing.
    LeaveAlone,
}

impl Verdict {
    /// The word for it in tables, journals and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Commit => "commit",
            Verdict::RollBack => "rollback",
            Verdict::LeaveAlone => "leave alone",
        }
    }
}

/// Why. See the module's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The decision log.
    Log,
    /// A sibling has ended.
    Evidence,
    /// The manager's own tables.
    Manager,
    /// The epoch is closed.
    Epoch,
    /// Somebody says so.
    Person,
    /// No rule says anything.
    None,
}

impl Rule {
    /// The word for it in tables, journals and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Log => "log",
            Rule::Evidence => "evidence",
            Rule::Manager => "manager",
            Rule::Epoch => "epoch",
            Rule::Person => "person",
            Rule::None => "none",
        }
    }
}

/// What a rule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What to do.
    pub verdict: Verdict,
    /// By which rule.
    pub rule: Rule,
    /// Why, or why nothing; for people.
    pub why: String,
}

impl Judged {
    pub(crate) fn new(verdict: Verdict, rule: Rule, why: String) -> Self {
        Judged { verdict, rule, why }
    }
}

/// What is to become of a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The branch.
    pub doubt: Doubt,
    /// What the rules say.
    pub judged: Judged,
    /// Why nothing is done about it all the same.
    pub held: Option<String>,
}

impl Decision {
    /// Whether something is to be done.
    #[must_use]
    pub fn acts(&self) -> bool {
        self.judged.verdict != Verdict::LeaveAlone && self.held.is_none()
    }

    /// A person's, about a branch, against or without the rules.
    #[must_use]
    pub fn by_person(doubt: Doubt, verdict: Verdict) -> Self {
        Decision {
            doubt,
            judged: Judged::new(verdict, Rule::Person, "somebody decided so".to_owned()),
            held: None,
        }
    }
}

/// Which branches something may be done about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The managers, by the words of [`Dialect::as_str`](crate::gid::Dialect::as_str).
    pub resolve: BTreeSet<String>,
    /// How old a branch must be.
    pub safety_interval: Duration,
    /// The same of single managers.
    pub safety_intervals: BTreeMap<String, Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            resolve: BTreeSet::new(),
            safety_interval: DEFAULT_SAFETY_INTERVAL,
            safety_intervals: BTreeMap::new(),
        }
    }
}

/// What is known of a transaction from branches of it that have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Where a branch has committed.
    pub committed: Option<String>,
    /// Where a branch was rolled back.
    pub rolled_back: Option<String>,
    /// All branches are known, and none has ended otherwise: every database was read up to where its log ended when it was asked.
    pub is_closed: bool,
}

/// Who has seen branches end: whoever reads the databases' logs, and knows which belong together.
pub trait Evidence: Send + Sync {
    /// What was heard of the transaction that a branch belongs to: of this one, should its name be given again.
    fn heard(&self, doubt: &Doubt) -> Heard;
}

/// Has seen nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvidence;

impl Evidence for NoEvidence {
    fn heard(&self, _: &Doubt) -> Heard {
        Heard::default()
    }
}

/// All that decisions are made from.
pub struct Known<'a> {
    /// Decision logs of lockstep's coordinators.
    pub logs: &'a [OwnLog],
    /// Ends that were seen.
    pub evidence: &'a dyn Evidence,
    /// What managers' own tables say, by gid.
    pub managers: &'a BTreeMap<String, Judged>,
}

/// What is to become of each branch, in their order. `now_micros` is the time, microseconds since the Unix epoch.
#[must_use]
pub fn decide(
    doubts: &[Doubt],
    known: &Known<'_>,
    policy: &Policy,
    now_micros: i64,
) -> Vec<Decision> {
    let decision = |doubt: &Doubt| {
        let judged = judge(doubt, known);
        let held = match judged.verdict {
            Verdict::LeaveAlone => None,
            _ => held(doubt, policy, now_micros),
        };
        Decision {
            doubt: doubt.clone(),
            judged,
            held,
        }
    };
    doubts.iter().map(decision).collect()
}

fn judge(doubt: &Doubt, known: &Known<'_>) -> Judged {
    let gid = &doubt.in_doubt.gid;
    let by_log = own(doubt, known.logs);
    if let Some(judged) = by_log.as_ref().filter(|judged| judged.rule == Rule::Log) {
        return judged.clone();
    }
    if let Some(judged) = by_evidence(doubt, known.evidence) {
        return judged;
    }
    let said = || known.managers.get(gid).cloned();
    by_log.or_else(said).unwrap_or_else(|| {
        let why = "nobody knows what its coordinator has decided";
        Judged::new(Verdict::LeaveAlone, Rule::None, why.to_owned())
    })
}

/// What the log says that decides it; `None` of other coordinators'.
fn own(doubt: &Doubt, logs: &[OwnLog]) -> Option<Judged> {
    if *doubt.branch.dialect() != Dialect::Xa(Manager::Lockstep) {
        return None;
    }
    let Some(own) = Own::parse(&doubt.in_doubt.gid) else {
        let why = "its name has the format of lockstep's coordinator, and not its content";
        return Some(Judged::new(Verdict::LeaveAlone, Rule::None, why.to_owned()));
    };
    let log = logs.iter().find(|log| log.id == own.log);
    Some(log.map_or_else(
        || {
            let why =
                "the decision log that decides it is in none of the databases that were asked";
            Judged::new(Verdict::LeaveAlone, Rule::None, why.to_owned())
        },
        |log| log.judge(&own),
    ))
}

fn by_evidence(doubt: &Doubt, evidence: &dyn Evidence) -> Option<Judged> {
    match evidence.heard(doubt) {
        Heard {
            committed: Some(place),
            ..
        } => Some(Judged::new(
            Verdict::Commit,
            Rule::Evidence,
            format!("its branch in {place} has committed"),
        )),
        Heard {
            rolled_back: Some(place),
            is_closed: true,
            ..
        } => Some(Judged::new(
            Verdict::RollBack,
            Rule::Evidence,
            format!("its branch in {place} was rolled back, and none has committed"),
        )),
        _ => None,
    }
}

fn held(doubt: &Doubt, policy: &Policy, now_micros: i64) -> Option<String> {
    let manager = doubt.branch.dialect().as_str();
    if !policy.resolve.contains(manager) {
        return Some(format!("`{manager}` is not among the managers to act for"));
    }
    let interval = policy.safety_intervals.get(manager);
    let interval = *interval.unwrap_or(&policy.safety_interval);
    let age = now_micros.saturating_sub(doubt.in_doubt.prepared_micros);
    let age = Duration::from_micros(u64::try_from(age).unwrap_or(0));
    (age < interval).then(|| {
        let (age, least) = (age.as_secs(), interval.as_secs());
        format!("it is {age} s old, and left alone before {least} s")
    })
}

#[cfg(test)]
mod tests;
