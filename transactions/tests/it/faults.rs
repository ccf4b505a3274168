//! Servers that crash, replies that are lost, people who decide by hand, and coordinators that meet.

use std::time::Duration;

use lockstep_core::ErrorKind;
use lockstep_kit::Component::Postgres as Needs;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::proxy::Proxy;
use lockstep_kit::wait_for;
use lockstep_transactions::coordinator::{Coordinator, Onlooker, Point, Settings};

use crate::support::{DEADLINE, Form, Happens, Shop, Stop, both, buy, gids};

/// Long enough to see at the server what its client does not know yet.
const SLOW: Duration = Duration::from_secs(3);

macro_rules! needs {
    () => {
        lockstep_kit::require!(Needs(15), Needs(17));
    };
}

macro_rules! needs_own {
    () => {
        lockstep_kit::require_own!(Needs(15), Needs(17));
    };
}

/// A purchase of which something happens on the way.
async fn buys(
    coordinator: &Coordinator,
    stop: &Stop,
    happens: impl AsyncFnOnce(),
) -> lockstep_core::Result<lockstep_transactions::coordinator::Committed> {
    let meanwhile = async {
        stop.reached().await;
        happens().await;
    };
    tokio::join!(buy(coordinator, 1), meanwhile).0
}

async fn open(shop: &Shop, form: Form, onlooker: impl Onlooker) -> Coordinator {
    let coordinator = shop.coordinator(form).onlooker(onlooker).open().await;
    coordinator.expect("opens")
}

/// Where a proxy is, instead of the server.
fn by_proxy(database: &Database, proxy: &Proxy) -> String {
    let (_, rest) = database.url().split_once('@').expect("a user");
    let (_, name) = rest.split_once('/').expect("a database");
    format!("postgres://postgres@{}/{name}", proxy.address())
}

fn address(server: &Postgres) -> String {
    let (_, rest) = server.url().split_once('@').expect("a user");
    rest.split('/').next().expect("an address").to_owned()
}

#[tokio::test]
async fn row_7_a_server_crashes_behind_prepare() {
    needs_own!();
    for form in Form::BOTH {
        let [first, second] = start().await;
        let shop = Shop::on(&first, &second).await;
        let happens = Happens::default();
        let stop = happens.stop_at(Point::AllPrepared, form.log());
        let coordinator = open(&shop, form, happens).await;
        let bought = buys(&coordinator, &stop, async || {
            second.stop_immediately().await;
            second.restart().await;
            assert_eq!(shop.prepared().await[1], 1, "it survives");
            stop.go_on();
        });
        let bought = bought.await.expect("commits");
        assert!(bought.is_everywhere(), "{bought:?}");
        assert_eq!(shop.settle().await, both("1"), "{form:?}");
        assert_eq!(coordinator.measures().heuristic, 0);
    }
}

#[tokio::test]
async fn row_7_the_server_of_the_decision_crashes_before_it() {
    needs_own!();
    for form in Form::BOTH {
        let [first, second] = start().await;
        let shop = Shop::on(&first, &second).await;
        let happens = Happens::default();
        let stop = happens.stop_at(Point::Deciding, form.log());
        let coordinator = open(&shop, form, happens).await;
        let bought = buys(&coordinator, &stop, async || {
            first.stop_immediately().await;
            first.restart().await;
            stop.go_on();
        });
        let error = bought.await.expect_err("rolls back");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{form:?}: {error}");
        assert_eq!(shop.settle().await, both(""), "{form:?}");
        assert_eq!(shop.decisions(form).await, "0");
        assert!(buy(&coordinator, 2).await.expect("goes on").is_everywhere());
    }
}

#[tokio::test]
async fn row_8_a_server_crashes_during_prepare() {
    needs_own!();
    for form in Form::BOTH {
        let [first, second] = start().await;
        let shop = Shop::on(&first, &second).await;
        let proxy = Proxy::start(address(&second)).await;
        let happens = Happens::default();
        let stop = happens.stop_at(Point::Preparing, "inventory");
        let inventory = by_proxy(&shop.inventory, &proxy);
        let coordinator = shop.through(form, shop.orders.url(), &inventory);
        let coordinator = coordinator.onlooker(happens).open().await.expect("opens");
        let bought = buys(&coordinator, &stop, async || {
            proxy.latency(SLOW);
            stop.go_on();
            wait_for(DEADLINE, "it to be prepared", async || {
                shop.prepared().await[1] == 1
            })
            .await;
            proxy.latency(Duration::ZERO);
            proxy.cut();
            second.stop_immediately().await;
            second.restart().await;
        });
        let error = bought.await.expect_err("rolls back");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{form:?}: {error}");
        assert_eq!(shop.settle().await, both(""), "{form:?}");
        assert_eq!(coordinator.measures().heuristic, 0);
    }
}

#[tokio::test]
async fn row_8_a_connection_ends_before_prepare() {
    needs!();
    let shop = Shop::open().await;
    let proxy = Proxy::start(address(Postgres::shared(17).await)).await;
    let happens = Happens::default();
    let stop = happens.stop_at(Point::Preparing, "inventory");
    let inventory = by_proxy(&shop.inventory, &proxy);
    let coordinator = shop.through(Form::Full, shop.orders.url(), &inventory);
    let coordinator = coordinator.onlooker(happens).open().await.expect("opens");
    let bought = buys(&coordinator, &stop, async || {
        proxy.cut();
        stop.go_on();
    });
    let error = bought.await.expect_err("rolls back");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(shop.settle().await, both(""));
    assert_eq!(coordinator.measures().heuristic, 0);
}

#[tokio::test]
async fn row_9_the_reply_to_commit_prepared_is_lost() {
    needs!();
    for form in Form::BOTH {
        let shop = Shop::open().await;
        let proxy = Proxy::start(address(Postgres::shared(17).await)).await;
        let happens = Happens::default();
        let stop = happens.stop_at(Point::Ending, "inventory");
        let inventory = by_proxy(&shop.inventory, &proxy);
        let coordinator = shop.through(form, shop.orders.url(), &inventory);
        let coordinator = coordinator.onlooker(happens).open().await.expect("opens");
        let bought = buys(&coordinator, &stop, async || {
            proxy.latency(SLOW);
            stop.go_on();
            wait_for(DEADLINE, "it to be committed", async || {
                shop.prepared().await[1] == 0
            })
            .await;
            proxy.latency(Duration::ZERO);
            proxy.cut();
        });
        let bought = bought.await.expect("commits");
        assert!(bought.is_everywhere(), "{bought:?}");
        assert_eq!(shop.rows().await, both("1"), "{form:?}");
        assert_eq!(coordinator.measures().heuristic, 0);
    }
}

#[tokio::test]
async fn row_9_the_reply_to_the_decision_is_lost() {
    needs!();
    let shop = Shop::open().await;
    let form = Form::Marked;
    let proxy = Proxy::start(address(Postgres::shared(15).await)).await;
    let happens = Happens::default();
    let stop = happens.stop_at(Point::Deciding, "orders");
    let orders = by_proxy(&shop.orders, &proxy);
    let coordinator = shop.through(form, &orders, shop.inventory.url());
    let coordinator = coordinator.onlooker(happens).open().await.expect("opens");
    let bought = buys(&coordinator, &stop, async || {
        proxy.latency(SLOW);
        stop.go_on();
        wait_for(DEADLINE, "the decision", async || {
            shop.decisions(form).await == "1"
        })
        .await;
        proxy.latency(Duration::ZERO);
        proxy.cut();
    });
    let bought = bought.await.expect("commits");
    assert!(bought.is_everywhere(), "{bought:?}");
    assert_eq!(shop.settle().await, both("1"));
}

#[tokio::test]
async fn row_9_a_connection_that_breaks_without_a_word_holds_nobody_up() {
    needs!();
    let shop = Shop::open().await;
    let form = Form::Marked;
    let proxy = Proxy::start(address(Postgres::shared(15).await)).await;
    let happens = Happens::default();
    let stop = happens.stop_at(Point::Deciding, "orders");
    let orders = by_proxy(&shop.orders, &proxy);
    let settings = Settings {
        patience: DEADLINE,
        answer: Duration::from_millis(500),
        ..Settings::default()
    };
    let coordinator = shop.through(form, &orders, shop.inventory.url());
    let coordinator = coordinator
        .onlooker(happens)
        .settings(settings)
        .open()
        .await;
    let coordinator = coordinator.expect("opens");
    let newest = || proxy.connections().last().map_or(0, |line| line.number());
    let bought = buys(&coordinator, &stop, async || {
        let before = newest();
        proxy.black_hole(true);
        stop.go_on();
        wait_for(DEADLINE, "it to connect again", async || newest() > before).await;
        proxy.black_hole(false);
    });
    let error = bought.await.expect_err("rolls back");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(shop.settle().await, both(""));
    assert_eq!(shop.decisions(form).await, "0");
}

#[tokio::test]
async fn row_10_a_server_is_away_during_the_second_phase() {
    needs_own!();
    for form in Form::BOTH {
        let [first, second] = start().await;
        let shop = Shop::on(&first, &second).await;
        let happens = Happens::default();
        let stop = happens.stop_at(Point::Decided, form.log());
        // An hour, in small: all the time that the first tries take, and more.
        let settings = Settings {
            patience: Duration::from_secs(1),
            recover_every: Duration::from_millis(50),
            ..Settings::default()
        };
        let coordinator = shop.coordinator(form).onlooker(happens).settings(settings);
        let coordinator = coordinator.open().await.expect("opens");
        let bought = buys(&coordinator, &stop, async || {
            second.stop_immediately().await;
            stop.go_on();
        });
        let bought = bought.await.expect("is decided");
        assert_eq!(bought.behind, ["inventory".into()], "{form:?}");
        assert!(bought.astray.is_empty());
        let ids = "SELECT count(*) FROM t";
        assert_eq!(shop.orders.value(ids).await.as_deref(), Some("1"));
        assert_eq!(coordinator.measures().behind, 1);
        second.restart().await;
        coordinator.settled().await;
        assert_eq!(shop.rows().await, both("1"), "{form:?}");
        assert_eq!(shop.prepared().await, [0, 0]);
        assert_eq!(coordinator.measures().behind, 0);
    }
}

/// The server of `inventory` becomes another one that knows nothing of what was prepared.
async fn forgets(
    form: Form,
    shop: &Shop,
    coordinator: &Coordinator,
    stop: &Stop,
    becomes: impl AsyncFnOnce(),
) {
    let bought = buys(coordinator, stop, async || {
        becomes().await;
        stop.go_on();
    });
    let bought = bought.await.expect("is decided");
    assert_eq!(bought.astray, ["inventory".into()], "{form:?}: {bought:?}");
    assert_eq!(coordinator.measures().heuristic, 1);
    assert_eq!(shop.decisions(form).await, "1", "it stays on record");
}

#[tokio::test]
async fn row_11_a_failover_loses_what_was_prepared() {
    needs_own!();
    for form in Form::BOTH {
        let [first, second] = start().await;
        let shop = Shop::on(&first, &second).await;
        let standby = Postgres::start(PostgresOptions::standby_of(&second)).await;
        // It has the tables, and will have nothing of what comes.
        let there = shop.inventory.on(&standby);
        wait_for(DEADLINE, "the tables", async || {
            let client = there.client().await;
            client.query_one("SELECT count(*) FROM late", &[]).await
        })
        .await;
        standby.promote().await;
        let proxy = Proxy::start(address(&second)).await;
        let happens = Happens::default();
        let stop = happens.stop_at(Point::Decided, form.log());
        let inventory = by_proxy(&shop.inventory, &proxy);
        let coordinator = shop.through(form, shop.orders.url(), &inventory);
        let coordinator = coordinator.onlooker(happens).open().await.expect("opens");
        forgets(form, &shop, &coordinator, &stop, async || {
            proxy.forward_to(address(&standby));
            second.stop_immediately().await;
            // Numbers are given again.
            for id in 10..20 {
                there.execute(&format!("INSERT INTO t VALUES ({id})")).await;
            }
            proxy.cut();
        })
        .await;
    }
}

#[tokio::test]
async fn row_11_a_server_that_is_restored_has_lost_what_was_prepared() {
    needs_own!();
    for form in Form::BOTH {
        let [first, second] = start().await;
        let shop = Shop::on(&first, &second).await;
        let saved = second.stop_and_save().await;
        second.restart().await;
        // More than a server that is started leaves out.
        for id in 100..400 {
            shop.inventory
                .execute(&format!("INSERT INTO late VALUES ({id})"))
                .await;
        }
        let happens = Happens::default();
        let stop = happens.stop_at(Point::Decided, form.log());
        let coordinator = open(&shop, form, happens).await;
        forgets(form, &shop, &coordinator, &stop, async || {
            second.restore(&saved).await
        })
        .await;
    }
}

#[tokio::test]
async fn row_12_of_two_with_one_name_for_a_branch_the_second_ends_its_own_only() {
    needs!();
    let shop = Shop::open().await;
    let happens = Happens::default();
    let coordinator = open(&shop, Form::Full, happens).await;
    let purchase = coordinator
        .begin(["orders", "inventory"])
        .await
        .expect("begins");
    for client in purchase.branches() {
        client
            .batch_execute("INSERT INTO t VALUES (1)")
            .await
            .expect("inserts");
    }
    let gid = shop.gid(Form::Full, purchase.id(), 2).await;
    let other = format!("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION '{gid}'");
    shop.inventory.execute(&other).await;
    let error = purchase.commit().await.expect_err("rolls back");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.to_string().contains("already in use"), "{error}");
    assert!(gids(&shop.orders).await.is_empty());
    assert_eq!(gids(&shop.inventory).await, [gid], "the other one's");
    assert_eq!(shop.decisions(Form::Full).await, "0");
}

#[tokio::test]
async fn row_12_of_two_decisions_with_one_name_the_second_is_none() {
    needs!();
    for form in Form::BOTH {
        let shop = Shop::open().await;
        let coordinator = open(&shop, form, Happens::default()).await;
        let purchase = coordinator
            .begin(["orders", "inventory"])
            .await
            .expect("begins");
        for client in purchase.branches() {
            client
                .batch_execute("INSERT INTO t VALUES (1)")
                .await
                .expect("inserts");
        }
        let other = format!(
            "INSERT INTO lockstep.gtx_log VALUES ('{}', 0, '[]')",
            purchase.id()
        );
        shop.log(form).execute(&other).await;
        let error = purchase.commit().await.expect_err("rolls back");
        assert!(error.to_string().contains("gtx_log_pkey"), "{error}");
        assert_eq!(shop.settle().await, both(""), "{form:?}");
    }
}

#[tokio::test]
async fn row_13_a_coordinator_that_was_taken_over_from_must_roll_back() {
    needs!();
    for form in Form::BOTH {
        let shop = Shop::open().await;
        let happens = Happens::default();
        let stop = happens.stop_at(Point::AllPrepared, form.log());
        let zombie = open(&shop, form, happens).await;
        let mut next = None;
        let bought = buys(&zombie, &stop, async || {
            next = Some(open(&shop, form, Happens::default()).await);
            stop.go_on();
        });
        let error = bought.await.expect_err("rolls back");
        assert_eq!(error.kind(), ErrorKind::Busy, "{form:?}: {error}");
        assert!(error.to_string().contains("taken over"), "{error}");
        assert_eq!(shop.settle().await, both(""), "{form:?}");
        assert_eq!(shop.decisions(form).await, "0");
        let next = next.expect("opened");
        assert!(next.epoch() > zombie.epoch());
        let error = zombie.begin(["orders"]).await.err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert!(buy(&next, 2).await.expect("buys").is_everywhere());
    }
}

#[tokio::test]
async fn a_decision_under_way_is_waited_for_by_whoever_takes_over() {
    needs!();
    for form in Form::BOTH {
        let shop = Shop::open().await;
        let happens = Happens::default();
        let stop = happens.stop_at(Point::Deciding, form.log());
        let first = open(&shop, form, happens).await;
        let (mut next, waits) = (
            None,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
             AND query LIKE '%gtx_epoch SET closed%' AND datname = current_database()",
        );
        let takes_over = async {
            stop.reached().await;
            let opening = open(&shop, form, Happens::default());
            let sees_it_wait = async {
                wait_for(DEADLINE, "it to wait", async || {
                    shop.log(form).value(waits).await.as_deref() == Some("1")
                })
                .await;
                stop.go_on();
            };
            next = Some(tokio::join!(opening, sees_it_wait).0);
        };
        let (bought, ()) = tokio::join!(buy(&first, 1), takes_over);
        bought.expect("commits");
        assert_eq!(shop.settle().await, both("1"), "{form:?}");
        assert!(
            buy(&next.expect("opened"), 2)
                .await
                .expect("buys")
                .is_everywhere()
        );
    }
}

/// Rows 14 and 17: somebody rolls a branch back that is decided to commit.
#[tokio::test]
async fn row_14_a_branch_is_rolled_back_by_hand_behind_the_decision() {
    needs!();
    for form in Form::BOTH {
        let shop = Shop::open().await;
        let happens = Happens::default();
        let stop = happens.stop_at(Point::Ending, "inventory");
        let coordinator = open(&shop, form, happens).await;
        let bought = buys(&coordinator, &stop, async || {
            wait_for(DEADLINE, "the other one to commit", async || {
                shop.prepared().await[0] == 0
            })
            .await;
            let [gid] = &gids(&shop.inventory).await[..] else {
                panic!("one is prepared");
            };
            let by_hand = format!("ROLLBACK PREPARED '{gid}'");
            shop.inventory.execute(&by_hand).await;
            stop.go_on();
        });
        let bought = bought.await.expect("is decided");
        assert_eq!(bought.astray, ["inventory".into()], "{form:?}");
        assert_eq!(shop.settle().await, ["1".to_owned(), String::new()]);
        assert_eq!(coordinator.measures().heuristic, 1);
        assert_eq!(shop.decisions(form).await, "1", "it stays on record");
        // The next one tells it again.
        drop(coordinator);
        let next = open(&shop, form, Happens::default()).await;
        wait_for(DEADLINE, "it to be told again", async || {
            next.measures().heuristic == 1
        })
        .await;
    }
}

async fn start() -> [Postgres; 2] {
    let (first, second) = tokio::join!(
        Postgres::start(PostgresOptions::new(15)),
        Postgres::start(PostgresOptions::new(17))
    );
    [first, second]
}
