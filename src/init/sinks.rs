//! Sinks: what is answered, and the sections that come of it.

use std::collections::BTreeSet;

use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pipelines::Registry;
use lockstep_pipelines::file::nearest;

use super::address::{Password, Server};
use super::file::line;
use crate::quoted::string;

/// What is taken when nobody says where changes go: it needs no server.
pub const SUGGESTED: &str = "file=changes";

/// The kinds that `init` knows how to write.
static KINDS: [(&str, Kind, &str, &str); 9] = [
    ("kafka", Kind::Kafka, "events", "127.0.0.1:9092"),
    ("redis", Kind::Redis, "cache", "redis://127.0.0.1:6379"),
    (
        "opensearch",
        Kind::Search,
        "search",
        "http://127.0.0.1:9200",
    ),
    (
        "elasticsearch",
        Kind::Search,
        "search",
        "http://127.0.0.1:9200",
    ),
    ("rabbitmq", Kind::Queue, "queue", "amqp://127.0.0.1:5672"),
    (
        "redis-stream",
        Kind::Stream,
        "feed",
        "redis://127.0.0.1:6379",
    ),
    (
        "webhook",
        Kind::Hook,
        "hook",
        "http://127.0.0.1:8080/changes/{table}",
    ),
    ("tantivy", Kind::Index, "index", "index"),
    ("file", Kind::File, "files", "changes"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kafka,
    Redis,
    Search,
    Queue,
    Stream,
    Hook,
    Index,
    File,
}

/// A sink that was asked for.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Its name in the file.
    pub name: String,
    /// Its `type`.
    pub kind: &'static str,
    is: Kind,
    address: String,
    server: Server,
}

/// What the sections depend on besides.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// Tables of one name may come out of several schemas.
    pub several_schemas: bool,
}

/// Understands `KIND=ADDRESS`, or `KIND`, of each.
///
/// # Errors
/// Of kind `Invalid`: a kind that there is not.
pub fn parse(words: &[String], registry: &Registry) -> Result<Vec<Sink>> {
    let mut wanted: Vec<(&str, String)> = Vec::new();
    for word in words {
        // What stands between the commas of one word; another word is another sink.
        let mut is_first = true;
        for part in word
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            match (part.split_once('='), wanted.last_mut()) {
                // Another server of the same sink: brokers have commas between them as well.
                (None, Some((_, address))) if !is_first && part.contains(':') => {
                    *address += &format!(",{part}");
                }
                (Some((kind, address)), _) => wanted.push((kind.trim(), address.trim().to_owned())),
                (None, _) => wanted.push((part, String::new())),
            }
            is_first = false;
        }
    }
    let mut names = BTreeSet::new();
    wanted
        .into_iter()
        .map(|(kind, address)| one(kind, &address, registry, &mut names))
        .collect()
}

fn one(
    kind: &str,
    address: &str,
    registry: &Registry,
    names: &mut BTreeSet<String>,
) -> Result<Sink> {
    let known = |(name, ..): &&(&str, Kind, &str, &str)| registry.sinks().contains_key(*name);
    let mut all = KINDS.iter().filter(known);
    let Some((kind, is, name, usual)) = all.clone().find(|(name, ..)| *name == kind) else {
        let there_are = all.clone().map(|(name, ..)| *name).collect::<Vec<&str>>();
        let near = nearest(kind, all.by_ref().map(|(name, ..)| *name));
        let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        let remedy = format!("there are {}{near}", there_are.join(", "));
        let what = format!("there is no kind of sink `{kind}` that can be written");
        return Err(Error::new(ErrorKind::Invalid, what).remedy(remedy));
    };
    let mut unique = (*name).to_owned();
    let mut number = 2;
    while !names.insert(unique.clone()) {
        unique = format!("{name}_{number}");
        number += 1;
    }
    let address = match address.is_empty() {
        true => *usual,
        false => address,
    };
    let server = match is {
        Kind::Search | Kind::Hook => Server::with_login_beside(address, &unique),
        _ => Server::with_password_inside(address, &unique),
    };
    Ok(Sink {
        name: unique,
        kind,
        is: *is,
        address: address.to_owned(),
        server,
    })
}

impl Sink {
    /// Whether it holds one record per key, and so takes no table without a key.
    pub fn needs_keys(&self) -> bool {
        matches!(self.is, Kind::Redis | Kind::Search | Kind::Index)
    }

    /// The password that its section names.
    pub fn password(&self) -> Option<&Password> {
        self.server.password.as_ref()
    }

    /// User and password, where they are keys of their own.
    fn login(&self) -> String {
        let login = self.server.login.iter();
        login
            .map(|(user, password)| {
                let (user, password) = (string(user), string(password));
                format!("user = {user}\npassword = {password}\n")
            })
            .collect()
    }

    /// Its section below `type` and `inputs`.
    pub fn section(&self, around: Surroundings) -> String {
        let written = string(&self.server.written);
        match self.is {
            Kind::Kafka => [
                line(&format!("brokers = {}", string(&self.address)), "several with commas between them"),
                line(r#"topic = "{source}.{schema}.{table}""#, "a topic per table, created when missing"),
                line(r#"format = "debezium""#, "debezium | flat"),
                line("exactly_once = true", "for consumers that read committed messages"),
                "# properties = { \"security.protocol\" = \"SASL_SSL\", \"sasl.username\" = \"me\", \"sasl.password\" = \"${KAFKA_PASSWORD}\" }\n".to_owned(),
            ]
            .concat(),
            Kind::Redis => [
                format!("url = {written}\n"),
                line(
                    match around.several_schemas {
                        true => r#"key = "{source}:{schema}.{table}:{key}""#,
                        false => r#"key = "{source}:{table}:{key}""#,
                    },
                    "orders:customers:17",
                ),
                line(r#"value = "json""#, "json | hash"),
                line(r#"# ttl = "7d""#, "how long a row is kept that does not change"),
            ]
            .concat(),
            Kind::Search => {
                let index = match around.several_schemas {
                    true => "index = \"{source}-{schema}-{table}\"\n",
                    false => "index = \"{source}-{table}\"\n",
                };
                format!("url = {written}\n{}{index}", self.login())
            }
            Kind::Queue => [
                format!("url = {written}\n"),
                line(r#"exchange = "lockstep""#, "made when it is missing, with a queue per table"),
                "declare = { exchange = \"topic\", queues = [{ name = \"{source}.{schema}.{table}\", bind = [\"{source}.{schema}.{table}\"] }] }\n".to_owned(),
                line(r#"format = "debezium""#, "debezium | flat"),
            ]
            .concat(),
            Kind::Stream => [
                format!("url = {written}\n"),
                line(r#"stream = "{source}:{schema}:{table}""#, "a stream per table"),
                line(r#"format = "debezium""#, "debezium | flat"),
                line("# max_length = 1000000", "about how many entries are kept; default: all"),
            ]
            .concat(),
            Kind::Hook => [
                format!("url = {written}\n{}", self.login()),
                line(r#"format = "debezium""#, "debezium | flat"),
                line(r#"# secrets = ["${HOOK_SECRET}"]"#, "what requests are signed with"),
            ]
            .concat(),
            Kind::Index => line(
                &format!("path = {}", string(&self.address)),
                "a folder; `lockstep search` looks into it",
            ),
            Kind::File => line(
                &format!("path = {}", string(&file_path(&self.address))),
                "JSON lines, a file per table",
            ),
        }
    }
}

/// A path that has a place for the table in it is one; any other is a folder.
fn file_path(address: &str) -> String {
    match address.contains("{table}") {
        true => address.to_owned(),
        false => format!(
            "{}/{{source}}.{{schema}}.{{table}}.jsonl",
            address.trim_end_matches('/')
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sinks(words: &[&str]) -> Result<Vec<Sink>> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        parse(&words, &crate::builtin())
    }

    #[test]
    fn a_kind_alone_is_at_its_usual_address_and_names_are_unique() {
        let all = sinks(&["kafka", "redis=redis://h", "redis", "file=out/"]).expect("sinks");
        let names: Vec<&str> = all.iter().map(|sink| &*sink.name).collect();
        assert_eq!(names, ["events", "cache", "cache_2", "files"]);
        let around = Surroundings {
            several_schemas: false,
        };
        assert!(
            all[0]
                .section(around)
                .starts_with("brokers = \"127.0.0.1:9092\"")
        );
        assert!(all[2].section(around).contains("redis://127.0.0.1:6379"));
        assert!(
            all[3]
                .section(around)
                .contains("\"out/{source}.{schema}.{table}.jsonl\"")
        );
        assert!(!all[0].needs_keys() && all[1].needs_keys() && !all[3].needs_keys());
    }

    #[test]
    fn commas_stand_between_sinks_and_between_servers_of_one() {
        let all = sinks(&["kafka=a:9092,b:9092, redis", "file=out"]).expect("sinks");
        let told: Vec<(&str, &str)> = all.iter().map(|one| (one.kind, &*one.address)).collect();
        let expected = [
            ("kafka", "a:9092,b:9092"),
            ("redis", "redis://127.0.0.1:6379"),
            ("file", "out"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_kind_that_there_is_not_is_told_with_those_there_are() {
        let error = sinks(&["kafak=h:9092"]).expect_err("no such kind");
        assert!(
            error.to_string().contains("did you mean `kafka`?"),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn passwords_are_not_in_a_section() {
        let all = sinks(&[
            "redis=rediss://me:s3cret@h:6380",
            "opensearch=https://me:s3cret@h:9200",
            "rabbitmq=amqps://me:s3cret@h:5671/shop",
            "redis-stream=rediss://me:s3cret@h:6380",
            "webhook=https://me:s3cret@h/changes/{table}",
        ]);
        let around = Surroundings {
            several_schemas: true,
        };
        for sink in all.expect("sinks") {
            let section = sink.section(around);
            assert!(!section.contains("s3cret"), "{section}");
            let password = sink.password().expect("a password");
            assert!(
                section.contains(&format!("${{{}}}", password.variable)),
                "{section}"
            );
        }
    }
}
