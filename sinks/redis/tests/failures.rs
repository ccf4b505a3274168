//! Servers that refuse, forget, stall and die.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_core::error::Policy;
use lockstep_core::sink::{Sink, SinkFactory};
use lockstep_core::{Error, ErrorKind};
use lockstep_kit::Component::{Redis, RedisCluster};
use lockstep_kit::proxy::Proxy;
use lockstep_kit::redis::{Redis as Server, RedisOptions, Reply};
use lockstep_kit::redis_cluster::RedisCluster as Cluster;
use lockstep_kit::wait_for;
use lockstep_sink_redis::RedisFactory;
use serde_json::json;
use support::{Lab, Null, PATIENCE, Same, T, counts, deliver, table};

fn options(config: &[(&str, &str)]) -> RedisOptions {
    RedisOptions {
        append_only: false,
        config: config
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
    }
}

async fn configure(server: &Server, name: &str, value: &str) {
    let reply = server
        .command(&["CONFIG", "SET", name, value])
        .await
        .expect("reached");
    assert_eq!(reply, Reply::Text("OK".into()));
}

/// The error of a write that must fail.
async fn refused(sink: &mut Box<dyn Sink>, batch: Arc<lockstep_core::batch::Batch>) -> Error {
    deliver(sink, batch).await.expect_err("the server refuses")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_is_refused_and_named() {
    lockstep_kit::require!(Redis);
    let lab = Lab::single(Server::shared().await.url(), json!({})).await;
    let orders = lab.orders();
    for (format, seven) in [("json", "7"), ("hash", "8")] {
        let lab = lab.with(json!({ "value": format }));
        let mut sink = lab.open().await;
        lab.ask(&["LPUSH", &lab.key(seven), "x"]).await;
        let mut maker = lab.make().commit(100);
        let ids: Vec<String> = (1000..1300).map(|id: u32| id.to_string()).collect();
        for id in &ids {
            maker = maker.insert(&orders, &[T(id), T("x"), Null, Null]);
        }
        let batch = maker
            .update(&orders, &[T(seven), T("x"), Same, Null])
            .stream();
        let error = refused(&mut sink, batch).await;
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains(&lab.key(seven)), "{error}");
        assert!(error.remedy_text().is_some());
        // Of all the writes that went along, this one alone.
        let named: Vec<_> = error
            .refusals()
            .iter()
            .map(|refusal| (refusal.position.ordinal, refusal.reason))
            .collect();
        assert_eq!(named, [(301, "wrong_type")]);
        assert!(!error.is_suspicion());
        assert_eq!(
            sink.resume(&lab.source)
                .await
                .expect("asked")
                .map(|held| held.upto()),
            None,
            "nothing counts as written"
        );
        // The sink is spent: whoever writes on learns why.
        let batch = lab
            .make()
            .commit(200)
            .insert(&orders, &[T("1"), T("x"), Null, Null])
            .stream();
        let error = match sink.write(batch).await {
            Ok(durable) => durable.await.expect_err("spent"),
            Err(error) => error,
        };
        assert!(
            [ErrorKind::Refused, ErrorKind::Abandoned].contains(&error.kind()),
            "{error}"
        );
        assert!(sink.close().await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_makes_the_sink_wait() {
    lockstep_kit::require!(Redis);
    let server = Server::start(options(&[
        ("maxmemory", "4mb"),
        ("maxmemory-policy", "noeviction"),
    ]))
    .await;
    let lab = Lab::single(server.url(), json!({})).await;
    let orders = lab.orders();
    let big = "x".repeat(20_000);
    let batches = || {
        (1..=400_u64).map(|commit| {
            let id = commit.to_string();
            lab.make()
                .commit(commit)
                .insert(&orders, &[T(&id), T(&big), Null, Null])
                .stream()
        })
    };
    let mut sink = lab.open().await;
    let mut durables = Vec::new();
    for batch in batches() {
        let Ok(durable) = sink.write(batch).await else {
            break;
        };
        durables.push(durable);
    }
    let mut outcomes = Vec::new();
    for durable in durables {
        outcomes.push(
            tokio::time::timeout(PATIENCE, durable)
                .await
                .expect("in time"),
        );
    }
    let good = outcomes
        .iter()
        .take_while(|outcome| outcome.is_ok())
        .count();
    let error = outcomes[good].as_ref().expect_err("4 MB do not hold 8 MB");
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert_eq!(error.kind().policy(), Policy::Retry);
    assert!(
        outcomes[good..].iter().all(Result::is_err),
        "nothing after the failure counts as written"
    );
    drop(sink);

    configure(&server, "maxmemory", "0").await;
    let mut sink = lab.open().await;
    let resumed = sink
        .resume(&lab.source)
        .await
        .expect("asked")
        .map_or(0, |held| held.upto().commit.0);
    assert!(
        resumed >= good as u64,
        "what was reported durable is behind: {resumed} < {good}"
    );
    for batch in batches() {
        deliver(&mut sink, batch).await.expect("there is room");
    }
    assert_eq!(
        lab.inspect().await.count(&orders).await.expect("counted"),
        400
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_not_written() {
    lockstep_kit::require!(Redis);
    let (primary, replica) = (
        Server::start(options(&[])).await,
        Server::start(options(&[])).await,
    );
    let lab = Lab::single(replica.url(), json!({})).await;
    let mut sink = lab.open().await;
    let port = primary.port().to_string();
    replica
        .command(&["REPLICAOF", "127.0.0.1", &port])
        .await
        .expect("reached");
    let batch = lab
        .make()
        .commit(1)
        .insert(&lab.orders(), &[T("1"), T("x"), Null, Null])
        .stream();
    let error = refused(&mut sink, batch).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("READONLY"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_and_rights() {
    lockstep_kit::require!(Redis);
    let server = Server::start(options(&[])).await;
    let rights = [
        "ACL", "SETUSER", "reader", "on", ">right", "~*", "+@all", "-mset",
    ];
    server.command(&rights).await.expect("reached");
    configure(&server, "requirepass", "secret").await;
    let url = |user: &str| format!("redis://{user}@{}", server.address());

    for (user, kind) in [
        ("reader:wrong", ErrorKind::Authentication),
        (":wrong", ErrorKind::Authentication),
    ] {
        let error = Lab::single(&url(user), json!({}))
            .await
            .try_open()
            .await
            .err()
            .expect("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(
            !error.to_string().contains("wrong"),
            "the password shows: {error}"
        );
    }
    let error = Lab::single(server.url(), json!({}))
        .await
        .try_open()
        .await
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");

    let lab = Lab::single(&url("reader:right"), json!({})).await;
    let mut sink = lab.open().await;
    let batch = lab
        .make()
        .commit(1)
        .insert(&lab.orders(), &[T("1"), T("x"), Null, Null])
        .stream();
    let error = refused(&mut sink, batch).await;
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");

    let lab = Lab::single(&url(":secret"), json!({})).await;
    let mut sink = lab.open().await;
    let batch = lab
        .make()
        .commit(1)
        .insert(&lab.orders(), &[T("1"), T("x"), Null, Null])
        .stream();
    assert_eq!(counts(&mut sink, batch).await, (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there() {
    let config = json!({ "url": "redis://127.0.0.1:1", "connect_timeout": "1s" });
    let config = serde_json::from_value(config).expect("a section");
    let lab = Lab::single("redis://127.0.0.1:1", json!({})).await;
    let error = RedisFactory::open(&config, lab.context())
        .await
        .err()
        .expect("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_that_were_lost_come_back() {
    lockstep_kit::require!(Redis);
    let server = Server::start(options(&[])).await;
    let lab = Lab::single(server.url(), json!({})).await;
    let (mut sink, orders) = (lab.open().await, lab.orders());
    for commit in 1..=3 {
        lab.ask(&["SCRIPT", "FLUSH"]).await;
        let batch = lab
            .make()
            .commit(commit)
            .update(&orders, &[T("1"), T("x"), Null, Null])
            .delete(&orders, "2")
            .truncate(&table("shop", "others", &[("id", 20, "int8")]))
            .stream();
        deliver(&mut sink, batch).await.expect("delivered");
    }
    assert!(lab.row("1").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_whose_keys_could_meet_do_not_open() {
    lockstep_kit::require!(Redis);
    let lab = Lab::single(
        Server::shared().await.url(),
        json!({ "key": "{table}_{key}" }),
    )
    .await;
    let mut context = lab.context();
    context.tables = vec![
        lab.orders(),
        table("shop", "orders_archive", &[("id", 20, "int8")]),
    ];
    let error = RedisFactory::open(&lab.config, context)
        .await
        .err()
        .expect("they could meet");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

/// Writes commits 1 to `last`, four at a time under way, going on after every failure as the runtime does.
async fn write_through(lab: &Lab, last: u64, mut disturb: impl AsyncFnMut(u64)) {
    let orders = lab.orders();
    let mut failures = 0;
    loop {
        let Ok(mut sink) = lab.try_open().await else {
            failures += 1;
            assert!(failures < 1000, "it never comes back");
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // What is not there (a cache that restarted empty) is written from the beginning.
        let Ok(from) = sink.resume(&lab.source).await else {
            continue;
        };
        let from = from.map_or(1, |held| held.upto().commit.0 + 1);
        let mut durables = Vec::new();
        for commit in from..=last {
            disturb(commit).await;
            let id = (commit % 50).to_string();
            let name = commit.to_string();
            let gone = ((commit + 25) % 50).to_string();
            let batch = lab
                .make()
                .commit(commit)
                .update(&orders, &[T(&id), T(&name), Null, Null])
                .delete(&orders, &gone)
                .stream();
            match sink.write(batch).await {
                Ok(durable) => durables.push(durable),
                Err(error) => {
                    assert_eq!(error.kind().policy(), Policy::Retry, "{error}");
                    break;
                }
            }
        }
        let mut broken = None;
        for durable in durables {
            match tokio::time::timeout(PATIENCE, durable)
                .await
                .expect("in time")
            {
                Ok(_) => assert!(broken.is_none(), "durable after a failure"),
                Err(error) => broken = Some(error),
            }
        }
        let reached = sink
            .resume(&lab.source)
            .await
            .ok()
            .flatten()
            .map_or(0, |held| held.upto().commit.0);
        match broken {
            Some(error) => assert_eq!(error.kind().policy(), Policy::Retry, "{error}"),
            None if reached == last => return,
            None => {}
        }
    }
}

async fn check_end_state(lab: &Lab, last: u64) {
    for id in 0..50_u64 {
        let wrote = (1..=last)
            .rev()
            .find(|commit| commit % 50 == id)
            .expect("enough commits");
        let deleted = (1..=last)
            .rev()
            .find(|commit| (commit + 25) % 50 == id)
            .expect("enough commits");
        let expected = (wrote > deleted)
            .then(|| format!(r#"{{"id":{id},"name":"{wrote}","doc":null,"price":null}}"#));
        assert_eq!(lab.row(&id.to_string()).await, expected, "row {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle() {
    lockstep_kit::require!(Redis);
    let server = Server::start(RedisOptions {
        append_only: true,
        config: vec![("appendfsync".into(), "always".into())],
    })
    .await;
    let lab = Lab::single(server.url(), json!({})).await;
    let mut kills = 0;
    write_through(&lab, 3000, async |commit| {
        if commit == 500 * (kills + 1) && kills < 5 {
            kills += 1;
            server.kill();
            server.restart().await;
        }
    })
    .await;
    assert_eq!(kills, 5);
    let lab = lab.fresh(server.url()).await;
    check_end_state(&lab, 3000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_and_one_that_stalls() {
    lockstep_kit::require!(Redis);
    let server = Server::start(options(&[])).await;
    let proxy = Proxy::start(server.address()).await;
    let url = format!("redis://{}", proxy.address());
    let lab = Lab::single(server.url(), json!({})).await;
    let through =
        lab.with(json!({ "url": url, "response_timeout": "300ms", "connect_timeout": "300ms" }));

    let mut sink = through.open().await;
    proxy.pause(true);
    let begun = Instant::now();
    let batch = lab
        .make()
        .commit(1)
        .insert(&lab.orders(), &[T("1"), T("x"), Null, Null])
        .stream();
    let error = refused(&mut sink, batch).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let error = through
        .try_open()
        .await
        .err()
        .expect("the server is silent");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    proxy.pause(false);

    let mut cuts = 0;
    write_through(&through, 2000, async |commit| {
        if commit == 300 * (cuts + 1) && cuts < 5 {
            cuts += 1;
            proxy.cut();
        }
    })
    .await;
    assert_eq!(cuts, 5);
    check_end_state(&lab, 2000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_the_cluster_dies_and_comes_back() {
    lockstep_kit::require!(RedisCluster);
    let cluster = Cluster::start().await;
    for node in cluster.nodes() {
        // What a dead node held is lost here; the test is about going on.
        configure(node, "cluster-require-full-coverage", "no").await;
    }
    let lab = Lab::cluster(
        &cluster.urls(),
        json!({ "response_timeout": "1s", "connect_timeout": "1s" }),
    )
    .await;
    let (mut sink, orders) = (lab.open().await, lab.orders());
    let batch = |commit: u64| {
        let mut maker = lab.make().commit(commit);
        for id in 0..100_u32 {
            maker = maker.insert(&orders, &[T(&id.to_string()), T("x"), Null, Null]);
        }
        maker.stream()
    };
    assert_eq!(counts(&mut sink, batch(1)).await, (100, 0));
    cluster.nodes()[1].kill();
    let error = refused(&mut sink, batch(2)).await;
    assert_eq!(error.kind().policy(), Policy::Retry, "{error}");
    drop(sink);
    cluster.nodes()[1].restart().await;
    cluster.healthy().await;
    wait_for(PATIENCE, "the sink writes again", async || {
        let mut sink = lab.try_open().await?;
        deliver(&mut sink, batch(2)).await
    })
    .await;
    assert_eq!(
        lab.inspect().await.count(&orders).await.expect("counted"),
        100
    );

    for node in cluster.nodes() {
        configure(node, "requirepass", "secret").await;
    }
    for user in ["", ":wrong@"] {
        let urls: Vec<_> = cluster
            .nodes()
            .iter()
            .map(|node| format!("redis://{user}{}", node.address()))
            .collect();
        let lab = lab.with(json!({ "urls": urls }));
        let error = lab.try_open().await.err().expect("a password is set");
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_recognised() {
    lockstep_kit::require!(RedisCluster);
    let urls = Cluster::shared().await.urls();
    let lab = Lab::single(&urls[0], json!({})).await;
    let mut maker = lab.make().commit(1);
    for id in 0..20 {
        maker = maker.insert(&lab.orders(), &[T(&id.to_string()), Null, Null, Null]);
    }
    let error = match lab.try_open().await {
        Ok(mut sink) => refused(&mut sink, maker.stream()).await,
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(error.to_string().contains("cluster = true"), "{error}");
}

/// A step in which one row cannot be written writes none; the others follow when it lies aside.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_carried_out_as_a_whole_or_not_at_all() {
    lockstep_kit::require!(Redis);
    let lab = Lab::single(Server::shared().await.url(), json!({ "value": "hash" })).await;
    let (mut sink, orders) = (lab.open().await, lab.orders());
    let stock = support::source("stock", &lab.prefix);
    let shelf = support::orders("stock");
    let first = lab
        .make()
        .commit(100)
        .insert(&orders, &[T("1"), T("one"), T("d"), Null])
        .stream();
    deliver(&mut sink, first).await.expect("durable");
    lab.ask(&["DEL", &lab.key("1")]).await;
    lab.ask(&["LPUSH", &lab.key("1"), "no hash"]).await;
    let parts = |poison: bool| {
        let order = lab
            .make()
            .commit(200)
            .insert(&orders, &[T("2"), T("two"), Null, Null]);
        let order = match poison {
            true => order.update(&orders, &[T("1"), T("uno"), Same, Null]),
            false => order,
        };
        let shelved = support::Maker::new(&stock)
            .commit(200)
            .insert(&shelf, &[T("1"), T("shelf"), Null, Null]);
        vec![order.stream(), shelved.stream()]
    };
    let there =
        async |lab: &Lab, key: &str| lab.ask(&["EXISTS", key]).await == redis::Value::Int(1);
    let shelf_key = format!("{}:stock:orders:1", lab.prefix);
    let mut durables = sink
        .write_together(parts(true))
        .await
        .expect("taken")
        .into_iter();
    let error = durables.next().expect("one").await.expect_err("refused");
    let refusals = error.refusals().iter();
    let named: Vec<_> = refusals
        .map(|refusal| (refusal.position.ordinal, refusal.reason))
        .collect();
    assert_eq!(named, [(2, "wrong_type")], "{error}");
    assert!(durables.next().expect("two").await.is_err());
    assert!(!there(&lab, &lab.key("2")).await && !there(&lab, &shelf_key).await);
    drop(sink);
    let mut sink = lab.open().await;
    for durable in sink.write_together(parts(false)).await.expect("taken") {
        durable.await.expect("durable");
    }
    assert!(there(&lab, &lab.key("2")).await && there(&lab, &shelf_key).await);
    sink.close().await.expect("closes");
}

/// A server that is full refuses all of a step.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_takes_no_part_of_a_step() {
    lockstep_kit::require!(Redis);
    let full = options(&[("maxmemory", "4mb"), ("maxmemory-policy", "noeviction")]);
    let server = Server::start(full).await;
    let lab = Lab::single(server.url(), json!({})).await;
    let (mut sink, orders) = (lab.open().await, lab.orders());
    let stock = support::source("stock", &lab.prefix);
    let shelf = support::orders("stock");
    let big = "x".repeat(20_000);
    let mut failed = false;
    for commit in 1..=400_u64 {
        let id = commit.to_string();
        let row = [T(&id), T(&big), Null, Null];
        let parts = vec![
            lab.make().commit(commit).insert(&orders, &row).stream(),
            support::Maker::new(&stock)
                .commit(commit)
                .insert(&shelf, &row)
                .stream(),
        ];
        let Ok(durables) = sink.write_together(parts).await else {
            failed = true;
            break;
        };
        for durable in durables {
            failed |= durable.await.is_err();
        }
    }
    assert!(failed, "it was never full");
    let count = async |table: &str| {
        let pattern = format!("{}:{table}:orders:*", lab.prefix);
        let redis::Value::Array(keys) = lab.ask(&["KEYS", &pattern]).await else {
            panic!("KEYS");
        };
        keys.len()
    };
    let (first, second) = (count("shop").await, count("stock").await);
    assert!(first > 10 && first == second, "{first} and {second}");
}
