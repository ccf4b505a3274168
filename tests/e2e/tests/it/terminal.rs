//! What a terminal shows, and what is plain elsewhere: `status --watch`, answers and errors as JSON, the log.

use lockstep_e2e::Setup;
use lockstep_e2e::child::{PATIENCE, Pipeline};
use lockstep_kit::Component::Postgres as NeedsPostgres;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::{require, unique};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{end_of_log, files, source};

struct Running {
    database: Database,
    setup: Setup,
    pipeline: Pipeline,
    url: String,
}

async fn running(name: &str) -> Running {
    let database = Postgres::shared(17).await.database("shop").await;
    let make = "CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'one')";
    database.execute(make).await;
    let slot = unique(name);
    let setup = Setup::new(&slot, |folder| {
        source(database.url(), &slot, &["t"]) + &files(folder)
    });
    let mut pipeline = setup.start_ready().await;
    let url = pipeline.url().await;
    Running {
        database,
        setup,
        pipeline,
        url,
    }
}

async fn until_output(child: &mut Pipeline, what: &str, look: impl Fn(&str) -> bool) -> String {
    child
        .until(PATIENCE, what, async |child| {
            let output = child.output();
            match look(&output) {
                true => Ok(output),
                false => Err(output),
            }
        })
        .await
}

#[tokio::test]
async fn status_is_watched_as_blocks_where_there_is_no_terminal() {
    require!(NeedsPostgres(17));
    let mut running = running("watch").await;
    let arguments = [
        "status",
        "--url",
        &running.url,
        "--watch",
        "--interval",
        "200ms",
    ];
    let mut blocks = running.setup.spawn(&arguments, &[]);
    let output = until_output(&mut blocks, "three blocks", |output| {
        output.matches(", ready\n").count() >= 3
    })
    .await;
    assert!(!output.contains('\x1b'), "{output}");
    assert!(
        output.contains("per second") && output.contains("/s\n"),
        "{output}"
    );

    let mut lines = running
        .setup
        .spawn(&[&arguments[..], &["--format", "json"]].concat(), &[]);
    until_output(&mut lines, "two lines", |output| {
        output.lines().count() >= 2
    })
    .await;
    running
        .database
        .execute("INSERT INTO t SELECT i, 'more' FROM generate_series(2, 500) i")
        .await;
    let output = until_output(&mut lines, "a rate", |output| {
        let looks = output
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        looks.into_iter().any(|look| {
            look["per_second"]["sources"]["shop"].as_f64() > Some(0.0)
                && look["status"]["pipeline"].is_string()
        })
    })
    .await;
    assert!(
        output
            .lines()
            .next()
            .is_some_and(|first| first.contains("\"per_second\":null")),
        "{output}"
    );

    // One that is gone is asked again, and found when it is back.
    let end = end_of_log(&running.database).await;
    running.pipeline.wait_visible("shop", &end, PATIENCE).await;
    assert!(running.pipeline.terminate(PATIENCE).await.success());
    until_output(&mut lines, "the error", |output| {
        output.contains("\"code\":\"LS003\"")
    })
    .await;
    until_output(&mut blocks, "the error", |output| {
        output.contains("it is asked again")
    })
    .await;
    for mut child in [lines, blocks] {
        child.signal(Signal::INT);
        let status = child.wait_exit(PATIENCE).await;
        assert_eq!(status.code(), Some(0), "{}", child.output());
    }
}

#[tokio::test]
async fn on_a_terminal_the_table_stays_in_place_until_q() {
    require!(NeedsPostgres(17));
    let running = running("keys").await;
    for key in ["q", "\x03"] {
        let arguments = [
            "status",
            "--url",
            &running.url,
            "--watch",
            "--interval",
            "100ms",
        ];
        let mut terminal = running.setup.spawn_on_terminal(&arguments);
        let enough = async |terminal: &mut Pipeline| {
            let screen = terminal.log();
            let drawn = screen.matches("\x1b[H").count() >= 3;
            drawn.then_some(()).ok_or(screen)
        };
        terminal.until(PATIENCE, "some frames", enough).await;
        terminal.types(key);
        let status = terminal.wait_exit(PATIENCE).await;
        let screen = terminal.log();
        assert_eq!(status.code(), Some(0), "{key:?}: {screen}");
        // The other screen is left, and what it showed last stays.
        let (shown, left) = screen.rsplit_once("\x1b[?1049l").expect("it leaves");
        assert!(
            shown.contains("\x1b[?1049h") && shown.contains("q ends"),
            "{screen}"
        );
        assert!(left.contains("shop") && left.contains("ready"), "{screen}");
        assert!(!screen.contains("\x1b[1;32m"), "NO_COLOR: {screen}");
    }
}

#[tokio::test]
async fn colours_are_for_those_who_want_them() {
    require!(NeedsPostgres(17));
    let running = running("colours").await;
    let file = running.setup.file().display().to_string();
    let check = ["check", &*file];
    let forced = [("NO_COLOR", ""), ("CLICOLOR_FORCE", "1")];
    let ended = running.setup.lockstep_with(&check, &forced).await;
    assert!(ended.stdout.contains("\x1b[1;32m✓ ok"), "{}", ended.stdout);
    let ended = running
        .setup
        .lockstep_with(&check, &[("NO_COLOR", "")])
        .await;
    assert!(
        !ended.stdout.contains('\x1b'),
        "a file is no terminal: {}",
        ended.stdout
    );
    let ended = running
        .setup
        .lockstep_with(&check, &[("LC_ALL", "C")])
        .await;
    assert!(ended.stdout.contains("+ ok    connect"), "{}", ended.stdout);
    assert!(!ended.stdout.contains(['✓', '→']), "{}", ended.stdout);
}

#[tokio::test]
async fn answers_and_errors_are_json_for_those_who_ask() {
    require!(NeedsPostgres(17));
    let running = running("json").await;
    let file = running.setup.file().display().to_string();
    let json = |text: &str| -> Value {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let url = ["--url", &*running.url];
    let answer = async |arguments: &[&str]| {
        let all = [arguments, &["--format", "json"]].concat();
        let ended = running.setup.lockstep_with(&all, &[]).await;
        assert_eq!(ended.code(), Some(0), "{all:?}: {ended:?}");
        json(&ended.stdout)
    };
    let of_file =
        async |command: &[&str], more: &[&str]| answer(&[command, &[&*file], more].concat()).await;
    let loaded = of_file(
        &["snapshot"],
        &[&["--table", "public.t"], &url[..]].concat(),
    )
    .await;
    assert_eq!(
        (&loaded["state"], &loaded["rows"]),
        (&"done".into(), &1.into())
    );
    assert_eq!(
        (&loaded["source"], &loaded["table"]),
        (&"shop".into(), &"public.t".into())
    );
    let checked = of_file(&["check"], &[]).await;
    assert!(
        checked["ok"] == true && checked["counts"]["fail"] == 0,
        "{checked}"
    );
    assert_eq!(
        of_file(&["dead-letters", "list"], &url).await,
        Value::Array(Vec::new())
    );
    assert!(of_file(&["transactions", "list"], &[]).await.is_array());
    let compared = of_file(&["reconcile"], &url).await;
    assert!(compared["reports"].is_array(), "{compared}");
    assert_eq!(answer(&["explain", "LS004"]).await["code"], "LS004");
}

#[tokio::test]
async fn errors_are_json_for_those_who_ask() {
    let setup = Setup::new("unused", |_| String::new());
    let away = ["status", "--url", "http://127.0.0.1:1", "--format", "json"];
    let unknown = ["explain", "LS099", "--format=json"];
    let misspelt = ["check", "--ofline", "x.toml", "--format", "json"];
    for (arguments, code, told) in [
        (&away[..], 1, "LS003"),
        (&unknown, 2, "LS002"),
        (&misspelt, 2, "usage"),
    ] {
        let ended = setup.lockstep_with(arguments, &[]).await;
        assert_eq!(ended.code(), Some(code), "{ended:?}");
        assert!(ended.stdout.is_empty(), "{ended:?}");
        let error: Value =
            serde_json::from_str(&ended.stderr).unwrap_or_else(|_| panic!("{ended:?}"));
        assert_eq!(error["error"]["code"], told, "{ended:?}");
        assert!(
            error["error"]["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{ended:?}"
        );
    }
    for (arguments, word) in [
        (&["explain", "ls004", "--format", "json"][..], "title"),
        (&["schema"], "properties"),
    ] {
        let ended = setup.lockstep_with(arguments, &[]).await;
        let answer: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
        assert!(!answer[word].is_null(), "{answer}");
    }
}

#[tokio::test]
async fn the_log_is_json_where_nobody_looks_and_says_where_it_happened() {
    require!(NeedsPostgres(17));
    let database = Postgres::shared(17).await.database("shop").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let slot = unique("log");
    let setup = Setup::new(&slot, |folder| {
        source(database.url(), &slot, &["t"]) + &files(folder)
    });
    let file = setup.file().display().to_string();
    let mut pipeline = setup.spawn(&["run", &file], &[("LOCKSTEP_LOG_FORMAT", "auto")]);
    let is_streaming = async |pipeline: &mut Pipeline| {
        let log = pipeline.log();
        log.contains("\"message\":\"streaming\"")
            .then_some(())
            .ok_or(log)
    };
    pipeline.until(PATIENCE, "the stream", is_streaming).await;
    pipeline.signal(Signal::TERM);
    let status = pipeline.wait_exit(PATIENCE).await;
    let log = pipeline.log();
    assert!(status.success(), "{log}");
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let find = |message: &str| {
        let found = lines.iter().find(|line| line["message"] == message);
        found.unwrap_or_else(|| panic!("{message} in {log}"))
    };
    // Of a thread, of tasks, and of the process itself.
    let streaming = find("streaming");
    assert_eq!(streaming["pipeline"], slot.as_str());
    assert_eq!(streaming["source"], "shop");
    assert_eq!(find("slot created")["source"], "shop", "{log}");
    let mut opens = lines.iter().filter(|line| line["message"] == "open");
    assert!(
        opens.any(|line| line["sink"] == "files" && line["pipeline"] == slot.as_str()),
        "{log}"
    );
    assert_eq!(find("starting")["pipeline"], slot.as_str());

    let mut terminal = setup.spawn_on_terminal(&["--log-format", "auto", "run", &file]);
    let is_ready = async |terminal: &mut Pipeline| {
        let log = terminal.log();
        let streams = log.contains(" INFO streaming ") && log.contains(" pipeline=");
        streams.then_some(()).ok_or(log)
    };
    terminal.until(PATIENCE, "lines for people", is_ready).await;
    terminal.press_ctrl_c();
    assert!(
        terminal.wait_exit(PATIENCE).await.success(),
        "{}",
        terminal.log()
    );
}
