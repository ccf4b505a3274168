use super::*;

const NOW: i64 = 1_000_000_000_000;

/// Prepared an hour ago.
fn doubt(gid: &str) -> Doubt {
    Doubt {
        source: "inventory".into(),
        branch: Branch::parse(gid),
        in_doubt: InDoubt {
            gid: gid.to_owned(),
            xid: 7,
            prepared_micros: NOW - 3_600_000_000,
            owner: "shop".to_owned(),
        },
    }
}

fn own(epoch: u32, drawn: u8) -> Own {
    Own {
        epoch,
        drawn: [drawn; 12],
        branch: 2,
        branches: 2,
        log: 42,
    }
}

/// Epoch 1 is closed, 2 is open; what was drawn as 1 is decided.
fn log() -> OwnLog {
    let epoch = |is_closed| Epoch {
        coordinator: "shop-1".to_owned(),
        is_closed,
    };
    OwnLog {
        id: 42,
        decided: [own(1, 1).global(), own(2, 1).global()].into(),
        epochs: [(1, epoch(true)), (2, epoch(false))].into(),
    }
}

fn all_named() -> Policy {
    let names = [
        "lockstep",
        "narayana",
        "dtm",
        "flink",
        "subscriber",
        "plain",
    ];
    Policy {
        resolve: names.map(str::to_owned).into(),
        ..Policy::default()
    }
}

/// Has heard the same of everything.
struct Same(Heard);

impl Evidence for Same {
    fn heard(&self, _: &Doubt) -> Heard {
        self.0.clone()
    }
}

fn heard(committed: bool, rolled_back: bool, is_closed: bool) -> Same {
    let place = |is: bool| is.then(|| "orders".to_owned());
    Same(Heard {
        committed: place(committed),
        rolled_back: place(rolled_back),
        is_closed,
    })
}

/// One decision, of named managers.
fn one(gid: &str, logs: &[OwnLog], evidence: &dyn Evidence, said: Option<Verdict>) -> Decision {
    let judged = |verdict| Judged::new(verdict, Rule::Manager, "its table".to_owned());
    let managers = said.map(|verdict| (gid.to_owned(), judged(verdict)));
    let known = Known {
        logs,
        evidence,
        managers: &managers.into_iter().collect(),
    };
    let mut all = decide(&[doubt(gid)], &known, &all_named(), NOW);
    all.pop().expect("one")
}

fn told(decision: &Decision) -> (Verdict, Rule) {
    (decision.judged.verdict, decision.judged.rule)
}

const ALONE: (Verdict, Rule) = (Verdict::LeaveAlone, Rule::None);

#[test]
fn the_log_decides_what_it_holds_and_a_closed_epoch_the_rest() {
    let logs = [log()];
    let of = |own: Own, logs: &[OwnLog]| told(&one(&own.to_string(), logs, &NoEvidence, None));
    assert_eq!(of(own(1, 1), &logs), (Verdict::Commit, Rule::Log));
    assert_eq!(of(own(2, 1), &logs), (Verdict::Commit, Rule::Log));
    assert_eq!(of(own(1, 2), &logs), (Verdict::RollBack, Rule::Epoch));
    assert_eq!(of(own(2, 2), &logs), ALONE, "its coordinator may be alive");
    assert_eq!(
        of(own(3, 2), &logs),
        ALONE,
        "the log is younger than the branch"
    );
    assert_eq!(of(own(1, 2), &[]), ALONE, "no log was read");
    let elsewhere = Own {
        log: 43,
        ..own(1, 2)
    };
    assert_eq!(of(elsewhere, &logs), ALONE, "another log decides");
    assert_eq!(log().judge(&elsewhere).verdict, Verdict::LeaveAlone);
    assert_eq!(
        told(&one("1280004948_AQ==_Ag==", &logs, &NoEvidence, None)),
        ALONE
    );
}

#[test]
fn a_sibling_that_has_committed_decides_and_one_that_was_rolled_back_when_all_are_known() {
    let gid = "131077_AQ==_Ag==";
    for (evidence, expected) in [
        (heard(false, false, true), ALONE),
        (heard(true, false, false), (Verdict::Commit, Rule::Evidence)),
        (heard(true, true, true), (Verdict::Commit, Rule::Evidence)),
        (heard(false, true, false), ALONE),
        (
            heard(false, true, true),
            (Verdict::RollBack, Rule::Evidence),
        ),
    ] {
        assert_eq!(told(&one(gid, &[], &evidence, None)), expected);
    }
    let committed = heard(true, false, true);
    // A decision that has left the log is still seen in a sibling's end.
    let forgotten = own(1, 2).to_string();
    let decision = one(&forgotten, &[log()], &committed, None);
    assert_eq!(told(&decision), (Verdict::Commit, Rule::Evidence));
    // What the log holds needs no evidence, and yields to none.
    let logged = own(1, 1).to_string();
    let decision = one(&logged, &[log()], &heard(false, true, true), None);
    assert_eq!(told(&decision), (Verdict::Commit, Rule::Log));
}

#[test]
fn a_managers_own_table_decides_behind_evidence() {
    let gid = "131077_AQ==_Ag==";
    for verdict in [Verdict::Commit, Verdict::RollBack] {
        let decision = one(gid, &[], &NoEvidence, Some(verdict));
        assert_eq!(told(&decision), (verdict, Rule::Manager));
    }
    let undecided = one(gid, &[], &NoEvidence, Some(Verdict::LeaveAlone));
    assert_eq!(undecided.judged.verdict, Verdict::LeaveAlone);
    assert_eq!(undecided.judged.why, "its table");
    let both = one(gid, &[], &heard(true, false, true), Some(Verdict::RollBack));
    assert_eq!(told(&both), (Verdict::Commit, Rule::Evidence));
}

#[test]
fn silence_and_age_decide_nothing() {
    for gid in [
        "131077_AQ==_Ag==",
        "by hand",
        "_sa_0123456789abcdef0123456789abcdef",
    ] {
        let mut old = doubt(gid);
        old.in_doubt.prepared_micros = 0;
        let known = Known {
            logs: &[log()],
            evidence: &NoEvidence,
            managers: &BTreeMap::new(),
        };
        let decided = decide(&[old], &known, &all_named(), i64::MAX);
        assert_eq!(told(&decided[0]), ALONE, "{gid}");
    }
}

#[test]
fn nothing_is_done_for_those_who_are_not_named_nor_for_what_is_young() {
    let gid = own(1, 1).to_string();
    let known = Known {
        logs: &[log()],
        evidence: &NoEvidence,
        managers: &BTreeMap::new(),
    };
    let decided = |policy: &Policy, age_s: i64| {
        let mut doubt = doubt(&gid);
        doubt.in_doubt.prepared_micros = NOW - age_s * 1_000_000;
        decide(&[doubt], &known, policy, NOW).pop().expect("one")
    };
    let nobody = decided(&Policy::default(), 3_600);
    assert!(!nobody.acts());
    assert_eq!(
        nobody.judged.verdict,
        Verdict::Commit,
        "it is told all the same"
    );
    let held = nobody.held.expect("held");
    assert!(held.contains("`lockstep`"), "{held}");
    let mut policy = all_named();
    assert!(decided(&policy, 60).acts());
    let young = decided(&policy, 59);
    assert!(young.held.expect("held").contains("59 s"));
    policy
        .safety_intervals
        .insert("lockstep".to_owned(), Duration::from_secs(5));
    assert!(decided(&policy, 5).acts());
    assert!(!decided(&policy, 4).acts());
    // A clock that is behind the server's makes nothing old.
    assert!(!decided(&policy, -10).acts());
}
