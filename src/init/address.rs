//! Addresses as they are written into a file: without passwords, which stay in the environment.

use lockstep_core::config::Secret;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_pg::wire::target::Target;
use lockstep_pipelines::file::{Variables, replace};
use percent_encoding::percent_decode_str;

/// A password that was taken out of an address.
#[derive(Clone, Debug)]
pub struct Password {
    /// The environment variable that the file names instead.
    pub variable: String,
    /// What it has to hold.
    pub value: Secret,
}

/// A database.
#[derive(Clone, Debug)]
pub struct Database {
    /// Name of the source.
    pub name: String,
    /// As the file has it.
    pub written: String,
    /// Where to connect.
    pub target: Target,
    /// What it needs besides.
    pub password: Option<Password>,
}

impl Database {
    /// From `URL` or `NAME=URL`.
    ///
    /// # Errors
    /// Of kind `Config`: what is wrong with which part. The password is not repeated.
    pub fn parse(given: &str, variables: &Variables) -> Result<Self> {
        let (name, url) = match given.split_once('=') {
            Some((name, url)) if !name.contains([':', '/', '?', '$']) => (Some(name), url),
            _ => (None, given),
        };
        let revealed = revealed(url, variables)?;
        let target = Target::parse(&revealed)?;
        let name = match name {
            Some(name) if lockstep_pipelines::file::is_name(name) => name.to_owned(),
            Some(name) => {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("a source cannot be called `{name}`"),
                )
                .remedy("use lower-case letters, digits, `_` and `-`"));
            }
            None => called(&target.database),
        };
        let (written, has_password) = without_password(url);
        let password = target.password.clone().filter(|_| has_password);
        let password = password.map(|value| Password {
            variable: variable(&name, "PASSWORD"),
            value,
        });
        Ok(Database {
            name,
            written,
            target,
            password,
        })
    }

    /// Gives it another name.
    pub fn rename(&mut self, name: String) {
        if let Some(password) = &mut self.password {
            password.variable = variable(&name, "PASSWORD");
        }
        self.name = name;
    }

    /// Gives it a password.
    pub fn unlock(&mut self, value: Secret) {
        self.target.password = Some(value.clone());
        self.password = Some(Password {
            variable: variable(&self.name, "PASSWORD"),
            value,
        });
    }
}

/// A server of a sink.
#[derive(Clone, Debug)]
pub struct Server {
    /// As the file has it; with the password's variable in it, where `user` is not kept apart.
    pub written: String,
    /// User, and password as the file has it, where a sink has keys for them.
    pub login: Option<(String, String)>,
    /// What it needs besides.
    pub password: Option<Password>,
}

impl Server {
    /// Of a sink whose URL holds the password.
    pub fn with_password_inside(url: &str, sink: &str) -> Self {
        let variable = variable(sink, "PASSWORD");
        match login(url) {
            Some(login) if is_secret(login.password) => Server {
                written: format!(
                    "{}{}:${{{variable}}}@{}",
                    login.before, login.user, login.after
                ),
                login: None,
                password: Some(Password {
                    variable,
                    value: Secret::new(login.password),
                }),
            },
            _ => Server {
                written: url.to_owned(),
                login: None,
                password: None,
            },
        }
    }

    /// Of a sink that has keys for user and password.
    pub fn with_login_beside(url: &str, sink: &str) -> Self {
        let Some(login) = login(url) else {
            return Self::with_password_inside(url, sink);
        };
        let variable = variable(sink, "PASSWORD");
        let kept = match is_secret(login.password) {
            true => format!("${{{variable}}}"),
            false => login.password.to_owned(),
        };
        Server {
            written: format!("{}{}", login.before, login.after),
            login: Some((decoded(login.user), kept)),
            password: is_secret(login.password).then(|| Password {
                variable,
                value: Secret::new(decoded(login.password)),
            }),
        }
    }
}

/// With what the environment has in place of `${NAME}`.
///
/// # Errors
/// Of kind `Config`, naming what is missing.
fn revealed(text: &str, variables: &Variables) -> Result<String> {
    replace(text, variables).map_err(|why| Error::new(ErrorKind::Config, why))
}

/// `user:password@` of a URL, and what stands around it.
struct Login<'a> {
    before: &'a str,
    user: &'a str,
    password: &'a str,
    after: &'a str,
}

fn login(url: &str) -> Option<Login<'_>> {
    let start = url.find("://")? + 3;
    let end = url[start..].find(['/', '?', '#']);
    let end = end.map_or(url.len(), |end| start + end);
    let at = start + url[start..end].rfind('@')?;
    let (user, password) = url[start..at]
        .split_once(':')
        .unwrap_or_else(|| (&url[start..at], ""));
    Some(Login {
        before: &url[..start],
        user,
        password,
        after: &url[at + 1..],
    })
}

/// Not what comes from the environment anyway.
fn is_secret(password: &str) -> bool {
    !password.is_empty() && !password.contains("${")
}

/// The URL of a database without the password that stands in it, and whether there was one.
fn without_password(url: &str) -> (String, bool) {
    let (mut kept, mut found) = (url.to_owned(), false);
    if let Some(login) = login(url)
        && is_secret(login.password)
    {
        kept = format!("{}{}@{}", login.before, login.user, login.after);
        found = true;
    }
    let Some((address, query)) = kept.split_once('?') else {
        return (kept, found);
    };
    let is_password = |pair: &&str| {
        let password = pair.strip_prefix("password=");
        password.is_some_and(is_secret)
    };
    let pairs: Vec<&str> = query.split('&').collect();
    let open: Vec<&str> = pairs
        .iter()
        .copied()
        .filter(|pair| !is_password(pair))
        .collect();
    found |= open.len() < pairs.len();
    let query = match open.is_empty() {
        true => String::new(),
        false => format!("?{}", open.join("&")),
    };
    (format!("{address}{query}"), found)
}

/// A name for something that is called so elsewhere.
pub fn called(text: &str) -> String {
    let name: String = text
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') => c,
            _ => '_',
        })
        .collect();
    match name.is_empty() {
        true => "source".to_owned(),
        false => name,
    }
}

fn variable(name: &str, what: &str) -> String {
    let name: String = name
        .chars()
        .map(|c| match c.is_ascii_alphanumeric() {
            true => c.to_ascii_uppercase(),
            false => '_',
        })
        .collect();
    // A name may begin with a digit, a variable of a shell may not.
    match name.starts_with(|c: char| c.is_ascii_digit()) {
        true => format!("_{name}_{what}"),
        false => format!("{name}_{what}"),
    }
}

/// The variable that holds the password of a source, unless the file is changed by hand.
pub fn password_variable(source: &str) -> String {
    variable(source, "PASSWORD")
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(given: &str) -> Database {
        let variables = Variables::from([("PW".to_owned(), "s3cret".to_owned())]);
        Database::parse(given, &variables).unwrap_or_else(|error| panic!("{given}: {error}"))
    }

    #[test]
    fn a_password_never_stays_in_what_is_written() {
        for given in [
            "postgres://app:s3cret@db.example:5432/shop",
            "postgres://app@db.example:5432/shop?password=s3cret",
            "postgres://app:other@db.example:5432/shop?password=s3cret",
            "shop=postgres://app:s3cret@db.example:5432/whatever",
        ] {
            let database = database(given);
            let written = &database.written;
            assert!(
                !written.contains("s3cret") && !written.contains("other"),
                "{written}"
            );
            assert!(
                written.starts_with("postgres://app@db.example:5432/"),
                "{written}"
            );
            let password = database.password.expect("a password");
            assert_eq!(password.variable, "SHOP_PASSWORD");
            assert_eq!(password.value.reveal(), "s3cret");
        }
        let kept = database("postgres://a:b@h/shop?sslmode=disable&password=x&connect_timeout=3");
        assert_eq!(
            kept.written,
            "postgres://a@h/shop?sslmode=disable&connect_timeout=3"
        );
        let encoded = database("postgres://app:p%40ss@h/shop");
        assert_eq!(encoded.password.expect("one").value.reveal(), "p@ss");
    }

    #[test]
    fn what_comes_from_the_environment_stays_as_it_is() {
        let database = database("postgres://app:${PW}@h/shop");
        assert_eq!(database.written, "postgres://app:${PW}@h/shop");
        assert!(database.password.is_none());
        let password = database.target.password.expect("one");
        assert_eq!(password.reveal(), "s3cret");
        let missing = Database::parse("postgres://app:${NO_SUCH}@h/shop", &Variables::new());
        assert!(
            missing
                .expect_err("missing")
                .to_string()
                .contains("NO_SUCH")
        );
    }

    #[test]
    fn a_source_is_called_as_its_database_or_as_one_says() {
        assert_eq!(database("postgres://a@h/Shop.Orders").name, "shop_orders");
        assert_eq!(
            database("main=postgres://a@h/shop?sslmode=disable").name,
            "main"
        );
        assert_eq!(database("postgres://a@h/shop?sslmode=disable").name, "shop");
        let wrong = Database::parse("Main Db=postgres://a@h/shop", &Variables::new());
        assert_eq!(wrong.expect_err("no name").kind(), ErrorKind::Config);
        let mut renamed = database("postgres://a:b@h/shop");
        renamed.rename("shop_2".to_owned());
        assert_eq!(renamed.password.expect("one").variable, "SHOP_2_PASSWORD");
        assert_eq!(password_variable("7-eleven"), "_7_ELEVEN_PASSWORD");
    }

    #[test]
    fn servers_of_sinks_keep_no_password_either() {
        let inside = |url| Server::with_password_inside(url, "cache");
        let cache = inside("redis://me:s3cret@h:6379/1");
        assert_eq!(cache.written, "redis://me:${CACHE_PASSWORD}@h:6379/1");
        assert_eq!(cache.password.expect("one").value.reveal(), "s3cret");
        assert_eq!(
            inside("redis://:s3cret@h").written,
            "redis://:${CACHE_PASSWORD}@h"
        );
        for open in ["redis://h:6379", "redis://:${PW}@h", "redis://me@h"] {
            let server = inside(open);
            assert_eq!(server.written, open);
            assert!(server.password.is_none());
        }
        let search = Server::with_login_beside("https://me:p%40ss@h:9200/", "search");
        assert_eq!(search.written, "https://h:9200/");
        let kept = ("me".to_owned(), "${SEARCH_PASSWORD}".to_owned());
        assert_eq!(search.login, Some(kept));
        assert_eq!(search.password.expect("one").value.reveal(), "p@ss");
    }
}
