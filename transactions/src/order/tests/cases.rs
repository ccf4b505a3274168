//! What is told, and what goes on then, case by case.

use super::*;

#[test]
fn a_branch_waits_for_the_other_and_holds_up_what_is_behind_it() {
    let mut order = Order::new(vec![Reach::default(); 2]);
    order.prepared(0, &name("g"), Lsn(10));
    order.prepared(1, &name("g"), Lsn(10));
    order.committed(commit(0, 20, Some(("g", 10))));
    // Not prepared when the branch committed: it may have seen it.
    order.committed(commit(0, 30, None));
    // Prepared before: it cannot.
    order.prepared(0, &name("h"), Lsn(15));
    order.committed(commit(0, 40, Some(("h", 15))));
    settle(&mut order, 50);
    let names = |steps: Vec<Vec<Unit>>| -> Vec<Option<Arc<str>>> {
        steps
            .into_iter()
            .flatten()
            .map(|unit| unit.global)
            .collect()
    };
    assert_eq!(names(released(&mut order)), [Some(name("h"))]);
    let reach = order.reach(0);
    assert_eq!((reach.through, reach.ahead), (Lsn(0), [whole(40)].into()));
    order.committed(commit(1, 60, Some(("g", 10))));
    assert_eq!(names(released(&mut order)), [Some(name("g")), None]);
    assert_eq!(order.reach(0).ahead, [].into());
}

#[test]
fn one_that_was_rolled_back_in_part_is_told_and_waits_for_nobody() {
    for rolled_back_first in [false, true] {
        let mut order = Order::new(vec![Reach::default(); 2]);
        order.prepared(0, &name("g"), Lsn(10));
        order.prepared(1, &name("g"), Lsn(10));
        if rolled_back_first {
            order.rolled_back(1, &name("g"), Lsn(10));
        }
        order.committed(commit(0, 20, Some(("g", 10))));
        settle(&mut order, 30);
        if !rolled_back_first {
            assert_eq!(released(&mut order), Vec::<Vec<Unit>>::new());
            order.rolled_back(1, &name("g"), Lsn(10));
            // Whether it was the only one there has to be asked now.
            assert_eq!(released(&mut order), Vec::<Vec<Unit>>::new());
            settle(&mut order, 40);
        }
        let steps = released(&mut order);
        assert_eq!(steps.len(), 1);
        assert!(steps[0][0].mixed && steps[0][0].members.len() == 1);
    }
}

#[test]
fn a_branch_that_was_prepared_too_late_goes_on_by_itself_and_is_counted() {
    let mut order = Order::new(vec![Reach::default(); 2]);
    order.prepared(0, &name("g"), Lsn(10));
    order.committed(commit(0, 20, Some(("g", 10))));
    settle(&mut order, 30);
    assert_eq!(released(&mut order).len(), 1);
    order.prepared(1, &name("g"), Lsn(40));
    order.committed(commit(1, 50, Some(("g", 40))));
    settle(&mut order, 60);
    let steps = released(&mut order);
    assert!(steps.len() == 1 && steps[0][0].late, "{steps:?}");
    assert_eq!(order.late(), 1);
}

#[test]
fn nothing_goes_on_before_all_branches_can_be_known() {
    let mut order = Order::new(vec![Reach::default(); 2]);
    order.prepared(0, &name("g"), Lsn(10));
    order.committed(commit(0, 20, Some(("g", 10))));
    assert!(released(&mut order).is_empty(), "nobody has asked");
    let ticket = order.wanted().expect("a question");
    assert_eq!(order.wanted(), None, "it is asked");
    order.fenced(ticket, None);
    let ticket = order.wanted().expect("again");
    order.fenced(ticket, Some(&[Lsn(90), Lsn(70)]));
    order.read(1, Lsn(69));
    assert!(released(&mut order).is_empty());
    order.read(1, Lsn(70));
    assert_eq!(
        released(&mut order).len(),
        1,
        "its own log needs no reading on"
    );
}

#[test]
fn a_name_that_is_used_again_is_another_transaction() {
    let mut order = Order::new(vec![Reach::default(); 2]);
    order.prepared(0, &name("nightly"), Lsn(10));
    order.committed(commit(0, 20, Some(("nightly", 10))));
    order.committed(commit(0, 30, None));
    order.prepared(0, &name("nightly"), Lsn(40));
    order.committed(commit(0, 50, Some(("nightly", 40))));
    settle(&mut order, 60);
    let steps = released(&mut order);
    let commits: Vec<Lsn> = steps
        .iter()
        .flatten()
        .map(|unit| unit.members[0].place.commit)
        .collect();
    assert_eq!(commits, [Lsn(20), Lsn(30), Lsn(50)]);
    assert_eq!(order.late(), 0);
}

#[test]
fn uses_of_a_name_are_matched_in_their_order() {
    let mut order = Order::new(vec![Reach::default(); 2]);
    // One log is read when the other is far ahead.
    for source in [0, 1] {
        for at in [10, 30] {
            order.prepared(source, &name("nightly"), Lsn(at));
            order.committed(commit(source, at + 10, Some(("nightly", at))));
        }
    }
    settle(&mut order, 60);
    let steps = released(&mut order);
    let places: Vec<Vec<(usize, Lsn)>> = steps
        .iter()
        .flatten()
        .map(|unit| {
            let members = unit.members.iter();
            members
                .map(|member| (member.source, member.place.commit))
                .collect()
        })
        .collect();
    assert_eq!(
        places,
        [
            vec![(0, Lsn(20)), (1, Lsn(20))],
            vec![(0, Lsn(40)), (1, Lsn(40))]
        ]
    );
}

#[test]
fn a_log_that_is_given_up_takes_nothing_of_others_apart() {
    let mut order = Order::new(vec![Reach::default(); 3]);
    order.prepared(0, &name("g"), Lsn(10));
    order.prepared(1, &name("g"), Lsn(10));
    order.committed(commit(0, 20, Some(("g", 10))));
    order.prepared(1, &name("h"), Lsn(15));
    order.prepared(2, &name("h"), Lsn(15));
    order.committed(commit(2, 20, Some(("h", 15))));
    let ticket = order.wanted().expect("a question");
    order.give_up(2);
    let steps = released(&mut order);
    let names: Vec<_> = steps
        .iter()
        .flatten()
        .map(|unit| unit.global.clone())
        .collect();
    assert_eq!(names, [Some(name("h"))], "as it is");
    order.forget(2);
    order.fenced(ticket, Some(&[Lsn(50), Lsn(50), Lsn(50)]));
    order.read(1, Lsn(50));
    assert!(
        released(&mut order).is_empty(),
        "its other branch is in doubt"
    );
    order.committed(commit(1, 60, Some(("g", 10))));
    let ticket = order.wanted().expect("it is asked again");
    order.fenced(ticket, Some(&[Lsn(70), Lsn(70), Lsn(5)]));
    order.read(2, Lsn(5));
    let steps = released(&mut order);
    assert_eq!(steps[0][0].members.len(), 2);
}

#[test]
fn what_waits_for_each_other_goes_on_together() {
    let mut order = Order::new(vec![Reach::default(); 2]);
    // Each committed in one database before the other was prepared there: no order of the two is right.
    for (source, first, second) in [(0, "a", "b"), (1, "b", "a")] {
        order.prepared(source, &name(first), Lsn(10));
        order.committed(commit(source, 20, Some((first, 10))));
        order.prepared(source, &name(second), Lsn(30));
        order.committed(commit(source, 40, Some((second, 30))));
    }
    settle(&mut order, 50);
    let steps = released(&mut order);
    assert_eq!(steps.len(), 1, "{steps:?}");
    assert_eq!(steps[0].len(), 2);
    assert_eq!(order.held(), 0);
}
