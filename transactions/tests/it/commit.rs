//! Purchases in ordinary times, and work that is refused.

use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_kit::Component::Postgres as Needs;
use lockstep_kit::postgres::{Postgres, PostgresOptions};
use lockstep_kit::wait_for;
use lockstep_transactions::coordinator::{Coordinator, Point, Settings};
use lockstep_transactions::marker::Marker;

use crate::support::{DEADLINE, Form, Happens, Shop, both, buy};

macro_rules! needs {
    () => {
        lockstep_kit::require!(Needs(15), Needs(17));
    };
}

#[tokio::test]
async fn a_purchase_is_in_both_databases() {
    needs!();
    for form in Form::BOTH {
        let shop = Shop::open().await;
        let coordinator = shop.coordinator(form).open().await.expect("opens");
        for id in 1..=3 {
            let bought = buy(&coordinator, id).await.expect("buys");
            assert!(bought.is_everywhere(), "{bought:?}");
        }
        assert_eq!(shop.rows().await, both("1,2,3"), "{form:?}");
        assert_eq!(shop.prepared().await, [0, 0]);
        assert_eq!(shop.decisions(form).await, "3");
        let names = "SELECT string_agg(b->>'database', ',' ORDER BY b->>'database') FROM lockstep.gtx_log, \
            jsonb_array_elements(branches) b WHERE gtrid = (SELECT min(gtrid) FROM lockstep.gtx_log)";
        let expected = match form {
            Form::Marked => "inventory",
            Form::Full => "inventory,orders",
        };
        assert_eq!(shop.log(form).value(names).await.as_deref(), Some(expected));
        let measures = coordinator.measures();
        assert_eq!((measures.begun, measures.committed), (3, 3));
        assert_eq!(
            (measures.aborted, measures.heuristic, measures.behind),
            (0, 0, 0)
        );
        assert!(measures.deciding > Duration::ZERO);
    }
}

#[tokio::test]
async fn one_database_alone_needs_neither_a_name_nor_a_decision() {
    needs!();
    let shop = Shop::open().await;
    let coordinator = shop.coordinator(Form::Full).open().await.expect("opens");
    for database in ["orders", "inventory"] {
        let purchase = coordinator.begin([database]).await.expect("begins");
        let [client] = purchase.branches();
        client
            .batch_execute("INSERT INTO t VALUES (1)")
            .await
            .expect("inserts");
        assert!(purchase.commit().await.expect("commits").is_everywhere());
    }
    assert_eq!(shop.rows().await, both("1"));
    assert_eq!(shop.decisions(Form::Full).await, "0");
}

#[tokio::test]
async fn each_branch_says_what_it_is_a_branch_of() {
    lockstep_kit::require_own!(Needs(17));
    // Of its own: while something is prepared, no slot can be made.
    let server = Postgres::start(PostgresOptions::new(17)).await;
    let shop = Shop::on(&server, &server).await;
    let databases = [&shop.orders, &shop.inventory];
    for (at, database) in databases.iter().enumerate() {
        database.execute("CREATE PUBLICATION p FOR TABLE t").await;
        let slot = format!("SELECT pg_create_logical_replication_slot('slot_{at}', 'pgoutput')");
        database.execute(&slot).await;
    }
    let coordinator = shop.coordinator(Form::Marked).open().await.expect("opens");
    let bought = buy(&coordinator, 1).await.expect("buys");
    for (at, database) in databases.iter().enumerate() {
        let changes = format!(
            "SELECT data FROM pg_logical_slot_get_binary_changes('slot_{at}', NULL, NULL, 'proto_version', '1', \
             'publication_names', 'p', 'messages', 'true') WHERE get_byte(data, 0) = ascii('M')"
        );
        let rows = database.client().await.query(&changes, &[]).await;
        let rows = rows.expect("messages");
        assert_eq!(rows.len(), 1);
        let message: Vec<u8> = rows[0].get(0);
        // Behind flags, LSN, prefix and length.
        let behind = message.split_at(1 + 1 + 8 + 4 + 4).1;
        let marker = Marker::parse(behind).expect("a marker");
        let expected = Marker {
            global: bought.id.clone(),
            branches: Some(2),
            branch: Some(at as u32 + 1),
        };
        assert_eq!(marker, expected);
    }
}

#[tokio::test]
async fn what_is_dropped_leaves_nothing() {
    needs!();
    let shop = Shop::open().await;
    let coordinator = shop.coordinator(Form::Marked).open().await.expect("opens");
    let purchase = coordinator
        .begin(["orders", "inventory"])
        .await
        .expect("begins");
    let [orders, inventory] = purchase.branches();
    for client in [orders, inventory] {
        client
            .batch_execute("INSERT INTO t VALUES (1)")
            .await
            .expect("inserts");
    }
    drop(purchase);
    // The key is free, so the one before is gone.
    let bought = buy(&coordinator, 1).await.expect("buys");
    assert!(bought.is_everywhere());
    let purchase = coordinator
        .begin(["orders", "inventory"])
        .await
        .expect("begins");
    let [orders, _] = purchase.branches();
    orders
        .batch_execute("DELETE FROM t")
        .await
        .expect("deletes");
    purchase.roll_back().await;
    assert_eq!(shop.rows().await, both("1"));
}

#[tokio::test]
async fn a_commit_that_nobody_waits_for_goes_on() {
    needs!();
    for form in Form::BOTH {
        let shop = Shop::open().await;
        let happens = Happens::default();
        let stop = happens.stop_at(Point::AllPrepared, form.log());
        let coordinator = shop.coordinator(form).onlooker(happens).open().await;
        let coordinator = coordinator.expect("opens");
        let buying = buy(&coordinator, 1);
        tokio::select! {
            bought = buying => panic!("{bought:?}"),
            () = stop.reached() => {}
        }
        stop.go_on();
        coordinator.settled().await;
        assert_eq!(shop.rows().await, both("1"), "{form:?}");
        assert_eq!(shop.prepared().await, [0, 0]);
    }
}

#[tokio::test]
async fn a_constraint_that_speaks_last_rolls_everything_back() {
    needs!();
    for form in Form::BOTH {
        for refusing in [0, 1] {
            let shop = Shop::open().await;
            let coordinator = shop.coordinator(form).open().await.expect("opens");
            let purchase = coordinator
                .begin(["orders", "inventory"])
                .await
                .expect("begins");
            for (at, client) in purchase.branches().into_iter().enumerate() {
                client
                    .batch_execute("INSERT INTO t VALUES (1)")
                    .await
                    .expect("inserts");
                if at == refusing {
                    let twice = "INSERT INTO late VALUES (1), (1)";
                    client.batch_execute(twice).await.expect("is checked later");
                }
            }
            let error = purchase.commit().await.expect_err("refused");
            assert_eq!(
                error.kind(),
                ErrorKind::Invalid,
                "{form:?} {refusing}: {error}"
            );
            assert!(error.to_string().contains("late_id_key"), "{error}");
            assert_eq!(shop.settle().await, both(""));
            assert_eq!(shop.decisions(form).await, "0");
            let measures = coordinator.measures();
            assert_eq!((measures.committed, measures.aborted), (0, 1));
            assert_eq!(measures.heuristic, 0);
        }
    }
}

#[tokio::test]
async fn work_that_has_failed_or_has_ended_by_itself_does_not_commit() {
    needs!();
    for form in Form::BOTH {
        for at in [0, 1] {
            for work in [
                "SELECT 1/0",
                "ROLLBACK",
                "ROLLBACK; BEGIN; SELECT pg_current_xact_id()",
            ] {
                let shop = Shop::open().await;
                let coordinator = shop.coordinator(form).open().await.expect("opens");
                let purchase = coordinator
                    .begin(["orders", "inventory"])
                    .await
                    .expect("begins");
                let clients = purchase.branches();
                for client in clients {
                    client
                        .batch_execute("INSERT INTO t VALUES (1)")
                        .await
                        .expect("inserts");
                }
                // A program that looks away.
                let _ = clients[at].batch_execute(work).await;
                let error = purchase.commit().await.expect_err("refused");
                assert_eq!(
                    error.kind(),
                    ErrorKind::Invalid,
                    "{form:?} {at} {work}: {error}"
                );
                assert_eq!(shop.settle().await, both(""), "{form:?} {at} {work}");
            }
        }
    }
}

#[tokio::test]
async fn work_of_one_database_that_has_ended_by_itself_is_told() {
    needs!();
    let shop = Shop::open().await;
    let coordinator = shop.coordinator(Form::Full).open().await.expect("opens");
    for work in ["SELECT 1/0", "ROLLBACK"] {
        let purchase = coordinator.begin(["inventory"]).await.expect("begins");
        let [client] = purchase.branches();
        client
            .batch_execute("INSERT INTO t VALUES (1)")
            .await
            .expect("inserts");
        let _ = client.batch_execute(work).await;
        let error = purchase.commit().await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{work}: {error}");
    }
    assert_eq!(shop.rows().await, both(""));
}

#[tokio::test]
async fn names_that_are_wrong_are_told() {
    needs!();
    let shop = Shop::open().await;
    let coordinator = shop.coordinator(Form::Full).open().await.expect("opens");
    for (names, word) in [
        (["orders", "inventroy"], "inventory"),
        (["orders", "orders"], "named twice"),
    ] {
        let error = coordinator.begin(names).await.err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(word), "{error}");
    }
    let error = shop.coordinator(Form::Full).log("log").open().await;
    let error = error.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

#[tokio::test]
async fn a_server_that_prepares_nothing_is_refused_before_anything_is_begun() {
    lockstep_kit::require!(Needs(15));
    lockstep_kit::require_own!(Needs(17));
    let options = PostgresOptions::new(17).set("max_prepared_transactions", "0");
    let server = Postgres::start(options).await;
    let shop = Shop::on(Postgres::shared(15).await, &server).await;
    let error = shop.coordinator(Form::Marked).open().await.err();
    let error = error.expect("refused");
    assert_eq!(error.kind(), ErrorKind::Setup);
    let text = error.to_string();
    for word in [
        "database inventory",
        "max_prepared_transactions is 0",
        "ALTER SYSTEM",
    ] {
        assert!(text.contains(word), "{text}");
    }
    // The log's own database prepares nothing where its branch commits with the decision.
    let direct = |url: &str| {
        let config = url.parse().expect("a URL");
        lockstep_transactions::coordinator::Direct::new(config, tokio_postgres::NoTls)
    };
    let coordinator = Coordinator::builder("shop")
        .database("orders", direct(shop.orders.url()))
        .database("inventory", direct(shop.inventory.url()))
        .log("inventory")
        .open()
        .await
        .expect("opens");
    assert!(buy(&coordinator, 1).await.expect("buys").is_everywhere());
    assert_eq!(shop.rows().await, both("1"));
}

#[tokio::test]
async fn a_database_that_is_away_keeps_nobody_from_the_others() {
    needs!();
    let shop = Shop::open().await;
    // Nobody listens there.
    let nowhere = "postgres://postgres@127.0.0.1:1/inventory";
    let coordinator = shop.through(Form::Full, shop.orders.url(), nowhere);
    let coordinator = coordinator.open().await.expect("opens");
    let purchase = coordinator
        .begin(["orders", "decisions"])
        .await
        .expect("begins");
    let [orders, _] = purchase.branches();
    orders
        .batch_execute("INSERT INTO t VALUES (1)")
        .await
        .expect("inserts");
    assert!(purchase.commit().await.expect("commits").is_everywhere());
    let error = coordinator.begin(["orders", "inventory"]).await.err();
    let error = error.expect("refused");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("database inventory"), "{error}");
}

#[tokio::test]
async fn decisions_leave_the_log_when_all_have_committed() {
    needs!();
    for form in Form::BOTH {
        let shop = Shop::open().await;
        let settings = |keep_log| Settings {
            patience: DEADLINE,
            recover_every: Duration::from_millis(20),
            keep_log,
            ..Settings::default()
        };
        let kept = shop.coordinator(form).settings(settings(DEADLINE));
        let kept = kept.open().await.expect("opens");
        buy(&kept, 1).await.expect("buys");
        drop(kept);
        // Those of an earlier epoch, and its own.
        let coordinator = shop.coordinator(form).settings(settings(Duration::ZERO));
        let coordinator = coordinator.open().await.expect("opens");
        buy(&coordinator, 2).await.expect("buys");
        wait_for(DEADLINE, "the log to be empty", async || {
            let left = shop.decisions(form).await;
            (left == "0").then_some(()).ok_or(left)
        })
        .await;
        assert_eq!(shop.rows().await, both("1,2"));
    }
}
