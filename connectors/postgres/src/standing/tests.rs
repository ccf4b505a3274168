use lockstep_core::position::Lsn;

use super::*;
use crate::server::testing::server;

fn slot(confirmed: u64) -> Slot {
    Slot {
        plugin: Some("pgoutput".into()),
        database: "shop".into(),
        active_pid: None,
        confirmed: Lsn(confirmed),
        invalid: None,
        two_phase: false,
        may_be_altered: false,
        temporary: false,
        failover: false,
        synced: false,
    }
}

/// Streamed on a timeline, confirmed up to 100 and received up to 120.
fn state(timeline: u32) -> State {
    State {
        identity: server(1, 0, &[]).identity,
        slot: "s".into(),
        tables: None,
        copy: Copied::Done { from: Lsn(50) },
        reached: Some(Reached {
            timeline,
            confirmed: Lsn(100),
            told: None,
            received: Lsn(120),
            last: None,
        }),
        two_phase: false,
    }
}

fn judged(state: &State, server: &Server, slot: Option<Slot>) -> Standing {
    judge(Some(state), "s", server, slot, false).expect("a judgement")
}

fn lost(state: &State, server: &Server, slot: Option<Slot>) -> (String, SourceIdentity) {
    match judged(state, server, slot) {
        Standing::Lost(loss) => (loss.cause, loss.identity),
        other => panic!("not lost: {other:?}"),
    }
}

#[test]
fn a_slot_at_or_before_what_was_confirmed_goes_on() {
    for at in [60, 100] {
        let standing = judged(&state(1), &server(1, 120, &[]), Some(slot(at)));
        assert!(
            matches!(standing, Standing::Continues { .. }),
            "{standing:?}"
        );
    }
}

#[test]
fn a_slot_beyond_what_was_confirmed_is_a_gap() {
    let (cause, identity) = lost(&state(1), &server(1, 200, &[]), Some(slot(101)));
    assert!(cause.contains("0/65") && cause.contains("0/64"), "{cause}");
    assert_eq!(identity, state(1).identity, "the log itself is the same");
}

#[test]
fn a_log_that_ends_before_what_was_received_is_another_one() {
    let (cause, identity) = lost(&state(1), &server(1, 119, &[]), Some(slot(60)));
    assert!(cause.contains("restored"), "{cause}");
    assert_eq!(identity.to_string(), "7/1.1/shop");
}

#[test]
fn a_promoted_server_goes_on_when_it_had_received_everything() {
    let history = [(1, 120)];
    match judged(&state(1), &server(2, 500, &history), Some(slot(90))) {
        Standing::Continues { state, .. } => {
            assert_eq!(
                state.identity.timeline, 1,
                "sinks know it by its first name"
            );
            assert_eq!(state.reached.map(|reached| reached.timeline), Some(2));
        }
        other => panic!("{other:?}"),
    }
    // Through two promotions.
    let twice = server(3, 900, &[(1, 120), (2, 300)]);
    let standing = judged(&state(1), &twice, Some(slot(90)));
    assert!(
        matches!(standing, Standing::Continues { .. }),
        "{standing:?}"
    );
}

#[test]
fn a_promoted_server_that_lagged_is_another_log() {
    let (cause, identity) = lost(&state(1), &server(2, 500, &[(1, 119)]), Some(slot(90)));
    assert!(
        cause.contains("0/77") && cause.contains("lagged"),
        "{cause}"
    );
    assert_eq!(identity.to_string(), "7/2.1/shop");
}

#[test]
fn an_old_primary_is_another_log() {
    let (cause, identity) = lost(&state(2), &server(1, 500, &[]), Some(slot(90)));
    assert!(cause.contains("does not descend"), "{cause}");
    assert_eq!(identity.to_string(), "7/1.1/shop", "a name it never had");
}

#[test]
fn another_system_or_database_or_slot_is_another_log() {
    let mut other = server(1, 500, &[]);
    other.identity.system = 8;
    let (cause, identity) = lost(&state(1), &other, None);
    assert!(
        cause.contains("system identifier is 8, and was 7"),
        "{cause}"
    );
    assert_eq!(identity.to_string(), "8/1.1/shop");
    let mut other = server(1, 500, &[]);
    other.identity.database = "shop2".into();
    assert!(lost(&state(1), &other, None).0.contains("shop2"));
    let renamed = State {
        slot: "t".into(),
        ..state(1)
    };
    assert!(
        lost(&renamed, &server(1, 500, &[]), None)
            .0
            .contains("slot t")
    );
}

#[test]
fn a_missing_and_an_invalidated_slot_are_lost() {
    let here = server(1, 500, &[]);
    assert!(lost(&state(1), &here, None).0.contains("gone"));
    let invalid = Slot {
        invalid: Some("idle_timeout".into()),
        ..slot(100)
    };
    let (cause, identity) = lost(&state(1), &here, Some(invalid.clone()));
    assert!(cause.contains("idle_timeout"), "{cause}");
    assert_eq!(identity.incarnation, 0);
    let unknown = judge(None, "s", &here, Some(invalid), false).expect("a judgement");
    assert!(matches!(unknown, Standing::Lost(_)), "{unknown:?}");
}

#[test]
fn what_the_stream_saw_stays_lost() {
    let seen = State {
        copy: Copied::Lost {
            cause: "the log differs".into(),
        },
        ..state(1)
    };
    let (cause, identity) = lost(&seen, &server(1, 500, &[]), Some(slot(90)));
    assert_eq!(
        (cause.as_str(), identity.incarnation),
        ("the log differs", 1)
    );
}

#[test]
fn a_standby_is_waited_for() {
    let standby = |end| {
        let mut server = server(1, end, &[]);
        server.in_recovery = true;
        server
    };
    let synced = Slot {
        synced: true,
        ..slot(90)
    };
    for (end, slot) in [(119, Some(slot(90))), (120, None), (120, Some(synced))] {
        let error = judge(Some(&state(1)), "s", &standby(end), slot, false);
        assert_eq!(error.expect_err("waits").kind(), ErrorKind::Busy);
    }
    let own = judged(&state(1), &standby(120), Some(slot(90)));
    assert!(matches!(own, Standing::Continues { .. }), "{own:?}");
}

#[test]
fn a_copy_that_was_interrupted_is_made_again() {
    let running = State {
        copy: Copied::Running,
        ..state(1)
    };
    for (server, incarnation) in [(server(1, 500, &[]), 0), (server(1, 119, &[]), 1)] {
        for slot in [None, Some(slot(300))] {
            match judged(&running, &server, slot) {
                Standing::Interrupted { identity, .. } => {
                    assert_eq!(identity.incarnation, incarnation);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_slot_that_is_not_ours_is_a_wrong_setup_and_one_in_use_is_waited_for() {
    let wrong = [
        Slot {
            plugin: None,
            ..slot(90)
        },
        Slot {
            plugin: Some("test_decoding".into()),
            ..slot(90)
        },
        Slot {
            database: "other".into(),
            ..slot(90)
        },
        Slot {
            temporary: true,
            ..slot(90)
        },
    ];
    let here = server(1, 500, &[]);
    for slot in wrong {
        for state in [None, Some(&state(1))] {
            let error = judge(state, "s", &here, Some(slot.clone()), false);
            assert_eq!(error.expect_err("refused").kind(), ErrorKind::Setup);
        }
    }
    let error = judge(Some(&state(1)), "s", &here, Some(slot(90)), true);
    let error = error.expect_err("not for failover");
    assert!(
        error.to_string().contains("ALTER_REPLICATION_SLOT"),
        "{error}"
    );
    let busy = Slot {
        active_pid: Some(9),
        ..slot(300)
    };
    let error = judge(Some(&state(1)), "s", &here, Some(busy), false);
    assert_eq!(error.expect_err("busy").kind(), ErrorKind::Busy);
}

#[test]
fn an_old_state_file_is_taken_at_its_word_on_the_same_timeline_only() {
    let old = State {
        reached: None,
        ..state(1)
    };
    let standing = judged(&old, &server(1, 500, &[]), Some(slot(300)));
    assert!(
        matches!(standing, Standing::Continues { .. }),
        "{standing:?}"
    );
    lost(&old, &server(2, 500, &[(1, 400)]), Some(slot(300)));
}

#[test]
fn a_slot_that_was_moved_past_what_is_prepared_is_lost() {
    // All up to 100 is durable, and something is prepared at 60.
    let mut state = state(1);
    if let Some(reached) = &mut state.reached {
        reached.told = Some(Lsn(60));
    }
    let here = server(1, 500, &[]);
    let standing = judged(&state, &here, Some(slot(60)));
    assert!(
        matches!(standing, Standing::Continues { .. }),
        "{standing:?}"
    );
    let (cause, _) = lost(&state, &here, Some(slot(61)));
    assert!(cause.contains("beyond 0/3C"), "{cause}");
}

#[test]
fn a_slot_that_was_switched_back_and_forth_is_lost() {
    let here = server(1, 500, &[]);
    let switched = |may_be_altered| Slot {
        two_phase: true,
        may_be_altered,
        ..slot(90)
    };
    let (cause, _) = lost(&state(1), &here, Some(switched(true)));
    assert!(cause.contains("ALTER_REPLICATION_SLOT"), "{cause}");
    let on = State {
        two_phase: true,
        ..state(1)
    };
    for (state, slot) in [(&on, switched(true)), (&state(1), switched(false))] {
        let standing = judged(state, &here, Some(slot));
        assert!(
            matches!(standing, Standing::Continues { .. }),
            "{standing:?}"
        );
    }
}
