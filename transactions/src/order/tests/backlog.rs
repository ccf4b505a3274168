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
