//! When the branches of what waits are known.

use super::*;

/// Places of those whose branches have become known, that wait all the same; all that goes on has gone on.
fn known(order: &mut Order) -> Vec<(usize, Lsn)> {
    assert!(released(order).is_empty());
    let known = order.known().into_iter();
    known
        .map(|member| (member.source, member.place.commit))
        .collect()
}

#[test]
fn what_waits_with_known_branches_is_told_once() {
    let mut order = Order::new(vec![Reach::default(); 3]);
    order.prepared(0, &name("g"), Lsn(10));
    order.committed(commit(0, 20, Some(("g", 10))));
    let ticket = order.wanted().expect("a question");
    assert_eq!(known(&mut order), []);
    order.fenced(ticket, Some(&[Lsn(90), Lsn(60), Lsn(70)]));
    assert_eq!(known(&mut order), []);
    // The second source's branch is known before its log is read up to the fence, of the third it is known then that it has none.
    order.prepared(1, &name("g"), Lsn(10));
    assert_eq!(known(&mut order), []);
    order.read(2, Lsn(70));
    assert_eq!(known(&mut order), [(0, Lsn(20))]);
    // Behind the first, as far as the first source is concerned.
    order.prepared(0, &name("h"), Lsn(30));
    order.prepared(2, &name("h"), Lsn(80));
    order.committed(commit(0, 40, Some(("h", 30))));
    order.committed(commit(2, 90, Some(("h", 80))));
    let ticket = order.wanted().expect("a question");
    order.fenced(ticket, Some(&[Lsn(90), Lsn(60), Lsn(90)]));
    order.read(1, Lsn(59));
    assert_eq!(known(&mut order), []);
    order.read(1, Lsn(60));
    assert_eq!(known(&mut order), [(0, Lsn(40))]);
    order.committed(commit(1, 95, Some(("g", 10))));
    assert_eq!(released(&mut order).len(), 2);
    assert_eq!(order.known(), []);
}

#[test]
fn what_has_a_branch_in_every_source_asks_nobody() {
    let mut order = Order::new(vec![Reach::default(); 3]);
    for source in 0..3 {
        order.prepared(source, &name("g"), Lsn(10));
        order.prepared(source, &name("h"), Lsn(12));
        order.prepared(source, &name("i"), Lsn(14));
    }
    for source in 0..3 {
        order.committed(commit(source, 20, Some(("g", 10))));
        assert_eq!(order.wanted(), None);
    }
    let steps = released(&mut order);
    assert!(steps.len() == 1 && steps[0][0].members.len() == 3);
    // In one of them there is nothing that could go on.
    order.left_out(1, &name("h"), Lsn(12));
    order.committed(commit(0, 30, Some(("h", 12))));
    order.committed(commit(2, 30, Some(("h", 12))));
    assert_eq!(order.wanted(), None);
    assert_eq!(released(&mut order).len(), 1);
    // One that was rolled back tells nothing of others there.
    order.committed(commit(0, 40, Some(("i", 14))));
    order.committed(commit(1, 40, Some(("i", 14))));
    assert_eq!(order.wanted(), None);
    order.rolled_back(2, &name("i"), Lsn(14));
    let ticket = order.wanted().expect("a question");
    order.fenced(ticket, Some(&[Lsn(90); 3]));
    assert!(released(&mut order).is_empty());
    order.read(2, Lsn(90));
    let steps = released(&mut order);
    assert!(steps.len() == 1 && steps[0][0].mixed);
    assert_eq!(order.held(), 0);
}
