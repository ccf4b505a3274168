//! Branches that go on before they commit.

use super::*;

/// The world, and now and then what is prepared is shown of a unit that waits for it.
fn play(world: &mut World, event: Event) {
    let shows = matches!(event, Event::Answer(true) | Event::Rows(_));
    world.play(event);
    if shows {
        show(world);
    }
}

fn show(world: &mut World) {
    let Some(unit) = world.undecided.pop_front() else {
        return;
    };
    world.order.goes_early(unit);
    for (source, lsn) in world.order.prepared_in(unit) {
        let record = world.databases[source].log.iter();
        let found = record.clone().find(|(at, _)| *at == lsn);
        let Some((_, Record::Prepare(global))) = found else {
            panic!("nothing was prepared at {lsn}");
        };
        assert!(world.order.shown(source, &global.clone(), lsn));
    }
    world.ask();
    world.go_on();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_prefix_is_whole_and_what_went_early_comes_again(events in events(0)) {
        let mut world = World::new(Manners::default());
        for event in events {
            play(&mut world, event);
        }
        world.end();
        prop_assert_eq!(world.order.held(), 0);
        prop_assert_eq!(world.order.late(), 0);
        for at in 0..DATABASES {
            prop_assert_eq!(world.order.settled(at), world.databases[at].end());
        }

        // By database and place of the PREPARE: who it is, when it committed, and whether it was seen.
        let mut branches: HashMap<(usize, Lsn), (usize, Lsn)> = HashMap::new();
        for (number, done) in world.done.iter().enumerate() {
            for (database, _, prepared, commit) in &done.branches {
                branches.insert((*database, *prepared), (number, *commit));
                branches.insert((*database, *commit), (number, *commit));
            }
        }
        let units = world.out.iter().flatten().filter(|unit| unit.rows.is_none());
        let mut seen: Vec<usize> = Vec::new();
        let mut early: BTreeSet<(usize, Lsn)> = BTreeSet::new();
        for unit in units {
            let of = |member: &Member| branches[&(member.source, member.place.commit)];
            let (number, commit) = of(&unit.members[0]);
            let again = (unit.members[0].source, commit);
            if unit.global.is_none() && early.remove(&again) {
                // The commit of one that went early, by itself.
                prop_assert_eq!(unit.members.len(), 1);
                continue;
            }
            let mut databases: Vec<usize> = unit.members.iter().map(|member| member.source).collect();
            let mut expected: Vec<usize> = world.done[number].branches.iter().map(|branch| branch.0).collect();
            databases.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(databases, expected, "all branches");
            prop_assert!(unit.members.iter().any(|member| !member.early), "one has committed");
            for member in unit.members.iter().filter(|member| member.early) {
                early.insert((member.source, of(member).1));
            }
            prop_assert!(!unit.mixed && !unit.late);
            seen.push(number);
        }
        prop_assert!(early.is_empty(), "each comes again");
        let committed = (0..world.done.len()).filter(|number| !world.done[*number].branches.is_empty());
        let mut sorted = seen.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, committed.collect::<Vec<_>>(), "each once");
        // Nobody goes before one that he may have seen; so what belongs to one key is in the order of its commits.
        for (at, later) in seen.iter().enumerate() {
            for earlier in &seen[..at] {
                for (database, _, prepared, _) in &world.done[*earlier].branches {
                    for (other, _, _, commit) in &world.done[*later].branches {
                        prop_assert!(database != other || commit >= prepared);
                    }
                }
            }
        }
    }

    #[test]
    fn whatever_coordinators_do_all_goes_on(
        events in events(2),
        reuses in any::<bool>(),
        hastens in any::<bool>(),
    ) {
        let mut world = World::new(Manners { reuses, hastens });
        for event in events {
            play(&mut world, event);
        }
        world.end();
        prop_assert_eq!(world.order.held(), 0);
        prop_assert!(world.order.in_doubt().is_empty());
        let units = world.out.iter().flatten().filter(|unit| unit.rows.is_none());
        let members = units.flat_map(|unit| &unit.members).filter(|member| !member.early);
        let mut went: Vec<(usize, Lsn)> = members.map(|member| (member.source, member.place.commit)).collect();
        let mut all: Vec<(usize, Lsn)> = world.done.iter().flat_map(|done| &done.branches).map(|branch| (branch.0, branch.3)).collect();
        went.sort_unstable();
        all.sort_unstable();
        prop_assert_eq!(went, all, "each commit once");
    }
}

fn order() -> Order {
    Order::new(vec![Reach::default(); 2])
}

fn commits(order: &mut Order, source: usize, lsn: u64, prepared: Option<u64>) -> bool {
    order.committed(Committed {
        source,
        place: whole(lsn),
        end: Lsn(lsn + 5),
        branch: prepared.map(|prepared| ("g".into(), Lsn(prepared))),
        keys: Keys::Any,
    })
}

/// `g` is prepared in both, and has committed in the first.
fn decided() -> (Order, u64) {
    let mut order = order();
    assert!(order.prepared(0, &"g".into(), Lsn(10)));
    assert!(order.prepared(1, &"g".into(), Lsn(10)));
    commits(&mut order, 0, 20, Some(10));
    assert!(order.release().is_none());
    let undecided = order.undecided();
    assert_eq!(undecided.len(), 1);
    assert!(order.undecided().is_empty(), "told once");
    fence(&mut order, undecided[0], 15);
    (order, undecided[0])
}

/// It is to go on early; the second log ends here, and is read up to there.
fn fence(order: &mut Order, unit: u64, end: u64) {
    order.goes_early(unit);
    let ticket = order.wanted().expect("what else there is");
    order.fenced(ticket, Some(&[Lsn(end), Lsn(end)]));
    order.read(1, Lsn(end));
}

#[test]
fn what_is_prepared_goes_with_what_has_committed_and_comes_again() {
    let (mut order, unit) = decided();
    assert_eq!(order.prepared_in(unit), [(1, Lsn(10))]);
    assert!(order.shown(1, &"g".into(), Lsn(10)));
    let step = order.release().expect("it goes on");
    let members = step[0].members.iter();
    let members: Vec<(usize, Lsn, bool)> = members
        .map(|member| (member.source, member.place.commit, member.early))
        .collect();
    assert_eq!(members, [(0, Lsn(20), false), (1, Lsn(10), true)]);
    assert_eq!(order.prepared_in(unit), []);
    // It is in doubt still, and its sibling is known.
    let doubts = order.in_doubt();
    assert_eq!((doubts[0].source, doubts[0].prepared), (1, Lsn(10)));
    assert_eq!(doubts[0].siblings.committed, [0]);
    assert_eq!(doubts, order.in_doubt_as(&"g".into()));
    order.read(1, Lsn(90));
    assert_eq!(order.settled(1), Lsn(10));
    assert!(commits(&mut order, 1, 100, Some(10)));
    let step = order.release().expect("its commit");
    assert_eq!(step[0].global, None);
    assert!(!step[0].members[0].early);
    assert_eq!(order.settled(1), Lsn(105));
    assert!(order.in_doubt().is_empty());
}

#[test]
fn it_goes_behind_what_committed_before_it_was_prepared() {
    let mut order = order();
    // `h` has committed in the second, and is not known in the first.
    order.prepared(1, &"h".into(), Lsn(4));
    order.committed(Committed {
        source: 1,
        place: whole(6),
        end: Lsn(7),
        branch: Some(("h".into(), Lsn(4))),
        keys: Keys::Any,
    });
    order.prepared(0, &"g".into(), Lsn(10));
    order.prepared(1, &"g".into(), Lsn(10));
    commits(&mut order, 0, 20, Some(10));
    assert!(order.release().is_none());
    let unit = order.undecided()[0];
    assert_eq!(order.prepared_in(unit), [(1, Lsn(10))]);
    assert!(order.shown(1, &"g".into(), Lsn(10)));
    order.goes_early(unit);
    let ticket = order.wanted().expect("of both");
    order.fenced(ticket, Some(&[Lsn(30), Lsn(30)]));
    order.read(1, Lsn(30));
    assert!(order.release().is_none(), "behind `h`");
    order.read(0, Lsn(30));
    assert_eq!(
        order.release().expect("`h`")[0].global.as_deref(),
        Some("h")
    );
    let step = order.release().expect("`g`");
    assert_eq!(step[0].members.len(), 2);
}

#[test]
fn one_that_ends_before_it_goes_on_goes_as_it_ended() {
    let (mut order, unit) = decided();
    commits(&mut order, 1, 30, Some(10));
    assert!(!order.shown(1, &"g".into(), Lsn(10)), "too late");
    assert_eq!(order.prepared_in(unit), []);
    let step = order.release().expect("complete");
    assert!(step[0].members.iter().all(|member| !member.early));

    let (mut order, _) = decided();
    assert!(order.rolled_back(1, &"g".into(), Lsn(10)), "in time");
    let step = order.release().expect("what is left");
    assert!(step[0].mixed);
}

#[test]
fn one_that_is_rolled_back_when_it_has_gone_on_is_told() {
    let (mut order, _) = decided();
    order.shown(1, &"g".into(), Lsn(10));
    order.release().expect("it goes on");
    assert!(!order.rolled_back(1, &"g".into(), Lsn(10)));
    assert!(order.in_doubt().is_empty());
    order.read(1, Lsn(90));
    assert_eq!(order.settled(1), Lsn(90));
    assert!(order.release().is_none());
}

/// A row that is loaded stands at a later place than what was prepared before, and would win.
#[test]
fn one_that_was_prepared_before_rows_were_loaded_waits_for_its_commit() {
    let (mut order, unit) = decided();
    assert!(order.shown(1, &"g".into(), Lsn(10)));
    order.read(1, Lsn(15));
    order.rows(1, false);
    order.rows(1, true);
    let mut steps = std::iter::from_fn(|| order.release()).flatten();
    assert!(steps.by_ref().take(2).all(|unit| unit.rows.is_some()));
    assert!(steps.next().is_none(), "it waits");
    drop(steps);
    assert_eq!(order.prepared_in(unit), []);
    assert!(!order.shown(1, &"g".into(), Lsn(10)));
    commits(&mut order, 1, 30, Some(10));
    let step = order.release().expect("complete");
    assert!(step[0].members.iter().all(|member| !member.early));

    // Rows that are compared are not written, and nobody waits for them longer than they take.
    let (mut order, _) = decided();
    order.rows(1, false);
    assert!(order.shown(1, &"g".into(), Lsn(10)));
    assert!(order.release().expect("the rows")[0].rows.is_some());
    assert_eq!(order.release().expect("it goes on")[0].members.len(), 2);
}

/// Two branches of it in one database: that one is prepared does not say that it is all.
#[test]
fn a_second_branch_of_a_database_is_waited_for() {
    let mut order = order();
    order.prepared(0, &"g".into(), Lsn(10));
    order.prepared(1, &"g".into(), Lsn(10));
    commits(&mut order, 0, 20, Some(10));
    assert!(order.release().is_none());
    let unit = order.undecided()[0];
    order.goes_early(unit);
    assert!(order.shown(1, &"g".into(), Lsn(10)));
    assert!(order.release().is_none(), "there may be more");
    let ticket = order.wanted().expect("whether there is");
    order.fenced(ticket, Some(&[Lsn(15), Lsn(15)]));
    assert!(order.release().is_none(), "not read yet");
    order.prepared(1, &"g".into(), Lsn(12));
    order.read(1, Lsn(15));
    assert!(order.release().is_none(), "the other one is not shown");
    assert_eq!(order.prepared_in(unit), [(1, Lsn(12))]);
    assert!(order.shown(1, &"g".into(), Lsn(12)));
    let step = order.release().expect("all three");
    assert_eq!(step[0].members.len(), 3);
    assert!(!step[0].late);
}
