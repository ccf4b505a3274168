//! Rows that a sink refuses for good: put aside once, the rest in order, and replayed when the cause is gone.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_core::batch::Phase;
use lockstep_core::position::{Lsn, Position};
use lockstep_pipelines::letters::{Head, Selection};
use lockstep_pipelines::{Offline, Report};
use proptest::prelude::*;

use crate::ends::{Fault, LogRow, Run, Server, Store, Witness, load, registry, until};

/// One source `a` and one sink `s` with more keys.
fn body(script: &str, more: &str) -> String {
    format!(
        "sources.a = {{ type = \"scripted\", script = \"{script}\" }}\n\
         sinks.s = {{ type = \"memory\", script = \"{script}\", inputs = [\"a\"]{more} }}\n"
    )
}

fn row(key: u64) -> LogRow {
    LogRow { table: "t", key }
}

async fn letters(run: &Run) -> Vec<Head> {
    let handle = run.running.handle();
    handle.dead_letters(all()).await.expect("a list")
}

fn all() -> Selection {
    Selection::default()
}

fn only(id: u64) -> Selection {
    Selection {
        ids: vec![id],
        ..all()
    }
}

/// Replays through the running pipeline.
async fn replay(run: &Run, selection: Selection) -> Report {
    let mut reports = run.running.handle().replay(selection).await.expect("done");
    reports.remove("sinks.s").expect("of the sink")
}

#[tokio::test(start_paused = true)]
async fn refused_rows_are_put_aside_and_the_rest_goes_on_until_they_are_replayed() {
    let (server, store) = (Server::new("aside", "a", &["t"]), Store::new("aside"));
    server.state().batch_sizes = vec![4];
    store.state().poison = [2, 3, 7].into();
    let end = server.fill("t", 10);
    let run = Run::start(&body("aside", "")).await;
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(store.keys(), [0, 1, 4, 5, 6, 8, 9]);
    assert_eq!(run.running.ready(), Ok(()));
    let status = run.running.status();
    assert_eq!(
        (status.dead_letters, status.sinks["s"].dead_letters),
        (3, 3)
    );
    assert_eq!(status.sinks["s"].errors, 2, "one for each batch");
    let metrics = run.running.handle().metrics_text().expect("text");
    for line in [
        "lockstep_dead_letters_total{place=\"sinks.s\",reason=\"mapping\"} 3",
        "lockstep_dead_letters{place=\"sinks.s\"} 3",
        "lockstep_sink_up{sink=\"s\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }

    let heads = letters(&run).await;
    let keys: Vec<&str> = heads
        .iter()
        .flat_map(|head| &head.keys)
        .map(|key| &**key)
        .collect();
    assert_eq!(keys, ["2", "3", "7"]);
    let first = &heads[0];
    assert_eq!((first.id, first.attempts, &*first.op), (1, 1, "insert"));
    assert_eq!(first.message, "LS009 2 is poison");
    assert_eq!(first.position.to_string(), "0/12C#1");

    store.state().poison = [3].into();
    let report = replay(&run, all()).await;
    assert_eq!((report.delivered, report.refused, report.stale), (2, 1, 0));
    assert_eq!(report.refusals[0].id, 2);
    let heads = letters(&run).await;
    assert_eq!((heads.len(), heads[0].id, heads[0].attempts), (1, 2, 2));
    let held = store.state().held.clone();
    let replayed: Vec<_> = held[7..]
        .iter()
        .map(|held| (held.phase, held.position))
        .collect();
    let at = |commit| Position {
        commit: Lsn(commit),
        ordinal: 1,
    };
    assert_eq!(
        replayed,
        [(Phase::Replay, at(300)), (Phase::Replay, at(800))]
    );

    store.state().poison.clear();
    assert_eq!(replay(&run, only(2)).await.delivered, 1);
    assert_eq!(letters(&run).await, []);
    let last = server.commit(&[row(11)]);
    until("confirmed", || server.state().confirmed == last).await;
    let mut keys = store.keys();
    keys.sort_unstable();
    assert_eq!(keys, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11], "each once");
    let gone = run.running.handle().dead_letter(2).await.expect_err("gone");
    assert_eq!(gone.kind(), ErrorKind::Invalid);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn of_rows_that_are_refused_together_only_the_guilty_are_put_aside() {
    let (server, store) = (Server::new("vague", "a", &["t"]), Store::new("vague"));
    server.state().batch_sizes = vec![6];
    store.state().poison = [2, 4].into();
    store.state().vague = true;
    let end = server.fill("t", 9);
    let run = Run::start(&body("vague", "")).await;
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(store.keys(), [0, 1, 3, 5, 6, 7, 8], "in order, each once");
    assert_eq!(letters(&run).await.len(), 2);
    // All letters are refused together again, and told apart again.
    store.state().poison = [4].into();
    let report = replay(&run, all()).await;
    assert_eq!((report.delivered, report.refused), (1, 1));
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_sink_may_stop_on_a_refused_row() {
    let (server, store) = (Server::new("halt", "a", &["t"]), Store::new("halt"));
    store.state().poison = [1].into();
    server.fill("t", 3);
    let run = Run::start(&body("halt", ", on_error = \"stop\"")).await;
    let handle = run.running.handle();
    let error = run.running.wait().await.expect_err("stops");
    assert_eq!(error.to_string(), "LS009 sinks.s: 1 is poison");
    assert_eq!(server.state().confirmed, Lsn(0));
    assert_eq!(handle.dead_letters(all()).await.expect("a list"), []);
}

#[tokio::test(start_paused = true)]
async fn what_comes_again_after_a_crash_lies_aside_once_and_is_delivered_once() {
    let (server, store) = (Server::new("again", "a", &["t"]), Store::new("again"));
    server.state().batch_sizes = vec![3];
    // The sink cannot tell what it holds, as Kafka without transactions.
    store.state().proves = false;
    store.state().poison = [1, 4].into();
    let end = server.fill("t", 6);
    let body = body("again", "");
    let run = Run::start(&body).await;
    until("confirmed", || server.state().confirmed == end).await;
    store.state().poison = [4].into();
    assert_eq!(replay(&run, only(1)).await.delivered, 1);
    let directory = run.stop_for_later().await;

    // Nothing of it was confirmed: all comes again. 1 has been delivered since, 4 would be taken now.
    server.state().confirmed = Lsn(0);
    store.state().poison.clear();
    store.state().held.clear();
    let run = Run::start_in(directory, &body).await;
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(store.keys(), [0, 2, 3, 5]);
    let heads = letters(&run).await;
    assert_eq!((heads.len(), heads[0].id, heads[0].attempts), (1, 2, 1));
    assert_eq!(replay(&run, all()).await.delivered, 1);
    assert_eq!(store.keys(), [0, 2, 3, 5, 4]);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn later_changes_of_a_key_wait_where_the_policy_says_so_and_follow_in_order() {
    let (server, store) = (Server::new("wait", "a", &["t"]), Store::new("wait"));
    server.state().batch_sizes = vec![2, 5];
    store.state().poison = [5].into();
    for key in [1, 5, 2, 5, 5, 3] {
        server.commit(&[row(key)]);
    }
    let body = body("wait", ", later = \"wait\"");
    let run = Run::start(&body).await;
    until("confirmed", || server.state().confirmed == Lsn(700)).await;
    let reasons =
        |heads: &[Head]| -> Vec<String> { heads.iter().map(|head| head.reason.clone()).collect() };
    let heads = letters(&run).await;
    assert_eq!(reasons(&heads), ["mapping", "behind", "behind"]);
    assert_eq!(store.keys(), [1, 2, 3]);

    // They wait over restarts, also when the sink would take them.
    let directory = run.stop_for_later().await;
    let run = Run::start_in(directory, &body).await;
    store.state().poison.clear();
    let end = server.commit(&[row(5), row(4)]);
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(letters(&run).await.len(), 4);
    assert_eq!(store.keys(), [1, 2, 3, 4]);

    // One brings the others with it, in order; the last of them is refused when it is in the middle.
    let report = replay(&run, only(3)).await;
    assert_eq!((report.delivered, report.refused, report.behind), (4, 0, 0));
    let held = store.state().held.clone();
    let commits: Vec<u64> = held[4..]
        .iter()
        .map(|held| held.position.commit.0)
        .collect();
    assert_eq!(commits, [200, 400, 500, 700]);
    let end = server.commit(&[row(5)]);
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(letters(&run).await, []);
    assert_eq!(store.keys()[8..], [5]);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_not_tried_behind_one_that_is_refused_again() {
    let (server, store) = (Server::new("stuck", "a", &["t"]), Store::new("stuck"));
    store.state().poison = [5, 6].into();
    for key in [5, 6, 5, 5, 6] {
        server.commit(&[row(key)]);
    }
    let run = Run::start(&body("stuck", ", later = \"wait\"")).await;
    until("confirmed", || server.state().confirmed == Lsn(600)).await;
    store.state().poison = [5].into();
    let report = replay(&run, all()).await;
    assert_eq!((report.delivered, report.refused, report.behind), (2, 1, 2));
    let left: Vec<u32> = letters(&run)
        .await
        .iter()
        .map(|head| head.attempts)
        .collect();
    assert_eq!(left, [2, 1, 1]);
    assert_eq!(store.keys(), [6, 6]);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_full_store_stops_the_sink_and_loses_nothing() {
    let (server, store) = (Server::new("full", "a", &["t"]), Store::new("full"));
    server.state().batch_sizes = vec![2];
    store.state().poison = [1, 2, 3].into();
    server.fill("t", 6);
    let most = "[dead_letters]\nmax = 1\n";
    let full = format!("{}{most}", body("full", ""));
    let run = Run::start(&full).await;
    let directory = run.directory;
    let error = run.running.wait().await.expect_err("full");
    assert_eq!(error.kind(), ErrorKind::Storage);
    let text = error.to_string();
    assert!(
        text.starts_with("LS012 sinks.s: dead letters: the dead-letter store"),
        "{text}"
    );
    assert!(
        text.contains("allows 1 rows") && text.contains("Remedy: "),
        "{text}"
    );
    // With room again, it goes on from there.
    let run = Run::start_in(directory, &body("full", "")).await;
    until("confirmed", || server.state().confirmed == Lsn(700)).await;
    assert_eq!(store.keys(), [0, 4, 5]);
    assert_eq!(letters(&run).await.len(), 3);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn letters_may_go_to_a_queue_instead() {
    let (server, store) = (Server::new("queued", "a", &["t"]), Store::new("queued"));
    let queue = Store::new("queued-letters");
    queue.state().open_faults = [ErrorKind::Unavailable].into();
    store.state().poison = [1].into();
    let end = server.fill("t", 3);
    let more = "[dead_letters]\ntype = \"memory\"\nscript = \"queued-letters\"\n";
    let run = Run::start(&format!("{}{more}", body("queued", ""))).await;
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(store.keys(), [0, 2]);
    let held = queue.state().held.clone();
    assert_eq!(held.len(), 1);
    assert_eq!(
        (&*held[0].table, &*held[0].key),
        ("dead_letters", "sinks.s/public.t/1/1/a/00000000000000c8/1")
    );
    assert_eq!(run.running.status().dead_letters, 1);
    let refused = run
        .running
        .handle()
        .dead_letters(all())
        .await
        .expect_err("elsewhere");
    assert!(refused.to_string().contains("go to a queue"), "{refused}");
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_its_queue_refuses_goes_without_its_row() {
    let (server, store) = (Server::new("slim", "a", &["t"]), Store::new("slim"));
    let queue = Store::new("slim-letters");
    // The letter's JSON is longer than this with the row, and shorter without.
    queue.state().longest = 700;
    store.state().poison = [1].into();
    let end = server.fill("t", 3);
    let more = "[dead_letters]\ntype = \"memory\"\nscript = \"slim-letters\"\n";
    let run = Run::start(&format!("{}{more}", body("slim", ""))).await;
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(store.keys(), [0, 2]);
    let held = queue.state().held.clone();
    let row = held[0].row.as_ref().expect("a row");
    assert_eq!((held.len(), &*row["reason"]), (1, "mapping"));
    let letter: serde_json::Value = serde_json::from_str(&row["letter"]).expect("JSON");
    assert_eq!(letter["keys"], serde_json::json!(["1"]));
    assert!(letter.get("new").is_none() && letter["left_out"].is_string());
    run.stop().await.expect("stops");
}

/// In real time: the keeper waits for the queue on a thread of its own, and a paused clock would stand still meanwhile.
#[tokio::test]
async fn letters_that_cannot_be_queued_are_seen_and_hold_the_source_back() {
    let (server, store) = (Server::new("room", "a", &["t"]), Store::new("room"));
    let (queue, witness) = (Store::new("room-letters"), Witness::new("room"));
    witness.state().aside = Some("t");
    queue.state().open_faults = vec![ErrorKind::Unavailable; 100].into();
    // Each letter counts with half a kilobyte at least.
    let rows = 40_000;
    server.state().batch_sizes = vec![500];
    let end = server.fill("t", rows);
    let body = "sources.a = { type = \"scripted\", script = \"room\" }\n\
         transforms.w = { type = \"witness\", script = \"room\", inputs = [\"a\"] }\n\
         sinks.s = { type = \"memory\", script = \"room\", inputs = [\"w\"] }\n\
         memory = \"64MiB\"\n";
    let body = format!(
        "{}[dead_letters]\ntype = \"memory\"\nscript = \"room-letters\"\n",
        body
    );
    let run = Run::start(&body).await;
    let problem = || run.running.ready().err().unwrap_or_default().join("; ");
    until("it is said", || problem().contains("dead_letters: ")).await;
    until("more attempts", || queue.state().open_faults.len() < 98).await;
    let seen = witness.state().seen.len() as u64;
    assert!((8_000..rows / 2).contains(&seen), "{seen}");
    queue.state().open_faults.clear();
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(run.running.ready(), Ok(()));
    assert_eq!(queue.state().held.len() as u64, rows);
    assert_eq!(store.keys().len() as u64, rows);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_letter_of_a_former_log_is_older_than_every_row_there_is() {
    let (server, store) = (Server::new("former", "a", &["t"]), Store::new("former"));
    store.state().poison = [1].into();
    let end = server.fill("t", 3);
    let body = body("former", "").replace("\"memory\"", "\"rows\"");
    let run = Run::start(&body).await;
    until("confirmed", || server.state().confirmed == end).await;
    let directory = run.stop_for_later().await;
    server.state().system = 2;
    let run = Run::start_in(directory, &body).await;
    until("open", || store.state().opened == 3).await;
    store.state().poison.clear();
    let report = replay(&run, all()).await;
    assert_eq!((report.delivered, report.stale), (0, 1));
    assert_eq!(letters(&run).await, []);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_that_does_not_run_replays_and_discards() {
    let (server, store) = (Server::new("offline", "a", &["t"]), Store::new("offline"));
    store.state().poison = [1, 2, 3].into();
    let end = server.fill("t", 5);
    let run = Run::start(&body("offline", "")).await;
    until("confirmed", || server.state().confirmed == end).await;
    let directory = run.stop_for_later().await;
    let pipeline = load(directory.path(), &body("offline", ""));

    let offline = Offline::open(&pipeline).expect("not in use");
    let busy = Offline::open(&pipeline).expect_err("in use");
    assert_eq!(busy.kind(), ErrorKind::Setup);
    let letter = offline.show(2).await.expect("there");
    assert_eq!(letter.head.keys, ["2"]);
    assert_eq!(offline.list(all()).await.expect("a list").len(), 3);

    store.state().open_faults = vec![ErrorKind::Unavailable; 100].into();
    let down = offline.replay(&all()).await.expect_err("down");
    assert_eq!(down.kind(), ErrorKind::Unavailable, "{down}");
    store.state().open_faults.clear();
    store.state().poison = [3].into();
    let reports = offline.replay(&all()).await.expect("done");
    let report = &reports["sinks.s"];
    assert_eq!((report.delivered, report.refused), (2, 1));
    assert_eq!(store.keys(), [0, 4, 1, 2]);
    let progress = store.state().progress["a 1/1/a"].upto();
    assert_eq!(progress.commit, Lsn(500), "a replay moves no progress");
    assert_eq!(offline.discard(only(3)).await.expect("discarded"), 1);
    assert_eq!(offline.list(all()).await.expect("a list"), []);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_only_a_letter_meets_ends_the_replay_and_not_the_line() {
    let (server, store) = (Server::new("setup", "a", &["t"]), Store::new("setup"));
    store.state().poison = [1].into();
    let end = server.fill("t", 2);
    let run = Run::start(&body("setup", "")).await;
    until("confirmed", || server.state().confirmed == end).await;
    store.state().poison_kind = ErrorKind::Setup;
    let report = replay(&run, all()).await;
    assert_eq!(report.stopped.as_deref(), Some("LS006 1 is poison"));
    let end = server.commit(&[row(9)]);
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!((store.keys(), letters(&run).await.len()), (vec![0, 9], 1));
    run.stop().await.expect("stops");
}

#[test]
fn the_file_says_what_is_wrong_with_policies() {
    let directory = tempfile::tempdir().expect("directory");
    let mistakes = |text: &str| {
        let path = directory.path().join("p.toml");
        std::fs::write(&path, format!("name = \"x\"\n{text}")).expect("written");
        let variables = std::collections::BTreeMap::new();
        let loaded = lockstep_pipelines::file::load_with(&path, &registry(), &variables);
        loaded.expect_err("mistakes").to_string()
    };
    let text = mistakes(&body("x", ", on_error = \"stopp\""));
    assert!(
        text.contains("sinks.s.on_error") && text.contains("stop"),
        "{text}"
    );
    let queue = "[dead_letters]\ntype = \"memory\"\nscript = \"y\"\n";
    let text = mistakes(&format!("{}{queue}", body("x", ", later = \"wait\"")));
    assert!(
        text.contains("sinks.s.later") && text.contains("embedded"),
        "{text}"
    );
    let text = mistakes(&format!("{}[dead_letters]\nmaxx = 1\n", body("x", "")));
    assert!(
        text.contains("dead_letters.maxx") && text.contains("max"),
        "{text}"
    );
}

#[derive(Clone, Debug)]
struct Script {
    keys: Vec<u64>,
    batch_sizes: Vec<usize>,
    poison: BTreeSet<u64>,
    vague: bool,
    faults: Vec<Fault>,
    waits: bool,
    /// Stop and start again after so many milliseconds, with nothing confirmed in between.
    restart: Option<u64>,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        2 => Just(Fault::FailAfterWrite(ErrorKind::Unavailable)),
        1 => Just(Fault::DropReceipt),
        2 => (1..2_000_u64).prop_map(Fault::Slow),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    (
        prop::collection::vec(0..8_u64, 1..40),
        prop::collection::vec(1..9_usize, 1..5),
        prop::collection::btree_set(0..8_u64, 0..4),
        any::<bool>(),
        prop::collection::vec(fault(), 0..12),
        any::<bool>(),
        prop::option::of(1..3_000_u64),
    )
        .prop_map(
            |(keys, batch_sizes, poison, vague, faults, waits, restart)| Script {
                keys,
                batch_sizes,
                poison,
                vague,
                faults,
                waits,
                restart,
            },
        )
}

static CASE: AtomicU64 = AtomicU64::new(0);

async fn play(script: Script) {
    let id = format!("poison-{}", CASE.fetch_add(1, Ordering::Relaxed));
    let (server, store) = (Server::new(&id, "a", &["t"]), Store::new(&id));
    server.state().batch_sizes = script.batch_sizes;
    {
        let mut state = store.state();
        state.poison = script.poison.clone();
        state.vague = script.vague;
        state.faults = script.faults.into();
    }
    let mut end = Lsn(0);
    for key in &script.keys {
        end = server.commit(&[row(*key)]);
    }
    let later = if script.waits { "wait" } else { "pass" };
    let body = body(&id, &format!(", later = \"{later}\""));
    let mut run = Run::start(&body).await;
    if let Some(after) = script.restart {
        tokio::time::sleep(Duration::from_millis(after)).await;
        let directory = run.stop_for_later().await;
        server.state().confirmed = Lsn(0);
        run = Run::start_in(directory, &body).await;
    }
    until("confirmed", || server.state().confirmed == end).await;
    let of = |poison: bool| -> Vec<u64> {
        let keys = script.keys.iter().copied();
        keys.filter(|key| script.poison.contains(key) == poison)
            .collect()
    };
    assert_eq!(store.keys(), of(false), "each once, in order");
    assert_eq!(letters(&run).await.len(), of(true).len());
    let metrics = run.running.handle().metrics_text().expect("text");
    assert!(metrics.contains("lockstep_sink_setbacks_total{sink=\"s\"} 0"));
    // A replay is written again after a lost answer; a queue has it twice then.
    store.state().faults.clear();
    store.state().poison.clear();
    let reports = run.running.handle().replay(all()).await.expect("done");
    let delivered: u64 = reports.values().map(|report| report.delivered).sum();
    assert_eq!(delivered, of(true).len() as u64);
    assert_eq!(store.keys()[of(false).len()..], of(true), "in order");
    run.stop().await.expect("stops");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn poison_never_stops_the_line_and_never_vanishes(script in script()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(play(script));
    }
}
