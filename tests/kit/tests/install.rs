//! What a run does where a server cannot be had: it goes on and says so, or fails where every test must run.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lockstep_kit::component::{POSTGRES_MAJORS, REQUIRE_VARIABLE};
use tempfile::TempDir;

/// A machine on which nothing is installed and nothing can be downloaded.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Machine {
            folder: tempfile::tempdir().unwrap(),
        };
        let kit = machine.path("kit");
        std::fs::create_dir(&kit).unwrap();
        // Root's servers run as another user, who must be able to enter.
        for folder in [machine.folder.path(), &kit] {
            let everyone = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(folder, everyone).unwrap();
        }
        std::fs::create_dir(machine.path("bin")).unwrap();
        machine.stub("mvn", "echo no network >&2; exit 1");
        machine.stub("apt-get", "exit 1");
        machine.stub("python3", "exit 1");
        machine.stub("javac", "exit 0");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program that leaves a trace of having been called.
    fn stub(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        let trace = self.path("called");
        let text = format!("#!/bin/sh\necho {name} >>'{}'\n{script}\n", trace.display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn called(&self) -> String {
        std::fs::read_to_string(self.path("called")).unwrap_or_default()
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(program.as_ref());
        command
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("LOCKSTEP_KIT_DIR", self.path("kit"));
        for name in ["CI", REQUIRE_VARIABLE, "JAVA_HOME"] {
            command.env_remove(name);
        }
        for name in provided_variables() {
            command.env_remove(name);
        }
        command
    }

    fn install(&self) -> Command {
        self.command(Path::new(env!("CARGO_MANIFEST_DIR")).join("install"))
    }
}

fn provided_variables() -> Vec<String> {
    let others = [
        "REDIS_URL",
        "REDIS_CLUSTER_URLS",
        "KAFKA",
        "OPENSEARCH_URL",
        "ELASTICSEARCH_URL",
        "ZOOKEEPER",
        "KUBERNETES",
    ];
    let others = others.map(|name| format!("LOCKSTEP_TEST_{name}"));
    let postgres = POSTGRES_MAJORS.map(|major| format!("LOCKSTEP_TEST_PG{major}_URL"));
    postgres.into_iter().chain(others).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_cannot_be_had_is_said_and_the_run_goes_on() {
    let machine = Machine::new();
    let mut install = machine.install();
    let output = install
        .args(["--if-possible", "kafka", "opensearch", "elasticsearch"])
        .output()
        .unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("no network"), "{said}");
    assert!(
        said.contains("NOT INSTALLED: kafka opensearch elasticsearch"),
        "{said}"
    );
    assert!(said.contains("will NOT RUN"), "{said}");
}

#[test]
fn it_is_an_error_where_every_test_must_run_and_for_who_asks_for_the_server() {
    let machine = Machine::new();
    for (arguments, environment) in [
        (&["--if-possible", "kafka"][..], &[("CI", "true")][..]),
        (&["--if-possible", "kafka"], &[(REQUIRE_VARIABLE, "1")]),
        (&["kafka"], &[]),
    ] {
        let mut install = machine.install();
        let output = install
            .args(arguments)
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("ERROR: NOT INSTALLED: kafka"), "{said}");
    }
}

#[test]
fn what_a_variable_provides_is_not_installed() {
    let machine = Machine::new();
    let mut install = machine.install();
    install.args(["--if-possible", "postgres", "redis"]);
    install.args(["kafka", "opensearch", "elasticsearch"]);
    for name in provided_variables() {
        install.env(name, "provided");
    }
    let output = install.env("CI", "true").output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("kafka is provided by LOCKSTEP_TEST_KAFKA"),
        "{said}"
    );
    assert_eq!(machine.called(), "", "{said}");

    // One of five is missing, and is the only one that is tried.
    let output = install
        .env_remove("LOCKSTEP_TEST_PG16_URL")
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("ERROR: NOT INSTALLED: postgres-16 ("),
        "{said}"
    );
}

#[test]
fn a_run_starts_what_there_is_and_names_the_tests_that_it_left_out() {
    let machine = Machine::new();
    let test = "NOT RUN: orders_arrive: needs Kafka: run tests/kit/install kafka";
    let script =
        format!(r#"echo "$LOCKSTEP_TEST_REDIS_URL"; echo '{test}' >>"$LOCKSTEP_KIT_NOT_RUN""#);
    let mut run = machine.command(env!("CARGO_BIN_EXE_lockstep-kit"));
    run.args(["run", "--", "sh", "-c", &script]);
    // What a system may have outside the kit's folder.
    for name in [
        "PG15_URL",
        "REDIS_URL",
        "REDIS_CLUSTER_URLS",
        "RABBITMQ_URL",
    ] {
        run.env(format!("LOCKSTEP_TEST_{name}"), "provided");
    }
    let output = run.output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "provided\n");
    for missing in [
        "PostgreSQL 14",
        "PostgreSQL 18",
        "Kafka",
        "OpenSearch",
        "Elasticsearch",
    ] {
        assert!(
            said.contains(&format!("NOT INSTALLED: {missing}: ")),
            "{said}"
        );
    }
    let (_, end) = said.split_once("1 test(s) were NOT RUN").unwrap();
    assert!(end.contains(test), "{said}");

    let output = run.env("CI", "true").output().unwrap();
    assert!(!output.status.success());
    assert_eq!(output.stdout, b"", "{}", stderr(&output));
}
