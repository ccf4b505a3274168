//! `lockstep transactions resolve` on what coordinators have left behind.

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_e2e::Setup;
use lockstep_kit::Component::Postgres as Needs;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{require_own, unique};
use lockstep_transactions::coordinator::{Coordinator, Direct, Onlooker, Point};
use serde_json::Value;
use tokio::sync::Notify;
use tokio_postgres::NoTls;

/// Two databases of one server, and a pipeline of them.
struct Shop {
    server: Postgres,
    orders: Database,
    inventory: Database,
    setup: Setup,
}

impl Shop {
    async fn open(section: &str) -> Self {
        let server = Postgres::start(PostgresOptions::new(16)).await;
        let [orders, inventory] = [
            server.database("orders").await,
            server.database("inventory").await,
        ];
        for database in [&orders, &inventory] {
            database
                .execute("CREATE TABLE t (id text PRIMARY KEY)")
                .await;
        }
        let name = unique("resolve");
        let setup = Setup::new(&name, |folder| {
            let source = |source: &str, database: &Database| {
                let text = crate::support::source(database.url(), &name, &["t"]);
                text.replace("sources.shop", &format!("sources.{source}"))
            };
            source("orders", &orders)
                + &source("inventory", &inventory)
                + &crate::support::files(folder)
                    .replace("[\"shop\"]", "[\"orders\", \"inventory\"]")
                + section
        });
        Shop {
            server,
            orders,
            inventory,
            setup,
        }
    }

    /// What the command tells of each branch, and its exit code.
    async fn resolve(&self, more: &[&str]) -> (Vec<Value>, Option<i32>) {
        let file = self.setup.file().display().to_string();
        let arguments = [
            &["transactions", "resolve", &file, "--format", "json"][..],
            more,
        ]
        .concat();
        let ended = self.setup.lockstep_with(&arguments, &[]).await;
        let told: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
        (
            told["branches"].as_array().cloned().unwrap_or_default(),
            ended.code(),
        )
    }

    /// Lines of the journal.
    fn journal(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.setup.state().join("transactions.jsonl"));
        let text = text.unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    async fn prepare(&self, database: &Database, gid: &str) {
        let work = format!("BEGIN; INSERT INTO t VALUES ('{gid}'); PREPARE TRANSACTION '{gid}'");
        database.execute(&work).await;
    }

    /// What is in `t`, and how much is prepared on the whole server.
    async fn holds(&self, database: &Database) -> (String, String) {
        let rows = "SELECT coalesce(string_agg(id, ',' ORDER BY id), '') FROM t";
        let rows = database.value(rows).await.expect("a text");
        let prepared = "SELECT count(*) FROM pg_prepared_xacts";
        (rows, self.server.value(prepared).await.expect("a count"))
    }
}

fn told<'a>(branches: &'a [Value], gid: &str) -> [&'a str; 3] {
    let one = branches.iter().find(|one| one["gid"] == gid);
    let one = one.unwrap_or_else(|| panic!("{gid} in {branches:?}"));
    ["action", "rule", "outcome"].map(|key| one[key].as_str().unwrap_or_default())
}

/// Stops everything that reaches a place.
struct StopAt(Point, Arc<Notify>);

#[async_trait]
impl Onlooker for StopAt {
    async fn reached(&self, point: Point, _: &str) {
        if point == self.0 {
            self.1.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// A purchase whose coordinator goes no further than there. Returns its branch in `inventory`.
async fn left_at(shop: &Shop, name: &str, point: Point) -> String {
    let direct = |database: &Database| Direct::new(database.url().parse().expect("a URL"), NoTls);
    let reached = Arc::new(Notify::new());
    let coordinator = Coordinator::builder(name)
        .database("orders", direct(&shop.orders))
        .database("inventory", direct(&shop.inventory))
        .log("orders")
        .onlooker(StopAt(point, Arc::clone(&reached)))
        .open()
        .await
        .expect("opens");
    let purchase = coordinator
        .begin(["orders", "inventory"])
        .await
        .expect("begins");
    let id = purchase.id().to_owned();
    for client in purchase.branches() {
        let insert = format!("INSERT INTO t VALUES ('{name}')");
        client.batch_execute(&insert).await.expect("inserts");
    }
    tokio::select! {
        _ = purchase.commit() => panic!("it stops"),
        () = reached.notified() => {}
    }
    let gid = format!("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE '{id}%'");
    shop.inventory.value(&gid).await.expect("prepared")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_decision_log_and_closed_epochs_decide() {
    require_own!(Needs(16));
    let shop = Shop::open("[transactions]\nlog = \"orders\"\nsafety_interval = \"0s\"\n").await;
    assert_eq!(shop.resolve(&[]).await, (Vec::new(), Some(0)));
    let decided = left_at(&shop, "a", Point::Decided).await;
    let open = left_at(&shop, "b", Point::AllPrepared).await;
    let closed = left_at(&shop, "c", Point::AllPrepared).await;
    let close = "UPDATE lockstep.gtx_epoch SET closed = now() WHERE coordinator = 'c'";
    shop.orders.execute(close).await;
    let (branches, code) = shop.resolve(&["--apply"]).await;
    assert_eq!(code, Some(0));
    assert_eq!(
        told(&branches, &decided),
        ["commit", "log", ""],
        "nobody is named"
    );
    assert_eq!(told(&branches, &closed), ["rollback", "epoch", ""]);
    assert_eq!(told(&branches, &open), ["leave alone", "none", ""]);
    let one = branches.iter().find(|one| one["gid"] == open).expect("one");
    assert!(
        one["why"]
            .as_str()
            .is_some_and(|why| why.contains("may still decide")),
        "{one}"
    );
    let (branches, code) = shop.resolve(&["--apply", "--manager", "lockstep"]).await;
    assert_eq!(code, Some(0));
    assert_eq!(told(&branches, &decided), ["commit", "log", "done"]);
    assert_eq!(told(&branches, &closed), ["rollback", "epoch", "done"]);
    assert_eq!(told(&branches, &open), ["leave alone", "none", ""]);
    assert_eq!(
        shop.holds(&shop.inventory).await,
        ("a".to_owned(), "1".to_owned())
    );
    let (branches, _) = shop.resolve(&[]).await;
    assert_eq!(branches.len(), 1, "{branches:?}");
    // A log that cannot be read says nothing, nor does one that is not there.
    shop.orders.execute("DROP SCHEMA lockstep CASCADE").await;
    let (branches, _) = shop.resolve(&[]).await;
    assert_eq!(told(&branches, &open), ["leave alone", "none", ""]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_young_is_left_alone() {
    require_own!(Needs(16));
    let section = "[transactions]\nresolve = [\"lockstep\"]\n";
    let shop = Shop::open(section).await;
    let decided = left_at(&shop, "a", Point::Decided).await;
    let (branches, _) = shop.resolve(&["--apply"]).await;
    assert_eq!(told(&branches, &decided), ["commit", "log", ""]);
    let held = branches[0]["held"].as_str().unwrap_or_default();
    assert!(held.contains("left alone before 60 s"), "{held}");
    // A person need not wait, and may not decide against the log.
    let file = shop.setup.file().display().to_string();
    let against = [
        "transactions",
        "resolve",
        &file,
        "--gid",
        &decided,
        "--rollback",
        "--apply",
    ];
    let ended = shop.setup.lockstep_with(&against, &[]).await;
    assert_eq!(ended.code(), Some(2), "{ended:?}");
    assert!(
        ended.error().contains("it is in the decision log"),
        "{ended:?}"
    );
    let (branches, _) = shop
        .resolve(&["--gid", &decided, "--commit", "--apply"])
        .await;
    assert_eq!(told(&branches, &decided), ["commit", "person", "done"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_other_coordinators_decide() {
    require_own!(Needs(16));
    let section =
        "[transactions]\nresolve = [\"dtm\", \"seata\", \"citus\"]\nsafety_interval = \"0s\"\n";
    let shop = Shop::open(section).await;
    shop.orders
        .execute(
            "CREATE SCHEMA dtm; CREATE TABLE dtm.trans_global (id bigint GENERATED ALWAYS AS IDENTITY, gid varchar(128) NOT NULL, \
               trans_type varchar(45) NOT NULL, status varchar(45) NOT NULL, create_time timestamptz, UNIQUE (gid)); \
             INSERT INTO dtm.trans_global (gid, trans_type, status) VALUES ('2222222222222222222222', 'xa', 'submitted'), \
               ('3333333333333333333333', 'xa', 'aborting'), ('4444444444444444444444', 'xa', 'prepared')",
        )
        .await;
    shop.inventory
        .execute(
            "CREATE TABLE public.global_table (xid varchar(128) NOT NULL PRIMARY KEY, transaction_id bigint, status smallint NOT NULL); \
             INSERT INTO public.global_table VALUES ('10.0.0.1:8091:7', 7, 3), ('10.0.0.1:8091:8', 8, 6), ('10.0.0.1:8091:9', 9, 1); \
             SET allow_system_table_mods = on; \
             CREATE TABLE pg_catalog.pg_dist_transaction (groupid int NOT NULL, gid text NOT NULL, UNIQUE (groupid, gid)); \
             INSERT INTO pg_catalog.pg_dist_transaction VALUES (1, 'citus_0_4711_5_1')",
        )
        .await;
    // `10.0.0.1:8091:7`, `:8`, `:9` and `:5` in base 64, with a branch.
    let seata = |last: &str| format!("9752_MTAuMC4wLjE6ODA5MTo{last}_LTE=");
    let expected = [
        ("2222222222222222222222-01".to_owned(), "commit", "manager"),
        (
            "3333333333333333333333-01".to_owned(),
            "rollback",
            "manager",
        ),
        (
            "4444444444444444444444-01".to_owned(),
            "leave alone",
            "none",
        ),
        // The table does not have it: that says nothing.
        (
            "5555555555555555555555-01".to_owned(),
            "leave alone",
            "none",
        ),
        (seata("3"), "commit", "manager"),
        (seata("4"), "rollback", "manager"),
        (seata("5"), "leave alone", "none"),
        (seata("1"), "leave alone", "none"),
        ("citus_0_4711_5_1".to_owned(), "commit", "manager"),
        ("citus_0_4711_6_1".to_owned(), "leave alone", "none"),
        ("by hand".to_owned(), "leave alone", "none"),
    ];
    for (gid, ..) in &expected {
        shop.prepare(&shop.inventory, gid).await;
    }
    let (branches, code) = shop.resolve(&[]).await;
    assert_eq!((branches.len(), code), (expected.len(), Some(0)));
    for (gid, action, rule) in &expected {
        assert_eq!(told(&branches, gid), [*action, *rule, ""], "{gid}");
    }
    assert!(shop.journal().is_empty());
    let all = expected.len().to_string();
    assert_eq!(
        shop.holds(&shop.inventory).await,
        (String::new(), all),
        "nothing was done"
    );
    let (branches, code) = shop.resolve(&["--apply"]).await;
    assert_eq!(code, Some(0));
    for (gid, action, rule) in &expected {
        let outcome = if *rule == "manager" { "done" } else { "" };
        assert_eq!(told(&branches, gid), [*action, *rule, outcome], "{gid}");
    }
    let committed = format!("2222222222222222222222-01,{},citus_0_4711_5_1", seata("3"));
    assert_eq!(
        shop.holds(&shop.inventory).await,
        (committed, "6".to_owned())
    );
    assert_eq!(shop.journal().len(), 2 * 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_decides_one_and_the_journal_says_who() {
    require_own!(Needs(16));
    let shop = Shop::open("").await;
    for gid in ["one", "two", "three"] {
        shop.prepare(&shop.orders, gid).await;
    }
    let (branches, _) = shop.resolve(&["--apply", "--manager", "plain"]).await;
    assert_eq!(
        told(&branches, "one"),
        ["leave alone", "none", ""],
        "nobody knows"
    );
    let (branches, _) = shop.resolve(&["--gid", "one", "--commit"]).await;
    assert_eq!(branches.len(), 1);
    assert_eq!(
        told(&branches, "one"),
        ["commit", "person", ""],
        "only told"
    );
    for (gid, flag) in [("one", "--commit"), ("two", "--rollback")] {
        let (branches, code) = shop.resolve(&["--gid", gid, flag, "--apply"]).await;
        assert_eq!((told(&branches, gid)[2], code), ("done", Some(0)));
    }
    assert_eq!(
        shop.holds(&shop.orders).await,
        ("one".to_owned(), "1".to_owned())
    );
    let journal = shop.journal();
    let states: Vec<_> = journal
        .iter()
        .map(|line| (&line["gid"], &line["action"], &line["state"]))
        .collect();
    let states: Vec<String> = states.iter().map(|state| format!("{state:?}")).collect();
    assert_eq!(states.len(), 4, "{states:?}");
    assert!(
        states[0].contains("one") && states[0].contains("begun"),
        "{states:?}"
    );
    assert!(
        states[3].contains("rollback") && states[3].contains("ended"),
        "{states:?}"
    );
    assert!(
        journal
            .iter()
            .all(|line| line["by"].is_string() && line["rule"] == "person")
    );
    let file = shop.setup.file().display().to_string();
    for wrong in [
        &["--gid", "four", "--commit"][..],
        &["--gid", "three"],
        &["--commit"],
        &["--gid", "three", "--commit", "--rollback"],
        &["--manager", "narayanna"],
    ] {
        let arguments = [&["transactions", "resolve", &file][..], wrong].concat();
        let ended = shop.setup.lockstep_with(&arguments, &[]).await;
        assert_eq!(ended.code(), Some(2), "{wrong:?}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_may_not_do_is_told_with_who_may() {
    require_own!(Needs(16));
    let shop = Shop::open("").await;
    shop.prepare(&shop.orders, "one").await;
    shop.server.execute("CREATE ROLE clerk LOGIN").await;
    let text = std::fs::read_to_string(shop.setup.file()).expect("the file");
    shop.setup.write(&text.replace("postgres@", "clerk@"));
    let (branches, code) = shop.resolve(&["--gid", "one", "--commit", "--apply"]).await;
    assert_eq!(code, Some(1));
    let [_, _, outcome] = told(&branches, "one");
    for word in [
        "LS005 sources.orders",
        "42501",
        "`postgres`, who prepared it",
    ] {
        assert!(outcome.contains(word), "{outcome}");
    }
    assert_eq!(shop.journal()[1]["state"], "failed");
    // An unreachable database is an error of the whole: what is in it is not known.
    shop.server.stop_immediately().await;
    let file = shop.setup.file().display().to_string();
    let ended = shop
        .setup
        .lockstep_with(&["transactions", "resolve", &file], &[])
        .await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
}
