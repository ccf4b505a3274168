//! What a coordinator has left behind, ended by what the running pipeline has read of the other branches.

use std::path::Path;
use std::time::Duration;

use lockstep_e2e::{Pipeline, Setup};
use lockstep_kit::Component::Postgres as Needs;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{require_own, unique, wait_for};
use serde_json::Value;

use crate::support::{end_of_log, source};

const CATCH_UP: Duration = Duration::from_secs(60);

/// Two databases of one server, and a pipeline that puts their transactions together.
pub struct Shop {
    pub orders: Database,
    pub inventory: Database,
    pub setup: Setup,
    pub server: Postgres,
    /// Slots have it, with the name of their source behind it.
    name: String,
}

/// The gid of a branch as Narayana would give it, of a transaction with one letter for a name.
pub fn gid(name: &str, branch: u8) -> String {
    // `name` and `branch` in base 64 are these texts: what counts is that they can be read.
    format!("131077_{name}A==_{branch}w==")
}

impl Shop {
    async fn open() -> Self {
        let by_hand = "resolve = [\"narayana\"]\nsafety_interval = \"0s\"\n";
        Self::open_with(by_hand, |_| String::new()).await
    }

    /// With a section `[transactions]` of these lines, and more in the file.
    pub async fn open_with(transactions: &str, more: impl FnOnce(&Path) -> String) -> Self {
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
        let name = unique("evidence");
        let setup = Setup::new(&name, |folder| {
            let section = |of: &str, database: &Database| {
                let slot = format!("{name}_{of}");
                let section = source(database.url(), &slot, &["t"]);
                section.replace("sources.shop", &format!("sources.{of}")) + "two_phase = true\n"
            };
            section("orders", &orders)
                + &section("inventory", &inventory)
                + "[transforms.whole]\ntype = \"stitch\"\ninputs = [\"orders\", \"inventory\"]\n"
                + &format!(
                    "[sinks.files]\ntype = \"file\"\ninputs = [\"whole\"]\npath = \"{}/all.jsonl\"\n",
                    folder.display()
                )
                + &format!("[transactions]\n{transactions}")
                + &more(folder)
        });
        Shop {
            orders,
            inventory,
            setup,
            server,
            name,
        }
    }

    pub async fn start(&self) -> Pipeline {
        let mut pipeline = self.setup.start_ready().await;
        pipeline.wait_streaming("orders").await;
        pipeline.wait_streaming("inventory").await;
        pipeline
    }

    /// Prepares both branches of a transaction that writes its name into both.
    pub async fn prepare(&self, name: &str) {
        for (database, branch) in [(&self.orders, 1), (&self.inventory, 2)] {
            let gid = gid(name, branch);
            let work =
                format!("BEGIN; INSERT INTO t VALUES ('{name}'); PREPARE TRANSACTION '{gid}'");
            database.execute(&work).await;
        }
    }

    /// Until the pipeline has read all that is prepared.
    pub async fn read(&self, pipeline: &mut Pipeline, in_doubt: usize) {
        pipeline
            .until(CATCH_UP, "what is in doubt to be read", async |pipeline| {
                let (_, told) = pipeline
                    .get("/api/transactions")
                    .await
                    .map_err(|error| error.to_string())?;
                let told: Value = serde_json::from_str(&told).map_err(|error| error.to_string())?;
                let count = told["branches"].as_array().map_or(0, Vec::len);
                let is_read = told["complete"] == true && count == in_doubt;
                is_read.then_some(()).ok_or_else(|| told.to_string())
            })
            .await;
    }

    /// What the command tells of each branch in doubt, with what it notes besides.
    async fn resolve(
        &self,
        pipeline: Option<&mut Pipeline>,
        more: &[&str],
    ) -> (Vec<Value>, String) {
        let file = self.setup.file().display().to_string();
        let url = match pipeline {
            Some(pipeline) => pipeline.url().await,
            // The discard port: nobody answers there.
            None => "http://127.0.0.1:9".to_owned(),
        };
        let arguments = [
            &[
                "transactions",
                "resolve",
                &file,
                "--format",
                "json",
                "--url",
                &url,
            ][..],
            more,
        ]
        .concat();
        let ended = self.setup.lockstep_with(&arguments, &[]).await;
        let told: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        let branches = told["branches"].as_array().cloned().unwrap_or_default();
        (branches, told["notes"].to_string())
    }

    /// The names that both databases have.
    async fn rows(&self) -> [String; 2] {
        let ask = "SELECT coalesce(string_agg(id, ' ' ORDER BY id), '') FROM t";
        let orders = self.orders.value(ask).await.expect("a text");
        let inventory = self.inventory.value(ask).await.expect("a text");
        [orders, inventory]
    }

    /// The names that arrived, with the sources they came from.
    pub fn arrived(&self) -> Vec<(String, String)> {
        let records = lockstep_e2e::topics::read_file(&self.setup.folder().join("all.jsonl"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let rows = records.iter().map(|record| {
            let id = text(&record.value["after"]["id"]);
            (id, text(&record.value["source"]["db"]))
        });
        rows.collect()
    }

    pub async fn caught_up(&self, pipeline: &mut Pipeline) {
        for (name, database) in [("orders", &self.orders), ("inventory", &self.inventory)] {
            let end = end_of_log(database).await;
            pipeline.wait_visible(name, &end, CATCH_UP).await;
        }
    }
}

/// What is to become of a branch, by which rule, and what came of it.
fn told<'a>(branches: &'a [Value], gid: &str) -> [&'a str; 3] {
    let one = branches.iter().find(|one| one["gid"] == gid);
    let one = one.unwrap_or_else(|| panic!("{gid} in {branches:?}"));
    ["action", "rule", "outcome"].map(|key| one[key].as_str().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sibling_that_has_committed_or_was_rolled_back_decides_what_was_left_behind() {
    require_own!(Needs(16));
    let shop = Shop::open().await;
    let mut pipeline = shop.start().await;
    const ALONE: [&str; 3] = ["leave alone", "none", ""];
    for name in ["A", "B", "C"] {
        shop.prepare(name).await;
    }
    shop.read(&mut pipeline, 6).await;

    // All are prepared, and nobody has decided: that decides nothing.
    let (branches, notes) = shop.resolve(Some(&mut pipeline), &["--apply"]).await;
    assert_eq!((branches.len(), &*notes), (6, "[]"));
    for name in ["A", "B", "C"] {
        assert_eq!(told(&branches, &gid(name, 1)), ALONE);
        assert_eq!(told(&branches, &gid(name, 2)), ALONE);
    }

    // The coordinator has gone between the two commits of A, and between the two rollbacks of B. It has no log that could be read.
    let ended = |word: &str, name: &str| format!("{word} PREPARED '{}'", gid(name, 1));
    shop.orders.execute(&ended("COMMIT", "A")).await;
    shop.orders.execute(&ended("ROLLBACK", "B")).await;
    let (branches, notes) = shop.resolve(None, &["--apply"]).await;
    assert_eq!(branches.len(), 4);
    assert!(
        branches.iter().all(|one| one["rule"] == "none"),
        "nobody was asked: {branches:?}"
    );
    assert!(notes.contains("other branches is not known"), "{notes}");

    // A restart reads it again: nothing of it is confirmed while it waits.
    shop.read(&mut pipeline, 4).await;
    pipeline.kill9();
    let mut pipeline = shop.start().await;
    shop.read(&mut pipeline, 4).await;
    let (branches, _) = shop.resolve(Some(&mut pipeline), &[]).await;
    assert_eq!(told(&branches, &gid("A", 2)), ["commit", "evidence", ""]);
    let one = branches.iter().find(|one| one["gid"] == gid("A", 2));
    assert_eq!(
        one.expect("there")["why"],
        "its branch in orders has committed"
    );
    assert_eq!(shop.rows().await, ["A", ""], "only told");

    shop.prepare("D").await;
    shop.read(&mut pipeline, 6).await;
    shop.orders.execute(&ended("ROLLBACK", "D")).await;
    let (branches, notes) = shop.resolve(Some(&mut pipeline), &["--apply"]).await;
    assert_eq!(notes, "[]");
    assert_eq!(
        told(&branches, &gid("A", 2)),
        ["commit", "evidence", "done"]
    );
    assert_eq!(
        told(&branches, &gid("D", 2)),
        ["rollback", "evidence", "done"]
    );
    for branch in [1, 2] {
        assert_eq!(told(&branches, &gid("C", branch)), ALONE);
    }
    assert_eq!(shop.rows().await, ["A", "A"]);

    // What came after: nothing waits but for C, and the purchase has arrived in both.
    shop.inventory
        .execute("INSERT INTO t VALUES ('last')")
        .await;
    shop.caught_up(&mut pipeline).await;
    assert!(pipeline.terminate(CATCH_UP).await.success());
    let mut arrived = shop.arrived();
    arrived.sort();
    let names: Vec<&str> = arrived.iter().map(|(id, _)| &**id).collect();
    assert_eq!(names, ["A", "A", "last"]);
}

/// What ended under a name before is of the same transaction where a coordinator gives no name twice, and nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_under_the_same_name_before_counts_where_names_are_given_once() {
    require_own!(Needs(16));
    let shop = Shop::open().await;
    let mut pipeline = shop.start().await;
    let branch = async |database: &Database, gid: &str, end: Option<&str>| {
        let work = format!("BEGIN; INSERT INTO t VALUES ('{gid}'); PREPARE TRANSACTION '{gid}'");
        database.execute(&work).await;
        if let Some(end) = end {
            database.execute(&format!("{end} PREPARED '{gid}'")).await;
        }
    };
    let plain = |name: &str| [name.to_owned(), name.to_owned()];
    let once = |name: &str| [gid(name, 1), gid(name, 2)];
    let cases = [
        (plain("one"), "COMMIT", "none"),
        (plain("two"), "ROLLBACK", "none"),
        (once("A"), "COMMIT", "evidence"),
        (once("B"), "ROLLBACK", "evidence"),
    ];
    for ([first, _], end, _) in &cases {
        branch(&shop.orders, first, Some(end)).await;
    }
    shop.caught_up(&mut pipeline).await;
    for ([_, second], ..) in &cases {
        branch(&shop.inventory, second, None).await;
    }
    shop.read(&mut pipeline, cases.len()).await;
    let (branches, notes) = shop
        .resolve(Some(&mut pipeline), &["--manager", "plain"])
        .await;
    assert_eq!((branches.len(), &*notes), (cases.len(), "[]"));
    for ([_, second], end, rule) in &cases {
        let [action, by, _] = told(&branches, second);
        let expected = match *rule {
            "none" => "leave alone".to_owned(),
            _ => end.to_lowercase(),
        };
        assert_eq!((action, by), (&*expected, *rule), "{second}");
    }
    assert!(pipeline.terminate(CATCH_UP).await.success());
}

/// Of a branch that was rolled back, and of one that committed and changed nothing that is followed, nothing comes again once their source is
/// confirmed past them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_of_siblings_is_known_after_a_kill() {
    require_own!(Needs(16));
    let shop = Shop::open().await;
    let unseen = "CREATE TABLE unseen (id text PRIMARY KEY)";
    shop.orders.execute(unseen).await;
    let mut pipeline = shop.start().await;
    shop.prepare("A").await;
    let prepare = |table: &str, gid: &str| {
        format!("BEGIN; INSERT INTO {table} VALUES ('{gid}'); PREPARE TRANSACTION '{gid}'")
    };
    shop.orders.execute(&prepare("unseen", &gid("B", 1))).await;
    shop.inventory.execute(&prepare("t", &gid("B", 2))).await;
    shop.read(&mut pipeline, 4).await;
    for (word, gid) in [("ROLLBACK", gid("A", 1)), ("COMMIT", gid("B", 1))] {
        shop.orders
            .execute(&format!("{word} PREPARED '{gid}'"))
            .await;
    }
    let end = end_of_log(&shop.orders).await;
    shop.orders.execute("INSERT INTO t VALUES ('more')").await;
    let confirmed = format!(
        "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{}_orders'",
        shop.name
    );
    wait_for(CATCH_UP, "orders to be confirmed", async || {
        match shop.orders.value(&confirmed).await.as_deref() {
            Some("t") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    pipeline.kill9();

    let mut pipeline = shop.start().await;
    shop.read(&mut pipeline, 2).await;
    let (branches, notes) = shop.resolve(Some(&mut pipeline), &["--apply"]).await;
    assert_eq!((branches.len(), &*notes), (2, "[]"));
    for (gid, action) in [(gid("A", 2), "rollback"), (gid("B", 2), "commit")] {
        assert_eq!(told(&branches, &gid), [action, "evidence", "done"], "{gid}");
    }
    shop.caught_up(&mut pipeline).await;
    let kept = shop.setup.state().join("sources/inventory/evidence.json");
    wait_for(CATCH_UP, "nothing to be kept any more", async || {
        let text = std::fs::read_to_string(&kept).map_err(|error| error.to_string())?;
        let kept: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let is_empty = kept["branches"].as_array().is_some_and(Vec::is_empty);
        is_empty.then_some(()).ok_or(text)
    })
    .await;
    assert!(pipeline.terminate(CATCH_UP).await.success());
    let arrived = shop.arrived();
    let mut names: Vec<&str> = arrived.iter().map(|(id, _)| &**id).collect();
    names.sort_unstable();
    assert_eq!(names, [&*gid("B", 2), "more"]);
}
