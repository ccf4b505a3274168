//! Against a real OpenSearch.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_conformance::history::{Random, Row, cut, history, model};
use lockstep_core::ErrorKind;
use lockstep_core::check::Verdict;
use lockstep_core::error::Policy;
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::{TableSchema, TypeKind};
use lockstep_core::sink::{Held, Sink, SinkFactory};
use lockstep_kit::Component;
use lockstep_kit::opensearch::{OpenSearch as Server, OpenSearchOptions};
use lockstep_sink_search::opensearch::OpenSearch;
use serde_json::{Value, json};
use support::*;

/// A corner of the server for one test.
struct Corner<'a> {
    server: &'a Server,
    prefix: String,
}

impl<'a> Corner<'a> {
    fn on(server: &'a Server) -> Self {
        Corner {
            server,
            prefix: lockstep_kit::unique("t"),
        }
    }

    fn config(&self, more: Value) -> Value {
        let mut config = json!({
            "url": self.server.url(),
            "index": format!("{}-{{source}}-{{table}}", self.prefix),
            "progress_index": format!("{}-progress", self.prefix),
            "settings": {"number_of_replicas": 0},
        });
        for (key, value) in more.as_object().expect("an object") {
            config[key] = value.clone();
        }
        config
    }

    async fn sink(&self, tables: &[&Arc<TableSchema>]) -> Box<dyn Sink> {
        self.sink_with(json!({}), tables).await
    }

    async fn sink_with(&self, more: Value, tables: &[&Arc<TableSchema>]) -> Box<dyn Sink> {
        open::<OpenSearch>(self.config(more), &source("shop"), tables).await
    }

    fn index(&self, table: &str) -> String {
        format!("{}-shop-{table}", self.prefix)
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = self
            .server
            .request(method, path, body)
            .await
            .expect("the server answers");
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// `id → (n, document)` of all documents, written by the transaction that `Feed::begin(n)` began.
    async fn all(&self, table: &str) -> BTreeMap<String, (u64, Value)> {
        let index = self.index(table);
        self.ask("POST", &format!("/{index}/_refresh"), "").await;
        let path = format!("/{index}/_search?version=true&size=10000");
        let (status, found) = self.ask("GET", &path, "").await;
        assert_eq!(status, 200, "{found}");
        let hits = found["hits"]["hits"].as_array().expect("hits").iter();
        hits.map(|hit| {
            let id = hit["_id"].as_str().expect("an id").to_owned();
            let version = hit["_version"].as_u64().expect("a version");
            (id, (version >> 9, hit["_source"].clone()))
        })
        .collect()
    }
}

async fn shared() -> Corner<'static> {
    Corner::on(Server::shared().await)
}

fn orders() -> Arc<TableSchema> {
    table(
        "shop",
        "orders",
        1,
        &[
            ("id", "int4", INT4),
            ("status", "text", TEXT),
            ("note", "text", TEXT),
        ],
    )
}

fn row<'a>(id: &'a str, status: &'a str) -> [V<'a>; 3] {
    [id.into(), status.into(), "gift wrap".into()]
}

#[tokio::test]
async fn rows_come_change_move_and_go() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
    let (source, orders) = (source("shop"), orders());
    let mut sink = corner.sink(&[&orders]).await;
    assert_eq!(sink.resume(&source).await.expect("resume"), None);
    let mut feed = Feed::new(&source);
    feed.begin(10);
    for id in ["1", "2", "3"] {
        feed.insert(&orders, &row(id, "new"));
    }
    let delivered = put_ok(&mut sink, feed.finish()).await;
    assert_eq!((delivered.written, delivered.stale), (3, 0));
    let batch = Feed::new(&source)
        .begin(20)
        .update(&orders, &row("1", "paid"))
        .delete(&orders, "2")
        .rekey(&orders, "3", &row("33", "moved"))
        .finish();
    put_ok(&mut sink, Arc::clone(&batch)).await;
    let rows = corner.all("orders").await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["1", "33"]);
    assert_eq!(
        rows["1"],
        (20, json!({"id": 1, "status": "paid", "note": "gift wrap"}))
    );
    // The same again changes nothing, and is not stale: an equal version is accepted.
    assert_eq!(put_ok(&mut sink, batch).await.stale, 0);
    assert_eq!(corner.all("orders").await, rows);
    sink.close().await.expect("close");
    let mut sink = corner.sink(&[&orders]).await;
    assert_eq!(
        sink.resume(&source).await.expect("resume"),
        Some(position(20, 3))
    );
}

#[tokio::test]
async fn older_writes_and_late_replays_are_refused() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
    let (source, orders) = (source("shop"), orders());
    let mut sink = corner.sink(&[&orders]).await;
    let first = Feed::new(&source)
        .begin(10)
        .insert(&orders, &row("1", "old"))
        .insert(&orders, &row("2", "old"))
        .finish();
    put_ok(&mut sink, Arc::clone(&first)).await;
    let second = Feed::new(&source)
        .begin(30)
        .update(&orders, &row("1", "paid"))
        .delete(&orders, "2")
        .finish();
    put_ok(&mut sink, second).await;
    drop(sink);
    let mut late = corner.sink(&[&orders]).await;
    let delivered = put_ok(&mut late, first).await;
    assert_eq!((delivered.written, delivered.stale), (0, 2));
    let rows = corner.all("orders").await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["1"], "nothing comes back");
    assert_eq!(rows["1"].1["status"], "paid");
    let (_, settings) = corner
        .ask(
            "GET",
            &format!("/{}/_settings?flat_settings=true", corner.index("orders")),
            "",
        )
        .await;
    assert_eq!(
        settings[corner.index("orders")]["settings"]["index.gc_deletes"],
        "1h"
    );
}

/// After a restore or an upgrade the server counts its log anew.
#[tokio::test]
async fn a_new_server_with_lower_positions_is_not_stale() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
    let (source, orders) = (source("shop"), orders());
    let mut sink = corner.sink(&[&orders]).await;
    let old = Feed::new(&source)
        .begin(1000)
        .insert(&orders, &row("1", "old"))
        .insert(&orders, &row("2", "old"))
        .finish();
    put_ok(&mut sink, Arc::clone(&old)).await;
    let mut identity = source.identity.clone();
    identity.timeline += 1;
    let promoted = Arc::new(SourceInfo {
        name: Arc::clone(&source.name),
        identity,
    });
    assert_eq!(sink.resume(&promoted).await.expect("resume"), None);
    let new = Feed::new(&promoted)
        .begin(20)
        .update(&orders, &row("1", "new"))
        .delete(&orders, "2")
        .finish();
    let delivered = put_ok(&mut sink, new).await;
    assert_eq!((delivered.written, delivered.stale), (2, 0));
    drop(sink);
    // A process left over from before the promotion.
    let mut sink = corner.sink(&[&orders]).await;
    assert_eq!(put_ok(&mut sink, old).await.stale, 2);
    let rows = corner.all("orders").await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["1"]);
    assert_eq!(rows["1"].1["status"], "new");
}

#[tokio::test]
async fn a_truncate_takes_what_is_older_only() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
    let (source, orders) = (source("shop"), orders());
    let mut sink = corner.sink(&[&orders]).await;
    let mut feed = Feed::new(&source);
    feed.begin(10);
    let ids: Vec<String> = (0..4500).map(|id| id.to_string()).collect();
    for id in &ids {
        feed.insert(&orders, &row(id, "new"));
    }
    put_ok(&mut sink, feed.finish()).await;
    let truncate = Feed::new(&source)
        .begin(20)
        .insert(&orders, &row("5000", "goes"))
        .truncate(&orders)
        .insert(&orders, &row("7", "stays"))
        .finish();
    put_ok(&mut sink, Arc::clone(&truncate)).await;
    let expected = BTreeMap::from([(
        "7".to_owned(),
        (20, json!({"id": 7, "status": "stays", "note": "gift wrap"})),
    )]);
    assert_eq!(corner.all("orders").await, expected);
    let after = Feed::new(&source)
        .begin(30)
        .insert(&orders, &row("8", "after"))
        .finish();
    put_ok(&mut sink, Arc::clone(&after)).await;
    let rows = corner.all("orders").await;
    // A replay of the TRUNCATE leaves newer rows alone, and what follows it lands again.
    put_ok(&mut sink, truncate).await;
    put_ok(&mut sink, after).await;
    assert_eq!(corner.all("orders").await, rows);
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["7", "8"]);
}

#[tokio::test]
async fn unchanged_values_stay() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
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

#[tokio::test]
async fn a_value_that_nobody_has_is_an_error() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
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

#[tokio::test]
async fn a_refused_row_is_named_and_the_others_are_written() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
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
        sink.resume(&source).await.expect("resume"),
        None,
        "the position did not move"
    );
}

#[tokio::test]
async fn columns_that_appear_are_added() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
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

#[tokio::test]
async fn every_type_is_taken() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
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
    let config = serde_json::from_value(corner.config(json!({}))).expect("valid");
    let mut inspect = OpenSearch::inspect(&config, context(&source, &[]))
        .await
        .expect("opens")
        .expect("can be read");
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

#[tokio::test]
async fn comparison_and_count_see_what_is_there() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
    let (source, orders) = (source("shop"), orders());
    let config = serde_json::from_value(corner.config(json!({}))).expect("valid");
    let mut inspect = OpenSearch::inspect(&config, context(&source, &[]))
        .await
        .expect("opens")
        .expect("can be read");
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
        sink.resume(&source).await.expect("resume"),
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
}

#[tokio::test]
async fn two_tables_never_share_an_index() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
    let (one, two) = (
        orders(),
        table("shop", "Orders", 1, &[("id", "int4", INT4)]),
    );
    let config = serde_json::from_value(corner.config(json!({}))).expect("valid");
    let error = OpenSearch::open(&config, context(&source("shop"), &[&one, &two]))
        .await
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(error.to_string().contains("public.Orders"), "{error}");
}

#[tokio::test]
async fn the_check_passes_where_all_is_well() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
    let config = serde_json::from_value(corner.config(json!({}))).expect("valid");
    let _sink = corner.sink(&[&orders()]).await;
    let findings = OpenSearch::preflight(&config, "test", "search").await;
    for finding in &findings {
        let disk = finding.subject.contains("disk");
        assert!(disk || finding.verdict == Verdict::Pass, "{finding:?}");
    }
    assert!(
        findings[0].detail.starts_with("OpenSearch "),
        "{findings:?}"
    );
    let index = corner.index("orders");
    corner
        .ask(
            "PUT",
            &format!("/{index}/_settings"),
            r#"{"index.blocks.write": true}"#,
        )
        .await;
    let findings = OpenSearch::preflight(&config, "test", "search").await;
    assert!(
        findings
            .iter()
            .any(|finding| finding.verdict == Verdict::Fail && finding.subject.contains(&index)),
        "{findings:?}"
    );
    let down = serde_json::from_value(json!({"url": "http://127.0.0.1:1"})).expect("valid");
    let findings = OpenSearch::preflight(&down, "test", "search").await;
    assert!(
        findings[0].detail.contains("cannot connect"),
        "{findings:?}"
    );
}

#[tokio::test]
async fn small_bulks_side_by_side_keep_the_order_of_a_key() {
    lockstep_kit::require!(Component::OpenSearch);
    let corner = shared().await;
    let (source, orders) = (source("shop"), orders());
    let more = json!({"bulk_documents": 3, "concurrency": 4});
    let mut sink = corner.sink_with(more, &[&orders]).await;
    let mut waiting = Vec::new();
    // One transaction in many batches: all versions are equal, so that only the order of writing decides.
    for step in 0..60_u64 {
        let mut feed = Feed::new(&source);
        feed.continued(10, step * 5);
        let status = format!("s{step}");
        for id in 0..5 {
            let id = ((step + id) % 7).to_string();
            if (step + 1).is_multiple_of(9) {
                feed.delete(&orders, &id);
            } else {
                feed.update(&orders, &row(&id, &status));
            }
        }
        waiting.push(sink.write(feed.finish()).await.expect("taken"));
    }
    for durable in waiting {
        durable.await.expect("durable");
    }
    let rows = corner.all("orders").await;
    let seen: BTreeMap<_, _> = rows
        .iter()
        .map(|(id, (_, row))| (id.as_str(), row["status"].as_str().expect("a text")))
        .collect();
    let mut expected = BTreeMap::new();
    let names: Vec<String> = (0..7).map(|id| id.to_string()).collect();
    let statuses: Vec<String> = (0..60).map(|step| format!("s{step}")).collect();
    for step in 0..60_usize {
        for id in 0..5 {
            let id = &*names[(step + id) % 7];
            if (step + 1).is_multiple_of(9) {
                expected.remove(id);
            } else {
                expected.insert(id, &*statuses[step]);
            }
        }
    }
    assert_eq!(seen, expected);
}

/// A history cut into batches anywhere, by a sink that is dropped again and again with requests under way, and then sees
/// part of it once more.
#[tokio::test]
async fn any_restart_ends_right() {
    lockstep_kit::require!(Component::OpenSearch);
    // The last two once found rows that were in no document for a moment.
    for seed in [7, 66, 77] {
        println!("seed {seed}");
        restart_until_done(Random(seed)).await;
    }
}

async fn restart_until_done(mut random: Random) {
    let corner = shared().await;
    let (source, orders) = (source("shop"), orders());
    let history = history(&mut random, 250);
    let more = json!({"bulk_documents": 4, "concurrency": 3});
    let mut after = None;
    let mut drops = 0;
    loop {
        let mut sink = corner.sink_with(more.clone(), &[&orders]).await;
        let resumed = sink.resume(&source).await.expect("resume");
        assert!(resumed >= after, "{resumed:?} is before {after:?}");
        let batches = cut(&history, &source, &orders, &mut random, after);
        let last = drops == 12;
        let until = if last {
            batches.len()
        } else {
            batches.len().min(12)
        };
        let mut waiting = Vec::new();
        for batch in batches.into_iter().take(until) {
            waiting.push(sink.write(batch).await.expect("taken"));
        }
        // A flush may have made the end of it durable.
        if last || waiting.is_empty() {
            for durable in waiting {
                durable.await.expect("durable");
            }
            break;
        }
        // Requests of the other batches may be on their way.
        let at = random.below(waiting.len() as u64) as usize;
        waiting.swap_remove(at).await.expect("durable");
        if random.below(2) == 0 {
            sink.flush().await.expect("flushed");
            after = sink.resume(&source).await.expect("resume");
        }
        drop(sink);
        drops += 1;
    }
    let seen: BTreeMap<_, _> = corner
        .all("orders")
        .await
        .into_iter()
        .map(|(id, (_, row))| (id, format!("{} {}", row["status"], row["note"])))
        .collect();
    let shown = |row: Row| format!("{:?} {:?}", row["status"], row["note"]);
    let expected = model(&history, None).into_iter();
    assert_eq!(seen, expected.map(|(id, row)| (id, shown(row))).collect());
}

#[tokio::test]
async fn a_killed_server_loses_nothing() {
    lockstep_kit::require!(Component::OpenSearch);
    let server = Server::start(OpenSearchOptions::default()).await;
    let corner = Corner::on(&server);
    let (source, orders) = (source("shop"), orders());
    let batches: Vec<_> = (1..=80_u64)
        .map(|step| {
            let mut feed = Feed::new(&source);
            feed.begin(step * 10);
            let status = format!("s{step}");
            for id in 0..40_u64 {
                let id = ((step * 13 + id) % 300).to_string();
                if id.ends_with('7') && step % 3 == 0 {
                    feed.delete(&orders, &id);
                } else {
                    feed.update(&orders, &row(&id, &status));
                }
            }
            feed.finish()
        })
        .collect();
    let more = json!({"bulk_documents": 50, "request_timeout": "5s"});
    let mut sink = corner.sink_with(more.clone(), &[&orders]).await;
    let mut waiting = Vec::new();
    for batch in &batches {
        match sink.write(Arc::clone(batch)).await {
            Ok(durable) => waiting.push(durable),
            Err(error) => {
                assert_eq!(error.kind().policy(), Policy::Retry, "{error}");
                break;
            }
        }
        if waiting.len() == 20 {
            server.kill();
        }
    }
    let mut durable = 0;
    let mut failure = None;
    for answer in waiting {
        match answer.await {
            Ok(_) => durable += 1,
            Err(error) => {
                failure.get_or_insert(error);
            }
        }
    }
    let failure = failure.expect("the server was killed");
    assert_eq!(failure.kind(), ErrorKind::Unavailable, "{failure}");
    drop(sink);
    server.restart().await;
    let mut sink = corner.sink_with(more, &[&orders]).await;
    let resumed = sink.resume(&source).await.expect("resume");
    assert!(
        resumed.is_none_or(|resumed| resumed.commit <= lsn(durable * 10)),
        "{resumed:?} is beyond the {durable} batches that are durable"
    );
    for batch in &batches[usize::try_from(durable).expect("small")..] {
        put_ok(&mut sink, Arc::clone(batch)).await;
    }
    let mut expected = BTreeMap::new();
    for step in 1..=80_u64 {
        for id in 0..40_u64 {
            let id = ((step * 13 + id) % 300).to_string();
            if id.ends_with('7') && step % 3 == 0 {
                expected.remove(&id);
            } else {
                expected.insert(id, step * 10);
            }
        }
    }
    let seen: BTreeMap<_, _> = corner
        .all("orders")
        .await
        .into_iter()
        .map(|(id, (version, _))| (id, version))
        .collect();
    assert_eq!(seen, expected);
    sink.flush().await.expect("the position is stored");
    assert_eq!(
        sink.resume(&source).await.expect("resume"),
        Some(position(800, 40))
    );
}
