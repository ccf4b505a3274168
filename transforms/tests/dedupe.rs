//! `dedupe`: what repeats, what becomes of it, and what a restart remembers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::*;
use lockstep_core::ErrorKind;
use lockstep_core::batch::{Batch, OldImage, Op, Phase};
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use lockstep_core::transform::{Transform, TransformContext, TransformFactory};
use lockstep_transforms::Dedupe;
use serde_json::{Value, json};

const FULL: OldImage = OldImage::Full;
const KEY: OldImage = OldImage::Key;

fn payments(identity: ReplicaIdentity) -> Arc<TableSchema> {
    table(
        "public.payments",
        &["id int8", "idempotency_key uuid", "state text"],
        &["id"],
        identity,
    )
}

fn default() -> Value {
    json!({"key": ["idempotency_key"]})
}

/// A transform, with what it puts aside.
struct Rig {
    dedupe: Box<dyn Transform>,
    letters: Arc<Letters>,
}

impl Rig {
    /// Over an empty memory like that of `place`.
    fn new(place: &Place, json: Value, tables: &[&Arc<TableSchema>]) -> Self {
        Rig::at(&place.fresh(), json, tables)
    }

    /// The replica of `place` whose turn it is.
    fn at(place: &Place, json: Value, tables: &[&Arc<TableSchema>]) -> Self {
        let letters = Arc::new(Letters::default());
        let dedupe = place.open(json, tables, &letters);
        Rig { dedupe, letters }
    }

    fn apply(&mut self, feed: Feed) -> Vec<String> {
        lines(&self.apply_batch(feed.finish()))
    }

    fn apply_batch(&mut self, batch: Batch) -> Arc<Batch> {
        let through = batch.through;
        let out = self.dedupe.apply_now(batch).unwrap();
        assert_eq!(out.through, through);
        out
    }
}

fn a_repeat_and_its_later_changes_are_left_out(place: &Place) {
    let table = payments(ReplicaIdentity::Default);
    let mut rig = Rig::new(place, default(), &[&table]);
    let out = rig.apply(
        Feed::new()
            .begin(10, 1)
            .insert(&table, &["7", "k", "new"])
            .insert(&table, &["8", "k", "new"])
            .insert(&table, &["9", NULL, "new"])
            .insert(&table, &["10", NULL, "new"])
            .begin(20, 2)
            .update(&table, &["7", "k", "paid"])
            .update(&table, &["8", "k", "void"])
            .delete(&table, KEY, &["8", NULL, NULL])
            .delete(&table, KEY, &["7", NULL, NULL])
            .begin(30, 3)
            .insert(&table, &["8", "k", "again"])
            .insert(&table, &["7", "k", "again"])
            .insert(&table, &["8", "l", "with another key"]),
    );
    assert_eq!(
        out,
        [
            "insert public.payments id=7 idempotency_key=k state=new",
            "insert public.payments id=9 idempotency_key=NULL state=new",
            "insert public.payments id=10 idempotency_key=NULL state=new",
            "update public.payments id=7 idempotency_key=k state=paid",
            "delete public.payments <- id=7",
            "insert public.payments id=7 idempotency_key=k state=again",
            "insert public.payments id=8 idempotency_key=l state=with another key",
        ]
    );
    assert_eq!(
        rig.dedupe.duplicates(),
        2,
        "row 8 twice; its later changes do not count"
    );
}

fn a_held_row_appears_when_it_loses_the_key_or_takes_a_free_one(place: &Place) {
    let table = payments(ReplicaIdentity::Default);
    let mut rig = Rig::new(place, default(), &[&table]);
    let out = rig.apply(
        Feed::new()
            .begin(10, 1)
            .insert(&table, &["1", "k", "a"])
            .insert(&table, &["2", "k", "a"])
            .insert(&table, &["3", "k", "a"])
            .insert(&table, &["4", "k", "a"])
            .begin(20, 1)
            .update(&table, &["2", NULL, "b"])
            .update(&table, &["3", "l", "b"])
            .update(&table, &["4", "l", "b"])
            .update(&table, &["2", NULL, "c"])
            .update_from(&table, KEY, &["4", NULL, NULL], &["5", "l", "c"])
            .update(&table, &["5", "m", UNCHANGED]),
    );
    assert_eq!(
        out,
        [
            "insert public.payments id=1 idempotency_key=k state=a",
            "insert public.payments id=2 idempotency_key=NULL state=b",
            "insert public.payments id=3 idempotency_key=l state=b",
            "update public.payments id=2 idempotency_key=NULL state=c",
            "update public.payments id=5 idempotency_key=m state=?",
        ]
    );
}

fn a_key_set_by_an_update_counts_when_the_old_row_is_known(place: &Place) {
    let table = payments(ReplicaIdentity::Full);
    let mut rig = Rig::new(place, default(), &[&table]);
    let out = rig.apply(
        Feed::new()
            .begin(10, 1)
            .insert(&table, &["1", NULL, "a"])
            .update_from(&table, FULL, &["1", NULL, "a"], &["1", "k", "b"])
            .insert(&table, &["2", NULL, "a"])
            .update_from(&table, FULL, &["2", NULL, "a"], &["2", "k", "b"])
            .update_from(&table, FULL, &["2", "k", "b"], &["2", "k", "c"])
            .insert(&table, &["3", "k", "a"])
            .delete(&table, FULL, &["2", "k", "c"])
            .update_from(&table, FULL, &["1", "k", "b"], &["1", "k", "c"]),
    );
    assert_eq!(
        out,
        [
            "insert public.payments id=1 idempotency_key=NULL state=a",
            "update public.payments id=1 idempotency_key=k state=b <- id=1 idempotency_key=NULL state=a",
            "insert public.payments id=2 idempotency_key=NULL state=a",
            "delete public.payments <- id=2 idempotency_key=NULL state=a",
            "update public.payments id=1 idempotency_key=k state=c <- id=1 idempotency_key=k state=b",
        ]
    );
    assert_eq!(rig.dedupe.duplicates(), 2);
}

fn without_the_old_row_an_update_is_never_a_repeat(place: &Place) {
    let table = payments(ReplicaIdentity::Default);
    let mut rig = Rig::new(place, default(), &[&table]);
    // Row 1 had its key long before row 2 took it: it must not vanish.
    let out = rig.apply(
        Feed::new()
            .begin(10, 1)
            .insert(&table, &["2", "k", "a"])
            .update(&table, &["1", "k", "b"]),
    );
    assert_eq!(out.len(), 2);
}

fn the_owner_keeps_its_key_when_its_primary_key_changes(place: &Place) {
    let table = payments(ReplicaIdentity::Default);
    let mut rig = Rig::new(place, default(), &[&table]);
    let first = || {
        Feed::new()
            .begin(10, 1)
            .insert(&table, &["1", "k", "a"])
            .update(&table, &["1", "k", "b"])
            .update_from(&table, KEY, &["1", NULL, NULL], &["2", "k", "c"])
            .update(&table, &["2", "k", "d"])
            .insert(&table, &["1", "k", "repeat"])
    };
    let expected = [
        "insert public.payments id=1 idempotency_key=k state=a",
        "update public.payments id=1 idempotency_key=k state=b",
        "update public.payments id=2 idempotency_key=k state=c <- id=1",
        "update public.payments id=2 idempotency_key=k state=d",
    ];
    assert_eq!(rig.apply(first()), expected);
    assert_eq!(
        rig.apply(first()),
        expected,
        "a replay is judged as the first time"
    );
    assert_eq!(rig.dedupe.duplicates(), 1);
}

fn the_window_is_commit_time(place: &Place) {
    let table = payments(ReplicaIdentity::Default);
    let mut rig = Rig::new(
        place,
        json!({"key": ["idempotency_key"], "window": "10s"}),
        &[&table],
    );
    let out = rig.apply(
        Feed::new()
            .begin(10, 100)
            .insert(&table, &["1", "k", "first"])
            .begin(20, 110)
            .insert(&table, &["2", "k", "inside"])
            .begin(30, 111)
            .insert(&table, &["3", "k", "after"])
            .begin(40, 112)
            .insert(&table, &["4", "k", "inside the next"])
            .update(&table, &["1", "k", "still there"])
            .begin(50, 1000)
            .update(&table, &["2", "k", "still held"]),
    );
    let states: Vec<&str> = out
        .iter()
        .map(|line| line.rsplit('=').next().unwrap())
        .collect();
    assert_eq!(states, ["first", "after", "still there"]);
}

fn the_window_may_be_a_count(place: &Place) {
    let table = payments(ReplicaIdentity::Default);
    let mut rig = Rig::new(
        place,
        json!({"key": ["idempotency_key"], "max_keys": 2}),
        &[&table],
    );
    let mut feed = Feed::new().begin(10, 1);
    for (id, key) in [
        ("1", "a"),
        ("2", "b"),
        ("3", "a"),
        ("4", "c"),
        ("5", "a"),
        ("6", "c"),
    ] {
        feed = feed.insert(&table, &[id, key, ""]);
    }
    let ids: Vec<String> = rig.apply(feed);
    let ids: Vec<&str> = ids
        .iter()
        .map(|line| line.split(' ').nth(2).unwrap())
        .collect();
    assert_eq!(ids, ["id=1", "id=2", "id=4", "id=5"]);
}

fn tables_and_sources_are_apart_unless_told_otherwise(place: &Place) {
    let columns = ["id int8", "idempotency_key text"];
    let identity = ReplicaIdentity::Default;
    let payments = table("public.payments", &columns, &["id"], identity);
    let refunds = table("public.refunds", &columns, &["id"], identity);
    let elsewhere = table_of("inventory", "public.payments", &columns, &["id"], identity);
    for (scope, passed) in [("table", 3), ("all", 1)] {
        let json = json!({"key": ["idempotency_key"], "scope": scope});
        let mut rig = Rig::new(place, json, &[&payments, &refunds, &elsewhere]);
        let mut out = rig.apply(
            Feed::new()
                .begin(10, 1)
                .insert(&payments, &["1", "k"])
                .insert(&refunds, &["1", "k"]),
        );
        out.extend(
            rig.apply(
                Feed::of("inventory")
                    .begin(5, 1)
                    .insert(&elsewhere, &["1", "k"]),
            ),
        );
        assert_eq!(out.len(), passed, "{scope}");
    }
}

fn keys_of_several_columns(place: &Place) {
    let table = table(
        "public.t",
        &["id int8", "a text", "b text"],
        &["id"],
        ReplicaIdentity::Default,
    );
    let mut rig = Rig::new(place, json!({"key": ["a", "b"]}), &[&table]);
    let out = rig.apply(
        Feed::new()
            .begin(1, 1)
            .insert(&table, &["1", "a", "bc"])
            .insert(&table, &["2", "ab", "c"])
            .insert(&table, &["3", "a", NULL])
            .insert(&table, &["4", "a", NULL])
            .insert(&table, &["5", "a", "bc"]),
    );
    assert_eq!(out.len(), 4, "{out:?}");
}

fn tag_and_dead_letter(place: &Place) {
    let table = payments(ReplicaIdentity::Full);
    let feed = || {
        Feed::new()
            .begin(10, 1)
            .insert(&table, &["1", "k", "a"])
            .insert(&table, &["2", "k", "a"])
            .insert(&table, &["3", NULL, "a"])
            .update_from(&table, FULL, &["3", NULL, "a"], &["3", "k", "b"])
            .delete(&table, FULL, &["2", "k", "a"])
    };
    let mut tag = Rig::new(
        place,
        json!({"key": ["idempotency_key"], "action": "tag"}),
        &[&table],
    );
    assert_eq!(
        tag.apply(feed()),
        [
            "insert public.payments id=1 idempotency_key=k state=a",
            "insert public.payments id=2 idempotency_key=k state=a duplicate",
            "insert public.payments id=3 idempotency_key=NULL state=a",
            "update public.payments id=3 idempotency_key=k state=b <- id=3 idempotency_key=NULL state=a duplicate",
            "delete public.payments <- id=2 idempotency_key=k state=a duplicate",
        ]
    );
    let mut dead = Rig::new(
        place,
        json!({"key": ["idempotency_key"], "action": "dead_letter"}),
        &[&table],
    );
    assert_eq!(
        dead.apply(feed()),
        [
            "insert public.payments id=1 idempotency_key=k state=a",
            "insert public.payments id=3 idempotency_key=NULL state=a",
            "delete public.payments <- id=3 idempotency_key=NULL state=a",
        ]
    );
    let letters = dead.letters.0.lock().unwrap().clone();
    assert_eq!(letters.len(), 3);
    assert_eq!(
        letters[0],
        "transforms.here duplicate insert public.payments id=2 idempotency_key=k state=a"
    );
}

fn an_initial_copy_in_another_order_is_judged_the_same(place: &Place) {
    let table = payments(ReplicaIdentity::Default);
    let copy = |rows: &[&str]| {
        rows.iter().fold(Feed::new().begin(10, 1), |feed, id| {
            feed.read(&table, &[id, "k", "a"])
        })
    };
    let mut rig = Rig::at(place, default(), &[&table]);
    assert_eq!(
        rig.apply(copy(&["7", "8"])),
        ["read public.payments id=7 idempotency_key=k state=a"]
    );
    drop(rig);
    place.next();
    let mut rig = Rig::at(place, default(), &[&table]);
    assert_eq!(
        rig.apply(copy(&["8", "7"])),
        ["read public.payments id=7 idempotency_key=k state=a"]
    );
    // The stream goes on from the copy: a row of both is one row.
    let stream = Feed::new()
        .begin(11, 2)
        .insert(&table, &["7", "k", "b"])
        .update(&table, &["8", "k", "b"])
        .insert(&table, &["9", "k", "b"]);
    assert_eq!(
        rig.apply(stream),
        ["insert public.payments id=7 idempotency_key=k state=b"]
    );
    assert_eq!(rig.dedupe.duplicates(), 1);
}

fn a_table_without_a_primary_key(place: &Place) {
    let table = table(
        "public.log",
        &["idempotency_key text", "n int8"],
        &[],
        ReplicaIdentity::Nothing,
    );
    let mut rig = Rig::new(place, default(), &[&table]);
    let feed = || {
        Feed::new()
            .begin(10, 1)
            .insert(&table, &["k", "1"])
            .insert(&table, &["k", "1"])
            .insert(&table, &["l", "1"])
    };
    let expected = [
        "insert public.log idempotency_key=k n=1",
        "insert public.log idempotency_key=l n=1",
    ];
    assert_eq!(rig.apply(feed()), expected);
    assert_eq!(rig.apply(feed()), expected);
    assert_eq!(rig.dedupe.duplicates(), 1);
}

fn truncate_clears_the_rows_and_not_the_keys(place: &Place) {
    let table = payments(ReplicaIdentity::Default);
    let mut rig = Rig::new(place, default(), &[&table]);
    let out = rig.apply(
        Feed::new()
            .begin(10, 1)
            .insert(&table, &["1", "k", "a"])
            .insert(&table, &["2", "k", "a"])
            .truncate(&table)
            .insert(&table, &["2", "l", "b"])
            .update(&table, &["2", "l", "c"])
            .insert(&table, &["3", "k", "b"])
            .delete(&table, KEY, &["2", NULL, NULL]),
    );
    assert_eq!(
        out,
        [
            "insert public.payments id=1 idempotency_key=k state=a",
            "truncate public.payments",
            "insert public.payments id=2 idempotency_key=l state=b",
            "update public.payments id=2 idempotency_key=l state=c",
            "delete public.payments <- id=2",
        ]
    );
}

fn tables_without_the_key_pass_and_cost_nothing(place: &Place) {
    let (with, without) = (
        payments(ReplicaIdentity::Default),
        table("x.y", &["id int8"], &["id"], ReplicaIdentity::Default),
    );
    let message = Arc::new(TableSchema::message("shop".into()));
    let mut rig = Rig::new(place, default(), &[&with, &without, &message]);
    let feed = Feed::new()
        .begin(1, 1)
        .insert(&without, &["1"])
        .push(Op::Message, &message, None, Some(&["p", "c"]))
        .insert(&without, &["1"]);
    assert_eq!(rig.apply(feed).len(), 3);
}

#[test]
fn a_key_that_no_table_has_is_found_at_the_start() {
    let table = payments(ReplicaIdentity::Default);
    let mut rig = Rig::new(
        &Place::embedded(),
        json!({"key": ["idempotence_key"]}),
        &[&table],
    );
    let error = rig.dedupe.complete().expect_err("no table has it");
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    assert!(
        text.contains("shop.public.payments (id, idempotency_key, state)"),
        "{text}"
    );
    assert!(text.contains("write `idempotency_key`"), "{text}");
}

#[test]
fn refusals() {
    for (json, part) in [
        (json!({"key": []}), "names no column"),
        (json!({"key": ["a", "a"]}), "`a` twice"),
        (json!({"key": ["a"], "window": "0s"}), "`window` is 0"),
        (json!({"key": ["a"], "max_keys": 0}), "`max_keys` is 0"),
    ] {
        let error = Dedupe::validate(&config(json)).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_directory_is_used_by_one() {
    let table = payments(ReplicaIdentity::Default);
    let place = Place::embedded();
    let _rig = Rig::at(&place, default(), &[&table]);
    let second = Dedupe::open(&config(default()), context(&place.folder(), Arc::default()));
    let Err(error) = second else {
        panic!("opened twice")
    };
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(
        error
            .to_string()
            .contains("another process works in this directory"),
        "{error}"
    );
}

const CHILD: &str = "LOCKSTEP_TEST_DEDUPE_CHILD";

/// Not a test by itself: the process that [`a_killed_process_remembers`] starts. It ends without any destructor.
#[test]
fn child() {
    let Ok(told) = std::env::var(CHILD) else {
        return;
    };
    let [pipeline, folder, section]: [Value; 3] = serde_json::from_str(&told).unwrap();
    let context = TransformContext {
        pipeline: pipeline.as_str().unwrap().into(),
        ..context(Path::new(folder.as_str().unwrap()), Arc::default())
    };
    let table = payments(ReplicaIdentity::Default);
    let mut dedupe = Dedupe::open(&config(section), context).unwrap();
    dedupe.bind(&table).unwrap();
    let feed = Feed::new()
        .begin(10, 1)
        .insert(&table, &["7", "k", "a"])
        .insert(&table, &["8", "k", "a"]);
    assert_eq!(dedupe.apply_now(feed.finish()).unwrap().changes().len(), 1);
    // What it has judged has not been delivered to anyone.
    std::process::abort();
}

/// The first process claims the key and dies before anything is delivered. Whoever comes next, on the same machine or
/// another one, passes the row that had the key, and holds the other.
fn a_killed_process_remembers(place: &Place) {
    let told = json!([place.pipeline, place.folder(), place.section(default())]);
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, told.to_string())
        .status()
        .unwrap();
    assert!(!status.success(), "the child must not end by itself");
    place.next();
    let table = payments(ReplicaIdentity::Default);
    let mut rig = Rig::at(place, default(), &[&table]);
    // The same place in the log, cut in another way: row 8 comes by itself.
    let out = rig.apply(
        Feed::new()
            .resume(10, 1, 1)
            .insert(&table, &["8", "k", "a"]),
    );
    assert_eq!(out, Vec::<String>::new());
    let out = rig.apply(
        Feed::new()
            .begin(10, 1)
            .insert(&table, &["7", "k", "a"])
            .insert(&table, &["8", "k", "a"]),
    );
    assert_eq!(
        out,
        ["insert public.payments id=7 idempotency_key=k state=a"],
        "a replay of the first occurrence is no repeat of itself"
    );
    // Row 8 comes first this time: only a memory that outlived the process holds it back.
    let out = rig.apply(
        Feed::new()
            .begin(20, 2)
            .insert(&table, &["8", "k", "b"])
            .insert(&table, &["7", "k", "b"]),
    );
    assert_eq!(
        out,
        ["insert public.payments id=7 idempotency_key=k state=b"]
    );
}

/// The first occurrence comes late: from a source that lags, after the repeat has passed, and once more after a replay.
fn a_late_first_occurrence(place: &Place) {
    let columns = ["id int8", "idempotency_key text"];
    let identity = ReplicaIdentity::Default;
    let shop = table("public.payments", &columns, &["id"], identity);
    let inventory = table_of("inventory", "public.payments", &columns, &["id"], identity);
    let section = || json!({"key": ["idempotency_key"], "scope": "all"});
    let tables = [&shop, &inventory];
    let quick = || Feed::new().begin(10, 100).insert(&shop, &["1", "k"]);
    // Committed earlier, read later: what arrived first has been passed on.
    let late = || {
        Feed::of("inventory")
            .begin(5, 50)
            .insert(&inventory, &["9", "k"])
    };
    let mut rig = Rig::at(place, section(), &tables);
    assert_eq!(rig.apply(quick()).len(), 1);
    assert_eq!(rig.apply(late()).len(), 0);
    drop(rig);
    place.next();
    // After the crash the sources come in the other order.
    let mut rig = Rig::at(place, section(), &tables);
    assert_eq!(rig.apply(late()).len(), 0, "judged as before");
    assert_eq!(rig.apply(quick()).len(), 1, "judged as before");
    assert_eq!(rig.dedupe.duplicates(), 0, "nothing was discovered twice");
}

/// A key that is used again after its window belongs to the new row; a replay from before gives each its own.
fn a_key_is_used_again_after_the_window(place: &Place) {
    let table = payments(ReplicaIdentity::Default);
    let section = || json!({"key": ["idempotency_key"], "window": "10s"});
    let feed = || {
        Feed::new()
            .begin(10, 100)
            .insert(&table, &["1", "k", "first"])
            .begin(20, 105)
            .insert(&table, &["2", "k", "repeat"])
            .begin(30, 111)
            .insert(&table, &["3", "k", "again"])
            .begin(40, 120)
            .insert(&table, &["4", "k", "repeat"])
    };
    let expected = [
        "insert public.payments id=1 idempotency_key=k state=first",
        "insert public.payments id=3 idempotency_key=k state=again",
    ];
    for _ in 0..3 {
        let mut rig = Rig::at(place, section(), &[&table]);
        assert_eq!(rig.apply(feed()), expected);
        place.next();
    }
}

/// The server of a source is restored to a point before the first occurrence of a key, and the client tries again: the
/// claim of the log that is gone must not hold the row back, or the effect would be lost.
fn what_a_lost_log_claimed_is_free(place: &Place) {
    let table = payments(ReplicaIdentity::Default);
    let restored = |incarnation: u32| {
        let mut info = SourceInfo::clone(&source("shop"));
        info.identity.incarnation = incarnation;
        Arc::new(info)
    };
    let mut rig = Rig::at(place, default(), &[&table]);
    let lost = Feed::new()
        .begin(10, 1)
        .insert(&table, &["7", "k", "lost"])
        .insert(&table, &["8", "k", "held"])
        .insert(&table, &["5", "l", "there"]);
    assert_eq!(rig.apply(lost).len(), 2);
    let copy = || {
        Feed::from(restored(1))
            .begin(6, 2)
            .read(&table, &["5", "l", "there"])
    };
    let stream = || {
        Feed::from(restored(1))
            .begin(8, 3)
            .insert(&table, &["8", "k", "tried again"])
            .insert(&table, &["9", "k", "repeat"])
            .insert(&table, &["10", "l", "repeat"])
    };
    let there = ["read public.payments id=5 idempotency_key=l state=there"];
    let again = ["insert public.payments id=8 idempotency_key=k state=tried again"];
    assert_eq!(rig.apply(copy()), there);
    assert_eq!(rig.apply(stream()), again);
    drop(rig);
    place.next();
    let mut rig = Rig::at(place, default(), &[&table]);
    assert_eq!(rig.apply(copy()), there, "a replay");
    assert_eq!(rig.apply(stream()), again, "a replay");
}

/// Rows that are compared are judged as they were, put nothing aside, and claim nothing: a key is free again after its window,
/// however often the row that had it has been looked at.
fn a_comparison_changes_nothing(place: &Place) {
    let table = payments(ReplicaIdentity::Default);
    let section = json!({"key": ["idempotency_key"], "window": "10s", "action": "dead_letter"});
    let mut rig = Rig::new(place, section, &[&table]);
    let stream = Feed::new()
        .begin(10, 100)
        .insert(&table, &["1", "k", "first"])
        .insert(&table, &["2", "k", "repeat"]);
    assert_eq!(rig.apply(stream).len(), 1);
    let letters = rig.letters.0.lock().unwrap().len();
    for seconds in [101, 109, 118] {
        for phase in [Phase::Check, Phase::Snapshot] {
            let mut batch = Feed::new()
                .begin(20, seconds)
                .read(&table, &["1", "k", "first"])
                .read(&table, &["2", "k", "repeat"])
                .read(&table, &["3", "m", "never seen"])
                .delete(&table, KEY, &["4", NULL, NULL])
                .finish();
            (batch.phase, batch.check) = (phase, Some(7));
            let expected = [
                "read public.payments id=1 idempotency_key=k state=first",
                "read public.payments id=3 idempotency_key=m state=never seen",
                "delete public.payments <- id=4",
            ];
            assert_eq!(lines(&rig.apply_batch(batch)), expected);
        }
    }
    assert_eq!(rig.letters.0.lock().unwrap().len(), letters);
    assert_eq!(rig.dedupe.duplicates(), 1);
    let again = Feed::new()
        .begin(30, 119)
        .insert(&table, &["5", "k", "after the window"])
        .insert(&table, &["6", "m", "the first"]);
    assert_eq!(rig.apply(again).len(), 2);
}

macro_rules! on_both_stores {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            use super::Place;
            $(#[test] fn $name() { super::$name(&Place::embedded()); })*
        }

        mod redis {
            use super::Place;
            $(#[test] fn $name() {
                lockstep_kit::require!(lockstep_kit::Component::Redis);
                super::$name(&Place::redis());
            })*
        }
    };
}

on_both_stores! {
    a_repeat_and_its_later_changes_are_left_out,
    a_held_row_appears_when_it_loses_the_key_or_takes_a_free_one,
    a_key_set_by_an_update_counts_when_the_old_row_is_known,
    without_the_old_row_an_update_is_never_a_repeat,
    the_owner_keeps_its_key_when_its_primary_key_changes,
    the_window_is_commit_time,
    the_window_may_be_a_count,
    tables_and_sources_are_apart_unless_told_otherwise,
    keys_of_several_columns,
    tag_and_dead_letter,
    an_initial_copy_in_another_order_is_judged_the_same,
    a_table_without_a_primary_key,
    truncate_clears_the_rows_and_not_the_keys,
    tables_without_the_key_pass_and_cost_nothing,
    a_killed_process_remembers,
    a_late_first_occurrence,
    a_key_is_used_again_after_the_window,
    what_a_lost_log_claimed_is_free,
    a_comparison_changes_nothing,
}
