//! Values: unchanged ones, ones nobody has, ones the index refuses, of every type; and what is read back.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::ErrorKind;
use lockstep_core::error::Policy;
use lockstep_core::schema::TypeKind;
use lockstep_core::sink::Held;
use serde_json::{Value, json};

use super::support::*;
use super::{Corner, orders, row};

on_each_server!(
    unchanged_values_stay,
    hot_rows_that_wait_are_written_together,
    a_value_that_nobody_has_is_an_error,
    a_refused_row_is_named_and_the_others_are_written,
    columns_that_appear_are_added,
    every_type_is_taken,
    comparison_and_count_see_what_is_there,
);

async fn hot_rows_that_wait_are_written_together(corner: Corner<'static>) {
    let source = source("shop");
    let mut sink = corner.sink(&[&docs()]).await;
    let hot = write_hot_rows(&mut sink, &source).await;
    let rows = corner.all("docs").await;
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let rows: BTreeMap<_, _> = rows
        .into_iter()
        .map(|(id, (_, row))| (id, (text(&row["status"]), text(&row["body"]))))
        .collect();
    assert_eq!(rows, hot.rows);
}

async fn unchanged_values_stay(corner: Corner<'static>) {
    let source = source("shop");
    let docs = table(
        "shop",
        "docs",
        1,
        &[
            ("id", "int4", INT4),
            ("status", "text", TEXT),
            ("body", "text", TEXT),
            ("data", "json", JSON),
        ],
    );
    let mut sink = corner.sink(&[&docs]).await;
    let long = "long ".repeat(2000);
    // Exact digits, spacing and a line break, as a `json` value may have them.
    let data = "{\"n\": 0.12345678901234567890123,\n \"m\": [1,  2]}";
    let whole = |id| [V::Text(id), "new".into(), V::Text(&long), V::Text(data)];
    let kept = |id, status| [V::Text(id), V::Text(status), V::Unchanged, V::Unchanged];
    let mut feed = Feed::new(&source);
    feed.begin(10);
    let ids: Vec<String> = (0..200).map(|id| id.to_string()).collect();
    for id in &ids {
        feed.insert(&docs, &whole(id));
    }
    let first = sink.write(feed.finish()).await.expect("taken");
    let mut feed = Feed::new(&source);
    feed.begin(20);
    for id in &ids {
        feed.update(&docs, &kept(id, "paid"));
    }
    let second = sink.write(feed.finish()).await.expect("taken");
    // Swaps by way of a free key, over values that only the index has.
    let moves = Feed::new(&source)
        .begin(30)
        .rekey(&docs, "1", &kept("1001", "moved"))
        .rekey(&docs, "2", &kept("1", "moved"))
        .rekey(&docs, "1001", &kept("2", "moved"))
        .rekey(&docs, "3", &kept("1003", "moved"))
        .finish();
    let third = sink.write(Arc::clone(&moves)).await.expect("taken");
    for durable in [first, second, third] {
        durable.await.expect("durable");
    }
    let check = async || {
        let rows = corner.all("docs").await;
        assert_eq!(rows.len(), 200);
        for (id, (_, row)) in &rows {
            assert_eq!(row["body"], *long, "{id}");
            assert_eq!(row["data"]["m"], json!([1, 2]), "{id}");
            assert_eq!(
                row["status"],
                if ["1", "2", "1003"].contains(&&**id) {
                    "moved"
                } else {
                    "paid"
                }
            );
        }
        let (_, raw) = corner
            .server
            .request(
                "GET",
                &format!("/{}/_source/1003", corner.index("docs")),
                "",
            )
            .await
            .expect("the server answers");
        assert!(raw.contains("0.12345678901234567890123"), "{raw}");
    };
    check().await;
    // A replay of the moves finds the values where they are now.
    put_ok(&mut sink, moves).await;
    check().await;
}

async fn a_value_that_nobody_has_is_an_error(corner: Corner<'static>) {
    let (source, orders) = (source("shop"), orders());
    let kept = Feed::new(&source)
        .begin(20)
        .update(&orders, &["1".into(), "paid".into(), V::Unchanged])
        .finish();
    // Trying does not make it so.
    for _ in 0..2 {
        let mut sink = corner.sink(&[&orders]).await;
        let error = put_err(&mut sink, Arc::clone(&kept)).await;
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("left note unchanged"), "{error}");
    }
    let mut sink = corner
        .sink_with(json!({"incomplete": "write"}), &[&orders])
        .await;
    let delivered = put_ok(&mut sink, Arc::clone(&kept)).await;
    assert_eq!((delivered.written, delivered.incomplete), (1, 1));
    assert_eq!(
        corner.all("orders").await["1"].1,
        json!({"id": 1, "status": "paid"})
    );
    // A replay that comes after the row's deletion is old, not incomplete.
    let gone = Feed::new(&source).begin(30).delete(&orders, "1").finish();
    put_ok(&mut sink, gone).await;
    let mut sink = corner.sink(&[&orders]).await;
    let delivered = put_ok(&mut sink, kept).await;
    assert_eq!((delivered.written, delivered.stale), (0, 1));
    assert!(corner.all("orders").await.is_empty());
}

async fn a_refused_row_is_named_and_the_others_are_written(corner: Corner<'static>) {
    let (source, orders) = (source("shop"), orders());
    let index = corner.index("orders");
    let mapping = json!({"mappings": {"properties": {"status": {"type": "long"}}}});
    let (status, _) = corner
        .ask("PUT", &format!("/{index}"), &mapping.to_string())
        .await;
    assert_eq!(status, 200);
    let mut sink = corner.sink(&[&orders]).await;
    let batch = Feed::new(&source)
        .begin(10)
        .insert(&orders, &row("1", "1"))
        .insert(&orders, &row("2", "not a number"))
        .insert(&orders, &row("3", "3"))
        .insert(&orders, &row("4", "nor is this"))
        .finish();
    let error = put_err(&mut sink, batch).await;
    assert_eq!(error.kind(), ErrorKind::Refused);
    let named: Vec<_> = error
        .refusals()
        .iter()
        .map(|refusal| (refusal.position.ordinal, refusal.reason))
        .collect();
    assert_eq!(named, [(2, "mapping"), (4, "mapping")]);
    assert!(error.refusals()[1].message.contains("document 4"));
    assert_eq!(error.kind().policy(), Policy::Stop);
    let shown = error.to_string();
    for part in [&*index, "document 2", "status", "not a number"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(
        corner.all("orders").await.keys().collect::<Vec<_>>(),
        ["1", "3"]
    );
    drop(sink);
    let mut sink = corner.sink(&[&orders]).await;
    assert_eq!(
        sink.resume(&source)
            .await
            .expect("resume")
            .map(|held| held.upto()),
        None,
        "the position did not move"
    );
}

async fn columns_that_appear_are_added(corner: Corner<'static>) {
    let source = source("shop");
    let old = orders();
    let new = table(
        "shop",
        "orders",
        2,
        &[
            ("id", "int4", INT4),
            ("status", "text", TEXT),
            ("note", "text", TEXT),
            ("paid_at", "timestamptz", TIMESTAMPTZ),
        ],
    );
    let mut sink = corner.sink(&[&old]).await;
    let batch = Feed::new(&source)
        .begin(10)
        .insert(&old, &row("1", "new"))
        .begin(20)
        .insert(
            &new,
            &[
                "2".into(),
                "new".into(),
                V::Null,
                "2024-05-06 07:08:09.123456+00".into(),
            ],
        )
        .finish();
    put_ok(&mut sink, batch).await;
    let index = corner.index("orders");
    let (_, mapping) = corner.ask("GET", &format!("/{index}/_mapping"), "").await;
    let mapping = &mapping[&index]["mappings"];
    assert_eq!(mapping["dynamic"], "false");
    assert_eq!(mapping["properties"]["id"]["type"], "long");
    assert_eq!(mapping["properties"]["paid_at"]["type"], "date");
    corner.all("orders").await;
    let query = json!({"query": {"range": {"paid_at": {"gte": "2024-05-06", "lt": "2024-05-07"}}}});
    let (_, found) = corner
        .ask("POST", &format!("/{index}/_count"), &query.to_string())
        .await;
    assert_eq!(found["count"], 1);
}

async fn every_type_is_taken(corner: Corner<'static>) {
    let source = source("shop");
    let array = |name: &str, element, oid| {
        let mut ty = base(name, oid);
        ty.kind = TypeKind::Array(Arc::new(element));
        ty
    };
    let mut status = base("order_status", 90_001);
    status.kind = TypeKind::Enum;
    let columns = vec![
        (
            "id",
            base("int8", INT8),
            "9007199254740993",
            "9223372036854775807",
        ),
        ("b", base("bool", BOOL), "t", "f"),
        ("f", base("float8", FLOAT8), "1.5", "NaN"),
        (
            "n",
            base("numeric", NUMERIC),
            "12345678901234567890.10",
            "NaN",
        ),
        ("d", base("date", DATE), "2024-02-29", "infinity"),
        (
            "ts",
            base("timestamptz", TIMESTAMPTZ),
            "2024-02-29 10:11:12.123456+00",
            "0044-03-15 00:00:00+00 BC",
        ),
        (
            "local",
            base("timestamp", 1114),
            "2024-02-29 10:11:12",
            "20240-01-01 00:00:00",
        ),
        ("t", base("time", 1083), "10:11:12.5", "24:00:00"),
        (
            "i",
            base("interval", 1186),
            "1 year 2 mons 3 days 04:05:06",
            "-00:00:01",
        ),
        (
            "u",
            base("uuid", 2950),
            "0d9c8a2e-1c1a-4b5e-8f8e-0a1b2c3d4e5f",
            "00000000-0000-0000-0000-000000000000",
        ),
        ("ip", base("inet", 869), "10.0.0.1/8", "::1"),
        ("j", base("jsonb", JSONB), r#"{"a": {"b": [1, "x"]}}"#, "5"),
        ("bin", base("bytea", BYTEA), "\\x00ff", "\\x"),
        ("e", status, "paid", "new"),
        (
            "ints",
            array("_int4", base("int4", INT4), 1007),
            "{1,NULL,3}",
            "{{1,2},{4,5}}",
        ),
        (
            "texts",
            array("_text", base("text", TEXT), 1009),
            "{a,\"b c\"}",
            "{}",
        ),
        (
            "days",
            array("_date", base("date", DATE), 1182),
            "{2024-01-01,2024-01-02}",
            "{infinity}",
        ),
        (
            "r",
            {
                let mut ty = base("int4range", 3904);
                ty.kind = TypeKind::Range;
                ty
            },
            "[1,10)",
            "empty",
        ),
        ("m", base("money", 790), "$1,234.50", "-$0.01"),
    ];
    let types = columns.iter().map(|(name, ty, ..)| (*name, ty.clone()));
    let wide = table_of("shop", "wide", 1, types.collect());
    let first: Vec<V<'_>> = columns
        .iter()
        .map(|(_, _, value, _)| V::Text(value))
        .collect();
    let second: Vec<V<'_>> = columns.iter().map(|(.., value)| V::Text(value)).collect();
    let mut third = vec![V::Null; columns.len()];
    third[0] = V::Text("3");
    let mut sink = corner.sink(&[&wide]).await;
    let batch = Feed::snapshot(&source, 10)
        .read(&wide, &first)
        .read(&wide, &second)
        .read(&wide, &third)
        .finish();
    let delivered = put_ok(&mut sink, Arc::clone(&batch)).await;
    assert_eq!(delivered.written, 3);
    // Everything can be read back as it was written, digits and all.
    let mut inspect = corner.inspect(context(&source, &[])).await;
    assert_eq!(
        inspect.compare(&batch).await.expect("compared"),
        [Held::Same, Held::Same, Held::Same]
    );
    for query in [
        json!({"term": {"n.exact": "12345678901234567890.10"}}),
        json!({"range": {"n": {"gt": 1e19}}}),
        json!({"term": {"id": 9_007_199_254_740_993_u64}}),
        json!({"match": {"texts": "b"}}),
        json!({"term": {"ints": 3}}),
        json!({"term": {"ip": "10.0.0.1/8"}}),
        json!({"range": {"days": {"gte": "2024-01-02"}}}),
        json!({"term": {"e": "paid"}}),
    ] {
        corner.all("wide").await;
        let path = format!("/{}/_search", corner.index("wide"));
        let (_, found) = corner
            .ask("POST", &path, &json!({"query": query}).to_string())
            .await;
        let ids: Vec<_> = found["hits"]["hits"]
            .as_array()
            .expect("hits")
            .iter()
            .map(|hit| &hit["_id"])
            .collect();
        assert_eq!(ids, ["9007199254740993"], "{query}");
    }
}

async fn comparison_and_count_see_what_is_there(corner: Corner<'static>) {
    let (source, orders) = (source("shop"), orders());
    let mut inspect = corner.inspect(context(&source, &[])).await;
    assert_eq!(
        inspect.count(&orders).await.expect("counted"),
        0,
        "no index yet"
    );
    let mut sink = corner.sink(&[&orders]).await;
    let rows = Feed::snapshot(&source, 10)
        .read(&orders, &row("1", "new"))
        .read(&orders, &row("2", "new"))
        .finish();
    put_ok(&mut sink, Arc::clone(&rows)).await;
    assert_eq!(
        sink.resume(&source)
            .await
            .expect("resume")
            .map(|held| held.upto()),
        None,
        "a copy is no position of the stream"
    );
    let changed = Feed::new(&source)
        .begin(20)
        .update(&orders, &row("2", "paid"))
        .finish();
    put_ok(&mut sink, changed).await;
    let asked = Feed::snapshot(&source, 10)
        .read(&orders, &row("1", "new"))
        .read(&orders, &row("2", "new"))
        .read(&orders, &row("3", "new"))
        .finish();
    let held = inspect.compare(&asked).await.expect("compared");
    assert_eq!(held[0], Held::Same);
    assert!(
        matches!(&held[1], Held::Different { actual, .. } if actual.contains("paid")),
        "{held:?}"
    );
    assert!(
        matches!(&held[2], Held::Missing { key } if key.ends_with("/3")),
        "{held:?}"
    );
    assert_eq!(inspect.count(&orders).await.expect("counted"), 2);
    // Rows that must not be there.
    let gone = Feed::new(&source)
        .begin(30)
        .delete(&orders, "2")
        .delete(&orders, "3")
        .finish();
    let held = inspect.compare(&gone).await.expect("compared");
    assert!(matches!(&held[0], Held::Extra { key, .. } if key.ends_with("/2")));
    assert_eq!(held[1], Held::Same);
    let mut listing = inspect.list(&orders).await.expect("listed").expect("can");
    let mut keys = listing.next().await.expect("a page").expect("some").keys;
    keys.sort_unstable();
    assert_eq!(keys, [["1"], ["2"]]);
    assert_eq!(listing.next().await.expect("no more"), None);
    // Documents of several tables in one index do not say which they are of.
    let beside = Arc::new(lockstep_core::schema::TableSchema {
        origin: lockstep_core::schema::TableId::new("public", "orders_2025"),
        ..(*orders).clone()
    });
    let shared = context(&source, &[&orders, &beside]);
    let listing = corner.inspect(shared).await.list(&orders).await;
    assert!(listing.expect("asked").is_none());
}
