//! What is told of branches in doubt is what has become of the others.

use super::*;

impl World {
    /// Where branches of a name have ended, by what is written or what was read of it, but for one database.
    fn ended(&self, global: &str, but: usize, read_only: bool) -> Ended {
        let mut ended = Ended::default();
        for (at, database) in self.databases.iter().enumerate() {
            let most = match read_only {
                true => database.furthest,
                false => database.log.len(),
            };
            for (_, record) in database.log[..most].iter().filter(|_| at != but) {
                match record {
                    Record::Commit {
                        branch: Some((name, _)),
                        ..
                    } if &**name == global => ended.committed.push(at),
                    Record::RollBack(name, _) if &**name == global => ended.rolled_back.push(at),
                    _ => {}
                }
            }
        }
        ended
    }

    /// The name of what is prepared there.
    fn prepared_as(&self, source: usize, prepared: Lsn) -> Arc<str> {
        let mut log = self.databases[source].log.iter();
        let found = log.find_map(|(lsn, record)| match record {
            Record::Prepare(name) if *lsn == prepared => Some(Arc::clone(name)),
            _ => None,
        });
        found.expect("prepared")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_is_told_of_siblings_is_so_and_nothing_is_left_out(events in events(1)) {
        let mut world = World::new(Manners::default());
        let mut has_restarted = false;
        for event in events {
            has_restarted |= matches!(event, Event::Restart);
            world.play(event);
            for told in world.order.in_doubt() {
                let global = world.prepared_as(told.source, told.prepared);
                prop_assert!(world.order.in_doubt_as(&global).contains(&told));
                let read = world.ended(&global, told.source, true);
                // In this model a name is given once, and to one branch of a database.
                for known in [&told.siblings, &told.namesakes] {
                    prop_assert!(known.committed.iter().all(|at| read.committed.contains(at)));
                    prop_assert!(known.rolled_back.iter().all(|at| read.rolled_back.contains(at)));
                }
                // Behind a restart, what is read again may not have come yet.
                if !has_restarted {
                    prop_assert_eq!(&told.siblings.committed, &read.committed);
                    prop_assert_eq!(&told.namesakes, &read);
                }
            }
        }
    }
}

#[test]
fn only_what_was_prepared_beside_it_is_its_sibling_where_names_are_used_again() {
    let mut order = Order::new(vec![Reach::default(); 2]);
    order.prepared(0, &name("nightly"), Lsn(10));
    order.rolled_back(0, &name("nightly"), Lsn(10));
    order.prepared(1, &name("nightly"), Lsn(10));
    let ended = |committed: &[usize], rolled_back: &[usize]| Ended {
        committed: committed.to_vec(),
        rolled_back: rolled_back.to_vec(),
    };
    let told = |order: &Order| {
        let mut all = order.in_doubt();
        assert_eq!(all.len(), 1, "{all:?}");
        let one = all.remove(0);
        (one.source, one.siblings, one.namesakes)
    };
    assert_eq!(told(&order), (1, ended(&[], &[]), ended(&[], &[0])));
    order.prepared(0, &name("nightly"), Lsn(30));
    assert_eq!(order.in_doubt().len(), 2);
    order.committed(commit(0, 40, Some(("nightly", 30))));
    assert_eq!(told(&order), (1, ended(&[0], &[]), ended(&[0], &[0])));
    order.rolled_back(1, &name("nightly"), Lsn(10));
    assert_eq!(order.in_doubt(), []);
}

#[test]
fn a_branch_that_committed_and_changed_nothing_is_a_sibling_that_has_committed() {
    let mut order = Order::new(vec![Reach::default(); 2]);
    order.prepared(0, &name("g"), Lsn(10));
    order.prepared(1, &name("g"), Lsn(10));
    order.left_out(0, &name("g"), Lsn(10));
    let all = order.in_doubt();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].source, &*all[0].siblings.committed), (1, &[0][..]));
    // Its name in that source is given again, to another one.
    order.prepared(0, &name("g"), Lsn(20));
    let all = order.in_doubt();
    let again = all.iter().find(|one| one.source == 0).expect("prepared");
    assert_eq!(again.siblings, Ended::default());
}

#[test]
fn it_is_known_how_far_all_are_read() {
    let mut order = Order::new(vec![Reach::default(); 2]);
    order.read(0, Lsn(50));
    order.read(1, Lsn(49));
    assert!(!order.is_read_to(&[Lsn(50), Lsn(50)]));
    order.read(1, Lsn(50));
    assert!(order.is_read_to(&[Lsn(50), Lsn(50)]));
}
