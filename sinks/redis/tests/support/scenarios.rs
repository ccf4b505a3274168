//! What must hold on a single server and in a cluster alike.

use lockstep_core::ErrorKind;
use lockstep_core::position::{Lsn, Position};
use lockstep_core::sink::{Held, HeldVersion};

use super::*;

/// Insert, update, delete, key change, NULLs, as JSON.
pub async fn json_rows(lab: Lab) {
    let (mut sink, orders) = (lab.open().await, lab.orders());
    let batch = lab
        .make()
        .commit(100)
        .insert(&orders, &[T("1"), T("one"), Null, T("1.10")])
        .insert(&orders, &[T("2"), T("two"), T("d2"), Null])
        .insert(&orders, &[T("3"), T("three"), T("d3"), T("3")])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (3, 0));
    assert_eq!(
        lab.row("1").await.as_deref(),
        Some(r#"{"id":1,"name":"one","doc":null,"price":"1.10"}"#)
    );
    assert_eq!(lab.ttl(&lab.key("1")).await, -1);
    assert_eq!(lab.ttl(&lab.version_key("1")).await, -1);

    let batch = lab
        .make()
        .commit(200)
        .update(&orders, &[T("1"), T("uno"), T("d1"), T("1.20")])
        .delete(&orders, "2")
        .rekey(&orders, "3", &[T("4"), T("three"), T("d3"), T("3")])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (4, 0));
    assert_eq!(
        lab.row("1").await.as_deref(),
        Some(r#"{"id":1,"name":"uno","doc":"d1","price":"1.20"}"#)
    );
    assert_eq!(lab.row("2").await, None);
    assert_eq!(lab.row("3").await, None);
    assert_eq!(
        lab.row("4").await.as_deref(),
        Some(r#"{"id":4,"name":"three","doc":"d3","price":"3"}"#)
    );
    let tombstone = lab.ttl(&lab.version_key("2")).await;
    assert!(
        (86_000_000..=86_400_000).contains(&tombstone),
        "{tombstone}"
    );
    sink.close().await.expect("closes");
}

/// The same as hashes: NULL is no field, and fields of columns that are gone vanish with a whole write.
pub async fn hash_rows(lab: Lab) {
    let lab = lab.with(serde_json::json!({ "value": "hash" }));
    let (mut sink, orders) = (lab.open().await, lab.orders());
    let batch = lab
        .make()
        .commit(100)
        .insert(&orders, &[T("1"), T("one"), T("d1"), T("1.10")])
        .insert(&orders, &[T("2"), T("two"), T("d2"), T("2")])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (2, 0));
    assert_eq!(
        lab.fields("1").await,
        ["doc=d1", "id=1", "name=one", "price=1.10"]
    );

    // The unchanged column stays, NULL goes away.
    let batch = lab
        .make()
        .commit(200)
        .update(&orders, &[T("1"), Null, Same, T("9")])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
    assert_eq!(lab.fields("1").await, ["doc=d1", "id=1", "price=9"]);

    // A key change takes the unchanged column along.
    let batch = lab
        .make()
        .commit(300)
        .rekey(&orders, "1", &[T("5"), T("five"), Same, Null])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (2, 0));
    assert!(lab.fields("1").await.is_empty());
    assert_eq!(lab.fields("5").await, ["doc=d1", "id=5", "name=five"]);

    // `name` was dropped from the table.
    let narrow = table("shop", "orders", &[("id", 20, "int8"), ("doc", 25, "text")]);
    let batch = lab
        .make()
        .commit(390)
        .update(&narrow, &[T("2"), Same])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
    assert_eq!(lab.fields("2").await, ["doc=d2", "id=2"], "merged");
    let batch = lab
        .make()
        .commit(400)
        .update(&narrow, &[T("2"), T("new")])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
    assert_eq!(lab.fields("2").await, ["doc=new", "id=2"]);

    // `doc` was renamed, and nobody has its value under the new name.
    let renamed = table(
        "shop",
        "orders",
        &[("id", 20, "int8"), ("text", 25, "text")],
    );
    let batch = lab.make().commit(500).update(&renamed, &[T("2"), Same]);
    let delivered = deliver(&mut sink, batch.stream()).await.expect("delivered");
    assert_eq!((delivered.written, delivered.incomplete), (1, 1));
    assert_eq!(lab.fields("2").await, ["id=2"]);
}

/// Late writes are refused, equal ones accepted, deleted rows stay away.
pub async fn versions(lab: Lab) {
    let (mut sink, orders) = (lab.open().await, lab.orders());
    let put = |commit: u64, name: &'static str| {
        lab.make()
            .commit(commit)
            .update(&orders, &[T("1"), T(name), Null, Null])
            .stream()
    };
    // Doubles cannot tell these LSNs apart.
    let big = 9_007_199_254_740_993;
    assert_eq!(counts(&mut sink, put(big, "new")).await, (1, 0));
    assert_eq!(counts(&mut sink, put(big - 1, "old")).await, (0, 1));
    assert_eq!(
        lab.row("1").await.as_deref(),
        Some(r#"{"id":1,"name":"new","doc":null,"price":null}"#)
    );
    assert_eq!(counts(&mut sink, put(big, "same")).await, (1, 0));
    assert_eq!(
        lab.row("1").await.as_deref(),
        Some(r#"{"id":1,"name":"same","doc":null,"price":null}"#)
    );

    // A tombstone refuses what is older and takes what is newer.
    let delete = |commit: u64| lab.make().commit(commit).delete(&orders, "1").stream();
    assert_eq!(counts(&mut sink, delete(big - 1)).await, (0, 1));
    assert!(lab.row("1").await.is_some());
    assert_eq!(counts(&mut sink, delete(big + 1)).await, (1, 0));
    assert_eq!(lab.row("1").await, None);
    assert_eq!(counts(&mut sink, put(big, "risen")).await, (0, 1));
    assert_eq!(lab.row("1").await, None);
    assert_eq!(counts(&mut sink, put(big + 2, "reborn")).await, (1, 0));
    assert!(lab.row("1").await.is_some());
    assert_eq!(lab.ttl(&lab.version_key("1")).await, -1);

    // Within a transaction the ordinal decides.
    let later = lab
        .make()
        .commit_from(big + 3, 7)
        .update(&orders, &[T("1"), T("eighth"), Null, Null])
        .stream();
    let earlier = lab
        .make()
        .commit_from(big + 3, 6)
        .update(&orders, &[T("1"), T("seventh"), Null, Null])
        .stream();
    assert_eq!(counts(&mut sink, later).await, (1, 0));
    assert_eq!(counts(&mut sink, earlier).await, (0, 1));
}

/// Another attempt at an initial copy overwrites the first; what streams from the copy's LSN wins over both.
pub async fn copies(lab: Lab) {
    let (mut sink, orders) = (lab.open().await, lab.orders());
    let copy = |before: u64, name: &'static str| {
        lab.make()
            .commit_from(500, before)
            .read(&orders, &[T("1"), T(name), Null, Null])
            .snapshot()
    };
    assert_eq!(counts(&mut sink, copy(40, "first")).await, (1, 0));
    assert_eq!(counts(&mut sink, copy(3, "second")).await, (1, 0));
    assert_eq!(
        sink.resume(&lab.source)
            .await
            .expect("asked")
            .map(|held| held.upto()),
        None,
        "a copy is no progress of the stream"
    );
    let batch = lab
        .make()
        .commit(500)
        .update(&orders, &[T("1"), T("streamed"), Null, Null])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
    assert_eq!(counts(&mut sink, copy(60, "third")).await, (0, 1));
    assert_eq!(
        lab.row("1").await.as_deref(),
        Some(r#"{"id":1,"name":"streamed","doc":null,"price":null}"#)
    );
}

/// Unchanged columns keep the text that is held, in column order, also over a key change in the same batch.
pub async fn unchanged_columns(lab: Lab) {
    let (mut sink, orders) = (lab.open().await, lab.orders());
    let held = format!(
        r#"{{"id":1,"name":"one","doc":{},"price":"12345678901234567890.10"}}"#,
        "12345678901234567890.123456789"
    );
    let batch = lab
        .make()
        .commit(100)
        .insert(&orders, &[T("1"), T("one"), T("big"), T("1")])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
    // Numbers as no machine type holds them: their text must survive.
    lab.ask(&["SET", &lab.key("1"), &held]).await;
    let batch = lab
        .make()
        .commit(200)
        .update(&orders, &[T("1"), T("uno"), Same, Same])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
    let spliced = held.replace("one", "uno");
    assert_eq!(lab.row("1").await.as_deref(), Some(spliced.as_str()));

    // Two key changes in two transactions of one batch.
    let batch = lab
        .make()
        .commit(300)
        .rekey(&orders, "1", &[T("2"), T("two"), Same, T("2")])
        .commit(301)
        .rekey(&orders, "2", &[T("3"), T("three"), Same, T("3")])
        .stream();
    deliver(&mut sink, batch).await.expect("delivered");
    assert_eq!(
        lab.row("3").await.as_deref(),
        Some(r#"{"id":3,"name":"three","doc":12345678901234567890.123456789,"price":"3"}"#)
    );
    assert_eq!((lab.row("1").await, lab.row("2").await), (None, None));

    // Nobody has the value: the column is left out, never NULL.
    let batch = lab
        .make()
        .commit(400)
        .update(&orders, &[T("9"), T("nine"), Same, T("9")])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
    assert_eq!(
        lab.row("9").await.as_deref(),
        Some(r#"{"id":9,"name":"nine","price":"9"}"#)
    );

    // A replay of the older update must not take the row back.
    let batch = lab
        .make()
        .commit(200)
        .update(&orders, &[T("3"), T("old"), Same, T("0")])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (0, 1));
}

/// TRUNCATE empties its table and no other, and what is older cannot come back, not even after a restart.
pub async fn truncation(lab: Lab) {
    let (mut sink, orders) = (lab.open().await, lab.orders());
    let other = table(
        "shop",
        "orders_archive",
        &[("id", 20, "int8"), ("name", 25, "text")],
    );
    let mut maker = lab.make().commit(100).insert(&other, &[T("1"), T("kept")]);
    let ids: Vec<String> = (1..=2500).map(|id: u32| id.to_string()).collect();
    for id in &ids {
        maker = maker.insert(&orders, &[T(id), T("gone"), Null, Null]);
    }
    assert_eq!(counts(&mut sink, maker.stream()).await, (2501, 0));
    let batch = lab
        .make()
        .commit(200)
        .insert(&orders, &[T("9999"), T("x"), Null, Null])
        .truncate(&orders)
        .insert(&orders, &[T("7"), T("after"), Null, Null])
        .stream();
    // In a cluster the first row is not written at all. On a single server what is there is what the position says, and so it is
    // written, and removed with the others.
    let written = if lab.config.cluster { 2501 } else { 2503 };
    assert_eq!(counts(&mut sink, batch).await, (written, 0));
    let mut inspect = lab.inspect().await;
    assert_eq!(inspect.count(&orders).await.expect("counted"), 1);
    assert_eq!(inspect.count(&other).await.expect("counted"), 1);
    assert_eq!(
        lab.row("7").await.as_deref(),
        Some(r#"{"id":7,"name":"after","doc":null,"price":null}"#)
    );
    assert_eq!(
        lab.get(&lab.version_key("8")).await,
        None,
        "versions go with their rows"
    );

    let late = || {
        lab.make()
            .commit(150)
            .insert(&orders, &[T("8"), T("late"), Null, Null])
            .stream()
    };
    assert_eq!(counts(&mut sink, late()).await, (0, 1));
    sink.close().await.expect("closes");
    let mut sink = lab.open().await;
    assert_eq!(counts(&mut sink, late()).await, (0, 1));
    // The TRUNCATE itself again: the row after it stays.
    let batch = lab.make().commit_from(200, 1).truncate(&orders).stream();
    deliver(&mut sink, batch).await.expect("delivered");
    assert!(lab.row("7").await.is_some());
    let batch = lab
        .make()
        .commit(250)
        .insert(&orders, &[T("8"), T("new"), Null, Null])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
}

/// A TTL is on the row and on its version, for both formats.
pub async fn ttl(lab: Lab) {
    for (format, id) in [("json", "1"), ("hash", "2")] {
        let lab =
            lab.with(serde_json::json!({ "ttl": "1h", "value": format, "tombstone_ttl": "2h" }));
        let (mut sink, orders) = (lab.open().await, lab.orders());
        let batch = lab
            .make()
            .commit(100)
            .insert(&orders, &[T(id), T("one"), T("d"), Null])
            .stream();
        let batch_again = lab
            .make()
            .commit(101)
            .update(&orders, &[T(id), T("uno"), Same, Null])
            .stream();
        assert_eq!(counts(&mut sink, batch).await, (1, 0));
        for _ in 0..2 {
            for key in [lab.key(id), lab.version_key(id)] {
                let left = lab.ttl(&key).await;
                assert!((3_500_000..=3_600_000).contains(&left), "{key}: {left}");
            }
            deliver(&mut sink, Arc::clone(&batch_again))
                .await
                .expect("delivered");
        }
        let batch = lab.make().commit(200).delete(&orders, id).stream();
        assert_eq!(counts(&mut sink, batch).await, (1, 0));
        let left = lab.ttl(&lab.version_key(id)).await;
        assert!((7_100_000..=7_200_000).contains(&left), "{left}");
    }
}

/// What is reported is what a new sink resumes from, by identity.
pub async fn progress(lab: Lab) {
    let (mut sink, orders) = (lab.open().await, lab.orders());
    assert_eq!(
        sink.resume(&lab.source)
            .await
            .expect("asked")
            .map(|held| held.upto()),
        None
    );
    let mut durables = Vec::new();
    for commit in 1..=50_u64 {
        let id = (commit % 7).to_string();
        let name = commit.to_string();
        let batch = lab
            .make()
            .commit(commit)
            .update(&orders, &[T(&id), T(&name), Null, Null])
            .update(&orders, &[T("0"), T(&name), Null, Null])
            .stream();
        durables.push(sink.write(batch).await.expect("taken"));
    }
    // One that only moves the position.
    durables.push(
        sink.write(Arc::new(Batch::progress(Arc::clone(&lab.source), Lsn(60))))
            .await
            .expect("taken"),
    );
    for durable in durables {
        tokio::time::timeout(PATIENCE, durable)
            .await
            .expect("in time")
            .expect("durable");
    }
    sink.flush().await.expect("flushes");
    sink.close().await.expect("closes");
    let mut sink = lab.open().await;
    let reached = Position {
        commit: Lsn(50),
        ordinal: 2,
    };
    assert_eq!(
        sink.resume(&lab.source)
            .await
            .expect("asked")
            .map(|held| held.upto()),
        Some(reached)
    );
    assert_eq!(
        sink.resume(&source("shop", "another"))
            .await
            .expect("asked")
            .map(|held| held.upto()),
        None
    );
    assert_eq!(
        lab.row("0").await.as_deref(),
        Some(r#"{"id":0,"name":"50","doc":null,"price":null}"#)
    );
    assert_eq!(
        lab.row("1").await.as_deref(),
        Some(r#"{"id":1,"name":"50","doc":null,"price":null}"#)
    );
    assert_eq!(
        lab.row("2").await.as_deref(),
        Some(r#"{"id":2,"name":"44","doc":null,"price":null}"#)
    );
}

/// A restored server issues LSNs again: its lower ones win over the higher ones of its former self.
pub async fn new_identity(lab: Lab) {
    let orders = lab.orders();
    let mut sink = lab.open().await;
    let batch = lab
        .make()
        .commit(1_000_000)
        .insert(&orders, &[T("1"), T("former"), Null, Null])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
    let mut identity = lab.source.identity.clone();
    identity.timeline += 1;
    let restored = Arc::new(SourceInfo {
        name: "shop".into(),
        identity,
    });
    let batch = Maker::new(&restored)
        .commit(10)
        .insert(&orders, &[T("1"), T("restored"), Null, Null])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
    let batch = lab
        .make()
        .commit(1_000_001)
        .insert(&orders, &[T("1"), T("zombie"), Null, Null])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (0, 1));
    assert_eq!(
        lab.row("1").await.as_deref(),
        Some(r#"{"id":1,"name":"restored","doc":null,"price":null}"#)
    );
}

/// Reading back finds what differs.
pub async fn inspection(lab: Lab) {
    for format in ["json", "hash"] {
        let lab = lab.with(serde_json::json!({ "value": format }));
        let table = table(
            "shop",
            format,
            &[
                ("id", 20, "int8"),
                ("name", 25, "text"),
                ("price", 1700, "numeric"),
            ],
        );
        let mut sink = lab.open().await;
        let mut maker = lab.make().commit(100);
        let ids: Vec<String> = (1..=1200).map(|id: u32| id.to_string()).collect();
        for id in &ids {
            maker = maker.insert(&table, &[T(id), T("a {b} \"c\""), Null]);
        }
        deliver(&mut sink, maker.stream()).await.expect("delivered");
        let batch = lab
            .make()
            .commit(200)
            .delete(&table, "3")
            .update(&table, &[T("4"), T("x"), T("1.0")])
            .stream();
        deliver(&mut sink, batch).await.expect("delivered");

        let mut maker = lab.make().commit(300);
        for id in &ids {
            maker = maker.read(&table, &[T(id), T("a {b} \"c\""), Null]);
        }
        let mut inspect = lab.inspect().await;
        let answers = inspect.compare(&maker.snapshot()).await.expect("compared");
        assert_eq!(answers.len(), ids.len());
        for (id, answer) in ids.iter().zip(&answers) {
            let key = format!("{}:shop:{format}:{id}", lab.prefix);
            match (id.as_str(), answer) {
                ("3", Held::Missing { key: shown }) => assert_eq!(*shown, key),
                (
                    "4",
                    Held::Different {
                        key: shown,
                        expected,
                        actual,
                        version,
                    },
                ) => {
                    assert_eq!(*shown, key);
                    assert_eq!(*version, HeldVersion::At(Lsn(200)));
                    assert!(
                        expected.contains("a {b}") && actual.contains("1.0"),
                        "{expected} {actual}"
                    );
                }
                ("3" | "4", other) => panic!("{id}: {other:?}"),
                (_, other) => assert_eq!(*other, Held::Same, "{id}"),
            }
        }
        assert_eq!(inspect.count(&table).await.expect("counted"), 1199);

        // Rows that must not be there.
        let gone = lab
            .make()
            .commit(400)
            .delete(&table, "3")
            .delete(&table, "4");
        let answers = inspect.compare(&gone.stream()).await.expect("compared");
        assert_eq!(answers[0], Held::Same);
        assert!(matches!(&answers[1], Held::Extra { key, .. } if key.ends_with(":4")));
        // What there is, and what was put there by somebody else.
        let odd = format!("{}:shop:{format}:a:b", lab.prefix);
        lab.ask(&["SET", &odd, "x"]).await;
        let mut listing = inspect.list(&table).await.expect("listed").expect("can");
        let (mut keys, mut foreign) = (std::collections::BTreeSet::new(), Vec::new());
        while let Some(page) = listing.next().await.expect("a page") {
            keys.extend(page.keys.into_iter().flatten());
            foreign.extend(page.foreign);
        }
        foreign.dedup();
        assert_eq!(
            (keys.len(), keys.contains("3"), keys.contains("4")),
            (1199, false, true)
        );
        assert_eq!(foreign, [odd]);

        // With a time to live, one that is not there may have gone by itself.
        let lab = lab.with(serde_json::json!({ "value": format, "ttl": "7d" }));
        let row = lab.make().commit(500).read(&table, &[T("3"), T("a"), Null]);
        let mut inspect = lab.inspect().await;
        let answers = inspect.compare(&row.snapshot()).await.expect("compared");
        assert_eq!(answers, [Held::Same]);
    }
}

/// Keys with everything in them that could be special.
pub async fn odd_keys(lab: Lab) {
    let table = table(
        "shop",
        "odd[1]*?",
        &[("id", 25, "text"), ("name", 25, "text")],
    );
    let mut sink = lab.open().await;
    let ids = [
        "a:b",
        "{tag}",
        "}x{",
        "{}",
        "100%",
        "*",
        "é",
        "line\nbreak",
        " ",
    ];
    let mut maker = lab.make().commit(100);
    for id in ids {
        maker = maker.insert(&table, &[T(id), T("x")]);
    }
    assert_eq!(
        counts(&mut sink, maker.stream()).await,
        (ids.len() as u64, 0)
    );
    let mut maker = lab.make().commit(100);
    for id in ids {
        maker = maker.read(&table, &[T(id), T("x")]);
    }
    let mut inspect = lab.inspect().await;
    let answers = inspect.compare(&maker.snapshot()).await.expect("compared");
    assert!(
        answers.iter().all(|answer| *answer == Held::Same),
        "{answers:?}"
    );
    assert_eq!(
        inspect.count(&table).await.expect("counted"),
        ids.len() as u64
    );
    let batch = lab.make().commit(200).truncate(&table).stream();
    assert_eq!(counts(&mut sink, batch).await, (ids.len() as u64, 0));
    assert_eq!(inspect.count(&table).await.expect("counted"), 0);
}

/// Whoever has an older token changes nothing, in whatever slot: no row, no deletion, no TRUNCATE, no position.
pub async fn fence(lab: Lab) {
    const ROWS: usize = 200;
    let table = orders("shop");
    let ids: Vec<String> = (0..ROWS).map(|id| id.to_string()).collect();
    let rows = |commit, name| {
        let maker = lab.make().commit(commit);
        let rows = ids.iter().fold(maker, |maker, id| {
            maker.insert(&table, &[T(id), T(name), Null, Null])
        });
        rows.stream()
    };
    let mut formers = Vec::new();
    for _ in 0..3 {
        formers.push(lab.open_by(5).await.expect("opens"));
    }
    // Of those with one token the last one that was opened writes.
    let last = formers.last_mut().expect("three");
    assert_eq!(counts(last, rows(100, "x")).await.0, 200);
    let progress = last.resume(&lab.source).await.expect("asked");
    let newer = lab.open_by(7).await.expect("opens");
    let batches = [
        rows(200, "y"),
        lab.make().commit(300).delete(&table, "7").stream(),
        lab.make().commit(400).truncate(&table).stream(),
    ];
    for (former, batch) in formers.iter_mut().zip(batches) {
        let durable = former.write(batch).await.expect("taken");
        let refused = durable.await.expect_err("a newer one has written");
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
        assert!(refused.to_string().contains("a newer lease"), "{refused}");
    }
    let refused = lab.open_by(6).await.err().expect("a newer one has written");
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    drop(newer);
    let mut newest = lab.open_by(7).await.expect("opens");
    assert_eq!(newest.resume(&lab.source).await.expect("asked"), progress);
    let maker = ids.iter().fold(lab.make().commit(100), |maker, id| {
        maker.read(&table, &[T(id), T("x"), Null, Null])
    });
    let mut inspect = lab.inspect().await;
    let answers = inspect.compare(&maker.snapshot()).await.expect("compared");
    assert!(
        answers.iter().all(|answer| *answer == Held::Same),
        "{answers:?}"
    );
    assert_eq!(inspect.count(&table).await.expect("counted"), 200);
    assert_eq!(counts(&mut newest, rows(500, "z")).await.0, 200);
}

/// Branches of two sources: also what they keep of rows that were there, and of rows that they have brought themselves.
pub async fn branches(lab: Lab) {
    for value in ["json", "hash"] {
        let lab = lab.with(serde_json::json!({ "value": value }));
        let (mut sink, orders) = (lab.open().await, lab.orders());
        let stock = source("stock", &lab.prefix);
        let shelf = super::orders("stock");
        let base = if value == "json" { 0 } else { 1000 };
        let first = lab
            .make()
            .commit(base + 100)
            .insert(&orders, &[T("1"), T("one"), T("big"), Null])
            .insert(&orders, &[T("9"), T("nine"), T("large"), Null])
            .stream();
        assert_eq!(counts(&mut sink, first).await, (2, 0));
        // One branch is cut in two, and its second part keeps what the first has brought.
        let parts = vec![
            lab.make()
                .commit(base + 200)
                .update(&orders, &[T("1"), T("uno"), Same, T("1.5")])
                .insert(&orders, &[T("2"), T("two"), T("long"), Null])
                .stream(),
            lab.make()
                .commit_from(base + 200, 2)
                .update(&orders, &[T("2"), T("due"), Same, Null])
                .rekey(&orders, "9", &[T("3"), T("three"), Same, Null])
                .stream(),
            Maker::new(&stock)
                .commit(base + 200)
                .insert(&shelf, &[T("1"), T("shelf"), Null, Null])
                .delete(&shelf, "7")
                .stream(),
        ];
        let durables = sink.write_together(parts).await.expect("taken");
        assert_eq!(durables.len(), 3);
        let mut delivered = Delivered::default();
        for durable in durables {
            let done = tokio::time::timeout(PATIENCE, durable).await;
            delivered += done.expect("in time").expect("durable");
        }
        // In a cluster the parts are folded by themselves.
        let written = if lab.config.cluster { 7 } else { 6 };
        assert_eq!((delivered.written, delivered.incomplete), (written, 0));
        let shelf_key = format!("{}:stock:orders:1", lab.prefix);
        if value == "json" {
            let row = |id: &str, name: &str, doc: &str, price: &str| {
                Some(format!(
                    r#"{{"id":{id},"name":"{name}","doc":"{doc}","price":{price}}}"#
                ))
            };
            assert_eq!(lab.row("1").await, row("1", "uno", "big", "\"1.5\""));
            assert_eq!(lab.row("2").await, row("2", "due", "long", "null"));
            assert_eq!(lab.row("3").await, row("3", "three", "large", "null"));
        } else {
            let two = ["doc=long", "id=2", "name=due"];
            assert_eq!(
                lab.fields("1").await,
                ["doc=big", "id=1", "name=uno", "price=1.5"]
            );
            assert_eq!(lab.fields("2").await, two);
            assert_eq!(lab.fields("3").await, ["doc=large", "id=3", "name=three"]);
        }
        let there = |reply| matches!(reply, Value::Int(1));
        assert!(there(lab.ask(&["EXISTS", &shelf_key]).await));
        assert!(!there(lab.ask(&["EXISTS", &lab.key("9")]).await));
        // What cannot be one step is written all the same.
        let parts = vec![
            lab.make()
                .commit(base + 300)
                .truncate(&orders)
                .insert(&orders, &[T("4"), T("four"), Null, Null])
                .stream(),
            Maker::new(&stock)
                .commit(base + 300)
                .delete(&shelf, "1")
                .stream(),
        ];
        for durable in sink.write_together(parts).await.expect("taken") {
            let done = tokio::time::timeout(PATIENCE, durable).await;
            done.expect("in time").expect("durable");
        }
        for (key, expected) in [
            (lab.key("1"), false),
            (lab.key("4"), true),
            (shelf_key, false),
        ] {
            assert_eq!(there(lab.ask(&["EXISTS", &key]).await), expected, "{key}");
        }
        for (source, commit) in [(&lab.source, base + 300), (&stock, base + 300)] {
            let held = sink.resume(source).await.expect("asked").expect("kept");
            assert_eq!(held.upto().commit, Lsn(commit));
        }
        sink.close().await.expect("closes");
        lab.ask(&["DEL", &lab.key("4"), &lab.version_key("4")])
            .await;
    }
}
