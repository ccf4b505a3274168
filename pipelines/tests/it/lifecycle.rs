//! Order, retries, isolation, draining, readiness.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_core::batch::Phase;
use lockstep_core::position::Lsn;
use lockstep_core::source::SourcePhase;
use lockstep_pipelines::status::SinkPhase;

use crate::ends::{Fault, LogRow, ROW_BYTES, Run, Server, Store, Witness, error, load, until};

/// One source `a` and one sink `s`, with scripts of the same prefix.
pub fn one_to_one(script: &str) -> String {
    format!(
        "sources.a = {{ type = \"scripted\", script = \"{script}\" }}\n\
         sinks.s = {{ type = \"memory\", script = \"{script}\", inputs = [\"a\"] }}\n"
    )
}

/// One source `a` and two sinks `s`, `t`.
fn one_to_two(script: &str) -> String {
    let more =
        format!("sinks.t = {{ type = \"memory\", script = \"{script}-t\", inputs = [\"a\"] }}\n");
    one_to_one(script) + &more
}

#[tokio::test(start_paused = true)]
async fn changes_arrive_in_order_and_are_confirmed() {
    let (server, store) = (Server::new("order", "a", &["t"]), Store::new("order"));
    server.state().snapshot = (0..5).map(|key| LogRow { table: "t", key }).collect();
    server.state().batch_sizes = vec![1, 4, 2];
    for key in 0..10 {
        server.commit(&[
            LogRow { table: "t", key },
            LogRow {
                table: "t",
                key: key + 100,
            },
        ]);
    }
    let run = Run::start(&one_to_one("order")).await;
    let end = server.fill("t", 10);
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(store.stream("a"), server.stream());
    let held = store.state().held.clone();
    assert!(
        held[..5].iter().all(|held| held.phase == Phase::Snapshot)
            && held[5].phase == Phase::Stream
    );
    assert_eq!(run.running.ready(), Ok(()));
    let status = run.running.status();
    assert_eq!(
        (
            status.sources["a"].changes,
            status.sources["a"].transactions
        ),
        (35, 20)
    );
    assert_eq!(status.sources["a"].durable, end.to_string());
    assert_eq!(
        (status.sinks["s"].state, status.sinks["s"].written),
        (SinkPhase::Running, 35)
    );
    assert_eq!(
        (status.sinks["s"].in_flight, status.sinks["s"].lag_seconds),
        (0, 0.0)
    );
    assert_eq!(status.memory.used, 0);
    let metrics = run.running.handle().metrics_text().expect("text");
    for line in [
        "lockstep_changes_total{op=\"insert\",source=\"a\",table=\"public.t\"} 30",
        "lockstep_snapshot_rows_total{source=\"a\",table=\"public.t\"} 5",
        "lockstep_transactions_total{source=\"a\"} 20",
        "lockstep_sink_records_total{outcome=\"written\",sink=\"s\"} 35",
        "lockstep_sink_up{sink=\"s\"} 1",
        "lockstep_source_connected{source=\"a\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(
        metrics.contains("lockstep_end_to_end_latency_seconds_count{sink=\"s\"}"),
        "{metrics}"
    );
    run.stop().await.expect("stops in order");
    assert_eq!((store.state().closed, server.state().closed), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_idle_source_moves_on_and_is_visible() {
    let (server, store) = (Server::new("idle", "a", &["t"]), Store::new("idle"));
    let run = Run::start(&one_to_one("idle")).await;
    for lsn in [5_000, 6_000, 7_000] {
        server.idle_to(Lsn(lsn));
        until("confirmed", || server.state().confirmed == Lsn(lsn)).await;
    }
    assert!(run.running.visible("a", Lsn(7_000)).expect("a source")["s"]);
    assert!(!run.running.visible("a", Lsn(7_001)).expect("a source")["s"]);
    assert!(run.running.visible("b", Lsn(1)).is_none());
    assert!(store.state().held.is_empty());
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn progress_waits_for_what_is_in_flight_before_it() {
    let (server, store) = (Server::new("behind", "a", &["t"]), Store::new("behind"));
    store.state().faults = [Fault::Hold].into();
    let run = Run::start(&one_to_one("behind")).await;
    server.fill("t", 1);
    until("taken", || store.state().taken == 1).await;
    server.idle_to(Lsn(9_000));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(server.state().confirmed, Lsn(0));
    store.release();
    until("confirmed", || server.state().confirmed == Lsn(9_000)).await;
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_fault_leaves_each_change_once() {
    let faults = [
        Fault::Reject(ErrorKind::Unavailable),
        Fault::FailAfterWrite(ErrorKind::Unavailable),
        Fault::DropReceipt,
        Fault::Slow(500),
        Fault::FailAfterWrite(ErrorKind::Overloaded),
        Fault::None,
        Fault::Reject(ErrorKind::Busy),
        Fault::DropReceipt,
    ];
    let (server, store) = (Server::new("faults", "a", &["t"]), Store::new("faults"));
    server.state().batch_sizes = vec![2, 5, 1];
    for key in 0..30 {
        server.commit(&[
            LogRow { table: "t", key },
            LogRow { table: "t", key },
            LogRow { table: "t", key },
        ]);
    }
    let end = server.fill("t", 1);
    store.state().faults = faults.into();
    store.state().open_faults = [ErrorKind::Unavailable, ErrorKind::Busy].into();
    let run = Run::start(&one_to_one("faults")).await;
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(store.stream("a"), server.stream());
    assert!(store.state().opened > 4);
    // A failure takes the faults of the writes behind it with it.
    assert!(run.running.status().sinks["s"].errors >= 5);
    let metrics = run.running.handle().metrics_text().expect("text");
    assert!(
        metrics.contains("lockstep_sink_errors_total{code=\"LS014\",sink=\"s\"}"),
        "{metrics}"
    );
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_proves_nothing_gets_all_that_is_not_durable_again() {
    let (server, store) = (Server::new("unproved", "a", &["t"]), Store::new("unproved"));
    store.state().proves = false;
    store.state().faults = [Fault::None, Fault::FailAfterWrite(ErrorKind::Unavailable)].into();
    server.state().batch_sizes = vec![1];
    let end = server.fill("t", 4);
    let run = Run::start(&one_to_one("unproved")).await;
    until("confirmed", || server.state().confirmed == end).await;
    let keys: Vec<u64> = store.stream("a").iter().map(|(_, row)| row.key).collect();
    assert_eq!(keys, [0, 1, 1, 2, 3]);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_restart_continues_from_what_the_sink_holds() {
    let (server, store) = (Server::new("restart", "a", &["t"]), Store::new("restart"));
    server.state().batch_sizes = vec![4];
    for key in 0..5 {
        server.commit(&[
            LogRow { table: "t", key },
            LogRow { table: "t", key },
            LogRow { table: "t", key },
        ]);
    }
    // Killed when the sink was in the middle of the third transaction and the slot knew of the first.
    let all = server.stream();
    {
        let mut state = store.state();
        state.progress.insert("a 1/1/a".to_owned(), all[7].0.into());
        server.state().confirmed = Lsn(200);
    }
    let run = Run::start(&one_to_one("restart")).await;
    until("confirmed", || server.state().confirmed == Lsn(600)).await;
    assert_eq!(store.stream("a"), all[8..]);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_comes_back_is_not_heard_twice() {
    let (server, store) = (Server::new("back", "a", &["t"]), Store::new("back"));
    let witness = Witness::new("back");
    server.state().batch_sizes = vec![4, 1, 3];
    for key in 0..20 {
        server.commit(&[
            LogRow { table: "t", key },
            LogRow { table: "t", key },
            LogRow { table: "t", key },
        ]);
    }
    server.state().read_faults = [
        (2, ErrorKind::Unavailable),
        (3, ErrorKind::Busy),
        (0, ErrorKind::Unavailable),
    ]
    .into();
    server.state().open_faults = [ErrorKind::Unavailable].into();
    store.state().faults = [
        Fault::Slow(10_000),
        Fault::FailAfterWrite(ErrorKind::Unavailable),
    ]
    .into();
    let run = Run::start(
        "sources.a = { type = \"scripted\", script = \"back\" }\n\
         transforms.w = { type = \"witness\", script = \"back\", inputs = [\"a\"] }\n\
         sinks.s = { type = \"memory\", script = \"back\", inputs = [\"w\"] }\n",
    )
    .await;
    until("confirmed", || server.state().confirmed == Lsn(2_100)).await;
    assert_eq!(server.state().opened, 4);
    assert_eq!(store.stream("a"), server.stream());
    let seen: Vec<_> = witness
        .state()
        .seen
        .iter()
        .map(|(_, position)| *position)
        .collect();
    let expected: Vec<_> = server
        .stream()
        .iter()
        .map(|(position, _)| *position)
        .collect();
    assert_eq!(
        seen, expected,
        "the transform sees each change once as well"
    );
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_copy_is_sent_again() {
    let (server, store) = (Server::new("copy", "a", &["t"]), Store::new("copy"));
    server.state().snapshot = (0..3).map(|key| LogRow { table: "t", key }).collect();
    server.state().read_faults = [(1, ErrorKind::Unavailable)].into();
    store.state().faults = [Fault::Slow(60_000)].into();
    let end = server.fill("t", 2);
    let run = Run::start(&one_to_one("copy")).await;
    until("confirmed", || server.state().confirmed == end).await;
    let copied = store
        .state()
        .held
        .iter()
        .filter(|held| held.phase == Phase::Snapshot)
        .count();
    assert_eq!(copied, 6);
    assert_eq!(store.stream("a"), server.stream());
    run.stop().await.expect("stops");
}

/// The other log has other changes at the same positions. What was read of the first one is written, however long that
/// takes, and then all of the other one, with nothing passed over; what was confirmed of the first counts for nothing.
#[tokio::test(start_paused = true)]
async fn another_log_under_the_same_name_begins_anew() {
    let server = Server::new("other", "a", &["t", "u"]);
    let (store, slow) = (Store::new("other"), Store::new("other-t"));
    server.state().batch_sizes = vec![1];
    let end = server.fill("t", 5);
    let run = Run::start(&one_to_two("other")).await;
    until("confirmed", || server.state().confirmed == end).await;
    slow.state().faults = [Fault::Hold].into();
    slow.state().holding = true;
    server.fill("t", 1);
    until("read", || store.stream("a").len() == 6).await;
    let first = server.stream();
    {
        let mut state = server.state();
        state.open_faults = [ErrorKind::Unavailable].into();
        state.read_faults = [(0, ErrorKind::Unavailable)].into();
    }
    until("away", || server.state().open_faults.is_empty()).await;
    let told = Arc::new(Mutex::new(Vec::new()));
    {
        let told = Arc::clone(&told);
        let mut state = server.state();
        state.system = 2;
        state.log.clear();
        state.confirmed = Lsn(0);
        state.watch = Some(Box::new(move |lsn| told.lock().unwrap().push(lsn)));
    }
    let end = server.fill("u", 3);
    until("waiting", || {
        run.running
            .ready()
            .err()
            .unwrap_or_default()
            .iter()
            .any(|problem| problem.contains("sources.a") && problem.contains("log before"))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(told.lock().unwrap().len(), 0, "nothing is confirmed of it");
    assert_eq!(slow.stream("a").len(), 5, "nor written");
    slow.release();
    until("confirmed", || server.state().confirmed == end).await;
    assert!(told.lock().unwrap().iter().all(|lsn| *lsn <= end));
    let both = [first, server.stream()].concat();
    assert_eq!(store.stream("a"), both);
    assert_eq!(slow.stream("a"), both);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn the_slowest_sink_decides_what_is_confirmed() {
    let server = Server::new("slowest", "a", &["t"]);
    let (fast, slow) = (Store::new("slowest"), Store::new("slowest-t"));
    slow.state().faults = [Fault::None, Fault::Hold].into();
    server.state().batch_sizes = vec![1];
    let run = Run::start(&one_to_two("slowest")).await;
    let end = server.fill("t", 8);
    until("the fast one has all", || fast.stream("a").len() == 8).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        server.state().confirmed,
        Lsn(200),
        "what the slow one holds"
    );
    let visible = run.running.visible("a", end).expect("a source");
    assert_eq!((visible["s"], visible["t"]), (true, false));
    slow.release();
    until("confirmed", || server.state().confirmed == end).await;
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_slow_sink_holds_only_itself_until_the_budget_is_spent() {
    let server = Server::new("budget", "a", &["t"]);
    let (fast, slow) = (Store::new("budget"), Store::new("budget-t"));
    slow.state().faults = [Fault::Hold].into();
    server.state().batch_sizes = vec![1];
    let budget = 30 * ROW_BYTES;
    let run = Run::start(&format!("memory = {budget}\n{}", one_to_two("budget"))).await;
    let end = server.fill("t", 100);
    tokio::time::sleep(Duration::from_secs(20)).await;
    // Three KiB a batch here: ten batches in all, and one of them waits for room to read.
    let passed = fast.stream("a").len();
    assert!((9..=10).contains(&passed), "{passed}");
    assert!(run.running.status().memory.used <= budget);
    assert_eq!(run.running.ready(), Ok(()));
    // A stall turns it red, though nothing has failed.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let problems = run.running.ready().expect_err("stalled");
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("sinks.t: ") && problems[0].contains("nothing durable for"),
        "{problems:?}"
    );
    slow.release();
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(fast.stream("a"), slow.stream("a"));
    assert_eq!(run.running.ready(), Ok(()));
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn stopping_writes_what_was_read() {
    let (server, store) = (Server::new("drain", "a", &["t"]), Store::new("drain"));
    store.state().faults = (0..6).map(|_| Fault::Slow(1_000)).collect();
    server.state().batch_sizes = vec![1];
    let end = server.fill("t", 6);
    let run = Run::start(&one_to_one("drain")).await;
    until("on its way", || store.state().taken >= 2).await;
    until("read", || run.running.status().sources["a"].changes == 6).await;
    run.stop().await.expect("stops in order");
    assert_eq!(store.stream("a"), server.stream());
    assert_eq!(
        server.state().confirmed,
        end,
        "the last position is sent with the goodbye"
    );
    let store = store.state();
    assert_eq!((store.flushed, store.closed), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn stopping_reads_a_transaction_that_has_begun_to_its_end() {
    let (server, store) = (Server::new("rest", "a", &["t"]), Store::new("rest"));
    store.state().faults = (0..9).map(|_| Fault::Slow(100)).collect();
    server.state().batch_sizes = vec![1];
    let rows: Vec<_> = (0..6).map(|key| LogRow { table: "t", key }).collect();
    let end = server.commit(&rows);
    server.fill("t", 3);
    let run = Run::start(&format!(
        "memory = \"{}\"\n{}",
        2 * ROW_BYTES,
        one_to_one("rest")
    ))
    .await;
    until("its beginning is written", || {
        !store.state().held.is_empty()
    })
    .await;
    run.stop().await.expect("stops in order");
    assert_eq!(store.stream("a").len(), rows.len());
    assert_eq!(server.state().confirmed, end);
}

/// The end of the first may be confirmed before the second has come as a whole.
#[tokio::test(start_paused = true)]
async fn stopping_reads_on_behind_a_whole_transaction_and_the_beginning_of_another() {
    let (server, store) = (Server::new("two", "a", &["t"]), Store::new("two"));
    store.state().faults = (0..9).map(|_| Fault::Slow(100)).collect();
    server.state().batch_sizes = vec![4, 1];
    let rows = |keys: std::ops::Range<u64>| {
        keys.map(|key| LogRow { table: "t", key })
            .collect::<Vec<_>>()
    };
    server.commit(&rows(0..3));
    let end = server.commit(&rows(3..9));
    let run = Run::start(&format!(
        "memory = \"{}\"\n{}",
        4 * ROW_BYTES,
        one_to_one("two")
    ))
    .await;
    until("its beginning is written", || {
        !store.state().held.is_empty()
    })
    .await;
    run.stop().await.expect("stops in order");
    assert_eq!(store.stream("a").len(), 9);
    assert_eq!(server.state().confirmed, end);
}

#[tokio::test(start_paused = true)]
async fn stopping_does_not_wait_longer_than_told() {
    let (server, store) = (Server::new("late", "a", &["t"]), Store::new("late"));
    store.state().faults = [Fault::None, Fault::Hold].into();
    server.state().batch_sizes = vec![1];
    server.fill("t", 3);
    let run = Run::start(&format!(
        "shutdown_timeout = \"3s\"\n{}",
        one_to_one("late")
    ))
    .await;
    until("taken", || store.state().taken >= 2).await;
    let begun = tokio::time::Instant::now();
    run.stop()
        .await
        .expect("not an error: what is not durable comes again");
    assert_eq!(begun.elapsed().as_secs(), 3);
    assert_eq!(server.state().confirmed, Lsn(200));
    assert_eq!(store.state().closed, 0);
}

#[tokio::test(start_paused = true)]
async fn stopping_does_not_wait_for_a_sink_that_is_down() {
    let (server, store) = (Server::new("down", "a", &["t"]), Store::new("down"));
    store.state().open_faults = (0..1000).map(|_| ErrorKind::Unavailable).collect();
    server.fill("t", 3);
    let run = Run::start(&one_to_one("down")).await;
    until("it has failed", || {
        run.running.status().sinks["s"].errors > 3
    })
    .await;
    let problems = run.running.ready().expect_err("a sink is down");
    assert!(
        problems[0].contains("sinks.s: LS003 a scripted fault"),
        "{problems:?}"
    );
    let begun = tokio::time::Instant::now();
    run.stop().await.expect("stops");
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(server.state().confirmed, Lsn(0));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_fails_while_stopping_gets_another_chance() {
    let (server, store) = (Server::new("chance", "a", &["t"]), Store::new("chance"));
    store.state().faults = [Fault::Slow(1_000), Fault::DropReceipt].into();
    server.state().batch_sizes = vec![1];
    let end = server.fill("t", 4);
    let run = Run::start(&one_to_one("chance")).await;
    until("read", || run.running.status().sources["a"].changes == 4).await;
    run.stop().await.expect("stops");
    assert_eq!(store.stream("a"), server.stream());
    assert_eq!(server.state().confirmed, end);
}

#[tokio::test(start_paused = true)]
async fn an_error_only_a_person_can_mend_stops_everything_else_in_order() {
    let server = Server::new("stop", "a", &["t"]);
    let (good, bad) = (Store::new("stop"), Store::new("stop-t"));
    bad.state().faults = [Fault::None, Fault::FailAfterWrite(ErrorKind::Refused)].into();
    good.state().faults = [Fault::None, Fault::Slow(2_000)].into();
    server.state().batch_sizes = vec![1];
    server.fill("t", 4);
    let run = Run::start(&one_to_two("stop")).await;
    let handle = run.running.handle();
    let error = run.running.wait().await.expect_err("stops");
    assert_eq!(error.to_string(), "LS009 sinks.t: a scripted fault");
    assert!(good.stream("a").len() >= 2 && good.state().closed == 1);
    assert_eq!(
        server.state().confirmed,
        Lsn(200),
        "and nothing that the bad one does not hold"
    );
    let status = handle.status();
    assert_eq!(
        (status.sinks["t"].state, status.sources["a"].state.phase),
        (SinkPhase::Stopped, SourcePhase::Stopped)
    );
    assert!(!status.ready);
}

#[tokio::test(start_paused = true)]
async fn a_source_error_only_a_person_can_mend_stops_too() {
    let (server, store) = (Server::new("denied", "a", &["t"]), Store::new("denied"));
    server.state().open_faults = [ErrorKind::Unavailable, ErrorKind::Authentication].into();
    let run = Run::start(&one_to_one("denied")).await;
    let error = run.running.wait().await.expect_err("stops");
    assert_eq!(error.to_string(), "LS004 sources.a: a scripted fault");
    assert_eq!(store.state().opened, 0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_error() {
    let (server, _store) = (Server::new("panic", "a", &["t"]), Store::new("panic"));
    Witness::new("panic").state().panic = true;
    server.fill("t", 1);
    let run = Run::start(
        "sources.a = { type = \"scripted\", script = \"panic\" }\n\
         transforms.w = { type = \"witness\", script = \"panic\", inputs = [\"a\"] }\n\
         sinks.s = { type = \"memory\", script = \"panic\", inputs = [\"w\"] }\n",
    )
    .await;
    let error = run.running.wait().await.expect_err("stops");
    assert!(
        error
            .to_string()
            .contains("sources.a has ended unexpectedly"),
        "{error}"
    );
    assert_eq!(server.state().confirmed, Lsn(0));
}

#[tokio::test(start_paused = true)]
async fn transforms_are_safe_before_anything_is_confirmed() {
    let (server, _store) = (Server::new("safe", "a", &["t"]), Store::new("safe"));
    let witness = Witness::new("safe");
    let body = "sources.a = { type = \"scripted\", script = \"safe\" }\n\
                transforms.w = { type = \"witness\", script = \"safe\", inputs = [\"a\"] }\n\
                sinks.s = { type = \"memory\", script = \"safe\", inputs = [\"w\"] }\n";
    {
        let witness = Arc::clone(&witness);
        server.state().batch_sizes = vec![1];
        server.state().watch = Some(Box::new(move |lsn| {
            let persisted = witness.state().persisted as u64;
            assert!(
                persisted * 100 >= lsn.0 - 100,
                "{lsn} confirmed, {persisted} safe"
            );
        }));
    }
    let run = Run::start(body).await;
    let end = server.fill("t", 300);
    until("confirmed", || server.state().confirmed == end).await;
    let persists = witness.state().persists;
    assert!(
        persists <= 20,
        "{persists} for 300 batches: not once per batch"
    );
    witness.state().fail_persist = true;
    server.fill("t", 1);
    let error = run.running.wait().await.expect_err("stops");
    assert_eq!(error.to_string(), "LS012 transforms.w: a scripted fault");
    assert_eq!(server.state().confirmed, end);
}

#[tokio::test(start_paused = true)]
async fn a_transform_that_fails_stops_the_pipeline() {
    let (server, store) = (Server::new("broken", "a", &["t"]), Store::new("broken"));
    let witness = Witness::new("broken");
    let end = server.fill("t", 3);
    let run = Run::start(
        "sources.a = { type = \"scripted\", script = \"broken\" }\n\
         transforms.w = { type = \"witness\", script = \"broken\", inputs = [\"a\"] }\n\
         sinks.s = { type = \"memory\", script = \"broken\", inputs = [\"w\"] }\n",
    )
    .await;
    until("confirmed", || server.state().confirmed == end).await;
    witness.state().fail = Some(ErrorKind::Storage);
    server.fill("t", 1);
    let error = run.running.wait().await.expect_err("stops");
    assert_eq!(
        error.to_string(),
        "LS012 from sources.a: transforms.w: a scripted fault"
    );
    assert_eq!(
        (store.stream("a").len(), server.state().confirmed),
        (3, end)
    );
}

/// A transform whose server is away holds its batches up, says so, and goes on by itself.
#[tokio::test(start_paused = true)]
async fn a_transform_that_waits_is_told_and_goes_on() {
    let (server, store) = (Server::new("waits", "a", &["t"]), Store::new("waits"));
    let witness = Witness::new("waits");
    let run = Run::start(&through_a_witness("waits")).await;
    let end = server.fill("t", 3);
    until("confirmed", || server.state().confirmed == end).await;
    assert!(run.running.ready().is_ok());
    witness.state().fail = Some(ErrorKind::Unavailable);
    let later = server.fill("t", 2);
    until("it waits", || run.running.ready().is_err()).await;
    let problems = run.running.ready().expect_err("waits");
    assert_eq!(problems, ["transforms.w: LS003 a scripted fault"]);
    let status = run.running.status();
    assert_eq!(
        status.transforms["w"].problem.as_deref(),
        Some("LS003 a scripted fault")
    );
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(server.state().confirmed, end, "nothing passes");
    assert_eq!(store.stream("a").len(), 3);
    let metrics = run.running.handle().metrics_text().expect("metrics");
    let counted = "lockstep_transform_errors_total{code=\"LS003\",transform=\"w\"} ";
    assert!(metrics.contains(counted), "{metrics}");
    witness.state().fail = None;
    until("confirmed", || server.state().confirmed == later).await;
    assert!(run.running.ready().is_ok());
    assert_eq!(run.running.status().transforms["w"].problem, None);
    assert_eq!(store.stream("a"), server.stream());
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_transform_that_waits_does_not_hold_up_the_end() {
    let (server, store) = (Server::new("leave", "a", &["t"]), Store::new("leave"));
    let witness = Witness::new("leave");
    witness.state().fail = Some(ErrorKind::Overloaded);
    let run = Run::start(&through_a_witness("leave")).await;
    server.fill("t", 3);
    until("it waits", || {
        run.running.status().transforms["w"].problem.is_some()
    })
    .await;
    let asked = tokio::time::Instant::now();
    run.stop().await.expect("stops in order");
    assert!(asked.elapsed() < Duration::from_secs(4));
    assert_eq!(server.state().confirmed, Lsn(0));
    assert!(store.stream("a").is_empty());
}

/// What a transform needs elsewhere is there before the first batch comes, or `/readyz` says what is missing.
#[tokio::test(start_paused = true)]
async fn a_transform_is_ready_before_batches_come() {
    let (server, store) = (Server::new("early", "a", &["t"]), Store::new("early"));
    let witness = Witness::new("early");
    witness.state().fail_ready = Some(ErrorKind::Unavailable);
    let run = Run::start(&through_a_witness("early")).await;
    until("it waits", || {
        run.running.status().transforms["w"].problem.is_some()
    })
    .await;
    let problems = run.running.ready().expect_err("waits");
    assert!(
        problems.contains(&"transforms.w: LS003 a scripted fault".to_owned()),
        "{problems:?}"
    );
    let end = server.fill("t", 3);
    witness.state().fail_ready = None;
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(store.stream("a"), server.stream());
    run.stop().await.expect("stops");

    let (_server, _store) = (Server::new("never", "a", &["t"]), Store::new("never"));
    Witness::new("never").state().fail_ready = Some(ErrorKind::Lost);
    let run = Run::start(&through_a_witness("never")).await;
    let error = run.running.wait().await.expect_err("stops");
    assert_eq!(
        error.to_string(),
        "LS011 sources.a: transforms.w: a scripted fault"
    );
}

#[tokio::test(start_paused = true)]
async fn readiness_tells_a_silent_source() {
    let (server, _store) = (Server::new("silent", "a", &["t"]), Store::new("silent"));
    server.state().open_faults = (0..3).map(|_| ErrorKind::Busy).collect();
    let run = Run::start(&one_to_one("silent")).await;
    until("it waits", || {
        run.running.status().sources["a"].state.phase == SourcePhase::Waiting
    })
    .await;
    let problems = run.running.ready().expect_err("waits");
    assert!(
        problems.contains(&"sources.a: LS007 a scripted fault".to_owned()),
        "{problems:?}"
    );
    assert!(
        problems.contains(&"sinks.s: opening".to_owned()),
        "{problems:?}"
    );
    until("ready", || run.running.ready().is_ok()).await;
    // The clock cannot be moved; the last word can.
    let status = server.state().status.clone().expect("open");
    let earlier = std::time::Instant::now().checked_sub(Duration::from_secs(31));
    status.update(|status| status.heard = earlier);
    let problems = run.running.ready().expect_err("silent");
    assert!(
        problems[0].starts_with("sources.a: no word from the server for 31 s"),
        "{problems:?}"
    );
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_bounded_source_ends_the_pipeline() {
    let (server, store) = (Server::new("bounded", "a", &["t"]), Store::new("bounded"));
    server.state().bounded = true;
    store.state().faults = [Fault::Slow(5_000)].into();
    let end = server.fill("t", 10);
    let run = Run::start(&one_to_one("bounded")).await;
    run.running.wait().await.expect("ends");
    assert_eq!(store.stream("a"), server.stream());
    assert_eq!(server.state().confirmed, end);
}

#[tokio::test(start_paused = true)]
async fn one_process_per_state_directory() {
    let (_server, _store) = (Server::new("claim", "a", &["t"]), Store::new("claim"));
    let directory = tempfile::tempdir().expect("directory");
    let pipeline = load(directory.path(), &one_to_one("claim"));
    let shutdown = tokio_util::sync::CancellationToken::new();
    let first = lockstep_pipelines::start(&pipeline, shutdown.clone())
        .await
        .expect("starts");
    let second = lockstep_pipelines::start(&pipeline, shutdown.clone())
        .await
        .expect_err("taken");
    assert_eq!(second.kind(), ErrorKind::Setup);
    shutdown.cancel();
    first.wait().await.expect("stops");
    let shutdown = tokio_util::sync::CancellationToken::new();
    let third = lockstep_pipelines::start(&pipeline, shutdown.clone())
        .await
        .expect("free again");
    shutdown.cancel();
    third.wait().await.expect("stops");
    assert!(error(ErrorKind::Busy).to_string().contains("scripted"));
}

#[tokio::test(start_paused = true)]
async fn preflight_asks_everyone() {
    let (_server, _store) = (Server::new("ask", "a", &["t"]), Store::new("ask"));
    let directory = tempfile::tempdir().expect("directory");
    let pipeline = load(directory.path(), &one_to_one("ask"));
    let answers = lockstep_pipelines::preflight::preflight(&pipeline).await;
    let places: Vec<&str> = answers.iter().map(|(place, _)| place.as_str()).collect();
    assert_eq!(places, ["sources.a", "sinks.s"]);
    assert_eq!(answers[0].1[0].detail, "test/a");
}

fn through_a_witness(script: &str) -> String {
    format!(
        "sources.a = {{ type = \"scripted\", script = \"{script}\" }}\n\
         transforms.w = {{ type = \"witness\", script = \"{script}\", inputs = [\"a\"] }}\n\
         sinks.s = {{ type = \"memory\", script = \"{script}\", inputs = [\"w\"] }}\n"
    )
}
