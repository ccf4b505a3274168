//! The command, the end of the servers with their process, and tests that cannot run.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockstep_kit::component::{NOT_RUN_VARIABLE, REQUIRE_VARIABLE};
use lockstep_kit::{Component, require, require_own, unique, wait_for};
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(30);

fn kit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep-kit"));
    command
        .env_remove("LOCKSTEP_TEST_REDIS_URL")
        .env_remove("LOCKSTEP_TEST_PG16_URL");
    command
}

/// `lockstep-kit up`, its Redis' address and its PostgreSQL's data folder.
async fn up() -> (Child, String, String) {
    let mut child = kit()
        .args(["up", "--with", "pg16,redis"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let lines: Vec<String> = lines.take_while(|line| line != "ready").collect();
    let value = |name: &str| {
        let line = lines
            .iter()
            .find_map(|line| line.strip_prefix(&format!("export {name}='")));
        line.and_then(|rest| rest.strip_suffix('\''))
            .unwrap_or_else(|| panic!("{name} in {lines:?}"))
            .to_owned()
    };
    let redis = value("LOCKSTEP_TEST_REDIS_URL")
        .strip_prefix("redis://")
        .unwrap()
        .to_owned();
    let url = value("LOCKSTEP_TEST_PG16_URL");
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let serving = tokio::spawn(connection);
    let row = client.query_one("SHOW data_directory", &[]).await.unwrap();
    serving.abort();
    (child, redis, row.get(0))
}

async fn everything_is_gone(redis: &str, data: &str) {
    let run = Path::new(data).ancestors().nth(2).unwrap();
    assert!(
        run.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("lockstep-kit."),
        "{run:?}"
    );
    wait_for(SOON, "Redis to end", async || {
        std::net::TcpStream::connect(redis).is_err()
    })
    .await;
    wait_for(SOON, "PostgreSQL to end", async || {
        !processes().contains(data)
    })
    .await;
    wait_for(
        SOON,
        format_args!("{} to be removed", run.display()),
        async || !run.exists(),
    )
    .await;
}

/// The command lines of all processes.
fn processes() -> String {
    let lines = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).into_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn servers_end_with_a_killed_process() {
    require_own!(Component::Postgres(16), Component::Redis);
    let (mut child, redis, data) = up().await;
    child.kill().unwrap();
    child.wait().unwrap();
    everything_is_gone(&redis, &data).await;
}

#[tokio::test]
async fn up_ends_in_order_on_sigterm() {
    require_own!(Component::Postgres(16), Component::Redis);
    let (mut child, redis, data) = up().await;
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    everything_is_gone(&redis, &data).await;
}

#[tokio::test]
async fn run_gives_its_servers_to_the_command_and_returns_its_code() {
    require_own!(Component::Redis);
    let script =
        r#"redis-cli -u "$LOCKSTEP_TEST_REDIS_URL" ping; echo "$LOCKSTEP_TEST_REDIS_URL"; exit 7"#;
    let output = kit()
        .args(["run", "--with", "redis", "--", "bash", "-c", script])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7));
    let table = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout);
    let (pong, url) = said.trim().split_once('\n').unwrap();
    assert_eq!(pong, "PONG");
    assert!(
        table
            .lines()
            .any(|line| line.starts_with("Redis ") && line.ends_with(url)),
        "{table}"
    );
}

#[tokio::test]
async fn wrong_arguments_are_explained() {
    for (arguments, said) in [
        (
            &["run", "--with", "pg13", "--", "true"][..],
            "unknown server \"pg13\"",
        ),
        (&["run", "--with", "redis"], "no `-- COMMAND`"),
        (&["down"], "unknown subcommand \"down\""),
        (&[], "no subcommand"),
    ] {
        let output = kit().args(arguments).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{shown}");
        assert!(shown.contains(said), "{shown}");
    }
}

/// This test starts itself again on a machine that, for want of a folder, has nothing installed.
#[tokio::test]
async fn a_test_that_cannot_run_says_so_and_fails_where_it_must_run() {
    const AGAIN: &str = "LOCKSTEP_KIT_TEST_AGAIN";
    const NAME: &str = "a_test_that_cannot_run_says_so_and_fails_where_it_must_run";
    if std::env::var_os(AGAIN).is_some() {
        require!(Component::Debezium);
        panic!("there is no Debezium");
    }
    let not_run = std::env::temp_dir().join(unique("not-run"));
    let mut again = Command::new(std::env::current_exe().unwrap());
    again
        .args([NAME, "--exact"])
        .env(AGAIN, "1")
        .env("LOCKSTEP_KIT_DIR", "/nonexistent");
    again
        .env(NOT_RUN_VARIABLE, &not_run)
        .env_remove("CI")
        .env_remove(REQUIRE_VARIABLE);
    let output = again.output().unwrap();
    let line = format!("NOT RUN: {NAME}: needs Debezium: run tests/kit/install debezium\n");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), line);
    assert_eq!(std::fs::read_to_string(&not_run).unwrap(), line);
    std::fs::remove_file(&not_run).unwrap();
    let required = again.env(REQUIRE_VARIABLE, "1").output().unwrap();
    assert!(!required.status.success());
    assert!(String::from_utf8_lossy(&required.stdout).contains("Debezium is not installed"));
}

/// What is too dear to be on every machine is left out, and named, on those where every other test must run.
#[tokio::test]
async fn a_test_that_needs_what_is_optional_is_left_out_everywhere() {
    const AGAIN: &str = "LOCKSTEP_KIT_TEST_AGAIN";
    const NAME: &str = "a_test_that_needs_what_is_optional_is_left_out_everywhere";
    if std::env::var_os(AGAIN).is_some() {
        require!(Component::Kubernetes);
        panic!("there is no Kubernetes");
    }
    let not_run = std::env::temp_dir().join(unique("not-run"));
    let mut again = Command::new(std::env::current_exe().unwrap());
    again
        .args([NAME, "--exact"])
        .env(AGAIN, "1")
        .env("LOCKSTEP_KIT_DIR", "/nonexistent")
        .env(NOT_RUN_VARIABLE, &not_run)
        .env("CI", "true")
        .env(REQUIRE_VARIABLE, "1")
        .env_remove("LOCKSTEP_TEST_KUBERNETES");
    let output = again.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let line = format!("NOT RUN: {NAME}: needs Kubernetes: run tests/kit/install kubernetes\n");
    assert_eq!(std::fs::read_to_string(&not_run).unwrap(), line);
    std::fs::remove_file(&not_run).unwrap();
}

#[tokio::test]
#[should_panic(expected = "for the impossible (at tests/kit/tests/command.rs:")]
async fn waiting_in_vain_names_what_and_where() {
    wait_for(Duration::from_millis(20), "the impossible", async || {
        Err::<(), _>("still not")
    })
    .await;
}
