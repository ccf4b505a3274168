//! Secrets are planted wherever a pipeline file takes one, and looked for in everything that comes out.

use std::path::Path;

use lockstep_e2e::child::{Ended, PATIENCE};
use lockstep_e2e::{Setup, http};
use lockstep_kit::Component::{Postgres as NeedsPostgres, Redis as NeedsRedis};
use lockstep_kit::postgres::Postgres;
use lockstep_kit::redis::Redis;
use lockstep_kit::{require, unique};

use crate::support::{files, source};

/// What every planted secret begins with.
const PLANTED: &str = "pl4nted";
const TOKEN: &str = "pl4nted-token";

/// No planted secret, whole or its beginning.
fn clean(what: &str, text: &str) {
    let found = text.lines().find(|line| line.contains(PLANTED));
    assert!(found.is_none(), "{what} tells a secret: {found:?}");
}

fn ended_clean(what: &str, ended: &Ended) {
    clean(what, &ended.stdout);
    clean(what, &ended.stderr);
}

/// All files below a folder, but the pipeline file itself: logs, state, dead letters, rows.
fn folder_clean(folder: &Path, but: &Path) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            folder_clean(&path, but);
        } else if path != but {
            let bytes = std::fs::read(&path).expect("a file");
            clean(
                &path.display().to_string(),
                &String::from_utf8_lossy(&bytes),
            );
        }
    }
}

/// `scheme://user:password@rest`, of one without credentials.
fn with_login(url: &str, login: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    format!("{scheme}://{login}@{rest}")
}

#[tokio::test]
async fn a_pipeline_at_work_tells_no_secret() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (server, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = server.database("shop").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, once text); INSERT INTO t VALUES (1, 'a'), (2, 'a')")
        .await;
    let name = unique("secrets");
    let user = name.clone();
    let made = redis
        .command(&[
            "ACL",
            "SETUSER",
            &user,
            "on",
            ">pl4nted-redis",
            "~*",
            "&*",
            "+@all",
        ])
        .await;
    made.expect("a user of Redis");
    let cache = with_login(redis.url(), &format!("{user}:pl4nted-redis"));
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t"])
            + "password = \"${PLANTED_PASSWORD}\"\n\
               [transforms.once]\ntype = \"dedupe\"\ninputs = [\"shop\"]\nkey = [\"once\"]\naction = \"dead_letter\"\n\
               [transforms.masked]\ntype = \"mask\"\ninputs = [\"once\"]\nhash = [\"once\"]\nsalt = \"pl4nted-salt-that-is-long-enough\"\n"
            + &format!(
                "[sinks.cache]\ntype = \"redis\"\ninputs = [\"once\"]\nurl = \"{cache}\"\nkey = \"{name}:{{table}}:{{key}}\"\n"
            )
            + &files(folder).replace("[\"shop\"]", "[\"masked\"]")
            + &format!(
                "[reconcile]\nevery = \"2s\"\n[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"\n"
            )
    });
    let environment = [
        ("PLANTED_PASSWORD", "pl4nted-postgres"),
        ("LOCKSTEP_LOG", "trace"),
        ("LOCKSTEP_ADMIN_TOKEN", TOKEN),
        ("RUST_BACKTRACE", "1"),
    ];
    let file = setup.file().display().to_string();
    let checked = setup.lockstep_with(&["check", &file], &environment).await;
    assert_eq!(checked.code(), Some(0), "{}", checked.stdout);
    ended_clean("check", &checked);
    let mut pipeline = setup.spawn(&["run", &file], &environment);
    let address = pipeline.address().await;
    pipeline.wait_ready().await;

    for path in [
        "/",
        "/metrics",
        "/healthz",
        "/readyz",
        "/api/status",
        "/api/file",
        "/api/snapshot",
        "/api/reconcile",
        "/api/invariants",
        "/api/transactions",
        "/api/dead-letters",
        "/api/dead-letters/1",
        "/api/nothing",
    ] {
        let (_, body) = http::get(address, path, Some(TOKEN))
            .await
            .expect("an answer");
        clean(path, &body);
        let (_, body) = http::get(address, path, Some("pl4nted-wrong"))
            .await
            .expect("an answer");
        clean(path, &body);
    }
    let (code, shown) = http::get(address, "/api/file", Some(TOKEN))
        .await
        .expect("an answer");
    assert!(
        code == 200 && shown.contains("PLANTED_PASSWORD"),
        "{code} {shown}"
    );
    let url = pipeline.url().await;
    for arguments in [
        &["status", "--url", &*url][..],
        &["status", "--format", "json", "--url", &url],
        &["dead-letters", "list", &file, "--url", &url],
        &["explain", &file],
        &["check", &file, "--format", "json"],
        &["schema"],
    ] {
        let ended = setup.lockstep_with(arguments, &environment).await;
        ended_clean(&arguments.join(" "), &ended);
    }
    assert!(pipeline.terminate(PATIENCE).await.success());
    folder_clean(setup.folder(), &setup.file());
}

#[tokio::test]
async fn what_cannot_connect_tells_no_secret() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (server, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = server.database("shop").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        .await;
    let name = unique("refused");
    let good = source(database.url(), &name, &["t"]);
    let nowhere = source(
        "postgres://me:pl4nted-pg@127.0.0.1:1/shop?connect_timeout=1",
        &name,
        &["t"],
    );
    let sink = |rest: &str| format!("{good}[sinks.out]\ninputs = [\"shop\"]\n{rest}\n");
    let wrong_password = with_login(redis.url(), "nobody:pl4nted-redis");
    for (what, body) in [
        (
            "PostgreSQL that is not there",
            format!(
                "{nowhere}[sinks.out]\ninputs = [\"shop\"]\ntype = \"file\"\npath = \"/dev/null\"\n"
            ),
        ),
        (
            "a wrong password of Redis",
            sink(&format!("type = \"redis\"\nurl = \"{wrong_password}\"")),
        ),
        (
            "Redis that is not there",
            sink("type = \"redis\"\nurl = \"redis://u:pl4nted@127.0.0.1:1/0\""),
        ),
        (
            "a search server that is not there",
            sink("type = \"opensearch\"\nurl = \"https://u:pl4nted@127.0.0.1:1\""),
        ),
        (
            "one with a key",
            sink(
                "type = \"elasticsearch\"\nurl = \"https://127.0.0.1:1\"\napi_key = \"pl4nted-key\"",
            ),
        ),
        (
            "a receiver of webhooks that is not there",
            sink(
                "type = \"webhook\"\nurl = \"https://127.0.0.1:1/{table}?key=pl4nted\"\nbearer = \"pl4nted-bearer\"\n\
                 secrets = [\"whsec_pl4ntedApl4ntedApl4ntedApl4ntedApl4n\"]\n[sinks.out.headers]\nX-Key = \"pl4nted-header\"",
            ),
        ),
        (
            "Kafka that is not there",
            sink(
                "type = \"kafka\"\nbrokers = \"127.0.0.1:1\"\n[sinks.out.properties]\n\
                 \"security.protocol\" = \"sasl_plaintext\"\n\"sasl.mechanisms\" = \"PLAIN\"\n\
                 \"sasl.username\" = \"me\"\n\"sasl.password\" = \"pl4nted-sasl\"",
            ),
        ),
    ] {
        let setup = Setup::new(&name, |_| body);
        let file = setup.file().display().to_string();
        let trace = [("LOCKSTEP_LOG", "trace")];
        let checked = setup.lockstep_with(&["check", &file], &trace).await;
        assert_ne!(checked.code(), Some(0), "{what}: {}", checked.stdout);
        ended_clean(what, &checked);
        let json = setup
            .lockstep_with(&["check", &file, "--format", "json"], &trace)
            .await;
        ended_clean(what, &json);
        let mut pipeline = setup.spawn(&["run", &file], &trace);
        // It ends at a wrong password, and tries again what is not there.
        if what.contains("wrong") {
            pipeline.wait_exit(PATIENCE).await;
        } else {
            let told = async |pipeline: &mut lockstep_e2e::child::Pipeline| {
                let log = pipeline.log();
                log.contains("127.0.0.1:1").then_some(()).ok_or(log)
            };
            pipeline.until(PATIENCE, "what is not there", told).await;
        }
        drop(pipeline);
        folder_clean(setup.folder(), &setup.file());
    }
}

#[tokio::test]
async fn a_file_that_is_wrong_tells_no_secret() {
    let start = "[sources.shop]\ntype = \"postgres\"\ntables = [\"public.t\"]\n";
    let sink = "[sinks.out]\ninputs = [\"shop\"]\n";
    let files = "type = \"file\"\npath = \"/dev/null\"\n";
    let url = "url = \"postgres://me@127.0.0.1/shop\"\n";
    for (what, body) in [
        (
            "a slash in a password",
            format!("{start}url = \"postgres://me:pl4nted/x@h/d\"\n{sink}{files}"),
        ),
        (
            "a slash behind digits",
            format!("{start}url = \"postgres://me:1/pl4nted@h/d\"\n{sink}{files}"),
        ),
        (
            "a question mark",
            format!("{start}url = \"postgres://me:1?pl4nted@h/d\"\n{sink}{files}"),
        ),
        (
            "no host",
            format!("{start}url = \"postgres://me:pl4nted\"\n{sink}{files}"),
        ),
        (
            "of Redis",
            format!("{start}{url}{sink}type = \"redis\"\nurl = \"redis://u:pl4nted/x@h:1\"\n"),
        ),
        (
            "of a search server",
            format!("{start}{url}{sink}type = \"opensearch\"\nurl = \"https://u:pl4nted/x@h:1\"\n"),
        ),
        (
            "of a webhook with a field that is not known",
            format!(
                "{start}{url}{sink}type = \"webhook\"\nurl = \"https://u:pl4nted@h/{{tabel}}\"\n"
            ),
        ),
        (
            "a search server's scheme",
            format!("{start}{url}{sink}type = \"opensearch\"\nurl = \"pl4nted:9200\"\n"),
        ),
        (
            "a text that does not end",
            format!("{start}{url}password = \"pl4nted\n{sink}{files}"),
        ),
        (
            "a key that is not known",
            format!("{start}{url}pasword = \"pl4nted\"\n{sink}{files}"),
        ),
        (
            "a list",
            format!("{start}{url}password = [\"pl4nted\"]\n{sink}{files}"),
        ),
        (
            "a table",
            format!("{start}{url}password = {{ a = \"pl4nted\" }}\n{sink}{files}"),
        ),
    ] {
        let setup = Setup::new("wrong", |_| body);
        for command in ["check", "run"] {
            let ended = setup.lockstep(command, &[]).await;
            assert!(!ended.status.success(), "{what}: {ended:?}");
            ended_clean(what, &ended);
        }
    }
}

#[tokio::test]
async fn the_endpoint_is_closed_to_others_without_a_token() {
    require!(NeedsPostgres(17));
    let database = Postgres::shared(17).await.database("shop").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let name = unique("open");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["t"]) + &files(folder) + "[admin]\nlisten = \"0.0.0.0:0\"\n"
    });
    for command in ["check", "run"] {
        let refused = setup.lockstep(command, &[]).await;
        let told = format!("{}{}", refused.stdout, refused.stderr);
        assert!(!refused.status.success(), "{command}: {told}");
        for word in ["admin.listen", "0.0.0.0:0", "admin.token", "admin.open"] {
            assert!(told.contains(word), "{command}: {word} in {told}");
        }
    }
    setup.change(
        "listen = \"0.0.0.0:0\"",
        "listen = \"0.0.0.0:0\"\nopen = true",
    );
    let pipeline = setup.start_ready().await;
    assert!(pipeline.terminate(PATIENCE).await.success());
}
