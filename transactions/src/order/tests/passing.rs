//! What has nothing to do with what waits passes by it.

use super::*;

/// A world whose rows are known, where passing by begins and ends with what happens.
fn world() -> World {
    let mut world = World::new(Manners::default());
    world.keys = Some(());
    world
}

fn play(world: &mut World, event: Event) {
    match event {
        Event::Answer(false) => world.order.let_pass(true),
        Event::Rows(0) => world.order.let_pass(false),
        _ => {}
    }
    world.play(event);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// What is written of it says exactly what has gone on, which [`World::go_on`] looks at.
    #[test]
    fn all_of_each_goes_on_once_and_in_the_order_of_its_rows(events in events(0)) {
        let mut world = world();
        for event in events {
            play(&mut world, event);
        }
        world.end();
        prop_assert_eq!(world.order.held(), 0);
        prop_assert_eq!(world.order.late(), 0);
        let out: Vec<Unit> = world.out.iter().flatten().filter(|unit| unit.rows.is_none()).cloned().collect();
        let numbers: Vec<usize> = out.iter().map(|unit| world.number(unit)).collect();
        let committed = (0..world.done.len()).filter(|number| !world.done[*number].branches.is_empty());
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, committed.collect::<Vec<_>>(), "each once");
        for (unit, number) in out.iter().zip(&numbers) {
            let mut members: Vec<(usize, Lsn)> =
                unit.members.iter().map(|member| (member.source, member.place.commit)).collect();
            let mut branches: Vec<(usize, Lsn)> =
                world.done[*number].branches.iter().map(|branch| (branch.0, branch.3)).collect();
            members.sort_unstable();
            branches.sort_unstable();
            prop_assert_eq!(members, branches, "all branches");
        }
        for database in 0..DATABASES {
            for key in 0..KEYS {
                let commits: Vec<Lsn> = numbers.iter()
                    .flat_map(|number| &world.done[*number].branches)
                    .filter(|branch| (branch.0, branch.1) == (database, key))
                    .map(|branch| branch.3)
                    .collect();
                prop_assert!(commits.is_sorted(), "{:?}", commits);
            }
            let reach = world.order.reach(database);
            prop_assert_eq!(reach.through, world.databases[database].end());
            prop_assert!(reach.ahead.is_empty() && reach.spans.is_empty());
        }
    }

    /// Once it is allowed, nothing that could pass waits: whoever is complete has a row in common with somebody before him.
    #[test]
    fn whoever_waits_waits_for_a_row(events in events(0)) {
        let mut world = world();
        world.order.let_pass(true);
        for event in events {
            world.play(event);
            for (id, waiting) in &world.order.units {
                let is_behind = matches!(world.order.look(*id), Look::Behind(_));
                if !is_behind || waiting.unit.rows.is_some() {
                    continue;
                }
                let is_held_up = waiting.unit.members.iter().any(|member| {
                    let source = &world.order.sources[member.source];
                    if source.has_rows_before(member.at) {
                        return true;
                    }
                    let key = |place: Position| {
                        let branches = world.done.iter().flat_map(|done| &done.branches);
                        let mut found = branches.filter(|one| (one.0, one.3) == (member.source, place.commit));
                        found.next().expect("somebody's").1
                    };
                    let others = world.order.units.values().filter(|other| other.unit.rows.is_none());
                    let mut others = others.flat_map(|other| &other.unit.members).filter(|other| other.source == member.source);
                    others.any(|other| {
                        other.place != member.place && other.place.commit < member.prepared && key(other.place) == key(member.place)
                    })
                });
                prop_assert!(is_held_up, "{:?}", waiting.unit);
            }
        }
    }
}

fn commits(order: &mut Order, lsn: u64, branch: Option<u64>, keys: Keys) {
    order.committed(Committed {
        source: 0,
        place: whole(lsn),
        end: Lsn(lsn + 1),
        branch: branch.map(|prepared| ("g".into(), Lsn(prepared))),
        keys,
    });
}

fn these(rows: &[u64]) -> Keys {
    Keys::These(rows.into())
}

/// One that waits for another database, on row 1.
fn stuck() -> Order {
    let mut order = Order::new(vec![Reach::default(); 2]).with_rows();
    order.prepared(0, &"g".into(), Lsn(5));
    commits(&mut order, 10, Some(5), these(&[1]));
    order
}

fn places(order: &mut Order) -> Vec<u64> {
    let steps = std::iter::from_fn(|| order.release());
    let units = steps.flatten().inspect(|unit| assert!(unit.passed));
    units.map(|unit| unit.members[0].place.commit.0).collect()
}

#[test]
fn nothing_passes_before_it_may_and_then_what_has_other_rows() {
    let mut order = stuck();
    for (lsn, keys) in [
        (20, these(&[2])),
        (30, these(&[1, 3])),
        (40, these(&[3])),
        (50, these(&[2, 4])),
        (60, Keys::Any),
        (70, these(&[5])),
    ] {
        commits(&mut order, lsn, None, keys);
    }
    assert!(order.release().is_none());
    order.let_pass(true);
    assert_eq!(places(&mut order), [20, 50]);
    commits(&mut order, 80, None, these(&[6]));
    assert!(
        order.release().is_none(),
        "behind one that may have changed any row"
    );
    order.let_pass(false);
    let ticket = order.wanted().expect("of the one that waits");
    order.fenced(ticket, Some(&[Lsn(90), Lsn(90)]));
    order.read(1, Lsn(90));
    let steps = std::iter::from_fn(|| order.release()).flatten();
    let rest: Vec<u64> = steps.map(|unit| unit.members[0].place.commit.0).collect();
    assert_eq!(rest, [10, 30, 40, 60, 70, 80]);
}

/// A sink that failed in the middle of a transaction tells so much of it as there is.
#[test]
fn a_span_that_ends_inside_a_transaction_grows_by_it() {
    let part = |ordinal| Position {
        ordinal,
        ..whole(50)
    };
    for ends in [1, 2, u64::MAX] {
        let mut order = Order::new(vec![Reach::default(); 2]).with_rows();
        let held = Progress::new(whole(10), []).and_spans([(whole(30), part(ends))]);
        order.went_on(0, &held);
        order.prepared(0, &"g".into(), Lsn(12));
        commits(&mut order, 20, Some(12), these(&[1]));
        order.let_pass(true);
        for lsn in [30, 50, 60, 70, 80] {
            commits(&mut order, lsn, None, these(&[2]));
            places(&mut order);
        }
        let reach = order.reach(0);
        let is_there = |place| {
            let mut spans = reach.spans.iter();
            reach.ahead.contains(&place) || spans.any(|(from, to)| *from <= place && place <= *to)
        };
        for at in [30, 50, 60, 70, 80] {
            assert!(is_there(whole(at)), "{ends}: {at}: {reach:?}");
        }
        assert!(!is_there(whole(20)), "{ends}: {reach:?}");
    }
}

#[test]
fn what_has_passed_is_one_span_and_what_waits_between_parts_it() {
    let mut order = stuck();
    order.let_pass(true);
    for lsn in 2..=100 {
        let row = if lsn == 60 { 1 } else { 10 + lsn };
        commits(&mut order, lsn * 10, None, these(&[row]));
        while order.release().is_some() {}
    }
    assert!(order.release().is_none());
    let reach = order.reach(0);
    assert!(reach.ahead.is_empty());
    let from = |commit: u64| Position {
        commit: Lsn(commit),
        ordinal: 1,
    };
    let spans = [(from(20), whole(590)), (from(610), whole(1000))];
    assert_eq!(reach.spans, spans);
    assert_eq!(order.standing(0, whole(1000), &[]).spans, spans);
    // What is told again is known.
    assert!(!order.committed(Committed {
        source: 0,
        place: whole(300),
        end: Lsn(301),
        branch: None,
        keys: these(&[40]),
    }));
    let ticket = order.wanted().expect("of the one that waits");
    order.fenced(ticket, Some(&[Lsn(2000), Lsn(90)]));
    order.read(1, Lsn(90));
    while order.release().is_some() {}
    assert!(order.reach(0).spans.is_empty());
}
