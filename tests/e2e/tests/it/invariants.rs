//! The shop's five invariants, as the shipped file has them, on two servers: silent while a shop writes into both by two-phase
//! commit, and told when somebody breaks them by hand.

mod shop;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockstep_core::metrics;
use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::{Pipeline, Random, Setup};
use lockstep_kit::Component::Postgres as NeedsPostgres;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{require, require_own, unique};
use serde_json::{Value, json};

use self::shop::{Shop, Shoppers};

/// Names of the five.
const FIVE: [&str; 5] = [
    "paid-orders-are-reserved",
    "reservations-have-orders",
    "stock-covers-reservations",
    "refunds-within-payments",
    "one-payment-per-key",
];

/// How long the long form shops, in seconds.
const LONG_VARIABLE: &str = "LOCKSTEP_TEST_SHOPPING";

/// The invariants of the shipped file, with another deadline for reservations without an order.
fn shipped(within: &str) -> String {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../pipelines/examples/shop.toml"
    );
    let text = std::fs::read_to_string(path).expect("the example");
    let (_, invariants) = text
        .split_once("[[reconcile.invariants]]")
        .expect("invariants");
    let deadline = "within = \"15m\"";
    assert_eq!(invariants.matches(deadline).count(), 1);
    let invariants = invariants.replace(deadline, &format!("within = \"{within}\""));
    format!("[[reconcile.invariants]]{invariants}")
}

fn setup(shop: &Shop, every: &str, within: &str) -> Setup {
    let name = unique("invariants");
    Setup::new(&name, |folder| {
        let source = |source: &str, database: &Database, tables: &str| {
            format!(
                "[sources.{source}]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"{name}_{source}\"\ntables = {tables}\n",
                database.url()
            )
        };
        source(
            "orders",
            &shop.orders,
            "[\"public.orders\", \"public.payments\"]",
        ) + &source(
            "inventory",
            &shop.inventory,
            "[\"public.reservations\", \"public.stock\"]",
        ) + &format!(
            "[sinks.files]\ntype = \"file\"\ninputs = [\"orders\", \"inventory\"]\npath = \"{}/{{table}}.jsonl\"\n",
            folder.display()
        ) + &format!("[reconcile]\nevery = \"{every}\"\n{}", shipped(within))
    })
}

/// The last report of an invariant that this is so of.
async fn until(
    pipeline: &mut Pipeline,
    name: &str,
    what: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Value {
    let what = format!("{name}: {what}");
    pipeline
        .until(PATIENCE, what, async |pipeline| {
            let (_, text) = pipeline
                .get("/api/invariants")
                .await
                .map_err(|e| e.to_string())?;
            let view: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            let latest = view["latest"].as_array().into_iter().flatten();
            let found = latest
                .into_iter()
                .find(|one| one["invariant"] == name && is_so(one));
            found.cloned().ok_or(text)
        })
        .await
}

/// What evaluations of an invariant came to, by outcome.
fn outcome(metrics: &str, name: &str, outcome: &str) -> u64 {
    let labels = format!("{{invariant=\"{name}\",outcome=\"{outcome}\"}} ");
    let line = format!("{}{labels}", metrics::INVARIANT_EVALUATIONS.name);
    let value = metrics.lines().find_map(|found| found.strip_prefix(&line));
    value.map_or(0, |value| value.parse().expect("a number"))
}

async fn scrape(pipeline: &mut Pipeline) -> String {
    pipeline.get("/metrics").await.expect("metrics").1
}

fn now_micros() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    i64::try_from(since.as_micros()).expect("before 294247")
}

/// The command on invariants only.
async fn command(setup: &Setup, pipeline: &mut Pipeline, more: &[&str]) -> (Option<i32>, String) {
    let url = pipeline.url().await;
    let arguments = [more, &["--url", &url]].concat();
    let ended = setup.lockstep("reconcile", &arguments).await;
    assert!(!ended.stdout.is_empty(), "{ended:?}\n{}", pipeline.log());
    (ended.code(), ended.stdout)
}

/// Shops until each invariant was found to hold this often, and for this long; nothing may be told meanwhile.
async fn silent(pipeline: &mut Pipeline, shoppers: Shoppers, times: u64, time: Duration) {
    let begun = Instant::now();
    let (mut asked, mut looks, mut straddled) = (0_u64, 0_u64, 0_u64);
    let told = pipeline
        .until(time + PATIENCE, "enough evaluations", async |pipeline| {
            let (_, text) = pipeline.get("/metrics").await.map_err(|e| e.to_string())?;
            for name in FIVE {
                for word in ["violated", "in_doubt", "failed"] {
                    let times = outcome(&text, name, word);
                    assert_eq!(times, 0, "{name} {word}\n{}", pipeline.log());
                }
            }
            let (_, view) = pipeline
                .get("/api/invariants")
                .await
                .map_err(|e| e.to_string())?;
            let view: Value = serde_json::from_str(&view).map_err(|e| e.to_string())?;
            for report in view["latest"].as_array().into_iter().flatten() {
                let took = report["looks"].as_u64().unwrap_or(0);
                asked += 1;
                looks += took;
                straddled += u64::from(took > 1);
            }
            let enough = FIVE
                .iter()
                .all(|name| outcome(&text, name, "holds") >= times);
            (enough && begun.elapsed() >= time)
                .then_some(text.clone())
                .ok_or(text)
        })
        .await;
    let counts = shoppers.stop().await;
    let evaluations: Vec<(u64, u64)> = FIVE
        .iter()
        .map(|name| {
            (
                outcome(&told, name, "holds"),
                outcome(&told, name, "undecided"),
            )
        })
        .collect();
    println!(
        "{counts:?} in {:?}; evaluations that held and that were undecided: {evaluations:?}; \
         of {asked} samples {straddled} looked more than once ({looks} looks)",
        begun.elapsed()
    );
    assert!(counts.global > 20, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_phase_shopping_is_silent_and_what_is_broken_by_hand_is_told() {
    require!(NeedsPostgres(15), NeedsPostgres(17));
    let mut random = Random::from_environment();
    let (orders, inventory) = (Postgres::shared(15).await, Postgres::shared(17).await);
    let shop = Shop::create(orders, inventory).await;
    let setup = setup(&shop, "1s", "2s");
    let check = setup.lockstep("check", &[]).await;
    assert_eq!(check.code(), Some(0), "{check:?}");
    for name in FIVE {
        let place = format!("reconcile.invariants.{name}");
        assert!(check.stdout.contains(&place), "{name} in {}", check.stdout);
    }
    let mut pipeline = setup.start_ready().await;
    let shoppers = shop.open(4, random.fork()).await;
    silent(&mut pipeline, shoppers, 8, Duration::from_secs(8)).await;

    // By hand, while others shop.
    let shoppers = shop.open(2, random.fork()).await;
    for at in 1..=3 {
        shop.place(
            &format!("00000000-0000-0000-0000-00000000000{at}"),
            "SKU-HAND",
            2,
        )
        .await;
    }
    let order = |at: u8| format!("00000000-0000-0000-0000-00000000000{at}");
    let on_orders = &shop.orders;
    let on_inventory = &shop.inventory;
    // Database, what breaks it, what mends it, which is told, the key, what is wrong, rows of either side.
    type Break<'a> = (
        &'a Database,
        String,
        String,
        &'a str,
        Vec<&'a str>,
        &'a str,
        Value,
        Value,
    );
    let (one, two, three) = (order(1), order(2), order(3));
    let reservation = |id: &str, order: &str, quantity: u8| {
        format!(
            "INSERT INTO reservations VALUES ('{id}', '{order}', 'SKU-HAND', 'AMS', {quantity})"
        )
    };
    let stray = "99999999-0000-0000-0000-000000000001";
    let breaks: Vec<Break<'_>> = vec![
        (
            on_orders,
            format!("UPDATE order_items SET quantity = 3 WHERE order_id = '{one}'"),
            format!("UPDATE order_items SET quantity = 2 WHERE order_id = '{one}'"),
            FIVE[0],
            vec![&one, "SKU-HAND"],
            "inventory has no such row",
            json!([{"quantity": "3", "status": "paid"}]),
            json!([{"quantity": "2", "reservations": one}]),
        ),
        (
            on_inventory,
            format!("DELETE FROM reservations WHERE order_id = '{two}'"),
            reservation(&two, &two, 2),
            FIVE[0],
            vec![&two, "SKU-HAND"],
            "inventory has no row",
            json!([{"quantity": "2"}]),
            json!([]),
        ),
        (
            on_orders,
            format!("UPDATE orders SET status = 'cancelled' WHERE id = '{three}'"),
            format!("UPDATE orders SET status = 'paid' WHERE id = '{three}'"),
            FIVE[1],
            vec![&three],
            "orders has no row",
            json!([]),
            json!([{"quantity": "2", "sku": "SKU-HAND"}]),
        ),
        (
            on_inventory,
            reservation(stray, stray, 9),
            format!("DELETE FROM reservations WHERE order_id = '{stray}'"),
            FIVE[1],
            vec![stray],
            "orders has no row",
            json!([]),
            json!([{"quantity": "9"}]),
        ),
        (
            on_inventory,
            "UPDATE stock SET reserved = on_hand + 1 WHERE sku = 'SKU-HAND'".to_owned(),
            "UPDATE stock SET reserved = 6 WHERE sku = 'SKU-HAND'".to_owned(),
            FIVE[2],
            vec!["SKU-HAND", "AMS"],
            "available is -1",
            Value::Null,
            json!([{"available": "-1", "on_hand": "1000000"}]),
        ),
        (
            on_orders,
            format!("INSERT INTO refunds VALUES ('{stray}', '{one}', 'back', 20.01)"),
            format!("DELETE FROM refunds WHERE id = '{stray}'"),
            FIVE[3],
            vec![&one],
            "kept is -0.01",
            json!([{"amount": "20", "kept": "-0.01"}]),
            Value::Null,
        ),
        (
            on_orders,
            format!("INSERT INTO payments VALUES ('{stray}', '{one}', 'pay-{two}', 1)"),
            format!("DELETE FROM payments WHERE id = '{stray}'"),
            FIVE[4],
            vec!["pay-00000000-0000-0000-0000-000000000002"],
            "there are 2 rows of the key",
            json!([{"order_id": one}, {"order_id": two}]),
            Value::Null,
        ),
    ];
    for (database, ruin, mend, name, key, why, on_orders, on_inventory) in breaks {
        let before = now_micros();
        database.execute(&ruin).await;
        let broken = Instant::now();
        let report = until(&mut pipeline, name, &ruin, |one| one["violated"] == 1).await;
        println!("{name}: told after {:?}", broken.elapsed());
        let told = &report["broken"][0];
        assert_eq!(
            (&told["key"], &told["why"]),
            (&json!(key), &json!(why)),
            "{report:#}"
        );
        assert_eq!(told["standing"], "violated");
        let since = told["since_micros"].as_i64().expect("a time");
        assert!(since >= before && since <= now_micros(), "{report:#}");
        for (source, expected) in [("orders", on_orders), ("inventory", on_inventory)] {
            let rows = &told["rows"][source];
            let Some(expected) = expected.as_array() else {
                assert_eq!(rows, &Value::Null, "{report:#}");
                continue;
            };
            assert_eq!(
                rows.as_array().map(Vec::len),
                Some(expected.len()),
                "{report:#}"
            );
            for (at, row) in expected.iter().enumerate() {
                for (column, value) in row.as_object().expect("columns") {
                    assert_eq!(
                        &rows[at][column], value,
                        "{column} of {source} in {report:#}"
                    );
                }
            }
        }
        let (code, text) = command(&setup, &mut pipeline, &["--invariant", name]).await;
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains(why) && text.contains(key[0]), "{text}");
        let gauge = format!(
            "{}{{invariant=\"{name}\"}} 1",
            metrics::INVARIANT_VIOLATIONS.name
        );
        let metrics = scrape(&mut pipeline).await;
        assert!(metrics.contains(&gauge), "{metrics}");
        database.execute(&mend).await;
        until(&mut pipeline, name, &mend, |one| one["violated"] == 0).await;
        // The others had nothing to say.
        for other in FIVE.iter().filter(|other| **other != name) {
            let gauge = format!(
                "{}{{invariant=\"{other}\"}} 0",
                metrics::INVARIANT_VIOLATIONS.name
            );
            assert!(metrics.contains(&gauge), "{other} in {metrics}");
        }
    }
    let counts = shoppers.stop().await;
    println!("{counts:?} meanwhile");
    let (code, text) = command(
        &setup,
        &mut pipeline,
        &["--invariants-only", "--format", "json"],
    )
    .await;
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(
        told["invariants"]["reports"].as_array().map(Vec::len),
        Some(5)
    );

    // Since when is known after a restart, too.
    shop.inventory
        .execute("UPDATE stock SET reserved = on_hand + 1 WHERE sku = 'SKU-HAND'")
        .await;
    let since = |report: &Value| {
        report["broken"][0]["since_micros"]
            .as_i64()
            .expect("a time")
    };
    let before = until(&mut pipeline, FIVE[2], "told", |one| one["violated"] == 1).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    let mut pipeline = setup.start_ready().await;
    let after = until(&mut pipeline, FIVE[2], "told again", |one| {
        one["violated"] == 1
    })
    .await;
    assert_eq!(since(&before), since(&after));
    // With all there is: comparisons and invariants.
    let (code, text) = command(&setup, &mut pipeline, &["--format", "json"]).await;
    let all: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(code, Some(3), "{text}");
    assert!(
        all["reports"].is_array() && all["invariants"]["reports"].is_array(),
        "{text}"
    );
    let (code, text) = command(
        &setup,
        &mut pipeline,
        &["--table", "stock", "--format", "json"],
    )
    .await;
    let some: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (code, &some["invariants"]),
        (Some(0), &Value::Null),
        "{text}"
    );
    assert!(pipeline.terminate(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_left_prepared_is_told_in_doubt_and_not_as_a_violation() {
    require!(NeedsPostgres(15), NeedsPostgres(17));
    require_own!(NeedsPostgres(15), NeedsPostgres(17));
    // A prepared transaction that stays keeps others on the same server from making slots.
    let (orders, inventory) = tokio::join!(
        Postgres::start(PostgresOptions::new(15)),
        Postgres::start(PostgresOptions::new(17))
    );
    let shop = Shop::create(&orders, &inventory).await;
    let setup = setup(&shop, "1s", "0s");
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("orders").await;
    pipeline.wait_streaming("inventory").await;
    // One in another database of the server has nothing to do with it.
    let other = inventory.database("other").await;
    other
        .execute("CREATE TABLE t (id int); BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'elsewhere'")
        .await;
    let order = "00000000-0000-0000-0000-000000000001";
    shop.prepare(order, "SKU-HAND", 2, "7").await;
    shop.orders.execute("COMMIT PREPARED 'gtx-7-orders'").await;
    let report = until(&mut pipeline, FIVE[0], "in doubt", |one| {
        one["in_doubt"] == 1
    })
    .await;
    let told = &report["broken"][0];
    assert_eq!(
        (&told["standing"], &report["violated"]),
        (&json!("in_doubt"), &json!(0))
    );
    let waits = told["waits_for"].as_array().expect("transactions");
    assert_eq!(waits.len(), 1, "{report:#}");
    assert_eq!(waits[0]["source"], "inventory");
    assert_eq!(waits[0]["gid"], "gtx-7-inventory");
    assert!(
        waits[0]["prepared_micros"]
            .as_i64()
            .is_some_and(|at| at > 0),
        "{report:#}"
    );
    let (code, text) = command(&setup, &mut pipeline, &["--invariant", FIVE[0]]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("waits for prepared transaction gtx-7-inventory in inventory"),
        "{text}"
    );
    assert!(
        pipeline.log().contains("gtx-7-inventory"),
        "{}",
        pipeline.log()
    );

    shop.inventory
        .execute("COMMIT PREPARED 'gtx-7-inventory'")
        .await;
    until(&mut pipeline, FIVE[0], "to hold", |one| {
        one["in_doubt"] == 0 && one["violated"] == 0
    })
    .await;
    let metrics = scrape(&mut pipeline).await;
    assert_eq!(outcome(&metrics, FIVE[0], "violated"), 0, "{metrics}");

    // Decided one way here, and the other way there.
    let order = "00000000-0000-0000-0000-000000000002";
    shop.prepare(order, "SKU-HAND", 2, "8").await;
    shop.orders.execute("COMMIT PREPARED 'gtx-8-orders'").await;
    until(&mut pipeline, FIVE[0], "in doubt", |one| {
        one["in_doubt"] == 1
    })
    .await;
    shop.inventory
        .execute("ROLLBACK PREPARED 'gtx-8-inventory'")
        .await;
    let report = until(&mut pipeline, FIVE[0], "violated", |one| {
        one["violated"] == 1
    })
    .await;
    assert_eq!(report["broken"][0]["key"], json!([order, "SKU-HAND"]));
    other.execute("ROLLBACK PREPARED 'elsewhere'").await;
    assert!(pipeline.terminate(PATIENCE).await.success());
}

#[tokio::test]
async fn check_says_which_query_does_not_fit() {
    require!(NeedsPostgres(15), NeedsPostgres(17));
    let (orders, inventory) = (Postgres::shared(15).await, Postgres::shared(17).await);
    let shop = Shop::create(orders, inventory).await;
    let setup = setup(&shop, "1m", "1m");
    for (from, to, words) in [
        (
            "SELECT id AS order_id, status FROM orders",
            "SELECT id AS order_id, state FROM orders",
            ["queries.orders", "state"],
        ),
        (
            "SELECT order_id, sku, quantity FROM reservations",
            "SELECT sku, quantity FROM reservations",
            ["queries.inventory", "no column order_id"],
        ),
        (
            "on_hand - reserved AS available",
            "on_hand::float8 - reserved AS available",
            ["available", "not exact"],
        ),
        (
            "SELECT DISTINCT idempotency_key, order_id",
            "SELECT DISTINCT idempotency_key, idempotency_key, order_id",
            ["two columns", "AS"],
        ),
    ] {
        setup.change(from, to);
        let check = setup.lockstep("check", &[]).await;
        assert_eq!(check.code(), Some(1), "{check:?}");
        for word in words {
            assert!(check.stdout.contains(word), "{word} in {}", check.stdout);
        }
        setup.change(to, from);
    }
    assert_eq!(setup.lockstep("check", &[]).await.code(), Some(0));
}

/// Half an hour of it, or as long as the variable says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half an hour"]
async fn half_an_hour_of_two_phase_shopping_is_silent() {
    require!(NeedsPostgres(15), NeedsPostgres(17));
    let seconds =
        std::env::var(LONG_VARIABLE).map_or(30 * 60, |text| text.parse().expect("seconds"));
    let mut random = Random::from_environment();
    let (orders, inventory) = (Postgres::shared(15).await, Postgres::shared(17).await);
    let shop = Shop::create(orders, inventory).await;
    let setup = setup(&shop, "2s", "2s");
    let mut pipeline = setup.start_ready().await;
    let shoppers = shop.open(6, random.fork()).await;
    silent(&mut pipeline, shoppers, 8, Duration::from_secs(seconds)).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
}
