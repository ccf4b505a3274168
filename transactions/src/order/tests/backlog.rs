//! What it takes to go on behind something that has held up many.

use super::*;

/// Purchases behind one in doubt.
const MANY: u64 = 5_000;
/// Of those at a time, each begins before the others have ended. Behind them comes a transaction of one database.
const TOGETHER: u64 = 8;

#[test]
fn each_of_many_that_waited_for_one_is_looked_at_a_few_times() {
    let mut order = Order::new(vec![Reach::default(); 2]);
    for source in 0..2 {
        order.prepared(source, &name("in doubt"), Lsn(10));
    }
    order.committed(commit(0, 20, Some(("in doubt", 10))));
    let mut lsn = 20;
    for first in (0..MANY).step_by(TOGETHER as usize) {
        let begun = lsn;
        for source in 0..2 {
            for at in 0..TOGETHER {
                let purchase = name(&format!("p{}", first + at));
                order.prepared(source, &purchase, Lsn(begun + 10 * (1 + at)));
            }
        }
        for at in 0..TOGETHER {
            let purchase = format!("p{}", first + at);
            lsn = begun + 10 * (TOGETHER + 1 + at);
            for source in 0..2 {
                order.committed(commit(
                    source,
                    lsn,
                    Some((&purchase, begun + 10 * (1 + at))),
                ));
            }
        }
        lsn += 10;
        order.committed(commit(0, lsn, None));
        assert!(released(&mut order).is_empty());
    }
    let before = order.looks.get();
    order.committed(commit(1, lsn + 10, Some(("in doubt", 10))));
    let all = 1 + MANY + MANY / TOGETHER;
    assert_eq!(released(&mut order).len() as u64, all);
    let looks = order.looks.get() - before;
    assert!(looks < 10 * all, "{looks} looks at {all}");
}

/// The second source is confirmed less far than the first, which does not tell again of what both had.
#[test]
fn what_went_on_in_an_earlier_life_asks_for_no_ends_and_holds_nothing_up() {
    for is_known in [true, false] {
        let mut order = Order::new(vec![Reach::default(); 2]);
        if is_known {
            order.went_on(0, &Progress::new(whole(100), [whole(120)]));
            order.went_on(1, &Progress::new(whole(40), [whole(80), whole(120)]));
        }
        // Of the first nothing comes again of these: it was confirmed.
        for (purchase, commits) in [("one", 40), ("two", 80)] {
            order.prepared(1, &name(purchase), Lsn(commits - 10));
            order.committed(commit(1, commits, Some((purchase, commits - 10))));
        }
        // These come again of both, or are new.
        for (purchase, commits) in [("three", 120), ("four", 150)] {
            for source in 0..2 {
                order.prepared(source, &name(purchase), Lsn(commits - 10));
                order.committed(commit(source, commits, Some((purchase, commits - 10))));
            }
        }
        let asks = order.wanted().is_some();
        let gone = released(&mut order);
        assert_eq!(asks, !is_known);
        let members = gone.iter().flatten().map(|unit| unit.members.len());
        let expected: &[usize] = if is_known { &[2] } else { &[] };
        assert_eq!(members.collect::<Vec<_>>(), expected, "{gone:?}");
    }
}
