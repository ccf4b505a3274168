//! `lockstep test`: examples of a pipeline file, without any server.

use lockstep_e2e::Setup;
use serde_json::{Value, json};

const PIPELINE: &str = r#"
[sources.shop]
type = "postgres"
url = "postgres://nobody@127.0.0.1:1/shop"
tables = ["public.*"]

[transforms.shared]
type = "map"
inputs = ["shop"]
tables = ["public.orders"]
set = { share = "100 / parts" }

[transforms.worth_it]
type = "filter"
inputs = ["shared"]
tables = ["public.orders"]
when = "share > 10 && status != 'cancelled'"

[sinks.rows]
type = "redis"
inputs = ["worth_it"]
url = "redis://127.0.0.1:1"
"#;

const TABLES: &str = r#"
[[tests.tables]]
table = "public.orders"
columns = ["id int8", "parts int4", "status enum", "tags text[]", "doc jsonb", "body text"]
key = ["id"]

[[tests.tables]]
table = "public.notes"
columns = ["id int8"]
key = ["id"]
"#;

fn setup(tests: &str) -> Setup {
    Setup::new("tested", |_| format!("{PIPELINE}\n{tests}"))
}

async fn run(setup: &Setup, more: &[&str]) -> (Option<i32>, String, String) {
    let file = setup.file().display().to_string();
    let ended = setup
        .lockstep_with(&[&["test", &*file], more].concat(), &[])
        .await;
    (ended.code(), ended.stdout.clone(), ended.stderr.clone())
}

#[tokio::test]
async fn what_comes_as_it_should_is_ok_and_others_pass_over_it() {
    let setup = setup(&format!(
        r#"
[[tests]]
name = "values of every kind"
input = [
    {{ table = "public.orders", row = {{ id = 1, parts = 4, status = "paid", tags = ["a", "b c"], doc = {{ n = 1 }} }} }},
    {{ table = "shop.public.notes", op = "read", row = {{ id = 7 }} }},
    {{ table = "public.orders", op = "update", row = {{ id = 1, parts = 5, status = "paid" }}, unchanged = ["body"] }},
    {{ table = "public.orders", op = "delete", old = {{ id = 1 }} }},
    {{ table = "public.notes", op = "truncate" }},
]
expect.rows = [
    {{ table = "public.orders", row = {{ id = 1, parts = 4, status = "paid", tags = ["a", "b c"], doc = "{{\"n\":1}}", share = 25 }} }},
    {{ table = "public.notes", op = "read", row = {{ id = 7 }} }},
    {{ table = "shop.public.orders", op = "update", row = {{ id = 1, parts = 5, status = "paid", share = 20.0 }}, unchanged = ["body"] }},
    {{ table = "public.orders", op = "delete", old = {{ id = 1 }} }},
    {{ table = "public.notes", op = "truncate" }},
]
{TABLES}
[[tests]]
name = "what cannot be worked out is put aside"
input = [{{ table = "public.orders", row = {{ id = 1, parts = 0 }} }}]
expect.rows = []
expect.dead_letters = [{{ table = "public.orders", row = {{ id = 1, parts = 0 }} }}]
"#
    ));
    let (code, out, err) = run(&setup, &[]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let expected = "\
ok      values of every kind
ok      what cannot be worked out is put aside
2 tests ok
";
    assert_eq!(out, expected, "{err}");
    let check = setup.lockstep("check", &["--offline"]).await;
    assert_eq!(check.code(), Some(0), "{check:?}");
}

#[tokio::test]
async fn what_differs_is_shown_and_exits_1() {
    let setup = setup(&format!(
        r#"
[[tests]]
name = "wrong"
input = [
    {{ table = "public.orders", row = {{ id = 1, parts = 4 }} }},
    {{ table = "public.orders", row = {{ id = 2, parts = 5 }} }},
    {{ table = "public.orders", row = {{ id = 3, parts = 0 }} }},
]
expect.rows = [
    {{ table = "public.orders", row = {{ id = 1, parts = 4, share = 25 }} }},
    {{ table = "public.orders", row = {{ id = 2, parts = 5, share = 21 }} }},
]
{TABLES}
[[tests]]
name = "right"
input = [{{ table = "public.orders", row = {{ id = 1, parts = 50 }} }}]
expect.worth_it = []
"#
    ));
    let (code, out, err) = run(&setup, &[]).await;
    let expected = "\
FAILED  wrong
        rows
            insert public.orders id=1 parts=4 status=NULL tags=NULL doc=NULL body=NULL share=25
          - insert public.orders id=2 parts=5 share=21
          + insert public.orders id=2 parts=5 status=NULL tags=NULL doc=NULL body=NULL share=20
        dead_letters
          + insert public.orders id=3 parts=0 status=NULL tags=NULL doc=NULL body=NULL
ok      right
1 test failed (- expected, + came), 1 test ok
";
    assert_eq!((code, &*out), (Some(1), expected), "{err}");
    let (code, out, _) = run(&setup, &["--format", "json"]).await;
    assert_eq!(code, Some(1));
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(told["counts"], json!({ "ok": 1, "failed": 1 }));
    assert_eq!(told["tests"][0]["nodes"][0]["changes"][1]["is"], "missing");
    // It has the tables of the test that is left out.
    let (code, out, err) = run(&setup, &["--only", "right"]).await;
    assert_eq!(
        (code, &*out),
        (Some(0), "ok      right\n1 test ok\n"),
        "{err}"
    );
}

#[tokio::test]
async fn a_test_that_cannot_be_understood_exits_2() {
    let input = "{ table = \"public.orders\", row = { id = 1, parts = 4 } }";
    for (test, problem) in [
        (format!("input = [{input}]\nexpect.rwos = []\n{TABLES}"), "no sink or transform `rwos`"),
        (format!("input = [{input}]\nexpect.rows = []"), "`public.orders` is not declared"),
        (format!("input = [{{ row = {{}} }}]\nexpect.rows = []\n{TABLES}"), "does not say of which table"),
        (format!("input = [{{ table = \"public.orders\", op = \"delete\" }}]\nexpect.rows = []\n{TABLES}"), "add `old"),
        (format!("input = [{{ table = \"public.orders\", row = {{ ide = 1 }} }}]\nexpect.rows = []\n{TABLES}"), "no column `ide`"),
        (format!("input = [{input}]\nexpect.rows = [{{ row = {{}} }}]\n{TABLES}"), "does not say of which table"),
        (format!("inputs = [{input}]\nexpect.rows = []\n{TABLES}"), "unknown key"),
        ("input = []\nexpect.rows = []\n[[tests.tables]]\ntable = \"public.x\"\ncolumns = [\"id intger\"]\n".to_owned(), "`intger` is not known"),
    ] {
        let setup = setup(&format!("[[tests]]\nname = \"bad\"\n{test}"));
        let (code, out, err) = run(&setup, &[]).await;
        assert_eq!((code, &*out), (Some(2), ""), "{problem}: {err}");
        assert!(err.contains(problem), "{problem}: {err}");
    }
    let (code, _, err) = run(&setup(""), &[]).await;
    assert_eq!(code, Some(2));
    assert!(err.contains("has no tests"), "{err}");
}

#[tokio::test]
async fn a_table_that_a_transform_refuses_fails_its_test() {
    let setup = setup(
        r#"
[[tests]]
name = "no such column"
input = [{ row = { id = 1 } }]
expect.rows = []
[[tests.tables]]
table = "public.orders"
columns = ["id int8", "part int4"]
"#,
    );
    let (code, out, err) = run(&setup, &[]).await;
    assert_eq!(code, Some(1), "{out}{err}");
    for words in [
        "FAILED  no such column",
        "transforms.shared",
        "there is no column `parts`",
        "write `part`",
    ] {
        assert!(out.contains(words), "{words}: {out}");
    }
}
