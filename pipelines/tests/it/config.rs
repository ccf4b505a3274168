//! Every mistake in a pipeline file is reported with its line and the nearest valid name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lockstep_core::config::{Duration, Secret};
use lockstep_core::sink::{Inspect, Sink, SinkContext, SinkFactory};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pipelines::file::{Variables, load_with};
use lockstep_pipelines::{Mistake, Mistakes, Pipeline, Registry};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::ends;

/// A sink with keys of many types.
struct Rich;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RichConfig {
    url: Secret,
    #[serde(default)]
    ttl: Option<Duration>,
    #[serde(default)]
    partitions: Option<u16>,
    #[serde(default)]
    format: Option<Format>,
    #[serde(default)]
    tables: Vec<String>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    #[serde(default)]
    tls: Option<Tls>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    Debezium,
    Flat,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tls {
    verify: bool,
}

#[async_trait::async_trait]
impl SinkFactory for Rich {
    const KIND: &'static str = "rich";
    type Config = RichConfig;

    fn validate(config: &RichConfig) -> Result<()> {
        let _ = (
            &config.format,
            &config.tables,
            &config.properties,
            config.tls.as_ref().map(|tls| tls.verify),
        );
        if config.partitions == Some(0) {
            return Err(
                Error::new(ErrorKind::Config, "`partitions` is 0").remedy("write 1 or more")
            );
        }
        if config.ttl.is_some() && !config.url.reveal().contains("://") {
            return Err(Error::new(ErrorKind::Config, "`url` is not a URL"));
        }
        Ok(())
    }

    async fn open(_: &RichConfig, _: SinkContext) -> Result<Box<dyn Sink>> {
        Err(ends::error(ErrorKind::Unavailable))
    }

    async fn preflight(_: &RichConfig, _: &str, _: &str) -> Vec<lockstep_core::check::Finding> {
        Vec::new()
    }

    async fn inspect(_: &RichConfig, _: SinkContext) -> Result<Option<Box<dyn Inspect>>> {
        Ok(None)
    }
}

fn registry() -> Registry {
    ends::registry().with_sink::<Rich>()
}

struct Loader {
    directory: tempfile::TempDir,
    variables: Variables,
}

impl Loader {
    fn new(variables: &[(&str, &str)]) -> Self {
        Loader {
            directory: tempfile::tempdir().unwrap(),
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn load(&self, name: &str, text: &str) -> Result<Pipeline, Mistakes> {
        let path: PathBuf = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        load_with(&path, &registry(), &self.variables)
    }

    fn mistakes(&self, name: &str, text: &str) -> Vec<Mistake> {
        self.load(name, text).expect_err("a bad file").0
    }
}

const GOOD: &str = r#"name = "shop"

[sources.orders]
type = "scripted"
script = "x"

[sinks.cache]
type = "rich"
inputs = ["orders"]
url = "redis://h"
"#;

/// What is wrong with a variant of the good file: line, and a part of what is printed.
#[track_caller]
fn check(text: &str, expected: &[(usize, &str)]) {
    let mistakes = Loader::new(&[]).mistakes("shop.toml", text);
    let shown: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    assert_eq!(mistakes.len(), expected.len(), "{shown:#?}");
    for (mistake, (line, part)) in mistakes.iter().zip(expected) {
        assert_eq!(mistake.line, Some(*line), "{shown:#?}");
        assert!(
            mistake.to_string().contains(part),
            "`{part}` is not in {shown:#?}"
        );
    }
}

fn with(line: &str) -> String {
    format!("{GOOD}{line}\n")
}

#[test]
fn the_good_file_is_good() {
    let pipeline = Loader::new(&[]).load("shop.toml", GOOD).expect("good");
    assert_eq!(&*pipeline.name, "shop");
    assert_eq!(pipeline.state, PathBuf::from(".lockstep/shop"));
    assert_eq!(pipeline.memory.bytes(), 32 << 20);
    assert!(pipeline.admin.is_none());
    assert_eq!(pipeline.plan.sinks_of(0).collect::<Vec<_>>(), [0]);
}

#[test]
fn unknown_keys() {
    check(
        &with("ttll = \"7d\""),
        &[(11, "sinks.cache.ttll: unknown key; did you mean `ttl`?")],
    );
    check(
        &with("zzz = 1"),
        &[(11, "the keys here are url, ttl, partitions")],
    );
    check(
        &with("tls = { verfy = true, verify = true }"),
        &[(
            11,
            "sinks.cache.tls.verfy: unknown key; did you mean `verify`?",
        )],
    );
    check(
        &GOOD.replace("name =", "memmory = 1\nname ="),
        &[(1, "memmory: unknown key; did you mean `memory`?")],
    );
    check(
        &GOOD.replace("[sinks.cache]", "[sink.cache]"),
        &[(7, "sink: unknown key; did you mean `sinks`?")],
    );
    check(
        &with("[reconcile]\nevry = \"15m\""),
        &[(12, "reconcile.evry: unknown key; did you mean `every`?")],
    );
    check(
        &GOOD.replace("script = \"x\"", "script = \"x\"\ntwo_phase = true"),
        &[(6, "sources.orders.two_phase: unknown key")],
    );
    check(
        &with("[admin]\nlisten = \"127.0.0.1:1\"\ntokn = \"x\""),
        &[(13, "admin.tokn: unknown key; did you mean `token`?")],
    );
}

#[test]
fn types_and_values() {
    check(
        &GOOD.replace("\"rich\"", "\"memry\""),
        &[(
            8,
            "there is no type `memry`; there are memory, rich, rows; did you mean `memory`?",
        )],
    );
    check(
        &GOOD.replace("type = \"rich\"\n", ""),
        &[(
            7,
            "sinks.cache.type: this key is required and missing; the types here are memory, rich, rows",
        )],
    );
    check(
        &with("ttl = \"7 days\""),
        &[(11, "sinks.cache.ttl: `7 days` is not a duration")],
    );
    check(
        &with("ttl = 7"),
        &[(11, "expected a string, found a whole number")],
    );
    check(
        &with("partitions = \"three\""),
        &[(11, "expected u16, found a text")],
    );
    check(
        &with("partitions = 70000"),
        &[(11, "sinks.cache.partitions: ")],
    );
    check(
        &with("format = \"debezum\""),
        &[(11, "`debezum` is not known here; did you mean `debezium`?")],
    );
    check(
        &with("tables = [\"a\",\n 5]"),
        &[(
            12,
            "sinks.cache.tables[1]: expected a string, found a whole number",
        )],
    );
    check(
        &with("properties = { \"a.b\" = 5 }"),
        &[(11, "sinks.cache.properties.\"a.b\": expected a string")],
    );
    check(
        &GOOD.replace("url = \"redis://h\"\n", ""),
        &[(7, "sinks.cache.url: this key is required and missing")],
    );
    check(
        &GOOD.replace("name =", "memory = \"32 apples\"\nname ="),
        &[(1, "memory: ")],
    );
    check(
        &GOOD.replace("\"shop\"", "\"My Shop\""),
        &[(1, "name: `My Shop` is not a name")],
    );
    check(
        &GOOD.replace("sinks.cache", "sinks.Cache"),
        &[(7, "sinks.Cache: a name is made of lower-case letters")],
    );
    check(
        &with("[reconcile]\nevery = \"10ms\""),
        &[(12, "reconcile.every: `10ms` is too often; 1s or longer")],
    );
    check(
        &with(
            "[transactions]\nlog = \"order\"\nresolve = [\"lockstpe\"]\nsafety_intervals = { dmt = \"1s\" }\n\
             automatic = [\"lockstep\", \"narajana\"]\nevery = \"200ms\"",
        ),
        &[
            (
                12,
                "transactions.log: there is no source `order`; did you mean `orders`?",
            ),
            (
                13,
                "transactions.resolve[0]: `lockstpe` is no manager whose names are known; did you mean `lockstep`?",
            ),
            (14, "transactions.safety_intervals.dmt: `dmt` is no manager"),
            (
                15,
                "transactions.automatic[1]: `narajana` is no manager whose names are known; did you mean `narayana`?",
            ),
            (16, "transactions.every: `200ms` is too often; 1s or longer"),
        ],
    );
    check(
        &with("[admin]\nlisten = \"nowhere\""),
        &[(12, "`nowhere` is not an address; write host:port")],
    );
    check(
        &GOOD.replace(
            "[sources.orders]",
            "shutdown_timeout = \"30\"\n[sources.orders]",
        ),
        &[(3, "shutdown_timeout: `30` is not a duration")],
    );
}

#[test]
fn invariants_are_checked_against_their_rule_and_the_sources() {
    // The section begins at line 18.
    let invariant = |rule: &str, more: &str| {
        let head = "[sources.inventory]\ntype = \"scripted\"\nscript = \"y\"\n[sinks.b]\ntype = \"rich\"\ninputs = [\"inventory\"]\nurl = \"redis://h\"\n";
        let body = format!("[[reconcile.invariants]]\nname = \"one\"\nrule = \"{rule}\"\n{more}");
        format!("{GOOD}{head}{body}\n")
    };
    const TWO: &str = "queries = { orders = \"SELECT 1\", inventory = \"SELECT 2\" }";
    let key = "key = [\"id\"]\n";
    let good = invariant("equal", &format!("{key}{TWO}"));
    let pipeline = Loader::new(&[]).load("shop.toml", &good).expect("good");
    let declared = &pipeline.invariants[0];
    assert_eq!(declared.every.to_string(), "15m");
    // By name.
    let sources: Vec<&str> = declared
        .invariant
        .sides
        .iter()
        .map(|side| &*side.source)
        .collect();
    assert_eq!(sources, ["inventory", "orders"]);
    let directed = invariant("subset", &format!("{key}for_each = \"orders\"\n{TWO}"));
    let pipeline = Loader::new(&[]).load("shop.toml", &directed).expect("good");
    assert_eq!(pipeline.invariants[0].invariant.for_each, 1);

    for (rule, more, line, part) in [
        (
            "equal",
            format!("{key}queries = {{ orders = \"SELECT 1\" }}"),
            22,
            "`equal` is about two sources, and here is a query of 1",
        ),
        (
            "unique",
            format!("{key}queries = {{}}"),
            22,
            "there is no query",
        ),
        (
            "unique",
            format!("{key}queries = {{ ordrs = \"SELECT 1\" }}"),
            22,
            "there is no source `ordrs`; did you mean `orders`?",
        ),
        (
            "subset",
            format!("{key}{TWO}"),
            18,
            "whose rows are looked at",
        ),
        (
            "equal",
            format!("{key}{TWO}\nfor_each = \"orders\""),
            23,
            "`equal` has no direction",
        ),
        (
            "subset",
            format!("{key}{TWO}\nfor_each = \"order\""),
            23,
            "did you mean `orders`?",
        ),
        (
            "exists_within",
            format!("{key}{TWO}\nfor_each = \"orders\""),
            18,
            "within what time",
        ),
        (
            "exists_within",
            format!("{key}{TWO}\nfor_each = \"orders\"\nwithin = \"1m\"\ncompare = [\"n\"]"),
            25,
            "looks at the key only",
        ),
        (
            "equal",
            format!("key = []\n{TWO}"),
            21,
            "no column to join rows by",
        ),
        (
            "equal",
            format!("key = [\"a\", \"a\"]\n{TWO}"),
            21,
            "named twice",
        ),
        (
            "equal",
            format!("{key}{TWO}\nevery = \"10ms\""),
            23,
            "`10ms` is too short; 1s or longer",
        ),
        (
            "equal",
            format!("{key}{TWO}\nwthin = \"1m\""),
            23,
            "did you mean `within`?",
        ),
        ("same", format!("{key}{TWO}"), 20, "sum_equal"),
    ] {
        check(&invariant(rule, &more), &[(line, part)]);
    }
    let twice =
        format!("{good}[[reconcile.invariants]]\nname = \"one\"\nrule = \"equal\"\n{key}{TWO}\n");
    check(&twice, &[(24, "another invariant has the name `one`")]);
}

#[test]
fn what_a_factory_refuses_has_the_line_of_the_key() {
    check(
        &with("partitions = 0"),
        &[(
            11,
            "sinks.cache.partitions: `partitions` is 0; write 1 or more",
        )],
    );
    check(
        &GOOD.replace("script = \"x\"", "script = \"\""),
        &[(5, "sources.orders.script: `script` is empty")],
    );
}

#[test]
fn the_graph() {
    check(
        &GOOD.replace("[\"orders\"]", "[\"ordres\"]"),
        &[(
            9,
            "sinks.cache.inputs[0]: there is no source or transform `ordres`; did you mean `orders`?",
        )],
    );
    check(
        &GOOD.replace("[\"orders\"]", "[\"orders:a\"]"),
        &[(9, "`orders:a` is not an input; write `node`")],
    );
    check(
        &GOOD.replace("inputs = [\"orders\"]\n", ""),
        &[(7, "`cache` reads nothing; name its `inputs`")],
    );
    check(
        &GOOD.replace("[\"orders\"]", "\"orders\""),
        &[(9, "sinks.cache.inputs: expected a sequence, found a text")],
    );
    check(
        &with("[sources.stock]\ntype = \"scripted\"\nscript = \"y\""),
        &[(11, "nothing reads the source `stock`")],
    );
    let circle = "[transforms.a]\ntype = \"witness\"\nscript = \"w\"\ninputs = [\"orders\", \"b\"]\n\
                  [transforms.b]\ntype = \"witness\"\nscript = \"w\"\ninputs = [\"a\"]\n";
    check(
        &with(circle).replace("inputs = [\"orders\"]\nurl", "inputs = [\"b\"]\nurl"),
        &[(11, "the inputs go round in a circle: a → b → a")],
    );
    let mistakes = Loader::new(&[]).mistakes("shop.toml", "name = \"shop\"\n");
    let messages: Vec<_> = mistakes
        .iter()
        .map(|mistake| mistake.message.as_str())
        .collect();
    assert_eq!(messages, ["there are no sinks", "there are no sources"]);
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let text = r#"nme = "shop"

[sources.orders]
type = "scripted"
scrip = "x"

[sinks.cache]
type = "rich"
inputs = ["order"]
url = "redis://h"
ttl = "soon"
partitons = 3
format = "flatt"
"#;
    check(
        text,
        &[
            (1, "nme: unknown key; did you mean `name`?"),
            (
                5,
                "sources.orders.scrip: unknown key; did you mean `script`?",
            ),
            (
                9,
                "there is no source or transform `order`; did you mean `orders`?",
            ),
            (11, "`soon` is not a duration"),
            (12, "did you mean `partitions`?"),
            (13, "did you mean `flat`?"),
        ],
    );
}

#[test]
fn syntax_and_duplicates() {
    check(&with("url = \"redis://other\""), &[(11, "duplicate key")]);
    let mistakes = Loader::new(&[]).mistakes("shop.toml", "name = \n");
    assert_eq!(mistakes[0].line, Some(1), "{mistakes:?}");
    let mistakes = Loader::new(&[]).mistakes("shop.json", "{\n  \"name\": \"a\",\n}");
    assert_eq!(mistakes[0].line, Some(3), "{mistakes:?}");
    let mistakes = Loader::new(&[]).mistakes("shop.yaml", "name: \"a\nb: [");
    assert!(mistakes[0].line.is_some(), "{mistakes:?}");
    let mistakes = Loader::new(&[]).mistakes("shop.ini", "");
    assert!(
        mistakes[0]
            .to_string()
            .contains("must end in .toml, .yaml, .yml or .json")
    );
    let missing = load_with(
        &PathBuf::from("/no/such/file.toml"),
        &registry(),
        &Variables::new(),
    );
    assert!(
        missing
            .expect_err("missing")
            .to_string()
            .starts_with("/no/such/file.toml: cannot read the file")
    );
}

#[test]
fn yaml_and_json_have_lines_too() {
    let yaml = "name: shop\nsources:\n  orders:\n    type: scripted\n    script: x\nsinks:\n  cache:\n    type: rich\n    \
                inputs:\n    - orders\n    - ordres\n    url: redis://h\n    ttll: 7d\n";
    let mistakes = Loader::new(&[]).mistakes("shop.yml", yaml);
    let lines: Vec<_> = mistakes
        .iter()
        .map(|mistake| (mistake.line, mistake.nearest.as_deref()))
        .collect();
    assert_eq!(
        lines,
        [(Some(11), Some("orders")), (Some(13), Some("ttl"))],
        "{mistakes:?}"
    );

    let json = "{\"name\": \"shop\",\n\"sources\": {\"orders\": {\"type\": \"scripted\",\n\"script\": \"x\"}},\n\
                \"sinks\": {\"cache\": {\"type\": \"rich\", \"inputs\": [\"orders\"], \"url\": \"redis://h\",\n\
                \"partitions\": true, \"url\": \"x\"}}}";
    let mistakes = Loader::new(&[]).mistakes("shop.json", json);
    let shown: Vec<_> = mistakes
        .iter()
        .map(|mistake| (mistake.line, mistake.message.as_str()))
        .collect();
    assert_eq!(
        shown,
        [
            (Some(5), "expected u16, found a truth value"),
            (Some(5), "duplicate key")
        ]
    );
}

#[test]
fn the_environment_overrides_and_fills_in() {
    let loader = Loader::new(&[
        ("LOCKSTEP__MEMORY", "64MiB"),
        ("lockstep__sinks__CACHE__Partitions", "8"),
        ("LOCKSTEP__SINKS__CACHE__TABLES", "a, b"),
        ("LOCKSTEP__ADMIN__LISTEN", "0.0.0.0:1"),
        ("LOCKSTEP__ADMIN__TOKEN", "12345"),
        ("LOCKSTEP_ADMIN_TOKEN", "not a path"),
        ("PASSWORD", "p@ss"),
        ("PARTITIONS", "9"),
    ]);
    let text = with("tables = []").replace("redis://h", "redis://:${PASSWORD}@h/$${x}");
    let pipeline = loader
        .load("shop.toml", &text)
        .unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!(pipeline.memory.bytes(), 64 << 20);
    let admin = pipeline.admin.expect("made by the override");
    assert_eq!(admin.listen, "0.0.0.0:1");
    // A token of digits looks like a number and is a text all the same.
    assert_eq!(admin.token.expect("set").reveal(), "12345");
    // The other way round: a text from the environment where a number belongs.
    let loader = Loader::new(&[("PARTITIONS", "9")]);
    loader
        .load("shop.toml", &with("partitions = \"${PARTITIONS}\""))
        .unwrap_or_else(|mistakes| panic!("{mistakes}"));
}

#[test]
fn mistakes_from_the_environment_are_named_and_secrets_are_not_printed() {
    let loader = Loader::new(&[
        ("LOCKSTEP__SINKS__CACHE__TTL", "soon"),
        ("SECRET", "hunter2"),
    ]);
    let mistakes = loader.mistakes("shop.toml", GOOD);
    assert_eq!(
        mistakes[0].to_string(),
        "environment variable LOCKSTEP__SINKS__CACHE__TTL: sinks.cache.ttl: `***` is not a duration; write a whole \
         number and a unit of ms, s, m, h or d, such as 15m"
    );
    let loader = Loader::new(&[("SECRET", "hunter2")]);
    let mistakes = loader.mistakes(
        "shop.toml",
        &with("ttl = \"${SECRET}\"\nformat = \"${SECRET}\""),
    );
    assert!(
        !mistakes
            .iter()
            .any(|mistake| mistake.to_string().contains("hunter2")),
        "{mistakes:?}"
    );
    let mistakes = loader.mistakes("shop.toml", &with("ttl = \"${TTL}\""));
    assert_eq!(mistakes[0].line, Some(11));
    assert!(
        mistakes[0]
            .to_string()
            .contains("sinks.cache.ttl: the environment variable `TTL` is not set")
    );
    let mistakes = Loader::new(&[
        ("LOCKSTEP__SINKS", "1"),
        ("LOCKSTEP__NAME__X", "1"),
        ("LOCKSTEP__", "1"),
    ]);
    let mistakes = mistakes.mistakes("shop.toml", GOOD);
    assert!(
        mistakes.iter().all(|mistake| mistake.variable.is_some()) && mistakes.len() == 3,
        "{mistakes:?}"
    );
}

#[test]
fn mistakes_become_one_error() {
    let mistakes = Loader::new(&[])
        .load("shop.toml", &with("tll = 1"))
        .expect_err("bad");
    let error = Error::from(mistakes);
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().starts_with("LS001 "), "{error}");
}
