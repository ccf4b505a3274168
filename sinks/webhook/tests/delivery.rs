//! What becomes of requests that are not answered with 2xx at once.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockstep_core::ErrorKind;
use lockstep_core::error::Policy;
use lockstep_core::refusal::reason;
use lockstep_core::sink::SinkFactory;
use lockstep_core::token::Token;
use lockstep_kit::{Random, wait_for};
use lockstep_sink_webhook::Webhook;
use serde_json::json;
use support::*;
use tokio::sync::Semaphore;

#[tokio::test]
async fn what_may_be_taken_later_is_tried_again_until_it_is() {
    for status in [408, 425, 429, 500, 502, 503, 504] {
        let receiver = Receiver::start(move |asked| match asked.before {
            0 => Reply::status(status).body("not now"),
            1 => Reply::status(204).lost(),
            _ => Reply::status(200),
        })
        .await;
        let mut open = open(&receiver.url, json!({})).await;
        let delivered = put_ok(&mut open.sink, inserts(10, &["1"])).await;
        assert_eq!(delivered.written, 1);
        let asked = receiver.asked();
        let keys: Vec<&str> = asked
            .iter()
            .map(|asked| asked.header("idempotency-key"))
            .collect();
        assert_eq!(keys.len(), 3, "{status}");
        assert!(keys.iter().all(|key| key == &keys[0]), "{keys:?}");
        assert_eq!(receiver.rows(), ["1"], "{status}");
        assert_eq!(open.trouble.get(), None, "{status}");
    }
}

#[tokio::test]
async fn what_a_request_waits_for_is_told_until_it_has_gone() {
    let is_up = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&is_up);
    let receiver = Receiver::start(move |_| match seen.load(Ordering::Relaxed) {
        0 => Reply::status(503).body("the disk is full"),
        _ => Reply::status(200),
    })
    .await;
    let url = format!("{}/{{table}}?key=hunter2", receiver.url);
    let mut open = open(&url, json!({})).await;
    let durable = open.sink.write(inserts(10, &["1"])).await.expect("taken");
    let told = wait_for(PATIENCE, "trouble", async || open.trouble.get()).await;
    let shown = format!(
        "POST {}/items was answered with 503: the disk is full",
        receiver.url
    );
    assert!(told.contains(&shown), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
    is_up.store(1, Ordering::Relaxed);
    durable.await.expect("durable");
    assert_eq!(open.trouble.get(), None);
}

/// Nobody else is asked, either, before the time has come that the receiver named.
#[tokio::test]
async fn retry_after_is_honoured_by_all() {
    let times: Arc<Mutex<Vec<(String, Instant)>>> = Arc::default();
    let seen = Arc::clone(&times);
    let receiver = Receiver::start(move |asked| {
        let mut seen = seen.lock().expect("not poisoned");
        seen.push((asked.row(), Instant::now()));
        match (&*asked.row(), asked.before) {
            ("1", 0) => Reply::status(429).header("retry-after", "2"),
            // It was under way before that was said, and ends after it.
            ("2", 0) => Reply::status(200).later(Duration::from_millis(300)),
            _ => Reply::status(200),
        }
    })
    .await;
    let mut open = open(&receiver.url, json!({"concurrency": 2})).await;
    put_ok(&mut open.sink, inserts(10, &["1", "2", "3"])).await;
    let times = times.lock().expect("not poisoned");
    assert_eq!(times.len(), 4, "{times:?}");
    for (row, time) in &times[2..] {
        let pause = *time - times[0].1;
        assert!(
            pause >= Duration::from_secs(2),
            "{row} came after {pause:?}"
        );
    }
}

#[tokio::test]
async fn a_receiver_that_goes_and_comes_back_has_everything() {
    let mut receiver = Receiver::willing().await;
    let mut open = open(&receiver.url, json!({"concurrency": 4})).await;
    put_ok(&mut open.sink, inserts(10, &["1"])).await;
    receiver.kill().await;
    let ids: Vec<String> = (2..40).map(|id| id.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let durable = open.sink.write(inserts(20, &ids)).await.expect("taken");
    let told = wait_for(PATIENCE, "trouble", async || open.trouble.get()).await;
    assert!(told.contains("cannot connect"), "{told}");
    receiver.restart().await;
    durable.await.expect("durable");
    assert_eq!(receiver.rows().len(), 39);
    assert_eq!(open.trouble.get(), None);
}

/// A receiver that never answers holds nothing up but itself: the sink can be dropped, and what waits is told.
#[tokio::test]
async fn a_receiver_that_never_answers_is_asked_again_and_can_be_left() {
    let receiver =
        Receiver::start(|_| Reply::status(200).after(std::future::pending::<()>())).await;
    let mut open = open(&receiver.url, json!({"request_timeout": "100ms"})).await;
    let durable = open.sink.write(inserts(10, &["1"])).await.expect("taken");
    wait_for(PATIENCE, "a second try", async || {
        receiver.asked().len() > 1
    })
    .await;
    let told = open.trouble.get().expect("trouble");
    assert!(told.contains("was not answered in time"), "{told}");
    drop(open.sink);
    let error = durable.await.expect_err("not durable");
    assert_eq!(error.kind(), ErrorKind::Abandoned);
    wait_for(PATIENCE, "no trouble", async || {
        open.trouble.get().is_none()
    })
    .await;
}

#[tokio::test]
async fn rows_that_are_refused_are_named_together_and_the_others_are_taken() {
    let refused = ["2", "5", "9"];
    for status in [400, 404, 410, 412, 413, 422] {
        let receiver = Receiver::start(move |asked| match refused.contains(&&*asked.row()) {
            true => Reply::status(status)
                .body("no such thing")
                .later(Duration::from_millis(20)),
            false => Reply::status(200),
        })
        .await;
        let mut open = open(&receiver.url, json!({"concurrency": 3})).await;
        let ids: Vec<String> = (1..=12).map(|id| id.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let error = put(&mut open.sink, inserts(10, &ids))
            .await
            .expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(!error.is_suspicion());
        let mut named: Vec<u64> = error
            .refusals()
            .iter()
            .map(|refusal| refusal.position.ordinal)
            .collect();
        named.sort_unstable();
        assert_eq!(named, [2, 5, 9], "{status}: {error}");
        let expected = match status {
            413 => reason::TOO_LARGE,
            _ => reason::REFUSED,
        };
        let first = &error.refusals()[0];
        assert_eq!(first.reason, expected);
        assert!(first.message.contains("no such thing"), "{}", first.message);
        assert_eq!(receiver.taken().len(), 9, "the others go on");
    }
}

/// What comes behind a refused change of a row is not sent before somebody has decided about that.
#[tokio::test]
async fn nothing_overtakes_a_refused_change_of_its_row() {
    let receiver =
        Receiver::start(
            |asked| match asked.records[0].value["row"]["status"] == "bad" {
                true => Reply::status(422).later(Duration::from_millis(20)),
                false => Reply::status(200),
            },
        )
        .await;
    let mut open = open(&receiver.url, json!({"concurrency": 8})).await;
    let items = items();
    let batch = Feed::new(&source("shop"))
        .begin(10)
        .insert(&items, &["1".into(), "bad".into()])
        .insert(&items, &["2".into(), "new".into()])
        .update(&items, &["1".into(), "good".into()])
        .finish();
    let error = put(&mut open.sink, batch).await.expect_err("refused");
    assert_eq!(error.refusals().len(), 1, "{error}");
    assert_eq!(receiver.rows(), ["2"]);
}

/// One that can never be taken does not wait for one whose receiver is away.
#[tokio::test]
async fn a_refusal_does_not_wait_for_what_is_tried_again() {
    let receiver = Receiver::start(|asked| match &*asked.row() {
        "1" => Reply::status(503).header("retry-after", "1000"),
        "2" => Reply::status(422).later(Duration::from_millis(50)),
        _ => Reply::status(200),
    })
    .await;
    let mut open = open(&receiver.url, json!({"concurrency": 2})).await;
    let error = put(&mut open.sink, inserts(10, &["1", "2"]))
        .await
        .expect_err("refused");
    assert_eq!(error.refusals().len(), 1, "{error}");
    assert_eq!(error.refusals()[0].position.ordinal, 2);
}

/// An array is answered as a whole: each of its records may be the one.
#[tokio::test]
async fn of_a_refused_array_each_record_is_a_suspect() {
    let receiver = Receiver::start(|asked| {
        let is_bad = asked.records.iter().any(|record| record.row() == "2");
        Reply::status(if is_bad { 422 } else { 200 })
    })
    .await;
    let mut open = open(&receiver.url, json!({"batch": {}})).await;
    let error = put(&mut open.sink, inserts(10, &["1", "2", "3"]))
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.is_suspicion(), "{error}");
    assert_eq!(error.refusals().len(), 3);
    let mut open = self::open(&receiver.url, json!({"batch": {}})).await;
    let error = put(&mut open.sink, inserts(20, &["2"]))
        .await
        .expect_err("refused");
    assert!(
        !error.is_suspicion() && error.refusals().len() == 1,
        "{error}"
    );
}

#[tokio::test]
async fn what_only_a_person_can_mend_stops_with_a_remedy() {
    for (reply, kind, told) in [
        (401, ErrorKind::Authentication, "`bearer`"),
        (403, ErrorKind::Permission, "allow"),
        (308, ErrorKind::Setup, "leads to https://elsewhere/x"),
    ] {
        let receiver = Receiver::start(move |_| {
            let reply =
                Reply::status(reply).header("location", "https://u:hunter2@elsewhere/x?hunter2");
            reply.body("your token hunter2 is of no use")
        })
        .await;
        let mut open = open(&receiver.url, json!({"bearer": "hunter2"})).await;
        let error = put(&mut open.sink, inserts(10, &["1"]))
            .await
            .expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.kind().policy(), Policy::Stop);
        assert!(error.refusals().is_empty(), "{error}");
        let text = error.to_string();
        assert!(text.contains(told) && text.contains("Remedy"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(
            receiver.asked().len(),
            1,
            "nothing is followed or tried again"
        );
        // The sink has ended, and says so.
        let error = open.sink.flush().await.expect_err("ended");
        assert_eq!(error.kind(), ErrorKind::Abandoned);
    }
}

/// Order per key, under random delays, failures and lost answers: a later change of a row is not sent before the earlier one was
/// answered with 2xx.
async fn keys_stay_in_order(section: serde_json::Value) {
    const ROWS: u64 = 20;
    const CHANGES: u64 = 200;
    let mut random = Random::from_environment();
    let items = items();
    let mut batches = Vec::new();
    let mut expected: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut feed = Feed::new(&source("shop"));
    for number in 1..=CHANGES {
        let id = random.below(ROWS).to_string();
        expected.entry(id.clone()).or_default().push(number);
        feed.begin(number * 10)
            .update(&items, &[V::Text(&id), V::Text(&number.to_string())]);
        if random.below(5) == 0 {
            batches.push(feed.finish());
            feed = Feed::new(&source("shop"));
        }
    }
    batches.push(feed.finish());

    let dice = Mutex::new(random);
    // Of each row, how many of its changes were answered with 2xx; what was sent too early.
    let answered: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let early: Arc<Mutex<Vec<String>>> = Arc::default();
    let (ahead, seen) = (Arc::clone(&early), Arc::clone(&answered));
    let order = expected.clone();
    let receiver = Receiver::start(move |asked| {
        let (what, delay) = {
            let mut dice = dice.lock().expect("not poisoned");
            (dice.below(25), dice.millis(0, 8))
        };
        let mut places: HashMap<String, usize> = HashMap::new();
        let answered = Arc::clone(&seen);
        for record in &asked.records {
            let number: u64 = record.value["row"]["status"]
                .as_str()
                .expect("a text")
                .parse()
                .expect("a number");
            let row = record.row();
            let place = order[&row]
                .iter()
                .position(|one| *one == number)
                .expect("one of them");
            let before = answered
                .lock()
                .expect("not poisoned")
                .get(&row)
                .copied()
                .unwrap_or_default();
            let in_this = places.get(&row).copied().unwrap_or(before);
            if place > in_this {
                ahead
                    .lock()
                    .expect("not poisoned")
                    .push(format!("{number} of row {row}"));
            }
            places.insert(row, in_this.max(place + 1));
        }
        let (status, is_lost) = match what {
            0 => (503, false),
            1 => (429, false),
            2 => (500, true),
            3 => (200, true),
            _ => (200, false),
        };
        let done = async move {
            tokio::time::sleep(delay).await;
            if status == 200 && !is_lost {
                answered.lock().expect("not poisoned").extend(places);
            }
        };
        let reply = Reply::status(status).after(done);
        if is_lost { reply.lost() } else { reply }
    })
    .await;
    let mut open = open(&receiver.url, section).await;
    let mut waiting = Vec::new();
    for batch in batches {
        waiting.push(open.sink.write(batch).await.expect("taken"));
    }
    let mut written = 0;
    for durable in waiting {
        written += durable.await.expect("durable").written;
    }
    assert_eq!(written, CHANGES);
    assert_eq!(*early.lock().expect("not poisoned"), Vec::<String>::new());
    let (most_of_a_key, most) = receiver.most();
    assert_eq!(most_of_a_key, 1, "two requests of one key were under way");
    assert!(most > 2, "no two requests were under way at all");
    let mut taken: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for record in receiver.taken() {
        let number = record.value["row"]["status"].as_str().expect("a text");
        let number = number.parse().expect("a number");
        taken.entry(record.row()).or_default().push(number);
    }
    assert_eq!(taken, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_stay_in_order_with_eight_requests_at_a_time() {
    keys_stay_in_order(json!({"concurrency": 8})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_stay_in_order_with_eight_arrays_at_a_time() {
    keys_stay_in_order(json!({"concurrency": 8, "batch": {"records": 4}})).await;
}

/// A TRUNCATE waits for all before it, and all behind it wait for it.
#[tokio::test]
async fn a_truncate_stands_between_what_came_before_and_what_came_after() {
    for section in [
        json!({"concurrency": 8}),
        json!({"concurrency": 8, "batch": {"records": 2}}),
    ] {
        let receiver = Receiver::start(|asked| {
            let first = asked
                .records
                .first()
                .map(|record| record.value["op"] == "t");
            // Whoever does not wait would be taken before what is slow.
            Reply::status(200).later(Duration::from_millis(if first == Some(true) {
                60
            } else {
                20
            }))
        })
        .await;
        let mut open = open(&receiver.url, section).await;
        let items = items();
        let batch = Feed::new(&source("shop"))
            .begin(10)
            .insert(&items, &["1".into(), "old".into()])
            .insert(&items, &["2".into(), "old".into()])
            .insert(&items, &["3".into(), "old".into()])
            .truncate(&items)
            .insert(&items, &["4".into(), "new".into()])
            .insert(&items, &["5".into(), "new".into()])
            .finish();
        put_ok(&mut open.sink, batch).await;
        let mut rows = receiver.rows();
        assert_eq!(rows.len(), 6);
        rows[..3].sort();
        rows[4..].sort();
        assert_eq!(rows, ["1", "2", "3", "null", "4", "5"]);
    }
}

/// Arrays grow while a request is under way, and none waits for more when nothing is.
#[tokio::test]
async fn arrays_hold_what_came_meanwhile_up_to_their_limits() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let receiver = Receiver::start(move |_| {
        let gate = Arc::clone(&opened);
        Reply::status(200).after(async move {
            gate.acquire().await.expect("open").forget();
        })
    })
    .await;
    let mut open = open(&receiver.url, json!({"batch": {"records": 5}})).await;
    let first = open.sink.write(inserts(10, &["1"])).await.expect("taken");
    wait_for(PATIENCE, "the first request", async || {
        receiver.asked().len() == 1
    })
    .await;
    let mut waiting = vec![first];
    for id in 2..=8 {
        let batch = inserts(id * 10, &[&id.to_string()]);
        waiting.push(open.sink.write(batch).await.expect("taken"));
    }
    gate.add_permits(1000);
    for durable in waiting {
        durable.await.expect("durable");
    }
    let sizes: Vec<usize> = receiver
        .asked()
        .iter()
        .map(|asked| asked.records.len())
        .collect();
    assert_eq!(sizes, [1, 5, 2]);
    let large = "x".repeat(700);
    let items = items();
    let mut feed = Feed::new(&source("shop"));
    feed.begin(1000);
    for id in ["11", "12", "13"] {
        feed.insert(&items, &[V::Text(id), "new".into(), V::Text(&large)]);
    }
    let section = json!({"batch": {"bytes": 1500}});
    let mut open = self::open(&receiver.url, section).await;
    let before = receiver.asked().len();
    put_ok(&mut open.sink, feed.finish()).await;
    let asked = receiver.asked();
    let sizes: Vec<usize> = asked[before..]
        .iter()
        .map(|asked| asked.records.len())
        .collect();
    assert_eq!(
        sizes,
        [1, 1, 1],
        "two would be {} bytes",
        2 * asked[before].body.len()
    );
}

/// The receiver keeps no position: the state folder does, and without it the source's own is where it goes on.
#[tokio::test]
async fn the_position_is_in_the_state_folder_and_repeats_have_their_ids() {
    let receiver = Receiver::willing().await;
    let folder = tempfile::tempdir().expect("a folder");
    let source = source("shop");
    let config = config(&receiver.url, &json!({}));
    let open = async || {
        Webhook::open(&config, context(&source, folder.path()))
            .await
            .expect("opens")
    };
    let mut sink = open().await;
    put_ok(&mut sink, inserts(10, &["1"])).await;
    put_ok(&mut sink, inserts(20, &["2"])).await;
    sink.flush().await.expect("flushes");
    let file = folder.path().join("progress.json");
    let text = std::fs::read_to_string(&file).expect("a position");
    assert!(text.contains("shop/7000000000000000001/1/shop"), "{text}");
    // As a crash leaves it.
    drop(sink);
    let mut sink = open().await;
    let held = sink
        .resume(&source)
        .await
        .expect("resume")
        .expect("a position");
    assert_eq!(held.upto(), position(20, 1));
    drop(sink);
    std::fs::remove_file(&file).expect("removed");
    let mut sink = open().await;
    assert_eq!(sink.resume(&source).await.expect("resume"), None);
    put_ok(&mut sink, inserts(20, &["2"])).await;
    sink.close().await.expect("closes");
    assert_eq!(receiver.asked().len(), 3, "it was sent again");
    assert_eq!(receiver.rows(), ["1", "2"], "and known by its id");
}

/// While batches keep coming, the position is at most a second behind without anybody asking for it.
#[tokio::test]
async fn the_position_follows_while_batches_come() {
    let receiver = Receiver::willing().await;
    let mut open = open(&receiver.url, json!({})).await;
    put_ok(&mut open.sink, inserts(10, &["1"])).await;
    let file = open.folder.path().join("progress.json");
    wait_for(PATIENCE, "a position", async || file.exists()).await;
    put_ok(&mut open.sink, inserts(20, &["2"])).await;
    let mine = lsn(20).to_string();
    wait_for(PATIENCE, "the next one", async || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains(&mine))
    })
    .await;
}

#[tokio::test]
async fn a_second_lockstep_on_the_same_state_is_refused() {
    let receiver = Receiver::willing().await;
    let open = open(&receiver.url, json!({})).await;
    let config = config(&receiver.url, &json!({}));
    let second = Webhook::open(&config, context(&source("shop"), open.folder.path())).await;
    let error = second.err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
}

/// A receiver that refuses tokens lower than the greatest it has seen: what a frozen former holder still sends is refused, put
/// aside by nobody, and the newer one goes on.
#[tokio::test]
async fn a_receiver_can_refuse_who_has_an_older_token() {
    let greatest = AtomicUsize::new(0);
    let receiver = Receiver::start(move |asked| {
        let token: usize = asked.header("x-lockstep-token").parse().expect("a token");
        let before = greatest.fetch_max(token, Ordering::Relaxed);
        Reply::status(if token < before { 412 } else { 204 })
    })
    .await;
    let config = config(&receiver.url, &json!({}));
    let folders = [tempfile::tempdir(), tempfile::tempdir()].map(|made| made.expect("a folder"));
    let by = async |token: u64, at: usize| {
        let mut context = context(&source("shop"), folders[at].path());
        context.token = Some(Token(token));
        Webhook::open(&config, context).await.expect("opens")
    };
    let mut former = by(5, 0).await;
    put_ok(&mut former, inserts(10, &["1"])).await;
    let mut newer = by(7, 1).await;
    put_ok(&mut newer, inserts(20, &["2"])).await;
    let error = put(&mut former, inserts(30, &["3"]))
        .await
        .expect_err("older");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert_eq!(error.reason(), Some(reason::FENCED), "{error}");
    assert!(error.refusals().is_empty(), "nothing is put aside: {error}");
    put_ok(&mut newer, inserts(40, &["4"])).await;
    assert_eq!(receiver.rows(), ["1", "2", "4"]);
}
