//! Pipeline files: wrong ones, the shipped ones, and the schema of all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lockstep_e2e::Setup;
use serde_json::Value;

const RIGHT: &str = r#"
[sources.shop]
type = "postgres"
url = "postgres://lockstep:secret@127.0.0.1:1/shop"
tables = ["public.orders"]

[sinks.cache]
type = "redis"
inputs = ["shop"]
url = "redis://127.0.0.1:1"
"#;

#[tokio::test]
async fn each_mistake_in_the_file_is_told_with_its_line_and_the_nearest_name() {
    let mistakes = [
        (
            "inputs = [\"shop\"]",
            "inputs = [\"shpo\"]",
            &[":10:", "shpo", "shop"][..],
        ),
        (
            "url = \"redis",
            "urll = \"redis",
            &[":11:", "urll", "`url`"],
        ),
        (
            "type = \"redis\"",
            "type = \"rediss\"",
            &[":9:", "rediss", "`redis`"],
        ),
        (
            "tables = [\"public.orders\"]",
            "tables = []",
            &["tables", "public.orders"],
        ),
        (
            "tables = [\"public.orders\"]",
            "tables = \"public.orders\"",
            &[":6:", "tables"],
        ),
        (
            "[sinks.cache]",
            "memroy = \"1MiB\"\n[sinks.cache]",
            &["memroy"],
        ),
        (
            "url = \"redis://127.0.0.1:1\"",
            "url = \"${NO_SUCH_VARIABLE}\"",
            &[":11:", "NO_SUCH_VARIABLE"],
        ),
        (
            "url = \"redis://127.0.0.1:1\"",
            "url = \"redis://127.0.0.1:1\"\nttl = \"seven\"",
            &[":12:", "seven"],
        ),
    ];
    for (from, to, words) in mistakes {
        let setup = Setup::new("shop", |_| RIGHT.to_owned());
        setup.change(from, to);
        for (subcommand, arguments) in [("run", &[][..]), ("check", &["--offline"])] {
            let ended = setup.lockstep(subcommand, arguments).await;
            assert_eq!(ended.code(), Some(2), "{to}: {ended:?}");
            let missing: Vec<_> = words
                .iter()
                .filter(|word| !ended.stderr.contains(**word))
                .collect();
            assert!(missing.is_empty(), "{to}: {missing:?} in {}", ended.stderr);
            assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
        }
    }
}

#[tokio::test]
async fn usage_and_files_that_are_not_there_are_exit_code_2() {
    let setup = Setup::new("shop", |_| RIGHT.to_owned());
    for arguments in [
        &["run"][..],
        &["rum", "x.toml"],
        &["run", "no-such-file.toml"],
        &["check", "--ofline", "x"],
    ] {
        let ended = setup.lockstep_with(arguments, &[]).await;
        assert_eq!(ended.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains("error: "), "{ended:?}");
    }
    assert_eq!(
        setup.lockstep_with(&["--version"], &[]).await.code(),
        Some(0)
    );
}

#[tokio::test]
async fn a_right_file_passes_offline_and_overrides_count() {
    let setup = Setup::new("shop", |_| RIGHT.to_owned());
    let ended = setup.lockstep("check", &["--offline"]).await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(
        ended.stdout.contains('✓') && ended.stdout.contains("ready to run"),
        "{}",
        ended.stdout
    );
    let file = setup.file().display().to_string();
    let wrong = [("LOCKSTEP__SINKS__CACHE__TTL", "never")];
    let ended = setup
        .lockstep_with(&["check", "--offline", &file], &wrong)
        .await;
    assert_eq!(ended.code(), Some(2), "{ended:?}");
    // Where it comes from, not what it is: an environment variable may be a secret.
    let place = "LOCKSTEP__SINKS__CACHE__TTL: sinks.cache.ttl";
    assert!(
        ended.stderr.contains(place) && !ended.stderr.contains("never"),
        "{ended:?}"
    );
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[tokio::test]
async fn the_shipped_examples_pass_offline() {
    let setup = Setup::new("shop", |_| RIGHT.to_owned());
    let folder = repository().join("pipelines/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the examples") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("an example");
        // Every variable that an example names outside its comments gets a value.
        let lines = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default());
        let named: BTreeSet<&str> = lines
            .flat_map(|line| line.split("${").skip(1))
            .filter_map(|rest| rest.split('}').next())
            .filter(|name| !name.starts_with("file:"))
            .collect();
        let environment: Vec<(&str, &str)> = named
            .into_iter()
            .map(|name| (name, "0123456789abcdef0123456789abcdef"))
            .collect();
        let file = path.display().to_string();
        let ended = setup
            .lockstep_with(&["check", "--offline", &file], &environment)
            .await;
        assert_eq!(ended.code(), Some(0), "{file}: {ended:?}");
        seen += 1;
    }
    assert!(seen >= 3, "{seen} examples");
}

#[tokio::test]
async fn the_schema_is_json_and_knows_every_kind() {
    let setup = Setup::new("shop", |_| RIGHT.to_owned());
    let ended = setup.lockstep_with(&["schema"], &[]).await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let schema: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert!(
        schema["$schema"].is_string() && schema["properties"]["sinks"].is_object(),
        "{schema:#}"
    );
    for kind in [
        "postgres",
        "dedupe",
        "filter",
        "route",
        "project",
        "mask",
        "kafka",
        "redis",
        "opensearch",
        "tantivy",
        "file",
    ] {
        assert!(ended.stdout.contains(&format!("\"{kind}\"")), "{kind}");
    }
}
