//! The rules by hand, and evaluations of databases in memory that change all the while.

mod rules;
mod world;

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::query::Queries;
use proptest::prelude::*;

use self::world::{Database, World, text};
use super::*;
use crate::report::State;

/// What is reserved for an order is what it has.
fn reserved() -> Invariant {
    invariant(Rule::SumEqual)
}

fn invariant(rule: Rule) -> Invariant {
    let side = |source: &str| Side {
        source: source.into(),
        query: "all".to_owned(),
    };
    Invariant {
        name: "reserved".into(),
        rule,
        key: vec!["id".to_owned()],
        sides: vec![side("orders"), side("inventory")],
        for_each: 0,
        compare: rule.compares().then(|| vec!["quantity".to_owned()]),
        within: Duration::ZERO,
        timeout: Duration::from_secs(60),
    }
}

async fn look(invariant: &Invariant, world: &World, book: &mut Book) -> InvariantReport {
    let databases: Vec<Arc<dyn Queries>> = (0..invariant.sides.len())
        .map(|side| Arc::new(Database::new(world, side)) as Arc<dyn Queries>)
        .collect();
    let now = || world.now();
    let ends = Ends {
        databases: &databases,
        now: &now,
    };
    let report = evaluate(invariant, ends, book).await;
    assert_eq!(
        report
            .broken
            .iter()
            .filter(|one| one.standing == Standing::Violated)
            .count() as u64,
        report.violated
    );
    report
}

fn book(invariant: &Invariant) -> Book {
    let sources = invariant.sides.iter().map(|side| Arc::clone(&side.source));
    Book::new(sources.collect(), Vec::new())
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Transactions of two phases, some of them stuck between the phases for long, are never told as violations. What is broken is,
    /// and nothing else.
    #[test]
    fn straddling_transactions_are_no_violations_and_what_is_broken_is(seed: u64) {
        run(async {
            let world = World::new(seed, 2);
            world.step(300);
            let invariant = reserved();
            let mut book = book(&invariant);
            for _ in 0..6 {
                let report = look(&invariant, &world, &mut book).await;
                assert_eq!((report.state, report.violated), (State::Done, 0), "{report:#?}");
            }
            let ruined = world.ruin();
            for _ in 0..3 {
                let report = look(&invariant, &world, &mut book).await;
                for one in report.broken.iter().filter(|one| one.standing == Standing::Violated) {
                    assert!(ruined.contains(&one.key[0]), "{ruined:?} {one:#?}");
                }
            }
            world.finish();
            let report = look(&invariant, &world, &mut book).await;
            let mut told: Vec<String> = report.broken.iter().map(|one| one.key[0].clone()).collect();
            told.sort();
            assert_eq!((told, report.violated), (ruined.clone(), ruined.len() as u64), "{report:#?}");
        });
    }
}

#[test]
fn a_branch_left_prepared_is_told_by_its_name_and_decided_it_is_not() {
    run(async {
        let world = World::new(7, 2);
        world.put(0, "o1", 3);
        world.prepare(1, "gtx-1-b", "o1", 3);
        world.still();
        let invariant = reserved();
        let mut book = book(&invariant);
        for _ in 0..2 {
            let report = look(&invariant, &world, &mut book).await;
            assert_eq!((report.in_doubt, report.violated), (1, 0), "{report:#?}");
            let waits = &report.broken[0].waits_for;
            assert_eq!(waits.len(), 1);
            assert_eq!(waits[0].source, "inventory");
            assert_eq!(waits[0].gid.as_deref(), Some("gtx-1-b"));
            assert!(!report.holds());
        }
        world.finish();
        let report = look(&invariant, &world, &mut book).await;
        assert!(report.holds() && report.ended == 0, "{report:#?}");

        // Decided the wrong way.
        world.put(0, "o2", 3);
        world.prepare(1, "gtx-2-b", "o2", 3);
        look(&invariant, &world, &mut book).await;
        world.abort();
        let report = look(&invariant, &world, &mut book).await;
        assert_eq!((report.violated, report.in_doubt), (1, 0), "{report:#?}");
        assert_eq!(
            report.broken[0].why,
            "quantity is 3 in orders and 0 in inventory"
        );
        assert_eq!(report.broken[0].rows["inventory"].len(), 0);
        assert_eq!(report.broken[0].rows["orders"][0]["quantity"], "3");
        world.put(1, "o2", 3);
        let report = look(&invariant, &world, &mut book).await;
        assert!(report.holds() && report.ended == 1, "{report:#?}");
    });
}

#[test]
fn a_branch_prepared_between_the_snapshots_is_waited_for() {
    run(async {
        let world = World::new(7, 2);
        world.still();
        world.straddle("o1");
        let invariant = reserved();
        let mut book = book(&invariant);
        let report = look(&invariant, &world, &mut book).await;
        assert_eq!((report.in_doubt, report.violated), (1, 0), "{report:#?}");
        world.finish();
        assert!(look(&invariant, &world, &mut book).await.holds());
    });
}

#[test]
fn a_key_that_never_stands_still_is_undecided() {
    run(async {
        let world = World::new(3, 2);
        world.restless("o1");
        let invariant = reserved();
        let mut book = book(&invariant);
        let report = look(&invariant, &world, &mut book).await;
        assert_eq!((report.undecided, report.violated), (1, 0), "{report:#?}");
        assert_eq!(report.looks, 9);
    });
}

#[test]
fn one_database_is_proof_at_once() {
    run(async {
        let world = World::new(1, 1);
        world.put(0, "a", -1);
        world.put(0, "b", 0);
        world.still();
        let mut invariant = invariant(Rule::NonNegative);
        invariant.sides.truncate(1);
        let mut book = book(&invariant);
        let report = look(&invariant, &world, &mut book).await;
        assert_eq!((report.violated, report.looks), (1, 1), "{report:#?}");
        assert_eq!(report.broken[0].why, "quantity is -1");
        assert_eq!((report.keys, report.rows["orders"]), (2, 2));
    });
}

#[test]
fn a_deadline_is_kept_over_restarts_and_begins_anew_when_rows_change() {
    run(async {
        let world = World::new(1, 2);
        world.put(0, "a", 1);
        world.still();
        let mut invariant = invariant(Rule::ExistsWithin);
        invariant.within = Duration::from_secs(60);
        let mut first = book(&invariant);
        let report = look(&invariant, &world, &mut first).await;
        assert_eq!((report.pending, report.looks), (1, 1), "{report:#?}");
        assert!(report.holds());
        let since = report.broken[0].since_micros;

        world.pass(Duration::from_secs(40));
        let kept: Vec<Kept> = first.kept();
        let text = serde_json::to_string(&kept).expect("JSON");
        let kept = serde_json::from_str(&text).expect("the same");
        let sources = invariant.sides.iter().map(|side| Arc::clone(&side.source));
        let mut second = Book::new(sources.collect(), kept);
        let report = look(&invariant, &world, &mut second).await;
        assert_eq!((report.pending, report.broken[0].since_micros), (1, since));
        world.pass(Duration::from_secs(25));
        let report = look(&invariant, &world, &mut second).await;
        assert_eq!(
            (report.violated, report.broken[0].since_micros),
            (1, since),
            "{report:#?}"
        );
        assert_eq!(report.broken[0].why, "inventory has no row");

        world.put(0, "a", 2);
        let report = look(&invariant, &world, &mut second).await;
        let one = &report.broken[0];
        assert_eq!(
            (report.pending, one.since_micros),
            (1, since),
            "{report:#?}"
        );
        assert!(one.unchanged_micros > since);
        world.put(1, "a", 7);
        let report = look(&invariant, &world, &mut second).await;
        assert_eq!((report.broken.len(), report.ended), (0, 1), "{report:#?}");
    });
}

#[test]
fn thousands_of_violations_are_counted_and_the_first_are_shown() {
    run(async {
        let world = World::new(1, 2);
        for at in 0..10_050 {
            world.put(0, &format!("o{at:05}"), 1);
        }
        world.still();
        let invariant = reserved();
        let mut book = book(&invariant);
        let report = {
            let databases: Vec<Arc<dyn Queries>> = (0..2)
                .map(|side| Arc::new(Database::new(&world, side)) as Arc<dyn Queries>)
                .collect();
            let now = || world.now();
            let ends = Ends {
                databases: &databases,
                now: &now,
            };
            evaluate(&invariant, ends, &mut book).await
        };
        assert_eq!((report.violated, report.undecided), (10_000, 50));
        assert_eq!(report.broken.len(), 1_000);
        assert_eq!(report.looks, 4);
    });
}

#[test]
fn results_that_cannot_be_joined_are_problems_and_no_violations() {
    run(async {
        let cases: [(&str, Vec<Vec<Option<String>>>); 4] = [
            ("NULL", vec![vec![None, text("1")]]),
            (
                "order",
                vec![vec![text("b"), text("1")], vec![text("a"), text("1")]],
            ),
            ("cannot be added", vec![vec![text("a"), text("NaN")]]),
            ("finer key", vec![vec![text("a"), text("1")]; 10_001]),
        ];
        for (word, rows) in cases {
            let world = World::new(1, 2);
            world.still();
            world.answer(rows);
            let invariant = reserved();
            let mut book = book(&invariant);
            let report = look(&invariant, &world, &mut book).await;
            let problem = report.problem.clone().unwrap_or_default();
            assert_eq!(report.state, State::Failed, "{word}");
            assert!(problem.contains(word), "{word}: {problem}");
            assert_eq!(report.violated, 0);
        }
    });
}
