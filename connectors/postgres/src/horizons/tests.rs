use proptest::prelude::*;

use super::*;

fn horizon(reached: u64, xid: u64) -> Horizon {
    Horizon {
        reached: Lsn(reached),
        xid,
    }
}

fn known(all: &[(u64, u64)]) -> Known {
    let mut known = Known::default();
    for (reached, xid) in all {
        known.note(horizon(*reached, *xid));
    }
    known
}

fn identity(incarnation: u32) -> SourceIdentity {
    SourceIdentity {
        system: 7,
        timeline: 1,
        incarnation,
        database: "shop".into(),
    }
}

#[test]
fn the_latest_place_is_told_that_a_transaction_began_behind() {
    let known = known(&[(100, 10), (200, 20), (300, 30)]);
    let behind = |xid| known.behind(xid).map(|place| place.0);
    assert_eq!(behind(9), None);
    assert_eq!((behind(10), behind(19)), (Some(100), Some(100)));
    assert_eq!((behind(20), behind(u64::MAX)), (Some(200), Some(300)));
}

#[test]
fn what_says_no_more_than_another_is_left_out() {
    let mut known = known(&[(100, 10), (200, 20)]);
    for less in [(200, 20), (200, 21), (199, 20), (50, 10)] {
        assert!(!known.note(horizon(less.0, less.1)), "{less:?}");
    }
    // A checkpoint is told after the fences that came behind it.
    assert!(known.note(horizon(150, 15)));
    assert!(known.note(horizon(200, 12)), "more than two others");
    assert_eq!(known.0, [horizon(100, 10), horizon(200, 12)]);
}

#[test]
fn there_are_never_more_than_so_many_and_the_recent_ones_stay() {
    let mut all = Known::default();
    let places = 100_000_u64;
    for n in 1..=places {
        all.note(horizon(n * 64, n));
    }
    assert_eq!(all.0.len(), MOST);
    assert_eq!(all.0.first(), Some(&horizon(64, 1)));
    // As far back as it lies, a place is known within a small part of that.
    for xid in 1..=places {
        let told = all.behind(xid).expect("the first is kept").0;
        let (exact, back) = (xid * 64, (places - xid) * 64);
        assert!(told <= exact);
        assert!(exact - told <= back / 20 + 64, "{xid}: {told} for {exact}");
    }
}

#[test]
fn a_crowd_of_fences_leaves_what_was_known_before() {
    let mut all = Known::default();
    let day = 1_u64 << 36;
    for n in 1..=500 {
        all.note(horizon(n * day, n * 1_000));
    }
    for n in 1..=50_000 {
        all.note(horizon(500 * day + n * 200, 500_000 + n));
    }
    let old = all.0.iter().filter(|one| one.xid <= 500_000).count();
    assert!(old > 150, "{old} of 500 are left");
}

#[test]
fn a_checkpoint_is_told_in_two_parts() {
    assert_eq!(checkpoint(100, "0:750"), Some(horizon(100, 750)));
    assert_eq!(checkpoint(1, "2:3"), Some(horizon(1, (2 << 32) + 3)));
    for bad in ["", "750", "0/750", "0:", ":1", "0:4294967296"] {
        assert_eq!(checkpoint(100, bad), None, "{bad}");
    }
    assert_eq!(checkpoint(-1, "0:750"), None);
}

#[test]
fn they_outlive_the_process_as_far_as_the_log_is_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |identity, received| Horizons::open(&folder.path().into(), &identity, Lsn(received));
    let one = open(identity(1), 0);
    assert_eq!(one.behind(100), None, "none on disk");
    assert!(!one.is_due());
    one.note(horizon(100, 10));
    one.note(horizon(200, 20));
    assert!(one.is_due());
    one.save();
    assert!(!one.is_due());
    one.note(horizon(300, 30));
    assert!(!one.is_due(), "one has just been written");
    one.save();

    assert_eq!(open(identity(1), 300).behind(100), Some(Lsn(300)));
    assert_eq!(open(identity(1), 299).behind(100), Some(Lsn(200)));
    assert_eq!(open(identity(2), 300).behind(100), None, "another log");
    std::fs::write(folder.path().join("horizons.json"), "{").expect("written");
    assert_eq!(open(identity(1), 300).behind(100), None, "damaged");
}

#[test]
fn what_could_not_be_written_is_written_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = Horizons::open(&folder.path().into(), &identity(1), Lsn(0));
    one.note(horizon(100, 10));
    let obstacle = folder.path().join("horizons.json.new");
    std::fs::create_dir(&obstacle).expect("a folder");
    one.save();
    std::fs::remove_dir(&obstacle).expect("gone");
    one.save();
    let again = Horizons::open(&folder.path().into(), &identity(1), Lsn(100));
    assert_eq!(again.behind(10), Some(Lsn(100)));
}

proptest! {
    /// In whatever order they come, and however many: nothing is told that none of them has said, and without thinning all that
    /// one of them has.
    #[test]
    fn they_say_what_all_of_them_say(
        all in prop::collection::vec((0..60_u64, 3..60_u64), 0..40),
        xid in 0..70_u64,
    ) {
        let told = known(&all).behind(xid).map(|place| place.0);
        let said = all.iter().filter(|(_, first)| *first <= xid);
        prop_assert_eq!(told, said.map(|(reached, _)| *reached).max());
        let known = known(&all);
        prop_assert!(known.0.is_sorted_by(|a, b| a.reached < b.reached && a.xid < b.xid));
    }
}
