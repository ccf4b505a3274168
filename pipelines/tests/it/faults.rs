//! Random faults at every end: what sinks hold in the end equals the log, and nothing is confirmed too early (I1, I2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_core::batch::Phase;
use lockstep_core::position::{Lsn, Position};
use proptest::prelude::*;

use crate::ends::{Fault, LogRow, Run, Server, Store, Witness, until};
use crate::lifecycle::one_to_one;

#[derive(Clone, Debug)]
struct Script {
    transactions: Vec<usize>,
    batch_sizes: Vec<usize>,
    sinks: [Vec<Fault>; 2],
    opens: [Vec<ErrorKind>; 2],
    reads: Vec<(usize, ErrorKind)>,
    budget: usize,
    /// Stop and start again after so many milliseconds.
    restart: Option<u64>,
}

fn retried() -> impl Strategy<Value = ErrorKind> {
    prop_oneof![
        Just(ErrorKind::Unavailable),
        Just(ErrorKind::Busy),
        Just(ErrorKind::Overloaded),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        2 => retried().prop_map(Fault::Reject),
        2 => retried().prop_map(Fault::FailAfterWrite),
        1 => Just(Fault::DropReceipt),
        2 => (1..3_000_u64).prop_map(Fault::Slow),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    let faults = || prop::collection::vec(fault(), 0..12);
    let opens = || prop::collection::vec(retried(), 0..4);
    (
        prop::collection::vec(1..7_usize, 1..40),
        prop::collection::vec(1..9_usize, 1..5),
        [faults(), faults()],
        [opens(), opens()],
        prop::collection::vec((0..12_usize, retried()), 0..4),
        3..40_usize,
        prop::option::of(1..4_000_u64),
    )
        .prop_map(
            |(transactions, batch_sizes, sinks, opens, reads, budget, restart)| Script {
                transactions,
                batch_sizes,
                sinks,
                opens,
                reads,
                budget,
                restart,
            },
        )
}

static CASE: AtomicU64 = AtomicU64::new(0);

async fn play(script: Script) {
    let id = format!("random-{}", CASE.fetch_add(1, Ordering::Relaxed));
    let server = Server::new(&id, "a", &["x", "y"]);
    let stores = [Store::new(&id), Store::new(&format!("{id}-t"))];
    Witness::new(&id);
    for ((store, faults), opens) in stores.iter().zip(&script.sinks).zip(&script.opens) {
        store.state().faults = faults.clone().into();
        store.state().open_faults = opens.clone().into();
    }
    let mut end = Lsn(0);
    for (key, rows) in script.transactions.iter().enumerate() {
        let row = |index: usize| LogRow {
            table: if (index + key).is_multiple_of(3) {
                "y"
            } else {
                "x"
            },
            key: key as u64,
        };
        end = server.commit(&(0..*rows).map(row).collect::<Vec<_>>());
    }
    {
        let log = server.stream();
        let stores: Vec<Arc<Store>> = stores.to_vec();
        let mut state = server.state();
        state.batch_sizes = script.batch_sizes;
        state.read_faults = script.reads.into();
        state.watch = Some(Box::new(move |confirmed| {
            // A commit ends at the next hundred.
            let ended = |commit: Lsn| commit.0 + 100 <= confirmed.0;
            let all = log
                .iter()
                .filter(|(position, _)| ended(position.commit))
                .count();
            let x = log
                .iter()
                .filter(|(position, row)| ended(position.commit) && row.table == "x")
                .count();
            assert!(
                stores[0].stream("a").len() >= all,
                "I1: {confirmed} confirmed too early"
            );
            assert!(
                stores[1].stream("a").len() >= x,
                "I1: {confirmed} confirmed too early"
            );
        }));
    }
    let body = format!(
        "memory = {}\n\
         shutdown_timeout = \"1s\"\n\
         sources.a = {{ type = \"scripted\", script = \"{id}\" }}\n\
         transforms.w = {{ type = \"witness\", script = \"{id}\", inputs = [\"a\"] }}\n\
         sinks.s = {{ type = \"memory\", script = \"{id}\", inputs = [\"a:public.y\", \"w:public.x\"] }}\n\
         sinks.t = {{ type = \"memory\", script = \"{id}-t\", inputs = [\"w:public.x\"] }}\n",
        script.budget * 1024
    );
    if let Some(after) = script.restart {
        let run = Run::start(&body).await;
        tokio::time::sleep(Duration::from_millis(after)).await;
        run.stop().await.expect("stops in order");
    }
    let run = Run::start(&body).await;
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(
        stores[0].stream("a"),
        server.stream(),
        "each change once, in order"
    );
    let x: Vec<_> = server
        .stream()
        .into_iter()
        .filter(|(_, row)| row.table == "x")
        .collect();
    assert_eq!(stores[1].stream("a"), x, "each change once, in order");
    let memory = run.running.status().memory;
    assert_eq!(memory.used, 0, "all memory is given back");
    run.stop().await.expect("stops in order");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn whatever_fails_each_change_arrives_once(script in script()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(script));
    }
}

#[tokio::test(start_paused = true)]
async fn copied_rows_are_not_sent_again_behind_what_came_after_them() {
    let (server, store) = (Server::new("behind", "a", &["t"]), Store::new("behind"));
    server.state().snapshot = vec![LogRow { table: "t", key: 0 }];
    server.state().batch_sizes = vec![1];
    // The sink has the copy and the first change, and the answers are lost.
    store.state().faults = [Fault::Mute, Fault::FailAfterWrite(ErrorKind::Unavailable)].into();
    let end = server.fill("t", 3);
    let run = Run::start(
        "sources.a = { type = \"scripted\", script = \"behind\" }\n\
         sinks.s = { type = \"memory\", script = \"behind\", inputs = [\"a\"] }\n",
    )
    .await;
    until("confirmed", || server.state().confirmed == end).await;
    let phases: Vec<Phase> = store.state().held.iter().map(|held| held.phase).collect();
    assert_eq!(
        phases,
        [Phase::Snapshot, Phase::Stream, Phase::Stream, Phase::Stream]
    );
    run.stop().await.expect("stops");
}

/// A sink that comes back without its last writes says so by its position.
#[tokio::test(start_paused = true)]
async fn a_sink_that_has_lost_what_it_confirmed_is_counted() {
    let (server, store) = (Server::new("setback", "a", &["t"]), Store::new("setback"));
    server.state().batch_sizes = vec![1];
    let run = Run::start(
        "sources.a = { type = \"scripted\", script = \"setback\" }\n\
         sinks.s = { type = \"memory\", script = \"setback\", inputs = [\"a\"] }\n",
    )
    .await;
    let counted = |times: u32| {
        let line = format!("lockstep_sink_setbacks_total{{sink=\"s\"}} {times}");
        let text = run.running.handle().metrics_text().expect("text");
        assert!(text.contains(&line), "{line} in {text}");
    };
    let all_of = async |key: u64| {
        let end = server.commit(&[LogRow { table: "t", key }]);
        until("confirmed", || server.state().confirmed == end).await;
    };
    let fail = || store.state().faults = [Fault::Reject(ErrorKind::Unavailable)].into();
    all_of(1).await;
    all_of(2).await;
    fail();
    all_of(3).await;
    counted(0);
    store.state().progress.values_mut().for_each(|held| {
        let commit = Lsn(200);
        *held = Position {
            commit,
            ..held.upto()
        }
        .into();
    });
    fail();
    all_of(4).await;
    counted(1);
    store.state().progress.clear();
    fail();
    all_of(5).await;
    counted(2);
    fail();
    all_of(6).await;
    counted(2);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn who_comes_too_late_for_a_sink_counts_it() {
    let (server, store) = (Server::new("late", "a", &["t"]), Store::new("late"));
    store.state().faults = [
        Fault::Reject(ErrorKind::Busy),
        Fault::Fenced,
        Fault::Fenced,
        Fault::Reject(ErrorKind::Unavailable),
    ]
    .into();
    let end = server.fill("t", 1);
    let run = Run::start(&one_to_one("late")).await;
    until("confirmed", || server.state().confirmed == end).await;
    let metrics = run.running.handle().metrics_text().expect("text");
    for line in [
        "lockstep_sink_fenced_total{sink=\"s\"} 2",
        "lockstep_sink_errors_total{code=\"LS007\",sink=\"s\"} 3",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    run.stop().await.expect("stops");
}
