//! Where to look at the end of the demo: addresses that answer, and commands that work as they are printed.

use std::net::SocketAddr;
use std::path::Path;

use lockstep_core::config::Secret;

use super::pipeline::{Ends, Search};
use super::shop::{INVENTORY_TABLES, ORDERS_TABLES};

/// What is still there when the summary is read.
pub struct Look<'a> {
    /// The servers.
    pub ends: &'a Ends,
    /// Where the admin endpoint listens, when the pipeline stays up.
    pub admin: Option<SocketAddr>,
    /// Whether the demo's folder stays.
    pub folder: bool,
    /// The id of an order.
    pub order: Option<String>,
}

impl Look<'_> {
    /// What, and where.
    pub fn places(&self) -> Vec<(String, String)> {
        let mut places = Vec::new();
        let mut add = |what: &str, place: String| places.push((what.to_owned(), place));
        if let Some(admin) = self.admin {
            add("status", format!("http://{admin}/api/status"));
            add("metrics", format!("http://{admin}/metrics"));
        }
        add("topics", self.topics());
        add("keys", self.keys());
        match &self.ends.search {
            Search::Tantivy(path) if self.folder => {
                let path = quoted(&path.display().to_string());
                add("search", format!("{} search {path} paid", program()));
            }
            Search::Tantivy(_) => {}
            Search::OpenSearch(url) => {
                let url = url.redacted_url();
                let url = url.trim_end_matches('/');
                add("search", format!("{url}/orders-orders/_search?q=paid"));
            }
        }
        places
    }

    fn topics(&self) -> String {
        let (topic, brokers) = ("orders.public.orders", &self.ends.kafka);
        if on_path("kcat").is_some() {
            return format!("kcat -C -e -q -b {} -t {topic} -c 3", quoted(brokers));
        }
        let others = ORDERS_TABLES.len() + INVENTORY_TABLES.len() - 1;
        format!("{topic} and {others} more on {brokers}")
    }

    fn keys(&self) -> String {
        let redis_cli = redis_cli(&self.ends.redis_url);
        match &self.order {
            Some(id) => format!("{redis_cli} GET {}", quoted(&format!("orders:orders:{id}"))),
            None => format!("{redis_cli} --scan --pattern 'orders:orders:*'"),
        }
    }
}

/// The client for a server; it asks for the password, which is not printed.
fn redis_cli(url: &Secret) -> String {
    let mut command = format!("redis-cli -u {}", quoted(&url.redacted_url()));
    let authority = url.reveal().split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    if let Some((login, _)) = authority.rsplit_once('@') {
        let user = login.split(':').next().unwrap_or_default();
        if !user.is_empty() {
            command += &format!(" --user {}", quoted(user));
        }
        command += " --askpass";
    }
    command
}

/// What starts this very program from a shell.
fn program() -> String {
    let Ok(own) = std::env::current_exe() else {
        return "lockstep".to_owned();
    };
    let same = |path: &Path| path.canonicalize().is_ok_and(|path| path == own);
    let name = own.file_name().and_then(|name| name.to_str());
    match name.filter(|name| on_path(name).is_some_and(|path| same(&path))) {
        Some(name) => name.to_owned(),
        None => quoted(&own.display().to_string()),
    }
}

/// Where a shell finds a program.
fn on_path(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(search: Search) -> Ends {
        Ends {
            orders_url: Secret::new("postgres://a/orders"),
            inventory_url: Secret::new("postgres://b/inventory"),
            kafka: "127.0.0.1:9092".into(),
            redis_url: Secret::new("redis://127.0.0.1:6379"),
            search,
            admin: ([127, 0, 0, 1], 0).into(),
            state: "/tmp/a shop/state".into(),
        }
    }

    fn place(look: &Look<'_>, what: &str) -> Option<String> {
        let places = look.places();
        let place = places.into_iter().find(|(name, _)| name == what);
        place.map(|(_, place)| place)
    }

    #[test]
    fn what_is_gone_is_not_named() {
        let ends = ends(Search::Tantivy("/tmp/a shop/search".into()));
        let mut look = Look {
            ends: &ends,
            admin: None,
            folder: false,
            order: None,
        };
        for what in ["status", "metrics", "search"] {
            assert_eq!(place(&look, what), None, "{what}");
        }
        look.admin = Some(([127, 0, 0, 1], 4711).into());
        look.folder = true;
        let status = place(&look, "status");
        assert_eq!(
            status.as_deref(),
            Some("http://127.0.0.1:4711/api/status"),
            "the port that was bound, not the one that was asked for"
        );
        let search = place(&look, "search").expect("the folder is there");
        assert!(
            search.ends_with(" search '/tmp/a shop/search' paid"),
            "{search}"
        );
    }

    #[test]
    fn a_server_of_its_own_stays() {
        let ends = ends(Search::OpenSearch(Secret::new(
            "http://me:secret@127.0.0.1:9200/",
        )));
        let look = Look {
            ends: &ends,
            admin: None,
            folder: false,
            order: Some("7".into()),
        };
        assert_eq!(
            place(&look, "search").as_deref(),
            Some("http://127.0.0.1:9200/orders-orders/_search?q=paid")
        );
        assert_eq!(
            place(&look, "keys").as_deref(),
            Some("redis-cli -u redis://127.0.0.1:6379 GET orders:orders:7")
        );
    }

    #[test]
    fn passwords_are_asked_for_and_never_printed() {
        let command = |url: &str| redis_cli(&Secret::new(url));
        assert_eq!(
            command("redis://:secret@h:1/2"),
            "redis-cli -u redis://h:1/2 --askpass"
        );
        assert_eq!(
            command("redis://shop:s@cret@h:1"),
            "redis-cli -u redis://h:1 --user shop --askpass"
        );
        // What may be a part of a login is not shown.
        assert_eq!(command("redis://h:1/?a=@"), "redis-cli -u 'redis://***'");
    }

    #[test]
    fn words_survive_a_shell() {
        for word in ["plain/path-1.2", "a b", "it's", "$HOME", "", "a;b"] {
            let said = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(word))])
                .output()
                .expect("a shell");
            assert_eq!(String::from_utf8_lossy(&said.stdout), word);
        }
    }

    #[test]
    fn a_program_that_is_not_on_the_path_is_named_in_full() {
        let own = std::env::current_exe().expect("a test has a program");
        assert_eq!(program(), quoted(&own.display().to_string()));
        assert!(on_path("sh").is_some() && on_path("no-such-program").is_none());
    }
}
